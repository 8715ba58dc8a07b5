"""Work that goes on in threads of its own, in front of and behind the caller's.

    with overlap.ahead(read(), depth=2) as items, overlap.behind(write, depth=2) as put:
        for item in items:
            put(work(item))

`read` is at later items, and `write` at earlier ones, while the caller works. Order is
kept, and no more than `depth` items wait on either side. What fails in a thread is
raised in the caller as soon as it deals with that thread again, with its own
traceback, whatever still waits. When a block is left, in any way, its thread has ended.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")
_POLL_S = 0.05
"""How long a thread may wait before it looks whether it is wanted still."""


class _End:
    """Follows the last item."""


class _Belt(Generic[_T]):
    """Items on their way from one thread to another.

    Either side may leave: the giver having failed or not, the taker too.
    """

    def __init__(self, depth: int) -> None:
        self._items: queue.Queue[_T | _End] = queue.Queue(depth)
        self._given_up = threading.Event()
        self._error: BaseException | None = None

    def give(self, item: _T) -> bool:
        """Puts an item on the belt; returns whether anybody still takes items."""
        return self._give(item)

    def _give(self, item: _T | _End) -> bool:
        while not self._given_up.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=_POLL_S)
                return True
        return False

    def close(self) -> None:
        """Says that no item follows."""
        self._give(_End())

    def take(self) -> Iterator[_T]:
        """Yields items until the giver has closed the belt.

        Raises:
          BaseException: what either side failed of; items that wait are let go.
        """
        while not self._given_up.is_set():
            with contextlib.suppress(queue.Empty):
                item = self._items.get(timeout=_POLL_S)
                if isinstance(item, _End):
                    return
                yield item
        self.raise_error()

    def give_up(self, error: BaseException | None = None) -> None:
        """Ends giving and taking at once."""
        self._error = self._error or error
        self._given_up.set()

    def raise_error(self) -> None:
        """Raises what either side failed of, whenever it is asked."""
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def ahead(items: Iterable[_T], depth: int) -> Iterator[Iterator[_T]]:
    """Iterates in a thread of its own.

    Args:
      items: what is iterated over; only that thread does.
      depth: items that may wait to be taken.

    Yields:
      An iterator over the items, in their order.
    """
    belt: _Belt[_T] = _Belt(depth)

    def work() -> None:
        try:
            try:
                for item in items:
                    if not belt.give(item):
                        return
            finally:
                if isinstance(items, Iterator) and hasattr(items, "close"):
                    items.close()
            belt.close()
        except BaseException as error:
            belt.give_up(error)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        yield belt.take()
    finally:
        belt.give_up()
        thread.join()


@contextlib.contextmanager
def behind(consume: Callable[[_T], None], depth: int) -> Iterator[Callable[[_T], None]]:
    """Calls a function in a thread of its own.

    Args:
      consume: the function, called for one item after the other.
      depth: items that may wait for it.

    Yields:
      A function that hands an item over. When the block ends without an error, all of
      them have been consumed.
    """
    belt: _Belt[_T] = _Belt(depth)

    def work() -> None:
        try:
            for item in belt.take():
                consume(item)
        except BaseException as error:
            belt.give_up(error)

    def put(item: _T) -> None:
        if not belt.give(item):
            belt.raise_error()

    thread = threading.Thread(target=work, name="behind", daemon=True)
    thread.start()
    try:
        yield put
        belt.close()
        thread.join()
        belt.raise_error()
    finally:
        belt.give_up()
        thread.join()
