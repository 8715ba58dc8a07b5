"""Jobs as they go to Dataflow: translated, never sent."""

import re
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.portability.api import beam_runner_api_pb2

from pipelines import launch, score, stage
from schemas import plan
from schemas.plan import Slice
from tests import merging
from tests.deploy.jobs import FLAGS, HINTS, IMAGE, Job, Translate

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
