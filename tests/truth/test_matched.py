"""Second-order rounding towards the float outputs: its target against least squares, its sweeps against every
single change, and what it is for: predecessors whose errors it makes up for."""

import pytest
import torch
from torch import nn

from tests.conftest import small_batches, small_net
from thalweg import space
from thalweg.distill import Teacher
from thalweg.errors import ThalwegError
from thalweg.grid import Grid, Layout
from thalweg.methods._columns import descend_columns
from thalweg.methods._matched import target
from thalweg.methods._reconstruct import Quadratic, split
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.scheme import Scheme


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=space.generator(seed, "matched test"), dtype=torch.float64)


def form_of(x, given):
    count = len(x)
    moment = lambda a, b: (a.T @ b / count).unsqueeze(0)
    return Quadratic(moment(given, given), moment(given, x), moment(x, x), count)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_target_is_ridge_regression_on_the_float_outputs(damping):
    x = draw(50, 6)
    given, weight = x + 0.3 * draw(50, 6, seed=1), draw(4, 6, seed=2)
    form = form_of(x, given)
    grid = Grid(Layout((4, 6), 6), torch.arange(-2.0, 2.0), torch.ones(4, 1))
    ridge = (damping * form.given[0].diagonal().mean() * 50) ** 0.5 * torch.eye(6, dtype=torch.float64)
    rows, values = torch.cat([given, ridge]), torch.cat([x @ weight.T, ridge @ weight.T])
    truth = torch.linalg.lstsq(rows, values).solution.T
    assert torch.allclose(target(form, grid, weight, damping), truth, atol=1e-10)


def test_with_equal_inputs_the_target_is_the_weight():
    x, weight = draw(5, 8), draw(3, 8, seed=1)  # fewer samples than columns
    grid = Grid(Layout((3, 8), 8), torch.arange(-2.0, 2.0), torch.ones(3, 1))
    assert torch.allclose(target(form_of(x, x), grid, weight, 0.1), weight, atol=1e-12)


def descend(codes, weight, grid, moment, sweeps, block=32):
    return descend_columns([codes], [weight], [grid], moment, 0.01, sweeps, block)[0]


@pytest.mark.parametrize("scheme, groups", [("w2", 1), ("w2", 2), ("w3a", 1), ("lsbq2", 1), ("nf4", 1), ("w2g4", 1)])
def test_sweeps_end_where_no_single_change_helps(scheme, groups):
    weight = draw(4, 8)
    grid = Scheme.parse(scheme).grids({"w": weight.float()}, {"w": 0}, "mse")["w"]
    x = draw(groups, 30, 8, seed=1) @ draw(groups, 8, 8, seed=2)
    moment = x.mT @ x / 30
    damped = moment + 0.01 * moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(8)
    value = lambda c: float((torch.bmm(e := split(grid, grid.decode(c).double() - weight, groups), damped) * e).sum())
    codes = grid.encode(weight)
    held = [value(codes)]
    for _ in range(3):
        codes = descend(codes, weight, grid, moment, 1)
        held.append(value(codes))
    assert held == sorted(held, reverse=True) and held[1] < held[0]
    final = descend(codes, weight, grid, moment, 50)
    for i in range(weight.numel()):
        for code in range(grid.count):
            other = final.flatten().clone()
            other[i] = code
            assert value(other.view_as(final)) >= value(final) - 1e-9


@pytest.mark.parametrize("scheme, groups", [("w2", 1), ("w3a", 2), ("lsbq2", 1), ("nf4", 1), ("w2g8", 1)])
@pytest.mark.parametrize("columns", [1, 5, 64])
def test_blocks_of_columns_sweep_as_one_column_after_another(scheme, groups, columns):
    """Against the loop that one would write: the whole form's pull on every column anew."""
    weight = draw(6, 24, seed=3)
    grid = Scheme.parse(scheme).grids({"w": weight.float()}, {"w": 0}, "mse")["w"]
    x = draw(groups, 40, 24, seed=1) @ draw(groups, 24, 24, seed=2)
    moment = x.mT @ x / 40
    damped = moment + 0.01 * moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(24)
    codes = grid.encode(weight)
    for _ in range(2):
        for j in range(24):
            rise = []
            for code in range(grid.count):
                trial = codes.clone()
                trial[:, j] = code
                e = split(grid, grid.decode(trial).double() - weight, groups)
                rise.append((torch.bmm(e, damped) * e).sum(-1).flatten())
            codes[:, j] = torch.stack(rise).argmin(0).to(torch.uint8)
    assert torch.equal(descend(grid.encode(weight), weight, grid, moment, 2, columns), codes)


@pytest.mark.parametrize("scheme, groups", [("w2", 1), ("w3a", 2), ("nf4", 1), ("w2g8", 1)])
def test_layers_that_share_an_input_are_swept_as_one(scheme, groups):
    weights = [draw(6, 24, seed=3), draw(10, 24, seed=4)]
    grids = [Scheme.parse(scheme).grids({"w": w.float()}, {"w": 0}, "mse")["w"] for w in weights]
    x = draw(groups, 40, 24, seed=1) @ draw(groups, 24, 24, seed=2)
    moment = x.mT @ x / 40
    codes = [g.encode(w) for g, w in zip(grids, weights, strict=True)]
    together = descend_columns(codes, weights, grids, moment, 0.01, 1)
    for c, w, g, found in zip(codes, weights, grids, together, strict=True):
        assert torch.equal(descend(c, w, g, moment, 1), found) and not torch.equal(c, found)


def test_one_layer_has_no_predecessors():
    model = nn.Sequential(nn.Linear(6, 5))
    batches = [(draw(40, 6).float(), torch.zeros(40, dtype=torch.long))]
    objective = Objective(model, batches)
    own, aimed = (quantize(objective, "w3", "gptq", target=t) for t in ("own", "float"))
    assert space.fingerprint(own.codes) == space.fingerprint(aimed.codes)
    swept = [quantize(objective, "w3", "gptq", target=t, sweeps=2) for t in ("own", "float")]
    assert space.fingerprint(swept[0].codes) == space.fingerprint(swept[1].codes)


def chain(depth, seed, width=16):
    """A linear network: each layer can undo what its predecessors did."""
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))
    with torch.no_grad():
        for i, layer in enumerate(model):
            layer.weight.copy_(draw(width, width, seed=100 * seed + i) / width**0.5)
    batches = [(draw(200, width, seed=seed).float(), torch.zeros(200, dtype=torch.long))]
    return Objective(model, batches)


def test_errors_of_predecessors_are_made_up_for():
    """Six linear layers at three bits, five draws: output error over the float outputs."""
    totals = {"own": 0.0, "float": 0.0}
    for seed in range(5):
        objective = chain(6, seed)
        exact = objective.forward({}, objective.batches[0])
        for kind in totals:
            point = quantize(objective, "w3", "gptq", target=kind)
            off = objective.forward(point.weights, objective.batches[0]) - exact
            totals[kind] += float(off.square().sum() / exact.square().sum())
    assert totals["float"] < 0.7 * totals["own"]


def test_lower_divergence_than_published_rounding_on_a_network():
    objective = Objective(small_net(), small_batches())
    teacher = Teacher(objective)
    own, aimed = (teacher.loss(quantize(objective, "w2", "gptq", target=t).weights) for t in ("own", "float"))
    assert aimed < own


def test_unknown_targets_are_refused(objective):
    with pytest.raises(ThalwegError, match="'own'"):
        quantize(objective, "w2", "gptq", target="other")
    with pytest.raises(ThalwegError, match="sequential"):
        quantize(objective, "w2", "gptq", target="float", sequential=False)
