import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pipelines import plots
from pipelines.plots import Panel
from schemas.windows import Window
from tests.bench import scale, scale_corpus, scale_page, scale_stub
from tests.bench.scale_corpus import Shape
from transforms.tokenizer import Encoding

K, SIZE = 10, 500
SMALL = Shape(factor=2.0, group_windows=1, slice_bytes=1)


def made_up(n: int, name: int = 1) -> tuple[Encoding, Any]:
    ids = np.random.default_rng(n).integers(0, SIZE, n).astype(np.int32)
    ends = np.arange(n, dtype=np.int32)
    found = Encoding(token_ids=ids, byte_ends=ends)
    window = Window(
        window_id=f"{name:032x}",
        doc_id="d",
        text="x" * (n - 1),
        byte_start=0,
        ends_document=False,
    )
    return found, scale_stub.make_score(window, found, K, SIZE)


def test_made_up_rows_are_such_as_a_model_gives() -> None:
    found, score = made_up(8000)
    assert (np.diff(np.sort(score.top_ids), axis=1) > 0).all()
    assert ((score.top_ids >= 0) & (score.top_ids < SIZE)).all()
    assert (np.diff(score.top_logprobs) <= 0).all()
    assert (np.exp(score.top_logprobs).sum(axis=1) <= 1).all()
    kept = score.top_ids == found.token_ids[1:, None]
    hit = kept.any(axis=1)
    assert 0.99 < hit.mean() < 1
    assert np.array_equal(score.gold_logprob[hit], score.top_logprobs[kept])
    assert (score.gold_logprob[~hit] < score.top_logprobs[~hit, -1]).all()


def test_made_up_rows_depend_on_the_window_alone() -> None:
    one, again, other = (made_up(50, name)[1] for name in (1, 1, 2))
    assert np.array_equal(one.top_ids, again.top_ids)
    assert np.array_equal(one.top_logprobs, again.top_logprobs)
    assert not np.array_equal(one.top_ids, other.top_ids)


@pytest.fixture
def without_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_corpus, "_write_model", lambda *_: None)


@pytest.mark.usefixtures("without_models")
def test_a_corpus_has_the_text_of_its_factor_and_one_held_out_split(
    tmp_path: Path,
) -> None:
    held = []
    for factor in (0.5, 1.0):
        shape = dataclasses.replace(SMALL, factor=factor)
        size = scale_corpus.make(tmp_path, shape)
        lines = (tmp_path / "corpus.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        fusion = [r["text"] for r in records if r["split"] == "fusion"]
        assert sum(len(text.encode()) for text in fusion) == size
        wanted = factor * scale_corpus.DEMO_BYTES
        assert wanted <= size < wanted + 2 * scale_corpus._LONGEST
        held.append([r for r in records if r["split"] == "heldout"])
        assert scale_corpus.shape_of(tmp_path) == shape
    assert held[0] == held[1] != []


@pytest.mark.usefixtures("without_models")
def test_short_documents_are_as_many_as_asked_for(tmp_path: Path) -> None:
    scale_corpus.make(tmp_path, dataclasses.replace(SMALL, factor=None, documents=7))
    text = (tmp_path / "corpus.jsonl").read_text()
    assert text.count('"split": "fusion"') == 7


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lists the steps that are run, and runs none."""
    done: list[str] = []

    def run(_: Path, step: str) -> dict[str, float]:
        if step == "fuse" and done.count("fuse") == 0:
            done.append(step)
            raise RuntimeError("stopped")
        done.append(step)
        return {"cpu_s": 1.0, "wall_s": 1.0, "peak_bytes": 1e6}

    monkeypatch.setattr(scale, "_run", run)
    monkeypatch.setattr(scale_corpus, "make", make_folder)
    return done


def make_folder(folder: Path, _: Shape) -> int:
    folder.mkdir(parents=True)
    return 5


def test_what_is_measured_is_not_measured_again(
    tmp_path: Path, steps: list[str]
) -> None:
    (tmp_path / scale.FIGURES).write_text("")
    with pytest.raises(RuntimeError, match="stopped"):
        scale.measure(SMALL, tmp_path)
    (tmp_path / "2" / scale.DOING).unlink()  # as if it was stopped between two steps
    scale.measure(SMALL, tmp_path)
    scale.measure(SMALL, tmp_path)
    assert steps == [*scale.CORPUS_STEPS, "fuse"]
    found = scale.read(tmp_path / scale.FIGURES)
    assert [figure["step"] for figure in found] == list(scale.CORPUS_STEPS)
    assert {figure["text_bytes"] for figure in found} == {5}


def test_a_point_that_was_stopped_within_a_step_is_measured_from_its_begin(
    tmp_path: Path, steps: list[str]
) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        scale.measure(SMALL, tmp_path)
    scale.measure(SMALL, tmp_path)
    assert steps == [*scale.CORPUS_STEPS, *scale.CORPUS_STEPS]
    assert len(scale.read(tmp_path / scale.FIGURES)) == len(scale.CORPUS_STEPS)


def figures() -> list[dict[str, Any]]:
    """Returns figures of a straight line: 2 s a MB, and as much memory everywhere."""
    found = []
    for factor in (1.0, 10.0):
        foretold = {
            "volume": {"windows": 40 * factor, "slices": 2 * factor},
            "stages": [
                {"name": name, "tokens": 30 * factor, "bytes": 80.0, "cpu_hours": 0.1}
                for name in ("prepare", "score target", "score one", "fuse", "train")
            ],
        }
        for step in ("plan", *scale_page.STAGES):
            found.append(
                {
                    "shape": {"factor": factor, "documents": None},
                    "step": step,
                    "text_bytes": factor * 1e6,
                    "cpu_s": 3 + 2 * factor,
                    "peak_bytes": 50e6,
                    "foretold": foretold,
                    "bytes": 100,
                    "files": 2 * factor,
                    "counts": {"windows": 40 * factor, "tokens": 60 * factor},
                }
            )
    return found


def test_the_page_says_what_a_further_megabyte_took() -> None:
    made = scale_page.points(figures(), "factor", scale_page.STAGES)
    assert scale_page.slopes(made, "fuse") == [2.0]
    page = scale_page.page(made, {})
    assert "- fuse: 2.00 s; memory went from 50 to 50 MB" in page
    assert "had said of 10.00 MB" in page
    assert "| fuse: tokens | 300 | 600 | 0.500 |" in page
    assert "| slices | 20 | 20 | 1.000 |" in page


def test_points_that_are_not_whole_are_left_out() -> None:
    found = [f for f in figures() if (f["shape"]["factor"], f["step"]) != (10, "fuse")]
    assert list(scale_page.points(found, "factor", scale_page.STAGES)) == [1.0]


def test_a_plot_is_xml_with_every_line_and_its_name() -> None:
    lines = {"a": [(1.0, 2.0), (10.0, 20.0)], "b < c": [(1.0, 5.0), (10.0, 500.0)]}
    panels = [
        Panel(title="s", below="x", lines=lines, is_log=is_log)
        for is_log in (True, False)
    ]
    drawn = plots.draw(panels)
    root = ElementTree.fromstring(drawn)
    texts = [found.text for found in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a", "b < c", "s", "x", "1", "10", "1,000"} <= set(texts)
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 2 * 4
    assert "prefers-color-scheme:dark" in drawn
    inside = [float(circle.get("cy") or -1) for circle in circles]
    assert all(0 < y < 300 for y in inside)


def test_a_plot_of_nothing_is_refused() -> None:
    panel = Panel(title="s", below="x", lines={"a": []}, is_log=True)
    with pytest.raises(ValueError, match="must have a point"):
        plots.draw([panel])
