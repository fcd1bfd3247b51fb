"""A river in two dimensions: a float point, a quantized point outside the basin, and the way back in."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from . import catalog, space
from .diagnosis import Thresholds, diagnose
from .files import write_bytes
from .landscape import Landscape
from .picture import picture
from .point import QuantizedPoint, quantize
from .train import Recipe, train


@dataclass(frozen=True)
class Demo:
    """What the demo found, in words and numbers. Losses in nats above the float point."""

    text: str
    picture: str
    float_weights: tuple[float, float]
    rounding: dict[str, Any]
    second_order: dict[str, Any]
    recovered: dict[str, Any]
    recovery_step: int | None
    theta: float
    radius: float
    tolerance_nats: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def demo(out: str | Path, theta: float = 0.5, lr: float = 0.003) -> Demo:
    """Quantize a point beside a straight river on the integer grid, watch it leave, bring it back, draw it.

    The landscape is ``f = φ(t) + ψ(|z|)`` with a flat floor (half-width 0.77) and a hinge wall; it runs through
    the same objective, methods, measurements and training loop as networks do. Cost: about a second.

    Raises:
        ThalwegError: matplotlib missing, or ``out`` not writable.
    """
    valley: Landscape = catalog.get("landscapes", "straight")(
        theta, "hinge", 0.9, floor=0.85, along=-0.2, height=0.72, pull=0.3
    )
    objective = valley.objective()
    grids = valley.grids()
    truth = valley.truth
    assert truth.normal is not None
    thresholds = Thresholds(tolerance_nats=truth.tolerance_nats, directions=8, pairs=1)
    points = {m: quantize(objective, "w4t", m, grids=grids) for m in ("nearest", "gptq")}
    path: list[QuantizedPoint] = []
    latent: list[torch.Tensor] = [objective.weights["w"].clone()]
    trajectory = train(
        objective, points["nearest"], None,
        Recipe(400, "sgd", lr, schedule="constant", check_every=1, tolerance_nats=truth.tolerance_nats),
        keep=lambda step, point: path.append(point),
        audit=lambda step, before, gradient, after: latent.append(after["w"]),
    )  # fmt: skip
    found = {m: diagnose(objective, p, thresholds) for m, p in points.items()}
    back = diagnose(objective, trajectory.recovered, thresholds)
    base = objective.loss({})
    depth = {
        m: float(valley.depth(p.weights["w"].double())) for m, p in (points | {"qat": trajectory.recovered}).items()
    }

    def inward(w: torch.Tensor) -> float:
        """How fast the loss falls towards the river, in nats per step of distance."""
        normal = w.double() - valley.project(w.double())
        return float(valley.gradient(w.double()) @ normal / normal.norm().clamp(min=1e-12))

    def facts(name: str, point: QuantizedPoint, d: Any) -> dict[str, Any]:
        return {
            "weights": point.weights["w"].tolist(), "rise_nats": d.loss - base, "distance_from_river": depth[name],
            "membership": d.segment.membership, "margin": d.margin if math.isfinite(d.margin) else None,
            "inward_slope": inward(point.weights["w"]),
        }  # fmt: skip

    rounding = facts("nearest", points["nearest"], found["nearest"])
    second = facts("gptq", points["gptq"], found["gptq"])
    recovered = facts("qat", trajectory.recovered, back)
    radius = float(truth.radius or 0.0)
    same = space.fingerprint(points["gptq"].codes) == space.fingerprint(points["nearest"].codes)
    at = lambda p: "({:g}, {:g})".format(*p["weights"])
    start_depth = float(valley.depth(objective.weights["w"]))
    start = objective.weights["w"].tolist()
    text = "\n".join(
        [
            f"A river at {math.degrees(theta):.0f}° with a basin of half-width {radius:.2f}; "
            "the grid is the integers (one step = 1).",
            f"  float     ({start[0]:.2f}, {start[1]:.2f})  lies {start_depth:.2f} from the river, inside.",
            f"  rounding  {at(rounding)}  {rounding['distance_from_river']:.2f} from the river: "
            f"{rounding['membership']}, loss {rounding['rise_nats']:+.2f} nats.",
            f"  second-order rounding  {at(second)}  "
            + (
                "the same point: "
                if same
                else f"{second['distance_from_river']:.2f} from the river, loss {second['rise_nats']:+.2f} nats: "
            )
            + "its Hessian is taken on the flat floor and does not see the wall.",
            f"  the gradient's inward part is {inward(objective.weights['w']):.2f} at the float weights and "
            f"{rounding['inward_slope']:.2f} nats per step at the rounded point.",
            (
                f"  QAT       {at(recovered)}  {recovered['distance_from_river']:.2f} from the river, loss "
                f"{recovered['rise_nats']:+.2f} nats: back inside at step {trajectory.recovery_step}, on the same grid."
                if trajectory.recovery_step is not None
                else f"  QAT did not come back within {trajectory.steps} steps."
            ),
        ]
    )
    write_bytes(out, picture(valley, points, trajectory, path, latent))
    return Demo(
        text, str(out), (start[0], start[1]), rounding, second, recovered, trajectory.recovery_step, theta, radius,
        truth.tolerance_nats,
    )  # fmt: skip
