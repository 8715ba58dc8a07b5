"""What the GPU scripts share: the device, its measured peak, timed calls, one JSON.

The scripts beside this module run from a bare checkout, with torch, transformers and
numpy and nothing else. On a machine without a GPU they take their tiny sizes and run on
its CPU: that shows that they work, and no speed.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

LIMIT_S = 420.0
"""Nothing is begun later than this after a script's start: it ends within 8 minutes."""

_MATMUL = {"cuda": 8192, "cpu": 512}


class Clock:
    """Shares a script's time among its parts, and notes what there was none for.

    A part gets its share of what is left; what it does not need goes to those behind
    it. Whoever works asks before each piece, none of which takes long.
    """

    def __init__(
        self,
        parts: int,
        limit_s: float = LIMIT_S,
        *,
        tell: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts.

        Args:
          parts: how many will be run.
          limit_s: for all together.
          tell: tells seconds.
        """
        self._tell, self._parts = tell, parts
        self._start = tell()
        self._end = self._part_end = self._start + limit_s
        self._part = "all"
        self.not_done: list[str] = []

    @property
    def wall_s(self) -> float:
        """Seconds since the start."""
        return self._tell() - self._start

    @property
    def over(self) -> bool:
        """Whether the part's time is over."""
        return self._tell() >= self._part_end

    def allows(self, piece: str) -> bool:
        """Says whether a piece of the part may begin; if not, it is noted."""
        over = self.over
        if over:
            self.note(piece)
        return not over

    def note(self, piece: str) -> None:
        """Notes a piece of the part that is not done."""
        self.not_done.append(f"{self._part}: {piece}")

    def run(self, name: str, part: Callable[[], Any]) -> Any:
        """Runs a part; what did not run says why, in the part's place.

        Out of memory is a finding: it is reported as one, and the next part runs.
        """
        now = self._tell()
        self._part, self._part_end = name, now + (self._end - now) / self._parts
        self._parts = max(1, self._parts - 1)
        if not self.allows("all of it"):
            return {"absent": "out of time"}
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        try:
            return part()
        except torch.cuda.OutOfMemoryError as error:
            self.note("out of memory")
            return {"absent": f"out of memory: {str(error).splitlines()[0]}"}
        finally:
            release()


def parser(about: str | None, *, rounds: int, of: str) -> argparse.ArgumentParser:
    """Returns a script's parser, with the flags that all of them have.

    Args:
      about: what `--help` says of it.
      rounds: the default of `--rounds`.
      of: what is timed so often.
    """
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = "full" if torch.cuda.is_available() else "tiny"
    made.add_argument("--size", choices=("full", "tiny"), default=size)
    made.add_argument("--rounds", type=int, default=rounds, help=f"timed {of}")
    made.add_argument(
        "--limit_s", type=float, default=LIMIT_S, help="nothing begins after it"
    )
    return made


def device() -> torch.device:
    """Returns the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def about() -> dict[str, Any]:
    """Tells on what the figures were made."""
    on = device()
    gpu = on.type == "cuda"
    return {
        "device": torch.cuda.get_device_name()
        if gpu
        else platform.processor() or "cpu",
        "memory_bytes": torch.cuda.get_device_properties(on).total_memory if gpu else 0,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "matmul_tflops": matmul_tflops(on),
    }


def matmul_tflops(on: torch.device) -> float:
    """Measures the bfloat16 product of square matrices (float32 on a CPU), TFLOP/s.

    It is what model FLOP utilization is told against: a nominal peak is reached by
    nobody.
    """
    n = _MATMUL[on.type]
    dtype = torch.bfloat16 if on.type == "cuda" else torch.float32
    left, right = (torch.randn(n, n, device=on, dtype=dtype) for _ in range(2))
    taken = seconds({"matmul": lambda: left @ right}, rounds=20)["matmul"]
    return 2 * n**3 / taken / 1e12


def seconds(
    kinds: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warm: int = 3,
    clock: Clock | None = None,
) -> dict[str, float]:
    """Times calls in turns, so that what drifts meets all.

    Args:
      kinds: the calls by name.
      rounds: timed calls of each.
      warm: calls of each before those.
      clock: ends the rounds when the part's time is over.

    Returns:
      The median of each; of a call that was only warmed up the last time; of one that
      was never made, nothing.
    """
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    total = rounds + warm
    for name, call in [*kinds.items()] * total:
        if clock is None or not clock.over:
            taken[name].append(_timed(call))
    for name, times in taken.items():
        if clock is not None and len(times) < total:
            clock.note(f"{total - len(times)} of {total} rounds of {name}")
    return {
        name: statistics.median(times[warm:] or times[-1:])
        for name, times in taken.items()
        if times
    }


def _timed(call: Callable[[], Any]) -> float:
    wait()
    then = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - then


def peak_bytes(call: Callable[[], Any]) -> int | None:
    """Returns the peak of memory that tensors hold during a call; None on a CPU."""
    if device().type != "cuda":
        call()
        return None
    release()
    torch.cuda.reset_peak_memory_stats()
    call()
    wait()
    return torch.cuda.max_memory_allocated()


def held_bytes() -> int:
    """Returns what tensors hold now; 0 on a CPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def wait() -> None:
    """Waits until the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    """Gives back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def show(found: Mapping[str, Any]) -> None:
    """Prints the figures as one JSON object, for people and for programs."""
    print(json.dumps(found, indent=1))
