"""A merge whose models and output lie in a bucket that often fails."""

from pathlib import Path

import pytest

from pipelines import cli, merge
from schemas import copies, files
from tests import merging
from tests.buckets.conftest import Store
from tests.buckets.proxy import Harm
from transforms import checkpoint

pytestmark = [pytest.mark.buckets, pytest.mark.timeout(1800)]


def test_a_merge_in_a_bucket_that_fails_is_the_merge_on_a_disk(
    store: Store,
    folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "_store", lambda: tmp_path / "fetched")
    made = merging.several(tmp_path / "models")
    held = {name: f"{folder}/models/{name}" for name in made}
    for name, place in made.items():
        for path in Path(place).iterdir():
            copies.copy(str(path), f"{held[name]}/{path.name}")
    more = {"settings": {"granularity": "layer"}, "shard_bytes": 3_000}
    merge.merge_models(merging.given(made, f"{tmp_path}/out", "varm", **more))
    store.proxy.harm = Harm(every=10)
    given = merging.given(held, f"{folder}/out", "varm", **more)
    assert merge.merge_models(given)
    store.proxy.spare()
    # Fingerprints are of what a bucket says, which is other than what a disk holds.
    for name in ("config.json", "model.safetensors.index.json"):
        there, here = (files.read_bytes(f"{f}/out/{name}") for f in (folder, tmp_path))
        assert there == here
    for path in Path(f"{tmp_path}/out").glob("model-*.safetensors"):
        copies.copy(f"{folder}/out/{path.name}", f"{tmp_path}/back/{path.name}")
    assert merging.same(
        merging.state(tmp_path / "out"), merging.state(tmp_path / "back")
    )
    # Weights were read by ranges, where they lie.
    assert not list((tmp_path / "fetched").rglob("*.safetensors"))
    assert cli.main(["verify", f"{folder}/out"]) == 0
    assert "of 3 of 3 models, which are there" in capsys.readouterr().out
