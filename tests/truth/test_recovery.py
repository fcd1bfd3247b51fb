"""Recovery bounds against simulation: no violation, no idle bound, and assumptions named when they fail."""

import pytest
import torch

from thalweg.grid import Grid, Layout
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint
from thalweg.theory import driven_checks, dynamics, lemmas, margin_checks, paper_checks, recovery_checks
from thalweg.theory.dynamics import lattice, simulate
from thalweg.theory.evidence import Evidence
from thalweg.theory.recovery import (
    corollary2,
    margin_radial,
    momentum_lag,
    theorem1,
    theorem_a,
    theorem_b,
    theorem_c,
    theorem_e,
)
from thalweg.theory.run import one_thread
from thalweg.theory.valleys import WALLS, Wall
from thalweg.train import Recipe, train


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield



def holds(check, instances, tight=None):
    assert check.violations == 0, check
    assert check.instances >= instances, check
    if tight is not None:  # the bound divided by `tight` would have been contradicted
        assert check.ratio[0] < tight, check.ratio
    return check


def test_vectorised_agrees_with_reference():
    check = holds(dynamics.check_vectorised(400, 1), 100)
    assert check.figures["speed_up"] >= 20


def test_theorem1():
    check = holds(paper_checks.check_theorem1(120, 1), 100, tight=40)
    assert check.figures["times_looser_than_theorem_b"] > 1


def test_corollaries():
    assert holds(paper_checks.check_corollaries(120, 1), 100).figures["of_corollary_2"] > 20


def test_theorem_a():
    holds(recovery_checks.check_theorem_a(600, 1), 500, tight=1.5)


def test_theorem_b():
    check = holds(margin_checks.check_theorem_b(300, 1), 200, tight=20)
    assert check.figures["share_where_paper_width_holds"] < 0.5
    holds(margin_checks.check_theorem_b_curved(150, 1), 80, tight=10)
    holds(margin_checks.check_theorem_b_landscapes(120, 1), 40, tight=10)


def test_theorem_c():
    holds(recovery_checks.check_theorem_c(300, 1), 200, tight=1.5)
    holds(recovery_checks.check_theorem_c_sign(150, 1), 80, tight=2)


def test_window():
    check = holds(recovery_checks.check_window(90, 1), 50)
    assert 0.25 < check.figures["rounding_fails_D16"] < 0.6 < check.figures["rounding_fails_D256"]


def test_momentum():
    holds(driven_checks.check_momentum(200, 1), 150, tight=2)


def test_noise():
    check = holds(driven_checks.check_noise(150, 1), 150)
    assert check.figures["late_runs"] <= 2 * 0.05 * check.instances


def test_lemmas():
    check = holds(lemmas.check_sign_lemma(60, 1), 1000)
    assert check.figures["wrong_with_momentum"] > 0  # the control must break it
    check = holds(lemmas.check_few_chatter(30, 1), 20)
    assert check.figures["flips_seen"] > 100 and check.figures["share_broken_at_large_rate"] > 0.2


def test_a_violation_is_seen():
    out = Evidence()
    out.add(torch.tensor([3.0, 5.0]).double(), torch.tensor([4.0, 4.0]).double())
    check = out.check("x", "y", "ours", "z")
    assert (check.violations, check.instances, check.verdict) == (1, 2, "fails")
    assert "actual 5" in check.note and check.ratio == (0.8, 0.8, 4 / 3)


def test_theorem_a_needs_its_width():
    """Below R = h the bound's assumption fails by name."""
    bound = theorem_a(0.01, 0.3, 0.5, 1.0, 1.0, 0.5)
    assert bound.failed == ["wider than rounding", "small rate"] and not bool(bound.valid)


def test_assumptions_are_named():
    assert theorem1(1e-4, 1.0, 0.6, 1.0, 1.0, 0.9).failed == ["river width", "small rate"]
    assert theorem1(1e-4, 1.0, 0.1, 1.0, 1.0, 1.2).failed == ["start in basin"]
    assert theorem1(1e-4, 1.0, 0.1, 1.0, 1.0, 0.95, tube=1.05).failed == ["basin within tube"]
    assert theorem_b(0.1, 1.0, 0.4, -0.1, 1.0, 0.9).failed == ["inward margin", "small rate"]
    assert theorem_c(0.01, 0.2, 0.5, 1.0, 0.41, 0.1).failed == ["no jump over the basin"]
    assert "room for noise" in theorem_e(0.1, 1.0, 1.0, 0.4, 0.6, 1.0, 2.0, 1.0, 0.99).failed
    assert "river turns slowly" in corollary2(0, 0, 0.1, 1.0, 1.0, 1e-6, 1.0, 1.0, 1.0, turning=1.0).failed


def test_bounds_in_numbers():
    """Worked by hand: R = 1, h = 0.4, start 1.2, ηc = 0.05 gives 1 + ⌈0.6/0.05⌉ = 13."""
    assert float(theorem_a(0.05, 1.0, 0.4, 1.0, 1.0, 1.2).steps) == pytest.approx(13, abs=1)
    assert float(theorem_c(0.05, 1.0, 0.4, 1.0, 0.0, 1.2).steps) == pytest.approx(13)
    assert float(theorem_b(0.1, 1.0, 0.5, 0.5, 1.0, 1.0).steps) == pytest.approx(1 + 0.75 / 0.05)
    near = 1 + (1 - 0.64) / (0.01 * 0.8)
    assert float(theorem1(0.01, 1.0, 0.1, 1.0, 1.0, 1.0).steps) == pytest.approx(near)
    assert float(margin_radial(2.0, 1.0, 0.25)) == pytest.approx(1.5)
    assert float(momentum_lag(0.1, 2.0, 0.9)) == pytest.approx(1.8)


def test_vacuous_at_the_river():
    """(2.1): wherever Theorem 1's width holds, its own shell R - √λ₁ρ(1+L_P) is positive, so that a start at
    the river has nothing to recover from: the bound is one step."""
    bound = theorem1(1e-3, 1.0, 0.2, 1.0, 1.0, 0.0)
    assert bool(bound.holds["river width"]) and float(bound.steps) == 1.0


@pytest.mark.parametrize("kind", WALLS)
def test_walls_agree_with_the_landscapes(kind):
    """The batched walls of the checks are those of the landscapes; the slope is the height's derivative."""
    from thalweg.landscapes._walls import Wall as One

    floor = 0.0 if kind in ("quartic", "bowl") else 0.6
    xi = torch.linspace(0.01, 2, 50, dtype=torch.float64, requires_grad=True)
    full = [torch.full((50,), v, dtype=torch.float64) for v in (floor, 1.7, 3.0)]
    many = Wall(torch.full((50,), WALLS.index(kind)), *full)
    one = One(kind, floor, 1.7, 3.0)
    torch.testing.assert_close(many.height(xi), one.height(xi))
    torch.testing.assert_close(many.slope(xi), one.slope(xi))
    (slope,) = torch.autograd.grad(many.height(xi).sum(), xi)
    torch.testing.assert_close(slope, many.slope(xi), rtol=1e-9, atol=1e-12)


def test_simulation_is_the_library_training():
    """The vectorised dynamics and `thalweg.train` deploy the same point at every step."""
    nu = torch.tensor([0.6, 0.8], dtype=torch.float64)
    centre = torch.tensor([0.3, -0.45], dtype=torch.float64)

    def function(w):
        return 0.5 * ((w["w"] - centre) @ nu).square()

    levels = torch.arange(-8, 8, dtype=torch.float32)
    grid = Grid(Layout((2,), 2, 0, per_tensor=True), levels, torch.ones(1, 1), None, "unit")
    objective = Objective.of(function, {"w": centre})
    point = QuantizedPoint({"w": centre}, {"w": grid.encode(centre)}, {"w": grid})
    recipe = Recipe(60, "sgd", 0.07, schedule="constant", check_every=1, stop=False)
    path = []
    train(objective, point, None, recipe, watch=lambda k, w: path.append(w["w"].double().clone()) or {})
    seen = []
    simulate(
        lambda q: ((q - centre) @ nu).unsqueeze(1) * nu, centre.unsqueeze(0), lattice(1.0), 0.07, 61,
        observe=lambda k, w, q, g, o: seen.append(q[0]), stop=False,
    )  # fmt: skip
    torch.testing.assert_close(torch.stack(path), torch.stack(seen))
