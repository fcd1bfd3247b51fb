"""The failures of section 7: each trap closes, and opens when the one thing it hinges on is changed."""

import pytest
import torch

from thalweg.theory import control_checks, counterexample_checks
from thalweg.theory.counterexamples import RULE, TRAPS, cured, run
from thalweg.theory.run import one_thread


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield



@pytest.mark.parametrize("make", TRAPS, ids=lambda m: m.__name__)
def test_traps(make):
    """Through the library's own objective, grid and training loop."""
    trap = make()
    assert not any(run(trap, 120, RULE.get(trap.name, "ste")))
    cure = cured(trap)
    assert (cure is None) == (trap.cure == "")
    if cure is not None:
        assert any(run(cure, 200))


def test_named_traps_as_a_check():
    check = counterexample_checks.check_traps()
    assert check.violations == 0 and check.figures["opened_by_their_cure"] == 4


@pytest.mark.parametrize(
    "check, count",
    [
        (counterexample_checks.check_straddling, 200),
        (counterexample_checks.check_large_step, 200),
        (counterexample_checks.check_incompatible, 60),
        (counterexample_checks.check_saturation, 100),
        (counterexample_checks.check_misaligned, 300),
    ],
    ids=["straddling", "large_step", "incompatible", "saturation", "misaligned"],
)
def test_failures(check, count):
    result = check(count, 1)
    assert result.violations == 0 and result.instances >= count * 0.9


def test_straddling():
    """Most straddled basins hold another grid point nearby: selection failed, not representability."""
    figures = counterexample_checks.check_straddling(90, 2).figures
    assert figures["share_with_a_good_point_within_a_level"] > 0.7



def test_moving_scales():
    check = control_checks.check_moving_scales(60, 1)
    assert check.violations == 0
    assert check.figures["median_error_without_the_term"] > 1e-5
    assert check.figures["largest_error_with_it"] < 1e-12
    assert check.figures["codes_flipped_without_a_gradient"] > 0


def test_latent_control():
    """T12: none of the latent runs recovers; every one of the promised straight-through runs does."""
    check = control_checks.check_latent_control(360, 1)
    assert check.violations == 0 and check.instances >= 291
    assert check.figures["recovered_by_the_gradient_at_q"] == 1.0 and check.figures["trained"] > 50


def test_redraw():
    check = control_checks.check_redraw(400, 1)
    assert check.violations == 0
    for n in (1, 4, 8, 16):
        assert check.figures[f"simulated_n{n}"] == pytest.approx(check.figures[f"formula_n{n}"], abs=0.06)
    assert float(control_checks.redraw_probability(1, 0.25)) == pytest.approx(0.6135, abs=1e-3)
    assert float(control_checks.redraw_probability(2, torch.tensor(10.0))) == pytest.approx(1.0)
