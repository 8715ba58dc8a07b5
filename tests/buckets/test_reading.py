"""Fused shards that a trainer reads where they lie, from a bucket that often fails."""

import collections
import re
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


GROUPS = {0: 3, 1: 3, 2: 1, 3: 1, 4: 1}
"""Row groups of each file."""


def test_a_bucket_is_asked_for_each_group_once(remote: str, store: Store) -> None:
    store.proxy.requests.clear()
    mixture = Mixture([FusedFolder(remote)], seed=1, read_ahead=2)
    # The manifest and a listing, whatever they take; and none of the files.
    assert not of_files(store)
    for number in range(3 * len(mixture)):
        mixture[number]
    mixture.close()
    # In three epochs. A footer is kept, but threads that open a file at once each ask.
    asked = of_files(store)
    assert asked.keys() == GROUPS.keys()
    assert all(n + 1 <= asked[file] <= 2 * n for file, n in GROUPS.items())


def of_files(store: Store) -> dict[int, int]:
    """Counts the requests for bytes of each file."""
    download = "GET /fuse-beam/" if store.root.startswith("s3") else "GET /download/"
    names = [
        re.search(r"slice-(\d+)\.parquet", line)
        for line in store.proxy.requests
        if line.startswith(download)
    ]
    return dict(collections.Counter(int(name[1]) for name in names if name))
