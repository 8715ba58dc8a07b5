"""Two commands at once on the same output, as real processes."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from pipelines import cli, fuse, verify
from schemas import files, manifest, plan
from schemas.errors import FusionError
from schemas.plan import Slice
from tests import commands, ledgers
from tests.pipelines.conftest import fuse_config
from transforms import ledger, slices
from transforms.attempts import Guards

pytestmark = pytest.mark.timeout(1800)

Contents = Callable[[str], dict[str, str]]


@dataclasses.dataclass
class Commands:
    """Starts commands, and awaits all of them."""

    folder: Path
    started: list[tuple[BaseProcess, Path]] = dataclasses.field(default_factory=list)

    def start(self, *words: str, limit: int | None = None) -> None:
        """Starts a command; a file of it may have so many bytes, if limited."""
        log = self.folder / f"{len(self.started)}.log"
        process = commands.start(cli.main, list(words), log=log, limit=limit)
        self.started.append((process, log))

    def end(self) -> list[tuple[int, str]]:
        """Returns each command's exit status and what it said."""
        started, self.started = self.started, []
        return [(commands.end(process), log.read_text()) for process, log in started]

    def run(self, *words: str, limit: int | None = None) -> tuple[int, str]:
        """Runs a command alone."""
        self.start(*words, limit=limit)
        return self.end()[0]


@pytest.fixture
def at_once(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def prepare_words(corpus: list[str], out: str, *more: str) -> list[str]:
    words = ["prepare", "--inputs", *corpus, "--output", out, "--max_bytes=300"]
    return [*words, "--splits=fusion=.8,dev=.2", "--group_windows=8", *more]


def fuse_words(road: str, out: str, *more: str) -> list[str]:
    return [
        "fuse",
        f"--windows={road}/windows/fusion",
        f"--target={road}/scores/llama",
        f"--sources=neox={road}/scores/neox",
        f"--output={out}",
        "--seq_length=600",
        *more,
    ]


def test_two_commands_of_the_same_settings_end_with_the_same_bytes(
    at_once: Commands, road: str, out: str, contents: Contents
) -> None:
    words = fuse_words(road, out, "--top_k=6")
    at_once.start(*words)
    at_once.start(*words)
    ended = at_once.end()
    assert [status for status, _ in ended] == [0, 0], ended
    assert contents(out) == contents(f"{road}/fused")


def test_two_preparations_of_the_same_settings_end_with_the_same_bytes(
    at_once: Commands, corpus: list[str], out: str, contents: Contents
) -> None:
    alone, words = f"{out}/alone", prepare_words(corpus, f"{out}/both")
    at_once.start(*prepare_words(corpus, alone))
    at_once.start(*words)
    at_once.start(*words)
    ended = at_once.end()
    assert [status for status, _ in ended] == [0, 0, 0], ended
    assert contents(f"{out}/both") == contents(alone)


def test_a_slice_that_somebody_else_is_at_comes_last(
    road: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fuse_config(road, out)
    work = fuse.work_of(config, fuse.inputs_of(config), fuse.tokenizers_of(config))
    order: list[str] = []

    def do(_: object, piece: Slice, __: object) -> bool:
        order.append(piece.output)
        return True

    monkeypatch.setattr(slices, "do_slice", do)
    steps = slices._DoSlice(work, Guards())
    lines = files.read_bytes(f"{road}/windows/fusion/{plan.NAME}").decode().splitlines()
    names = [plan.from_line(line).output for line in lines]
    steps.start_bundle()
    with ledger.attempt(out, names[0], beat_s=20.0):
        made = [name for line in lines for name in steps.process(line)]
    last = [told.value for told in steps.finish_bundle()]
    assert order == [*made, *last] == [*names[1:], names[0]]


def test_a_runner_does_slices_that_come_last(
    road: str, out: str, contents: Contents
) -> None:
    ledgers.leave_dead(out, "slice-000000.parquet")
    fuse.fuse_scores(fuse_config(road, out))
    assert contents(out) == contents(f"{road}/fused")


def proven_or_unfinished(folder: str) -> None:
    """A folder that says it is finished must be what it says."""
    if manifest.present(folder):
        verify.verify([folder])


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_two_commands_of_other_settings_never_mix(
    more: tuple[str, ...], at_once: Commands, road: str, out: str, contents: Contents
) -> None:
    at_once.start(*fuse_words(road, out, "--top_k=4"))
    at_once.start(*fuse_words(road, out, "--top_k=6", *more))
    for status, told in at_once.end():
        assert status == 0 or "settings" in told, told
    proven_or_unfinished(out)
    status, told = at_once.run(*fuse_words(road, out, "--top_k=6", "--overwrite"))
    assert status == 0, told
    assert contents(out) == contents(f"{road}/fused")


def test_two_preparations_of_other_settings_never_mix(
    at_once: Commands, corpus: list[str], out: str, contents: Contents
) -> None:
    both, alone = f"{out}/both", f"{out}/alone"
    at_once.start(*prepare_words(corpus, both))
    at_once.start(*prepare_words(corpus, both, "--text_field=name", "--overwrite"))
    at_once.start(*prepare_words(corpus, alone))
    for status, told in at_once.end():
        assert status == 0 or "settings" in told, told
    with contextlib.suppress(FusionError):  # a part that is not finished says so
        verify.finished([both])
        for split in ("fusion", "dev"):
            proven_or_unfinished(f"{both}/{split}")
    status, told = at_once.run(*prepare_words(corpus, both, "--overwrite"))
    assert status == 0, told
    assert contents(both) == contents(alone)


def test_a_disk_without_room_is_named_and_no_half_file_is_left(
    at_once: Commands, road: str, out: str, contents: Contents
) -> None:
    slices = files.stamps(f"{road}/fused", ".parquet")
    limit = max(size for size, _ in slices.values()) - 1
    status, told = at_once.run(*fuse_words(road, out, "--top_k=6"), limit=limit)
    assert status == 1
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, told
    assert f"{out}/" in lines[0]
    assert "must fit on its disk" in lines[0]
    left = {path.parent.name for path in Path(out, ".tmp").rglob("*") if path.is_file()}
    assert left <= {"entries"}  # notes of finished slices, for who ends the folder
    status, told = at_once.run(*fuse_words(road, out, "--top_k=6"))
    assert status == 0, told
    assert contents(out) == contents(f"{road}/fused")


def write_as_nobody(path: str) -> None:
    """Writes a file, as somebody who may write little where root does the tests."""
    if os.geteuid() == 0:
        os.setuid(65534)
    files.write_bytes(path, b"x")


def test_a_folder_that_may_not_be_written_is_named_with_the_cure(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    closed = tmp_path_factory.mktemp("closed")
    for folder in (closed, closed.parent, closed.parent.parent):
        folder.chmod(folder.stat().st_mode | 0o055)
    closed.chmod(0o555)
    log, path = tmp_path / "log", f"{closed}/slice-000000.parquet"
    assert commands.end(commands.start(write_as_nobody, path, log=log)) == 2
    assert f"{path} must be writable for who runs this" in log.read_text()
    assert list(closed.iterdir()) == []
