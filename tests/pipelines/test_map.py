import shutil
from pathlib import Path

import duckdb
import pytest
from tokenizers import Tokenizer as Library

from pipelines import cli, counting, inspect, scored, verify
from pipelines import map as mapping
from pipelines.counting import CountConfig
from pipelines.map import MapConfig
from schemas import files, manifest
from schemas.errors import FusionError, SchemaError
from transforms import tokenizer
from transforms.functional import counterparts, token_map

STRATEGIES = {
    "first": counterparts.build_first,
    "mined": counterparts.build_mined,
}


def config_of(source: str, target: str, out: str, **more: object) -> MapConfig:
    given = {"source": source, "target": target, "output": f"{out}/map.parquet", **more}
    return MapConfig(**given)  # type: ignore[arg-type]


def scored_config(road: str, out: str, **more: object) -> MapConfig:
    more = {"strategy": "statistics", **more}
    return config_of(f"{road}/scores/neox", f"{road}/scores/llama", out, **more)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_map_is_what_the_pure_function_makes_of_both_tokenizers(
    strategy: str, models: dict[str, str], out: str
) -> None:
    config = config_of(models["neox"], models["llama"], out, strategy=strategy)
    made, source, target = mapping.map_tokens(config)
    wanted = STRATEGIES[strategy](source, target)
    assert made.target_ids.tolist() == wanted.target_ids.tolist()
    with files.open_input(config.output) as file:
        found = token_map.load_map(
            file,
            source_fingerprint=tokenizer.load(models["neox"]).fingerprint,
            target_fingerprint=tokenizer.load(models["llama"]).fingerprint,
            strategy=strategy,
        )
    assert found.target_ids.tolist() == wanted.target_ids.tolist()
    assert list(Path(out).iterdir()) == [Path(config.output)]
    assert {"bytes", "role"} < {token_map.HOW[number] for number in set(found.how)}


def test_a_models_own_map_is_the_identity(models: dict[str, str], out: str) -> None:
    config = config_of(models["llama"], models["llama"], out, strategy="mined")
    made, source, _ = mapping.map_tokens(config)
    assert made.target_ids.tolist() == list(range(source.size))


def test_statistics_are_counted_over_all_windows(road: str, out: str) -> None:
    config = scored_config(road, out)
    made, source, target = mapping.map_tokens(config)
    folder = config.counting.output
    described = manifest.read(folder, "cooccurrences")
    assert described.counts["failed"] == 0
    windows = manifest.read(f"{road}/windows/fusion", "windows")
    assert described.counts["windows"] == windows.counts["windows"]
    assert len(described.files) > 1
    wanted = counterparts.build_statistics(
        source,
        target,
        counting.read_counts(folder),
        fingerprint=described.fingerprint,
    )
    assert made.target_ids.tolist() == wanted.target_ids.tolist()
    assert (made.how == token_map.STATISTICS).sum() > 20
    query = f"select sum(count) from '{folder}/*.parquet'"
    ((total,),) = duckdb.sql(query).fetchall()
    assert total > described.counts["tokens"] / 2


def test_what_is_done_is_not_done_again(road: str, out: str) -> None:
    config = scored_config(road, out)
    made, _, _ = mapping.map_tokens(config)
    before = files.stamps(out), files.stamps(config.counting.output)
    found, _, _ = mapping.map_tokens(config)
    assert (files.stamps(out), files.stamps(config.counting.output)) == before
    assert found.target_ids.tolist() == made.target_ids.tolist()
    files.remove_tree(config.output)
    content = files.stamps(config.counting.output)
    mapping.map_tokens(config)
    assert files.stamps(config.counting.output) == content


def test_a_repeated_command_writes_the_same_bytes(road: str, out: str) -> None:
    contents = []
    for _ in range(2):
        config = scored_config(road, out, overwrite=True)
        mapping.map_tokens(config)
        contents.append(files.read_bytes(config.output))
        shutil.rmtree(config.counting.output)
    assert contents[0] == contents[1]


def test_another_map_is_not_written_over_unless_asked(
    models: dict[str, str], out: str
) -> None:
    mapping.map_tokens(config_of(models["neox"], models["llama"], out))
    other = config_of(models["neox"], models["llama"], out, strategy="mined")
    with pytest.raises(SchemaError, match=r"strategy .* 'mined', got 'first'"):
        mapping.map_tokens(other)
    swapped = config_of(models["llama"], models["neox"], out)
    with pytest.raises(SchemaError, match="source_fingerprint"):
        mapping.map_tokens(swapped)
    again = config_of(
        models["neox"], models["llama"], out, strategy="mined", overwrite=True
    )
    assert mapping.map_tokens(again)[0].strategy == "mined"


def test_scores_folders_name_their_tokenizers(
    road: str, models: dict[str, str], out: str
) -> None:
    made, _, _ = mapping.map_tokens(scored_config(road, out, strategy="mined"))
    wanted = STRATEGIES["mined"](
        *(tokenizer.load(models[n]) for n in ("neox", "llama"))
    )
    assert made.target_ids.tolist() == wanted.target_ids.tolist()


def test_statistics_need_scores_of_the_same_windows(
    road: str, models: dict[str, str], out: str, tmp_path: Path
) -> None:
    with pytest.raises(SchemaError, match=r"source and target must be scores folders"):
        mapping.map_tokens(
            config_of(models["neox"], models["llama"], out, strategy="statistics")
        )
    other = tmp_path / "other"
    shutil.copytree(f"{road}/scores/neox", other)
    path = str(other / manifest.NAME)
    found = files.read_json(path)
    found["inputs"]["windows"] = "others"
    files.write_json(path, found)
    with pytest.raises(SchemaError, match="must be of the same windows"):
        counting.inputs_of(
            CountConfig(source=str(other), target=f"{road}/scores/llama", output=out)
        )


def test_a_tokenizer_that_was_exchanged_is_refused(
    road: str, models: dict[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(f"{road}/scores/neox", other)
    path = str(other / manifest.NAME)
    found = files.read_json(path)
    found["origins"]["tokenizer"] = models["llama"]
    files.write_json(path, found)
    with pytest.raises(SchemaError, match="made with another tokenizer"):
        scored.tokenizer_of(str(other))


def test_what_the_models_configuration_has_no_logit_for_is_not_chosen(
    models: dict[str, str], out: str, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(models["llama"], cut)
    config = files.read_json(str(cut / "config.json"))
    files.write_json(str(cut / "config.json"), {**config, "vocab_size": 280})
    made, _, target = mapping.map_tokens(
        config_of(models["neox"], str(cut), out, strategy="mined")
    )
    assert target.size > 280 > made.target_ids.max()


def test_the_command_prints_a_report(
    models: dict[str, str], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--source={models['neox']}", f"--target={models['llama']}"]
    words += [f"--output={out}/map.parquet", "--strategy=mined", "--examples=3"]
    assert cli.main(["map", *words]) == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    size = Library.from_file(f"{models['neox']}/tokenizer.json").get_vocab_size()
    assert lines[0] == f"neox to llama, mined: {size:,} source ids"
    shares = [line for line in lines if line.startswith("  ") and line.endswith("%")]
    parts = [line for line in shares if not line.startswith("    ")]
    assert sum(int(line.split()[-2]) for line in parts) == size
    apart = [line for line in shares if line.startswith("    ")]
    guessed = [line for line in parts if "edit distance" in line or "first" in line]
    assert len(guessed) == 2
    each, total = (
        sum(int(line.split()[-2]) for line in some) for some in (apart, guessed)
    )
    assert each == total
    worst = lines[lines.index("  worst") + 1 : -1]
    distances = [int(line.split()[0]) for line in worst]
    assert len(distances) == 3
    assert distances == sorted(distances, reverse=True)
    assert "\x1b" not in told
    assert lines[-1].startswith(f"{out}/map.parquet: ")


def test_the_report_may_be_left_out(
    models: dict[str, str], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--source={models['neox']}", f"--target={models['llama']}"]
    assert cli.main(["map", *words, f"--output={out}/m.parquet", "--no_report"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_report_is_colored_where_the_page_is(
    models: dict[str, str],
) -> None:
    source, target = (tokenizer.load(models[name]) for name in ("neox", "llama"))
    made = counterparts.build_first(source, target)
    lines = list(mapping.report(made, source, target, inspect.Page(color=True), 1))
    assert lines[0].startswith(inspect.BOLD)
    assert lines[-1].startswith(inspect.RED)


def test_long_tokens_are_shown_by_their_ends(models: dict[str, str]) -> None:
    own = tokenizer.load(models["llama"])
    own.token_bytes[5] = b"a" * 50 + b"\n" * 20
    text = mapping.shown(own, 5)
    assert len(text) <= 32
    assert text.startswith("'aaaa")
    assert "…" in text
    assert text.endswith("\\n\\n'")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": "map.csv"}, "must be a .parquet file"),
        ({"examples": -1}, "must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(
    given: dict[str, object], message: str, out: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config_of("a", "b", out, **given)


def test_a_job_that_fails_tells_the_steps_own_message(
    road: str, out: str, tmp_path: Path
) -> None:
    other = tmp_path / "neox"
    shutil.copytree(f"{road}/scores/neox", other)
    one, two = files.names(str(other), ".parquet")[:2]
    (other / one).write_bytes((other / two).read_bytes())
    config = config_of(str(other), f"{road}/scores/llama", out, strategy="statistics")
    with pytest.raises(FusionError, match="must hold the windows of slice 0"):
        mapping.map_tokens(config)
    assert not files.exists(config.output)


def test_verify_proves_counts_and_refuses_those_of_other_scores(
    road: str, out: str, tmp_path: Path
) -> None:
    run = f"{tmp_path}/run"
    shutil.copytree(road, run)
    config = scored_config(run, f"{run}/maps")
    mapping.map_tokens(config)
    folder = config.counting.output
    (line,) = verify.verify([folder])
    assert "windows counted + 0 failed = all that were scored" in line
    path = f"{folder}/{manifest.NAME}"
    found = files.read_json(path)
    files.write_json(path, {**found, "fingerprint": "other"})
    with pytest.raises(SchemaError, match="must be made of the scores now in"):
        verify.verify([folder])
    found["counts"]["windows"] -= 1
    files.write_json(path, found)
    with pytest.raises(SchemaError, match="windows, counted or failed"):
        verify.verify([folder])
