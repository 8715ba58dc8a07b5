"""Disks without room, and files that may not be read or written: by real commands."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from schemas import files
from tests.commands import Commands
from tests.pipelines.conftest import (
    fuse_words,
    prepare_words,
    score_words,
    train_words,
)

pytestmark = pytest.mark.timeout(1800)

STAGES = ("prepare", "score", "fuse", "train")
READS = {
    "prepare": "corpus/0.jsonl",
    "score": "windows/fusion/part-000000.parquet",
    "fuse": "scores/neox/slice-000001.parquet",
    "train": "fused/slice-*.parquet",  # two steps read some, as the seed draws them
}
"""What each stage reads when its output is at work, as seen from the run."""


def command(stage: str, run: str, models: dict[str, str], out: str) -> list[str]:
    """Returns the words of a stage that reads what is in a run's folder."""
    corpus = sorted(map(str, Path(run, "corpus").iterdir()))
    return {
        "prepare": lambda: prepare_words(corpus, out),
        "score": lambda: score_words(run, models, out),
        "fuse": lambda: fuse_words(run, out, "--top_k=6"),
        "train": lambda: train_words(run, models, out),
    }[stage]()


@pytest.fixture(scope="module")
def run(road: str, corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns a copy of a run, with its corpus, which may be harmed."""
    made = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(road, made)
    (made / "corpus").mkdir()
    for number, path in enumerate(corpus):
        shutil.copy(path, made / "corpus" / f"{number}.jsonl")
    return str(made)


def error_of(told: str) -> str:
    """Returns the one line that a command ended with."""
    (line,) = (line for line in told.splitlines() if line.startswith("error: "))
    assert "Traceback" not in told
    return line


def largest(folder: str) -> int:
    """Returns the bytes of a folder's largest file."""
    return max(
        path.stat().st_size for path in Path(folder).rglob("*.*") if path.is_file()
    )


@pytest.mark.parametrize(
    ("stage", "share"),
    [
        *((stage, 1.0) for stage in STAGES),
        ("train", 1.5),  # room for the weights, but not for the optimizer's moments
    ],
)
def test_a_disk_without_room_is_named_and_the_same_command_goes_on(
    stage: str,
    share: float,
    at_once: Commands,
    run: str,
    models: dict[str, str],
    out: str,
) -> None:
    whole = f"{out}-whole"
    status, told = at_once.run(*command(stage, run, models, whole))
    assert status == 0, told
    words = command(stage, run, models, out)
    status, told = at_once.run(*words, limit=int(share * largest(whole)) - 1)
    assert status == 1, told
    assert out in error_of(told)
    assert "must fit on its disk, which is full" in error_of(told)
    assert "repeat the command, which goes on where it stopped" in error_of(told)
    # Notes of finished slices are for who ends the folder, checkpoints for who goes on.
    left = [path for path in Path(out).rglob(".tmp/*") if path.is_file()]
    assert left == []
    status, told = at_once.run(*words)
    assert status == 0, told
    assert made(out) == made(whole)


def made(out: str) -> dict[str, str]:
    """Digests what a stage made, without the speeds of a training."""
    return {
        str(path.relative_to(out)): files.checksum(str(path))
        for path in Path(out).rglob("*")
        if path.is_file() and path.name != "metrics.jsonl"
    }


@pytest.fixture
def closed() -> Iterator[Callable[[Path, int], None]]:
    """Returns a function that takes permissions away until the test is over."""
    before: list[tuple[Path, int]] = []

    def close(path: Path, mode: int) -> None:
        before.append((path, path.stat().st_mode))
        path.chmod(mode)

    yield close
    for path, mode in before:
        path.chmod(mode)


@pytest.mark.parametrize("stage", STAGES)
def test_an_input_that_may_not_be_read_is_named_and_not_the_output(
    stage: str,
    at_once: Commands,
    run: str,
    models: dict[str, str],
    out: str,
    closed: Callable[[Path, int], None],
) -> None:
    unreadable = list(Path(run).glob(READS[stage]))
    for path in unreadable:
        closed(path, 0o000)
    status, told = at_once.run(*command(stage, run, models, out))
    assert status == 1, told
    must = "must be readable for who runs this, but is not"
    assert any(f"{path} {must}" in error_of(told) for path in unreadable)
    assert out not in error_of(told)


@pytest.mark.parametrize("stage", STAGES)
def test_an_output_that_may_not_be_written_is_named_with_the_cure(
    stage: str,
    at_once: Commands,
    run: str,
    models: dict[str, str],
    tmp_path: Path,
    closed: Callable[[Path, int], None],
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    closed(folder, 0o555)
    status, told = at_once.run(*command(stage, run, models, f"{folder}/out"))
    assert status == 1, told
    assert f"{folder}/out" in error_of(told)
    assert "must be writable for who runs this, but is not" in error_of(told)
    assert list(folder.iterdir()) == []
