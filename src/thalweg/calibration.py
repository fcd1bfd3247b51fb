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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Layer, patches, second_moment


@dataclass(frozen=True)
class Visit:
    """A layer as calibration sees it. ``hessian``: ``2/N XᵀX``, ``[channel groups, columns, columns]``,
    the Hessian of the layer's mean squared output error per output channel; layers with the same input
    share one tensor. ``samples``: N. ``module`` and ``inputs``: the layer and what each batch feeds it
    (None and empty for a plain function)."""

    name: str
    hessian: Tensor
    samples: int
    module: nn.Module | None = None
    inputs: tuple[Tensor, ...] = ()


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
    """Visit every layer that the batches reach, in the order of execution. Cost: one forward.

    Weights are replaced, never written into, and the old ones are back in their places at the end.
    """
    modules = {layer.weight: model.get_submodule(layer.module) for layer in layers.values()}
    waiting = dict.fromkeys(layers)
    order = {name: i for i, name in enumerate(layers)}
    lanes = [_Lane(partial(run, batch)) for batch in batches]
    previous: tuple[list[Tensor | None], Tensor, int] | None = None

    def hook(name: str) -> Callable[..., None]:
        def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            lane = threading.current_thread()
            if name in waiting and isinstance(lane, _Lane):
                lane.halt(name, arguments[0])

        return before

    originals = {name: _weight(module) for name, module in modules.items()}
    handles = [modules[name].register_forward_pre_hook(hook(name)) for name in layers]
    try:
        for lane in lanes:
            lane.start()
            lane.advance()
        while at := {lane.at for lane in lanes if lane.at is not None}:
            name = min(at, key=order.__getitem__)
            here = [lane for lane in lanes if lane.at == name]
            inputs = [lane.input for lane in here]
            if (
                previous is not None
                and len(inputs) == len(previous[0])
                and all(a is b for a, b in zip(inputs, previous[0], strict=True))
            ):
                _, hessian, samples = previous
            else:
                hessian, samples = _accumulate(modules[name], inputs)
                previous = (inputs, hessian, samples)
            weight = visit(Visit(name, hessian, samples, modules[name], tuple(x for x in inputs if x is not None)))
            if weight is not None:
                _put(model, _weight(modules[name]), nn.Parameter(weight.detach(), requires_grad=False))
            del waiting[name]
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
        for name, original in originals.items():
            _put(model, _weight(modules[name]), original)


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


def _accumulate(module: nn.Module, inputs: Sequence[Tensor | None]) -> tuple[Tensor, int]:
    total: Tensor | None = None
    samples = 0
    for x in inputs:
        if x is None:
            continue
        rows = patches(module, x.detach())
        moment = second_moment(rows)
        total = moment if total is None else total.add_(moment)
        samples += rows.shape[1]
    assert total is not None
    return total.mul_(2.0 / max(samples, 1)), samples
