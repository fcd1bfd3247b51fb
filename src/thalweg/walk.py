"""The blocks of a model, and a walk that feeds each of them its float and its quantized inputs.

Two structural copies of the model share all tensors: in the second one, the weights of finished blocks are
replaced by their quantized values. Each calibration batch runs through both in a lane that halts before every
block (:mod:`thalweg.calibration`). When all lanes stand before a block, its inputs from the float model, its
inputs from the quantized predecessors, and the outputs of the float block are known; the visitor chooses the
weights, and the quantized lanes go on with them. So the whole walk costs two forwards, however many
blocks there are.

Memory: the live activations of all lanes at one block, twice, and one block's outputs.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .calibration import _Lane
from .objective import Objective
from .space import Point

CONTAINERS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class Block:
    """A part of a model that is reconstructed as one: its name, and the quantized weights in it by their name
    in the model and their name in the block."""

    name: str
    weights: dict[str, str]


@dataclass(frozen=True)
class Call:
    """What a block was called with: the first tensor is the data, the others (masks, positions) are kept."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def key(self) -> str | None:
        """Keyword of the data, or None where it is the first positional argument."""
        return None if self.args else next(k for k, v in self.kwargs.items() if isinstance(v, Tensor))

    @property
    def x(self) -> Tensor:
        """The data, batch first."""
        return self.args[0] if self.key is None else self.kwargs[self.key]

    def having(self, x: Tensor) -> Call:
        """The same call on other data."""
        if self.key is None:
            return Call((x, *self.args[1:]), self.kwargs)
        return Call((), {**self.kwargs, self.key: x})

    def rows(self, index: Tensor) -> Call:
        """The call on some rows: every tensor of two or more axes whose first is the batch is indexed."""
        size = len(self.x)
        pick = lambda v: v[index] if isinstance(v, Tensor) and v.ndim > 1 and len(v) == size else v
        return Call(tuple(map(pick, self.args)), {k: pick(v) for k, v in self.kwargs.items()})


@dataclass(frozen=True)
class Feed:
    """One batch at one block: the call with float inputs, the call with quantized ones, the float output."""

    exact: Call
    given: Call
    target: Tensor

    @property
    def rows(self) -> int:
        """Samples in the batch."""
        return len(self.given.x)


@dataclass(frozen=True)
class Stop:
    """What a visitor of blocks sees. ``module``: the float block, to be called through :meth:`output`."""

    block: Block
    module: nn.Module
    feeds: tuple[Feed, ...]

    def output(self, weights: Mapping[str, Tensor], call: Call) -> Tensor:
        """The block's (first) output with some weights replaced, by their names in the model; differentiable."""
        local = {self.block.weights[name]: value for name, value in weights.items()}
        return first(functional_call(self.module, local, call.args, call.kwargs))


BlockVisitor = Callable[[Stop], Point]
"""Returns the weights that the block has from now on, by their names in the model."""


def first(output: Any) -> Tensor:
    """The first tensor of a module's output."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output
    return next(part for part in parts if isinstance(part, Tensor))


def find(objective: Objective, names: Sequence[str], layerwise: bool = False) -> list[Block]:
    """Split the layers of a model into blocks, in module order.

    A block is a child of a ``ModuleList`` or ``Sequential`` that is neither a layer nor itself such a list of
    blocks: Llama's decoder layers, ViT's blocks, ResNet's basic blocks. Layers outside blocks, and all layers
    where ``layerwise``, are blocks of their own.
    """
    wanted = {objective.layers[n].module: n for n in names}

    def inside(path: str) -> dict[str, str]:
        prefix = f"{path}." if path else ""
        found = {n: n[len(prefix) :] for m, n in wanted.items() if m == path or m.startswith(prefix)}
        return {n: local for n, local in found.items() if n not in taken}

    taken: set[str] = set()
    blocks: list[Block] = []
    modules = dict(objective.model.named_modules())

    def listing(module: nn.Module) -> bool:
        """True for a list that holds composite parts."""
        return isinstance(module, CONTAINERS) and any(
            len(list(child.modules())) > 1 and any(isinstance(m, leaves) for m in child.modules())
            for child in module.children()
        )

    leaves = tuple({type(modules[m]) for m in wanted})
    for path, module in modules.items():
        parent = modules.get(path.rpartition(".")[0]) if path else None
        part = parent is not None and isinstance(parent, CONTAINERS)
        composite = (
            part and len(list(module.children())) > 0 and not listing(module) and not isinstance(module, nn.ModuleList)
        )
        if path in wanted or (composite and not layerwise):
            weights = inside(path)
            if weights:
                taken.update(weights)
                blocks.append(Block(path, weights))
    return blocks


def walk(objective: Objective, blocks: Sequence[Block], visit: BlockVisitor) -> None:
    """Visit the blocks that the calibration batches reach, in the order of execution.

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

    def before(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lane = threading.current_thread()
        if name in waiting and isinstance(lane, _Lane):
            calls[lane] = Call(args, kwargs)
            lane.halt(name, calls[lane].x)

    def after(name: str, module: nn.Module, args: Any, output: Any) -> None:
        lane = threading.current_thread()
        if name in waiting and lane in float_lanes:
            outputs[lane] = first(output)

    handles = []
    for twin in (exact, given):
        for block in blocks:
            module = twin.model.get_submodule(block.name)
            handles.append(module.register_forward_pre_hook(partial(before, block.name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(after, block.name)))
    pairs = [(_Lane(partial(exact.forward, {}, b)), _Lane(partial(given.forward, {}, b))) for b in batches]
    float_lanes = {pair[0] for pair in pairs}
    lanes = list(chain.from_iterable(pairs))
    try:
        for lane in lanes:
            lane.start()
            lane.advance()
        while at := {lane.at for lane in lanes if lane.at is not None}:
            name = min(at, key=order.__getitem__)
            here = [pair for pair in pairs if pair[0].at == name and pair[1].at == name]
            before_calls = [(calls[a], calls[b]) for a, b in here]
            for a, _ in pairs:
                if a.at == name:
                    a.advance()
            feeds = tuple(Feed(*c, outputs[a]) for c, (a, _) in zip(before_calls, here, strict=True))
            block = blocks[order[name]]
            if feeds:
                _put(given.model, visit(Stop(block, exact.model.get_submodule(name), feeds)))
            outputs.clear()
            del waiting[name]
            for _, b in pairs:
                if b.at == name:
                    b.advance()
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


def merged(feeds: Sequence[Feed]) -> list[Feed]:
    """Batches that differ in their rows only, joined into one, so that minibatches mix them."""
    groups: list[list[Feed]] = []
    for feed in feeds:
        for group in groups:
            if _alike(group[0].given, feed.given) and group[0].target.shape[1:] == feed.target.shape[1:]:
                group.append(feed)
                break
        else:
            groups.append([feed])
    return [g[0] if len(g) == 1 else _joined(g) for g in groups]


def _joined(group: list[Feed]) -> Feed:
    def join(calls: list[Call]) -> Call:
        size = len(calls[0].x)
        wide = lambda v: isinstance(v, Tensor) and v.ndim > 1 and len(v) == size
        args = tuple(torch.cat([c.args[i] for c in calls]) if wide(v) else v for i, v in enumerate(calls[0].args))
        kwargs = {k: torch.cat([c.kwargs[k] for c in calls]) if wide(v) else v for k, v in calls[0].kwargs.items()}
        return Call(args, kwargs)

    return Feed(join([f.exact for f in group]), join([f.given for f in group]), torch.cat([f.target for f in group]))


def _alike(a: Call, b: Call) -> bool:
    """True where two calls of equal batch size share all that is not per row."""
    if len(a.args) != len(b.args) or a.kwargs.keys() != b.kwargs.keys() or a.x.shape != b.x.shape:
        return False
    size = len(a.x)
    for v, w in zip((*a.args, *a.kwargs.values()), (*b.args, *b.kwargs.values()), strict=True):
        if isinstance(v, Tensor):
            if not isinstance(w, Tensor) or v.shape != w.shape:
                return False
            if not (v.ndim > 1 and len(v) == size) and not torch.equal(v, w):
                return False
        elif isinstance(v, tuple | list):
            if not all(x is y or (isinstance(x, Tensor) and torch.equal(x, y)) for x, y in zip(v, w, strict=True)):
                return False
        elif v is not w and v != w:
            return False
    return True


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
