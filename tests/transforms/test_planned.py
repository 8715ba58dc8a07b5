import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from schemas import files
from schemas.errors import FusionError
from tests import ledgers
from tests.deadly_files import Files
from transforms import attempts, planned
from transforms.attempts import Guards

LINES = ["a", "b", "c", "d"]


def test_a_job_makes_the_file_of_every_line_and_names_it(out: str) -> None:
    work = Files(output=out)
    with beam.Pipeline("BundleBasedDirectRunner") as root:
        made = root | beam.Create(LINES) | planned.DoFiles(work)
        assert_that(made, equal_to([work.name(line) for line in LINES]))
    assert files.names(f"{out}/below") == [f"{line}.txt" for line in LINES]


def test_what_is_there_is_not_made_again(out: str) -> None:
    work = Files(output=out)
    assert planned.do_file(work, "a")
    assert not planned.do_file(Files(output=out, deadly=("a",)), "a")


def test_what_another_has_died_of_comes_last_and_alone(out: str) -> None:
    ledgers.leave_dead(out, "below.b.txt")
    with beam.Pipeline("BundleBasedDirectRunner") as root:
        _ = root | beam.Create(LINES) | planned.DoFiles(Files(output=out))
    assert files.names(f"{out}/below") == [f"{line}.txt" for line in LINES]
    assert not files.names(f"{out}/.tmp/attempts")


def test_a_file_that_kills_its_process_ends_the_work_by_name(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_PAUSE_S", 0.0)
    ledgers.leave_dead(out, "below.b.txt")
    with pytest.raises(FusionError, match=r"below/b\.txt .* was killed by SIGKILL: 1"):
        planned.do_file(
            Files(output=out, deadly=("b",)), "b", Guards(max_slice_attempts=1)
        )
