"""Tangent, normal and the inward pull on valleys that are known in closed form."""

import math

import pytest
import torch

from thalweg import curvature, river, space
from thalweg.objective import Objective

D = 12


def hinge(radius=0.3, slope=40.0, seed=0):
    """A straight river with one normal direction; steps differ by weight."""
    g = torch.Generator().manual_seed(seed)
    step = {"w": torch.rand(D, dtype=torch.float64, generator=g) + 0.5}
    nu = torch.randn(D, dtype=torch.float64, generator=g)
    nu = nu / nu.norm()  # unit normal in the step metric

    def loss(w):
        z = (w["w"] / step["w"]) @ nu
        return slope / 2 * (z.abs() - radius).clamp(min=0).square()

    return Objective.of(loss, {"w": torch.zeros(D, dtype=torch.float64)}), step, nu


def test_normal_space_is_visible_at_the_displaced_point_only():
    objective, step, nu = hinge()
    out = {"w": nu * step["w"]}
    found = river.normal_space(objective, out, step, count=1)
    assert abs(abs(float(found.basis[0]["w"] @ nu)) - 1) < 1e-9
    assert found.values[0] == pytest.approx(40.0)
    blind = curvature.products(objective, objective.weights)(space.random_like(objective.weights, 0))
    assert space.norm(blind) == 0


def test_split_into_normal_and_tangent():
    objective, step, nu = hinge()
    tangent = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tangent = tangent - (tangent @ nu) * nu
    x = 0.8 * nu + 0.6 * tangent / tangent.norm()
    parts = river.split({"w": x * step["w"]}, step, [{"w": nu}])
    assert parts.normal == pytest.approx(0.8 / math.sqrt(D))
    assert parts.tangent == pytest.approx(0.6 / math.sqrt(D))
    assert parts.share == pytest.approx(0.64) and parts.expected == pytest.approx(1 / D)


def test_inward_pull_and_controls():
    objective, step, nu = hinge()
    at = {"w": nu * step["w"]}
    pull = river.inward_pull(objective, objective.weights, at, step, basis=[{"w": nu}])
    assert pull.inward == pytest.approx(1.0) and pull.normal == pytest.approx(1.0)
    assert pull.latent == 0.0
    assert 0.1 < pull.random < 0.6
    # hinge²: p = 2 s / (s - r)
    assert pull.exponent == pytest.approx(2 / (1 - 0.3), rel=1e-6)


def test_a_bowl_pulls_everywhere():
    """The control: in a bowl every displaced point feels the pull, and the exponent is 2."""
    start = {"w": torch.zeros(D, dtype=torch.float64)}
    objective = Objective.of(lambda w: w["w"].square().sum(), start)
    step = {"w": torch.ones(D, dtype=torch.float64)}
    pull = river.inward_pull(objective, start, space.random_like(start, 1), step)
    assert pull.inward == pytest.approx(1) and pull.mirrored == pytest.approx(1)
    assert pull.exponent == pytest.approx(2)
