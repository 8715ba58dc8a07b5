import platform
import subprocess
import sys

import pytest

from transforms import allocator

# Frees and takes a block, in a thread as Beam's workers do, and counts page faults.
PROGRAM = """
import resource, threading
import numpy as np
from transforms import allocator
if {tuned}:
    assert allocator.keep_large_blocks()
def work():
    for _ in range(2):
        np.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def page_faults(*, tuned: bool) -> int:
    code = PROGRAM.format(tuned=tuned)
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it acts on glibc alone")
def test_large_blocks_are_taken_again_without_page_faults() -> None:
    assert page_faults(tuned=False) > 100
    assert page_faults(tuned=True) < 10


def test_it_leaves_other_c_libraries_alone(monkeypatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_large_blocks()
