import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest

from pipelines import fuse, launch
from schemas import files, manifest, parquet
from schemas.errors import FusionError
from schemas.manifest import FileEntry
from schemas.plan import Slice
from tests.pipelines.conftest import fuse_config
from transforms import slices
from transforms.fuse import FuseSlices

Contents = Callable[[str], dict[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flaky:
    """Does the work of another, but breaks off in the middle of its first attempts."""

    work: FuseSlices
    attempts: str
    failures: int
    slice: int

    @property
    def output(self) -> str:
        return self.work.output

    @property
    def overwrite(self) -> bool:
        return False

    @property
    def schema(self) -> pa.Schema:
        return self.work.schema

    @property
    def options(self) -> dict[str, Any]:
        return self.work.options

    def fingerprint(self, piece: Slice) -> str:
        return self.work.fingerprint(piece)

    @property
    def identity(self) -> str:
        return self.work.identity

    def give_up(self, piece: Slice, tables: parquet.TableWriter, reason: str) -> None:
        self.work.give_up(piece, tables, reason)

    def load(self) -> None:
        self.work.load()

    def release(self) -> None:
        self.work.release()

    def fill(self, piece: Slice, tables: parquet.TableWriter) -> None:
        self.work.fill(piece, tables)
        if piece.index == self.slice:
            tried = len(files.names(self.attempts))
            files.write_bytes(f"{self.attempts}/{tried}", b"")
            if tried < self.failures:
                raise OSError("the disk went away")


def flaky(road: str, out: str, tmp_path: Path, failures: int) -> Flaky:
    config = fuse_config(road, out)
    own = fuse.tokenizers_of(config)
    work = fuse.work_of(config, fuse.inputs_of(config), own)
    fuse.write_maps(config, own)
    attempts = str(tmp_path / "attempts")
    return Flaky(work=work, attempts=attempts, failures=failures, slice=2)


def run(work: Flaky, runner: str) -> None:
    def build(root: beam.Pipeline) -> None:
        _ = root | slices.DoSlices(work.work.windows, work)

    launch.run(build, [f"--runner={runner}"])


def test_a_slice_that_fails_twice_and_then_works_costs_nothing_else(
    road: str, out: str, tmp_path: Path, contents: Contents
) -> None:
    work = flaky(road, out, tmp_path, failures=2)
    run(work, "BundleBasedDirectRunner")
    assert len(files.names(work.attempts)) == 3
    made, undisturbed = (
        {n: d for n, d in contents(folder).items() if n.endswith(".parquet")}
        for folder in (out, f"{road}/fused")
    )
    assert made == undisturbed


def test_a_slice_that_never_works_ends_the_job_and_leaves_no_half_file(
    road: str, out: str, tmp_path: Path
) -> None:
    work = flaky(road, out, tmp_path, failures=99)
    with pytest.raises(OSError, match="the disk went away"):
        run(work, "FnApiRunner")
    assert "slice-000002.parquet" not in files.names(out)
    assert not [n for n in files.names(f"{out}/.tmp") if "slice-000002" in n]


def test_what_was_done_before_a_failure_is_not_done_again(
    road: str, out: str, tmp_path: Path, contents: Contents
) -> None:
    with pytest.raises(OSError, match="the disk went away"):
        run(flaky(road, out, tmp_path, failures=1), "FnApiRunner")
    stamps = {p: p.stat().st_mtime_ns for p in Path(out).glob("slice-*.parquet")}
    assert stamps
    fuse.fuse_scores(fuse_config(road, out))
    assert contents(out) == contents(f"{road}/fused")
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())


@pytest.mark.parametrize("overtaken", ["before its last look", "after it"])
def test_two_attempts_at_once_end_with_one_whole_file(
    overtaken: str,
    road: str,
    out: str,
    tmp_path: Path,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = flaky(road, out, tmp_path, failures=0)
    piece = slices.plan.read(work.work.windows)[0]
    path = Path(out, piece.output)
    first: list[int] = []

    def and_then_another(call: Callable[..., Any]) -> Callable[..., Any]:
        def overtake(*args: Any) -> Any:
            found = call(*args)
            if not first:
                first.append(0)  # the other attempt is not overtaken itself
                slices.make(work, piece)
                first[0] = path.stat().st_ino
            return found

        return overtake

    if overtaken == "after it":
        monkeypatch.setattr(slices, "_done", and_then_another(slices._done))
    else:
        monkeypatch.setattr(FuseSlices, "fill", and_then_another(FuseSlices.fill))
    slices.make(work, piece)
    assert (path.stat().st_ino == first[0]) == (overtaken != "after it")
    assert files.checksum(str(path)) == files.checksum(f"{road}/fused/{piece.output}")
    fuse.fuse_scores(fuse_config(road, out))
    assert contents(out) == contents(f"{road}/fused")


def test_a_truncated_output_is_named_and_its_cure_works(
    road: str, out: str, contents: Contents
) -> None:
    fuse.fuse_scores(fuse_config(road, out))
    path = Path(out) / "slice-000001.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    (Path(out) / "manifest.json").unlink()
    with pytest.raises(FusionError, match=r"slice-000001\.parquet.*remove it"):
        fuse.fuse_scores(fuse_config(road, out))
    path.unlink()
    fuse.fuse_scores(fuse_config(road, out))
    assert contents(out) == contents(f"{road}/fused")


def test_steps_pickle_and_need_no_fallback_coder(
    road: str, out: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(flaky(road, out, tmp_path, failures=0), "BundleBasedDirectRunner")
    assert not [r for r in caplog.records if "allback coder" in r.getMessage()]


def test_the_note_of_a_slower_attempt_never_enters_the_manifest(
    road: str, out: str, tmp_path: Path, contents: Contents
) -> None:
    work = flaky(road, out, tmp_path, failures=0)
    piece = slices.plan.read(work.work.windows)[0]
    slices.do_slice(work, piece)
    slower = FileEntry(
        name=piece.output,
        rows=1,
        tokens=1,
        bytes=files.size(f"{out}/{piece.output}"),
        sha256="0" * 64,
    )
    manifest.note_entry(out, slower, work.fingerprint(piece))
    fuse.fuse_scores(fuse_config(road, out))
    assert contents(out) == contents(f"{road}/fused")


def test_a_slice_done_long_ago_leaves_no_trace_in_a_run_of_other_settings(
    road: str, out: str, contents: Contents
) -> None:
    files.write_bytes(f"{out}/slice-000999.parquet", b"of a larger plan")
    fuse.fuse_scores(fuse_config(road, out, top_k=4))
    fuse.fuse_scores(fuse_config(road, out, overwrite=True))
    assert contents(out) == contents(f"{road}/fused")
