"""What a corpus is made of, measured on a sample: windows, tokens, and their bytes.

The sample's documents are cut into windows with the models' own tokenizers, as
`prepare` would cut them; nothing is written.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import numpy as np

from pipelines import chats, prepare
from pipelines.prepare import PrepareConfig
from schemas import corpora, dialogues, parquet, samples, windows
from schemas.checked import UnusableError
from schemas.dialogues import ASSISTANT
from schemas.documents import Document, Reject
from schemas.errors import FusionError
from schemas.samples import Piece, Sample
from schemas.windows import Window
from transforms import prepare as cutting
from transforms.prepare import Cut
from transforms.tokenizer import Tokenizer

_LONGEST_CHARS = 1 << 18
"""Of a document no more is cut than this: the rest is like its beginning."""

_LEAST_CHARS = 64
"""Of each turn in front of the first answer so much is, however long others are."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What a sample's documents came to.

    Attributes:
      text_bytes: UTF-8 bytes that were cut.
      windows: windows cut.
      windows_bytes: what these take in a windows file.
      tokens: positions of each model over them, as `fusebeam score` counts them.
      cpu_s: processor seconds that cutting took.
    """

    text_bytes: int
    windows: int
    windows_bytes: int
    tokens: Mapping[str, int]
    cpu_s: float


def take(config: PrepareConfig, max_bytes: int, seed: int) -> Sample:
    """Takes a sample of the corpus that `prepare` would read.

    Raises:
      FileNotFoundError: if an input matches no file.
      FusionError: if the sample holds no document; names why.
    """
    fields = dataclasses.replace(chats.fields_of(config), id=None)
    made = samples.take(
        corpora.expand(config.inputs), fields, max_bytes, np.random.default_rng(seed)
    )
    if config.chat_shape is not None:
        cut = prepare.cut_of(config, {}, [])
        pieces = tuple(_rendered(piece, cut) for piece in made.pieces)
        made = dataclasses.replace(made, pieces=pieces)
    if not made.documents:
        found = ", ".join(f"{n} {reason}" for reason, n in made.rejects.items())
        raise FusionError(
            f"the sample must hold a document, but of {len(made.sizes)} files it holds"
            f" none ({found or 'they are empty'}); are {', '.join(config.inputs)} the"
            " right ones, and is the text's field named right?"
        )
    return made


def _rendered(piece: Piece, cut: Cut) -> Piece:
    """Puts in place of the text of dialogues what a template makes of them."""
    records: list[Document | Reject] = []
    for record in piece.records:
        if isinstance(record, Reject):
            records.append(record)
            continue
        try:
            text = cutting.rendered(_beginning(record), cut).text
            rest = dialogues.said(record.turns or ())[_LONGEST_CHARS:]
            records.append(dataclasses.replace(record, text=text + rest))
        except UnusableError as error:
            records.append(cutting.left_out(piece.path, record, *error.args))
    texts = [len(r.text.encode()) for r in records if isinstance(r, Document)]
    return dataclasses.replace(piece, records=tuple(records), text_bytes=sum(texts))


def _beginning(document: Document) -> Document:
    """Returns a document with no more of its text and turns than is measured.

    A dialogue keeps its turns up to its first answer at least, of each the beginning.
    """
    text = document.text[:_LONGEST_CHARS]
    if document.turns is None:
        return dataclasses.replace(document, text=text)
    left, kept, is_answered = _LONGEST_CHARS, [], False
    for turn in document.turns:
        if left <= 0 and is_answered:
            break
        short = turn.content[: max(left, _LEAST_CHARS)]
        kept.append(dataclasses.replace(turn, content=short))
        left -= len(short)
        is_answered |= turn.role == ASSISTANT and turn.is_learned
    return dataclasses.replace(document, text=text, turns=tuple(kept))


def split_share(config: PrepareConfig, sample: Sample, split: str) -> float:
    """Returns which share of the text is of a split, in (0, 1].

    Where documents name their splits it is measured on the sample.

    Raises:
      FusionError: if none of the sample's documents names it.
    """
    if config.split_field is None:
        return config.shares()[split]
    sizes = {True: 0, False: 0}
    for document in sample.documents:
        sizes[document.split == split] += len(document.text.encode())
    if not sizes[True]:
        raise FusionError(
            f"the sample must hold a document of split {split!r}, which is fused, but"
            f" none of its {len(sample.documents)} names it; take a larger one by"
            " --sample_bytes"
        )
    return sizes[True] / sum(sizes.values())


def measure(
    config: PrepareConfig, found: Sequence[Document], models: Mapping[str, Tokenizer]
) -> Measures:
    """Cuts documents into windows and counts what they come to.

    Args:
      config: how they are cut.
      found: the documents.
      models: the tokenizers that count, by name.
    """
    cut = prepare.cut_of(config, {}, [])
    for name in config.models:
        cutting.tokenizer_of(name)  # loaded before the clock runs
    begin = time.process_time()
    made: list[Window] = []
    for document in found:
        made += cutting.cut_document(_beginning(document), cut)
    groups = (
        windows.to_table(made[start : start + config.group_windows])
        for start in range(0, len(made), config.group_windows)
    )
    size = parquet.bytes_of(groups, windows.SCHEMA)
    cpu_s = time.process_time() - begin
    return Measures(
        text_bytes=sum(len(window.text.encode()) for window in made),
        windows=len(made),
        windows_bytes=size,
        tokens={name: _positions(own, made) for name, own in models.items()},
        cpu_s=cpu_s,
    )


def _positions(own: Tokenizer, made: Sequence[Window]) -> int:
    """Counts the tokens that a model predicts: a window's own, and EOS at the end."""
    ends = own.eos_id is not None
    return sum(
        own.count_window(w.text, w.control_spans or ()) + (ends and w.eos_follows)
        for w in made
    )
