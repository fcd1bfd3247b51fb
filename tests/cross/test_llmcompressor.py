"""Agreement with llm-compressor 0.14: GPTQ on one layer, the same grid, damping and Hessian."""

import pytest
import torch
from torch import nn

from thalweg.objective import Objective
from thalweg.point import quantize

from .peer import ask, weight

BITS, GROUP, DAMPING = (4, 3, 2), 32, 0.01


@pytest.fixture(scope="module")
def layer():
    """An objective with one layer of 48 rows and 96 correlated inputs, and its Hessian."""
    g = torch.Generator().manual_seed(3)
    module = nn.Linear(96, 48, bias=False)
    module.weight.data.copy_(weight())
    mixing = torch.randn(96, 96, generator=g) * torch.logspace(0, -1.5, 96)
    x = torch.randn(512, 96, generator=g) @ mixing.T
    target = torch.zeros(512, dtype=torch.long)
    return Objective(nn.Sequential(module), [(x, target)]), 2 / len(x) * x.T @ x


@pytest.fixture(scope="module")
def grids(layer):
    return {bits: quantize(layer[0], f"w{bits}g{GROUP}", fit="absmax").grids for bits in BITS}


@pytest.fixture(scope="module")
def theirs(layer, grids, tmp_path_factory):
    scales = {f"scale/{bits}": g["0.weight"].scale for bits, g in grids.items()}
    tensors = {"w": layer[0].weights["0.weight"], "h": layer[1], **scales}
    return ask("llmcompressor", tmp_path_factory.mktemp("llmc"), tensors, bits=list(BITS), group=GROUP, damping=DAMPING)


@pytest.mark.parametrize("order", ["natural", "descending"])
@pytest.mark.parametrize("bits", BITS)
def test_same_codes(layer, grids, theirs, bits, order):
    """A code may differ where a value lies within float error of a tie, and whatever follows from it in its row:
    at most one code in two hundred, and never at the price of the objective."""
    objective, hessian = layer
    point = quantize(objective, f"w{bits}g{GROUP}", "gptq", grids=grids[bits], damping=DAMPING, order=order)
    ours, other, w = point.weights["0.weight"], theirs[f"{bits}/{order}"], objective.weights["0.weight"]
    apart = float(((ours - other).abs() > 1e-5 * other.abs().max()).float().mean())
    loss = lambda q: float(((q - w) @ hessian.double().float() * (q - w)).sum())
    assert apart <= 0.005
    assert loss(ours) == pytest.approx(loss(other), rel=0.005)
    nearest = grids[bits]["0.weight"].round(w)
    assert loss(ours) < loss(nearest) * 0.8
