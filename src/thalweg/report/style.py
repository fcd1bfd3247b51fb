"""How figures look and are saved: one SVG that follows the page's colours, one PNG on white.

matplotlib is imported when the first figure is drawn. Text and axes are drawn in ``INK``, backgrounds of
labels in ``PAPER``; in the SVG they become ``currentColor`` and ``var(--paper)``. Series colours are from the
colour-blind safe set of Okabe and Ito, darkened or lightened until they read on both themes; markers differ
as well.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ThalwegError

INK, PAPER = "#111827", "#fefefd"
GREY = "#8b93a1"
COLOURS = {"float": "#3b82c4", "nearest": "#d55e00", "gptq": "#b5609a", "recovered": "#0f9d76"}
MARKERS = {"float": "*", "nearest": "s", "gptq": "D", "recovered": "o"}
MORE = (("#c08a00", "^"), ("#6b7fd7", "v"), ("#7a8f2f", "P"), ("#a8695a", "X"))
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.solid_capstyle": "round",
}


def look(key: str, keys: list[str] | None = None) -> tuple[str, str]:
    """Colour and marker of a point; methods without their own take the next free one in the order of
    ``keys``."""
    if key in COLOURS:
        return COLOURS[key], MARKERS[key]
    unknown = [k for k in keys or [key] if k not in COLOURS]
    return MORE[unknown.index(key) % len(MORE)] if key in unknown else MORE[0]


@contextmanager
def drawing(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of that size in inches, under the settings above.

    Raises:
        ThalwegError: matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ThalwegError(
            "Figures need matplotlib, which is not installed. Run `pip install thalweg[report]`."
        ) from None
    with matplotlib.rc_context(SETTINGS):
        yield Figure(figsize=(width, height), layout="constrained")


def png(figure: Any, dpi: int = 192) -> bytes:
    """The figure on white at twice the resolution of a plain screen."""
    return _saved(figure, format="png", dpi=dpi, facecolor="white")


def svg(figure: Any, name: str, label: str = "") -> str:
    """The figure as an inline ``<svg>``: transparent, themed, with ids that begin with ``name``.

    ``label``: what a screen reader says.
    """
    text = _saved(figure, name, format="svg", transparent=True, metadata={"Date": None, "Creator": None}).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"\s+", " ", text).replace("> <", "><")
    text = text.replace("xlink:href", "href")
    # hundredths of a point are fine enough for outlines; texts stay as they are
    text = re.sub(r' (d|x|y|transform)="[^"]*"', lambda m: re.sub(r"(\d\.\d\d)\d+", r"\1", m[0]), text)
    text = re.sub(r'(\bid="|url\(#|\bhref="#)', rf"\g<1>{name}-", text)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    head = f'<svg viewBox="{box.group(1)}" role="img" fill="currentColor" aria-label="{escape(label)}">'
    text = re.sub(r"<svg .*?>", lambda _: head, text, count=1)
    return text.replace(INK, "currentColor").replace(PAPER, "var(--paper, #fff)")


def standalone(figure: Any, name: str) -> str:
    """The figure as an SVG file on white, for pages that cannot hand it their colours (a README)."""
    text = _saved(figure, name, format="svg", facecolor="white", metadata={"Date": None, "Creator": None}).decode()
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)


def escape(text: Any) -> str:
    """Text for HTML, quotes included."""
    import html

    return html.escape(str(text), quote=True)


def _saved(figure: Any, salt: str = "", **options: Any) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": salt or "thalweg"}):
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def spread(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Where to write labels so that neighbours are at least ``gap`` apart, as near as may be to their
    places."""
    order = sorted(range(len(places)), key=places.__getitem__)
    out = [min(max(places[i], low), high) for i in order]
    for _ in range(200):
        moved = False
        for i in range(1, len(out)):
            lack = gap - (out[i] - out[i - 1])
            if lack > 1e-9:
                out[i - 1], out[i], moved = out[i - 1] - lack / 2, out[i] + lack / 2, True
        if out and out[0] < low:
            out[0] = low
        if out and out[-1] > high:
            out[-1] = high
        if not moved:
            break
    where = dict(zip(order, out, strict=True))
    return [where[i] for i in range(len(places))]
