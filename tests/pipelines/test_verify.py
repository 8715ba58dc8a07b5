import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import evaluations, prepare, verify
from pipelines.prepare import PrepareConfig
from schemas import files, fused, manifest, parquet, scores, windows
from schemas.errors import SchemaError
from schemas.manifest import FileEntry, Manifest
from transforms import prepare as preparing


def copied(road: str, stage: str, tmp_path: Path) -> Path:
    """Copies a run, whose folders name each other, and returns a stage's folder."""
    return shutil.copytree(road, tmp_path / "run", dirs_exist_ok=True) / stage


def rewrite(folder: Path, change: Callable[[list[Any]], list[Any]], kind: Any) -> None:
    """Changes the first file's rows; the manifest agrees with what comes of it."""
    path = min(folder.glob("*.parquet"))
    groups = list(kind.read(str(path)))
    footer = parquet.footer(str(path))
    with parquet.writer(str(path), kind.SCHEMA, footer) as tables:
        for group in groups:
            tables.write(kind.to_table(change(group)))
    assert tables.entry is not None
    entry = dataclasses.asdict(tables.entry)
    value = files.read_json(f"{folder}/manifest.json")
    value["files"] = [
        entry if old["name"] == entry["name"] else old for old in value["files"]
    ]
    files.write_json(f"{folder}/manifest.json", value)


def restate(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = files.read_json(f"{folder}/manifest.json")
    change(value)
    files.write_json(f"{folder}/manifest.json", value)


@pytest.fixture
def model(road: str, tmp_path: Path) -> Path:
    """Returns the folder of a model that was trained on the road's fused rows."""
    folder = tmp_path / "run/models/fused"
    folder.mkdir(parents=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights")
    entry = FileEntry(
        name=weights.name,
        rows=0,
        tokens=0,
        bytes=7,
        sha256=files.checksum(str(weights)),
    )
    made = Manifest(
        stage="train",
        fingerprint="f",
        settings={},
        inputs={"data": manifest.read(f"{road}/fused", fused.STAGE).fingerprint},
        origins={"data": f"{road}/fused", "model": "target"},
        counts={"steps": 9},
        files=(entry,),
        code_version="0",
    )
    manifest.write(str(folder), made)
    return folder


def test_a_whole_model_is_proved(model: Path) -> None:
    (line,) = verify.verify([str(model)])
    assert "1 files whole, trained 9 steps" in line


def test_an_emptied_model_is_found(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")
    with pytest.raises(SchemaError, match=r"model.safetensors must have bytes 7"):
        verify.verify([str(model)])


def test_a_model_whose_fused_rows_are_gone_is_not_proved(model: Path) -> None:
    restate(model, lambda made: made["origins"].update(data=str(model / "gone")))
    verify.verify([str(model)])
    proved, left = verify.between([str(model)])
    assert not proved
    assert "gone is not there" in left[0]


@pytest.mark.parametrize("stage", ["windows/fusion", "scores/neox", "fused"])
def test_a_folder_without_its_manifest_is_unfinished(
    road: str, stage: str, model: Path, tmp_path: Path
) -> None:
    copy = copied(road, stage, tmp_path)
    verify.verify([str(tmp_path)])
    (copy / "manifest.json").unlink()
    with pytest.raises(SchemaError, match=f"{stage} must be finished"):
        verify.verify([str(tmp_path)])


def test_a_training_that_was_broken_off_is_unfinished(model: Path) -> None:
    other = model.parent / "clm.partial/checkpoints/step-3"
    other.mkdir(parents=True)
    (other / "state.json").write_text("{}")
    with pytest.raises(SchemaError, match=r"clm\.partial/.* must be finished"):
        verify.verify([str(model.parent)])


def test_files_of_a_corpus_may_be_called_as_ours_are(
    model: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "corpus").mkdir()
    table = pa.table({"text": ["a"]})
    pq.write_table(table, tmp_path / "corpus/part-000000.parquet")
    assert len(verify.verify([str(tmp_path)])) == 1


def test_other_tokens_than_the_target_scored_are_found(
    road: str, tmp_path: Path
) -> None:
    def change(rows: list[fused.FusedRow]) -> list[fused.FusedRow]:
        ids = rows[0].input_ids.copy()
        ids[1] += 1
        return [dataclasses.replace(rows[0], input_ids=ids), *rows[1:]]

    copy = copied(road, "fused", tmp_path)
    rewrite(copy, change, fused)
    with pytest.raises(SchemaError, match="must have the input_ids that its scores"):
        verify.verify([str(copy)])


@pytest.mark.parametrize(
    "column",
    [
        "loss_mask",
        "n_bytes",
        "source_logprobs",
        "source_coverage",
        "chunk_logprobs",
    ],
)
def test_figures_that_the_scores_do_not_give_are_found(
    road: str, column: str, tmp_path: Path
) -> None:
    def change(rows: list[fused.FusedRow]) -> list[fused.FusedRow]:
        values = getattr(rows[-1], column).copy()
        values.flat[0] = 1 - values.flat[0]
        return [*rows[:-1], dataclasses.replace(rows[-1], **{column: values})]

    copy = copied(road, "fused", tmp_path)
    rewrite(copy, change, fused)
    with pytest.raises(SchemaError, match=f"must have the {column} that its scores"):
        verify.verify([str(copy)])


def test_chunks_at_other_borders_are_found(road: str, tmp_path: Path) -> None:
    def change(rows: list[fused.FusedRow]) -> list[fused.FusedRow]:
        ends = np.delete(rows[0].chunk_ends, 1)
        logprobs = np.delete(rows[0].chunk_logprobs, 1)
        merged = {"chunk_ends": ends, "chunk_logprobs": logprobs}
        return [dataclasses.replace(rows[0], **merged), *rows[1:]]

    copy = copied(road, "fused", tmp_path)
    rewrite(copy, change, fused)
    with pytest.raises(SchemaError, match="must have the chunk_ends that its scores"):
        verify.verify([str(copy)])


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (lambda rows: rows[1:], "it lacks"),
        (lambda rows: [*rows, rows[0]], "once, it does twice"),
    ],
)
def test_windows_that_are_lost_or_doubled_are_found(
    road: str, change: Callable[[list[Any]], list[Any]], law: str, tmp_path: Path
) -> None:
    copy = copied(road, "fused", tmp_path)
    rewrite(copy, change, fused)
    with pytest.raises(SchemaError, match=law):
        verify.verify([str(copy)])


@pytest.mark.parametrize("name", ["target", "neox"])
def test_rows_made_of_other_scores_are_found(
    road: str, name: str, tmp_path: Path
) -> None:
    copy = copied(road, "fused", tmp_path)
    restate(copy, lambda made: made["inputs"].update({f"scores:{name}": "other"}))
    with pytest.raises(SchemaError, match="must be made of the scores now in"):
        verify.verify([str(copy)])


def moved(start: int, by: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(ends: np.ndarray) -> np.ndarray:
        ends = ends.copy()
        ends[start] += by
        return ends

    return change


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (moved(0, 1), "must start at byte 0"),
        (moved(2, 100), "ends that never fall"),
        (moved(-1, 1), "must end at byte"),
    ],
)
def test_tokens_that_do_not_tile_their_window_are_found(
    road: str, change: Callable[[np.ndarray], np.ndarray], law: str, tmp_path: Path
) -> None:
    def first(rows: list[scores.Score]) -> list[scores.Score]:
        ends = change(rows[0].byte_ends)
        return [dataclasses.replace(rows[0], byte_ends=ends), *rows[1:]]

    copy = copied(road, "scores/neox", tmp_path)
    rewrite(copy, first, scores)
    with pytest.raises(SchemaError, match=law):
        verify.verify([str(copy)])


def test_a_cutter_that_drops_text_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, out = tmp_path / "corpus.jsonl", str(tmp_path / "windows")
    corpus.write_text("".join(json.dumps({"text": f"{i}" * 40}) + "\n" for i in "abc"))
    cut = preparing.cut_document
    monkeypatch.setattr(
        preparing,
        "cut_document",
        lambda document, how: cut(
            dataclasses.replace(document, text=document.text[:-20]), how
        ),
    )
    prepare.prepare_corpus(
        PrepareConfig(inputs=(str(corpus),), output=out, max_bytes=16)
    )
    assert verify.main([out]) == 1
    shown = capsys.readouterr()
    assert "it has 40 bytes, its windows hold 20" in shown.err
    assert "nothing was lost" not in shown.out


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Returns what prepare made of a corpus with an unusable record."""
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": f"{n} text"}) for n in range(40)]
    corpus.write_text("\n".join([*lines[:20], "no json", *lines[20:]]) + "\n")
    prepare.prepare_corpus(
        PrepareConfig(
            inputs=(str(corpus),),
            output=str(tmp_path / "windows"),
            max_bytes=4,
            splits="fusion=.5,dev=.25,heldout=.25",
            protected=(),
            max_reject_fraction=0.5,
        )
    )
    return tmp_path / "windows"


@pytest.mark.parametrize("below", ["", "/fusion"])
def test_every_document_is_kept_or_left_out_seen_from_all_splits_or_one(
    prepared: Path, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([f"{prepared}{below}"]) == 0
    shown = capsys.readouterr().out
    assert "41 documents read = 40 kept, byte for byte + left out: 1 invalid_json" in (
        shown
    )
    assert shown.endswith("nothing was lost\n")


def test_a_split_without_its_siblings_claims_no_more_than_was_proved(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(prepared / "fusion", tmp_path / "alone/fusion")
    assert verify.main([f"{tmp_path}/alone"]) == 0
    shown = capsys.readouterr().out
    assert "not compared with its corpus" in shown
    assert "dev, heldout must be finished" in shown
    assert shown.endswith("nothing was lost in what is proved above\n")


def test_a_corpus_that_has_grown_since_is_told_as_such(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"text": "more"}\n')
    assert verify.main([str(prepared)]) == 1
    assert "changed since" in capsys.readouterr().err


def test_a_document_neither_kept_nor_listed_is_found(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (prepared / "rejects/part-000000.jsonl").write_text("")
    assert verify.main([str(prepared)]) == 1
    assert "record 20, invalid_json, must be listed" in capsys.readouterr().err


@pytest.fixture
def evaluated(prepared: Path) -> Path:
    """Returns a run's folder with the result of one model, and the table."""
    heldout = str(prepared / "heldout")
    result = {
        "inputs": {"windows": manifest.read(heldout, windows.STAGE).fingerprint},
        "domains": {
            name: {**size, "nats": 8 * np.log(2) * size["bytes"], "failed": 0}
            for name, size in evaluations.sizes_of(heldout).items()
        },
    }
    run = prepared.parent
    files.write_json(f"{run}/evaluation/heldout/untouched.json", result)
    bits = dict.fromkeys((*result["domains"], "all"), 8.0)
    size = {name: had["bytes"] for name, had in result["domains"].items()}
    table = {"models": {"untouched": bits}, "bytes": size}
    files.write_json(f"{run}/evaluation.json", table)
    return run


def test_an_evaluation_of_all_bytes_is_proved(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(evaluated)]) == 0
    shown = capsys.readouterr().out
    assert "bytes measured = all of" in shown
    assert "1 models, as in" in shown
    assert shown.endswith("nothing was lost\n")


@pytest.mark.parametrize(
    ("name", "old", "new", "law"),
    [
        ("evaluation/heldout/untouched.json", '"bytes": ', '"bytes": 1', "measured on"),
        ("evaluation.json", "8.0", "7.5", "bits per byte of untouched"),
        ("evaluation.json", '"default": ', '"default": 1', "must state"),
    ],
)
def test_an_evaluation_of_other_bytes_is_found(
    evaluated: Path,
    name: str,
    old: str,
    new: str,
    law: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = evaluated / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert verify.main([str(evaluated)]) == 1
    assert law in capsys.readouterr().err


def test_what_was_measured_on_windows_that_are_away_is_not_called_proved(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = evaluated / "evaluation/heldout/untouched.json"
    result = files.read_json(str(path))
    result["inputs"]["windows"] = "others"
    files.write_json(str(path), result)
    assert verify.main([str(evaluated)]) == 0
    shown = capsys.readouterr().out
    assert "untouched.json was not compared" in shown
    assert shown.endswith("nothing was lost in what is proved above\n")


def test_benchmarks_of_a_table_are_those_of_the_results(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    had = {"acc": 0.5, "items": 4}
    path = f"{evaluated}/evaluation/tasks/arc/source.b.json"
    files.write_json(path, {"results": {"arc_easy": had}})
    table = files.read_json(f"{evaluated}/evaluation.json")
    table["tasks"] = {"arc_easy": {"source:b": had}}
    files.write_json(f"{evaluated}/evaluation.json", table)
    assert verify.main([str(evaluated)]) == 0
    shown = capsys.readouterr().out
    assert "1 models, as in" in shown
    assert "1 tasks, as in their results" in shown
    table["tasks"]["arc_easy"]["source:b"] = {**had, "acc": 0.75}
    files.write_json(f"{evaluated}/evaluation.json", table)
    assert verify.main([str(evaluated)]) == 1
    assert "must state of source:b on task arc_easy" in capsys.readouterr().err
