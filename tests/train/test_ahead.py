import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from tests.train import reading
from train.ahead import Ahead


class Shelf:
    """Values that are counted while they are alive, read as fast as the test lets."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.open = threading.Event()
        self.begun = threading.Semaphore(0)

    def read(self, key: int) -> "Value":
        self.asked.append(key)
        self.begun.release()
        assert self.open.wait(30)
        if key < 0:
            raise ValueError(f"no value {key}")
        return Value(key)


class Value:
    def __init__(self, key: int) -> None:
        self.key = key


def number(key: int) -> int:
    return 10 * key


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    made = Shelf()
    yield made
    made.open.set()


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_what_comes_out_depends_on_no_threads(threads: int) -> None:
    ahead = Ahead(number, threads)
    for start in range(0, 20, 5):
        ahead.want(range(start, start + 7))
        assert [ahead.get(k) for k in range(start, start + 5)] == [
            10 * k for k in range(start, start + 5)
        ]
    assert ahead.get(99) == 990  # nobody wanted it before
    ahead.close()


def test_values_are_read_in_the_order_they_are_wanted_in_before_they_are_asked_for(
    shelf: Shelf,
) -> None:
    shelf.open.set()
    ahead = Ahead(shelf.read, 1)
    ahead.want([5, 1, 3])
    for _ in range(3):
        assert shelf.begun.acquire(timeout=30)
    assert ahead.get(3).key == 3
    assert shelf.asked == [5, 1, 3]
    ahead.close()


def test_what_is_not_wanted_any_more_is_neither_read_nor_kept(shelf: Shelf) -> None:
    ahead = Ahead(shelf.read, 1)
    ahead.want([1, 2, 3])
    assert shelf.begun.acquire(timeout=30)  # the thread waits within 1
    ahead.want([1, 4])
    shelf.open.set()
    one, four = ahead.get(1), ahead.get(4)
    assert shelf.asked == [1, 4]
    alive = weakref.ref(one)
    ahead.want([4])
    del one
    assert ahead.get(4) is four
    gc.collect()
    assert alive() is None
    ahead.close()


def test_without_threads_a_value_is_read_when_it_is_asked_for(shelf: Shelf) -> None:
    shelf.open.set()
    ahead = Ahead(shelf.read, 0)
    ahead.want([1, 2])
    assert shelf.asked == []
    assert ahead.get(2) is ahead.get(2)
    assert shelf.asked == [2]


def test_an_error_comes_where_its_value_is_asked_for_and_nowhere_else(
    shelf: Shelf,
) -> None:
    shelf.open.set()
    ahead = Ahead(shelf.read, 2)
    ahead.want([-1, 1, -2])
    assert ahead.get(1).key == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="no value -1"):
            ahead.get(-1)
    ahead.close()  # nobody asked for -2


def test_threads_end_when_they_are_told_to() -> None:
    before = reading.threads()
    ahead = Ahead(number, 3)
    ahead.want([1])
    begun = reading.threads() - before
    assert len(begun) == 3
    ahead.close()
    for thread in begun:
        thread.join(30)
        assert not thread.is_alive()
    ahead.want([1])  # a closed one may be used again
    assert ahead.get(1) == 10
    ahead.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_copy_and_a_child_read_for_themselves() -> None:
    ahead = Ahead(number, 1)
    ahead.want([1])
    assert ahead.get(1) == 10
    assert pickle.loads(pickle.dumps(ahead)).get(1) == 10
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found, process = pool.apply(_in_child, (ahead,))
    assert found == 10
    assert process != os.getpid()
    ahead.close()


def _in_child(ahead: "Ahead[int, int]") -> tuple[int, int]:
    ahead.want([1, 2])
    return ahead.get(1), os.getpid()


def test_a_program_ends_while_a_thread_waits_for_a_bucket() -> None:
    program = """
import threading
from tests.train import reading
from train.ahead import Ahead
def read(key):
    begun.set()
    threading.Event().wait()
begun = threading.Event()
ahead = Ahead(read, 2)
ahead.want([1, 2, 3])
begun.wait()
raise KeyboardInterrupt
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert "KeyboardInterrupt" in ended.stderr
