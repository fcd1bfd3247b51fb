"""Blocks and norms of a module, and what flows between them: what recipes of training act on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .layers import quantizable


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


def blocks(model: nn.Module) -> list[str]:
    """Names of the modules that training takes one at a time, in module order.

    The children of the longest ModuleList or Sequential that hold quantizable layers; where there is none of
    length two, the quantizable layers themselves.
    """
    layers = [layer.module for layer in quantizable(model).values()]
    best: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            children = [f"{name}.{key}" if name else key for key, _ in module.named_children()]
            holding = [c for c in children if any(x == c or x.startswith(f"{c}.") for x in layers)]
            if len(holding) > max(len(best), 1):
                best = holding
    return best or layers


def first_tensor(output: Any) -> Tensor:
    """The hidden state in what a block returns."""
    return output if isinstance(output, Tensor) else output[0]


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
