import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from tests.transforms.scoring import make
from tests.transforms.test_packing import WINDOWS
from transforms import packed_attention, transfers
from transforms.scorer import Scorer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("kind", DEVICES)
def test_what_goes_up_comes_down_as_it_was_when_it_was_asked_for(kind: str) -> None:
    given = np.arange(100_000, dtype=np.int32).reshape(1000, 100)
    device = torch.device(kind)
    there = transfers.upload(torch.from_numpy(given), device)
    assert there.device.type == kind
    twice = there * 2
    wait = transfers.download([twice, there.bool()])
    doubled, flags = wait()
    assert_array_equal(doubled, 2 * given)
    assert_array_equal(flags, given.astype(bool))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral", "gpt_oss"])
def test_every_kernel_of_a_gpu_attends_as_window_by_window(name: str) -> None:
    model, _ = make(name)
    model = model.to("cuda", torch.bfloat16)
    made = make(name)[1].tokenizer
    kernels = packed_attention.kernels(torch.device("cuda"), torch.bfloat16)
    assert len(kernels) > 1
    found = []
    for how, kernel in kernels.items():
        with pytest.MonkeyPatch.context() as patch:
            alone = {how: kernel}
            patch.setattr(packed_attention, "kernels", lambda *_, alone=alone: alone)
            scorer_ = Scorer(model, made)
        assert scorer_.engine.layout == f"packed, {how}"
        found.append(scorer_.score(WINDOWS).scores)
    for one in found:
        for left, right in zip(one, found[-1], strict=True):
            assert abs(left.gold_logprob - right.gold_logprob).mean() < 0.1
