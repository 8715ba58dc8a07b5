"""Copies of files and folders, from any filesystem to any other."""

import shutil

from schemas import buckets, files

_BLOCK_BYTES = 1 << 25


def copy(source: str, target: str) -> None:
    """Publishes a copy of a file."""
    fs, plain = files.filesystem(source)
    if buckets.protocol(target) and "file" in fs.protocol:
        buckets.send(plain, target)
        return
    with files.open_input(source) as file, files.publish(target) as copied:
        shutil.copyfileobj(file, copied, _BLOCK_BYTES)


def replace_tree(source: str, target: str, *, last: str) -> None:
    """Makes a remote folder hold what another folder holds, and nothing else.

    Args:
      source: the folder, local or remote.
      target: the remote folder.
      last: name of the file that says that a folder is whole: it is removed first, and
        comes after all others.
    """
    names = set(below(source)) - {last}
    files.remove_tree(files.join(target, last))
    for name in sorted(names):
        copy(files.join(source, name), files.join(target, name))
    for name in below(target):
        if name not in names and not name.startswith(f"{files.TEMPORARY}/"):
            files.remove_tree(files.join(target, name))
    copy(files.join(source, last), files.join(target, last))
    files.remove_tree(files.join(target, files.TEMPORARY))


def below(folder: str) -> list[str]:
    """Lists the files in a folder and below it, as seen from it."""
    fs, plain = files.filesystem(folder)
    found = buckets.ask(folder, fs.find, plain)
    return sorted(path.removeprefix(plain.rstrip("/") + "/") for path in found)
