"""Heads that are the embedding: stored once, twice, or in one model of several."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines import merge
from schemas.errors import FusionError, SchemaError
from tests import merging

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@pytest.fixture
def made(tmp_path: Path) -> dict[str, str]:
    """Returns a base and two models, all with a head of their own."""
    return merging.several(tmp_path, shard="1GB")


def run(made: dict[str, str], out: str, **more: Any) -> dict[str, torch.Tensor]:
    assert merge.merge_models(merging.given(made, out, "linear", **more))
    return merging.state(out)


def tie(place: str) -> None:
    merging.rewrite(place, {HEAD: None})
    merging.edit_config(place, tie_word_embeddings=True)


def test_a_model_without_a_head_has_its_embedding_for_one(
    made: dict[str, str], out: str
) -> None:
    tie(made["m2"])
    notes = merge.plan_merge(merging.given(made, out, "linear")).notes
    assert f"m2 has no {HEAD}: its head is {EMBEDDING}" in notes
    found = run(made, out)
    one, other = (merging.state(made[name]) for name in ("m1", "m2"))
    torch.testing.assert_close(found[HEAD], (one[HEAD] + other[EMBEDDING]) / 2)


def test_a_head_that_is_missing_but_not_tied_is_named(
    made: dict[str, str], out: str
) -> None:
    tie(made["m2"])
    merging.edit_config(made["m2"], tie_word_embeddings=False)
    with pytest.raises(SchemaError, match=rf"but m2 .* lacks {HEAD}"):
        run(made, out)


def test_a_head_stored_twice_is_dropped_where_the_base_has_none(
    made: dict[str, str], out: str
) -> None:
    tie(made["base"])
    tie(made["m1"])
    merging.rewrite(made["m2"], {HEAD: merging.state(made["m2"])[EMBEDDING]})
    found = run(made, out)
    assert HEAD not in found


def tie_twice(place: str, by: bool | None = True) -> None:
    merging.rewrite(place, {HEAD: merging.state(place)[EMBEDDING].clone()})
    merging.edit_config(place, tie_word_embeddings=by)


def test_a_head_that_the_base_stores_twice_is_merged_with_its_embedding(
    made: dict[str, str], out: str
) -> None:
    for place in made.values():
        tie_twice(place)
    drawn = {"method": "dare_linear", "settings": {"weight": 0.5, "density": 0.5}}
    found = merge.plan_merge(merging.given(made, out, **drawn))
    told = f"base stores {HEAD}, which the merged model has not"
    assert any(note.startswith(told) for note in found.notes)
    assert merge.merge_models(merging.given(made, out, **drawn))
    kept = merging.state(out)
    assert HEAD not in kept
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(loaded.lm_head.weight, kept[EMBEDDING])


def test_a_tied_head_of_the_base_that_is_another_is_named(
    made: dict[str, str], out: str
) -> None:
    for name in ("m1", "m2"):
        tie_twice(made[name])
    merging.edit_config(made["base"], tie_word_embeddings=True)
    with pytest.raises(FusionError, match=rf"the head of base .* must be {EMBEDDING}"):
        run(made, out)


def test_a_base_that_does_not_say_is_tied_as_its_kind_is(
    made: dict[str, str], out: str
) -> None:
    tie_twice(made["base"], None)  # Llamas are not tied
    assert HEAD in run(made, out)


def test_two_tied_matrices_that_names_do_not_tell_apart_are_named(
    made: dict[str, str], out: str
) -> None:
    tie_twice(made["base"])
    both = merging.state(made["base"])[HEAD]
    merging.rewrite(made["base"], {HEAD: None, "model.second.weight": both})
    with pytest.raises(SchemaError, match=r"must store one matrix for embedding and"):
        run(made, out)


def test_a_tied_opt_that_stores_its_head_twice_is_merged(
    tmp_path: Path, out: str
) -> None:
    made = merging.several(tmp_path, kind="opt", shard="1GB")
    embedding = "model.decoder.embed_tokens.weight"
    for place in made.values():
        merging.rewrite(place, {HEAD: merging.state(place)[embedding].clone()})
    found = run(made, out)
    one, other = (merging.state(made[name]) for name in ("m1", "m2"))
    assert HEAD not in found
    torch.testing.assert_close(
        found[embedding], (one[embedding] + other[embedding]) / 2
    )


@pytest.mark.parametrize("key", ["layers.0.mlp.up.weight", "model.wpe.weight"])
def test_a_tensor_of_a_layer_or_of_positions_is_taken_for_no_head(
    key: str, made: dict[str, str], out: str
) -> None:
    for place in made.values():
        tie(place)
        merging.rewrite(place, {key: merging.state(place)[EMBEDDING].clone()})
    found = run(made, out)
    assert {key, EMBEDDING} <= set(found)
    assert HEAD not in found


def test_of_three_matrices_of_tokens_the_named_head_goes_with_the_named_embedding(
    made: dict[str, str], out: str
) -> None:
    for place in made.values():
        tie_twice(place)
        merging.rewrite(place, {"score.weight": 2 * merging.state(place)[HEAD]})
    found = run(made, out)
    assert HEAD not in found
    assert {EMBEDDING, "score.weight"} <= set(found)


TIED_WITHIN = {"text_config": {"tie_word_embeddings": True, "vocab_size": 64}}


@pytest.mark.parametrize("change", [{}, TIED_WITHIN])
def test_a_model_without_a_head_is_tied_where_loading_it_ties_it(
    change: dict[str, Any], made: dict[str, str], out: str
) -> None:
    tie(made["m2"])
    merging.edit_config(made["m2"], tie_word_embeddings=None, **change)
    if change:
        assert HEAD in run(made, out)
    else:  # Llamas are not tied
        with pytest.raises(SchemaError, match=rf"lacks {HEAD}.*; if {EMBEDDING} is"):
            run(made, out)


def test_a_rule_for_a_tied_head_is_told_what_it_is_tied_to(
    made: dict[str, str], out: str
) -> None:
    for place in made.values():
        tie_twice(place)
    rules = [{"pattern": "lm_head.*", "take": "base"}]
    with pytest.raises(ValueError, match=rf"{HEAD} is tied to {EMBEDDING} and stored"):
        run(made, out, rules=rules)


def test_a_head_of_its_own_is_not_dropped(made: dict[str, str], out: str) -> None:
    tie(made["base"])
    tie(made["m1"])
    with pytest.raises(FusionError, match=rf"the head of m2 .* must be {EMBEDDING}"):
        run(made, out)
    with pytest.raises(FusionError, match=rf"the head of m2 .* must be {EMBEDDING}"):
        run(made, f"{out}.taken", rules=[{"pattern": EMBEDDING, "take": "base"}])
