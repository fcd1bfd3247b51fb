"""The memory of a process."""

from __future__ import annotations

import contextlib
import ctypes


def one_heap() -> None:
    """One heap for all threads, where the C library is glibc: the lanes of calibration are threads, and each would keep
    what it freed (docs/log.md)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX
