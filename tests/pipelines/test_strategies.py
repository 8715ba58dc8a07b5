"""`fusebeam fuse` under every strategy of alignment, from the same scores."""

from collections.abc import Iterator

import numpy as np
import pytest

from pipelines import counting, fuse, scored, verify
from pipelines.counting import CountConfig
from schemas import manifest
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
    return counting.read_counts(f"{config.output}/maps/neox.counts")


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
            # The next token has its exact probability, not the rounded one.
            np.testing.assert_array_equal(
                np.sort(found[mine.window_id][1]), np.sort(mine.top_ids)
            )


def test_statistics_of_one_process_of_many_are_counted_first(
    road: str, out: str
) -> None:
    config = {"strategy": "statistics", "slices": "0-0"}
    with pytest.raises(ValueError, match="before --slices are fused by statistics"):
        fuse.fuse_scores(fuse_config(road, out, **config))
    for name, scores_of in (("neox", "neox"), ("target", "llama")):
        counting.count_windows(
            CountConfig(
                source=f"{road}/scores/{scores_of}",
                target=f"{road}/scores/llama",
                output=f"{out}/maps/{name}.counts",
            )
        )
    assert fuse.fuse_scores(fuse_config(road, out, **config)) is None


def test_a_strategy_over_the_files_of_another_is_refused(road: str, out: str) -> None:
    fuse.fuse_scores(fuse_config(road, out, strategy="exact"))
    with pytest.raises(SchemaError, match="strategy"):
        fuse.fuse_scores(fuse_config(road, out, strategy="mined"))
    fuse.fuse_scores(fuse_config(road, out, strategy="mined", overwrite=True))
    assert manifest.read(out, "fused").settings["strategy"] == "mined"
