"""Optimal brain quantization against one row at a time with a dense inverse, and against gptq."""

import pytest
import torch

from tests.conftest import small_batches, small_net
from tests.truth.test_gptq import OneLayer, grid_for, problem
from thalweg.errors import ThalwegError
from thalweg.methods.gptq import gptq
from thalweg.methods.obq import obq
from thalweg.objective import Objective
from thalweg.point import quantize


def one_row(w, h, grid, row):
    """The paper's algorithm for one row, with an inverse of the remaining Hessian computed anew in every step."""
    w, left = w.clone(), list(range(len(w)))
    snap = lambda v: grid.round(v.expand(grid.layout.shape))[row]
    while left:
        inverse = torch.linalg.inv(h[left][:, left])
        error = (w - snap(w))[left]
        i = int((error.square() / inverse.diagonal()).argmin())
        step = error[i] / inverse[i, i] * inverse[i]
        fixed = snap(w)[left[i]]
        w[left] -= step
        w[left[i]] = fixed
        left.pop(i)
    return w


def test_equals_the_dense_algorithm():
    for seed in range(4):
        w, h, samples = problem(rows=4, n=9, seed=seed)
        grid = grid_for(w, bits=3, group=3)
        found = obq(OneLayer(w, h, samples), {"w": grid}).codes["w"]
        damped = h + 0.01 * h.diagonal().mean() * torch.eye(9, dtype=h.dtype)
        truth = torch.stack([one_row(w[r], damped, grid, r) for r in range(4)])
        assert torch.allclose(grid.decode(found, torch.float64), truth, atol=1e-9)


def test_below_rounding_in_its_own_objective():
    """Well-conditioned problems: no exception among these, for obq and for gptq."""
    for seed in range(20):
        w, h, samples = problem(rows=8, n=16, seed=seed)
        grid = grid_for(w, bits=3)
        for method in (obq, gptq):
            note = method(OneLayer(w, h, samples), {"w": grid}).notes["w"]
            assert note["output_error"] < note["output_error_nearest"]


def test_grouped_convolutions_and_one_sample():
    objective = Objective(small_net(), small_batches(1, 1))
    point = quantize(objective, "w3", "obq")
    assert set(point.codes) == set(objective.weights)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_one_input_or_output(shape):
    w = torch.linspace(-1, 1, shape[0] * shape[1], dtype=torch.float64).reshape(shape) + 0.1
    x = torch.linspace(0.5, 1, shape[1], dtype=torch.float64).unsqueeze(0)
    grid = grid_for(w)
    found = obq(OneLayer(w, 2 * x.T @ x, 1), {"w": grid})
    if shape[1] == 1:
        assert torch.equal(found.codes["w"], grid.encode(w))


def test_large_layers_are_refused():
    w, h, samples = problem(n=12)
    with pytest.raises(ThalwegError, match="has 12 columns"):
        obq(OneLayer(w, h, samples), {"w": grid_for(w)}, limit=8)
