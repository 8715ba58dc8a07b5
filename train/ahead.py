"""Reads in threads what will be asked for, and holds it while it is wanted.

Who reads says what it wants, in order; what it does not name is dropped. So memory is
bounded by what is named, and what comes out depends on no thread's pace. An error is
raised where its value is asked for, and nowhere else.
"""

import os
import queue
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Ahead(Generic[Key, Value]):
    """Values by key, read by a few threads in the order in which they are wanted.

    The threads are daemons: an interrupted program does not wait for a bucket. They
    begin when something is wanted, in the process that wants it: what was read before
    a fork is read again by the child.
    """

    def __init__(self, read: Callable[[Key], Value], threads: int) -> None:
        """Takes how to read a value, and in how many threads; 0: when asked for."""
        self._read, self._threads = read, threads
        self._held: dict[Key, Future[Value]] = {}
        self._queue: queue.SimpleQueue[tuple[Key, Future[Value]] | None]
        self._process: int | None = None

    def __getstate__(self) -> dict[str, object]:
        """Leaves threads and values behind: a copy reads for itself."""
        kept = {"_read": self._read, "_threads": self._threads}
        return {**kept, "_held": {}, "_process": None}

    def want(self, keys: Iterable[Key]) -> None:
        """Names all that is wanted, in the order in which it will be asked for."""
        self._begin()
        wanted = list(dict.fromkeys(keys))
        for key in self._held.keys() - set(wanted):
            self._held.pop(key).cancel()
        for key in wanted if self._threads else ():
            if key not in self._held:
                self._held[key] = Future()
                self._queue.put((key, self._held[key]))

    def get(self, key: Key) -> Value:
        """Returns a value, and waits for it; what was not wanted is read now."""
        self._begin()
        if key not in self._held:
            self._held[key] = Future()
            _fill(self._held[key], self._read, key)
        return self._held[key].result()

    def close(self) -> None:
        """Drops all values, and lets the threads end."""
        if self._process == os.getpid():
            self.want(())
            for _ in range(self._threads):
                self._queue.put(None)
        self._process = None

    def _begin(self) -> None:
        if self._process == os.getpid():
            return
        self._process, self._held = os.getpid(), {}
        self._queue = queue.SimpleQueue()
        for number in range(self._threads):
            threading.Thread(
                target=_serve,
                args=(self._queue, self._read),
                name=f"read ahead {number}",
                daemon=True,
            ).start()


def _serve(
    asked: "queue.SimpleQueue[tuple[Key, Future[Value]] | None]",
    read: Callable[[Key], Value],
) -> None:
    """Reads what is asked for until it is told to end."""
    while (one := asked.get()) is not None:
        key, future = one
        if future.set_running_or_notify_cancel():  # it may not be wanted any more
            _fill(future, read, key)
        del one, future  # waiting must not keep a value alive


def _fill(future: "Future[Value]", read: Callable[[Key], Value], key: Key) -> None:
    try:
        value = read(key)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(value)
