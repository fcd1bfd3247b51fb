"""Every method on what breaks linear algebra: singular moments, dead inputs, one sample, bf16, layers one wide."""

import itertools

import pytest
import torch
from torch import nn

from thalweg import catalog, space
from thalweg.objective import Objective
from thalweg.point import quantize

METHODS = catalog.names("methods")
QUICK = {
    **{name: {"steps": 10} for name in ("adaround", "brecq", "signround", "burst", "tune")},
    "awq": {"points": 4, "clips": 4, "coarse": 2},
    "basic": {"directions": 2},
    "flip": {"budget": 12},
    "wall": {"refresh": 1, "polish": 12},
}
DATA = [m for m in METHODS if m not in ("nearest", "stochastic", "hqq")]
FEEDBACK = ("gptq", "obq")


def dense(*widths: int, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        layers[-1] = layers[-1][0]
        return nn.Sequential(*layers).eval()


def data(samples: int, columns: int, classes: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(samples, columns, generator=g), torch.randint(0, classes, (samples,), generator=g)


def rank_deficient():
    x, y = data(32, 12, 4)
    return dense(12, 6, 4), [(x[:, :2] @ x[:2], y)]


def dead_inputs():
    x, y = data(32, 12, 4)
    x[:, ::3] = 0
    return dense(12, 6, 4), [(x, y)]


def one_sample():
    return dense(12, 6, 4), [data(1, 12, 4)]


def all_inputs_zero():
    x, y = data(8, 12, 4)
    return dense(12, 6, 4), [(torch.zeros_like(x), y)]


def bf16():
    x, y = data(32, 12, 4)
    return dense(12, 6, 4).bfloat16(), [(x.bfloat16(), y)]


def one_input():
    return dense(1, 6, 4), [data(32, 1, 4)]


def one_hidden_unit():
    return dense(12, 1, 4), [data(32, 12, 4)]


def one_output():
    x, _ = data(32, 12, 4)
    return dense(12, 6, 1), [(x, x.sum(1, keepdim=True))]


CASES = (rank_deficient, dead_inputs, one_sample, all_inputs_zero, bf16, one_input, one_hidden_unit, one_output)


def squared(output, batch):
    return (output - batch[1]).square().sum(1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_finite_legal_and_no_worse_than_a_coin(method, case):
    model, batches = case()
    objective = Objective(model, batches, squared if case is one_output else "cross_entropy")
    point = quantize(objective, "w3", method, **QUICK.get(method, {}))
    for name, value in point.weights.items():
        assert value.dtype == objective.weights[name].dtype and bool(value.isfinite().all())
        assert torch.equal(point.grids[name].encode(value), point.codes[name])
    assert point.reach < 2  # nothing ran away: plain rounding moves a third of a step
    assert torch.isfinite(torch.tensor(objective.loss(point.deployed)))


@pytest.mark.parametrize("method", FEEDBACK)
def test_dead_inputs_are_rounded_to_nearest(method):
    objective = Objective(*dead_inputs())
    point = quantize(objective, "w3", method)
    dead = point.codes["0.0.weight"][:, ::3]
    assert torch.equal(dead, point.grids["0.0.weight"].encode(objective.weights["0.0.weight"])[:, ::3])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", DATA)
def test_weights_on_the_grid_stay(method, case):
    model, batches = case()
    loss = squared if case is one_output else "cross_entropy"
    first = quantize(Objective(model, batches, loss), "w3", fit="absmax")
    with torch.no_grad():
        for name, value in first.weights.items():
            model.get_parameter(name).copy_(value)
    again = quantize(Objective(model, batches, loss), "w3", method, grids=first.grids, **QUICK.get(method, {}))
    assert space.norm(space.sub(again.weights, first.weights)) == 0


# -- each method below plain rounding in what it minimises ------------------------------------------


def problem(seed: int):
    """One layer of 12 inputs and 5 outputs, 256 samples with correlated inputs: condition about 10."""
    x, _ = data(256, 12, 5, seed)
    for j in range(1, 12):
        x[:, j] = 0.5 * x[:, j - 1] + 0.75**0.5 * x[:, j]
    return dense(12, 5, seed=seed), x


def objectives(model, x, objective, grids):
    """By method, what it minimises as a function of weights."""
    name = next(iter(grids))
    original = objective.weights[name]
    output = lambda w: float((x @ (w[name] - original).T).double().square().sum())
    targets = model(x).log_softmax(-1)
    divergence = lambda w: float(
        torch.nn.functional.kl_div(
            objective.forward(w, (x, None)).log_softmax(-1), targets, log_target=True, reduction="batchmean"
        )
    )
    lp = lambda w: float((w[name] - original).double().abs().pow(0.7).sum())
    layer = dict.fromkeys(("gptq", "obq", "awq", "adaround", "brecq", "signround"), output)
    return {**layer, **dict.fromkeys(("wall", "flip", "burst", "tune"), divergence), "hqq": lp}


SEEDS = 20
EXCEPTIONS = {"obq": 2}
"""How many of the twenty problems a method fails to be below plain rounding in its own objective; obq is greedy."""


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("nearest", "stochastic", "basic")])
def test_below_plain_rounding_in_its_own_objective(method):
    worse = 0
    for seed in range(SEEDS):
        model, x = problem(seed)
        objective = Objective(model, [(x, torch.zeros(256, dtype=torch.long))])
        options = QUICK.get(method, {}) if method in ("awq", "flip", "wall") else {}
        options = {"steps": 60} if method in ("adaround", "brecq", "signround", "tune") else options
        point = quantize(objective, "w3", method, **options)
        measure = objectives(model, x, objective, point.grids)[method]
        plain = quantize(objective, "w3")
        worse += measure(point.weights) > measure(plain.weights) * (1 + 1e-6)
    assert worse <= EXCEPTIONS.get(method, 0), worse
