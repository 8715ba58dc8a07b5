"""Looks before a job is sent whether it can begin at all; asks, and starts nothing.

Refused is what cannot work. What may be well and is only not seen from here, as the
worker pools beside far TaskManagers, is left to the watchdog.
"""

import json
import os
import re
import shutil
import urllib.error
from collections.abc import Iterable

from apache_beam.options import pipeline_options

from pipelines import cluster
from pipelines.cluster import Cluster
from schemas.errors import FusionError

_BEAMS_OWN = re.compile(r"(^|/)apache/beam_[\w.]+_sdk(:|@|$)")
"""Names of images that hold Beam, and nothing of ours."""


def check(
    options: pipeline_options.PipelineOptions,
    *,
    reads: Iterable[str] = (),
    output: str | None = None,
) -> None:
    """Checks a job's flags against what answers at the addresses they name.

    Args:
      options: of the job.
      reads: files, folders and models that workers open, as the command named them.
      output: folder that they write to.

    Raises:
      FusionError: if the job could not begin; names what must hold, and the cure.
    """
    where = cluster.of(options)
    if where.runs_elsewhere:
        # What is not there may be a model's name on a hub.
        _check_paths(where, (path for path in reads if os.path.exists(path)))
    check_output(options, output)
    if not where.portable:
        return
    _check_image(where, options)
    if where.flink is not None:
        _check_flink(where)
    if where.runner == "FlinkRunner" and where.job_endpoint is None:
        _check_job_server(options)
    if where.job_endpoint and not cluster.answers_grpc(where.job_endpoint):
        raise FusionError(
            f"a job server must answer at --job_endpoint={where.job_endpoint}, but"
            f" nothing there speaks gRPC within {cluster.ANSWER_S:g} seconds; start it,"
            " or mend the address"
        )
    if cluster.is_here(where):
        _check_workers(where)


def check_output(options: pipeline_options.PipelineOptions, output: str | None) -> None:
    """Checks that a job's workers can write to a folder, as far as its name tells.

    Raises:
      FusionError: if they cannot.
    """
    where = cluster.of(options)
    if output is None or "://" in output or not where.runs_elsewhere:
        return
    _check_paths(where, [output])
    dry = options.view_as(pipeline_options.TestOptions).dry_run
    if where.runner == "DataflowRunner" and not dry:
        raise FusionError(
            "--output must be in a bucket, as Dataflow's workers share no disk with"
            f" this machine, got {output}; give gs://BUCKET/..."
        )


def _check_paths(where: Cluster, paths: Iterable[str]) -> None:
    """Refuses paths that name another place to every process."""
    for path in paths:
        if "://" in path or os.path.isabs(path):
            continue
        cure = (
            f"give {os.path.abspath(path)}, if that is the same place to all of them,"
            " or copy it to a bucket"
        )
        if where.runner == "DataflowRunner":
            cure = (
                "give gs://BUCKET/..., or of a model that is in the workers' image its"
                " place there"
            )
        raise FusionError(
            "paths must be absolute, or of a bucket, where workers run in other"
            f" folders than this command; got {path}; {cure}"
        )


def _check_image(where: Cluster, options: pipeline_options.PipelineOptions) -> None:
    """Refuses containers without FuseBeam, as Beam's default is."""
    built = options.view_as(pipeline_options.SetupOptions).prebuild_sdk_container_engine
    image = where.environment_config
    if where.environment != "DOCKER" or built:
        return
    if not image or _BEAMS_OWN.search(image):
        raise FusionError(
            "workers must have FuseBeam, but --environment_type=DOCKER, the default of"
            f" {where.runner}, starts Beam's own image, which has not; take"
            " --environment_type=PROCESS, EXTERNAL or LOOPBACK, or name an image with"
            " FuseBeam by --environment_config"
        )


def _check_flink(where: Cluster) -> None:
    assert where.flink is not None
    try:
        there = cluster.ask_flink(where.flink, "overview")
        version, total = str(there["flink-version"]), int(there["slots-total"])
        few = where.parallelism is not None and where.parallelism > total
        elastic = few and cluster.is_elastic(where.flink)
    except (OSError, ValueError, KeyError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        raise FusionError(
            f"Flink's JobManager must answer at --flink_master, {where.flink}/overview,"
            f" but does not ({cause}); is the cluster up, and is this its REST address?"
        ) from error
    if not f"{version}.".startswith(f"{where.flink_version}."):
        raise FusionError(
            f"--flink_version must be that of the cluster at {where.flink}, {version},"
            f" got {where.flink_version}"
        )
    if few and not elastic:
        raise FusionError(
            f"the cluster at {where.flink} must have a slot for each of"
            f" --parallelism={where.parallelism}, it has {total}"
            f" ({there['taskmanagers']} TaskManagers); start more TaskManagers, or take"
            f" --parallelism={max(total, 1)}"
        )


def _check_job_server(options: pipeline_options.PipelineOptions) -> None:
    """Looks for what Beam starts the job server with."""
    java = options.view_as(pipeline_options.JobServerOptions).job_server_java_launcher
    if shutil.which(java) is None:
        raise FusionError(
            f"the job server needs Java 11 or newer, and {java!r} is not to be found;"
            " install it, name it by --job_server_java_launcher, or name a job server"
            " that runs already by --job_endpoint"
        )
    jar = options.view_as(pipeline_options.FlinkRunnerOptions).flink_job_server_jar
    if jar and "://" not in jar and not os.path.exists(jar):
        raise FusionError(
            f"--flink_job_server_jar must be a file, {jar} is not there; build it, or"
            " leave the flag out where Beam can fetch its own"
        )


def _check_workers(where: Cluster) -> None:
    """Looks for what starts the workers, where that is on this machine."""
    if where.pool is not None and not cluster.is_pool(where.pool):
        raise FusionError(
            f"a worker pool must answer at --environment_config={where.pool}, but none"
            " does; start one (deploy/flink/pool.py --service_port=PORT), or mend the"
            " address"
        )
    if where.environment == "PROCESS":
        try:
            command = json.loads(where.environment_config)["command"]
        except (ValueError, KeyError, TypeError) as error:
            raise FusionError(
                '--environment_config must be JSON {"command": PATH} for'
                f" --environment_type=PROCESS, got {where.environment_config!r}"
            ) from error
        if shutil.which(command) is None:
            raise FusionError(
                f"the command of --environment_config, {command}, must be a program"
                " that may be run; it is not"
            )
