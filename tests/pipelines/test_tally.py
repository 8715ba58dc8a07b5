from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines import launch, merge, prepare, tally
from schemas import weights
from tests import merging

Counts = list[tuple[int, int]]


@pytest.fixture
def at_start(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Returns what lines of progress saw as done when they began."""
    found: Counts = []
    enter = launch.Progress.__enter__

    def noted(shown: launch.Progress) -> launch.Progress:
        entered = enter(shown)
        found.append(entered._at_start)
        return entered

    monkeypatch.setattr(launch.Progress, "__enter__", noted)
    return found


def write(folder: Path, name: str, fingerprint: str) -> None:
    tensors = {"x": torch.zeros(len(fingerprint))}
    save_file(tensors, folder / name, {weights.FINGERPRINT: fingerprint})


def test_files_of_other_work_broken_ones_and_others_count_as_missing(
    tmp_path: Path,
) -> None:
    prints = {name: f"print of {name}" for name in "abcd"}
    done = tally.Tally(str(tmp_path), prints, tally.in_weights)
    assert done() == (0, 0)
    write(tmp_path, "a", "print of a")
    write(tmp_path, "b", "of before")
    (tmp_path / "c").write_bytes(b"broken")
    write(tmp_path, "e", "print of e")
    assert done() == (1, 0)
    assert done.missing() == ["b", "c", "d"]
    write(tmp_path, "b", "print of b")
    assert done.missing() == ["c", "d"]


def test_a_merge_that_is_written_anew_begins_with_no_file_done(
    at_start: Counts, tmp_path: Path, out: str
) -> None:
    made = merging.several(tmp_path)
    for weight in (1.0, 2.0):
        given = merging.given(
            made,
            out,
            "task_arithmetic",
            settings={"weight": weight},
            shard_bytes=9_000,
            overwrite=True,
        )
        assert merge.merge_models(given)
    assert at_start == [(0, 0), (0, 0)]


def test_a_corpus_that_is_cut_anew_begins_with_no_file_done(
    at_start: Counts, corpus: list[str], out: str
) -> None:
    for size in (200, 300):
        config = prepare.PrepareConfig(
            inputs=tuple(corpus),
            output=out,
            max_bytes=size,
            id_field="name",
            splits="fusion=.8,dev=.2",
            overwrite=True,
        )
        assert prepare.prepare_corpus(config)
    assert at_start == [(0, 0), (0, 0)]
