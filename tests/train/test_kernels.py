import sys
import types

import pytest
import torch

from tests.interpreted import run_interpreted
from transforms import compilers


def test_the_kernels_pass_the_tests_of_the_loss_in_tritons_interpreter() -> None:
    ended = run_interpreted("tests/train/test_loss.py", "-k", "small")
    assert ended.returncode == 0, ended.stdout
    assert "9 passed" in ended.stdout


@pytest.mark.parametrize("interprets", [None, False, True])
def test_on_a_cpu_kernels_are_used_where_triton_says_that_it_interprets(
    interprets: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = types.ModuleType("triton")
    if interprets is not None:  # older versions have no knobs
        runtime = types.SimpleNamespace(interpret=interprets)
        monkeypatch.setattr(
            triton, "knobs", types.SimpleNamespace(runtime=runtime), raising=False
        )
    monkeypatch.setitem(sys.modules, "triton", triton)
    assert compilers.has_triton(torch.device("cpu")) == bool(interprets)
