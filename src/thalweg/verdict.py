"""From measurements to a verdict: every rule in one place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .diagnosis import Diagnosis


def judge(d: Diagnosis) -> tuple[str, tuple[str, ...], str]:
    """Verdict, reasons and advice from the measurements alone. Cost: none."""
    t, way, loss, base = d.thresholds, d.segment, d.loss, d.float_loss
    tau, rise = t.tolerance_nats, d.rise
    margin, renewed, saturated, seen = d.margin, d.reestimated_loss, d.saturated, d.visibility
    certificate, search = d.certificate, d.search
    reasons: list[str] = []
    if not math.isfinite(loss):
        return (
            "not geometry",
            (f"The deployed loss is {loss}: an overflow or a division by zero, not a wall.",),
            "Check the model's numerics in its own precision, then quantize again.",
        )
    if rise <= tau:
        reasons.append(f"The deployed loss is {rise:+.3f} nats from the float loss; up to {tau:.3f} counts as low.")
        if way.membership == "beyond":
            reasons.append(f"A wall stands on the straight way, at {way.edge_steps:.2f} steps.")
        elif math.isinf(margin):
            reasons.append("No edge was found within four times the reach.")
        else:
            reasons.append(f"The edge is at {way.edge_steps:.2f} steps, the point at {way.reach_steps:.2f}.")
        return "inside", tuple(reasons), "Deploy it; nothing needs mending."
    reasons.append(
        f"The loss rises by {rise:.3f} nats ({tau:.3f} allowed): the edge is at {way.edge_steps:.2f} steps, "
        f"the point at {way.reach_steps:.2f}, {way.membership}."
    )
    found = certificate is not None and certificate.rise_nats <= tau
    if certificate is not None and found:
        reasons.append(
            f"A point on the same grid, {certificate.reach:.2f} steps from the float weights, has a rise of "
            f"{certificate.rise_nats:+.3f} nats; {certificate.changed:.1%} of the codes differ."
        )
    if renewed is not None and renewed < loss:
        share = (loss - renewed) / rise
        reasons.append(
            f"Re-estimated BatchNorm statistics alone remove {min(share, 1):.0%} of the rise, "
            f"leaving {renewed - base:+.3f} nats."
        )
        if share >= t.statistics or renewed <= base + tau:
            advice = "Re-estimate the BatchNorm statistics first; what then remains is for QAT."
            return "not geometry", tuple(reasons), advice
    if saturated > t.saturated and not found:
        reasons.append(f"{saturated:.0%} of the weights are clipped ({t.saturated:.0%} allowed).")
        return "not geometry", tuple(reasons), "Refit the scales: try the other quantizer, or smaller groups."
    if math.isfinite(seen) and seen < t.blind:
        reasons.append(f"Curvature at the float weights sees {max(seen, 0):.0%} of the rise (visibility).")
    if certificate is not None and found:
        if certificate.blind:
            reasons.append(
                f"The local objective prefers the failed point ({certificate.local_failed:.4g} against "
                f"{certificate.local_found:.4g}): it is blind to the wall."
            )
        return "bad point", tuple(reasons), "Keep the grid and choose another point on it: take the recovered one."
    if search is not None:
        reasons.append(
            f"{search.steps} steps of {search.description} came no lower than {search.best_loss - base:+.3f} nats."
        )
        advice = "Spend more bits or smaller groups on the layers with the largest rise alone, or search longer."
        return "bad grid", tuple(reasons), advice
    return "outside", tuple(reasons), "Search its grid for a low-loss point: `thalweg train`."
