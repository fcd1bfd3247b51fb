"""Words of a scheme: to which levels a tensor is quantized, and how its scales are shared.

======================  ==========================================================================
``w8 w4 w3 w2``         two's complement integers of so many bits (1 to 8), one scale per output channel
``w4r``                 restricted: without the lowest, -7 ... 7
``w4h``                 half-integers -7.5 ... 7.5, no zero
``w4a``, ``w4g32a``     asymmetric: with a zero point
``w4g128``              one scale per group of 128 columns; ``p`` pads a last short group: ``w4g128p``
``w4t``                 one scale for the tensor
``w4b16x32``            one scale per block of 16 rows and 32 columns
``ternary``             three levels -1, 0, 1
``binary``              two levels -1, 1
``lsbq1`` ... ``lsbq4`` sums ±v1 ±v2 ... with v learned for each scale (PARQ, arXiv:2503.15748, section 4)
``codebook1``           2 learned levels for each scale, up to ``codebook4`` with 16: k means
``nf4g64``              the 16 quantiles of a normal law (QLoRA, arXiv:2305.14314, appendix E)
``fp4g32``              4-bit floats E2M1: 0, ±.5, ±1, ±1.5, ±2, ±3, ±4, ±6
``mxfp4``               E2M1 with a power-of-two scale per 32 columns (OCP Microscaling 1.0)
``nvfp4``               E2M1 with an E4M3 scale per 16 columns, and a float32 scale of the tensor
``fp8``, ``fp8e5m2``    8-bit floats E4M3 and E5M2, finite values (arXiv:2209.05433)
``w4g32@f16``           scales in ``f16``, ``bf16``, ``e8m0`` (powers of two) or ``e4m3`` (float32 otherwise)
======================  ==========================================================================

Shares (``t g b``) and ``p`` go with every word. Learned tables are stored for each scale: use wide groups.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ThalwegError, unknown
from .fitting import Fit
from .formats import E2M1, E4M3, E5M2, NF4
from .grid import Layout

TABLES = {
    "ternary": (-1.0, 0.0, 1.0),
    "binary": (-1.0, 1.0),
    "nf4": NF4,
    "fp4": E2M1,
    "mxfp4": E2M1,
    "nvfp4": E2M1,
    "fp8": E4M3,
    "fp8e5m2": E5M2,
}
BLOCK_FORMATS = {"mxfp4": (32, "e8m0"), "nvfp4": (16, "e4m3")}
"""Group size and scale format that come with a name."""
FORMATS = {"f16": "float16", "bf16": "bfloat16", "e8m0": "e8m0", "e4m3": "e4m3"}
EXAMPLES = (
    "w8", "w4", "w3", "w2", "w4r", "w4h", "w4t", "w4a", "w4g128", "w4g32a", "w4b16x32", "w4g32@f16", "ternary",
    "binary", "lsbq2", "lsbq3", "codebook2", "codebook3", "nf4g64", "fp4g32", "mxfp4", "nvfp4", "fp8", "fp8e5m2",
)  # fmt: skip
PATTERN = re.compile(
    r"(?:w(?P<bits>\d+)|(?P<learned>lsbq|codebook)(?P<size>[1-4])|"
    rf"(?P<table>{'|'.join(sorted(TABLES, key=len, reverse=True))}))"
    r"(?P<share>t|g(?P<group>\d+)|b(?P<high>\d+)x(?P<wide>\d+))?(?P<flags>[aphr]*)"
    rf"(?:@(?P<format>{'|'.join(FORMATS)}))?"
)


def half_integers(bits: int) -> tuple[float, ...]:
    """2^bits levels at odd multiples of one half."""
    return tuple(i - (2**bits - 1) / 2 for i in range(2**bits))


@dataclass(frozen=True)
class Rule:
    """One scheme word, such as ``w4g128a``, read. ``block_rows``: rows per scale. ``family``, ``scale_format``: as in
    :class:`~thalweg.fitting.Fit`."""

    text: str
    levels: tuple[float, ...]
    group: int | None = None
    per_tensor: bool = False
    asymmetric: bool = False
    pad: bool = False
    block_rows: int = 1
    family: str = "fixed"
    scale_format: str = "float32"

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read one word; :class:`ThalwegError` with the nearest known words otherwise."""
        match = PATTERN.fullmatch(text.strip())
        if match is None:
            raise unknown("scheme", text, EXAMPLES)
        flags, table, family = match["flags"], match["table"], "fixed"
        group, scale_format = match["group"] or match["wide"], FORMATS.get(match["format"] or "", "float32")
        if match["bits"] is not None:
            levels = cls._integers(text, int(match["bits"]), flags)
        elif set(flags) - {"p"}:
            raise ThalwegError(f"Scheme {text!r}: a level table has no zero point and no variants. Leave a, h, r out.")
        elif table is None:
            family, levels = match["learned"], half_integers(int(match["size"]))
            levels = tuple(x / levels[-1] for x in levels)
            if match["format"]:
                raise ThalwegError(f"Scheme {text!r}: a learned table holds its scale in float32. Leave the @ out.")
        else:
            levels = TABLES[table]
        if table in BLOCK_FORMATS:
            size, own = BLOCK_FORMATS[table]
            if match["share"] == "t" or (match["format"] and scale_format != own):
                raise ThalwegError(f"Scheme {text!r}: {table} has {own} scales per group. Use {table!r} or fp4.")
            group, scale_format = group or str(size), own
        if (group is not None and int(group) == 0) or match["high"] == "0" or ("p" in flags and group is None):
            raise ThalwegError(f"Scheme {text!r} needs a group size of at least 1, such as w4g32p.")
        return cls(
            text.strip(),
            levels,
            int(group) if group else None,
            match["share"] == "t",
            "a" in flags,
            "p" in flags,
            int(match["high"] or 1),
            family,
            scale_format,
        )

    @staticmethod
    def _integers(text: str, bits: int, flags: str) -> tuple[float, ...]:
        if not 1 <= bits <= 8:
            raise ThalwegError(f"Scheme {text!r} asks for {bits} bits. Use 1 to 8.")
        kinds = [f for f in "ahr" if f in flags]
        if len(kinds) > 1 or (bits == 1 and kinds == ["r"]):
            raise ThalwegError(
                f"Scheme {text!r} has no such levels. Use one of a (asymmetric), h (half-integers), r (restricted, "
                "from 2 bits)."
            )
        if kinds == ["h"]:
            return half_integers(bits)
        low = 0 if kinds == ["a"] else -(2 ** (bits - 1))
        return tuple(float(low + i) for i in range(int(kinds == ["r"]), 2**bits))

    def layout(self, shape: tuple[int, ...], axis: int) -> Layout:
        """How scales are shared over a weight of this shape."""
        whole = Layout(shape, 1, axis)
        group = min(self.group or whole.columns, max(whole.columns, 1)) or 1
        return Layout(shape, group, axis, self.per_tensor, self.block_rows)

    def fit(self, weight: Tensor, layout: Layout, importance: Tensor | None = None) -> Fit:
        """What a quantizer is asked for a float weight."""
        levels = torch.tensor(self.levels, device=weight.device)
        return Fit(
            weight.detach().float(),
            layout,
            levels,
            self.asymmetric,
            self.family,
            self.scale_format,
            importance,
            self.text,
        )
