"""A corpus and its splits: every document is kept whole or listed as left out.

Documents stand in a split's files in the order of the corpus, and so do the rejects, so
one walk over the corpus meets each of them at its turn: nothing is held in memory but
one document.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines import prepare
from pipelines.prepare import PrepareConfig
from schemas import documents, files, manifest, parquet, settings, windows
from schemas.checked import UnusableError
from schemas.documents import Document, Reject
from schemas.errors import SchemaError
from schemas.manifest import Manifest
from transforms import prepare as cutting
from transforms.prepare import REJECTS, Cut, Unit

_Kept = tuple[str, int, str]
"""A document's id, its bytes, and their digest."""


def config_of(prepared: str, made: Manifest) -> PrepareConfig:
    """Returns the settings by which prepare wrote a split below `prepared`."""
    given = {name: made.settings[name] for name in made.settings if name != "split"}
    given |= {"inputs": made.origins["corpus"], "models": made.origins["tokenizers"]}
    if "template" in made.origins:
        (given["chat_model"],) = made.origins["template"]
    return settings.from_mapping(
        PrepareConfig, {**given, "output": prepared}, f"the settings of {prepared}"
    )


def missing(prepared: str, config: PrepareConfig) -> list[str]:
    """Names the splits that are not finished in the folder that prepare wrote."""
    names = config.shares()
    return [n for n in names if not manifest.present(files.join(prepared, n))]


def check(prepared: str, config: PrepareConfig) -> str:
    """Compares the corpus with all splits and the rejects, document by document.

    Raises:
      SchemaError: if the corpus is another by now, or a document is neither kept whole
        nor listed as left out; names it.
    """
    units = prepare.units_of(config)
    splits = {
        name: manifest.read(files.join(prepared, name), windows.STAGE)
        for name in config.shares()
    }
    found = prepare.corpus_digest(units)
    for name, made in splits.items():
        if made.inputs["corpus"] != found:
            raise SchemaError(
                f"{prepared}/{name} must be made of the corpus as it is now, but"
                f" {', '.join(config.inputs)} changed since; put it back, or prepare"
                " again"
            )
    kept = 0
    reasons: Counter[str] = Counter()
    for unit in units:
        kept += _check_unit(prepared, unit, config, reasons)
    for name, made in splits.items():
        _check_counts(f"{prepared}/{name}", made.counts, reasons)
    if kept != (stated := sum(made.counts["documents"] for made in splits.values())):
        raise SchemaError(
            f"{prepared}: the manifests state {stated} documents, the corpus has {kept}"
            " that were kept"
        )
    left = ", ".join(f"{n:,} {reason}" for reason, n in sorted(reasons.items()))
    return (
        f"{kept + sum(reasons.values()):,} documents read = {kept:,} kept, byte for"
        f" byte + left out: {left or 'none'}"
    )


def _check_counts(
    split: str, counts: Mapping[str, int], reasons: Mapping[str, int]
) -> None:
    mark = "left_out_"
    stated = {k.removeprefix(mark): n for k, n in counts.items() if k.startswith(mark)}
    if stated != dict(reasons):
        raise SchemaError(
            f"{split}: the manifest states {stated} documents left out, the rejects"
            f" list {dict(reasons)}"
        )


def _check_unit(
    prepared: str, unit: Unit, config: PrepareConfig, reasons: Counter[str]
) -> int:
    """Walks one input file; counts what was left out, returns what was kept."""
    cut = prepare.cut_of(config, {}, [])
    listed = files.join(prepared, REJECTS, f"part-{unit.index:06d}.jsonl")
    left = _Turn(_rejects(listed))
    splits = [
        _Turn(_documents(files.join(prepared, name, unit.part)))
        for name in config.shares()
    ]
    kept = 0
    for row, record in enumerate(documents.read(unit.path, cut.fields, unit.label)):
        if left.next is not None and left.next["row"] == row:
            reasons[left.take()["reason"]] += 1
            continue
        if isinstance(record, Reject):
            raise SchemaError(
                f"{unit.path}: record {row}, {record.reason}, must be listed in"
                f" {listed}, but is not"
            )
        place = f"{unit.path}: record {row}, document {record.doc_id!r},"
        _take(record.doc_id, _text(record, cut, place), splits, place)
        kept += 1
    for turn in (left, *splits):
        if turn.next is not None:
            raise SchemaError(f"{prepared} holds what {unit.path} does not: {turn}")
    return kept


def _text(record: Document, cut: Cut, place: str) -> str:
    """Returns what windows were cut from."""
    if cut.chat is None:
        return record.text
    try:
        return cutting.rendered(record, cut).text
    except UnusableError as error:
        raise SchemaError(
            f"{place} was kept, but is not taken now ({': '.join(error.args)}): the"
            f" tokenizer and special tokens of {cut.chat.model} must be as they were"
        ) from error


class _Turn:
    """An iterator whose next item can be looked at before it is taken."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self.next: Any = next(items, None)

    def take(self) -> Any:
        """Takes the next item."""
        item, self.next = self.next, next(self._items, None)
        return item

    def __str__(self) -> str:
        """Names the next item by what is no text of it."""
        item = self.next
        return f"record {item['row']}" if isinstance(item, dict) else f"{item[0]!r}"


def _take(doc_id: str, whole: str, splits: list[_Turn], place: str) -> None:
    """Takes a document from the split whose turn it is.

    Raises:
      SchemaError: if it is no split's turn, or its windows are not the document.
    """
    text = whole.encode()
    wanted = (doc_id, len(text), hashlib.blake2b(text).hexdigest())
    named = [t for t in splits if t.next is not None and t.next[0] == doc_id]
    for turn in named:
        if turn.next == wanted:
            turn.take()
            return
    if named:
        raise SchemaError(
            f"{place} must be its windows end to end, byte for byte: it has"
            f" {len(text)} bytes, its windows hold {named[0].next[1]}"
        )
    raise SchemaError(f"{place} must stand in a split or among the rejects")


def _documents(path: str) -> Iterator[_Kept]:
    """Yields the documents of a windows file, put together of their windows."""
    hasher, size = hashlib.blake2b(), 0
    for table in parquet.read(path, windows.SCHEMA):
        for window in windows.from_table(table):
            text = window.text.encode()
            hasher.update(text)
            size += len(text)
            if window.ends_document:
                yield window.doc_id, size, hasher.hexdigest()
                hasher, size = hashlib.blake2b(), 0


def _rejects(path: str) -> Iterator[dict[str, Any]]:
    if not files.exists(path):
        raise SchemaError(f"{path} must list what prepare left out, it is not there")
    for line in files.read_bytes(path).splitlines():
        yield json.loads(line)
