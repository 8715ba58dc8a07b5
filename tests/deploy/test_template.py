import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import launch, template
from schemas import settings

DATAFLOW = Path(__file__).parent.parent.parent / "deploy" / "dataflow"
OF_THE_TEMPLATE = {"stage", "sdk_container_image"}


def metadata(stage: str) -> dict[str, Any]:
    return json.loads((DATAFLOW / f"{stage}.json").read_text())


def parameters(stage: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in metadata(stage)["parameters"]}


def flags_of(stage: str) -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    settings.add_flags(parser, template.STAGES[stage])
    return {action.dest: action for action in parser._actions}


@pytest.mark.parametrize("stage", template.STAGES)
def test_every_flag_of_a_job_is_a_parameter(stage: str) -> None:
    missing = flags_of(stage).keys() - parameters(stage).keys()
    assert missing == flags_of(stage).keys() & set(template.NOT_HERE)


@pytest.mark.parametrize("stage", template.STAGES)
def test_every_parameter_is_a_flag(stage: str) -> None:
    assert parameters(stage).keys() - flags_of(stage).keys() == OF_THE_TEMPLATE
    known = launch._beam_parser()._option_string_actions
    assert "--sdk_container_image" in known


@pytest.mark.parametrize("stage", template.STAGES)
def test_a_parameter_is_needed_where_its_flag_is(stage: str) -> None:
    needed = {n for n, one in parameters(stage).items() if not one["isOptional"]}
    assert needed == {*settings._required(template.STAGES[stage]), *OF_THE_TEMPLATE}


@pytest.mark.parametrize("stage", template.STAGES)
def test_a_parameter_offers_what_its_flag_takes(stage: str) -> None:
    found = parameters(stage)
    for name, flag in flags_of(stage).items():
        if name in found:
            offered = [one["value"] for one in found[name].get("enumOptions", [])]
            assert offered == list(flag.choices or [])
            assert (found[name]["paramType"] == "BOOLEAN") == isinstance(
                flag, argparse.BooleanOptionalAction
            )


@pytest.mark.parametrize("stage", template.STAGES)
def test_the_metadata_are_those_that_make_templates_writes(stage: str) -> None:
    assert metadata(stage) == template.metadata(stage)


def test_parameters_become_the_flags_of_the_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(template.cli, "main", lambda words: called.append(words) or 0)
    # In the order and the spelling of Google's launcher.
    given = [
        "--models=gs://b/one 'gs://b/the other'",
        "--overwrite=true",
        "--stage=prepare",
        "--splits=fusion=.9,dev=.1",
        "--runner=DataflowRunner",
        "--template_location=gs://b/staging/template_launches/1/job_object",
    ]
    assert template.main(given) == 0
    assert called == [
        [
            *("prepare", "--models", "gs://b/one", "gs://b/the other", "--overwrite"),
            *(given[3], given[4], given[5]),
        ]
    ]


def test_what_the_launcher_adds_is_known() -> None:
    launch.refuse_unknown(
        [
            "--runner=DataflowRunner",
            "--project=p",
            "--region=r",
            "--job_name=j",
            "--template_location=gs://b/job_object",
            "--temp_location=gs://b/t",
            "--staging_location=gs://b/s",
            "--service_account_email=a@b",
            "--num_workers=2",
            "--max_num_workers=8",
            "--experiments=no_use_multiple_sdk_containers",
            "--labels=a=b",
        ],
        [],
    )


def test_a_truth_value_is_true_or_false() -> None:
    with pytest.raises(ValueError, match="overwrite must be true or false, got 'yes'"):
        template.flags("score", ["--overwrite=yes"])


def test_a_stage_that_there_is_not_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        template.main(["--stage=train"])
    assert "--stage" in capsys.readouterr().err


def test_a_job_that_a_service_starts_is_not_awaited() -> None:
    flags = ["--runner=DataflowRunner", "--template_location=gs://b/job_object"]
    assert launch.left_alone(flags)
    assert "the service starts it" in launch.parting_words(flags)
    assert not launch.left_alone(flags[:1])
    assert not launch.left_alone([])
