import re
import shlex
import subprocess
from pathlib import Path

import apache_beam
import pytest

from pipelines import launch, template
from pipelines.score import ScoreConfig

ROOT = Path(__file__).parent.parent.parent
DATAFLOW = ROOT / "deploy" / "dataflow"
WORKERS = ("cpu", "cuda")


def instructions(name: str) -> list[tuple[str, str]]:
    """Reads a Dockerfile: pairs of an instruction and its arguments."""
    text = (DATAFLOW / f"{name}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (first, rest.strip())
        for line in joined.splitlines()
        if line.strip()
        for first, _, rest in [line.partition(" ")]
    ]


def of(name: str, instruction: str) -> list[str]:
    return [rest for first, rest in instructions(name) if first == instruction]


def pins(path: str) -> dict[str, str]:
    lines = (ROOT / path).read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_beam_and_python_in_the_versions_that_are_tested(
    name: str,
) -> None:
    beam, python = of(name, "FROM")
    pinned = pins("constraints.txt")["apache-beam"]
    assert beam == f"apache/beam_python3.11_sdk:{pinned} AS beam"
    assert apache_beam.__version__ == pinned
    assert python.startswith("python:3.11-")
    assert "Python 3.11" in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_starts_as_beam_wants_it(name: str) -> None:
    assert "--from=beam /opt/apache/beam /opt/apache/beam" in of(name, "COPY")
    assert of(name, "ENTRYPOINT") == ['["/opt/apache/beam/boot"]']


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_the_package_in_pinned_versions(name: str) -> None:
    (install,) = (line for line in of(name, "RUN") if line.startswith("pip"))
    assert "--constraint constraints.txt" in install
    assert "--constraint deploy/constraints.txt" in install
    extras = re.search(r"'\.\[(.*)\]' && pip check$", install)
    assert extras
    more = {"cpu": set(), "cuda": {"lora", "quantize"}}[name]
    assert {*extras[1].split(",")} == {"train", "gguf", "gcp", *more}
    packages = re.search(
        r"^PACKAGES = \((.*)\)$", (ROOT / "setup.py").read_text(), re.M
    )
    assert packages
    copied = of(name, "COPY")
    for package in re.findall(r'"(\w+)"', packages[1]):
        assert f"{package} {package}" in copied


def test_workers_differ_in_torch_and_what_goes_with_a_gpu_alone() -> None:
    cpu, cuda = (set(instructions(name)) for name in WORKERS)
    assert {first for first, _ in cpu ^ cuda} == {"RUN", "ENV"}
    (install,) = (rest for first, rest in cpu - cuda if first == "RUN")
    index = "--extra-index-url https://download.pytorch.org/whl/cpu "
    extras = ("gcp]", "gcp,lora,quantize]")
    assert ("RUN", install.replace(index, "").replace(*extras)) in {
        (first, re.sub(r" +", " ", rest)) for first, rest in cuda
    }


def test_a_worker_with_a_gpu_has_the_compilers_of_what_is_built_there() -> None:
    (install,) = (line for line in of("cuda", "RUN") if line.startswith("apt-get"))
    words = install.split()
    assert {"gcc", "g++", "libc6-dev", "--no-install-recommends"} <= {*words}
    assert words[-3:] == ["rm", "-rf", "/var/lib/apt/lists/*"]


@pytest.mark.parametrize("name", [*WORKERS, "template"])
def test_what_is_copied_into_an_image_is_there_and_is_sent(name: str) -> None:
    sent = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M)
    for line in of(name, "COPY"):
        words = line.split()
        if words[0].startswith("--from="):
            continue
        for word in words[:-1]:
            assert (ROOT / word).exists()
            assert word.split("/")[0] in sent


def test_no_package_of_the_images_is_pinned_twice() -> None:
    both = pins("constraints.txt").keys() & pins("deploy/constraints.txt").keys()
    assert both == set()


def test_the_extras_of_the_images_are_pinned() -> None:
    pinned = {**pins("constraints.txt"), **pins("deploy/constraints.txt")}
    assert {"gcsfs", "peft", "bitsandbytes", "accelerate", "gguf"} <= pinned.keys()


def test_the_launcher_of_templates_is_a_worker_with_googles_program() -> None:
    launcher, worker = of("template", "FROM")
    assert launcher.endswith("AS launcher")
    assert worker == "${WORKER}"
    program = "/opt/google/dataflow/python_template_launcher"
    copied = of("template", "COPY")
    assert f"--from=launcher {program} {program}" in copied
    assert of("template", "ENTRYPOINT") == [f'["{program}"]']
    (variable,) = of("template", "ENV")
    name, _, path = variable.partition("=")
    assert name == "FLEX_TEMPLATE_PYTHON_PY_FILE"
    assert f"deploy/dataflow/template.py {path}" in copied


@pytest.mark.parametrize("name", ["build.sh", "launch.sh"])
def test_a_script_called_wrongly_shows_its_usage(name: str) -> None:
    done = subprocess.run(
        [DATAFLOW / name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"usage: deploy/dataflow/{name}" in done.stderr


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Returns a folder of docker and gcloud that print their words."""
    for name in ("docker", "gcloud"):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" ""\n')
        tool.chmod(0o755)
    return tmp_path


def said(tools: Path, *words: str) -> list[list[str]]:
    """Runs a script; returns the words of each command that it called."""
    done = subprocess.run(
        [str(DATAFLOW / words[0]), *words[1:]],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{tools}:/usr/bin:/bin"},
    )
    return [part.splitlines() for part in done.stdout.split("\n\n") if part]


def test_the_build_makes_every_image_and_every_template(tools: Path) -> None:
    called = said(tools, "build.sh", "registry.example/f", "0.1.0", "gs://b/t/")
    built = [c for c in called if c[:2] == ["docker", "build"]]
    files = [c[c.index("--file") + 1] for c in built]
    assert files == [f"deploy/dataflow/{n}.Dockerfile" for n in (*WORKERS, "template")]
    tags = [c[c.index("--tag") + 1] for c in built]
    assert [c[2] for c in called if c[:2] == ["docker", "push"]] == tags
    assert "WORKER=registry.example/f/cpu:0.1.0" in built[-1]
    templates = [c for c in called if c[0] == "gcloud"]
    assert [c[4] for c in templates] == [
        f"gs://b/t/{stage}.json" for stage in ("prepare", "score", "fuse")
    ]
    for command in templates:
        described = command[-1].partition("=")[2]
        assert (ROOT / described).exists()
        assert f"--image={tags[-1]}" in command


def test_a_launch_hands_flags_on_whole(tools: Path) -> None:
    flags = ["--project=p", "--region=r", "--staging-location=gs://b/s"]
    (command,) = said(
        tools,
        *("launch.sh", "prepare", "cut", "gs://b/t", "image"),
        *("inputs=gs://b/a*.jsonl gs://b/c.jsonl", "splits=fusion=.9,dev=.1"),
        *("--", *flags),
    )
    assert command == [
        *("gcloud", "dataflow", "flex-template", "run", "cut"),
        "--template-file-gcs-location=gs://b/t/prepare.json",
        "--parameters=stage=prepare",
        "--parameters=^~~^sdk_container_image=image",
        "--parameters=^~~^inputs=gs://b/a*.jsonl gs://b/c.jsonl",
        "--parameters=^~~^splits=fusion=.9,dev=.1",
        *flags,
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "j", "gs://b", "i"], "STAGE must be prepare, score or fuse"),
        (["fuse", "j", "gs://b", "i", "--top_k=3"], "must be NAME=VALUE"),
        (["fuse", "j", "gs://b", "i", "top_k=3"], "--project=... must stand behind"),
    ],
)
def test_a_launch_refuses_what_would_fail_later(
    words: list[str], told: str, tools: Path
) -> None:
    done = subprocess.run(
        [DATAFLOW / "launch.sh", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{tools}:/usr/bin:/bin"},
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stdout == ""


def documented(beginning: str) -> list[str]:
    """Returns the words of the command of docs/running.md that begins so."""
    text = (ROOT / "docs" / "running.md").read_text().replace("\\\n", " ")
    (line,) = (ln for ln in text.splitlines() if ln.startswith(beginning))
    return shlex.split(line)


def test_the_documented_launch_is_one_that_the_command_takes() -> None:
    words = documented("fusebeam score --windows gs://BUCKET")[2:]
    config, rest = launch.parse(ScoreConfig, words, prog="", description="")
    assert config.device == "cuda"
    assert "--runner=DataflowRunner" in rest


def test_the_documented_template_becomes_the_same_command(tools: Path) -> None:
    script, *words = documented("deploy/dataflow/launch.sh")
    (command,) = said(tools, Path(script).name, *words)
    given = [
        "--" + word.removeprefix("--parameters=").removeprefix("^~~^")
        for word in command
        if word.startswith("--parameters=") and "stage=" not in word
    ]
    flags = template.flags("score", given)
    config, rest = launch.parse(ScoreConfig, flags, prog="", description="")
    direct = documented("fusebeam score --windows gs://BUCKET")[2:]
    assert config == launch.parse(ScoreConfig, direct, prog="", description="")[0]
    assert [word.partition("=")[0] for word in rest] == ["--sdk_container_image"]
