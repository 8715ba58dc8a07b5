import dataclasses
import re
from pathlib import Path

import pytest

from schemas import cooccurrences, fused, scores, windows
from schemas.documents import Reject
from schemas.manifest import FileEntry, Manifest
from schemas.plan import Slice
from schemas.weights import Place
from train.merge import vocabulary
from train.merge.plan import Shard, Tensor
from transforms import prepare, strategies
from transforms.functional import token_map
from transforms.prepare import Unit

PAGE = (Path(__file__).parent.parent / "docs/format.md").read_text()
TOLD = set(re.findall(r"`([\w/.]+)`", PAGE))


@pytest.mark.parametrize(
    "record", [Manifest, FileEntry, Slice, Reject, Unit, Shard, Tensor, Place]
)
def test_every_field_of_a_file_is_documented(record: type) -> None:
    names = {field.name for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    assert names - TOLD == set()


@pytest.mark.parametrize(
    "module", [windows, scores, cooccurrences, fused, token_map, vocabulary]
)
def test_every_column_is_documented(module: object) -> None:
    assert set(module.SCHEMA.names) - TOLD == set()  # type: ignore[attr-defined]


def test_the_column_of_drawn_ids_is_documented() -> None:
    assert set(scores.schema_of(1).names) - TOLD == set()


def test_the_columns_of_the_protected_shingles_are_documented() -> None:
    assert set(prepare._INDEX_SCHEMA.names) - TOLD == set()


def test_lexicons_are_documented() -> None:
    assert {*strategies.LEXICON.names, strategies.FORMAT} - TOLD == set()


def test_the_ways_of_a_token_map_are_documented() -> None:
    assert {*token_map.HOW, *token_map.STRATEGIES, token_map.FORMAT} - TOLD == set()
