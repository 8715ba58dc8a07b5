"""Vocabularies of the models that are merged: which row is of which token.

Rows of embeddings and heads can be merged only where they are of the same token. Where
the models' vocabularies differ, `common` merges the tokens that all have, and leaves
the others as they are in the lead, the model whose vocabulary the merged one has::

    lead    <s>  the  un  <pad row>       merged   <s>  the  un  <pad row>
    other   <s>  un   the  ##x            ids of other: 0 2 1 -
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from schemas import files, parquet
from train.merge import inputs
from train.merge.inputs import Input
from transforms.tokenizer import Tokenizer

Policy = Literal["error", "base", "common"]
"""What becomes of embeddings and heads of models whose vocabularies differ."""

FILE = "vocabulary.parquet"
SCHEMA = pa.schema([pa.field("ids", pa.list_(pa.int32()))])
"""One row a token id of the merged model: its row in each model; -1: it has none."""

_Token = tuple[str, bytes | str]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """What the vocabularies of the inputs have in common.

    Attributes:
      rows: how many rows each model has for tokens, padding included; None where its
        configuration does not say.
      differ: how the first model that differs does; None where all have the same.
      ids: by token id of the lead, its row in each model; None where they are the same.
      notes: what could not be compared.
    """

    rows: tuple[int | None, ...]
    differ: str | None
    ids: Int32[np.ndarray, "v m"] | None
    notes: tuple[str, ...] = ()


def compare(models: Sequence[Input], lead: int, policy: Policy) -> Vocabulary:
    """Compares the vocabularies of models, token by token.

    Args:
      models: all inputs, the base among them.
      lead: place of the model whose vocabulary the merged one gets.
      policy: what is asked for where they differ.

    Raises:
      ValueError: if they differ and that is an error, or cannot be compared.
    """
    rows = tuple(inputs.vocabulary_rows(one) for one in models)
    known = {place: one.tokenizer for place, one in enumerate(models)}
    bare = [one.name for place, one in enumerate(models) if known[place] is None]
    notes = []
    if bare and len(models) > 1:
        notes.append(
            f"no tokenizer to compare in {', '.join(bare)}: ids are taken to mean the"
            " same in all models"
        )
    differ = _difference(models, rows, known, lead)
    if differ is None:
        return Vocabulary(rows=rows, differ=None, ids=None, notes=tuple(notes))
    if policy == "error":
        raise ValueError(
            f"all models must have the same vocabulary, but {differ}; merge with"
            ' embeddings = "common" (tokens that all have are merged, the others stay'
            f' those of {models[lead].name}) or "base" (all stay those of'
            f" {models[lead].name})"
        )
    if policy == "common" and bare:
        raise ValueError(
            f'embeddings = "common" compares tokenizers, but {", ".join(bare)} has'
            " none; put its tokenizer's files into its folder"
        )
    ids = None
    if policy == "common":
        ids = common_ids([own for own in known.values() if own is not None], lead, rows)
        notes += _rowless(models, rows, known)
    return Vocabulary(rows=rows, differ=differ, ids=ids, notes=tuple(notes))


def _difference(
    models: Sequence[Input],
    rows: Sequence[int | None],
    known: Mapping[int, Tokenizer | None],
    lead: int,
) -> str | None:
    """Says how the first model differs from the lead in its tokens or its rows."""
    name, own = models[lead].name, known[lead]
    for place, other in enumerate(models):
        theirs = known[place]
        if own is not None and theirs is not None:
            differ = difference(name, own, other.name, theirs)
            if differ is not None:
                return differ
        if rows[place] != rows[lead]:
            return (
                f"{name} has {rows[lead]} rows for tokens and {other.name}"
                f" {rows[place]} (vocab_size, padding included)"
            )
    return None


def difference(name: str, own: Tokenizer, other: str, theirs: Tokenizer) -> str | None:
    """Says how the tokens of two models differ; None where they are the same.

    Args:
      name: of the first model, for the answer.
      own: its tokenizer.
      other: name of the second model.
      theirs: the second's tokenizer.
    """
    mine, given = _tokens(own), _tokens(theirs)
    if len(mine) != len(given):
        return f"{name} has {len(mine)} tokens and {other} {len(given)}"
    for token_id, pair in enumerate(zip(mine, given, strict=True)):
        if pair[0] != pair[1]:
            return f"token {token_id} is another in {name} than in {other}"
    return None


def _tokens(own: Tokenizer) -> list[_Token | None]:
    """Tells each token: by its bytes in running text, of no text by its spelling."""
    return [
        ("text", piece)
        if piece is not None
        else (None if spelling is None else ("control", spelling))
        for piece, spelling in zip(own.token_bytes, own.vocabulary(), strict=True)
    ]


def _rowless(
    models: Sequence[Input],
    rows: Sequence[int | None],
    known: Mapping[int, Tokenizer | None],
) -> list[str]:
    """Notes which models have tokens that their embeddings have no rows for."""
    return [
        f"{one.name} has {own.size} tokens and {count} rows for them (vocab_size):"
        " tokens from there on are not merged"
        for place, one in enumerate(models)
        if (own := known[place]) is not None
        and (count := rows[place]) is not None
        and own.size > count
    ]


def common_ids(
    known: Sequence[Tokenizer], lead: int, rows: Sequence[int | None]
) -> Int32[np.ndarray, "v m"]:
    """Finds the tokens of one vocabulary in others.

    Of several tokens of the same bytes, as a byte and a character of it may be, the
    n-th of one is the n-th of another. A token whose id is beyond its model's rows, as
    of tokenizers that got tokens which the embedding did not, is none of that model.

    Args:
      known: the tokenizer of each model.
      lead: place of the model whose tokens are looked for.
      rows: how many rows each model has for tokens; None: enough.

    Returns:
      By token id of the lead, the id in each; -1 where it has no such token.
    """
    places: list[dict[tuple[_Token, int], int]] = []
    for own, count in zip(known, rows, strict=True):
        seen: dict[_Token, int] = {}
        found = {}
        for token_id, token in enumerate(_tokens(own)[:count]):
            if token is not None:
                seen[token] = seen.get(token, -1) + 1
                found[token, seen[token]] = token_id
        places.append(found)
    ids = np.full((known[lead].size, len(known)), -1, np.int32)
    for named, token_id in places[lead].items():
        ids[token_id] = [found.get(named, -1) for found in places]
    return ids


def write(path: str, ids: Int32[np.ndarray, "v m"], fingerprint: str) -> None:
    """Publishes the rows of a vocabulary in each model, unless they are there."""
    if parquet.done(path, fingerprint, overwrite=True):
        return
    with parquet.writer(path, SCHEMA, {"fingerprint": fingerprint}) as tables:
        lists = pa.array(ids.tolist(), pa.list_(pa.int32()))
        tables.write(pa.table({"ids": lists}, schema=SCHEMA))


@functools.lru_cache(maxsize=4)
def read(folder: str, fingerprint: str) -> Int32[np.ndarray, "v m"]:
    """Reads the rows of a vocabulary in each model.

    Args:
      folder: of the merged model.
      fingerprint: of the work that wrote them.
    """
    path = files.join(folder, FILE)
    if not parquet.done(path, fingerprint):
        raise FileNotFoundError(f"{path} must be there while its folder is made")
    (table,) = parquet.read(path, SCHEMA)
    return np.array(table["ids"].to_pylist(), np.int32)
