import functools
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines import inspect, score, verify, ways
from schemas import files, manifest, parquet, scores
from schemas.errors import SchemaError
from tests.pipelines.conftest import score_config
from transforms import packing

WAY = "packed, attention window by window"


@pytest.fixture
def mixed(
    road: str, models: dict[str, str], out: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Returns scores whose first slice was made by a worker that could not pack."""
    with monkeypatch.context() as patch:
        choose = functools.partial(packing.choose, packed=False)
        patch.setattr(packing, "choose", lambda halves, packed: choose(halves))
        score.score_windows(score_config(road, models, "llama", output=out, slices="0"))
    score.score_windows(score_config(road, models, "llama", output=out))
    return out


def test_scores_say_by_what_they_were_computed(
    road: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"{road}/scores/llama"
    made = manifest.read(folder, scores.STAGE)
    n = len(made.files)
    assert ways.counted(made.counts) == {f"{WAY}, logits by plain torch": n}
    assert ways.mixed(folder, made) == []
    inspect.main([folder])
    told = capsys.readouterr().out.splitlines()[0]
    assert told == f"{n} slices {WAY}, logits by plain torch"


def test_slices_of_unlike_workers_are_told_where_they_lie_and_are_no_fault(
    mixed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = manifest.read(mixed, scores.STAGE)
    rest = len(made.files) - 1
    assert ways.counted(made.counts) == {
        f"{WAY}, logits by plain torch": rest,
        "padded, logits by plain torch": 1,
    }
    assert verify.main([mixed]) == 0
    (line,) = (
        line for line in capsys.readouterr().out.splitlines() if "computed" in line
    )
    assert f"{rest} (1{f'-{rest}' if rest > 1 else ''}) {WAY}" in line
    assert "; 1 (0) padded, logits by plain torch" in line
    assert "same packages" in line


def test_the_command_tells_of_unlike_slices_too(
    mixed: str,
    road: str,
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = score_config(road, models, "llama", output=mixed)
    monkeypatch.setattr(score.launch, "parse", lambda *_, **__: (config, []))
    assert score.main([]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if "not all computed alike" in line] == told[1:]


@pytest.mark.parametrize(
    ("slices", "told"),
    [
        ([3], "3"),
        ([0, 1, 2, 7, 9, 10], "0-2, 7, 9-10"),
        (range(0, 60, 2), ", ".join(map(str, range(0, 40, 2))) + ", and more"),
    ],
)
def test_numbers_of_slices_are_told_in_ranges(slices: Sequence[int], told: str) -> None:
    assert ways._ranges(slices) == told


def test_after_the_cure_slices_are_alike_again(
    mixed: str, road: str, models: dict[str, str]
) -> None:
    for name in ("slice-000000.parquet", manifest.NAME):
        (Path(mixed) / name).unlink()
    made = score.score_windows(score_config(road, models, "llama", output=mixed))
    assert made is not None
    assert score.remarks(mixed, made) == []
    alike = manifest.read(f"{road}/scores/llama", scores.STAGE)
    assert tuple(made.files) == alike.files


def test_a_manifest_that_counts_other_ways_than_the_files_is_refused(
    mixed: str,
) -> None:
    path = f"{mixed}/{manifest.NAME}"
    value = files.read_json(path)
    del value["counts"]["slices:padded, logits by plain torch"]
    files.write_json(path, value)
    with pytest.raises(SchemaError, match="computed as its manifest states"):
        verify.verify([mixed])


def test_files_from_before_say_less_and_slices_that_were_given_up_nothing(
    road: str,
) -> None:
    footer = parquet.footer(f"{road}/scores/llama/slice-000000.parquet")
    del footer["reduction"]
    assert ways.way_of(footer) == WAY
    assert ways.count([{"quarantined": "it took too long"}, footer]) == {
        f"slices:{WAY}": 1
    }
