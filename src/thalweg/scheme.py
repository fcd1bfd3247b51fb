"""Schemes: which tensors are quantized, and by which rule: ``w4``, or ``w2,head=float,blocks.0.*=w4g128``.

The first word (:mod:`thalweg.rule` lists them all) is for every layer. Behind it stand exceptions by glob over layer
names; the last that matches wins, ``float`` leaves a layer alone.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from . import catalog
from .calibration import Visit
from .errors import ThalwegError
from .fitting import Fit
from .grid import Grid, Layout
from .objective import Objective
from .rule import Rule


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
