"""Sparse rows and the chunked loss against the authors' dense teachers, in the small.

FuseLLM's collator scatters every source's row over the whole vocabulary, in bfloat16,
and moves that to the device; its loss picks a source and takes the product with a whole
log-softmax. That is re-stated here, plainly, by `train.reference`. Ours fuses offline:
what is collated and moved is one row of k entries and a tail.

One row of 2,048 tokens, a vocabulary of 32,000, k = 10; three teachers there.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.bench import bench_train
from tests.bench import rows as results
from train import loss, reference, rows
from train.data import Collator, Example
from train.loss import Objective
from transforms import allocator
from transforms.functional.codec import Distributions

TOKENS, VOCABULARY, K, TEACHERS, WIDTH = 2048, 32_000, 10, 3, 512
CLM_WEIGHT = 0.9
ROUNDS = 5


def example() -> Example:
    """Makes a packed row with k entries at every position."""
    rng = np.random.default_rng(0)
    start = rng.integers(VOCABULARY, size=(TOKENS, 1))
    mass = rng.random((TOKENS, K + 1)).astype(np.float32)
    mass /= mass.sum(-1, keepdims=True)
    mask = np.ones(TOKENS, bool)
    mask[-1] = False
    return Example(
        input_ids=rng.integers(VOCABULARY, size=TOKENS).astype(np.int32),
        segment_lengths=np.array([TOKENS], np.int32),
        loss_mask=mask,
        rows=Distributions(
            counts=np.full(TOKENS, K, np.int32),
            ids=((start + 37 * np.arange(K)) % VOCABULARY).astype(np.int32),
            probs=-np.sort(-mass[:, :K]),
            tail=mass[:, K].copy(),
        ),
        weights=np.ones((1, 1), np.float32),
    )


def collate_sparse(row: Example) -> dict[str, Tensor]:
    """Collates a fused row, as `fusebeam train` does."""
    return Collator(keep_packed=True, vocabulary=VOCABULARY)([row])


def collate_dense(row: Example) -> dict[str, Tensor]:
    """Collates the rows of three teachers, each over the whole vocabulary."""
    ids, logits = row.rows.ids.tolist(), np.log(row.rows.probs).tolist()
    teachers = [
        reference.teacher_rows(ids, logits, vocabulary=VOCABULARY)
        for _ in range(TEACHERS)
    ]
    return {
        "input_ids": torch.from_numpy(row.input_ids).long(),
        "teachers": torch.stack(teachers),  # (3, t, v)
        "rewards": torch.tensor([0.3, 0.5, 0.2]).expand(TOKENS, -1).T,
    }


def head() -> tuple[Tensor, Tensor]:
    """Makes hidden states and an output head."""
    make = torch.Generator().manual_seed(0)
    states = torch.randn(TOKENS, WIDTH, generator=make)
    weight = torch.randn(VOCABULARY, WIDTH, generator=make) * WIDTH**-0.5
    return states.requires_grad_(), weight.requires_grad_()


def sparse_step(batch: dict[str, Tensor], states: Tensor, weight: Tensor) -> None:
    """Takes head, loss and gradients in chunks."""
    names = ("input_ids", "loss_mask", "top_ids", "probs", "tail")
    chosen = rows.select_rows(**{name: batch[name] for name in names})
    count = torch.tensor(float(len(chosen.places)))
    found = loss.head_loss(
        states[chosen.places],
        weight,
        None,
        chosen,
        Objective(clm_weight=CLM_WEIGHT, tail="renormalise"),
        clm_count=count,
        fusion_count=count,
    )
    torch.autograd.backward(found.loss)


def dense_step(batch: dict[str, Tensor], states: Tensor, weight: Tensor) -> None:
    """Takes them over whole logits, against the teacher of the greatest reward."""
    best = batch["rewards"].argmax(0)  # (t,)
    teacher = batch["teachers"].gather(
        0, best[None, :, None].expand(1, -1, VOCABULARY)
    )[0]
    found = reference.objective(
        states @ weight.T,
        batch["input_ids"],
        teacher,
        torch.ones(TOKENS, dtype=torch.bool),
        clm_weight=CLM_WEIGHT,
        fusion_loss="ce",
    )
    torch.autograd.backward(found)


Step = Callable[[dict[str, Tensor], Tensor, Tensor], None]
KINDS: dict[str, tuple[Callable[[Example], dict[str, Tensor]], Step]] = {
    "sparse": (collate_sparse, sparse_step),
    "dense": (collate_dense, dense_step),
}


def measure(kind: str) -> dict[str, float]:
    """Measures one kind: CPU seconds of both parts, bytes moved, host memory."""
    torch.set_num_threads(1)
    collate, step = KINDS[kind]
    row, (states, weight) = example(), head()
    before = bench_train.resident_bytes("VmRSS")
    taken = []
    for _ in range(ROUNDS):
        then = time.process_time()
        batch = collate(row)
        between = time.process_time()
        states.grad = weight.grad = None
        step(batch, states, weight)
        taken.append((between - then, time.process_time() - between))
    collated, stepped = np.median(taken, 0)
    return {
        "collate_s": float(collated),
        "step_s": float(stepped),
        "moved_bytes": sum(t.nbytes for t in batch.values()),
        "host_bytes": bench_train.resident_bytes("VmHWM") - before,
    }


def run() -> list[dict[str, Any]]:
    """Measures both kinds, each in a process of its own."""
    found = {}
    for kind in KINDS:
        command = [sys.executable, "-m", "tests.bench.bench_dense", kind]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        found[kind] = json.loads(ended.stdout)
    named = {
        "collate_s": ("collating a row", "s"),
        "step_s": ("head, loss and gradients of a row", "s"),
        "moved_bytes": ("moved to the device a row", "bytes"),
        "host_bytes": ("host memory of a row, loss and gradients in it", "bytes"),
    }
    return [
        results.ratio_at_most(
            1.0,
            f"sparse fusion, {said}",
            found["sparse"][name],
            unit,
            against=f"the authors' dense way, {found['dense'][name]:,.4g} {unit}",
            ratio=found["sparse"][name] / found["dense"][name],
        )
        for name, (said, unit) in named.items()
    ]


if __name__ == "__main__":
    allocator.keep_large_blocks()
    print(json.dumps(measure(sys.argv[1])))
