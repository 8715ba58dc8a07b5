"""Laws of the kernels: `test_kernels` runs them where Triton interprets."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.transforms import scoring
from transforms import kernels, logits, reduction
from transforms.functional.nucleus import Nucleus
from transforms.logits import Reduced

# numpy, of which Triton's interpreter makes use, warns of what is not a number.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what}:RuntimeWarning")
    for what in ("invalid value", "divide by zero")
]

CPU = torch.device("cpu")


def plainly(given: Tensor, gold: Tensor, n_ids: int, k: int) -> Reduced:
    none = torch.empty(len(given), 0, dtype=torch.float64)
    return logits.reduce_logits(given.clone(), gold, none, n_ids, k)


@pytest.mark.parametrize(
    ("v", "n_ids", "k", "levels", "dtype"),
    [
        (1, 1, 1, 3, torch.float32),
        (63, 50, 4, 2, torch.float32),
        (64, 64, 9, 40, torch.bfloat16),
        (130, 129, 3, 1, torch.float16),
        (500, 500, 12, 4, torch.float32),
        (2100, 2060, 5, 3, torch.bfloat16),
        (4200, 4100, 3, 999, torch.float32),
    ],
)
def test_kernels_keep_what_plain_torch_keeps(
    v: int, n_ids: int, k: int, levels: int, dtype: torch.dtype
) -> None:
    make = torch.Generator().manual_seed(v)
    given = torch.randint(-levels, levels, (3, v), generator=make).mul(0.25).to(dtype)
    given[1, : v // 2] = -torch.inf
    before = given.clone()
    gold = torch.tensor([v - 1, v // 2, 0])
    ids, logprobs, norms, golds, finite = kernels.reduce_logits(given, gold, n_ids, k)
    wanted = plainly(given, gold, n_ids, k)
    assert torch.equal(ids, wanted[0])
    assert torch.equal(finite, wanted[4])
    # A few last places of a log-sum-exp in float32, which all are made of.
    apart = 4 * torch.finfo(torch.float32).eps * max(1.0, float(wanted[2].abs().max()))
    for ours, theirs in zip(
        (logprobs, norms, golds), (wanted[1], wanted[2], wanted[3]), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=apart)
    assert torch.equal(given, before)


def test_rows_may_lie_apart_and_columns_too() -> None:
    wide = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    gold = torch.tensor([0, 5, 150])
    for given in (wide[:, 40:240], wide[:, ::2]):
        found = kernels.reduce_logits(given, gold, 200, 4)
        for one, other in zip(found, plainly(given, gold, 200, 4), strict=False):
            torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities
def test_positions_that_are_not_finite_are_told_from_the_others() -> None:
    given = torch.zeros(6, 100)
    given[1, 99], given[2, 3], given[3, 90] = np.nan, np.inf, np.inf
    given[4], given[5, 1] = -np.inf, -np.inf  # all; the gold token
    found = kernels.reduce_logits(given, torch.ones(6, dtype=torch.long), 80, 3)
    assert found[4].tolist() == [True] + [False] * 5


def test_more_entries_than_there_are_ids_are_marked_as_missing() -> None:
    given = torch.tensor([[0.0, 2.0, -torch.inf, 1.0, 9.0]])
    ids, logprobs, *_ = kernels.reduce_logits(given, torch.tensor([0]), 4, 6)
    assert ids.tolist() == [[1, 3, 0, -1, -1, -1]]
    assert torch.isneginf(logprobs).tolist() == [[False] * 3 + [True] * 3]


def test_no_positions_are_no_work() -> None:
    none = torch.empty(0, dtype=torch.long)
    found = kernels.reduce_logits(torch.empty(0, 9), none, 9, 2)
    assert [len(field) for field in found] == [0] * 5


def test_where_nothing_is_drawn_the_kernels_are_chosen_once_they_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reduction, "_TRIAL", 6)
    reduce = reduction.choose(CPU, torch.float32, 90, n_ids=80, k=2).reduce
    calls = []

    def counting(*given: object) -> object:
        calls.append(given)
        return run(*given)  # type: ignore[arg-type]

    run = kernels.reduce_logits
    monkeypatch.setattr(kernels, "reduce_logits", counting)
    given, gold = torch.randn(2, 90), torch.tensor([1, 2])
    reduce(given, gold, torch.empty(2, 0, dtype=torch.float64))
    assert len(calls) == 1
    drawn = reduce(given, gold, torch.full((2, 3), 0.5, dtype=torch.float64))[5]
    assert len(calls) == 1
    assert drawn.shape == (2, 3)


def test_an_adaptive_k_leaves_out_what_it_does_of_plain_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reduction, "_TRIAL", 6)
    more = {"n_ids": 80, "k": 4, "chosen": Nucleus(top_p=0.4)}
    fast = reduction.choose(CPU, torch.float32, 90, **more)
    plain = reduction.choose(CPU, torch.float32, 90, kernels=False, **more)
    assert (fast.name, plain.name) == (reduction.KERNELS, "plain torch")
    given = 3 * torch.randn(3, 90, generator=torch.Generator().manual_seed(0))
    gold, none = torch.tensor([1, 2, 3]), torch.empty(3, 0, dtype=torch.float64)
    found = fast.reduce(given, gold, none)
    ids, logprobs, *_ = plain.reduce(given.clone(), gold, none)
    assert torch.equal(found[0], ids)
    assert 0 < int((ids == -1).sum()) < ids.numel()
    torch.testing.assert_close(found[1], logprobs)


@pytest.mark.parametrize("fault", ["raises", "errs"])
def test_kernels_that_fail_their_trial_are_not_used(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(given: Tensor, gold: Tensor, n_ids: int, k: int) -> tuple[Tensor, ...]:
        if fault == "raises":
            raise RuntimeError("Failed to find C compiler.\nAnd more")
        found = plainly(given, gold, n_ids, k)[:5]
        found[0][-1, -1] += 1
        return found

    monkeypatch.setattr(kernels, "reduce_logits", broken)
    reduce = reduction.choose(CPU, torch.float32, 90, n_ids=80, k=2).reduce
    (told,) = caplog.messages
    assert "plain torch is slower" in told
    if fault == "raises":
        assert "cannot run on cpu (Failed to find C compiler.)" in told
        assert "need a C compiler and its headers there (gcc, libc6-dev)" in told
    given, gold = torch.randn(2, 90), torch.tensor([1, 2])
    found = reduce(given.clone(), gold, torch.empty(2, 0, dtype=torch.float64))
    assert torch.equal(found[0], plainly(given, gold, 80, 2)[0])


def test_windows_are_scored_by_kernels_as_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reduction, "_TRIAL", 6)
    windows = [scoring.window("it", 0), scoring.window("a", 1)]
    _, fast = scoring.make(top_k=3)
    _, plain = scoring.make(top_k=3, kernels=False)
    _, drawing = scoring.make(top_k=3, tail_samples=2)
    names = [one.engine.reduction.name for one in (fast, plain, drawing)]
    assert names == [reduction.KERNELS, "plain torch", "plain torch"]
    found, wanted = fast.score(windows).scores, plain.score(windows).scores
    for ours, theirs in zip(found, wanted, strict=True):
        scoring.assert_close(ours, theirs)
        assert ours.top_ids.tolist() == theirs.top_ids.tolist()
