"""One forward pass that stops at every layer: calibration with quantized predecessors.

Each calibration batch runs through the model in a lane (a thread) of its own. A lane halts before every
layer that is still to be visited. When all lanes stand before a layer, its input second moment is
known for the whole calibration set; the visitor may then replace the layer's weight, and the lanes go
on *with the new weight*. So every layer sees exactly the inputs that its quantized predecessors
produce, and the whole model costs one forward pass. Only one lane runs at a time.

Memory: the live activations of all lanes at one layer, plus one second moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ThalwegError
from .layers import Layer, add_second_moment, mirrored, patches, positions


@dataclass(frozen=True)
class Visit:
    """A layer as calibration sees it. ``samples``: N, rows that meet the weight. ``module`` and ``inputs``: the
    layer and what each batch feeds it (None and empty for a plain function). ``moment``: the Hessian, or a
    function that computes it when it is first asked for."""

    name: str
    moment: Tensor | Callable[[], Tensor]
    samples: int
    module: nn.Module | None = None
    inputs: tuple[Tensor, ...] = ()

    @property
    def hessian(self) -> Tensor:
        """``2/N XᵀX``, ``[channel groups, columns, columns]``: the Hessian of the layer's mean squared output error
        per output channel. Layers with the same input share one tensor. Cost: N n² at the first request."""
        return self.moment if isinstance(self.moment, Tensor) else self.moment()


Visitor = Callable[[Visit], Tensor | None]
"""Returns the weight that the layer has from now on, or None to leave it."""


class _Stop(BaseException):
    """Ends the lanes after an error in another."""


class _Lane(threading.Thread):
    def __init__(self, work: Callable[[], Any]):
        super().__init__(daemon=True)
        self.work, self.go, self.halted = work, threading.Semaphore(0), threading.Semaphore(0)
        self.at: str | None = None
        self.input: Tensor | None = None
        self.error: BaseException | None = None
        self.stopping = False

    def run(self) -> None:
        self.go.acquire()
        try:
            if not self.stopping:
                with torch.no_grad():
                    self.work()
        except _Stop:
            pass
        except BaseException as error:
            self.error = error
        self.at = self.input = None
        self.halted.release()

    def halt(self, name: str, x: Tensor) -> None:
        """Called inside the lane: wait before a layer."""
        self.at, self.input = name, x
        self.halted.release()
        self.go.acquire()
        if self.stopping:
            raise _Stop

    def advance(self) -> None:
        """Called outside: run until the lane halts or ends."""
        self.go.release()
        self.halted.acquire()
        if self.error is not None:
            raise self.error


def stream(
    model: nn.Module,
    layers: dict[str, Layer],
    run: Callable[[Any], Any],
    batches: Sequence[Any],
    visit: Visitor,
) -> None:
    """Visit every layer that the batches reach, in the order of execution. Cost: one forward, at most up to
    the input of the last layer.

    Weights are replaced, never written into, and the old ones are back in their places at the end. Embeddings
    come first, with no inputs and no samples. A weight that two layers share is visited once, with the inputs
    of the first, and replaced in both.
    """
    modules = {layer.weight: model.get_submodule(layer.module) for layer in layers.values()}
    waiting = dict.fromkeys(layers)
    order = {name: i for i, name in enumerate(layers)}
    lanes = [_Lane(partial(run, batch)) for batch in batches]
    previous: tuple[list[Tensor], Callable[[], Tensor], int] | None = None

    def hook(name: str) -> Callable[..., None]:
        def before(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            lane = threading.current_thread()
            if name in waiting and isinstance(lane, _Lane):
                lane.halt(name, arguments[0] if arguments else keywords["input"])

        return before

    originals = {name: (_weight(module), module) for name, module in modules.items()}
    handles = [
        modules[name].register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, layer in layers.items()
        if not layer.embedding
    ]
    try:
        for name in [n for n, layer in layers.items() if layer.embedding]:
            del waiting[name]
            weight = visit(Visit(name, partial(_no_moment, name), 0, modules[name]))
            if weight is not None:
                _put(model, _weight(modules[name]), nn.Parameter(weight.detach(), requires_grad=False))
        for lane in lanes:
            lane.start()
            lane.advance()
        while waiting and (at := {lane.at for lane in lanes if lane.at is not None}):
            name = min(at, key=order.__getitem__)
            here = [lane for lane in lanes if lane.at == name]
            inputs = [lane.input for lane in here if lane.input is not None]
            if previous is None or [id(x) for x in inputs] != [id(x) for x in previous[0]]:
                samples = sum(positions(modules[name], x) for x in inputs)
                previous = (inputs, cache(partial(_accumulate, modules[name], inputs, samples)), samples)
            weight = visit(Visit(name, previous[1], previous[2], modules[name], tuple(inputs)))
            if weight is not None:
                _put(model, _weight(modules[name]), nn.Parameter(weight.detach(), requires_grad=False))
            del waiting[name]
            if waiting:
                for lane in here:
                    lane.advance()
    finally:
        for handle in handles:
            handle.remove()
        for lane in lanes:
            if lane.is_alive():
                lane.stopping = True
                lane.go.release()
        for lane in lanes:
            if lane.ident is not None:
                lane.join()
        for original, module in originals.values():
            _put(model, _weight(module), original)


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _put(model: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put a parameter in the place of another, in every module that shares it."""
    for module in model.modules():
        for key, value in module._parameters.items():
            if value is old:
                module._parameters[key] = new


def _no_moment(name: str) -> Tensor:
    raise ThalwegError(
        f"Layer {name!r} is an embedding: its inputs are one-hot, and plain rounding is optimal. Round it to nearest."
    )


def _accumulate(module: nn.Module, inputs: Sequence[Tensor], samples: int) -> Tensor:
    total: Tensor | None = None
    for x in inputs:
        total = add_second_moment(patches(module, x.detach()), total)
    assert total is not None
    return mirrored(total).mul_(2.0 / max(samples, 1))


def dense_hessian(loss: Callable[[Tensor], Tensor], name: str, weight: Tensor) -> Tensor:
    """Exact Hessian ``[1, n, n]`` of a plain function in one tensor of at most 4,096 entries, all in one row.

    Raises:
        ThalwegError: more entries, or rows that a function may couple.
    """
    if weight.numel() > 4096:
        raise ThalwegError(
            f"Tensor {name!r} has {weight.numel()} entries, too many for a dense Hessian of a function. "
            "Use a model with layers, or at most 4096 entries."
        )
    if weight.ndim > 1 and weight.shape[0] > 1:
        raise ThalwegError(
            f"Tensor {name!r} of shape {tuple(weight.shape)} couples its rows in a plain function. "
            "Give second-order rounding one-dimensional tensors."
        )
    flat: Tensor = torch.func.hessian(loss)(weight.detach())
    return flat.reshape(1, weight.numel(), weight.numel())
