"""A river in two dimensions: a float point, a quantized point outside the basin, and the way back in."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from . import catalog, space
from .diagnosis import Thresholds, diagnose
from .errors import ThalwegError
from .files import write_bytes
from .landscape import Landscape
from .point import QuantizedPoint, quantize
from .train import Recipe, Trajectory, train


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
        Recipe(steps=400, optimizer="sgd", lr=lr, schedule="constant", check_every=1, tolerance_nats=truth.tolerance_nats),
        keep=lambda step, point: path.append(point),
        audit=lambda step, before, gradient, after: latent.append(after["w"]),
    )  # fmt: skip
    found = {m: diagnose(objective, p, thresholds) for m, p in points.items()}
    back = diagnose(objective, trajectory.recovered, thresholds)
    base = objective.loss({})
    depth = {m: float(valley.depth(p.weights["w"].double())) for m, p in (points | {"qat": trajectory.recovered}).items()}

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
    at = lambda p: "({:g}, {:g})".format(*p["weights"])  # noqa: E731
    start = objective.weights["w"].tolist()
    text = "\n".join(
        [
            f"A river at {math.degrees(theta):.0f}° with a basin of half-width {radius:.2f}; the grid is the integers (one step = 1).",
            f"  float     ({start[0]:.2f}, {start[1]:.2f})  lies {float(valley.depth(objective.weights['w'])):.2f} from the river, inside.",
            f"  rounding  {at(rounding)}  {rounding['distance_from_river']:.2f} from the river: {rounding['membership']}, "
            f"loss {rounding['rise_nats']:+.2f} nats.",
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
    write_bytes(out, _picture(valley, points, trajectory, path, latent))
    return Demo(
        text, str(out), (start[0], start[1]), rounding, second, recovered, trajectory.recovery_step, theta, radius,
        truth.tolerance_nats,
    )  # fmt: skip


def _picture(
    valley: Landscape,
    points: dict[str, QuantizedPoint],
    trajectory: Trajectory,
    path: list[QuantizedPoint],
    latent: list[torch.Tensor],
) -> bytes:
    """The landscape from above: loss as colour, the basin outlined, grid points, and both paths of QAT."""
    try:
        import io

        import matplotlib

        matplotlib.use("Agg")
        import numpy as np
        from matplotlib import pyplot as plt
        from matplotlib.colors import ListedColormap, PowerNorm
    except ImportError:
        raise ThalwegError("matplotlib is missing. Run `pip install thalweg[report]`.") from None
    x, y = np.linspace(-0.75, 2.1, 420), np.linspace(-0.75, 1.65, 360)
    xx, yy = np.meshgrid(x, y)
    every = torch.tensor(np.stack([xx, yy], -1))
    loss = valley.value(every).numpy()
    depth = valley.depth(every).numpy()
    figure, axes = plt.subplots(figsize=(8.4, 7.0), dpi=160)
    shades = ListedColormap(plt.get_cmap("YlGnBu_r")(np.linspace(0.28, 0.98, 256)))
    top = float(np.quantile(loss, 0.995))
    levels = np.concatenate([[float(loss.min()) - 1e-9], np.geomspace(0.02, top, 18)])
    axes.contourf(xx, yy, np.minimum(loss, top), levels=levels, cmap=shades.reversed(), norm=PowerNorm(0.5, 0, top))
    axes.contourf(xx, yy, depth, levels=[0, float(valley.truth.radius or 0)], colors=["#ffffff"], alpha=0.45)
    axes.contour(xx, yy, depth, levels=[float(valley.truth.radius or 0)], colors="#0f5132", linewidths=1.6)
    tangent = valley.truth.tangent
    assert tangent is not None
    t, w0 = tangent[:, 0].numpy(), valley.project(valley.start["w"]).numpy()
    axes.plot([w0[0] - 4 * t[0], w0[0] + 4 * t[0]], [w0[1] - 4 * t[1], w0[1] + 4 * t[1]], color="#1d4e89", lw=2.2)
    gx, gy = np.meshgrid(np.arange(-1, 3), np.arange(-1, 3))
    axes.plot(gx.ravel(), gy.ravel(), "o", ms=5, mfc="white", mec="#444444", mew=1.1)
    w = valley.start["w"].numpy()
    rounded, second = (points[m].weights["w"].numpy() for m in ("nearest", "gptq"))
    best = trajectory.recovered.weights["w"].numpy()
    walk = torch.stack(latent).numpy()
    axes.plot(walk[:, 0], walk[:, 1], "-", color="#7a1fa2", lw=2.0)
    hops = [p.weights["w"].tolist() for p in path]
    kept = np.array([h for i, h in enumerate(hops) if i == 0 or h != hops[i - 1]])
    for a, b in zip(kept[:-1], kept[1:], strict=True):
        style = {"arrowstyle": "-|>", "color": "#7a1fa2", "lw": 1.8, "ls": "--", "shrinkA": 8, "shrinkB": 8}
        axes.annotate("", xy=b, xytext=a, arrowprops={**style, "connectionstyle": "arc3,rad=-0.18"})
    axes.annotate("", xy=rounded, xytext=w, arrowprops={"arrowstyle": "-|>", "color": "#b3261e", "lw": 1.8, "shrinkA": 6, "shrinkB": 7})
    axes.plot(*w, "*", ms=17, color="#111111", mec="white", mew=0.9)
    axes.plot(*rounded, "X", ms=13, color="#b3261e", mec="white", mew=0.9)
    axes.plot(*best, "o", ms=13, color="#0f7b3f", mec="white", mew=0.9)
    box = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": "none", "alpha": 0.85}

    def label(place: Any, text: str, colour: str, dx: float, dy: float, ha: str = "left") -> None:
        axes.annotate(text, place, xytext=(dx, dy), textcoords="offset points", color=colour, fontsize=10.5, bbox=box, ha=ha)

    same = bool((second == rounded).all())
    label(w, "float weights", "#111111", -12, -24, "right")
    label(rounded, "rounding" + (" and second-order\nrounding" if same else "") + ": on the wall", "#b3261e", 12, 14)
    if not same:
        axes.plot(*second, "P", ms=13, color="#c77700", mec="white", mew=0.9)
        label(second, "second-order rounding", "#c77700", 12, 12)
    label(best, "QAT: back inside,\nsame grid", "#0f7b3f", 14, -30)
    label(walk[len(walk) // 2], "latent weights", "#7a1fa2", 12, -16)
    end = w0 + t * ((1.95 - w0[0]) / t[0])
    angle = math.degrees(math.atan2(t[1], t[0]))
    axes.text(end[0] - 0.25, end[1] - 0.08, "river", color="#1d4e89", rotation=angle, fontsize=12, ha="center", rotation_mode="anchor")
    edge = float(valley.truth.radius or 0.0) * valley.truth.normal[:, 0].numpy()  # type: ignore[index]
    place = w0 + t * ((1.45 - w0[0] - edge[0]) / t[0]) + edge
    axes.text(*(place + 0.035 * edge), "edge of the basin", color="#0f5132", rotation=angle, fontsize=11, rotation_mode="anchor")
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel="weight 1, grid steps", ylabel="weight 2, grid steps")
    axes.set_aspect("equal")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()
