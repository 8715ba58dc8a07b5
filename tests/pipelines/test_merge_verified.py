"""What `verify` and `inspect` say of merged folders."""

import shutil
from pathlib import Path

import pytest
import torch

from pipelines import cli, inspect, proof, verify
from schemas import manifest
from schemas.errors import SchemaError
from tests import merging
from tests.merging import KEY, Made, run
from train.merge import plan, work


def test_verifying_reads_what_the_plan_says(made: Made, out: str) -> None:
    run(made, out)
    (line,) = verify.verify([out])
    assert "of 3 of 3 models, which are there" in line
    shutil.copytree(out, f"{out}.copy")
    path = Path(f"{out}.copy") / plan.NAME
    path.write_text(path.read_text().replace("mlp.up_proj", "mlp.gone_proj"))
    found = manifest.read(f"{out}.copy", work.STAGE)
    with pytest.raises(SchemaError, match=r"must hold every tensor of plan\.jsonl"):
        proof.check(f"{out}.copy", found)


def test_a_run_that_lies_elsewhere_leaves_the_same_bytes(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for place in (tmp_path / "one", tmp_path / "far/two"):
        models = {
            name: str(shutil.copytree(at, place / name)) for name, at in made.items()
        }
        run(models, str(place / "merged"), "linear", slices="0", shard_bytes=10**9)
        monkeypatch.chdir(place)
        models = {name: name for name in made}
        run(models, str(place / "again"), "linear", slices="0", shard_bytes=10**9)
        for folder in ("merged", "again"):
            paths = sorted((place / folder).iterdir())
            found.append({path.name: path.read_bytes() for path in paths})
    assert all(one == found[0] for one in found)
    moved = (tmp_path / "far/two").rename(tmp_path / "moved")
    (line,) = verify.verify([str(moved / "merged")])
    assert "of 3 of 3 models, which are there" in line


def test_models_that_are_gone_are_named_as_not_compared(
    spoilt: Made, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(spoilt, out, "linear", slices="0", shard_bytes=10**9)
    shutil.rmtree(spoilt["m2"])
    assert cli.main(["verify", out]) == 0
    told = capsys.readouterr().out
    assert "of 2 of 3 models, which are there" in told
    assert f"not proved: {out} was not compared with m2: {spoilt['m2']} is not" in told
    assert "nothing was lost in what is proved above" in told


def test_verifying_notices_a_model_that_is_another_by_now(
    spoilt: Made, out: str
) -> None:
    run(spoilt, out)
    merging.rewrite(spoilt["m2"], {KEY: torch.ones(24, 16)})
    with pytest.raises(SchemaError, match=r"must be made of the m2 now in"):
        verify.verify([out])


def test_a_merged_folder_is_shown_tensor_by_tensor(
    made: Made, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(made, out)
    assert inspect.main([out, "--count=2"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert all("F32" in line and "ties weight=[1, 1]" in line for line in told)
    assert inspect.main([str(Path(out).parent)]) == 0
    assert f"fusebeam inspect {out}  # merge" in capsys.readouterr().out
