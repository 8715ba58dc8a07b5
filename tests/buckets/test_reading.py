"""Fused shards that a trainer reads where they lie, from a bucket that often fails."""

import collections
from pathlib import Path

import numpy as np
import pytest

from schemas import copies, manifest
from tests.buckets.conftest import Store
from tests.buckets.proxy import FAULTS, Harm
from tests.train import shards
from train.mixture import Mixture
from train.shards import FusedFolder

pytestmark = [pytest.mark.buckets, pytest.mark.timeout(600)]

SIZE = 40


@pytest.fixture
def local(tmp_path: Path) -> str:
    files_of = ((64, 64, 10),) * 2 + ((64,),) * 3
    return str(shards.write(tmp_path / "fused", vocabulary=SIZE, files_of=files_of))


@pytest.fixture
def remote(local: str, folder: str) -> str:
    copies.replace_tree(local, f"{folder}/fused", last=manifest.NAME)
    return f"{folder}/fused"


@pytest.mark.parametrize("read_ahead", [0, 8])
def test_samples_from_a_bucket_that_fails_are_those_from_a_disk(
    local: str, remote: str, store: Store, read_ahead: int
) -> None:
    store.proxy.harm = Harm(every=5)
    here = Mixture([FusedFolder(local)], seed=1)
    there = Mixture([FusedFolder(remote)], seed=1, read_ahead=read_ahead)
    for number in range(len(here)):
        one, other = here[number], there[number]
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.rows.ids, other.rows.ids)
        assert np.array_equal(one.rows.probs, other.rows.probs)
    there.close()
    assert set(store.proxy.done) == set(FAULTS)


def test_an_epoch_asks_a_bucket_for_each_group_once(remote: str, store: Store) -> None:
    before = len(store.proxy.requests)
    mixture = Mixture([FusedFolder(remote)], seed=1, read_ahead=2)
    opened = len(store.proxy.requests) - before
    for number in range(3 * len(mixture)):
        mixture[number]
    mixture.close()
    asked = store.proxy.requests[before + opened :]
    of_file = collections.Counter(
        name for line in asked for name in [line.rpartition("slice-")[2][:6]] if name
    )
    # The manifest and a listing; then of each group what its file is, its footer, and
    # its bytes.
    assert opened <= 6
    assert set(of_file) == {f"{n:06d}" for n in range(5)}
    assert all(of_file[f"{n:06d}"] <= 3 * 4 for n in range(2))
    assert all(of_file[f"{n:06d}"] <= 4 for n in range(2, 5))
