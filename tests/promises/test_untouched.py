"""The caller's model and the world around it come back as they were; equal seeds give equal bits."""

import random

import numpy as np
import pytest
import torch

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg import basin, curvature, space
from thalweg.certificate import local_objectives
from thalweg.diagnosis import Thresholds, diagnose, planned_cost
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.train import Recipe, train

QUICK = Thresholds(directions=2, pairs=2, points=5)


def state(model):
    bits = space.fingerprint(dict(model.state_dict()))
    modes = [m.training for m in model.modules()]
    return bits, modes, [p.requires_grad for p in model.parameters()], [p.grad is None for p in model.parameters()]


def world():
    return torch.get_rng_state().sum().item(), np.random.get_state()[1].sum(), random.getstate()[1][:5]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batchnorm", ["frozen", "reestimate"])
def test_every_public_call_leaves_model_and_rng_alone(training, batchnorm):
    model = small_net().train(training)
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
    before, around = state(model), world()
    objective = Objective(model, small_batches(), batchnorm=batchnorm)
    weights = space.fingerprint(objective.weights)
    for method in ("nearest", "gptq"):
        point = quantize(objective, "w2", method)
        diagnose(objective, point, QUICK)
        local_objectives(objective, [point])
    train(objective, point, small_batches(), Recipe(steps=3, check_every=1))
    objective.evaluate(point.weights, small_batches(), "accuracy")
    curvature.products(objective, objective.weights)(objective.weights)
    basin.worst_radius(objective, objective.weights, point.step)
    assert state(model) == before
    assert world() == around
    assert space.fingerprint(objective.weights) == weights


def test_language_model_is_left_alone():
    model = tiny_llama()
    before, around = state(model), world()
    objective = Objective(model, [tiny_tokens()], "causal_lm")
    diagnose(objective, quantize(objective, "w2", "gptq", keep_float=("lm_head",)), QUICK)
    assert state(model) == before and world() == around


def test_two_runs_are_bitwise_equal():
    def run():
        objective = Objective(small_net(), small_batches())
        point = quantize(objective, "w2", "gptq")
        found = train(objective, point, small_batches(3, 8, 5), Recipe(steps=8, check_every=4, stop=False))
        d = diagnose(objective, found.recovered, QUICK)
        return space.fingerprint(found.points["last"].codes), d.loss, d.typical, d.pull, d.segment.losses

    assert run() == run()


def test_what_is_trained_is_what_is_deployed():
    """Codes, decoded weights and the weights of the last step agree bit for bit."""
    objective = Objective(small_net(), small_batches())
    live = []
    found = train(
        objective, quantize(objective, "w2"), small_batches(), Recipe(steps=5, check_every=1, stop=False),
        watch=lambda k, w: live.append(space.clone(w)) or {},
    )  # fmt: skip
    assert space.fingerprint(live[-1]) == space.fingerprint(found.points["last"].weights)


@pytest.mark.parametrize("depth", ["losses", "full"])
def test_no_more_is_spent_than_declared(depth):
    objective = Objective(small_net(), small_batches())
    point = quantize(objective, "w2")
    before = dict(objective.cost)
    declared = planned_cost(objective, len(point.grids), QUICK, depth)
    diagnose(objective, point, QUICK, depth=depth)
    for kind, most in declared.items():
        assert objective.cost[kind] - before.get(kind, 0) <= most, kind
    if depth == "losses":
        assert objective.cost["gradients"] == 0 and objective.cost["products"] == 0


def test_results_do_not_depend_on_how_the_data_are_cut():
    net = small_net()
    x, y = small_batches(1, 24)[0]
    whole = Objective(net, [(x, y)])
    cut = Objective(net, [(x[:5], y[:5]), (x[5:], y[5:])])
    assert whole.loss({}) == pytest.approx(cut.loss({}), rel=1e-6)
    assert torch.allclose(whole.losses({}), cut.losses({}), rtol=1e-5)
    a, b = whole.gradient(whole.weights), cut.gradient(cut.weights)
    assert space.cosine(a[1], b[1]) == pytest.approx(1, abs=1e-6)
