"""Merges of small models, compared with merges in memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines import clean, cli, merge, verify
from schemas import files, manifest
from schemas.errors import SchemaError
from tests import commands, deadly_merge, merging
from tests.merging import SMALL, Made, run
from train.merge import methods, plan, varm, work
from transforms import planned
from transforms.attempts import Guards

Contents = Callable[[str], dict[str, str]]


def logits(folder: str) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(40)[None] % merging.WIDTH
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "qwen2", "gemma3"])
def test_a_merged_model_computes_what_one_merged_in_memory_does(
    kind: str, tmp_path: Path, out: str
) -> None:
    made = merging.several(tmp_path, kind=kind)
    settings = {"density": 0.6, "weight": [0.7, 0.3]}
    told = {"density": 0.6, "weight": {"models": {"m1": 0.7, "m2": 0.3}}}
    run(made, out, settings=told)
    plainly = merging.plainly(made, "ties", settings, ["m1", "m2"])
    assert len(list(Path(out).glob("model-*.safetensors"))) > 2
    assert merging.same(merging.state(out), plainly)
    merging.rewrite(made["base"], plainly)
    assert torch.equal(logits(out), logits(made["base"]))


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_may_be_named_in_a_recipe(
    method: str, made: Made, out: str
) -> None:
    settings: dict[str, Any] = {"slerp": {"t": 0.5}, "sce": {"select_topk": 0.5}}.get(
        method, {}
    )
    if "weight" in methods.METHODS[method].parameters:
        settings = {"weight": [0.75, 0.5]}
    if "density" in methods.METHODS[method].parameters:
        settings["density"] = 0.5
    told = {k: v if k != "weight" else {"models": v} for k, v in settings.items()}
    # One file, in this process: no runner is started for each.
    more = {"shard_bytes": 10**9, "slices": "0", "use_base": method != "slerp"}
    run(made, out, method, settings=told, **more)
    plainly = merging.plainly(made, method, settings, ["m1", "m2"])
    assert merging.same(merging.state(out), plainly)


def test_merging_twice_leaves_the_same_bytes(
    made: Made, out: str, tmp_path: Path, contents: Contents
) -> None:
    run(made, out)
    run(made, str(tmp_path / "again"))
    assert contents(out) == contents(str(tmp_path / "again"))
    verify.verify([out])


def test_a_job_of_bundles_leaves_the_bytes_of_this_process(
    made: Made, out: str, tmp_path: Path, contents: Contents
) -> None:
    varied = {"settings": {"granularity": "layer"}}
    run(made, out, "varm", **varied)
    flags = ["--runner=BundleBasedDirectRunner"]
    run(made, str(tmp_path / "job"), "varm", *flags, **varied)
    assert contents(out) == contents(str(tmp_path / "job"))


def test_slices_done_apart_make_the_same_folder(
    made: Made, out: str, tmp_path: Path, contents: Contents
) -> None:
    settings = {"granularity": "model"}
    run(made, out, "varm", settings=settings)
    count, apart = len(plan.read(out)), str(tmp_path / "apart")

    def part(slices: str) -> Any:
        given = {**SMALL, "settings": settings, "slices": slices}
        return merge.merge_models(merging.given(made, apart, "varm", **given))

    assert part(f"1-{count - 1}") is None  # the others are not measured yet
    assert not list(Path(apart).glob("model*"))
    assert part("0") is None
    assert part(f"1-{count - 1}") is not None
    assert contents(apart) == contents(out)


def test_what_is_done_is_not_done_again(
    made: Made, out: str, contents: Contents
) -> None:
    run(made, out)
    whole = contents(out)
    name = plan.read(out)[1].file
    (Path(out) / name).unlink()
    (Path(out) / manifest.NAME).unlink()
    stamps = {p: p.stat().st_mtime_ns for p in Path(out).glob("model-*")}
    run(made, out)
    assert contents(out) == whole
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_random_draws_do_not_depend_on_who_merges_what(
    made: Made, tmp_path: Path
) -> None:
    found = []
    for number, shard_bytes in enumerate([3_000, 10**9]):
        out = str(tmp_path / str(number))
        settings = {"weight": 0.5, "density": 0.4}
        run(made, out, "dare_linear", shard_bytes=shard_bytes, settings=settings)
        found.append(merging.state(out))
    assert merging.same(*found)


def test_another_seed_draws_otherwise(made: Made, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        out = str(tmp_path / str(seed))
        settings = {"weight": 0.5, "density": 0.4}
        run(made, out, "dare_linear", seed=seed, settings=settings)
        found.append(merging.state(out))
    assert not merging.same(*found)


def test_a_merge_that_is_killed_ends_with_the_same_bytes(
    made: Made, out: str, tmp_path: Path, contents: Contents
) -> None:
    run(made, out)
    killed = str(tmp_path / "killed")
    process = commands.start(
        deadly_merge.merge_and_die,
        merging.table(made, killed, method="ties", **SMALL),
        4,
        log=tmp_path / "log",
    )
    assert commands.end(process) == -9
    left = set(files.names(killed))
    assert plan.NAME in left
    assert manifest.NAME not in left
    with pytest.raises(SchemaError, match="must be finished"):
        verify.verify([killed])
    run(made, killed)
    clean.clean([killed], older_than_s=0, dry_run=False)
    assert contents(killed) == contents(out)


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_weights_of_layers_and_models_are_of_all_their_tensors(
    granularity: str, made: Made, out: str
) -> None:
    run(made, out, "varm", settings={"granularity": granularity})
    base = merging.state(made["base"])
    states = [merging.state(made[name]) for name in ("m1", "m2")]
    groups: dict[str, list[str]] = {}
    for key in base:
        layer = key.split(".")[2] if key.startswith("model.layers.") else key
        groups.setdefault(layer if granularity == "layer" else "", []).append(key)
    for keys in groups.values():
        squares = [
            sum(((one[k] - base[k]).double() ** 2).sum().item() for k in keys)
            for one in states
        ]
        shares = varm.ratios(squares)
        for key in keys:
            wanted = sum(w * one[key] for w, one in zip(shares, states, strict=True))
            torch.testing.assert_close(merging.state(out)[key], wanted)
    told = (Path(out) / "README.md").read_text()
    assert "Weights, as measured" in told
    assert not (Path(out) / "sums").exists()


def test_rules_are_tried_in_order(made: Made, out: str) -> None:
    run(
        made,
        out,
        "task_arithmetic",
        settings={"weight": 0.5},
        rules=[
            {"pattern": "*norm*", "method": "linear"},
            {"pattern": "model.embed_tokens.*", "take": "m2"},
            {"pattern": "lm_head.*", "take": "base"},
            {
                "pattern": "*.mlp.*",
                "settings": {"weight": {"models": [{"depth": [0, 1]}, 0.25]}},
            },
        ],
    )
    base, one, other = (merging.state(made[name]) for name in ("base", "m1", "m2"))
    found = merging.state(out)
    key = "model.norm.weight"
    torch.testing.assert_close(found[key], (one[key] + other[key]) / 2)
    key = "model.embed_tokens.weight"
    assert torch.equal(found[key], other[key])
    assert torch.equal(found["lm_head.weight"], base["lm_head.weight"])
    for layer, weight in enumerate([0.0, 1.0]):
        key = f"model.layers.{layer}.mlp.up_proj.weight"
        wanted = weight * (one[key] - base[key]) + 0.25 * (other[key] - base[key])
        torch.testing.assert_close(found[key], base[key] + wanted)
    key = "model.layers.1.self_attn.q_proj.weight"
    wanted = base[key] + 0.5 * (one[key] - base[key] + other[key] - base[key])
    torch.testing.assert_close(found[key], wanted)


def test_the_stored_type_is_said_by_the_configuration(made: Made, out: str) -> None:
    run(made, out, "linear", dtype="bfloat16")
    state = merging.state(out)
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert json.loads((Path(out) / "config.json").read_text())["dtype"] == "bfloat16"
    plainly = merging.plainly(made, "linear", {}, ["m1", "m2"])
    assert all(torch.equal(state[k], v.bfloat16()) for k, v in plainly.items())


@pytest.mark.parametrize("said", [{"dtype": None}, {"torch_dtype": "float32"}])
def test_a_configuration_that_says_no_type_or_says_it_otherwise_is_mended(
    said: dict[str, str | None], tmp_path: Path, out: str
) -> None:
    made = merging.several(tmp_path, count=1)
    merging.edit_config(made["base"], **{"dtype": None, **said})
    run(made, out, "linear", dtype="float16")
    told = json.loads((Path(out) / "config.json").read_text())
    found = {key: told.get(key) for key in ("dtype", "torch_dtype")}
    key = "torch_dtype" if "torch_dtype" in said else "dtype"
    assert found == {"dtype": None, "torch_dtype": None, key: "float16"}


def test_without_a_base_the_first_model_leads(made: Made, out: str) -> None:
    more = {"settings": {"t": {"depth": [0, 1], "outside": 0.5}}, "base": None}
    run(made, out, "slerp", **more)
    one, other = (merging.state(made[name]) for name in ("m1", "m2"))
    found = merging.state(out)
    for layer, model in enumerate([one, other]):
        key = f"model.layers.{layer}.mlp.up_proj.weight"
        torch.testing.assert_close(found[key], model[key])


def test_the_card_tells_models_recipe_methods_and_checksums(
    made: Made, out: str
) -> None:
    run(made, out, rules=[{"pattern": "*norm*", "method": "linear"}])
    told = (Path(out) / "README.md").read_text()
    found = manifest.read(out, work.STAGE)
    for name in ("m1", "m2"):
        assert f"| {name} | {name} | {found.inputs[f'model:{name}']} |" in told
    assert f"`linear`: {methods.METHODS['linear'].source}" in told
    assert f"`ties`: {methods.METHODS['ties'].source}" in told
    for entry in found.files:
        if entry.name.endswith(".safetensors"):
            assert entry.sha256 in told
    assert str(Path(made["m1"]).parent) not in told


def test_the_recipe_on_the_card_gives_the_same_model(
    made: Made, out: str, tmp_path: Path
) -> None:
    run(made, out, rules=[{"pattern": "*norm*", "settings": {"density": 0.5}}])
    told = (Path(out) / "README.md").read_text()
    text = told.partition("```toml\n")[2].partition("```")[0]
    for name, place in made.items():
        text = text.replace(f'= "{name}"', f'= "{place}"')
    (tmp_path / "recipe.toml").write_text(text)
    again = str(tmp_path / "again")
    assert cli.main(["merge", str(tmp_path / "recipe.toml"), f"--output={again}"]) == 0
    assert merging.same(merging.state(out), merging.state(again))


def test_steps_pickle_and_need_no_fallback_coder(
    made: Made, out: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(made, out, "ties", "--runner=BundleBasedDirectRunner")
    assert not [r for r in caplog.records if "allback coder" in r.getMessage()]


def test_building_makes_what_the_work_alone_makes(
    made: Made, out: str, tmp_path: Path
) -> None:
    run(made, out)
    alone = str(tmp_path / "alone")
    given = merging.given(made, alone, "ties", **SMALL)
    found = merge.plan_merge(given)
    plan.write(alone, found.shards)
    identity = manifest.read(out, work.STAGE).fingerprint
    (task,) = merge._works(given.config, found, identity)
    names = []
    with beam.Pipeline("BundleBasedDirectRunner") as root:
        _ = merge.build(root, alone, [task], Guards())
    for shard in found.shards:
        assert not planned.do_file(task, plan.to_line(shard))
        names.append(shard.file)
    assert {n: files.checksum(f"{alone}/{n}") for n in names} == {
        n: files.checksum(f"{out}/{n}") for n in names
    }
