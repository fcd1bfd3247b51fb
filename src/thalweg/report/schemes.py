"""Figures over all schemes of a task: the transition, and one distance axis for every scheme."""

from __future__ import annotations

from typing import Any

from .curves import plain_log, rise_axis, tolerance_label, walk
from .facts import Spot, by_bits, methods, metric_text, recovered, spots, start_of
from .style import COLOURS, GREY, INK, PAPER, look, spread


def transition(figure: Any, task: dict[str, Any]) -> None:
    """Loss rise over schemes, from many bits to few, and beside it the task's metric on test data."""
    rows, metric = by_bits(task), task.get("metric", "")
    keys = list(dict.fromkeys(s.key for r in rows for s in spots(r)))
    tolerance = methods(rows[0])[0].tolerance
    wide = any(s.test.get(metric) is not None for r in rows for s in spots(r))
    panels = figure.subplots(1, 2 if wide else 1, squeeze=False)[0]
    rises = [s.rise for r in rows for s in spots(r) if s.rise is not None]
    rise_axis(panels[0], rises or [1.0], tolerance)
    tolerance_label(panels[0], tolerance)
    ceiling = panels[0].get_ylim()[1]
    _series(panels[0], rows, keys, lambda s: ceiling * 0.92 if s.rise is None else s.rise)
    if wide:
        _series(panels[1], rows, keys, lambda s: _metric(metric, s.test.get(metric)), names=False)
        before = _metric(metric, ((task.get("float") or {}).get("test") or {}).get(metric))
        panels[1].set_ylabel("accuracy on test data, %" if metric == "accuracy" else f"{metric} on test data")
        if metric == "perplexity":
            panels[1].set_yscale("log")
            plain_log(panels[1].yaxis)
        if before is not None:
            panels[1].axhline(before, color=COLOURS["float"], linewidth=1)
            panels[1].annotate(
                f"float\n{metric_text(metric, task['float']['test'][metric])}", (1, before),
                xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                fontsize=8.5, va="center",
            )  # fmt: skip
    for axes in panels:
        names = [
            f"{r['scheme']}\n{r['bits_per_weight']:.1f}" if r.get("bits_per_weight") else r["scheme"] for r in rows
        ]
        axes.set_xticks(range(len(rows)), names)
        axes.set_xlabel("scheme, and bits per weight with scales")
        axes.set_xlim(-0.5, len(rows) - 0.5)


def _series(axes: Any, rows: list[dict[str, Any]], keys: list[str], value: Any, names: bool = True) -> None:
    ways = {}
    for number_of, key in enumerate(keys):
        colour, marker = look(key, keys)
        shift = 0.0 if key == "recovered" else 0.12 * (number_of - (len(keys) - 2) / 2)
        places = [(i + shift, value(s)) for i, r in enumerate(rows) for s in spots(r) if s.key == key]
        places = [(x, y) for x, y in places if y is not None]
        if not places:
            continue
        style = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.3, "zorder": 3}
        if key == "recovered":
            style.update(linestyle="none", markersize=8, markeredgecolor=INK, markeredgewidth=0.7, zorder=4)
        (line,) = axes.plot(*zip(*places, strict=True), **style)
        ways[key] = line
    if names:
        labels = [Spot(k, {}).label for k in ways]
        axes.legend(
            list(ways.values()), labels, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3,
            frameon=False, fontsize=9,
            labelcolor=INK, columnspacing=1.2, handletextpad=0.5,
        )  # fmt: skip
    for i, row in enumerate(rows):
        end = recovered(row)
        a, b = (value(start_of(row)), value(end)) if end else (None, None)
        if a is not None and b is not None and a != b:
            axes.annotate(
                "", (i, b), (i, a), zorder=2,
                arrowprops={"arrowstyle": "->", "color": COLOURS["recovered"], "linestyle": ":",
                "linewidth": 1.3},
            )  # fmt: skip


def _metric(metric: str, value: float | None) -> float | None:
    return None if value is None else 100 * value if metric == "accuracy" else min(value, 1e6)


def steps(figure: Any, task: dict[str, Any]) -> None:
    """Every scheme on one axis: distance from the float weights over the typical radius of its own grid.
    Above, the loss along the straight way to the rounded point; below, where every deployed point lands."""
    rows = [r for r in by_bits(task) if methods(r)[0].share is not None]
    keys = list(dict.fromkeys(s.key for r in rows for s in spots(r)))
    top, lanes = figure.subplots(2, 1, sharex=True, height_ratios=(2.3, 0.45 + 0.5 * len(keys)))
    base = [methods(r)[0] for r in rows]
    tolerance = base[0].tolerance if base else 0.05
    far = max([s.share for r in rows for s in spots(r) if s.share] or [1.0])
    right = max(1.25, far * 1.08)
    curves = [walk(s) for s in base]
    rise_axis(top, [y for _, ys in curves for y in ys] or [1.0], tolerance)
    tolerance_label(top, tolerance, 0.995, "right")
    colour = look(base[0].key)[0] if base else GREY
    ends = [
        (xs[-1] / s.reach * (s.share or 0.0), ys[-1])
        for s, (xs, ys) in zip(base, curves, strict=True)
        if xs and s.reach
    ]
    for spot, (xs, ys) in zip(base, curves, strict=True):
        if xs:
            top.plot(
                [x / (spot.reach or 1) * (spot.share or 0) for x in xs],
                ys,
                color=colour,
                linewidth=1.2,
                alpha=0.75,
            )
    if ends:
        top.plot(*zip(*ends, strict=True), linestyle="none", color=colour, marker="s", markersize=6)
    named = [r["scheme"] for r, (xs, _) in zip(rows, curves, strict=True) if xs]
    for name, (x, y) in zip(named, ends, strict=True):
        if y > tolerance:
            top.annotate(name, (x, y), (-7, 1), textcoords="offset points", ha="right", fontsize=9.5)
    for i, key in enumerate(keys):
        _lane(lanes, len(keys) - 1 - i, key, keys, rows, right)
    lanes.set_ylim(-0.75, len(keys) - 0.25)
    lanes.set_yticks(range(len(keys)), [_two_lines(Spot(k, {}).label) for k in reversed(keys)])
    lanes.tick_params(axis="y", length=0)
    lanes.set_xlim(0, right)
    lanes.set_xlabel("distance from the float weights ÷ typical radius of the basin on that grid")
    for axes in (top, lanes):
        axes.axvline(1, color=INK, linewidth=0.9)
    top.annotate(
        "typical edge", (1, 1), xycoords=("data", "axes fraction"), xytext=(4, -2),
        textcoords="offset points",
        va="top", fontsize=8.5,
    )  # fmt: skip
    lanes.annotate(
        "filled: low loss, open: high loss",
        (1, 1),
        xycoords="axes fraction",
        ha="right",
        va="top",
        fontsize=8.5,
    )


def _lane(axes: Any, y: float, key: str, keys: list[str], rows: list[dict[str, Any]], right: float) -> None:
    colour, marker = look(key, keys)
    found = [(r["scheme"], s) for r in rows for s in spots(r) if s.key == key and s.share is not None]
    axes.axhline(y, color=GREY, linewidth=0.6, zorder=1)
    places = spread([s.share or 0.0 for _, s in found], 0.088 * right, 0.02 * right, 0.98 * right)
    for (name, spot), x in zip(found, places, strict=True):
        fill = colour if spot.low else PAPER
        axes.plot([spot.share], [y], marker=marker, color=colour, markerfacecolor=fill, markersize=7, zorder=3)
        axes.annotate(name, (spot.share, y), (x, y - 0.28), fontsize=8.5, ha="center", va="top", zorder=4)


def _two_lines(label: str) -> str:
    return label.replace(" ", "\n", 1) if len(label) > 12 else label
