"""The ternary scale by the threshold rule of ternary weight networks."""

from __future__ import annotations

from ..fitting import Fit
from ..grid import Grid

FACTOR = 0.7


def threshold(fit: Fit) -> Grid:
    """Mean of the magnitudes above ``0.7 mean|w|`` (TWN, arXiv:1605.04711, equation 6); ternary only.

    The rule approximates the least squares of ``mse`` for normal or uniform weights. The grid rounds to the nearest
    level, so zeros end at half the scale, which at the optimum is the threshold itself. Cost: two passes.

    Raises:
        ThalwegError: levels that are not ternary.
    """
    if fit.levels.tolist() != [-1.0, 0.0, 1.0]:
        raise fit.refuse("threshold", "ternary levels")
    size = fit.blocks.abs()
    count = fit.total(size * 0 + 1)
    above = size > FACTOR * (fit.total(size) / count.clamp(min=1)).unsqueeze(-1)
    return fit.grid(fit.snap(fit.total(size * above) / fit.total(above.float()).clamp(min=1)))
