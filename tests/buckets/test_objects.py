"""Files in buckets, one by one."""

import os
import threading
import types
from pathlib import Path

import pytest

from schemas import buckets, copies, corpora, files, objects
from schemas.errors import FusionError
from tests.buckets.conftest import Store
from tests.buckets.proxy import FAULTS, Harm

pytestmark = pytest.mark.buckets

PART = 5 << 20  # the least that a part may be, but the last
SIZES = [0, 1, PART, PART + 1, 2 * PART + 1, 4 * PART]


@pytest.fixture(autouse=True)
def parts_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "_PART_BYTES", PART)


@pytest.mark.parametrize("size", SIZES)
def test_a_file_comes_back_as_it_was_written(
    size: int, folder: str, store: Store
) -> None:
    content = os.urandom(size)
    path = f"{folder}/{size}.bin"
    assert not files.exists(path)
    with files.publish(path) as file:
        file.write(content)
        assert not files.exists(path)
    assert files.read_bytes(path) == content
    assert files.size(path) == size
    assert files.names(folder, f"{size}.bin") == [f"{size}.bin"]
    assert [p for p in files.tree(folder) if files.TEMPORARY in p] == []


def test_any_part_of_a_file_is_read(folder: str) -> None:
    content = os.urandom(3 << 20)
    files.write_bytes(f"{folder}/a", content)
    with files.open_input(f"{folder}/a") as file:
        for start, stop in [(0, 1), (1 << 20, 3 << 20), (5, 5), (2 << 20, 9 << 20)]:
            file.seek(start)
            assert file.read(stop - start) == content[start:stop]
        assert file.seek(-4, os.SEEK_END) == len(content) - 4
        assert file.read() == content[-4:]


def test_a_file_that_is_replaced_while_it_is_read_is_told(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{folder}/a"
    monkeypatch.setattr(objects, "_REQUEST_BYTES", 1 << 20)
    for size in (3 << 20, 1 << 19):  # as long, and shorter than the next range
        files.write_bytes(path, b"o" * (3 << 20))
        with files.open_input(path) as file:
            assert file.read(1 << 20) == b"o" * (1 << 20)
            files.write_bytes(path, b"n" * size)
            with pytest.raises(FusionError, match="/a must not change while"):
                file.raw.readall()
        with files.open_input(path) as file:
            assert file.read() == b"n" * size


def test_a_file_that_is_written_again_with_its_content_is_read_on(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{folder}/a"
    content = os.urandom(3 << 20)
    monkeypatch.setattr(objects, "_REQUEST_BYTES", 1 << 20)
    files.write_bytes(path, content)
    with files.open_input(path) as file:
        start = file.raw.read(1 << 20)
        files.write_bytes(path, content)
        assert start + file.raw.readall() == content


def test_a_failed_write_leaves_the_old_file(folder: str) -> None:
    files.write_bytes(f"{folder}/a", b"old")
    with pytest.raises(TypeError), files.publish(f"{folder}/a") as file:
        file.write(None)
    assert files.read_bytes(f"{folder}/a") == b"old"
    assert files.tree(folder) == [f"{folder}/a"]


def test_a_marker_of_a_folder_is_no_file(folder: str, store: Store) -> None:
    # Consoles make an empty object of the folder's name with a slash behind it.
    fs, plain = files.filesystem(folder)
    files.write_bytes(f"{folder}/a", b"x")
    files.write_bytes(f"{folder}/below/b", b"x")
    if store.root.startswith("s3"):
        fs.call_s3(
            "put_object", Bucket=plain.split("/")[0], Key=f"{plain.split('/')[1]}/"
        )
    else:
        bucket, name = plain.split("/")
        fs.call(
            "POST",
            f"{fs._location}/upload/storage/v1/b/{bucket}/o",
            uploadType="media",
            name=f"{name}/",
            data=b"",
        )
    assert files.names(folder) == ["a"]
    assert files.folders(folder) == ["below"]
    assert corpora.expand([folder]) == [f"{folder}/a"]


def test_folders_and_globs_are_inputs(folder: str) -> None:
    for name in ("b.txt", "a.txt", "c.bin", "below/d.txt"):
        files.write_bytes(f"{folder}/{name}", name.encode())
    assert corpora.expand([f"{folder}/*.txt"]) == [f"{folder}/a.txt", f"{folder}/b.txt"]
    assert corpora.expand([folder]) == [
        f"{folder}/{n}" for n in ("a.txt", "b.txt", "c.bin")
    ]
    assert corpora.expand([f"{folder}/c.bin", f"{folder}/below/"]) == [
        f"{folder}/below/d.txt",
        f"{folder}/c.bin",
    ]
    assert files.find(folder, "d.txt") == [f"{folder}/below/d.txt"]
    with pytest.raises(FileNotFoundError, match="nothing"):
        corpora.expand([f"{folder}/nothing*"])


def test_what_another_process_has_written_is_seen_at_once(folder: str) -> None:
    assert files.names(folder) == []
    files.write_bytes(f"{folder}/a", b"one")
    first = files.stamps(folder)
    assert list(first) == ["a"]
    other = type(files.filesystem(folder)[0])(skip_instance_cache=True)
    plain = files.filesystem(f"{folder}/a")[1]
    other.pipe_file(plain, b"another")
    assert files.stamps(folder) != first
    assert files.read_bytes(f"{folder}/a") == b"another"
    other.rm_file(plain)
    assert files.names(folder) == []
    assert not files.exists(f"{folder}/a")


def test_a_tree_is_removed_whole_and_nothing_else(folder: str) -> None:
    for name in ("a/1", "a/b/2", "a1", "b"):
        files.write_bytes(f"{folder}/{name}", b"x")
    files.remove_tree(f"{folder}/a")
    assert files.tree(folder) == [f"{folder}/a1", f"{folder}/b"]
    files.remove_tree(f"{folder}/b")
    files.remove_tree(f"{folder}/b")
    assert files.tree(folder) == [f"{folder}/a1"]


def test_of_two_writers_one_wins_whole(folder: str) -> None:
    contents = [bytes([n]) * (2 * PART + 1) for n in range(2)]
    path = f"{folder}/a"
    threads = [
        threading.Thread(target=files.write_bytes, args=(path, content))
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.read_bytes(path) in contents
    assert files.tree(folder) == [path]


def test_a_copy_is_the_same_corpus(folder: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (2 * PART + 1))
    copies.copy(f"{tmp_path}/a", f"{folder}/a")
    copies.copy(f"{folder}/a", f"{tmp_path}/b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    here, there = corpora.identities([f"{tmp_path}/a", f"{folder}/a"])
    assert here == there


def test_a_large_corpus_is_told_by_the_buckets_checksums(
    folder: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "_CONTENT_BYTES", 5)
    files.write_bytes(f"{folder}/a", b"xyz")
    files.write_bytes(f"{folder}/b", b"123")
    store.proxy.requests.clear()
    told = corpora.identities([f"{folder}/a", f"{folder}/b"])
    assert len(set(told)) == 2
    assert not [r for r in store.proxy.requests if "alt=media" in r]
    files.write_bytes(f"{folder}/a", b"uvw")
    assert corpora.identities([f"{folder}/a", f"{folder}/b"]) != told


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("size", [3, 2 * PART + 1])
def test_a_fault_harms_nothing(
    fault: str, size: int, folder: str, store: Store
) -> None:
    content = os.urandom(size)
    path = f"{folder}/{fault}-{size}"
    store.proxy.harm = Harm(every=2, faults=(fault,))
    files.write_bytes(path, content)
    assert files.read_bytes(path) == content
    assert files.names(folder, f"{fault}-{size}") == [f"{fault}-{size}"]
    files.remove_tree(path)
    assert store.proxy.done[fault] > 1
    store.proxy.spare()
    assert not files.exists(path)
    assert files.tree(folder) == []


def test_an_upload_that_never_succeeds_is_told_and_leaves_nothing(
    folder: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_bytes(f"{folder}/a", b"old")

    async def at_once(_: float) -> None:
        """Does not wait, where gcsfs would for minutes."""

    monkeypatch.setattr(buckets.time, "sleep", lambda s: None)
    monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=at_once))
    store.proxy.harm = Harm(
        every=1, faults=("503",), matching=lambda line: line[:3] in ("PUT", "POS")
    )
    with pytest.raises(ConnectionError, match=r"never_succeeds\S*/a must be reachable"):
        files.write_bytes(f"{folder}/a", b"new")
    store.proxy.spare()
    assert files.read_bytes(f"{folder}/a") == b"old"
    assert files.tree(folder) == [f"{folder}/a"]


def test_a_bucket_that_is_not_there_is_named_and_not_made(store: Store) -> None:
    path = f"{store.root}-nowhere/a"
    for size in (1, 2 * PART + 1):
        with pytest.raises(
            FileNotFoundError, match=r"bucket of \S+-nowhere/a must exist"
        ):
            files.write_bytes(path, b"x" * size)
    assert not files.exists(path)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*-nowhere/a"):
        files.read_bytes(path)


def test_wrong_credentials_are_told_with_the_cure(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = type(files.filesystem(s3.root)[0])(secret="another")
    monkeypatch.setattr(buckets, "_client", lambda *_: stranger)
    with pytest.raises(FusionError, match=r"/a must be open .*AWS_ACCESS_KEY_ID"):
        files.read_bytes(s3.folder("a"))


def test_a_store_that_holds_something_else_than_was_sent_is_told(
    gcs: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    gcs.proxy.spare()
    monkeypatch.setattr(buckets.time, "sleep", lambda s: None)
    own = buckets._held
    for name, wrong in (("name", "b"), ("size", "2"), ("md5Hash", "x")):
        monkeypatch.setattr(
            buckets,
            "_held",
            lambda *args, name=name, wrong=wrong: {**own(*args), name: wrong},
        )
        with pytest.raises(ConnectionError, match=f"/a must be reachable.*{name} must"):
            files.write_bytes(gcs.folder("held/a"), b"x")
