"""On a GPU: a step of fusion against plain CLM, and the loss alone against Liger's.

    python tests/bench/gpu_train.py > train.json

Models are made on the spot with random weights, in the shapes of Llama-2-7B,
Qwen2.5-7B and Llama-3.2-1B. Weights, gradients and AdamW's two states are bfloat16;
activations are checkpointed; a row is one document of 2,048 tokens, k = 10. Three kinds
of step take turns on the same model and optimizer:

    plain  the model's own loss (transformers), which holds all logits
    liger  Liger's fused linear cross-entropy, where that can be imported
    fused  CLM and fusion in one, as `fusebeam train` computes them
    kernels  the same by Triton's kernels (`--kernels`), where they can run

The kernel is the loss alone: 8,192 positions of width 4,096, a vocabulary of 131,072.
`computed_extra_bytes` is what it holds by the shapes alone (`held`), without kernels.

It ends within 8 minutes: what there was no time for is named in `not_done`, and so is
what there was no memory for.
"""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from tests.bench import gpu, gpu_models, held
from tests.bench.gpu_models import Shape
from train import loss, rows
from train import model as models
from train.loss import Objective
from transforms import compilers

K = 10
OBJECTIVE = Objective(clm_weight=0.9)
IGNORED = -100


SHAPES = {
    name: shape for name, shape in gpu_models.SHAPES.items() if "0.5B" not in name
}
TINY = {"tiny": gpu_models.TINY}
KERNEL = {"full": (8192, 4096, 131_072), "tiny": (128, 32, 512)}
"""Positions, width, vocabulary."""

Kinds = dict[str, Callable[[], Any]]


def build(shape: Shape) -> Any:
    """Makes a model of a shape that is trained, its activations checkpointed."""
    model = gpu_models.build(shape)
    # transformers renamed it.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()
    return model.train()


def traits_of(shape: Shape) -> models.Traits:
    """Probes a twin of one layer on the CPU, in float32, as the trainer does."""
    small = dataclasses.replace(shape, width=64 * shape.heads // 8, inner=64)
    small = dataclasses.replace(small, heads=8, kv_heads=8, vocabulary=512)
    config = gpu_models.config_of(small, layers=1)
    return models.probe(transformers.AutoModelForCausalLM.from_config(config))


def batch_of(shape: Shape) -> dict[str, Tensor]:
    """Makes a step's rows, every position with K kept entries."""
    on = gpu.device()
    make = torch.Generator(device=on).manual_seed(0)
    size = (shape.rows, shape.tokens)
    mask = torch.ones(size, dtype=torch.bool, device=on)
    mask[:, -1] = False
    probs = torch.rand(*size, K + 1, generator=make, device=on)
    probs /= probs.sum(-1, keepdim=True)
    draw = functools.partial(torch.randint, shape.vocabulary, generator=make, device=on)
    return {
        "input_ids": draw(size),
        "loss_mask": mask,
        # Distinct ids: a random start and a stride.
        "top_ids": (draw((*size, 1)) + 37 * torch.arange(K, device=on))
        % shape.vocabulary,
        "probs": probs[..., :K].contiguous(),
        "tail": probs[..., K].contiguous(),
    }


def steps_of(shape: Shape, model: Any) -> Kinds:
    """Returns the kinds of training step, on one model and one optimizer."""
    batch = batch_of(shape)
    on_gpu = gpu.device().type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=on_gpu)
    # transformers shifts labels by itself.
    labels = batch["input_ids"]
    counted = batch["loss_mask"].sum().float()
    own = functools.partial(type(model).forward, model)

    def plain() -> Tensor:
        found = own(input_ids=batch["input_ids"], labels=labels, use_cache=False)
        return found.loss

    counts = {"clm_count": counted, "fusion_count": counted}

    def by(kernels: bool) -> Callable[[], Tensor]:
        models.give_objective(model, traits_of(shape), OBJECTIVE, kernels=kernels)
        forward = model.forward
        call = functools.partial(forward, **batch, clm_weight=OBJECTIVE.clm_weight)
        return lambda: call(**counts)["loss"]

    def step(compute: Callable[[], Tensor]) -> None:
        torch.autograd.backward(compute())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    kinds = {"plain": plain, "fused": by(kernels=False)}
    if compilers.has_triton(gpu.device()):
        kinds["kernels"] = by(kernels=True)
    if (loss_of := liger_fused()) is not None:
        kinds["liger"] = functools.partial(
            liger_step, model, batch["input_ids"], loss_of
        )
    return {name: functools.partial(step, call) for name, call in kinds.items()}


def liger_step(model: Any, input_ids: Tensor, loss_of: Callable[..., Tensor]) -> Tensor:
    """Computes plain CLM of a model by Liger's head and loss in one."""
    inner = model.base_model(input_ids=input_ids, use_cache=False)[0]
    wanted = F.pad(input_ids[:, 1:], (0, 1), value=IGNORED).flatten()
    head = model.get_output_embeddings().weight
    return loss_of(head, inner.flatten(0, 1), wanted)


def liger_fused() -> Callable[..., Tensor] | None:
    """Returns Liger's fused linear cross-entropy; None where it is not to be had."""
    if gpu.device().type != "cuda":
        return None
    try:
        module = importlib.import_module("liger_kernel.transformers")
    except ImportError:
        return None
    made: Callable[..., Tensor] = module.LigerFusedLinearCrossEntropyLoss()
    return made


def measure_steps(shape: Shape, rounds: int, clock: gpu.Clock) -> dict[str, Any]:
    """Times steps of a shape, and takes the peak of what tensors hold in each."""
    model = build(shape)
    parameters = sum(p.numel() for p in model.parameters())
    kinds = steps_of(shape, model)
    taken = gpu.seconds(kinds, rounds=rounds, warm=2, clock=clock)
    peaks = {
        name: gpu.peak_bytes(call)
        for name, call in kinds.items()
        if clock.allows(f"peak of {name}")
    }
    tokens = shape.rows * shape.tokens
    return {
        "parameters": parameters,
        "dtype": str(model.dtype),
        "rows": shape.rows,
        "tokens_a_row": shape.tokens,
        "seconds": taken,
        "tokens_per_s": {name: tokens / s for name, s in taken.items()},
        "model_tflops": {
            name: flop_per_token(shape, parameters) * tokens / s / 1e12
            for name, s in taken.items()
        },
        "peak_bytes": peaks,
        "time_of_plain": _ratio(taken, "plain"),
        "memory_of_plain": _ratio(peaks, "plain"),
        "time_of_liger": _ratio(taken, "liger"),
        "memory_of_liger": _ratio(peaks, "liger"),
        "aim": 1.10,
    }


def flop_per_token(shape: Shape, parameters: int) -> float:
    """Returns what a training step must compute for a token: 6 N + 6 L d T.

    N counts the head but no embedding that is only looked up; attention is causal. What
    is computed twice, as activations are not kept, is not counted.
    """
    looked_up = 0 if shape.tied else shape.vocabulary * shape.width
    products = 6 * (parameters - looked_up)
    return products + 6 * shape.layers * shape.width * shape.tokens


def head_of(size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Makes hidden states and a head of a size, bfloat16 on a GPU."""
    positions, width, vocabulary = size
    on = gpu.device()
    dtype = torch.bfloat16 if on.type == "cuda" else torch.float32
    make = torch.Generator(device=on).manual_seed(0)
    draw = functools.partial(torch.randn, generator=make, device=on, dtype=dtype)
    hidden = draw(positions, width).requires_grad_()
    return hidden, (draw(vocabulary, width) * width**-0.5).requires_grad_()


def losses_of(hidden: Tensor, head: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Returns the kinds of loss, on the same hidden states and head."""
    on, positions = hidden.device, len(hidden)
    shape = Shape(
        kind="", vocabulary=len(head), width=head.shape[1], inner=0, layers=0, heads=0,
        kv_heads=0, rows=1, tokens=positions,
    )  # fmt: skip
    batch = batch_of(shape)
    batch["loss_mask"][:] = True
    wanted = batch["input_ids"].roll(-1, 1).flatten()
    selected = rows.select_rows(**batch)
    count = torch.tensor(float(positions), device=on)

    def fused(*, kernels: bool) -> Tensor:
        found = loss.head_loss(
            hidden,
            head,
            None,
            selected,
            OBJECTIVE,
            clm_count=count,
            fusion_count=count,
            kernels=kernels,
        )
        return found.loss

    def plain() -> Tensor:
        return F.cross_entropy((hidden @ head.T).float(), wanted)

    kinds: dict[str, Callable[[], Tensor]] = {
        "fused": functools.partial(fused, kernels=False),
        "plain": plain,
    }
    if compilers.has_triton(on):
        kinds["kernels"] = functools.partial(fused, kernels=True)
    if (liger := liger_fused()) is not None:
        kinds["liger"] = functools.partial(liger, head, hidden, wanted)
    return kinds


def measure_kernel(
    size: tuple[int, int, int], rounds: int, clock: gpu.Clock
) -> dict[str, Any]:
    """Times the loss alone with its gradients, and what it holds beyond them."""
    hidden, head = head_of(size)
    kinds = losses_of(hidden, head)

    def differentiate(compute: Callable[[], Tensor]) -> None:
        hidden.grad = head.grad = None
        torch.autograd.backward(compute())

    calls = {name: functools.partial(differentiate, k) for name, k in kinds.items()}
    taken = gpu.seconds(calls, rounds=rounds, clock=clock)
    extra = {
        name: _beyond(call, hidden, head)
        for name, call in calls.items()
        if clock.allows(f"memory of {name}")
    }
    both = "kernels" in calls and clock.allows("what kernels differ by")
    return {
        **dict(zip(("positions", "width", "vocabulary"), size, strict=True)),
        "k": K,
        "seconds": taken,
        "extra_bytes": extra,
        "computed_extra_bytes": held.loss_extra_bytes(
            *size, k=K, device=gpu.device().type
        ),
        "kernels_differ": _difference(calls, hidden, head) if both else None,
        "time_of_plain": _ratio(taken, "plain"),
        "time_of_liger": _ratio(taken, "liger"),
        "aim_time_of_liger": 1.05,
        "aim_extra_bytes": 2e9,
    }


def _difference(calls: Mapping[str, Callable[[], None]], *inputs: Tensor) -> float:
    """Returns by how much the kernels' gradients differ, over the greatest gradient."""
    found = []
    for name in ("fused", "kernels"):
        calls[name]()
        found.append([tensor.grad for tensor in inputs])
    return max(
        float((ours - theirs).abs().max() / ours.abs().max())
        for ours, theirs in zip(*found, strict=True)
        if ours is not None and theirs is not None
    )


def _beyond(call: Callable[[], None], *inputs: Tensor) -> int | None:
    """Returns what a call holds at its peak above inputs and returned gradients."""
    for tensor in inputs:
        tensor.grad = None
    gpu.release()
    before = gpu.held_bytes()
    peak = gpu.peak_bytes(call)
    if peak is None:
        return None
    returned = sum(t.grad.nbytes for t in inputs if t.grad is not None)
    return peak - before - returned


def _ratio(of: Mapping[str, float | None], to: str) -> float | None:
    """Returns what `fused` is of another kind; None where one of them is absent."""
    ours, theirs = of.get("fused"), of.get(to)
    return None if ours is None or theirs is None else ours / theirs


def main(argv: Sequence[str]) -> None:
    """Measures all parts, and prints a JSON."""
    parser = gpu.parser(__doc__, rounds=8, of="steps of a kind")
    given = parser.parse_args(argv)
    shapes = SHAPES if given.size == "full" else TINY
    clock = gpu.Clock(1 + len(shapes), given.limit_s)
    found = gpu.about()
    kernel = functools.partial(measure_kernel, KERNEL[given.size], given.rounds, clock)
    found["kernel"] = clock.run("the loss alone", kernel)
    found["steps"] = {}
    for name, shape in shapes.items():
        part = functools.partial(measure_steps, shape, given.rounds, clock)
        found["steps"][name] = clock.run(f"steps of {name}", part)
    gpu.show({**found, "not_done": clock.not_done, "wall_s": clock.wall_s})


if __name__ == "__main__":
    main(sys.argv[1:])
