"""Servers of both kinds of buckets, each behind a proxy that may do harm."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import buckets, files
from tests.buckets.proxy import Proxy

BIN = Path(__file__).parents[2] / ".cache" / "bin"
KEY, SECRET = "fusebeam", "not-a-secret"
BUCKET = "fuse-beam"
DEADLINE_S = 60.0
SILENT_S = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """A bucket.

    Attributes:
      root: its address.
      proxy: through which all requests go.
    """

    root: str
    proxy: Proxy

    def folder(self, name: str) -> str:
        """Returns a folder of the bucket."""
        return files.join(self.root, name)


def _program(name: str) -> str:
    """Returns the path of a server, which bears its version."""
    found = sorted(BIN.glob(f"{name}-v*"))
    assert len(found) == 1, f"one {BIN}/{name}-v* must be there: make test-buckets"
    return str(found[0])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    """Waits until a server takes connections."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"no server at port {port} after {DEADLINE_S} s")


@pytest.fixture(scope="session")
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "GOOGLE_", "GCSFS_", "STORAGE_")):
                patch.delenv(name)
        # Else a request that is never answered takes its minute.
        patch.setattr(buckets, "_SILENT_S", SILENT_S)
        patch.setattr("s3fs.S3FileSystem.read_timeout", SILENT_S)
        buckets._client.cache_clear()
        yield patch


@pytest.fixture(scope="session")
def s3(
    tmp_path_factory: pytest.TempPathFactory, environment: pytest.MonkeyPatch
) -> Iterator[Store]:
    data = tmp_path_factory.mktemp("versitygw")
    (data / "store" / BUCKET).mkdir(parents=True)
    port = _free_port()
    command = [_program("versitygw"), "--port", f"127.0.0.1:{port}", "--quiet"]
    command += ["--access", KEY, "--secret", SECRET]
    # The data's folder may be on a filesystem without extended attributes.
    command += ["posix", "--sidecar", str(data / "attributes"), str(data / "store")]
    (data / "attributes").mkdir()
    with (
        open(data / "log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            _await(port, process)
            proxy = Proxy(port)
            environment.setenv("AWS_ACCESS_KEY_ID", KEY)
            environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
            environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
            yield Store(root=f"s3://{BUCKET}", proxy=proxy)
            proxy.stop()
        finally:
            process.terminate()
    shutil.rmtree(data)


@pytest.fixture(scope="session")
def gcs(
    tmp_path_factory: pytest.TempPathFactory, environment: pytest.MonkeyPatch
) -> Iterator[Store]:
    data = tmp_path_factory.mktemp("fake-gcs")
    port = _free_port()
    proxy = Proxy(port)
    address = f"http://127.0.0.1:{proxy.port}"
    command = [_program("fake-gcs-server"), "-scheme", "http", "-host", "127.0.0.1"]
    command += ["-port", str(port), "-backend", "memory", "-log-level", "error"]
    command += ["-external-url", address, "-public-host", f"127.0.0.1:{proxy.port}"]
    with (
        open(data / "log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            _await(port, process)
            _make_bucket(port)
            environment.setenv("STORAGE_EMULATOR_HOST", address)
            yield Store(root=f"gs://{BUCKET}", proxy=proxy)
            proxy.stop()
        finally:
            process.terminate()
    shutil.rmtree(data)


def _make_bucket(port: int) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/storage/v1/b?project=test",
        data=json.dumps({"name": BUCKET}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


@pytest.fixture(params=["s3", "gcs"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Returns a bucket of each kind whose proxy does no harm yet."""
    found: Store = request.getfixturevalue(request.param)
    found.proxy.spare()
    yield found
    found.proxy.spare()


@pytest.fixture
def folder(store: Store, request: pytest.FixtureRequest) -> str:
    """Returns a folder of the bucket that is a test's own."""
    return store.folder(request.node.name.partition("[")[0])
