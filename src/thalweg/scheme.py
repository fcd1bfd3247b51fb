"""Schemes: which tensors are quantized, to which levels, and how scales are shared.

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
``w2,head=float``       exceptions by glob over layer names; the last that matches wins
======================  ==========================================================================

Shares (``t g b``) and ``p`` go with every word. Learned tables are stored for each scale: use wide groups.
"""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from . import catalog
from .calibration import Visit
from .errors import ThalwegError, unknown
from .fitting import Fit
from .formats import E2M1, E4M3, E5M2, NF4
from .grid import Grid, Layout
from .objective import Objective

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


@dataclass(frozen=True)
class Scheme:
    """A default rule with exceptions. ``Scheme.parse("w2,head=float,blocks.0.*=w4")``."""

    default: str
    exceptions: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str | Scheme, keep_float: Iterable[str] = ()) -> Scheme:
        """Read a scheme string. ``keep_float`` adds globs of unquantized layers *before* its exceptions."""
        if isinstance(text, Scheme):
            return text
        words = [word.strip() for word in text.split(",")]
        if not words[0] or "=" in words[0]:
            raise ThalwegError(f"Scheme {text!r} does not start with a default such as w4. Try 'w4,{words[0]}'.")
        exceptions = [(glob, "float") for glob in keep_float]
        for word in words[1:]:
            glob, sign, rule = word.partition("=")
            if not (glob and sign and rule):
                raise ThalwegError(f"Exception {word!r} in scheme {text!r} is not GLOB=SCHEME. Try 'head=float'.")
            exceptions.append((glob.strip(), rule.strip()))
        for rule in [words[0], *(rule for _, rule in exceptions)]:
            if rule != "float":
                Rule.parse(rule)
        return cls(words[0], tuple(exceptions))

    def __str__(self) -> str:
        return ",".join([self.default, *(f"{glob}={rule}" for glob, rule in self.exceptions)])

    def padded(self) -> Scheme:
        """The same scheme with short last groups allowed (the ``p`` flag on every group rule)."""

        def pad(word: str) -> str:
            if word == "float" or not Rule.parse(word).group or Rule.parse(word).pad:
                return word
            levels, at, scales = word.partition("@")
            return f"{levels}p{at}{scales}"

        return Scheme(pad(self.default), tuple((glob, pad(word)) for glob, word in self.exceptions))

    @cached_property
    def _rules(self) -> dict[str, Rule]:
        words = {self.default, *(rule for _, rule in self.exceptions)} - {"float"}
        return {word: Rule.parse(word) for word in words}

    def rule(self, name: str) -> Rule | None:
        """The rule for a weight, or None where it stays float.

        A glob matches the parameter's name, its layer's name, or the last part of the layer's name.
        """
        layer = name.removesuffix(".weight")
        chosen = self.default
        for glob, word in self.exceptions:
            if any(fnmatch.fnmatchcase(part, glob) for part in (name, layer, layer.rpartition(".")[2])):
                chosen = word
        return None if chosen == "float" else self._rules[chosen]

    def layouts(self, weights: Mapping[str, Tensor], axes: Mapping[str, int] | None = None) -> dict[str, Layout]:
        """How every quantized weight shares its scales; raises like :meth:`grids`, but fits nothing."""
        rules = {name: rule for name in weights if (rule := self.rule(name)) is not None}
        if not rules:
            raise ThalwegError(
                f"Scheme {str(self)!r} leaves no layer to quantize among {len(weights)}. "
                "The model needs Linear, Conv1d or Conv2d layers that no exception keeps float."
            )
        layouts = {n: r.layout(tuple(weights[n].shape), (axes or {}).get(n, 0)) for n, r in rules.items()}
        short = {
            n: f"{layouts[n].columns} columns" if layouts[n].columns % layouts[n].group else f"{layouts[n].rows} rows"
            for n, r in rules.items()
            if not r.pad and ((r.group and layouts[n].columns % r.group) or layouts[n].rows % r.block_rows)
        }
        if short:
            rule = rules[next(iter(short))]
            listed = ", ".join(f"{n} ({what})" for n, what in list(short.items())[:6])
            more = f" and {len(short) - 6} more" if len(short) > 6 else ""
            padded = Scheme(rule.text).padded().default
            size = f"Group size {rule.group}" if rule.block_rows == 1 else f"Block {rule.block_rows}x{rule.group}"
            channel = "" if rule.scale_format != "float32" or rule.block_rows > 1 else rule.text
            channel = channel.replace(f"g{rule.group}", "")
            raise ThalwegError(
                f"{size} does not divide {listed}{more}. Pad the last group with {padded!r}"
                + (f", or use one scale per channel with {channel!r}." if channel else ".")
            )
        return layouts

    def grids(
        self,
        weights: Mapping[str, Tensor],
        axes: Mapping[str, int] | None = None,
        fit: str = "mse",
        importance: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Grid]:
        """Fit a grid to every weight that the scheme quantizes.

        ``axes``: the output axis of each weight (0 unless named). ``fit``: a quantizer of the catalogue.
        ``importance``: from :func:`importance`, for quantizers that are calibrated; weights that it lacks count all
        columns alike. Raises :class:`ThalwegError` where a group size divides no row (naming the layers), where a
        weight is not finite, where nothing is left to quantize, or where a calibrated quantizer gets no importance.
        """
        catalog.get("quantizers", fit)
        layouts = self.layouts(weights, axes)
        out = {}
        for name, layout in layouts.items():
            rule = self.rule(name)
            assert rule is not None
            whole = bool(weights[name].float().sum().isfinite())  # one fast pass; count only where it may be bad
            bad = 0 if whole else int((~torch.isfinite(weights[name])).sum())
            if bad:
                raise ThalwegError(
                    f"Tensor {name!r} has {bad} NaN or infinite entries. Repair the model before quantizing it."
                )
            out[name] = _fitted(fit, rule.fit(weights[name], layout), importance, name)
        return out


def calibrated(fit: str) -> bool:
    """Whether a quantizer needs the importance of columns (its file says ``CALIBRATED = True``)."""
    module = inspect.getmodule(catalog.get("quantizers", fit))
    return bool(getattr(module, "CALIBRATED", False))


def importance(objective: Objective, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Mean square input of every column, ``[rows or 1, columns]`` by weight name, with float predecessors.

    The diagonal of each layer's ``H = 2/N XᵀX`` (of the loss's own Hessian, its negative part cut, for a plain
    function). Grouped convolutions have one row for each output channel. Cost: one calibration forward.
    """
    found: dict[str, Tensor] = {}

    def visit(layer: Visit) -> None:
        if layer.samples == 0:  # an embedding: all its columns count alike
            return
        diagonal = layer.hessian.diagonal(dim1=-2, dim2=-1).float().clamp(min=0.0)
        rows = objective.weights[layer.name].shape[(objective.axes or {}).get(layer.name, 0)]
        found[layer.name] = diagonal.repeat_interleave(rows // len(diagonal), 0) if len(diagonal) > 1 else diagonal

    objective.calibrate(visit, names)
    return found


def refit(grid: Grid, weight: Tensor, fit: str = "mse", importance: Tensor | None = None) -> Grid:
    """A grid of the same layout, levels or family, scale format and column factors, fitted to another weight.

    ``grid`` must come from a scheme (its name says which). ``importance`` as :func:`importance` returns it for one
    weight. Cost: that of the quantizer. Raises :class:`ThalwegError` for a grid that no scheme word names.
    """
    scaled = weight.detach().float()
    if grid.columns is not None:
        scaled = grid.layout.tensor(grid.layout.matrix(scaled) * grid.columns)
        importance = None if importance is None else importance / grid.columns.square()
    request = Rule.parse(grid.name).fit(scaled, grid.layout)
    new = _fitted(fit, request, None if importance is None else {"": importance}, "")
    return replace(new, columns=grid.columns)


def _fitted(fit: str, request: Fit, importance: Mapping[str, Tensor] | None, name: str) -> Grid:
    if calibrated(fit):
        if importance is None:
            raise ThalwegError(
                f"Quantizer {fit!r} weighs columns by their inputs, and none were measured. "
                "Pass importance=scheme.importance(objective), or call quantize(objective, ...)."
            )
        request = replace(request, importance=importance.get(name))
    grid: Grid = catalog.get("quantizers", fit)(request)
    return grid
