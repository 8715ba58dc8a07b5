"""Makes the demo's corpus out of Python packages that are installed anyway.

    python -m examples.corpus runs/demo/corpus --size full

One JSON Lines file a domain; a record has `text`, `id` and `domain`:

    code     Python's standard library, one document a module
    prose    the `documentation` strings of botocore, one document a service
    headers  the generated C++ headers of PyTorch's operators, one document an operator

Documents come in the order of a hash of their ids, so that a corpus cut short is a fair
sample; a tiny one has short documents, to have enough of them. Nothing of the packages
is executed.
"""

import argparse
import gzip
import hashlib
import html.parser
import importlib.util
import json
import re
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from schemas import files
from schemas.documents import Document

Size = Literal["full", "tiny"]

DOMAINS = ("code", "prose", "headers")

BYTES: Mapping[Size, Mapping[str, int]] = {
    "full": {"code": 4_000_000, "prose": 4_000_000, "headers": 7_000_000},
    "tiny": {"code": 400_000, "prose": 400_000, "headers": 400_000},
}
"""Bytes of text for each domain, at most."""

_DOCUMENT_BYTES: Mapping[Size, range] = {
    "full": range(1_000, 100_000),
    "tiny": range(1_000, 10_000),
}
"""Shorter documents are mostly stubs; a longer one would be too much of a domain."""

# Tests of the library quote whatever they test; encodings are tables of numbers.
_NOT_CODE = {"test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3"}
_INSTALLED = {"site-packages", "dist-packages", "__pycache__"}

_HEADER_KIND = re.compile(r"_(?:ops|native|meta|[a-z0-9]+_dispatch)$")


def write_corpus(folder: str, size: Size) -> dict[str, int]:
    """Writes one file a domain; the same packages give the same bytes.

    Args:
      folder: gets code.jsonl, prose.jsonl and headers.jsonl.
      size: "tiny" is for trying the road, "full" for results.

    Returns:
      Bytes of text in each domain.
    """
    sources = {"code": _code, "prose": _prose, "headers": _headers}
    written = {}
    for domain in DOMAINS:
        lines, total = [], 0
        for document in sources[domain]():
            n_bytes = len(document.text.encode())
            if n_bytes not in _DOCUMENT_BYTES[size]:
                continue
            if total + n_bytes > BYTES[size][domain]:
                break
            total += n_bytes
            lines.append(_line(document))
        files.write_bytes(files.join(folder, f"{domain}.jsonl"), b"".join(lines))
        written[domain] = total
    return written


def package_folder(name: str) -> Path:
    """Finds the folder of an installed package without importing it.

    Raises:
      FileNotFoundError: if the package is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"package {name!r} must be installed, and is not; run `make install`"
        )
    return Path(spec.submodule_search_locations[0])


def _line(document: Document) -> bytes:
    record = {
        "id": document.doc_id,
        "domain": document.domain,
        "text": document.text,
    }
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def _shuffled(names: Iterator[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.blake2b(name.encode()).digest())


def _code() -> Iterator[Document]:
    """Yields the modules of the standard library, tests and tables left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = (path.relative_to(root) for path in root.rglob("*.py"))
    wanted = (
        module.as_posix()
        for module in modules
        if not (_NOT_CODE | _INSTALLED).intersection(module.parts)
    )
    for name in _shuffled(wanted):
        text = (root / name).read_text("utf-8")
        yield Document(doc_id=name, text=text, domain="code")


def _prose() -> Iterator[Document]:
    """Yields the services of botocore: what the texts of their operations say."""
    root = package_folder("botocore") / "data"
    models = {
        path.relative_to(root).parent.as_posix(): path
        for path in root.glob("*/*/service-2.json*")
    }
    for name in _shuffled(iter(models)):
        raw = models[name].read_bytes()
        packed = models[name].suffix == ".gz"
        service = json.loads(gzip.decompress(raw) if packed else raw)
        texts = [
            _plain_text(operation["documentation"])
            for _, operation in sorted(service["operations"].items())
            if operation.get("documentation")
        ]
        yield Document(doc_id=name, text="\n\n".join(texts), domain="prose")


def _headers() -> Iterator[Document]:
    """Yields PyTorch's operators: what their several headers declare.

    Guards, includes and remarks are the same in all of them and stay out: with them
    every document would be a near copy of every other.
    """
    root = package_folder("torch") / "include" / "ATen" / "ops"
    operators: dict[str, list[Path]] = {}
    headers = {path.stem: path for path in root.glob("*.h")}
    for stem in sorted(headers):
        operator = _HEADER_KIND.sub("", stem)
        owner = operator if operator in headers else stem
        operators.setdefault(owner, []).append(headers[stem])
    for name in _shuffled(iter(operators)):
        text = "".join(map(_declarations, operators[name]))
        yield Document(doc_id=name, text=text, domain="headers")


def _declarations(header: Path) -> str:
    lines = header.read_text("utf-8").splitlines(keepends=True)
    return "".join(
        line
        for line in lines
        if line.startswith("// aten::")
        or not (line.isspace() or line.startswith(("#", "//")))
    )


class _Text(html.parser.HTMLParser):
    """Collects the text of simple HTML, a line for each block."""

    BLOCKS = frozenset({"p", "div", "li", "dt", "dd", "tr", "pre", "br", "h1", "h2"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        self.parts.append(re.sub(r"\s+", " ", data))


def _plain_text(markup: str) -> str:
    parser = _Text()
    parser.feed(markup)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).splitlines())
    return "\n".join(line for line in lines if line)


def main() -> None:
    """Writes the corpus into a folder."""
    parser = argparse.ArgumentParser(description="make the demo's corpus")
    parser.add_argument("output", help="folder that gets a file for each domain")
    parser.add_argument("--size", choices=tuple(BYTES), default="full")
    given = parser.parse_args()
    for domain, n_bytes in write_corpus(given.output, given.size).items():
        print(f"{domain:8} {n_bytes:>9,} bytes")


if __name__ == "__main__":
    main()
