import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.bench.spent import Spent
from tests.bench.told_time import Time


def test_a_part_has_what_parts_within_it_do_not_take() -> None:
    clock = Time()
    spent = Spent(clock)
    inner = spent.timed(lambda: clock.spend(3.0), "inner")

    def outer() -> None:
        clock.spend(1.0)
        inner()
        inner()

    spent.timed(outer, "outer")()
    assert spent.of("MainThread") == {"inner": 6.0, "outer": 1.0}
    assert list(spent.of("MainThread")) == ["inner", "outer"]


def test_an_iterator_takes_the_time_of_its_items_and_not_of_who_asks() -> None:
    clock = Time()
    spent = Spent(clock)

    def items() -> Iterator[int]:
        for number in range(3):
            clock.spend(2.0)
            yield number
        clock.spend(0.5)

    for _ in spent.timed(items, "read")():
        clock.spend(100.0)
    assert spent.of("MainThread") == {"read": 6.5}


def test_what_fails_has_taken_its_time() -> None:
    clock = Time()
    spent = Spent(clock)

    def fail() -> None:
        clock.spend(1.0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), spent.part("whole"):
        spent.timed(fail, "part")()
    assert spent.seconds == {
        ("MainThread", "whole"): 0.0,
        ("MainThread", "part"): 1.0,
    }


def test_threads_are_told_apart() -> None:
    clock = Time()
    spent = Spent(clock)
    work = spent.timed(lambda: clock.spend(1.0), "write")
    with spent.part("wait"):
        other = threading.Thread(target=work, name="behind")
        other.start()
        other.join()
    assert spent.of("behind") == {"write": 1.0}
    assert spent.of("MainThread") == {"wait": 1.0}


class Kept:
    def call(self) -> str:
        return "kept"


def test_what_was_watched_is_as_it_was() -> None:
    before = Kept.call
    one, plain = Kept(), SimpleNamespace(call=lambda: "plain")
    lone = plain.call
    spent = Spent()
    with (
        spent.watching(Kept, "call", "class"),
        spent.watching(one, "call", "object"),
        spent.watching(plain, "call", "plain"),
    ):
        assert (one.call(), plain.call(), Kept().call()) == ("kept", "plain", "kept")
    assert Kept.call is before
    assert "call" not in vars(one)
    assert plain.call is lone
    assert set(spent.of("MainThread")) == {"class", "object", "plain"}
