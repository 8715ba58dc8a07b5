import errno
import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from schemas import files, locks
from schemas.errors import SchemaError

MOUNTS = r"""
21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
22 21 0:40 / /data rw shared:2 master:1 - nfs4 server:/data rw
23 22 8:2 / /data/own\040disk rw - xfs /dev/sdb1 rw
24 21 0:41 / /mnt/bucket rw - fuse.gcsfuse bucket rw
""".lstrip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/run", "ext4"),
        ("/data/run/.tmp/slice", "nfs4"),
        ("/data/own disk/run", "xfs"),
        ("/mnt/bucket/run", "fuse.gcsfuse"),
    ],
)
def test_the_mount_that_holds_a_path_tells_its_filesystem(
    path: str, kind: str, tmp_path: Path
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert locks._filesystem_of(Path(path), mounts) == kind


def test_where_mounts_are_not_told_no_lock_is_believed(tmp_path: Path) -> None:
    assert locks._filesystem_of(tmp_path, tmp_path / "nothing") == ""


@pytest.mark.parametrize(
    ("line", "exported"),
    [
        ("{}\t*(rw,sync)", True),
        ("{}/run 10.0.0.0/8(rw) 10.1.0.1(ro)", True),
        ('"{}" *(rw)', True),
        ("/\t*(ro,v4root,fsid=0)", False),
        ("{}/other *(rw)", False),
        ("# {} *(rw)", False),
        ("", False),
    ],
)
def test_no_lock_is_believed_on_a_disk_that_this_machine_exports(
    line: str, exported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = [f"{tmp_path}/nothing", f"{tmp_path}/exports"]
    Path(lists[1]).write_text(f"# Version 1.1\n{line.format(tmp_path)}\n")
    own = locks._exported
    monkeypatch.setattr(locks, "_exported", lambda path: own(path, lists))
    monkeypatch.setattr(locks, "_filesystem_of", lambda path: "ext4")
    assert locks.seen_by_all(f"{tmp_path}/run/.tmp/slice") is not exported


def test_a_lock_is_had_by_one_and_ends_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w") as one, path.open("w") as other:
        assert locks.take(one.fileno())
        assert not locks.take(other.fileno())
        one.close()
        assert locks.take(other.fileno())


def test_a_folder_is_held_by_one_command_and_free_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WAIT_S", 0.0)
    folder = tmp_path / "work"
    with locks.hold(folder, "dancing"):
        with (
            pytest.raises(SchemaError, match=r"work must be .* is dancing there;"),
            locks.hold(folder, "dancing"),
        ):
            raise AssertionError("two commands in one folder")
        (folder / locks.NAME).unlink()
    with locks.hold(folder, "dancing"):
        assert (folder / locks.NAME).exists()


def test_a_file_that_was_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    flock, made = fcntl.flock, []

    def clean_first(file: int, how: int) -> None:
        made.extend((tmp_path / ".tmp").iterdir())
        if len(made) == 1:
            made[0].unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", clean_first)
    files.write_bytes(str(path), b"whole")
    assert path.read_bytes() == b"whole"
    assert len(made) == 2


def test_a_filesystem_without_locks_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    files.write_bytes(f"{tmp_path}/out", b"whole")
    assert (tmp_path / "out").read_bytes() == b"whole"


def test_the_locks_of_all_processes_lie_where_each_of_them_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert locks.shared_folder() == Path("/tmp")
    monkeypatch.setattr(locks, "_SHARED", tmp_path / "not there")
    assert locks.shared_folder() == tmp_path
