import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import pytest

from pipelines import cli, launch
from schemas.errors import FusionError, SchemaError
from schemas.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    windows: str = setting(help="folder")
    top_k: int = setting(10, help="entries")


def parse(*argv: str) -> tuple[Config, list[str]]:
    return launch.parse(Config, argv, prog="test", description="")


def test_beam_flags_stand_among_ours() -> None:
    config, flags = parse(
        "--runner=FlinkRunner", "--windows=w", "--flink_master=host:1", "--top-k", "3"
    )
    assert config == Config(windows="w", top_k=3)
    assert flags == ["--runner=FlinkRunner", "--flink_master=host:1"]


def test_beam_flags_may_have_their_value_apart() -> None:
    _, flags = parse("--windows", "w", "--runner", "DirectRunner")
    assert flags == ["--runner", "DirectRunner"]


@pytest.mark.parametrize(
    "word",
    ["--no_use_public_ips", "--no-use-public-ips", "--no_save_main_session"],
)
def test_beam_flags_may_begin_with_no(word: str) -> None:
    _, flags = parse("--windows=w", word)
    assert flags == [word.replace("-", "_").replace("__", "--", 1)]


def test_a_misspelt_required_flag_is_not_called_missing() -> None:
    with pytest.raises(SystemExit, match=r"'--windos'; did you mean --windows"):
        parse("--windos", "x")


@pytest.mark.parametrize(
    "words",
    [
        ["--runner", "DirectRunner", "r.toml", "--output", "x"],
        ["r.toml", "--runner", "DirectRunner", "--output", "x"],
        ["r.toml", "--output", "x", "--runner", "DirectRunner"],
    ],
)
def test_the_value_of_a_beam_flag_is_not_taken_for_ours(words: list[str]) -> None:
    ours, beams = launch.part_runner_flags(words)
    assert ours == ["r.toml", "--output", "x"]
    assert beams == ["--runner", "DirectRunner"]


def test_help_tells_of_the_runners_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("usage: test --windows WINDOWS [flags]")
    assert "words behind a bare -- go to the runner unseen" in shown


def test_a_flag_that_nobody_knows_is_refused_with_a_suggestion() -> None:
    with pytest.raises(SystemExit, match=r"--flink_mastr.*did you mean --flink_master"):
        parse("--windows=w", "--flink_mastr=x")


def test_a_flag_of_the_runners_java_side_is_told_where_to_stand() -> None:
    with pytest.raises(SystemExit, match=r"runner's Java side goes behind --$"):
        parse("--windows=w", "--number_of_execution_retries=3")
    _, flags = parse("--windows=w", "--", "--number_of_execution_retries=3")
    assert flags == ["--number_of_execution_retries=3"]


def test_a_dry_run_is_refused_by_runners_that_would_do_the_job() -> None:
    for flags in (["--dry_run=True"], ["--dry_run=True", "--runner=FlinkRunner"]):
        with pytest.raises(
            ValueError, match=r"--dry_run must be left out but with --ru"
        ):
            launch.check("out", flags)
    launch.check("gs://b/out", ["--dry_run=True", "--runner=DataflowRunner"])


def test_a_folder_that_workers_cannot_write_to_is_refused_before_any_work() -> None:
    with pytest.raises(
        FusionError, match=r"--output must be in a bucket.*got /disk/out"
    ):
        launch.check("/disk/out", ["--runner=DataflowRunner"])


def test_a_misspelt_flag_of_ours_is_refused_with_a_suggestion() -> None:
    with pytest.raises(SystemExit, match=r"--topk.*did you mean --top_k"):
        parse("--windows=w", "--topk=x")


def test_what_stands_behind_two_hyphens_goes_to_the_runner_unseen() -> None:
    _, flags = parse("--windows=w", "--", "--max_bundle_size=1", "--only-java-knows")
    assert flags == ["--max_bundle_size=1", "--only-java-knows"]


def refuse(_: int) -> int:
    raise SchemaError("part-3 must hold windows, it holds soup")


@pytest.mark.parametrize("runner", ["FnApiRunner", "BundleBasedDirectRunner"])
def test_a_steps_refusal_reaches_the_user_in_its_own_words(runner: str) -> None:
    with pytest.raises(FusionError, match=r"^part-3 must hold windows, it holds soup$"):
        launch.run(
            lambda root: root | beam.Create([1]) | beam.Map(refuse),
            [f"--runner={runner}"],
        )


def test_a_refusal_comes_without_the_runners_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(FusionError):
        launch.run(lambda root: root | beam.Create([1]) | beam.Map(refuse), [])
    assert not [r for r in caplog.records if r.name.startswith("apache_beam")]


def crash(_: int) -> int:
    raise ZeroDivisionError("a slip of ours")


def test_a_slip_of_ours_keeps_its_trace() -> None:
    with pytest.raises(ZeroDivisionError, match="a slip of ours"):
        launch.run(lambda root: root | beam.Create([1]) | beam.Map(crash), [])


def test_progress_tells_rate_and_time_left() -> None:
    shown = launch.Progress("score a", 10, lambda: (0, 0))
    assert shown.line(0, 0, 1.0) == "score a: 0/10"
    assert shown.line(4, 2000, 2.0) == "score a: 4/10, 1,000 tokens/s, ETA 3s"
    assert shown.line(4, 0, 2.0) == "score a: 4/10, ETA 3s"


def test_progress_counts_only_what_this_run_did() -> None:
    shown = launch.Progress("score a", 10, lambda: (8, 4000))
    with shown:
        assert shown.line(9, 4500, 2.0) == "score a: 9/10, 250 tokens/s, ETA 2s"


def test_progress_that_takes_long_to_count_is_shown_less_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch.Progress, "LINE_PERIOD_S", 0.01)
    looks: list[float] = []

    def count() -> tuple[int, int]:
        looks.append(time.monotonic())
        time.sleep(0.05)
        return 1, 0

    with launch.Progress("score a", 10, count):
        time.sleep(0.5)
    assert len(looks) <= 3  # one at the start, then one in 20 times 0.05 seconds
    assert "score a: 1/10" in capsys.readouterr().err


def test_progress_goes_on_after_what_was_done_could_not_be_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch.Progress, "LINE_PERIOD_S", 0.001)
    counts = iter([1, 1, None, 3, 4])
    over = threading.Event()

    def count() -> tuple[int, int]:
        done = next(counts, 5)
        if done is None:
            raise ConnectionError("no token")
        if done == 5:
            over.set()
        return done, 0

    with launch.Progress("score a", 10, count):
        assert over.wait(300)
    shown = capsys.readouterr().err
    assert "score a: how far it is cannot be seen now (ConnectionError: no tok" in shown
    assert "score a: 3/10" in shown


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_shows_its_help(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: fusebeam {command}" in capsys.readouterr().out


def test_an_unknown_command_lists_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["scor"]) == 2
    assert "score" in capsys.readouterr().err


def test_a_folder_where_a_file_should_be_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert str(tmp_path) in shown
    assert len(shown.splitlines()) == 1


def fail_with(error: Exception) -> Callable[[str], None]:
    def fail(_: str) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (ModuleNotFoundError("No module named 'gguf'", name="gguf"), "[gguf]"),
        (ImportError("requires `accelerate>=1.1.0`"), "[train]"),
        (ImportError("Please install gcsfs to access Google Storage"), "[gcp]"),
        (ImportError("Install s3fs to access S3"), "[aws]"),
    ],
)
def test_a_missing_package_is_one_line_with_the_cure(
    error: Exception,
    cure: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli.importlib, "import_module", fail_with(error))
    assert cli.main(["train"]) == 1
    shown = capsys.readouterr().err
    assert f"pip install 'fusebeam{cure}'" in shown
    assert len(shown.splitlines()) == 1


def test_a_slip_in_our_own_imports_keeps_its_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slip = ImportError("cannot import name 'x' from 'schemas'")
    monkeypatch.setattr(cli.importlib, "import_module", fail_with(slip))
    with pytest.raises(ImportError, match="cannot import name"):
        cli.main(["train"])


def test_an_error_in_the_input_is_one_line_and_no_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["verify", "/nowhere/at/all"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert len(shown.splitlines()) == 1
