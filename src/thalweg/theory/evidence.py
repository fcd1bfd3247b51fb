"""From arrays of bounds and outcomes to a :class:`~thalweg.theory.check.Check`."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from .check import Check


class Evidence:
    """Collects instances of one statement. ``add`` takes outcomes and bounds; ``check`` closes the clock."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.instances = 0
        self.violations = 0
        self.ratios: list[Tensor] = []
        self.worst: str = ""

    def add(self, actual: Tensor, bound: Tensor, broken: Tensor | None = None) -> None:
        """``actual ≤ bound`` instance by instance (``broken``: other violations of the same instances)."""
        bad = actual > bound
        if broken is not None:
            bad = bad | broken
        self.instances += len(actual)
        self.violations += int(bad.sum())
        if bool(bad.any()) and not self.worst:
            i = int(bad.nonzero()[0])
            self.worst = f"first violation: actual {float(actual[i]):.6g}, bound {float(bound[i]):.6g}"
        some = (actual > 0) & torch.isfinite(bound)
        self.ratios.append((bound[some] / actual[some]).double())

    def count(self, instances: int, violations: int) -> None:
        """Instances of a statement that is not an inequality."""
        self.instances += instances
        self.violations += violations

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """Smallest, median and largest bound over actual value."""
        every = torch.cat(self.ratios) if self.ratios else torch.zeros(0)
        if not len(every):
            return None
        return float(every.min()), float(every.median()), float(every.max())

    def check(self, name: str, statement: str, origin: str, test: str, note: str = "", **figures: Any) -> Check:
        """The finished check."""
        plain = {k: float(v) if isinstance(v, Tensor) else v for k, v in figures.items()}
        return Check(
            name=name,
            statement=statement,
            origin=origin,
            instances=self.instances,
            violations=self.violations,
            ratio=self.ratio,
            figures=plain,
            verdict="fails" if self.violations else ("holds" if self.instances else "not tested"),
            seconds=time.perf_counter() - self.began,
            note=" ".join(part for part in (note, self.worst) if part),
            test=test,
        )
