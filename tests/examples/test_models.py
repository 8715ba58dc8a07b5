import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch

from examples import models
from tests.examples.test_vocabularies import TEXTS
from transforms import loading, tokenizer

SMALL = {
    "mixture": {"headers": 0.5, "code": 0.5},
    "vocabulary": 400,
    "width": 32,
    "layers": 1,
    "steps": 12,
    "batch": 2,
}
BASE = {"headers": TEXTS, "code": [text.replace("at::", "np.") for text in TEXTS]}


def small(architecture, **changes):
    plan = models.PLANS["full"][0]
    return dataclasses.replace(
        plan, **{"architecture": architecture, **SMALL, **changes}
    )


@pytest.fixture(scope="module", params=get_args(models.Architecture))
def made(request, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp(request.param))
    loss = models.make_model(small(request.param), BASE, folder)
    return request.param, folder, loss


def test_training_lowers_the_loss_below_a_uniform_guess(made):
    _, _, loss = made
    assert loss < np.log(400) - 0.1


def test_a_model_is_read_with_its_tokenizer_and_roles(made):
    architecture, folder, _ = made
    cpu = torch.device("cpu")
    model = loading.load_model(folder, dtype=torch.float32, device=cpu)
    assert model.config.model_type == architecture
    read = tokenizer.load(folder)
    assert read.bos_id == model.config.bos_token_id
    assert read.eos_id == model.config.eos_token_id
    assert model.config.vocab_size == read.size


def test_tokens_of_a_made_model_tile_texts_it_never_saw(made):
    _, folder, _ = made
    text = "def naïve(x):\n\treturn '日本'  # ok\n"
    encoding = tokenizer.load(folder).encode(text)
    assert encoding.byte_ends[-1] == len(text.encode())


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(made, tmp_path):
    architecture, folder, _ = made
    weights = []
    for seed in (0, 1):
        models.make_model(small(architecture), BASE, str(tmp_path / str(seed)), seed)
        weights.append((tmp_path / str(seed) / "model.safetensors").read_bytes())
    with open(f"{folder}/model.safetensors", "rb") as file:
        first = file.read()
    assert weights[0] == first
    assert weights[1] != first


def test_mixtures_are_shares_of_all_windows():
    for plans in models.PLANS.values():
        for plan in plans:
            assert sum(plan.mixture.values()) == pytest.approx(1)


def test_domains_are_drawn_by_their_shares():
    plan = small("llama", mixture={"headers": 0.75, "code": 0.25}, steps=40)
    drawn = models.draw(plan, BASE, np.random.default_rng(0))
    assert len(drawn) == 80
    assert sum(text in TEXTS for text in drawn) == 60


def test_an_expert_goes_on_from_a_base_that_stays_as_it_is(tmp_path):
    base, expert = str(tmp_path / "base"), str(tmp_path / "expert")
    models.make_model(small("llama", steps=4), BASE, base)
    weights = (tmp_path / "base" / "model.safetensors").read_bytes()
    plan = small("llama", steps=30, mixture={"headers": 1.0})
    goes_on = models.continue_model(plan, BASE, base, expert)
    anew = models.make_model(
        dataclasses.replace(plan, steps=4), BASE, str(tmp_path / "other")
    )
    assert goes_on < anew
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == weights
    prints = {tokenizer.load(folder).fingerprint for folder in (base, expert)}
    assert len(prints) == 1
