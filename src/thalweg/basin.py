"""The basin around the float weights, measured in grid steps.

Loss profile, radius, membership, wall. Everything here needs losses only, so it works with anything
that runs (cost tier 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import space
from .errors import ThalwegError
from .objective import Objective
from .space import Point

TOLERANCE = math.log(1.05)
"""Default tolerance τ in nats: 5 % perplexity."""
SMALLEST, LARGEST = 2.0**-12, 2.0**10


@dataclass(frozen=True)
class Radius:
    """Distance in rms steps at which the loss first leaves ``L(w) + τ``.

    ``steps`` is the median over directions, ``low`` and ``high`` are the quartiles. ``censored``: number of
    directions in which no edge was found below ``LARGEST`` steps.
    """

    steps: float
    low: float
    high: float
    directions: int
    censored: int
    tolerance_nats: float
    seed: int


def tolerance_for(objective: Objective, tolerance: float | None = None) -> float:
    """The tolerance in nats, checked against the noise floor (τ ≥ 3·noise)."""
    tau = TOLERANCE if tolerance is None else float(tolerance)
    if not tau > 0:
        raise ThalwegError(f"A tolerance of {tau} nats is not positive. The default is ln 1.05 = 0.0488.")
    if tau < 3 * objective.noise:
        raise ThalwegError(
            f"The tolerance of {tau:.4f} nats is below three times the noise floor of {objective.noise:.4f}. "
            "Freeze the data, or raise the tolerance."
        )
    return tau


def profile(
    objective: Objective, start: Mapping[str, Tensor], end: Mapping[str, Tensor], ts: list[float]
) -> np.ndarray:
    """Loss in nats at ``start + t (end - start)``. Cost: one forward per t."""
    return np.array([objective.loss(space.line(start, end, t)) for t in ts])


def surface(
    objective: Objective,
    origin: Mapping[str, Tensor],
    u: Mapping[str, Tensor],
    v: Mapping[str, Tensor],
    ss: list[float],
    ts: list[float],
) -> np.ndarray:
    """Loss at ``origin + s u + t v``, ``[len(ts), len(ss)]``, bit for bit that of ``space.plane``.

    Cost: one forward per point; the points themselves are written into one buffer, with no allocation.
    """
    for other in (u, v):
        space.same_names(origin, other)
    here, lift = space.each(torch.empty_like, origin), space.each(torch.empty_like, v)
    out = np.empty((len(ts), len(ss)))
    with torch.no_grad():
        for i, t in enumerate(ts):
            for name, raised in lift.items():
                torch.mul(v[name], t, out=raised)
            for j, s in enumerate(ss):
                for name, x in here.items():
                    torch.mul(u[name], s, out=x).add_(origin[name]).add_(lift[name])
                out[i, j] = objective.loss(here)
    return out


def first_exit(loss_at: Callable[[float], float], bound: float, start: float = 0.3, refine: int = 5) -> float:
    """Smallest t with ``loss_at(t) > bound``: doubling (or halving) from ``start``, then bisection in log t.

    Infinite where no exit lies below 1024 steps. A narrower bump between two doublings goes unseen.
    Error at most 1.1 % with 5 bisections. Cost: about 3 + ``refine`` evaluations.
    """
    low, high = 0.0, start
    while loss_at(high) <= bound:
        low, high = high, high * 2
        if high > LARGEST:
            return math.inf
    while low == 0.0 and high > SMALLEST:
        if loss_at(high / 2) <= bound:
            low = high / 2
        else:
            high /= 2
    if low == 0.0:
        return high
    for _ in range(refine):
        middle = math.sqrt(low * high)
        if loss_at(middle) <= bound:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def radius(
    objective: Objective,
    origin: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
    *,
    tolerance: float | None = None,
    directions: int = 8,
    seed: int = 0,
    base: float | None = None,
) -> Radius:
    """Typical radius: the distance to the edge in seeded, rounding-like random directions.

    Each direction is uniform noise scaled by every weight's own step, with rms one step: what plain
    rounding looks like on any grid. Cost: about 8 forwards per direction. Random directions see typical
    walls, not the worst one.
    """
    tau = tolerance_for(objective, tolerance)
    floor = objective.loss(origin) if base is None else base
    found = []
    for i in range(directions):
        noise = space.random_like(origin, seed * 1000 + i, "rounding")
        direction = space.mul(space.scale(noise, 1 / max(space.rms(noise), 1e-30)), step)
        found.append(_exit(objective, origin, direction, floor + tau))
    return _summary(found, tau, seed)


def worst_radius(
    objective: Objective,
    origin: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
    *,
    tolerance: float | None = None,
    ascents: int = 3,
    seed: int = 0,
    base: float | None = None,
    from_steps: float = 0.1,
) -> Radius:
    """Radius along a direction of steep ascent in the step metric (a few steps of ``d ← Δ∇L(w + tΔd)``).

    An upper bound of the true worst radius. Cost: ``ascents`` gradients and about 12 forwards.
    """
    tau = tolerance_for(objective, tolerance)
    floor = objective.loss(origin) if base is None else base
    x = space.random_like(origin, seed, "rounding")
    for _ in range(ascents):
        place = space.add(origin, space.mul(space.scale(x, 1 / max(space.rms(x), 1e-30)), step), from_steps)
        x = space.mul(objective.gradient(place)[1], step)
        if space.rms(x) == 0:
            break
    direction = space.mul(space.scale(x, 1 / max(space.rms(x), 1e-30)), step)
    t = _exit(objective, origin, direction, floor + tau)
    return _summary([t], tau, seed)


def _exit(objective: Objective, origin: Mapping[str, Tensor], direction: Mapping[str, Tensor], bound: float) -> float:
    return first_exit(lambda t: objective.loss(space.add(origin, direction, t)), bound)


def _summary(found: list[float], tau: float, seed: int) -> Radius:
    low, middle, high = (float(np.quantile(np.array(found), q, method="nearest")) for q in (0.25, 0.5, 0.75))
    if len(found) > 1 and all(map(math.isfinite, found)):
        low, middle, high = (float(np.quantile(np.array(found), q)) for q in (0.25, 0.5, 0.75))
    censored = sum(not math.isfinite(t) for t in found)
    return Radius(middle, low, high, len(found), censored, tau, seed)


@dataclass(frozen=True)
class Segment:
    """The straight way from the float weights to a point.

    ``ts`` are fractions of the way, ``losses`` the loss there. ``edge_steps``: where it first leaves the
    basin (infinite if never, looking up to four times the way). ``membership``: *inside*, *beyond*,
    *on the wall*, *plateau*. ``wall_slope``: dL/dt at the edge in nats per rms step. ``wall_exponent``:
    p in ``L - L(w) ∝ t^p`` from the edge to 1.5 edges (2 is a bowl, above 2 a floor with a wall).
    """

    ts: tuple[float, ...]
    losses: tuple[float, ...]
    reach_steps: float
    edge_steps: float
    membership: str
    wall_slope: float
    wall_exponent: float
    tolerance_nats: float


def segment(
    objective: Objective,
    origin: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
    *,
    tolerance: float | None = None,
    points: int = 9,
    rising: float = 0.25,
    base: float | None = None,
) -> Segment:
    """Walk from ``origin`` to ``end`` and say where the end lies.

    ``rising``: the end counts as *on the wall* if the loss over the last stretch climbs at more than this
    share of the mean slope of the way; otherwise it is a *plateau*. Cost: ``points - 1`` forwards, about 4 to
    find the edge, 3 for the wall.
    """
    tau = tolerance_for(objective, tolerance)
    floor = objective.loss(origin) if base is None else base
    reach = space.rms(space.sub(end, origin), step)
    known: dict[float, float] = {0.0: floor}

    def at(t: float) -> float:
        if t not in known:
            known[t] = objective.loss(space.line(origin, end, t))
        return known[t]

    ts = [i / (points - 1) for i in range(points)]
    losses = [at(t) for t in ts]
    out = [t for t, loss in zip(ts, losses, strict=True) if not loss <= floor + tau]
    if reach == 0:
        return Segment(tuple(ts), tuple(losses), 0.0, math.inf, "inside", 0.0, math.nan, tau)
    if out:
        edge = _refine(at, out[0] - ts[1], out[0], floor + tau)
    else:
        edge = next(
            (_refine(at, a, b, floor + tau) for a, b in ((1.0, 2.0), (2.0, 4.0)) if not at(b) <= floor + tau), math.inf
        )
    slope = exponent = math.nan
    if math.isfinite(edge):
        slope = (at(edge * 1.05) - at(edge * 0.95)) / (0.1 * edge * reach)
        further, here = at(edge * 1.5) - floor, at(edge) - floor
        if further > 0 and here > 0 and math.isfinite(further):
            exponent = math.log(further / here) / math.log(1.5)
    end_loss = losses[-1]
    if end_loss <= floor + tau:
        membership = "beyond" if out else "inside"
    else:
        mean = end_loss - floor
        last = (end_loss - losses[-2]) / (ts[-1] - ts[-2])
        membership = "on the wall" if not last <= rising * mean else "plateau"
    return Segment(
        tuple(ts), tuple(losses), reach, edge * reach if math.isfinite(edge) else math.inf,
        membership, slope, exponent, tau,
    )  # fmt: skip


def _refine(at: Callable[[float], float], low: float, high: float, bound: float, times: int = 4) -> float:
    for _ in range(times):
        middle = (low + high) / 2
        if at(middle) <= bound:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def axes_of_plane(
    origin: Mapping[str, Tensor], first: Mapping[str, Tensor], second: Mapping[str, Tensor], step: Mapping[str, Tensor]
) -> tuple[Point, Point]:
    """Two displacements, orthogonal and of rms one step in the step metric, that span three points.

    ``origin + s u + t v`` contains ``first`` at t=0, s=its reach.
    """
    a = space.div(space.sub(first, origin), step)
    b = space.div(space.sub(second, origin), step)
    u = space.scale(a, 1 / max(space.rms(a), 1e-30))
    v = space.add(b, u, -space.dot(b, u) / space.size(u))
    if space.rms(v) < 1e-9 * max(space.rms(b), 1e-30) or space.rms(v) == 0:
        v = space.random_like(origin, 0, "rounding")
        v = space.add(v, u, -space.dot(v, u) / space.size(u))
    v = space.scale(v, 1 / space.rms(v))
    return space.mul(u, step), space.mul(v, step)
