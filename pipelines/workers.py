"""Workers that Beam starts on this machine: what it does not see to, or does wrong.

A dead worker process of the local runner ends the job with an error.

With `--direct_running_mode=multi_processing` Beam starts worker processes, asks them to
do bundles, and waits for their answers. It does not look whether they live: the job of
a worker that was killed, as the kernel does where memory runs out, would wait for ever.
Here its death answers all that it was asked, with an error, and the other workers are
ended too: else the error would come when they have done their whole shares. So does an
error of a step, for the same reason. Nor does Beam reach a worker that has not reported
yet when its job ends; it would wait for that one's end for ever.

With LOOPBACK, TaskManagers ask this process for workers, which Beam tells by names that
each TaskManager gives anew: it would end one's worker when another's is done. Here they
end by themselves, as whoever asked for them hangs up.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.runners.worker import worker_pool_main

_TOLD_TWICE_S = 0.5
"""A question that was being asked when the worker died is answered after that."""

_LOOK_S = 0.5
"""A process that is to end is looked at so often."""

_BUNDLES = "bundle_"
"""How Beam names what it asks a worker to do; an error of anything else ends no job."""

_KILLED = re.compile(r"return code -(\d+)$")


def attend() -> None:
    """Lets Beam attend to the workers of this process's jobs, from now on."""
    register = worker_handlers.WorkerHandler.register_environment
    register(python_urns.SUBPROCESS_SDK, bytes)(Attended)
    worker_pool_main.BeamFnExternalWorkerPoolServicer.StopWorker = _let_be


def _let_be(pool: Any, request: Any, context: Any) -> Any:
    return beam_fn_api_pb2.StopWorkerResponse()


class Attended(worker_handlers.SubprocessSdkWorkerHandler):
    """A worker process whose end is noticed.

    Beam calls it from the thread that runs the job: `start_worker`, and `close`, which
    calls `stop_worker`.
    """

    def __init__(
        self, command: bytes, state: Any, provision_info: Any, server: Any
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fusebeam-worker-"))
        self._pid = self._folder / "pid"
        # Beam keeps the process to itself; the shell that starts it tells its id.
        line = f"echo $$ > {shlex.quote(str(self._pid))} && exec {command.decode()}"
        super().__init__(line.encode(), state, provision_info, server)
        self._ending = threading.Event()
        self._cut_off = False
        self._reported = self._gone = False
        self._mates: list[Attended] = _mates_at(server)
        self._mates.append(self)
        for connection, name in (
            (self.control_conn, "set_input"),
            (self.data_conn, "set_inputs"),
        ):
            self._calm(connection, name)
        self._heed(self.control_conn)

    def start_worker(self) -> None:
        """Starts the process, and a thread that waits for its end."""
        self.worker = local_job_service.SubprocessSdkWorker(
            self._worker_command_line,
            self.control_address,
            self.provision_info,
            self.worker_id,
        )
        self.worker_thread = threading.Thread(target=self._wait, daemon=True)
        self.worker_thread.start()

    def close(self) -> None:
        """Ends the process, which has nothing more to do."""
        self._ending.set()
        started = worker_handlers.BeamFnControlServicer.STARTED_STATE
        self._reported = self.control_conn._state == started
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def stop_worker(self) -> None:
        """Waits for the end of the process; who cannot be told to end is killed."""
        while self.worker_thread.is_alive():
            if not self._reported:
                self._kill()
            self.worker_thread.join(_LOOK_S)

    def _wait(self) -> None:
        how = "ended"
        try:
            self.worker.run()
        except RuntimeError as error:
            how = str(error)
        self._gone = True
        if not self._ending.is_set():
            self._cut_all_off(said(self.worker_id, how))

    def _cut_all_off(self, message: str) -> None:
        """Ends the job's workers, and answers with an error all they were asked."""
        if self._cut_off:
            return
        for mate in self._mates:
            mate._cut_off = True
        for _ in range(2):
            for mate in self._mates:
                mate._answer(message)
                mate._kill()
            time.sleep(_TOLD_TWICE_S)

    def _kill(self) -> None:
        """Ends the process at once; what it has published stays."""
        if self._gone:  # its id may be another's by now
            return
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(self._pid.read_text()), signal.SIGKILL)

    def _answer(self, message: str) -> None:
        """Answers with an error all that the worker was asked, and will be."""
        connection = self.control_conn
        ask = type(connection).push

        def push(request: Any) -> Any:
            future = ask(connection, request)
            if future is not None:
                future.set(_error(request.instruction_id, message))
            return future

        connection.push = push
        for name, future in list(connection._futures_by_id.items()):
            future.set(_error(name, message))

    def _heed(self, connection: Any) -> None:
        """Lets a step's error end the job now: its answers are awaited one by one."""
        take = connection.set_input

        def until_refused(answers: Iterator[Any]) -> Iterator[Any]:
            for answer in answers:
                yield answer
                if answer.error and answer.instruction_id.startswith(_BUNDLES):
                    self._cut_all_off(answer.error)

        connection.set_input = lambda answers: take(until_refused(answers))

    def _calm(self, connection: Any, name: str) -> None:
        """Lets a connection that breaks off wait for the error that explains it."""
        take = getattr(connection, name)

        def until_lost(stream: Iterator[Any]) -> Iterator[Any]:
            try:
                yield from stream
            except grpc.RpcError:
                self._ending.wait()

        setattr(connection, name, lambda stream: take(until_lost(stream)))


def _mates_at(server: Any) -> "list[Attended]":
    """Returns the workers of one job, which share a server."""
    if not hasattr(server, "fusebeam_workers"):
        server.fusebeam_workers = []
    found: list[Attended] = server.fusebeam_workers
    return found


def _error(name: str, message: str) -> Any:
    return beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=message)


def said(worker: str, how: str) -> str:
    """Returns the error of a job whose worker process has ended.

    Args:
      worker: Beam's name of it.
      how: what Beam says of its end; a status below 0 is minus the signal.
    """
    status = _KILLED.search(how)
    if status is not None:
        name = signal.Signals(int(status[1])).name
        how = f"was killed by {name}"
        if name == "SIGKILL":
            how += ", as the kernel does where memory runs out"
    else:
        how = f"did not ({how}); its last words stand above"
    return (
        "schemas.errors.FusionError: a worker process must live until its job has"
        f" ended, but {worker} {how}; start fewer of them (--direct_num_workers), or"
        " mend the cause: the same command goes on where it stopped"
    )
