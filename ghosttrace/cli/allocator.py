"""Settings of glibc's allocator for commands that allocate and free large tensors again and again.

By default glibc returns large blocks to the kernel at every free, and the kernel clears the pages again at the next
allocation. `benchmarks/allocator.py` measures what the settings save in each command; those that gain nothing are left
as they are.
"""

import ctypes
import os
import platform

COMMANDS = frozenset({"audit", "bits", "patch", "rl", "sft"})
"""Commands whose process keeps freed memory."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def is_configured() -> bool:
    """Return whether the user has set the allocator by environment variables, which are then left alone."""
    return "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)


def keep_freed_memory() -> None:
    """Keep freed memory in the process for its next allocations. Other C libraries than glibc stay as they are.

    The process holds on to at least its largest use of memory until it ends.
    """
    if platform.libc_ver()[0] != "glibc" or is_configured():
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)  # no block of its own from the kernel for a large tensor
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never shrink the heap
