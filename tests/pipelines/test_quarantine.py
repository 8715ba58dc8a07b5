import dataclasses
import shutil
from pathlib import Path

import pytest

from pipelines import fuse, score, stage, verify
from schemas import files, fused, manifest, parquet, plan, scores
from schemas.plan import Slice
from tests import commands, deadly_slices, ledgers
from tests.deadly_work import Deadly, Harm
from tests.pipelines.conftest import fuse_config, score_config
from transforms import attempts, ledger, rows, slices
from transforms.attempts import Guards

pytestmark = pytest.mark.timeout(1800)

LOST = 1
"""The slice that is given up."""


def fuse_in_a_process(road: str, out: str, harm: Harm) -> int:
    log = Path(f"{out}.log")
    call = deadly_slices.fuse_deadly
    return commands.end(commands.start(call, road, out, harm, LOST, log=log))


def test_a_slice_that_kills_its_process_is_given_up_and_named(
    road: str, out: str
) -> None:
    assert fuse_in_a_process(road, out, "kill") == -9
    assert len(ledger.in_work(out)) == 1
    assert fuse_in_a_process(road, out, "kill") == 0
    made = manifest.read(out, fused.STAGE)
    (name,) = made.quarantined
    assert name == f"slice-{LOST:06d}.parquet"
    assert "was killed by SIGKILL: 2 of 2 times" in made.quarantined[name]
    pieces = plan.read(f"{road}/windows/fusion")
    assert made.counts["failed"] == pieces[LOST].windows
    assert (
        made.counts["windows"] == sum(p.windows for p in pieces) - made.counts["failed"]
    )
    for piece in pieces:
        same = files.checksum(f"{out}/{piece.output}") == files.checksum(
            f"{road}/fused/{piece.output}"
        )
        assert same == (piece.index != LOST)
    assert not Path(ledger.folder(out)).exists()
    told = "\n".join(verify.verify([out]))
    assert f"quarantined: {out}/{name}" in told


def test_a_slice_whose_process_was_killed_from_outside_is_not_given_up(
    road: str, out: str
) -> None:
    assert fuse_in_a_process(road, out, "kill") == -9
    made = deadly_slices.fuse_deadly(road, out, "none", LOST)
    assert not made.quarantined
    whole = manifest.read(f"{road}/fused", fused.STAGE)
    assert tuple(made.files) == tuple(whole.files)
    assert not Path(ledger.folder(out)).exists()


def test_a_slice_that_hangs_is_ended_in_time_given_up_and_named(
    road: str, out: str
) -> None:
    lost = f"slice-{LOST:06d}.parquet"
    copy_but(f"{road}/fused", out, lost)  # the first fusion compiles, for seconds
    assert fuse_in_a_process(road, out, "hang") == 1
    told = Path(f"{out}.log").read_text()
    assert f"{lost} must be done within --element_timeout=1 seconds" in told
    assert fuse_in_a_process(road, out, "hang") == 0
    made = manifest.read(out, fused.STAGE)
    assert list(made.quarantined) == [lost]
    assert "took longer than 1 seconds: 2 of 2 times" in made.quarantined[lost]
    assert not Path(ledger.folder(out)).exists()


def copy_but(made: str, out: str, lost: str) -> None:
    """Copies the files of a folder's slices, all but one."""
    for name in files.names(made, ".parquet"):
        if name != lost:
            files.write_bytes(f"{out}/{name}", files.read_bytes(f"{made}/{name}"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overtaken(Deadly):
    """Does the work of another, which a second command finishes a moment before."""

    made: str

    def fill(self, piece: Slice, tables: parquet.TableWriter) -> None:
        self._publish(piece)
        self.work.fill(piece, tables)

    def give_up(self, piece: Slice, tables: parquet.TableWriter, reason: str) -> None:
        self._publish(piece)
        self.work.give_up(piece, tables, reason)

    def _publish(self, piece: Slice) -> None:
        there = files.read_bytes(f"{self.made}/{piece.output}")
        files.write_bytes(f"{self.output}/{piece.output}", there)
        stamps = files.stamps(self.output, ".parquet")
        files.write_json(f"{self.output}/stamps", stamps)


@pytest.mark.parametrize("reason", [None, "its process was killed"])
def test_what_another_command_has_finished_is_not_touched(
    reason: str | None, road: str, out: str
) -> None:
    config = fuse_config(road, out)
    work = fuse.work_of(config, fuse.inputs_of(config), fuse.tokenizers_of(config))
    fuse.write_maps(config, fuse.tokenizers_of(config))
    overtaken = Overtaken(work=work, harm="none", slice=LOST, made=f"{road}/fused")
    piece = plan.read(config.windows)[LOST]
    slices.make(overtaken, piece, reason)
    stamps = files.read_json(f"{out}/stamps")
    assert files.digest(files.stamps(out, ".parquet")) == files.digest(stamps)
    assert files.checksum(f"{out}/{piece.output}") == files.checksum(
        f"{road}/fused/{piece.output}"
    )


def test_a_slice_that_another_command_has_finished_is_not_given_up(
    road: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fuse_config(road, out)
    own = fuse.tokenizers_of(config)
    work = fuse.work_of(config, fuse.inputs_of(config), own)
    piece = plan.read(config.windows)[LOST]

    def run(*_: object, **__: object) -> str:
        made = files.read_bytes(f"{road}/fused/{piece.output}")
        files.write_bytes(f"{out}/{piece.output}", made)
        return "its process was killed"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it must not be given up")

    monkeypatch.setattr(attempts, "run", run)
    monkeypatch.setattr(attempts, "in_own_process", never)
    slices.do_slice(work, piece)
    assert slices.QUARANTINED not in parquet.footer(f"{out}/{piece.output}")


def test_to_give_up_a_slice_has_a_limit_of_time_and_gives_signs_of_life(
    road: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fuse_config(road, out)
    own = fuse.tokenizers_of(config)
    work = fuse.work_of(config, fuse.inputs_of(config), own)
    piece = plan.read(config.windows)[LOST]
    seen: list[tuple[float, int]] = []

    def look(*_: object, timeout_s: float, **__: object) -> str:
        seen.append((timeout_s, len(ledger.left(out, piece.output))))
        return f"took longer than {timeout_s:g} seconds"

    monkeypatch.setattr(attempts, "run", lambda *_, **__: "its process was killed")
    monkeypatch.setattr(attempts, "in_own_process", look)
    with pytest.raises(ValueError, match="the process took longer than 7 seconds"):
        slices.do_slice(work, piece, Guards(element_timeout=7.0))
    assert seen == [(7.0, 1)]


@pytest.fixture(scope="module")
def given_up(
    road: str, models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Returns scores of which a slice was given up."""
    out = str(tmp_path_factory.mktemp("given_up") / "neox")
    config = score_config(road, models, "neox", output=out)
    work = score.work_of(config, score.inputs_of(config))
    dead = Deadly(work=work, harm="kill", slice=LOST)
    pieces = plan.read(config.windows)
    for piece in pieces:
        if piece.index != LOST:
            name = f"{road}/scores/neox/{piece.output}"
            files.write_bytes(f"{config.output}/{piece.output}", files.read_bytes(name))
    lost = pieces[LOST]
    ledgers.leave_dead(config.output, lost.output)
    assert slices.do_slice(dead, lost, Guards(max_slice_attempts=1))
    made = score.score_windows(config)
    assert made is not None
    assert list(made.quarantined) == [lost.output]
    return config.output


@pytest.fixture
def scored(given_up: str, out: str) -> str:
    """Returns a copy of them that a test may change."""
    shutil.copytree(given_up, f"{out}/neox")
    return f"{out}/neox"


def test_scores_of_a_slice_that_was_given_up_are_errors_in_their_places(
    road: str, given_up: str
) -> None:
    scored = given_up
    piece = plan.read(f"{road}/windows/fusion")[LOST]
    names = [
        [
            score.window_id
            for group in scores.read(f"{at}/{piece.output}")
            for score in group
        ]
        for at in (scored, f"{road}/scores/neox")
    ]
    assert names[0] == names[1]
    errors = [
        score.error
        for group in scores.read(f"{scored}/{piece.output}")
        for score in group
    ]
    assert all("was killed by SIGKILL: 1 of 1 times" in str(told) for told in errors)
    made = manifest.read(scored, scores.STAGE)
    assert made.counts["failed"] == len(errors) == piece.windows
    assert "quarantined" in "\n".join(verify.verify([scored]))


def test_windows_that_were_given_up_are_fused_without_that_source(
    road: str, given_up: str, out: str
) -> None:
    config = fuse_config(road, f"{out}/fused", sources=(f"neox={given_up}",))
    made = fuse.fuse_scores(config)
    whole = manifest.read(f"{road}/fused", fused.STAGE)
    assert made is not None
    assert made.counts["windows"] == whole.counts["windows"]
    taught = [
        sum(n for _, name, n in rows.taught(one.counts) if name == "neox")
        for one in (made, whole)
    ]
    assert taught[0] < taught[1]
    verify.verify([f"{out}/fused"])


def test_what_was_made_of_given_up_slices_is_told_from_what_is_made_of_whole_ones(
    road: str, models: dict[str, str], scored: str
) -> None:
    made = manifest.read(scored, scores.STAGE)
    assert (
        made.fingerprint
        != manifest.read(f"{road}/scores/neox", scores.STAGE).fingerprint
    )
    config = score_config(road, models, "neox", output=scored)
    inputs, shaped = score.inputs_of(config), score.shaping(config)
    assert stage.whole(scored, scores.STAGE, shaped, inputs, overwrite=False)


def test_a_slice_that_was_given_up_is_made_when_the_cure_is_followed(
    road: str, models: dict[str, str], scored: str
) -> None:
    lost = f"slice-{LOST:06d}.parquet"
    files.remove_tree(f"{scored}/{lost}")
    files.remove_tree(f"{scored}/{manifest.NAME}")
    made = score.score_windows(score_config(road, models, "neox", output=scored))
    assert made is not None
    whole = manifest.read(f"{road}/scores/neox", scores.STAGE)
    assert made.fingerprint == whole.fingerprint
    assert tuple(made.files) == tuple(whole.files)


def test_a_manifest_that_hides_a_given_up_slice_is_no_proof(scored: str) -> None:
    made = manifest.read(scored, scores.STAGE)
    manifest.write(scored, dataclasses.replace(made, quarantined={}))
    with pytest.raises(ValueError, match="must be quarantined as its manifest states"):
        verify.verify([scored])


def test_a_slice_that_cannot_even_be_read_ends_the_job_by_name(
    road: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fuse_config(road, out)
    own = fuse.tokenizers_of(config)
    work = fuse.work_of(config, fuse.inputs_of(config), own)
    monkeypatch.setattr(attempts, "run", lambda *_, **__: "its process was killed")
    monkeypatch.setattr(attempts, "in_own_process", lambda *_, **__: "was killed")
    piece = plan.read(config.windows)[LOST]
    with pytest.raises(ValueError, match=f"slice {LOST} cannot be quarantined"):
        slices.do_slice(work, piece)
    assert files.names(out, ".parquet") == []
