#!/usr/bin/env -S python3 -P
"""Starts Python workers where TaskManagers on this machine ask for them.

    python pool.py --service_port=50000

It is what the EXTERNAL environment asks, in place of Beam's own worker pool:

    --environment_type=EXTERNAL --environment_config=localhost:50000

Beam's knows a worker by its name, which is unique to one job on one TaskManager: two
jobs, or two TaskManagers, would end each other's workers. Here a worker belongs to the
control address that it was started for. It ends by itself when that hangs up; one that
cannot, as it hangs in foreign code, is killed once nobody listens there any more.

Workers run by the Python that runs this, from boot.py beside this file, where FuseBeam
must be installed. The two files need no other and may be copied.
"""

import argparse
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

BOOT = Path(__file__).resolve().parent / "boot.py"
HOST = "localhost"
GRACE_S = 30.0
"""Seconds that a worker may live on when nobody listens to it."""

PERIOD_S = 2.0
_AT_ONCE = 16


class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts workers, and sees that each ends.

    Args:
      boot: the program of a worker, in Python.
      grace_s: seconds that a worker may live on when nobody listens to it.
    """

    def __init__(self, boot: Path = BOOT, grace_s: float = GRACE_S) -> None:
        self._boot, self._grace_s = boot, grace_s
        self._workers: set[subprocess.Popen[bytes]] = set()

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it
        """Starts a worker, or says why it cannot."""
        words = [f"--id={request.worker_id}"]
        words += [f"--provision_endpoint={request.provision_endpoint.url}"]
        try:
            worker = subprocess.Popen(
                [sys.executable, "-P", str(self._boot), *words],
                stdin=subprocess.DEVNULL,
            )
        except OSError as error:
            told = f"{self._boot} must be a program that may be run: {error}"
            return beam_fn_api_pb2.StartWorkerResponse(error=told)
        self._workers.add(worker)
        control = request.control_endpoint.url
        threading.Thread(target=self._attend, args=(worker, control)).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it
        """Does nothing: who asks hangs up, and the name may be another's, too."""
        return beam_fn_api_pb2.StopWorkerResponse()

    def end(self) -> None:
        """Kills all workers."""
        for worker in list(self._workers):
            worker.kill()

    def _attend(self, worker: "subprocess.Popen[bytes]", control: str) -> None:
        heard = time.monotonic()
        while time.monotonic() - heard < self._grace_s:
            try:
                worker.wait(min(PERIOD_S, self._grace_s))
                break
            except subprocess.TimeoutExpired:
                heard = time.monotonic() if listens(control) else heard
        worker.kill()
        worker.wait()
        self._workers.discard(worker)


def listens(address: str) -> bool:
    """Says whether somebody takes connections at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PERIOD_S).close()
    except OSError:
        return False
    return True


def serve(pool: Pool, port: int) -> grpc.Server:
    """Serves a pool on loopback.

    Raises:
      RuntimeError: if the port is taken.
    """
    alone = [("grpc.so_reuseport", 0)]  # else two pools would share a port in silence
    server = grpc.server(futures.ThreadPoolExecutor(_AT_ONCE), options=alone)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    return server


def main() -> None:
    """Serves until it is told to end; its workers end with it."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--service_port", type=int, required=True, help="of loopback")
    port = parser.parse_args().service_port
    pool, told = Pool(), threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: told.set())
    try:
        server = serve(pool, port)
    except RuntimeError as error:
        raise SystemExit(
            f"error: --service_port={port} must be free, and is not ({error}); end what"
            " listens there, or take another port"
        ) from error
    print(f"starts workers for {HOST}:{port}, by {BOOT}", flush=True)
    told.wait()
    server.stop(None)
    pool.end()


if __name__ == "__main__":
    main()
