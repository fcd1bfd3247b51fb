"""Least-squares binary quantization: levels ``Σ ±v_i`` with the v of each scale fitted (PARQ, arXiv:2503.15748)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..fitting import Fit
from ..formats import TINY
from ..grid import Grid, nearest

ROUNDS = 15
APART = 1e-5
"""Least gap between levels, in units of the largest."""


def signs(bits: int, device: torch.device) -> Tensor:
    """All sign patterns, ``[2^bits, bits]``."""
    codes = torch.arange(2**bits, device=device).unsqueeze(1) >> torch.arange(bits - 1, -1, -1, device=device)
    return (codes & 1).float() * 2 - 1


def table(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (largest level) and sorted levels in its units of the sizes ``[..., bits]``.

    Levels must differ: where two coincide, the sizes are changed by up to 0.1 %, or all become powers of two.
    """
    bits = sizes.shape[-1]
    scale = sizes.sum(-1).clamp(min=TINY)
    unit = sizes / scale.unsqueeze(-1)
    patterns = signs(bits, sizes.device).T
    halves = 0.5 ** torch.arange(1, bits + 1, device=sizes.device)
    nudge = 1 - 1e-4 * torch.tensor([0.0, 1.0, 3.0, 9.0], device=sizes.device)[:bits]
    for other in (unit.clamp(min=1e-3) * nudge, halves.expand_as(unit)):
        levels = (unit @ patterns).sort(-1).values
        close = (levels.diff() < APART).any(-1, keepdim=True)
        unit = torch.where(close, other, unit)
    return scale, (unit @ patterns).sort(-1).values


def residual(fit: Fit, bits: int) -> Tensor:
    """Greedy sizes ``[scale rows, groups, bits]``."""
    rest, sizes = fit.blocks, []
    count = fit.total(torch.ones_like(rest)).clamp(min=TINY)
    for _ in range(bits):
        sizes.append(fit.total(rest.abs()) / count)
        rest = rest - torch.where(rest < 0, -1.0, 1.0) * sizes[-1].unsqueeze(-1)
    return torch.stack(sizes, -1)


def optimal(fit: Fit) -> Grid:
    """Least squares: exact for 1 and 2 bits, alternating from the greedy and the even table for 3 and 4."""
    bits = len(fit.levels).bit_length() - 1
    greedy = residual(fit, bits)
    if bits == 1:
        starts = [greedy]  # the mean magnitude
    elif bits == 2:
        starts = [two(fit), greedy]
    else:
        halves = 0.5 ** torch.arange(1, bits + 1, device=greedy.device)
        even = fit.blocks.abs().amax(-1, keepdim=True) * halves / halves.sum()
        starts = [alternate(fit, greedy), alternate(fit, even), greedy, even]
    best = None
    for sizes in starts:
        scale, levels = table(sizes)
        loss = squared(fit, scale, levels)
        if best is None:
            best = (scale, levels, loss)
            continue
        wins = loss < best[2]
        best = (
            torch.where(wins, scale, best[0]),
            torch.where(wins.unsqueeze(-1), levels, best[1]),
            torch.where(wins, loss, best[2]),
        )
    assert best is not None
    return fit.grid(best[0], levels=best[1])


def squared(fit: Fit, scale: Tensor, levels: Tensor) -> Tensor:
    """Squared error of each scale with its own levels."""
    values = levels * scale.unsqueeze(-1)
    return fit.total((values.gather(-1, nearest(fit.blocks, values)) - fit.blocks).square())


def two(fit: Fit) -> Tensor:
    """Exact two bits: the best split of the sorted magnitudes into two means ``v1 ± v2``. Cost: one sort."""
    size, order = fit.blocks.abs().sort(-1)
    mass = torch.ones_like(size) if fit.mass is None else fit.mass.gather(-1, order)
    m, s = mass.double().cumsum(-1), (size.double() * mass).cumsum(-1)
    low = s / m.clamp(min=TINY)
    high = (s[..., -1:] - s) / (m[..., -1:] - m).clamp(min=TINY)
    gain = low * s + high * (s[..., -1:] - s)
    k = gain.argmax(-1, keepdim=True)
    a, b = low.gather(-1, k), high.gather(-1, k)
    b = torch.maximum(a, b)
    return torch.cat([(a + b) / 2, (b - a) / 2], -1).float()


def alternate(fit: Fit, sizes: Tensor) -> Tensor:
    """Nearest codes, then least squares of the sizes, ROUNDS times; the error never rises."""
    bits = sizes.shape[-1]
    patterns = signs(bits, sizes.device)
    eye = torch.eye(bits, device=sizes.device)
    mass = torch.ones_like(fit.blocks) if fit.mass is None else fit.mass
    for _ in range(ROUNDS):
        levels, order = (sizes @ patterns.T).sort(-1)
        code = order.gather(-1, nearest(fit.blocks, levels))
        flat = torch.zeros(*sizes.shape[:2], 2**bits, device=sizes.device)
        count = flat.scatter_add(-1, code, mass)
        total = flat.scatter_add(-1, code, mass * fit.blocks)
        gram = torch.einsum("rgk,ki,kj->rgij", count, patterns, patterns)
        gram = gram + eye * (1e-6 * gram.diagonal(dim1=-2, dim2=-1).amax(-1).clamp(min=TINY))[..., None, None]
        sizes = torch.linalg.solve(gram, (total @ patterns).unsqueeze(-1)).squeeze(-1).abs()
    return sizes.sort(-1, descending=True).values
