"""Packaging; kept in setup.py, as Beam's --setup_file ships it to workers."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^VERSION = "(.+)"$', (HERE / "schemas" / "version.py").read_text(), re.MULTILINE
)
assert VERSION is not None, "schemas/version.py must define VERSION"

PACKAGES = ("schemas", "transforms", "pipelines", "train")

CORE = [
    "apache-beam>=2.77,<2.78",  # one minor at a time: runners and SDK must match
    "pyarrow>=18,<26",  # Beam's own upper bound
    "numpy>=2,<2.5",  # Beam's own upper bound
    "zstandard>=0.22,<1",
    "fsspec>=2024.6",
    "jinja2>=3.1.6,<4",  # chat templates; what came before could be broken out of
    "grpcio>=1.71,<2",  # Beam's own; what it excludes below is left out whole
    "jaxtyping>=0.2.34,<0.4",
    "numba>=0.61,<1",
    "rapidfuzz>=3.10,<4",
    "tokenizers>=0.22,<1",
    "transformers>=5,<6",
    "huggingface_hub>=1.3,<3",  # transformers' own bounds
    "torch>=2.9,<3",
    "safetensors>=0.5,<1",
]
TRAIN = ["accelerate>=1.6,<2"]
TENSORBOARD = "tensorboard>=2.18,<3"
LORA = ["peft>=0.17,<1"]
BITSANDBYTES = "bitsandbytes>=0.50,<1"  # older ones do not run everything on CPUs
EVAL = [
    *TRAIN,
    "datasets>=4,<6",  # from 4 on no data set may bring a program along
    "evaluate>=0.4.3,<1",
    "lm_eval>=0.4.13,<0.5",
    "PyYAML>=6,<7",
]
SEARCH = ["cmaes>=0.13,<0.14"]  # a state names its fields, which are the library's own
DEMO = [
    *TRAIN,
    "gguf>=0.17,<1",  # SmolLM2 comes as GGUF
    "sentencepiece>=0.2,<1",
    "botocore>=1.40,<2",  # its documentation strings are the demo's prose
]
EXTRAS = {
    "train": TRAIN,
    "track": [TENSORBOARD, "wandb>=0.19,<1"],
    "eval": EVAL,
    "search": SEARCH,
    "lora": LORA,
    "qlora": [*LORA, "bitsandbytes>=0.46,<1"],
    "quantize": [*TRAIN, BITSANDBYTES],
    "fp8": [*TRAIN, "kernels>=0.11,<1"],  # transformers says which it takes
    "split": TRAIN,  # one model over several GPUs
    "flash": ["flash-attn>=2.6,<3"],  # attention over packed windows on a GPU
    # 0.33 wants a pillow that Beam does not.
    "vllm": ["vllm>=0.20,<0.33; sys_platform == 'linux'"],
    "deepspeed": ["deepspeed>=0.16,<1"],
    "gguf": ["gguf>=0.17,<1", "sentencepiece>=0.2,<1"],
    "gcp": ["apache-beam[gcp]>=2.77,<2.78", "gcsfs>=2026.9"],
    "aws": ["s3fs>=2026.9"],
    "demo": DEMO,
    "dev": [
        *DEMO,
        *EVAL,
        *SEARCH,
        *LORA,
        BITSANDBYTES,
        "beartype>=0.20,<1",
        "duckdb>=1.2,<3",
        # Jobs are translated for Dataflow in the tests; not the whole extra gcp.
        "google-cloud-dataflow-client>=0.13,<1",
        "google-cloud-storage>=3,<4",
        "hypothesis>=6.120,<7",
        "mypy>=1.15,<3",
        "pandas>=2.2,<4",
        "polars>=1.20,<3",
        "pre-commit>=4,<5",
        "pytest>=8.3,<10",
        "pytest-timeout>=2.3,<3",
        "pytest-xdist>=3.6,<4",
        "ruff>=0.15,<0.18",
        "setuptools>=77",
        TENSORBOARD,
        "triton>=3.4,<4; sys_platform == 'linux'",  # the kernels, interpreted
    ],
}

setuptools.setup(
    name="fusebeam",
    version=VERSION.group(1),
    description="Fuse the knowledge of several LLMs into one, on Apache Beam.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=setuptools.find_packages(include=[f"{name}*" for name in PACKAGES]),
    package_data={name: ["py.typed"] for name in PACKAGES},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["fusebeam = pipelines.cli:main"]},
)
