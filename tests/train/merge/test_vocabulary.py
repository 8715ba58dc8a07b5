from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipelines import merge, verify
from schemas.errors import SchemaError
from tests import causal_models, merging, tiny_tokenizers
from train.merge import vocabulary

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def give_tokenizer(folder: str, first: list[str]) -> None:
    """Gives a model a tokenizer of some tokens, the rest of them bytes."""
    rest = [word for word in BYTES if word not in first]
    words = ["<|endoftext|>", *first, *rest]
    made: Any = Tokenizer(
        models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    tiny_tokenizers.save(made, Path(folder))


@pytest.fixture
def unlike(tmp_path: Path) -> dict[str, str]:
    """Returns models of which m2 has two tokens in the other order, and pads more."""
    made = merging.several(tmp_path, count=1, width=270, shard="1GB")
    merging.write(tmp_path / "m2", seed=2, width=280, shard="1GB")
    made["m2"] = str(tmp_path / "m2")
    give_tokenizer(made["base"], ["a", "b", "c"])
    give_tokenizer(made["m1"], ["a", "b", "c"])
    give_tokenizer(made["m2"], ["b", "a", "c"])
    return made


def run(made: dict[str, str], out: str, **more: Any) -> dict[str, torch.Tensor]:
    given = {"method": "linear", "shard_bytes": 20_000, **more}
    assert merge.merge_models(merging.given(made, out, **given))
    verify.verify([out])
    return merging.state(out)


def test_vocabularies_that_differ_are_an_error_that_names_the_first_token(
    unlike: dict[str, str], out: str
) -> None:
    with pytest.raises(
        ValueError, match=r"token 1 is another in base than in m2; merge"
    ):
        run(unlike, out)


def test_rows_that_differ_are_an_error_that_names_both_numbers(
    unlike: dict[str, str], out: str
) -> None:
    give_tokenizer(unlike["m2"], ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"base has 270 rows .* and m2 280"):
        run(unlike, out)


def test_common_tokens_are_merged_by_what_they_are_and_padding_stays(
    unlike: dict[str, str], out: str
) -> None:
    found = run(unlike, out, embeddings="common")
    base, one, other = (merging.state(unlike[n]) for n in ("base", "m1", "m2"))
    for key in (EMBEDDING, HEAD):
        assert found[key].shape == (270, 16)
        torch.testing.assert_close(found[key][1], (one[key][1] + other[key][2]) / 2)
        torch.testing.assert_close(found[key][2], (one[key][2] + other[key][1]) / 2)
        torch.testing.assert_close(found[key][3], (one[key][3] + other[key][3]) / 2)
        assert torch.equal(found[key][257:], base[key][257:])
    key = "model.norm.weight"
    torch.testing.assert_close(found[key], (one[key] + other[key]) / 2)


def test_tokens_that_a_model_lacks_stay_those_of_the_base(
    unlike: dict[str, str], out: str
) -> None:
    give_tokenizer(unlike["base"], ["ab", "a", "b"])
    found = run(unlike, out, method="task_arithmetic", embeddings="common", settings={
        "weight": 1
    })  # fmt: skip
    base, one, other = (merging.state(unlike[n]) for n in ("base", "m1", "m2"))
    assert torch.equal(found[EMBEDDING][1], base[EMBEDDING][1])
    wanted = one[EMBEDDING][1] + other[EMBEDDING][2] - base[EMBEDDING][2]
    torch.testing.assert_close(found[EMBEDDING][2], wanted)


@pytest.mark.parametrize("short", ["base", "m2"])
def test_tokens_beyond_the_rows_of_a_model_are_none_of_it(
    short: str, unlike: dict[str, str], tmp_path: Path, out: str
) -> None:
    merging.write(tmp_path / "short", seed=3, width=250, shard="1GB")
    give_tokenizer(str(tmp_path / "short"), ["c", "b", "a"])
    made = {**unlike, short: str(tmp_path / "short")}
    found = run(made, out, embeddings="common")[EMBEDDING]
    base, one, other = (merging.state(made[n])[EMBEDDING] for n in ("base", "m1", "m2"))
    assert len(found) == len(base)
    # "c" is token 1 of the short one, and token 3 of the others.
    if short == "base":
        torch.testing.assert_close(found[1], (one[3] + other[3]) / 2)
    else:
        torch.testing.assert_close(found[3], (one[3] + other[1]) / 2)
        assert torch.equal(found[250:], base[250:])
    planned = merge.plan_merge(merging.given(made, out, "linear", embeddings="common"))
    assert any(
        note.startswith(f"{short} has 257 tokens and 250 rows")
        for note in planned.notes
    )


def test_embeddings_may_be_those_of_the_base(unlike: dict[str, str], out: str) -> None:
    found = run(unlike, out, embeddings="base")
    base = merging.state(unlike["base"])
    assert torch.equal(found[EMBEDDING], base[EMBEDDING])
    assert torch.equal(found[HEAD], base[HEAD])
    key = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(found[key], base[key])


def test_a_tokenizer_that_is_another_by_now_is_another_merge(
    unlike: dict[str, str], out: str
) -> None:
    alike = {name: unlike[name] for name in ("base", "m1")}
    run(alike, out, embeddings="base")
    give_tokenizer(alike["m1"], ["b", "a", "c"])
    with pytest.raises(SchemaError, match=r"with how of lm_head\.weight = "):
        run(alike, out, embeddings="base")


def test_rows_of_other_tokens_are_not_taken(unlike: dict[str, str], out: str) -> None:
    rule = {"pattern": EMBEDDING, "take": "m2"}
    with pytest.raises(SchemaError, match=r"of m2 has rows of other tokens than base"):
        run(unlike, out, embeddings="base", rules=[rule])


def test_embeddings_that_cannot_be_told_are_named(
    unlike: dict[str, str], out: str
) -> None:
    merging.edit_config(unlike["m1"], vocab_size=None)
    with pytest.raises(SchemaError, match=r"so embeddings must be told from other"):
        run(unlike, out, embeddings="common")


def test_common_needs_tokenizers(unlike: dict[str, str], out: str) -> None:
    (Path(unlike["m1"]) / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="compares tokenizers, but m1 has none"):
        run(unlike, out, embeddings="common")


def test_models_without_tokenizers_are_noted(tmp_path: Path, out: str) -> None:
    made = merging.several(tmp_path, count=1)
    found = merge.plan_merge(merging.given(made, out, "linear"))
    assert any("no tokenizer to compare in m1, base" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["byte_level", "unigram"])
def test_tokens_of_the_same_bytes_are_matched_in_order(kind: str) -> None:
    # A byte and a character of it are two tokens of a Unigram with byte fallback.
    own = causal_models.tokenizer_of(kind)
    found = vocabulary.common_ids([own, own], 0, [None, own.size])
    assert np.array_equal(found[:, 0], found[:, 1])
    assert np.array_equal(found[found[:, 0] >= 0, 0], np.flatnonzero(found[:, 0] >= 0))
