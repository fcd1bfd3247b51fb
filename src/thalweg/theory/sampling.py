"""Random instances for the checks: grids, normals, rivers and starts, first entries."""

from __future__ import annotations

import torch
from torch import Tensor

from .dynamics import Field, lattice, simulate
from .valleys import WALLS, Affine, Sphere, along_river, normal, random_bases, random_walls, uniform

LONGEST = 4000
"""Runs whose bound is longer are not started."""


def random_grids(gen: torch.Generator, count: int, size: int, coarse: Tensor | float = 1.0) -> tuple[Tensor, Field]:
    """Gaps ``[count, size]`` between 0.4 and 1 times ``coarse``, and the rounding with random phases."""
    gap = uniform(gen, (count, size), 0.4, 1.0) * coarse
    return gap, lattice(gap, gap * uniform(gen, (count, size)))


def random_normals(gen: torch.Generator, count: int, size: int) -> Tensor:
    """Unit normals ``[count, size]``, from one to all coordinates present."""
    nu = normal(gen, count, size)
    present = torch.rand(count, size, generator=gen) < uniform(gen, (count, 1), 0.1, 1.0)
    present[:, 0] = True
    nu = nu * present
    return nu / nu.norm(dim=1, keepdim=True)


def straight_rivers(
    gen: torch.Generator,
    nu: Tensor,
    gap: Tensor,
    phase: Field,
    radius: Tensor,
    kinds: tuple[str, ...] = WALLS,
) -> Affine:
    """Straight rivers of codimension 1 through random points."""
    count = len(nu)
    ones = torch.ones(count, 1, dtype=torch.float64)
    basis = nu.unsqueeze(-1)
    drift = along_river(gen, basis, 1.0)
    centre = uniform(gen, tuple(nu.shape), -2, 2)
    return Affine(centre, basis, ones, ones, random_walls(gen, radius, kinds), drift, radius)


def first_few(mask: Tensor, count: int) -> Tensor:
    """At most the first ``count`` true entries."""
    return mask & (mask.cumsum(0) <= count)


def first_entries(
    river: Affine | Sphere,
    start: Tensor,
    rounding: Field,
    gap: Tensor,
    rate: Tensor,
    bound: Tensor,
    use: Tensor,
) -> tuple[Tensor, Tensor]:
    """First entries of the chosen instances, and their bounds. An instance that never enters counts as
    infinite."""
    phase = rounding(torch.zeros_like(start))
    some, limit = river.keep(use), bound[use]
    if not len(limit):
        return limit, limit
    course = simulate(
        some.gradient, start[use], lattice(gap[use], phase[use]), rate[use].unsqueeze(1),
        int(limit.max()) + 1, inside=some.inside,
    )  # fmt: skip
    return torch.where(course.entered, course.entry.double(), torch.inf), limit


def anisotropic_rivers(
    gen: torch.Generator, count: int, size: int, codim: int, aligned: bool, kinds: tuple[str, ...] = WALLS
) -> Affine:
    """Affine rivers whose metric has eigenvalues 1 to 4 on the normals and 1 along the river; radius set
    later."""
    basis = random_bases(gen, count, size, codim)
    metric = uniform(gen, (count, codim), 1.0, 4.0)
    metric[:, 0] = 1.0
    form = metric if aligned else metric * uniform(gen, (count, codim), 0.7, 1.4)
    radius = torch.ones(count, dtype=torch.float64)
    centre = uniform(gen, (count, size), -2, 2)
    return Affine(centre, basis, metric, form, random_walls(gen, radius, kinds), along_river(gen, basis, 0.5), radius)


def starts(gen: torch.Generator, river: Affine, depth: Tensor) -> Tensor:
    """Points at a given ``‖n‖_H`` in random normal directions."""
    y = normal(gen, *river.metric.shape)
    y = y / (river.metric * y.square()).sum(1, keepdim=True).sqrt() * depth.unsqueeze(1)
    return river.centre + torch.einsum("idn,in->id", river.basis, y)


def widest(river: Affine, gap: Tensor) -> Tensor:
    """``½‖gap‖₂``: the largest rounding error, which bounds its normal part."""
    return 0.5 * gap.norm(dim=1)


def annealed(
    river: Affine, start: Tensor, rate: Tensor, steps: int, cuts: tuple[float, ...] = (1.0, 0.1, 0.01)
) -> tuple[Tensor, int]:
    """Train on the unit lattice; where the basin was not entered, go on from there at smaller rates.

    Returns (entered, how many needed a smaller rate): two weights that flip in one step can jump a narrow
    basin, and a smaller step parts them. Instances that have entered are dropped every eighth of the way.
    """
    entered, latent, slower = river.inside(start.round()), start.clone(), 0
    for cut in cuts:
        before = int(entered.sum())
        for _ in range(8):
            left = ~entered
            if not bool(left.any()):
                return entered, slower + (len(entered) - before if cut < cuts[0] else 0)
            some, eta = river.keep(left), cut * rate[left].unsqueeze(1)
            course = simulate(some.gradient, latent[left], lattice(1.0), eta, -(-steps // 8), inside=some.inside)
            entered[left], latent[left] = course.entered, course.latent
        slower += int(entered.sum()) - before if cut < cuts[0] else 0
    return entered, slower
