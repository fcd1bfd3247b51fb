"""A certificate: a low-loss point on the grid of a failed one, and whether the local objective saw the difference."""

from __future__ import annotations

from dataclasses import dataclass

from .calibration import Visit
from .objective import Objective
from .point import QuantizedPoint


@dataclass(frozen=True)
class Certificate:
    """A low-loss point on the same grid: the failure was one of selection, not of the grid.

    ``changed``: share of codes that differ from the failed point, ``levels``: by how many on average.
    ``local_failed``, ``local_found``: the layerwise second-order objective J of both points; *blind* where
    it prefers the failed one.
    """

    loss: float
    rise_nats: float
    reach: float
    changed: float
    levels: float
    local_failed: float
    local_found: float

    @property
    def blind(self) -> bool:
        """True where the local objective clearly (by 1 %) prefers the point that failed."""
        return self.local_failed < 0.99 * self.local_found


def local_objectives(objective: Objective, points: list[QuantizedPoint]) -> list[float]:
    """The layerwise second-order objective ``J = Σ ½ tr((q-w) H (q-w)ᵀ)`` of several points at once, with
    ``H`` from float calibration inputs. Cost: one calibration forward."""
    totals = [0.0] * len(points)

    def visit(layer: Visit) -> None:
        for i, point in enumerate(points):
            if layer.name not in point.grids:
                continue
            shape = point.grids[layer.name].layout
            error = shape.matrix(point.weights[layer.name] - point.reference[layer.name])
            split = error.reshape(layer.hessian.shape[0], -1, layer.hessian.shape[-1]).to(layer.hessian.dtype)
            totals[i] += float(((split @ layer.hessian) * split).sum().double() / 2)

    objective.calibrate(visit, points[0].grids)
    return totals


def certify(objective: Objective, failed: QuantizedPoint, found: QuantizedPoint, base: float) -> Certificate:
    """Compare a failed point with a low-loss point on the same grid. Cost: one forward, one calibration."""
    changed, levels = found.changed(failed)
    failed_local, found_local = local_objectives(objective, [failed, found])
    loss = objective.loss(found.deployed)
    return Certificate(loss, loss - base, found.reach, changed, levels, failed_local, found_local)
