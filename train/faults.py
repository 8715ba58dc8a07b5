"""Faults of one process, told to all: none waits for one that has failed.

Processes wait for each other where they exchange something. One that fails on its way
there would leave the others waiting until it has ended, and whoever started them has
ended them, too; where nobody does, until the exchange's time-out of half an hour. So
whatever one process may fail at by itself, as reading and writing, is done in a block
of `shared`, after which all processes ask each other how it went.

What fails amid an exchange itself, as a forward pass of a model in shards, cannot be
told by exchanging more: that process ends, and its launcher ends the others.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import distributed

Value = TypeVar("Value")


class PeerError(RuntimeError):
    """Another process failed, so this one cannot go on; says which, and with what."""


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Runs a block that every process enters: where it fails on one, it does on all.

    A block may hold others, and exchanges: no process may fail between those but in
    blocks of their own.

    Raises:
      PeerError: if it failed on another process, and not on this one.
    """
    fault: Exception | None = None
    try:
        yield
    except Exception as error:
        fault = error
    if _several():
        _agree(fault)
    if fault is not None:
        raise fault


def each(values: Iterable[Value]) -> Iterator[Value]:
    """Yields values that every process makes alike, each made in a block of `shared`.

    Raises:
      PeerError: if another process could not make the next one.
    """
    made = iter(values)
    while True:
        with shared():
            found = list(itertools.islice(made, 1))
        if not found:
            return
        yield found[0]


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _agree(fault: Exception | None) -> None:
    """Tells the others of a fault; raises theirs where this process has none."""
    state = PartialState()
    failed = torch.tensor(float(fault is not None), device=state.device)
    distributed.all_reduce(failed, distributed.ReduceOp.MAX)
    if not failed:
        return
    told: list[str | None] = [None] * state.num_processes
    distributed.all_gather_object(
        told, None if fault is None else f"{type(fault).__name__}: {fault}"
    )
    if fault is None:
        number = next(n for n, text in enumerate(told) if text is not None)
        raise PeerError(
            f"process {number} of {len(told)}, counted from 0, has failed, so all end:"
            f" {told[number]}"
        )
