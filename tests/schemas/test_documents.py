import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from schemas import documents
from schemas.documents import Document, Fields, Reject
from schemas.errors import SchemaError

RECORDS = [
    {"text": "one", "name": "a", "kind": "x"},
    {"text": "zwei ä\n", "name": "b", "kind": None},
    {"text": "三", "name": "c", "kind": "y"},
]
LINES = b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in RECORDS)


def frames(content: bytes) -> bytes:
    packer = zstandard.ZstdCompressor()
    middle = content.index(b"\n") + 1
    return packer.compress(content[:middle]) + packer.compress(content[middle:])


def parquet(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(RECORDS), sink, row_group_size=1)
    return sink.getvalue().to_pybytes()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": frames,
    ".parquet": parquet,
}


def read(path: Path, **fields: str) -> list[Document | Reject]:
    return list(documents.read(str(path), Fields(**fields), "corpus"))


@pytest.mark.parametrize("suffix", PACKED)
def test_every_format_gives_the_same_documents(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"corpus{suffix}"
    path.write_bytes(PACKED[suffix](LINES))
    assert read(path, id="name", domain="kind") == [
        Document(doc_id=r["name"] or "", text=r["text"] or "", domain=r["kind"])
        for r in RECORDS
    ]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ä\r\nb".encode())
    assert read(path) == [Document(doc_id="corpus:0", text="ä\r\nb")]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("damage", ["truncated", "garbled"])
def test_a_damaged_file_is_an_error_that_names_it(
    suffix: str, damage: str, tmp_path: Path
) -> None:
    path = tmp_path / f"corpus{suffix}"
    packed = PACKED[suffix](LINES)
    if damage == "truncated":
        packed = packed[:-6]
    else:
        packed = packed[:4] + bytes(b ^ 255 for b in packed[4:])
    path.write_bytes(packed)
    with pytest.raises(SchemaError, match="corpus"):
        read(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'{"text": "\xff"}', "invalid_utf8"),
        (b'{"text": "\\ud800"}', "invalid_utf8"),
        (b'{"text": ""}', "empty_text"),
        (b'{"text": 3}', "missing_text"),
        (b'{"other": "x"}', "missing_text"),
        (b'{"text": "x", "kind": "all"}', "invalid_domain"),
        (b'{"text": "x", "kind": 3}', "invalid_domain"),
        (b"[" * 100_000, "invalid_json"),
    ],
)
def test_a_bad_record_is_a_reject_with_its_place_and_without_its_text(
    line: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    good, bad = read(path, domain="kind")
    assert isinstance(good, Document)
    assert isinstance(bad, Reject)
    assert (bad.file, bad.row, bad.reason) == ("c.jsonl", 1, reason)


def test_a_missing_id_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(LINES + b'{"text": "x"}\n')
    assert [type(r) for r in read(path, id="name")] == [Document] * 3 + [Reject]


def test_text_that_is_not_utf8_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"\xff\xfe")
    (record,) = read(path)
    assert isinstance(record, Reject)
    assert record.reason == "invalid_utf8"


def test_a_parquet_file_without_the_field_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    path.write_bytes(parquet(LINES))
    with pytest.raises(SchemaError, match="'body'"):
        read(path, text="body")


def test_an_unknown_kind_of_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"c\.csv"):
        read(tmp_path / "c.csv")
