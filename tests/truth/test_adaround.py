"""Learned rounding against exact enumeration, finite differences and raw rows."""

import itertools

import pytest
import torch

from tests.conftest import small_batches, small_net
from thalweg import space
from thalweg.blocks import partition
from thalweg.grid import Grid
from thalweg.layers import patches
from thalweg.layout import Layout
from thalweg.methods._reconstruct import Quadratic, quadratic, split
from thalweg.methods._reconstruct_soft import Corner, anneal, inverse, rectified, regulariser
from thalweg.methods.adaround import learn
from thalweg.objective import Objective
from thalweg.scheme import Scheme
from thalweg.walk import walk


def problem(seed, rows=4, n=9, bits=3):
    """Correlated inputs, at which plain rounding is about twice as far as the best corner."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, n, generator=g)
    x = torch.randn(4 * n, n, generator=g) @ (torch.eye(n) + 1.5 * torch.randn(n, n, generator=g) / n**0.5)
    h = (x.T @ x / len(x)).unsqueeze(0)
    levels = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).float()
    scale = w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 0.7)
    return w, Quadratic(h, h, h, len(x)), Grid(Layout((rows, n), n), levels, scale)


def best_corner(w, form, grid):
    """Least error over all 2ⁿ choices of floor and ceiling, row by row."""
    lower, upper = (grid.decode(c).double() for c in grid.bracket(w))
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=w.shape[1])), dtype=torch.float64)
    total = 0.0
    for row in range(len(w)):
        e = lower[row] + (upper - lower)[row] * bits - w[row].double()
        total += float(((e @ form.given[0].double()) * e).sum(1).min())
    return total


def test_closes_most_of_the_gap_between_nearest_and_the_best_corner():
    """Measured over these seeds: more than four fifths."""
    nearest = learned = best = 0.0
    for seed in range(8):
        w, form, grid = problem(seed)
        _, note = learn(form, grid, w, steps=300, rate=0.05, strength=3.0)
        corner = best_corner(w, form, grid)
        assert corner - 1e-9 <= note["output_error"] <= note["output_error_nearest"]
        nearest, learned, best = nearest + note["output_error_nearest"], learned + note["output_error"], best + corner
    assert (nearest - learned) / (nearest - best) > 0.7


def test_the_rectified_sigmoid_and_the_regulariser_have_the_slopes_they_claim():
    v = torch.linspace(-4, 4, 41, dtype=torch.float64)
    h, slope = rectified(v)
    assert torch.allclose(slope, (rectified(v + 1e-6)[0] - rectified(v - 1e-6)[0]) / 2e-6, atol=1e-6)
    inner = torch.linspace(0.02, 0.98, 20, dtype=torch.float64)
    assert torch.allclose(rectified(inverse(inner))[0], inner)
    gradient = regulariser(inner, 3.0)
    value = lambda h: float((1 - (2 * h - 1).abs() ** 3).mean())
    for i in range(len(inner)):
        d = torch.zeros_like(inner)
        d[i] = 1e-6
        difference = (value(inner + d) - value(inner - d)) / 2e-6
        assert float(gradient[i]) == pytest.approx(difference, abs=1e-6)


def test_second_moments_equal_raw_rows_on_every_kind_of_layer():
    """The quadratic form is the mean over rows of ‖W x - Q x̂‖², with displaced inputs and channel groups."""
    objective = Objective(small_net(), small_batches())
    grids = Scheme.parse("w2").grids(objective.weights, objective.axes)
    seen = []

    def visit(stop):
        (name,) = stop.block.weights
        form, grid = quadratic(stop, {}), grids[name]
        q = grid.round(objective.weights[name])
        groups = len(form.given)
        total = count = 0
        for feed in stop.feeds:
            x, given = (patches(stop.module, c.x).double() for c in (feed.exact, feed.given))
            w64, q64 = (split(grid, t.double(), groups) for t in (objective.weights[name], q))
            total += float((x @ w64.transpose(1, 2) - given @ q64.transpose(1, 2)).square().sum())
            count += x.shape[1]
        value = form.value(split(grid, q, groups), split(grid, objective.weights[name], groups))
        assert value == pytest.approx(total / count, rel=1e-4)
        seen.append(name)
        return {name: q}

    walk(objective, partition(objective.model, objective.layers, layerwise=True), visit)
    assert seen == list(grids)


def test_annealing_on_moments_agrees_with_annealing_on_rows():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(64, 6, generator=g, dtype=torch.float64)
    w = torch.randn(3, 6, generator=g, dtype=torch.float64)
    grid = Grid(Layout((3, 6), 6), torch.arange(-4.0, 4), w.float().abs().amax(1, keepdim=True) / 3.3)
    corners, h = {"w": Corner.of(grid, w)}, x.T @ x / 64

    def rows(weights, step):
        q = weights["w"].clone().requires_grad_()
        return {"w": torch.autograd.grad((x @ (q - w).T).square().sum() / 64, q)[0]}

    by_rows = anneal(corners, rows, 100, 0.05, 1.0)["w"]
    by_moments = anneal(corners, lambda weights, step: {"w": 2 * (weights["w"] - w) @ h}, 100, 0.05, 1.0)["w"]
    assert torch.allclose(by_rows, by_moments, atol=1e-8)


def test_a_walk_sees_the_float_model_when_nothing_is_changed():
    objective = Objective(small_net(), small_batches())
    before = space.fingerprint(dict(objective.model.state_dict()))

    def visit(stop):
        for feed in stop.feeds:
            assert torch.equal(feed.exact.x, feed.given.x)
            assert torch.allclose(stop.output({}, feed.exact), feed.target, atol=1e-6)
        return {}

    walk(objective, partition(objective.model, objective.layers), visit)
    assert space.fingerprint(dict(objective.model.state_dict())) == before
    assert objective.cost["calibration forwards"] == 2
