from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from schemas.errors import SchemaError
from tests.train import shards
from train import data
from train import model as models
from train.data import Collator, Example
from train.model import Traits
from train.objective import Objective

SIZE = 50
SHAPE = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))


def neox() -> Any:
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SHAPE))


def qwen2() -> Any:
    config = transformers.Qwen2Config(
        **SHAPE, num_key_value_heads=2, tie_word_embeddings=True
    )
    return transformers.Qwen2ForCausalLM(config)


def gemma3() -> Any:
    config = transformers.Gemma3TextConfig(**SHAPE, **GEMMA)
    return transformers.Gemma3ForCausalLM(config)


def gemma2() -> Any:
    config = transformers.Gemma2Config(**SHAPE, **GEMMA, final_logit_softcapping=2.0)
    return transformers.Gemma2ForCausalLM(config)


def granite() -> Any:
    config = transformers.GraniteConfig(**SHAPE, logits_scaling=3.0)
    return transformers.GraniteForCausalLM(config)


def phi() -> Any:  # its head has a bias
    return transformers.PhiForCausalLM(transformers.PhiConfig(**SHAPE))


def bloom() -> Any:  # it takes no positions
    config = transformers.BloomConfig(
        vocab_size=SIZE, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2
    )
    return transformers.BloomForCausalLM(config)


class LowRank(nn.Module):
    """A head with LoRA beside its weight, as peft has it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.down = nn.Linear(inner.in_features, 2, bias=False)
        self.up = nn.Linear(2, inner.out_features, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.inner(states) + self.up(self.down(states))


def adapted() -> Any:  # its head is more than a weight, and its logits are capped
    model = gemma2()
    model.set_output_embeddings(LowRank(model.get_output_embeddings()))
    return model


MODELS = [llama, neox, qwen2, gemma3, gemma2, granite, phi, bloom, adapted]
every_model = pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)


def example(seed: int, lengths: list[int]) -> Example:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    mask = np.ones(n, bool)
    mask[np.cumsum(lengths) - 1] = False
    return Example(
        input_ids=rng.integers(3, SIZE, n).astype(np.int32),
        segment_lengths=np.array(lengths, np.int32),
        loss_mask=mask,
        rows=shards.distributions(rng, n, 4, SIZE),
        weights=np.ones((len(lengths), 1), np.float32),
    )


def packed_with(segment: Example, seed: int, lengths: list[int]) -> Example:
    """Puts a segment, the only one that counts, between two random neighbors."""
    around = example(seed, lengths)
    first, last = data.split(around)
    parts = [first, segment, last]
    none = [np.zeros(length, bool) for length in lengths]
    counts = np.concatenate([none[0], segment.loss_mask, none[1]])
    rows = [p.rows for p in parts]
    return Example(
        input_ids=np.concatenate([p.input_ids for p in parts]),
        segment_lengths=np.concatenate([p.segment_lengths for p in parts]),
        loss_mask=counts,
        rows=type(rows[0])(
            **{
                name: np.concatenate([getattr(r, name) for r in rows])
                for name in ("counts", "ids", "probs", "tail")
            }
        ),
        weights=np.concatenate([p.weights for p in parts]),
    )


def losses(
    model: Any, traits: Traits, examples: list[Example], objective: Objective
) -> Tensor:
    collate = Collator(keep_packed=traits.keeps_segments, vocabulary=SIZE)
    return loss_of(model, traits, collate(examples), objective)


def loss_of(
    model: Any, traits: Traits, batch: dict[str, Tensor], objective: Objective
) -> Tensor:
    count = torch.tensor(float(batch["loss_mask"].sum()))
    covered = batch["loss_mask"] & (batch["top_ids"] >= 0).any(-1)
    del batch["tokens"]
    if "forward" not in vars(model):
        models.give_objective(model, traits, objective)
    found = model(
        **batch,
        clm_weight=objective.clm_weight,
        clm_count=count,
        fusion_count=covered.sum().float(),
    )
    return found["loss"]  # type: ignore[no-any-return]


@every_model
def test_a_segments_loss_does_not_depend_on_its_neighbors(
    make: Callable[[], Any],
) -> None:
    torch.manual_seed(0)
    model = make().train()
    traits = models.probe(model)
    segment = example(1, [11])
    alone, *packed = (
        losses(model, traits, [one], Objective(clm_weight=0.5))
        for one in (
            segment,
            packed_with(segment, 2, [7, 9]),  # alike: a batch of three rows
            packed_with(segment, 2, [3, 29]),  # one packed row
            packed_with(segment, 3, [3, 29]),
        )
    )
    for one in packed:
        assert torch.allclose(one, alone, rtol=1e-5)


@pytest.mark.parametrize("make", [llama, neox], ids=lambda m: m.__name__)
def test_a_batch_of_rows_costs_the_same_packed_and_unpacked(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = make().train()
    traits = models.probe(model)
    rows = [example(seed, [12, 11, 10]) for seed in (5, 6)] + [example(7, [12, 9])]
    collate = Collator(keep_packed=True, vocabulary=SIZE)
    loose = collate(rows)
    monkeypatch.setattr(data, "_PADDED", 0.0)
    packed = collate(rows)
    assert (len(loose["input_ids"]), "position_ids" in loose) == (8, False)
    assert (len(packed["input_ids"]), "position_ids" in packed) == (3, True)
    assert loose["tokens"] == packed["tokens"]
    found = []
    for batch in (loose, packed):
        model.zero_grad()
        one = loss_of(model, traits, batch, Objective(clm_weight=0.5))
        one.backward()
        found.append((one.detach(), [p.grad for p in model.parameters()]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    for left, right in zip(found[0][1], found[1][1], strict=True):
        assert (left - right).norm() <= 1e-4 * right.norm() + 1e-7


def test_the_architectures_we_promise_are_trained_packed_and_in_chunks() -> None:
    for make in (llama, neox, qwen2, gemma3):
        torch.manual_seed(0)
        assert models.probe(make()) == Traits(plain_head=True, keeps_segments=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_and_cap_of_the_logits_are_told_by_what_comes_out(
    dtype: torch.dtype,
) -> None:
    capped, scaled = (models.probe(make().to(dtype)) for make in (gemma2, granite))
    assert (capped.plain_head, capped.scale) == (True, 1.0)
    assert capped.cap == pytest.approx(2.0, rel=1e-6)
    assert (scaled.plain_head, scaled.cap) == (True, None)
    assert scaled.scale == pytest.approx(1 / 3, rel=1e-6)


@pytest.mark.parametrize(
    "made",
    [
        lambda logits: logits + 1,
        lambda logits: -logits,
        lambda logits: 3 * torch.erf(logits / 3),  # near to a cap, and none
        lambda logits: logits.index_fill(-1, torch.tensor([7]), -torch.inf),
        lambda logits: logits * torch.linspace(1, 2, SIZE),
        lambda logits: logits * 0,
    ],
    ids=["shifted", "turned", "erf", "masked", "uneven", "none"],
)
def test_logits_of_another_shape_are_not_taken_for_scaled_or_capped(
    made: Callable[[Tensor], Tensor],
) -> None:
    model = llama()
    model.register_forward_hook(
        lambda _, __, output: setattr(output, "logits", made(output.logits))
    )
    assert not models.probe(model).plain_head


def test_a_head_that_is_more_than_a_weight_keeps_the_chunked_path() -> None:
    torch.manual_seed(0)
    found = models.probe(adapted())
    assert found.plain_head
    assert found.cap == pytest.approx(2.0)


def test_a_model_that_mixes_segments_is_noticed() -> None:
    assert not models.probe(bloom()).keeps_segments


@every_model
def test_clm_alone_is_the_models_own_loss_with_its_gradients(
    make: Callable[[], Any],
) -> None:
    torch.manual_seed(0)
    model = make().train()
    one = example(4, [20])
    ids = torch.from_numpy(one.input_ids).long()[None]
    wanted = model(input_ids=ids, labels=ids, use_cache=False).loss
    wanted.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    found = losses(model, models.probe(model), [one], Objective(clm_weight=1.0))
    found.backward()
    assert torch.allclose(found, wanted, rtol=1e-5)
    for name, parameter in model.named_parameters():
        scale = float(gradients[name].abs().max())
        off = float((parameter.grad - gradients[name]).abs().max())
        assert off <= 1e-4 * scale + 1e-7, name


def test_probing_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = llama().train()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    models.probe(model)
    assert model.training
    assert not model.lm_head._forward_hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_weights_are_trained_in_float32_whatever_they_are_stored_in(
    tmp_path: Path,
) -> None:
    llama().to(torch.bfloat16).save_pretrained(tmp_path)
    assert models.stored_dtype(tmp_path) == torch.bfloat16
    assert {p.dtype for p in models.load(tmp_path).parameters()} == {torch.float32}


def test_a_target_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path)
    held = model.state_dict()
    del held["model.norm.weight"]
    model.save_pretrained(tmp_path, state_dict=held)
    with pytest.raises(SchemaError, match=r"but 1 are missing .* model\.norm\.weight"):
        models.load(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must hold weights"):
        models.folder_of(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        models.folder_of(str(tmp_path / "nothing"))


def test_a_target_is_probed_in_float32_whatever_it_is_kept_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In bfloat16 its segments differ from mixed ones by what is rounded.
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE | {"initializer_range": 0.01})
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    wide = models.probe(model)
    narrow = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16
    )
    probe, probed = models.probe, []

    def watch(one: torch.nn.Module) -> models.Traits:
        probed.append({p.dtype for p in one.parameters()})
        return probe(one)

    monkeypatch.setattr(models, "probe", watch)
    assert models.probe_exactly(narrow, tmp_path) == wide
    assert probed == [{torch.float32}]
