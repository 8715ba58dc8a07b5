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
over `reduced`, `without_kernels` that of `plain` as `overhead`: medians over rounds, in
each of which all ways ran. Tokens are real ones, those that a window's model reads;
padding counts as none. `mfu` is what the model must compute for them
(`gpu_models.flop_of`) in a second, over the product of matrices measured here.
`head_extra_bytes` is what head and reduction hold at their peak above features and
weights, `computed_head_extra_bytes` the same by the shapes alone (`held`), without
kernels. `way` is how windows lie in batches and what computes their attention,
`why_no_faster` why it is none that would be faster; `log` what the engine says.

In the time that is left, `compiled` measures the shapes again with bodies that torch
compiles, each in a process of its own.

It ends within 8 minutes: what there was no time for is named in `not_done`, and so is
what there was no memory for. Triton's kernels are tried in a process of their own
before they are used. What fails says so in its place; whatever it is, a device that
hangs or a signal to end included, the JSON is printed with what was found until then,
and the script ends with status 1; 0 where `compiled` alone fails.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
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
SLICE_FLOP = {"full": 4e14, "tiny": 0.0}
"""What a pass over a load may compute, about, if that is 3 batches or more."""
COMPILED = ("bare", "chunked", "scored")
"""Ways that are measured where torch compiles bodies, which takes most of the time."""
COMPILE_S = 75.0
"""What such a measurement takes at least."""


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
from tests.bench.gpu_models import SHAPES
from transforms import reduction
for width in sorted({{shape.vocabulary for shape in SHAPES.values()}}):
    found = reduction.choose(
        torch.device("cuda"), torch.bfloat16, width, n_ids=width, k={K}
    )
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
        ended = subprocess.run(words, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        return "they took longer than 90 s"
    if not ended.returncode:
        return None
    return f"status {ended.returncode}: {ended.stderr[-2000:]}"


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


def measure(name: str, shape: Shape, how: Measuring, found: dict[str, Any]) -> None:
    """Measures all ways on both loads with a model of a shape, and fills in `found`."""
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
    uses_kernels = engine.reduction.name == KERNELS and not how.compiled
    plain = made(kernels=False) if uses_kernels else None
    found |= {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "dtype": str(model.dtype),
        "weights_bytes": weights,
        "way": engine.way.name,
        "why_no_faster": engine.way.why,
        "reduction": engine.reduction.name,
        "compiled": how.compiled,
        "batch_tokens": batch,
        "chunk_positions": engine.chunk,
        "loads": {},
    }
    each = gpu_models.flop_of(shape, [shape.tokens]) / shape.tokens
    tokens = max(3 * batch, int(SLICE_FLOP[how.size] / each))
    for load, lengths in loads_of(shape, tokens).items():
        rows = rows_of(lengths, shape.vocabulary)
        passes = Passes(engine, rows)
        ways = passes.ways()
        if plain is not None:
            ways["plain"] = Passes(plain, rows).score
        if how.compiled:
            ways = {way: ways[way] for way in COMPILED}
        taken = gpu.times(ways, rounds=how.rounds, warm=1, clock=how.clock)
        flop = gpu_models.flop_of(shape, lengths)
        told = figures(taken, sum(lengths), flop, how.peak_flops)
        found["loads"][load] = {"windows": len(lengths), **told}
        found["loads"][load] |= memory(passes, weights, how.clock)
        found["loads"][load]["aims"] = aims(name, found["loads"][load])
    found["computed_head_extra_bytes"] = held.score_extra_bytes(
        batch, shape.width, shape.vocabulary, k=K, device=gpu.device().type
    )


def figures(
    taken: gpu.Times, tokens: int, flop: float, peak_flops: float
) -> dict[str, Any]:
    """Tells rates and ratios of what the ways took."""
    over = functools.partial(excess, taken)
    seconds = gpu.medians(taken)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "seconds_by_round": taken,
        "tokens_per_s": {way: tokens / s for way, s in seconds.items()},
        "model_tflop": flop / 1e12,
        "mfu": {
            way: flop / seconds[way] / peak_flops
            for way in ("bare", "scored", "plain")
            if way in seconds
        },
        "overhead": over("scored", "bare", "chunked"),
        "overhead_of_reduction": over("reduced", "chunked"),
        "overhead_of_the_rest": over("scored", "reduced"),
        "overhead_without_kernels": over("plain", "bare", "chunked"),
    }


def excess(taken: gpu.Times, way: str, *others: str) -> float | None:
    """Returns by what share a way takes longer than the quickest of others."""
    found = gpu.ratio(taken, way, *others)
    return None if found is None else found - 1


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


def main(argv: Sequence[str], *, age_s: float = 0.0) -> None:
    """Measures all shapes, and prints a JSON.

    Args:
      argv: words of the command line.
      age_s: what is gone already of the time.
    """
    given = parse(argv)
    clock = gpu.Clock(len(given.shapes), given.limit_s - age_s)
    scoring: dict[str, Any] = {}
    found: dict[str, Any] = {"scoring": scoring, "not_done": clock.not_done}
    with (
        gpu.shown(found, given.limit_s + gpu.GRACE_S - age_s),
        gpu.heard("transforms") as found["log"],
    ):
        # Before this process takes the GPU: it may be lent to one alone.
        tried = given.compile  # as by the script that has started this one
        found["kernels_fail"] = given.no_kernels or (None if tried else kernels_fail())
        found |= gpu.about()
        how = Measuring(
            size=given.size,
            rounds=given.rounds,
            kernels=found["kernels_fail"] is None,
            compiled=given.compile,
            peak_flops=found["matmul_tflops"] * 1e12,
            clock=clock,
        )
        read_masks_anywhere()
        for name, shape in given.shapes.items():
            part = scoring[name] = {}
            call = functools.partial(attempt, name, shape, how, part)
            part |= clock.run(f"scoring with {name}", call) or {}
        if given.compile_too:
            found["compiled"] = compiled = {}
            for name in reversed(given.shapes):  # the smallest, which gain most, first
                compiled[name] = apart(name, given, how)
        found["wall_s"] = age_s + clock.wall_s
        if any("failed" in part for part in scoring.values()):
            found["failed"] = "a shape"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; `shapes` are those that are measured, by name."""
    parser = gpu.parser(__doc__, rounds=3, of="passes of a way")
    parser.add_argument("--shapes", nargs="+", choices=[*gpu_models.SHAPES, "tiny"])
    parser.add_argument(
        "--compile", action="store_true", help="have torch compile bodies: minutes each"
    )
    parser.add_argument(
        "--compile_too",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="measure that as well, in the time that is left",
    )
    parser.add_argument("--no_kernels", metavar="WHY", help="leave out Triton's")
    given = parser.parse_args(argv)
    known = {"tiny": gpu_models.TINY, **gpu_models.SHAPES}
    usual = gpu_models.SHAPES if given.size == "full" else ["tiny"]
    given.shapes = {name: known[name] for name in given.shapes or usual}
    given.compile_too = given.compile_too and not given.compile
    return given


def attempt(name: str, shape: Shape, how: Measuring, found: dict[str, Any]) -> None:
    """Measures, or tells what failed: other shapes may fare better."""
    try:
        measure(name, shape, how, found)
    except torch.cuda.OutOfMemoryError:
        raise  # the clock tells that
    except Exception as error:
        traceback.print_exc()
        found["failed"] = f"{type(error).__name__}: {error}"


def apart(name: str, given: argparse.Namespace, how: Measuring) -> dict[str, Any]:
    """Measures a shape whose body is compiled, in a process that a fault may end."""
    left_s = how.clock.left_s
    if left_s < COMPILE_S:
        how.clock.not_done.append(f"scoring with {name}, compiled")
        return {"absent": "out of time"}
    print(f"measuring {name}, compiled ...", file=sys.stderr, flush=True)
    words = [sys.executable, str(Path(__file__).resolve()), "--compile"]
    words += ["--size", given.size, "--shapes", name, "--rounds", str(given.rounds)]
    # It is cut off by itself a little later, and tells what it has.
    words += ["--limit_s", str(left_s - gpu.GRACE_S / 2)]
    if not how.kernels:
        words += ["--no_kernels", "as without compilation"]
    try:
        ended = subprocess.run(
            words, stdout=subprocess.PIPE, text=True, timeout=left_s + gpu.GRACE_S * 0.8
        )
        told = json.loads(ended.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    how.clock.not_done.extend(f"compiled, {piece}" for piece in told["not_done"])
    failed = {key: told[key] for key in ("failed",) if key in told}
    part: dict[str, Any] = told["scoring"].get(name, {})
    return {**failed, **part}


if __name__ == "__main__":
    main(sys.argv[1:], age_s=gpu.age_s())
