"""QAT on valleys and small networks: bounds, bookkeeping, resuming."""

import json
import math

import pytest
import torch

from tests.conftest import small_batches, small_net
from thalweg import space
from thalweg.errors import ThalwegError
from thalweg.grid import Grid, Layout
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize
from thalweg.train import Recipe, train


def hinge_river(radius=0.45, slope=6.0, w0=(0.3, 0.28), theta=0.6):
    """A straight river in two dimensions: flat within ``radius`` of it, then ½ slope excess²."""
    nu = torch.tensor([-math.sin(theta), math.cos(theta)], dtype=torch.float64)
    start = torch.tensor(w0, dtype=torch.float64)

    def loss(w):
        z = (w["w"] - start) @ nu
        return slope / 2 * (z.abs() - radius).clamp(min=0).square()

    objective = Objective.of(loss, {"w": start})
    grid = Grid(Layout((2,), 2), torch.arange(-3.0, 4.0), torch.ones(1, 1))
    return objective, grid, nu, start


def start_outside():
    """Rounding of (0.45, -0.45) is (0, 0); of the latent start it leaves the basin."""
    objective, grid, nu, start = hinge_river(radius=0.3, w0=(0.45, 0.55), theta=0.9)
    point = QuantizedPoint({"w": start}, {"w": grid.encode(start)}, {"w": grid})
    assert abs(float((point.weights["w"] - start) @ nu)) > 0.3
    return objective, grid, nu, start, point


def test_recovery_time_obeys_theorem_a():
    """T ≤ 1 + ⌈(|z0| - (R - h))₊ / (η c⊥)⌉ for R > h, with h = (Δ/2)‖ν‖₁ (theorem A)."""
    objective, grid, nu, start = hinge_river(radius=0.72, slope=6.0, w0=(0.45, 0.55), theta=0.75)
    tau = 0.02
    big_r = 0.72 + math.sqrt(2 * tau / 6)
    h = float(nu.abs().sum()) / 2
    assert big_r > h
    c = 6 * (big_r - 0.72)
    for eta in (0.01, 0.003):
        for shift in (0.3, -0.5, 0.9):
            latent = start + shift * nu
            moved = Objective.of(objective._function, {"w": latent})
            point = QuantizedPoint({"w": latent}, {"w": grid.encode(latent)}, {"w": grid})
            recipe = Recipe(
                steps=400, optimizer="sgd", lr=eta, schedule="constant", check_every=1, patience=1, tolerance_nats=1e9
            )
            entered = []
            train(
                moved, point, None, recipe,
                watch=lambda k, w: {"in": abs(float((w["w"] - start) @ nu)) <= big_r},
                keep=lambda k, p, entered=entered: entered.append(abs(float((p.weights["w"] - start) @ nu)) <= big_r),
            )  # fmt: skip
            bound = 1 + math.ceil(max(abs(shift) - (big_r - h), 0) / (eta * c))
            first = entered.index(True) if True in entered else math.inf
            assert first <= bound


def test_qat_comes_back_inside_where_latent_training_does_not():
    objective, grid, nu, start, point = start_outside()
    recipe = Recipe(steps=300, optimizer="sgd", lr=0.02, schedule="constant", check_every=1, tolerance_nats=1e-9)
    found = train(objective, point, None, recipe)
    assert found.recovery_step is not None
    assert objective.loss(found.recovered.weights) <= 1e-9
    assert found.checks[0].latent_loss == 0 and found.checks[0].deployed_loss > 0
    assert objective.gradient({"w": start})[1]["w"].abs().max() == 0


def test_telemetry_is_consistent():
    objective = Objective(small_net(), small_batches())
    point = quantize(objective, "w2", "nearest")
    codes = [point.codes]
    recipe = Recipe(steps=12, check_every=3, lr=0.1, stop=False)
    kept = []
    found = train(objective, point, small_batches(3, 8, seed=9), recipe, keep=lambda k, p: kept.append((k, p)))
    assert [c.step for c in found.checks] == [0, 3, 6, 9, 12] == [k for k, _ in kept]
    assert len(found.flips) == 12 and sum(c.flips for c in found.checks) == sum(found.flips)
    assert found.checks[0].deployed_loss == pytest.approx(objective.loss(point.weights))
    assert found.checks[0].latent_loss == pytest.approx(objective.loss({}))
    for check, (_, p) in zip(found.checks, kept, strict=True):
        assert check.deployed_loss == pytest.approx(objective.loss(p.weights))
        assert check.distance == pytest.approx(p.reach)
        assert check.distance >= check.bound - 1e-9  # nothing lies nearer than rounding
        ever = sum(int((p.codes[n] != codes[0][n]).sum()) for n in p.codes)
        assert check.unique_flips >= ever
    assert found.points["last"].reach == pytest.approx(found.checks[-1].distance)
    assert found.losses["best"] == min(c.deployed_loss for c in found.checks)


def test_distance_identity_of_flips():
    """‖q-w‖² = ‖RTN-w‖² + 2 Σ gap |w - mid| over flipped codes, one level each (2.2)."""
    w = torch.randn(5, 40, dtype=torch.float64)
    grid = Grid(Layout((5, 40), 40), torch.arange(-4.0, 4.0), torch.full((5, 1), 0.4))
    nearest = grid.encode(w)
    lower, upper = grid.bracket(w)
    other = torch.where(nearest == lower, upper, lower)
    flip = torch.rand(5, 40) < 0.3
    flip &= ~grid.saturated(w)
    codes = torch.where(flip, other, nearest)
    d = torch.float64
    rtn, q = grid.decode(nearest, d), grid.decode(codes, d)
    middle = (grid.decode(lower, d) + grid.decode(upper, d)) / 2
    step = grid.step(w).double()
    right = (rtn - w).square().sum() + 2 * (step * (w - middle).abs())[flip].sum()
    assert float((q - w).square().sum()) == pytest.approx(float(right), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resumed_run_has_the_same_bits(optimizer, tmp_path):
    objective = Objective(small_net(), small_batches())
    point = quantize(objective, "w2", "nearest")
    data = small_batches(5, 8, seed=9)
    recipe = Recipe(steps=20, check_every=5, optimizer=optimizer, momentum=0.5, lr=0.05, stop=False)
    whole = train(objective, point, data, recipe)
    path = tmp_path / "run.safetensors"

    class Killed(Exception):
        pass

    def kill(step):
        if step == 12:
            raise Killed
        return data[step % 5]

    with pytest.raises(Killed):
        train(objective, point, kill, recipe, checkpoint=path, save_every_s=0)
    steps = []
    again = train(
        objective, point, lambda s: (steps.append(s), data[s % 5])[1], recipe, checkpoint=path, save_every_s=0
    )
    assert min(steps) == 10
    assert space.fingerprint(again.points["last"].codes) == space.fingerprint(whole.points["last"].codes)
    a, b = again.to_json(), whole.to_json()
    for j in (a, b):
        del j["seconds"]
    assert json.dumps(a) == json.dumps(b)


def test_checkpoint_of_another_run_is_refused(tmp_path):
    objective = Objective(small_net(), small_batches())
    point = quantize(objective, "w2", "nearest")
    path = tmp_path / "run.safetensors"
    train(objective, point, small_batches(), Recipe(steps=2, check_every=1), checkpoint=path, save_every_s=0)
    with pytest.raises(ThalwegError, match="another run"):
        train(objective, point, small_batches(), Recipe(steps=3, check_every=1), checkpoint=path)


def test_any_torch_optimizer_and_start_from_a_point():
    objective = Objective(small_net(), small_batches())
    point = quantize(objective, "w2", "gptq")
    make = lambda groups: torch.optim.RMSprop(groups, lr=1e-3)
    found = train(objective, point, small_batches(), Recipe(steps=4, optimizer=make, start="point", check_every=2))
    assert found.checks[0].deployed_loss == pytest.approx(objective.loss(point.weights))


def test_zero_steps_reports_the_start():
    objective = Objective(small_net(), small_batches())
    found = train(objective, quantize(objective, "w2"), small_batches(), Recipe(steps=0))
    assert found.steps == 0 and len(found.checks) == 1


@pytest.mark.parametrize(
    "recipe,word",
    [
        (Recipe(optimizer="adma"), "adamw"),
        (Recipe(estimator="stee"), "ste"),
        (Recipe(start="middle"), "start"),
        (Recipe(steps=-1), "at least 1"),
    ],
)
def test_bad_recipes(recipe, word):
    objective = Objective(small_net(), small_batches())
    with pytest.raises(ThalwegError, match=word):
        train(objective, quantize(objective, "w2"), small_batches(), recipe)


def test_audit_sees_every_plain_step():
    objective, grid, nu, start, point = start_outside()
    seen = []
    recipe = Recipe(steps=5, optimizer="sgd", lr=0.1, schedule="constant", stop=False)
    train(objective, point, None, recipe, audit=lambda k, before, g, after: seen.append((k, before, g, after)))
    assert [k for k, *_ in seen] == list(range(5))
    for _, before, g, after in seen:
        assert torch.allclose(after["w"], before["w"] - 0.1 * g["w"])
