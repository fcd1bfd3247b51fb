"""Blocks and norms of a module, and what flows between them: one rule for training and for reconstruction."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .layers import Layer, quantizable

CONTAINERS = (nn.ModuleList, nn.Sequential)


class Reached(Exception):
    """Ends a forward pass where it was wanted."""


def norm_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of normalization layers: modules whose class name contains ``Norm``."""
    return [
        f"{name}.{key}" if name else key
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not any(True for _ in module.children())
        for key, _ in module.named_parameters(recurse=False)
    ]


@dataclass(frozen=True)
class Block:
    """A part of a model that is taken as one: its name, and the weights in it by their name in the model and their
    name in the block."""

    name: str
    weights: dict[str, str]


def partition(model: nn.Module, layers: Mapping[str, Layer], layerwise: bool = False) -> list[Block]:
    """Divide layers into blocks, in module order; each weight is in one of them.

    A block is a child of a ``ModuleList`` or ``Sequential`` that is neither a layer nor itself a list with such
    blocks in it: Llama's decoder layers, ViT's blocks, ResNet's basic blocks. A list of experts inside a decoder layer
    belongs to that layer. Layers outside blocks, and all layers where ``layerwise``, are blocks of their own.
    """
    modules = dict(model.named_modules())
    names = {layer.module: weight for weight, layer in layers.items()}
    taken: set[str] = set()
    found: list[Block] = []
    for path in modules:
        if path not in names and (layerwise or not _is_block(modules, names, path)):
            continue
        prefix = f"{path}." if path else ""
        inside = {w: w[len(prefix) :] for m, w in names.items() if m == path or m.startswith(prefix)}
        inside = {weight: local for weight, local in inside.items() if weight not in taken}
        if inside:
            taken.update(inside)
            found.append(Block(path, inside))
    return found


def _is_block(modules: Mapping[str, nn.Module], layers: Container[str], path: str) -> bool:
    """True for a composite child of a list that is no list of blocks itself."""
    parent = modules.get(path.rpartition(".")[0]) if path else None
    if not isinstance(parent, CONTAINERS) or isinstance(modules[path], nn.ModuleList):
        return False
    children = [f"{path}.{key}" for key, _ in modules[path].named_children()]
    if not isinstance(modules[path], nn.Sequential):
        return bool(children)
    inside = [c for c in children if any(m.startswith(f"{c}.") for m in modules if m in layers)]
    return bool(children) and not inside


def blocks(model: nn.Module) -> list[str]:
    """Names of the modules that training takes one at a time, in module order: the blocks of :func:`partition`
    that hold several modules, or the quantizable layers themselves where there are none."""
    layers = quantizable(model)
    modules = {layer.module for layer in layers.values()}
    found = [block.name for block in partition(model, layers)]
    return [name for name in found if name not in modules] or found


def first_tensor(output: Any) -> Tensor:
    """The hidden state in what a block returns: its first tensor."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output
    return next(part for part in parts if isinstance(part, Tensor))


@contextmanager
def captured(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Within it, every forward pass leaves the outputs of the named modules in the dictionary."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, arguments, output: found.__setitem__(name, first_tensor(output))

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def halted(model: nn.Module, name: str, output: bool) -> Iterator[list[Any]]:
    """Within it, a forward pass ends (without an error) at a module: its arguments, or its output, are in the list."""
    found: list[Any] = []
    module = model.get_submodule(name)

    def before(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found.extend([arguments, keywords])
        raise Reached

    def after(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        found.append(first_tensor(result))
        raise Reached

    handle = (
        module.register_forward_hook(after) if output else module.register_forward_pre_hook(before, with_kwargs=True)
    )
    try:
        yield found
    except Reached:
        pass
    finally:
        handle.remove()
