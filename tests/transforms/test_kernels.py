from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interpreted import run_interpreted
from transforms import reduction

ALIGNED = ("logits", "stride", "width", "n_ids", "peaks", "norms", "ids", "logprobs")
TYPES = {
    "logits": "*bf16",
    "gold_ids": "*i64",
    "ids": "*i32",
    "finite": "*i8",
    **dict.fromkeys(("peaks", "norms", "logprobs", "golds"), "*fp32"),
    **dict.fromkeys(("stride", "width", "n_ids", "n_tiles"), "i32"),
}


def test_kernels_keep_their_laws_in_tritons_interpreter() -> None:
    ended = run_interpreted("tests/transforms/kernel_laws.py")
    assert ended.returncode == 0, ended.stdout
    assert "16 passed" in ended.stdout


@pytest.mark.filterwarnings("ignore")  # whatever a compiler has to say
@pytest.mark.parametrize(
    ("name", "warps", "constants"),
    [
        ("_measure_row", 4, {"tile": 64, "tiles": 32, "per_nat": 1.4426950408889634}),
        (
            "_choose_row",
            4,
            {"k": 10, "wide": 4096, "turns": 10, "slots": 16, "tile": 64},
        ),
    ],
)
def test_kernels_compile_for_a_gpu_and_read_16_bytes_at_a_time(
    name: str,
    warps: int,
    constants: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from transforms import kernels

    kernel = getattr(kernels, name)
    source = ASTSource(
        fn=kernel,
        signature={arg: TYPES.get(arg, "constexpr") for arg in kernel.arg_names},
        constexprs=constants,
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, arg in enumerate(kernel.arg_names)
            if arg in ALIGNED
        },
    )
    made = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}
    )
    assert made.asm["cubin"]
    if name == "_measure_row":
        assert "ld.global.v4" in made.asm["ptx"]


@pytest.mark.parametrize("kernels", [True, False])
def test_on_a_cpu_plain_torch_reduces(kernels: bool) -> None:
    cpu = torch.device("cpu")
    made = reduction.choose(cpu, torch.float32, 90, n_ids=80, k=2, kernels=kernels)
    assert made.name == "plain torch"
