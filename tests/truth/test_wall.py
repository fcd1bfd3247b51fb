"""`wall`: its two-sided rounding against one entry after the other on the dense matrix, its factors against
autograd, and Theorem P4: it stays in the basin that rounding and blind second-order rounding leave."""

import pytest
import torch
from torch import nn

from tests.conftest import small_batches, small_net
from thalweg import space
from thalweg.distill import Teacher
from thalweg.errors import ThalwegError
from thalweg.grid import Grid, Layout, Matrices
from thalweg.kronecker import Factors, collect, feedback, newton_target, round_with, two_sided
from thalweg.objective import Objective
from thalweg.point import quantize


def positive(n, seed, groups=1):
    x = torch.randn(groups, n, 2 * n, generator=space.generator(seed, "wall test"), dtype=torch.float64)
    return x @ x.transpose(1, 2) / n


def one_by_one(weight, hessian, order, low, high):
    """Babai's nearest plane by conditional minimisation on the dense matrix: fix an entry, re-solve the rest."""
    target, out, free = weight.flatten().clone(), torch.zeros(weight.numel(), dtype=weight.dtype), list(order)
    while free:
        i = free.pop(0)
        out[i] = target[i].round().clamp(low, high)
        if free:
            rest = torch.tensor(free)
            push = torch.linalg.solve(hessian[rest][:, rest], hessian[rest, i])
            target[rest] = target[rest] + push * (target[i] - out[i])
    return out.view_as(weight)


@pytest.mark.parametrize("rows, columns, block", [(5, 7, 3), (1, 6, 32), (6, 1, 2), (4, 9, 32)])
def test_two_sided_is_nearest_plane_of_the_dense_kronecker_matrix(rows, columns, block):
    a, b = positive(columns, 1), positive(rows, 2)
    weight = torch.randn(1, rows, columns, generator=space.generator(3), dtype=torch.float64) * 2
    order_a, along = feedback(a, 0.0)
    order_b, across = feedback(b, 0.0)
    grid = Grid(Layout((rows, columns), columns), torch.arange(-3.0, 4.0), torch.ones(rows, 1))
    placed = weight[:, order_b[0]][:, :, order_a[0]]
    form = Matrices(torch.ones_like(placed), None, None)
    ours = two_sided(placed, across, along, form, grid, block).double()[0] - 3
    dense = torch.kron(b[0][order_b[0]][:, order_b[0]], a[0][order_a[0]][:, order_a[0]])
    # row-major numbering; any order in which nobody comes before the entries above and to the left
    assert torch.equal(ours, one_by_one(placed[0], dense, range(rows * columns), -3, 3))


def test_without_output_factor_it_is_plain_second_order_rounding(objective):
    point = quantize(objective, "w3", "wall", at="gptq", matched=False, output_damping=float("inf"))
    again = quantize(objective, "w3", "gptq")
    assert objective.loss(point.weights) == pytest.approx(objective.loss(again.weights), abs=0.05)
    point = quantize(objective, "w3", "wall", at="gptq", output_damping=float("inf"), damping=0.01, sweeps=0)
    again = quantize(objective, "w3", "gptq", target="float")
    assert space.fingerprint(point.codes) == space.fingerprint(again.codes)


def test_factors_are_the_gauss_newton_matrix_of_a_linear_layer():
    """Softmax regression: A is the input moment, B the mean of diag(p) - p pᵀ (over many draws)."""
    x, y = torch.randn(64, 5, generator=space.generator(0)), torch.zeros(64, dtype=torch.long)
    model = nn.Sequential(nn.Linear(5, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(3, 5, generator=space.generator(1)))
        model[0].bias.zero_()
    objective = Objective(model, [(x, y)])
    found = collect(objective, objective.weights, draws=400)["0.weight"]
    assert torch.allclose(found.inputs[0], x.T @ x / 64, atol=1e-5)
    p = model(x).softmax(-1).detach()
    exact = (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)).mean(0)
    assert torch.allclose(found.outputs[0], exact, atol=0.01)
    assert found.diagonal().shape == (3, 5)


def test_newton_target_is_the_minimum_of_a_quadratic():
    """One linear layer and one output: the divergence is a quadratic with the factors as its exact Hessian."""
    x = torch.randn(40, 4, generator=space.generator(0))
    model = nn.Linear(4, 1, bias=False)
    objective = Objective(model, [(x, torch.zeros(40))], lambda out, batch: out[:, 0].square())
    at = {"weight": objective.weights["weight"] + 0.3}
    factors = collect(objective, at, draws=4000)
    step = newton_target(Teacher(objective), at, factors, 1e-8)
    assert torch.allclose(step["weight"], objective.weights["weight"], atol=0.03)


@pytest.mark.parametrize("matched", [True, False])
def test_wall_never_raises_the_divergence_of_its_start(objective, matched):
    teacher = Teacher(objective)
    options = {"target": "float", "sweeps": 1, "damping": 0.1} if matched else {}
    second = quantize(objective, "w2", "gptq", **options)
    starts = {m: teacher.loss(p.weights) for m, p in (("nearest", quantize(objective, "w2")), ("gptq", second))}
    for at in ("nearest", "gptq", "edge", "average", "float"):
        mix = 0.1 if at == "gptq" else 0.0
        point = quantize(objective, "w2", "wall", at=at, matched=matched, refresh=1, polish=20, mix=mix)
        note = next(iter(point.notes.values()))
        rounded = at in ("nearest", "float")
        assert note["divergence"][0] == pytest.approx(starts["nearest" if rounded else "gptq"])
        if matched and rounded:
            assert note["divergence"][1] == pytest.approx(starts["gptq"])
        assert len(note["divergence"]) == 3 + (matched and rounded)
        assert teacher.loss(point.weights) == pytest.approx(note["polish"]["divergence"], rel=1e-4)
        assert note["polish"]["divergence"] <= min(note["divergence"]) and note["polish"]["forwards"] <= 20
    with pytest.raises(ThalwegError, match="edge"):
        quantize(objective, "w2", "wall", at="nowhere")


def hinge(normal, centre, radius, stiff=50.0):
    """River of codimension n with flat floor and walls, and a weak pull along the river."""

    def value(w):
        d = w["w"].double() - centre
        y = d @ normal
        depth = (y.square().sum() + 1e-30).sqrt()
        along = d - normal @ y
        return stiff / 2 * (depth - radius).clamp(min=0).square() + 0.005 * along.square().sum()

    return value


@pytest.mark.parametrize("codim", [4, 16])
def test_wall_stays_in_the_basin_that_blind_methods_leave(codim):
    """Theorem P4: rates of arriving inside over seeded valleys of 96 weights, unit grid."""
    inside = {"nearest": 0, "gptq": 0, "wall": 0}
    count = 8
    size = 96
    radius = 2.0 * codim / (24 * size) ** 0.5  # twice the residual of wall-aware rounding
    for seed in range(count):
        gen = space.generator(seed, f"P4 {codim}")
        normal = torch.linalg.qr(torch.randn(size, codim, generator=gen, dtype=torch.float64))[0]
        centre = torch.rand(size, generator=gen, dtype=torch.float64) * 8 - 4
        objective = Objective.of(hinge(normal, centre, radius), {"w": centre.float()})
        grid = Grid(Layout((size,), size), torch.arange(-8.0, 9.0), torch.ones(1, 1))
        for method in inside:
            options = {"output_damping": 0.3, "refresh": 3} if method == "wall" else {}
            point = quantize(objective, "w4", method, grids={"w": grid}, **options)
            depth = float(((point.weights["w"].double() - centre) @ normal).norm())
            inside[method] += depth <= 1.2 * radius
    assert inside["wall"] >= 0.9 * count
    assert inside["nearest"] <= 0.1 * count and inside["gptq"] <= 0.1 * count


def test_moments_that_are_empty_or_not_finite():
    order, along = feedback(torch.zeros(2, 3, 3), 0.01)
    assert torch.equal(along, torch.eye(3, dtype=torch.float64).expand(2, 3, 3)) and order.shape == (2, 3)
    with pytest.raises(ThalwegError, match="NaN"):
        feedback(torch.full((1, 2, 2), float("nan")), 0.01, "layer")


def test_weights_on_the_grid_and_transposed_layouts_stay():
    layout = Layout((6, 4), 6, axis=1)
    grid = Grid(layout, torch.arange(-2.0, 2.0), torch.full((4, 1), 0.5))
    codes = torch.randint(0, 4, (6, 4), generator=space.generator(0)).to(torch.uint8)
    factors = Factors(positive(6, 0), positive(4, 1))
    assert torch.equal(round_with(grid.decode(codes), grid, factors, 0.01, 0.1), codes)


def test_the_same_seed_gives_the_same_codes():
    a, b = (quantize(Objective(small_net(), small_batches()), "w2", "wall", seed=3) for _ in range(2))
    assert space.fingerprint(a.codes) == space.fingerprint(b.codes)
