"""The evidence behind each verdict: measurements with their controls, reasons, layers, cost."""

from __future__ import annotations

from typing import Any

from . import blocks
from .facts import (
    Spot,
    by_bits,
    capital,
    loss_text,
    margin_text,
    methods,
    number,
    quartiles_text,
    radius_text,
    rise_text,
    spots,
)
from .tables import SHORT, Cell

LAYER_COLUMNS = (
    ("layer", "Name of the weight tensor."),
    ("point", "Whose grid values: rounding, second-order, recovered."),
    ("rise alone", "Loss rise in nats when only this layer is quantized."),
    ("reach", "Distance from the float weights, rms steps."),
    ("clipped", "Share of weights beyond the ends of the grid."),
    ("bits", "Bits per weight, scales included."),
    ("weights", "Number of weights."),
    ("output error", "Relative error of the layer's output, where the method reports it."),
)


def evidence(row: dict[str, Any]) -> str:
    """Everything measured on one scheme: reasons, a table of measurements by point, and the per-layer
    table."""
    found = spots(row)
    told = "".join(_reasons(s) for s in found)
    columns = [("measured", ""), *((SHORT.get(s.key, s.key), "") for s in found)]
    lines = [[Cell(name), *(Cell(v) for v in values)] for name, values in _measured(found)]
    table = blocks.table(f"Measurements, {row['scheme']}", columns, lines, sortable=False, kind="evidence")
    layers = blocks.table(f"Layers, {row['scheme']}", LAYER_COLUMNS, _layers(found))
    return told + table + blocks.folded("Layer by layer", layers, "layers")


def _reasons(spot: Spot) -> str:
    reasons = "".join(f"<li>{blocks.words(r)}</li>" for r in spot.diagnosis.get("reasons") or [])
    advice = spot.diagnosis.get("advice")
    tail = f"<p class=advice>{blocks.words(advice)}</p>" if advice else ""
    pull = pull_sentence(spot)
    reasons += f"<li>{blocks.words(pull)}</li>" if pull else ""
    head = f"{capital(blocks.words(spot.label))} {blocks.chip(spot.verdict)}"
    return f"<h4>{head}</h4><ul>{reasons}</ul>{tail}"


def pull_sentence(spot: Spot) -> str:
    """What the inward pull says against its controls, for points that are not low."""
    pull = spot.diagnosis.get("pull") or {}
    inward, mirrored, spread = pull.get("inward"), pull.get("mirrored"), pull.get("random")
    if spot.low or inward is None or mirrored is None or not spread:
        return ""
    text = f"Inward pull {inward:+.3f}; signs redrawn {mirrored:+.3f}, random directions ±{spread:.3f}: "
    if inward <= 2 * spread:
        return text + "the gradient does not point back more than chance."
    if inward - mirrored <= 2 * spread:
        return text + "the gradient points back, but not clearly more than after any displacement of this size."
    return text + "the gradient points back, more than after a displacement of this size with other signs."


def _measured(found: list[Spot]) -> list[tuple[str, list[str]]]:
    """Names with one text per point; lines on which no point has a value are left out."""

    def part(spot: Spot, *path: str) -> Any:
        value: Any = spot.diagnosis
        for key in path:
            value = (value or {}).get(key)
        return value

    def numbers(*path: str) -> list[str]:
        return [number(part(s, *path)) for s in found]

    def shares(*path: str) -> list[str]:
        return ["–" if part(s, *path) is None else f"{100 * part(s, *path):.2f} %" for s in found]

    lines = [
        (
            "validation loss, nats",
            [f"{loss_text(part(s, 'loss'))} (float {loss_text(part(s, 'float_loss'))})" for s in found],
        ),
        (
            "rise, nats ± paired standard error",
            [f"{rise_text(s.rise)} ± {number(part(s, 'stderr'), 2)}" for s in found],
        ),
        ("reach, rms steps", numbers("reach")),
        ("edge on the straight way, steps", [number(part(s, "segment", "edge_steps")) for s in found]),
        ("margin (edge ÷ reach)", [margin_text(s) for s in found]),
        (
            "typical radius, steps (quartiles)",
            [f"{radius_text(s)} ({quartiles_text(s) or '–'})" for s in found],
        ),
        ("worst radius, steps", numbers("worst", "steps")),
        ("luck (edge ÷ typical radius)", numbers("luck")),
        ("where it lies", [part(s, "segment", "membership") or "–" for s in found]),
        ("wall slope, nats per step", numbers("segment", "wall_slope")),
        ("wall exponent (2 is a bowl)", numbers("segment", "wall_exponent")),
        ("inward pull, cosine", numbers("pull", "inward")),
        ("… control: at the latent weights", numbers("pull", "latent")),
        ("… control: signs redrawn", numbers("pull", "mirrored")),
        ("… control: random directions, ±", numbers("pull", "random")),
        ("… within the walls' directions", numbers("pull", "normal")),
        ("pull exponent", numbers("pull", "exponent")),
        ("displacement in the walls' directions", shares("normal_split", "share")),
        ("… by chance", shares("normal_split", "expected")),
        (
            "steepest curvature, nats per step²",
            [number((part(s, "normal_values") or [None])[0]) for s in found],
        ),
        ("visibility from the float weights", numbers("visibility")),
        ("visibility from the point", numbers("visibility_rounded")),
        ("clipped weights", shares("saturated")),
        ("rise with fresh BatchNorm statistics", [_or_dash(s.repaired_by_norms) for s in found]),
        ("certificate: rise, nats", [_or_dash(part(s, "certificate", "rise_nats")) for s in found]),
        ("… its reach, steps", numbers("certificate", "reach")),
        ("… grid values changed", shares("certificate", "changed")),
        ("… by how many levels", numbers("certificate", "levels")),
        ("… local objective, failed against found", [_local(part(s, "certificate")) for s in found]),
        ("search budget", [_search(part(s, "search")) for s in found]),
        ("cost planned at most", [_cost(part(s, "planned")) for s in found]),
        ("cost spent", [_cost(part(s, "spent")) for s in found]),
    ]
    return [(name, values) for name, values in lines if any(v.strip("– ()±") for v in values)]


def _or_dash(value: float | None) -> str:
    return "–" if value is None else rise_text(value)


def _local(certificate: dict[str, Any] | None) -> str:
    failed, kept = (certificate or {}).get("local_failed"), (certificate or {}).get("local_found")
    if failed is None or kept is None:
        return "–"
    return f"{number(failed)} against {number(kept)}" + (
        ": blind, it prefers the failed point" if failed < kept else ""
    )


def _search(search: dict[str, Any] | None) -> str:
    if not search:
        return "–"
    found = "found" if search.get("found") else "not found"
    return f"{search.get('steps')} steps, lowest {loss_text(search.get('best_loss'))}: {found}"


def _cost(cost: dict[str, int] | None) -> str:
    return ", ".join(f"{v} {k}" for k, v in cost.items() if v) if cost else "–"


def _layers(found: list[Spot]) -> list[list[Cell]]:
    lines = []
    for spot in found:
        for layer in spot.diagnosis.get("layers") or []:
            rise, clipped, error = layer.get("alone_nats"), layer.get("saturated"), layer.get("output_error")
            lines.append([
                Cell(layer["name"]),
                Cell(SHORT.get(spot.key, spot.key)),
                Cell(rise_text(rise), rise),
                Cell(number(layer.get("reach")), layer.get("reach")),
                Cell("–" if clipped is None else f"{100 * clipped:.1f} %", clipped),
                Cell(number(layer.get("bits_per_weight")), layer.get("bits_per_weight")),
                Cell(f"{layer.get('weights') or 0:,}", layer.get("weights")),
                Cell(number(error), error),
            ])  # fmt: skip
    return sorted(lines, key=lambda c: -(c[2].value if isinstance(c[2].value, float) else float("inf")))


def totals(survey: dict[str, Any], kind: str) -> str:
    """Planned or spent cost, summed over every diagnosis; what a whole row spent where it is recorded."""
    count: dict[str, int] = {}
    for task in survey["tasks"]:
        for row in by_bits(task):
            if kind == "spent" and row.get("spent"):
                for name, value in row["spent"].items():
                    count[name] = count.get(name, 0) + value
                continue
            for spot in spots(row) or methods(row):
                for name, value in (spot.diagnosis.get(kind) or {}).items():
                    count[name] = count.get(name, 0) + value
    return ", ".join(f"{v:,} {k}" for k, v in count.items() if v)
