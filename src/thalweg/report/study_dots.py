"""Rows of dots: a row per arm, a panel per scheme, a dot per seed, an upright bar at the mean."""

from __future__ import annotations

import math
from typing import Any

from .curves import TICKS, nothing
from .style import COLOURS, GREY, INK, MORE

HUES = [COLOURS["nearest"], COLOURS["recovered"], COLOURS["gptq"], COLOURS["float"], *(c for c, _ in MORE)]


def arms(figure: Any, data: dict[str, Any]) -> None:
    """Rows of every scheme on one common axis."""
    schemes, tolerance = data["schemes"], data.get("tolerance")
    names = list(dict.fromkeys(arm for panel in schemes.values() for arm in panel))
    panels = _panels(figure, list(schemes), names)
    values = [v for panel in schemes.values() for row in panel.values() for v in finite(row)]
    for axes, panel in zip(panels, schemes.values(), strict=True):
        for place, arm in enumerate(names):
            _row(axes, place, panel.get(arm, []), HUES[place % len(HUES)])
        if tolerance:
            _rises(axes, values, tolerance)
        axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    label = f"{data['quantity']}, {data['unit']}"
    figure.supxlabel(label + (f" (dashed: tolerance {tolerance:.3f})" if tolerance else ""), fontsize=10)


def pull(figure: Any, data: dict[str, Any]) -> None:
    """What was measured on top, the nulls below it in grey."""
    schemes = data["schemes"]
    rows = list(
        dict.fromkeys((k, arm) for k in ("measured", "nulls") for p in schemes.values() for arm in p.get(k, {}))
    )
    panels = _panels(figure, list(schemes), [arm if k == "measured" else f"null: {arm}" for k, arm in rows])
    for axes, panel in zip(panels, schemes.values(), strict=True):
        for place, (kind, arm) in enumerate(rows):
            colour = HUES[place % len(HUES)] if kind == "measured" else GREY
            _row(axes, place, panel.get(kind, {}).get(arm, []), colour)
        axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
        edge = sum(kind == "measured" for kind, _ in rows) - 0.5
        axes.axhline(edge, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.margins(x=0.12)
    figure.supxlabel("inward pull: cosine between downhill and the way back", fontsize=10)


def finite(values: Any) -> list[float]:
    """The values that can be drawn."""
    return [v for v in values if v is not None and math.isfinite(v)]


def _panels(figure: Any, schemes: list[str], names: list[str]) -> list[Any]:
    panels = list(figure.subplots(1, len(schemes), sharey=True, sharex=True, squeeze=False)[0])
    for axes, scheme in zip(panels, schemes, strict=True):
        axes.set_title(scheme, fontsize=10, color=INK)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        for place in range(len(names)):
            axes.axhline(place, color=GREY, linewidth=0.4, alpha=0.5, zorder=0)
    panels[0].set_yticks(range(len(names)), names)
    return panels


def _row(axes: Any, place: int, values: Any, colour: str) -> None:
    seen = finite(values)
    if not seen:
        return
    gap = 0.36 / max(len(seen) - 1, 1)
    places = [place + gap * (i - (len(seen) - 1) / 2) for i in range(len(seen))]
    axes.plot(
        seen,
        places,
        linestyle="none",
        marker="o",
        markersize=4.5,
        color=colour,
        alpha=0.75,
        markeredgewidth=0,
        zorder=3,
    )
    middle = sum(seen) / len(seen)
    axes.plot([middle, middle], [place - 0.34, place + 0.34], color=INK, linewidth=1.6, zorder=4)


def _rises(axes: Any, values: list[float], tolerance: float) -> None:
    """A horizontal axis of loss rises: linear to the tolerance, logarithmic above, the tolerance dashed."""
    low, high = min([*values, 0.0]), max([*values, 3 * tolerance]) * 1.7
    left = -0.4 * tolerance if low >= -0.3 * tolerance else low * 1.4
    axes.set_xscale("symlog", linthresh=tolerance, linscale=0.6)
    axes.set_xlim(left, high)
    ticks = [t for t in TICKS if left <= t <= high and (t == 0 or abs(t) > 0.99 * tolerance)]
    if len(ticks) > 5:
        ticks = [t for t in ticks if t == 0 or math.log10(abs(t)) % 1 == 0]
    axes.set_xticks(ticks, [f"{t:g}".replace("-", "−") for t in ticks])
    axes.xaxis.set_minor_locator(nothing())
    axes.axvline(tolerance, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
