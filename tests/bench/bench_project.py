"""How fast three sources' rows are projected and fused."""

import time
from typing import Any

import numpy as np

from tests.bench import rows, spans_windows
from transforms.functional import align, fuse, project
from transforms.functional.align import Alignment

K = 10
AIM = 300_000.0
PASSES = 15
WEIGHTS = np.array([0.5, 0.3, 0.2])


def run() -> list[dict[str, Any]]:
    """Measures target tokens a second on one core, with all three sources."""
    data = spans_windows.load(K)
    alignments = [
        [
            align.align_spans(target.byte_ends, said.byte_ends, eos=False)
            for target, said in zip(data.targets, source, strict=True)
        ]
        for source in data.sources
    ]
    tokens = sum(target.token_ids.size - 1 for target in data.targets)
    passes = [_fuse_all(data, alignments) for _ in range(PASSES + 1)]
    # the first pass compiles
    value = tokens / float(np.median(np.sum(passes[1:], axis=1)))
    return [
        rows.at_least(
            AIM,
            f"project and fuse, k = {K}, 3 sources, {data.label}",
            value,
            "target tokens/s/core",
        )
    ]


def _fuse_all(
    data: spans_windows.Data, alignments: list[list[Alignment]]
) -> list[float]:
    """Returns the seconds that each window took."""
    seconds = []
    for window, target in enumerate(data.targets):
        start = time.perf_counter()
        projected = [
            project.project_rows(
                found[window],
                said[window],
                pairs,
                target.token_ids,
                begins_alike=alike[window],
                k=K + 1,
            )
            for found, said, pairs, alike in zip(
                alignments, data.sources, data.maps, data.alike, strict=True
            )
        ]
        fuse.fuse_rows(projected, WEIGHTS, k=K)
        seconds.append(time.perf_counter() - start)
    return seconds
