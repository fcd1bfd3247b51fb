"""Properties of every grid: what rounding onto it must do whatever the weights."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg import catalog, space
from thalweg.errors import ThalwegError
from thalweg.formats import E4M3, E5M2, SCALE_BITS, TINY, power_of_two, snap
from thalweg.grid import Grid, Layout, ste
from thalweg.point import quantize
from thalweg.rule import Rule
from thalweg.scheme import Scheme, importance, refit

SCHEMES = (
    "w8", "w4", "w3", "w2", "w1", "w4r", "w2h", "w4t", "w3a", "w4g4", "w4g4a", "w3g5p", "w4b2x4p", "w4g4@f16",
    "w3g4a@e8m0", "ternary", "ternaryg4@e4m3", "binary", "lsbq1", "lsbq2", "lsbq3g8p", "lsbq4", "codebook1",
    "codebook3", "codebook2t", "nf4", "nf4g4", "fp4g4", "fp4t", "mxfp4p", "nvfp4g4", "fp8", "fp8e5m2g4",
)  # fmt: skip
FITS = catalog.names("quantizers")
CAN = {"threshold": ("ternary",), "greedy": ("lsbq", "binary")}
LEARNED = ("lsbq", "codebook")
FIXED = ("hqq", "moments")
PAIRS = [
    (s, f) for s in SCHEMES for f in FITS if s.startswith(CAN.get(f, "")) and not (f in FIXED and s.startswith(LEARNED))
]


def grid_of(weight, scheme, fit, columns=None):
    columns = torch.ones(1, weight.shape[1]) if columns is None else columns
    return Scheme.parse(scheme).grids({"w": weight}, fit=fit, importance={"w": columns})["w"]


def error(grid, w, mass=1.0):
    """Squared error of each scale, in float64."""
    return grid.layout.blocks(mass * (grid.round(w).double() - w.double()).square()).sum(-1)


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


@pytest.mark.parametrize("scheme,fit", PAIRS)
@settings(max_examples=6, deadline=None)
@given(w=weights())
def test_rounding_is_idempotent_legal_and_nearest(scheme, fit, w):
    grid = grid_of(w, scheme, fit)
    codes = grid.encode(w)
    value = grid.decode(codes)
    assert codes.dtype == torch.uint8 and codes.shape == w.shape
    assert int(codes.max()) < grid.count
    assert torch.equal(value, grid.round(w))
    assert torch.equal(grid.round(value), value)
    assert torch.equal(grid.encode(value), codes)
    # nearest: no level of the grid is closer than the one taken, up to float rounding
    spread = grid.layout.spread(grid.scale)
    zero = 0.0 if grid.zero is None else grid.layout.spread(grid.zero)
    tables = [level.expand(grid.layout.scales) for level in grid.levels.unbind(-1)]
    all_values = torch.stack([(grid.layout.spread(level) - zero) * spread for level in tables])
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
    spread = grid.layout.spread(grid.scale)
    levels = [grid.layout.spread(level.expand(grid.layout.scales)) for level in grid.levels.unbind(-1)]
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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_absmax_holds_every_weight_and_mse_loses_no_more(scheme):
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(3))
    wide, tight = grid_of(w, scheme, "absmax"), grid_of(w, scheme, "mse")
    if "mx" not in scheme and "@e" not in scheme and "nv" not in scheme:  # snapped scales may clip a little
        assert not bool(wide.saturated(w * 0.999).any())
    assert bool((error(tight, w) <= error(wide, w) * (1 + 1e-5)).all())


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


@pytest.mark.parametrize(
    "scheme,bits",
    [
        ("w4", 4 + 32 / 64),
        ("w4r", 4 + 32 / 64),
        ("w4t", 4 + 32 / 512),
        ("w4g32", 4 + 32 / 32),
        ("w4g32a", 4 + 36 / 32),
        ("w4g32a@f16", 4 + 20 / 32),
        ("w4b4x32@bf16", 4 + 16 / 128),
        ("w3b3x40p", 3 + 32 * (3 * 2) / 512),
        ("ternary", 2 + 32 / 64),
        ("binaryg64", 1 + 32 / 64),
        ("lsbq3", 3 + 3 * 32 / 64),
        ("codebook3", 3 + 8 * 32 / 64),
        ("codebook2t", 2 + 4 * 32 / 512),
        ("mxfp4", 4 + 8 / 32),
        ("nvfp4", 4 + 8 / 16 + 32 / 512),
        ("fp8t", 8 + 32 / 512),
    ],
)
def test_bits_per_weight_is_the_hand_count(scheme, bits):
    grid = grid_of(torch.randn(8, 64), scheme, "absmax")
    assert grid.bits_per_weight == bits
    factors = replace(grid, columns=torch.rand(64) + 0.5)
    assert factors.bits_per_weight == bits + 64 * 32 / 512


def test_two_complement_levels():
    assert Rule.parse("w2").levels == (-2, -1, 0, 1)
    assert Rule.parse("w2a").levels == (0, 1, 2, 3)
    assert len(Rule.parse("nf4").levels) == 16 and len(Rule.parse("fp4").levels) == 15


def test_float8_tables_are_those_of_torch():
    for levels, dtype in ((E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)):
        every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
        assert torch.equal(torch.tensor(levels), every[every.isfinite()].unique())


@pytest.mark.parametrize("to", list(SCALE_BITS))
def test_snapped_scales_are_exact_in_their_format(to):
    scale = torch.exp(torch.linspace(-60, 60, 4001))
    unit = torch.tensor(0.37) if to == "e4m3" else None
    snapped = snap(scale, to, unit)
    assert bool((snapped > 0).all()) and torch.equal(snap(snapped, to, unit), snapped)
    if to == "e8m0":
        assert bool((torch.frexp(snapped)[0] == 0.5).all())
        assert bool(((snapped / scale).log2().abs()[(scale > TINY)] <= 0.5 + 1e-5).all())
    elif to == "e4m3":
        stored = (snapped / unit).to(torch.float8_e4m3fn).float()
        assert torch.equal(stored * unit, snapped)
        near = [min(E4M3[127:], key=lambda x: abs(x - s)) for s in (scale / unit).clamp(max=448).tolist()]
        assert all(math.isclose(a, b) for a, b in zip(stored.tolist(), near, strict=True))
    elif to != "float32":
        assert torch.equal(snapped.to(getattr(torch, to)).float(), snapped)
    assert power_of_two(torch.tensor([-3.0, 0.0, 5.0])).tolist() == [0.125, 1, 32]


@pytest.mark.parametrize("fit", [f for f in FITS if f not in CAN])
def test_block_formats_store_what_was_fitted(fit):
    w = torch.randn(8, 64) * torch.logspace(-3, 3, 8).unsqueeze(1)
    assert bool((torch.frexp(grid_of(w, "mxfp4", fit).scale)[0] == 0.5).all())
    grid = grid_of(w, "nvfp4", fit)
    stored = (grid.scale / grid.tensor_scale).to(torch.float8_e4m3fn)
    assert torch.equal(stored.float() * grid.tensor_scale, grid.scale) and bool((stored.float() > 0).all())


def test_mxfp4_follows_the_rule_of_the_specification():
    w = torch.zeros(3, 32)
    w[:, 0] = torch.tensor([6.0, 7.9, 0.3])
    assert grid_of(w, "mxfp4", "absmax").scale.flatten().tolist() == [1.0, 1.0, 2.0**-4]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scheme", ["ternary", "binary", "lsbq1", "lsbq2", "codebook1"])
@pytest.mark.parametrize("seed", range(2))
def test_exact_fits_equal_brute_force_over_all_codes(scheme, weighted, seed):
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(1, 6, generator=draw)
    mass = torch.rand(1, 6, generator=draw) + 0.1 if weighted else torch.ones(1, 6)
    patterns = {
        "ternary": [[[-1], [0], [1]]],
        "binary": [[[-1], [1]]],
        "lsbq1": [[[-1], [1]]],
        "lsbq2": [[[-1, -1], [-1, 1], [1, -1], [1, 1]]],
        "codebook1": [[[1, 0], [0, 1]]],
    }[scheme][0]
    rows, root = torch.tensor(patterns, dtype=torch.float64), mass[0].double().sqrt()
    least = math.inf
    for codes in itertools.product(range(len(patterns)), repeat=6):
        design = rows[list(codes)] * root.unsqueeze(1)
        target = w[0].double() * root
        solution = torch.linalg.pinv(design) @ target
        least = min(least, float((design @ solution - target).square().sum()))
    grid = grid_of(w, scheme, "activation" if weighted else "mse", mass)
    found = float((mass.double() * (grid.round(w).double() - w.double()).square()).sum())
    assert found == pytest.approx(least, rel=2e-3 if scheme.startswith("codebook") else 1e-5, abs=1e-9)


@settings(max_examples=8, deadline=None)
@given(w=weights())
def test_better_fits_lose_no_more(w):
    w, slack = w / w.abs().amax().clamp(min=TINY), 1 + 1e-3  # squares of 1e20 overflow float32
    for bits in (1, 2, 3, 4):
        best, greedy = (error(grid_of(w, f"lsbq{bits}", f), w) for f in ("mse", "greedy"))
        assert bool((best <= greedy * slack + 1e-12 * w.double().square().sum() + 1e-56).all())
        even = error(grid_of(w, f"w{bits}h", "mse"), w)
        learned = error(grid_of(w, f"codebook{bits}", "mse"), w)
        assert bool((learned <= even * slack + 1e-8 * w.double().square().sum() + 1e-56).all())
    best, twn = (error(grid_of(w, "ternary", f), w) for f in ("mse", "threshold"))
    assert bool((best <= twn * slack).all())


@pytest.mark.parametrize("scheme", ["w2g8", "w3a", "ternary", "lsbq3", "codebook2", "mxfp4", "fp4"])
def test_activation_weighted_error_is_no_more_than_that_of_mse(scheme):
    w = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    mass = torch.logspace(-2, 2, 32).unsqueeze(0)
    a, b = (error(grid_of(w, scheme, f, mass), w, mass).sum() for f in ("activation", "mse"))
    assert a <= b if scheme.startswith(("mx", "fp4")) else a < b  # few candidates, and small groups: often the same


@pytest.mark.parametrize("scheme", ["w3g4", "w3a", "lsbq2", "codebook2", "nf4"])
def test_column_factors_equal_scaling_the_weight(scheme):
    w = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    factor = 2.0 ** torch.arange(-4, 4)
    plain = grid_of(w * factor, scheme, "mse")
    grid = replace(plain, columns=factor)
    value = grid.round(w)
    assert torch.equal(value, plain.round(w * factor) / factor)
    assert torch.equal(grid.round(value), value) and torch.equal(grid.decode(grid.encode(w)), value)
    assert torch.equal(grid.step(w), plain.step(w * factor) / factor)
    assert torch.equal(grid.saturated(w), plain.saturated(w * factor))
    low, high = grid.bounds()
    assert bool(((value >= low) & (value <= high)).all())
    again = refit(grid, w, "mse")
    assert torch.equal(again.scale, grid.scale) and torch.equal(again.columns, factor)


@pytest.mark.parametrize("scheme,fit", PAIRS)
def test_column_solvers_see_the_same_grid(scheme, fit):
    w = torch.randn(6, 20, generator=torch.Generator().manual_seed(4))
    grid = replace(grid_of(w, scheme, fit), columns=torch.rand(20, generator=torch.Generator().manual_seed(5)) + 0.5)
    scale, zero, table = grid.matrices(torch.float64)
    values, codes = torch.empty(6, 20, dtype=torch.float64), torch.empty(6, 20, dtype=torch.uint8)
    for j in range(20):
        shift = 0.0 if zero is None else zero[:, j]
        code, level = grid.pick(w[:, j].double() / scale[:, j] + shift, None if table is None else table[:, j])
        codes[:, j], values[:, j] = code.to(torch.uint8), (level - shift) * scale[:, j]
    assert torch.equal(codes, grid.encode(w))
    assert torch.allclose(values.float(), grid.round(w), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_refit_keeps_layout_and_family(scheme):
    w, other = torch.randn(2, 6, 20).unbind()
    grid = refit(grid_of(w, scheme, "mse"), other, "mse")
    fresh = grid_of(other, scheme, "mse")
    assert grid.layout == fresh.layout and grid.name == scheme and grid.scale_format == fresh.scale_format
    assert torch.equal(grid.scale, fresh.scale) and torch.equal(grid.levels, fresh.levels)


def test_calibrated_fits_say_what_they_need_and_quantize_measures_it(objective):
    with pytest.raises(ThalwegError, match="importance="):
        Scheme.parse("w3").grids(objective.weights, objective.axes, "activation")
    columns = importance(objective)
    grids = Scheme.parse("w3").grids(objective.weights, objective.axes, "activation", columns)
    point = quantize(objective, "w3", fit="activation")
    assert all(torch.equal(point.grids[n].scale, grids[n].scale) for n in grids)
    plain = Scheme.parse("w3").grids(objective.weights, objective.axes, "mse")
    assert any(not torch.equal(plain[n].scale, grids[n].scale) for n in grids)


def test_quantizers_refuse_what_they_cannot_fit():
    for fit in CAN:
        with pytest.raises(ThalwegError, match=f"'{fit}' fits .*'w4'"):
            grid_of(torch.randn(2, 8), "w4", fit)
    for scheme in ("lsbq2", "codebook2"):
        for fit in FIXED:
            with pytest.raises(ThalwegError, match=f"'{fit}' fits .*'{scheme}'"):
                grid_of(torch.randn(2, 8), scheme, fit)
