"""Tells glibc to keep large blocks of memory instead of giving them back.

Torch on CPU allocates and frees tens of megabytes for every operation. By default glibc
returns each such block to the kernel at once, and on virtual machines faulting the
pages in again can cost ten times the arithmetic.
"""

import ctypes
import platform
import sys

# Parameters of mallopt, from glibc's malloc.h, and what they are set to.
_M_TRIM_THRESHOLD = (-1, 2**31 - 1)  # bytes free at the top before any go back
_M_TOP_PAD = (-2, 256 * 2**20)  # bytes asked of the kernel beyond what is needed
_M_MMAP_MAX = (-4, 0)  # blocks with a mapping of their own, unmapped when freed
# A thread other than the main one has an arena of at most 64 MiB, and a larger block
# gets a mapping after all: Beam's workers compute in such threads.
_M_ARENA_MAX = (-8, 1)
_OPTIONS = (_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX)


def keep_large_blocks() -> bool:
    """Sets glibc's allocator for the rest of the process.

    Call it before threads are started: one that has allocated keeps its own arena.

    Returns:
      Whether it acted: False where the C library is not glibc.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(option, value) for option, value in _OPTIONS]
    return all(done)
