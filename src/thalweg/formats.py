"""Number formats: the values of small floats, and what a scale stored in a small format becomes.

E4M3 and E5M2 are the 8-bit floats of arXiv:2209.05433 (finite values only); E2M1 and E8M0 are the element and the
scale of the OCP Microscaling specification 1.0 (sections 5.3 and 5.4); NF4 is from QLoRA, arXiv:2305.14314, appendix E.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 2.0**-100
"""Smallest scale: a channel of zeros keeps a step, and no scale is ever subnormal."""

SCALE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "e8m0": 8, "e4m3": 8}
"""Storage of one scale; ``e4m3`` has a float32 scale of the whole tensor besides."""
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""Scale formats in which real zero points are stored too."""


def minifloat(exponent: int, mantissa: int, *, bias: int, drop: int = 0) -> tuple[float, ...]:
    """All finite values of a small float, increasing, with one zero; ``drop`` largest magnitudes are not numbers."""
    positive = [
        (m + (2**mantissa if e else 0)) * 2.0 ** (max(e, 1) - bias - mantissa)
        for e in range(2**exponent)
        for m in range(2**mantissa)
    ]
    positive = positive[1 : len(positive) - drop]
    return (*(-x for x in reversed(positive)), 0.0, *positive)


NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
E2M1 = minifloat(2, 1, bias=1)
E4M3 = minifloat(4, 3, bias=7, drop=1)
E5M2 = minifloat(5, 2, bias=15, drop=4)
_DTYPES = {**HALVES, "e4m3": torch.float8_e4m3fn}


def power_of_two(exponent: Tensor) -> Tensor:
    """``2^exponent`` of whole numbers, exactly, as float32; exponents clamped to -100 ... 127."""
    return ((exponent.clamp(-100, 127).int() + 127) << 23).view(torch.float32)


def snap(scale: Tensor, to: str, tensor_scale: Tensor | None = None) -> Tensor:
    """The nearest positive float32 that the scale format holds; ``e4m3`` in units of ``tensor_scale``.

    Powers of two are nearest in the logarithm. Values beyond the format's range become its largest or smallest
    positive number.
    """
    scale = scale.clamp(min=TINY)
    if to == "float32":
        return scale
    if to == "e8m0":
        return power_of_two(scale.log2().round())
    unit = torch.ones((), device=scale.device) if tensor_scale is None else tensor_scale
    info = torch.finfo(_DTYPES[to])
    low = max(info.tiny if to == "bfloat16" else info.smallest_normal * info.eps, TINY)
    return (scale / unit).clamp(low, info.max).to(_DTYPES[to]).float() * unit
