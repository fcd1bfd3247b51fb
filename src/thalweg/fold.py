"""Folding: factors of input channels move into the operation that makes these channels.

A grid with ``columns`` rounds ``w s`` and divides by ``s`` when it decodes. The layer's output is
``Q(w s) (x / s)``, so the division can be done by whatever computes ``x``: the affine weight of a norm, or the
output channels of a layer with only a positively homogeneous function per channel (ReLU, dropout, a gate, attention's
mixing of positions) in between. What is stored then lies on the plain grid.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ThalwegError
from .formats import snap
from .layers import is_transposed_linear, quantizable
from .point import QuantizedPoint

GATED = {"o_proj": "v_proj", "out_proj": "v_proj", "down_proj": "up_proj", "w2": "w3"}
"""Layers whose input channels are the output channels of a neighbour by the conventions of model families; every such
pair is checked against the model's output before it is used."""
PASSING = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Flatten, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class Folded:
    """``point``: on plain grids where folding was possible. ``model``: a copy of the model that computes the same
    function with its norms, biases and float weights rescaled; load ``point.weights`` into it. ``into``: by
    layer, the module that took its factors; ``kept``: why a layer keeps them. ``error``: largest change of the
    float model's output on the sample, relative to its largest output."""

    point: QuantizedPoint
    model: nn.Module
    into: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    error: float = 0.0


def fold(
    point: QuantizedPoint,
    model: nn.Module,
    sample: Any,
    run: Callable[[nn.Module, Any], Any] | None = None,
    tolerance: float = 1e-4,
) -> Folded:
    """Move the factors of the input channels into the operations before, wherever that is exact.

    One forward on ``sample`` shows which module made each layer's input. A fold is used if it leaves the float
    model's output on the sample as it was up to ``tolerance`` of its largest entry; factors that are powers of two
    leave it equal to the bit. All layers that read the same input are treated together: quantized ones need the
    same factors, float ones are rescaled.

    Args:
        point: of a method that returned ``columns`` factors, such as ``awq``.
        model: the float model that the point came from; it is copied and not touched.
        sample: one batch: a tensor, a mapping of keywords, or a tuple whose first entry is the input.
        run: ``run(model, sample)`` where the model is called in another way.
        tolerance: largest relative change of the output that passes for float rounding.

    Raises:
        ThalwegError: the model does not hold the point's weights, or the point carries tensors outside its grids.

    Cost: three forwards on the sample, and one per group of layers if the joint check fails.
    """
    call = run or _run
    parameters = dict(model.named_parameters())
    for name, value in point.reference.items():
        if name not in parameters or not torch.equal(parameters[name].detach().to(value), value):
            raise ThalwegError(f"Weight {name!r} of the model is not the point's reference. Pass its float model.")
    wanted = [name for name, grid in point.grids.items() if grid.columns is not None]
    if not wanted:
        return Folded(point, copy.deepcopy(model))
    if point.extra:
        raise ThalwegError(
            f"The point also carries {len(point.extra)} other tensors, such as {next(iter(point.extra))!r}, which may "
            "be those that take the factors. Fold before training norms, or export with --to dequantized."
        )
    training = model.training
    base = copy.deepcopy(model).eval()
    kept: dict[str, str] = {}
    plans = _plans(base, sample, call, wanted, kept)
    expected = _output(call(base, sample))

    def attempt(chosen: list[tuple[str, list[str]]]) -> tuple[Folded, dict[str, str]]:
        twin, moved, why = copy.deepcopy(base), point, {}
        into: dict[str, str] = {}
        for source, readers in chosen:
            reason, moved = _apply(twin, moved, source, readers)
            for name in readers:
                if reason is None and name in point.grids:
                    into[name] = source
                elif reason is not None:
                    why[name] = reason
        change = (_output(call(twin, sample)) - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        return Folded(moved, twin, into, why, float(change)), why

    with torch.no_grad():
        result, why = attempt(plans)
        if not result.error <= tolerance:
            good = []
            for plan in plans:
                if attempt([plan])[0].error <= tolerance:
                    good.append(plan)
                else:
                    kept |= dict.fromkeys(plan[1], f"dividing the output of {plan[0]} changes the model's output")
            result, why = attempt(good)
    kept = {n: r for n, r in {**kept, **why}.items() if n in wanted and n not in result.into}
    result.model.train(training)
    return replace(result, kept=kept)


def _run(model: nn.Module, sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return model(**{key: value for key, value in sample.items() if key != "labels"})
    return model(sample[0] if isinstance(sample, list | tuple) else sample)


def _output(output: Any) -> Tensor:
    output = getattr(output, "logits", output)
    return (output[0] if isinstance(output, list | tuple) else output).detach().float()


def _plans(
    model: nn.Module, sample: Any, call: Callable[[nn.Module, Any], Any], wanted: list[str], kept: dict[str, str]
) -> list[tuple[str, list[str]]]:
    """Which module feeds which weights: ``(module, weights that read its output)``, by one traced forward."""
    made: dict[int, str] = {}
    fed: dict[str, Tensor] = {}
    alive: list[Any] = []  # an id is only good while its tensor lives

    def hook(name: str) -> Callable[..., None]:
        def after(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                alive.append(output)
                made.setdefault(id(output), name)
            if arguments and isinstance(arguments[0], Tensor):
                alive.append(arguments[0])
                fed[name] = arguments[0]

        return after

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            call(model, sample)
    finally:
        for handle in handles:
            handle.remove()

    def source(layer: str) -> str | None:
        at = made.get(id(fed[layer])) if layer in fed else None
        while at is not None and isinstance(model.get_submodule(at), PASSING):
            at = made.get(id(fed[at])) if at in fed else None
        if at is None:
            parent, _, last = layer.rpartition(".")
            twin = f"{parent}.{GATED.get(last, '')}"
            at = twin if twin in fed else None
        return at

    modules = {name: layer.module for name, layer in quantizable(model).items()}
    sources = {name: source(module) for name, module in modules.items()}
    for name in wanted:
        if sources[name] is None:
            kept[name] = "no norm or layer makes its input alone"
    used = dict.fromkeys(sources[name] for name in wanted)
    return [(at, [n for n in sources if sources[n] == at]) for at in used if at is not None]


def _apply(
    model: nn.Module, point: QuantizedPoint, source: str, readers: list[str]
) -> tuple[str | None, QuantizedPoint]:
    """Divide the output of a module and multiply the weights that read it, in place in ``model``. Returns the reason
    where that is not possible, and the point on the new grids."""
    parameters, layers = dict(model.named_parameters()), quantizable(model)
    own = f"{source}.weight"
    factors: Tensor | None = None
    for name in readers:
        mine = point.grids[name].columns if name in point.grids else None
        if name in point.grids and mine is None:
            return f"{name} reads the same input and has no factors", point
        if mine is None:
            continue
        channels = _by_channel(mine, model.get_submodule(layers[name].module))
        if channels is None or (factors is not None and not torch.equal(factors, channels)):
            return f"the layers that read the output of {source} have different factors", point
        factors = channels
    assert factors is not None
    maker, grid = model.get_submodule(source), point.grids.get(own)
    weight = parameters.get(own)
    if weight is None:
        return f"{source} has no weight that could take them", point
    axis = layers[own].axis if own in layers else 0
    if own not in layers and weight.ndim != 1:
        return f"{source} ({type(maker).__name__}) is neither a norm nor a layer", point
    if weight.shape[axis] != len(factors):
        return f"{source} has {weight.shape[axis]} output channels for {len(factors)} inputs", point
    grids, reference = dict(point.grids), dict(point.reference)
    if grid is not None:
        if grid.layout.per_tensor or grid.scale.shape[0] != len(factors):
            return f"{source} shares scales between its output channels", point
        scale = grid.scale / factors.unsqueeze(1)
        if grid.levels.ndim == 3:
            grids[own] = replace(grid, levels=grid.levels / factors.view(-1, 1, 1))
        elif torch.equal(snap(scale, grid.scale_format, grid.tensor_scale), scale):
            grids[own] = replace(grid, scale=scale)
        else:
            return f"the scale format of {source} cannot hold the divided scales", point
        reference[own] = _along(reference[own], 1 / factors, axis)
    weight.copy_(_along(weight, 1 / factors, axis))
    if isinstance(bias := parameters.get(f"{source}.bias"), Tensor):
        bias.copy_(bias / factors)
    for name in readers:
        layer = layers[name]
        wide = _by_column(factors, model.get_submodule(layer.module))
        parameters[name].copy_(_on_columns(parameters[name], wide, layer.axis))
        if name in grids:
            reference[name] = _on_columns(reference[name], wide, layer.axis)
            grids[name] = replace(grids[name], columns=None)
    return None, QuantizedPoint(reference, point.codes, grids, point.provenance, point.notes)


def _taps(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return 1 if is_transposed_linear(module) else math.prod(weight.shape[2:])


def _by_channel(columns: Tensor, module: nn.Module) -> Tensor | None:
    """Factors of a layer's input channels from those of its columns; None where taps of a channel differ."""
    shared = columns.view(-1, _taps(module))
    if not bool((shared == shared[:, :1]).all()):
        return None
    return shared[:, 0].repeat(int(getattr(module, "groups", 1)))


def _by_column(channels: Tensor, module: nn.Module) -> Tensor:
    """Inverse of :func:`_by_channel`; for a grouped convolution ``[groups, columns]``."""
    return channels.view(int(getattr(module, "groups", 1)), -1).repeat_interleave(_taps(module), 1)


def _along(weight: Tensor, factors: Tensor, axis: int) -> Tensor:
    """A weight times one factor per entry of an axis."""
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return (weight.float() * factors.view(shape)).to(weight.dtype)


def _on_columns(weight: Tensor, columns: Tensor, axis: int) -> Tensor:
    """A weight times one factor per column, ``[channel groups, columns]``."""
    rows = weight.movedim(axis, 0)
    matrix = rows.reshape(columns.shape[0], -1, columns.shape[1]).float() * columns.unsqueeze(1)
    return matrix.reshape(rows.shape).movedim(0, axis).to(weight.dtype).contiguous()
