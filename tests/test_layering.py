import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "transforms", "pipelines", "train")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "transforms/functional": {"schemas", "transforms.functional"},
    "transforms": {"schemas", "transforms"},
    "train": {
        "schemas",
        "train",
        "transforms.functional",
        "transforms.scorer",
        "transforms.allocator",
        "transforms.causal",
        "transforms.chat",
        "transforms.checkpoint",
        "transforms.loading",
        "transforms.compilers",
        "transforms.templates",
        "transforms.tokenizer",
    },
    "pipelines": set(PACKAGES),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return {name for name in found if name.split(".")[0] in (*PACKAGES, "tests")}


def modules() -> list[Path]:
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    layer = max((name for name in MAY_IMPORT if place.startswith(name)), key=len)
    allowed = MAY_IMPORT[layer] | {name.split(".")[0] for name in MAY_IMPORT[layer]}
    for name in imports(path):
        assert name in allowed or any(
            name.startswith(f"{a}.") for a in MAY_IMPORT[layer]
        ), f"{place} imports {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_files_hold_a_docstring_and_nothing_else(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1
        assert isinstance(body[0], ast.Expr)


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("schemas", ("apache_beam", "torch", "transformers")),
        ("transforms/functional", ("apache_beam", "torch", "transformers")),
        ("train", ("apache_beam",)),
        ("transforms/scorer.py", ("apache_beam",)),
        ("transforms/tokenizer.py", ("apache_beam", "torch")),
    ],
)
def test_importing_a_layer_does_not_load_what_it_must_not_know(
    modules: str, forbidden: tuple[str, ...]
) -> None:
    place = ROOT / modules
    paths = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    names = [str(p.relative_to(ROOT))[:-3].replace("/", ".") for p in paths]
    names = [n for n in names if not n.endswith(("__init__", "__main__"))]
    code = f"import sys\nfor n in {names}: __import__(n)\n"
    code += f"print([m for m in {list(forbidden)} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]"
