"""Drawing the phase diagrams: SVG that follows the page's colours, PNG for everything else.

matplotlib is imported when the first figure is drawn; without it a :class:`ThalwegError` says how to get it.
Text and axes are drawn in one dark colour, which becomes ``currentColor`` in the SVG, so that figures read
well on light and dark pages; backgrounds are transparent.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from ..errors import ThalwegError
from .diagrams import Diagram
from .recovery_times import Times

INK = "#111827"
LINE = "#0b1220"
FILLS = {
    "damping": ("#5aa9c4", "#cf6249"),
    "density": ("#5aa9c4", "#e9c46a", "#cf6249"),
    "codimension": ("#5aa9c4", "#e9c46a", "#e39a5b", "#cf6249"),
}
DASHES = ("-", "--", ":")


def _figure(height: float) -> tuple[Any, Any]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ThalwegError(
            "Drawing the diagrams needs matplotlib, which is not installed. Run `pip install thalweg[report]`."
        ) from None
    return matplotlib, Figure(figsize=(4.6, height), layout="constrained")


STYLE = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _edges(centres: np.ndarray, log: bool) -> np.ndarray:
    x = np.log(centres) if log else centres
    middle = (x[1:] + x[:-1]) / 2
    out = np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]])
    return np.exp(out) if log else out


def _plain(axis: Any) -> None:
    """Ticks at 0.1, 0.2, 0.5, 1, ... written as such; at powers of ten only where there are many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 150 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def draw(diagram: Diagram | Times) -> Any:
    """A matplotlib figure of one diagram."""
    if isinstance(diagram, Times):
        return _draw_times(diagram)
    matplotlib, figure = _figure(4.1)
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.patheffects import Normal, Stroke

    with matplotlib.rc_context(STYLE):
        axes = figure.subplots()
        logs = (bool(diagram.x.min() > 0), diagram.name != "damping")
        fills = FILLS[diagram.name][: len(diagram.classes)]
        axes.pcolormesh(
            _edges(diagram.x, logs[0]),
            _edges(diagram.y, logs[1]),
            diagram.simulated,
            cmap=ListedColormap(fills),
            vmin=-0.5,
            vmax=len(fills) - 0.5,
            rasterized=True,
        )
        for (label, x, y), dash in zip(diagram.lines, DASHES, strict=False):
            # dark with a light casing: legible on every fill, in the legend on every page
            casing = [Stroke(linewidth=3.4, foreground="#ffffff", alpha=0.75), Normal()]
            axes.plot(x, y, color=LINE, linewidth=1.5, linestyle=dash, label=label, path_effects=casing)
        ends_x, ends_y = _edges(diagram.x, logs[0]), _edges(diagram.y, logs[1])
        for log, axis, set_scale in zip(
            logs, (axes.xaxis, axes.yaxis), (axes.set_xscale, axes.set_yscale), strict=True
        ):
            if log:
                set_scale("log")
                _plain(axis)
        axes.set_xlim(ends_x[0], ends_x[-1])
        axes.set_ylim(ends_y[0], ends_y[-1])
        axes.set_xlabel(diagram.x_label)
        axes.set_ylabel(diagram.y_label)
        patches = [Patch(color=c, label=n) for c, n in zip(fills, diagram.classes, strict=True)]
        handles, _ = axes.get_legend_handles_labels()
        figure.legend(
            handles=[*patches, *handles], loc="outside lower left", ncols=2, frameon=False, fontsize=9.5,
            handlelength=1.6, columnspacing=1.2, labelcolor=INK,
        )  # fmt: skip
    return figure


def _draw_times(diagram: Times) -> Any:
    matplotlib, figure = _figure(7.6)
    with matplotlib.rc_context(STYLE):
        for axes, curve in zip(figure.subplots(len(diagram.curves), 1), diagram.curves, strict=True):
            axes.fill_between(curve.x, curve.median, curve.latest, color="#3f88c5", alpha=0.3, linewidth=0)
            axes.plot(
                curve.x,
                curve.median,
                "o-",
                color="#3f88c5",
                markersize=3.5,
                label=f"median of {curve.runs} runs",
            )
            axes.plot(curve.x, curve.latest, color="#3f88c5", linewidth=0.8, label="latest run")
            axes.plot(curve.x, curve.bound, color=INK, linestyle="--", label=f"bound: {curve.bound_label}")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel(curve.x_label)
            axes.set_ylabel("steps to enter")
            axes.set_ylim(0.7, 4 * float(np.nanmax(curve.bound)))
            _plain(axes.xaxis)
            _plain(axes.yaxis)
            axes.legend(frameon=False, fontsize=9.5, loc="best", labelcolor=INK)
    return figure


def png(diagram: Diagram | Times) -> bytes:
    """The diagram with its title on white, 160 dots per inch."""
    matplotlib, _ = _figure(1)
    with matplotlib.rc_context(STYLE):
        figure = draw(diagram)
        figure.suptitle(diagram.title, fontsize=11.5, color=INK)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def svg(diagram: Diagram | Times) -> str:
    """The diagram as an inline ``<svg>`` that takes its ink from the page."""
    matplotlib, _ = _figure(1)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": diagram.name}):
        figure = draw(diagram)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    # ids must be unique over the page, and text without a fill of its own is black in SVG
    text = re.sub(r'(id="|url\(#|href="#)', rf"\1{diagram.name}-", text)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        r'<svg viewBox="\1" role="img" fill="currentColor" '
        r'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">',
        text,
        count=1,
    )
    return text.replace(INK, "currentColor")
