"""`fusebeam fuse` under every strategy of alignment, from the same scores."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pipelines import cli, counting, fuse, scored, verify
from schemas import files, fused, manifest, plan
from schemas.errors import SchemaError
from schemas.scores import Score
from schemas.windows import Window
from tests.pipelines.conftest import fuse_config
from tests.pipelines.test_fuse import windows_of
from transforms.functional import (
    cooccurrence,
    counterparts,
    reference_maps,
    reference_rows,
    transfer,
    vocabulary,
)
from transforms.functional.reference_maps import Marks
from transforms.functional.reference_rows import Lexicon
from transforms.functional.transfer import Partners, Strategy, Transferred
from transforms.tokenizer import Tokenizer

Contents = Callable[[str], dict[str, str]]
WARPED: list[Strategy] = ["exact", "mined", "statistics"]


@pytest.fixture(scope="module")
def sides(road: str) -> tuple[Tokenizer, Tokenizer]:
    """Returns the source's and the target's tokenizer."""
    source, target = (
        scored.tokenizer_of(f"{road}/scores/{name}") for name in ("neox", "llama")
    )
    return source, target


def every(road: str) -> Iterator[tuple[Window, Score, Score]]:
    folder = f"{road}/windows/fusion"
    both = (scored.pairs(f"{road}/scores/{n}", folder) for n in ("neox", "llama"))
    for (window, theirs), (_, mine) in zip(*both, strict=True):
        yield window, theirs, mine


def counts_of(road: str, config: fuse.FuseConfig) -> cooccurrence.Counts:
    return counting.read_counts(f"{config.output}/maps/counts/neox")


def mended(
    road: str, sides: tuple[Tokenizer, Tokenizer], config: fuse.FuseConfig
) -> dict[str, Transferred]:
    """Transfers the source's rows of every window by the functions."""
    source, target = sides
    if config.strategy == "exact":
        made = counterparts.build_first(source, target)
        alike = [piece in set(target.token_bytes) for piece in source.token_bytes]
        ids = np.where(alike, made.target_ids, -1).astype(np.int32)
    elif config.strategy == "mined":
        ids = counterparts.build_mined(source, target).target_ids
    else:
        found = counts_of(road, config)
        ids = counterparts.build_statistics(
            source, target, found, fingerprint="x"
        ).target_ids
    pairs = vocabulary.build_map(source, target)
    exact = config.strategy == "exact"  # not of the same bytes at a window's beginning
    start_ids = np.array(
        [
            seq[0] if len(seq := pairs.start_seq(s)) == 1 else -1 if exact else ids[s]
            for s in range(source.size)
        ],
        np.int32,
    )
    out = {}
    for window, theirs, mine in every(road):
        spaced = pairs.puts_space(theirs.token_ids, theirs.byte_ends)
        partners = Partners(ids=ids, start_ids=start_ids if spaced else ids)
        given = {"strategy": config.strategy}
        pairing = transfer.pair_tokens(window.text.encode(), theirs, mine, **given)
        row = transfer.find_rows(pairing, theirs, mine, partners, **given)
        out[window.window_id] = transfer.transfer_rows(row, theirs, mine, partners, k=7)
    return out


def as_the_authors(
    road: str, sides: tuple[Tokenizer, Tokenizer], config: fuse.FuseConfig
) -> dict[str, Transferred]:
    source, target = sides
    marks = Marks(
        source=source.space_mark(),
        target=target.space_mark(),
        lends_prefix=source.space_mark() == "Ġ",
    )
    spelled = source.vocabulary(), target.vocabulary()
    mapped = {
        "exact": reference_maps.exact_ids,
        "mined": reference_maps.mined_ids,
    }.get(config.strategy, reference_maps.exact_ids)(*spelled, marks)
    decoded = source.decode_each(), target.decode_each()
    if config.strategy == "statistics":
        lexicon = Lexicon(
            marks=marks,
            source_tokens=spelled[0],
            target_tokens=spelled[1],
            source_decoded=decoded[0],
            target_decoded=decoded[1],
            mapped=mapped,
        )
        keys = [
            reference_rows.pair_window(theirs.token_ids, mine.token_ids, lexicon)
            for _, theirs, mine in every(road)
        ]
        counts = cooccurrence.tally(keys)
        found = reference_maps.statistical_ids(
            *spelled,
            marks,
            source_ids=counts.source_ids,
            target_ids=counts.target_ids,
            counts=counts.counts,
            unseen=target.unk_id if target.unk_id is not None else target.eos_id,
            roles={source.bos_id: target.bos_id, source.eos_id: target.eos_id},
        )
        mapped = reference_maps.fill_ids(mapped, found)
    lexicon = Lexicon(
        marks=marks,
        source_tokens=spelled[0],
        target_tokens=spelled[1],
        source_decoded=decoded[0],
        target_decoded=decoded[1],
        mapped=mapped,
    )
    return {
        window.window_id: reference_rows.transfer_window(
            theirs, mine, lexicon, strategy=config.strategy, k=7
        )
        for window, theirs, mine in every(road)
    }


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("strategy", WARPED)
def test_a_strategy_fuses_what_its_functions_transfer(
    strategy: Strategy,
    reference: bool,
    road: str,
    sides: tuple[Tokenizer, Tokenizer],
    out: str,
) -> None:
    config = fuse_config(
        road, out, strategy=strategy, reference=reference, include_target=False
    )
    made = fuse.fuse_scores(config)
    assert made is not None
    wanted = (as_the_authors if reference else mended)(road, sides, config)
    found = windows_of(out)
    assert found.keys() == wanted.keys()
    used, kept = 0, 0
    for name, (_, ids, probs) in found.items():
        rows = wanted[name].projected
        order = np.lexsort((rows.ids, -rows.probs), axis=-1)[:, :6]
        np.testing.assert_array_equal(ids, np.take_along_axis(rows.ids, order, -1))
        np.testing.assert_allclose(
            probs, np.take_along_axis(rows.probs, order, -1), rtol=0.3, atol=5e-3
        )
        used += int(wanted[name].used.sum())
        kept += int((rows.ids[:, 0] >= 0).sum())
    assert made.counts["covered"] == kept > used > kept / 4
    verify.verify([out])


def test_every_strategy_is_the_identity_between_equal_tokenizers(
    road: str, out: str
) -> None:
    for strategy in ("spans", *WARPED):
        folder = f"{out}/{strategy}"
        fuse.fuse_scores(fuse_config(road, folder, strategy=strategy, sources=()))
        found = windows_of(folder)
        for _, _, mine in every(road):
            made = found[mine.window_id][1]
            others = (np.sort(made) != np.sort(mine.top_ids)).any(1)
            # The next token has its exact probability, not a rounded one: by that it
            # may take the place of the last one kept.
            for t in np.flatnonzero(others):
                assert {*made[t]} - {*mine.top_ids[t]} == {mine.token_ids[t + 1]}
                assert mine.gold_logprob[t] > mine.top_logprobs[t, -1]
            assert others.mean() < 0.05


def test_statistics_of_one_process_of_many_are_counted_first(
    road: str, out: str, contents: Contents
) -> None:
    given = {"strategy": "statistics"}
    with pytest.raises(ValueError, match="the same command with --maps_only"):
        fuse.fuse_scores(fuse_config(road, out, slices="0-0", **given))
    assert fuse.fuse_scores(fuse_config(road, out, maps_only=True, **given)) is None
    before = files.stamps(f"{out}/maps"), files.stamps(f"{out}/maps/tokens")
    for piece in plan.read(f"{road}/windows/fusion"):
        config = fuse_config(road, out, slices=str(piece.index), **given)
        made = fuse.fuse_scores(config)
    assert made is not None
    after = files.stamps(f"{out}/maps"), files.stamps(f"{out}/maps/tokens")
    assert after == before
    fuse.fuse_scores(fuse_config(road, f"{out}.whole", **given))
    assert contents(out) == contents(f"{out}.whole")


KILLED = """
import os, signal, sys
from pipelines import cli
from transforms.cooccurrence import CountSlices

fill = CountSlices.fill

def die(self, piece, tables):
    fill(self, piece, tables)
    if piece.index == 2:
        os.kill(os.getpid(), signal.SIGKILL)

CountSlices.fill = die
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("reference", [False, True])
def test_a_job_killed_while_it_counts_ends_on_repetition_with_the_same_bytes(
    reference: bool, road: str, out: str, contents: Contents
) -> None:
    words = [
        "fuse",
        f"--windows={road}/windows/fusion",
        f"--target={road}/scores/llama",
        f"--sources=neox={road}/scores/neox",
        f"--output={out}",
        "--top_k=6",
        "--seq_length=600",
        "--strategy=statistics",
        *["--reference"] * reference,
    ]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], check=False)
    assert killed.returncode == -signal.SIGKILL
    counts = f"{out}/maps/counts/neox"
    assert not manifest.present(counts)
    assert not files.names(out)
    with pytest.raises(SchemaError, match="neox must be finished"):
        verify.verify([out])
    assert cli.main(words) == 0
    given = {"strategy": "statistics", "reference": reference}
    fuse.fuse_scores(fuse_config(road, f"{out}.whole", **given))
    found = contents(out)
    orphans = [name for name in found if "/.tmp/" in name]
    assert len(orphans) == 1  # what was being written; it harms nobody
    whole = contents(f"{out}.whole")
    assert {n: d for n, d in found.items() if n not in orphans} == whole
    assert len(verify.verify([out])) == 2


def test_nothing_is_counted_of_a_source_with_the_targets_tokenizer(
    road: str, out: str
) -> None:
    twin = f"twin={road}/scores/llama"
    config = fuse_config(road, out, strategy="statistics", sources=(twin,))
    fuse.fuse_scores(config)
    assert manifest.read(out, fused.STAGE).counts["covered"] > 0
    assert files.folders(f"{out}/maps/counts") == []
    assert files.names(f"{out}/maps/tokens") == ["target.parquet", "twin.parquet"]


def test_a_source_may_be_called_as_another_with_an_ending(road: str, out: str) -> None:
    scored_at = f"{road}/scores/neox"
    for reference in (False, True):
        config = fuse_config(
            road,
            f"{out}.{reference}",
            strategy="exact",
            reference=reference,
            sources=(
                f"a={scored_at}",
                f"a.tokens={scored_at}",
                f"a.lexicon={road}/scores/llama",
            ),
            slices="0",
        )
        fuse.fuse_scores(config)
        assert files.names(config.output) == ["slice-000000.parquet"]


def test_static_weights_mix_what_the_authors_align(road: str, out: str) -> None:
    config = fuse_config(
        road,
        out,
        strategy="statistics",
        reference=True,
        fusion="static",
        weights=("neox=1", "target=3"),
    )
    fuse.fuse_scores(config)
    weights = {
        tuple(each)
        for name in files.names(out, ".parquet")
        for group in fused.read(f"{out}/{name}")
        for row in group
        for each in row.weights.tolist()
    }
    assert weights == {(0.75, 0.25)}  # the target first
    assert len(verify.verify([out])) == 2


def test_other_work_in_the_folder_is_refused_before_a_map_is_touched(
    road: str, out: str
) -> None:
    for reference in (False, True):
        folder = f"{out}.{reference}"
        given = {"strategy": "exact", "reference": reference}
        fuse.fuse_scores(fuse_config(road, folder, **given, slices="0"))
        kinds = ("", "/tokens", "/lexicons")
        before = [files.stamps(f"{folder}/maps{kind}") for kind in kinds]
        other = {**given, "strategy": "mined"}
        with pytest.raises(SchemaError, match="made with other settings"):
            fuse.fuse_scores(fuse_config(road, folder, **other))
        files.remove_tree(f"{folder}/slice-000000.parquet")
        with pytest.raises(SchemaError, match=r"strategy of the .*mined.* in .*/maps/"):
            fuse.fuse_scores(fuse_config(road, folder, **other))
        assert [files.stamps(f"{folder}/maps{kind}") for kind in kinds] == before


def test_a_strategy_over_the_files_of_another_is_refused_or_leaves_none_of_them(
    road: str, out: str, contents: Contents
) -> None:
    fuse.fuse_scores(fuse_config(road, out, strategy="exact"))
    with pytest.raises(SchemaError, match="strategy"):
        fuse.fuse_scores(fuse_config(road, out, strategy="mined"))
    fuse.fuse_scores(fuse_config(road, out, strategy="mined", overwrite=True))
    assert manifest.read(out, "fused").settings["strategy"] == "mined"
    fuse.fuse_scores(fuse_config(road, out, strategy="statistics", overwrite=True))
    fuse.fuse_scores(fuse_config(road, out, overwrite=True))
    assert contents(out) == contents(f"{road}/fused")
