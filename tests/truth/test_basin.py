"""Radius, membership and walls on valleys that are known in closed form."""

import math

import pytest
import torch

from thalweg import basin, space
from thalweg.errors import ThalwegError
from thalweg.objective import Objective

TAU = 0.05


def valley(radius=0.7, slope=4.0, d=6, power=2.0):
    """Flat within ``radius`` of the origin in steps of ½, then slope * excess^power."""
    start = {"w": torch.zeros(d, dtype=torch.float64)}
    step = {"w": torch.full((d,), 0.5, dtype=torch.float64)}

    def loss(w):
        distance = (w["w"] / 0.5).square().mean().sqrt()
        return slope * (distance - radius).clamp(min=0).pow(power)

    return Objective.of(loss, start), step


@pytest.mark.parametrize("radius,slope", [(0.2, 1.0), (0.7, 4.0), (3.0, 50.0)])
def test_radius_of_a_round_valley(radius, slope):
    objective, step = valley(radius, slope)
    truth = radius + math.sqrt(TAU / slope)
    found = basin.radius(objective, objective.weights, step, tolerance=TAU, directions=6)
    assert found.steps == pytest.approx(truth, rel=0.03)
    assert found.low <= found.steps <= found.high
    assert found.censored == 0


def test_worst_radius_finds_the_steep_direction():
    """A trough: steep in the first coordinate, flat in the others."""
    d = 50
    start = {"w": torch.zeros(d, dtype=torch.float64)}
    step = {"w": torch.ones(d, dtype=torch.float64)}
    objective = Objective.of(lambda w: 100 * w["w"][0].square() + 1e-4 * w["w"].square().sum(), start)
    truth = math.sqrt(TAU / 100) / math.sqrt(d)
    worst = basin.worst_radius(objective, start, step, tolerance=TAU)
    typical = basin.radius(objective, start, step, tolerance=TAU)
    assert worst.steps == pytest.approx(truth, rel=0.05)
    assert typical.steps > 3 * worst.steps


def test_no_edge_is_infinite_and_counted():
    objective = Objective.of(lambda w: w["w"].sum() * 0, {"w": torch.zeros(3)})
    found = basin.radius(objective, objective.weights, {"w": torch.ones(3)}, directions=3)
    assert math.isinf(found.steps) and found.censored == 3


def line_objective(profile):
    """An objective on one coordinate whose loss at t is ``profile(t)``."""
    return Objective.of(lambda w: profile(w["w"][0]), {"w": torch.zeros(1, dtype=torch.float64)})


def end(t=1.0):
    return {"w": torch.tensor([t], dtype=torch.float64)}


ONE = {"w": torch.ones(1, dtype=torch.float64)}


@pytest.mark.parametrize(
    "name,profile",
    [
        ("inside", lambda t: 0.01 * t),
        ("on the wall", lambda t: 4 * (t - 0.5).clamp(min=0)),
        ("plateau", lambda t: 2 * torch.sigmoid(60 * (t - 0.3)) - 2 * torch.sigmoid(torch.tensor(-18.0))),
        ("beyond", lambda t: torch.exp(-((t - 0.5) ** 2) / 0.01) - math.exp(-25)),
    ],
)
def test_membership(name, profile):
    way = basin.segment(line_objective(profile), {"w": torch.zeros(1, dtype=torch.float64)}, end(), ONE, tolerance=TAU)
    assert way.membership == name


def test_segment_edge_slope_and_exponent():
    """Hinge: L = 4 (t - 0.5)₊², so the edge is at 0.5 + √(τ/4) and the slope there 8 (edge - 0.5)."""
    objective = line_objective(lambda t: 4 * (t - 0.5).clamp(min=0) ** 2)
    way = basin.segment(objective, {"w": torch.zeros(1, dtype=torch.float64)}, end(), ONE, tolerance=TAU, points=17)
    edge = 0.5 + math.sqrt(TAU / 4)
    assert way.edge_steps == pytest.approx(edge, abs=0.005)
    assert way.wall_slope == pytest.approx(8 * (edge - 0.5), rel=0.1)
    assert way.wall_exponent > 4
    bowl = line_objective(lambda t: t**2)
    way = basin.segment(bowl, {"w": torch.zeros(1, dtype=torch.float64)}, end(), ONE, tolerance=TAU)
    assert way.wall_exponent == pytest.approx(2, abs=0.05)


def test_segment_of_a_point_that_did_not_move():
    objective, step = valley()
    way = basin.segment(objective, objective.weights, space.clone(objective.weights), step)
    assert way.membership == "inside" and way.reach_steps == 0


def test_plane_contains_its_three_points():
    origin = {"a": torch.randn(5, dtype=torch.float64), "b": torch.randn(2, 3, dtype=torch.float64)}
    step = space.each(lambda t: torch.rand_like(t) + 0.1, origin)
    first, second = (space.add(origin, space.mul(space.random_like(origin, s), step)) for s in (1, 2))
    u, v = basin.axes_of_plane(origin, first, second, step)
    us, vs = space.div(u, step), space.div(v, step)
    assert space.rms(us) == pytest.approx(1) and space.rms(vs) == pytest.approx(1)
    assert abs(space.dot(us, vs)) < 1e-9
    size = space.size(origin)
    for point in (first, second):
        away = space.div(space.sub(point, origin), step)
        s, t = space.dot(away, us) / size, space.dot(away, vs) / size
        again = space.plane(origin, u, v, s, t)
        assert space.norm(space.sub(again, point)) < 1e-9


def test_line_ends_are_exact_bits():
    a, b = {"w": torch.randn(7)}, {"w": torch.randn(7)}
    assert torch.equal(space.line(a, b, 0.0)["w"], a["w"]) and torch.equal(space.line(a, b, 1.0)["w"], b["w"])


def test_tolerance_respects_the_noise_floor(objective):
    objective.noise = 0.1
    with pytest.raises(ThalwegError, match="noise floor"):
        basin.tolerance_for(objective, 0.05)
    with pytest.raises(ThalwegError, match="not positive"):
        basin.tolerance_for(objective, 0.0)
