"""A corpus of dialogues down the road: prepare, score, fuse, evaluate."""

import dataclasses
import json
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from examples import problems
from pipelines import evaluations, fuse, inspect, prepare, sampling, score, verify
from pipelines.prepare import PrepareConfig
from schemas import files, fused, manifest, parquet, plan, scores, windows
from schemas.checked import UnusableError
from schemas.documents import Document
from schemas.errors import FusionError, SchemaError
from schemas.windows import Window
from tests.pipelines.conftest import fuse_config, score_config
from tests.transforms import chat_templates as made
from train import evaluate
from train.evaluate import EvaluateConfig
from transforms import prepare as cutting
from transforms import templates, tokenizer
from transforms.functional import counted, weigh


def records(count: int = 12) -> list[dict[str, Any]]:
    """Makes dialogues of several rounds, some with a system turn."""
    asked = problems.units(random.Random(5))
    found = []
    for number in range(count):
        messages = [{"role": "system", "content": "Convert."}] if number % 3 else []
        for question, answer in [pair for _ in range(3) for pair in next(asked)]:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        kind = ("even", "odd")[number % 2]
        found.append({"name": f"d{number}", "kind": kind, "messages": messages})
    found[0]["messages"][0]["content"] = "Read this. " * 30 + "What is it?"
    return found


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a corpus of dialogues and a template."""
    folder = tmp_path_factory.mktemp("chat")
    write(folder / "c.jsonl", records())
    (folder / "zephyr.jinja").write_text(made.ZEPHYR)
    return folder


def config(place: Path, models: dict[str, str], out: str, **more: Any) -> PrepareConfig:
    given = {
        "inputs": (f"{place}/c.jsonl",),
        "output": out,
        "models": tuple(models.values()),
        "max_tokens": 120,
        "id_field": "name",
        "domain_field": "kind",
        "chat_shape": "auto",
        "chat_template": f"{place}/zephyr.jinja",
        "splits": "fusion=1",
        "group_windows": 8,
        "slice_bytes": 4000,
        **more,
    }
    return PrepareConfig(**given)


def read(folder: str) -> list[Window]:
    return list(windows.read_all(folder, plan.read(folder)))


def texts(found: Sequence[Window]) -> dict[str, str]:
    whole: dict[str, str] = {}
    for window in found:
        assert window.byte_start == len(whole.get(window.doc_id, "").encode())
        whole[window.doc_id] = whole.get(window.doc_id, "") + window.text
    return whole


@pytest.fixture(scope="module")
def run(place: Path, models: dict[str, str]) -> str:
    """Returns a run's folder: windows and the scores of both models."""
    out = str(place / "run")
    prepare.prepare_corpus(config(place, models, f"{out}/windows"))
    for name in models:
        score.score_windows(score_config(out, models, name))
    return out


def test_windows_end_to_end_are_what_the_template_renders(run: str) -> None:
    found = texts(read(f"{run}/windows/fusion"))
    template = made.template(made.ZEPHYR, "llama2")
    for record in records():
        document = Document(
            doc_id=record["name"], text="-", turns=_turns(record["messages"])
        )
        assert document.turns is not None
        assert found[record["name"]] == template.render(document.turns)


def _turns(messages: Sequence[dict[str, str]]) -> tuple[made.Turn, ...]:
    return tuple(made.Turn(**message) for message in messages)


def test_loss_spans_hold_each_answer_with_its_end_of_turn_and_nothing_else(
    run: str,
) -> None:
    learned: dict[str, str] = {}
    for window in read(f"{run}/windows/fusion"):
        raw = window.text.encode()
        assert window.loss_spans is not None
        edges = iter(window.loss_spans)
        for start, stop in zip(edges, edges, strict=True):
            told = raw[start:stop].decode()
            learned[window.doc_id] = learned.get(window.doc_id, "") + told
    for record in records():
        answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
        assert learned[record["name"]] == "".join(a + "</s>" for a in answers)


def test_every_window_fits_both_models_and_some_hold_no_answer(
    run: str, models: dict[str, str]
) -> None:
    found = read(f"{run}/windows/fusion")
    for name in models.values():
        own = tokenizer.load(name)
        for window in found:
            made_of = own.encode_window(
                window.text, window.eos_follows, window.control_spans
            )
            assert len(made_of.token_ids) <= 120
    assert any(window.loss_spans == () for window in found)
    assert len(found) > len(records())


def test_a_run_on_dialogues_is_proved_from_its_files(run: str, place: Path) -> None:
    assert len(verify.verify([run])) == 3
    (line,), left = verify.between([f"{run}/windows"])
    assert "12 documents read = 12 kept, byte for byte" in line
    assert not left


def test_a_dialogue_that_was_kept_and_is_not_taken_now_is_told_with_the_cure(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise UnusableError("template_refused", "it refuses")

    monkeypatch.setattr(cutting, "rendered", refuse)
    with pytest.raises(
        SchemaError, match=r"was kept, but .*template_refused.* as they"
    ):
        verify.between([f"{run}/windows"])


def test_the_manifest_holds_the_template_and_another_is_another_corpus(
    run: str, place: Path, models: dict[str, str]
) -> None:
    made_of = manifest.read(f"{run}/windows/fusion", windows.STAGE)
    assert made_of.settings["chat_template"] == made.ZEPHYR
    assert made_of.inputs["template"]
    (place / "other.jinja").write_text(made.ZEPHYR + "\n{#- the same otherwise #}")
    other = config(
        place, models, f"{run}/windows", chat_template=f"{place}/other.jinja"
    )
    with pytest.raises(SchemaError, match="chat_template"):
        prepare.prepare_corpus(other)


def test_a_template_s_model_that_windows_need_not_fit_is_told_by_its_tokenizer(
    place: Path, models: dict[str, str], tmp_path: Path
) -> None:
    owner = tmp_path / "owner"
    shutil.copytree(models["llama"], owner)
    among = config(place, models, "", chat_model=models["llama"])
    apart = config(place, {"neox": models["neox"]}, "", chat_model=str(owner))
    digests = [prepare.inputs_of(one, [])["template"] for one in (among, apart)]
    file = str(owner / "tokenizer.json")
    library = Tokenizer.from_file(file)
    library.add_special_tokens(["[/INST]"])
    library.save(file)
    digests.append(prepare.inputs_of(apart, [])["template"])
    assert digests[0] == templates.read(models["llama"], made.ZEPHYR).fingerprint
    assert len(set(digests)) == 3


def test_the_template_itself_from_the_manifest_makes_the_same_windows(
    run: str, place: Path, models: dict[str, str], out: str
) -> None:
    prepare.prepare_corpus(config(place, models, out, chat_template=made.ZEPHYR))
    name = "fusion/part-000000.parquet"
    assert files.checksum(f"{out}/{name}") == files.checksum(f"{run}/windows/{name}")


def test_a_dialogue_s_split_is_the_same_under_every_template(
    place: Path, models: dict[str, str], out: str
) -> None:
    splits = []
    for number, template in enumerate((made.ZEPHYR, made.VICUNA)):
        folder = f"{out}/{number}"
        given = {"splits": "fusion=.5,heldout=.5", "chat_template": template}
        prepare.prepare_corpus(config(place, models, folder, **given))
        splits.append({w.doc_id for w in read(f"{folder}/heldout")})
    assert splits[0] == splits[1]
    assert 0 < len(splits[0]) < len(records())


def test_dialogues_of_a_parquet_file_are_cut_as_those_of_json_lines(
    run: str, place: Path, models: dict[str, str], tmp_path: Path, out: str
) -> None:
    file = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist(records()), file)
    prepare.prepare_corpus(config(place, models, out, inputs=(str(file),)))
    assert texts(read(f"{out}/fusion")) == texts(read(f"{run}/windows/fusion"))


def test_what_is_no_dialogue_is_counted_listed_and_refused_unless_allowed(
    place: Path, models: dict[str, str], tmp_path: Path, out: str
) -> None:
    bad = [
        {"name": "a", "messages": [{"role": "ghost", "content": "SECRET"}]},
        {"name": "b", "messages": [{"role": "user", "content": "SECRET"}]},
        {"name": "c", "text": "SECRET"},
    ]
    file = write(tmp_path / "c.jsonl", [*records(3), *bad])
    given = config(place, models, out, inputs=(file,))
    with pytest.raises(FusionError, match="1 missing_dialogue, 1 no_answer, 1 unknown"):
        prepare.prepare_corpus(given)
    allowed = dataclasses.replace(given, max_reject_fraction=0.5)
    counts = prepare.prepare_corpus(allowed)["fusion"].counts
    assert counts["left_out_unknown_role"] == counts["left_out_no_answer"] == 1
    listed = files.read_bytes(f"{out}/rejects/part-000000.jsonl").decode()
    told = [json.loads(line) for line in listed.splitlines()]
    assert [one["doc_id"] for one in told] == ["a", "b", "c"]
    assert "SECRET" not in listed


def test_a_template_s_refusal_is_a_reject_with_its_reason(
    place: Path, models: dict[str, str], tmp_path: Path, out: str
) -> None:
    odd = {"name": "x", "messages": [records(1)[0]["messages"][0]] * 2}
    odd["messages"].append({"role": "assistant", "content": "Yes."})
    file = write(tmp_path / "c.jsonl", [*records(3), odd])
    given = config(
        place,
        models,
        out,
        inputs=(file,),
        chat_template=made.LLAMA2,
        max_reject_fraction=0.5,
    )
    counts = prepare.prepare_corpus(given)["fusion"].counts
    assert counts["left_out_template_refused"] == 1
    (line,), _ = verify.between([out])
    assert "3 kept, byte for byte + left out: 1 template_refused" in line


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"chat_shape": None}, "chat_template must stand beside chat_shape"),
        ({"models": ()}, "chat_model or models must be given"),
        ({"chat_date": "today"}, "chat_date must be YYYY-MM-DD"),
        ({"prompt_field": "q"}, "must be given together, or neither, got 'q' and None"),
        ({"chat_shape": "pairs", "chat_field": "m"}, "chat_field must be left out"),
        (
            {"chat_shape": "messages", "prompt_field": "q", "answer_field": "a"},
            "prompt_field must be left out where chat_shape is messages",
        ),
        (
            {"chat_shape": "conversations", "input_field": "about"},
            "input_field must be left out where chat_shape is conversations",
        ),
        *(
            (
                {"chat_shape": None, "chat_template": None, name: "x"},
                f"{name} must stand beside chat_shape",
            )
            for name in ("input_field", "system_field")
        ),
    ],
)
def test_settings_out_of_place_are_refused(
    place: Path, models: dict[str, str], more: dict[str, Any], told: str
) -> None:
    given = config(place, models, "unused", max_bytes=99)
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(given, **more)


def test_a_target_without_a_template_is_refused_with_the_cure(
    place: Path, models: dict[str, str], out: str
) -> None:
    with pytest.raises(ValueError, match=r"name one of its own or a \.jinja file"):
        prepare.prepare_corpus(config(place, models, out, chat_template=None))


def test_bits_per_byte_are_of_the_answers_alone(
    run: str, models: dict[str, str]
) -> None:
    found = read(f"{run}/windows/fusion")
    for name in models:
        said = _scores(f"{run}/scores/{name}")
        for window, one in zip(found, said, strict=True):
            counts = counted.counted_tokens(one.byte_ends, window.loss_spans)[1:]
            assert one.n_bytes == counted.counted_bytes(0, window.loss_spans)
            stored = -one.gold_logprob[counts].sum(dtype=float)  # of 16 bits each
            assert one.nll_nats == pytest.approx(stored, rel=2**-17)
            assert math.isnan(one.bits_per_byte) == (window.loss_spans == ())


def _scores(folder: str) -> list[scores.Score]:
    names = [entry.name for entry in manifest.read(folder, scores.STAGE).files]
    return [s for name in names for g in scores.read(f"{folder}/{name}") for s in g]


def _costs(run: str, models: dict[str, str]) -> np.ndarray:
    """Returns nats and bytes of the answers of each window, by model."""
    said = [_scores(f"{run}/scores/{name}") for name in models]
    return np.array([[(s.nll_nats, s.n_bytes) for s in one] for one in said], float)


@pytest.mark.parametrize("granularity", ["window", "document", "position"])
def test_fusion_weighs_by_the_answers_alone_and_trains_on_them(
    granularity: str, run: str, models: dict[str, str], out: str
) -> None:
    more = {"fusion": "avgce", "granularity": granularity, "include_target": True}
    fuse.fuse_scores(fuse_config(run, out, **more))
    assert len(verify.verify([out])) == 1
    found = read(f"{run}/windows/fusion")
    by_id = {window.window_id: n for n, window in enumerate(found)}
    nats, sizes = np.moveaxis(_costs(run, models), -1, 0)
    (columns,) = {tuple(footer["sources"]) for footer in _footers(out)}
    order = [("target", "neox").index(name) for name in columns]
    seen = 0
    for row in _rows(out):
        starts = np.cumsum(row.segment_lengths) - row.segment_lengths
        for g, name in enumerate(row.window_ids):
            n, seen = by_id[name], seen + 1
            part = slice(starts[g], starts[g] + row.segment_lengths[g])
            spans = found[n].loss_spans
            assert row.n_bytes[g] == counted.counted_bytes(0, spans)
            assert row.loss_mask[part].any() == bool(spans)
            assert np.isfinite(row.weights[g]).all()
            if not spans:
                if granularity != "document":
                    assert not row.weights[g].any()
                continue
            if granularity == "position":
                continue
            together = [n]
            if granularity == "document":
                doc = found[n].doc_id
                together = [m for m, w in enumerate(found) if w.doc_id == doc]
            cost = nats[:, together].sum(1) / np.log(2) / sizes[:, together].sum(1)
            wanted = weigh.avg_ce_weights(cost)
            np.testing.assert_allclose(row.weights[g], wanted[order], atol=1e-6)
    assert seen == len(found)


@pytest.mark.parametrize("granularity", ["window", "packed_row"])
@pytest.mark.parametrize("fusion", ["mince", "avgce"])
def test_under_reference_the_answers_alone_choose_and_nothing_where_there_are_none(
    fusion: str, granularity: str, run: str, models: dict[str, str], out: str
) -> None:
    more = {"fusion": fusion, "granularity": granularity, "reference": True}
    fuse.fuse_scores(fuse_config(run, out, **more))
    assert len(verify.verify([out])) == 1
    found = read(f"{run}/windows/fusion")
    by_id = {window.window_id: n for n, window in enumerate(found)}
    said = [_scores(f"{run}/scores/{name}") for name in models]
    weights_of = {
        "mince": weigh.reference_min_ce_weights,
        "avgce": weigh.reference_avg_ce_weights,
    }[fusion]
    silent = 0
    for row in _rows(out):
        places = [by_id[name] for name in row.window_ids]
        metrics = np.array([_metrics(found[n], [s[n] for s in said]) for n in places])
        lengths = np.array(row.segment_lengths)
        heard = [n for n, place in enumerate(places) if found[place].loss_spans]
        if granularity == "packed_row" and heard:
            metrics[:] = lengths[heard] @ metrics[heard] / lengths[heard].sum()
        for metric, weights in zip(metrics, row.weights, strict=True):
            wanted = np.nan_to_num(weights_of(metric))
            np.testing.assert_allclose(weights, wanted, rtol=1e-6)
            # In a packed row the heard choose for the silent beside them.
            silent += not weights.any() and (granularity == "window" or bool(heard))
    assert (silent > 0) == (granularity == "window")


def _metrics(window: Window, said: Sequence[scores.Score]) -> list[float]:
    """Returns the authors' cost of a window's answers, of each model."""
    counts = [counted.counted_tokens(s.byte_ends, window.loss_spans)[1:] for s in said]
    return [
        weigh.reference_metric(one.gold_logprob[own])
        for one, own in zip(said, counts, strict=True)
    ]


def _footers(folder: str) -> list[dict[str, Any]]:
    found = manifest.read(folder, fused.STAGE)
    return [parquet.footer(f"{folder}/{entry.name}") for entry in found.files]


def _rows(folder: str) -> list[fused.FusedRow]:
    found = manifest.read(folder, fused.STAGE)
    groups = (g for e in found.files for g in fused.read(f"{folder}/{e.name}"))
    return [row for group in groups for row in group]


def test_an_evaluation_counts_the_bytes_of_the_answers(
    run: str, models: dict[str, str], out: str
) -> None:
    folder = f"{run}/windows/fusion"
    given = EvaluateConfig(
        name="llama", model=models["llama"], windows=folder, output=out, threads=1
    )
    domains = evaluate.evaluate_model(given)
    nats, sizes = np.moveaxis(_costs(run, models), -1, 0)
    assert sum(d["bytes"] for d in domains.values()) == sizes[0].sum()
    assert sum(d["nats"] for d in domains.values()) == pytest.approx(nats[0].sum())
    by_domain = {name: d["bytes"] for name, d in domains.items()}
    stated = evaluations.sizes_of(folder)
    assert by_domain == {name: size["bytes"] for name, size in stated.items()}


def test_inspect_shows_what_counts(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([f"{run}/windows/fusion", "--count=2"]) == 0
    shown = capsys.readouterr().out
    first = read(f"{run}/windows/fusion")[0]
    assert f"{counted.counted_bytes(0, first.loss_spans)} bytes count" in shown


def test_an_estimate_measures_what_the_template_makes_of_a_sample(
    run: str, place: Path, models: dict[str, str]
) -> None:
    given = config(place, models, "")
    sample = sampling.take(given, 1 << 20, 0)
    found = read(f"{run}/windows/fusion")
    size = sum(len(window.text.encode()) for window in found)
    assert sample.text_bytes == size
    owners = {name: tokenizer.load(model) for name, model in models.items()}
    measured = sampling.measure(given, sample.documents, owners)
    assert (measured.windows, measured.text_bytes) == (len(found), size)
    for name in models:
        said = _scores(f"{run}/scores/{name}")
        assert measured.tokens[name] == sum(len(s.token_ids) - 1 for s in said)


@pytest.mark.parametrize("giant", ["many turns", "a long question"])
def test_of_a_giant_dialogue_an_estimate_renders_the_beginning_alone(
    giant: str,
    place: Path,
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "_LONGEST_CHARS", 400)
    told = [
        {"role": "user", "content": "word " * 12},
        {"role": "assistant", "content": "Yes, it is."},
    ]
    if giant == "many turns":
        told *= 60
    else:
        told[0]["content"] *= 80
    file = write(tmp_path / "c.jsonl", [{"name": "a", "messages": told}])
    given = config(place, models, "", inputs=(file,))
    lengths = []
    render = templates.Template.render

    def seen(self: templates.Template, said: Any, **more: Any) -> str:
        lengths.append(sum(len(turn.content) for turn in said))
        return render(self, said, **more)

    monkeypatch.setattr(templates.Template, "render", seen)
    sample = sampling.take(given, 1 << 20, 0)
    assert not sample.rejects
    assert 1 <= sample.text_bytes / sum(len(turn["content"]) for turn in told) < 1.3
    owners = {name: tokenizer.load(model) for name, model in models.items()}
    assert sampling.measure(given, sample.documents, owners).text_bytes < 700
    assert max(lengths) < 600
