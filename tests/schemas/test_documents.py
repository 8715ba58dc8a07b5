import errno
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from schemas import documents
from schemas import parquet as checked
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
        Document(
            doc_id=r["name"] or "", text=r["text"] or "", row=row, domain=r["kind"]
        )
        for row, r in enumerate(RECORDS)
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


def table(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def text_column(values: list[bytes], kind: pa.DataType) -> pa.Array:
    """Makes a column of text that is not checked to be UTF-8, as other writers do."""
    binary = pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()
    return pa.array(values, binary).view(kind)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()], ids=str
)
def test_text_of_a_parquet_file_that_is_not_utf8_is_a_reject_of_its_row(
    kind: pa.DataType, tmp_path: Path
) -> None:
    values = ["gut ä".encode(), b"\xff\xfe", b"fine"]
    column = (
        pa.array(values, kind) if "binary" in str(kind) else text_column(values, kind)
    )
    first, bad, last = read(table(tmp_path / "c.parquet", text=column))
    assert isinstance(bad, Reject)
    assert (bad.row, bad.reason) == (1, "invalid_utf8")
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert (first.text, last.text, last.row) == ("gut ä", "fine", 2)


def test_dictionary_columns_and_numbers_of_a_parquet_file_are_read(
    tmp_path: Path,
) -> None:
    path = table(
        tmp_path / "c.parquet",
        text=pa.array(["a", "b", None]).dictionary_encode(),
        name=pa.array([1, 2, 3]),
    )
    one, other, bad = read(path, id="name")
    assert [one.doc_id, other.doc_id] == ["1", "2"]
    assert isinstance(bad, Reject)
    assert bad.reason == "missing_text"


def test_a_corrupt_page_names_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    texts = pa.array([str(n) * 50 for n in range(900)])
    options = {"compression": "zstd", "use_dictionary": False}
    pq.write_table(pa.table({"text": texts}), path, row_group_size=300, **options)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(bytes(content))
    with pytest.raises(
        SchemaError, match=r"(?s)c\.parquet .* row 300 .*fetch it again"
    ):
        read(path)


def test_large_rows_of_a_parquet_file_are_read_few_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.parquet"
    texts = pa.array([bytes([65 + n % 26]) * 1000 for n in range(100)])
    pq.write_table(pa.table({"text": texts}), path, use_dictionary=False)
    sizes = []
    values = documents._values

    def counted(column: pa.Array) -> object:
        sizes.append(len(column))
        return values(column)

    monkeypatch.setattr(documents, "_values", counted)
    monkeypatch.setattr(documents, "MAX_BATCH_BYTES", 10_000)
    assert len(read(path)) == sum(sizes) == 100
    assert max(sizes) <= 10


def test_a_value_that_is_too_long_is_a_reject_and_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 10)
    bad, good = read(table(tmp_path / "c.parquet", text=pa.array(["x" * 11, "x" * 10])))
    assert isinstance(bad, Reject)
    assert (bad.reason, bad.detail[-6:]) == ("too_long", "got 11")
    assert isinstance(good, Document)


@pytest.mark.parametrize("field", ["name", "kind", "part", "text"])
def test_half_a_character_in_any_field_is_a_reject(field: str, tmp_path: Path) -> None:
    record = {"text": "t", "name": "n", "kind": "k", "part": "p", field: "\ud800"}
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(record))
    (bad,) = read(path, id="name", domain="kind", split="part")
    assert isinstance(bad, Reject)
    assert bad.reason == "invalid_utf8"
    assert repr(field) in bad.detail
    json.dumps(bad.doc_id).encode()


def test_rows_are_lines_whether_or_not_lines_are_blank(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\n{"text": "a"}\n\n \n{\n')
    good, bad = read(path)
    assert isinstance(good, Document)
    assert isinstance(bad, Reject)
    assert (good.row, good.doc_id, bad.row) == (1, "corpus:1", 4)


def test_a_lost_connection_is_not_called_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.parquet"
    path.write_bytes(parquet(LINES))

    class Lost(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise ConnectionResetError(errno.ECONNRESET, "connection lost")

    monkeypatch.setattr(documents.files, "open_input", lambda _: Lost(parquet(LINES)))
    with pytest.raises(ConnectionResetError, match="connection lost"):
        read(path)
    for reader in (checked.metadata, lambda p: list(checked.read(p, pa.schema([])))):
        with pytest.raises(ConnectionResetError, match="connection lost"):
            reader(str(path))
