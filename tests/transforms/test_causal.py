import pytest
import torch

from tests import causal_models
from transforms import causal

CUT = (*causal_models.MAIN, "gemma2", "cohere", "granite", "mixtral")


def both(name: str) -> tuple[torch.Tensor, torch.Tensor, causal.Halves]:
    model = causal_models.make(name, 99)
    halves = causal.Halves(model)
    ids = torch.randint(99, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = model(input_ids=ids).logits.flatten(0, 1)
        features = halves.features(ids).flatten(0, 1)
        parts = [halves.logits(part) for part in torch.split(features, 7)]
    return whole, torch.cat(parts), halves


@pytest.mark.parametrize("name", CUT)
def test_logits_of_some_positions_at_a_time_are_the_models_own(name: str) -> None:
    whole, parts, halves = both(name)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert halves.width == 99


@pytest.mark.parametrize("name", CUT)
def test_features_are_small_where_a_model_can_be_cut(name: str) -> None:
    halves = causal.Halves(causal_models.make(name, 99))
    assert halves.features(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 16)


def test_a_model_that_cannot_be_cut_gives_its_logits_all_the_same() -> None:
    whole, parts, _ = both("opt")
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_a_head_that_masks_ids_is_cut_from_its_body_and_must_not_look_ahead() -> None:
    class Masking(torch.nn.Module):
        def __init__(self, head: torch.nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(
                self.head(features)[..., :-3], (0, 3), value=-torch.inf
            )

    model = causal_models.make("llama", 200)
    model.lm_head = Masking(model.lm_head)
    assert causal.Halves(model).cut
    ahead = causal_models.make("bert", 200)
    ahead.cls = Masking(ahead.cls)
    with pytest.raises(ValueError, match="must not look ahead"):
        causal.Halves(ahead)


def test_engines_of_one_model_share_its_lock_and_no_others() -> None:
    one, other = (causal_models.make("llama", 20) for _ in range(2))
    assert causal.lock_of(one) is causal.lock_of(one)
    assert causal.lock_of(one) is not causal.lock_of(other)


def test_a_model_that_looks_ahead_is_refused() -> None:
    with pytest.raises(ValueError, match="must not look ahead"):
        causal.Halves(causal_models.make("bert", 99))


def test_a_body_runs_itself_again_after_its_stand_in_even_on_an_error() -> None:
    model = causal_models.make("llama", 99)
    halves = causal.Halves(model)
    ids = torch.arange(9)[None]
    before = model(input_ids=ids).logits
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        halves.logits(torch.zeros(4, 5))
    assert "forward" not in vars(model.base_model)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_wrapped_forward_is_put_back() -> None:
    model = causal_models.make("llama", 99)
    wrapper = model.base_model.forward
    vars(model.base_model)["forward"] = wrapper
    causal.Halves(model)
    assert vars(model.base_model)["forward"] is wrapper


@pytest.mark.parametrize("name", [*causal_models.MAIN, "opt"])
def test_the_longest_input_is_read_from_the_configuration(name: str) -> None:
    model = causal_models.make(name, 99)
    assert causal.longest_input(model) == causal_models.CONTEXT


@pytest.mark.parametrize("has", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(
    has: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = causal.choose_device("cpu")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert causal.choose_dtype("auto", cpu) == torch.float32
    monkeypatch.setattr(torch.cpu, has, lambda: True)
    assert causal.choose_dtype("auto", cpu) == torch.bfloat16
    assert causal.choose_dtype("float32", cpu) == torch.float32
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # it has, but must not use them
    assert causal.choose_dtype("auto", cpu) == torch.float32
    assert causal.choose_dtype("bfloat16", cpu) == torch.bfloat16


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_by_name(device: str) -> None:
    with pytest.raises(ValueError, match=device):
        causal.choose_device(device)
