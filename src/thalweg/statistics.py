"""Tests over few seeds: Holm, paired differences, power laws. For intervals see :mod:`thalweg.bootstrap`.

The unit of everything here is what is independent, as a rule a training seed. Pure arithmetic on lists of
numbers; p-values need scipy, which is imported at the call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bootstrap import EQUAL, Interval, check_options, constant, corrected, finite
from .errors import ThalwegError


@dataclass(frozen=True)
class Paired:
    """Mean of ``a - b`` with its standard error, standardized effect and p-values.

    ``effect``: ``(mean - null) / sd``, corrected for few pairs (Hedges); NaN where all differences are equal.
    ``p_greater``: against "the mean is at most ``null``", ``p_less``: against "at least". ``test``: *t* or *sign*.
    """

    difference: float
    stderr: float
    effect: float
    p: float
    p_greater: float
    p_less: float
    count: int
    test: str


@dataclass(frozen=True)
class Slope:
    """Exponent of a power law. ``values``: how many entered, ``censored``: how many were dropped."""

    interval: Interval
    values: int
    censored: int


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, in the given order: any of them below alpha is a finding with a
    family-wise error of alpha, however the tests depend on each other. Source: Holm 1979, Scand. J. Statist. 6.

    Raises:
        ThalwegError: a value outside [0, 1].
    """
    p = np.asarray(p_values, float).reshape(-1)
    if not np.all((p >= 0) & (p <= 1)):
        raise ThalwegError(f"P-values must lie in [0, 1], got {list(p_values)}. Give 1 for a test that was not made.")
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    out = np.empty(len(p))
    out[order] = steps
    return [float(v) for v in out]


def paired(a: Sequence[float], b: Sequence[float] | float = 0.0, null: float = 0.0) -> Paired:
    """t-test of paired differences ``a - b`` ``[n]`` against ``null``.

    It stands beside the bootstrap interval because with 5 seeds no exact sign test can go below
    1/32 = .03 one-sided (.06 two-sided), and intervals from 5 values are too narrow. It assumes that differences
    are about normal, which 5 values cannot show. Where all differences are equal, t is infinite and the
    exact sign test stands in: ``2**-n`` one-sided. Effect: d_z with the exact correction of Hedges 1981
    (J. Educ. Stat. 6, eq. 6e), which needs three pairs. Fewer than two pairs give NaN.

    Raises:
        ThalwegError: unequal lengths or values that are not finite.
    """
    first = finite(a, "values of a")
    other = np.full(len(first), float(b)) if isinstance(b, int | float) else finite(b, "values of b")
    if len(first) != len(other):
        raise ThalwegError(
            f"Pairs need equal lengths, got {len(first)} and {len(other)}. Give one value per seed on both sides."
        )
    d, n = first - other, len(first)
    mean = float(d.mean()) if n else math.nan
    if n < 2:
        return Paired(mean, math.nan, math.nan, math.nan, math.nan, math.nan, n, "t")
    size = EQUAL * float(np.abs([first, other]).max())
    if np.ptp(d) <= size:
        few, sign = 2.0**-n, 0 if abs(mean - null) <= max(size, EQUAL * abs(null)) else math.copysign(1, mean - null)
        one = {side: few if sign == side else 1.0 for side in (1, -1)}
        return Paired(mean, 0.0, math.nan, min(1.0, 2 * min(one.values())), one[1], one[-1], n, "sign")
    sd, free = float(d.std(ddof=1)), n - 1
    t, law = (mean - null) / (sd / math.sqrt(n)), scipy_stats().t(free)
    hedges = math.nan
    if free > 1:
        hedges = math.exp(math.lgamma(free / 2) - math.lgamma((free - 1) / 2)) / math.sqrt(free / 2)
    tails = float(2 * law.sf(abs(t))), float(law.sf(t)), float(law.cdf(t))
    return Paired(mean, sd / math.sqrt(n), hedges * (mean - null) / sd, *tails, n, "t")


def slope(
    x: Sequence[float],
    y: Sequence[Sequence[float | None]],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Slope:
    """Exponent of ``y ~ x**slope``: least squares of log y on log x, one intercept per unit, BCa over units.

    ``x`` ``[k]``: learning rates; ``y`` ``[n][k]``: recovery times per unit (seed), None or NaN where the time
    was not reached. Those are dropped and counted, which draws the slope toward 0 where long times are missing
    at one end: compare restricted means then. With nothing dropped this is the plain slope over all values.
    A unit with one time left has no slope and is dropped with it. For T ~ 1/eta expect -1.

    Raises:
        ThalwegError: x or y not above 0, rows of another length than x, no unit with two different x.
    """
    rates, rows, dropped, used = finite(x, "values of x"), [], 0, 0
    for i, row in enumerate(y):
        if len(row) != len(rates):
            raise ThalwegError(f"Unit {i} has {len(row)} values for {len(rates)} of x. Give None where one is missing.")
        times = np.array([math.nan if v is None else float(v) for v in row])
        seen = np.isfinite(times)
        if np.any(times[seen] <= 0) or np.any(rates <= 0):
            raise ThalwegError("A power law needs x and y above 0. Leave out zeros, or count the first step as 1.")
        a, b = np.log(rates[seen]), np.log(times[seen])
        if len(a) > 1 and np.ptp(a) > 0:
            rows.append(((a - a.mean()) @ (b - b.mean()), (a - a.mean()) @ (a - a.mean())))
            used += len(a)
            dropped += int((~seen).sum())
        else:
            dropped += len(rates)
    if not rows:
        raise ThalwegError(
            f"No unit has times at two values of x ({dropped} values dropped). Train longer or widen the range of x."
        )
    sums = np.array(rows)
    n, estimate = len(sums), float(sums[:, 0].sum() / sums[:, 1].sum())
    check_options(confidence, resamples)
    if n < 2:
        return Slope(Interval(estimate, math.nan, math.nan, confidence, n, "none"), used, dropped)
    if constant(sums[:, 0] / sums[:, 1]):
        return Slope(Interval(estimate, estimate, estimate, confidence, n, "constant"), used, dropped)
    drawn = sums[np.random.default_rng(seed).integers(0, n, (resamples, n))].sum(1)
    rest = sums.sum(0) - sums
    return Slope(corrected(estimate, drawn[:, 0] / drawn[:, 1], rest[:, 0] / rest[:, 1], confidence), used, dropped)


def scipy_stats() -> Any:
    """``scipy.stats``, or an error that says how to install it."""
    try:
        from scipy import stats
    except ImportError:
        raise ThalwegError("This test needs scipy, which is not installed. Run `pip install thalweg[study]`.") from None
    return stats
