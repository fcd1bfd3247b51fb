"""Basic-solution rounding in the measured normal space."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import curvature, space
from ..errors import ThalwegError
from ..grid import Grid, Rounding
from ..objective import Objective


def basic(objective: Objective, grids: dict[str, Grid], seed: int = 0, *, directions: int = 8) -> Rounding:
    """Round to floor or ceiling so that the loss's top curvature directions do not move (basic solution).

    The linear program ``{P_N x = P_N w, floor ≤ x ≤ ceiling}`` has a vertex with at most n fractional entries; those
    are rounded to nearest. Hence ``‖P_N (q - w)‖ ≤ √n / 2`` in steps, where plain rounding has ``√(n / 12)`` on average
    but needs luck (``docs/theory.md``, theorem P3). N is spanned by the top ``directions`` eigenvectors of the
    Gauss-Newton matrix (the Hessian of a plain function) in the step metric, at the point of plain rounding.
    Saturated weights go to the outermost level and do not take part.

    Args:
        objective: the loss whose curvature is taken.
        grids: grid of every weight to be quantized.
        seed: of the Lanczos start.
        directions: n, the dimension of the normal space that is kept.

    Notes, equal for all tensors: ``directions``, ``fractional`` entries rounded last, and ``normal_steps``,
    ``‖P_N (q - w)‖`` over the weights that are not saturated.

    Cost: ``2 n + 8`` products with the curvature, then about ``D (n + 1)³`` operations. Do not trust it where more than
    n directions are steep: the others move as by random rounding, further than by plain rounding.

    Raises:
        ThalwegError: fewer than one direction.
    """
    if directions < 1:
        raise ThalwegError(f"{directions} directions span no normal space. Ask for at least 1.")
    weights = {n: objective.weights[n] for n in grids}
    below, above, gap, share = {}, {}, {}, {}
    for name, grid in grids.items():
        below[name], above[name] = grid.bracket(weights[name])
        low = grid.decode(below[name])
        gap[name] = grid.decode(above[name]) - low
        share[name] = ((weights[name].float() - low) / gap[name]).double()
    step = {n: g.to(weights[n].dtype) for n, g in gap.items()}
    rounded = {n: g.round(weights[n]) for n, g in grids.items()}
    product = curvature.in_steps(curvature.products(objective, rounded), step)
    found = curvature.top_pairs(product, step, min(directions, space.size(step)), seed=seed)
    kept = [space.flatten(v) for v, value in zip(found.vectors, found.values, strict=True) if value > 0]
    start = space.flatten(share)
    inside = (start >= 0) & (start <= 1)
    start = start.clamp(0, 1)
    start = torch.where((start - start.round()).abs() < 1e-4, start.round(), start)
    basis = torch.stack(kept).double() if kept else start.new_zeros(0, len(start))
    vertex = walk(start, basis)
    chosen = vertex.round()
    moved = torch.where(inside, chosen - space.flatten(share), 0.0)
    note = {
        "directions": len(kept),
        "fractional": int((vertex != chosen).sum()),
        "normal_steps": float((basis @ moved).norm()),
    }
    up = space.unflatten(chosen, share)
    codes = {n: torch.where(up[n] > 0.5, above[n], below[n]) for n in grids}
    return Rounding(codes, {n: dict(note) for n in grids})


def walk(start: Tensor, basis: Tensor) -> Tensor:
    """From a point of the unit box to one with at most n entries inside (0, 1), at constant ``basis @ x``.

    ``start``: ``[D]``, float64. ``basis``: ``[n, D]``. In each round the entries that are still fractional are dealt
    into sets of n + 1; each set has a direction that the basis does not see, and moves along it until an entry
    meets its bound. Cost: about ``(n + 1) log D`` rounds of batched QR factors.
    """
    x, n = start.clone(), len(basis)
    while True:
        free = ((x > 0) & (x < 1)).nonzero().squeeze(1)
        sets = len(free) // (n + 1)
        if sets == 0:
            return x
        index = free[: sets * (n + 1)].view(sets, n + 1)
        columns = basis[:, index].permute(1, 2, 0)  # [sets, n + 1, n]
        null = torch.linalg.qr(columns, mode="complete").Q[:, :, -1] if n else torch.ones_like(x[index])
        here = x[index]
        ahead = torch.where(null > 0, (1 - here) / null, torch.where(null < 0, -here / null, torch.inf))
        behind = torch.where(null > 0, here / null, torch.where(null < 0, (here - 1) / null, torch.inf))
        forward, backward = ahead.min(1), behind.min(1)
        along = forward.values <= backward.values
        length = torch.where(along, forward.values, -backward.values).unsqueeze(1)
        there = (here + length * null).clamp(0, 1)
        hit = torch.where(along, forward.indices, backward.indices).unsqueeze(1)
        x[index] = there.scatter(1, hit, there.gather(1, hit).round())
