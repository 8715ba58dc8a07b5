import os
from pathlib import Path

import fsspec
import pytest

from pipelines import clean, cli
from schemas import files, locks, manifest
from schemas.manifest import FileEntry, Manifest
from transforms import attempts, ledger

ENTRY = FileEntry(name="slice-000000.parquet", rows=1, tokens=1, bytes=1, sha256="0")


def orphan(folder: Path, name: str = "slice-000003.parquet.f00d") -> Path:
    """Leaves behind what a killed writer does."""
    path = folder / ".tmp" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half of it")
    return path


def finish(folder: str) -> None:
    made = Manifest(
        stage="score",
        fingerprint="",
        settings={},
        inputs={},
        origins={},
        counts={},
        files=[],
        code_version="",
    )
    manifest.write(folder, made)


def test_orphans_go_wherever_they_lie_and_whole_files_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [orphan(tmp_path), orphan(tmp_path / "scores" / "target", "manifest.json.1")]
    whole = tmp_path / "scores" / "target" / "slice-000000.parquet"
    whole.write_bytes(b"all of it")
    assert cli.main(["clean", str(tmp_path)]) == 0
    assert not any(path.parent.exists() for path in left)
    assert whole.read_bytes() == b"all of it"
    assert capsys.readouterr().out.endswith("2 files removed, 0 left\n")


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_a_dry_run_lists_what_would_go_and_removes_nothing(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = orphan(tmp_path)
    assert cli.main(["clean", str(tmp_path), flag]) == 0
    assert path.exists()
    assert f"would remove {path}\n" in capsys.readouterr().out


def test_what_a_running_command_writes_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    gone = orphan(tmp_path)
    with files.publish(str(out)) as file:
        file.write(b"whole")
        removed, left = clean.clean([str(tmp_path)], older_than_s=0.0, dry_run=False)
        assert removed == [str(gone)]
        (needs,) = left.values()
        assert "a running command, which holds it" in needs
    assert out.read_bytes() == b"whole"


def test_a_file_that_is_taken_up_while_cleaning_is_left_alone(tmp_path: Path) -> None:
    path = orphan(tmp_path)
    with path.open("r+b") as writer:
        assert locks.take(writer.fileno())
        assert not clean.remove(str(path))
    assert clean.remove(str(path))


def test_a_file_is_held_until_it_has_its_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def clean_first(temporary: str, final: str) -> None:
        clean.clean([str(tmp_path)], older_than_s=0.0, dry_run=False)
        replace(temporary, final)

    monkeypatch.setattr(os, "replace", clean_first)
    files.write_bytes(f"{tmp_path}/out", b"whole")
    assert (tmp_path / "out").read_bytes() == b"whole"


def test_a_note_that_was_never_whole_is_an_orphan(tmp_path: Path) -> None:
    path = orphan(tmp_path, "notes/.tmp/slice-000000.parquet.1.json.f00d")
    removed, left = clean.clean([str(tmp_path)], older_than_s=0.0, dry_run=False)
    assert (removed, left) == ([str(path)], {})


def test_a_file_that_is_published_while_cleaning_is_no_loss(tmp_path: Path) -> None:
    assert not clean.remove(str(tmp_path / ".tmp" / "gone"))


@pytest.mark.parametrize("name", ["slice.f00d", f"{ledger.FOLDER}/slice.1.json"])
@pytest.mark.parametrize("seen", [True, False])
def test_what_vanishes_while_cleaning_is_neither_removed_nor_left(
    name: str, seen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(path: str, older_than_s: float, now: float) -> str | None:
        if path == str(gone):
            gone.unlink()
        return own(path, older_than_s, now)

    own = clean.needed_by
    gone, other = orphan(tmp_path, name), orphan(tmp_path, "zeal.f00d")
    monkeypatch.setattr(locks, "seen_by_all", lambda path: seen)
    monkeypatch.setattr(clean, "needed_by", vanish)
    removed, left = clean.clean([str(tmp_path)], older_than_s=0.0, dry_run=False)
    assert (removed, left) == ([str(other)], {})


def test_notes_of_finished_slices_stay_till_their_folder_is_finished(
    tmp_path: Path,
) -> None:
    folder = str(tmp_path)
    manifest.note_entry(folder, ENTRY, "work")
    _, left = clean.clean([folder], older_than_s=0.0, dry_run=False)
    assert len(left) == 1
    finish(folder)
    removed, left = clean.clean([folder], older_than_s=0.0, dry_run=False)
    assert (len(removed), len(left)) == (1, 0)
    assert os.listdir(folder) == [manifest.NAME]


def test_what_lies_on_a_network_must_be_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "seen_by_all", lambda path: False)
    path = orphan(tmp_path)
    arguments = ["clean", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert path.exists()
    hour_s = 3600
    then = path.stat().st_mtime - 25 * hour_s
    os.utime(path, (then, then))
    assert cli.main(arguments) == 0
    assert not path.exists()


def test_a_bucket_is_cleaned_by_age(capsys: pytest.CaptureFixture[str]) -> None:
    bucket = fsspec.filesystem("memory")
    bucket.pipe("/cleaned/run/.tmp/slice.1", b"half of it")
    bucket.pipe("/cleaned/run/slice", b"all of it")
    assert cli.main(["clean", "memory://cleaned/run"]) == 0
    assert "perhaps a command on another machine" in capsys.readouterr().out
    assert cli.main(["clean", "memory://cleaned/run", "--older_than", "0"]) == 0
    assert bucket.find("/cleaned/run") == ["/cleaned/run/slice"]


def test_an_attempt_counts_as_alive_while_it_gives_signs_of_life(
    tmp_path: Path,
) -> None:
    path = orphan(tmp_path, f"{ledger.FOLDER}/slice-000000.parquet.1.json")
    _, left = clean.clean([str(tmp_path)], older_than_s=0.0, dry_run=False)
    assert "gave a sign of life" in left[str(path)]
    then = path.stat().st_mtime - clean.SILENT_S - 1
    os.utime(path, (then, then))
    removed, _ = clean.clean([str(tmp_path)], older_than_s=0.0, dry_run=False)
    assert removed == [str(path)]


def test_a_living_attempt_cannot_be_silent_for_so_long() -> None:
    assert clean.SILENT_S > 10 * attempts.MAX_BEAT_S


def test_a_folder_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["clean", "/nowhere/at/all"]) == 1
    assert "'/nowhere/at/all'" in capsys.readouterr().err
