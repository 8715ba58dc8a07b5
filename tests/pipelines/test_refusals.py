"""Which errors are told in a step's own words, and which keep a runner's trace."""

import fractions
import traceback
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import pytest

from pipelines import refusals
from schemas.errors import SchemaError
from transforms.attempts import Guards

ROOT = Path(__file__).resolve().parents[2]
SAID = "max_slice_attempts must be at least 1, got 0"


def refuse() -> object:
    raise SchemaError("part-3 must hold windows, it holds soup")


def misuse() -> object:
    return Guards(max_slice_attempts=0)


def slip_in_a_test() -> object:
    return int("soup")


def slip_in_a_library() -> object:
    return fractions.Fraction("soup")


def slip_in_beams_own_transforms() -> object:
    return beam.BatchElements(min_batch_size=7, max_batch_size=1)


def printed(call: Callable[[], object]) -> RuntimeError:
    """Returns what a runner whose workers are other processes makes of an error."""
    try:
        call()
    except ValueError:
        trace = traceback.format_exc()
    return RuntimeError(f"Error received from SDK harness for instruction 4: {trace}")


def test_what_data_is_refused_with_is_told_wherever_it_was_raised() -> None:
    assert refusals.told(printed(refuse)) == "part-3 must hold windows, it holds soup"


def test_misuse_that_our_code_refuses_is_told_wherever_the_worker_has_it() -> None:
    error = printed(misuse)
    assert refusals.told(error) == SAID
    there = str(error).replace(str(ROOT), "/opt/python3.11/site-packages")
    assert refusals.told(RuntimeError(there)) == SAID


def test_what_beam_adds_of_its_step_is_left_out() -> None:
    said = str(printed(misuse)).replace(SAID, f"{SAID} [while running 'Do slices']")
    assert refusals.told(RuntimeError(said)) == SAID


@pytest.mark.parametrize(
    "slip", [slip_in_a_test, slip_in_a_library, slip_in_beams_own_transforms]
)
def test_a_value_error_of_other_code_keeps_its_trace(
    slip: Callable[[], object],
) -> None:
    error = printed(slip)
    assert "\nValueError: " in str(error)
    assert refusals.told(error) is None


def test_a_refusal_before_a_librarys_error_is_told_all_the_same() -> None:
    both = f"{printed(misuse)}\n\nDuring handling ...\n\n{printed(slip_in_a_library)}"
    assert refusals.told(RuntimeError(both)) == SAID
