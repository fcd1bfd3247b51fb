"""Times that may not have come before the budget was spent: restricted means and the log-rank test. Needs scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bootstrap import finite
from .errors import ThalwegError
from .statistics import scipy_stats


@dataclass(frozen=True)
class RestrictedMean:
    """Mean time up to a horizon, in the unit of the times. ``events``: how many ended before the horizon."""

    mean: float
    stderr: float
    horizon: float
    count: int
    events: int


@dataclass(frozen=True)
class LogRank:
    """Log-rank statistic with one degree of freedom, and its two-sided p-value."""

    chi2: float
    p: float


def restricted_mean(times: Sequence[float], observed: Sequence[bool], horizon: float) -> RestrictedMean:
    """Mean of ``min(time, horizon)`` under censoring: the area below the Kaplan-Meier curve up to ``horizon``.

    ``times`` ``[n]``: when the event came or watching ended; ``observed`` ``[n]``: whether it came. Standard
    error after Greenwood (Klein and Moeschberger 2003, Survival Analysis, section 4.5); NaN where no event came
    before the horizon, since nothing then tells how the mean would scatter. Without censoring before the
    horizon this is the plain mean of the cut times.

    Raises:
        ThalwegError: no times, negative ones, or a horizon beyond the last time when that one is censored.
    """
    t, seen = _times(times, observed)
    last = t.max()
    if horizon <= 0 or (horizon > last and not seen[t == last].all()):
        raise ThalwegError(
            f"Horizon {horizon:g} is not above 0 and within the {last:g} up to which runs were watched. "
            "Take the shortest budget of the runs."
        )
    curve = scipy_stats().ecdf(_censored(t, seen)).sf
    events = np.unique(t[seen & (t < horizon)])
    edges = np.unique(np.concatenate([[0.0], events, [horizon]]))
    pieces = curve.evaluate(edges[:-1]) * np.diff(edges)
    variance = 0.0
    for when in events:
        area = float(pieces[edges[:-1] >= when].sum())
        at_risk, ended = int((t >= when).sum()), int((seen & (t == when)).sum())
        if at_risk > ended:
            variance += area**2 * ended / (at_risk * (at_risk - ended))
    before = int((seen & (t < horizon)).sum())
    stderr = math.sqrt(variance) if before else math.nan
    return RestrictedMean(float(pieces.sum()), stderr, float(horizon), len(t), before)


def logrank(
    times_a: Sequence[float], observed_a: Sequence[bool], times_b: Sequence[float], observed_b: Sequence[bool]
) -> LogRank:
    """Log-rank test that two groups have the same law of times under censoring (Mantel 1966), by scipy.

    The p-value is asymptotic: below about ten events it is a guide, not a proof. Without any event there is
    no evidence: chi2 0, p 1. Curves that cross can cancel out.

    Raises:
        ThalwegError: no times or negative ones.
    """
    a, b = _times(times_a, observed_a), _times(times_b, observed_b)
    if not (a[1].any() or b[1].any()):
        return LogRank(0.0, 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):  # all events at one time, with all runs
        found = scipy_stats().logrank(_censored(*a), _censored(*b))
    chi2 = float(found.statistic) ** 2
    return LogRank(chi2, float(found.pvalue)) if math.isfinite(chi2) else LogRank(0.0, 1.0)


def _times(times: Sequence[float], observed: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    t, seen = finite(times, "times"), np.asarray(observed, bool)
    if len(t) == 0 or len(t) != len(seen) or t.min() < 0:
        raise ThalwegError(
            f"{len(t)} times and {len(seen)} marks: there must be one mark per time, and no time below 0. "
            "Give the budget as time and False as mark where the event did not come."
        )
    return t, seen


def _censored(t: np.ndarray, seen: np.ndarray) -> Any:
    return scipy_stats().CensoredData(uncensored=t[seen], right=t[~seen])
