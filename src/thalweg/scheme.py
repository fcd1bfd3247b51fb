"""Schemes: which tensors are quantized, to which levels, and how scales are shared.

==================  ==============================================================================
``w8 w4 w3 w2``     signed integers of so many bits (1 to 8), one scale per output channel
``w4g128``          one scale per group of 128 columns; ``p`` pads a last short group: ``w4g128p``
``w4t``             one scale for the tensor
``w4a``, ``w4g32a`` asymmetric: with a zero point
``ternary``         three levels -1, 0, 1
``nf4g64``          the 16 quantiles of a normal law (QLoRA, arXiv:2305.14314, appendix E)
``fp4g32``          4-bit floats E2M1: 0, ±.5, ±1, ±1.5, ±2, ±3, ±4, ±6
``w2,head=float``   exceptions by glob over layer names; the last that matches wins
==================  ==============================================================================
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from . import catalog
from .errors import ThalwegError, unknown
from .formats import E2M1, NF4
from .grid import Grid, Layout

TABLES = {"ternary": (-1.0, 0.0, 1.0), "nf4": NF4, "fp4": E2M1}
EXAMPLES = ("w8", "w4", "w3", "w2", "w4t", "w4a", "w4g128", "w4g32a", "ternary", "nf4g64", "fp4g32")
PATTERN = re.compile(r"(?:w(?P<bits>\d+)|(?P<table>[a-z]+\d*?(?:4)?))(?P<share>t|g(?P<group>\d+))?(?P<flags>[ap]*)")


@dataclass(frozen=True)
class Rule:
    """One scheme word, such as ``w4g128a``, read."""

    text: str
    levels: tuple[float, ...]
    group: int | None = None
    per_tensor: bool = False
    asymmetric: bool = False
    pad: bool = False

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read one word; :class:`ThalwegError` with the nearest known words otherwise."""
        match = PATTERN.fullmatch(text.strip())
        table = match and match["table"]
        if match is None or (table is not None and table not in TABLES):
            raise unknown("scheme", text, EXAMPLES)
        flags = match["flags"] or ""
        if match["bits"] is not None:
            bits = int(match["bits"])
            if not 1 <= bits <= 8:
                raise ThalwegError(f"Scheme {text!r} asks for {bits} bits. Use 1 to 8.")
            low = 0 if "a" in flags else -(2 ** (bits - 1))
            levels = tuple(float(low + i) for i in range(2**bits))
        else:
            levels = TABLES[str(table)]
            if "a" in flags:
                raise ThalwegError(f"Scheme {text!r}: a level table has no zero point. Leave the `a` out.")
        group = int(match["group"]) if match["group"] else None
        if group == 0 or ("p" in flags and group is None):
            raise ThalwegError(f"Scheme {text!r} needs a group size of at least 1, such as {text.strip('p')}g32p.")
        return cls(text, levels, group, match["share"] == "t", "a" in flags, "p" in flags)

    def layout(self, shape: tuple[int, ...], axis: int) -> Layout:
        """How scales are shared over a weight of this shape."""
        whole = Layout(shape, 1, axis)
        return Layout(shape, min(self.group or whole.columns, max(whole.columns, 1)) or 1, axis, self.per_tensor)


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
            grouped = word != "float" and Rule.parse(word).group and not Rule.parse(word).pad
            return f"{word}p" if grouped else word

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
        odd = [n for n, r in rules.items() if r.group and not r.pad and layouts[n].columns % r.group]
        if odd:
            rule = rules[odd[0]]
            listed = ", ".join(f"{n} ({layouts[n].columns} columns)" for n in odd[:6])
            more = f" and {len(odd) - 6} more" if len(odd) > 6 else ""
            padded, channel = f"{rule.text}p", rule.text.replace(f"g{rule.group}", "")
            raise ThalwegError(
                f"Group size {rule.group} does not divide {listed}{more}. "
                f"Pad the last group with {padded!r}, or use one scale per channel with {channel!r}."
            )
        return layouts

    def grids(
        self,
        weights: Mapping[str, Tensor],
        axes: Mapping[str, int] | None = None,
        fit: str = "mse",
    ) -> dict[str, Grid]:
        """Fit a grid to every weight that the scheme quantizes.

        ``axes``: the output axis of each weight (0 unless named). ``fit``: a quantizer of the catalogue.
        Raises :class:`ThalwegError` where a group size divides no row (naming the layers), where a weight
        is not finite, or where nothing is left to quantize.
        """
        quantizer = catalog.get("quantizers", fit)
        layouts = self.layouts(weights, axes)
        out = {}
        for name, layout in layouts.items():
            rule = self.rule(name)
            assert rule is not None
            levels = torch.tensor(rule.levels, device=weights[name].device)
            weight = weights[name].detach().float()
            bad = int((~torch.isfinite(weight)).sum())
            if bad:
                raise ThalwegError(
                    f"Tensor {name!r} has {bad} NaN or infinite entries. Repair the model before quantizing it."
                )
            scale, zero = quantizer(weight, layout, levels, rule.asymmetric)
            out[name] = Grid(layout, levels, scale, zero, rule.text)
        return out
