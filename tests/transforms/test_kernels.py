import pytest
import torch

from tests.interpreted import run_interpreted
from transforms import reduction


def test_kernels_keep_their_laws_in_tritons_interpreter() -> None:
    ended = run_interpreted("tests/transforms/kernel_laws.py")
    assert ended.returncode == 0, ended.stdout
    assert "14 passed" in ended.stdout


@pytest.mark.parametrize("kernels", [True, False])
def test_on_a_cpu_plain_torch_reduces(kernels: bool) -> None:
    cpu = torch.device("cpu")
    made = reduction.choose(cpu, torch.float32, 90, n_ids=80, k=2, kernels=kernels)
    assert made.name == "plain torch"
