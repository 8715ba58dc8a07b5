import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from schemas import samples
from schemas.documents import Fields
from schemas.errors import SchemaError
from schemas.samples import Sample

WORDS = ["wie", "Häuser", "am", "See", "三", "x" * 30]


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 90))) for _ in range(count)]


def lines(found: list[str]) -> bytes:
    made = [json.dumps({"text": t, "id": i}) + "\n" for i, t in enumerate(found)]
    return "".join(made).encode()


def parquet(found: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": found}), sink, row_group_size=20)
    return sink.getvalue().to_pybytes()


WRITERS: dict[str, Callable[[list[str]], bytes]] = {
    ".jsonl": lines,
    ".jsonl.gz": lambda found: gzip.compress(lines(found)),
    ".jsonl.zst": lambda found: zstandard.compress(lines(found)),
    ".parquet": parquet,
}


def write(folder: Path, suffix: str, found: list[str], name: str = "part") -> str:
    path = folder / f"{name}{suffix}"
    path.write_bytes(WRITERS[suffix](found))
    return str(path)


def take(paths: list[str], max_bytes: int, seed: int = 0) -> Sample:
    return samples.take(paths, Fields(), max_bytes, np.random.default_rng(seed))


def total(found: list[str]) -> int:
    return sum(len(text.encode()) for text in found)


def read(found: Sample) -> list[str]:
    return [document.text for document in found.documents]


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_small_corpus_is_read_whole(suffix: str, tmp_path: Path) -> None:
    made = texts(50)
    found = take([write(tmp_path, suffix, made)], 10**7)
    assert read(found) == made
    assert found.is_whole()
    assert sum(found.file_bytes()) == pytest.approx(total(made))


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_text_of_a_large_corpus_is_estimated(suffix: str, tmp_path: Path) -> None:
    made = texts(6000)
    paths = [
        write(tmp_path, suffix, made[start::3], f"part{start}") for start in range(3)
    ]
    found = take(paths, 40_000)
    assert len(found.documents) < 1000
    assert not found.is_whole()
    assert sum(found.file_bytes()) == pytest.approx(total(made), rel=0.15)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_seed_gives_its_sample_and_another_seed_another(
    suffix: str, tmp_path: Path
) -> None:
    path = write(tmp_path, suffix, texts(5000))
    assert read(take([path], 20_000)) == read(take([path], 20_000))
    assert read(take([path], 20_000)) != read(take([path], 20_000, seed=1))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_places_lie_all_over_a_file(suffix: str, tmp_path: Path) -> None:
    made = texts(5000)
    places = {text: i for i, text in enumerate(made)}
    found = [places[text] for text in read(take([write(tmp_path, suffix, made)], 9000))]
    assert min(found) < 800
    assert max(found) > 4200


def test_a_place_in_the_last_line_goes_on_at_the_first(tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl", ["a", "b" * 100_000])
    assert read(take([path], 100))[0] == "a"


def test_every_kind_of_file_is_read_however_small(tmp_path: Path) -> None:
    large = write(tmp_path, ".jsonl", texts(5000))
    small = write(tmp_path, ".parquet", texts(20))
    found = take([large, small], 20_000)
    assert set(found.ratios()) == {".jsonl", ".parquet"}


def test_a_long_text_is_read_to_a_character_s_end(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("三" * 100_000)
    found = take([str(path)], 10_000)
    assert set(read(found)[0]) == {"三"}
    assert found.text_bytes < 12_000
    assert found.file_bytes() == [300_000]


def test_what_cannot_be_used_is_counted_and_has_no_text(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    path.write_bytes(b'{"text": "abc"}\n{"text": 1}\n\xff\n\n')
    found = take([str(path)], 1000)
    assert found.rejects == {"missing_text": 1, "invalid_utf8": 1}
    assert found.text_bytes == 3


def test_empty_files_are_listed_and_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    found = take([str(tmp_path / "empty.jsonl")], 1000)
    assert found.documents == []
    assert found.file_bytes() == [0]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_truncated_file_is_named(suffix: str, tmp_path: Path) -> None:
    path = Path(write(tmp_path, suffix, texts(100)))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SchemaError, match=rf"part{suffix} must be a whole"):
        take([str(path)], 10**7)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match=r"must end in one of \.jsonl"):
        take([str(tmp_path / "a.csv")], 1000)
