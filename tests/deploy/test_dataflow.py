"""Jobs as they go to Dataflow: translated, never sent."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

from pipelines import cli, counting, fuse, launch, prepare, score, stage
from schemas import plan
from schemas.errors import FusionError
from schemas.plan import Slice
from tests import merging
from tests.pipelines.conftest import fuse_config, prepare_config, score_config

IMAGE = "registry.example/fusebeam/cuda:0.1.0"
FLAGS = [
    "--runner=DataflowRunner",
    "--dry_run=True",
    "--no_auth",
    "--sdk_location=container",
    "--project=test-project",
    "--region=us-central1",
    "--temp_location=gs://some-bucket/tmp",
    "--staging_location=gs://some-bucket/staging",
    f"--sdk_container_image={IMAGE}",
]
HINTS = {
    "accelerator": (
        "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"
    ),
    "min_ram": "32GB",
    "cpu_count": "8",
    "max_active_bundles_per_worker": "1",
}
STEPS = {
    "prepare": [
        "List units",
        "Index/Spread units",
        "Index/Do units",
        "Then/Await all",
        "Then/Read",
        "Cut/Spread units",
        "Cut/Do units",
        "Describe/Await all",
        "Describe/Call",
    ],
    "score": [
        "score out/Read plan",
        "score out/Spread slices",
        "score out/Do slices",
        "Describe/Await all",
        "Describe/Call",
    ],
    "fuse": [
        "fuse/Read plan",
        "fuse/Spread slices",
        "fuse/Do slices",
        "Describe/Await all",
        "Describe/Call",
    ],
    "count": [
        "count out/Read plan",
        "count out/Spread slices",
        "count out/Do slices",
        "Describe/Await all",
        "Describe/Call",
    ],
    "merge": [
        "List files",
        "Measure/Spread files",
        "Measure/Do files",
        "Then/Await all",
        "Then/Read",
        "Merge/Spread files",
        "Merge/Do files",
        "Describe/Await all",
        "Describe/Call",
    ],
}
"""The jobs of three commands, and the one that counts for `fuse`'s statistics."""

WORK = {
    "prepare": {
        "List units/Read",
        "Index/Do units",
        "Then/Read",
        "Cut/Do units",
        "Describe/Call",
    },
    "score": {"score out/Read plan/Read", "score out/Do slices", "Describe/Call"},
    "fuse": {"fuse/Read plan/Read", "fuse/Do slices", "Describe/Call"},
    "count": {"count out/Read plan/Read", "count out/Do slices", "Describe/Call"},
    "merge": {
        "List files/Read",
        "Measure/Do files",
        "Then/Read",
        "Merge/Do files",
        "Describe/Call",
    },
}
"""Steps that call our own code: all of them."""

TINY = {"beam:coder:string_utf8:v1", "beam:coder:varint:v1"}
LIMIT_BYTES = 100_000  # Dataflow's own limit is 10 MB

Job = beam_runner_api_pb2.Pipeline
Translate = Callable[..., Job]


@pytest.fixture
def translate(monkeypatch: pytest.MonkeyPatch) -> Translate:
    """Returns a function that gives the job of a command."""
    translated: list[Job] = []
    run = DataflowRunner.run_pipeline

    def keep(self: DataflowRunner, *args: Any, **more: Any) -> Any:
        result = run(self, *args, **more)
        translated.append(self.proto_pipeline)
        return result

    monkeypatch.setattr(DataflowRunner, "run_pipeline", keep)

    def of(command: str, *words: str) -> Job:
        translated.clear()
        if command == "count":
            count(*words)
        else:
            assert cli.main([command, *words, *FLAGS]) == 0
        (job,) = translated
        return job

    return of


def count(source: str, target: str, output: str, windows: str) -> None:
    """Sends the job that counts: alone, as no command does where nobody awaits it."""
    config = counting.CountConfig(source=source, target=target, output=output)
    counting.send(config, windows, FLAGS)


@pytest.fixture
def words(
    road: str, models: dict[str, str], corpus: list[str], out: str, tmp_path: Path
) -> dict[str, list[str]]:
    """Returns the flags of each stage."""
    merged = {
        "models": [models["llama"]],
        "base": models["llama"],
        "method": "varm",
        "output": out,
        "settings": {"granularity": "layer"},
    }
    source = f"--windows={road}/windows/fusion"
    return {
        "prepare": [
            "--inputs",
            *corpus,
            "--max_bytes=300",
            "--splits=fusion=.8,dev=.2",
            f"--output={out}",
        ],
        "score": [
            source,
            f"--model={models['llama']}",
            f"--output={out}",
            "--worker_hints",
            *(f"{name}={value}" for name, value in HINTS.items()),
        ],
        "fuse": [
            source,
            f"--target={road}/scores/llama",
            f"--sources=neox={road}/scores/neox",
            f"--output={out}",
        ],
        "count": [
            f"{road}/scores/neox",
            f"{road}/scores/llama",
            out,
            f"{road}/windows/fusion",
        ],
        "merge": [merging.recipe(tmp_path, merged)],
    }


def steps(job: Job) -> dict[str, beam_runner_api_pb2.PTransform]:
    return {step.unique_name: step for step in job.components.transforms.values()}


@pytest.mark.parametrize("stage", STEPS)
def test_every_step_of_a_job_is_there_by_its_name(
    stage: str, translate: Translate, words: dict[str, list[str]]
) -> None:
    found = steps(translate(stage, *words[stage]))
    assert [name for name in STEPS[stage] if name not in found] == []


@pytest.mark.parametrize("stage", STEPS)
def test_workers_run_our_image_and_nothing_is_installed_on_them(
    stage: str, translate: Translate, words: dict[str, list[str]]
) -> None:
    job = translate(stage, *words[stage])
    for environment in job.components.environments.values():
        docker = beam_runner_api_pb2.DockerPayload.FromString(environment.payload)
        assert docker.container_image == IMAGE
        staged = [
            beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(
                artifact.role_payload
            ).staged_name
            for artifact in environment.dependencies
        ]
        # What the launcher has installed, for the log; no code, no pickled session.
        assert staged == ["submission_environment_dependencies.txt"]


def hinted(job: Job) -> dict[str, dict[str, str]]:
    """Returns the hints of each step that has some."""
    environments = job.components.environments
    return {
        name: {
            urn.split(":")[2]: value.decode()
            for urn, value in environments[step.environment_id].resource_hints.items()
        }
        for name, step in steps(job).items()
        if step.environment_id and environments[step.environment_id].resource_hints
    }


def test_scoring_alone_asks_for_special_workers(
    translate: Translate, words: dict[str, list[str]]
) -> None:
    asked = {**HINTS, "min_ram_bytes": "32000000000"}
    del asked["min_ram"]
    job = translate("score", *words["score"])
    assert hinted(job) == {"score out/Do slices": asked}


@pytest.mark.parametrize("stage", ["prepare", "fuse", "count", "merge"])
def test_other_stages_ask_for_no_special_workers(
    stage: str, translate: Translate, words: dict[str, list[str]]
) -> None:
    assert hinted(translate(stage, *words[stage])) == {}


def test_a_shuffle_parts_scoring_from_what_any_worker_can_do(
    translate: Translate, words: dict[str, list[str]]
) -> None:
    found = steps(translate("score", *words["score"]))
    (taken,) = found["score out/Do slices"].inputs.values()
    assert taken in found["score out/Spread slices"].outputs.values()
    assert found["score out/Spread slices"].spec.urn == "beam:transform:reshuffle:v1"


PARDO = "beam:transform:pardo:v1"
BEAMS = re.compile(
    r"/Name/(FlatMap\(<lambda at core\.py:\d+>\)|Map\(decode\))$|"
    r"/Spread (units|slices|files)/|/Await all/"
)
"""Steps inside those that Beam composes: of Create, Reshuffle and Count."""


def working(job: Job) -> dict[str, beam_runner_api_pb2.PTransform]:
    """Returns the steps that call code and are not Beam's own."""
    return {
        name: step
        for name, step in steps(job).items()
        if step.spec.urn == PARDO and not BEAMS.search(name)
    }


def of_rows(job: Job) -> list[str]:
    """Returns the steps of ours that give anything but names and counts."""
    coders = job.components.coders
    return [
        name
        for name, step in working(job).items()
        for given in step.outputs.values()
        if coders[job.components.pcollections[given].coder_id].spec.urn not in TINY
    ]


@pytest.mark.parametrize("stage", STEPS)
def test_between_steps_travel_names_and_counts_alone(
    stage: str, translate: Translate, words: dict[str, list[str]]
) -> None:
    job = translate(stage, *words[stage])
    assert set(working(job)) == WORK[stage]
    assert of_rows(job) == []


def as_row(name: str) -> dict[str, list[float]]:
    return {name: [0.0] * 50}


def test_a_step_that_gives_rows_would_be_seen(
    translate: Translate, words: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    end = stage.ending

    def ending(names: Any, *more: Any) -> Any:
        return end(names | "Look" >> beam.Map(as_row) | "Name" >> beam.Map(min), *more)

    monkeypatch.setattr(stage, "ending", ending)
    job = translate("score", *words["score"])
    assert {"Look", "Name"} <= set(working(job))
    assert "Look" in of_rows(job)


@pytest.mark.parametrize("stage", ["score", "fuse", "count"])
def test_a_request_does_not_grow_with_the_slices(
    stage: str,
    translate: Translate,
    words: dict[str, list[str]],
    road: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "windows"
    folder.mkdir()
    described = Path(road, "windows", "fusion", "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(described)
    sizes = []
    for count in (10, 10_000):
        plan.write(
            str(folder),
            (
                Slice(
                    index=index,
                    file=f"part-{index:06d}.parquet",
                    row_group_start=0,
                    row_group_stop=1,
                    windows=8,
                    text_bytes=4000,
                    digest=f"{index:064d}",
                )
                for index in range(count)
            ),
        )
        given = [
            word.replace(f"{road}/windows/fusion", str(folder)) for word in words[stage]
        ]
        job = translate(stage, *given)
        sizes.append(job.ByteSize())
    # Pickles are packed, so that digests of equal length may differ by a few bytes.
    assert abs(sizes[1] - sizes[0]) < 64
    assert max(sizes) < LIMIT_BYTES


def test_a_request_does_not_grow_with_the_tensors_of_a_merge(
    translate: Translate, models: dict[str, str], out: str, tmp_path: Path
) -> None:
    sizes = []
    for size in (10**9, 10**4):
        table = {
            "models": [models["llama"]],
            "base": models["llama"],
            "method": "varm",
            "output": f"{out}-{size:010}",
            "shard_bytes": size,
        }
        sizes.append(translate("merge", merging.recipe(tmp_path, table)).ByteSize())
    assert abs(sizes[1] - sizes[0]) < 64
    assert max(sizes) < LIMIT_BYTES


def test_a_request_does_not_grow_with_the_files_of_a_corpus(
    translate: Translate, words: dict[str, list[str]], tmp_path: Path
) -> None:
    sizes = []
    for count in (2, 50):
        for index in range(count):
            (tmp_path / f"{index:03d}.txt").write_text(f"document {index}")
        job = translate("prepare", *words["prepare"], "--inputs", f"{tmp_path}/*.txt")
        sizes.append(job.ByteSize())
    assert abs(sizes[1] - sizes[0]) < 64
    assert max(sizes) < LIMIT_BYTES


def test_a_dry_run_says_that_nothing_was_started(
    translate: Translate,
    words: dict[str, list[str]],
    out: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    translate("score", *words["score"])
    assert capsys.readouterr().out == (
        "dry run: the job was translated, and not started\n"
    )
    assert not Path(out).exists()


def state(folder: str) -> dict[str, tuple[int, bytes]]:
    """Returns what stands in every file of a folder, and when it was written."""
    found = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(at): (at.stat().st_mtime_ns, at.read_bytes()) for at in found}


@pytest.mark.parametrize("stage", ["prepare", "score", "fuse"])
def test_a_dry_run_writes_and_removes_nothing(
    stage: str,
    translate: Translate,
    road: str,
    models: dict[str, str],
    corpus: list[str],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(road, run)
    before = state(str(run))
    # Other settings than those of the finished folders.
    words = {
        "prepare": ["--inputs", *corpus, "--max_bytes=200", f"--output={run}/windows"],
        "score": [
            *(f"--windows={run}/windows/fusion", f"--model={models['llama']}"),
            *(f"--output={run}/scores/llama", "--top_k=3"),
        ],
        "fuse": [
            *(f"--windows={run}/windows/fusion", f"--target={run}/scores/llama"),
            *(f"--sources=neox={run}/scores/neox", f"--output={run}/fused"),
            *("--top_k=3", "--strategy=mined"),
        ],
    }
    words["prepare"].append("--splits=fusion=.8,dev=.2")
    translate(stage, *words[stage], "--overwrite")
    assert state(str(run)) == before


def test_a_dry_run_of_a_merge_writes_and_removes_nothing(
    translate: Translate, words: dict[str, list[str]], out: str
) -> None:
    assert cli.main(["merge", *words["merge"], "--dtype=bfloat16"]) == 0
    before = state(out)
    translate("merge", *words["merge"], "--overwrite")
    assert state(out) == before


def test_a_merge_that_nobody_awaits_describes_its_folder_itself(
    words: dict[str, list[str]],
    out: str,
    tmp_path: Path,
    contents: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cli.main(["merge", *words["merge"]]) == 0
    alone = str(tmp_path / "alone")
    monkeypatch.setattr(launch, "left_alone", lambda flags: True)
    assert cli.main(["merge", *words["merge"], f"--output={alone}"]) == 0
    assert contents(out) == contents(alone)


def test_a_job_that_nobody_awaits_describes_its_folders_itself(
    road: str,
    models: dict[str, str],
    corpus: list[str],
    out: str,
    contents: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As the service would do it, once the launcher of a template has ended.
    monkeypatch.setattr(launch, "left_alone", lambda flags: True)
    assert prepare.prepare_corpus(prepare_config(out, corpus, models)) == {}
    for name in models:
        assert score.score_windows(score_config(out, models, name)) is None
    assert fuse.fuse_scores(fuse_config(out, f"{out}/fused")) is None
    assert contents(out) == contents(road)


def test_counts_that_a_job_needs_before_its_own_are_not_left_out(
    road: str, out: str
) -> None:
    config = fuse_config(road, out, strategy="statistics")
    with pytest.raises(FusionError, match="needs its counts before its own job"):
        fuse.fuse_scores(config, FLAGS)


def test_counts_that_cannot_be_made_anew_leave_those_that_are_there(
    road: str, out: str
) -> None:
    source, target = f"{road}/scores/neox", f"{road}/scores/llama"
    config = counting.CountConfig(source=source, target=target, output=out)
    counting.count_windows(config)
    before = state(out)
    anew = dataclasses.replace(config, reference=True, overwrite=True)
    with pytest.raises(FusionError, match="needs its counts before its own job"):
        counting.count_windows(anew, FLAGS)
    assert state(out) == before


def test_the_hint_of_the_docs_is_the_one_that_is_tested() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "running.md").read_text()
    assert page.count(f"accelerator={HINTS['accelerator']}") == 2


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("ram=3GB", "of accelerator, min_ram"),
        ("min_ram", "must be NAME=VALUE"),
        ("min_ram=much", "min_ram must be what Beam reads, as in 32GB, got 'much'"),
        ("cpu_count=two", "cpu_count must be a whole number above 0, got 'two'"),
    ],
)
def test_a_wrong_hint_is_refused_before_any_work(entry: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        score.ScoreConfig(windows="w", model="m", output="o", worker_hints=(entry,))


class Submitted:
    def job_id(self) -> str:
        return "2026-11-21_01"


def test_a_job_of_dataflow_is_shown_where_it_can_be_watched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = launch.pipeline_options.PipelineOptions(FLAGS)
    launch.tell_where(Submitted(), options)
    assert capsys.readouterr().err == (
        "https://console.cloud.google.com/dataflow/jobs/"
        "us-central1/2026-11-21_01?project=test-project\n"
    )
