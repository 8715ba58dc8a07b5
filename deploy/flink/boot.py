#!/usr/bin/env -S python3 -P
"""Starts a Python worker where a TaskManager asks for one, without a container.

It is the command of Beam's PROCESS environment, and what pool.py starts:

    --environment_type=PROCESS --environment_config='{"command": "/opt/boot.py"}'

The Python is the first `python3` on PATH; FuseBeam must be installed there, in the
version of the command that sent the job. Nothing is installed here. This file needs
no other and may be copied.
"""

import argparse
import json
import os
import sys

import grpc
from apache_beam.portability.api import (
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
)
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format

ASK_S = 120
ALWAYS_STAGED = "submission_environment_dependencies.txt"
"""A list of the sender's packages, which every job brings and no worker needs."""


def main() -> None:
    """Asks the TaskManager what the worker shall be, and becomes it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--id", required=True, help="the worker's name")
    parser.add_argument("--provision_endpoint", required=True, help="whom to ask")
    given, _ = parser.parse_known_args()
    with grpc.insecure_channel(given.provision_endpoint) as channel:
        ask = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        info = ask.GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=[("worker_id", given.id)],
            timeout=ASK_S,
        ).info
    refuse_artifacts([staged_name(artifact) for artifact in info.dependencies])
    os.environ.update(
        WORKER_ID=given.id,
        PIPELINE_OPTIONS=json.dumps(json_format.MessageToDict(info.pipeline_options)),
        LOGGING_API_SERVICE_DESCRIPTOR=text_format.MessageToString(
            info.logging_endpoint
        ),
        CONTROL_API_SERVICE_DESCRIPTOR=text_format.MessageToString(
            info.control_endpoint
        ),
        RUNNER_CAPABILITIES=" ".join(info.runner_capabilities),
    )
    if info.HasField("status_endpoint"):
        os.environ["STATUS_API_SERVICE_DESCRIPTOR"] = text_format.MessageToString(
            info.status_endpoint
        )
    sdk_worker_main.main(sys.argv)


def staged_name(artifact: beam_runner_api_pb2.ArtifactInformation) -> str:
    """Returns the name that a file of the job would get on the worker."""
    role = beam_runner_api_pb2.ArtifactStagingToRolePayload()
    role.ParseFromString(artifact.role_payload)
    return str(role.staged_name)


def refuse_artifacts(names: list[str]) -> None:
    """Ends the worker if the job brings what it would have to install.

    Raises:
      SystemExit: if so; the cure is named.
    """
    if wanted := sorted(set(names) - {ALWAYS_STAGED}):
        raise SystemExit(
            f"error: a job for {os.path.basename(__file__)} must bring nothing to"
            f" install, got {', '.join(wanted)}; install it on the workers, and leave"
            " out --setup_file, --requirements_file, --extra_package and"
            " --save_main_session"
        )


if __name__ == "__main__":
    main()
