"""What a loss profile looks like: a bowl, a floor with a wall, or a power law.

Protocol 8.5 of ``docs/theory.md``. Each form has one factor that least squares gives in closed form; the hinge's
floor and the power's exponent are searched on a grid, for all bootstrap resamples at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ThalwegError

EXPONENTS = np.concatenate([np.arange(0.5, 6.0, 0.05), np.arange(6.0, 16.01, 0.25)])
FLOORS = np.linspace(0.0, 0.98, 99)
"""Of the largest distance."""
FEWEST = 6


@dataclass(frozen=True)
class Shape:
    """Least-squares fits of ``L(s) - L(0)`` over distances ``0 < s ≤ s_max``.

    ``exponent``: p of ``a s^p``. ``floor``: r of ``a (s - r)²₊``, in the unit of the distances. ``*_weight``: Akaike
    weights (from AICc) of bowl ``a s²``, hinge and power, which sum to one. ``best``: the heaviest. ``points``: how
    many were fitted, ``until``: the last distance of them (the first local maximum, where a loss saturates).
    """

    exponent: float
    floor: float
    bowl_weight: float
    hinge_weight: float
    power_weight: float
    best: str
    points: int
    until: float


@dataclass(frozen=True)
class ShapeSpread:
    """Quantiles (5, 50, 95 %) of exponent and floor, and the share of resamples in which a bowl is not best."""

    exponent: tuple[float, float, float]
    floor: tuple[float, float, float]
    bowl_beaten: float
    resamples: int
    seed: int


def fit_shape(distances: Sequence[float], rises: Sequence[float]) -> Shape:
    """Fit a profile. ``distances`` from 0 on, ascending; ``rises``: loss above that at 0, nats.

    Raises:
        ThalwegError: unequal lengths, distances that do not ascend, fewer than six points before the first maximum.

    Do not trust the exponent where the rise stays within the noise, nor weights of a hinge and a power law that are
    close: few points do not separate them. Cost: arithmetic.
    """
    s, y = _prepared(distances, rises)
    scores, p, r = _fits(s, y[None])
    weights = _weights(scores)[0]
    names = ("bowl", "hinge", "power")
    return Shape(
        float(p[0]), float(r[0]), float(weights[0]), float(weights[1]), float(weights[2]), names[int(weights.argmax())],
        len(s), float(s[-1]),
    )


def bootstrap_shape(
    distances: Sequence[float], losses: np.ndarray, resamples: int = 200, seed: int = 0
) -> ShapeSpread:  # fmt: skip
    """The same over resampled evaluation samples; ``losses [points, samples]``, the first row at distance 0.

    Says how far the data, not the seeds, leave the shape open. Cost: ``resamples`` means and fits, under a second.
    """
    mean = losses.mean(1)
    s, _ = _prepared(distances, list(mean - mean[0]))
    rows = losses[1 : len(s) + 1] - losses[:1]
    draw = np.random.default_rng(seed).integers(0, losses.shape[1], (resamples, losses.shape[1]))
    y = np.stack([rows[:, pick].mean(1) for pick in draw])
    scores, p, r = _fits(s, y)
    quantiles = lambda x: tuple(float(q) for q in np.quantile(x, (0.05, 0.5, 0.95)))
    beaten = float((scores.argmin(1) != 0).mean())
    return ShapeSpread(quantiles(p), quantiles(r), beaten, resamples, seed)  # type: ignore[arg-type]


def _prepared(distances: Sequence[float], rises: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    s, y = np.asarray(distances, float), np.asarray(rises, float)
    if s.shape != y.shape or s.ndim != 1 or not (np.diff(s) > 0).all() or len(s) == 0 or s[0] != 0:
        raise ThalwegError(
            f"A profile of {len(s)} distances and {len(y)} rises does not ascend from 0. Begin at the float weights."
        )
    good = np.isfinite(y)
    last = len(y) if good.all() else int(good.argmin())
    falls = np.flatnonzero(np.diff(y[:last]) < -0.02 * max(float(np.abs(y[:last]).max()), 1e-30))
    late = [i for i in falls if y[i] > 0.5 * y[:last].max()]  # noise on the floor is no maximum
    last = min(last, int(late[0]) + 1) if late else last
    if last - 1 < FEWEST:
        raise ThalwegError(f"{last - 1} points before the profile's first maximum are too few. Take at least {FEWEST}.")
    return s[1:last], y[1:last]


def _fits(s: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AICc ``[rows, 3]``, best exponents and floors for rises ``[rows, points]``."""
    x = s / s[-1]
    size = len(s)
    with np.errstate(under="ignore"):
        powers = x[None] ** EXPONENTS[:, None]
    hinges = np.clip(x[None] - FLOORS[:, None], 0, None) ** 2
    bowl = _residuals(y, x[None] ** 2)[:, 0]
    hinge, power = _residuals(y, hinges), _residuals(y, powers)
    total = np.maximum((y**2).sum(1), 1e-300)
    extra = lambda k: 2 * k + 2 * k * (k + 1) / (size - k - 1)
    score = lambda rss, k: size * np.log(np.maximum(rss, 1e-14 * total) / size) + extra(k)
    scores = np.stack([score(bowl, 2), score(hinge.min(1), 3), score(power.min(1), 3)], 1)
    return scores, EXPONENTS[power.argmin(1)], FLOORS[hinge.argmin(1)] * s[-1]


def _residuals(y: np.ndarray, forms: np.ndarray) -> np.ndarray:
    """Sum of squares left by the best non-negative factor of each form, ``[rows, forms]``."""
    inner = np.clip(y @ forms.T, 0, None)
    return np.maximum((y**2).sum(1)[:, None] - inner**2 / np.maximum((forms**2).sum(1), 1e-300), 0)


def _weights(scores: np.ndarray) -> np.ndarray:
    relative = np.exp(-0.5 * (scores - scores.min(1, keepdims=True)))
    return relative / relative.sum(1, keepdims=True)
