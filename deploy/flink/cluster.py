"""A Flink cluster on this machine: laid out from packages, started, stopped.

    python -m deploy.flink.cluster install           # Flink, once, into .cache
    python -m deploy.flink.cluster start FOLDER      # a JobManager, two TaskManagers
    python -m deploy.flink.cluster start FOLDER --pool    # and a pool of Python workers
    python -m deploy.flink.cluster taskmanager FOLDER     # one more, or a new one
    python -m deploy.flink.cluster stop FOLDER

Everything listens on loopback, at ports that were free. FOLDER gets configuration,
logs and temporary files. Each process carries FOLDER in its environment, and what it
starts inherits that, so `stop` ends exactly these. It needs Java 17 and Linux's /proc,
and nothing of Python but what comes with it; a pool and the workers need FuseBeam.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

VERSION = "1.19.3"
PACKAGES = ("apache-flink", "apache-flink-libraries")
ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / ".cache" / "flink" / VERSION / "pyflink"
BOOT = Path(__file__).resolve().parent / "boot.py"

MARK = "FUSEBEAM_FLINK"
ROLE = "FUSEBEAM_FLINK_ROLE"
HOST = "127.0.0.1"
WAIT_S = 300.0
GRACE_S = 20.0

CONFIG = """\
jobmanager.rpc.address: {host}
jobmanager.rpc.port: {rpc_port}
jobmanager.bind-host: {host}
jobmanager.memory.process.size: 1024m
rest.address: {host}
rest.bind-address: {host}
rest.port: {rest_port}
taskmanager.host: {host}
taskmanager.bind-host: {host}
taskmanager.numberOfTaskSlots: {slots}
taskmanager.memory.process.size: 1728m
# Every job brings its own classes, and the last job's go when the collector comes.
taskmanager.memory.jvm-metaspace.size: 512m
# A lost TaskManager must not end the job; the default without checkpoints is none.
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 20
restart-strategy.fixed-delay.delay: 2 s
heartbeat.interval: 1000
heartbeat.timeout: 10000
io.tmp.dirs: {temporary}
env.java.opts.all: {java_options}
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process of the cluster.

    Attributes:
      pid: its number.
      role: jobmanager, taskmanager-N or pool: its own, or of what started it.
      leads: whether the cluster started it; else one of the cluster's did.
    """

    pid: int
    role: str
    leads: bool


class Cluster:
    """A cluster in a folder.

    Args:
      folder: for configuration, logs and temporary files; its name is the cluster's.
      home: where Flink was laid out.
      slots: of each TaskManager.
    """

    def __init__(self, folder: str | Path, home: Path = HOME, slots: int = 2) -> None:
        self.folder = Path(folder).resolve()
        self._home, self._slots = home, slots
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def master(self) -> str:
        """Host and port of the JobManager, as `--flink_master` takes them."""
        return (self.folder / "master").read_text().strip()

    @property
    def pool(self) -> str:
        """Host and port of the pool, as `--environment_config` takes them."""
        return (self.folder / "pool").read_text().strip()

    def start(self, taskmanagers: int = 2) -> None:
        """Starts a JobManager and TaskManagers, and waits until they know each other.

        Raises:
          FileNotFoundError: if Flink or Java is missing.
          FileExistsError: if a cluster runs in the folder.
          RuntimeError: if a process ended; names its log.
        """
        if not (self._home / "bin" / "jobmanager.sh").exists():
            raise FileNotFoundError(
                f"Flink must be in {self._home}, but is not; run"
                " python -m deploy.flink.cluster install"
            )
        find_java()
        if running := self.processes():
            raise FileExistsError(
                f"{self.folder} must have no cluster that runs, got processes"
                f" {[p.pid for p in running]}; stop it, or take another folder"
            )
        self._configure()
        self._spawn("jobmanager", self._script("jobmanager.sh"))
        for _ in range(taskmanagers):
            self.add_taskmanager(wait=False)
        self._await_taskmanagers(taskmanagers)

    def add_taskmanager(self, *, wait: bool = True) -> int:
        """Starts one more TaskManager; returns its process's number."""
        number = 1 + len(list((self.folder / "log").glob("taskmanager-*.out")))
        known = len(self.taskmanagers())
        pid = self._spawn(f"taskmanager-{number}", self._script("taskmanager.sh"))
        if wait:
            self._await_taskmanagers(known + 1)
        return pid

    def add_pool(self) -> int:
        """Starts a pool that starts Python workers; returns its process's number."""
        port = free_port()
        (self.folder / "pool").write_text(f"{HOST}:{port}\n")
        pid = self._spawn(
            "pool",
            [
                *(sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"),
                *(f"--service_port={port}", f"--container_executable={BOOT}"),
            ],
        )
        self._until(lambda: _answers(port), "the pool must listen")
        return pid

    def processes(self) -> list[Process]:
        """Lists what runs of the cluster, workers included."""
        return [
            Process(pid=pid, role=values[ROLE], leads=_session(pid) == pid)
            for pid, values in _environments()
            if values.get(MARK) == str(self.folder)
        ]

    def taskmanagers(self) -> list[int]:
        """Lists the numbers of the TaskManagers' processes."""
        return [
            p.pid for p in self.processes() if p.leads and p.role.startswith("task")
        ]

    def workers(self) -> list[int]:
        """Lists the numbers of the Python workers' processes."""
        return [p.pid for p in self.processes() if not p.leads]

    def ask(self, path: str) -> Any:
        """Returns what the JobManager answers: "/overview", "/jobs/overview", ..."""
        with urllib.request.urlopen(f"http://{self.master}{path}", timeout=30) as reply:
            return json.load(reply)

    def stop(self) -> None:
        """Ends every process of the cluster, and no other."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + GRACE_S
            asked: set[int] = set()
            while left := self.processes():
                for process in left:
                    if process.pid not in asked:
                        asked.add(process.pid)
                        _send(process.pid, signum)
                self._reap()
                if time.monotonic() > end:
                    break
                time.sleep(0.1)
        self._reap()

    def _reap(self) -> None:
        self._children = [c for c in self._children if c.poll() is None]

    def _configure(self) -> None:
        """Writes the configuration, with Flink's own options for Java 17."""
        shutil.rmtree(self.folder / "log", ignore_errors=True)
        for name in ("log", "tmp", "pid"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        conf = self.folder / "conf"
        shutil.copytree(self._home / "conf", conf, dirs_exist_ok=True)
        shipped = (self._home / "conf" / "config.yaml").read_text()
        options = re.search(r"^ +all: (.+)$", shipped, re.MULTILINE)
        assert options is not None, "Flink's config.yaml must name env.java.opts.all"
        rest_port = free_port()
        text = CONFIG.format(
            host=HOST,
            rpc_port=free_port(),
            rest_port=rest_port,
            slots=self._slots,
            temporary=self.folder / "tmp",
            java_options=options[1],
        )
        (conf / "config.yaml").write_text(text)
        (self.folder / "master").write_text(f"{HOST}:{rest_port}\n")

    def _script(self, name: str) -> list[str]:
        return ["bash", str(self._home / "bin" / name), "start-foreground"]

    def _spawn(self, role: str, command: Sequence[str]) -> int:
        """Starts a process with the cluster's mark, in a session of its own."""
        own = os.path.dirname(sys.executable)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            MARK: str(self.folder),
            ROLE: role,
            "FLINK_HOME": str(self._home),
            "FLINK_CONF_DIR": str(self.folder / "conf"),
            "FLINK_LOG_DIR": str(self.folder / "log"),
            "FLINK_PID_DIR": str(self.folder / "pid"),
            # Workers run by the Python and the code that started the cluster.
            "PATH": os.pathsep.join([own, os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        with open(self.folder / "log" / f"{role}.out", "wb") as out:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )
        self._children.append(child)
        return child.pid

    def _await_taskmanagers(self, wanted: int) -> None:
        def known() -> bool:
            try:
                return bool(self.ask("/overview")["taskmanagers"] >= wanted)
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return False

        self._until(known, f"{wanted} TaskManagers must be known to the JobManager")

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        """Waits until something holds, as long as everything lives."""
        end = time.monotonic() + WAIT_S
        while not holds():
            for child in self._children:
                # One that was killed is missed by nobody; one that gave up is.
                if (child.poll() or 0) > 0:
                    raise RuntimeError(
                        f"{what}, but process {child.pid} ended with status"
                        f" {child.returncode}; see {self.folder / 'log'}"
                    )
            if time.monotonic() > end:
                raise RuntimeError(
                    f"{what} within {WAIT_S:g} s, but that did not come; see"
                    f" {self.folder / 'log'}"
                )
            time.sleep(0.2)


def _environments() -> list[tuple[int, Mapping[str, str]]]:
    """Lists the processes of this user that live, with what their environments hold."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended, or is another user's
        pairs = [os.fsdecode(word).partition("=") for word in words]
        values = {name: value for name, _, value in pairs}
        if MARK in values:
            found.append((int(entry.name), values))
    return sorted(found, key=lambda one: one[0])


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _send(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return  # it has ended meanwhile, as it should


def _answers(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex((HOST, port)) == 0


def free_port() -> int:
    """Returns a port of loopback that nobody listens to."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def find_java() -> str:
    """Returns the java that Flink will take.

    Raises:
      FileNotFoundError: if there is none.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(f"{home}/bin/java" if home else "java")
    if java is None:
        raise FileNotFoundError(
            "Java 17 must be on PATH or named by JAVA_HOME, but there is none; install"
            " it (Debian: openjdk-17-jre-headless)"
        )
    return java


def install(home: Path = HOME) -> None:
    """Lays out Flink from PyPI, unless it is there.

    Two packages hold it between them; what they depend on, an old Beam among it, is
    for Flink's own Python and is left out.
    """
    if home.exists():
        return
    partial = home.parent.with_name(f"{home.parent.name}.{os.getpid()}.partial")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    # Its scripts come in a wheel for Python 3.11; for others it would be built.
    command += ["--python-version=3.11", f"--target={partial}"]
    subprocess.run([*command, *(f"{p}=={VERSION}" for p in PACKAGES)], check=True)
    partial.rename(home.parent)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.flink.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    words = parser.add_subparsers(dest="command", required=True)
    words.add_parser("install", help="lay out Flink from PyPI")
    start = words.add_parser("start", help="start a cluster")
    start.add_argument("--taskmanagers", type=int, default=2)
    start.add_argument("--slots", type=int, default=2, help="of each TaskManager")
    start.add_argument("--pool", action="store_true", help="and a pool of workers")
    one_more = words.add_parser("taskmanager", help="start one more TaskManager")
    stop = words.add_parser("stop", help="end all processes of a cluster")
    for command in (start, one_more, stop):
        command.add_argument("folder", help="the cluster's folder")
    given = parser.parse_args(argv)
    if given.command == "install":
        install()
        return 0
    cluster = Cluster(given.folder, slots=getattr(given, "slots", 2))
    if given.command == "stop":
        cluster.stop()
    elif given.command == "taskmanager":
        cluster.add_taskmanager()
    else:
        cluster.start(given.taskmanagers)
        print(f"--flink_version=1.19 --flink_master={cluster.master}")
        if given.pool:
            cluster.add_pool()
            print(f"--environment_type=EXTERNAL --environment_config={cluster.pool}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
