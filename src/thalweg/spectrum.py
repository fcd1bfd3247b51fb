"""Trace and spectral density of a symmetric operator from random probes, with their standard errors.

Both take any product: of the raw weights, or in grid steps (``curvature.in_steps``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import space
from .curvature import Product, lanczos
from .errors import ThalwegError

LEAST_PROBES = 16
"""Probes before a standard error is trusted as a stop rule: with fewer it is too often too small."""


@dataclass(frozen=True)
class Trace:
    """``tr A`` with the standard error over probes, in the operator's unit (nats in the step metric).

    ``products`` spent; ``forecast_nats``: ``trace / 24``, in the step metric the mean loss increase that a
    quadratic predicts for plain rounding (errors uniform in a step have variance 1/12).
    """

    trace: float
    stderr: float
    probes: int
    seed: int
    products: int = 0

    @property
    def forecast_nats(self) -> float:
        """Loss increase of plain rounding in the quadratic model (step metric only)."""
        return self.trace / 24


def trace(
    product: Product,
    like: Mapping[str, Tensor],
    probes: int = 8,
    seed: int = 0,
    *,
    tolerance: float | None = None,
    sketch: int = 0,
    limit: int = 512,
) -> Trace:
    """Hutchinson's estimate: the mean of ``zᵀ A z`` over random signs ``z``; unbiased.

    With ``sketch = k > 0`` Hutch++: ``A`` is traced exactly on the range Q of ``A S`` (S: k random signs) and
    estimated on its complement, ``tr QᵀAQ + mean zᵀ(I-QQᵀ) A (I-QQᵀ)z``: less variance where few large eigenvalues
    dominate. With a ``tolerance``: probes are added until the standard error, not the change of the mean, is below
    ``tolerance * |trace|``, from 16 to ``limit`` probes. A stopped estimate may have missed it: read ``stderr``.

    Cost: ``probes + 2 * sketch`` products. The standard error is that of the probes given the sketch; it is infinite
    for one probe. Source: Hutchinson 1990; Meyer et al., arXiv:2010.09649, algorithm 1.
    """
    if probes < 1 or sketch < 0:
        raise ThalwegError(f"A trace of {probes} probes and a sketch of {sketch} is empty. Use at least 1 and 0.")
    q, exact = _sketch(product, like, min(sketch, space.size(like)), seed)
    values: list[float] = []
    most = probes if tolerance is None else max(probes, limit)
    least = probes if tolerance is None else max(probes, LEAST_PROBES)
    while len(values) < most:
        z = space.random_like(like, seed + len(values), "sign")
        if q is not None:
            flat = space.flatten(z).to(q.dtype)
            z = space.unflatten(flat - q @ (q.T @ flat), like)
        values.append(space.dot(z, product(z)))
        if tolerance is not None and len(values) >= least:
            mean, spread = _mean(values)
            if spread <= tolerance * abs(exact + mean):
                break
    mean, spread = _mean(values)
    return Trace(exact + mean, spread, len(values), seed, len(values) + (0 if q is None else 2 * min(sketch, len(q))))


def _sketch(product: Product, like: Mapping[str, Tensor], count: int, seed: int) -> tuple[Tensor | None, float]:
    """Orthonormal range of ``A S`` and the exact trace of ``A`` on it."""
    if count == 0:
        return None, 0.0
    signs = (space.random_like(like, 104729 * (seed + 1) + i, "sign") for i in range(count))
    q, _ = torch.linalg.qr(torch.stack([space.flatten(product(s)) for s in signs], dim=1).double())
    columns = [space.unflatten(q[:, i], like) for i in range(count)]
    return q, sum(space.dot(c, product(c)) for c in columns)


def _mean(values: list[float]) -> tuple[float, float]:
    data = torch.tensor(values, dtype=torch.float64)
    return float(data.mean()), float(data.std() / len(values) ** 0.5) if len(values) > 1 else math.inf


def step_trace(product_in_steps: Product, like: Mapping[str, Tensor], probes: int = 8, seed: int = 0) -> Trace:
    """The trace in the step metric, ``tr(Δ B Δ)`` in nats, from a fixed number of probes."""
    return trace(product_in_steps, like, probes, seed)


@dataclass(frozen=True)
class Density:
    """Spectral density: the share of eigenvalues per unit of λ, blurred by a Gaussian of standard deviation ``width``.

    ``grid``, ``density``, ``stderr``: λ, mean over probes, its standard error (infinite for one probe). ``moments``:
    mean of λ, λ², λ³, λ⁴ over all ``dimension`` eigenvalues (times ``dimension``: tr A, tr A², ...), unblurred, with
    ``moments_stderr``.
    """

    grid: tuple[float, ...]
    density: tuple[float, ...]
    stderr: tuple[float, ...]
    moments: tuple[float, ...]
    moments_stderr: tuple[float, ...]
    width: float
    dimension: int
    probes: int
    iterations: int
    seed: int


def density(
    product: Product,
    like: Mapping[str, Tensor],
    probes: int = 8,
    iterations: int = 48,
    seed: int = 0,
    *,
    points: int = 201,
    width: float | None = None,
) -> Density:
    """Spectral density by stochastic Lanczos quadrature: mean over Gaussian probes of ``Σ τ² N(λ; θ, width²)``.

    θ and τ are the nodes and weights of Gauss quadrature for the probe, exact for polynomials of degree
    ``2 * iterations - 1``. ``width`` defaults to the spectrum's range over ``iterations``: a kernel that the
    quadrature integrates to about 3e-4 of its peak, so that the standard error, which covers the probes only, is
    the whole error. A smaller width shows single nodes, not eigenvalues. One outlier of n eigenvalues has mass 1/n:
    look for it with ``curvature.top_pairs``.

    Cost: ``probes * iterations`` products and ``iterations`` vectors of memory. Source: Ubaru, Chen, Saad 2017
    (SIAM J. Matrix Anal. 38(4)); Ghorbani et al., arXiv:1901.10159, algorithm 2.
    """
    if probes < 1 or iterations < 1 or points < 2:
        raise ThalwegError(
            f"A density of {probes} probes, {iterations} iterations and {points} points is empty. Use 1, 1, 2 or more."
        )
    dimension = space.size(like)
    rules = []
    for i in range(probes):
        start = space.flatten(space.random_like(like, seed * 1009 + i, "normal"))
        nodes, vectors = lanczos(product, like, start, min(iterations, dimension)).ritz()
        rules.append((nodes, vectors[0].square()))
    low, high = min(float(n[0]) for n, _ in rules), max(float(n[-1]) for n, _ in rules)
    if width is None:
        width = max(high - low, 1e-6 * max(abs(high), abs(low)), 1e-30) / iterations
    grid = torch.linspace(low - 4 * width, high + 4 * width, points, dtype=torch.float64)
    bell = lambda nodes: torch.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    curves = torch.stack([bell(nodes) @ weights for nodes, weights in rules])
    powers = torch.stack([torch.stack([(w * n**k).sum() for k in (1, 2, 3, 4)]) for n, w in rules])
    spread = lambda x: x.std(0) / probes**0.5 if probes > 1 else torch.full_like(x[0], math.inf)
    return Density(
        tuple(grid.tolist()), tuple(curves.mean(0).tolist()), tuple(spread(curves).tolist()),
        tuple(powers.mean(0).tolist()), tuple(spread(powers).tolist()), width, dimension, probes, iterations, seed,
    )  # fmt: skip
