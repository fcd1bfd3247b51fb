"""Agreement with Brevitas 0.13: per-channel fake quantization, values and gradient."""

import pytest
import torch

from thalweg.grid import ste
from thalweg.scheme import Scheme

from .peer import ask, difference, weight

BITS = (8, 4, 3, 2)


@pytest.fixture(scope="module")
def given():
    w = weight()
    return {"w": w, "g": torch.randn(w.shape, generator=torch.Generator().manual_seed(1))}


@pytest.fixture(scope="module")
def theirs(given, tmp_path_factory):
    return ask("brevitas", tmp_path_factory.mktemp("brevitas"), given, bits=list(BITS))


@pytest.mark.parametrize("bits", BITS)
def test_values(given, theirs, bits):
    """Brevitas' default is the restricted range with the largest magnitude on the outermost level."""
    w = given["w"]
    mine = Scheme.parse(f"w{bits}r").grids({"w": w}, fit="absmax")["w"]
    half = mine.step(w) / 2
    keep = ((w - mine.round(w)).abs() - half).abs() > 1e-4 * half
    assert difference(mine.round(w)[keep], theirs[f"{bits}/value"][keep]) < 1e-5


@pytest.mark.parametrize("bits", BITS)
def test_gradient(given, theirs, bits):
    """Straight through wherever the weight is not the largest of its row, from which they derive the scale."""
    w = given["w"]
    latent = w.clone().requires_grad_()
    (ste(latent, Scheme.parse(f"w{bits}r").grids({"w": w}, fit="absmax")["w"]) * given["g"]).sum().backward()
    top = w.abs() == w.abs().amax(1, keepdim=True)
    assert difference(latent.grad[~top], theirs[f"{bits}/gradient"][~top]) < 1e-5
