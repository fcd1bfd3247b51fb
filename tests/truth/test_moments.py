"""Fits that keep the moments, and the least-squares scan: against brute force, fixed points and hand counts."""

import itertools

import pytest
import torch

from thalweg.fitting import Fit
from thalweg.layout import Layout
from thalweg.quantizers._columns import columns
from thalweg.quantizers.absmax import ranges
from thalweg.quantizers.moments import Kept, moments, step
from thalweg.quantizers.mse import mse, search
from thalweg.scheme import Scheme

SIGNED = {b: torch.arange(-(2 ** (b - 1)), 2 ** (b - 1)).float() for b in (2, 3, 4)}


def request(weight, levels, group=None, asymmetric=False):
    return Fit(weight, Layout(tuple(weight.shape), group or weight.shape[1]), levels, asymmetric)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3])
def test_mean_and_variance_are_kept_with_a_zero_point(bits):
    w = normal(40, 256) * 0.03 + 0.01
    value = moments(request(w, SIGNED[bits] + 2 ** (bits - 1), 32, True)).round(w)
    a, b = (t.double().view(40, 8, 32) for t in (w, value))
    assert float((a.mean(-1) - b.mean(-1)).abs().mean() / a.std(-1).mean()) < 0.02  # not every group has settled
    assert float((b.std(-1) / a.std(-1)).log().abs().mean()) < 0.02
    least = mse(request(w, SIGNED[bits] + 2 ** (bits - 1), 32, True)).round(w).double()
    assert float((w.double() * value).sum() / w.double().square().sum()) > float(
        (w.double() * least).sum() / w.double().square().sum()
    )


def test_mean_square_is_kept_without_one():
    w = normal(40, 256)
    value = moments(request(w, SIGNED[3], 32)).round(w)
    a, b = (t.double().view(40, 8, 32).square().sum(-1) for t in (w, value))
    assert float((a / b).log().abs().mean()) < 0.03


def test_a_step_is_the_formula_written_out():
    w = torch.tensor([[0.9, -0.45, 0.13, -1.7, 0.55, 0.02]])
    fit = request(w, SIGNED[2] + 2, asymmetric=True)
    ((_, part),) = columns(fit)
    kept = Kept.of(part, torch.tensor([0.1]), True)
    scale, zero = step(part, torch.tensor([0.8]), torch.tensor([1.75]), kept)
    code = (w[0].double() / 0.8 + 1.75).round().clamp(0, 3)
    wanted = w[0].double().std() / code.std()
    assert float(scale) == pytest.approx(float(wanted), rel=1e-5)
    assert float(zero) == pytest.approx(float(code.mean() - w[0].double().mean() / wanted), rel=1e-5)


@pytest.mark.parametrize("group", [8, 20, 7])
def test_independent_of_unit_shift_and_padding(group):
    w = normal(6, 40, seed=1)
    levels = SIGNED[2] + 2
    a, b = moments(request(w, levels, group, True)), moments(request(w * 2**-7, levels, group, True))
    assert torch.allclose(a.round(w) * 2**-7, b.round(w * 2**-7), rtol=1e-4, atol=1e-6)
    if 40 % group == 0:
        shifted = moments(request(w + 64, levels, group, True)).round(w + 64) - 64
        assert float((shifted - a.round(w)).abs().max()) < 1e-3
    else:
        alone = moments(request(w[:, 35:].contiguous(), levels, 5, True))
        assert a.scale.shape == (6, 6) and alone.scale.shape == (6, 1) and bool(a.scale.isfinite().all())


def test_constant_and_zero_groups_are_held():
    w = torch.cat([torch.full((1, 8), 0.7), torch.full((1, 8), -0.3), torch.zeros(1, 8)])
    grid = moments(request(w, SIGNED[2] + 2, 8, True))
    assert torch.allclose(grid.round(w), w, atol=1e-6)


@pytest.mark.parametrize("bits,asymmetric", itertools.product([2, 3, 4], [False, True]))
def test_the_scan_is_no_worse_than_a_fine_search(bits, asymmetric):
    w = normal(200, 32, seed=bits)
    fit = request(w, SIGNED[bits] + 2 ** (bits - 1) if asymmetric else SIGNED[bits], 32, asymmetric)
    full, zero = ranges(fit)
    fine = torch.stack([fit.error(full * r, zero) for r in torch.linspace(0.2, 1.0, 200)]).amin(0)
    ours = fit.error(*search(fit))
    assert float(ours.sum()) <= float(fine.sum()) * 1.002


def test_chunks_change_nothing(monkeypatch):
    w = normal(30, 64, seed=3)
    fit = request(w, SIGNED[2] + 2, 16, True)
    whole = [search(fit), (moments(fit).scale, moments(fit).zero)]
    monkeypatch.setattr("thalweg.quantizers._columns.ENTRIES", 16 * 7)
    for (s, z), (t, y) in zip(whole, [search(fit), (moments(fit).scale, moments(fit).zero)], strict=True):
        assert torch.allclose(s, t, rtol=1e-5) and torch.allclose(z, y, rtol=1e-4, atol=1e-4)


def test_real_zero_points_are_stored_like_sixteen_bit_scales():
    w = normal(16, 64, seed=2)
    wide, half = (Scheme.parse(word).grids({"w": w}, fit="moments")["w"] for word in ("w2g32a", "w2g32a@f16"))
    assert torch.equal(half.zero, half.zero.half().float()) and not torch.equal(half.zero, wide.zero)
    assert (wide.bits_per_weight, half.bits_per_weight) == (4.0, 3.0)
    assert torch.allclose(half.round(w), wide.round(w), atol=0.02)
    assert float((half.round(w) - w).square().mean()) < 1.02 * float((wide.round(w) - w).square().mean())
