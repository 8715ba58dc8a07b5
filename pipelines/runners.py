"""Which runner on this machine a command's job goes to."""

import logging
from collections.abc import Sequence
from pathlib import Path

from apache_beam.options import pipeline_options
from apache_beam.runners.portability import prism_runner

_EITHER = ("DirectRunner", "SwitchingDirectRunner")
"""Names of Beam's local runner, which is Prism where it can be had, else FnApiRunner.

Where Prism is not on this machine, Beam would download and start it, waiting without
limit for a network that drops what is sent. A job's result does not depend on that.
"""

_LISTENING = (*_EITHER, "PrismRunner", "PortableRunner")
"""Runners that hear of a job's end through a request that is made before its begin.

Beam gives that request --job_server_timeout, 300 seconds unless set: Prism, and other
job servers that keep a job's first name, seemed to have failed where a job took longer.
"""
_TIMEOUT_S = 10 * 365 * 24 * 3600  # gRPC and Python take no more than some decades


def settle(flags: Sequence[str], default: str) -> list[str]:
    """Returns Beam's flags with a runner that is there, and time for any job.

    Args:
      flags: Beam's flags, as they were typed.
      default: the runner where none is named, or where Beam's own local runner is and
        Prism is not on this machine.
    """
    options = pipeline_options.PipelineOptions(list(flags))
    named = options.view_as(pipeline_options.StandardOptions).runner
    if named is None or (named.split(".")[-1] in _EITHER and not _has_prism(options)):
        return [*flags, f"--runner={default}"]  # of two, the last counts
    if named.split(".")[-1] in _LISTENING:
        return [f"--job_server_timeout={_TIMEOUT_S}", *flags]
    return list(flags)


def quiet() -> None:
    """Keeps what Prism and Beam say of their own affairs from the terminal.

    Errors of a job come back as its exception.
    """
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    prism = logging.getLogger(prism_runner.PrismJobServer.__name__)
    prism.propagate = False  # Beam sets its level anew
    if not prism.handlers:
        prism.addHandler(logging.NullHandler())


def _has_prism(options: pipeline_options.PipelineOptions) -> bool:
    """Says whether Prism is here: named by a flag, or kept from an earlier download."""
    if options.view_as(pipeline_options.PrismRunnerOptions).prism_location:
        return True
    kept = Path(prism_runner.PrismJobServer.BIN_CACHE)
    return any(path.is_file() for path in kept.glob("*prism*"))
