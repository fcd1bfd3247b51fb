"""Loss planes of a study: through the float weights and a point, against random or steep orthogonal directions."""

from __future__ import annotations

import math
from typing import Any

from .facts import loss_unit, number
from .figures import Picture, _picture
from .style import INK, PAPER, look

MOST = 4


def slices(data: dict[str, Any], name: str = "slices") -> Picture:
    """Planes with contours of the loss above its least value in the plane, one panel per direction (at most four).

    ``{"draws": [{"s": [...], "t": [...], "loss": [[...], ...], "against": "random"}, ...], "tolerance": 0.049}``:
    ``against`` is ``random`` or ``steepest 1`` (a direction of the walls); ``s`` in units of the distance (``length``)
    from the float weights (at 0, 0) to the point (at 1, 0), ``t`` in units of ``height``, both in rms steps.
    """
    draws = data["draws"][:MOST]
    ends = []
    for draw in draws:
        j = min(range(len(draw["s"])), key=lambda i: abs(draw["s"][i] - 1))
        k = min(range(len(draw["t"])), key=lambda i: abs(draw["t"][i]))
        zero = min(range(len(draw["s"])), key=lambda i: abs(draw["s"][i]))
        ends.append(draw["loss"][k][j] - draw["loss"][k][zero])
    kinds = [_against(d) for d in draws]
    count = " and ".join(
        f"{n} {word} direction" + ("s" if n > 1 else "")
        for word, n in (("random", kinds.count("random")), ("steep", len(kinds) - kinds.count("random"))) if n
    )  # fmt: skip
    text = (
        f"Loss in {loss_unit(data)} around the float weights and the point, {count} upwards. The loss at the point is "
        f"{number(sum(ends) / len(ends))} above the float weights' (nearest places of the plane)."
    )
    return _picture(name, "", "slices", (0.6 + 4.4 * len(draws), 4.0), text, _draw, data)


def _draw(figure: Any, data: dict[str, Any]) -> None:
    from matplotlib.patheffects import withStroke

    draws = data["draws"][:MOST]
    every = [x for d in draws for row in d["loss"] for x in row if x is not None and math.isfinite(x)]
    low, high = min(every), max(every)
    marks = [data["tolerance"] * 2**i for i in range(-1, 12) if data["tolerance"] * 2**i < high - low]
    for i, draw in enumerate(draws):
        axes = figure.add_subplot(1, len(draws), i + 1)
        rises = [[(high if x is None else x) - low for x in row] for row in draw["loss"]]
        levels = [0.0, *marks, max(high - low, 1e-9) * 1.001]
        filled = axes.contourf(draw["s"], draw["t"], rises, levels=levels, cmap="viridis_r", norm=_norm(levels))
        axes.contour(draw["s"], draw["t"], rises, levels=marks or [1e-9], colors=PAPER, linewidths=0.6)
        for key, place, label in (("float", 0.0, "float"), ("recovered", 1.0, "point")):
            colour, marker = look(key)
            axes.plot([place], [0.0], marker, color=colour, markersize=11 if key == "float" else 8, mec=PAPER, mew=1.2)
            around = {"textcoords": "offset points", "ha": "center", "color": INK, "fontsize": 9}
            text = axes.annotate(label, (place, 0.0), (0, 9), **around)
            text.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])
        axes.set_xlabel("share of the way to the point")
        if i == 0 or _against(draw) != _against(draws[i - 1]):
            length = draw.get("height", draw.get("length"))
            size = "same length" if length == draw.get("length") else f"unit: {number(length)} rms steps"
            axes.set_ylabel(f"{_against(draw)} direction, {size}")
    bar = figure.colorbar(filled, ax=figure.axes, ticks=[0.0, *marks[:: max(1, len(marks) // 6)]])
    bar.ax.set_yticklabels([number(t) for t in bar.get_ticks()])
    bar.set_label(f"loss above the plane's least, {loss_unit(data)}")


def _against(draw: dict[str, Any]) -> str:
    """What is drawn upwards: ``random``, or ``steepest`` of the curvature at the float weights."""
    return str(draw.get("against", "random")).split()[0]


def _norm(levels: list[float]) -> Any:
    from matplotlib.colors import BoundaryNorm

    return BoundaryNorm(levels, 256)
