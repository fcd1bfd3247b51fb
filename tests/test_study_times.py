"""Recovery times of a study against a wall on which they are known in closed form."""

import math
from types import SimpleNamespace

import pytest
import torch

from thalweg import Objective, quantize
from thalweg.errors import ThalwegError
from thalweg.study.measures import MEASURES, Scene, take

RATES = [0.002, 0.004, 0.008]


@pytest.fixture(scope="module")
def wall():
    """A loss that is flat below the float weights and rises linearly above: what was rounded up pays, and pays no more
    once it is a level lower. All of its gradients are equal until then."""
    w = torch.rand(1, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    objective = Objective.of(lambda at: 8 * (at["w"] - w).clamp(min=0).mean(), {"w": w})
    return objective, quantize(objective, "w4", "nearest")


def scene(wall, **options):
    objective, point = wall
    return Scene(objective, SimpleNamespace(train_batch=None), {"begin": point}, 0, {"rates": RATES, **options})


def true_half(point, speed):
    """First step at which the sum of what is still rounded up has halved. ``speed``: grid steps per update."""
    away = ((point.weights["w"] - point.reference["w"]) / point.step["w"]).flatten()
    up = away[away > 0]
    flips = torch.ceil((0.5 - up) / speed)
    return next(k for k in range(1, 10_000) if up[flips > k].sum() <= up.sum() / 2)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_time_to_half_of_the_rise_on_a_linear_wall(wall, optimizer):
    """The time is inverse to the rate, for both optimizers; of plain SGD the rate is the rms of the first update, which
    the weights that were rounded up make alone."""
    point = wall[1]
    share = float((point.weights["w"] > point.reference["w"]).double().mean())
    found = take("times", scene(wall, optimizer=optimizer, until="half", steps=400, check_every=1, patience=1))
    for rate in RATES:
        truth = true_half(point, rate / math.sqrt(share) if optimizer == "sgd" else rate)
        assert truth - 2 <= found["half"][str(rate)] <= truth + 1
    assert abs(found["slope_plus_one"]) < 0.1 and found["halved"] == 1 and found["recovered"] is None
    assert found["latent_change_ratio"] == 0  # the latent weights go down, where the loss is flat


def test_how_far_the_latent_loss_has_moved_by_then(wall):
    """Where the wall has a slope on the other side too, AdamW moves what was rounded up by the rate per step, and the
    latent loss rises with it; what has flipped turns back, so that this is a bound."""
    objective, point = wall
    w, up = point.reference["w"], point.weights["w"] > point.reference["w"]
    sides = lambda at: (up * (8 * (at["w"] - w).clamp(min=0) + (w - at["w"]).clamp(min=0))).mean()
    tilted = Objective.of(sides, objective.weights)
    found = take("times", scene((tilted, point), until="half", steps=400, check_every=1, patience=1))
    rise = tilted.loss(point.deployed)
    for run in found["runs"]:
        far = run["rate"] * (run["half"] + 1) * float((up * point.step["w"]).mean())
        assert 0.5 * far / (rise / 2) < run["latent_change"] <= far / (rise / 2)
    assert found["latent_change_ratio"] == pytest.approx(sum(r["latent_change"] for r in found["runs"]) / len(RATES))


def test_runs_go_on_to_the_float_loss_unless_half_is_enough(wall):
    whole = take("times", scene(wall, steps=400, check_every=1, patience=1))
    short = take("times", scene(wall, steps=400, check_every=1, patience=1, until="half"))
    assert whole["recovered"] == 1 and whole["half"] == short["half"]
    assert all(a["final"] < b["final"] for a, b in zip(whole["runs"], short["runs"], strict=True))


def test_what_has_not_failed_has_no_time(wall):
    objective, point = wall
    low = Objective.of(lambda at: 1e-3 * (at["w"] - objective.weights["w"]).clamp(min=0).mean(), objective.weights)
    for until in ("half", "recovered"):
        found = take("times", scene((low, point), until=until, steps=4, check_every=2))
        assert found["slope"] is None and found["halved"] == 0
        assert (low.cost["gradients"] == 0) == (until == "half")


def test_an_end_that_is_unknown_is_an_error(wall):
    with pytest.raises(ThalwegError, match="halb"):
        take("times", scene(wall, until="halb"))
    assert MEASURES["times"].options["until"] == "recovered"
