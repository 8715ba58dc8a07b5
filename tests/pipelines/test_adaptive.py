"""Scores and fused rows with as many entries as hold the mass, through the commands."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines import cli, verify
from schemas import fused, manifest, parquet, scores
from tests.pipelines.conftest import fuse_config, score_words
from transforms.functional import codec, ranks
from transforms.functional.codec import Distributions


def decoded(folder: str) -> Iterator[Distributions]:
    for path in sorted(Path(folder).glob("slice-*.parquet")):
        table = ranks.load_ranks(parquet.footer(str(path))["ranks"])
        for group in fused.read(str(path)):
            for row in group:
                yield codec.decode_rows(row.distribution, row.input_ids, table)


def fuse_words(road: str, out: str, target: str, *more: str) -> list[str]:
    words = ["fuse", f"--windows={road}/windows/fusion", f"--target={target}"]
    words += [f"--sources=neox={road}/scores/neox", f"--output={out}"]
    return [*words, "--top_k=6", "--seq_length=600", *more]


def test_sparse_scores_are_fused_and_cut_to_a_nucleus_of_their_own(
    road: str, models: dict[str, str], out: str
) -> None:
    sparse, whole, cut = f"{out}/scores", f"{out}/whole", f"{out}/cut"
    words = score_words(road, models, sparse, "--top_p=0.3", "--min_k=2")
    assert cli.main(words) == 0
    assert manifest.read(sparse, scores.STAGE).settings["top_p"] == 0.3
    assert cli.main(fuse_words(road, whole, sparse)) == 0
    more = ("--top_p=0.25", "--min_k=3")
    assert cli.main(fuse_words(road, cut, sparse, *more)) == 0
    assert verify.main([sparse, whole, cut]) == 0
    seen: set[int] = set()
    for every, some in zip(decoded(whole), decoded(cut), strict=True):
        kept = np.arange(6) < some.counts[:, None]
        np.testing.assert_array_equal(some.ids[kept], every.ids[kept])
        has = every.counts > 0
        mass = (some.probs.sum(axis=1) + some.tail)[has]
        np.testing.assert_allclose(mass, 1, atol=1e-5)
        fewer = some.counts < every.counts
        assert (some.counts[fewer] >= 3).all()
        assert (some.probs.sum(axis=1)[fewer] > 0.25 * 0.9).all()  # rounded to levels
        seen |= set(some.counts[has].tolist())
    assert len(seen) > 1


def test_a_nucleus_of_what_is_fused_is_not_drawn_of_again(road: str, out: str) -> None:
    with pytest.raises(ValueError, match="top_p must be left out where tail_samples"):
        fuse_config(road, out, top_p=0.9, tail_samples=2)
