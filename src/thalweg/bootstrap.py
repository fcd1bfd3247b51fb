"""Bootstrap intervals over few independent values, as a rule training seeds. Pure arithmetic, no scipy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from .errors import ThalwegError

NORMAL = NormalDist()
BLOCK = 4_000_000
"""Random numbers held at a time."""
EQUAL = 1e-12
"""Values whose spread is below this share of their size are one value."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it. ``count``: independent units; ``method``: *BCa*, *constant*
    (all values equal: the interval has no width and says nothing about other seeds) or *none* (NaN bounds)."""

    estimate: float
    low: float
    high: float
    confidence: float
    count: int
    method: str


def bca(
    values: Sequence[float],
    statistic: str | Callable[[np.ndarray], float] = "mean",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval over independent values ``[n]``.

    ``statistic``: *mean*, *median* or a function of one array. Do not trust it with few values: over normal
    data the nominal 95 % hold the true mean in 84 % of cases with 5 values, 89 % with 10, 92 % with 25
    (tests/truth/test_statistics.py), so a decision needs a t-test beside it. For the median of few values the
    jackknife is coarse and the interval can only end at values or halfway between two. Cost: ``resamples``
    statistics. Source: Efron 1987, Better Bootstrap Confidence Intervals, JASA 82, sections 2 and 6.

    Raises:
        ThalwegError: values that are not finite, an unknown statistic, a confidence outside (0, 1).
    """
    data, function = finite(values, "values"), _statistic(statistic)
    check_options(confidence, resamples)
    n = len(data)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, confidence, 0, "none")
    estimate = float(function(data[None])[0])
    if n < 2:
        return Interval(estimate, math.nan, math.nan, confidence, n, "none")
    if constant(data):
        return Interval(estimate, estimate, estimate, confidence, n, "constant")
    random = np.random.default_rng(seed)
    rows = max(1, BLOCK // n)
    parts = [
        function(data[random.integers(0, n, (min(rows, resamples - done), n))]) for done in range(0, resamples, rows)
    ]
    left_out = function(np.array([np.delete(data, i) for i in range(n)]))
    return corrected(estimate, np.concatenate(parts), left_out, confidence)


def nested(
    values: Sequence[Sequence[float]],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    crossed: bool = False,
) -> Interval:
    """Interval of a mean over seeds, each with its own evaluation samples: seeds are redrawn, then samples.

    ``values[i]``: paired differences of seed i on its samples ``[m_i]``. The estimate is the mean of the seeds'
    means, acceleration comes from leaving out one seed each. ``crossed``: all seeds saw the same samples
    in the same order, which are then redrawn once for all of them; otherwise their common luck is lost and the
    interval is too narrow for other evaluation data. Otherwise it is slightly too wide: the variance within
    seeds enters twice, once through the spread of the seeds' means (Davison and Hinkley 1997, Bootstrap Methods
    and their Application, section 3.8). Cost: ``resamples`` times all samples.

    Raises:
        ThalwegError: a seed without samples, values that are not finite, ``crossed`` with unequal counts.
    """
    data = [finite(v, f"samples of seed {i}") for i, v in enumerate(values)]
    check_options(confidence, resamples)
    n, counts = len(data), [len(v) for v in data]
    if not all(counts):
        raise ThalwegError(f"Seed {counts.index(0)} has no evaluation samples. Leave it out or evaluate it.")
    if crossed and len(set(counts)) > 1:
        raise ThalwegError(
            f"Crossed seeds share their evaluation samples, but have {min(counts)} to {max(counts)} of them. "
            "Evaluate all seeds on the same samples, or pass crossed=False."
        )
    means = np.array([v.mean() for v in data])
    estimate = float(means.mean()) if n else math.nan
    if n < 2:
        return Interval(estimate, math.nan, math.nan, confidence, n, "none")
    if constant(np.concatenate(data)):
        return Interval(estimate, estimate, estimate, confidence, n, "constant")
    drawn = _redrawn(data, resamples, np.random.default_rng(seed), crossed)
    left_out = np.array([np.delete(means, i).mean() for i in range(n)])
    return corrected(estimate, drawn, left_out, confidence)


def corrected(estimate: float, drawn: np.ndarray, left_out: np.ndarray, confidence: float) -> Interval:
    """Efron 1987, eq. (2.3) and (6.6): the two percentiles of the redrawn estimates. Ties, exact or by rounding,
    count half."""
    n, ties = len(left_out), np.abs(drawn - estimate) <= EQUAL * np.abs(drawn).max()
    below = float(((drawn < estimate) & ~ties).mean() + ties.mean() / 2)
    pull = left_out.mean() - left_out
    scale = float((pull**2).sum()) ** 1.5
    acceleration = float((pull**3).sum()) / (6 * scale) if scale > 0 else 0.0
    if not 0 < below < 1:
        return Interval(estimate, math.nan, math.nan, confidence, n, "none")
    bias, shares = NORMAL.inv_cdf(below), []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + NORMAL.inv_cdf(tail)
        shares.append(NORMAL.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.percentile(drawn, [100 * s for s in shares])
    return Interval(estimate, float(low), float(high), confidence, n, "BCa")


def _redrawn(data: list[np.ndarray], resamples: int, random: np.random.Generator, crossed: bool) -> np.ndarray:
    """Means ``[resamples]`` over redrawn seeds of redrawn samples."""
    n = len(data)
    chosen, out = random.integers(0, n, (resamples, n)), np.zeros(resamples)
    if crossed:
        table = np.array(data)
        rows = max(1, BLOCK // table.shape[1])
        for start in range(0, resamples, rows):
            seeds = chosen[start : start + rows]
            samples = random.integers(0, table.shape[1], (len(seeds), table.shape[1]))
            means = np.stack([row[samples].mean(1) for row in table], 1)
            out[start : start + rows] = np.take_along_axis(means, seeds, 1).mean(1)
        return out
    for i, row in enumerate(data):
        draws = np.repeat(np.arange(resamples), (chosen == i).sum(1))
        rows = max(1, BLOCK // len(row))
        for start in range(0, len(draws), rows):
            part = draws[start : start + rows]
            np.add.at(out, part, row[random.integers(0, len(row), (len(part), len(row)))].mean(1))
    return out / n


def _statistic(statistic: str | Callable[[np.ndarray], float]) -> Callable[[np.ndarray], np.ndarray]:
    if callable(statistic):
        return lambda rows: np.array([float(statistic(row)) for row in rows])
    if statistic not in ("mean", "median"):
        raise ThalwegError(f"Unknown statistic {statistic!r}. Take 'mean', 'median' or a function of one array.")
    return (lambda rows: rows.mean(1)) if statistic == "mean" else (lambda rows: np.median(rows, 1))


def finite(values: Sequence[float], what: str) -> np.ndarray:
    """The values as an array; :class:`ThalwegError` where one is no finite number."""
    data = np.array([math.nan if v is None else float(v) for v in values], float)
    bad = int((~np.isfinite(data)).sum())
    if bad:
        raise ThalwegError(f"{bad} of {len(data)} {what} are not finite numbers. Report those runs apart.")
    return data


def constant(data: np.ndarray) -> bool:
    """True where all values are one, up to rounding."""
    return bool(np.ptp(data) <= EQUAL * np.abs(data).max())


def check_options(confidence: float, resamples: int) -> None:
    """:class:`ThalwegError` for a confidence outside (0, 1) or nothing to redraw."""
    if not 0 < confidence < 1 or resamples < 1:
        raise ThalwegError(
            f"A bootstrap needs a confidence between 0 and 1 and at least one resample, got {confidence} and "
            f"{resamples}. Take 0.95 and 10000."
        )
