"""The GPU scripts run from a bare checkout; here, on the CPU, in their tiny sizes."""

import dataclasses
import functools
import itertools
import json
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.bench import gpu, gpu_models, gpu_score, gpu_train, traffic
from tests.bench.told_time import Time

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ABSENT = (
    "accelerate", "apache_beam", "jaxtyping", "jinja2", "numba", "pyarrow", "rapidfuzz",
    "zstandard",
)  # fmt: skip

RUN = f"""
import runpy, sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {ABSENT}:
            return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def printed(script: str, folder: Path, *flags: str) -> Any:
    """Runs a script elsewhere, with torch, transformers and numpy and little else."""
    path = str(HERE / script)
    words = [sys.executable, "-c", RUN, path, "--size=tiny", *flags]
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.timeout(300)
def test_scoring_is_measured_without_an_installation(tmp_path: Path) -> None:
    found = printed("gpu_score.py", tmp_path, "--rounds=1", "--no-compile_too")
    tiny = found["scoring"]["tiny"]
    assert tiny["computed_head_extra_bytes"] > 0
    assert tiny["way"].startswith("packed")
    for load in tiny["loads"].values():
        taken = load["seconds"]
        assert load["tokens_per_s"]["scored"] == load["tokens"] / taken["scored"]
        bare = min(taken["bare"], taken["chunked"])
        assert load["overhead"] == taken["scored"] / bare - 1
        assert load["overhead_of_reduction"] == taken["reduced"] / taken["chunked"] - 1
    assert found["not_done"] == []
    assert any("packed" in line for line in found["log"])
    assert "compiled" not in found
    assert "failed" not in found


def test_scoring_that_there_is_no_time_for_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu_score.main(["--size=tiny", "--limit_s=0", "--no-compile_too"])
    found = json.loads(capsys.readouterr().out)
    assert found["scoring"] == {"tiny": {"absent": "out of time"}}
    assert found["not_done"] == ["scoring with tiny: all of it"]


def test_a_shape_that_fails_says_so_and_the_json_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(shape: object) -> None:
        raise RuntimeError("no such shape")

    monkeypatch.setattr(gpu_models, "build", fail)
    with pytest.raises(SystemExit):
        gpu_score.main(["--size=tiny"])
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert found["scoring"] == {"tiny": {"failed": "RuntimeError: no such shape"}}
    assert found["failed"] == "a shape"
    assert "Traceback" in out.err


def test_a_load_that_was_measured_stays_where_the_next_one_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = iter([{"peak_bytes": 1, "extra_bytes": 1, "head_extra_bytes": 1}])
    monkeypatch.setattr(gpu_score, "memory", lambda *_: next(memory))
    with pytest.raises(SystemExit):
        gpu_score.main(["--size=tiny", "--rounds=1"])
    tiny = json.loads(capsys.readouterr().out)["scoring"]["tiny"]
    assert tiny["failed"].startswith("StopIteration")
    assert tiny["loads"]["full"]["aims"]["head_extra_bytes"]["met"]
    assert tiny["loads"]["mixed"]["tokens_per_s"]["scored"] > 0


def test_nothing_measured_is_lost_where_the_rest_of_the_script_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        print("to stderr")
        raise RuntimeError("no such thing")

    monkeypatch.setattr(gpu_score, "apart", fail)
    with pytest.raises(SystemExit) as ended:
        gpu_score.main(["--size=tiny", "--rounds=1", "--compile_too"])
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1
    assert found["failed"] == "RuntimeError: no such thing"
    assert found["scoring"]["tiny"]["loads"].keys() == {"full", "mixed"}


HANGS = """
import sys, time
sys.path.insert(0, {root!r})
from tests.bench import gpu
found = {{"known": 1}}
with gpu.shown(found, {end_s}):
    print("begun", file=sys.stderr, flush=True)
    time.sleep(50)
"""


@pytest.mark.parametrize(
    ("end_s", "told", "failed"),
    [(60, True, "SystemExit: told to end"), (0.5, False, "cut off after 0 s")],
)
def test_a_script_that_hangs_or_is_told_to_end_says_what_it_knows(
    end_s: float, told: bool, failed: str
) -> None:
    words = [sys.executable, "-c", HANGS.format(root=str(ROOT), end_s=end_s)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stderr is not None
        while running.stderr.readline().strip() != "begun":
            pass
        if told:
            running.send_signal(signal.SIGTERM)
        out, _ = running.communicate(timeout=30)
    assert running.returncode == 1
    assert json.loads(out) == {"known": 1, "failed": failed}


def test_a_compiled_shape_is_measured_apart_and_only_where_there_is_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(words)
        part = {"loads": {}, "compiled": True}
        told = {"scoring": {"tiny": part}, "not_done": ["x"], "failed": "cut off"}
        return subprocess.CompletedProcess(words, 1, stdout=json.dumps(told))

    monkeypatch.setattr(subprocess, "run", run)
    time = Time()
    how = gpu_score.Measuring(
        size="tiny",
        rounds=1,
        kernels=False,
        compiled=False,
        peak_flops=1.0,
        clock=gpu.Clock(1, 100.0, tell=time),
    )
    given = gpu_score.parse(["--size=tiny"])
    found = gpu_score.apart("tiny", given, how)
    assert found == {"loads": {}, "compiled": True, "failed": "cut off"}
    words = gpu_score.parse(seen[0][2:])
    assert (words.compile, words.compile_too, words.limit_s) == (True, False, 77.5)
    assert words.no_kernels == "as without compilation"
    time.spend(30.0)
    assert gpu_score.apart("tiny", given, how) == {"absent": "out of time"}
    assert how.clock.not_done == ["compiled, x", "scoring with tiny, compiled"]
    assert len(seen) == 1


def test_a_ratio_is_of_calls_that_ran_in_the_same_round() -> None:
    # The device grows twice as slow; a third round was cut short.
    taken = {"ours": [1.1, 2.2], "fast": [1.0, 2.0, 2.0], "slow": [1.5, 3.0, 9.0]}
    assert gpu.ratio(taken, "ours", "slow", "fast") == pytest.approx(1.1)
    assert gpu.ratio(taken, "ours", "slow", "absent") is None
    assert gpu_score.excess(taken, "ours", "fast") == pytest.approx(0.1)


def test_a_process_is_as_old_as_its_start() -> None:
    words = (
        "import time; from tests.bench import gpu; time.sleep(0.3); print(gpu.age_s())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True
    )
    age = float(ended.stdout)
    assert age == 0.0 or 0.3 < age < 60


def test_an_aim_is_met_or_not_or_nobody_knows() -> None:
    found = {
        "tokens_per_s": {"scored": 39_000.0},
        "overhead": 0.02,
        "head_extra_bytes": None,
    }
    told = gpu_score.aims("Llama-2-7B", found)
    assert {what: aim["met"] for what, aim in told.items()} == {
        "tokens_per_s": False,
        "overhead": True,
        "head_extra_bytes": None,
    }
    assert "tokens_per_s" not in gpu_score.aims("tiny", found)


def test_windows_of_a_load_are_no_longer_than_the_model_reads() -> None:
    loads = gpu_score.loads_of(gpu_models.SHAPES["Llama-2-7B"], 60_000)
    assert loads["full"] == [2048] * 29
    mixed = loads["mixed"]
    assert (min(mixed) >= 16, max(mixed)) == (True, 2048)
    assert 60_000 <= sum(mixed) < 62_048
    assert 300 < statistics.median(mixed) < 1000


def test_operations_are_counted_as_the_model_has_weights_and_windows_pairs() -> None:
    shape = gpu_models.TINY
    model = gpu_models.build(shape)
    layers = model.base_model.layers.parameters()
    inner = sum(weight.numel() for weight in layers if weight.ndim == 2)
    head = model.get_output_embeddings().weight.numel()
    attention = 4 * shape.layers * shape.width * (6 + 1)
    flop = gpu_models.flop_of(shape, [3, 1])
    assert flop == 2 * (inner + head) * 4 + attention


@pytest.mark.parametrize(
    ("name", "parameters", "flop_a_token"),
    [
        # By hand: published counts of weights; 2 a weight but the embedding's, and
        # 4 L d (t + 1) / 2 for attention, of windows of 2,048 tokens.
        ("Llama-2-7B", 6_738_415_616, 13.214e9 + 0.5371e9),
        ("Qwen2.5-7B", 7_615_616_512, 14.141e9 + 0.4112e9),
        ("Llama-3.2-1B", 1_235_814_400, 2.4715e9 + 0.1343e9),
        ("Qwen2.5-0.5B", 494_032_768, 0.98797e9 + 0.0881e9),
    ],
)
def test_shapes_are_those_of_the_models_by_weights_and_operations(
    name: str, parameters: int, flop_a_token: float
) -> None:
    shape = gpu_models.SHAPES[name]
    with torch.device("meta"):
        config = gpu_models.config_of(shape, shape.layers)
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    flop = gpu_models.flop_of(shape, [2048] * 3) / (3 * 2048)
    assert flop == pytest.approx(flop_a_token, rel=1e-3)


def test_the_page_tells_what_reducing_logits_is_estimated_to_cost() -> None:
    assert traffic.table() in (ROOT / "docs/results.md").read_text()


def test_what_lies_between_products_is_counted_layer_by_layer() -> None:
    shape = dataclasses.replace(gpu_models.TINY, layers=1)
    one, two, five = (
        traffic.bytes_between(dataclasses.replace(shape, layers=layers))
        for layers in (1, 2, 5)
    )
    assert five - two == pytest.approx(3 * (two - one))
    # At least: two sums of residuals, and silu's and its product's inner activations.
    assert two - one > 2 * (2 * 3 * shape.width + 5 * shape.inner)
    with traffic.Moved() as moved:
        given = torch.ones(3, 5)
        moved.bytes = 0
        (given.T @ given + 1.0).view(25)
    assert moved.bytes == 2 * 25 * 4  # a sum reads and writes


@pytest.mark.timeout(300)
def test_steps_are_measured_without_an_installation(tmp_path: Path) -> None:
    found = printed("gpu_train.py", tmp_path, "--rounds=1")
    assert found["matmul_tflops"] > 0
    for part in (found["kernel"], found["steps"]["tiny"]):
        assert part["time_of_plain"] == pytest.approx(
            part["seconds"]["fused"] / part["seconds"]["plain"]
        )
    assert found["kernel"]["computed_extra_bytes"] > 0
    assert found["not_done"] == []


def test_what_there_is_no_time_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    gpu_train.main(["--size=tiny", "--rounds=1", "--limit_s=0"])
    found = json.loads(capsys.readouterr().out)
    assert found["kernel"] == found["steps"]["tiny"] == {"absent": "out of time"}
    assert found["not_done"] == [
        "the loss alone: all of it",
        "steps of tiny: all of it",
    ]


def test_a_part_that_does_not_fit_is_cut_short_and_keeps_what_it_has() -> None:
    time = Time()
    clock = gpu.Clock(2, 100.0, tell=time)
    calls: list[str] = []

    def call(name: str) -> None:
        calls.append(name)
        time.spend(11.0)

    kinds = {name: functools.partial(call, name) for name in ("a", "b")}
    found = clock.run("slow", lambda: gpu.seconds(kinds, rounds=4, warm=1, clock=clock))
    assert calls == ["a", "b", "a", "b", "a"]  # half of the time, and one call over
    assert found.keys() == {"a", "b"}
    assert clock.not_done == ["slow: 2 of 5 rounds of a", "slow: 3 of 5 rounds of b"]
    assert clock.wall_s == 55.0


def test_a_kind_that_was_at_most_warmed_up_has_no_time_and_no_ratio() -> None:
    time = Time()
    clock = gpu.Clock(1, 50.0, tell=time)
    kinds = {"fused": lambda: time.spend(20.0), "plain": lambda: time.spend(20.0)}
    found = clock.run("slow", lambda: gpu.seconds(kinds, rounds=1, warm=1, clock=clock))
    assert list(found) == ["fused"]  # whose second call is timed
    assert gpu_train._ratio(found, "plain") is None
    assert clock.not_done == ["slow: 1 of 2 rounds of plain"]


def test_time_that_a_part_does_not_need_goes_to_those_behind_it() -> None:
    time = Time()
    clock = gpu.Clock(2, 100.0, tell=time)
    clock.run("quick", lambda: time.spend(10.0))
    clock.run("slow", lambda: time.spend(80.0))
    assert clock.allows("more")  # it began at 10 and has all that is left
    time.spend(10.0)
    assert not clock.allows("too much")
    assert clock.not_done == ["slow: too much"]


@pytest.mark.parametrize("limit", [5, 9])
def test_parts_cut_in_their_midst_still_print_a_json(
    limit: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Every question costs a second: both parts come to an end somewhere within.
    ticks = itertools.count()
    clock = functools.partial(gpu.Clock, tell=lambda: float(next(ticks)))
    monkeypatch.setattr(gpu, "Clock", clock)
    gpu_train.main(["--size=tiny", "--rounds=1", f"--limit_s={limit}"])
    found = json.loads(capsys.readouterr().out)
    assert found["not_done"]
    assert {"kernel", "steps", "wall_s"} <= found.keys()
