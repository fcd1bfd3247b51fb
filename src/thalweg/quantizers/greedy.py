"""Sums of signs, one after the other."""

from __future__ import annotations

from ..fitting import Fit
from ..grid import Grid
from ._lsbq import residual, table


def greedy(fit: Fit) -> Grid:
    """Least squares of one sign at a time on what the last left over; LSBQ and binary only.

    ``v_i = mean|r_i|``, ``r_{i+1} = r_i - v_i sign(r_i)`` from ``r_1 = w`` (XNOR-Net, arXiv:1603.05279, and its
    residual form, arXiv:1708.08687). Cost: one pass per bit. ``mse`` is never worse in squared error.

    Raises:
        ThalwegError: levels that are not sums of signs.
    """
    if fit.family != "lsbq" and fit.levels.tolist() != [-1.0, 1.0]:
        raise fit.refuse("greedy", "sums of signs (lsbq1 to lsbq4, binary)")
    sizes = residual(fit, len(fit.levels).bit_length() - 1)
    if fit.family != "lsbq":
        return fit.grid(fit.snap(sizes[..., 0]))
    scale, levels = table(sizes)
    return fit.grid(scale, levels=levels)
