"""Run the whole theory: every check of every module, the four phase diagrams, one page.

A module of this folder takes part by having a tuple ``CHECKS`` of functions ``check(instances, seed) ->
Check``; the default of ``instances`` is the full count.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..files import write_bytes, write_json, write_text
from ..provenance import manifest
from ..task import Progress, silent
from .check import Check
from .diagrams import Diagram, codimension, damping, density
from .figures import png
from .page import render, table_rows
from .recovery_times import Times, times

__all__ = ["all_checks", "run_theory", "table_rows"]

FIRST = (
    "failure_checks", "nearest_plane_checks", "blindness_checks", "audit_checks", "geometry_checks", "paper_checks",
    "recovery_checks", "margin_checks", "driven_checks", "regret_checks", "lemmas", "scaling",
    "counterexample_checks", "control_checks",
)  # fmt: skip
FORMAT = "thalweg theory 1"
Checker = Callable[..., Check]


def all_checks() -> list[Checker]:
    """Every check, failure first, then recovery, then the rest by name."""
    package = importlib.import_module(__package__ or "thalweg.theory")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    order = [n for n in FIRST if n in names] + [n for n in names if n not in FIRST]
    modules = [importlib.import_module(f"{package.__name__}.{n}") for n in order if n != "run"]
    return [check for module in modules for check in getattr(module, "CHECKS", ())]


def full_count(check: Checker) -> int:
    """Instances of a full run: the default of the first argument."""
    default = next(iter(inspect.signature(check).parameters.values())).default
    return default if isinstance(default, int) else 1000


def quick_count(full: int) -> int:
    """Instances of a quick run: a tenth, but not below twenty."""
    return min(full, max(20, math.ceil(full / 10)))


def diagram_check(diagram: Diagram | Times, seconds: float) -> Check:
    """A phase diagram as a check: cells outside the bands, and those that disagree where more than 1 % do."""
    wrong = round((1 - diagram.agreement) * diagram.cells)
    fine = diagram.agreement >= 0.99
    return Check(
        name=f"diagram: {diagram.name}",
        statement=f"{diagram.title} At least 99 % of the cells outside a band of one cell around each line "
        "agree with theory.",
        origin="ours",
        instances=diagram.cells,
        violations=0 if fine else wrong,
        ratio=None,
        figures={"agreement": diagram.agreement, "cells_that_disagree": wrong},
        verdict="holds" if fine else "fails",
        seconds=seconds,
        note=diagram.says,
        test="tests/truth/test_diagrams.py",
    )


def _evaluate(quick: bool, seed: int, progress: Progress) -> tuple[list[Check], list[Diagram | Times]]:
    """All checks, then all diagrams."""
    checkers = all_checks()
    drawers = _drawers(quick, seed)
    total = len(checkers) + len(drawers)
    done: list[Check] = []
    for check in checkers:
        progress(check.__name__.removeprefix("check_").replace("_", " "), len(done), total)
        full = full_count(check)
        done.append(check(quick_count(full) if quick else full, seed))
    drawn: list[Diagram | Times] = []
    for draw in drawers:
        progress("phase diagrams", len(done), total)
        tick = time.perf_counter()
        drawn.append(draw())
        done.append(diagram_check(drawn[-1], time.perf_counter() - tick))
    progress("theory", total, total)
    return done, drawn


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch uses one thread: the tensors are small, and threads that wait for each other cost more than
    they save (sevenfold on a busy machine with two cores)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_theory(
    quick: bool = False,
    out: str | Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Check]:
    """Run every check and diagram; with ``out``, write ``theory.json``, one PNG per diagram and
    ``theory.html`` there.

    Deterministic in the seed. Cost: a few minutes on two cores; ``quick`` under a minute.
    """
    began = time.perf_counter()
    with one_thread():
        done, drawn = _evaluate(quick, seed, progress)
    seconds = time.perf_counter() - began
    if out is not None:
        write(Path(out), done, drawn, quick, seed, seconds)
    return done


def _drawers(quick: bool, seed: int) -> Sequence[Callable[[], Diagram | Times]]:
    if quick:
        return (
            lambda: damping(30, 24),
            lambda: density(24, 32, 4, 1000, seed),
            lambda: codimension(10, 30, 128, 12, seed),
            lambda: times(6, 24, seed),
        )
    return damping, lambda: density(seed=seed), lambda: codimension(seed=seed), lambda: times(seed=seed)


def write(
    out: Path,
    checks: Sequence[Check],
    drawn: Sequence[Diagram | Times],
    quick: bool,
    seed: int,
    seconds: float,
) -> Path:
    """Write the run's files; returns the page."""
    made = manifest("cpu", seed)
    plain: dict[str, Any] = {
        "format": FORMAT,
        "quick": quick,
        "seconds": seconds,
        "manifest": made,
        "checks": [check.to_json() for check in checks],
        "diagrams": [
            {"name": d.name, "title": d.title, "cells": d.cells, "agreement": d.agreement, "says": d.says}
            for d in drawn
        ],
    }
    write_json(out / "theory.json", plain)
    for diagram in drawn:
        write_bytes(out / f"{diagram.name}.png", png(diagram))
    about = (
        f"{'Quick run' if quick else 'Full run'} of {seconds:.0f} s, seed {seed}, Thalweg "
        f"{made['thalweg']}, torch "
        f"{made['torch']}, {made['created'][:10]}, on {made['hardware']['processor']} with "
        f"{made['hardware']['cores']} cores."
    )
    return write_text(out / "theory.html", render(checks, drawn, about))
