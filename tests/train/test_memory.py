from pathlib import Path

import pytest
import torch
import transformers

from train import memory
from train.memory import Shape

PAGE = Path(__file__).parents[2] / "docs" / "running.md"


def model(shape: Shape) -> transformers.LlamaForCausalLM:
    """A Llama of a shape, as wide as it says and without weights."""
    heads = shape.hidden // 128
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=shape.keys // 128,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("shape", memory.SHAPES, ids=lambda shape: shape.name)
def test_parameters_are_those_of_the_model(shape: Shape) -> None:
    counted = sum(p.numel() for p in model(shape).parameters())
    assert shape.parameters == pytest.approx(counted, rel=1e-3)
    assert shape.parameters < counted


def test_tables_of_the_page_are_those_computed() -> None:
    page = PAGE.read_text()
    assert memory.table() in page
    assert memory.activation_table() in page


def test_adapters_weigh_rank_times_ends_of_each_layer() -> None:
    shape = Shape(name="", layers=2, hidden=8, inner=16, keys=4, vocabulary=10)
    ends = [(8, 8), (8, 4), (8, 4), (8, 8), (8, 16), (8, 16), (16, 8)]
    assert shape.adapters(3) == 2 * 3 * sum(a + b for a, b in ends)


def test_more_processes_leave_less_on_each_but_never_less_than_what_is_gathered() -> (
    None
):
    shape = memory.SHAPES[2]
    sizes = [memory.state(shape, "fsdp", n) for n in (1, 8, 64, 10**9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 10 * shape.layer
    assert sizes[1] - sizes[2] == pytest.approx(
        16 * shape.parameters * (1 / 8 - 1 / 64)
    )


def test_a_layer_keeps_what_the_formula_says() -> None:
    shape = Shape(name="", layers=4, hidden=256, inner=688, keys=256, vocabulary=64)
    kept: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in weights:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    config = model(shape).config
    llama = transformers.LlamaModel(config).to(torch.bfloat16)
    weights = {p.untyped_storage().data_ptr() for p in llama.parameters()}
    tokens = 64
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        llama(input_ids=torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
    told = memory.activations(shape, tokens) - memory.activations(
        shape, tokens, "offloaded"
    )
    assert sum(kept.values()) == pytest.approx(told / 3 * 4, rel=0.15)
