"""Cuts the documents of a corpus into windows, one input file at a time.

A unit is one input file: it is read in order, and gives one windows file a split. Two
passes over the corpus: the first collects the shingles of the protected splits (dev,
held-out), the second cuts, and leaves out of the other splits what nearly repeats them.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping

import apache_beam as beam
import numpy as np
import pyarrow as pa

from schemas import documents, files, manifest, parquet, windows
from schemas.checked import UnusableError
from schemas.documents import Document, Fields, Reject
from schemas.errors import FusionError, SchemaError
from schemas.windows import Window
from transforms import attempts, chat, parts, rejects, tokenizer
from transforms.attempts import Guards
from transforms.chat import Chat
from transforms.functional import splits
from transforms.functional import windows as cutting
from transforms.functional.splits import ProtectedIndex
from transforms.functional.turns import Rendering
from transforms.tokenizer import Tokenizer

NEAR_DUPLICATE = "near_duplicate"
"""Reason of documents left out because dev or held-out text nearly repeats them."""

REJECTS = "rejects"
INDEX = "protected"

_INDEX_GROUP = 1024  # documents of a row group
# `document` numbers the documents of a row group; each has one shingle or more.
_INDEX_SCHEMA = pa.schema([("shingle", pa.uint64()), ("document", pa.uint32())])


def part_name(index: int) -> str:
    """Returns the name of the files that are made of an input file."""
    return f"part-{index:06d}.parquet"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One input file: its number, its path, and its name in document ids."""

    index: int
    path: str
    label: str

    @property
    def part(self) -> str:
        """Name of the windows file that a split gets of it."""
        return part_name(self.index)

    @property
    def rejects(self) -> str:
        """Name of the file that lists what was left out of it."""
        return f"part-{self.index:06d}.jsonl"

    def to_line(self, work: str) -> str:
        """Writes the unit as a line of JSON, with the fingerprint of the work."""
        return json.dumps({**dataclasses.asdict(self), "work": work})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """How a corpus is cut.

    Attributes:
      output: folder that gets a windows folder for each split.
      fields: where a record's text, id and domain stand.
      splits: the splits and their shares.
      protected: splits whose near-duplicates leave the others.
      tokenizers: models whose tokenizers every window must fit.
      max_tokens: tokens of a window at most, start token and EOS included.
      max_bytes: bytes of a window at most, or None.
      group_windows: windows of a row group.
      units: how many input files there are.
      fingerprint: digest of all that shapes the output.
      overwrite: whether files of other settings are written anew.
      identities: fingerprint of each split's manifest.
      chat: how dialogues become text; None where documents are text.
    """

    output: str
    fields: Fields
    splits: Mapping[str, float]
    protected: tuple[str, ...]
    tokenizers: tuple[str, ...]
    max_tokens: int
    max_bytes: int | None
    group_windows: int
    units: int
    fingerprint: str
    overwrite: bool = False
    identities: Mapping[str, str] = dataclasses.field(default_factory=dict)
    chat: Chat | None = None

    def folder(self, split: str) -> str:
        """Returns the windows folder of a split."""
        return files.join(self.output, split)

    def unit_fingerprint(self, unit: Unit) -> str:
        """Digests all that shapes the files of a unit."""
        return files.digest([self.fingerprint, unit.index, unit.label])


@functools.lru_cache(maxsize=8)
def tokenizer_of(name: str) -> Tokenizer:
    """Loads a model's tokenizer once a process."""
    return tokenizer.load(name)


def index_unit(cut: Cut, unit: Unit) -> bool:
    """Writes the shingles of a unit's protected documents; False if they are there."""
    path = files.join(cut.output, INDEX, unit.part)
    fingerprint = cut.unit_fingerprint(unit)
    if parquet.done(path, fingerprint, overwrite=cut.overwrite):
        return False
    protected = (
        splits.shingles(record.text)
        for record in documents.read(unit.path, cut.fields, unit.label)
        if isinstance(record, Document) and _split(cut, record) in cut.protected
    )
    footer = {"fingerprint": fingerprint, "work": cut.fingerprint}
    with parquet.writer(path, _INDEX_SCHEMA, footer) as tables:
        while group := list(itertools.islice(protected, _INDEX_GROUP)):
            numbers = np.arange(len(group), dtype=np.uint32)
            owners = np.repeat(numbers, [len(shingles) for shingles in group])
            tables.write(
                pa.table([np.concatenate(group), owners], schema=_INDEX_SCHEMA)
            )
    return True


def _split(cut: Cut, document: Document) -> str:
    """Returns the split that a document names, or that its text's hash gives it."""
    return document.split or splits.assign_split(document.text, cut.splits)


@functools.lru_cache(maxsize=1)
def _protected_index(folder: str, units: int, work: str) -> ProtectedIndex:
    """Reads the shingles of all units, written by the work of this fingerprint.

    The files of units that an earlier corpus had beyond these are not read.

    Raises:
      SchemaError: if a file is of other work.
    """
    rows: list[np.ndarray] = []
    for index in range(units):
        path = files.join(folder, part_name(index))
        if parquet.footer(path).get("work") != work:
            raise SchemaError(
                f"{path} must be of this command's settings while it works, but another"
                " command of other settings wrote it anew; give each its own folder,"
                " and repeat this one"
            )
        for table in parquet.read(path, _INDEX_SCHEMA):
            owners = table["document"].to_numpy()
            borders = np.flatnonzero(np.diff(owners)) + 1
            rows += np.split(table["shingle"].to_numpy(), borders)
    return ProtectedIndex.build(rows)


def cut_unit(cut: Cut, unit: Unit) -> bool:
    """Writes a unit's windows, a file for each split; False if they are all there."""
    fingerprint = cut.unit_fingerprint(unit)
    paths = {name: files.join(cut.folder(name), unit.part) for name in cut.splits}
    done = [
        parquet.done(path, fingerprint, overwrite=cut.overwrite)
        for path in paths.values()
    ]
    listed = files.join(cut.output, REJECTS, unit.rejects)
    if all(done) and _listed(listed, paths.values()):
        return False
    left_out: list[Reject] = []
    with contextlib.ExitStack() as stack:
        written = {
            name: parts.Part(
                stack.enter_context(
                    parquet.writer(path, windows.SCHEMA, {"fingerprint": fingerprint})
                ),
                cut.group_windows,
            )
            for name, path in paths.items()
        }
        for record in _placed(cut, unit):
            if isinstance(record, Reject):
                left_out.append(record)
            else:
                split, made = record
                written[split].add(made)
        # Before the parts are published: a unit whose parts are there is whole.
        told = rejects.write(listed, left_out)
        for part in written.values():
            part.close(told)
    for split, part in written.items():
        assert part.tables.entry is not None
        if split in cut.identities:
            manifest.remove_other(cut.folder(split), cut.identities[split])
        manifest.note_entry(cut.folder(split), part.tables.entry, fingerprint)
    return True


def _listed(path: str, parts: Iterable[str]) -> bool:
    """Says whether a list of rejects is there, and that of these parts."""
    if not files.exists(path):
        return False
    content = files.read_bytes(path)
    return all(rejects.belongs(content, parquet.footer(part)) for part in parts)


def _placed(cut: Cut, unit: Unit) -> Iterator[Reject | tuple[str, list[Window]]]:
    """Yields the windows of a unit's documents with their splits; what is left out."""
    guarded = [name for name in cut.splits if name not in cut.protected]
    index = None
    if cut.protected and guarded:
        folder = files.join(cut.output, INDEX)
        index = _protected_index(folder, cut.units, cut.fingerprint)
    for record in documents.read(unit.path, cut.fields, unit.label):
        if isinstance(record, Reject):
            yield record
            continue
        split = _split(cut, record)
        guard = index if split not in cut.protected else None
        if split not in cut.splits:
            detail = f"split must be one of {', '.join(cut.splits)}, got {split!r}"
            yield left_out(unit.path, record, "unknown_split", detail)
        elif guard and guard.overlap(splits.shingles(record.text)).is_near_copy:
            detail = f"of a protected document; it would be in {split}"
            yield left_out(unit.path, record, NEAR_DUPLICATE, detail)
        else:
            yield _cut_or_left_out(cut, unit, split, record)


def _cut_or_left_out(
    cut: Cut, unit: Unit, split: str, document: Document
) -> Reject | tuple[str, list[Window]]:
    try:
        return split, cut_document(document, cut)
    except UnusableError as error:
        return left_out(unit.path, document, *error.args)


def left_out(path: str, document: Document, reason: str, detail: str) -> Reject:
    """Lists a document of a file among what is left out."""
    return Reject(
        file=files.name_of(path),
        row=document.row,
        doc_id=document.doc_id,
        reason=reason,
        detail=detail,
    )


def rendered(document: Document, cut: Cut) -> Rendering:
    """Renders a dialogue.

    Raises:
      UnusableError: if the template cannot.
    """
    assert cut.chat is not None
    models = dict.fromkeys((cut.chat.model, *cut.tokenizers))
    return chat.render(document, cut.chat.template, [*map(tokenizer_of, models)])


def cut_document(document: Document, cut: Cut) -> list[Window]:
    """Cuts a document into its windows, in order.

    Raises:
      UnusableError: if it is a dialogue that the template cannot render.
    """
    if cut.chat is not None:
        owners = [tokenizer_of(name) for name in cut.tokenizers]
        found = rendered(document, cut)
        return chat.cut(document, found, owners, cut.max_tokens, cut.max_bytes)
    counters = [tokenizer_of(name).count for name in cut.tokenizers]
    pieces = list(
        cutting.cut_document(document.text, counters, cut.max_tokens, cut.max_bytes)
    )
    made, start = [], 0
    for place, piece in enumerate(pieces):
        made.append(
            Window(
                window_id=cutting.window_id(document.doc_id, start, piece),
                doc_id=document.doc_id,
                text=piece,
                byte_start=start,
                ends_document=place == len(pieces) - 1,
                domain=document.domain,
            )
        )
        start += len(piece.encode())
    return made


def unit_of(cut: Cut, line: str) -> Unit:
    """Reads a unit from its line in the list.

    Raises:
      SchemaError: if the list is another command's.
    """
    told = json.loads(line)
    if told.pop("work", None) != cut.fingerprint:
        raise SchemaError(
            f"the list of inputs in {cut.output} must be this command's while it works,"
            " but another command of other settings has written its own; give each"
            " command its own folder, and repeat this one"
        )
    return Unit(**told)


STEPS = {"index": index_unit, "cut": cut_unit}


class _DoUnit(beam.DoFn):
    """Indexes or cuts one unit."""

    def __init__(self, cut: Cut, step: str, guards: Guards) -> None:
        self._cut, self._step, self._guards = cut, step, guards

    def process(self, line: str) -> Iterator[str]:
        unit = unit_of(self._cut, line)
        reason = attempts.run(
            STEPS[self._step],
            self._cut,
            unit,
            output=self._cut.output,
            name=f"{self._step}.{unit.part}",
            guards=self._guards,
        )
        if reason is not None:
            raise FusionError(
                f"{unit.path} must be read without harm to who reads it: {reason};"
                " mend the file, or leave it out of --inputs"
            )
        beam.metrics.Metrics.counter(Cut, "units").inc()
        yield unit.part


@dataclasses.dataclass
class DoUnits(beam.PTransform):
    """Indexes or cuts units, given as lines; yields the names of the parts.

    Attributes:
      cut: how the corpus is cut.
      step: "index" or "cut".
      guards: how long a unit may take, and how often it may kill its process.
    """

    cut: Cut
    step: str
    guards: Guards = dataclasses.field(default_factory=Guards)

    def expand(self, lines: beam.PCollection[str]) -> beam.PCollection[str]:
        return (
            lines
            # The list is one small file: without this all units go to one worker.
            | "Spread units" >> beam.Reshuffle()
            | "Do units" >> beam.ParDo(_DoUnit(self.cut, self.step, self.guards))
        )
