"""Why post-training quantization fails: every statement at reduced counts, and that wrong statements are caught."""

import math

import pytest
import torch

from thalweg import catalog
from thalweg.theory import blindness, blindness_checks, failure, failure_checks, nearest_plane, nearest_plane_checks
from thalweg.theory.evidence import Evidence
from thalweg.theory.failure import Valley2D, lattice2d, second_order, threshold
from thalweg.theory.valleys import normal, random_bases, uniform


@pytest.fixture
def gen():
    return torch.Generator().manual_seed(7)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def holds(check, instances, seed=1):
    seen = check(instances, seed)
    assert seen.verdict == "holds" and seen.violations == 0 and seen.instances > 0, seen
    return seen


def test_claim_d2(gen):
    seen = holds(failure_checks.check_claim_d2, 1000)
    assert seen.ratio[0] > 1 and seen.figures["control_share_good"] == 1.0
    broken = Evidence()  # beyond δ the claim is false, and the check says so
    valley = failure_checks.random_valleys(gen, 500, failure_checks.PAPER)
    wide = Valley2D(valley.theta, valley.u, valley.zeta)
    z = wide.coordinates(lattice2d(2))[1].abs()
    chosen = z.gather(1, second_order(wide, lattice2d(2)).unsqueeze(1)).squeeze(1)
    broken.add((1.2 * wide.delta + wide.delta) / 2, chosen)
    assert broken.violations == 500


def test_the_interval_of_scales_is_needed(gen):
    """On grids of other scales the claim breaks for many valleys: it is not vacuous."""
    valley = failure_checks.random_valleys(gen, 2000, failure_checks.PAPER)
    radius = 0.9 * valley.delta
    half = failure.neighbourhood(valley, radius, 3)
    assert bool((half > 0).all()) and float(half.max()) < 0.1
    q = lattice2d(3).unsqueeze(0) * uniform(gen, (2000, 1, 1), 0.5, 2.0)
    z = valley.coordinates(q)[1].abs().gather(1, second_order(valley, q).unsqueeze(1)).squeeze(1)
    assert float((z < (radius + valley.delta) / 2).double().mean()) > 0.05


def test_library_d2():
    assert holds(failure_checks.check_library_d2, 6).figures["gptq_damping_020_inside"] > 0.3


def test_damping():
    seen = holds(failure_checks.check_damping, 2000)
    shares = [seen.figures[f"fail_{x}"] for x in ("0", "0.01", "0.03", "0.1", "0.3", "1", "inf")]
    assert shares[0] == 1.0 and shares == sorted(shares, reverse=True) and shares[-1] < 0.2
    assert 0.07 < seen.figures["largest_threshold_at_river"] <= 0.0774


def test_the_threshold_separates(gen):
    valley = failure_checks.random_valleys(gen, 300, failure_checks.PAPER)
    flat = Valley2D(valley.theta, valley.u, torch.zeros_like(valley.u))
    pair = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    for factor, bad in ((0.99, 0), (1.01, 1)):
        assert bool((second_order(flat, pair, threshold(flat) * factor) == bad).all())


def test_damping_turns_round_below_half_alpha():
    """(5.1) read as a threshold needs u > α/2: here ζ > δ/2, u < α/2, and damping creates the failure."""
    theta = torch.tensor([0.6], dtype=torch.float64)
    alpha = float(theta.cos() - theta.sin())
    valley = Valley2D(theta, torch.tensor([0.3 * alpha]).double(), torch.tensor([0.8]).double())
    pair = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert int(second_order(valley, pair, 0.01)) == 1 and int(second_order(valley, pair, 10.0)) == 0
    assert bool(failure.prefers_bad(valley, torch.tensor([10.0]).double()))
    assert not bool(failure.prefers_bad(valley, torch.tensor([0.01]).double()))


def test_rounding_region():
    assert 0.1 < holds(failure_checks.check_rounding_region, 2000).figures["share_bad"] < 0.5


def test_runaway():
    holds(failure_checks.check_runaway, 200)


def test_gptq_formula(gen):
    holds(nearest_plane_checks.check_gptq_formula, 200)
    valley = failure_checks.random_valleys(gen, 500)
    assert not torch.equal(failure.gptq2d(valley, 0.05), failure.gptq2d(valley, 0.5))


def test_babai(gen):
    seen = holds(nearest_plane_checks.check_babai, 300)
    assert seen.ratio[0] >= 1
    a = normal(gen, 200, 8, 16)
    h, w = a @ a.transpose(1, 2), 2 * normal(gen, 200, 8)
    mine = nearest_plane.library_gptq(w, h, damping=0.0)
    reversed_ = nearest_plane.babai(w.flip(1), h.flip(1, 2), -128, 127).flip(1)
    assert not torch.equal(mine, reversed_)  # the other order is another point
    assert torch.equal(mine, nearest_plane.babai(w, h, -128, 127))


def test_descending_order_is_babai_on_the_permuted_problem(gen):
    a = normal(gen, 100, 6, 12)
    h, w = a @ a.transpose(1, 2), 2 * normal(gen, 100, 6)
    order = h.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
    hp = h.gather(1, order.unsqueeze(2).expand_as(h)).gather(2, order.unsqueeze(1).expand_as(h))
    mine = nearest_plane.library_gptq(w, h, damping=0.0, order="descending").gather(1, order)
    assert torch.equal(mine, nearest_plane.babai(w.gather(1, order), hp, -128, 127))


def test_p1():
    holds(blindness_checks.check_p1, 300)


def test_p1_needs_the_tolerance():
    """An inside point may cost ε: the gap without ε is wrong, with it right."""
    along = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    inside = torch.tensor([[True, False]])
    seen = blindness.theorem_p1(along, torch.tensor([[1.0, 1.2]], dtype=torch.float64), inside)
    assert bool(seen.fails) and float(seen.persists) == pytest.approx(0.25 / 0.44)
    tolerance, height_in, height_out = 0.3, 0.3, 1.0  # φ = 0
    assert height_out - height_in < height_out and height_out - height_in >= height_out - tolerance


def test_p2():
    seen = holds(blindness_checks.check_p2, 150)
    assert seen.figures["ratio_m1"] == pytest.approx(2.0, abs=0.15)
    assert seen.figures["ratio_m7"] > seen.figures["ratio_m1"]


def test_blind_corner_is_the_best_of_all(gen):
    tangent, w = random_bases(gen, 5, 6, 2), uniform(gen, (5, 6), -2, 2)
    q = blindness.blind_corner(tangent, w, chunk=2)
    every = w.floor().unsqueeze(1) + blindness.corners(6)
    error = torch.einsum("ikd,idm->ikm", every - w.unsqueeze(1), tangent).norm(dim=2)
    assert torch.allclose(torch.einsum("id,idm->im", q - w, tangent).norm(dim=1), error.amin(1))


def test_p3():
    seen = holds(blindness_checks.check_p3, 100)
    assert seen.ratio[0] >= 1


def test_basic_solutions_against_linear_programming(gen):
    """Another vertex of the same polytope, from scipy: as few fractional weights, and as good after rounding."""
    scipy = pytest.importorskip("scipy.optimize")
    basis, w = random_bases(gen, 1, 24, 3), uniform(gen, (1, 24))
    target = (basis[0].T @ w[0]).numpy()
    found = scipy.linprog(normal(gen, 24).numpy(), A_eq=basis[0].T.numpy(), b_eq=target, bounds=(0, 1), method="highs-ds")
    x = torch.as_tensor(found.x)
    assert int(((x > 1e-9) & (x < 1 - 1e-9)).sum()) <= 3
    mine = blindness.basic_solution(basis, w)
    assert int(((mine.x > 0) & (mine.x < 1)).sum()) <= 3
    assert torch.allclose(basis[0].T @ mine.x[0], torch.as_tensor(target), atol=1e-12)
    for corner in (x.round().unsqueeze(0), blindness.basic_rounding(basis, w)):
        assert float(blindness.normal_error(basis, corner, w)) <= 0.5 * math.sqrt(3)


def test_derandomised_rounding_is_no_worse_than_its_expectation(gen):
    basis, w = random_bases(gen, 200, 20, 5), uniform(gen, (200, 20))
    found = blindness.basic_solution(basis, w)
    q = blindness.derandomised(basis, w, found)
    bound = blindness.unbiased_bound(basis, w, found)
    assert bool((blindness.normal_error(basis, q, w).square() <= bound + 1e-12).all())
    phase = (found.x - w.floor()).gather(1, found.support)
    draws = []  # the bound is the mean over unbiased draws
    for _ in range(400):
        up = (uniform(gen, phase.shape) < phase).double()
        rounded = found.x.scatter(1, found.support, w.floor().gather(1, found.support) + up)
        draws.append(blindness.normal_error(basis, rounded, w).square())
    assert float(torch.stack(draws).mean() / bound.mean()) == pytest.approx(1.0, abs=0.03)


def test_rounding_scaling():
    holds(blindness_checks.check_rounding_scaling, 50)


def test_p4():
    seen = holds(blindness_checks.check_p4, 24)
    assert all(seen.figures[f"displaced_soft_inside_n{n}"] < 0.5 for n in (4, 16, 64))


def test_p4_library():
    holds(blindness_checks.check_p4_library, 6)


def test_the_written_hessian_is_that_of_the_landscape():
    land = catalog.get("landscapes", "affine")(16, 3, floor=0.5, radius=0.4, pull=0.7)
    w, basis = land.start["w"], land.truth.normal.unsqueeze(0)
    for q in (w, w.round()):
        mine = blindness.hinge_hessian(basis, q.unsqueeze(0), w.unsqueeze(0), land.wall.floor, land.wall.stiff, 0.7)
        assert torch.allclose(mine[0], land.hessian(q), atol=1e-9)
