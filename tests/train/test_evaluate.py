import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import transformers

from schemas.errors import SchemaError
from tests.train import held_out
from train import evaluate, summary
from train.evaluate import Domains, EvaluateConfig
from transforms import tokenizer

MADE = [held_out.window(n, ("code", "prose")[n % 2]) for n in range(5)]


@pytest.fixture
def config(models: dict[str, str], tmp_path: Path) -> EvaluateConfig:
    return EvaluateConfig(
        name="llama",
        model=models["llama"],
        windows=held_out.write(tmp_path / "windows", MADE),
        output=str(tmp_path / "evaluation"),
        device="cpu",
        threads=1,
    )


def test_nats_are_those_of_the_model_itself(config: EvaluateConfig) -> None:
    found = evaluate.evaluate_model(config)
    model = transformers.AutoModelForCausalLM.from_pretrained(config.model)
    tokens = tokenizer.load(config.model)
    for domain in ("code", "prose"):
        nats, size = 0.0, 0
        for one in MADE:
            if one.domain != domain:
                continue
            ids = torch.tensor(tokens.encode_window(one.text, False).token_ids)[None]
            with torch.no_grad():
                logprobs = model(input_ids=ids.long()).logits.log_softmax(-1)
            gold = logprobs[0, :-1].gather(1, ids[0, 1:, None].long())
            nats -= float(gold.sum())
            size += len(one.text.encode())
        assert found[domain]["nats"] == pytest.approx(nats, rel=1e-5)
        assert found[domain]["bytes"] == size
    assert [found[d]["windows"] for d in ("code", "prose")] == [3, 2]


def test_a_result_is_kept_and_one_of_other_settings_refused(
    config: EvaluateConfig, models: dict[str, str]
) -> None:
    first = evaluate.evaluate_model(config)
    path = Path(config.output, "llama.json")
    at = path.stat().st_mtime_ns
    assert evaluate.evaluate_model(config) == first
    assert path.stat().st_mtime_ns == at
    changed = dataclasses.replace(config, model=models["neox"])
    with pytest.raises(SchemaError, match="was measured with model = "):
        evaluate.evaluate_model(changed)
    changed = dataclasses.replace(changed, overwrite=True)
    assert evaluate.evaluate_model(changed) != first


def test_windows_without_a_label_have_the_default_domain(
    config: EvaluateConfig, tmp_path: Path
) -> None:
    folder = held_out.write(
        tmp_path / "plain", [held_out.window(n, None) for n in range(3)]
    )
    found = evaluate.evaluate_model(dataclasses.replace(config, windows=folder))
    assert list(found) == ["default"]


def test_no_domain_may_be_called_as_their_sum(
    config: EvaluateConfig, tmp_path: Path
) -> None:
    folder = held_out.write(tmp_path / "all", [held_out.window(0, "all")])
    with pytest.raises(SchemaError, match="no domain may be called 'all'"):
        evaluate.evaluate_model(dataclasses.replace(config, windows=folder))


def domains(failed: int = 0, size: int = 100) -> Domains:
    return {
        "a": {"nats": 50.0, "bytes": size, "windows": 3, "failed": 0},
        "b": {"nats": 300.0, "bytes": 300, "windows": 3, "failed": failed},
    }


def test_the_sum_is_weighted_by_bytes() -> None:
    bits = evaluate.bits_per_byte(domains())
    assert bits["a"] == pytest.approx(0.5 / math.log(2))
    assert bits["b"] == pytest.approx(1 / math.log(2))
    assert bits["all"] == pytest.approx(350 / 400 / math.log(2))


def test_models_are_compared_on_the_same_text_or_not_at_all() -> None:
    with pytest.raises(SchemaError, match=r"some failed: \{'b': 2\}"):
        summary.summarize({"one": domains(), "other": domains(failed=2)})
    with pytest.raises(SchemaError, match="same bytes"):
        summary.summarize({"one": domains(), "other": domains(size=90)})


def test_the_table_has_a_line_a_model_and_a_column_a_domain() -> None:
    found = summary.summarize({"untouched": domains(), "fused": domains()})
    assert json.loads(json.dumps(found)) == found
    lines = summary.table(found).splitlines()
    assert lines[0].split() == ["bits", "per", "byte", "a", "b", "all"]
    assert lines[1].split() == ["untouched", "0.7213", "1.4427", "1.2624"]
    assert lines[3].split() == ["bytes", "100", "300", "400"]
    assert len({len(line) for line in lines}) == 1


def test_a_name_that_is_no_file_name_is_refused(config: EvaluateConfig) -> None:
    with pytest.raises(ValueError, match="name must be"):
        dataclasses.replace(config, name="../fused")
