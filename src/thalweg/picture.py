"""The demo's picture."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch

from .errors import ThalwegError
from .landscape import Landscape
from .point import QuantizedPoint
from .train import Trajectory


def picture(
    valley: Landscape,
    points: dict[str, QuantizedPoint],
    trajectory: Trajectory,
    path: list[QuantizedPoint],
    latent: list[torch.Tensor],
) -> bytes:
    """PNG of a two-dimensional landscape from above: loss as colour, basin, grid points, both paths of QAT.

    Raises:
        ThalwegError: matplotlib missing.
    """
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
    for a, b in pairwise(kept):
        style = {"arrowstyle": "-|>", "color": "#7a1fa2", "lw": 1.8, "ls": "--", "shrinkA": 8, "shrinkB": 8}
        axes.annotate("", xy=b, xytext=a, arrowprops={**style, "connectionstyle": "arc3,rad=-0.18"})
    axes.annotate(
        "",
        xy=tuple(rounded),
        xytext=tuple(w),
        arrowprops={"arrowstyle": "-|>", "color": "#b3261e", "lw": 1.8, "shrinkA": 6, "shrinkB": 7},
    )
    axes.plot(*w, "*", ms=17, color="#111111", mec="white", mew=0.9)
    axes.plot(*rounded, "X", ms=13, color="#b3261e", mec="white", mew=0.9)
    axes.plot(*best, "o", ms=13, color="#0f7b3f", mec="white", mew=0.9)
    box = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": "none", "alpha": 0.85}

    def label(place: Any, text: str, colour: str, dx: float, dy: float, ha: str = "left") -> None:
        axes.annotate(
            text, place, xytext=(dx, dy), textcoords="offset points", color=colour, fontsize=10.5, bbox=box, ha=ha
        )

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
    axes.text(
        end[0] - 0.25,
        end[1] - 0.08,
        "river",
        color="#1d4e89",
        rotation=angle,
        fontsize=12,
        ha="center",
        rotation_mode="anchor",
    )
    edge = float(valley.truth.radius or 0.0) * valley.truth.normal[:, 0].numpy()  # type: ignore[index]
    place = w0 + t * ((1.45 - w0[0] - edge[0]) / t[0]) + edge
    axes.text(
        place[0] + 0.035 * edge[0],
        place[1] + 0.035 * edge[1],
        "edge of the basin",
        color="#0f5132",
        rotation=angle,
        fontsize=11,
        rotation_mode="anchor",
    )
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel="weight 1, grid steps", ylabel="weight 2, grid steps")
    axes.set_aspect("equal")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()
