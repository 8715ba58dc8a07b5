"""Training step: the fused loss against plain CLM, the model's own loss.

Both train the same model on the same packed rows in one process and one thread, in
turns, and CPU time is counted, so that what else the machine does falls out. Memory is
the peak of the resident set over steps in a fresh process, less what the process held
before its first step. What the loss alone holds is counted for a head of a GPU's size,
whose tensors are fake: see `held`.
"""

import functools
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from tests.bench import held, rows
from train import model as models
from train.model import Traits
from train.objective import Objective
from transforms import allocator

ROWS, TOKENS, SEGMENTS = 4, 512, 4
AIM = 1.10
ROUNDS = 8
SHAPES = {4096: 4, 32_768: 4}
"""Layers of the model by the size of its vocabulary."""
LARGE_HEAD = (8192, 4096, 131_072)
"""Positions, width, vocabulary."""
LARGE_HEAD_BYTES = 2e9


def build(vocabulary: int) -> Any:
    """Makes a small Llama: 2.6M parameters with a vocabulary of 4,096."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=SHAPES[vocabulary],
        num_attention_heads=6,
        max_position_embeddings=TOKENS,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).train()


def batch_of(vocabulary: int, k: int) -> dict[str, torch.Tensor]:
    """Makes a step's packed rows, every position with k kept entries."""
    make = torch.Generator().manual_seed(0)
    shape = (ROWS, TOKENS)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[:, TOKENS // SEGMENTS - 1 :: TOKENS // SEGMENTS] = False
    probs = torch.rand(*shape, k + 1, generator=make)
    probs /= probs.sum(-1, keepdim=True)
    # Distinct ids: a random start and a stride.
    start = torch.randint(vocabulary, (*shape, 1), generator=make)
    return {
        "input_ids": torch.randint(vocabulary, shape, generator=make),
        "position_ids": torch.arange(TOKENS // SEGMENTS).repeat(SEGMENTS).expand(shape),
        "loss_mask": mask,
        "top_ids": (start + 37 * torch.arange(k)) % vocabulary,
        "probs": probs[..., :k].contiguous(),
        "tail": probs[..., k].contiguous(),
    }


def steps(kind: str, vocabulary: int, k: int) -> Callable[[], None]:
    """Returns a training step of one kind on a model of its own."""
    model, batch = build(vocabulary), batch_of(vocabulary, k)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    counted = batch["loss_mask"].sum().float()
    labels = batch["input_ids"].masked_fill(~batch["loss_mask"].roll(1, 1), -100)
    if kind == "fused":
        traits = Traits(plain_head=True, keeps_segments=True)
        models.give_objective(model, traits, Objective(clm_weight=0.9))
        counts = {"clm_count": counted, "fusion_count": counted}
        call = functools.partial(model, **batch, clm_weight=0.9, **counts)
    else:
        places = {n: batch[n] for n in ("input_ids", "position_ids")}
        call = functools.partial(model, **places, labels=labels, use_cache=False)

    def step() -> None:
        call()["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(kinds: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Times kinds of steps in turns; the median over the rounds of each."""
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(ROUNDS + 2):
        for name, step in kinds.items():
            then = time.process_time()
            step()
            if number >= 2:
                taken[name].append(time.process_time() - then)
    return {name: statistics.median(times) for name, times in taken.items()}


def peak_bytes(kind: str, vocabulary: int, k: int) -> int:
    """Measures, in a process of its own, what steps add to the resident set."""
    command = [sys.executable, "-m", "tests.bench.bench_train"]
    words = [*command, kind, str(vocabulary), str(k)]
    run = subprocess.run(words, check=True, capture_output=True, text=True)
    return int(json.loads(run.stdout))


def resident_bytes(field: str) -> int:
    """Returns the resident set of this process: VmRSS now, VmHWM its peak.

    Not `getrusage`, whose peak a process inherits from the one that started it.
    """
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise ValueError(f"/proc/self/status must have a field {field}, it has not")


def run() -> list[dict[str, Any]]:
    """Measures time and memory of the step at two vocabularies and two k."""
    allocator.keep_large_blocks()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    for vocabulary in SHAPES:
        plain_bytes = peak_bytes("plain", vocabulary, 10)
        for k in (10, 32):
            kinds = {kind: steps(kind, vocabulary, k) for kind in ("plain", "fused")}
            best = seconds(kinds)
            name = f"training step, vocabulary {vocabulary:,}, k = {k}"
            found.append(
                rows.ratio_at_most(
                    AIM,
                    f"{name}: time",
                    best["fused"],
                    "s",
                    against=f"plain CLM, {best['plain']:.3f} s",
                    ratio=best["fused"] / best["plain"],
                )
            )
            used = peak_bytes("fused", vocabulary, k)
            found.append(
                rows.ratio_at_most(
                    AIM,
                    f"{name}: memory",
                    used,
                    "bytes",
                    against=f"plain CLM, {plain_bytes:,} bytes",
                    ratio=used / plain_bytes,
                )
            )
    torch.set_num_threads(threads)
    return [*found, row_of_large_head()]


def row_of_large_head() -> dict[str, Any]:
    """Counts what the loss of a large head in bfloat16 holds of its own."""
    size = " x ".join(f"{n:,}" for n in LARGE_HEAD)
    return rows.at_most(
        LARGE_HEAD_BYTES,
        f"loss, {size}, bfloat16: memory above inputs and gradients",
        held.loss_extra_bytes(*LARGE_HEAD),
        "bytes",
    )


def main(kind: str, vocabulary: int, k: int) -> None:
    """Prints what three steps add to the peak of the resident set."""
    torch.set_num_threads(1)
    step = steps(kind, vocabulary, k)
    before = resident_bytes("VmRSS")
    for _ in range(3):
        step()
    print(json.dumps(resident_bytes("VmHWM") - before))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        for line in run():
            shown = line["value"] if line["ratio"] is None else line["ratio"]
            print(
                f"{line['name']:<72} {shown:.4g} {line['against']} {line['aim']:.4g}:"
                f" {'met' if line['met'] else 'missed'}"
            )
