"""Over-parameterised matrix factorisation: a curved set of minima inside a flat river."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ThalwegError
from ..landscape import Landscape, Truth
from ..space import generator
from ._valley import TOLERANCE


def factor_loss(x: Tensor, rank: int) -> Tensor:
    """``‖XXᵀ - M*‖_F²``, ``M* = Diag(I_rank, 0)``, for ``X [..., d, k]``.

    Through the k × k Gram matrix: ``‖XᵀX‖² - 2‖X_top‖² + rank``; exact sums of squares near the minimum,
    ``‖PPᵀ - I‖² + 2‖PZᵀ‖² + ‖ZZᵀ‖²`` with ``X = [P; Z]``. Cost: d k².
    """
    p, z = x[..., :rank, :], x[..., rank:, :]
    eye = torch.eye(rank, dtype=x.dtype, device=x.device)
    gram = z.transpose(-1, -2) @ z
    cross = ((p @ gram) * p).sum((-1, -2))
    return (p @ p.transpose(-1, -2) - eye).square().sum((-1, -2)) + 2 * cross + gram.square().sum((-1, -2))


def matrix(
    size: int = 20,
    rank: int = 3,
    width: int | None = None,
    *,
    tolerance: float = TOLERANCE,
    height: float = 0.0,
    noise: float = 0.0,
    samples: int = 64,
    seed: int = 0,
) -> Landscape:
    """Matrix factorisation ``‖XXᵀ - Diag(I_r, 0)‖_F²``, X ``d × k`` (arXiv:2606.09012, Example 2).

    ``X = [P; Z]``; the river is ``Z = 0``, of codimension (d-r)k, and ``f - f∘P = 2‖PZᵀ‖² + ‖ZZᵀ‖²``. The
    start is a minimiser ``PPᵀ = I`` with seeded P, moved by ``height`` into Z. With k = r the wall is
    *visible*: its Hessian there is 4 I. With k > r it is blind in the kernel of P and quartic. Truth holds
    on the fibre of the start: the radius is that of the steepest direction, ``R² = √(1+ε) - 1``.

    Args:
        size: rows d.
        rank: rank r of the target.
        width: columns k ≥ r; r unless named.
        tolerance: ε of the truth.
        height: ‖Z‖ of the start.
        noise, samples: per-sample gradient noise.

    Cost: d k² per point.
    """
    columns = rank if width is None else width
    if not 1 <= rank <= columns or not rank < size:
        raise ThalwegError(
            f"Rank {rank} does not fit {size} rows and {columns} columns. Use rank ≤ width, rank < size."
        )
    gen = generator(seed, "matrix")
    p = torch.linalg.qr(torch.randn(columns, columns, generator=gen, dtype=torch.float64))[0][:rank]
    lower = size - rank
    z = torch.zeros(lower, columns, dtype=torch.float64)
    z[0] = height * p[0]
    start = torch.cat([p, z]).reshape(-1)
    eye = torch.eye(size * columns, dtype=torch.float64)
    radius = math.sqrt(math.sqrt(1 + tolerance) - 1)
    # on the fibre ⟨∇f, Z⟩ = 4(‖PZᵀ‖² + ‖ZZᵀ‖²), with ‖ZZᵀ‖² ≥ ‖Z‖⁴/min(d-r, k), and ‖PZᵀ‖ = ‖Z‖ if k = r
    inward = 4 * radius**3 / min(lower, columns) + (4 * radius if columns == rank else 0.0)

    def shaped(w: Tensor) -> Tensor:
        return w.reshape(*w.shape[:-1], size, columns)

    def project(w: Tensor) -> Tensor:
        keep = torch.arange(size * columns, device=w.device) < rank * columns
        return w * keep.to(w.dtype)

    truth = Truth(
        codim=lower * columns,
        tolerance_nats=tolerance,
        radius=radius,
        wall_slope=4 * radius + 4 * radius**3,
        c_perp=inward,
        tangent=eye[:, : rank * columns],
        normal=eye[:, rank * columns :],
        metric=torch.ones(lower * columns, dtype=torch.float64),
        visible=columns == rank,
    )
    return Landscape(
        "matrix",
        lambda w: factor_loss(shaped(w), rank),
        project,
        lambda w: (w - project(w)).norm(dim=-1),
        {"w": start},
        truth,
        None,
        noise,
        samples if noise else 1,
        seed,
    )
