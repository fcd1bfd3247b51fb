"""Agreement with hqq 0.2.8: the half-quadratic search against ours, on the same groups."""

import pytest
import torch

from thalweg.scheme import Scheme

from .peer import ask, weight

BITS = (4, 3, 2)


@pytest.fixture(scope="module")
def w():
    return weight(64, 128)


@pytest.fixture(scope="module")
def theirs(w, tmp_path_factory):
    return ask("hqq", tmp_path_factory.mktemp("hqq"), {"w": w}, bits=list(BITS), group=32)


@pytest.mark.parametrize("bits", BITS)
def test_their_plain_range_is_ours_with_a_real_zero_point(w, theirs, bits):
    """hqq keeps a zero point that is not whole: its range is that of ours, moved by less than one step."""
    mine = Scheme.parse(f"w{bits}g32a").grids({"w": w}, fit="absmax")["w"]
    blocks = w.reshape(-1, 32)
    scale = (blocks.amax(1) - blocks.amin(1)) / (2**bits - 1)
    assert torch.allclose(theirs[f"{bits}/plain/scale"].flatten(), scale, rtol=1e-4)
    step = mine.step(w)
    assert bool(((mine.round(w) - theirs[f"{bits}/plain"]).abs() <= 1.01 * step).all())


@pytest.mark.parametrize("bits", BITS)
def test_the_half_quadratic_search_reaches_their_objective(w, theirs, bits):
    """``Σ|w - q|^0.7``, the norm that both minimise, not above theirs by more than 3 %."""
    ours = Scheme.parse(f"w{bits}g32a").grids({"w": w}, fit="hqq")["w"].round(w)
    cost = lambda q: float((w - q).abs().pow(0.7).sum())
    assert cost(ours) <= cost(theirs[f"{bits}/search"]) * 1.03
