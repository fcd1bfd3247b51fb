"""Lines over seeds: a thin line per seed, the median bold, and recovery times over learning rates."""

from __future__ import annotations

import math
import statistics
from typing import Any

from .curves import nothing, plain_log, rise_axis, tolerance_label
from .facts import loss_unit
from .study_dots import HUES, finite
from .style import COLOURS, GREY, INK, PAPER

SHAPES = ("o", "s", "D", "^", "v", "P")


def profiles(figure: Any, data: dict[str, Any]) -> None:
    """Rises along the ways; the point itself at 1."""
    axes, ways = figure.subplots(), data["ways"]
    rises = finite(r for runs in ways.values() for run in runs for r in run["rise"])
    right = max(t for runs in ways.values() for run in runs for t in run["t"])
    _losses(axes, rises, data, left=True)
    for place, (label, runs) in enumerate(ways.items()):
        _bundle(axes, [(run["t"], run["rise"]) for run in runs], HUES[place % len(HUES)], label)
    axes.axvline(1, color=GREY, linewidth=1.0, zorder=1)
    axes.set_xlim(min(0.0, *(t for runs in ways.values() for run in runs for t in run["t"])), max(right, 1.02))
    axes.set_xlabel("share of the way from the float weights (0) to the point (1)")
    _legend(axes)


def trajectories(figure: Any, data: dict[str, Any]) -> None:
    """Latent and deployed loss of every run."""
    axes, runs = figure.subplots(), data["runs"]
    _losses(axes, finite(r for run in runs for k in ("latent", "deployed") for r in run[k]), data)
    for key, colour, label in (
        ("latent", COLOURS["float"], "latent (hidden float weights)"),
        ("deployed", COLOURS["recovered"], "deployed (what would be shipped)"),
    ):
        _bundle(axes, [(run["steps"], run[key]) for run in runs], colour, label)
    axes.set_xlim(0, 1.01 * max(s for run in runs for s in run["steps"]))
    axes.set_xlabel("step of QAT")
    _legend(axes)


def replanting(figure: Any, data: dict[str, Any]) -> None:
    """The flips in their order, and as many random ones."""
    axes, shares = figure.subplots(), [100 * s for s in data["shares"]]
    both = [(k, data.get(k) or []) for k in ("ordered", "random")]
    _losses(axes, finite(r for _, rows in both for row in rows for r in row), data, left=True)
    for key, rows in both:
        colour = COLOURS["recovered"] if key == "ordered" else GREY
        label = "flips of QAT, nearest to the threshold first" if key == "ordered" else "random flips (control)"
        if rows:
            _bundle(axes, [(shares, row) for row in rows], colour, label)
    axes.set_xlim(min(shares) - 1, max(shares) + 1)
    axes.set_xlabel("share of the flips planted into plain rounding, %")
    _legend(axes)


def recovery_time(figure: Any, data: dict[str, Any]) -> None:
    """A mark per seed and rate, open at the horizon where the time was not reached."""
    axes, rates, horizon = figure.subplots(), data["rates"], data["horizon"]
    axes.set_xscale("log")
    axes.set_yscale("log")
    span, many = max(rates) / min(rates), len(data["times"])
    for place, (scheme, rows) in enumerate(data["times"].items()):
        colour, marker = HUES[place % len(HUES)], SHAPES[place % len(SHAPES)]
        shift = span ** (0.02 * (place - (many - 1) / 2))
        spots = [(r * shift, t) for row in rows for r, t in zip(rates, row, strict=True)]
        seen = [(r, t) for r, t in spots if t is not None]
        slope = ((data.get("slopes") or {}).get(scheme) or {}).get("estimate")
        label = scheme if slope is None else f"{scheme} (slope {slope:.2f})".replace("-", "−")
        looks = {"linestyle": "none", "marker": marker, "color": colour, "label": label, "markersize": 5.5}
        axes.plot([r for r, _ in seen], [t for _, t in seen], alpha=0.75, markeredgewidth=0, zorder=3, **looks)
        for r in dict.fromkeys(r for r, t in spots if t is None):
            count = sum(t is None and where == r for where, t in spots)
            axes.plot([r], [horizon], marker=marker, color=colour, markerfacecolor=PAPER, markersize=6.5, zorder=4)
            axes.annotate(
                str(count), (r, horizon), (0, 5), textcoords="offset points", ha="center",
                va="bottom", fontsize=8.5, color=colour,
            )  # fmt: skip
        if seen:
            level = statistics.fmean(math.log(t) + math.log(r) for r, t in seen)
            ends = [min(rates), max(rates)]
            axes.plot(
                ends, [math.exp(level) / r for r in ends], color=colour, linewidth=1, linestyle=(0, (5, 3)), zorder=2
            )
    if any(t is None for rows in data["times"].values() for row in rows for t in row):
        axes.axhline(horizon, color=GREY, linewidth=0.9, zorder=1)
        axes.annotate(
            "open: not within the budget (number of runs)", (1.0, 1.0), xycoords="axes fraction",
            xytext=(0, 14), textcoords="offset points", ha="right", va="bottom", fontsize=8.5,
        )  # fmt: skip
    axes.set_xticks(rates, [f"{r:g}" for r in rates])
    axes.xaxis.set_minor_locator(nothing())
    plain_log(axes.yaxis)
    unit = f", {data['unit']}" if data.get("unit") else ""
    axes.set_xlabel(f"learning rate{unit} (dashed: slope −1)")
    axes.set_ylabel(f"steps of QAT until {data.get('until', 'the loss is low')}")
    _legend(axes)


def _losses(axes: Any, rises: list[float], data: dict[str, Any], left: bool = False) -> None:
    """The common axis; the name of the tolerance stands at the end where fewer lines pass."""
    tolerance = data["tolerance"]
    rise_axis(axes, rises or [1.0], tolerance, unit=loss_unit(data))
    tolerance_label(axes, tolerance, 0.01 if left else 0.995, "left" if left else "right")
    axes.texts[-1].set_bbox({"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.8})
    axes.texts[-1].set_zorder(5)


def _bundle(axes: Any, lines: list[tuple[Any, Any]], colour: str, label: str) -> None:
    """A thin line per seed and, on common places, their median with the label."""
    common = all(list(xs) == list(lines[0][0]) for xs, _ in lines)
    for i, (xs, ys) in enumerate(lines):
        shown = label if i == 0 and not common else None
        axes.plot(xs, drawable(ys), color=colour, linewidth=0.9, alpha=0.45 if len(lines) > 1 else 1.0, label=shown)
    if common:
        columns = [
            [math.inf if y is None else y for y in column] for column in zip(*(y for _, y in lines), strict=True)
        ]
        middle = drawable([statistics.median(c) for c in columns])
        axes.plot(lines[0][0], middle, color=colour, linewidth=2.2, label=label, zorder=4)


def drawable(values: Any) -> list[float]:
    """Gaps where a value is missing or not finite."""
    return [v if v is not None and math.isfinite(v) else math.nan for v in values]


def _legend(axes: Any) -> None:
    labels = axes.get_legend_handles_labels()[1]
    across = max(1, min(len(labels), 84 // (6 + max(map(len, labels)))))
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=across, frameon=False, fontsize=9,
        labelcolor=INK,
    )  # fmt: skip
