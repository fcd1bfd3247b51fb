"""The regret identity for every codebook, any gradients, and the library's own training runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.errors import ThalwegError
from thalweg.landscapes.affine import affine
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.theory import regret_checks
from thalweg.theory.codebook import LEVELS, Codebook
from thalweg.theory.regret import RegretAudit, certificate, step_terms
from thalweg.theory.run import one_thread
from thalweg.train import Recipe, train


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield



def run(audit, latents, gradients, rate):
    w = latents
    for k, g in enumerate(gradients):
        after = w - rate * g
        audit(k, {"w": w}, {"w": g}, {"w": after})
        w = after
    return audit.report()


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(LEVELS)),
    seed=st.integers(0, 2**31),
    spread=st.floats(0.01, 30.0),
    steps=st.integers(1, 40),
    size=st.integers(1, 12),
)
def test_identity_for_any_gradients(name, seed, spread, steps, size):
    """Both sides of (6.6) to 1e-9, whatever the codebook, the jumps and the clipping."""
    gen = torch.Generator().manual_seed(seed)
    levels = torch.tensor(LEVELS[name], dtype=torch.float64)
    book = Codebook(levels, 0.05 + torch.rand(size, generator=gen, dtype=torch.float64))

    def draw():
        return torch.randn(size, generator=gen, dtype=torch.float64)

    audit = RegretAudit({"w": book}, {"w": draw()}, rate=0.1)
    report = run(audit, draw(), [spread * draw() for _ in range(steps)], 0.1)
    assert report.relative_error < 1e-9
    assert -1e-12 <= report.cost <= report.ceiling * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(LEVELS)), seed=st.integers(0, 2**31), spread=st.floats(0.1, 10.0))
def test_overshoot_of_prefix_sums_is_that_of_a_loop(name, seed, spread):
    gen = torch.Generator().manual_seed(seed)
    book = Codebook(torch.tensor(LEVELS[name], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64))
    before, after = (spread * torch.randn(50, generator=gen, dtype=torch.float64) for _ in range(2))
    a, b = book.nearest(before), book.nearest(after)
    slow = book.overshoot_slowly(a, b, after)
    torch.testing.assert_close(book.overshoot(a, b, after), slow, rtol=1e-9, atol=1e-9)
    assert bool((slow >= -1e-12).all())


def test_identity():
    check = regret_checks.check_identity(400, 1)
    assert check.violations == 0 and check.instances >= 400
    assert check.figures["largest_relative_error"] < 1e-11
    assert check.figures["most_levels_jumped"] >= 10 and check.figures["largest_clipped_share"] > 0.3
    assert check.figures["codebooks"] == 8


class Down(Codebook):
    """Rounds down instead of to the nearest level."""

    def nearest(self, w):
        return (torch.bucketize(self.unit(w), self.levels, right=True) - 1).clamp(0, len(self.levels) - 1)


def test_only_nearest_rounding_pays_what_the_bounds_assume():
    """The identity is algebra and holds for any rounding onto the levels; that every overshoot lies between
    zero and the step, on which (6.7) and (6.8) rest, is special to nearest rounding."""
    gen = torch.Generator().manual_seed(0)
    levels, scale = torch.arange(-8.0, 8.0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for book, proper in ((Codebook(levels, scale), True), (Down(levels, scale), False)):
        w, fine = 3 * torch.randn(400, generator=gen, dtype=torch.float64), True
        audit = RegretAudit({"w": book}, rate=0.3)
        for k in range(30):
            g = torch.randn(400, generator=gen, dtype=torch.float64)
            after = w - 0.3 * g
            terms = step_terms(book, torch.zeros(400, dtype=torch.float64), w, 0.3 * g, after)
            fine &= bool((terms.cost >= -1e-12).all() and (terms.cost <= terms.ceiling + 1e-12).all())
            audit(k, {"w": w}, {"w": g}, {"w": after})
            w = after
        assert audit.report().relative_error < 1e-12
        assert fine == proper


def test_a_wrong_cost_is_seen(monkeypatch):
    """Half the flip cost, and the two sides part."""
    honest = Codebook.overshoot
    monkeypatch.setattr(Codebook, "overshoot", lambda *a: 0.5 * honest(*a))
    gen = torch.Generator().manual_seed(0)
    book = Codebook(torch.arange(-8.0, 8.0, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    draws = [torch.randn(6, generator=gen, dtype=torch.float64) for _ in range(30)]
    assert run(RegretAudit({"w": book}, rate=0.3), draws[0], draws, 0.3).relative_error > 1e-2


def test_certificate():
    check = regret_checks.check_certificate(200, 1)
    assert check.violations == 0 and check.figures["promised"] >= 20
    assert certificate(1.0, 2.0, 2.0, 0.1, 0.5) == pytest.approx((2 + 2) / (0.1 * 0.5))
    assert certificate(0.4, 2.0, 2.0, 0.1, 0.5) == float("inf")


def test_transition_rate():
    check = regret_checks.check_transition_rate(60, 1)
    assert check.violations == 0 and check.ratio[0] < 3


@pytest.mark.parametrize("scheme", ["w2", "w3g4", "w4t", "ternary", "nf4g8", "fp4"])
def test_audit_of_a_training_run(scheme, net, batches):
    """Attached to `train` on a network in float32, the identity holds to 1e-9 for every kind of grid."""
    objective = Objective(net, batches)
    point = quantize(objective, f"{scheme}p" if "g" in scheme else scheme)
    audit = RegretAudit(point.grids)
    train(objective, point, None, Recipe(25, "sgd", 0.5, check_every=25, stop=False), audit=audit)
    report = audit.report()
    assert report.steps == 25 and report.relative_error < 1e-9
    assert report.unlike_sgd < 1e-3 and report.doubtful <= 2
    assert report.gamma <= report.transition_bound * (1 + 1e-12)


def test_audit_sees_momentum(net, batches):
    """The identity holds for any update, but the audit says that this one was not plain descent."""
    objective = Objective(net, batches)
    point = quantize(objective, "w3")
    audit = RegretAudit(point.grids)
    recipe = Recipe(15, "sgd", 0.3, momentum=0.9, check_every=15, stop=False)
    train(objective, point, None, recipe, audit=audit)
    report = audit.report()
    assert report.relative_error < 1e-9 and report.unlike_sgd > 0.1


def test_audit_bounds_the_loss_of_a_convex_valley():
    """(6.7) on the library's affine valley: mean deployed loss is within the audit's bound."""
    land = affine(24, 8, "hinge", 0.3, drift="flat", slope=1.0)
    objective = land.objective()
    point = quantize(objective, "w4t", grids=land.grids(1.0))
    audit = RegretAudit(point.grids)
    losses = []
    recipe = Recipe(200, "sgd", 0.05, schedule="constant", check_every=1, stop=False)

    def watch(k, weights):
        losses.append(objective.loss(weights))
        return {}

    train(objective, point, None, recipe, audit=audit, watch=watch)
    report = audit.report()
    excess = sum(losses[:-1]) / len(losses[:-1]) - objective.loss({})
    assert 0 < excess <= report.excess_bound and sum(report.flips) > 0
    assert report.relative_error < 1e-9


def test_audit_refuses_gaps():
    book = Codebook(torch.arange(-2.0, 2.0, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    audit = RegretAudit({"w": book})
    with pytest.raises(ThalwegError, match="no step"):
        audit.report()
    one = {"w": torch.zeros(3)}
    audit(0, one, one, one)
    with pytest.raises(ThalwegError, match="where the last one ended"):
        audit(1, {"w": torch.ones(3)}, one, one)
    with pytest.raises(ThalwegError, match="no such weights"):
        RegretAudit({"v": book})(0, one, one, one)
