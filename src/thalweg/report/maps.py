"""Pictures seen from above: the measured plane of a recovered row, and the labelled cross-section of the
words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .facts import LABELS, recovered, start_of
from .style import COLOURS, INK, PAPER, look

BOX = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.82, "pad": 1.6}


def plane(figure: Any, row: dict[str, Any]) -> None:
    """Loss rise in the plane through the float weights, the start of QAT and what it reached; both axes in
    rms steps, colour logarithmic from a quarter of the tolerance to a hundred tolerances (or the highest
    value)."""
    data, start, end = row["plane"], start_of(row), recovered(row)
    assert end is not None
    tolerance, base = start.tolerance, start.diagnosis.get("float_loss") or 0.0
    loss = np.array([[math.inf if v is None else v for v in line] for line in data["loss"]], dtype=float)
    finite = loss[np.isfinite(loss)]
    top = max(min(float(finite.max()) - base if finite.size else 1.0, 100 * tolerance), 4 * tolerance)
    rise = np.log10(np.clip(loss - base, tolerance / 8, 2 * top))
    s, t, rise = _finer(np.array(data["s"]), np.array(data["t"]), rise)
    axes = figure.subplots()
    levels = np.linspace(math.log10(tolerance / 4), math.log10(top), 15)
    filled = axes.contourf(s, t, rise, levels=levels, cmap="cividis", extend="both")
    filled.set_edgecolor("face")  # no hairlines between the bands
    axes.contour(s, t, rise, levels=[math.log10(tolerance)], colors=["white"], linewidths=2.2,
                 linestyles="solid")  # fmt: skip
    bar = figure.colorbar(filled, ax=axes, shrink=0.9, pad=0.02)
    ticks = [v for v in (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30) if tolerance / 4 <= v <= top]
    bar.set_ticks([math.log10(v) for v in ticks], labels=[f"{v:g}" for v in ticks])
    bar.ax.axhline(math.log10(tolerance), color="white", linewidth=2.2)
    bar.set_label("loss above the float weights, nats (white: tolerance)")
    bar.outline.set_visible(False)
    path = np.array(data.get("path") or [[0.0, 0.0]])
    axes.plot(path[:, 0], path[:, 1], color="white", linewidth=2.6, zorder=3)
    axes.plot(path[:, 0], path[:, 1], color=INK_ON_MAP, linewidth=1.2, marker=".", markersize=4, zorder=4)
    marks = {k: v for k, v in data["marks"].items() if v}
    centre = np.mean(list(marks.values()), axis=0)
    for key, place in marks.items():
        colour, marker = look(key)
        axes.plot(*place, marker=marker, markersize=15 if key == "float" else 10, color=colour,
                  markeredgecolor="white", markeredgewidth=1.3, zorder=5)  # fmt: skip
        across = (place[0] - s[0]) / (s[-1] - s[0])
        right = across < 0.25 or (across < 0.72 and place[0] >= centre[0])
        side, up = (1 if right else -1), (1 if place[1] >= centre[1] else -1)
        axes.annotate(LABELS.get(key, key), place, (9 * side, 11 * up), textcoords="offset points",
        fontsize=9.5,
                      ha="left" if side > 0 else "right", va="bottom" if up > 0 else "top", bbox=BOX,
                      zorder=6)  # fmt: skip
    axes.set_aspect("equal")
    axes.set_xlabel(f"toward {start.label}, rms steps")
    axes.set_ylabel("across, rms steps")


INK_ON_MAP = "#10141c"
"""Ink on a coloured map, which is the same in both themes."""


def _finer(
    s: np.ndarray, t: np.ndarray, values: np.ndarray, times: int = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bilinear interpolation between the measured points, so that bands have no corners."""
    fine_s = np.linspace(s[0], s[-1], times * (len(s) - 1) + 1)
    fine_t = np.linspace(t[0], t[-1], times * (len(t) - 1) + 1)
    rows = np.array([np.interp(fine_s, s, line) for line in values])
    return fine_s, fine_t, np.array([np.interp(fine_t, t, column) for column in rows.T]).T


def cross_section(figure: Any) -> None:
    """The words in one drawing: left the valley from above with the quantization grid, right the cut
    through it along the straight way from the float weights to the rounded point. A drawing, not a
    measurement."""
    above, cut = figure.subplots(1, 2, width_ratios=(1.05, 1))
    _from_above(above)
    _cut(cut)


FLOAT, ROUNDED, RECOVERED = np.array([1.42, 1.40]), np.array([1.0, 1.0]), np.array([2.0, 1.0])
ALONG = np.array([0.82, -0.57]) / math.hypot(0.82, 0.57)
HALF = 0.30
"""Drawing coordinates in grid steps: the float point, two grid points, the river's direction, half its
width."""


def _from_above(axes: Any) -> None:
    across = np.array([-ALONG[1], ALONG[0]])
    x, y = np.meshgrid(np.linspace(-0.35, 3.35, 75), np.linspace(-0.15, 2.75, 59))
    away = np.abs((x - FLOAT[0]) * across[0] + (y - FLOAT[1]) * across[1])
    height = np.clip(away / HALF, 0, 4) ** 1.5
    axes.contourf(x, y, height, levels=14, cmap="cividis").set_edgecolor("face")
    axes.contour(x, y, away, levels=[HALF], colors=["white"], linewidths=2)
    grid_x, grid_y = np.meshgrid(range(4), range(3))
    axes.plot(
        grid_x.ravel(),
        grid_y.ravel(),
        linestyle="none",
        marker="+",
        color="white",
        markersize=9,
        markeredgewidth=1.4,
    )
    far = [FLOAT + ALONG * k for k in (-1.9, 2.25)]
    axes.plot(*zip(*far, strict=True), color="white", linestyle=":", linewidth=1.2)
    _arrow(axes, FLOAT, ROUNDED, COLOURS["nearest"])
    bend = [ROUNDED, (1.16, 1.09), (1.36, 1.13), (1.58, 1.12), (1.8, 1.07), RECOVERED]
    axes.plot(*zip(*bend, strict=True), color="white", linewidth=3.2)
    axes.plot(*zip(*bend, strict=True), color=INK_ON_MAP, linewidth=1.4, marker=".", markersize=4)
    for key, place in (("float", FLOAT), ("nearest", ROUNDED), ("recovered", RECOVERED)):
        colour, marker = look(key)
        axes.plot(*place, marker=marker, markersize=17 if key == "float" else 11, color=colour,
                  markeredgecolor="white", markeredgewidth=1.3, zorder=5)  # fmt: skip
    _say(axes, "float weights", np.add(FLOAT, (0.13, 0.12)), "left", "bottom")
    _say(
        axes,
        "rounded: nearest grid\npoint, outside the basin",
        np.add(ROUNDED, (-0.02, -0.14)),
        "center",
        "top",
    )
    _say(axes, "recovered by QAT:\nfarther, but inside", np.add(RECOVERED, (0.14, 0.1)), "left", "bottom")
    _say(axes, "the river", FLOAT + ALONG * -1.45, "center", "center")
    _say(axes, "wall", (2.75, 2.35), "center", "center")
    _say(axes, "wall", (0.15, 0.3), "center", "center")
    _say(axes, "basin", (2.55, 0.62), "center", "center")
    _say(axes, "white: loss at the tolerance", (1.35, 2.42), "center", "center")
    axes.set_aspect("equal")
    axes.set_xticks(range(4))
    axes.set_yticks(range(3))
    axes.set_xlabel("one weight, grid steps (+: grid points)")
    axes.set_ylabel("another weight, grid steps")


def _cut(axes: Any) -> None:
    x = np.linspace(-0.62, 0.78, 300)
    edge, reach, tolerance = 0.34, 0.58, 1.0
    axes.plot(x, (np.abs(x) / edge) ** 3, color=INK, linewidth=1.8)
    axes.axhspan(-0.6, tolerance, color=COLOURS["recovered"], alpha=0.10, linewidth=0)
    axes.axhline(tolerance, color=INK, linewidth=0.9, linestyle=(0, (5, 3)))
    axes.plot([0], [0], marker="*", markersize=17, color=COLOURS["float"], zorder=5)
    high = (reach / edge) ** 3
    axes.plot([reach], [high], marker="s", markersize=10, color=COLOURS["nearest"], zorder=5)
    axes.plot([edge], [tolerance], marker="|", markersize=16, markeredgewidth=2.2, color=COLOURS["nearest"])
    axes.plot([reach, reach], [-1.75, high], color=INK, linewidth=0.7, linestyle=":")
    axes.plot([edge, edge], [-1.0, tolerance], color=INK, linewidth=0.7, linestyle=":")
    for y, end, name in ((-0.95, edge, "radius"), (-1.75, reach, "reach")):
        axes.annotate("", (end, y), (0, y), arrowprops={"arrowstyle": "<->", "color": INK, "shrinkA": 0, "shrinkB": 0})
        axes.annotate(name, (end / 2, y), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=10)
    axes.annotate("margin = radius ÷ reach;\nbelow 1: outside", (0.05, -2.55), fontsize=9, ha="left", va="center")
    axes.annotate("float weights", (0, 0), (0, 9), textcoords="offset points", ha="center", va="bottom", fontsize=9.5)
    axes.annotate(
        "rounded point",
        (reach, high),
        (-9, 2),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=9.5,
    )
    axes.annotate("edge", (edge, tolerance), (6, -3), textcoords="offset points", ha="left", va="top", fontsize=9.5)
    axes.annotate("wall", (0.50, 3.2), (-6, 0), textcoords="offset points", ha="right", va="center", fontsize=9.5)
    axes.annotate("wall", (-0.5, 3.2), (8, 0), textcoords="offset points", ha="left", va="center", fontsize=9.5)
    axes.annotate(
        "tolerance", (-0.6, tolerance), (0, 3), textcoords="offset points", ha="left", va="bottom", fontsize=9
    )
    axes.set_xlim(-0.62, 0.78)
    axes.set_ylim(-3.1, 6.4)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_ylabel("loss")
    axes.set_xlabel("along the straight way to the rounded point")


def _arrow(axes: Any, start: Any, end: Any, colour: str) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2, "shrinkB": 5})


def _say(axes: Any, text: str, place: Any, across: str, up: str) -> None:
    axes.annotate(text, tuple(place), ha=across, va=up, fontsize=9, bbox=BOX, zorder=6)
