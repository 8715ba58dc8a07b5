"""GPUs of one machine shared out among processes: never two models on one.

A process that scores on `cuda` takes the first of the GPUs it sees that no other
process has, and keeps it until it lets go of its model or ends, however it ends. Who
has a GPU holds the lock of a file named by the GPU's own id, so it does not matter how
CUDA_VISIBLE_DEVICES numbers the GPUs for each process. A model that is laid over
several GPUs takes all that its process sees, together. The files lie in /tmp, whatever
TMPDIR says (`locks.shared_folder`). Containers that have each their own /tmp do not see
each other's, and must be given different GPUs.
"""

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from schemas import locks
from transforms import allocator

WAIT_S = 60.0
"""How long a process that was killed may take to let go of its GPU."""

_POLL_S = 0.25
_FILE = "fusebeam-gpu-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that this process sees.

    Attributes:
      index: its number, N of `cuda:N`; each process may number them otherwise.
      id: the GPU's own, the same for every process.
    """

    index: int
    id: str


def present() -> list[Gpu]:
    """Lists the GPUs that CUDA shows to this process."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    found = []
    for index in range(torch.cuda.device_count()):
        own = str(torch.cuda.get_device_properties(index).uuid)
        # The parts of a GPU have the id of the whole; their own stands only here.
        if index < len(seen) and seen[index].strip().startswith("MIG-"):
            own = seen[index].strip()
        found.append(Gpu(index=index, id=own))
    return found


class Claims:
    """The GPUs that a process has; its threads may share it."""

    def __init__(self, folder: Path | None = None, wait_s: float = WAIT_S) -> None:
        """Claims nothing yet.

        Args:
          folder: where the locked files lie; None = /tmp.
          wait_s: how long to wait for a GPU that is taken.
        """
        self._folder = folder or locks.shared_folder()
        self._wait_s = wait_s
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()

    def claim(self, gpus: Sequence[Gpu], index: int | None = None) -> int:
        """Takes a GPU for this process, or returns the one it has.

        Args:
          gpus: those that the process sees.
          index: the one that is wanted; None = any.

        Returns:
          Its index.

        Raises:
          ValueError: if all that would do are taken; names their processes.
        """
        wanted = [gpu for gpu in gpus if index is None or gpu.index == index]
        end = time.monotonic() + self._wait_s
        with self._lock:
            for gpu in wanted:
                if gpu.id in self._files:
                    return gpu.index
            while True:
                for gpu in wanted:
                    if self._take(gpu):
                        return gpu.index
                if time.monotonic() >= end:
                    raise ValueError(self._taken(wanted, named=index is not None))
                time.sleep(_POLL_S)

    def claim_all(self, gpus: Sequence[Gpu]) -> None:
        """Takes several GPUs for this process: all of them at once, or none.

        Of two processes that want the same ones, neither waits for the other with some
        of them in its hands.

        Args:
          gpus: those that are wanted.

        Raises:
          ValueError: if one is taken; names the processes that have such.
        """
        end = time.monotonic() + self._wait_s
        with self._lock:
            while lost := self._take_all(gpus):
                if time.monotonic() >= end:
                    raise ValueError(self._not_all(lost, gpus))
                time.sleep(_POLL_S)

    def release(self) -> None:
        """Lets go of every GPU."""
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()

    def _take(self, gpu: Gpu) -> bool:
        file = locks.open_for_all(self._path(gpu))
        if not locks.take(file):
            os.close(file)
            return False
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())  # for people who look who has it
        self._files[gpu.id] = file
        return True

    def _take_all(self, gpus: Sequence[Gpu]) -> list[Gpu]:
        """Takes all, or no more than it had and returns those that others have."""
        missing = [gpu for gpu in gpus if gpu.id not in self._files]
        lost = [gpu for gpu in missing if not self._take(gpu)]
        if lost:
            for gpu in missing:
                if gpu.id in self._files:
                    os.close(self._files.pop(gpu.id))
        return lost

    def _path(self, gpu: Gpu) -> Path:
        return self._folder / f"{_FILE}{gpu.id}"

    def _taken(self, gpus: Sequence[Gpu], *, named: bool) -> str:
        if named:
            cure = "name another, or hide it by CUDA_VISIBLE_DEVICES,"
        else:
            workers = f"(--direct_num_workers={len(gpus)}),"
            cure = f"start no more workers than there are GPUs {workers}"
        return (
            f"a process must have a GPU of its own to load a model, but all that it may"
            f" use are taken: {self._holders(gpus)}; {cure} end those processes, or"
            " pass --share_device (not with vLLM) where the GPU's memory holds several"
            " models"
        )

    def _not_all(self, lost: Sequence[Gpu], gpus: Sequence[Gpu]) -> str:
        return (
            f"a process must have all of the {len(gpus)} GPUs that it sees to lay a"
            f" model over them, but some are taken: {self._holders(lost)}; start one"
            " worker (--direct_num_workers=1), end those processes, hide their GPUs by"
            " CUDA_VISIBLE_DEVICES, or pass --share_device where the GPUs' memory holds"
            " several models"
        )

    def _holders(self, gpus: Sequence[Gpu]) -> str:
        return ", ".join(f"cuda:{g.index} by process {self._holder(g)}" for g in gpus)

    def _holder(self, gpu: Gpu) -> str:
        with contextlib.suppress(OSError):
            return self._path(gpu).read_text() or "unknown"
        return "unknown"


_CLAIMS = Claims()


def claim(device: torch.device) -> torch.device:
    """Takes a GPU for this process; a CPU is everybody's.

    Args:
      device: `cuda` for any GPU, `cuda:N` for that one, or `cpu`.

    Raises:
      ValueError: if other processes have all that would do; names them.
    """
    if device.type != "cuda":
        return device
    return torch.device("cuda", _CLAIMS.claim(present(), device.index))


def prepare(
    device: torch.device,
    *,
    share: bool,
    threads: int | None,
    tune_allocator: bool,
    every: bool = False,
) -> torch.device:
    """Gets a device ready for a model, and this process with it.

    Args:
      device: `cuda` for any GPU, `cuda:N` for that one, or `cpu`.
      share: whether other processes may have the same GPU.
      threads: of the CPU's arithmetic; None = torch's choice.
      tune_allocator: whether glibc keeps large blocks, which is faster on a CPU.
      every: whether the model is laid over all GPUs that this process sees, and they
        are claimed together.

    Raises:
      ValueError: if other processes have all that would do; names them.
    """
    if every and not share and device.type == "cuda":
        _CLAIMS.claim_all(present())
    elif not share:
        device = claim(device)
    if device.type == "cpu":
        if tune_allocator:
            allocator.keep_large_blocks()
        if threads is not None:
            torch.set_num_threads(threads)
    return device


def release() -> None:
    """Lets go of this process's GPUs, whose model is gone."""
    _CLAIMS.release()
