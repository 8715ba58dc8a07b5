import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from schemas.errors import FusionError, NotFiniteError, SchemaError
from tests import searching as small
from tests.searching import Made
from train.merge import work
from train.search import trials
from transforms import engine


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return small.make(tmp_path_factory.mktemp("measuring"))


def test_a_trial_whose_logits_are_not_finite_is_dead(
    made: Made, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = engine.Engine._forward

    def spoil(self: Any, *args: Any) -> Any:
        kept = score(self, *args)()
        return lambda: dataclasses.replace(kept, finite=np.zeros_like(kept.finite))

    given = small.given(made, out)
    planned, measuring = small.bench_of(given)
    merged = given.merging(planned.genome, planned.genome.start)
    assert measuring.trial(given.search, merged).error is None
    monkeypatch.setattr(engine.Engine, "_forward", spoil)
    found = measuring.trial(given.search, merged)
    assert found.rank == trials.DEAD
    assert found.error
    assert "these failed: 2 of 2 of code, 2 of 2 of prose;" in found.error
    with pytest.raises(SchemaError, match="base must be a sound model before it is"):
        measuring.reference("base")


def test_a_lack_of_memory_ends_a_search_and_is_not_kept(
    made: Made, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = small.given(made, out)
    planned, measuring = small.bench_of(given)
    merged = given.merging(planned.genome, planned.genome.start)
    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "_run_batch", lambda *_: None)
        for work in (
            lambda: measuring.trial(given.search, merged),
            lambda: measuring.reference("base"),
        ):
            with pytest.raises(FusionError, match=r"memory must hold .* 2 of 2;"):
                work()
    assert measuring.reference("base")["search"].error is None


LACKS: dict[str, Callable[[], Exception]] = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore"),
    "host": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: not enough"),
    "python": lambda: MemoryError(),
    "system": lambda: OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
}


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("at", [(work, "stored"), (transformers.PreTrainedModel, "to")])
def test_a_merge_that_memory_does_not_hold_is_told_with_the_cure(
    made: Made, out: str, lack: str, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LACKS[lack]()

    given = small.given(made, out)
    planned, measuring = small.bench_of(given)
    merged = given.merging(planned.genome, planned.genome.start)
    monkeypatch.setattr(*at, fail)
    law = r"memory must hold a merged model, .* in float32 on cpu, .*; end what else"
    with pytest.raises(FusionError, match=law) as caught:
        measuring.trial(given.search, merged)
    assert "\n" not in str(caught.value)


def test_another_error_while_a_merge_is_loaded_is_not_called_a_lack_of_memory(
    made: Made, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes differ")

    given = small.given(made, out)
    _, measuring = small.bench_of(given)
    monkeypatch.setattr(work, "stored", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        measuring.reference("base")


def test_models_that_lack_a_weight_are_refused(
    made: Made, out: str, tmp_path: Path
) -> None:
    own = small.make(tmp_path / "own")
    key = "model.norm.weight"
    for name in ("base", "m1", "m2"):
        path = Path(own[name], "model.safetensors")
        held = safetensors.torch.load_file(path)
        del held[key]
        safetensors.torch.save_file(held, path, {"format": "pt"})
    with pytest.raises(
        SchemaError, match=rf"base \(.*must hold all weights .* {key} fi"
    ):
        small.run(own, out, budget=1, baselines=[])


@pytest.mark.parametrize("when", ["before", "meanwhile", "not finite"])
def test_a_trial_of_models_that_were_written_over_is_refused(
    made: Made, out: str, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil() -> None:
        path = Path(own["m2"], "model.safetensors")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        with path.open("r+b") as file:  # where it lies, under its mapping
            file.write(content)
        os.utime(path, ns=(1, 1))  # clocks are coarse

    def spoil_and_make(*args: Any) -> torch.Tensor:
        spoil()
        if when == "not finite":
            raise NotFiniteError("merged weights must be finite")
        return stored(*args)

    own, stored = small.make(tmp_path / "own"), work.stored
    given = small.given(own, out)
    planned, measuring = small.bench_of(given)
    merged = given.merging(planned.genome, planned.genome.start)
    assert measuring.trial(given.search, merged).error is None
    if when == "before":
        spoil()
    else:
        monkeypatch.setattr(work, "stored", spoil_and_make)
    with pytest.raises(
        FusionError, match=r"m2/model\.safetensors must be the file that"
    ):
        measuring.trial(given.search, merged)
