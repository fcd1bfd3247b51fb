"""The loss axis that figures share, straight ways out of the basin, and QAT over time.

Every loss is drawn as its rise above the float weights on one axis: linear up to the tolerance, logarithmic
above. Functions draw into a given matplotlib figure and return nothing.
"""

from __future__ import annotations

import math
from typing import Any

from .facts import Spot, number, recovered, start_of
from .style import COLOURS, GREY, INK, PAPER, look

TICKS = (-10, -3, -1, -0.3, -0.1, -0.03, 0, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 1000)


def rise_axis(axes: Any, rises: list[float], tolerance: float, label: bool = True, unit: str = "nats") -> None:
    """A vertical axis of loss rises, with the tolerance line and the band below it."""
    low = min([*rises, 0.0])
    bottom = -0.4 * tolerance if low >= -0.3 * tolerance else low * 1.4
    top = max([*rises, 3 * tolerance]) * 1.7
    axes.set_yscale("symlog", linthresh=tolerance, linscale=0.6)
    axes.set_ylim(bottom, top)
    ticks = [t for t in TICKS if bottom <= t <= top and (t == 0 or abs(t) >= 0.6 * tolerance)]
    axes.set_yticks(ticks, [f"{t:g}".replace("-", "−") for t in ticks])
    axes.yaxis.set_minor_locator(nothing())
    axes.axhspan(bottom, tolerance, color=COLOURS["recovered"], alpha=0.10, linewidth=0)
    axes.axhline(tolerance, color=INK, linewidth=0.9, linestyle=(0, (5, 3)))
    if label:
        axes.set_ylabel(f"loss above the float weights, {unit}")


def plain_log(axis: Any) -> None:
    """Ticks 1, 2, 5, 10, ... written as such; powers of ten where the range is wide."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    narrow = low > 0 and math.log10(high / low) < 2
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def tolerance_label(axes: Any, tolerance: float, x: float = 0.01, align: str = "left") -> None:
    """The name of the dashed line, just above it. ``x``: share of the width."""
    axes.annotate(
        f"tolerance {tolerance:.3f}", (x, tolerance), xycoords=("axes fraction", "data"), xytext=(0, 2),
        textcoords="offset points", fontsize=8.5, ha=align, va="bottom",
    )  # fmt: skip


def walk(spot: Spot) -> tuple[list[float], list[float]]:
    """Distances in rms steps and loss rises along the straight way."""
    way, base = spot.segment, spot.diagnosis.get("float_loss")
    pairs = [
        (t * (spot.reach or 0.0), loss - base)
        for t, loss in zip(way.get("ts") or [], way.get("losses") or [], strict=False)
        if loss is not None and base is not None
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]


def way(figure: Any, row: dict[str, Any]) -> None:
    """Loss along the straight ways from the float weights to the start of QAT and to what it reached."""
    axes = figure.subplots()
    start, end = start_of(row), recovered(row)
    assert end is not None
    walks = [(s, *walk(s)) for s in (start, end)]
    edges = [s.segment.get("edge_steps") for s in (start, end)]
    right = (
        max([x for _, xs, _ in walks for x in xs] + [e for e in edges if e is not None] + [start.radius or 0.0]) * 1.32
    )
    rise_axis(axes, [y for _, _, ys in walks for y in ys] or [1.0], start.tolerance)
    tolerance_label(axes, start.tolerance, 0.995, "right")
    _radius_band(axes, start)
    for spot, xs, ys in walks:
        colour, marker = look(spot.key)
        edge = spot.segment.get("edge_steps")
        axes.plot(xs, ys, color=colour, linewidth=1.8)
        if edge is not None:
            if xs and edge > xs[-1]:
                axes.plot([xs[-1], edge], [ys[-1], spot.tolerance], color=colour, linewidth=1, linestyle=":")
            axes.plot([edge], [spot.tolerance], marker="|", markersize=15, markeredgewidth=2, color=colour)
        if xs:
            axes.plot(
                [xs[-1]],
                [ys[-1]],
                marker=marker,
                markersize=8,
                color=colour,
                markeredgecolor=INK,
                markeredgewidth=0.6,
            )
            up = spot.low and not start.low
            axes.annotate(
                f"{row['scheme']}, {spot.label}", (xs[-1], ys[-1]), (0 if up else -9, -9 if up else 2),
                textcoords="offset points", ha="center" if up else "right", va="top" if up else "center",
                fontsize=9.5,
            )  # fmt: skip
    axes.plot([0], [0], marker="*", markersize=13, color=COLOURS["float"], clip_on=False, zorder=5)
    axes.annotate("float", (0, 0), (9, -3), textcoords="offset points", va="top", fontsize=9.5)
    axes.set_xlim(0, right)
    axes.set_xlabel("distance from the float weights, rms steps (upright ticks: edges)")


def _radius_band(axes: Any, spot: Spot) -> None:
    typical = spot.diagnosis.get("typical") or {}
    if typical.get("steps") is None:
        return
    low, high = typical.get("low"), typical.get("high")
    if low is not None and high is not None:
        axes.axvspan(low, high, color=GREY, alpha=0.25, linewidth=0)
    axes.axvline(typical["steps"], color=GREY, linewidth=1.2)
    axes.annotate(
        f"typical radius {number(typical['steps'])}", (typical["steps"], 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=8.5,
    )  # fmt: skip


def training(figure: Any, row: dict[str, Any]) -> None:
    """Latent and deployed loss over the steps of QAT; below, how many weights change their grid value per
    step."""
    data, start = row["recovered"], start_of(row)
    run = data.get("trajectory") or {}
    checks, base, flips = run.get("checks") or [], run.get("float_loss") or 0.0, run.get("flips") or []
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    curves = {}
    for key in ("deployed_loss", "latent_loss"):
        curves[key] = [(c["step"], c[key] - base) for c in checks if c.get(key) is not None]
    rise_axis(top, [y for c in curves.values() for _, y in c] or [1.0], start.tolerance)
    last = max([c["step"] for c in checks] or [1])
    tolerance_label(top, start.tolerance, 0.995, "right")
    for key, colour, marker in (
        ("latent_loss", COLOURS["float"], "^"),
        ("deployed_loss", COLOURS["recovered"], "o"),
    ):
        if curves[key]:
            name = "deployed (what would be shipped)" if key == "deployed_loss" else "latent (hidden float weights)"
            top.plot(
                *zip(*curves[key], strict=True),
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.6,
                label=name,
            )
    top.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    if flips:
        bottom.fill_between(range(1, len(flips) + 1), flips, step="mid", color=GREY, alpha=0.55, linewidth=0)
        bottom.set_yscale("symlog", linthresh=10)
        bottom.set_ylim(0, max(flips) * 1.6 + 1)
        powers = [10**k for k in range(1, 9) if 10**k <= max(flips) * 1.6]
        bottom.set_yticks([0, *powers], ["0", *(f"{p:,}" for p in powers)])
        bottom.yaxis.set_minor_locator(nothing())
    bottom.set_ylabel("flips per step")
    bottom.set_xlabel("step of QAT")
    bottom.set_xlim(-0.02 * last, last * 1.02)
    since = data.get("recovery_step")
    if since is not None:
        for axes in (top, bottom):
            axes.axvline(since, color=INK, linewidth=0.9)
        before = since < 0.75 * last
        bottom.annotate(
            f"inside since step {since}", (since, 0.96), xycoords=("data", "axes fraction"),
            xytext=(5 if before else -5, 0), textcoords="offset points", ha="left" if before else "right",
            va="top",
            fontsize=9, bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip


def nothing() -> Any:
    """No minor ticks."""
    from matplotlib.ticker import NullLocator

    return NullLocator()
