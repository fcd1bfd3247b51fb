"""Random valleys by the thousand: affine and spherical rivers with every wall, as ``[instances, D]`` fields.

The loss is ``f(w) = φ(t) + ψ(ξ)``, ``ξ = ‖n‖_H`` the distance from the river in the basin's metric; the walls
ψ are those of docs/theory/landscapes.md with parameters per instance. :mod:`thalweg.landscapes` holds the
same walls one at a time; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

WALLS = ("hinge", "softplus", "exponential", "quartic", "bowl")


def uniform(gen: torch.Generator, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform float64 noise."""
    return low + (high - low) * torch.rand(shape, generator=gen, dtype=torch.float64)


def normal(gen: torch.Generator, *shape: int) -> Tensor:
    """Standard normal float64 noise."""
    return torch.randn(shape, generator=gen, dtype=torch.float64)


@dataclass(frozen=True)
class Wall:
    """One wall per instance, ``[instances]`` each: ``kind`` (index into WALLS), ``floor`` r, ``stiff`` μ,
    ``sharp`` β."""

    kind: Tensor
    floor: Tensor
    stiff: Tensor
    sharp: Tensor

    def slope(self, xi: Tensor) -> Tensor:
        """``ψ'(ξ)``, ξ ≥ 0, ``[instances]``; increasing in ξ."""
        k, b = self.stiff, self.sharp
        x = (xi - self.floor).clamp(min=0)
        soft = k * (torch.sigmoid(b * (xi - self.floor)) - torch.sigmoid(-b * (xi + self.floor)))
        return self._pick(k * x, soft, k * b * torch.expm1((b * x).clamp(max=50)), 4 * k * xi**3, k * xi)

    def height(self, xi: Tensor) -> Tensor:
        """``ψ(ξ)``, zero on the river."""
        k, b, r = self.stiff, self.sharp, self.floor
        x = (xi - r).clamp(min=0)
        soft = k / b * (F.softplus(b * (xi - r)) + F.softplus(-b * (xi + r)) - 2 * F.softplus(-b * r))
        grown = k * (torch.expm1((b * x).clamp(max=50)) - b * x)
        return self._pick(k / 2 * x**2, soft, grown, k * xi**4, k / 2 * xi**2)

    def _pick(self, *values: Tensor) -> Tensor:
        return torch.stack(values).gather(0, self.kind.unsqueeze(0)).squeeze(0)

    def keep(self, mask: Tensor) -> Wall:
        """Some of the instances."""
        return Wall(self.kind[mask], self.floor[mask], self.stiff[mask], self.sharp[mask])


def random_walls(gen: torch.Generator, radius: Tensor, kinds: tuple[str, ...] = WALLS) -> Wall:
    """Walls whose floor ends before ``radius`` (0 to 95 % of it), stiffness 0.5 to 5, sharpness 1 to 6 per
    radius."""
    count = len(radius)
    chosen = torch.tensor([WALLS.index(name) for name in kinds])
    kind = chosen[torch.randint(0, len(kinds), (count,), generator=gen)]
    floor = radius * uniform(gen, (count,), 0.0, 0.95)
    return Wall(kind, floor, uniform(gen, (count,), 0.5, 5.0), uniform(gen, (count,), 1.0, 6.0) / radius)


@dataclass(frozen=True)
class Affine:
    """Straight rivers of codimension n. ``basis [N, D, n]`` orthonormal normals, ``metric [N, n]``
    eigenvalues of H on them, ``form [N, n]`` those of the wall's own quadratic form (equal to ``metric``
    where the wall is aligned), ``drift [N, D]`` the constant gradient along the river."""

    centre: Tensor
    basis: Tensor
    metric: Tensor
    form: Tensor
    wall: Wall
    drift: Tensor
    radius: Tensor

    def coordinates(self, w: Tensor) -> Tensor:
        """Normal coordinates ``Uᵀ(w - w_0)``, ``[N, n]``."""
        return torch.einsum("idn,id->in", self.basis, w - self.centre)

    def normal(self, w: Tensor) -> Tensor:
        """``w - P(w)``, ``[N, D]``."""
        return torch.einsum("idn,in->id", self.basis, self.coordinates(w))

    def depth(self, w: Tensor) -> Tensor:
        """``‖n‖_H``."""
        return (self.metric * self.coordinates(w).square()).sum(-1).sqrt()

    def inside(self, w: Tensor) -> Tensor:
        """Membership of the basin."""
        return self.depth(w) <= self.radius

    def metric_normal(self, w: Tensor) -> Tensor:
        """``H n(w)``."""
        return torch.einsum("idn,in->id", self.basis, self.metric * self.coordinates(w))

    def loss(self, w: Tensor) -> Tensor:
        """``f(w)``, zero at the centre."""
        xi = (self.form * self.coordinates(w).square()).sum(-1).sqrt()
        return self.wall.height(xi) + (self.drift * (w - self.centre)).sum(-1)

    def gradient(self, w: Tensor) -> Tensor:
        """``∇f(w)``."""
        y = self.coordinates(w)
        xi = (self.form * y.square()).sum(-1).sqrt()
        pull = self.wall.slope(xi) / xi.clamp(min=1e-300)
        return torch.einsum("idn,in->id", self.basis, self.form * y * pull.unsqueeze(1)) + self.drift

    def keep(self, mask: Tensor) -> Affine:
        """Some of the instances."""
        return Affine(
            self.centre[mask], self.basis[mask], self.metric[mask], self.form[mask], self.wall.keep(mask),
            self.drift[mask], self.radius[mask],
        )  # fmt: skip


@dataclass(frozen=True)
class Sphere:
    """Spherical rivers of codimension 1: ``‖w‖ = size``. In two dimensions the circle of the theory. The
    drift turns around the first two axes with constant speed at the river: ``∇φ = speed · (size/‖·‖) e_θ``
    within that plane."""

    size: Tensor
    wall: Wall
    speed: Tensor
    radius: Tensor

    def normal(self, w: Tensor) -> Tensor:
        """``w - P(w)``."""
        length = w.norm(dim=-1, keepdim=True)
        return w * (1 - self.size.unsqueeze(1) / length)

    metric_normal = normal

    def depth(self, w: Tensor) -> Tensor:
        """``|‖w‖ - size|``."""
        return (w.norm(dim=-1) - self.size).abs()

    def inside(self, w: Tensor) -> Tensor:
        """Membership of the basin."""
        return self.depth(w) <= self.radius

    def loss(self, w: Tensor) -> Tensor:
        """``f(w)`` on the branch of angles in (-π, π]."""
        return self.wall.height(self.depth(w)) + self.speed * self.size * torch.atan2(w[:, 1], w[:, 0])

    def gradient(self, w: Tensor) -> Tensor:
        """``∇f(w)``; the angle's gradient is ``e_θ / distance from the axis``."""
        length = w.norm(dim=-1)
        z = length - self.size
        g = w / length.unsqueeze(1) * (self.wall.slope(z.abs()) * z.sign()).unsqueeze(1)
        flat = w[:, 0].square() + w[:, 1].square()
        turn = torch.zeros_like(w)
        turn[:, 0], turn[:, 1] = -w[:, 1], w[:, 0]
        return g + turn * (self.speed * self.size / flat).unsqueeze(1)

    def keep(self, mask: Tensor) -> Sphere:
        """Some of the instances."""
        return Sphere(self.size[mask], self.wall.keep(mask), self.speed[mask], self.radius[mask])


def random_bases(gen: torch.Generator, count: int, size: int, codim: int) -> Tensor:
    """Orthonormal ``[count, size, codim]``, uniformly distributed."""
    return torch.linalg.qr(normal(gen, count, size, codim))[0]


def along_river(gen: torch.Generator, basis: Tensor, length: float) -> Tensor:
    """Random vectors orthogonal to the normals, at most ``length`` long (zero where the river is a point)."""
    v = normal(gen, *basis.shape[:2])
    v = v - torch.einsum("idn,in->id", basis, torch.einsum("idn,id->in", basis, v))
    size = v.norm(dim=1, keepdim=True)
    return torch.where(size > 1e-9, v / size.clamp(min=1e-9), 0) * uniform(gen, (len(v), 1), 0.0, length)


def codim1(gen: torch.Generator, nu: Tensor, centre: Tensor, radius: Tensor, walls: Wall | None = None) -> Affine:
    """Straight rivers with one wall direction each, ``nu`` ``[instances, D]``."""
    ones = torch.ones(len(nu), 1, dtype=torch.float64)
    walls = random_walls(gen, radius) if walls is None else walls
    return Affine(centre, nu.unsqueeze(-1), ones, ones, walls, torch.zeros_like(nu), radius)


def unit(gen: torch.Generator, count: int, size: int) -> Tensor:
    """Random unit vectors ``[count, size]``."""
    nu = normal(gen, count, size)
    return nu / nu.norm(dim=1, keepdim=True)
