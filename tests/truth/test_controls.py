"""The controls of straight-through training: each takes one thing away and nothing else."""

import math

import pytest
import torch

from tests.conftest import small_batches, small_net
from thalweg import controls, space
from thalweg.errors import ThalwegError
from thalweg.grid import Grid, Layout
from thalweg.landscapes.straight import straight
from thalweg.load import load_task
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize
from thalweg.survey import objective_of
from thalweg.train import Recipe, Run, train
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
    assert torch.equal(stuck.latent["w"], objective.weights["w"]) and stuck.losses["best"] == objective.loss(
        point.weights
    )
    assert stuck.recovery_time(0.01) is None and stuck.lag()["half_step"] is None


@pytest.mark.parametrize("seed", [12, 20, 32])
def test_on_a_flat_floor_the_latent_gradient_moves_along_the_river_only(seed):
    """Theory 7.7: the normal coordinate of the latent weights is constant, however far they drift; straight-through
    training, whose gradient is that of the wall, is inside after a few steps."""
    land = straight(size=16, radius=0.3, height=0.2, along=0.1, drift="linear", pull=0.2, seed=seed)
    start, grids, normal = land.start, land.grids(), land.truth.normal[:, 0]
    point = QuantizedPoint(start, {"w": grids["w"].encode(start["w"])}, grids)
    assert land.inside(start["w"]) and not land.inside(point.weights["w"])
    inside = {}
    for gradient in ("deployed", "latent"):
        recipe = Recipe(
            steps=100, optimizer="sgd", lr=0.01, schedule="constant", check_every=1, stop=False, gradient=gradient,
            tail=10,
        )  # fmt: skip
        seen = inside[gradient] = []
        keep = lambda step, p, seen=seen: seen.append(bool(land.inside(p.weights["w"])))
        moved = [t["w"] - start["w"] for t in train(land.objective(), point, None, recipe, keep=keep).tail]
        across, along = [abs(float(m @ normal)) for m in moved], [float(m @ land.truth.tangent[:, 0]) for m in moved]
        assert along[-1] == pytest.approx(100 * 0.01 * 0.2)  # the same way down the river
        assert max(across) < 1e-12 if gradient == "latent" else max(across) > 0.1
    assert True in inside["deployed"][:10] and True not in inside["latent"]


def test_the_frozen_gradient_keeps_its_direction():
    objective, point, recipe = river(gradient="frozen")
    seen = []
    train(
        objective, point, None, recipe, audit=lambda step, before, gradient, after: seen.append(gradient["w"].clone())
    )
    assert all(torch.equal(g, seen[0]) for g in seen) and seen[0].norm() > 0


def test_noise_has_the_law_of_rounding_and_stochastic_rounding_no_bias():
    objective = Objective(small_net(), small_batches())
    point = quantize(objective, "w4", "nearest")
    latent, step = point.reference, point.step
    draws = [space.div(space.sub(controls.noisy(latent, step, 3, i), latent), step) for i in range(40)]
    every = torch.stack([space.flatten(d) for d in draws]).double()
    assert float(every.abs().max()) <= 0.5 + 1e-4
    assert float(every.std()) == pytest.approx(1 / math.sqrt(12), rel=0.01) and abs(float(every.mean())) < 5e-3
    again = space.flatten(controls.noisy(latent, step, 3, 0))
    assert torch.equal(again, space.flatten(controls.noisy(latent, step, 3, 0)))
    assert not torch.equal(again, space.flatten(controls.noisy(latent, step, 4, 0)))
    assert not torch.equal(again, space.flatten(controls.noisy(latent, step, 3, 1)))
    rounded = [controls.stochastic(latent, point.grids, 3, i) for i in range(400)]
    for name, grid in point.grids.items():
        assert torch.equal(grid.round(rounded[0][name]), rounded[0][name])
        inner = ~grid.saturated(latent[name])
        mean = torch.stack([r[name] for r in rounded]).mean(0)
        error = ((mean - latent[name]) / step[name])[inner]
        assert float(error.abs().mean()) < 3 * 0.5 / math.sqrt(400)


def test_stochastic_rounding_beyond_the_levels_takes_the_outermost_and_on_a_level_stays():
    grid = Grid(Layout((6,), 6), torch.tensor([-1.0, -0.25, 0.0, 2.0]), torch.full((1, 1), 2.0))
    weight = {"w": torch.tensor([-9.0, -2.0, -0.5, 0.0, 4.0, 7.0], dtype=torch.float64)}
    for index in range(20):
        found = controls.stochastic(weight, {"w": grid}, 0, index)["w"]
        assert found.tolist() == [-2.0, -2.0, -0.5, 0.0, 4.0, 4.0] and found.dtype == torch.float64


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


def test_training_the_rest_of_a_task_lowers_its_training_loss():
    task = load_task("digits:tiny")
    objective = objective_of(task, "cpu")
    point = quantize(objective, "w2", "nearest", keep_float=("head",))
    recipe = Recipe(steps=24, trains="rest", lr=0.5, check_every=24, stop=False)
    found = train(objective, point, task.train_batch, recipe)
    assert "head.weight" in found.points["last"].extra and sum(found.flips) == 0
    assert space.fingerprint(found.points["last"].weights) == space.fingerprint(point.weights)
    assert sum(found.batch_losses[-6:]) < 0.5 * sum(found.batch_losses[:6])


@pytest.mark.parametrize("lora", [0, 2])
def test_training_all_moves_weights_and_rest_by_the_gradient_of_one_loss(problem, lora):
    objective, batches, point = problem
    recipe = Recipe(steps=4, trains="all", optimizer="sgd", lr=0.1, schedule="constant", start="point", lora=lora)
    state = Run(objective, point, batches, recipe)
    names = {n for n, _ in objective.model.named_parameters()}
    leaves = {n: t.detach().clone() for n, t in objective.model.named_parameters()} | point.weights
    leaves = {n: t.requires_grad_() for n, t in leaves.items()}
    inputs, labels = batches[0]
    loss = torch.nn.functional.cross_entropy(torch.func.functional_call(objective.model, leaves, inputs), labels)
    wanted = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    state.advance()
    for name in names - set(point.grids):
        assert torch.allclose(state.others[name], leaves[name] - 0.1 * wanted[name], atol=1e-6)
    for name in point.grids:
        moved = state.latent.weights[name] - point.weights[name]
        if lora:  # the left factor is zero, so that only it moves: -lr·g·rightᵀ·right
            matrix, right = point.grids[name].layout.matrix(wanted[name]), state.movers.right[name]
            assert torch.allclose(point.grids[name].layout.matrix(moved), -0.1 * matrix @ right.T @ right, atol=1e-6)
        else:
            assert torch.allclose(moved, -0.1 * wanted[name], atol=1e-6)


def test_training_all_goes_lower_than_its_parts(problem):
    objective, batches, point = problem
    losses = {}
    for trains in ("weights", "rest", "all"):
        recipe = Recipe(steps=40, trains=trains, lr=0.1, check_every=4, stop=False, start="point")
        found = train(objective, point, batches, recipe)
        losses[trains] = found.losses["best"]
        if trains == "all":
            assert "head.bias" in found.points["best"].extra and sum(found.flips) > 0
    assert losses["all"] < min(losses["weights"], losses["rest"])


PLACES = {
    "deployed": lambda w, grids, start, i: {n: g.round(w[n]) for n, g in grids.items()},
    "latent": lambda w, grids, start, i: w,
    "noise": lambda w, grids, start, i: controls.noisy(w, {n: g.step(w[n]) for n, g in grids.items()}, 5, i),
    "stochastic": lambda w, grids, start, i: controls.stochastic(w, grids, 5, i),
    "frozen": lambda w, grids, start, i: {n: g.round(start[n]) for n, g in grids.items()},
}


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_training_is_the_plain_loop_with_the_gradient_at_its_place(problem, gradient):
    """AdamW on float weights, written out, bit for bit; a check on the way changes nothing."""
    objective, batches, point = problem
    weights = space.clone(point.reference)
    units = {n: float(point.step[n].double().mean()) for n in weights}
    groups = [{"params": [w], "lr": 0.1 * units[n]} for n, w in weights.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-12, fused=True)
    losses = []
    for i in range(9):
        place = PLACES[gradient](weights, point.grids, point.reference, i)
        leaves = {n: w.detach().clone().requires_grad_() for n, w in place.items()}
        loss = objective.batch_loss(leaves, batches[i % len(batches)])
        loss.backward()
        losses.append(float(loss.detach()))
        for name, w in weights.items():
            w.grad = leaves[name].grad
        optimizer.step()
    recipe = Recipe(steps=9, lr=0.1, schedule="constant", check_every=4, stop=False, seed=5, gradient=gradient)
    found = train(objective, point, batches, recipe)
    assert found.batch_losses == tuple(losses)
    assert space.fingerprint(found.latent) == space.fingerprint(weights)
    rounded = {n: g.encode(weights[n]) for n, g in point.grids.items()}
    assert space.fingerprint(found.points["last"].codes) == space.fingerprint(rounded)


@pytest.mark.parametrize("gradient,extra", [("deployed", 1), ("latent", 1), ("noise", 2), ("frozen", 2)])
def test_what_a_check_costs(gradient, extra):
    objective, point, recipe = river(gradient=gradient)
    state = Run(objective, point, None, recipe)
    before = objective.cost["gradients"]
    state._check()
    state.advance()
    assert objective.cost["gradients"] - before == 1 + extra
    pull = [space.cosine(objective.gradient(w)[1], {"w": point.weights["w"] - point.reference["w"]})
            for w in (point.weights, point.reference)]  # fmt: skip
    assert [state.checks[0].pull, state.checks[0].latent_pull] == pytest.approx(pull)


@pytest.mark.parametrize(
    "options", [*({"gradient": g, "tail": 4} for g in GRADIENTS), {"trains": "rest"}, {"trains": "all"}], ids=str
)
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
    double = objective.at({n: w.double() for n, w in moved.items()})
    assert double.identity == here.identity  # in the model's dtype
    for bad in ({"nowhere": torch.zeros(1)}, {next(iter(moved)): torch.zeros(1)}):
        with pytest.raises(ThalwegError, match="does not fit"):
            objective.at(bad)


def test_float_training_of_equal_budget_then_rounding(problem):
    objective, batches, point = problem
    before = space.fingerprint({**objective.weights, **dict(objective.model.named_parameters())})
    found = train(objective, point, batches, Recipe(steps=20, gradient="latent", check_every=10, stop=False, lr=0.2))
    moved = objective.at(found.latent)
    assert moved.loss({}) == objective.loss(found.latent) == found.checks[-1].latent_loss
    assert moved.loss({}) < objective.loss({})  # it has trained
    net = small_net()
    net.load_state_dict({**net.state_dict(), **found.latent})
    for method in ("nearest", "gptq"):
        rounded = quantize(moved, "w2", method, grids=point.grids)
        truth = quantize(Objective(net, batches), "w2", method, grids=point.grids)
        assert space.fingerprint(rounded.codes) == space.fingerprint(truth.codes)
        assert objective.loss(rounded.weights) == moved.loss(rounded.weights)
    nearest = quantize(moved, "w2", "nearest", grids=point.grids)
    assert space.fingerprint(nearest.codes) == space.fingerprint(found.points["last"].codes)
    assert before == space.fingerprint({**objective.weights, **dict(objective.model.named_parameters())})


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
    assert told.crossing(0.05) == pytest.approx(20 + 10 * 0.95 / 0.98)
    assert told.crossing(1.0) == pytest.approx(10 * 1 / 1.99)
    assert trajectory((0, 1.0, 1.0)).crossing(0.1) == 0 and trajectory((0, 3.0, 1.0)).crossing(0.1) is None
    assert trajectory((0, math.inf, 1.0), (10, 1.0, 1.0)).crossing(0.1) == 10
    lag = told.lag()
    assert lag["half_step"] == 10 and lag["latent_change"] == pytest.approx(0.1)
    assert lag["latent_change_ratio"] == pytest.approx(0.1)
