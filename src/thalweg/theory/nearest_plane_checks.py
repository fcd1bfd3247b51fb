"""Error feedback is Babai's nearest plane: the two-dimensional formula, and random Hessians."""

from __future__ import annotations

import math

import torch

from ..landscapes.straight import straight
from ..point import quantize
from .check import Check
from .evidence import Evidence
from .failure import gptq2d
from .failure_checks import random_valleys
from .nearest_plane import babai, library_gptq
from .valleys import normal, uniform

TEST = "tests/truth/test_failure.py::"


def check_gptq_formula(instances: int = 4000, seed: int = 0) -> Check:
    """The x → y formula equals the library's GPTQ, on bare Hessians and on the landscape's objective."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    valley = random_valleys(gen, instances)
    lam = 10 ** float(uniform(gen, (1,), -3, 0))
    c, s = valley.theta.cos(), valley.theta.sin()
    tau = torch.stack([c, s], -1)
    mine = gptq2d(valley, lam)
    # the library damps by a multiple of the mean diagonal, here ½
    theirs = library_gptq(valley.w, tau.unsqueeze(2) * tau.unsqueeze(1), damping=2 * lam)
    out.count(instances, int((mine != theirs).any(1).sum()))
    few, wrong = min(20, instances), 0
    for i in range(few):
        land = straight(
            float(valley.theta[i]),
            along=-float(valley.u[i]),
            height=float(valley.zeta[i]),
            radius=0.9,
            floor=0.8,
        )
        point = quantize(land.objective(), "w4t", "gptq", grids=land.grids(), order="natural", damping=2 * lam)
        wrong += int(not torch.equal(point.weights["w"], mine[i]))
    out.count(few, wrong)
    inside = (valley.coordinates(mine.unsqueeze(1))[1].abs() <= 0.9).double().mean()
    return out.check(
        "GPTQ in two dimensions",
        "q_x = round(w_x), q_y = round(w_y + H_xy/H_yy (w_x - q_x)) is what the library's GPTQ returns.",
        "ours",
        TEST + "test_gptq_formula",
        damping=lam,
        share_inside_09=inside,
    )


def check_babai(instances: int = 3000, seed: int = 0) -> Check:
    """T3: the library's GPTQ is Babai's nearest plane, with and without clipping, and its error is within
    ¼Σ pivots."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    for size in (2, 3, 5, 8, 16, 32):
        count = math.ceil(instances / 6)
        a = normal(gen, count, size, 2 * size)
        hessian = a @ a.transpose(1, 2) / (2 * size)
        hessian = hessian + 0.05 * torch.eye(size, dtype=torch.float64)
        w = 2 * normal(gen, count, size)
        for levels in (256, 4):
            mine = library_gptq(w, hessian, levels, damping=0.0)
            theirs = babai(w, hessian, -levels / 2, levels / 2 - 1)
            wrong = (mine != theirs).any(1)
            if levels == 256:
                e = mine - w
                error = torch.einsum("gi,gij,gj->g", e, hessian, e)
                lower = torch.linalg.cholesky(hessian.flip(1, 2)).diagonal(dim1=1, dim2=2)
                out.add(error, 0.25 * lower.square().sum(1), wrong)
            else:
                out.count(count, int(wrong.sum()))
    return out.check(
        "GPTQ is Babai (T3)",
        "The library's GPTQ returns Babai's nearest plane, last basis vector first, clipped or not; "
        "unclipped its error is at most a quarter of the sum of the pivots.",
        "literature",
        TEST + "test_babai",
        note="Chen et al., arXiv:2507.18553. Ratio: ¼Σ pivots over the error.",
    )


CHECKS = (check_gptq_formula, check_babai)
