"""Ends a job that shows no sign of life, and says why.

Signs are seen from outside, in the output: files that are finished, and attempts in the
ledger, which workers renew however long a slice takes (`transforms.ledger`). So a slice
of hours is no stall, on any filesystem and any runner.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from typing import Any

from apache_beam.options import pipeline_options

from pipelines import causes, cluster
from schemas import files
from transforms import ledger

_NOTICE_S = 120.0
"""Seconds of silence after which a likely cause is told."""

_NAMED = 5
"""How many slices in work are named where it is told that none is finished."""

_RESTS = 20
"""How often as long as a look it rests: the output of a large job is long to list."""

_GRACE_S = 20.0
_CANCEL_S = 60.0
_LEAVE_S = 90.0
"""Seconds that each step of an ending has, the job's on Flink, and the process's."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """What shows that a job moves.

    Attributes:
      name: of the stage, for people.
      folders: where its finished files appear.
      output: the folder that has the ledger.
      stall_timeout: seconds without a change, after which the job is ended.
    """

    name: str
    folders: tuple[str, ...]
    output: str
    stall_timeout: float

    def finished(self) -> list[Any]:
        """Returns what changes when anything is finished."""
        return [files.stamps(at) for at in self.folders]

    def sign(self) -> tuple[list[Any], Any]:
        """Returns that, and what changes when anything is in work."""
        return self.finished(), files.stamps(ledger.folder(self.output))


class Stalled(BaseException):
    """Brings the main thread out of a wait without end; never leaves this package."""


class Watchdog:
    """Watches a job while its block runs.

    Args:
      watch: what shows that it moves; None = nothing is watched.
      options: of the job.
    """

    def __init__(
        self, watch: Watch | None, options: pipeline_options.PipelineOptions
    ) -> None:
        self._watch, self._options = watch, options
        self.stalled: str | None = None
        """Why the job was ended, if it was."""
        self.result: Any = None
        """What the runner has returned."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watchdog":
        """Begins to watch."""
        if self._watch is not None:
            self._main = threading.current_thread() is threading.main_thread()
            if self._main:
                self._handler = signal.signal(signal.SIGUSR1, self._interrupt)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the watch."""
        self._over.set()
        if self._watch is not None and self._main:
            signal.signal(signal.SIGUSR1, self._handler)

    def _look(self) -> None:
        assert self._watch is not None
        limit = self._watch.stall_timeout
        period = min(_GRACE_S, max(0.2, limit / 10))
        last, since, told = self._sign(None), time.monotonic(), False
        slow = _Slowness(self._watch)
        rest = period
        while not self._over.wait(rest):
            begun = time.monotonic()
            now = self._sign(last)
            took = time.monotonic() - begun
            rest = min(max(period, _RESTS * took), max(period, limit / 4))
            slow.look(now, self._over)
            if now != last:
                last, since, told = now, time.monotonic(), False
                continue
            still = time.monotonic() - since
            if still > limit:
                verdict = self._verdict(still)  # takes a minute, in which it may move
                if self._sign(last) == last and not self._over.is_set():
                    self._end(verdict)
                    return
            if not told and still > min(_NOTICE_S, limit / 2):
                told = True
                self._notice(still)

    def _sign(self, last: Any) -> Any:
        """Returns the signs of life; the last ones where they cannot be seen now."""
        assert self._watch is not None
        try:
            return self._watch.sign()
        except Exception:  # whatever a client of buckets raises: who guards must live
            return last

    def _notice(self, still: float) -> None:
        """Tells a cause that can be mended before the job is given up."""
        assert self._watch is not None
        found, _ = self._causes()
        if found and not self._over.is_set():
            print(
                f"{self._watch.name}: no sign of life for {still:.0f} seconds:"
                f" {found[0]}",
                file=sys.stderr,
            )

    def _causes(self) -> tuple[list[str], list[str]]:
        """Asks for causes; an error of that is told as one: the guard must live."""
        assert self._watch is not None
        try:
            in_work = ledger.in_work(self._watch.output)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            return [f"{self._watch.output} cannot be listed from here ({told})"], []
        try:
            return causes.explain(self._options, self.result, in_work)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            return [], [f"what takes part, which could not be asked ({told})"]

    def _verdict(self, still: float) -> str:
        assert self._watch is not None
        found, look = self._causes()
        text = (
            f"{self._watch.name}: no worker gave a sign of life for {still:.0f} seconds"
            f" (--stall_timeout={self._watch.stall_timeout:g}), so the job was ended. "
        )
        if found:
            text += "; ".join(found)
        else:
            text += "What holds it is unknown: all that could be asked answers"
        if look:
            text += ". Look at " + "; ".join(look)
        return text + ". The same command does what is missing"

    def _end(self, verdict: str) -> None:
        """Brings the main thread out of its wait, by ever stronger means."""
        self.stalled = verdict
        # No daemon, as who starts it is: the process awaits it, since the main thread
        # leaves once the job server calls the job cancelled, which Flink then is not.
        cancel = threading.Thread(target=self._cancel, daemon=False)
        cancel.start()
        if self._over.wait(_GRACE_S):
            return
        if self._main:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        if not self._over.wait(_GRACE_S):
            os.write(2, f"error: {verdict}\n".encode())
            cancel.join(_LEAVE_S)
            os._exit(1)

    def _interrupt(self, *told: Any) -> None:
        if self.stalled is None:
            # Somebody else's signal, as batch systems send before they end a command.
            if callable(self._handler):
                self._handler(*told)
        elif not self._over.is_set():
            raise Stalled

    def _cancel(self) -> None:
        """Asks all that can end the job; the command ends whether they do or not."""
        if self.result is None:
            return
        # A dead job server never answers.
        threading.Thread(target=self._cancel_by_server, daemon=True).start()
        if (master := cluster.of(self._options).flink) is not None:
            self._cancel_on_flink(master, cluster.name_of(self.result))

    def _cancel_by_server(self) -> None:
        with contextlib.suppress(Exception):  # what it cannot do, Flink is asked for
            self.result.cancel()

    def _cancel_on_flink(self, master: str, name: str) -> None:
        """Asks Flink until the job has an end there; it may be on its way to it yet."""
        deadline, why = time.monotonic() + _CANCEL_S, "it has no job of that name alone"
        while time.monotonic() < deadline:
            try:
                if cluster.end_flink_job(master, name):
                    return
            except (OSError, ValueError) as error:
                why = f"{type(error).__name__}: {error}"
            time.sleep(1)
        os.write(
            2,
            f"the job {name} could not be cancelled on Flink at {master} ({why}); if it"
            " is there, cancel it on the JobManager's page\n".encode(),
        )


class _Slowness:
    """Tells when nothing is finished for long, though workers give signs of life.

    A thread renews the attempt of a slice that hangs in foreign code; so no sign is
    missing, and nobody but people can tell whether a slice takes that long.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._finished: Any = None
        self._since = time.monotonic()
        self._next = watch.stall_timeout

    def look(self, now: Any, over: threading.Event) -> None:
        """Takes the signs of life, and tells; after ever longer pauses."""
        finished = None if now is None else now[0]
        if finished != self._finished:
            self._finished, self._since = finished, time.monotonic()
            self._next = self._watch.stall_timeout
            return
        still = time.monotonic() - self._since
        if still <= self._next:
            return
        self._next = 2 * still
        if (told := self._told()) and not over.is_set():
            print(
                f"{self._watch.name}: workers give signs of life, but nothing was"
                f" finished for {still:.0f} seconds: {told}. If one hangs, end its"
                " process, and give --element_timeout, which does so from then on",
                file=sys.stderr,
            )

    def _told(self) -> str:
        """Names the slices that are in work for longest; empty where there is none."""
        try:
            in_work = ledger.in_work(self._watch.output)
            in_work.sort(key=lambda entry: -entry["seconds"])
            told = [causes.worker(entry) for entry in in_work[:_NAMED]]
        except Exception as error:  # the guard must live
            return f"what is in work cannot be read ({type(error).__name__}: {error})"
        more = len(in_work) - len(told)
        return "; ".join([*told, f"and {more} more"] if more else told)


def leave_for_certain() -> None:
    """Sees that the process ends once its main thread has, after a job that failed.

    Threads of a runner may wait for a dead server or worker for ever.
    """

    def end() -> None:
        threading.main_thread().join()
        time.sleep(_LEAVE_S)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
