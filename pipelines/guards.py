"""Settings that every job has: when it is given up, and what is given up in it."""

from typing import Any

from schemas.settings import setting
from transforms.attempts import Guards

_DEFAULTS = Guards()


def stall_timeout() -> Any:
    """Declares the setting of that name."""
    return setting(
        _DEFAULTS.stall_timeout,
        help="seconds without a sign of life from any worker, after which the job is"
        " ended with an error; inf: never",
        shapes_output=False,
    )


def max_slice_attempts() -> Any:
    """Declares the setting of that name."""
    return setting(
        _DEFAULTS.max_slice_attempts,
        help="how often a slice may kill its process before it is given up: published"
        " as errors, and named",
        shapes_output=False,
    )


def element_timeout() -> Any:
    """Declares the setting of that name."""
    return setting(
        _DEFAULTS.element_timeout,
        help="seconds that a slice may take, once its model is loaded, before its"
        " process is ended, which counts as killing it; left out: as long as it takes",
        shapes_output=False,
    )


def of(config: Any) -> Guards:
    """Returns the guards among a stage's settings.

    Raises:
      ValueError: if one of them is out of range.
    """
    return Guards(
        max_slice_attempts=config.max_slice_attempts,
        element_timeout=config.element_timeout,
        stall_timeout=config.stall_timeout,
    )
