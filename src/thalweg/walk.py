"""A walk over the blocks of a model that feeds each of them its float and its quantized inputs.

Two structural copies of the model share all tensors: in the second one, the weights of finished blocks are
replaced by their quantized values. Each calibration batch runs through both in a lane that halts before every
block (:mod:`thalweg.calibration`). When all lanes stand before a block, its inputs from the float model, its
inputs from the quantized predecessors, and the outputs of the float block are known; the visitor chooses the
weights, and the quantized lanes go on with them. So the whole walk costs two forwards, however many
blocks there are.

Masks of padded batches (``attention_mask``, ``[rows, tokens]``) become weights of the output entries.

Memory: the live activations of all lanes at one block, twice, and one block's outputs.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .blocks import Block, first_tensor
from .calibration import _Lane
from .feeds import Call, Feed
from .heap import trim
from .objective import Objective
from .space import Point


@dataclass(frozen=True)
class Stop:
    """What a visitor of blocks sees. ``module``: the float block, to be called through :meth:`output`."""

    block: Block
    module: nn.Module
    feeds: tuple[Feed, ...]

    def output(self, weights: Mapping[str, Tensor], call: Call) -> Tensor:
        """The block's (first) output with some weights replaced, by their names in the model; differentiable."""
        local = {self.block.weights[name]: value for name, value in weights.items()}
        return first_tensor(functional_call(self.module, local, call.args, call.kwargs))


BlockVisitor = Callable[[Stop], Point]
"""Returns the weights that the block has from now on, by their names in the model."""


def walk(objective: Objective, blocks: Sequence[Block], visit: BlockVisitor, targets: bool = True) -> None:
    """Visit the blocks that the calibration batches reach, in the order of execution.

    Without ``targets`` the float model waits for the visitor too: no outputs, less memory, and :attr:`Feed.target` is
    the block's float input.

    Computes in float32, also for half-precision models. Blocks that are called again later (shared modules) are
    visited at their first call. Cost: two forwards over the calibration data. The model is untouched.
    """
    objective.cost["calibration forwards"] += 2
    exact, given = _twin(objective), _twin(objective)
    batches = [_float(batch) for batch in objective.calibration]
    order = {block.name: i for i, block in enumerate(blocks)}
    waiting = dict(order)
    calls: dict[threading.Thread, Call] = {}
    outputs: dict[threading.Thread, Tensor] = {}

    def enter(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lane = threading.current_thread()
        if name in waiting and isinstance(lane, _Lane):
            calls[lane] = Call(args, kwargs)
            lane.halt(name, calls[lane].x)

    def leave(name: str, module: nn.Module, args: Any, output: Any) -> None:
        lane = threading.current_thread()
        if targets and name in waiting and lane in float_lanes:
            outputs[lane] = first_tensor(output)

    handles = []
    for twin in (exact, given):
        for block in blocks:
            module = twin.model.get_submodule(block.name)
            handles.append(module.register_forward_pre_hook(partial(enter, block.name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(leave, block.name)))
    pairs = [(_Lane(partial(exact.forward, {}, b)), _Lane(partial(given.forward, {}, b))) for b in batches]
    float_lanes = {pair[0] for pair in pairs}
    numbers = {pair[0]: i for i, pair in enumerate(pairs)}
    lanes = list(chain.from_iterable(pairs))
    try:
        trim()
        for lane in lanes:
            lane.start()
            lane.advance()
        while at := {lane.at for lane in lanes if lane.at is not None}:
            name = min(at, key=order.__getitem__)
            here = [pair for pair in pairs if pair[0].at == name and pair[1].at == name]
            before = [(calls.pop(a), calls.pop(b)) for a, b in here]
            exact_here, given_here = ([pair[k] for pair in pairs if pair[k].at == name] for k in (0, 1))
            if targets:
                _advance(exact_here)
            ends = [outputs[a] if targets else c.x for (a, _), (c, _) in zip(here, before, strict=True)]
            found = [_feed(*c, end, numbers[a]) for c, end, (a, _) in zip(before, ends, here, strict=True)]
            feeds = _masked([f for f in found if f.rows], batches)
            if feeds:
                trim()
                stop = Stop(blocks[order[name]], exact.model.get_submodule(name), feeds)
                _put(given.model, visit(stop))
                del stop
            outputs.clear()
            del waiting[name], before, ends, found, feeds  # nothing of this block stays while the lanes go on
            trim()
            _advance([*([] if targets else exact_here), *given_here])
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


def _advance(lanes: Sequence[_Lane]) -> None:
    for lane in lanes:
        lane.advance()


def _feed(exact: Call, given: Call, target: Tensor, index: int) -> Feed:
    """Where routing sent other numbers of tokens to a block (an expert), quantized inputs have no targets: the float
    inputs take their place."""
    return Feed(exact, given if given.x.shape == exact.x.shape else exact, target, index)


def _masked(feeds: Sequence[Feed], batches: Sequence[Any]) -> tuple[Feed, ...]:
    """Padded tokens count nothing: weights of mean one from the batches' attention masks ``[rows, tokens]``."""
    masks = [batches[f.index].get("attention_mask") if isinstance(batches[f.index], Mapping) else None for f in feeds]
    fits = [m is not None and m.shape == f.target.shape[: m.ndim] for m, f in zip(masks, feeds, strict=True)]
    if not feeds or not all(fits) or all(bool(m.all()) for m in masks if m is not None):
        return tuple(feeds)
    mean = torch.cat([m.flatten() for m in masks if m is not None]).float().mean()
    return tuple(
        replace(f, weight=(m / mean).reshape(*m.shape, *[1] * (f.target.ndim - m.ndim)))
        for f, m in zip(feeds, masks, strict=True)
        if m is not None
    )


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _twin(objective: Objective) -> Objective:
    """The objective on another module tree that shares every tensor (float32 copies where it is half)."""
    twin = copy.copy(objective)
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in _tensors(objective.model))
    memo = {} if half else {id(t): t for t in _tensors(objective.model)}
    twin.model = copy.deepcopy(objective.model, memo)
    if half:
        twin.model = twin.model.float()
    return twin


def _float(value: Any) -> Any:
    """Half-precision tensors of a batch in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, Mapping):
        return {k: _float(v) for k, v in value.items()}
    return type(value)(_float(v) for v in value) if isinstance(value, list | tuple) else value


def _put(model: nn.Module, weights: Point) -> None:
    """Replace parameters by name, in every module that shares them."""
    for name, value in weights.items():
        old = model.get_parameter(name)
        new = nn.Parameter(value.detach().to(old.dtype), requires_grad=False)
        for module in model.modules():
            for key, held in module._parameters.items():
                if held is old:
                    module._parameters[key] = new
