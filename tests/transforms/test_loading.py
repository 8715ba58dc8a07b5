import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
import transformers

from schemas import locks
from schemas.errors import SchemaError
from tests import causal_models
from transforms import causal, loading
from transforms.loading import Loading

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent.parent


def test_pickled_weights_are_never_read(models, tmp_path) -> None:
    safe = loading.load_model(models["llama"], dtype=torch.float32, device=CPU)
    safe.config.save_pretrained(tmp_path)
    torch.save(safe.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights only"):
        loading.load_model(str(tmp_path), dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("change", ["lost", "cut"])
def test_a_model_that_lacks_a_weight_is_refused(
    models: dict[str, str], tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(models["llama"], folder)
    path, key = folder / "model.safetensors", "model.norm.weight"
    held = safetensors.torch.load_file(path)
    whole = held.pop(key)
    more = {} if change == "lost" else {key: whole[:-1].clone()}
    safetensors.torch.save_file({**held, **more}, path, {"format": "pt"})
    with pytest.raises(SchemaError, match=rf"broken must hold .* but 1 are .* {key}"):
        loading.load_model(str(folder), dtype=torch.float32, device=CPU)


def test_loaded_weights_have_the_asked_for_type(models) -> None:
    loaded = loading.load_model(models["neox"], dtype=torch.bfloat16, device=CPU)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert not loaded.training


def test_a_model_without_room_on_its_device_is_named_with_the_cure(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nand more")

    monkeypatch.setattr(transformers.PreTrainedModel, "to", fail)
    law = r"^cuda:3 must have room for .*llama in float32, but has not \(CUDA out of"
    with pytest.raises(ValueError, match=law + r" memory\. Tried 2 GiB\.\); pass --dt"):
        loading.load_model(
            models["llama"], dtype=torch.float32, device=torch.device("cuda:3")
        )


def test_what_the_hub_says_of_a_gated_model_is_told_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 Client Error.\n\nCannot access gated repo.\nSee the page.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    told = r"\(OSError: 401 Client Error\. Cannot access gated repo\.\); a gated model"
    with pytest.raises(FileNotFoundError, match=told + " needs HF_TOKEN or hf auth"):
        loading.load_model("maker/gated", dtype=torch.float32, device=CPU)


LAID_OUT = ("llama", "mixtral", "opt")


def bytes_of(model: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in model.parameters())


def logits_of(model: Any) -> torch.Tensor:
    halves = causal.Halves(model)
    with torch.inference_mode():
        features = halves.features(torch.arange(24).view(2, 12))
        parts = torch.split(features.flatten(0, 1), 7)
        return torch.cat([halves.logits(part) for part in parts])


@pytest.mark.parametrize("name", LAID_OUT)
def test_a_model_over_memory_and_disk_says_what_it_says_on_one_device(
    name: str, tmp_path: Path
) -> None:
    causal_models.make(name, 512).save_pretrained(tmp_path)
    options: dict[str, Any] = {"dtype": torch.float32, "device": CPU}
    plain = loading.load_model(str(tmp_path), **options)
    wanted, places = logits_of(plain), []
    for room in (bytes_of(plain) * 92 // 100, 1000):
        how = Loading(device_map="sequential", max_memory=(f"cpu={room // 1000}KB",))
        laid = loading.load_model(str(tmp_path), **options, how=how)
        assert torch.equal(logits_of(laid), wanted)
        away = sum(weight.is_meta for weight in laid.parameters())
        places.append(away / len(list(laid.parameters())))
    assert 0 < places[0] < places[1] == 1  # some of it on the disk, all of it


def test_what_is_offloaded_is_gone_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    causal_models.make("mixtral", 512).save_pretrained(tmp_path / "m")
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    how = Loading(device_map="auto", max_memory=("cpu=1KB",))
    laid = loading.load_model(
        str(tmp_path / "m"), dtype=torch.float32, device=CPU, how=how
    )
    assert any((tmp_path / "t").rglob("*experts*"))
    del laid
    gc.collect()
    assert not any((tmp_path / "t").iterdir())


KILLED = """
import os, signal, sys, torch
from transforms import loading
how = loading.Loading(device_map="auto", max_memory=("cpu=1KB",))
device = torch.device("cpu")
laid = loading.load_model(sys.argv[1], dtype=torch.float32, device=device, how=how)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_offloaded_goes_with_the_next_load_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, place = str(tmp_path / "m"), tmp_path / "t"
    causal_models.make("mixtral", 512).save_pretrained(model)
    place.mkdir()
    words = [sys.executable, "-c", KILLED, model]
    ended = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "TMPDIR": str(place)}, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    (left,) = place.iterdir()
    assert any(left.rglob("*experts*"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    how = Loading(device_map="auto", max_memory=("cpu=1KB",))
    options: dict[str, Any] = {"dtype": torch.float32, "device": CPU, "how": how}
    monkeypatch.setattr(locks, "seen_by_all", lambda _: False)
    foreign = loading.load_model(model, **options)
    assert left.exists()  # its process may be at work on another machine
    monkeypatch.setattr(locks, "seen_by_all", lambda _: True)
    other = loading.load_model(model, **options)
    assert not left.exists()
    assert len([*place.iterdir()]) == 2  # those that live
    del foreign, other
    gc.collect()
    assert not any(place.iterdir())


def test_what_is_not_surely_a_dead_ones_is_left_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(locks, "seen_by_all", lambda _: True)
    prefix = tmp_path / loading._OFFLOADED
    old, others, dead = (Path(f"{prefix}{name}") for name in ("old", "others", "dead"))
    for folder in (old, others, dead):  # an older version's has no lock
        folder.mkdir()
    for folder in (others, dead):
        (folder / locks.NAME).touch()
    Path(f"{prefix}.log").touch()
    Path(f"{prefix}link").symlink_to(tmp_path / "nowhere")
    real = Path.lstat

    def owned(path: Path) -> Any:
        found = real(path)
        more = {"st_uid": found.st_uid + 1} if path == others else {}
        fields = {"st_mode": found.st_mode, "st_uid": found.st_uid}
        return SimpleNamespace(**{**fields, **more})

    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", owned)
        loading._remove_those_of_the_dead()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{prefix.name}{n}" for n in ("old", "others", ".log", "link")}


@pytest.mark.parametrize(
    ("entries", "shares"),
    [
        ((), {}),
        (("0=40GiB", "cpu=1.5GB"), {0: "40GiB", "cpu": "1.5GB"}),
    ],
)
def test_shares_of_memory_are_what_accelerate_takes(
    entries: tuple[str, ...], shares: dict[int | str, str]
) -> None:
    how = Loading(device_map="auto", max_memory=entries)
    assert how.memory_shares() == shares


@pytest.mark.parametrize("entry", ["0=40", "cuda=1GB", "cpu=-1GB", "disk=9GB", ""])
def test_a_share_of_memory_that_is_none_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=f"each once, got '{entry}'"):
        Loading(device_map="auto", max_memory=(entry,))


def test_shares_of_memory_without_a_use_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pass --device_map=auto"):
        Loading(max_memory=("cpu=1GB",))
    with pytest.raises(ValueError, match="each once, got 'cpu=2GB'"):
        Loading(device_map="auto", max_memory=("cpu=1GB", "cpu=2GB"))
    how = Loading(device_map="auto", max_memory=("0=1GB", "cpu=1GB"))
    for shares in (how, Loading(device_map="auto", max_memory=("0=1GB",))):
        with pytest.raises(ValueError, match="must name cpu alone"):
            shares.check("cpu", compiled=False)
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        how.check("cuda:1", compiled=False)
    how.check("cuda", compiled=False)
    for one in (how, Loading(quantization="int8")):
        with pytest.raises(ValueError, match="compile must be left out"):
            one.check("cuda", compiled=True)
    Loading().check("cuda", compiled=True)


def test_layers_are_found_where_accelerate_runs_them() -> None:
    model = causal_models.make("llama", 99)
    assert causal.entrance(model) == CPU
    model.base_model.embed_tokens._hf_hook = SimpleNamespace(execution_device="cuda:1")
    model._hf_hook = SimpleNamespace(execution_device=None)
    assert causal.entrance(model) == torch.device("cuda:1")
