"""A Flink cluster on this machine: laid out from packages, started, stopped.

    python -m deploy.flink.cluster install               # Flink, once, into .cache
    python -m deploy.flink.cluster start FOLDER          # JobManager, two TaskManagers
    python -m deploy.flink.cluster taskmanager FOLDER    # one more
    python -m deploy.flink.cluster pool FOLDER           # a pool of Python workers
    python -m deploy.flink.cluster jobserver FOLDER      # a job server that stays
    python -m deploy.flink.cluster stop FOLDER           # ends exactly these

Each prints the flags that lead a job there. All listen on loopback, at ports that were
free. FOLDER gets configuration, logs and temporary files. It needs Linux and Java 17;
pool and workers run by the Python that started them, and need FuseBeam there.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploy.flink import layout, processes
from deploy.flink.processes import Process

HERE = Path(__file__).resolve().parent
ROOT = layout.ROOT
JOB_SERVER = ROOT / ".cache/flink/jobserver/flink-1.19-job-server-2.70.0.jar"
"""What `make flink` makes of pom.xml."""

BOOT = HERE / "boot.py"
POOL = HERE / "pool.py"
HOST = "127.0.0.1"
WAIT_S = 600.0
SHORT_LIVED = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Options of a Java that starts quickly and is not meant to compute."""

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
# A lost TaskManager must not end the job; without checkpoints the default is none.
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 20
restart-strategy.fixed-delay.delay: 2 s
heartbeat.interval: 1000
heartbeat.timeout: 10000
io.tmp.dirs: {temporary}
env.java.opts.all: {java_options}
"""


class Cluster:
    """A cluster in a folder.

    Args:
      folder: for configuration, logs and temporary files; it marks the processes.
      home: where Flink was laid out.
    """

    def __init__(self, folder: str | Path, home: Path = layout.HOME) -> None:
        self.folder = Path(folder).resolve()
        self.home = home
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def master(self) -> str:
        """Host and port of the JobManager, for `--flink_master`."""
        return self._address("jobmanager")

    @property
    def pool(self) -> str:
        """Host and port of the pool, for `--environment_config`."""
        return self._address("pool")

    @property
    def job_server(self) -> str:
        """Host and port of the job server, for `--job_endpoint`."""
        return self._address("jobserver")

    def start(self, taskmanagers: int = 2, slots: int = 2) -> None:
        """Starts a JobManager and TaskManagers, and waits until they know each other.

        Args:
          taskmanagers: how many.
          slots: of each; a slot does one slice at a time.

        Raises:
          FileNotFoundError: if Flink or Java is missing.
          FileExistsError: if a cluster runs in the folder.
          RuntimeError: if a process ended; names its log.
        """
        layout.find_java()
        if not (self.home / "bin" / "jobmanager.sh").exists():
            raise FileNotFoundError(
                f"Flink must be in {self.home}, but is not; run"
                " python -m deploy.flink.cluster install"
            )
        if running := self.processes():
            raise FileExistsError(
                f"{self.folder} must have no cluster that runs, got processes"
                f" {[p.pid for p in running]}; stop it, or take another folder"
            )
        self._configure(slots)
        try:
            self._start("jobmanager", self._script("jobmanager.sh"))
            for _ in range(taskmanagers):
                self._start_taskmanager()
            self._await_taskmanagers()
        except BaseException:
            self.stop()
            raise

    def add_taskmanager(self) -> int:
        """Starts one more TaskManager; returns its process's number."""
        self._check_started()
        pid = self._start_taskmanager()
        self._await_taskmanagers()
        return pid

    def add_pool(self) -> None:
        """Starts a pool, which starts Python workers when TaskManagers ask it to."""
        self._check_started()
        port = self._settle("pool")
        words = [sys.executable, "-P", str(POOL), f"--service_port={port}"]
        self._start("pool", words)
        self._until(lambda: _answers(port), "the pool must listen")

    def add_job_server(self, jar: str | Path = JOB_SERVER) -> None:
        """Starts a job server, so that jobs need not each start one of their own.

        Raises:
          FileNotFoundError: if there is no such jar.
        """
        self._check_started()
        if not Path(jar).exists():
            raise FileNotFoundError(
                f"Beam's job server must be in {jar}, but is not; run make flink, or"
                " name the jar of another"
            )
        port = self._settle("jobserver")
        options = ["-Djava.io.tmpdir=" + str(self.folder / "tmp")]
        words = [f"--flink-master=http://{self.master}", f"--job-port={port}"]
        words += [f"--job-host={HOST}", "--artifact-port=0", "--expansion-port=0"]
        words += [f"--artifacts-dir={self.folder / 'artifacts'}"]
        java = [layout.find_java(), *SHORT_LIVED.split(), *options]
        self._start("jobserver", [*java, "-jar", str(Path(jar).resolve()), *words])
        self._until(lambda: _answers(port), "the job server must listen")

    def processes(self) -> list[Process]:
        """Lists what runs of the cluster, workers included."""
        return processes.marked(str(self.folder))

    def taskmanagers(self) -> list[int]:
        """Lists the numbers of the TaskManagers' processes."""
        started = [p for p in self.processes() if p.leads]
        return [p.pid for p in started if p.role.startswith("taskmanager")]

    def workers(self) -> list[int]:
        """Lists the numbers of the Python workers' processes."""
        return [p.pid for p in self.processes() if not p.leads]

    def ask(self, path: str) -> Any:
        """Returns what the JobManager answers to "/overview", "/jobs/overview", ..."""
        with urllib.request.urlopen(f"http://{self.master}{path}", timeout=30) as reply:
            return json.load(reply)

    def stop(self) -> None:
        """Ends every process of the cluster, and no other."""
        processes.end(str(self.folder))
        for child in self._children:
            child.wait()
        self._children.clear()

    def _check_started(self) -> None:
        if not (self.folder / "jobmanager.address").exists():
            raise FileNotFoundError(
                f"{self.folder} must be the folder of a cluster, but none was started"
                f" there; run python -m deploy.flink.cluster start {self.folder}"
            )

    def _address(self, role: str) -> str:
        return (self.folder / f"{role}.address").read_text().strip()

    def _settle(self, role: str) -> int:
        """Chooses the port of a role, and notes it."""
        port = free_port()
        (self.folder / f"{role}.address").write_text(f"{HOST}:{port}\n")
        return port

    def _configure(self, slots: int) -> None:
        """Writes the configuration, with Flink's own options for Java 17."""
        shutil.rmtree(self.folder / "log", ignore_errors=True)
        for name in ("log", "tmp", "pid"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        conf = self.folder / "conf"
        shutil.copytree(self.home / "conf", conf, dirs_exist_ok=True)
        shipped = (conf / "config.yaml").read_text()
        options = re.search(r"^ +all: (.+)$", shipped, re.MULTILINE)
        if options is None:
            raise ValueError(f"{self.home}/conf/config.yaml must set env.java.opts.all")
        text = CONFIG.format(
            host=HOST,
            rpc_port=free_port(),
            rest_port=self._settle("jobmanager"),
            slots=slots,
            temporary=self.folder / "tmp",
            java_options=f"{options[1]} {SHORT_LIVED}",
        )
        (conf / "config.yaml").write_text(text)

    def _script(self, name: str) -> list[str]:
        return ["bash", str(self.home / "bin" / name), "start-foreground"]

    def _start_taskmanager(self) -> int:
        number = 1 + len(list((self.folder / "log").glob("taskmanager-*.out")))
        role = f"taskmanager-{number}"
        named = f"-Dtaskmanager.resource-id={role}"
        return self._start(role, [*self._script("taskmanager.sh"), named])

    def _start(self, role: str, command: Sequence[str]) -> int:
        given = os.environ.get("PYTHONPATH")
        values = {
            "FLINK_HOME": str(self.home),
            "FLINK_CONF_DIR": str(self.folder / "conf"),
            "FLINK_LOG_DIR": str(self.folder / "log"),
            "FLINK_PID_DIR": str(self.folder / "pid"),
            # Workers run by the Python and the code that started the cluster.
            "PATH": _joined(str(Path(sys.executable).parent), os.environ.get("PATH")),
            "PYTHONPATH": _joined(str(ROOT), given),
        }
        log = self.folder / "log" / f"{role}.out"
        child = processes.start(command, str(self.folder), role, values, log)
        self._children.append(child)
        return child.pid

    def _await_taskmanagers(self) -> None:
        self._until(
            lambda: self._started() <= self._known(),
            "the TaskManagers must be known to the JobManager",
        )

    def _started(self) -> set[str]:
        """Returns the names of the TaskManagers that run."""
        roles = {p.role for p in self.processes() if p.leads}
        return {role for role in roles if role.startswith("taskmanager")}

    def _known(self) -> set[str]:
        """Returns the names of those that the JobManager knows, the lost among them."""
        try:
            return {one["id"] for one in self.ask("/taskmanagers")["taskmanagers"]}
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return set()

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        """Waits until something holds.

        Raises:
          RuntimeError: if it never will; names the logs.
        """
        end = time.monotonic() + WAIT_S
        while not holds():
            ended = [child.poll() for child in self._children]
            failed = [status for status in ended if status and not _is_signal(status)]
            if failed or time.monotonic() > end:
                why = f"a process ended with {failed[0]}" if failed else "it hangs"
                raise RuntimeError(f"{what}, but {why}; see {self.folder / 'log'}")
            time.sleep(0.2)


def _is_signal(status: int) -> bool:
    """Says whether a process ended by a signal, that is, was ended on purpose.

    A shell, and a Java that is asked to end, make 128 + signal of it.
    """
    return status < 0 or status > 128


def _joined(*folders: str | None) -> str:
    return os.pathsep.join(folder for folder in folders if folder)


def _answers(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex((HOST, port)) == 0


def free_port() -> int:
    """Returns a port of loopback that nobody listens to."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    given = _parser().parse_args(argv)
    try:
        _do(given)
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _do(given: argparse.Namespace) -> None:
    if given.command == "install":
        layout.install()
        return
    cluster = Cluster(given.folder)
    match given.command:
        case "start":
            cluster.start(given.taskmanagers, given.slots)
            print(f"--flink_version=1.19 --flink_master={cluster.master}")
        case "taskmanager":
            cluster.add_taskmanager()
        case "pool":
            cluster.add_pool()
            print(f"--environment_type=EXTERNAL --environment_config={cluster.pool}")
        case "jobserver":
            cluster.add_job_server(given.jar)
            print(f"--job_endpoint={cluster.job_server}")
        case "stop":
            found = len(cluster.processes())
            cluster.stop()
            told = f"{found} processes were ended" if found else "nothing runs here"
            print(f"{cluster.folder}: {told}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.flink.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    words = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    words.add_parser("install")
    made = {
        name: words.add_parser(name)
        for name in ("start", "taskmanager", "pool", "jobserver", "stop")
    }
    for command in made.values():
        command.add_argument("folder", help="the cluster's folder")
    made["start"].add_argument("--taskmanagers", type=int, default=2)
    made["start"].add_argument("--slots", type=int, default=2, help="of each")
    made["jobserver"].add_argument(
        "jar",
        nargs="?",
        default=JOB_SERVER,
        help="Beam's job server for Flink 1.19, where it is not that of make flink",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
