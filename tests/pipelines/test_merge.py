import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import torch
from huggingface_hub.errors import NotASafetensorsRepoError
from huggingface_hub.utils import (
    SafetensorsFileMetadata,
    SafetensorsRepoMetadata,
    TensorInfo,
)
from transformers import AutoModelForCausalLM

from pipelines import clean, cli, inspect, merge, merged, stage, verify
from pipelines import merging as table
from schemas import files, manifest, weights
from schemas.errors import FusionError, SchemaError
from tests import commands, deadly_merge, merging
from train.merge import methods, plan, sums, varm, work
from train.merge.reading import Opened
from transforms import planned
from transforms.attempts import Guards

Contents = Callable[[str], dict[str, str]]
Made = dict[str, str]

SMALL = {"shard_bytes": 9_000}
"""A merged model of several files."""

ALL = "0-2"
"""Its files, made in this process: no runner is started."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Returns a base and two models of it, small Llamas in several files."""
    return merging.several(tmp_path_factory.mktemp("merged"))


def run(made: Made, out: str, method: str = "ties", *flags: str, **more: Any) -> None:
    given = {**SMALL, **more}
    assert merge.merge_models(merging.given(made, out, method, **given), flags)


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


def test_a_model_of_the_hub_is_read_at_one_commit(
    made: Made, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, asked = shutil.copytree(made["m1"], tmp_path / "0123abc"), []

    def download(name: str, *, revision: str | None, allow_patterns: object) -> str:
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    run({**made, "m1": "org/m1"}, out, "linear")
    assert asked[0] == ("org/m1", None)
    assert set(asked[1:]) == {("org/m1", "0123abc")}
    told = (Path(out) / "README.md").read_text()
    assert "| m1 | org/m1@0123abc |" in told
    assert '"m1" = "org/m1@0123abc"' in told
    found = manifest.read(out, work.STAGE)
    assert found.origins["models"]["m1"] == "org/m1@0123abc"
    _, left = verify.between([out])
    assert left == [f"{out} was not compared with m1: org/m1@0123abc is of the hub"]
    asked.clear()
    run({**made, "m1": "org/m1@0123abc"}, out, "linear")
    assert set(asked) == {("org/m1", "0123abc")}
    plainly = merging.plainly(made, "linear", {}, ["m1", "m2"])
    assert merging.same(merging.state(out), plainly)


@contextlib.contextmanager
def hub_that_stays(snapshot: Path) -> Iterator[None]:
    """Fetches nothing anew, so that files keep their times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: snapshot)
        yield


@pytest.fixture
def hub(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[str]]:
    """Returns the cache of a hub that holds m1, and the files that are fetched."""
    snapshot, fetched = tmp_path / "0123abc", []
    snapshot.mkdir()

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert name == "org/m1"
        for path in sorted(Path(made["m1"]).iterdir()):
            if any(path.match(pattern) for pattern in allow_patterns):
                fetched.append(path.name)
                shutil.copy(path, snapshot)
        return str(snapshot)

    def told(name: str, *, revision: str) -> Any:
        assert (name, revision) == ("org/m1", "0123abc")
        found = {}
        for path in Path(made["m1"]).glob("model-*.safetensors"):
            size = int.from_bytes(path.read_bytes()[:8], "little")
            tensors = json.loads(path.read_bytes()[8 : 8 + size])
            metadata = tensors.pop("__metadata__")
            listed = {key: TensorInfo(**entry) for key, entry in tensors.items()}
            found[path.name] = SafetensorsFileMetadata(metadata, listed)
        return SafetensorsRepoMetadata(None, True, {}, found)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", told)
    return snapshot, fetched


def test_showing_fetches_no_weights_of_the_hub(
    made: Made, hub: tuple[Path, list[str]], out: str, tmp_path: Path, capsys: Any
) -> None:
    shown = []
    for place in (made["m1"], "org/m1"):
        given = merging.table({**made, "m1": place}, out, method="ties", **SMALL)
        path = merging.recipe(tmp_path, given)
        assert cli.main(["merge", path, "--show"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "config.json" in hub[1]
    assert not [name for name in hub[1] if name.endswith(".safetensors")]


def test_the_hub_is_asked_for_headers_that_are_not_here_and_named_if_it_fails(
    made: Made, hub: tuple[Path, list[str]], out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(name: str, *, revision: str) -> None:
        raise NotASafetensorsRepoError("no such files")

    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", silent)
    given = merging.given({**made, "m1": "org/m1"}, out, "ties", show=True)
    told = r"headers of org/m1@0123abc, .* \(NotASafetensorsRepoError: no such files\)"
    with pytest.raises(FileNotFoundError, match=told):
        merge.plan_merge(given)
    for path in Path(made["m1"]).glob("model-*"):
        shutil.copy(path, hub[0])
    assert merge.plan_merge(given).shards


def test_every_worker_may_have_its_own_copy_of_a_model_of_the_hub(
    made: Made, hub: tuple[Path, list[str]], out: str
) -> None:
    given = merging.given({**made, "m1": "org/m1"}, out, "linear", **SMALL)
    found = merge.plan_merge(given)
    files.write_bytes(f"{out}/{plan.NAME}", b"")
    (task,) = merge._works(given.config, found, "identity")
    for path in hub[0].glob("model-*"):  # the cache of another container, same host
        os.utime(path, ns=(0, 0))
    with hub_that_stays(hub[0]):
        task.make(plan.to_line(found.shards[0]))
    assert (Path(out) / found.shards[0].file).exists()


def test_showing_says_what_becomes_of_every_tensor_and_writes_nothing(
    made: Made, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = [
        {"pattern": "*mlp*", "settings": {"density": {"depth": [0.2, 0.8]}}},
        {"pattern": "*q_proj*", "method": "nuslerp", "use_base": False},
        {"pattern": "*k_proj*", "method": "nuslerp"},
    ]
    given = merging.table(made, out, method="ties", rules=rules, **SMALL)
    path = merging.recipe(tmp_path, given)
    assert cli.main(["merge", path, "--show"]) == 0
    told = capsys.readouterr().out.splitlines()
    line = next(line for line in told if line.startswith("model.layers.1.mlp.up_proj"))
    assert line.split()[1:6] == ["24", "x", "16", "F32", "model.layers.1"]
    assert "ties weight=[1, 1] density=[0.8, 0.8]" in line
    assert line.endswith("with base")
    for key, ends in (("q_proj", False), ("k_proj", True)):
        (line, *_) = (line for line in told if f"self_attn.{key}" in line)
        assert line.endswith("with base") == ends
    assert sum("model.layers." in line for line in told) == 18
    assert any(line.startswith("memory: ") for line in told)
    assert not Path(out).exists()


def test_the_command_takes_a_recipe_and_flags_over_it(
    made: Made, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = merging.table(made, "elsewhere", method="ties", **SMALL)
    path = merging.recipe(tmp_path, given)
    words = ["merge", path, "--method=linear", "--output", out, "--runner=FnApiRunner"]
    assert cli.main(words) == 0
    assert f"{out}: 2 models merged, " in capsys.readouterr().out
    assert merging.same(
        merging.state(out), merging.plainly(made, "linear", {}, ["m1", "m2"])
    )


def test_a_flag_of_another_method_begins_with_its_own_defaults(
    made: Made, out: str, tmp_path: Path
) -> None:
    rules = [
        {"pattern": "*.mlp.*", "settings": {"density": 0.2}},
        {"pattern": "*norm*", "method": "slerp", "settings": {"t": 0.3}},
    ]
    more = {"settings": {"weight": 0.7, "density": 0.6}, "rules": rules}
    given = merging.table(made, out, method="ties", use_base=False, **more)
    path = merging.recipe(tmp_path, given)
    told = {
        method: [
            (rule.method, dict(rule.settings))
            for rule in table.read_recipe(path, {"method": method}).rules
        ]
        for method in ("linear", "ties")
    }
    norms, ties = ("slerp", {"t": 0.3}), {"weight": 0.7, "density": 0.6}
    assert told == {
        "linear": [("linear", {}), norms, ("linear", {})],
        "ties": [("ties", {**ties, "density": 0.2}), norms, ("ties", ties)],
    }


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("[sources.a]\n[merges.x]\n", r"with \[sources\] and .* --only merge\.x$"),
        ("[sources.a]\n", r"with \[sources\] it is .*run .* --only merge\.merged$"),
        ("[merges.x]\n[merges.y]\n", r"--only merge\.x merge\.y$"),
    ],
)
def test_a_recipe_of_a_run_is_led_to_the_command_that_merges_its_arms(
    more: str, told: str, made: Made, out: str, tmp_path: Path
) -> None:
    path = merging.recipe(tmp_path, merging.table(made, out, method="linear"))
    Path(path).write_text(Path(path).read_text() + more)
    with pytest.raises(ValueError, match=told):
        table.read_recipe(path, {})


@pytest.mark.parametrize("flags", [[], ["--show"]])
def test_a_recipe_of_a_run_that_merges_nothing_is_told_so(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_recipe(tmp_path, "")
    assert cli.main(["merge", path, *flags]) == 1
    assert "has neither [merge] nor [merges.NAME]" in capsys.readouterr().err


MERGES = """
[merge]
method = "ties"
models = ["m1", "m2"]
[merges.mean]
method = "linear"
[merges.cut]
[merges.both]
models = ["merge.mean", "m1"]
"""


def small_recipe(folder: Path, merges: str, target: str = "t") -> str:
    """Writes a recipe of a run of two arms, m1 and m2."""
    text = f"""
output = "{folder}/run"
[corpus]
inputs = ["a.jsonl"]
[prepare]
splits = "fusion=.5,heldout=.5"
[target]
model = "{target}"
[sources.one]
model = "s"
[arms.m1]
[arms.m2]
{merges}
"""
    (folder / "run.toml").write_text(text)
    return str(folder / "run.toml")


@pytest.fixture
def trained(made: Made, tmp_path: Path) -> str:
    """Returns the recipe of a run whose arms are trained and whose merges are not."""
    for arm in ("m1", "m2"):
        folder = tmp_path / "run" / "models" / arm
        shutil.copytree(made[arm], folder)
        (folder / manifest.NAME).write_text("{}")
    return small_recipe(tmp_path, MERGES, made["base"])


def test_the_merges_of_a_run_are_shown_before_they_are_made(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", trained, "--show", "--only", "merge.mean", "merge.cut"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    heads = [line for line in told.splitlines() if line.startswith("──")]
    folder = tmp_path / "run" / "merges"
    assert heads == [f"── merge.{n}: {folder}/{n}" for n in ("mean", "cut")]
    mean, cut = told.split(heads[1])
    line = next(x for x in cut.splitlines() if x.startswith("model.layers.1.mlp.up"))
    assert "ties weight=[1, 1]" in line
    assert mean.count("linear weight=") == cut.count("ties weight=") > 18
    assert not folder.exists()


def test_a_merge_of_what_is_not_made_yet_names_it_and_its_command(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["merge", trained, "--show"]) == 1
    end = f"fusebeam run {trained} --only merge.mean"
    assert capsys.readouterr().err.strip().endswith(end)
    elsewhere = ["--show", "--output", f"{tmp_path}/other", "--only", "merge.cut"]
    assert cli.main(["merge", trained, *elsewhere]) == 1
    told = capsys.readouterr().err.strip()
    assert f"but m1, m2 of {tmp_path}/other are not made yet" in told
    end = f"fusebeam run {trained} --output {tmp_path}/other --only m1 m2"
    assert told.endswith(end)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--show", "--only", "merge.men"], "got 'merge.men'; did you mean merge.mean"),
        (
            ["--show", "--method=linear"],
            "only --only and --output may stand, got --met",
        ),
        (["--only", "merge.mean"], "--only must stand with --show"),
        ([], "--only merge.mean merge.cut merge.both"),
    ],
)
def test_what_cannot_be_shown_of_a_run_is_refused(
    words: list[str], told: str, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["merge", trained, *words]) == 1
    assert told in capsys.readouterr().err


def test_the_recipe_and_the_commands_of_the_documentation_merge_tied_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/running.md").read_text()
    part = page.partition("\n## Merging\n")[2].partition("\n## ")[0]
    (text,) = re.findall(r"```toml\n(.*?)```", part, re.DOTALL)
    lines = re.findall(r"^fusebeam (merge .*)$", part, re.MULTILINE)
    told = tomllib.loads(text)["merge"]
    monkeypatch.chdir(tmp_path)
    for seed, place in enumerate([told["base"], *told["models"].values()]):
        merging.write(tmp_path / place, "qwen2", seed, shard="1GB")
        assert "lm_head.weight" not in merging.state(place)
    Path("RECIPE.toml").write_text(text)
    assert len(lines) == 3
    for line in lines:
        assert cli.main(shlex.split(line)) == 0
    shown = capsys.readouterr().out
    for folder in (told["output"], "runs/mine/linear"):
        assert f"{folder}: 2 models merged" in shown
    embedding = "model.embed_tokens.weight"
    merged, base = merging.state(told["output"]), merging.state(told["base"])
    assert torch.equal(merged[embedding], base[embedding])
    assert not merging.same(merged, merging.state("runs/mine/linear"))


def test_a_dry_run_without_a_value_is_led_to_showing(
    made: Made, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = merging.recipe(tmp_path, merging.table(made, out, method="ties"))
    assert cli.main(["merge", path, "--dry-run"]) == 1
    assert capsys.readouterr().err.endswith("tensor, give --show\n")


def test_a_misspelt_flag_is_refused_with_a_suggestion(
    made: Made, out: str, tmp_path: Path
) -> None:
    path = merging.recipe(tmp_path, merging.table(made, out, method="ties"))
    with pytest.raises(SystemExit, match=r"'--metod=linear'; did you mean --method\?"):
        cli.main(["merge", path, "--metod=linear"])


def test_the_output_of_a_recipe_is_below_that_of_its_run(
    made: Made, tmp_path: Path
) -> None:
    path = Path(merging.recipe(tmp_path, merging.table(made, "x", method="linear")))
    text = path.read_text().replace('output = "x"\n', "")
    path.write_text('output = "runs/mine"\n' + text)
    assert table.read_recipe(str(path), {}).config.output == "runs/mine/merged"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "tis"}, r"\[merge\].*method must be one of .*did you mean ties"),
        ({"densty": 1}, r"known keys only, got 'densty'"),
        ({"settings": {"densty": 1}}, r"got 'densty'; did you mean density"),
        (
            {"method": "varm", "settings": {"weights": {"models": [0.2, 0.8]}}},
            r"\[merge\]: varm takes granularity, got 'weights'$",
        ),
        ({"settings": {"weight": [1, 2]}}, r"a list could be of the models or"),
        ({"rules": [{"method": "linear"}]}, r"rule 1 .* must hold 'pattern'"),
        ({"rules": [{"pattern": "*x*"}]}, r"every rule must fit a tensor.*'\*x\*'"),
        ({"rules": [{"pattern": "*", "take": "m3"}]}, r"take must name one of m1, m2"),
        ({"base": None}, r"ties merges differences from a base"),
        ({"models": ["a.gguf"]}, r"'a.gguf' must be a folder or a name"),
        ({"models": ["x/y", "z/y", "base=y"]}, r"not 'base', got model-1, model-2"),
        ({"method": "slerp", "settings": {"t": 0.5}}, r"use_base = false keeps the"),
        ({"dtype": "int8"}, r"dtype must be"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(
    change: dict[str, Any], told: str, made: Made, out: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        run(made, out, **{"method": "ties", **change})
    assert not Path(out).exists()


@pytest.fixture
def spoilt(made: Made, tmp_path: Path) -> Made:
    """Returns models of which m2 may be harmed."""
    copy = shutil.copytree(made["m2"], tmp_path / "m2")
    return {**made, "m2": str(copy)}


KEY = "model.layers.1.mlp.up_proj.weight"


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


def harm(task: work.MergeShards, opened: Opened, tensor: plan.Tensor) -> memoryview:
    if tensor.key == KEY:
        raise KeyboardInterrupt
    return MAKE(task, opened, tensor)


MAKE = work.MergeShards._bytes


@pytest.mark.parametrize("change", ["seed", "weights"])
def test_files_of_two_merges_are_never_loaded_as_a_model(
    change: str, spoilt: Made, out: str, tmp_path: Path, contents: Contents
) -> None:
    told = {"settings": {"weight": 0.5, "density": 0.4}, "overwrite": True}
    run(spoilt, out, "dare_linear", **told)
    if change == "weights":
        merging.rewrite(spoilt["m2"], merging.state(spoilt["m1"]))
    more: dict[str, Any] = {"seed": 1} if change == "seed" else {}
    # In this process: no runner is started for it.
    more["slices"] = f"0-{len(plan.read(out)) - 1}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work.MergeShards, "_bytes", harm)
        with pytest.raises(KeyboardInterrupt):
            run(spoilt, out, "dare_linear", **told, **more)
    assert any(Path(out).glob("model-*.safetensors"))
    with pytest.raises(ValueError, match=r"in its config\.json"):
        AutoModelForCausalLM.from_pretrained(out)
    run(spoilt, out, "dare_linear", **told, **more)
    run(spoilt, str(tmp_path / "new"), "dare_linear", **told, **more)
    assert contents(out) == contents(str(tmp_path / "new"))


def test_a_configuration_stays_beside_files_that_are_all_there(
    made: Made, out: str
) -> None:
    run(made, out)
    (Path(out) / manifest.NAME).unlink()
    given = merging.given(made, out, "ties", **SMALL)
    found = merge.plan_merge(given)
    identity = stage.identity(
        work.STAGE, given.shaping, merged.inputs_of(found.sources, found.shards)
    )
    merged.begin(out, found.sources, found.shards, identity)
    assert (Path(out) / "config.json").exists()


def test_a_configuration_goes_when_another_merge_publishes_while_it_is_written(
    made: Made, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(made, out)
    run(made, str(tmp_path / "other"), "linear", slices=ALL)
    (Path(out) / manifest.NAME).unlink()
    given = merging.given(made, out, "ties", **SMALL)
    told, describe = merge.describe_as(given, merge.plan_merge(given)), merged._manifest

    def disturbed(*args: Any) -> Any:
        name = plan.read(out)[0].file
        shutil.copy(tmp_path / "other" / name, out)
        return describe(*args)

    monkeypatch.setattr(merged, "_manifest", disturbed)
    with pytest.raises(FusionError, match="another command wrote it anew"):
        merged.describe(out, told)
    assert not (Path(out) / "config.json").exists()
    assert not (Path(out) / manifest.NAME).exists()


def test_who_publishes_beside_a_finished_merge_takes_its_configuration_away(
    made: Made, out: str
) -> None:
    given = merging.given(made, out, "linear", overwrite=True, **SMALL)
    found = merge.plan_merge(given)
    (task,) = merge._works(given.config, found, "another")
    run(made, out)  # ends after the other has begun
    task.make(plan.to_line(found.shards[0]))
    assert not (Path(out) / manifest.NAME).exists()
    assert not (Path(out) / "config.json").exists()


def test_a_kill_behind_the_manifest_leaves_no_sums_for_ever(
    made: Made, out: str, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"settings": {"granularity": "layer"}, "slices": ALL}
    with monkeypatch.context() as patch:
        patch.setattr(merged, "drop_sums", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(made, out, "varm", **more)
    assert (Path(out) / manifest.NAME).exists()
    with pytest.raises(SchemaError, match="but sums is there, too"):
        verify.verify([out])
    run(made, out, "varm", **more)
    assert not (Path(out) / "sums").exists()
    verify.verify([out])


def test_weights_that_no_manifest_lists_are_found(made: Made, out: str) -> None:
    run(made, out, slices=ALL)
    shutil.copy(Path(out) / plan.read(out)[0].file, Path(out) / "model-x.safetensors")
    with pytest.raises(SchemaError, match=r"but model-x\.safetensors is there, too"):
        verify.verify([out])


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_folder_that_another_launcher_has_ended_counts_as_done(
    when: str, made: Made, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {**SMALL, "settings": {"granularity": "layer"}}
    given = merging.given(made, out, "varm", **more)
    told = merge.describe_as(given, merge.plan_merge(given))
    with monkeypatch.context() as patch:
        patch.setattr(merged, "describe", lambda *_: None)
        assert (
            merge.merge_models(merging.given(made, out, "varm", **more, slices=ALL))
            is None
        )
    sums.weights.cache_clear()
    if when == "before":
        first = merged.describe(out, told)
    else:
        measure, ended = merged._measured, []

        def late(*args: Any) -> Any:
            if not ended:
                ended.append(None)
                ended.append(merged.describe(out, told))
                sums.weights.cache_clear()
            return measure(*args)

        monkeypatch.setattr(merged, "_measured", late)
        first = merged.describe(out, told)
        assert first.files == tuple(ended[1].files)
    assert merged.describe(out, told).files == tuple(first.files)
    assert not (Path(out) / "sums").exists()
    verify.verify([out])


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def interrupted_measure(task: sums.MeasureShards, line: str) -> None:
    if plan.from_line(line).index == 1:
        raise KeyboardInterrupt
    MEASURE(task, line)


MEASURE = sums.MeasureShards.make


@pytest.mark.parametrize("where", ["first pass", "between", "second pass", "describe"])
def test_a_merge_in_two_passes_that_is_broken_off_ends_with_the_same_bytes(
    where: str, made: Made, out: str, tmp_path: Path, contents: Contents
) -> None:
    more = {"settings": {"granularity": "layer"}, "slices": ALL}
    spots: dict[str, tuple[Any, str, Any]] = {
        "first pass": (sums.MeasureShards, "make", interrupted_measure),
        "between": (work.MergeShards, "make", interrupt),
        "second pass": (work.MergeShards, "_bytes", harm),
        "describe": (merged, "_write_model", interrupt),
    }
    run(made, out, "varm", **more)
    broken = str(tmp_path / "broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*spots[where])
        with pytest.raises(KeyboardInterrupt):
            run(made, broken, "varm", **more)
    assert list(Path(broken, "sums").iterdir())
    assert not (Path(broken) / "config.json").exists()
    run(made, broken, "varm", **more)
    clean.clean([broken], older_than_s=0, dry_run=False)
    assert contents(broken) == contents(out)
    assert not (Path(broken) / "sums").exists()


def test_a_changed_default_of_a_method_is_another_merge(
    made: Made, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(made, out)
    ties = methods.METHODS["ties"]
    density = dataclasses.replace(ties.parameters["density"], default=0.5)
    other = {**ties.parameters, "density": density}
    changed = dataclasses.replace(ties, parameters=other)
    monkeypatch.setitem(methods.METHODS, "ties", changed)
    told = (
        r"with settings\.density of .* = \[1\.0, 1\.0\], and now it is \[0\.5, 0\.5\]"
    )
    with pytest.raises(SchemaError, match=told):
        run(made, out)


def test_an_unfinished_folder_of_other_settings_is_named(made: Made, out: str) -> None:
    run(made, out)
    (Path(out) / manifest.NAME).unlink()
    with pytest.raises(SchemaError, match=r"made with other settings or inputs"):
        run(made, out, seed=1)
    with pytest.raises(
        SchemaError, match=r"with settings\.density of .*= \[1\.0, 1\.0\], and n"
    ):
        run(made, out, settings={"density": 0.5})
    with pytest.raises(SchemaError, match=r"begun with other settings or models"):
        run(made, out, shard_bytes=10**9)


def test_verifying_reads_what_the_plan_says(made: Made, out: str) -> None:
    run(made, out)
    (line,) = verify.verify([out])
    assert "of 3 of 3 models, which are there" in line
    shutil.copytree(out, f"{out}.copy")
    path = Path(f"{out}.copy") / plan.NAME
    path.write_text(path.read_text().replace("mlp.up_proj", "mlp.gone_proj"))
    found = manifest.read(f"{out}.copy", work.STAGE)
    with pytest.raises(SchemaError, match=r"must hold every tensor of plan\.jsonl"):
        merged.check(f"{out}.copy", found)


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
