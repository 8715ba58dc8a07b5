import contextlib
import threading
import time
import traceback
from collections.abc import Iterator

import pytest

from transforms import overlap

WAIT_S = 20.0


def names() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name in ("ahead", "behind")]


def counted(n: int, log: list[str]) -> Iterator[int]:
    for i in range(n):
        log.append(f"read {i}")
        yield i


def test_order_is_kept_and_every_item_comes_once() -> None:
    got: list[int] = []
    with (
        overlap.ahead(iter(range(100)), 3) as items,
        overlap.behind(got.append, 3) as put,
    ):
        for item in items:
            put(2 * item)
    assert got == [2 * item for item in range(100)]
    assert names() == []


def test_what_is_ahead_goes_on_while_the_caller_works_on_the_first() -> None:
    third_was_read = threading.Event()

    def read() -> Iterator[int]:
        yield from (0, 1)
        third_was_read.set()
        yield 2

    with overlap.ahead(read(), 2) as items:
        assert next(items) == 0
        assert third_was_read.wait(WAIT_S)
        assert list(items) == [1, 2]


def test_no_more_is_read_ahead_than_may_wait() -> None:
    log: list[str] = []
    with overlap.ahead(counted(50, log), 2) as items:
        for place, item in enumerate(items):
            assert item == place
            # two wait, one is in the reader's hand, and one more may just be read
            assert len(log) <= place + 1 + 2 + 2


def test_the_caller_goes_on_while_what_is_behind_is_at_the_first() -> None:
    second_was_put = threading.Event()
    done: list[int] = []

    def write(item: int) -> None:
        assert second_was_put.wait(WAIT_S)
        done.append(item)

    with overlap.behind(write, 2) as put:
        put(0)
        put(1)
        assert done == []
        second_was_put.set()
    assert done == [0, 1]


def test_what_is_handed_over_waits_where_too_much_of_it_does() -> None:
    may_write = threading.Event()
    done: list[int] = []

    def write(item: int) -> None:
        assert may_write.wait(WAIT_S)
        done.append(item)

    put_all = threading.Event()

    def work() -> None:
        with overlap.behind(write, 1) as put:
            for item in range(9):
                put(item)
            put_all.set()

    caller = threading.Thread(target=work)
    caller.start()
    assert not put_all.wait(0.3)
    may_write.set()
    caller.join(WAIT_S)
    assert done == list(range(9))


def fail_to_read() -> Iterator[int]:
    yield from range(3)
    raise KeyError("cannot read")


def fail_to_write(item: int) -> None:
    if item == 1:
        raise KeyError("cannot write")


def test_an_error_ahead_is_raised_in_the_caller_with_its_own_traceback() -> None:
    with (
        pytest.raises(KeyError, match="cannot read") as caught,
        overlap.ahead(fail_to_read(), 9) as items,
    ):
        list(items)
    assert "fail_to_read" in [f.name for f in traceback.extract_tb(caught.tb)]
    assert names() == []


def test_an_error_ahead_does_not_wait_for_what_was_read_before() -> None:
    begun = threading.Event()
    got = []

    def read() -> Iterator[int]:
        yield from (0, 1, 2)
        assert begun.wait(WAIT_S)
        raise KeyError("cannot read")

    def take() -> None:
        with overlap.ahead(read(), 9) as items:
            for item in items:
                got.append(item)
                begun.set()
                while "ahead" in names():  # until the thread has told, and ended
                    time.sleep(0.001)

    with pytest.raises(KeyError, match="cannot read"):
        take()
    assert got == [0]


@pytest.mark.parametrize("last", [1, 40])
def test_an_error_behind_is_raised_in_the_caller_with_its_own_traceback(
    last: int,
) -> None:
    def work() -> None:
        with overlap.behind(fail_to_write, 2) as put:
            for item in range(last + 1):
                put(item)

    with pytest.raises(KeyError, match="cannot write") as caught:
        work()
    assert "fail_to_write" in [f.name for f in traceback.extract_tb(caught.tb)]
    assert names() == []


def test_nothing_is_consumed_after_an_error_behind() -> None:
    got: list[int] = []

    def write(item: int) -> None:
        got.append(item)
        fail_to_write(item)

    def work() -> None:
        with overlap.behind(write, 2) as put:
            for item in range(40):
                put(item)

    with pytest.raises(KeyError):
        work()
    assert got == [0, 1]


def test_an_error_behind_that_was_passed_over_is_raised_at_the_end() -> None:
    def work() -> None:
        with overlap.behind(fail_to_write, 2) as put:
            for item in range(40):
                with contextlib.suppress(KeyError):
                    put(item)

    with pytest.raises(KeyError, match="cannot write"):
        work()


def test_an_error_when_reading_ends_is_raised_in_the_caller() -> None:
    def read() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise KeyError("cannot end")

    def work() -> list[int]:
        with overlap.ahead(read(), 2) as items:
            return list(items)

    with pytest.raises(KeyError, match="cannot end"):
        work()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_caller_ends_both_threads(error: type[BaseException]) -> None:
    closed = threading.Event()
    got: list[int] = []

    def read() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    def work() -> None:
        with (
            overlap.ahead(read(), 2) as items,
            overlap.behind(got.append, 2) as put,
        ):
            for item in items:
                put(item)
                raise error("stop")

    with pytest.raises(error, match="stop"):
        work()
    assert closed.is_set()
    assert len(got) <= 1
    assert names() == []


def test_what_was_never_begun_is_closed_too() -> None:
    log: list[str] = []
    with overlap.ahead(counted(50, log), 1):
        pass
    assert len(log) <= 3
    assert names() == []
