"""A quantized point: codes on grids, next to the float weights they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__, catalog, space
from .errors import ThalwegError
from .files import read_tensors, write_tensors
from .grid import Grid, Layout, Rounding
from .objective import Objective
from .scheme import Scheme, calibrated, importance
from .space import Point
from .task import Progress, silent

FORMAT, FIRST = "thalweg point 2", "thalweg point 1"
OPTIONAL = ("zero", "columns", "tensor_scale")
"""Tensors of a grid that may be absent."""


@dataclass(frozen=True)
class QuantizedPoint:
    """What a method chose. ``weights`` are the deployed values, decoded from ``codes``: the truth.

    ``provenance``: scheme, method, quantizer, seed, model, versions; ``notes``: what the method reported
    per layer. ``extra``: parameters and buffers outside the grids that differ from the float model (tuned norms,
    re-estimated BatchNorm statistics), by name; losses of the point are those at ``deployed``.
    """

    reference: Point
    codes: Point
    grids: dict[str, Grid]
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra: Point = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.codes.keys() == self.grids.keys() == self.reference.keys():
            raise ThalwegError("Codes, grids and reference weights name different tensors. Quantize again.")
        for name, grid in self.grids.items():
            grid.check_codes(self.codes[name])

    @cached_property
    def weights(self) -> Point:
        """Deployed weights: float values at grid points, in the dtype of the reference."""
        return {n: g.decode(self.codes[n], self.reference[n].dtype) for n, g in self.grids.items()}

    @property
    def deployed(self) -> Point:
        """Everything of the model that differs from the float model: ``{**weights, **extra}``."""
        return {**self.weights, **self.extra}

    @cached_property
    def step(self) -> Point:
        """Grid step around each reference weight: the unit of every length."""
        return {n: g.step(self.reference[n]) for n, g in self.grids.items()}

    @property
    def reach(self) -> float:
        """rms distance from the float weights, in steps. Plain unclipped rounding: about 1/√12 = 0.289."""
        return space.rms(space.sub(self.weights, self.reference), self.step)

    @property
    def bits_per_weight(self) -> float:
        """Storage per quantized weight, scales and zero points included."""
        total = space.size(self.reference)
        return sum(g.bits_per_weight * self.codes[n].numel() for n, g in self.grids.items()) / max(total, 1)

    def to(self, device: torch.device | str) -> QuantizedPoint:
        """The same point on another device."""
        moved = [{n: t.to(device) for n, t in part.items()} for part in (self.reference, self.codes, self.extra)]
        grids = {n: g.to(device) for n, g in self.grids.items()}
        return QuantizedPoint(moved[0], moved[1], grids, self.provenance, self.notes, moved[2])

    def with_codes(self, codes: Mapping[str, Tensor], **provenance: Any) -> QuantizedPoint:
        """Another point on the same grids."""
        made = {**self.provenance, **provenance}
        return QuantizedPoint(self.reference, dict(codes), self.grids, made, extra=self.extra)

    def changed(self, other: QuantizedPoint) -> tuple[float, float]:
        """Share of codes that differ from another point on the same grid, and the mean number of levels
        by which those differ."""
        moved = [(self.codes[n].int() - other.codes[n].int()).abs() for n in self.codes]
        count = sum(int((m > 0).sum()) for m in moved)
        levels = sum(int(m.sum()) for m in moved)
        return count / max(space.size(self.codes), 1), levels / count if count else 0.0

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, atomically. Reloading gives the same bits."""
        tensors: dict[str, Tensor] = {}
        layouts = {}
        tensors.update({f"extra/{name}": value for name, value in self.extra.items()})
        for name, grid in self.grids.items():
            tensors[f"codes/{name}"] = self.codes[name]
            tensors[f"reference/{name}"] = self.reference[name]
            tensors[f"scale/{name}"] = grid.scale
            tensors[f"levels/{name}"] = grid.levels
            for part in OPTIONAL:
                if getattr(grid, part) is not None:
                    tensors[f"{part}/{name}"] = getattr(grid, part)
            a = grid.layout
            shared = [list(a.shape), a.group, a.axis, a.per_tensor, a.block_rows]
            layouts[name] = [shared, grid.name, grid.scale_format, grid.table]
        meta = {
            "format": FORMAT,
            "grids": layouts,
            "provenance": self.provenance,
            "notes": self.notes,
            "codes": space.fingerprint(self.codes),
        }
        return write_tensors(path, tensors, meta)

    @classmethod
    def load(cls, path: str | Path) -> QuantizedPoint:
        """Read a point, also of the first format (a shared table, no column factors, scales in float32);
        :class:`ThalwegError` for a missing, foreign or corrupt file."""
        tensors, meta = read_tensors(path)
        if meta.get("format") not in (FORMAT, FIRST):
            raise ThalwegError(
                f"{path} is not a Thalweg point (format {meta.get('format')!r}, expected {FORMAT!r}). "
                "Make one with `thalweg quantize`."
            )
        try:
            codes, grids, reference = {}, {}, {}
            for name, entry in meta["grids"].items():
                first = meta["format"] == FIRST
                (shape, *shared), label, scale_format, table = (entry[:4], entry[4], "float32", 0) if first else entry
                layout = Layout(tuple(shape), *shared)
                codes[name], reference[name] = tensors[f"codes/{name}"], tensors[f"reference/{name}"]
                parts = {part: tensors.get(f"{part}/{name}") for part in OPTIONAL}
                grids[name] = Grid(
                    layout,
                    tensors[f"levels/{name}"],
                    tensors[f"scale/{name}"],
                    name=label,
                    scale_format=scale_format,
                    table=table,
                    **parts,
                )
            extra = {n.removeprefix("extra/"): t for n, t in tensors.items() if n.startswith("extra/")}
            whole = meta["codes"] == space.fingerprint(codes)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ThalwegError(f"{path} is incomplete ({error}). Quantize again.") from None
        if not whole:
            raise ThalwegError(f"The codes in {path} do not match their own checksum. Quantize again.")
        return cls(reference, codes, grids, meta["provenance"], meta["notes"], extra)


def quantize(
    objective: Objective,
    scheme: str | Scheme,
    method: str = "nearest",
    *,
    fit: str = "mse",
    seed: int = 0,
    keep_float: tuple[str, ...] = (),
    grids: dict[str, Grid] | None = None,
    progress: Progress = silent,
    **options: Any,
) -> QuantizedPoint:
    """Post-training quantization: fit a grid to every weight, then let a method choose the grid point.

    Args:
        objective: the model and its data, or a synthetic landscape.
        scheme: such as ``"w4g128"``, see :mod:`thalweg.scheme`.
        method: a rounding method of the catalogue (``thalweg list``).
        fit: the quantizer that fits scales, such as ``"mse"``, ``"absmax"``, or ``"activation"`` (one more
            calibration forward).
        seed: of random methods.
        keep_float: globs of layers left unquantized, such as ``("lm_head",)``.
        grids: use these instead of fitting (to compare methods on one grid).
        progress: handed to methods that report their progress.
        options: of the method (``thalweg list`` shows them).

    Raises:
        ThalwegError: unknown names and options, a group size that does not divide, no layer left to quantize.

    Cost: that of the method; ``nearest`` none, ``gptq`` one calibration forward.
    """
    chosen = catalog.get("methods", method)
    catalog.check_options("methods", method, options)
    reports = {"progress": progress} if "progress" in catalog.options("methods", method) else {}
    parsed = Scheme.parse(scheme, keep_float)
    if grids is None:
        layouts = parsed.layouts(objective.weights, objective.axes)
        columns = importance(objective, layouts) if calibrated(fit) else None
        grids = parsed.grids(objective.weights, objective.axes, fit, columns)
    result = chosen(objective, grids, seed, **reports, **options)
    rounding = result if isinstance(result, Rounding) else Rounding(result)
    return QuantizedPoint(
        {n: objective.weights[n].detach().clone() for n in grids},
        rounding.codes,
        rounding.grids or grids,
        {
            "scheme": str(parsed),
            "method": method,
            "fit": fit,
            "seed": seed,
            "options": options,
            "thalweg": __version__,
            "torch": torch.__version__,
        },
        dict(rounding.notes),
    )
