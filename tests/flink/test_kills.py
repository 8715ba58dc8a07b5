from pathlib import Path

import pytest

from tests.flink import road
from tests.kill import flink, rounds

pytestmark = [pytest.mark.flink, pytest.mark.timeout(3 * 3600)]


def test_jobs_end_with_the_same_bytes_whatever_is_killed(
    jar: Path, tmp_path: Path
) -> None:
    # In its own process, as launchers are forks, which threads of Beam would not bear.
    log = tmp_path / "flink.jsonl"
    done = road.call("tests.kill.flink", ["--rounds=3", f"--log={log}"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    landed = [made for made in rounds.read(log) if made.landed]
    assert {made.stage for made in landed} == set(flink.STAGES)
    assert all(made.sound for made in landed)
