"""A whole run whose corpus, target and output lie in a bucket that often fails."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import cli
from schemas import copies, files, manifest
from tests import small_run
from tests.buckets.conftest import Store
from tests.buckets.proxy import FAULTS, Harm
from transforms import checkpoint

pytestmark = [pytest.mark.buckets, pytest.mark.timeout(1800)]

# What names paths, and what tells speeds.
UNLIKE = ("units.jsonl", "metrics.jsonl")


def contents(folder: str) -> dict[str, str]:
    """Digests every file of a run; of manifests not where the inputs were found."""
    found = {}
    start = len(folder.rstrip("/")) + 1
    for path in files.tree(folder):
        name = path[start:]
        content = files.read_bytes(path)
        if files.name_of(name) == manifest.NAME:
            content = json.dumps({**json.loads(content), "origins": None}).encode()
        found[name] = "" if name.endswith(UNLIKE) else files.digest(content.hex())
    return found


def write_recipe(folder: Path, inputs: str, target: str, source: str) -> str:
    """Writes a recipe whose checkpoints lie beside it; returns its path."""
    text = small_run.recipe(
        [inputs],
        target,
        {"other": source},
        slice_bytes=4000,
        train={
            "epochs": 1,
            "batch_size": 8,
            "threads": 1,
            "save_steps": 3,
            "checkpoints": f"{folder}/checkpoints",
        },
        arms={"fused": {"clm_weight": 0.5, "learning_rate": [1e-3, 1e-4]}},
        evaluate={"threads": 1},
    )
    (folder / "recipe.toml").write_text(text)
    return f"{folder}/recipe.toml"


@pytest.fixture(scope="module")
def on_disk(
    tmp_path_factory: pytest.TempPathFactory,
    corpus: list[str],
    models: dict[str, str],
) -> dict[str, str]:
    """Returns what the run comes to where all is on a disk."""
    folder = tmp_path_factory.mktemp("disk")
    source = models["neox"]
    path = write_recipe(folder, os.path.dirname(corpus[0]), models["llama"], source)
    assert cli.main(["run", path, f"--output={folder}/run"]) == 0
    return contents(f"{folder}/run")


@pytest.fixture(scope="module", params=["s3", "gcs"])
def served(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def in_bucket(
    served: Store,
    tmp_path_factory: pytest.TempPathFactory,
    corpus: list[str],
    models: dict[str, str],
) -> Iterator[tuple[str, str]]:
    """Returns the recipe and the folder of a run in a bucket that often fails."""
    folder = tmp_path_factory.mktemp("bucket")
    served.proxy.spare()
    for path in corpus:
        copies.copy(path, served.folder(f"corpus/{os.path.basename(path)}"))
    for name in os.listdir(models["llama"]):
        copies.copy(f"{models['llama']}/{name}", served.folder(f"models/llama/{name}"))
    place = write_recipe(
        folder,
        served.folder("corpus"),
        served.folder("models/llama"),
        models["neox"],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_store", lambda: folder / "fetched")
        served.proxy.harm = Harm(every=10)
        assert cli.main(["run", place, f"--output={served.folder('run')}"]) == 0
        assert set(served.proxy.done) == set(FAULTS)
        served.proxy.spare()
        yield place, served.folder("run")


def test_a_run_in_a_bucket_that_fails_is_the_run_on_a_disk(
    in_bucket: tuple[str, str], on_disk: dict[str, str]
) -> None:
    assert contents(in_bucket[1]) == on_disk


def test_it_is_proved_and_shown_where_it_lies(
    in_bucket: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = in_bucket[1]
    assert cli.main(["verify", out]) == 0
    assert "nothing was lost\n" in capsys.readouterr().out
    for folder in ("windows/fusion", "scores/other", "fused"):
        assert cli.main(["inspect", f"{out}/{folder}"]) == 0
        assert "window " in capsys.readouterr().out
    assert cli.main(["inspect", out]) == 0
    assert f"fusebeam inspect {out}/fused  # fused" in capsys.readouterr().out


def test_a_repeated_run_writes_nothing(
    in_bucket: tuple[str, str], served: Store
) -> None:
    served.proxy.spare()
    assert cli.main(["run", in_bucket[0], f"--output={in_bucket[1]}"]) == 0
    wrote = [line for line in served.proxy.requests if line[:3] not in ("GET", "HEA")]
    # The table at the end is written at each run.
    assert [line for line in wrote if "evaluation.json" not in line] == []


def test_a_slow_bucket_only_takes_longer(
    in_bucket: tuple[str, str], served: Store, models: dict[str, str]
) -> None:
    out = in_bucket[1]
    served.proxy.harm = Harm(delay_s=0.2)
    flags = [
        f"--windows={out}/windows/fusion",
        f"--target={out}/scores/target",
        f"--sources=other={out}/scores/other",
        f"--output={served.folder('slow')}",
        "--top_k=6",
        "--seq_length=512",
    ]
    assert cli.main(["fuse", *flags]) == 0
    served.proxy.spare()
    assert contents(served.folder("slow")) == contents(f"{out}/fused")


def test_shards_are_read_by_other_processes(
    in_bucket: tuple[str, str], tmp_path: Path
) -> None:
    out = in_bucket[1]
    flags = [
        f"--data={out}/fused",
        f"--model={out}/models/fused",
        "--max_steps=2",
        "--batch_size=8",
        "--threads=1",
    ]
    for readers in (0, 2):
        more = [f"--output={tmp_path}/{readers}", f"--readers={readers}"]
        assert cli.main(["train", *flags, *more]) == 0
    one, other = (tmp_path / f"{n}/model.safetensors" for n in (0, 2))
    assert one.read_bytes() == other.read_bytes()
