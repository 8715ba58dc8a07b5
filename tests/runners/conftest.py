"""Every runner that a user may name, as flags; the tests of this folder run on each."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.flink.cluster import BOOT, Cluster
from pipelines import fuse, prepare, score
from pipelines.fuse import FuseConfig
from pipelines.prepare import PrepareConfig
from pipelines.score import ScoreConfig
from tests.kill import rounds

Flags = Callable[[pytest.FixtureRequest], list[str]]
"""Returns a runner's flags; may start what it needs by asking for a fixture."""

PRISM = Path(__file__).parents[2] / ".cache" / "bin" / "prism"


def given(*flags: str) -> Flags:
    return lambda request: list(flags)


def processes(mode: str) -> Flags:
    return given(
        "--runner=FnApiRunner",
        f"--direct_running_mode={mode}",
        "--direct_num_workers=2",
    )


def prism(request: pytest.FixtureRequest) -> list[str]:
    assert PRISM.exists(), f"{PRISM} must be there; make test-runners builds it"
    return ["--runner=PrismRunner", f"--prism_location={PRISM}"]


def direct_with_prism(request: pytest.FixtureRequest) -> list[str]:
    return ["--runner=DirectRunner", *prism(request)[1:]]


def flink(request: pytest.FixtureRequest) -> list[str]:
    cluster: Cluster = request.getfixturevalue("cluster")
    return [
        *("--runner=FlinkRunner", "--flink_version=1.19", "--parallelism=4"),
        f"--flink_master={cluster.master}",
        f"--job_endpoint={cluster.job_server}",
        "--environment_type=PROCESS",
        f'--environment_config={{"command": "{BOOT}"}}',
        "--number_of_execution_retries=0",  # else a refusal is tried 20 times
    ]


RUNNERS: dict[str, Flags] = {
    "none": given(),
    "FnApiRunner": given("--runner=FnApiRunner"),
    "in_memory": processes("in_memory"),
    "multi_threading": processes("multi_threading"),
    "multi_processing": processes("multi_processing"),
    "DirectRunner": given("--runner=DirectRunner"),
    "BundleBasedDirectRunner": given("--runner=BundleBasedDirectRunner"),
    "PrismRunner": prism,
    "DirectRunner with Prism": direct_with_prism,
    "FlinkRunner": flink,
}
MARKS = {
    "FlinkRunner": [pytest.mark.flink, pytest.mark.timeout(1800)],
    "PrismRunner": pytest.mark.prism,
    "DirectRunner with Prism": pytest.mark.prism,
}
"""Runners that need more than the environment has, left out unless asked for."""


@pytest.fixture(
    params=[pytest.param(name, marks=MARKS.get(name, ())) for name in RUNNERS]
)
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Returns the flags of a runner."""
    return RUNNERS[request.param](request)


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[str], models: dict[str, str]
) -> Path:
    """Returns a run's folder: windows, scores of both models, and fused rows.

    Scores and rows are made without a runner, slice by slice.
    """
    folder = tmp_path_factory.mktemp("made")
    prepare.prepare_corpus(prepare_config(folder, corpus, models))
    for name in models:
        score.score_windows(score_config(folder, folder, models, name, slices="0-3"))
    fuse.fuse_scores(fuse_config(folder, folder, maps_only=True))
    fuse.fuse_scores(fuse_config(folder, folder, slices="0-3"))
    return folder


def prepare_config(
    out: Path, corpus: list[str], models: dict[str, str]
) -> PrepareConfig:
    return PrepareConfig(
        inputs=tuple(corpus),
        output=str(out / "windows"),
        models=tuple(models.values()),
        max_bytes=300,
        id_field="name",
        splits="fusion=.8,dev=.2",
        group_windows=8,
        slice_bytes=8000,
    )


def score_config(
    made: Path, out: Path, models: dict[str, str], name: str, slices: str | None = None
) -> ScoreConfig:
    return ScoreConfig(
        windows=str(made / "windows" / "fusion"),
        model=models[name],
        output=str(out / "scores" / name),
        top_k=6,
        batch_tokens=1024,
        threads=1,
        slices=slices,
    )


def fuse_config(
    made: Path, out: Path, slices: str | None = None, *, maps_only: bool = False
) -> FuseConfig:
    return FuseConfig(
        windows=str(made / "windows" / "fusion"),
        target=str(made / "scores" / "llama"),
        sources=(f"neox={made}/scores/neox",),
        output=str(out / "fused"),
        top_k=6,
        seq_length=512,
        slices=slices,
        maps_only=maps_only,
    )


def contents(folder: Path) -> dict[str, str]:
    """Digests all files but manifests, which tell where inputs lie as seen there."""
    found = rounds.contents(folder)
    return {name: d for name, d in found.items() if not name.endswith("manifest.json")}
