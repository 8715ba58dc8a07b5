"""Two commands at once on the same output, as real processes."""

import contextlib
from collections.abc import Callable

import pytest

from pipelines import fuse, verify
from schemas import files, manifest, plan
from schemas.errors import FusionError
from schemas.plan import Slice
from tests import ledgers
from tests.commands import Commands
from tests.pipelines.conftest import fuse_config, fuse_words, prepare_words
from transforms import ledger, slices
from transforms.attempts import Guards

pytestmark = pytest.mark.timeout(1800)

Contents = Callable[[str], dict[str, str]]


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
