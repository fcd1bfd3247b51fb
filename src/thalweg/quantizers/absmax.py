"""The range that just holds every weight."""

from __future__ import annotations

from torch import Tensor

from ..grid import TINY, Layout


def absmax(weight: Tensor, layout: Layout, levels: Tensor, asymmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Smallest scale at which no weight is clipped by more than half a step.

    Returns scales ``[rows, groups]`` and zero points (None when symmetric). Signed integers use the range
    of 2^b levels around zero, so that the scale is ``max|w| / (2^b - 1) * 2``; level tables map ``max|w|``
    to their largest level. Cost: one pass. Do not trust it below 4 bits with outliers: use ``mse``.
    """
    blocks = layout.blocks(weight)
    if asymmetric:
        low = blocks.amin(-1).clamp(max=0.0)
        high = blocks.amax(-1).clamp(min=0.0)
        scale = ((high - low) / (len(levels) - 1)).clamp(min=TINY)
        return scale, (levels[0] - low / scale).round().clamp(levels[0], levels[-1])
    top = (levels[-1] - levels[0]) / 2
    return (blocks.abs().amax(-1) / top).clamp(min=TINY), None
