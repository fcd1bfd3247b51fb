"""The river's direction, from float weights on their way: principal components against a random walk's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .. import space
from ..errors import ThalwegError
from ..space import Point

LIMIT = 6 / np.pi**2
"""Share of the first component of a long random walk in many dimensions (Antognini and Sohl-Dickstein 2018,
arXiv:1806.08805)."""


@dataclass(frozen=True)
class Tail:
    """The tail of a training run. ``share``: of the variance along the first principal component; ``null``: the mean
    of that share for random walks of as many checkpoints, with its 95 % quantile ``null_high``; ``straight``: length
    of the whole displacement over that of the path (1: a straight line; a walk of n steps: 1/√n); ``drift``: cosine of
    the first component with the displacement from the first checkpoint to the last; ``average``: cosine of that
    displacement with the way from the mean of the checkpoints to the last."""

    share: float
    null: float
    null_high: float
    straight: float
    drift: float
    average: float
    checkpoints: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def tail(
    checkpoints: Sequence[Mapping[str, Tensor]], step: Mapping[str, Tensor], *, draws: int = 200, seed: int = 0
) -> Tail:
    """Principal components of checkpoints in the step metric, against random walks (docs/theory.md, protocol 8.2).

    The first component of *any* random walk in many dimensions explains some 61 %, so that a high share alone shows
    no river. The null is drawn in the space of inner products, whose cost does not depend on the number of weights.
    Cost: inner products of all pairs; the null n³ per draw.

    Raises:
        ThalwegError: fewer than three checkpoints.
    """
    count = len(checkpoints)
    if count < 3:
        raise ThalwegError(f"{count} checkpoints have no principal direction. Keep at least 3, with a smaller tail.")
    gram = inner_products(from_first(checkpoints, step))
    share, along = _first(gram)
    steps = [gram[i + 1, i + 1] - 2 * gram[i, i + 1] + gram[i, i] for i in range(count - 1)]
    whole = float(np.sqrt(max(gram[-1, -1], 0.0)))
    null = np.array([_first(_walk(count, np.random.default_rng([seed, i])))[0] for i in range(draws)])
    total = float(np.sqrt(np.maximum(steps, 0)).sum())
    # the first component is Σ along_i (row_i - mean); its inner product with the last row, over both lengths
    middle = gram - gram.mean(0, keepdims=True)
    length = np.sqrt(max(along @ centred(gram) @ along, 1e-300))
    drift = abs(float(along @ middle[:, -1])) / (length * max(whole, 1e-300))
    mean = gram.mean(0)
    back = gram[-1, -1] - 2 * mean[-1] + gram.mean()
    average = float((gram[-1, -1] - mean[-1]) / max(whole * np.sqrt(max(back, 1e-300)), 1e-300))
    straight = whole / max(total, 1e-300)
    high = float(np.quantile(null, 0.95))
    return Tail(share, float(null.mean()), high, straight, drift, average, count, seed)


def from_first(checkpoints: Sequence[Mapping[str, Tensor]], step: Mapping[str, Tensor]) -> list[Point]:
    """The ways from the first checkpoint to every one, in steps."""
    rows = [space.div(c, step) for c in checkpoints]
    return [space.sub(r, rows[0]) for r in rows]


def inner_products(rows: Sequence[Mapping[str, Tensor]]) -> np.ndarray:
    """Inner products of all pairs."""
    return np.array([[space.dot(a, b) for b in rows] for a in rows])


def centred(gram: np.ndarray) -> np.ndarray:
    """Inner products after the mean of all rows is taken out."""
    middle = np.eye(len(gram)) - 1 / len(gram)
    return middle @ gram @ middle


def _first(gram: np.ndarray) -> tuple[float, np.ndarray]:
    """Share of the first principal component, and its coefficients over centred rows."""
    values, vectors = np.linalg.eigh(centred(gram))
    return float(values[-1] / max(values.clip(0).sum(), 1e-300)), vectors[:, -1]


def _walk(count: int, random: np.random.Generator, dimension: int = 10_000) -> np.ndarray:
    """Inner products of the places of a random walk: steps are Wishart, nearly orthogonal in many dimensions."""
    noise = random.normal(0, 1 / np.sqrt(dimension), (count - 1, count - 1))
    steps = np.eye(count - 1) + (noise + noise.T) / np.sqrt(2)
    sums = np.tril(np.ones((count, count - 1)), -1)
    return sums @ steps @ sums.T
