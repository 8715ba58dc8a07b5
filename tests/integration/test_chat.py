"""A tiny model is trained on dialogues through all stages, answers, and stops."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from pipelines import cli
from schemas import files
from tests import small_run, tiny
from tests.transforms import chat_templates as made
from transforms import chat
from transforms.functional.turns import Rendering

SAID = {
    "sky": "blue",
    "grass": "green like moss",
    "snow": "white, mostly",
    "coal": "black",
}
MARKS = ["<|im_start|>", "<|im_end|>"]
COPIES = 10
SECOND = "And coal?"


def model(folder: Path, seed: int) -> str:
    """Makes a small Llama whose tokenizer carries ChatML."""
    torch.manual_seed(seed)
    fast = tiny.byte_level()
    fast.add_special_tokens(MARKS)
    config = LlamaConfig(
        vocab_size=fast.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=fast.token_to_id(MARKS[1]),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<s>",
        eos_token=MARKS[1],
        chat_template=made.CHATML,
    ).save_pretrained(folder)
    return str(folder)


def question(thing: str) -> str:
    return f"Which color has {thing}?"


def write_corpus(path: Path) -> str:
    """Writes each dialogue many times; one of two rounds among them."""
    lines = []
    for copy in range(COPIES):
        for thing, color in SAID.items():
            said = [("human", question(thing)), ("gpt", color)]
            if thing != "coal":
                said += [("human", SECOND), ("gpt", SAID["coal"])]
            turns = [{"from": who, "value": text} for who, text in said]
            split = "heldout" if copy == 0 else "fusion"
            lines.append(
                {"conversations": turns, "name": f"{thing}{copy}", "part": split}
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def run(folder: Path) -> str:
    """Runs a recipe on dialogues; returns the folder of the trained target."""
    folder.mkdir(exist_ok=True)
    text = small_run.recipe(
        [],
        model(folder / "target", 0),
        {"other": model(folder / "other", 1)},
        slice_bytes=1 << 16,
        corpus={
            "inputs": [write_corpus(folder / "c.jsonl")],
            "id_field": "name",
            "split_field": "part",
            "chat_shape": "conversations",
        },
        prepare={
            "splits": "fusion,heldout",
            "protected": [],
            "max_tokens": 128,
        },
        fuse={"top_k": 6, "seq_length": 256},
        arms={"fused": {"clm_weight": 0.95, "learning_rate": 5e-3}},
        train={"max_steps": 160, "batch_size": 2, "threads": 1, "save_steps": 1000},
        evaluate={"threads": 1},
    )
    (folder / "recipe.toml").write_text(text)
    out = folder / "run"
    assert cli.main(["run", str(folder / "recipe.toml"), f"--output={out}"]) == 0
    return str(out)


@torch.inference_mode()
def answer(trained: str, *said: str) -> str:
    """Lets a trained model go on from a question, the likeliest token each time."""
    own: Any = AutoTokenizer.from_pretrained(trained)
    net: Any = AutoModelForCausalLM.from_pretrained(trained)
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]
    prompt = own.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    ids = torch.tensor([[own.bos_token_id, *prompt]])
    made_ids = net.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=24,
        do_sample=False,
        pad_token_id=0,
    )
    return str(own.decode(made_ids[0, ids.shape[1] :]))


def test_a_model_trained_on_dialogues_answers_and_stops(tmp_path: Path) -> None:
    out = run(tmp_path)
    trained = f"{out}/models/fused"
    for thing, color in SAID.items():
        assert answer(trained, question(thing)) == f"{color}<|im_end|>"
    later = answer(trained, question("sky"), SAID["sky"], SECOND)
    assert later == f"{SAID['coal']}<|im_end|>"
    bits = files.read_json(f"{out}/evaluation.json")["models"]
    assert bits["fused"]["all"] < 0.2 < bits["untouched"]["all"]


def test_without_the_end_of_turn_among_what_is_learned_it_does_not_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locate = chat.turns.locate

    def without_ends(*given: Any, **more: Any) -> Rendering | None:
        found = locate(*given, **more)
        assert found is not None
        edges = [
            edge - len("<|im_end|>") * (at % 2)
            for at, edge in enumerate(found.loss_spans)
        ]
        return Rendering(
            text=found.text,
            loss_spans=tuple(edges),
            control_spans=found.control_spans,
            borders=found.borders,
        )

    monkeypatch.setattr(chat.turns, "locate", without_ends)
    trained = f"{run(tmp_path)}/models/fused"
    told = answer(trained, question("sky"))
    assert told.startswith("blue")
    assert "<|im_end|>" not in told
