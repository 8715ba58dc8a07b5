"""Why a job stands still: asks what takes part in it, and says where to look."""

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
from apache_beam.options import pipeline_options
from apache_beam.runners.portability import portable_runner

from pipelines import cluster
from pipelines.cluster import Cluster


def explain(
    options: pipeline_options.PipelineOptions,
    result: Any,
    in_work: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[str]]:
    """Looks for what keeps a job from moving.

    Args:
      options: of the job.
      result: what the runner returned, or None if it has not yet.
      in_work: attempts in the ledger.

    Returns:
      Causes that were found, and where to look for others.
    """
    where = cluster.of(options)
    found: list[str] = []
    look = [f"{worker(entry)} after its begin" for entry in in_work]
    if isinstance(result, portable_runner.PipelineResult):
        causes, places = _asked(
            "the job server", lambda: (_job_server(where, result), [])
        )
        found, look = found + causes, look + places
    if where.flink is not None:
        causes, places = _asked(
            f"Flink at {where.flink}", lambda: _flink(where, cluster.name_of(result))
        )
        found, look = found + causes, look + places
    if where.pool is not None:
        causes, places = _asked(f"the pool at {where.pool}", lambda: (_pool(where), []))
        found, look = found + causes, look + places
        look.append(f"the log of the worker pool at {where.pool}")
    if where.environment == "PROCESS" and where.portable:
        look.append("the logs of the TaskManagers, which hold what the workers log")
    google = options.view_as(pipeline_options.GoogleCloudOptions)
    if where.runner == "DataflowRunner" and google.project:
        look.append(f"the job's page in the console of project {google.project}")
    if where.prism or not (where.portable or where.runner == "DataflowRunner"):
        look.append(
            "whether a process of this command was killed (dmesg: out of memory)"
        )
    return found, look


def worker(entry: Mapping[str, Any]) -> str:
    """Says who is at work on a slice, of its attempt in the ledger."""
    return (
        f"{entry['file']} was in work on {entry['host']}, process {entry['pid']},"
        f" {entry['seconds']:g} seconds"
    )


Answer = tuple[list[str], list[str]]


def _asked(what: str, question: Callable[[], Answer]) -> Answer:
    """Asks, and where that fails names what could not be asked.

    Whatever it raises: who makes a diagnosis must live to tell the rest of it.
    """
    try:
        return question()
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        return [], [f"{what}, which could not be asked ({told})"]


_OURS = r"(?:schemas|transforms|pipelines|train)"
_MISSING = re.compile(
    rf"No module named '{_OURS}(?:\.[\w.]+)?'|"
    rf"Can't get attribute '\w+' on <module '{_OURS}[^>]*>"
)
"""What workers say that lack our package, or have another version of it."""


_STILLBORN = re.compile(r"Process died with exit code (\d+)")
"""What a TaskManager says of a worker of PROCESS that ended before it reported."""


_OTHER_BEAM = re.compile(
    r"environment and pipeline runtime environment are not compatible"
    r"(?s:.*?Submission environment: (\S+)\. Runtime environment: (\S+)\.)?"
)

_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""What a client is told of a server that is not there any more, or stands still."""

_DETAILS = 400
"""Characters of a job server's own words that are passed on."""


def failure(
    error: BaseException, options: pipeline_options.PipelineOptions
) -> str | None:
    """Names the cause of an error that portable runners tell in their own words.

    Returns:
      What must hold and where to look, or None for other errors.
    """
    where = cluster.of(options)
    if not where.portable:
        return None
    if isinstance(error, grpc.Call) and error.code() not in _GONE:
        return _refused(where, error)
    if isinstance(error, grpc.RpcError):
        if where.prism and where.job_endpoint is None:
            return (
                "Prism must live until the job has ended, but it died or is out of"
                f" reach ({_code(error)}); was its process killed? The same command"
                " does what is missing"
            )
        address = where.job_endpoint or "that this command started"
        return (
            f"the job server {address} must live until the job has ended, but it died"
            f" or is out of reach ({_code(error)}); was its process killed? A cluster"
            " may still work at the job. The same command does what is missing"
        )
    return _told_by_workers(where, str(error))


def _told_by_workers(where: Cluster, text: str) -> str | None:
    """Names the cause of an error of workers, if that is one of those we know."""
    place = where.pool or where.environment_config or where.environment
    if found := _OTHER_BEAM.search(text):
        here, there = found[1] or "another", found[2] or "another"
        return (
            "workers must have the same minor Python and the same Beam as this command,"
            f" which has {here}, but one of them has {there}; install there what is"
            f" here, or start the command from what is there ({where.environment}:"
            f" {place})"
        )
    if found := _MISSING.search(text):
        return (
            "every worker must be able to import this version of FuseBeam, but one of"
            f" them cannot ({found[0]}); install the same package where the workers run"
            f" ({where.environment}: {place}), or name its folder in their PYTHONPATH"
        )
    if found := _STILLBORN.search(text):
        return _stillborn(where, int(found[1]))
    return None


def _stillborn(where: Cluster, status: int) -> str:
    """Tells of a command of the PROCESS environment that becomes no worker."""
    try:
        command = str(json.loads(where.environment_config)["command"])
    except (ValueError, KeyError, TypeError):
        command = where.environment_config
    return (
        f"the command of --environment_config, {command}, must become a worker, but"
        f" beside a TaskManager it ended with status {status} before it reported."
        f" Run `{command} --help` there, as the TaskManager's user: as a worker it is"
        " not heard. The python3 that it runs by (of boot.py the first on PATH) must be"
        " there and able to import apache_beam; install Beam and FuseBeam of this"
        " command's versions, or set PATH in --environment_config's env. boot.py ends"
        " so, too, where a job brings something to install (--setup_file and the like)"
    )


def _refused(where: Cluster, error: grpc.Call) -> str:
    """Tells what a job server says that lives, but does not do what it is asked."""
    said = str(error.details() or "").partition("\n")[0][:_DETAILS]
    address = where.job_endpoint or "that this command started"
    return (
        f"the job server {address} must do what it is asked, but answered"
        f" {error.code().name}{f': {said}' if said else ''}; see the job server's log."
        " The same command does what is missing"
    )


def _code(error: grpc.RpcError) -> str:
    return str(error.code().name) if isinstance(error, grpc.Call) else str(error)


def _job_server(where: Cluster, result: portable_runner.PipelineResult) -> list[str]:
    """Asks the job server for the job; a thread, as a dead one may never answer."""
    told: list[Any] = []

    def ask() -> None:
        try:
            told.append(result.state)
        except Exception as error:
            told.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(cluster.ANSWER_S)
    if told and not isinstance(told[0], Exception):
        return []
    if told and isinstance(told[0], grpc.Call) and told[0].code() not in _GONE:
        return [_refused(where, told[0])]
    if where.prism:
        return ["Prism died or does not answer: was its process killed?"]
    return [
        "the job server died or does not answer: was its process killed? One that this"
        " command starts logs to --job_server_jvm_properties' targets and to standard"
        " error; one of --job_endpoint where it was started. A cluster may still work"
        " at the job"
    ]


def _flink(where: Cluster, name: str) -> Answer:
    assert where.flink is not None
    try:
        waiting = cluster.unfinished_jobs(where.flink)
        found = cluster.called(waiting, name)
        if len(found) == 1:
            return _flink_job(where, where.flink, found[0])
    except (OSError, ValueError, KeyError) as error:
        return [
            f"Flink's JobManager at {where.flink} does not answer ({error}): is it up?"
            " Its log says why not"
        ], []
    page = f"{where.flink}/#/job/running"
    if found:
        return [], [
            f"{page}, where {len(found)} jobs are called {name}: which of them is this"
            " command's is not known, so none is cancelled there; give each a"
            " --job_name of its own"
        ]
    return [], [f"{page}, which may have this command's job, by what name is not known"]


def _flink_job(where: Cluster, master: str, job: Mapping[str, Any]) -> Answer:
    """Asks Flink for one job."""
    found = []
    if idle := job["tasks"]["scheduled"]:
        there = cluster.ask_flink(master, "overview")
        found.append(
            f"too few slots: {idle} tasks wait for one, the cluster at {master} has"
            f" {there['slots-total']}, {there['slots-available']} of them free, on"
            f" {there['taskmanagers']} TaskManagers; start more, lower --parallelism,"
            " or wait for other jobs with a longer --stall_timeout"
        )
    answer = cluster.ask_flink(master, f"jobs/{job['jid']}/exceptions")
    told = str(answer.get("root-exception") or "")
    if (cause := _told_by_workers(where, told)) is not None:
        found.append(cause)
    last = told.partition("\n")[0]
    page = f"{master}/#/job/running/{job['jid']}/exceptions"
    return found, [
        f"{page}, where the job is {job['state']}{f': {last}' if last else ''}",
        "the logs of the TaskManagers",
    ]


def _pool(where: Cluster) -> list[str]:
    """Tries the worker pool, where it is on this machine as all else."""
    assert where.pool is not None
    if not cluster.is_here(where):
        return []
    if not cluster.is_pool(where.pool):
        return [
            f"no worker pool answers at --environment_config={where.pool}: start it, or"
            " mend the address"
        ]
    if not cluster.pool_starts_workers(where.pool):
        return [
            f"the worker pool at {where.pool} starts workers that do not report: the"
            " Python that runs pool.py (with Beam's own pool: the first `python` on its"
            " PATH) must be able to import apache_beam and this package; its log has"
            " the error"
        ]
    return []
