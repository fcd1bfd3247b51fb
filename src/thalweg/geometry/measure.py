"""The geometry of one cell: profiles, margins, walls, pull and visibility of a few points, for a stated price."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import basin, space
from ..errors import ThalwegError
from ..objective import Objective
from ..point import QuantizedPoint
from ..task import Progress, silent
from .pull import one_pull, pulls
from .shape import bootstrap_shape, fit_shape
from .sight import visibility

FINE, COARSE = 41, 13
PRICES = {"forwards": 1, "gradients": 3, "products": 6}
"""In forwards: a gradient is a forward and a backward of twice its price, a product two gradients."""


def measure(
    objective: Objective,
    points: Mapping[str, QuantizedPoint],
    *,
    tolerance: float = basin.TOLERANCE,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """What lies between the float model and its points; the first point gets the fine profile, the nulls and χ.

    Plain values: for each point ``reach``, ``rise``, ``profile`` (``t`` and ``rise``), ``edge`` and ``margin`` (first
    exit over reach, infinite where none was found within four reaches), ``exponent`` of one gradient, ``pull``; for
    the first also ``shape`` with its bootstrap over samples, and ``chi`` at the float point, half way and at the point.
    ``cost`` counts what was spent, ``forward_equivalents`` at the prices above.

    Cost for three points: 65 to 77 forwards, 9 gradients, 3 products: at most 125 forwards' worth.

    Raises:
        ThalwegError: no points.
    """
    if not points:
        raise ThalwegError("There is no point to measure. Name at least one.")
    before = Counter(objective.cost)
    first = next(iter(points))
    origin = points[first].reference
    base, at_origin = objective.gradient(origin)
    floor = objective.losses(origin)
    out: dict[str, Any] = {"float_loss": base, "tolerance_nats": tolerance, "points": {}}
    for i, (role, point) in enumerate(points.items()):
        progress("geometry", i, len(points))
        found = _way(objective, point, floor, tolerance, FINE if role == first else COARSE, seed)
        step = point.step
        if role == first:
            others = {name: p.weights for name, p in points.items() if name != first}
            here = objective.gradient(point.weights)
            found["pull"] = one_pull(objective, origin, point.weights, step, base, others, here) | pulls(
                objective, origin, point.weights, step, base=base, latent_gradient=at_origin, here=here, seed=seed
            )
            if found["rise"] > tolerance and math.isfinite(found["rise"]):
                out["chi"] = visibility(objective, origin, point.weights, found["rise"])
        else:
            found["pull"] = one_pull(objective, origin, point.weights, step, base)
        found["exponent"] = found["pull"]["exponent"]
        out["points"][role] = found
    spent = Counter(objective.cost)
    spent.subtract(before)
    price = sum(PRICES.get(kind, 1) * count for kind, count in spent.items())
    if "chi" in out:
        price += PRICES["gradients"] * 3  # graphs of the products
    out["cost"] = {**{k: v for k, v in spent.items() if v}, "forward_equivalents": price}
    return out


def _way(
    objective: Objective, point: QuantizedPoint, floor: Tensor, tolerance: float, count: int, seed: int
) -> dict[str, Any]:
    """The straight way from the float weights to a point and, where it never leaves, beyond."""
    origin, end, reach = point.reference, point.weights, point.reach
    ts = [i / (count - 1) for i in range(count)]
    losses = [floor, *(objective.losses(space.line(origin, end, t)) for t in ts[1:])]
    rises = [float(x.mean() - floor.mean()) for x in losses]
    edge = _exit(ts, rises, tolerance)
    far, last = [1.0], [rises[-1]]
    while math.isinf(edge) and far[-1] < 4:
        far.append(far[-1] + (0.5 if far[-1] < 2 else 1.0))
        last.append(float(objective.losses(space.line(origin, end, far[-1])).mean() - floor.mean()))
        edge = _exit(far, last, tolerance)
    out: dict[str, Any] = {
        "reach": reach, "rise": rises[-1], "profile": {"t": ts, "rise": rises}, "edge": edge * reach, "margin": edge,
    }  # fmt: skip
    if count == FINE and reach > 0:
        table = torch.stack(losses).cpu().numpy()
        distances = [t * reach for t in ts]
        try:
            out["shape"] = asdict(fit_shape(distances, rises))
            out["shape"]["spread"] = asdict(bootstrap_shape(distances, np.asarray(table), seed=seed))
        except ThalwegError as error:
            out["shape"] = {"note": str(error)}
    return out


def _exit(ts: list[float], rises: list[float], tolerance: float) -> float:
    """First t above the tolerance, interpolated; infinite where there is none."""
    for i in range(1, len(ts)):
        if not rises[i] <= tolerance:
            low, high = rises[i - 1], rises[i]
            share = (tolerance - low) / (high - low) if math.isfinite(high) and high > low else 0.5
            return ts[i - 1] + min(max(share, 0.0), 1.0) * (ts[i] - ts[i - 1])
    return math.inf


def slice2d(
    objective: Objective,
    origin: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
    *,
    seed: int = 0,
    normal: Mapping[str, Tensor] | None = None,
    height: float | None = None,
    points: int = 11,
) -> dict[str, Any]:
    """A loss plane through the float weights and a point, against a random orthogonal direction (or ``normal``, in
    steps). ``s`` from -.25 to 1.25 in units of the distance between them (``length``, rms steps), ``t`` from -.75 to
    .75 in units of ``height`` rms steps (the same length unless given).

    Cost: ``points²`` forwards.
    """
    away = space.div(space.sub(end, origin), step)
    other = dict(normal) if normal is not None else space.random_like(origin, seed, "rounding")
    u, v = basin.axes_of_plane(origin, end, space.add(origin, space.mul(other, step)), step)
    length = space.rms(away)
    height = length if height is None else height
    s = [-0.25 + 1.5 * i / (points - 1) for i in range(points)]
    t = [-0.75 + 1.5 * i / (points - 1) for i in range(points)]
    far = [x * length for x in s], [x * height for x in t]
    loss = basin.surface(objective, dict(origin), u, v, *far)
    return {"s": s, "t": t, "length": length, "height": height, "loss": loss.tolist(), "seed": seed}
