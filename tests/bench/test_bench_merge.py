from pathlib import Path

import torch

from tests.bench import bench_merge

MORE = 250_000_000


def test_a_merge_passes_under_a_limit_of_memory_that_whole_models_die_of(
    tmp_path: Path,
) -> None:
    # Of 310 MB, and with MORE to make one of them in; Python and torch hold far more
    # than that by themselves, which the limit leaves them.
    tensors = bench_merge.shapes(layers=3, vocabulary=3000)
    bench_merge.write_models(tmp_path, tensors, torch.float32)
    assert bench_merge.limited(tmp_path, MORE) > MORE
