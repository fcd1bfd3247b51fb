"""The heap of a process keeps what was freed, so that a forward does not ask the system for the same memory again."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from thalweg.heap import one_heap
if sys.argv[1] == "one":
    one_heap()
def forward():
    kept = [torch.ones(4096, 4096) for _ in range(2)]  # 64 MB each
    return sum(float(t[0, 0]) for t in kept)
for _ in range(8):
    forward()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
each = []
for _ in range(8):
    before = faults()
    forward()
    each.append(faults() - before)
print(sorted(each)[4])  # a system short of memory may take pages away before one of them
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_was_freed_is_not_asked_for_again():
    faults = lambda how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how]))
    assert faults("one") < 0.1 * faults("usual")


def test_another_c_library_is_left_alone(monkeypatch):
    import ctypes

    from thalweg.heap import one_heap, trim

    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # has neither mallopt nor malloc_trim
    one_heap()
    trim()


SETTLED = """
from pathlib import Path
import torch
from thalweg.heap import one_heap, trim
def resident():
    return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS")).split()[1])
one_heap()
before = resident()
pairs = [(torch.ones(1 << 20), torch.ones(1 << 20)) for _ in range(64)]  # 4 MB each, turn about
held = [pair[0] for pair in pairs]
del pairs
kept = resident() - before
trim()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_gaps_between_what_is_held_go_back_to_the_system():
    kept, left = map(int, subprocess.check_output([sys.executable, "-c", SETTLED]).split())
    assert kept > 500_000 > 320_000 > left > 250_000  # kilobytes; 256 MiB are held, 256 MiB were freed
