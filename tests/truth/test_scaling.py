"""Codimension scaling of training's chatter (T6, straight-through part)."""

import math

import pytest
import torch

from thalweg.theory import scaling
from thalweg.theory.dynamics import lattice, simulate
from thalweg.theory.run import one_thread


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield



def test_scaling():
    check = scaling.check_scaling(96, 1)
    assert check.violations == 0, check
    assert scaling.BAND[0] < check.figures["c_smallest"] < check.figures["c_largest"] < scaling.BAND[1]


def test_rate():
    check = scaling.check_rate_independence(24, 1)
    assert check.violations == 0, check
    assert check.figures["c_momentum"] < check.figures["c_plain"] < check.figures["c_noise_10"]


def test_visible_bowl():
    check = scaling.check_visible_bowl(24, 1)
    assert check.violations == 0 and check.figures["average_over_rounding_a1.0"] > 2


def test_out_of_band_is_seen(monkeypatch):
    monkeypatch.setattr(scaling, "BAND", (0.7, 0.9))
    assert scaling.check_scaling(32, 1).violations > 0


def test_reduced_coordinates_are_the_full_dynamics():
    """Moving n numbers per instance gives what moving all D weights gives."""
    size, codim = 24, 3
    seen = scaling.chatter(size, codim, 1, 0.05, 0, 200, seed=5)
    gen = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(size, codim, generator=gen, dtype=torch.float64))[0]
    centre = torch.rand(1, size, generator=gen, dtype=torch.float64)
    far = []
    simulate(
        lambda q: (q - centre) @ basis @ basis.T, centre, lattice(1.0), 0.05, 200,
        observe=lambda k, w, q, g, o: far.append(float(((q - centre) @ basis).norm())),
    )  # fmt: skip
    assert float(seen.best) == pytest.approx(min(far), rel=1e-9)
    assert float(seen.rms) == pytest.approx(math.sqrt(sum(f * f for f in far) / 200), rel=1e-9)
