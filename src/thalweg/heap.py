"""The memory of a process."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Options of glibc (malloc.h)."""
KEPT = 1 << 30
"""Bytes that stay with the process after they were freed."""
MAPPED = 1 << 28
"""Bytes from which a block gets a mapping of its own, which goes back as soon as it is freed."""


def _call(name: str, *arguments: int) -> None:
    """A function of glibc, or nothing where the C library is another."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), name)(*arguments)


def one_heap() -> None:
    """One heap for all threads that keeps what was freed, where the C library is glibc.

    The lanes of calibration are threads, and each would keep a heap of its own. And glibc gives tensors of some
    megabytes back to the system when they are freed, and gets them again, page by page, in the next forward: a tenth
    of a training step (docs/log.md).
    """
    _call("mallopt", M_ARENA_MAX, 1)
    _call("mallopt", M_MMAP_THRESHOLD, MAPPED)
    _call("mallopt", M_TRIM_THRESHOLD, KEPT)


def trim() -> None:
    """Give what was freed, and kept (see :func:`one_heap`), back to the system.

    For the turns of a walk: the tensors of its lanes lie between those of the visitor, the gaps that either leaves fit
    little of the other's, and AdaRound took twice the memory that was ever alive in it (docs/log.md). Cost: some
    milliseconds, and what is allocated next is paged in anew.
    """
    _call("malloc_trim", 0)
