"""`flip` against exhaustive search, and its promise never to raise the loss."""

import itertools

import pytest
import torch

from thalweg import space
from thalweg.distill import Teacher
from thalweg.errors import ThalwegError
from thalweg.methods.flip import flip_search
from thalweg.objective import Objective
from thalweg.point import quantize


def quadratic(seed, n=6):
    x = torch.randn(n, 2 * n, generator=space.generator(seed))
    return x @ x.T / n


@pytest.mark.parametrize("seed", range(6))
def test_it_ends_where_no_single_flip_helps(seed):
    matrix, weight = quadratic(seed), torch.rand(6, generator=space.generator(seed, "w")) * 4 - 2
    objective = Objective.of(lambda w: (w["w"] - weight) @ matrix @ (w["w"] - weight) / 2, {"w": weight})
    start = quantize(objective, "w3t", fit="absmax")
    found, spent = flip_search(objective, start, budget=4000)
    assert spent["losses"] == sorted(spent["losses"], reverse=True)
    loss = objective.loss(found.weights)
    assert loss == pytest.approx(spent["loss"], rel=1e-5) and loss <= objective.loss(start.weights)
    grid = start.grids["w"]
    lower, upper = grid.bracket(weight)
    best = min(
        objective.loss({"w": grid.decode(torch.where(torch.tensor(pick), upper, lower))})
        for pick in itertools.product([False, True], repeat=6)
    )
    assert loss >= best - 1e-6 or bool(((found.codes["w"] < lower) | (found.codes["w"] > upper)).any())


@pytest.mark.parametrize("start", ["nearest", "gptq"])
def test_it_never_raises_the_divergence_and_keeps_the_budget(start, objective):
    teacher = Teacher(objective)
    before = quantize(objective, "w2", start)
    point = quantize(objective, "w2", "flip", start=start, budget=60)
    note = next(iter(point.notes.values()))
    assert teacher.loss(point.weights) < teacher.loss(before.weights)
    assert note["forwards"] <= 60 and note["flips"] > 0
    with pytest.raises(ThalwegError, match="nearest"):
        quantize(objective, "w2", "flip", start="float")


def test_the_search_stops_inside(objective):
    start = quantize(objective, "w3")
    found, spent = flip_search(objective, start, tolerance_nats=10.0)
    assert spent["flips"] == 0 and space.fingerprint(found.codes) == space.fingerprint(start.codes)
