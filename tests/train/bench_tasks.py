"""Two benchmarks in a folder, as a user writes them, and what they ought to come to."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

WORDS = ("red", "in the statement and the", "zzz", "a statement")
CHOICES = """
task: colors
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: label
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
ANSWERS = """
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}} ="
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until:
    - "e"
  do_sample: false
  max_gen_toks: 6
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


_CHOSEN = {"choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "B"}
PUBLIC: dict[str, dict[str, Any]] = {
    "bbh": {"input": "Is not False True?", "target": "True"},
    "arc": {"question": "Which is a color?", **_CHOSEN},
    "boolq": {"passage": "Snow is white.", "question": "is snow blue", "label": 0},
    "hellaswag": {
        "ctx_a": "He takes a brush.",
        "ctx_b": "he",
        "activity_label": "Painting",
        "endings": ["paints.", "sings.", "eats.", "sleeps."],
        "label": "0",
    },
    "openbookqa": {"question_stem": "The sky is", **_CHOSEN},
    "gsm8k": {"question": "What is 2 and 2?", "answer": "2 + 2 = 4\n#### 4"},
}
"""An item as each preset's data set has them."""


def questions(count: int) -> list[dict[str, Any]]:
    """Makes questions whose text can be looked for in what a command prints."""
    return [
        {
            "question": f"Which color has marker number {n}?",
            "choices": [WORDS[(n + i) % len(WORDS)] for i in range(3)],
            "label": n % 3,
        }
        for n in range(count)
    ]


def write_choices(folder: Path, items: list[dict[str, Any]]) -> Path:
    """Writes a task of choices."""
    return _write(folder, "colors", CHOICES, items)


def write_answers(folder: Path, items: list[dict[str, Any]]) -> Path:
    """Writes a task of answers that are generated."""
    return _write(folder, "sums", ANSWERS, items)


def _write(folder: Path, name: str, told: str, items: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / f"{name}.yaml").write_text(told.format(data=data))
    return folder


class Model:
    """A model by its forward pass alone, a token at a time, one text a batch."""

    def __init__(self, folder: str) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        self._tokens = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        self._end = self._tokens.token_to_id("</s>")

    def _logprobs(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = self._model(input_ids=torch.tensor([ids])).logits
        return logits[0].double().log_softmax(-1)

    def cost(self, prompt: str, answer: str) -> float:
        """Returns the logprob of an answer behind a prompt, nats."""
        begin = len(self._tokens.encode(prompt).ids)
        ids = self._tokens.encode(prompt + answer).ids
        rows = self._logprobs(ids)
        return sum(float(rows[t - 1, ids[t]]) for t in range(begin, len(ids)))

    def answer(self, prompt: str, stop: str, longest: int) -> str:
        """Goes on from a prompt, the likeliest token each time, up to a stop."""
        ids = list(self._tokens.encode(prompt).ids)
        made: list[int] = []
        while len(made) < longest and made[-1:] != [self._end]:
            made.append(int(self._logprobs([*ids, *made])[-1].argmax()))
        return str(self._tokens.decode(made)).partition(stop)[0]
