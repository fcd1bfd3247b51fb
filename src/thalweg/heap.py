"""The memory of a process."""

from __future__ import annotations

import contextlib
import ctypes

KEPT = 1 << 30
"""Bytes that stay with the process after they were freed."""
MAPPED = 1 << 28
"""Bytes from which a block gets a mapping of its own, which goes back as soon as it is freed."""


def one_heap() -> None:
    """One heap for all threads that keeps what was freed, where the C library is glibc.

    The lanes of calibration are threads, and each would keep a heap of its own. And glibc gives tensors of some
    megabytes back to the system when they are freed, and gets them again, page by page, in the next forward: a tenth
    of a training step (docs/log.md).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-8, 1)  # M_ARENA_MAX
        mallopt(-3, MAPPED)  # M_MMAP_THRESHOLD
        mallopt(-1, KEPT)  # M_TRIM_THRESHOLD
