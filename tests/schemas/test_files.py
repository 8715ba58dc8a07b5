import errno
import io
import os
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from schemas import corpora, files, parquet, windows
from schemas.errors import FusionError, SchemaError


def test_a_published_file_appears_whole_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = f"{tmp_path}/folder/file.bin"
    with files.publish(path) as file:
        file.write(b"abc")
        assert not files.exists(path)
    assert files.read_bytes(path) == b"abc"
    assert files.names(f"{tmp_path}/folder/.tmp") == []


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = f"{tmp_path}/file.bin"
    files.write_bytes(path, b"old")
    with pytest.raises(TypeError), files.publish(path) as file:
        file.write(None)
    assert files.read_bytes(path) == b"old"
    assert files.names(f"{tmp_path}/.tmp") == []


class _Full(io.BytesIO):
    """A file on a disk that has room for some bytes."""

    def __init__(self, room: int, path: str) -> None:
        super().__init__()
        self._room = room
        self._descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()

    def write(self, block: Any) -> int:
        self._room -= len(block)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(block)


@pytest.mark.parametrize("room", [0, 2, 40])
def test_a_full_disk_names_path_and_cure_and_leaves_the_old_file(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: LocalFileSystem, path: str, mode: str) -> _Full:
        return _Full(room, path)

    path = f"{tmp_path}/file.parquet"
    files.write_bytes(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "open", full)
        with pytest.raises(FusionError, match=r"file\.parquet must fit.*free space"):
            files.write_bytes(path, b"x" * 41)
        with (
            pytest.raises(FusionError, match=r"file\.parquet must fit.*free space"),
            parquet.writer(path, windows.SCHEMA, {}) as tables,
        ):
            tables.write(windows.SCHEMA.empty_table())
    assert files.read_bytes(path) == b"old"
    assert files.names(f"{tmp_path}/.tmp") == []


def test_counts_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    path = f"{tmp_path}/file.bin"
    with files.publish(path) as file:
        file.write(b"abc")
        file.write(memoryview(b"defg"))
        counted = file.bytes, file.sha256
    assert counted == (files.size(path), files.checksum(path))


@pytest.mark.parametrize("base", ["memory://box", "LOCAL"])
def test_every_filesystem_is_written_and_listed_alike(
    base: str, tmp_path: Path
) -> None:
    folder = str(tmp_path) if base == "LOCAL" else base
    for name in ("b.txt", "a.txt", "c.bin"):
        files.write_bytes(files.join(folder, name), name.encode())
    assert files.names(folder, ".txt") == ["a.txt", "b.txt"]
    found = corpora.expand([files.join(folder, "*.txt")])
    assert [files.name_of(path) for path in found] == ["a.txt", "b.txt"]
    assert [files.read_bytes(path) for path in found] == [b"a.txt", b"b.txt"]
    files.remove_tree(folder)
    assert files.names(folder) == []


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        corpora.expand([f"{tmp_path}/nothing-here*.jsonl"])


def test_a_file_matched_twice_is_listed_once(tmp_path: Path) -> None:
    files.write_bytes(f"{tmp_path}/a.txt", b"")
    assert len(corpora.expand([f"{tmp_path}/a.txt", f"{tmp_path}/*.txt"])) == 1


def test_broken_json_names_its_file(tmp_path: Path) -> None:
    files.write_bytes(f"{tmp_path}/x.json", b"{")
    with pytest.raises(SchemaError, match=r"x\.json"):
        files.read_json(f"{tmp_path}/x.json")


def test_equal_values_have_equal_digests_whatever_their_order() -> None:
    assert files.digest({"a": 1, "b": [2]}) == files.digest({"b": [2], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})


class _Cached(MemoryFileSystem):
    """Serves old listings for ever, as the clients of buckets do."""

    protocol = "cachedbox"
    cachable = False
    seen: ClassVar[dict[str, list[dict[str, Any]]]] = {}

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        if self.dircache.use_listings_cache and path in self.seen:
            return self.seen[path]
        self.seen[path] = super().ls(path, detail=True, **kwargs)
        return self.seen[path]


def test_what_another_process_has_written_is_seen_at_once() -> None:
    fsspec.register_implementation("cachedbox", _Cached, clobber=True)
    folder = "cachedbox://polled"
    files.write_bytes(f"{folder}/a", b"")
    assert files.names(folder) == ["a"]
    _Cached(use_listings_cache=False).pipe(f"{folder}/b", b"x")
    assert files.names(folder) == ["a", "b"]
    assert files.exists(f"{folder}/b")


def test_a_file_that_is_written_anew_has_another_stamp(tmp_path: Path) -> None:
    for folder in (str(tmp_path), "memory://stamps"):
        files.write_bytes(f"{folder}/a", b"one")
        before = files.stamps(folder)
        assert files.stamps(folder) == before
        files.write_bytes(f"{folder}/a", b"two")
        assert files.stamps(folder) != before


def test_work_on_many_files_comes_back_in_order() -> None:
    assert files.each(str, range(99)) == [str(n) for n in range(99)]


def test_a_path_seen_from_a_folder_is_found_after_both_have_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = files.relative("run/windows/dev", f"{tmp_path}/run/scores/a")
    assert stored == "../../windows/dev"
    assert files.resolve("moved/scores/a", stored) == f"{tmp_path}/moved/windows/dev"
    below = files.relative("run/below", "run")
    assert files.resolve("run", below) == f"{tmp_path}/run/below"


def test_what_lies_elsewhere_keeps_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, folder, stored in (
        ("memory://one/a", "memory://two/b", "memory://one/a"),
        ("memory://one/a", str(tmp_path), "memory://one/a"),
        ("a", "memory://one", f"{tmp_path}/a"),
    ):
        assert files.relative(path, folder) == stored
        assert files.resolve(folder, stored) == stored
    assert files.resolve("memory://one/b", "../a") == "memory:///one/a"


def test_a_writer_survives_another_that_tidies_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = LocalFileSystem.open

    def tidied(self: LocalFileSystem, path: str, mode: str) -> object:
        opened.append(path)
        if len(opened) < 3:
            files.tidy(str(tmp_path))
        return original(self, path, mode)

    monkeypatch.setattr(LocalFileSystem, "open", tidied)
    files.write_bytes(f"{tmp_path}/a", b"x")
    assert len(opened) == 3
    assert (tmp_path / "a").read_bytes() == b"x"
