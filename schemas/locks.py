"""Locks of local files: who holds one is alive, as the kernel drops those of the dead.

They tell whether a process of this machine is at work on a file, however it may have
ended: no pid is looked up, so containers that share a folder see each other's, too.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from schemas.errors import SchemaError

NAME = "lock"
"""Of the file by which a command keeps others out of a folder."""

WAIT_S = 10.0
"""How long the readers of a command that was killed may take to end after it."""

_POLL_S = 0.25

_UNKNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What filesystems without locks say."""

_OWN_DISKS = frozenset(
    (
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "bcachefs"),
        *("tmpfs", "ramfs", "overlay", "aufs", "apfs", "hfs"),
    )
)
"""Filesystems that no other machine writes to, unless this one exports them."""

_EXPORTS = ("/proc/fs/nfsd/exports", "/var/lib/nfs/etab", "/etc/exports")
"""Where the kernel's NFS server and its tools list what other machines may mount."""

_SHARED = Path("/tmp")
"""All users may write there, and none removes others' files."""


def shared_folder() -> Path:
    """Returns the folder of the locks that all processes of this machine must meet at.

    It is /tmp whatever TMPDIR says: that differs from user to user and from job to job,
    and who looks for locks in another folder sees none. Only where /tmp may not be
    written, as in some containers, it is the folder of temporary files after all.
    """
    if os.access(_SHARED, os.W_OK | os.X_OK):
        return _SHARED
    return Path(tempfile.gettempdir())


def open_for_all(path: Path) -> int:
    """Opens a file that processes of any user may lock; makes it if need be."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        # Without O_CREAT, which the kernel refuses for others' files in /tmp.
        return os.open(path, flags)
    file = os.open(path, flags | os.O_CREAT, 0o666)
    with contextlib.suppress(PermissionError):
        os.fchmod(file, 0o666)  # whatever the umask
    return file


def take(file: int) -> bool:
    """Locks an open file until it is closed; False where someone else has it.

    A filesystem without locks has nothing to say, and lets everybody have the file.

    Args:
      file: its descriptor.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    return True


def take_new(file: int) -> bool:
    """Locks a file that was just made; False where it was removed before that."""
    return take(file) and os.fstat(file).st_nlink > 0


@contextlib.contextmanager
def hold(folder: Path, doing: str) -> Iterator[None]:
    """Makes a folder if need be, and keeps other commands out of it.

    Its file of that name stays; who holds it may remove it.

    Args:
      folder: on a disk.
      doing: what commands do there, as `training`.

    Raises:
      SchemaError: if another command has it; names the folder.
    """
    end = time.monotonic() + WAIT_S
    while (lock := take_folder(folder)) is None:
        if time.monotonic() >= end:
            raise SchemaError(
                f"{folder} must be of one command at a time, but another one is"
                f" {doing} there; wait until it has ended, or choose another output"
            )
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        os.close(lock)


def take_folder(folder: Path) -> int | None:
    """Locks a folder; None where another command has it, or just removed it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    if take_new(lock):
        return lock
    os.close(lock)
    return None


def seen_by_all(path: str) -> bool:
    """Says whether every process that may write a file takes its locks on this machine.

    Other machines' locks are seen on some network filesystems only, by how they are
    mounted: of those nothing is believed. Nor of a disk that this machine exports by
    NFS: its clients' locks are of a kind that does not meet ours.
    """
    place = Path(path).resolve()
    return _filesystem_of(place) in _OWN_DISKS and not _exported(place)


def _exported(path: Path, lists: Sequence[str] = _EXPORTS) -> bool:
    """Says whether a path is in or below a folder that a list of exports names."""
    for listed in map(Path, lists):
        if not listed.is_file():
            continue
        for line in listed.read_text().splitlines():
            place = line.strip().split("\t")[0].split(" ")[0].strip('"')
            # The kernel adds folders above an export, of which nothing can be written.
            if place.startswith("/") and "v4root" not in line:
                top = Path(_unescaped(place))
                if top == path or top in path.parents:
                    return True
    return False


def _filesystem_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Returns the type of the filesystem that holds a path; empty where unknown."""
    if not mounts.exists():
        return ""
    found: dict[str, str] = {}
    for line in mounts.read_text().splitlines():
        place, _, kind = line.partition(" - ")
        found[_unescaped(place.split()[4])] = kind.split()[0]  # the last mount covers
    holders = [str(place) for place in (path, *path.parents) if str(place) in found]
    return found[holders[0]] if holders else ""


def _unescaped(place: str) -> str:
    return place.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
