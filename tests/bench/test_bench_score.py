import pytest

from tests.bench import bench_score, smollm2

PARTS = {
    ("read", "in front"),
    ("tokenize", "in front"),
    ("body", "the model's"),
    ("head", "the model's"),
    ("top-k, log-sum-exp, gold", "the model's"),
    ("copy", "the model's"),
    ("records", "the model's"),
    ("waiting, and all else", "the model's"),
    ("round", "behind"),
    ("encode", "behind"),
    ("write", "behind"),
}


def test_a_slice_is_scored_and_its_time_told_part_by_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smollm2, "find", lambda: None)
    monkeypatch.setattr(bench_score, "SLICES", 1)
    monkeypatch.setattr(bench_score, "GROUP_WINDOWS", 2)
    monkeypatch.setattr(bench_score, "LAYERS", 1)
    monkeypatch.setattr(bench_score, "COMPILES", False)
    monkeypatch.setattr(bench_score, "LARGEST", (128, 16, 1000))
    speed, size, memory = bench_score.run()
    assert speed["value"] > 0
    assert size["value"] > 0
    assert memory["met"]
    lines = bench_score.sections()["spent"].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines[4:]]
    assert {(part, thread) for part, thread, *_ in cells} == PARTS
    shares = [float(c[3].rstrip("%")) for c in cells if c[1] == "the model's"]
    assert sum(shares) == pytest.approx(100, abs=1)
