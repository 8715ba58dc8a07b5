"""What the GPU scripts share: the device, its measured peak, timed calls, one JSON.

The scripts beside this module run from a bare checkout, with torch, transformers and
numpy and nothing else. On a machine without a GPU they take their tiny sizes and run on
its CPU: that shows that they work, and no speed.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import platform
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

LIMIT_S = 420.0
"""Nothing is begun later than this after a script's start: it ends within 8 minutes."""
GRACE_S = 45.0
"""What was begun may take longer by so much, and is then cut off."""

_MATMUL = {"cuda": 8192, "cpu": 512}
_PRODUCTS = {"cuda": 50, "cpu": 2}
"""Products that are timed together, as a GPU that grows warm does them slower."""

Times = dict[str, list[float]]
"""Seconds of the timed calls of each kind."""


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
    def left_s(self) -> float:
        """Seconds until nothing more may begin."""
        return self._end - self._tell()

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
    made, many = torch.empty_like(left), _PRODUCTS[on.type]

    def multiply() -> None:
        for _ in range(many):
            torch.mm(left, right, out=made)

    taken = seconds({"matmul": multiply}, rounds=9, warm=2)["matmul"]
    return 2 * n**3 * many / taken / 1e12


def seconds(
    kinds: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warm: int = 3,
    clock: Clock | None = None,
) -> dict[str, float]:
    """Times calls as `times` does; returns the median of each."""
    return medians(times(kinds, rounds=rounds, warm=warm, clock=clock))


def medians(taken: Times) -> dict[str, float]:
    """Returns the median of each kind's times."""
    return {name: statistics.median(each) for name, each in taken.items()}


def times(
    kinds: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warm: int,
    clock: Clock | None = None,
) -> Times:
    """Times calls in turns, so that what drifts meets all.

    Args:
      kinds: the calls by name.
      rounds: timed calls of each.
      warm: calls of each before those.
      clock: ends the rounds when the part's time is over.

    Returns:
      Those of each, round by round; nothing of a call that was at most warmed up, whose
      times would tell of compilers and caches.
    """
    taken: Times = {name: [] for name in kinds}
    total = rounds + warm
    for name, call in [*kinds.items()] * total:
        if clock is None or not clock.over:
            taken[name].append(_timed(call))
    for name, each in taken.items():
        if clock is not None and len(each) < total:
            clock.note(f"{total - len(each)} of {total} rounds of {name}")
    return {name: each[warm:] for name, each in taken.items() if each[warm:]}


def ratio(taken: Times, way: str, *others: str) -> float | None:
    """Returns what a kind takes of the quickest of others; None where one is unknown.

    The median over rounds, in each of which they ran one after the other: a device that
    grows slower does so for both.
    """
    if not taken.keys() >= {way, *others}:
        return None
    quickest = min(others, key=lambda other: statistics.median(taken[other]))
    return statistics.median(
        ours / theirs for ours, theirs in zip(taken[way], taken[quickest], strict=False)
    )


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


@contextlib.contextmanager
def shown(found: dict[str, Any], end_s: float) -> Iterator[None]:
    """Prints what was found when the block ends, whatever ends it, as `show` does.

    What else is printed meanwhile goes to stderr. An error, and a signal to end, are
    told as `failed`. Where a device or a compiler does not come back, the process ends.
    Only a fault that ends the process itself leaves no JSON.

    Args:
      found: what the block fills in.
      end_s: seconds that it may take.

    Raises:
      SystemExit: with status 1, if the block failed.
    """
    out, printed = sys.stdout, threading.Lock()

    def end() -> None:
        if not printed.acquire(blocking=False):
            return
        found["failed"] = f"cut off after {end_s:.0f} s"
        try:
            _show_while_it_changes(found, out)
        finally:
            os._exit(1)  # though nobody reads any more

    timer = threading.Timer(end_s, end)
    timer.daemon = True
    timer.start()
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except BaseException as error:
        found["failed"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends now in any case
    if not printed.acquire(blocking=False):
        threading.Event().wait()  # `end` is printing, and ends the process
    timer.cancel()
    show(found)
    signal.signal(signal.SIGTERM, before)
    if "failed" in found:
        sys.exit(1)


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise SystemExit("told to end")


def _show_while_it_changes(found: Mapping[str, Any], out: Any) -> None:
    for _ in range(9):
        with contextlib.suppress(RuntimeError):  # one came in while it was written
            text = json.dumps(found, indent=1)
            print(text, file=out, flush=True)
            return


@contextlib.contextmanager
def heard(package: str) -> Iterator[list[str]]:
    """Collects what a package logs, from INFO on, and prints it to stderr, too."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            print(lines[-1], file=sys.stderr, flush=True)

    logger, handler = logging.getLogger(package), Collect()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def age_s() -> float:
    """Returns for how long this process has run: imports take seconds; 0 = unknown."""
    try:
        told = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start = int(told[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - start
    except (OSError, AttributeError):  # not Linux
        return 0.0
    return age if 0 <= age < 300 else 0.0  # a sandbox may count from elsewhere
