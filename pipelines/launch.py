"""What every job's command has in common: flags, the runner, progress and the end."""

import argparse
import contextlib
import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.options import pipeline_options

from pipelines import (
    causes,
    cluster,
    preflight,
    refusals,
    runners,
    watchdog,
    workers,
)
from pipelines.watchdog import Stalled, Watch, Watchdog
from schemas import settings
from schemas.errors import FusionError

Config = TypeVar("Config")

DEFAULT_RUNNER = "FnApiRunner"
"""Runs in this process. Plain DirectRunner may download and start another program."""

RUNNER_FLAGS = (
    "Beam's own flags may stand among these (--runner=FlinkRunner,"
    " --direct_num_workers=4, ...); words behind a bare -- go to the runner unseen."
)


def parse(
    cls: type[Config], argv: Sequence[str], *, prog: str, description: str
) -> tuple[Config, list[str]]:
    """Parses a command line of our flags and Beam's.

    Words behind a bare `--` go to the runner unseen, for options that only its Java
    side knows. Any other word that neither we nor Python Beam know is refused.

    Returns:
      The settings, and the words for Beam.
    """
    words, unseen = behind_hyphens(argv)
    ours = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    config, rest = settings.parse_known_flags(
        cls,
        words,
        prog=prog,
        description=description,
        check=lambda rest: refuse_unknown(rest, ours),
        epilog=RUNNER_FLAGS,
    )
    return config, rest + unseen


def behind_hyphens(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts a command line at a bare `--`."""
    words = list(argv)
    if "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


def refuse_unknown(words: Sequence[str], ours: Sequence[str]) -> None:
    """Ends the program if there are words that Python Beam does not know.

    Args:
      words: a command line without our own flags.
      ours: those, from which one may be suggested.
    """
    parser = _beam_parser()
    known = {s.removeprefix("--") for s in parser._option_string_actions}
    for word in parser.parse_known_args(list(words))[1]:
        try:
            settings.refuse_flag(word, [*ours, *known])
        except SystemExit as refused:
            cure = "; a flag of the runner's Java side goes behind --"
            raise SystemExit(f"{refused}{cure}") from None


def part_runner_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts a command line into what is ours and what is Beam's, both in order.

    Beam's parser goes first: it alone knows which of its flags take the next word.
    """
    _, ours = _beam_parser().parse_known_args(list(words))
    waiting, beams = list(ours), []
    for word in words:
        if waiting and word == waiting[0]:
            waiting.pop(0)
        else:
            beams.append(word)
    return ours, beams


def _beam_parser() -> argparse.ArgumentParser:
    """Returns a parser of all flags that Python Beam knows."""
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, conflict_handler="resolve"
    )
    for options in _subclasses(pipeline_options.PipelineOptions):
        if "_add_argparse_args" in vars(options):
            options._add_argparse_args(parser)
    return parser


def _subclasses(cls: Any) -> list[Any]:
    found = []
    for child in cls.__subclasses__():
        found += [child, *_subclasses(child)]
    return found


def left_alone(runner_flags: Sequence[str]) -> bool:
    """Says whether a job is only translated here, and so is not awaited.

    Dataflow knows two ways: `--template_location` writes the job down, and the service
    starts it once this program has ended; with `--dry_run` nothing starts it.
    """
    options = pipeline_options.PipelineOptions(list(runner_flags))
    google = options.view_as(pipeline_options.GoogleCloudOptions)
    on_dataflow = cluster.of(options).runner == "DataflowRunner"
    return on_dataflow and bool(google.template_location or is_dry(runner_flags))


def is_dry(runner_flags: Sequence[str]) -> bool:
    """Says whether a job is translated and nothing else: then nothing is written."""
    options = pipeline_options.PipelineOptions(list(runner_flags))
    return bool(options.view_as(pipeline_options.TestOptions).dry_run)


def check(output: str, runner_flags: Sequence[str], slices: str | None = None) -> None:
    """Checks what flags alone tell, before anything is read or written.

    Args:
      output: folder that the job writes to.
      runner_flags: Beam's own.
      slices: those that are done without a runner; None where it is asked.

    Raises:
      ValueError: if the flags do not go together.
      FusionError: if workers cannot write there.
    """
    if slices is not None and runner_flags:
        raise ValueError(
            "--slices are done in this process, so no flag of a runner may be given"
            f" with them, got {' '.join(runner_flags)}; leave out one or the other"
        )
    options = pipeline_options.PipelineOptions(list(runner_flags))
    runner = cluster.of(options).runner or DEFAULT_RUNNER
    if is_dry(runner_flags) and runner != "DataflowRunner":
        raise ValueError(
            "--dry_run must be left out but with --runner=DataflowRunner, which alone"
            f" translates a job without doing it, got --runner={runner}"
        )
    preflight.check_output(options, output)


def parting_words(runner_flags: Sequence[str]) -> str:
    """Returns what to say of a job that was left alone."""
    if is_dry(runner_flags):
        return "dry run: the job was translated, and not started"
    return "the job is written down; the service starts it, and it ends the folder"


def run(
    build: Callable[[beam.Pipeline], Any],
    runner_flags: Sequence[str],
    watch: Watch | None = None,
    reads: Sequence[str] = (),
) -> None:
    """Runs a pipeline to its end.

    Args:
      build: wires the steps onto the pipeline.
      runner_flags: Beam's own flags; FnApiRunner unless `--runner` is among them. Our
        steps lie in modules, so the main module's state is not sent unless asked for.
      watch: what shows from outside that the job moves; None = it may take for ever.
      reads: files, folders and models that workers open, as the command named them.

    Raises:
      FusionError: if a step refused its data, with the step's own message; or if the
        job could not begin, or stood still, with the cause.
      RuntimeError: if the runner ended in any other state than DONE.
    """
    flags = runners.settle(runner_flags, DEFAULT_RUNNER)
    workers.attend()
    if "--save_main_session" not in flags:
        flags.append("--no_save_main_session")
    # A refused step comes to the user as one line; its trace is in the error's causes.
    runners.quiet()
    options = pipeline_options.PipelineOptions(flags)
    preflight.check(options, reads=reads, output=watch.output if watch else None)
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    guard = Watchdog(None if left_alone(flags) else watch, options)
    try:
        with _quiet(), guard:
            guard.result = pipeline.run()
            if left_alone(flags):
                return
            tell_where(guard.result, pipeline.options)
            state = guard.result.wait_until_finish()
    except (Exception, Stalled) as error:
        if guard.stalled is not None or cluster.of(options).portable:
            watchdog.leave_for_certain()
        cause = guard.stalled or refusals.told(error) or causes.failure(error, options)
        if cause is not None:
            raise FusionError(cause) from error
        raise
    if guard.stalled is not None:
        raise FusionError(guard.stalled)
    if state is not None and str(state) != "DONE":
        raise RuntimeError(f"the job must end in state DONE, it ended in {state}")


_READER = "wait_until_finish_read"
"""Name of the thread in which Beam's client reads a job server's messages."""

_READER_S = 20.0
"""How long it may take to end once the job has: on a busy machine, seconds."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps a job server's messages from the log: the last error is in what it raises.

    Beam's client logs them under no name, traces of workers among them; and the thread
    that does so ends with a trace of its own where the server is gone.
    """

    def is_ours(record: logging.LogRecord) -> bool:
        return record.threadName != _READER

    def hook(args: Any) -> None:
        if args.thread is None or args.thread.name != _READER:
            before(args)

    before, threading.excepthook = threading.excepthook, hook
    logging.getLogger().addFilter(is_ours)
    try:
        yield
    finally:
        for thread in threading.enumerate():
            if thread.name == _READER:
                thread.join(_READER_S)  # it ends as the job has
        logging.getLogger().removeFilter(is_ours)
        threading.excepthook = before


def tell_where(result: Any, options: pipeline_options.PipelineOptions) -> None:
    """Says where a job of Dataflow can be watched; other runners' jobs have no page."""
    google = options.view_as(pipeline_options.GoogleCloudOptions)
    if hasattr(result, "job_id") and google.project:
        print(
            "https://console.cloud.google.com/dataflow/jobs/"
            f"{google.region}/{result.job_id()}?project={google.project}",
            file=sys.stderr,
        )


class Progress:
    """Shows how far a stage is, in one line, while its block runs.

    What is done is counted from outside, by looking at the output, so that the same
    line serves every runner.

    Args:
      name: the stage, as the line begins.
      total: how many units there are.
      count: returns how many are done, and how many tokens they hold; 0 where tokens
        are not counted.
    """

    PERIOD_S = 1.0
    LINE_PERIOD_S = 20.0
    REST = 20.0
    """How many times as long as a look takes the next is waited for, at least."""

    def __init__(
        self,
        name: str,
        total: int,
        count: Callable[[], tuple[int, int]],
    ) -> None:
        self._name, self._total, self._count = name, total, count
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._start = time.monotonic()
        self._at_start = (0, 0)
        self._shown = False

    def __enter__(self) -> "Progress":
        """Starts to watch."""
        self._at_start = self._count()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the line."""
        self._stop.set()
        self._thread.join()
        if self._shown and sys.stderr.isatty():
            print(file=sys.stderr)

    def _watch(self) -> None:
        terminal = sys.stderr.isatty()
        period = pause = self.PERIOD_S if terminal else self.LINE_PERIOD_S
        while not self._stop.wait(pause):
            begin = time.monotonic()
            text = self._text()
            ends = "" if terminal else "\n"
            print(("\r\x1b[K" if terminal else "") + text, end=ends, file=sys.stderr)
            sys.stderr.flush()
            self._shown = True
            # To look takes longer the more slices there are: it stays a small share.
            pause = max(period, self.REST * (time.monotonic() - begin))

    def _text(self) -> str:
        try:
            return self.line(*self._count(), time.monotonic() - self._start)
        except Exception as error:  # whatever a client of buckets raises: next time
            told = f"{type(error).__name__}: {error}"
            return f"{self._name}: how far it is cannot be seen now ({told})"

    def line(self, done: int, tokens: int, elapsed_s: float) -> str:
        """Returns the line for a state of things."""
        text = f"{self._name}: {done}/{self._total}"
        fresh = done - self._at_start[0]
        if fresh <= 0 or elapsed_s <= 0:
            return text
        if tokens:
            text += f", {(tokens - self._at_start[1]) / elapsed_s:,.0f} tokens/s"
        return f"{text}, ETA {clock((self._total - done) * elapsed_s / fresh)}"


def clock(seconds: float) -> str:
    """Writes a duration for people.

    Example:
      >>> clock(75), clock(3700)
      ('1m15s', '1h01m')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
