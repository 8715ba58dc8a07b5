from pathlib import Path

import torch

from tests.bench import bench_merge

MORE = 250_000_000


def test_models_larger_than_the_memory_that_is_left_are_merged(tmp_path: Path) -> None:
    # 395 MB in all, beside which the plain way would hold the merged one.
    tensors = bench_merge.shapes(layers=4, vocabulary=3000)
    bench_merge.write_models(tmp_path, tensors, torch.float32)
    assert bench_merge.limited(tmp_path, MORE) > MORE
