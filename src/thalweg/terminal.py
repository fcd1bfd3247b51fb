"""What the command line shows: progress with time left, and results as tables."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .task import Progress as Callback

CHIPS = {
    "inside": "bold green",
    "bad point": "bold yellow",
    "bad grid": "bold red",
    "outside": "bold red",
    "not geometry": "bold magenta",
}


@contextmanager
def progress_bar(console: Console, quiet: bool = False) -> Iterator[Callback]:
    """A callback ``(text, done, total)`` drawn as a bar with elapsed and remaining time.

    The jobs named ``survey`` and ``study`` stay on top while others come and go below. Where the output is no terminal,
    a line at most every 10 s.
    """
    if quiet:
        yield lambda text, done, total: None
        return
    if not console.is_terminal:
        last = [time.monotonic()]

        def line(text: str, done: int, total: int) -> None:
            if time.monotonic() - last[0] > 10:
                last[0] = time.monotonic()
                console.print(f"  {text} {done}/{total}", style="dim", highlight=False)

        yield line
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=28),
        TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        jobs: dict[str, Any] = {}

        def draw(text: str, done: int, total: int) -> None:
            if text not in jobs:
                for old in [name for name in jobs if name not in ("survey", "study")]:
                    bar.remove_task(jobs.pop(old))
                jobs[text] = bar.add_task(text, total=total)
            bar.update(jobs[text], completed=done, total=total)

        yield draw


def number(value: Any, digits: int = 3) -> str:
    """A figure for a table; a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def cost_line(planned: dict[str, int]) -> str:
    """The declared cost of a measurement, in words."""
    parts = [f"{count} {kind}" for kind, count in planned.items() if count]
    return "Cost at most: " + ", ".join(parts) + "."


def diagnosis_view(d: dict[str, Any]) -> Group:
    """A diagnosis (its JSON) as a panel with evidence below."""
    style = CHIPS.get(d["verdict"], "bold")
    body = Text()
    body.append(f"{d['verdict']}\n", style=style)
    for reason in d["reasons"]:
        body.append(f"• {reason}\n")
    body.append(f"→ {d['advice']}", style="italic")
    name = " · ".join(str(d["provenance"].get(k)) for k in ("model", "scheme", "method") if d["provenance"].get(k))
    evidence = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    evidence.add_column("measured")
    evidence.add_column("value", justify="right")
    evidence.add_column("compare with")
    typical, way = d["typical"], d["segment"]
    rows = [
        ("loss, nats", number(d["loss"], 4), f"float {number(d['float_loss'], 4)}, ±{number(d['stderr'], 4)} (paired)"),
        ("reach, rms steps", number(d["reach"]), "0.289 for plain unclipped rounding"),
        ("margin", "> 4" if d["margin"] is None else number(d["margin"], 2), "above 1: inside"),
        (
            "typical radius, steps",
            number(typical["steps"]),
            f"quartiles {number(typical['low'])} to {number(typical['high'])}, {typical['directions']} directions",
        ),
        ("worst radius, steps", number((d["worst"] or {}).get("steps"), 4), "along a direction of steep ascent"),
        ("membership", way["membership"], f"edge at {number(way['edge_steps'])} steps"),
        ("wall exponent", number(way["wall_exponent"], 2), "2 is a bowl"),
        ("clipped weights", f"{d['saturated']:.1%}", f"{d['thresholds']['saturated']:.0%} allowed"),
    ]
    if d["pull"]:
        p = d["pull"]
        rows.append(
            (
                "inward pull",
                number(p["inward"]),
                f"latent {number(p['latent'])}, mirrored {number(p['mirrored'])}, random ±{number(p['random'])}",
            )
        )
        if p["normal"] is not None:
            share = d["normal_split"]
            rows.append(
                (
                    "pull within the walls' directions",
                    number(p["normal"]),
                    f"{share['share']:.2%} of the displacement lies there ({share['expected']:.2%} by chance)",
                )
            )
    if d["visibility"] is not None:
        rows.append(
            (
                "visibility of the wall",
                number(d["visibility"], 2),
                f"{number(d['visibility_rounded'], 2)} seen at the point",
            )
        )
    if d["certificate"]:
        c = d["certificate"]
        rows.append(
            (
                "nearby certificate",
                f"{number(c['rise_nats'])} nats",
                f"at {number(c['reach'])} steps, {c['changed']:.1%} of codes differ by {number(c['levels'], 2)} levels",
            )
        )
    for row in rows:
        evidence.add_row(*row)
    layers = Table(
        title="Layers, by loss rise when quantized alone", box=None, header_style="bold", title_justify="left"
    )
    for head, justify in (
        ("layer", "left"),
        ("grid", "left"),
        ("rise alone", "right"),
        ("reach", "right"),
        ("clipped", "right"),
    ):
        layers.add_column(head, justify=justify)  # type: ignore[arg-type]
    worst = sorted(d["layers"], key=lambda r: -(r["alone_nats"] if r["alone_nats"] is not None else math.inf))[:8]
    for r in worst:
        layers.add_row(r["name"], r["grid"], number(r["alone_nats"], 4), number(r["reach"]), f"{r['saturated']:.1%}")
    t = d["thresholds"]
    notes = f"τ = {t['tolerance_nats']:.4f} nats, seed {t['seed']}, spent " + ", ".join(
        f"{v} {k}" for k, v in d["spent"].items()
    )
    return Group(
        Panel(body, title=name or None, title_align="left"), evidence, Text(""), layers, Text(notes, style="dim")
    )


def trajectory_view(t: dict[str, Any]) -> Group:
    """A training trajectory (its JSON) as a table of at most twelve checks."""
    table = Table(box=None, header_style="bold")
    for head in (
        "step",
        "latent loss",
        "deployed loss",
        "flips",
        "ever flipped",
        "distance",
        "bound",
        "pull",
        "inside",
    ):
        table.add_column(head, justify="right")
    checks = t["checks"]
    stride = max(1, -(-len(checks) // 12))
    shown = [c for i, c in enumerate(checks) if i % stride == 0 or i == len(checks) - 1]
    for c in shown:
        table.add_row(
            str(c["step"]), number(c["latent_loss"], 4), number(c["deployed_loss"], 4), str(c["flips"]),
            f"{c['unique_flips'] / max(t['weights'], 1):.1%}", number(c["distance"]), number(c["bound"]),
            number(c["pull"]), "yes" if c["inside"] else "no",
        )  # fmt: skip
    if t["recovery_step"] is not None:
        verdict = f"Back inside since step {t['recovery_step']} (float loss {t['float_loss']:.4f} nats)."
    else:
        verdict = f"Not back inside after {t['steps']} steps (float loss {t['float_loss']:.4f} nats)."
    losses = ", ".join(f"{k} {number(v, 4)}" for k, v in t["losses"].items())
    return Group(table, Text(f"{verdict} Iterates: {losses}; kept: {t['chosen']}. {t['seconds']:.1f} s."))


def theory_view(checks: list[Any]) -> Group:
    """The checks of the theory as a table, with a line of totals."""
    table = Table(box=None, header_style="bold")
    table.add_column("check")
    table.add_column("of", style="dim")
    for head in ("instances", "violations", "ratio min/median/max", "s"):
        table.add_column(head, justify="right")
    table.add_column("verdict")
    for c in checks:
        ratio = "–" if c.ratio is None else " / ".join(f"{r:.3g}" for r in c.ratio)
        style = "green" if not c.violations else "red"
        table.add_row(
            c.name, c.origin, f"{c.instances:,}", str(c.violations), ratio, f"{c.seconds:.1f}",
            Text(c.verdict, style=style),
        )  # fmt: skip
    wrong = sum(bool(c.violations) for c in checks)
    line = f"{len(checks)} checks, {sum(c.instances for c in checks):,} instances, {wrong} with violations."
    return Group(table, Text(line, style="bold"))
