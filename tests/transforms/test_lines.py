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
