"""What is refused before a job is sent."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.flink.cluster import free_port
from pipelines import cluster, launch
from schemas.errors import FusionError
from tests.pipelines.flinks import managers


def check(master: str, *more: str) -> None:
    words = ["--runner=FlinkRunner", "--environment_type=LOOPBACK"]
    words += [f"--flink_master={master}", *more]
    launch.preflight.check(launch.pipeline_options.PipelineOptions(words))


ELSEWHERE = [
    ["--runner=FlinkRunner", "--environment_type=EXTERNAL", "--flink_version=1.19"],
    ["--runner=FlinkRunner", "--environment_type=PROCESS", "--flink_version=1.19"],
    ["--runner=DataflowRunner"],
]


@pytest.mark.parametrize("words", ELSEWHERE)
def test_relative_paths_are_refused_where_workers_have_another_folder(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "windows").mkdir()
    options = launch.pipeline_options.PipelineOptions(words)
    cure = "gs://BUCKET/" if "DataflowRunner" in words[0] else f"{tmp_path}/out,"
    with pytest.raises(FusionError, match=rf"absolute.*got out; give {cure}"):
        launch.preflight.check(options, output="out")
    with pytest.raises(FusionError, match=r"absolute.*got windows; give"):
        launch.preflight.check(options, reads=["windows"], output="gs://b/out")


def test_relative_paths_and_names_on_a_hub_are_taken_where_they_mean_the_same(
    flink: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "windows").mkdir()
    dataflow = launch.pipeline_options.PipelineOptions(["--runner=DataflowRunner"])
    launch.preflight.check(dataflow, reads=["owner/model"], output="gs://b/out")
    loopback = [
        *("--runner=FlinkRunner", "--environment_type=LOOPBACK"),
        *(f"--flink_master={flink()}", "--flink_version=1.19"),
    ]
    for here in ([], ["--direct_running_mode=multi_processing"], loopback):
        options = launch.pipeline_options.PipelineOptions(here)
        launch.preflight.check(options, reads=["windows"], output="out")


@pytest.mark.parametrize("master", [[], ["--flink_master=[local]"]])
def test_a_flink_inside_the_job_server_has_its_workers_in_this_process(
    master: list[str],
) -> None:
    words = ["--runner=FlinkRunner", *master]
    where = cluster.of(launch.pipeline_options.PipelineOptions(words))
    assert where.environment == "LOOPBACK"
    assert not where.runs_elsewhere


@pytest.mark.parametrize("config", [[], ["apache/beam_python3.11_sdk:2.77.0"]])
def test_containers_of_beam_alone_are_refused_before_the_job(
    config: list[str], flink: Callable[..., str]
) -> None:
    words = ["--runner=FlinkRunner", f"--flink_master={flink()}"]
    words += [f"--environment_config={image}" for image in config]
    words += ["--flink_version=1.19", f"--job_server_java_launcher={sys.executable}"]
    options = launch.pipeline_options.PipelineOptions(words)
    with pytest.raises(FusionError, match=r"must have FuseBeam.*=PROCESS, EXTERNAL or"):
        launch.preflight.check(options)
    options = launch.pipeline_options.PipelineOptions(
        [*words, "--environment_config=registry.example/fusebeam/cpu:0.1.0"]
    )
    launch.preflight.check(options)


def test_the_output_of_a_job_on_dataflow_must_be_in_a_bucket(out: str) -> None:
    words = ["--runner=DataflowRunner"]
    options = launch.pipeline_options.PipelineOptions(words)
    with pytest.raises(FusionError, match=rf"in a bucket.*got {out}; give gs://BUCKET"):
        launch.preflight.check(options, output=out)
    launch.preflight.check(options, reads=["/models/in/the/image"], output="gs://b/o")
    options = launch.pipeline_options.PipelineOptions([*words, "--dry_run=True"])
    launch.preflight.check(options, output=out)


def test_more_parallelism_than_slots_is_refused_before_the_job(
    flink: Callable[..., str],
) -> None:
    with pytest.raises(
        FusionError, match=r"a slot for each of --parallelism=8, it .*4"
    ):
        check(flink(), "--flink_version=1.19", "--parallelism=8")


def test_a_cluster_that_grows_with_its_jobs_may_have_no_slot_yet(
    flink: Callable[..., str], tmp_path: Path
) -> None:
    elastic = {"jobmanager/config": [{"key": "kubernetes.cluster-id", "value": "x"}]}
    java = tmp_path / "java"
    java.write_text("")
    java.chmod(0o755)
    check(
        flink(**elastic),
        "--flink_version=1.19",
        "--parallelism=8",
        f"--job_server_java_launcher={java}",
    )


def test_another_version_of_flink_is_refused_before_the_job(
    flink: Callable[..., str],
) -> None:
    with pytest.raises(
        FusionError, match=r"--flink_version must be.* 1\.19\.3, got 2\.0"
    ):
        check(flink(), "--flink_version=2.0")


def test_a_flink_that_is_not_there_is_refused_before_the_job() -> None:
    nowhere = f"localhost:{free_port()}"
    with pytest.raises(FusionError, match=f"JobManager must answer.*{nowhere}"):
        check(nowhere, "--flink_version=1.19")


def test_a_missing_java_or_jar_is_refused_before_the_job(
    flink: Callable[..., str], tmp_path: Path
) -> None:
    master, version = flink(), "--flink_version=1.19"
    with pytest.raises(FusionError, match="needs Java"):
        check(master, version, "--job_server_java_launcher=/nowhere/java")
    java = f"--job_server_java_launcher={sys.executable}"
    with pytest.raises(FusionError, match=r"nowhere\.jar is not there"):
        check(master, version, java, f"--flink_job_server_jar={tmp_path}/nowhere.jar")


@pytest.mark.parametrize(
    ("config", "cure"),
    [
        ("boot.sh", "must be JSON"),
        ('{"command": "/nowhere/boot"}', "must be a program"),
    ],
)
def test_a_process_that_cannot_be_started_is_refused_before_the_job(
    config: str, cure: str, flink: Callable[..., str]
) -> None:
    with pytest.raises(FusionError, match=cure):
        check(
            flink(),
            "--flink_version=1.19",
            f"--job_server_java_launcher={sys.executable}",
            "--environment_type=PROCESS",
            f"--environment_config={config}",
        )


NOT_HERE = {
    "none": lambda: managers(),
    "on another machine": lambda: managers(6122, host="192.0.2.7"),
    "at the far end of a tunnel": lambda: managers(free_port(), host="localhost"),
}


@pytest.mark.parametrize("name", NOT_HERE)
@pytest.mark.parametrize(
    "workers",
    [
        ["--environment_type=EXTERNAL", "--environment_config=localhost:1"],
        [
            "--environment_type=PROCESS",
            '--environment_config={"command": "/opt/boot.py"}',
        ],
    ],
)
def test_what_starts_workers_on_other_machines_is_not_looked_for_here(
    name: str, workers: list[str], flink: Callable[..., str]
) -> None:
    words = ["--flink_version=1.19", f"--job_server_java_launcher={sys.executable}"]
    check(flink(taskmanagers=NOT_HERE[name]()), *words, *workers)
    with pytest.raises(
        FusionError, match=r"a worker pool must answer|must be a progra"
    ):
        check(flink(), *words, *workers)
