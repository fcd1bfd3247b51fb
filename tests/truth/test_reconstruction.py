"""Blocks, block errors, QDrop masks and the gradients of signed descent."""

import pytest
import torch
from torch import nn

from tests.conftest import tiny_llama, tiny_tokens
from thalweg import space
from thalweg.blocks import blocks, partition
from thalweg.feeds import Call
from thalweg.methods._reconstruct import block_problem, mixed, quadratic, quadratic_problem, split
from thalweg.methods._reconstruct_fisher import output_fisher, weighted
from thalweg.methods._reconstruct_range import Tuned
from thalweg.methods.brecq import brecq
from thalweg.methods.signround import signround
from thalweg.objective import Objective
from thalweg.scheme import Scheme
from thalweg.walk import walk


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


def network(parts):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*[part() for part in parts])


def data(rows=40):
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(rows, 6, generator=g), torch.randint(0, 4, (rows,), generator=g)) for _ in range(2)]


def residual_objective():
    return Objective(
        network([Residual, lambda: nn.Sequential(Residual(), Residual()), lambda: nn.Linear(6, 4)]), data()
    )


def test_blocks_are_the_repeated_parts_and_the_layers_outside_them():
    objective = residual_objective()
    assert [b.name for b in partition(objective.model, objective.layers)] == ["0", "1.0", "1.1", "2"]
    assert blocks(objective.model) == ["0", "1.0", "1.1"]
    llama = Objective(tiny_llama(), [tiny_tokens()], "causal_lm")
    parts = partition(llama.model, llama.layers)
    assert [b.name for b in parts] == ["model.layers.0", "model.layers.1", "lm_head"]
    assert sorted(n for b in parts for n in b.weights) == sorted(llama.weights)
    assert parts[0].weights["model.layers.0.mlp.up_proj.weight"] == "mlp.up_proj.weight"


def test_error_of_a_block_of_one_layer_is_the_objective_of_adaround():
    """The mean over entries is the quadratic form over the number of outputs, with displaced inputs."""
    objective = Objective(network([lambda: nn.Linear(6, 5), nn.Tanh, lambda: nn.Linear(5, 4)]), data())
    grids = Scheme.parse("w2").grids(objective.weights)

    def visit(stop):
        (name,) = stop.block.weights
        weight, q = objective.weights[name], grids[name].round(objective.weights[name])
        form = quadratic(stop, {})
        value = form.value(split(grids[name], q, 1), split(grids[name], weight, 1))
        assert block_problem(stop, 8).full({name: q}) == pytest.approx(value / len(q), rel=1e-4)
        leaf = q.clone().requires_grad_()
        loss = quadratic_problem(form, name, grids[name], weight).sample(space.generator(0))({name: leaf})
        everything = block_problem(stop, 10**6).sample(space.generator(0))({name: leaf}) * len(q)
        found, truth = (torch.autograd.grad(x, leaf)[0] for x in (loss, everything))
        assert torch.allclose(found, truth, atol=1e-4 * float(truth.abs().max()))
        return {name: q}

    walk(objective, partition(objective.model, objective.layers), visit)


def test_sampled_fisher_diagonal_against_the_exact_one():
    """``Σ_y p(y) g_y²`` by going through all classes; the sampled mean within five of its standard errors."""
    objective, draws = residual_objective(), 300
    parts = partition(objective.model, objective.layers)
    found = output_fisher(objective, parts, draws, 0)
    for i, (x, _) in enumerate(objective.calibration):
        z = x
        for name, module in objective.model.named_children():
            z = module(z).detach().requires_grad_()
            if name in found and name != "2":
                logits = z
                for later in list(objective.model)[int(name) + 1 :]:
                    logits = later(logits)
                terms = [
                    torch.autograd.grad(-logits.log_softmax(-1)[:, y].sum(), z, retain_graph=True)[0].square()
                    for y in range(4)
                ]
                p = logits.softmax(-1).detach().T.unsqueeze(-1)
                squares = torch.stack(terms)
                exact = (p * squares).sum(0)
                error = ((p * squares.square()).sum(0) - exact.square()).clamp(min=0).sqrt() / draws**0.5
                assert bool(((found[name][i] - exact).abs() <= 5 * error + 1e-7).all())
    notes = brecq(objective, Scheme.parse("w2").grids(objective.weights), steps=60, rows=40, fisher=True).notes
    assert all(n["block_error"] <= n["block_error_nearest"] for n in notes.values())

    def visit(stop):
        heavy = weighted(stop, found)
        assert torch.cat([f.weight for f in heavy.feeds]).mean() == pytest.approx(1, rel=1e-4)
        moved = {n: objective.weights[n] + 0.1 for n in stop.block.weights}
        want = torch.cat([f.weight * (stop.output(moved, f.given) - f.target).square() for f in heavy.feeds]).mean()
        assert block_problem(heavy, 7).full(moved) == pytest.approx(float(want.detach()), rel=1e-4)
        return {}

    walk(objective, parts, visit)


def test_qdrop_takes_the_asked_share_from_the_float_model():
    given, exact = Call((torch.zeros(200, 50),), {}), Call((torch.ones(200, 50),), {})
    for drop in (0.2, 0.5):
        x = mixed(given, exact, drop, space.generator(0)).x
        assert set(x.unique().tolist()) == {0.0, 1.0}
        assert abs(float(x.mean()) - drop) < 4 * (drop * (1 - drop) / 10000) ** 0.5
    assert torch.equal(mixed(given, exact, 0.5, space.generator(1)).x, mixed(given, exact, 0.5, space.generator(1)).x)


def test_block_reconstruction_beats_plain_rounding_on_the_blocks():
    objective = residual_objective()
    grids = Scheme.parse("w2").grids(objective.weights)
    for drop in (0.0, 0.5):
        notes = brecq(objective, grids, steps=60, rows=40, drop=drop).notes
        assert all(n["block_error"] <= n["block_error_nearest"] for n in notes.values())
        assert notes["0.a.weight"]["block_error"] < 0.9 * notes["0.a.weight"]["block_error_nearest"]


@pytest.mark.parametrize("scheme", ["w2", "w2a", "w3g3", "ternary"])
@pytest.mark.parametrize("start", ["nearest", "gptq"])
def test_signed_descent_is_never_worse_than_its_start(scheme, start):
    objective = residual_objective()
    grids = Scheme.parse(f"{scheme}").padded().grids(objective.weights)
    result = signround(objective, grids, steps=15, rows=40, start=start)
    assert all(n["block_error"] <= n["block_error_start"] for n in result.notes.values())
    assert any(n["block_error"] < n["block_error_start"] for n in result.notes.values())
    assert any(not torch.equal(result.grids[n].scale, grids[n].scale) for n in grids)
    for name, grid in result.grids.items():
        grid.check_codes(result.codes[name])
        if grid.zero is not None:
            assert torch.equal(grid.zero, grid.zero.round())


@pytest.mark.parametrize("scheme", ["w2g4", "w3g4a", "w2t", "nf4g4"])
def test_gradients_of_offsets_and_ranges_against_finite_differences(scheme):
    """Rounding is passed straight through: the surrogate holds the rounding residue fixed. Float64."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 8, generator=g, dtype=torch.float64)
    grid = Scheme.parse(scheme).grids({"w": weight}, fit="mse")["w"]
    # ranges small enough that some weights are clipped
    tuned = Tuned.of(grid, weight * 1.3)
    tuned.high, tuned.low = tuned.high * 0.9, tuned.low * 0.93
    tuned.offset.uniform_(-0.2, 0.2, generator=g)
    tuned.forward()
    assert not bool(tuned.inside.all()) and bool(tuned.inside.any())
    levels = grid.levels.double()
    level, inside = levels[tuned.code.long()], tuned.inside
    scale0, zero0 = tuned.scale.unsqueeze(-1), None if tuned.zero is None else tuned.zero.unsqueeze(-1)
    residue = level - (tuned.latent / scale0 + tuned.offset + (0 if zero0 is None else zero0))
    base = grid.scale.double()

    def surrogate(offset, high, low):
        if grid.zero is None:
            scale, zero = base * high, torch.zeros_like(base)
        else:
            first, last, z = levels[0], levels[-1], grid.zero.double()
            scale = base * ((last - z) * high + (z - first) * low) / (last - first)
            exact = first + (z - first) * low * base / scale
            held = first + (z - first) * tuned.low * base / tuned.scale
            zero = exact + (tuned.zero - held)
        s, z = scale.unsqueeze(-1), zero.unsqueeze(-1)
        unit = torch.where(inside, tuned.latent / s + offset + z + residue, level)
        return grid.layout.unblocks((unit - z) * s)

    direction = torch.randn(3, 8, generator=g, dtype=torch.float64)
    found = tuned.backward(direction)
    points = (tuned.offset, tuned.high, tuned.low)
    assert torch.allclose(surrogate(*points), tuned.shape(tuned.value), atol=1e-12)
    for i, point in enumerate(points):
        for _ in range(4):
            d = torch.randn(point.shape, generator=g, dtype=torch.float64)
            move = lambda sign, i=i, d=d: [p + sign * 1e-6 * d if j == i else p for j, p in enumerate(points)]
            slope = float(((surrogate(*move(1)) - surrogate(*move(-1))) * direction).sum()) / 2e-6
            assert float((found[i] * d).sum()) == pytest.approx(slope, abs=1e-6)
