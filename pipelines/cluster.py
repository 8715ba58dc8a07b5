"""Where a portable job runs, as its flags say: Flink, worker pool, job server.

Asks questions that any of them answers at once; starts nothing there but, to see
whether a worker pool can do it, one worker.
"""

import concurrent.futures
import dataclasses
import json
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from apache_beam.options import pipeline_options
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)

ANSWER_S = 10.0
START_S = 45.0
"""Seconds that an answer may take, and the start of a worker."""

_ENDED = ("FINISHED", "FAILED", "CANCELED")
"""States of a job of Flink's that it does not leave."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
_PRISM = ("PrismRunner", "DirectRunner", "SwitchingDirectRunner")
"""Runners that are Prism: of the last two those that `runners.settle` lets pass."""

_PORTABLE = ("FlinkRunner", "PortableRunner", "SparkRunner", *_PRISM)
_OPTIONS = {
    "DOCKER": "docker_container_image",
    "EXTERNAL": "external_service_address",
    "PROCESS": "process_command",
}
"""Of --environment_options, what stands for --environment_config."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the flags of a job say of where it runs.

    Attributes:
      runner: name of the runner.
      flink: address of Flink's JobManager, http://host:port, or None.
      flink_version: of the job server, as in 1.19.
      parallelism: slots that the job takes, or None where the cluster decides.
      environment: how workers are started: EXTERNAL, PROCESS, DOCKER, LOOPBACK; what
        Beam takes where no flag says it.
      environment_config: the address, command or image for that.
      job_endpoint: address of a job server that is there already, or None.
    """

    runner: str
    flink: str | None
    flink_version: str
    parallelism: int | None
    environment: str
    environment_config: str
    job_endpoint: str | None

    @property
    def portable(self) -> bool:
        """Whether workers and job server are other processes."""
        return self.runner in _PORTABLE

    @property
    def prism(self) -> bool:
        """Whether Beam's own local runner is asked for: one other process, here."""
        return self.runner in _PRISM

    @property
    def runs_elsewhere(self) -> bool:
        """Whether workers run in another folder, or on another machine, than this."""
        return self.runner == "DataflowRunner" or (
            self.portable and self.environment != "LOOPBACK"
        )

    @property
    def pool(self) -> str | None:
        """Address of the pool that starts the workers, or None."""
        is_pool = self.portable and self.environment == "EXTERNAL"
        return self.environment_config if is_pool else None


def of(options: pipeline_options.PipelineOptions) -> Cluster:
    """Reads the flags of a job."""
    portable = options.view_as(pipeline_options.PortableOptions)
    flink = options.view_as(pipeline_options.FlinkRunnerOptions)
    runner = options.view_as(pipeline_options.StandardOptions).runner or ""
    runner = runner.split(".")[-1]
    master = (flink.flink_master or "").strip()
    there = runner == "FlinkRunner" and not master.startswith("[") and master
    if there and "://" not in master:
        master = f"http://{master}"
    environment = portable.environment_type or _default(runner, options)
    return Cluster(
        runner=runner,
        flink=master.rstrip("/") if there else None,
        flink_version=flink.flink_version,
        parallelism=flink.parallelism if flink.parallelism > 0 else None,
        environment=environment,
        environment_config=portable.environment_config or _named(portable, environment),
        job_endpoint=portable.job_endpoint
        if portable.job_endpoint != "embed"
        else None,
    )


def _default(runner: str, options: pipeline_options.PipelineOptions) -> str:
    """Returns the environment that Beam takes where no flag names one."""
    flink = options.view_as(pipeline_options.FlinkRunnerOptions).flink_master
    spark = options.view_as(pipeline_options.SparkRunnerOptions).spark_master_url
    inside = runner in _PRISM
    if runner == "FlinkRunner":
        inside = (flink or "[auto]").strip() in ("[auto]", "[local]")
    elif runner == "SparkRunner":
        inside = re.match(r"^local(\[.+\])?$", spark) is not None
    return "LOOPBACK" if inside else "DOCKER"


def _named(portable: pipeline_options.PortableOptions, environment: str) -> str:
    """Returns what --environment_options say, as --environment_config would."""
    found = portable.lookup_environment_option(_OPTIONS.get(environment, "")) or ""
    return (
        json.dumps({"command": found}) if found and environment == "PROCESS" else found
    )


def is_here(where: Cluster) -> bool:
    """Says whether what starts a job's workers is on this machine for certain.

    A loopback address may be the end of a tunnel (ssh, kubectl port-forward). So a
    Flink is asked for its TaskManagers: they are here if each has an address of this
    machine, and answers at it.
    """
    at = [where.flink, where.job_endpoint]
    if not all(_is_loopback(address) for address in at if address):
        return False
    if where.flink is None:
        return True
    try:
        found = ask_flink(where.flink, "taskmanagers")["taskmanagers"]
        paths = [str(one["path"]) for one in found]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(paths) and all(_answers_here(path) for path in paths)


def _answers_here(path: str) -> bool:
    """Says whether an address is this machine's, and something listens there.

    Args:
      path: as Flink writes it, pekko.tcp://flink@host:port/user/rpc/taskmanager_0.
    """
    try:
        parts = urllib.parse.urlsplit(path)
        host, port = parts.hostname, parts.port
        if not host or not port:
            return False
        at = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = at[0]
        with socket.socket(family, kind, protocol) as own:
            own.bind((address[0], 0))  # an address of another machine is refused
        socket.create_connection((host, port), timeout=ANSWER_S).close()
    except (OSError, ValueError):
        return False
    return True


def _is_loopback(address: str) -> bool:
    parts = urllib.parse.urlsplit(address if "://" in address else f"//{address}")
    return (parts.hostname or "") in _LOOPBACK


def ask_flink(master: str, path: str) -> dict[str, Any]:
    """Asks Flink's REST interface.

    Raises:
      OSError: if it does not answer.
      ValueError: if what answers is not Flink.
    """
    with urllib.request.urlopen(f"{master}/{path}", timeout=ANSWER_S) as answer:
        return dict(json.load(answer))


def unfinished_jobs(master: str) -> list[dict[str, Any]]:
    """Lists the jobs of a Flink that have not ended, the newest first."""
    jobs = ask_flink(master, "jobs/overview")["jobs"]
    waiting = [job for job in jobs if job["state"] not in _ENDED]
    return sorted(waiting, key=lambda job: -job["start-time"])


def name_of(result: Any) -> str:
    """Returns the name that a job has in Flink, of what Beam's client knows of it."""
    return str(getattr(result, "_job_id", "")).rpartition("_")[0]


def called(jobs: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Returns the jobs of that name; --job_name may give it to several."""
    return [job for job in jobs if name and job["name"] == name]


def end_flink_job(master: str, name: str) -> bool:
    """Cancels a job on Flink itself; Beam's job server cannot while a batch job runs.

    Nothing is cancelled where several jobs have the name: nothing tells them apart, and
    all but one are somebody else's.

    Returns:
      Whether the job has ended or is told to; not where there is none, or several.

    Raises:
      OSError: if Flink does not answer.
    """
    jobs = called(ask_flink(master, "jobs/overview")["jobs"], name)
    waiting = [job for job in jobs if job["state"] not in _ENDED]
    if len(waiting) != 1:
        return bool(jobs) and not waiting
    job = f"{master}/jobs/{waiting[0]['jid']}"
    asked = urllib.request.Request(job, method="PATCH")
    urllib.request.urlopen(asked, timeout=ANSWER_S).close()
    return True


def is_elastic(master: str) -> bool:
    """Says whether a Flink starts TaskManagers itself, as jobs ask for slots."""
    settings = {entry["key"] for entry in _settings(master)}
    return any(key.startswith(("kubernetes.cluster-id", "yarn.")) for key in settings)


def _settings(master: str) -> list[dict[str, str]]:
    with urllib.request.urlopen(
        f"{master}/jobmanager/config", timeout=ANSWER_S
    ) as answer:
        return list(json.load(answer))


def answers_grpc(address: str) -> bool:
    """Says whether something at an address speaks gRPC."""
    with grpc.insecure_channel(address) as channel:
        ready = grpc.channel_ready_future(channel)
        try:
            ready.result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            ready.cancel()
            return False
        return True


def is_pool(address: str) -> bool:
    """Says whether what is at an address starts workers."""
    with grpc.insecure_channel(address) as channel:
        stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
        nobody = beam_fn_api_pb2.StopWorkerRequest(worker_id=_name())
        try:
            stub.StopWorker(nobody, timeout=ANSWER_S)
        except grpc.RpcError:
            return False
        return True


def pool_starts_workers(address: str) -> bool:
    """Lets a pool on this machine start a worker, and sees whether it reports."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    at = endpoints_pb2.ApiServiceDescriptor(
        url=f"localhost:{server.add_insecure_port('localhost:0')}"
    )
    control = _Control()
    beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(control, server)
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(
        _Provision(at), server
    )
    server.start()
    name = _name()
    try:
        with grpc.insecure_channel(address) as channel:
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            wanted = beam_fn_api_pb2.StartWorkerRequest(
                worker_id=name,
                control_endpoint=at,
                logging_endpoint=at,
                provision_endpoint=at,
            )
            try:
                if stub.StartWorker(wanted, timeout=ANSWER_S).error:
                    return False
                return control.reported.wait(START_S)
            except grpc.RpcError:
                return False
            finally:
                control.over.set()
                stop = beam_fn_api_pb2.StopWorkerRequest(worker_id=name)
                stub.StopWorker.future(stop, timeout=ANSWER_S).exception()
    finally:
        server.stop(None)


def _name() -> str:
    return f"fusebeam-check-{uuid.uuid4().hex}"


class _Control(beam_fn_api_pb2_grpc.BeamFnControlServicer):
    """Takes the report of a worker, and has nothing for it to do."""

    def __init__(self) -> None:
        self.reported = threading.Event()
        self.over = threading.Event()

    def Control(self, answers: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802 - gRPC names it
        """Keeps the stream of instructions open, and sends none."""
        self.reported.set()
        self.over.wait(START_S)
        yield from ()


class _Provision(beam_provision_api_pb2_grpc.ProvisionServiceServicer):
    """Tells workers that are started by a program of their own whom to report to."""

    def __init__(self, at: endpoints_pb2.ApiServiceDescriptor) -> None:
        self._at = at

    def GetProvisionInfo(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it
        """Returns all that a worker must know to report."""
        return beam_provision_api_pb2.GetProvisionInfoResponse(
            info=beam_provision_api_pb2.ProvisionInfo(
                control_endpoint=self._at, logging_endpoint=self._at
            )
        )
