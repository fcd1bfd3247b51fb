"""Stochastic rounding: unbiased between levels, the outermost level beyond them, one stream per tensor."""

import torch

from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.scheme import Scheme

WEIGHT = torch.linspace(-1.2, 1.3, 41)


def draws(scheme: str, count: int):
    objective = Objective.of(lambda w: w["w"].square().sum(), {"w": WEIGHT})
    grids = Scheme.parse(scheme).grids({"w": WEIGHT * 0.7}, fit="absmax")  # the ends lie outside
    points = [quantize(objective, scheme, "stochastic", seed=s, grids=grids) for s in range(count)]
    return grids["w"], torch.stack([p.weights["w"] for p in points]).double()


def test_unbiased_within_standard_error_and_saturated_weights_outermost():
    count = 600
    for scheme in ("w3", "nf4", "w2a"):
        grid, values = draws(scheme, count)
        low, high = grid.bounds()
        inside = (low <= WEIGHT) & (high >= WEIGHT)
        assert 10 < int(inside.sum()) < 41
        lower, upper = (grid.decode(c).double() for c in grid.bracket(WEIGHT))
        assert bool(((values == lower) | (values == upper)).all())
        share = ((WEIGHT - lower) / (upper - lower))[inside]
        stderr = (upper - lower)[inside] * (share * (1 - share) / count).clamp(min=0).sqrt()
        off = (values.mean(0) - WEIGHT).abs()[inside]
        assert bool((off <= 4.5 * stderr + 1e-6).all())
        assert bool((values.std(0)[inside] > 0).float().mean() > 0.9)
        outside = torch.where(high < WEIGHT, high, low).double()[~inside]
        assert bool((values[:, ~inside] == outside).all())


def test_tensors_have_streams_of_their_own():
    pair = {"a": WEIGHT, "b": WEIGHT.clone()}
    objective = Objective.of(lambda w: w["a"].sum() + w["b"].sum(), pair)
    point = quantize(objective, "w3", "stochastic", seed=1)
    assert not torch.equal(point.codes["a"], point.codes["b"])
    alone = quantize(Objective.of(lambda w: w["a"].sum(), {"a": WEIGHT}), "w3", "stochastic", seed=1)
    assert torch.equal(alone.codes["a"], point.codes["a"])
