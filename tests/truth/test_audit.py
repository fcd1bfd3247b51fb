"""The audit of the paper's assumptions: each derivation at reduced counts, and that wrong ones are caught."""

import math
from dataclasses import replace

import pytest
import torch

from thalweg.errors import ThalwegError
from thalweg.landscapes.arc import arc
from thalweg.landscapes.matrix import factor_loss
from thalweg.scheme import Scheme
from thalweg.theory import audit, audit_checks, geometry_checks
from thalweg.theory.codebook import LEVELS, Codebook
from thalweg.theory.valleys import normal, random_bases, uniform


@pytest.fixture
def gen():
    return torch.Generator().manual_seed(11)


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


def test_vacuity():
    seen = holds(audit_checks.check_vacuity, 2000)
    assert seen.figures["points_that_left"] > 100 and seen.figures["basins_narrower_than_2_rho"] == 0


def test_the_shell_is_not_empty(gen):
    """Just outside R - ρ (H = I, straight: only the normal part counts) the worst rounding leaves the basin."""
    radius, rho = torch.tensor(1.0).double(), torch.tensor(0.3).double()
    assert float(audit.shell(radius, rho)) == pytest.approx(0.4)  # the paper's constant: 1 + L_P = 2
    assert 0.71 + 0.3 > 1.0 and 0.69 + 0.3 < 1.0  # the sharp one is R - ρ, see 2.5


def test_disjoint():
    seen = holds(audit_checks.check_disjoint, 2000)
    assert seen.ratio[0] > 1 and seen.figures["narrowest_bowl"] == pytest.approx(1.932, abs=1e-3)
    for share in (0.0, 0.4, 0.9):
        r = audit.narrowest_square(share)
        a = 1 - share
        assert r == pytest.approx(math.sqrt(2) * (r * a + math.sqrt(0.5)) / (r * a))
    # on a grid of half the step the same theorem does apply: the statement depends on the grid
    half = audit.least_width(torch.tensor(0.25).double(), torch.tensor(1.0), torch.tensor(1.0))
    assert float(half) < 1.0


def test_factorisation():
    seen = holds(geometry_checks.check_factorisation, 16)
    assert seen.figures["worst_rounding"] / seen.figures["allowed_eps_3"] > 1e4
    assert seen.figures["float_loss"] < 1e-25


def test_factorisation_simulation_is_gradient_descent():
    """The batched gradient against autograd, and a run that is off the river to begin with."""
    gen = torch.Generator().manual_seed(0)
    x = normal(gen, 2, 12, 3).requires_grad_()
    (g,) = torch.autograd.grad(factor_loss(x, 3).sum(), x)
    y = x.detach()
    mine = y @ (y.transpose(1, 2) @ y)
    mine[:, :3] -= y[:, :3]
    assert torch.allclose(4 * mine, g)
    short = audit.factorise(2, 0, size=12, rank=3, descent=3, training=5)
    assert float(short.off.min()) > 0 and float(short.tail.min()) > 1e-3


def test_fixed_metric():
    holds(geometry_checks.check_fixed_metric, 40)
    # a metric that does vary from eigenvector to eigenvector is admitted by a straight river only
    straight = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(20, 3)
    assert audit.compatible_metrics(straight) == 4
    bent = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0]], dtype=torch.float64)
    assert audit.compatible_metrics(bent) == 2


def test_lipschitz():
    seen = holds(geometry_checks.check_lipschitz, 800)
    assert seen.figures["largest_ratio_at_095_reach"] > 1.2  # beyond half the reach it fails
    assert seen.ratio[0] < 1.05  # and it is sharp within


def test_global_lipschitz_pair_on_the_circle():
    """Opposite points on the inner edge of the half-reach tube attain 1, although their segment leaves the tube."""
    land = arc(2.0)
    a, b = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[-1.0, 0.0]]).double()
    assert float(audit.normal_ratio(land.project, a, b)) == pytest.approx(1.0)
    assert float(audit.normal_ratio(land.project, 0.9 * a, 0.9 * b)) > 1.2


def test_bowl():
    seen = holds(audit_checks.check_bowl, 500)
    assert seen.figures["hinge_fails_share"] == 1.0


def test_no_lattice():
    assert holds(audit_checks.check_no_lattice, 100).ratio[0] >= 1


def test_distance():
    seen = holds(audit_checks.check_distance, 160)
    assert seen.figures["largest_relative_error"] < 1e-12 and seen.ratio[0] >= 1 - 1e-12


@pytest.mark.parametrize("name", LEVELS)
def test_distance_identity_by_hand(name):
    """One flip across one threshold costs 2·gap·|w - mid|; the other sign would not."""
    levels = LEVELS[name]
    book = Codebook(torch.tensor(levels, dtype=torch.float64), torch.tensor(0.5).double())
    w = torch.tensor([0.5 * (0.3 * levels[0] + 0.7 * levels[1]), 0.5 * levels[-1] * 1.4]).double()
    nearest = book.nearest(w)
    assert nearest.tolist() == [1, len(levels) - 1]
    other = torch.tensor([0, len(levels) - 2])
    gap = 0.5 * torch.tensor([levels[1] - levels[0], levels[-1] - levels[-2]]).double()
    middle = 0.25 * torch.tensor([levels[1] + levels[0], levels[-1] + levels[-2]]).double()
    by_hand = 2 * gap * (w - middle).abs()
    assert torch.allclose(audit.flip_cost(book, w, other), by_hand)
    rise = audit.squared_distance(book, w, other) - audit.squared_distance(book, w, nearest)
    assert torch.allclose(rise, by_hand)


def test_allowed_rounding_shrinks_with_the_tolerance(gen):
    assert audit.allowed_rounding(3.0) > audit.allowed_rounding(0.1) > 0
    assert random_bases(gen, 1, 4, 2).shape == (1, 4, 2) and float(uniform(gen, (1,))) < 1


@pytest.mark.parametrize("scheme", ["w3b2x4", "w3g4a", "nf4b3x2", "mxfp4p"])
def test_codebook_of_a_grid_has_its_values_and_its_nearest_levels(scheme):
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    grid = Scheme.parse(scheme).grids({"w": weight})["w"]
    for factor in (None, torch.linspace(0.5, 2, 8)):
        one = replace(grid, columns=factor)
        book, codes = Codebook.of(one), one.encode(weight)
        assert torch.equal(book.nearest(weight), codes.long())
        assert torch.allclose(book.value(codes.long()).float(), one.decode(codes), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scheme", ["lsbq2", "codebook2"])
def test_codebook_of_a_table_per_scale_is_refused(scheme):
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ThalwegError, match="one level table per scale"):
        Codebook.of(Scheme.parse(scheme).grids({"w": weight})["w"])
