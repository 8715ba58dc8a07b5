"""Where time goes, by part: functions are wrapped from outside, and give up nothing.

    spent = Spent()
    with spent.watching(windows, "read_slice", "read"), spent.watching(...):
        work()
    spent.seconds       {("MainThread", "body"): 12.3, ("ahead", "read"): 0.1, ...}

A part's seconds are what the clock on the wall says of the thread that is at it, less
what parts within it take; of an iterator, the time that it takes to give the next item.
"""

import contextlib
import functools
import inspect
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Spent:
    """Sums up seconds by thread and part; threads may work at once.

    Attributes:
      seconds: by name of the thread, and of the part.
    """

    def __init__(self, tell: Callable[[], float] = time.perf_counter) -> None:
        """Starts with nothing.

        Args:
          tell: tells seconds.
        """
        self._tell = tell
        self._lock = threading.Lock()
        self._open = threading.local()
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the block as a part."""
        within: list[float] = self._open.__dict__.setdefault("within", [])
        within.append(0.0)
        start = self._tell()
        try:
            yield
        finally:
            taken = self._tell() - start
            own = taken - within.pop()
            if within:
                within[-1] += taken
            with self._lock:
                self.seconds[threading.current_thread().name, name] += own

    def timed(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Wraps a function, or one that makes an iterator, as a part."""

        @functools.wraps(call)
        def simply(*given: Any, **more: Any) -> Any:
            with self.part(name):
                return call(*given, **more)

        @functools.wraps(call)
        def stepwise(*given: Any, **more: Any) -> Iterator[Any]:
            items = call(*given, **more)
            while True:
                with self.part(name):
                    item = next(items, self)
                if item is self:
                    return
                yield item

        makes = inspect.isgeneratorfunction(inspect.unwrap(call))
        return stepwise if makes else simply

    @contextlib.contextmanager
    def watching(self, owner: Any, attribute: str, name: str) -> Iterator[None]:
        """Counts what a module's, class's or object's function takes as a part."""
        call = getattr(owner, attribute)
        own = vars(owner).get(attribute)
        setattr(owner, attribute, self.timed(call, name))
        try:
            yield
        finally:
            if own is None:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, own)

    @contextlib.contextmanager
    def watching_all(self, parts: Iterable[tuple[Any, str, str]]) -> Iterator[None]:
        """Does as `watching` for many: owner, attribute, name of each."""
        with contextlib.ExitStack() as stack:
            for part in parts:
                stack.enter_context(self.watching(*part))
            yield

    def of(self, thread: str) -> dict[str, float]:
        """Returns a thread's seconds by part, the most first."""
        known = {p: s for (t, p), s in self.seconds.items() if t == thread}
        return dict(sorted(known.items(), key=lambda item: -item[1]))
