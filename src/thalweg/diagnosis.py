"""The verdict on a quantized point, with its evidence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from . import basin, curvature, river, space
from .basin import Radius, Segment
from .certificate import Certificate, certify
from .objective import Objective
from .point import QuantizedPoint
from .river import Pull, Split
from .task import Progress, silent
from .verdict import judge


@dataclass(frozen=True)
class Thresholds:
    """Every number that a verdict depends on; printed with it.

    ``tolerance_nats``: τ, the rise that still counts as low. ``rising``: slope of the last stretch, as a
    share of the mean slope, above which an endpoint is on the wall. ``saturated``: share of clipped weights
    above which scales are to blame. ``statistics``: share of the rise that re-estimated BatchNorm statistics must
    remove for them to be to blame. ``blind``: visibility below which the local objective is called blind.
    ``directions``: random directions of the typical radius. ``points``: on the segment. ``pairs``: normal
    directions.
    """

    tolerance_nats: float = basin.TOLERANCE
    rising: float = 0.25
    saturated: float = 0.25
    statistics: float = 0.9
    blind: float = 0.5
    directions: int = 8
    points: int = 9
    pairs: int = 4
    seed: int = 0


@dataclass(frozen=True)
class LayerRow:
    """One layer. ``alone_nats``: loss rise when only this layer is quantized (None: not measured)."""

    name: str
    weights: int
    grid: str
    bits_per_weight: float
    reach: float
    saturated: float
    alone_nats: float | None
    output_error: float | None = None


@dataclass(frozen=True)
class Search:
    """What a search for a nearby low-loss point spent, and what it found."""

    steps: int
    best_loss: float
    found: bool
    description: str = "QAT with the straight-through estimator"


@dataclass(frozen=True)
class Diagnosis:
    """Everything measured on one point. Losses in nats, lengths in rms steps.

    ``margin``: actual radius over reach, infinite where no edge was found within four times the reach.
    ``visibility``: χ with curvature at the float weights, ``visibility_rounded``: at the point; NaN for a low
    point, whose rise is too small to divide by.
    """

    verdict: str
    reasons: tuple[str, ...]
    advice: str
    float_loss: float
    loss: float
    stderr: float
    reach: float
    margin: float
    luck: float
    typical: Radius
    worst: Radius | None
    segment: Segment
    pull: Pull | None
    normal_split: Split | None
    normal_values: tuple[float, ...]
    visibility: float
    visibility_rounded: float
    saturated: float
    reestimated_loss: float | None
    layers: tuple[LayerRow, ...]
    certificate: Certificate | None
    search: Search | None
    thresholds: Thresholds
    planned: dict[str, int]
    spent: dict[str, int]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def rise(self) -> float:
        """Loss above the float model, in nats."""
        return self.loss - self.float_loss

    @property
    def low(self) -> bool:
        """True where the deployed loss is within the tolerance."""
        return self.loss <= self.float_loss + self.thresholds.tolerance_nats

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {"format": "thalweg diagnosis 1", **asdict(self)}


@dataclass(frozen=True)
class Surroundings:
    """What depends on the float weights and the grid only: shared by every point on that grid."""

    float_losses: Tensor
    typical: Radius
    worst: Radius | None
    latent_gradient: dict[str, Tensor] | None
    float_product: curvature.Product | None

    @property
    def float_loss(self) -> float:
        """Mean loss of the float weights."""
        return float(self.float_losses.mean())


def planned_cost(objective: Objective, layers: int, thresholds: Thresholds, depth: str = "full") -> dict[str, int]:
    """Upper bound of forwards, gradients and products of :func:`diagnose`, printed before it starts."""
    t = thresholds
    cost = {"forwards": 3 + 24 * t.directions + t.points + 12 + layers, "gradients": 0, "products": 0}
    cost["forwards"] += 1 if objective.has_norms else 0
    if depth != "losses":
        cost["forwards"] += 24
        cost["gradients"] = 6
        cost["products"] = 2 * t.pairs + 8 + 2
    return cost


def survey_surroundings(
    objective: Objective,
    reference: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
    thresholds: Thresholds | None = None,
    depth: str = "full",
    float_product: curvature.Product | None = None,
) -> Surroundings:
    """Typical and worst radius, latent gradient and curvature at the float weights.

    Cost: about 8 forwards per direction; unless depth is ``losses``, 12 forwards and 4 gradients more.
    """
    t = thresholds or Thresholds()
    losses = objective.losses({})
    base = float(losses.mean())
    typical = basin.radius(
        objective, reference, step, tolerance=t.tolerance_nats, directions=t.directions, seed=t.seed, base=base
    )
    if depth == "losses":
        return Surroundings(losses, typical, None, None, None)
    worst = basin.worst_radius(objective, reference, step, tolerance=t.tolerance_nats, seed=t.seed, base=base)
    gradient = objective.gradient(reference)[1]
    product = float_product or curvature.products(objective, reference)
    return Surroundings(losses, typical, worst, gradient, product)


def diagnose(
    objective: Objective,
    point: QuantizedPoint,
    thresholds: Thresholds | None = None,
    *,
    depth: str = "full",
    surroundings: Surroundings | None = None,
    nearby: QuantizedPoint | None = None,
    search: Search | None = None,
    progress: Progress = silent,
) -> Diagnosis:
    """Where a quantized point lies, why, and what to do about it.

    Args:
        objective: the same model and data that the point was made with.
        point: the quantized point.
        thresholds: tolerances and counts; defaults are printed with the verdict.
        depth: ``"losses"`` (cost tier 1: forwards only), ``"full"`` (gradients and products too), or
            ``"auto"``: layers, walls and pull only where the loss is not low.
        surroundings: of an earlier point on the same grid, to save their cost.
        nearby: a point on the same grid that a search found; makes the certificate.
        search: what that search spent; without it an outside point stays *outside*.
        progress: called with a text and counts.

    Returns: verdict *inside*, *outside* (no search yet), *bad point* (a certificate was found), *bad grid*
    (a stated budget found none), *not geometry* (a triage check explains it).

    Cost: see :func:`planned_cost`; typically 130 forwards, 6 gradients, 22 products.
    """
    t = thresholds or Thresholds()
    planned = planned_cost(objective, len(point.grids), t, depth)
    before = Counter(objective.cost)
    progress("radius", 0, 6)
    around = surroundings or survey_surroundings(objective, point.reference, point.step, t, depth)
    base = around.float_loss
    progress("segment", 1, 6)
    losses = objective.losses(point.deployed)
    loss = float(losses.mean())
    stderr = float((losses - around.float_losses).std() / math.sqrt(max(len(losses), 1))) if len(losses) > 1 else 0.0
    low = loss <= base + t.tolerance_nats
    deep = depth == "full" or (depth == "auto" and not low)
    way = basin.segment(
        objective, point.reference, point.weights, point.step,
        tolerance=t.tolerance_nats, points=t.points, rising=t.rising, base=base,
    )  # fmt: skip
    progress("layers", 2, 6)
    rows = _layers(objective, point, base, alone=deep or depth == "losses")
    saturated = sum(row.saturated * row.weights for row in rows) / max(sum(row.weights for row in rows), 1)
    renewed = None
    if not low and math.isfinite(loss) and objective.has_norms and objective.batchnorm == "frozen":
        renewed = objective.losses_with(point.deployed, objective.reestimated(point.deployed))
    pull: Pull | None = None
    parts: Split | None = None
    values: tuple[float, ...] = ()
    seen = seen_rounded = math.nan
    if deep and math.isfinite(loss):
        progress("walls", 3, 6)
        operator = curvature.products(objective, point.weights)
        normal = river.normal_space(objective, point.weights, point.step, count=t.pairs, seed=t.seed, product=operator)
        values = normal.values
        displacement = space.sub(point.weights, point.reference)
        parts = river.split(displacement, point.step, normal.basis)
        progress("pull", 4, 6)
        pull = river.inward_pull(
            objective, point.reference, point.weights, point.step,
            basis=normal.basis, base=base, seed=t.seed, latent_gradient=around.latent_gradient,
        )  # fmt: skip
        progress("visibility", 5, 6)
        if not low:
            if around.float_product is not None:
                seen = curvature.visibility(around.float_product, displacement, loss - base)
            seen_rounded = curvature.visibility(operator, displacement, loss - base)
    spent = Counter(objective.cost)
    spent.subtract(before)
    found = Diagnosis(
        verdict="outside", reasons=(), advice="", float_loss=base, loss=loss, stderr=stderr,
        reach=way.reach_steps, margin=_ratio(way.edge_steps, way.reach_steps),
        luck=_ratio(way.edge_steps, around.typical.steps), typical=around.typical, worst=around.worst,
        segment=way, pull=pull, normal_split=parts, normal_values=values, visibility=seen,
        visibility_rounded=seen_rounded, saturated=saturated, reestimated_loss=renewed, layers=rows,
        certificate=None, search=None, thresholds=t, planned=planned,
        spent={k: v for k, v in spent.items() if v}, provenance=dict(point.provenance),
    )  # fmt: skip
    progress("verdict", 6, 6)
    return conclude(objective, point, found, nearby, search)


def conclude(
    objective: Objective,
    point: QuantizedPoint,
    found: Diagnosis,
    nearby: QuantizedPoint | None = None,
    search: Search | None = None,
) -> Diagnosis:
    """The verdict that the measurements support, given what a search found nearby.

    Cost: with ``nearby`` one forward and one calibration forward, else none.
    """
    certificate = None if nearby is None else certify(objective, point, nearby, found.float_loss)
    verdict, reasons, advice = judge(replace(found, certificate=certificate, search=search))
    return replace(found, verdict=verdict, reasons=reasons, advice=advice, certificate=certificate, search=search)


def _ratio(a: float, b: float) -> float:
    if math.isinf(a):
        return math.nan if math.isinf(b) else math.inf
    return a / b if b > 0 else math.inf


def _layers(objective: Objective, point: QuantizedPoint, base: float, alone: bool) -> tuple[LayerRow, ...]:
    rows = []
    for name, grid in point.grids.items():
        weight, value = point.reference[name], point.weights[name]
        rows.append(
            LayerRow(
                name=name,
                weights=weight.numel(),
                grid=grid.name,
                bits_per_weight=grid.bits_per_weight,
                reach=space.rms({name: value - weight}, {name: point.step[name]}),
                saturated=float(grid.saturated(weight).double().mean()) if weight.numel() else 0.0,
                alone_nats=objective.loss({name: value}) - base if alone else None,
                output_error=point.notes.get(name, {}).get("output_error"),
            )
        )
    return tuple(rows)
