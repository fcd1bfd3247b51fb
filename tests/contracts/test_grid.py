"""Properties of every grid: what rounding onto it must do whatever the weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg import catalog, space
from thalweg.errors import ThalwegError
from thalweg.grid import Grid, Layout, ste
from thalweg.scheme import Rule, Scheme

SCHEMES = (
    "w8",
    "w4",
    "w3",
    "w2",
    "w1",
    "w4t",
    "w3a",
    "w4g4",
    "w4g4a",
    "w3g5p",
    "ternary",
    "nf4",
    "nf4g4",
    "fp4g4",
    "fp4t",
)
FITS = catalog.names("quantizers")


def grid_of(weight, scheme, fit):
    return Scheme.parse(scheme).grids({"w": weight}, fit=fit)["w"]


@st.composite
def weights(draw):
    rows = draw(st.integers(1, 5))
    columns = 4 * draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**16))
    size = 10.0 ** draw(st.integers(-20, 20))
    kind = draw(st.sampled_from(["normal", "constant", "zero", "sparse", "positive"]))
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if kind == "constant":
        w = torch.full_like(w, 0.7)
    elif kind == "zero":
        w[:, : columns // 2] = 0
        w[0] = 0
    elif kind == "sparse":
        w = w * (torch.rand(w.shape, generator=torch.Generator().manual_seed(seed)) < 0.2)
    elif kind == "positive":
        w = w.abs()
    return w * size


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=20, deadline=None)
@given(w=weights())
def test_rounding_is_idempotent_legal_and_nearest(scheme, fit, w):
    grid = grid_of(w, scheme, fit)
    codes = grid.encode(w)
    value = grid.decode(codes)
    assert codes.dtype == torch.uint8 and codes.shape == w.shape
    assert int(codes.max()) < len(grid.levels)
    assert torch.equal(value, grid.round(w))
    assert torch.equal(grid.round(value), value)
    assert torch.equal(grid.encode(value), codes)
    # nearest: no level of the grid is closer than the one taken, up to float rounding
    spread = grid.layout.spread(grid.scale)
    zero = 0.0 if grid.zero is None else grid.layout.spread(grid.zero)
    all_values = torch.stack([(level - zero) * spread for level in grid.levels])
    best = (all_values - w).abs().amin(0)
    assert bool(((value - w).abs() <= best * (1 + 1e-4) + spread * 2e-6 * grid.levels.abs().max()).all())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_decode_and_bracket_agree(scheme):
    w = torch.randn(6, 20)
    grid = grid_of(w, scheme, "mse")
    lower, upper = grid.bracket(w)
    assert torch.equal(upper.int(), lower.int() + 1)
    low, high, step = grid.decode(lower), grid.decode(upper), grid.step(w)
    assert bool((step > 0).all())
    assert torch.allclose(high - low, step, rtol=1e-4)
    lowest, highest = (grid.layout.spread(x) for x in grid.range())
    within = (w >= lowest) & (w <= highest)
    assert bool((low[within] <= w[within] + 1e-6).all()) and bool((high[within] >= w[within] - 1e-6).all())
    value = grid.round(w)
    assert bool(((value == low) | (value == high)).all())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_saturation_is_more_than_half_a_step_outside(scheme):
    w = torch.randn(6, 20)
    grid = grid_of(w, scheme, "mse")
    lowest, highest = (grid.layout.spread(x) for x in grid.range())
    levels, spread = grid.levels, grid.layout.spread(grid.scale)
    inside = torch.where(
        w > 0, highest + spread * (levels[-1] - levels[-2]) * 0.49, lowest - spread * (levels[1] - levels[0]) * 0.49
    )
    outside = torch.where(
        w > 0, highest + spread * (levels[-1] - levels[-2]) * 0.51, lowest - spread * (levels[1] - levels[0]) * 0.51
    )
    assert not bool(grid.saturated(inside).any())
    assert bool(grid.saturated(outside).all())


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 7, 8])
def test_reach_of_unclipped_rounding_is_one_over_root_twelve(bits):
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(bits))
    grid = grid_of(w, f"w{bits}", "absmax")
    reach = space.rms({"w": grid.round(w) - w}, {"w": grid.step(w)})
    assert reach == pytest.approx(1 / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize("scheme", ["nf4g64", "fp4g32"])
def test_reach_in_local_steps_is_near_that_of_integers(scheme):
    w = torch.randn(64, 256)
    grid = grid_of(w, scheme, "absmax")
    assert space.rms({"w": grid.round(w) - w}, {"w": grid.step(w)}) == pytest.approx(0.289, abs=0.03)


def test_absmax_holds_every_weight_and_mse_loses_no_more():
    w = torch.randn(16, 64)
    for scheme in SCHEMES:
        if scheme.startswith(("w4g", "w3g", "nf4g", "fp4g")):
            continue
        wide, tight = grid_of(w, scheme, "absmax"), grid_of(w, scheme, "mse")
        assert not bool(wide.saturated(w * 0.999).any())
        a, b = ((g.round(w) - w).square().sum(1) for g in (wide, tight))
        assert bool((b <= a * (1 + 1e-5)).all()) or (wide.layout.per_tensor and b.sum() <= a.sum() * (1 + 1e-5))


@pytest.mark.parametrize("axis", [0, 1])
def test_layout_inverts_for_both_axes_and_four_dimensions(axis):
    for shape in ((4, 6), (4, 6, 3, 3), (5, 1), (1, 5), (3, 2, 1)):
        layout = Layout(shape, 4, axis)
        t = torch.randn(shape)
        assert torch.equal(layout.tensor(layout.matrix(t)), t)
        assert torch.equal(layout.unblocks(layout.blocks(t)), t)
        scales = torch.arange(layout.rows * layout.groups).float().view(layout.rows, layout.groups)
        wide = layout.matrix(layout.spread(scales))
        for row in range(layout.rows):
            for column in range(layout.columns):
                assert wide[row, column] == scales[row, column // 4]


def test_low_precision_and_empty_tensors():
    w = torch.randn(4, 8).bfloat16()
    grid = grid_of(w, "w4", "mse")
    assert grid.round(w).dtype == torch.bfloat16
    assert torch.equal(grid.round(w), grid.decode(grid.encode(w), torch.bfloat16))
    empty = torch.zeros(0, 4)
    codes = grid_of(empty, "w4", "absmax").encode(empty)
    assert codes.shape == (0, 4)


def test_zero_channels_have_a_step_that_moves_nothing():
    w = torch.zeros(2, 8)
    w[1] = torch.randn(8)
    grid = grid_of(w, "w4", "mse")
    assert torch.equal(grid.round(w)[0], w[0])
    assert 0 < float(grid.step(w)[0, 0]) < 1e-20


def test_ste_passes_the_gradient_inside_outside_and_at_the_bounds():
    grid = Grid(Layout((1, 5), 5), torch.tensor([-2.0, -1.0, 0.0, 1.0]), torch.ones(1, 1))
    w = torch.tensor([[-3.0, -2.0, 0.3, 1.0, 1.0001]], requires_grad=True)
    out = ste(w, grid)
    assert torch.equal(out.detach(), torch.tensor([[-2.0, -2.0, 0.0, 1.0, 1.0]]))
    out.backward(torch.arange(1.0, 6.0).view(1, 5))
    assert w.grad is not None and w.grad.tolist() == [[1, 2, 3, 4, 5]]
    w.grad = None
    ste(w, grid, clip=True).backward(torch.arange(1.0, 6.0).view(1, 5))
    assert w.grad.tolist() == [[0, 2, 3, 4, 0]]  # both bounds included


def test_bad_grids_are_refused():
    layout = Layout((2, 4), 4)
    with pytest.raises(ThalwegError, match="increasing levels"):
        Grid(layout, torch.tensor([0.0, 0.0]), torch.ones(2, 1))
    with pytest.raises(ThalwegError, match="shape"):
        Grid(layout, torch.tensor([0.0, 1.0]), torch.ones(2, 2))
    with pytest.raises(ThalwegError, match="not positive"):
        Grid(layout, torch.tensor([0.0, 1.0]), torch.zeros(2, 1))
    good = Grid(layout, torch.tensor([0.0, 1.0]), torch.ones(2, 1))
    with pytest.raises(ThalwegError, match="exceeds"):
        good.decode(torch.full((2, 4), 2, dtype=torch.uint8))
    with pytest.raises(ThalwegError, match="do not fit"):
        good.decode(torch.zeros(2, 3, dtype=torch.uint8))


def test_bits_per_weight_counts_scales_and_zero_points():
    w = torch.randn(8, 64)
    assert grid_of(w, "w4", "absmax").bits_per_weight == 4 + 32 / 64
    assert grid_of(w, "w4g32", "absmax").bits_per_weight == 4 + 32 / 32
    assert grid_of(w, "w4g32a", "absmax").bits_per_weight == 4 + 36 / 32
    assert grid_of(w, "ternary", "absmax").bits == 2


def test_two_complement_levels():
    assert Rule.parse("w2").levels == (-2, -1, 0, 1)
    assert Rule.parse("w2a").levels == (0, 1, 2, 3)
    assert len(Rule.parse("nf4").levels) == 16 and len(Rule.parse("fp4").levels) == 15
