"""Models that cannot be merged, and folders that are not ours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import merge, verify
from schemas import files, manifest, weights
from schemas.errors import FusionError, SchemaError
from tests import merging
from tests.merging import ALL, KEY, SMALL, Made, run
from train.merge import plan

Contents = Callable[[str], dict[str, str]]


def test_a_tensor_that_a_model_lacks_is_named(spoilt: Made, out: str) -> None:
    merging.rewrite(spoilt["m2"], {KEY: None})
    with pytest.raises(SchemaError, match=rf"but m2 \(.*m2\) lacks {KEY}, which base"):
        run(spoilt, out)
    run(spoilt, out, rules=[{"pattern": KEY, "take": "base"}])
    assert torch.equal(merging.state(out)[KEY], merging.state(spoilt["base"])[KEY])


def test_a_tensor_that_only_one_model_has_is_named(spoilt: Made, out: str) -> None:
    merging.rewrite(spoilt["m2"], {"model.extra.weight": torch.ones(3)})
    with pytest.raises(
        SchemaError, match=r"m2 .* has model\.extra\.weight, which base"
    ):
        run(spoilt, out)


def test_another_shape_is_named_with_both(spoilt: Made, out: str) -> None:
    merging.rewrite(spoilt["m2"], {KEY: torch.ones(8, 16)})
    with pytest.raises(
        SchemaError, match=rf"{KEY} .* has \[8, 16\] in m2 .* and \[24, 16\] in base"
    ):
        run(spoilt, out)


def test_another_kind_of_numbers_is_named(spoilt: Made, out: str) -> None:
    merging.rewrite(spoilt["m2"], {KEY: torch.ones(24, 16, dtype=torch.int32)})
    with pytest.raises(SchemaError, match=rf"{KEY} .* is I32 in m2 .* and F32 in base"):
        run(spoilt, out)


def test_numbers_that_are_none_are_named_with_their_model(
    spoilt: Made, out: str
) -> None:
    harmed = merging.state(spoilt["m2"])[KEY]
    harmed[3, 4] = torch.nan
    merging.rewrite(spoilt["m2"], {KEY: harmed})
    with pytest.raises(FusionError, match=rf"must be finite, but {KEY} of m2"):
        run(spoilt, out)
    assert manifest.NAME not in files.names(out)


def test_what_leaves_the_range_of_the_stored_type_is_named(
    made: Made, out: str
) -> None:
    with pytest.raises(FusionError, match=r"must be finite, but .* is not in F16"):
        run(made, out, "task_arithmetic", dtype="float16", settings={"weight": 1e6})


def test_whole_numbers_are_taken_over_where_they_are_equal(
    tmp_path: Path, out: str
) -> None:
    made = merging.several(tmp_path)
    steps = torch.tensor([1, 2**60, 3])
    for place in made.values():
        merging.rewrite(place, {"steps": steps})
    run(made, out)
    assert torch.equal(merging.state(out)["steps"], steps)
    merging.rewrite(made["m2"], {"steps": steps + 1})
    other = str(tmp_path / "other")
    with pytest.raises(FusionError, match=r"steps is of I64.* not in m1 and m2"):
        run(made, other)


def test_packed_weights_are_refused(spoilt: Made, out: str) -> None:
    merging.edit_config(spoilt["m2"], quantization_config={"quant_method": "gptq"})
    with pytest.raises(ValueError, match=r"model 'm2', .* packed .*says gptq"):
        run(spoilt, out)


def test_weights_that_are_cut_short_are_named(spoilt: Made, out: str) -> None:
    path = sorted(Path(spoilt["m2"]).glob("model-*"))[1]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SchemaError, match=rf"{path.name} must be a whole safetensors"):
        run(spoilt, out)


def test_an_index_that_lies_is_named(spoilt: Made, out: str) -> None:
    path = Path(spoilt["m2"]) / weights.INDEX
    told = json.loads(path.read_text())
    del told["weight_map"][KEY]
    path.write_text(json.dumps(told))
    with pytest.raises(SchemaError, match=rf"index\.json must name .* {KEY} is else"):
        run(spoilt, out)


def test_a_model_alone_beside_an_index_of_others_is_named(
    spoilt: Made, out: str
) -> None:
    folder = Path(spoilt["m2"])
    shutil.copy(next(folder.glob("model-*")), folder / "model.safetensors")
    told = r"m2 must hold one model, but model\.safetensors is one, .* remove model\.s"
    with pytest.raises(SchemaError, match=told):
        run(spoilt, out)


@pytest.mark.parametrize("change", [{"use_cache": False}, {"dtype": "bfloat16"}])
def test_what_the_leads_configuration_says_is_of_the_merge(
    change: dict[str, Any], spoilt: Made, out: str
) -> None:
    run(spoilt, out, slices=ALL)
    merging.edit_config(spoilt["base"], **change)
    with pytest.raises(SchemaError, match="was written with config = "):
        run(spoilt, out, slices=ALL)


def test_a_model_that_changes_while_it_is_merged_is_named(
    spoilt: Made, out: str
) -> None:
    given = merging.given(spoilt, out, "ties", **SMALL)
    found = merge.plan_merge(given)
    files.write_bytes(f"{out}/{plan.NAME}", b"")
    (task,) = merge._works(given.config, found, "identity")
    for path in Path(spoilt["base"]).glob("model-*"):
        assert path.stat().st_size == Path(spoilt["m2"], path.name).stat().st_size
        shutil.copy(path, spoilt["m2"])
    with pytest.raises(FusionError, match=r"m2/.* must be the file that the work was"):
        task.make(plan.to_line(found.shards[0]))


def test_the_output_may_not_be_a_model_that_is_merged(made: Made) -> None:
    with pytest.raises(ValueError, match="output must be a folder of its own"):
        run(made, made["m1"])


def test_a_folder_of_others_is_left_alone(made: Made, out: str) -> None:
    files.write_bytes(f"{out}/model.safetensors", b"precious")
    with pytest.raises(SchemaError, match=r"new folder or one that merge wrote"):
        run(made, out)
    run(made, out, overwrite=True)
    assert not (Path(out) / "model.safetensors").exists()
    verify.verify([out])


def test_other_settings_are_named_and_may_be_written_over(
    made: Made, out: str, tmp_path: Path, contents: Contents
) -> None:
    run(made, out)
    with pytest.raises(SchemaError, match=r"was written with method = 'ties'"):
        run(made, out, "linear")
    run(made, out, "linear", overwrite=True, shard_bytes=10**9)
    run(made, str(tmp_path / "new"), "linear", shard_bytes=10**9)
    assert contents(out) == contents(str(tmp_path / "new"))
