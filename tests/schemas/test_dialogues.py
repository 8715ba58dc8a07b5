import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from schemas import documents
from schemas.dialogues import ASSISTANT, SYSTEM, TOOL, USER, Shape, Turn
from schemas.documents import Document, Fields, Reject

ASKED = {"role": "user", "content": "Hi"}
TOLD = {"role": "assistant", "content": "Ho"}
BRIEF = {"role": "system", "content": "Be brief."}
TURNS = (Turn(role=USER, content="Hi"), Turn(role=ASSISTANT, content="Ho"))


def read(path: Path, **shape: str) -> list[Document | Reject]:
    fields = Fields(id="name", dialogue=Shape(**shape))  # type: ignore[arg-type]
    return list(documents.read(str(path), fields, "corpus"))


def one(tmp_path: Path, record: dict[str, object], **shape: str) -> Document | Reject:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"name": "n", **record}))
    (found,) = read(path, **shape)
    return found


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [ASKED, TOLD]},
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Ho"},
            ]
        },
        {"conversations": [ASKED, TOLD]},
        {"instruction": "Hi", "input": "", "output": "Ho"},
        {"instruction": "Hi", "response": "Ho"},
        {"prompt": "Hi", "completion": "Ho"},
        {"question": "Hi", "answer": "Ho"},
        {"messages": [{**ASKED, "content": [{"type": "text", "text": "Hi"}]}, TOLD]},
        {"messages": [{**ASKED, "role": "Prompter"}, {**TOLD, "role": "ChatGPT"}]},
    ],
)
def test_every_shape_is_found_without_being_told(
    tmp_path: Path, record: dict[str, object]
) -> None:
    found = one(tmp_path, record)
    assert isinstance(found, Document)
    assert found.turns == TURNS


def test_a_pair_s_input_stands_behind_its_instruction(tmp_path: Path) -> None:
    found = one(tmp_path, {"instruction": "Add.", "input": "1 + 1", "output": "2"})
    assert isinstance(found, Document)
    assert found.turns is not None
    assert found.turns[0].content == "Add.\n\n1 + 1"


def test_system_turns_come_first_from_the_list_or_a_field_of_their_own(
    tmp_path: Path,
) -> None:
    system = Turn(role=SYSTEM, content="Be brief.")
    listed = {"messages": [BRIEF, ASKED, TOLD]}
    apart = {"system": "Be brief.", "messages": [ASKED, TOLD]}
    same = {**listed, "system": "Be brief."}
    for record in (listed, apart, {**listed, "system": ""}, same):
        found = one(tmp_path, record)
        assert isinstance(found, Document)
        assert found.turns == (system, *TURNS)


def test_named_fields_are_read_and_no_others(tmp_path: Path) -> None:
    record = {"q": "Hi", "a": "Ho", "messages": [TOLD]}
    found = one(tmp_path, record, kind="pairs", prompt="q", answer="a")
    assert isinstance(found, Document)
    assert found.turns == TURNS
    bad = one(tmp_path, {"chat": [ASKED, TOLD]}, kind="messages")
    assert isinstance(bad, Reject)
    named = one(tmp_path, {"chat": [ASKED, TOLD]}, kind="messages", turns="chat")
    assert isinstance(named, Document)


def test_tools_may_speak(tmp_path: Path) -> None:
    said = [ASKED, {"from": "function_call", "value": "x"}, TOLD]
    found = one(tmp_path, {"messages": said})
    assert isinstance(found, Reject)
    said[1] = {"from": "observation", "value": "x"}
    found = one(tmp_path, {"messages": said})
    assert isinstance(found, Document)
    assert found.turns is not None
    assert found.turns[1].role == TOOL


def test_the_text_of_a_dialogue_is_what_is_said_without_the_system_turn(
    tmp_path: Path,
) -> None:
    found = one(tmp_path, {"system": "Be brief.", "messages": [ASKED, TOLD]})
    assert isinstance(found, Document)
    assert found.text == "Hi\n\nHo"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "missing_dialogue"),
        ({"text": "Hi"}, "missing_dialogue"),
        ({"instruction": "Hi"}, "missing_dialogue"),
        ({"messages": []}, "invalid_turn"),
        ({"messages": "Hi"}, "invalid_turn"),
        ({"messages": ["Hi"]}, "invalid_turn"),
        ({"messages": [ASKED, {"role": "assistant"}]}, "invalid_turn"),
        ({"messages": [ASKED, {**TOLD, "content": 7}]}, "invalid_turn"),
        (
            {"messages": [ASKED, {**TOLD, "content": [{"type": "image"}]}]},
            "invalid_turn",
        ),
        ({"messages": [ASKED, {**TOLD, "tool_calls": [1]}]}, "invalid_turn"),
        ({"messages": [ASKED, {**TOLD, "function_call": {"a": 1}}]}, "invalid_turn"),
        ({"messages": [ASKED, {**TOLD, "reasoning_content": "So"}]}, "invalid_turn"),
        ({"messages": [ASKED, {**TOLD, "reasoning": "So"}]}, "invalid_turn"),
        ({"messages": [ASKED, {**TOLD, "thinking": "So"}]}, "invalid_turn"),
        ({"messages": [ASKED, {**TOLD, "weight": 0.5}]}, "invalid_turn"),
        ({"messages": [ASKED, {**TOLD, "weight": "0"}]}, "invalid_turn"),
        ({"messages": [ASKED, {**TOLD, "weight": 0}]}, "no_answer"),
        ({"system": "No.", "messages": [BRIEF, ASKED, TOLD]}, "invalid_turn"),
        ({"prompt": "Hi", "response": "Ho", "history": [["a", "b"]]}, "invalid_turn"),
        ({"messages": [ASKED, {**TOLD, "content": " \n"}]}, "empty_content"),
        ({"messages": [ASKED, TOLD] * (1 << 15) + [ASKED]}, "too_long"),
        ({"prompt": "", "completion": "Ho"}, "empty_content"),
        ({"messages": [{**ASKED, "role": "ghost"}, TOLD]}, "unknown_role"),
        ({"messages": [{"content": "Hi"}, TOLD]}, "unknown_role"),
        ({"messages": [ASKED]}, "no_answer"),
        ({"messages": [ASKED, {**TOLD, "content": "\ud800"}]}, "invalid_utf8"),
        ({"system": 7, "messages": [ASKED, TOLD]}, "invalid_turn"),
    ],
)
def test_what_is_no_dialogue_is_a_reject_with_its_reason_id_and_place(
    tmp_path: Path, record: dict[str, object], reason: str
) -> None:
    found = one(tmp_path, record)
    assert isinstance(found, Reject)
    assert (found.reason, found.doc_id, found.row) == (reason, "n", 0)
    assert "Hi" not in found.detail.replace("'Hi'", "")


def test_fields_that_say_nothing_change_nothing(tmp_path: Path) -> None:
    names = ("weight", "tool_calls", "reasoning_content", "thinking")
    idle = [{**TOLD, **dict.fromkeys(names, empty)} for empty in (None, "")]
    lists = [{"messages": [ASKED, told]} for told in (*idle, {**TOLD, "weight": 1})]
    pairs = [
        {"prompt": "Hi", "response": "Ho", "history": told} for told in ([], None, "")
    ]
    for record in (*lists, *pairs):
        found = one(tmp_path, record)
        assert isinstance(found, Document)
        assert found.turns == TURNS


def test_an_answer_of_weight_0_is_read_and_not_learned(tmp_path: Path) -> None:
    said = [ASKED, {**TOLD, "weight": 0}, ASKED, {**TOLD, "weight": 1.0}]
    found = one(tmp_path, {"messages": said})
    assert isinstance(found, Document)
    assert found.turns is not None
    assert [turn.is_learned for turn in found.turns] == [True, False, True, True]
    assert found.turns[2:] == TURNS


def test_the_history_of_pairs_is_seen_in_a_parquet_file_too(tmp_path: Path) -> None:
    columns = {"name": ["a"], "prompt": ["Hi"], "response": ["Ho"]}
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({**columns, "history": [[["So", "Yes"]]]}), path)
    (found,) = read(path)
    assert isinstance(found, Reject)
    assert found.reason == "invalid_turn"


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_dialogues_are_read_from_every_kind_of_file(
    tmp_path: Path, suffix: str
) -> None:
    records = [
        {"name": f"n{n}", "messages": [{**ASKED, "content": f"Hi {n} ä"}, TOLD]}
        for n in range(5)
    ]
    path = tmp_path / f"c{suffix}"
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        packs = {".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}
        path.write_bytes(packs.get(suffix, bytes)(text))
    found = read(path)
    assert [d.turns[0].content for d in found] == [f"Hi {n} ä" for n in range(5)]  # type: ignore[union-attr,index]


def test_text_deep_in_a_parquet_file_that_is_not_utf8_is_a_reject(
    tmp_path: Path,
) -> None:
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.binary())]))
    said = [[{"role": "user", "content": b"\xff"}, TOLD | {"content": b"Ho"}]] * 2
    raw = pa.array(said, kind)
    told = raw.values.field(1).view(pa.string())
    messages = pa.ListArray.from_arrays(
        raw.offsets,
        pa.StructArray.from_arrays([raw.values.field(0), told], ["role", "content"]),
    )
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"name": ["a", "b"], "messages": messages}), path)
    assert [one.reason for one in read(path)] == ["invalid_utf8"] * 2  # type: ignore[union-attr]


def test_text_deep_in_a_parquet_file_that_is_too_long_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 20)
    said = [[ASKED, {**TOLD, "content": content}] for content in ("x" * 21, "Ho")]
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"name": ["a", "b"], "messages": said}), path)
    bad, good = read(path)
    assert isinstance(bad, Reject)
    assert (bad.row, bad.reason) == (0, "too_long")
    assert isinstance(good, Document)


@pytest.mark.parametrize("content", [b"Ho", b"\xff"])
def test_roles_of_a_parquet_file_may_be_of_few_words(
    tmp_path: Path, content: bytes
) -> None:
    texts = pa.array([b"Hi", content], pa.binary()).view(pa.string())
    roles = pa.array(["user", "assistant"]).dictionary_encode()
    messages = pa.ListArray.from_arrays(
        [0, 2],
        pa.StructArray.from_arrays(
            [roles, texts.dictionary_encode()], ["role", "content"]
        ),
    )
    names = pa.array(["a"]).dictionary_encode()
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"name": names, "messages": messages}), path)
    (found,) = read(path)
    if content == b"Ho":
        assert isinstance(found, Document)
        assert (found.doc_id, found.turns) == ("a", TURNS)
    else:
        assert isinstance(found, Reject)
        assert found.reason == "invalid_utf8"


def test_columns_that_no_record_of_a_file_has_are_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(
        pa.table({"name": ["a"], "prompt": ["Hi"], "response": ["Ho"]}), path
    )
    (found,) = read(path)
    assert isinstance(found, Document)
    assert found.turns == TURNS
