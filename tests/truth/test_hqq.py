"""Half-quadratic grids: the proximal map and the fit against closed forms, brute force and their own start."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import small_batches, small_net
from thalweg import space
from thalweg.errors import ThalwegError
from thalweg.fitting import Fit
from thalweg.layout import Layout
from thalweg.methods.hqq import hqq as method
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.quantizers.absmax import ranges
from thalweg.quantizers.hqq import _step, hqq, lp_error

SIGNED = {b: torch.arange(-(2 ** (b - 1)), 2 ** (b - 1)).float() for b in (2, 3, 4)}


def request(weight, levels, group=None, asymmetric=False):
    return Fit(weight, Layout(tuple(weight.shape), group or weight.shape[1]), levels, asymmetric)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("law", ["normal", "laplace", "uniform"])
def test_below_its_start_in_nearly_every_group(bits, asymmetric, law):
    g = torch.Generator().manual_seed(bits)
    w = torch.rand(64, 512, generator=g) - 0.5
    if law != "uniform":
        w = torch.erfinv(2 * w) if law == "normal" else -w.sign() * (1 - 2 * w.abs()).clamp(min=1e-6).log()
    levels = SIGNED[bits] + 2 ** (bits - 1) if asymmetric else SIGNED[bits]
    fit = request(w, levels, 32, asymmetric)
    start = lp_error(fit, *ranges(fit))
    grid = hqq(fit)
    after = (grid.round(w) - w).abs().pow(0.7).reshape(64, 16, 32).sum(-1)
    assert torch.allclose(after, lp_error(fit, grid.scale, grid.zero), rtol=1e-3)
    assert bool((after <= start * (1 + 1e-5)).all())
    exceptions = int((after >= start).sum())  # of 1024 groups: those that stay where they began
    assert exceptions <= 0.05 * 1024, exceptions


def test_the_outlier_part_is_the_proximal_map_up_to_its_linearisation():
    """One step with the codes held: compared with the same formula written out for one group in float64."""
    w = torch.tensor([[0.9, -0.45, 0.13, -1.7, 0.55, 0.02]])
    fit = request(w, SIGNED[2] + 2, asymmetric=True)
    scale, zero = torch.tensor([[0.8]]), torch.tensor([[2.0]])
    new_scale, new_zero = _step(fit, scale, zero, 10.0)
    unit = w[0].double() / 0.8
    q = (unit + 2).round().clamp(0, 3) - 2
    e = unit - q
    outlier = e.sign() * torch.relu(e.abs() - e.abs() ** -0.3 / 10)
    shift = (q - (unit - outlier)).mean()
    q = q - shift
    assert float(new_zero) == pytest.approx(2 + float(shift), rel=1e-5)
    assert float(new_scale) == pytest.approx(0.8 * float(((unit - outlier) * q).sum() / q.square().sum()), rel=1e-5)


def test_near_the_best_scale_of_a_fine_search():
    w = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    fit = request(w, SIGNED[2])
    full, _ = ranges(fit)
    best = torch.stack([lp_error(fit, full * r, None) for r in torch.linspace(0.2, 1.2, 400)]).amin(0)
    ours = lp_error(fit, hqq(fit).scale, None)
    assert float(ours.sum() / best.sum()) < 1.06


def test_independent_of_the_unit_and_of_padding():
    w = torch.randn(8, 40, generator=torch.Generator().manual_seed(1))
    for asymmetric, levels in ((False, SIGNED[3]), (True, SIGNED[3] + 4)):
        a, b = hqq(request(w, levels, 20, asymmetric)), hqq(request(w * 2**-7, levels, 20, asymmetric))
        assert torch.equal(a.scale * 2**-7, b.scale)
        short = hqq(request(w, levels, 16, asymmetric))
        alone = hqq(request(w[:, 32:].contiguous(), levels, 8, asymmetric))
        assert torch.allclose(short.scale[:, 2:], alone.scale, rtol=1e-5)


def test_real_zero_points_help_and_cost_their_storage():
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)) + 0.4
    fit = request(w, SIGNED[2] + 2, 32, asymmetric=True)
    grid = hqq(fit)
    whole = fit.grid(grid.scale, grid.zero.round())
    assert not torch.equal(grid.zero, grid.zero.round())
    error = lambda g: float(lp_error(fit, g.scale, g.zero).sum())
    assert error(grid) < error(whole)
    assert grid.bits_per_weight == 2 + 2 * 32 / 32 and whole.bits_per_weight == 2 + (32 + 2) / 32


@pytest.mark.parametrize("scheme", ["w2", "w2g8pa", "w3t", "nf4", "mxfp4p", "nvfp4p", "codebook2"])
def test_method_is_the_quantizer_and_nearest(scheme):
    objective = Objective(small_net(), small_batches())
    start = quantize(objective, scheme, fit="absmax")
    point = quantize(objective, scheme, "hqq", grids=start.grids)
    for name, grid in point.grids.items():
        w = objective.weights[name]
        error = lambda g, w=w: (g.round(w) - w).double().abs().pow(0.7).sum()
        assert float(error(grid)) <= float(error(start.grids[name])) * (1 + 1e-6)
        assert torch.equal(point.codes[name], grid.encode(w))
    if scheme == "codebook2":
        assert space.fingerprint(point.weights) == space.fingerprint(start.weights)
        with pytest.raises(ThalwegError, match=r"hqq.*codebook2"):
            quantize(objective, scheme, fit="hqq")
    elif scheme == "w2":
        fitted = quantize(objective, scheme, fit="hqq")
        for name, grid in point.grids.items():
            same = grid.scale == fitted.grids[name].scale
            assert bool((same | (grid.scale == start.grids[name].scale)).all()) and bool(same.any())


def test_column_factors_stay():
    objective = Objective(small_net(), small_batches())
    name = "head.weight"
    grid = quantize(objective, "w2").grids[name]
    factors = torch.exp2(torch.arange(grid.layout.columns) % 3 - 1.0)
    moved = method(objective, {name: replace(grid, columns=factors)}).grids[name]
    assert torch.equal(moved.columns, factors)
