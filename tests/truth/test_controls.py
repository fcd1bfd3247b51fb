"""The controls of straight-through training: each takes one thing away and nothing else."""

import math

import pytest
import torch

from tests.conftest import small_batches, small_net
from thalweg import controls, space
from thalweg.errors import ThalwegError
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.train import Recipe, train
from thalweg.trajectory import GRADIENTS, Check, Trajectory

NORMAL = torch.tensor([0.6, 0.8], dtype=torch.float64)


def valley(weights):
    """A flat floor of half-width .2 along NORMAL, a steep wall beyond, nothing along the river."""
    z = (weights["w"] * NORMAL).sum()
    return 5 * (z.abs() - 0.2).clamp(min=0) ** 2


def river(**options):
    """Rounding on whole numbers leaves the valley, and a grid point inside it is one flip away."""
    start = {"w": torch.tensor([0.6, -0.4], dtype=torch.float64)}
    objective = Objective.of(valley, start)
    point = quantize(objective, "w4tr", "nearest")
    grid = point.grids["w"]
    whole = type(grid)(grid.layout, grid.levels, torch.ones_like(grid.scale), name="whole")
    point = quantize(objective, "w4tr", "nearest", grids={"w": whole})
    recipe = Recipe(steps=60, optimizer="sgd", lr=0.01, schedule="constant", check_every=1, stop=False, **options)
    return objective, point, recipe


def test_the_latent_gradient_feels_nothing_on_the_floor_and_the_deployed_one_recovers():
    objective, point, recipe = river()
    assert objective.loss({}) == 0 and objective.loss(point.weights) > 0.5
    back = train(objective, point, None, recipe)
    assert back.losses["best"] < 1e-12 and back.recovery_time(0.01) is not None
    objective, point, recipe = river(gradient="latent")
    stuck = train(objective, point, None, recipe)
    assert torch.equal(stuck.latent["w"], objective.weights["w"]) and stuck.losses["best"] == objective.loss(point.weights)
    assert stuck.recovery_time(0.01) is None and stuck.lag()["half_step"] is None


def test_the_frozen_gradient_keeps_its_direction():
    objective, point, recipe = river(gradient="frozen")
    seen = []
    train(objective, point, None, recipe, audit=lambda step, before, gradient, after: seen.append(gradient["w"].clone()))
    assert all(torch.equal(g, seen[0]) for g in seen) and seen[0].norm() > 0


def test_noise_has_the_law_of_rounding_and_stochastic_rounding_no_bias():
    objective = Objective(small_net(), small_batches())
    point = quantize(objective, "w4", "nearest")
    latent, step = point.reference, point.step
    draws = [space.div(space.sub(controls.noisy(latent, step, 3, i), latent), step) for i in range(40)]
    every = torch.stack([space.flatten(d) for d in draws]).double()
    assert float(every.abs().max()) <= 0.5 + 1e-4
    assert float(every.std()) == pytest.approx(1 / math.sqrt(12), rel=0.01) and abs(float(every.mean())) < 5e-3
    assert not torch.equal(every[0], every[1])
    rounded = [controls.stochastic(latent, point.grids, 3, i) for i in range(400)]
    for name, grid in point.grids.items():
        assert torch.equal(grid.round(rounded[0][name]), rounded[0][name])
        inner = ~grid.saturated(latent[name])
        mean = torch.stack([r[name] for r in rounded]).mean(0)
        error = ((mean - latent[name]) / step[name])[inner]
        assert float(error.abs().mean()) < 3 * 0.5 / math.sqrt(400)


@pytest.fixture(scope="module")
def problem():
    net = small_net()
    batches = [(x, net(x).argmax(-1)) for x, _ in small_batches(3, 24, 5)]
    objective = Objective(net, batches)
    return objective, batches, quantize(objective, "w2", "gptq")


def test_training_the_rest_leaves_every_code_and_lowers_the_loss(problem):
    objective, batches, point = problem
    found = train(objective, point, batches, Recipe(steps=20, trains="rest", lr=0.5, check_every=4, stop=False))
    last = found.points["last"]
    names = {n for n, _ in objective.model.named_parameters()} - set(point.grids)
    assert set(last.extra) == names and "head.bias" in names
    assert space.fingerprint(last.codes) == space.fingerprint(point.codes)
    assert found.losses["best"] < found.checks[0].deployed_loss


@pytest.mark.parametrize("options", [*({"gradient": g, "tail": 4} for g in GRADIENTS), {"trains": "rest"}], ids=str)
def test_resuming_keeps_every_bit(problem, tmp_path, options):
    objective, batches, point = problem
    recipe = Recipe(steps=16, check_every=4, stop=False, lr=0.1, **options)
    whole = train(objective, point, batches, recipe)

    class Killed(Exception):
        pass

    def kill(step):
        if step == 10:
            raise Killed
        return batches[step % 3]

    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(objective, point, kill, recipe, checkpoint=file, save_every_s=0)
    again = train(objective, point, batches, recipe, checkpoint=file)
    assert {**again.to_json(), "seconds": 0} == {**whole.to_json(), "seconds": 0}
    assert space.fingerprint(again.latent) == space.fingerprint(whole.latent)
    assert [space.fingerprint(t) for t in again.tail] == [space.fingerprint(t) for t in whole.tail]
    assert len(whole.tail) == (4 if "gradient" in options else 0)


def test_controls_differ_from_one_another_and_deploy_grid_points(problem):
    objective, batches, point = problem
    ends = {}
    for gradient in GRADIENTS:
        found = train(objective, point, batches, Recipe(steps=6, check_every=3, stop=False, lr=0.2, gradient=gradient))
        ends[gradient] = space.fingerprint(found.latent)
        for name, grid in point.grids.items():
            assert torch.equal(grid.round(found.points["last"].weights[name]), found.points["last"].weights[name])
    assert len(set(ends.values())) == len(GRADIENTS)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(gradient="elsewhere"), Recipe(gradient="latent", trains="scales"), Recipe(gradient="noise", lora=2),
        Recipe(gradient="latent", estimator="lsq"), Recipe(tail=-1),
    ],
    ids=str,
)  # fmt: skip
def test_controls_that_cannot_run(problem, recipe):
    objective, batches, point = problem
    with pytest.raises(ThalwegError):
        train(objective, point, batches, recipe)


def test_an_objective_elsewhere_is_that_of_a_model_with_those_weights(problem):
    objective, batches, point = problem
    moved = {n: w + 0.01 * torch.randn(w.shape, generator=space.generator(1, n)) for n, w in objective.weights.items()}
    net = small_net()
    with torch.no_grad():
        for name, value in moved.items():
            dict(net.named_parameters())[name].copy_(value)
    before = objective.identity
    here, there = objective.at(moved), Objective(net, batches)
    assert here.identity == there.identity != before == objective.identity
    for method in ("nearest", "gptq", "adaround"):
        one = quantize(here, "w2", method, grids=point.grids)
        assert space.fingerprint(one.codes) == space.fingerprint(quantize(there, "w2", method, grids=point.grids).codes)
    for bad in ({"nowhere": torch.zeros(1)}, {next(iter(moved)): torch.zeros(1)}):
        with pytest.raises(ThalwegError, match="does not fit"):
            objective.at(bad)


def check(step, deployed, latent):
    return Check(step, latent, deployed, 0.0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, False)


def trajectory(*rows, patience=2):
    checks = tuple(check(*row) for row in rows)
    return Trajectory(checks, (), (), {}, {}, 1.0, None, rows[-1][0], 1, {"patience": patience}, 0.0)


def test_recovery_time_waits_for_the_streak_and_lag_tells_who_moved_first():
    told = trajectory((0, 3.0, 1.0), (10, 1.01, 1.1), (20, 2.0, 1.2), (30, 1.02, 1.5), (40, 1.0, 1.6))
    assert told.recovery_time(0.05) == 30 and told.recovery_time(0.001) == 40 and told.recovery_time(1e-9) == 40
    assert trajectory((0, 1.0, 1.0), (10, 1.0, 1.0)).recovery_time(0.05) == 1
    assert trajectory((0, 3.0, 1.0), (10, 2.0, 1.0)).recovery_time(0.05) is None
    lag = told.lag()
    assert lag["half_step"] == 10 and lag["latent_change"] == pytest.approx(0.1)
    assert lag["latent_change_ratio"] == pytest.approx(0.1)
