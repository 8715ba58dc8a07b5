import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HIDDEN = ["jaxtyping", "pyarrow", "zstandard", "accelerate", "fsspec", "triton"]
CODE = f"""
import sys
sys.modules |= dict.fromkeys({HIDDEN})
import torch
from train import loss, rows
from train.objective import Objective
made = rows.select_rows(
    torch.tensor([[0, 1, 2]]),
    torch.tensor([[True, True, False]]),
    torch.tensor([[[3], [-1], [-1]]]),
    torch.full((1, 3, 1), 0.75),
    torch.full((1, 3), 0.25),
)
one = torch.ones(())
states, head = torch.zeros(2, 3, requires_grad=True), torch.zeros(4, 3)
found = loss.head_loss(
    states, head, None, made, Objective(), clm_count=2 * one, fusion_count=one
)
found.loss.backward()
print(round(found.clm_sum.item() / torch.tensor(4.0).log().item(), 4))
"""


def test_the_loss_needs_nothing_but_torch() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.stdout == "2.0\n", ended.stderr
