import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "transforms", "pipelines", "train")
IMPORTED_AS = {
    "apache-beam": "apache_beam",
    "flash-attn": "flash_attn",
    "grpcio": "grpc",
    "PyYAML": "yaml",
}


def imported(package: str) -> set[str]:
    """Names the foreign top-level modules that a package imports anywhere."""
    found: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {*PACKAGES}


def declared() -> set[str]:
    text = (ROOT / "setup.py").read_text()
    names = re.findall(r'"([A-Za-z0-9_-]+)(?:\[\w+\])?>=', text)
    return {IMPORTED_AS.get(name, name) for name in names}


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_imported_is_declared(package: str) -> None:
    assert imported(package) - declared() == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


def test_what_is_declared_for_development_has_its_exact_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    # tests/buckets/requirements.txt has the clients; no test needs a GPU, DeepSpeed,
    # vLLM or an account of W&B.
    apart = {"gcsfs", "s3fs", "deepspeed", "flash-attn", "kernels", "vllm", "wandb"}
    named = {module: name for name, module in IMPORTED_AS.items()}
    wanted = {named.get(m, m).lower().replace("_", "-") for m in declared()}
    assert wanted - pinned == apart


def test_the_hooks_before_a_commit_are_the_commands_of_lint() -> None:
    rules = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", rules, re.MULTILINE)
    assert recipe
    lint = re.findall(r"\t\$\(BIN\)/(.*)", recipe[1])
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"entry: \.venv/bin/(.*)", hooks) == lint
