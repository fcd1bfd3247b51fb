"""Kronecker factors of each layer's Gauss-Newton matrix at any point, and rounding with both of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .distill import Teacher
from .errors import ThalwegError
from .grid import Grid, Matrices
from .layers import is_transposed_linear, patches, second_moment
from .objective import Objective
from .space import Point, generator


@dataclass(frozen=True)
class Factors:
    """``H ≈ B ⊗ A`` of one layer: ``inputs`` A = E[x xᵀ] ``[channel groups, columns, columns]`` over positions,
    ``outputs`` B = E[Σ g gᵀ] ``[channel groups, rows, rows]``, the sum over a sample's positions."""

    inputs: Tensor
    outputs: Tensor

    def diagonal(self) -> Tensor:
        """Diagonal of H in the shape of the weight matrix, ``[rows, columns]``."""
        a, b = (m.diagonal(dim1=1, dim2=2) for m in (self.inputs, self.outputs))
        return (b.unsqueeze(2) * a.unsqueeze(1)).flatten(0, 1)


def collect(
    objective: Objective, weights: Mapping[str, Tensor], *, draws: int = 1, seed: int = 0
) -> dict[str, Factors]:
    """Factors of all layers at a point, over the calibration data, without labels (embeddings have none: their
    inputs are one-hot).

    Gauss-Newton by sampling: g is the gradient of ``-log q(y)`` at the layer's output with y drawn from the
    model's own distribution q at that point (Martens and Grosse 2015, arXiv:1503.05671, section 5; at the
    *rounded* model here, at the float model in YAQA, arXiv:2505.22988, section 3). Positions of a sample count
    as independent. Cost: one forward and ``draws`` backwards over the calibration data. Do not trust it where few
    samples meet many outputs: B then has low rank, and ``output_damping`` decides.
    """
    sums: dict[str, list[Any]] = {}
    live: dict[str, bool] = {"first": True}
    layers = {n: objective.layers[n] for n in weights if not objective.layers[n].embedding}
    modules = {n: objective.model.get_submodule(layer.module) for n, layer in layers.items()}
    rng = generator(seed, "kronecker")
    samples = 0
    objective.cost["gradients"] += 1
    with _watched(modules, sums, live), torch.enable_grad():
        for batch in objective.calibration:
            leaves = {n: w.detach().clone().requires_grad_() for n, w in weights.items()}
            output = objective.forward(leaves, batch)
            logits = getattr(output, "logits", output).float()
            if logits.ndim == 4:
                logits = logits.movedim(1, -1)
            logits = logits.reshape(-1, logits.shape[-1])
            samples += len(logits)
            for draw in range(draws):
                loss = sampled_loss(logits, rng)
                torch.autograd.grad(loss, list(leaves.values()), retain_graph=draw + 1 < draws, allow_unused=True)
    found = {}
    for name, (a, positions, b) in sums.items():
        if b is not None:
            found[name] = Factors(a / max(positions, 1), b / (draws * max(samples, 1)))
    return found


def sampled_loss(logits: Tensor, rng: torch.Generator) -> Tensor:
    """Sum of ``-log q(y)`` over rows ``[rows, classes]`` with labels y drawn from q itself; for a single output,
    the same for a normal law of variance one. The mean square of its gradient is the Fisher matrix."""
    if logits.shape[1] == 1:
        return (logits * torch.randn(logits.shape, generator=rng).to(logits.device)).sum()
    uniform = torch.rand((len(logits), 1), generator=rng).to(logits.device)
    cumulative = logits.detach().softmax(-1).cumsum(-1)
    label = (cumulative < uniform).sum(-1).clamp(max=logits.shape[1] - 1)
    return torch.nn.functional.cross_entropy(logits, label, reduction="sum")


@contextmanager
def _watched(modules: dict[str, nn.Module], sums: dict[str, list[Any]], live: dict[str, bool]) -> Iterator[None]:
    """Inside, every pass adds its input and output-gradient moments to ``sums``."""

    def after(name: str, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        entry = sums.setdefault(name, [0.0, 0, None])
        rows = patches(module, arguments[0].detach())
        entry[0] = entry[0] + second_moment(rows)
        entry[1] += rows.shape[1]
        groups = rows.shape[0]

        def backward(gradient: Tensor) -> None:
            g = gradient if isinstance(module, nn.Linear) or is_transposed_linear(module) else gradient.movedim(1, -1)
            moment = second_moment(g.reshape(-1, groups, g.shape[-1] // groups).transpose(0, 1))
            entry[2] = moment if entry[2] is None else entry[2] + moment

        if output.requires_grad:
            output.register_hook(backward)

    handles = [m.register_forward_hook(partial(after, n)) for n, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mean(parts: Sequence[dict[str, Factors]], shares: Sequence[float]) -> dict[str, Factors]:
    """Weighted mean of factors collected at several points, each factor by itself."""
    total = sum(shares)
    blend = lambda name, field: sum(s / total * getattr(p[name], field) for p, s in zip(parts, shares, strict=True))
    return {n: Factors(blend(n, "inputs"), blend(n, "outputs")) for n in parts[0]}


def feedback(moment: Tensor, damping: float, name: str = "") -> tuple[Tensor, Tensor]:
    """Order (largest diagonal first, ``[groups, n]``) and unit upper triangular error feedback ``[groups, n, n]``
    of a positive semidefinite matrix ``[groups, n, n]``.

    ``damping`` times the mean diagonal is added, ten times more until a Cholesky factor exists. Cost: n³.
    """
    matrix = moment.double()
    if not bool(torch.isfinite(matrix).all()):
        raise ThalwegError(f"The moments of {name!r} are NaN or infinite. Check the calibration data.")
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(dim=1, descending=True, stable=True)
    index = order.unsqueeze(2).expand_as(matrix)
    matrix = matrix.gather(1, index).gather(2, index.transpose(1, 2))
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    size = diagonal.mean(1).clamp(min=1e-300)[:, None, None]
    while True:
        scaled = matrix / size + damping * eye
        lower, info = torch.linalg.cholesky_ex(scaled.flip(1, 2))
        if not int(info.max()) and bool(torch.isfinite(lower).all()):
            break
        damping = damping * 10 if damping > 0 else 1e-8
        if damping > 1e6:
            raise ThalwegError(f"The moments of {name!r} have no Cholesky factor. Use more calibration samples.")
    inverse = torch.linalg.solve_triangular(lower.flip(1, 2), eye.expand_as(matrix), upper=True)
    return order, inverse / inverse.diagonal(dim1=1, dim2=2).unsqueeze(2)


def two_sided(matrix: Tensor, across: Tensor, along: Tensor, form: Matrices, grid: Grid, block: int = 0) -> Tensor:
    """Codes ``[groups, rows, n]`` of Babai's nearest plane for ``B ⊗ A``: every error is fed to the entries that
    are below *and* to the right, ``t[i', j'] -= across[i, i'] along[j, j'] error``.

    Entries on one anti-diagonal do not see each other and are rounded together, within a block of columns; the
    columns that follow are updated block by block. The same result as one entry after the other, in any order
    from the upper left. ``form``: scale, zero point and table of every entry, shaped like ``matrix``.
    Cost: ``n/block · (rows + block)`` small steps.
    """
    groups, rows, n = matrix.shape
    block = block or (128 if rows <= 64 else 64 if rows <= 256 else 32)
    work = matrix.clone()
    codes = torch.empty(matrix.shape, dtype=torch.uint8, device=matrix.device)
    across_t = across.transpose(1, 2).contiguous()
    for start in range(0, n, block):
        width = min(block, n - start)
        cut = slice(start, start + width)
        part = work[:, :, cut].contiguous()
        scale, zero, table = (None if m is None else m[:, :, cut].reshape(groups, -1) for m in form)
        assert scale is not None
        chosen, errors = torch.empty_like(part), torch.zeros_like(part)
        flat, flat_codes, flat_errors = (t.view(groups, -1) for t in (part, chosen, errors))
        turned = along[:, cut, cut].flip(1).contiguous()
        for d in range(rows + width - 1):
            low, high = max(0, d - width + 1), min(rows, d + 1)
            first = low * width + d - low  # entries (i, d - i) are width - 1 apart in memory
            entries = slice(first, first + (high - low - 1) * (width - 1) + 1, max(width - 1, 1))
            value, s = flat[:, entries], scale[:, entries]
            unit = value / s if zero is None else value / s + zero[:, entries]
            code, level = grid.pick(unit, None if table is None else table[:, entries])
            error = value - (level if zero is None else level - zero[:, entries]) * s
            flat_codes[:, entries], flat_errors[:, entries] = code.to(part.dtype), error
            left = across_t[:, low:, low:high] * error.unsqueeze(1)
            part[:, low:].baddbmm_(left, turned[:, width - 1 - d + low : width - 1 - d + high], alpha=-1)
        codes[:, :, cut] = chosen.to(torch.uint8)
        if start + width < n:
            work[:, :, start + width :].baddbmm_(torch.bmm(across_t, errors), along[:, cut, start + width :], alpha=-1)
    return codes


def round_with(
    weight: Tensor, grid: Grid, factors: Factors, damping: float, output_damping: float, name: str = ""
) -> Tensor:
    """Codes of a weight with both factors, in the shape of the weight. ``output_damping`` inf: rows by themselves.
    Cost: two factorizations and :func:`two_sided`."""
    groups, columns, _ = factors.inputs.shape
    split = lambda m: m.reshape(groups, -1, columns)
    alone = output_damping == float("inf")
    order, along = feedback(factors.inputs, damping, name)
    outputs = torch.ones_like(factors.outputs[:, 0]).diag_embed() if alone else factors.outputs
    rows_order, across = feedback(outputs, 0.0 if alone else output_damping, name)
    place = lambda m: m.gather(1, rows_order.unsqueeze(2).expand_as(m)).gather(2, order.unsqueeze(1).expand_as(m))
    kind = torch.float64 if weight.numel() <= 4096 else torch.float32
    form = Matrices(*(None if m is None else place(split(m)) for m in grid.matrices(kind)))  # type: ignore[arg-type]
    matrix = place(split(grid.layout.matrix(weight)).to(kind))
    chosen = two_sided(matrix, across.to(kind), along.to(kind), form, grid)
    back = torch.empty_like(chosen).scatter_(2, order.unsqueeze(1).expand_as(chosen), chosen)
    out = torch.empty_like(back).scatter_(1, rows_order.unsqueeze(2).expand_as(back), back)
    return grid.layout.tensor(out.reshape(grid.layout.rows, columns))


def newton_target(teacher: Teacher, at: Point, factors: Mapping[str, Factors], damping: float) -> Point:
    """``at - B⁻¹ G A⁻¹`` with G the gradient of the divergence at a point: where its quadratic model is lowest.
    Both factors damped. Cost: one gradient, two factorizations per layer."""
    _, gradient = teacher.gradient(at)
    out = {}
    for name, weight in at.items():
        if name not in factors:
            out[name] = weight
            continue
        f, axis = factors[name], teacher.objective.axes[name]
        inverse = []
        for moment in (f.inputs, f.outputs):
            m = moment.double()
            size = m.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
            eye = torch.ones_like(m[:, 0]).diag_embed() * size[:, None, None]
            inverse.append(torch.linalg.inv(m + damping**0.5 * eye))
        moved = gradient[name].movedim(axis, 0)
        g = moved.reshape(f.inputs.shape[0], -1, f.inputs.shape[1]).double()
        step = (inverse[1] @ g @ inverse[0]).reshape(moved.shape).movedim(0, axis)
        out[name] = weight - step.to(weight.dtype)
    return out
