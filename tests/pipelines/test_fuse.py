import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest

from pipelines import fuse, inspect, score, verify
from schemas import files, fused, manifest, parquet, plan, scores, windows
from schemas.errors import FusionError, SchemaError
from schemas.fused import FusedRow
from tests.pipelines.conftest import fuse_config, score_config
from transforms import tokenizer
from transforms.functional import align, codec, project, ranks, vocabulary, weigh
from transforms.functional import fuse as pure
from transforms.functional.codec import Distributions

Contents = Callable[[str], dict[str, str]]


def rows(folder: str) -> Iterator[tuple[FusedRow, Distributions]]:
    for name in files.names(folder, ".parquet"):
        path = f"{folder}/{name}"
        table = ranks.load_ranks(parquet.footer(path)["ranks"])
        for group in fused.read(path):
            for row in group:
                yield (
                    row,
                    codec.decode_rows(row.distribution, row.input_ids, table),
                )


def windows_of(
    folder: str,
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns token ids, kept ids and probabilities of every window of a folder."""
    found = {}
    for row, decoded in rows(folder):
        start = 0
        for name, length in zip(row.window_ids, row.segment_lengths, strict=True):
            stop = start + int(length)
            found[name] = (
                row.input_ids[start:stop],
                decoded.ids[start : stop - 1],
                decoded.probs[start : stop - 1],
            )
            start = stop
    return found


def fused_directly(
    road: str, models: dict[str, str], fusion: str, granularity: str
) -> dict[str, pure.Fused]:
    """Fuses every window of `road`, neox and the target itself, by the functions."""
    own = tokenizer.load(models["llama"])
    maps = [
        vocabulary.build_map(tokenizer.load(models[name]), own)
        for name in ("neox", "llama")
    ]
    source, found = f"{road}/windows/fusion", {}
    for piece in plan.read(source):
        groups = [windows.read_slice(source, piece)] + [
            scores.read(f"{road}/scores/{n}/{piece.output}") for n in ("neox", "llama")
        ]
        for group in zip(*groups, strict=True):
            for window, *said in zip(*group, strict=True):
                target, eos = said[1], window.ends_document
                projected = [
                    project.project_rows(
                        align.align_spans(target.byte_ends, one.byte_ends, eos=eos),
                        one,
                        mapping,
                        target.token_ids,
                        # the target has no dummy prefix
                        begins_alike=not mapping.puts_space(
                            one.token_ids, one.byte_ends
                        ),
                        k=7,
                    )
                    for one, mapping in zip(said, maps, strict=True)
                ]
                if granularity == "window":
                    costs = np.array([one.bits_per_byte for one in said])
                else:
                    each = [
                        weigh.position_costs(
                            target.byte_ends, one.byte_ends, one.gold_logprob, eos=eos
                        )
                        for one in said
                    ]
                    costs = np.stack(each, axis=-1)
                    costs[~np.stack([p.covered for p in projected], axis=-1)] = np.nan
                weights = {
                    "mince": weigh.min_ce_weights,
                    "avgce": weigh.avg_ce_weights,
                }[fusion](costs)
                found[window.window_id] = pure.fuse_rows(projected, weights, k=6)
    return found


@pytest.mark.parametrize("fusion", ["mince", "avgce"])
@pytest.mark.parametrize("granularity", ["window", "position"])
def test_a_fused_window_is_what_the_pure_functions_make_of_its_scores(
    fusion: str, granularity: str, road: str, models: dict[str, str], out: str
) -> None:
    made = fuse.fuse_scores(
        fuse_config(road, out, fusion=fusion, granularity=granularity)
    )
    found = windows_of(out)
    wanted = fused_directly(road, models, fusion, granularity)
    assert found.keys() == wanted.keys()
    assert len(found) > 50
    for name, (_, ids, probs) in found.items():
        np.testing.assert_array_equal(ids, wanted[name].ids)
        # The codec's finest step is 0.06 nats; both sides sum to 1 with the tail.
        np.testing.assert_allclose(probs, wanted[name].probs, rtol=0.3, atol=5e-3)
    assert made is not None
    kept = sum(int((one.ids[:, 0] >= 0).sum()) for one in wanted.values())
    assert made.counts["covered"] == kept


def test_mince_takes_the_cheapest_source_of_each_window(road: str) -> None:
    cost = dict(
        duckdb.sql(
            f"select a.window_id, a.nll_nats <= b.nll_nats"
            f" from '{road}/scores/neox/*.parquet' a"
            f" join '{road}/scores/llama/*.parquet' b using (window_id)"
        ).fetchall()
    )
    assert len(set(cost.values())) == 2
    for row, _ in rows(f"{road}/fused"):
        for name, weights in zip(row.window_ids, row.weights, strict=True):
            assert weights.tolist() == ([1, 0] if cost[name] else [0, 1])


def test_only_the_target_as_source_gives_its_own_distributions_back(
    road: str, out: str
) -> None:
    fuse.fuse_scores(fuse_config(road, out, sources=(), top_k=6))
    own = {
        one.window_id: one
        for piece in plan.read(f"{road}/windows/fusion")
        for group in scores.read(f"{road}/scores/llama/{piece.output}")
        for one in group
    }
    for name, (_, ids, _) in windows_of(out).items():
        # The gold token is known even where it is not kept, and may take a place.
        top = own[name].top_ids
        gold = own[name].token_ids[1:, None]
        kept = (ids[:, :, None] == np.hstack([top, gold])[:, None, :]).any(-1)
        assert kept.all()
        same = (np.sort(ids) == np.sort(top)).all(axis=1)
        outside = ~(top == gold).any(axis=1)
        assert (same | outside).all()
        assert same.any()


@pytest.mark.parametrize(
    "flags",
    [
        ["--runner=BundleBasedDirectRunner"],
        ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
    ],
    ids=lambda flags: flags[0],
)
def test_every_runner_gives_the_same_bytes(
    flags: list[str], road: str, out: str, contents: Contents
) -> None:
    fuse.fuse_scores(fuse_config(road, out), flags)
    assert contents(out) == contents(f"{road}/fused")


@pytest.mark.parametrize("fusion", ["mince", "avgce"])
@pytest.mark.parametrize("granularity", ["window", "position"])
def test_every_way_of_fusing_keeps_every_window_and_all_mass(
    fusion: str, granularity: str, road: str, out: str
) -> None:
    made = fuse.fuse_scores(
        fuse_config(road, out, fusion=fusion, granularity=granularity)
    )
    assert made is not None
    assert made.counts["windows"] == made.counts["failed"] + len(windows_of(out))
    for row, decoded in rows(out):
        total = decoded.probs.sum(axis=1) + decoded.tail
        np.testing.assert_allclose(total[decoded.counts > 0], 1, atol=1e-4)
        assert not decoded.counts[~row.loss_mask].any()
    if (fusion, granularity) != ("mince", "window"):
        # the target has a weight wherever neox is silent, and covers all
        assert made.counts["covered"] == made.counts["positions"]


def test_the_last_window_of_a_document_predicts_its_end(
    road: str, models: dict[str, str]
) -> None:
    eos = tokenizer.load(models["llama"]).eos_id
    source = f"{road}/windows/fusion"
    ends = {
        w.window_id: w.ends_document
        for w in windows.read_all(source, plan.read(source))
    }
    for name, (token_ids, _, _) in windows_of(f"{road}/fused").items():
        assert (token_ids[-1] == eos) == ends[name]


def test_a_changed_setting_never_mixes_with_old_files(road: str, out: str) -> None:
    fuse.fuse_scores(fuse_config(road, out))
    with pytest.raises(SchemaError, match="fusion = 'mince', and now it is 'avgce'"):
        fuse.fuse_scores(fuse_config(road, out, fusion="avgce"))


def test_rows_coded_by_another_version_are_not_gone_on_with(
    road: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse.fuse_scores(fuse_config(road, out))
    told = f"frames = {codec.VERSION}, and now it is {codec.VERSION + 1}"
    monkeypatch.setattr(codec, "VERSION", codec.VERSION + 1)
    with pytest.raises(SchemaError, match=told):
        fuse.fuse_scores(fuse_config(road, out))
    (Path(out) / "manifest.json").unlink()
    with pytest.raises(SchemaError, match="by another version in another format"):
        fuse.fuse_scores(fuse_config(road, out))


def test_scores_of_other_windows_are_refused_by_name(
    road: str, models: dict[str, str], out: str
) -> None:
    score.score_windows(
        score_config(road, models, "neox", output=out, windows=f"{road}/windows/dev")
    )
    config = fuse_config(road, f"{out}.fused", sources=(f"neox={out}",))
    with pytest.raises(SchemaError, match=f"{out} must be of the windows"):
        fuse.fuse_scores(config)


def test_a_slice_of_other_windows_is_refused_by_name(
    road: str, out: str, tmp_path: Path
) -> None:
    swapped = tmp_path / "neox"
    swapped.mkdir()
    for path in Path(f"{road}/scores/neox").glob("*.*"):
        (swapped / path.name).write_bytes(path.read_bytes())
    first, second, *_ = sorted(swapped.glob("slice-*.parquet"))
    first.write_bytes(second.read_bytes())
    config = fuse_config(road, out, sources=(f"neox={swapped}",))
    with pytest.raises(FusionError, match=r"slice-000000\.parquet must hold the win"):
        fuse.fuse_scores(config)


def test_a_row_longer_than_a_training_row_is_refused_with_the_cure(
    road: str, out: str
) -> None:
    with pytest.raises(FusionError, match="seq_length"):
        fuse.fuse_scores(fuse_config(road, out, seq_length=20))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sources": ("neox",)}, "NAME=FOLDER"),
        ({"sources": ("a=x", "a=y")}, "each name once"),
        ({"sources": ("target=x",)}, "'target'"),
        ({"sources": (), "include_target": False}, "at least one source"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 256}, r"top_k must be in \[1, 255\], got 256"),
    ],
)
def test_a_bad_setting_is_refused_before_any_work(
    more: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fuse_config("road", "out", **more)


@pytest.mark.parametrize("strategy", ["spans", "statistics"])
def test_slices_that_are_done_here_are_for_no_runner(
    strategy: str, road: str, out: str
) -> None:
    config = fuse_config(road, out, strategy=strategy, slices="0")
    with pytest.raises(
        ValueError, match=r"--slices.*no flag of a runner.*--direct_num"
    ):
        fuse.fuse_scores(config, ["--direct_num_workers=2"])
    assert not Path(out).exists()


def test_an_infinite_temperature_is_the_plain_mean(road: str, out: str) -> None:
    config = fuse_config(road, out, fusion="avgce", temperature=float("inf"))
    made = fuse.fuse_scores(config)
    assert made is not None
    assert made.settings["temperature"] == "inf"
    assert fuse.fuse_scores(config) == manifest.read(out, fused.STAGE)
    weights = np.concatenate([row.weights for row, _ in rows(out)])
    np.testing.assert_allclose(weights, 0.5)


def test_a_finished_run_is_proved_whole(road: str) -> None:
    lines = verify.verify([road])
    assert len(lines) == 5
    assert any("windows fused + 0 failed = all of" in line for line in lines)


@pytest.mark.parametrize("stage", ["windows/fusion", "scores/neox", "fused"])
def test_a_lost_file_is_found(road: str, stage: str, tmp_path: Path) -> None:
    copy = shutil.copytree(road, tmp_path / "run") / stage
    verify.verify([str(copy)])
    max(copy.glob("*.parquet")).unlink()
    with pytest.raises(SchemaError, match="is not there"):
        verify.verify([str(copy)])


def test_a_lost_row_is_found_even_where_the_manifest_agrees(
    road: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(road, tmp_path / "run") / "fused"
    victim = max(copy.glob("*.parquet"))
    (group,) = fused.read(str(victim))
    footer = parquet.footer(str(victim))
    with parquet.writer(str(victim), fused.SCHEMA, footer) as tables:
        tables.write(fused.to_table(group[:-1]))
    made = manifest.read(str(copy), fused.STAGE)
    assert tables.entry is not None
    entries = [e for e in made.files if e.name != victim.name] + [tables.entry]
    value = files.read_json(f"{copy}/manifest.json")
    value["files"] = [
        {n: getattr(e, n) for n in ("name", "rows", "tokens", "bytes", "sha256")}
        for e in entries
    ]
    files.write_json(f"{copy}/manifest.json", value)
    with pytest.raises(SchemaError, match=r"must hold each window .* it lacks"):
        verify.verify([str(copy)])


def test_a_run_has_the_same_manifest_bytes_wherever_it_is(
    road: str, tmp_path: Path
) -> None:
    moved = shutil.copytree(road, tmp_path / "moved")
    (moved / "fused" / "manifest.json").unlink()
    fuse.fuse_scores(fuse_config(str(moved), f"{moved}/fused"))
    again, first = (
        Path(run, "fused/manifest.json").read_bytes() for run in (moved, road)
    )
    assert again == first


def test_a_run_that_was_moved_is_proved_and_shown(
    road: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.copytree(road, tmp_path / "moved")
    for stage in ("scores/neox", "fused"):
        text = (moved / stage / "manifest.json").read_text()
        assert road not in text
    was = files.filesystem

    def gone(path: str) -> tuple[object, str]:
        assert not path.startswith(road)
        return was(path)

    monkeypatch.setattr(files, "filesystem", gone)
    monkeypatch.chdir(tmp_path)
    for folder in ("moved", str(moved)):
        assert len(verify.verify([folder])) == 5
    for stage in ("scores/neox", "fused"):
        page = inspect.Page(color=False)
        given = {"skip": 0, "count": 1, "top": 1, "tokens": None}
        assert list(inspect.lines(f"moved/{stage}", page, **given))
