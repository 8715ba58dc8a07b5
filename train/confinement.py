"""What lm-evaluation-harness is kept from while it works.

Programs of the hub, Python of task folders and what a model has written run only where
that is allowed, templates of tasks run in Jinja's sandbox, no data set brings a program
along (datasets 4 and later), and what tasks say goes into no log.
"""

import contextlib
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import sandbox

ALLOW = "pass --run_code where you trust it, in a container at best"

_SEED, _OTHER_SEED = 0, 1234
"""Of Python's generator and of numpy's and torch's: the harness's own defaults."""


class Refused(BaseException):
    """A program of the hub that was not had; the harness swallows mere Exceptions."""


@contextlib.contextmanager
def confined(*, run_code: bool) -> Iterator[None]:
    """Keeps the harness from what it may not do, from logs, and from chance."""
    import datasets
    import evaluate
    from lm_eval import utils
    from lm_eval.tasks import _yaml_loader

    def import_function(name: str, folder: Path) -> Any:
        own = Path(_yaml_loader.__file__).parent
        if not (run_code or folder.resolve().is_relative_to(own)):
            raise Refused(f"{name} beside {folder} is Python of somebody's; {ALLOW}")
        return imported(name, folder)

    def program(name: str, *given: Any, **more: Any) -> Any:
        if not run_code:
            raise Refused(
                f"{name} is a program of the hub, which must be allowed to run; {ALLOW}"
            )
        try:
            return fetch(name, *given, **more)
        except Exception as error:
            raise Refused(
                f"{name}, a program of the hub, must be had"
                f" ({type(error).__name__}); fetch it where there is a way to the hub"
            ) from error

    imported = _yaml_loader._import_func_in_yml
    fetch, plain = evaluate.load, utils.env
    safe = sandbox.SandboxedEnvironment(
        undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    safe.filters.update(plain.filters)
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    with _silence(), seeded(), _code_allowed(run_code):
        evaluate.load, utils.env = program, safe
        _yaml_loader._import_func_in_yml = import_function
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # tells the hub of each load
        try:
            yield
        finally:
            evaluate.load, utils.env = fetch, plain
            _yaml_loader._import_func_in_yml = imported
            datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Lets the harness and the reader of data log nothing: they quote what is read."""
    import datasets

    logs = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate")]
    before = [(log, log.propagate, log.handlers[:]) for log in logs]
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for log in logs:
        log.propagate, log.handlers = False, [logging.NullHandler()]
    try:
        yield
    finally:
        for log, propagate, handlers in before:
            log.propagate, log.handlers = propagate, handlers
        if not bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Makes what tasks leave to chance the same each time; our own state comes back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the harness's
    random.seed(_SEED)
    np.random.seed(_OTHER_SEED)  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[*range(torch.cuda.device_count())]):
            torch.manual_seed(_OTHER_SEED)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextlib.contextmanager
def _code_allowed(run_code: bool) -> Iterator[None]:
    """Tells the hub's metric of programs, which asks the environment, what may be."""
    name = "HFALLOW_CODE_EVAL"
    before = os.environ.pop(name, None)
    if run_code:
        os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
