"""Recipes of training on a small network: only what should move moves, and resuming keeps every bit."""

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg import space, train_loss
from thalweg.blocks import blocks, norm_parameters
from thalweg.errors import ThalwegError
from thalweg.exports._common import deployed_model
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize
from thalweg.scheme import refit
from thalweg.train import Recipe, Run, train


@pytest.fixture(scope="module")
def problem():
    net = small_net()
    batches = [(x, net(x).argmax(-1)) for x, _ in small_batches(3, 24, 5)]
    objective = Objective(net, batches)
    return net, objective, batches, quantize(objective, "w2", "gptq")


def run(problem, steps=16, **options):
    _, objective, batches, point = problem
    return train(objective, point, batches, Recipe(steps=steps, check_every=4, stop=False, **{"lr": 0.1, **options}))


def test_only_scales_move(problem):
    point, found = problem[3], run(problem, trains="scales", lr=0.5)
    assert space.fingerprint(found.points["last"].codes) == space.fingerprint(point.codes) and sum(found.flips) == 0
    assert any(not torch.equal(g.scale, point.grids[n].scale) for n, g in found.points["last"].grids.items())
    assert found.checks[0].deployed_loss == pytest.approx(problem[1].loss(point.weights))
    assert min(found.losses.values()) < found.checks[0].deployed_loss


def test_rates_that_a_recipe_leaves_out(problem):
    _, objective, batches, point = problem
    rate = lambda **recipe: Run(objective, point, batches, Recipe(**recipe)).recipe.lr
    assert rate() == 0.02 and rate(estimator="parq") == 0.05 and rate(trains="norms") == 0.02
    assert rate(trains="scales") == 0.1 and rate(trains="scales", lr=0.3) == 0.3
    assert rate(trains="scales", optimizer="sgd") == 0.02


def test_scale_gradient_is_that_of_autograd(problem):
    _, objective, batches, point = problem
    state = Run(objective, point, batches, Recipe(trains="scales"))
    _, scales = state.latent.pull(state._gradient_now()[1])
    leaves = {n: g.scale.clone().requires_grad_() for n, g in point.grids.items()}
    value = {
        n: g.layout.unblocks((g.layout.blocks(point.codes[n]) + g.levels[0]) * leaves[n].unsqueeze(-1))
        for n, g in point.grids.items()
    }
    objective.batch_loss(value, batches[0]).backward()
    for name, leaf in leaves.items():
        assert torch.allclose(scales[name] / state.latent._gradient_scale(name), leaf.grad, atol=1e-6)


def test_only_norms_move_and_travel_with_the_point(problem, tmp_path):
    net, objective, _, point = problem
    found = run(problem, trains="norms", lr=0.5)
    last = found.points["last"]
    assert set(last.extra) == {"norm.weight", "norm.bias"} == set(norm_parameters(net))
    assert space.fingerprint(last.weights) == space.fingerprint(point.weights)
    assert not torch.equal(last.extra["norm.weight"], net.norm.weight)
    assert min(found.losses.values()) < found.checks[0].deployed_loss
    again = QuantizedPoint.load(last.save(tmp_path / "p.safetensors"))
    assert space.fingerprint(again.deployed) == space.fingerprint(last.deployed)
    x = small_batches(1)[0][0]
    exported = deployed_model(last, net)
    assert torch.equal(exported(x), objective.forward(last.deployed, (x, None)))
    onward = train(objective, again, problem[2], Recipe(steps=0))
    assert onward.points["last"].extra.keys() == last.extra.keys()


def test_low_rank_updates(problem):
    _, objective, batches, point = problem
    state = Run(objective, point, batches, Recipe(steps=10, lora=2, lr=0.1))
    for _ in range(10):
        state.advance()
    for name, w in state.latent.weights.items():
        change = point.grids[name].layout.matrix((w - point.reference[name]).double())
        values = torch.linalg.svdvals(change)
        assert float(values[0]) > 0 and all(float(v) < 1e-5 * float(values[0]) for v in values[2:])


def test_frozen_codes_do_not_flip(problem):
    _, objective, batches, point = problem
    state = Run(objective, point, batches, Recipe(steps=60, lr=0.5, freeze=0.019, schedule="constant"))
    held = {}
    for _ in range(60):
        state.advance()
        for name, codes in state.latent.codes.items():
            frozen = state.latent.oscillation[f"frozen/{name}"]
            if name in held:
                mask, then = held[name]
                assert torch.equal(codes[mask], then[mask]) and bool(frozen[mask].all())
            held[name] = (frozen.clone(), codes.clone())
    assert sum(int(mask.sum()) for mask, _ in held.values()) > 0
    assert all(torch.equal(point.grids[n].encode(w), state.latent.codes[n]) for n, w in state.latent.weights.items())


def test_damping_gradient_and_effect(problem):
    _, objective, batches, point = problem
    latent = Run(objective, point, batches, Recipe()).latent
    zero = {n: torch.zeros_like(w) for n, w in latent.weights.items()}
    got, _ = latent.pull(zero, damping=0.7)
    for name, w in latent.weights.items():
        leaf = w.clone().requires_grad_()
        low, high = point.grids[name].bounds()
        (0.7 * (leaf.clamp(low, high) - point.grids[name].round(w)).square().sum()).backward()
        assert torch.allclose(got[name], leaf.grad, atol=1e-6)
    ends = []
    for damping in (0.0, 100.0):
        state = Run(objective, point, batches, Recipe(steps=40, lr=0.1, damping=damping, schedule="constant"))
        for _ in range(40):
            state.advance()
        ends.append(space.norm(space.sub(state.latent.weights, state.latent.deployed)))
    assert ends[1] < ends[0]


def test_batchnorm_statistics_are_the_reestimated_ones(problem):
    _, objective, _, _ = problem
    found = run(problem, batchnorm=True, steps=4)
    for name, point in found.points.items():
        want = objective.reestimated(point.weights)
        assert torch.equal(point.extra["norm.running_mean"], want["norm.running_mean"])
        assert torch.equal(point.extra["norm.running_var"], want["norm.running_var"])
        assert found.losses[name] == pytest.approx(objective.loss(point.deployed), abs=1e-9)


def test_refreshed_grids_are_refitted(problem):
    _, objective, batches, point = problem
    state = Run(objective, point, batches, Recipe(steps=6, refresh=3, lr=0.3))
    for _ in range(6):
        state.advance()
    for name, w in state.latent.weights.items():
        grid = point.grids[name]
        assert torch.equal(state.latent.scale[name], refit(grid, w).scale)
        assert torch.equal(state.latent.deployed[name], state.latent.grid(name).round(w))
    assert state.latent.moved


def test_distillation_loss_is_zero_at_the_float_model_and_equals_its_formula(problem):
    net, objective, batches, point = problem
    for recipe in (Recipe(distill=1.0), Recipe(distill=1.0, hidden=0.5)):
        value, g = train_loss.gradient(objective, recipe, 0, objective.weights, {}, batches[0])
        assert value == pytest.approx(0, abs=1e-6) and space.norm(g) < 1e-4
    x, y = batches[0]
    p, q = net(x).softmax(-1).detach(), objective.forward(point.weights, (x, y)).softmax(-1)
    want = 0.3 * float((p * (p / q).log()).sum(-1).mean()) + 0.7 * float(F.cross_entropy(q.log(), y))
    value, _ = train_loss.gradient(objective, Recipe(distill=0.3), 0, point.weights, {}, batches[0])
    assert value == pytest.approx(want, rel=1e-5)
    found = run(problem, distill=1.0, hidden=0.1, steps=24)
    assert min(found.losses.values()) < found.checks[0].deployed_loss


def test_blockwise_moves_one_block_at_a_time():
    objective = Objective(tiny_llama(), [tiny_tokens()], "causal_lm")
    point = quantize(objective, "w2", keep_float=("lm_head",))
    names = blocks(objective.model)
    assert names == ["model.layers.0", "model.layers.1"]
    value, g = train_loss.gradient(objective, Recipe(blockwise=True, steps=8), 0, objective.weights, {}, tiny_tokens())
    assert value == pytest.approx(0, abs=1e-9)
    state = Run(objective, point, [tiny_tokens()], Recipe(steps=8, blockwise=True, lr=0.1))
    for step in range(8):
        before = space.clone(state.latent.weights)
        state.advance()
        changed = {n for n, w in state.latent.weights.items() if not torch.equal(w, before[n])}
        assert changed == {n for n in before if n.startswith(names[step // 4])}
    assert state.batch_losses[3] < state.batch_losses[0] and state.batch_losses[7] < state.batch_losses[4]


@pytest.mark.parametrize(
    "options",
    [
        {"freeze": 0.02, "damping": 1.0, "lr": 0.4},
        {"lora": 2},
        {"trains": "scales"},
        {"trains": "norms"},
        {"refresh": 4, "batchnorm": True},
        {"blockwise": True, "estimator": "lsq"},
        {"distill": 1.0, "hidden": 0.2, "estimator": "parq"},
    ],
    ids=str,
)
def test_every_recipe_resumes_with_equal_bits(problem, options, tmp_path):
    _, objective, batches, point = problem
    recipe = Recipe(steps=14, check_every=5, stop=False, **options)
    whole = train(objective, point, batches, recipe)

    class Killed(Exception):
        pass

    def kill(step):
        if step == 12:
            raise Killed
        return batches[step % 3]

    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(objective, point, kill, recipe, checkpoint=file, save_every_s=0)
    again = train(objective, point, batches, recipe, checkpoint=file)
    assert {**again.to_json(), "seconds": 0} == {**whole.to_json(), "seconds": 0}
    for name in whole.points:
        assert space.fingerprint(again.points[name].deployed) == space.fingerprint(whole.points[name].deployed)


@pytest.mark.parametrize(
    "recipe,word",
    [
        (Recipe(trains="biases"), "norms"),
        (Recipe(distill=2.0), "0 to 1"),
        (Recipe(lora=-1), "negative"),
        (Recipe(trains="norms", lora=1), "nothing to act on"),
        (Recipe(blockwise=True, distill=0.5), "loss of its own"),
    ],
)
def test_recipes_that_cannot_run(problem, recipe, word):
    _, objective, batches, point = problem
    with pytest.raises(ThalwegError, match=word):
        train(objective, point, batches, recipe)
