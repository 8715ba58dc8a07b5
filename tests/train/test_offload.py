import pytest
import torch
from torch import Tensor, nn

from train import offload


def test_activations_are_moved_and_weights_and_small_tensors_stay() -> None:
    layer = nn.Linear(8, 8, bias=False)
    x = torch.randn(64, 8, requires_grad=True)
    with offload.activations(least_bytes=x.nbytes):
        hidden = layer(x).exp()
        whole = hidden.sum()
    saved = whole.grad_fn.next_functions[0][0]._saved_result  # type: ignore[union-attr]
    assert torch.equal(saved, hidden)
    assert saved.data_ptr() != hidden.data_ptr()
    weight = layer(x).grad_fn
    with offload.activations(least_bytes=1):
        weight = layer(x).grad_fn
    assert weight._saved_mat2.data_ptr() == layer.weight.data_ptr()  # type: ignore[union-attr]
    with offload.activations():
        kept = x.exp()
    assert kept.grad_fn._saved_result.data_ptr() == kept.data_ptr()  # type: ignore[union-attr]


def test_gradients_are_those_without() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 8))
    x = torch.randn(16, 8)
    found = []
    for context in (torch.enable_grad(), offload.activations(least_bytes=1)):
        net.zero_grad()
        with context:
            net(x).square().sum().backward()
        found.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_of_a_pass_in_bfloat16_the_activations_alone_are_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def on_host(value: Tensor) -> Tensor:
        moved.append(value)
        return original(value)

    original, moved = offload._on_host, list[Tensor]()
    monkeypatch.setattr(offload, "_on_host", on_host)
    n, d = 6, 16
    net = nn.Sequential(nn.Linear(d, d, bias=False), nn.GELU(), nn.Linear(d, d))
    x = torch.randn(n, d, requires_grad=True)
    with (
        torch.autocast("cpu", torch.bfloat16),
        offload.activations(least_bytes=n * d * 2),
    ):
        net(x).float().sum().backward()
    # What goes into the first layer, into GELU, and into the last: in bfloat16.
    assert [value.dtype for value in moved] == [torch.bfloat16] * 3
    assert sum(value.nbytes for value in moved) == 3 * n * d * 2
