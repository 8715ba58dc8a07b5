"""On a GPU: scoring against bare forward passes of the same packed tokens.

    python tests/bench/gpu_score.py > score.json

Models are made on the spot with random weights, in the shapes of Llama-2-7B,
Qwen2.5-7B, Llama-3.2-1B and Qwen2.5-0.5B, in bfloat16, and run by the scorer's own
engine (`transforms.engine`) on given token ids, k = 10. Two loads: windows of 2,048
tokens, and windows of mixed length, log-normal with a median of 600 and a deviation of
1 in the logarithm, cut to 16 to 2,048 tokens, as a document longer than a window
becomes windows that are full. Ways take turns on the same batches:

    body     the model without its head
    bare     the model's forward pass: all logits of a batch, left where they are
    chunked  body, and head in the engine's chunks, logits left where they are
    reduced  the same, and what is kept of the logits, left on the device
    scored   all that the engine does, token ids to each window's arrays on the host
    plain    the same without Triton's kernels, where `scored` uses them

`overhead` is the time of `scored` over that of `bare` or `chunked`, whichever is less,
less 1; `of_reduction` that of `reduced` over `chunked`, `of_the_rest` that of `scored`
over `reduced`, `without_kernels` that of `plain` as `overhead`. Tokens are real
ones, those that a window's model reads; padding counts as none. `mfu` is what the model
must compute for them (`gpu_models.flop_of`) in a second, over the product of matrices
measured here. `head_extra_bytes` is what head and reduction hold at their peak above
features and weights, `computed_head_extra_bytes` the same by the shapes alone (`held`),
without kernels.

It ends within 8 minutes: what there was no time for is named in `not_done`, and so is
what there was no memory for. Triton's kernels are tried in a process of their own
before they are used. What fails says so in its place; the JSON is printed, and the
script ends with status 1.
"""

import contextlib
import dataclasses
import functools
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import transformers

from tests.bench import gpu, gpu_models, held
from tests.bench.gpu_models import Shape
from tests.bench.passes import Passes
from transforms.engine import Engine, Row
from transforms.reduction import KERNELS

ROOT = Path(__file__).resolve().parents[2]
K = 10
AIM_TOKENS_PER_S = {"Llama-2-7B": 40_000.0, "Qwen2.5-7B": 40_000.0}
AIM_OVERHEAD = {"Llama-2-7B": 0.03, "Qwen2.5-7B": 0.03, "Qwen2.5-0.5B": 0.15}
AIM_HEAD_EXTRA_BYTES = 0.7e9
BATCH_TOKENS = {"full": 16_384, "tiny": 256}
SLICE_FLOP = {"full": 8e14, "tiny": 0.0}
"""What a pass over a load may compute, about, if that is 4 batches or more."""


def loads_of(shape: Shape, tokens: int) -> dict[str, list[int]]:
    """Returns the lengths of windows of each load, of about so many tokens."""
    full = [shape.tokens] * max(1, round(tokens / shape.tokens))
    rng = np.random.default_rng(0)
    # Windows of half the longest, say, are shorter in proportion.
    median = 600 * shape.tokens / 2048
    least = max(1, shape.tokens // 128)
    mixed: list[int] = []
    while sum(mixed) < tokens:
        drawn = rng.lognormal(np.log(median), 1.0)
        mixed.append(int(np.clip(drawn, least, shape.tokens)))
    return {"full": full, "mixed": mixed}


def rows_of(lengths: Sequence[int], vocabulary: int) -> list[Row]:
    """Makes windows of random tokens, one more than the model reads of each."""
    rng = np.random.default_rng(1)
    return [
        Row(
            place=place,
            token_ids=rng.integers(0, vocabulary, length + 1, dtype=np.int32),
            chances=np.empty((length, 0)),
        )
        for place, length in enumerate(lengths)
    ]


def read_masks_anywhere() -> None:
    """Lets a mask of transformers before version 5 be read beyond its own tokens.

    Where it packs, the engine reads masks far out, to see by what rule a layer hides
    tokens. Those of old versions also look up which window a token of the row is in.
    """
    if int(transformers.__version__.partition(".")[0]) >= 5:
        return
    with contextlib.suppress(ImportError):  # the oldest make masks another way
        from transformers import masking_utils

        def one_window(position_ids: torch.Tensor) -> torch.Tensor:
            return position_ids.new_zeros(1, 1).expand(len(position_ids), 2**20)

        masking_utils.find_packed_sequence_indices = one_window


TRY_KERNELS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from transforms import reduction
for dtype in (torch.bfloat16, torch.float32):
    found = reduction.choose(torch.device("cuda"), dtype, 152_064, n_ids=151_665, k={K})
    torch.cuda.synchronize()
    assert found.name == {KERNELS!r}
"""


def kernels_fail() -> str | None:
    """Tries Triton's kernels where a fault of theirs ends nothing else.

    Returns:
      Why they are not used; None: they are, where there is a GPU.
    """
    if not torch.cuda.is_available():
        return None
    words = [sys.executable, "-c", TRY_KERNELS]
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=100)
    except subprocess.TimeoutExpired:
        return "they took longer than 100 s"
    return ended.stderr[-2000:] or "no word" if ended.returncode else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measuring:
    """How models are measured.

    Attributes:
      size: `full` or `tiny`.
      rounds: timed passes of a way.
      kernels: whether Triton's kernels may be used.
      compiled: whether torch compiles the models' bodies.
      peak_flops: what MFU is told against, a second.
      clock: shares the time.
    """

    size: str
    rounds: int
    kernels: bool
    compiled: bool
    peak_flops: float
    clock: gpu.Clock


def measure(name: str, shape: Shape, how: Measuring) -> dict[str, Any]:
    """Measures all ways on both loads with a model of a shape."""
    model = gpu_models.build(shape).eval()
    weights, batch = gpu.held_bytes(), BATCH_TOKENS[how.size]
    made = functools.partial(
        Engine,
        model,
        n_ids=shape.vocabulary,
        top_k=K,
        batch_tokens=batch,
        compiled=how.compiled,
    )
    engine = made(kernels=how.kernels)
    plain = made(kernels=False) if engine.reduction.name == KERNELS else None
    each = gpu_models.flop_of(shape, [shape.tokens]) / shape.tokens
    tokens = max(4 * batch, int(SLICE_FLOP[how.size] / each))
    loads = {}
    for load, lengths in loads_of(shape, tokens).items():
        rows = rows_of(lengths, shape.vocabulary)
        passes = Passes(engine, rows)
        ways = passes.ways()
        if plain is not None:
            ways["plain"] = Passes(plain, rows).score
        taken = gpu.seconds(ways, rounds=how.rounds, warm=1, clock=how.clock)
        flop = gpu_models.flop_of(shape, lengths)
        loads[load] = {
            "windows": len(lengths),
            **figures(taken, sum(lengths), flop, how.peak_flops),
            **memory(passes, weights, how.clock),
        }
        loads[load]["aims"] = aims(name, loads[load])
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "dtype": str(model.dtype),
        "weights_bytes": weights,
        "way": engine.way.name,
        "reduction": engine.reduction.name,
        "compiled": how.compiled,
        "batch_tokens": batch,
        "chunk_positions": engine.chunk,
        "computed_head_extra_bytes": held.score_extra_bytes(
            batch, shape.width, shape.vocabulary, k=K
        ),
        "loads": loads,
    }


def figures(
    taken: dict[str, float], tokens: int, flop: float, peak_flops: float
) -> dict[str, Any]:
    """Tells rates and ratios of what the ways took."""

    def over(way: str, *others: str) -> float | None:
        known = taken.keys() >= {way, *others}
        return taken[way] / min(taken[o] for o in others) - 1 if known else None

    return {
        "tokens": tokens,
        "seconds": taken,
        "tokens_per_s": {way: tokens / s for way, s in taken.items()},
        "model_tflop": flop / 1e12,
        "mfu": {
            way: flop / taken[way] / peak_flops
            for way in ("bare", "scored", "plain")
            if way in taken
        },
        "overhead": over("scored", "bare", "chunked"),
        "overhead_of_reduction": over("reduced", "chunked"),
        "overhead_of_the_rest": over("scored", "reduced"),
        "overhead_without_kernels": over("plain", "bare", "chunked"),
    }


def memory(passes: Passes, weights: int, clock: gpu.Clock) -> dict[str, Any]:
    """Tells what is held at the peak of scoring, and of head and reduction alone."""
    peak = extra = None
    if clock.allows("peak of scoring"):
        peak = gpu.peak_bytes(passes.score)
    if clock.allows("memory of head and reduction"):
        extra = passes.head_extra_bytes()
    return {
        "peak_bytes": peak,
        "extra_bytes": None if peak is None else peak - weights,
        "head_extra_bytes": extra,
    }


def aims(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Says which aims a load has, and whether each is met; None: nobody knows."""
    known = {
        "tokens_per_s": (
            found["tokens_per_s"].get("scored"),
            AIM_TOKENS_PER_S.get(name),
            True,
        ),
        "overhead": (found["overhead"], AIM_OVERHEAD.get(name), False),
        "head_extra_bytes": (found["head_extra_bytes"], AIM_HEAD_EXTRA_BYTES, False),
    }
    return {
        what: {
            "aim": aim,
            "at": "least" if least else "most",
            "met": None if value is None else (value >= aim if least else value <= aim),
        }
        for what, (value, aim, least) in known.items()
        if aim is not None
    }


def main(argv: Sequence[str]) -> None:
    """Measures all shapes, and prints a JSON."""
    parser = gpu.parser(__doc__, rounds=4, of="passes of a way")
    parser.add_argument(
        "--compile", action="store_true", help="have torch compile bodies: minutes each"
    )
    given = parser.parse_args(argv)
    shapes = gpu_models.SHAPES if given.size == "full" else {"tiny": gpu_models.TINY}
    found = gpu.about()
    clock = gpu.Clock(len(shapes), given.limit_s)
    found["kernels_fail"] = kernels_fail()
    how = Measuring(
        size=given.size,
        rounds=given.rounds,
        kernels=found["kernels_fail"] is None,
        compiled=given.compile,
        peak_flops=found["matmul_tflops"] * 1e12,
        clock=clock,
    )
    read_masks_anywhere()
    scoring = {
        name: clock.run(
            f"scoring with {name}", functools.partial(attempt, name, s, how)
        )
        for name, s in shapes.items()
    }
    gpu.show(
        {
            **found,
            "scoring": scoring,
            "not_done": clock.not_done,
            "wall_s": clock.wall_s,
        }
    )
    if any("failed" in part for part in scoring.values()):
        sys.exit(1)


def attempt(name: str, shape: Shape, how: Measuring) -> dict[str, Any]:
    """Measures, or tells what failed: other shapes may fare better."""
    try:
        return measure(name, shape, how)
    except torch.cuda.OutOfMemoryError:
        raise  # the clock tells that
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main(sys.argv[1:])
