"""How the candidates are weighed, on folders of scores."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import fuse, verify
from schemas import files, fused, parquet, plan, scores, windows
from schemas.fused import FusedRow
from schemas.scores import Score
from schemas.windows import Window
from tests.pipelines.conftest import fuse_config
from transforms import tokenizer
from transforms.functional import align, chunks, pack, weigh

Contents = Callable[[str], dict[str, str]]
FAILED = 0.25
NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def many(road: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Returns scores of five sources by name: neox's, each another way off."""
    root = tmp_path_factory.mktemp("many")
    return {
        name: disturb(f"{road}/scores/neox", root / name, seed)
        for seed, name in enumerate(NAMES)
    }


def disturb(folder: str, copy: Path, seed: int) -> str:
    """Copies scores, every cost changed, and some windows failed."""
    shutil.copytree(folder, copy)
    rng = np.random.default_rng(seed)
    for path in sorted(copy.glob("*.parquet")):
        footer = parquet.footer(str(path))
        groups = [
            [disturbed(rng, score, footer["k"]) for score in group]
            for group in scores.read(str(path))
        ]
        with parquet.writer(
            str(path), scores.SCHEMA, footer, **scores.WRITER_OPTIONS
        ) as tables:
            for group in groups:
                tables.write(scores.to_table(group))
    made = json.loads((copy / "manifest.json").read_text())
    made["fingerprint"] = f"{seed:032d}"
    (copy / "manifest.json").write_text(json.dumps(made))
    return str(copy)


def disturbed(rng: np.random.Generator, score: Score, k: int) -> Score:
    if rng.random() < FAILED:
        return scores.failed(score.window_id, score.n_bytes, "bad", k)
    factor = np.float32(rng.uniform(1, 1.5))
    gold = score.gold_logprob * factor
    return Score(
        window_id=score.window_id,
        token_ids=score.token_ids,
        byte_ends=score.byte_ends,
        top_ids=score.top_ids,
        top_logprobs=score.top_logprobs * factor,
        logsumexp=score.logsumexp,
        gold_logprob=gold,
        nll_nats=float(-gold.sum(dtype=np.float64)),
        n_bytes=score.n_bytes,
    )


def sources_of(many: dict[str, str], names: str) -> tuple[str, ...]:
    return tuple(f"{name}={many[name]}" for name in names)


class Said:
    """Every window of the road with what each candidate says of it."""

    def __init__(self, road: str, folders: dict[str, str]) -> None:
        source = f"{road}/windows/fusion"
        self.windows: list[Window] = []
        self.scores: list[list[Score]] = []
        for piece in plan.read(source):
            readers = [
                scores.read(files.join(folder, piece.output))
                for folder in folders.values()
            ]
            self.windows += windows.read_all(source, [piece])
            columns = [[s for group in reader for s in group] for reader in readers]
            self.scores += map(list, zip(*columns, strict=True))

    def documents(self) -> list[list[int]]:
        """Returns the windows of each document."""
        starts = [i for i, w in enumerate(self.windows) if w.byte_start == 0]
        stops = [*starts[1:], len(self.windows)]
        return [list(range(a, b)) for a, b in zip(starts, stops, strict=True)]


def rows_of(folder: str) -> list[FusedRow]:
    return [
        row
        for name in files.names(folder, ".parquet")
        for group in fused.read(f"{folder}/{name}")
        for row in group
    ]


def weights_of(folder: str) -> dict[str, np.ndarray]:
    return {
        name: weights
        for row in rows_of(folder)
        for name, weights in zip(row.window_ids, row.weights, strict=True)
    }


WAYS = [
    {"fusion": "mince", "granularity": "window"},
    {"fusion": "mince", "granularity": "document"},
    {"fusion": "avgce", "granularity": "position"},
]


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way.values()))
def test_any_number_of_sources_keeps_every_window_and_teaches(
    names: str, way: dict[str, object], road: str, many: dict[str, str], out: str
) -> None:
    config = fuse_config(
        road, out, sources=sources_of(many, names), include_target=False, **way
    )
    made = fuse.fuse_scores(config)
    assert made is not None
    found = weights_of(out)
    assert made.counts["windows"] == len(found) + made.counts["failed"]
    assert made.counts["covered"] > 0
    totals = np.array([weights.sum() for weights in found.values()])
    assert set(np.round(totals, 5)) <= {0.0, 1.0}
    assert {weights.shape for weights in found.values()} == {(len(names),)}


@pytest.mark.parametrize("way", WAYS[1:], ids=lambda way: "-".join(way.values()))
def test_the_order_of_six_candidates_changes_no_byte(
    way: dict[str, object],
    road: str,
    many: dict[str, str],
    out: str,
    contents: Contents,
) -> None:
    found = []
    for order in ("abcde", "dbeac"):
        folder = f"{out}.{order}"
        given = sources_of(many, order)
        fuse.fuse_scores(fuse_config(road, folder, sources=given, **way))
        found.append(contents(folder))
        manifest = files.read_json(f"{folder}/manifest.json")
        assert manifest["settings"]["sources"] == [*NAMES, "target"]
    assert found[0] == found[1]


def test_a_documents_windows_are_weighed_by_the_whole_of_it(
    road: str, many: dict[str, str], out: str
) -> None:
    given = sources_of(many, "abc")
    fuse.fuse_scores(
        fuse_config(
            road, out, sources=given, include_target=False, granularity="document"
        )
    )
    found = weights_of(out)
    said = Said(road, {name: many[name] for name in "abc"})
    across = failed = 0
    for document in said.documents():
        costs = np.array(
            [
                weigh.bits_per_byte(
                    float(sum(said.scores[i][s].nll_nats or 0 for i in scored)),
                    sum(said.scores[i][s].n_bytes for i in scored),
                )
                for s in range(3)
                for scored in [[i for i in document if not said.scores[i][s].error]]
            ]
        )
        for i in document:
            out_here = [score.error is not None for score in said.scores[i]]
            wanted = weigh.min_ce_weights(np.where(out_here, np.nan, costs))
            window = said.windows[i].window_id
            np.testing.assert_array_equal(found[window], wanted)
            failed += any(out_here)
    borders = np.cumsum([p.windows for p in plan.read(f"{road}/windows/fusion")])
    across = sum(said.windows[b].byte_start > 0 for b in borders[:-1])
    assert across > 0
    assert failed > 0


def test_a_slice_alone_weighs_documents_as_all_slices_do(
    road: str, many: dict[str, str], out: str, contents: Contents
) -> None:
    given = {"sources": sources_of(many, "ab"), "granularity": "document"}
    fuse.fuse_scores(fuse_config(road, f"{out}.all", **given))
    last = len(plan.read(f"{road}/windows/fusion")) - 1
    for piece in range(last, -1, -1):
        config = fuse_config(road, f"{out}.each", slices=str(piece), **given)
        fuse.fuse_scores(config)
    assert contents(f"{out}.each") == contents(f"{out}.all")


def test_static_weights_hold_but_for_a_domain_that_has_its_own(
    road: str, many: dict[str, str], out: str
) -> None:
    given = {
        "fusion": "static",
        "sources": sources_of(many, "ab"),
        "weights": ("a=3", "b=1", "target=0"),
        "domain_weights": ("odd:target=4",),
    }
    fuse.fuse_scores(fuse_config(road, out, **given))
    found = weights_of(out)
    said = Said(road, {name: many[name] for name in "ab"})
    seen = set()
    for window, both in zip(said.windows, said.scores, strict=True):
        shares = np.array([3.0, 1.0, 4.0 * (window.domain == "odd")])
        shares[:2] *= [score.error is None for score in both]
        wanted = shares / max(shares.sum(), 1)
        np.testing.assert_allclose(found[window.window_id], wanted, rtol=1e-6)
        seen.add(tuple(wanted))
    assert {(0.75, 0.25, 0), (0.375, 0.125, 0.5), (0, 1, 0), (1, 0, 0)} <= seen


def test_a_domain_without_windows_is_named(
    road: str, many: dict[str, str], out: str
) -> None:
    config = fuse_config(
        road,
        out,
        fusion="static",
        sources=(),
        weights=("target=1",),
        domain_weights=("odd:target=2", "cod:target=2"),
    )
    made = fuse.fuse_scores(config)
    assert made is not None
    (line,) = fuse.slips(config, made.counts)
    assert "'cod'" in line


@pytest.mark.parametrize("fusion", ["mince", "avgce"])
@pytest.mark.parametrize("granularity", ["window", "packed_row"])
def test_under_reference_weights_are_the_authors(
    fusion: str, granularity: str, road: str, many: dict[str, str], out: str
) -> None:
    folders = {"target": f"{road}/scores/llama", "b": many["b"], "a": many["a"]}
    fuse.fuse_scores(
        fuse_config(
            road,
            out,
            sources=sources_of(many, "ba"),
            reference=True,
            fusion=fusion,
            granularity=granularity,
        )
    )
    said = Said(road, folders)
    place = {w.window_id: i for i, w in enumerate(said.windows)}
    weights = {
        "mince": weigh.reference_min_ce_weights,
        "avgce": weigh.reference_avg_ce_weights,
    }[fusion]
    seen = set()
    for row in rows_of(out):
        metrics = np.array(
            [
                [
                    np.nan if s.error else weigh.reference_metric(s.gold_logprob)
                    for s in said.scores[place[name]]
                ]
                for name in row.window_ids
            ]
        )
        if granularity == "packed_row":
            lengths = row.segment_lengths
            metrics[:] = (lengths / lengths.sum()) @ metrics
        for own, found in zip(metrics, row.weights, strict=True):
            np.testing.assert_allclose(found, np.nan_to_num(weights(own)), rtol=1e-6)
            seen.add(tuple(found))
    assert len(seen) > 1


def test_a_rows_figures_are_those_of_its_scores(
    road: str, models: dict[str, str], out: str
) -> None:
    fuse.fuse_scores(fuse_config(road, out, fusion="avgce"))
    folders = {"neox": f"{road}/scores/neox", "target": f"{road}/scores/llama"}
    said = Said(road, folders)
    place = {w.window_id: i for i, w in enumerate(said.windows)}
    eos = [tokenizer.load(models[n]).eos_id is not None for n in ("neox", "llama")]
    assert eos == [True, True]
    for row in rows_of(out):
        starts = np.cumsum(row.segment_lengths) - row.segment_lengths
        owner = np.searchsorted(starts, row.chunk_ends, "right") - 1
        for g, name in enumerate(row.window_ids):
            window, both = said.windows[place[name]], said.scores[place[name]]
            target, ends = both[1], window.ends_document
            nats = [score.nll_nats for score in both]
            np.testing.assert_array_equal(row.source_logprobs[g], -np.array(nats))
            assert row.n_bytes[g] == target.n_bytes
            covered = [
                align.align_spans(target.byte_ends, s.byte_ends, eos=ends).covered
                for s in both
            ]
            shares = np.mean(covered, axis=1)
            np.testing.assert_allclose(row.source_coverage[g], shares, rtol=1e-6)
            best = both[int(row.weights[g].argmax())]
            wanted = chunks.cut_chunks(
                target.byte_ends,
                best.byte_ends,
                best.gold_logprob,
                target_eos=ends,
                source_eos=ends,
            )
            own = owner == g
            np.testing.assert_array_equal(row.chunk_ends[own] - starts[g], wanted.ends)
            np.testing.assert_array_equal(
                row.chunk_logprobs[own], chunks.round_logprobs(wanted.logprobs)
            )


def test_a_window_that_every_source_failed_has_a_chunk_without_a_number(
    road: str, many: dict[str, str], out: str
) -> None:
    config = fuse_config(road, out, sources=sources_of(many, "a"), include_target=False)
    fuse.fuse_scores(config)
    silent = 0
    for row in rows_of(out):
        starts = np.cumsum(row.segment_lengths) - row.segment_lengths
        owner = np.searchsorted(starts, row.chunk_ends, "right") - 1
        for g, weights in enumerate(row.weights):
            own = row.chunk_logprobs[owner == g]
            assert np.isnan(own).all() == (not weights.any())
            assert np.isnan(row.source_logprobs[g, 0]) == (not weights.any())
            assert (row.source_coverage[g, 0] > 0) == weights.any()
            silent += not weights.any()
    assert silent > 0
    verify.verify([out])


def test_packing_is_the_same_before_and_after_fusing(
    road: str, many: dict[str, str], out: str
) -> None:
    fuse.fuse_scores(
        fuse_config(
            road,
            out,
            sources=sources_of(many, "a"),
            reference=True,
            granularity="packed_row",
        )
    )
    for name in files.names(out, ".parquet"):
        rows = [row for group in fused.read(f"{out}/{name}") for row in group]
        lengths = {
            w: int(n)
            for row in rows
            for w, n in zip(row.window_ids, row.segment_lengths, strict=True)
        }
        order = [
            s.window_id
            for group in scores.read(f"{road}/scores/llama/{name}")
            for s in group
        ]
        packed = pack.pack_windows([lengths[w] for w in order], 600)
        assert [row.window_ids for row in rows] == [
            tuple(order[i] for i in places) for places in packed
        ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"granularity": "packed_row"}, "packed_row is the authors' own and needs"),
        (
            {"granularity": "document", "reference": True},
            "must be window or packed_row with --reference",
        ),
        ({"temperature": 2.0, "reference": True}, "temperature must be left out"),
        ({"fusion": "static"}, "weights must name every candidate, neox, target"),
        (
            {"fusion": "static", "weights": ("neox=1",)},
            "lack target; add target=0",
        ),
        (
            {
                "fusion": "static",
                "weights": ("neox=1", "target=1"),
                "granularity": "document",
            },
            "granularity must be left out with fusion = static",
        ),
        (
            {
                "fusion": "static",
                "weights": ("neox=1", "target=1"),
                "reference": True,
            },
            "reference must be left out with fusion = static",
        ),
        ({"maps_only": True, "slices": "0"}, "slices must be left out"),
        ({"weights": ("neox=1",)}, "are for fusion = static, got fusion = mince"),
        ({"domain_weights": ("code:neox=1",)}, "are for fusion = static"),
        ({"sources": ("target=x",), "include_target": False}, "'target'"),
    ],
)
def test_a_mixture_that_cannot_be_meant_is_refused_before_any_work(
    more: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fuse_config("road", "out", **more)
