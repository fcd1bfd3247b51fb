"""Estimators against closed forms: the papers' formulas, finite differences, brute-force argmin, limits."""

import math

import pytest
import torch

from tests.conftest import small_batches, small_net
from thalweg import catalog, space
from thalweg.errors import ThalwegError
from thalweg.estimators import binaryrelax, ewgs, parq
from thalweg.estimators._estimator import Levels
from thalweg.grid import Grid, Layout, ste
from thalweg.latent import Latent
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize
from thalweg.train import Recipe, Run, train

ESTIMATORS = catalog.names("estimators")


def pieces(levels=(-2.0, -1.0, 0.0, 1.0), zero=False, seed=0):
    """A weight of two rows and three groups on a grid, with weights beyond both ends."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(2, 12, generator=g) * 1.5
    scale = torch.rand(2, 3, generator=g) * 0.4 + 0.6
    grid = Grid(Layout((2, 12), 4), torch.tensor(levels), scale, torch.full((2, 3), 1.0) if zero else None)
    point = QuantizedPoint({"w": w}, {"w": grid.encode(w)}, {"w": grid})
    return w, grid, point, torch.randn(2, 12, generator=g)


def pull(name, point, w, g, chunk=65536):
    latent = Latent(point, catalog.get("estimators", name)(), {"w": w}, chunk=chunk)
    gradient, scales = latent.pull({"w": g.clone()})
    return gradient["w"], scales.get("w")


@pytest.mark.parametrize("zero", [False, True])
def test_ste_and_clipped_pass_what_autograd_passes(zero):
    w, grid, point, g = pieces(zero=zero)
    for name, clip in (("ste", False), ("clipped", True)):
        leaf = w.clone().requires_grad_()
        (ste(leaf, grid, clip) * g).sum().backward()
        assert torch.equal(pull(name, point, w, g)[0], leaf.grad)
    assert bool((pull("clipped", point, w, g)[0] == 0).any())


@pytest.mark.parametrize("chunk", [None, 4])
def test_lsq_is_the_papers_formula_and_the_slope_of_its_surrogate(chunk):
    """Equation 3: -x + round(x) inside, -Q_N and Q_P outside; times 1/√(N Q_P). And the derivative of
    ``s (clip(w/s) + r)`` with the rounding residue r held, by central differences in float64."""
    w, grid, point, g = pieces()
    gradient, scales = pull("lsq", point, w, g, chunk)
    x = (w.view(2, 3, 4) / grid.scale.unsqueeze(-1)).double()
    slope = torch.where(x < -2, -2.0, torch.where(x > 1, 1.0, x.round() - x))
    factor = 1 / math.sqrt(4 * 1)
    right = (slope * g.view(2, 3, 4)).sum(-1) * factor
    assert torch.allclose(scales.double(), right, atol=1e-6)
    assert torch.equal(gradient, g * ((x >= -2) & (x <= 1)).view(2, 12))

    residue = x.clamp(-2, 1).round() - x.clamp(-2, 1)
    surrogate = lambda s: (
        s.unsqueeze(-1) * ((w.view(2, 3, 4) / s.unsqueeze(-1)).clamp(-2, 1) + residue) * g.view(2, 3, 4)
    ).sum()
    s, h = grid.scale.double(), 1e-6
    for i in range(2):
        for j in range(3):
            e = torch.zeros_like(s)
            e[i, j] = h
            difference = float(surrogate(s + e) - surrogate(s - e)) / (2 * h)
            assert float(scales[i, j]) == pytest.approx(difference * factor, abs=1e-5)


def test_elastic_is_paretoq_on_balanced_levels():
    """ŵ = α (round(clip(w/α) k/2 - ½) + ½) 2/k: autograd with a straight-through round, k = 4."""
    w, grid, point, g = pieces(levels=(-1.5, -0.5, 0.5, 1.5))
    alpha = (grid.scale * 2).requires_grad_()
    leaf = w.clone().requires_grad_()
    u = (leaf.view(2, 3, 4) / alpha.unsqueeze(-1)).clamp(-1, 1) * 2 - 0.5
    rounded = u + (u.round().clamp(-2, 1) - u).detach()
    value = alpha.unsqueeze(-1) * (rounded + 0.5) / 2
    assert torch.allclose(value.detach().reshape(2, 12), grid.round(w), atol=1e-6)
    (value * g.view(2, 3, 4)).sum().backward()
    gradient, scales = pull("elastic", point, w, g)
    assert torch.allclose(gradient, leaf.grad)
    factor = 1 / math.sqrt(4 * 1.5)
    assert torch.allclose(scales, alpha.grad * 2 * factor, atol=1e-5)
    with pytest.raises(ThalwegError, match="lsq"):
        Latent(quantize(Objective(small_net(), small_batches()), "w4"), catalog.get("estimators", "elastic")(), {})


def test_ewgs_factor():
    w, grid, point, g = pieces()
    x = w.view(2, 3, 4) / grid.scale.unsqueeze(-1)
    q = x.round().clamp(-2, 1)
    factor = 1 + ewgs.DELTA * g.sign() * (x - q).clamp(-0.5, 0.5).view(2, 12)
    assert torch.allclose(pull("ewgs", point, w, g)[0], g * factor, atol=1e-6)
    half = ewgs.DELTA / 2 + 1e-6
    assert 1 - half <= float(factor.min()) < 1 < float(factor.max()) <= 1 + half


@pytest.mark.parametrize("table", [(-2.0, -1.0, 0.0, 1.0), (-1.0, -0.3, 0.1, 0.4, 1.0)])
def test_prox_maps_are_argmins(table):
    """PARQ: argmin ½(v - ρx)² + (ρ-1) Ψ(v), Ψ convex with slope m_k on segment k. BinaryRelax:
    argmin ½(v - x)² + λ/2 dist(v, levels)². Both on a fine grid of candidates v."""
    levels = Levels.of(Grid(Layout((1, 1), 1), torch.tensor(table), torch.ones(1, 1)))
    t = torch.tensor(table, dtype=torch.float64)
    v = torch.linspace(table[0], table[-1], 30001, dtype=torch.float64)
    k = (torch.bucketize(v, t, right=True) - 1).clamp(0, len(t) - 2)
    middle = (t[1:] + t[:-1]) / 2
    start = torch.cat([torch.zeros(1, dtype=torch.float64), (middle * t.diff()).cumsum(0)])
    psi = start[k] + middle[k] * (v - t[k])
    distance = (v.unsqueeze(-1) - t).abs().amin(-1)
    x = torch.linspace(table[0] + 1e-3, table[-1] - 1e-3, 41)
    for inverse in (1.0, 0.6, 0.25):
        rho = 1 / inverse
        found = parq.affine_map(x, levels, inverse)
        costs = 0.5 * (v - rho * x.double().unsqueeze(-1)).square() + (rho - 1) * psi
        assert torch.allclose(found.double(), v[costs.argmin(-1)], atol=4e-4)
    away = (x.unsqueeze(-1) - middle.float()).abs().amin(-1) > 1e-3  # ties have two minimizers
    for strength in (1.0, 7.0):
        found = binaryrelax.relax(x, levels, strength)
        costs = 0.5 * (v - x.double().unsqueeze(-1)).square() + strength / 2 * distance.square()
        assert torch.allclose(found.double()[away], v[costs.argmin(-1)][away], atol=4e-4)


def test_limits_of_the_prox_maps():
    levels = Levels.of(pieces()[1])
    x = torch.linspace(-2, 1, 101)
    assert parq.inverse_slope(0.0) == 1.0 and parq.inverse_slope(1.0) == 0.0
    steps = [parq.inverse_slope(t / 20) for t in range(21)]
    assert steps == sorted(steps, reverse=True)
    assert torch.allclose(parq.parq().soft(x, levels, 0.0), x, atol=1e-6)
    assert torch.equal(parq.parq().soft(x, levels, 1.0), levels.nearest(x))
    assert binaryrelax.relaxation(0.0) == 1.0
    assert torch.allclose(binaryrelax.binaryrelax().soft(x, levels, 0.0), (x + levels.nearest(x)) / 2)
    assert torch.equal(binaryrelax.binaryrelax().soft(x, levels, 0.8), levels.nearest(x))


def bits(run):
    state = {"codes": run.latent.codes, "live": run.latent.live, "latent": run.latent.weights, "ever": run.latent.ever}
    return {k: space.fingerprint(v) for k, v in (state | {"scale": run.latent.scale}).items()}, run.flips


@pytest.mark.parametrize("scheme", ["w2", "w3g8ap"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_chunks_agree_with_the_plain_pass_bit_for_bit(name, scheme):
    if name == "elastic" and scheme != "w2":
        pytest.skip("elastic takes at most four levels")
    objective = Objective(small_net(), small_batches())
    point = quantize(objective, scheme)
    runs = []
    for chunk in (None, 40):
        run = Run(objective, point, small_batches(3, 8, 9), Recipe(steps=12, lr=0.2, estimator=name), chunk=chunk)
        assert chunk is None or any(tiles and len(tiles) > 1 for tiles in run.latent.tiles.values())
        for _ in range(9):
            run.advance()
        runs.append(bits(run))
    assert runs[0] == runs[1] and sum(runs[0][1]) > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_learns_deploys_what_it_decodes_and_resumes_with_equal_bits(name, tmp_path):
    """Labels of a teacher, so that there is something to recover."""
    net = small_net()
    batches = [(x, net(x).argmax(-1)) for x, _ in small_batches(3, 32, 5)]
    objective = Objective(net, batches)
    point = quantize(objective, "w2")
    recipe = Recipe(steps=30, check_every=10, lr=0.1, estimator=name, stop=False)
    whole = train(objective, point, batches, recipe)
    assert min(whole.losses.values()) < whole.checks[0].deployed_loss
    for label, found in whole.points.items():
        assert objective.loss(found.deployed) == pytest.approx(whole.losses[label], abs=1e-9)
        again = QuantizedPoint.load(found.save(tmp_path / f"{label}.safetensors"))
        assert space.fingerprint(again.deployed) == space.fingerprint(found.deployed)
    moved = any(not torch.equal(g.scale, point.grids[n].scale) for n, g in whole.points["last"].grids.items())
    assert moved == catalog.get("estimators", name)().learns_scale

    class Killed(Exception):
        pass

    def kill(step):
        if step == 22:
            raise Killed
        return batches[step % 3]

    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(objective, point, kill, recipe, checkpoint=file, save_every_s=0)
    again = train(objective, point, batches, recipe, checkpoint=file)
    a, b = again.to_json(), whole.to_json()
    assert {**a, "seconds": 0} == {**b, "seconds": 0}
    for label in whole.points:
        assert space.fingerprint(again.points[label].deployed) == space.fingerprint(whole.points[label].deployed)
