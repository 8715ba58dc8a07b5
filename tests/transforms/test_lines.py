from pathlib import Path

import apache_beam as beam
from apache_beam.testing.util import assert_that, equal_to

from transforms import lines


def test_lines_come_without_their_ends_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("eins\nzw\u2028ö\r\n\nlast".encode())
    assert list(lines.lines(f"{tmp_path}/a")) == ["eins", "zw\u2028ö\r", "", "last"]


def test_a_job_reads_every_line_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("".join(f"{n}\n" for n in range(100)))
    with beam.Pipeline("FnApiRunner") as root:
        found = root | lines.ReadLines(f"{tmp_path}/a")
        assert_that(found, equal_to([str(n) for n in range(100)]))


def test_lines_are_read_again_once_all_before_them_is_done(tmp_path: Path) -> None:
    def append(line: str) -> str:
        with (tmp_path / "b").open("a") as file:
            file.write(f"{line}\n")
        return line

    (tmp_path / "a").write_text("1\n2\n3\n")
    with beam.Pipeline("FnApiRunner") as root:
        done = root | lines.ReadLines(f"{tmp_path}/a") | beam.Map(append)
        found = done | lines.AwaitLines(f"{tmp_path}/b")
        assert_that(found | beam.Map(str), equal_to(["1", "2", "3"]))
