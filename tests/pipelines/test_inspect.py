import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import counting, escapes, inspect, prepare
from pipelines.counting import CountConfig
from pipelines.prepare import PrepareConfig
from schemas import files, fused, plan, windows


def show(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert inspect.main(argv) == 0
    return capsys.readouterr().out


def spans(shown: str) -> list[tuple[int, int]]:
    found = re.findall(r"^ *(\d+)-(\d+)  ", shown, re.MULTILINE)
    return [(int(start), int(stop)) for start, stop in found]


def tile(found: list[tuple[int, int]], n_bytes: int) -> bool:
    ends = [0, *(stop for _, stop in found)]
    return ends[:-1] == [start for start, _ in found] and ends[-1] == n_bytes


@pytest.fixture
def window(road: str) -> windows.Window:
    folder = f"{road}/windows/fusion"
    return next(windows.read_all(folder, plan.read(folder)))


def test_a_window_is_shown_with_its_text(
    road: str, window: windows.Window, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = show(capsys, f"{road}/windows/fusion")
    assert f"window {window.window_id}  document {window.doc_id}" in shown
    assert window.text in shown
    assert not spans(shown)


def test_a_window_shows_the_tokens_of_a_model_that_is_named(
    road: str,
    window: windows.Window,
    models: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = show(capsys, f"{road}/windows/fusion", f"--tokenizer={models['llama']}")
    assert tile(spans(shown), len(window.text.encode()))


def test_a_score_is_shown_with_spans_costs_and_entries(
    road: str, window: windows.Window, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = show(capsys, f"{road}/scores/neox", "--top=2")
    assert "bits per byte over" in shown
    assert tile(spans(shown), len(window.text.encode()))
    first = next(line for line in shown.splitlines() if re.match(r" +0-", line))
    assert len(re.findall(r"\d\.\d{3}", first)) == 2


def test_a_fused_row_is_shown_with_the_spans_of_its_windows(
    road: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"{road}/windows/fusion"
    texts = {w.window_id: w.text for w in windows.read_all(folder, plan.read(folder))}
    shown = show(capsys, f"{road}/fused")
    taught = r"from \S+ \(\d+\.\d{3} bits per byte, \d+\.\d% of positions\)"
    parts = re.split(rf"^window (\w+)  .* {taught}$", shown, flags=re.MULTILINE)
    assert len(parts) >= 3
    for name, part in zip(parts[1::2], parts[2::2], strict=True):
        assert tile(spans(part), len(texts[name].encode()))
    assert "tail" in shown


def test_color_is_there_when_asked_for_alone(
    road: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\x1b[" in show(capsys, f"{road}/scores/neox", "--color=always")
    assert "\x1b[" not in show(capsys, f"{road}/scores/neox", "--color=never")
    assert "\x1b[" not in show(capsys, f"{road}/scores/neox")


def test_a_runs_folder_lists_what_can_be_shown(
    road: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = show(capsys, road)
    for name in ("windows/fusion", "windows/dev", "scores/llama", "fused"):
        assert f"fusebeam inspect {road}/{name}  #" in shown


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be a finished windows"):
        inspect.main([str(tmp_path)])


@pytest.mark.parametrize("word", ["--count=-1", "--count=0", "--skip=-1", "--top=0"])
def test_a_number_out_of_range_is_refused(
    road: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        inspect.main([f"{road}/fused", word])
    assert "must be a number of at least" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["windows/dev", "scores/neox", "fused"])
def test_a_folder_that_ends_before_says_so(
    road: str, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = show(capsys, f"{road}/{stage}", "--skip=99999")
    entries = files.read_json(f"{road}/{stage}/manifest.json")["files"]
    total = sum(entry["rows"] for entry in entries)
    assert f"ends before: it holds {total:,}, of which 99,999" in shown


def test_an_abbreviated_flag_is_refused(road: str) -> None:
    with pytest.raises(SystemExit):
        inspect.main([f"{road}/fused", "--cou=2"])


def test_a_document_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    record = {"text": "a\tb\n\x1b]0;owned\x07\x9b2J", "id": "x\x1b[2J\ny"}
    corpus.write_text(json.dumps(record) + "\n")
    out = str(tmp_path / "windows")
    prepare.prepare_corpus(
        PrepareConfig(inputs=(str(corpus),), output=out, max_bytes=99, id_field="id")
    )
    shown = show(capsys, f"{out}/train", "--color=never")
    assert "a\tb\n\\u001b]0;owned\\u0007\\u009b2J" in shown
    assert "document x\\u001b[2J\\u000ay  bytes" in shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


def test_a_byte_that_is_no_text_differs_from_its_spelling() -> None:
    pieces = [b"\xc3", rb"\xc3", rb"\\xc3", "\u00c3".encode(), b"\x1b", rb"\u001b"]
    assert len({escapes.quoted(piece) for piece in pieces}) == len(pieces)


def test_inspect_loads_no_beam() -> None:
    code = "import sys, pipelines.inspect; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_fused_row_is_shown_with_what_every_source_says_and_its_chunks(
    road: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = show(capsys, f"{road}/fused")
    windows = len(re.findall(r"^window ", shown, re.MULTILINE))
    for name in ("neox  ", "target"):
        figures = rf"^  {name}  weight [01]\.\d+  \d+\.\d+ bits per byte  .*positions$"
        assert len(re.findall(figures, shown, re.MULTILINE)) == windows
    row = next(fused.read(f"{road}/fused/slice-000000.parquet"))[0]
    costs = re.findall(r"  chunk (\S+)$", shown, re.MULTILINE)
    wanted = [f"{-nats / math.log(2):.2f}" for nats in row.chunk_logprobs.tolist()]
    assert costs == wanted


def test_counts_are_shown_from_the_most_frequent_on(
    road: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    counting.count_windows(
        CountConfig(
            source=f"{road}/scores/neox", target=f"{road}/scores/llama", output=out
        )
    )
    shown = show(capsys, out, "--count=5")
    counts = [int(line.split()[0]) for line in shown.splitlines()]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == 5
