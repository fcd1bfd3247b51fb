"""Second derivatives: products with the Hessian or the Gauss-Newton matrix, and what follows from them.

:func:`products` gives the operator ``B`` of the raw weights. :func:`in_steps` gives it in the *step metric*: with
``x = w / Δ`` the operator is ``Δ B Δ``, so that an eigenvalue is the curvature in nats per squared step of that
direction. Eigenpairs here, trace and density in ``spectrum``, take either.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import space
from .errors import ThalwegError
from .objective import Objective
from .space import Point

Product = Callable[[Mapping[str, Tensor]], Point]


def products(objective: Objective, at: Mapping[str, Tensor], kind: str = "auto", retain: bool = True) -> Product:
    """A function ``v -> B v`` with ``B`` the Hessian or the GGN of the mean loss at a point.

    ``kind``: ``"hessian"``, ``"ggn"`` (generalised Gauss-Newton, Schraudolph 2002: positive semidefinite),
    or ``"auto"``: GGN for models, Hessian for plain functions, which have no outputs. ``retain`` keeps
    the graphs between products: faster, at the memory of all of them. Batches go through in the chunks of the
    objective. The raw metric: wrap in :func:`in_steps` for the step metric.

    Cost: about one gradient to build, then 1.5 to 1.9 gradients in chunks (1.0 gradient of whole batches) per product
    with the Hessian and 2 with the GGN (a convolutional network on two CPU cores); one gradient more without
    ``retain``. ReLU networks: the Hessian misses curvature in the kinks; the GGN too. Source: Pearlmutter 1994 (Hessian
    products).
    """
    if kind == "auto":
        kind = "ggn" if objective.has_outputs else "hessian"
    if kind not in ("hessian", "ggn"):
        raise ThalwegError(f"Unknown curvature {kind!r}. Use 'hessian', 'ggn' or 'auto'.")
    if kind == "ggn" and not objective.has_outputs:
        raise ThalwegError("A plain function has no outputs and so no Gauss-Newton matrix. Use 'hessian'.")
    extra = objective.reestimated(at) if objective.batchnorm == "reestimate" else None

    def build(batch: object) -> Product:
        leaves = {n: w.detach().clone().requires_grad_() for n, w in at.items()}
        names, inputs = list(leaves), list(leaves.values())
        with torch.enable_grad(), objective.differentiable_attention():
            output = objective.forward(leaves, batch, extra)
            if kind == "hessian":
                loss = objective.sample_losses(output, batch).sum() / objective.samples
                gradient = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)

                def hessian(v: Mapping[str, Tensor]) -> Point:
                    pairs = [
                        (g, v[n]) for g, n in zip(gradient, names, strict=True) if g is not None and g.requires_grad
                    ]
                    if not pairs:
                        return space.zeros_like(leaves)
                    heads, tails = zip(*pairs, strict=True)
                    out = torch.autograd.grad(heads, inputs, tails, retain_graph=True, allow_unused=True)
                    return _named(names, out, leaves)

                return hessian
            z = getattr(output, "logits", output)
            if not isinstance(z, Tensor):
                raise ThalwegError(f"The model returns {type(z).__name__}, not a tensor. Use kind='hessian'.")
            probe = torch.zeros_like(z, requires_grad=True)
            pulled = torch.autograd.grad(z, inputs, probe, create_graph=True, allow_unused=True)
            free = z.detach().requires_grad_()
            loss = objective.sample_losses(free, batch).sum() / objective.samples
            (slope,) = torch.autograd.grad(loss, free, create_graph=True)

        def ggn(v: Mapping[str, Tensor]) -> Point:
            pairs = [(p, v[n]) for p, n in zip(pulled, names, strict=True) if p is not None]
            if not pairs:
                return space.zeros_like(leaves)
            heads, tails = zip(*pairs, strict=True)
            with objective.differentiable_attention():
                (pushed,) = torch.autograd.grad(heads, probe, tails, retain_graph=True)
                (bent,) = torch.autograd.grad(slope, free, pushed, retain_graph=True)
                out = torch.autograd.grad(z, inputs, bent, retain_graph=True, allow_unused=True)
            return _named(names, out, leaves)

        return ggn

    built = [build(piece) for piece in objective.pieces] if retain else None

    def product(v: Mapping[str, Tensor]) -> Point:
        space.same_names(at, v)
        objective.cost["products"] += 1
        total = space.zeros_like(at)
        for i, piece in enumerate(objective.pieces):
            for name, part in (built[i] if built else build(piece))(v).items():
                total[name] += part
        return total

    return product


def _named(names: list[str], values: tuple[Tensor | None, ...], like: Mapping[str, Tensor]) -> Point:
    return {n: torch.zeros_like(like[n]) if x is None else x.detach() for n, x in zip(names, values, strict=True)}


def in_steps(product: Product, step: Mapping[str, Tensor]) -> Product:
    """The same operator in the step metric: ``x -> Δ B Δ x``."""
    return lambda x: space.mul(product(space.mul(x, step)), step)


@dataclass(frozen=True)
class Spectrum:
    """Top eigenpairs. ``values`` descending, in the operator's unit (nats per squared step for the step metric);
    ``residuals``: ‖Ax - λx‖ / λ₁; ``errors``: estimated absolute error of each value, min(r, r² / gap) with r the
    residual and gap the distance to the nearest other Ritz value."""

    values: tuple[float, ...]
    vectors: tuple[Point, ...]
    residuals: tuple[float, ...]
    iterations: int
    seed: int
    errors: tuple[float, ...] = ()

    @property
    def dimensions(self) -> float:
        """Effective number of directions among the pairs found: (Σλ)²/Σλ²."""
        positive = [v for v in self.values if v > 0]
        return sum(positive) ** 2 / sum(v * v for v in positive) if positive else 0.0


@dataclass
class Krylov:
    """Lanczos in progress: orthonormal rows ``basis``, diagonal ``alphas``, off-diagonal ``betas``."""

    basis: Tensor
    alphas: list[float]
    betas: list[float]

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (ascending) and eigenvectors of the tridiagonal matrix, float64."""
        t = torch.diag(torch.tensor(self.alphas, dtype=torch.float64))
        if len(self.alphas) > 1:
            off = torch.tensor(self.betas[: len(self.alphas) - 1], dtype=torch.float64)
            t += torch.diag(off, 1) + torch.diag(off, -1)
        return torch.linalg.eigh(t)

    def errors(self, values: Tensor, small: Tensor, which: list[int]) -> list[float]:
        """min(r, r² / gap) for some Ritz values (Parlett 1980, Symmetric Eigenvalue Problem, section 11.7)."""
        out = []
        for i in which:
            r = abs(self.betas[-1] * float(small[-1, i]))
            others = (values - values[i]).abs()
            others[i] = math.inf
            gap = float(others.min())
            out.append(min(r, r * r / gap) if gap > 0 else r)
        return out


def lanczos(
    product: Product,
    like: Mapping[str, Tensor],
    start: Tensor,
    iterations: int,
    done: Callable[[Krylov], bool] = lambda krylov: False,
    restart: Callable[[], Tensor] | None = None,
) -> Krylov:
    """Lanczos with full reorthogonalisation from a start vector, until ``done`` or an invariant subspace.

    ``restart`` gives a fresh vector to go on with behind an invariant subspace (repeated eigenvalues).
    """
    wide = torch.float64 if len(start) <= 4096 or start.dtype == torch.float64 else torch.float32
    krylov = Krylov(torch.empty(iterations, len(start), dtype=wide, device=start.device), [], [])
    krylov.basis[0] = start.to(wide) / start.to(wide).norm()
    for i in range(iterations):
        q = krylov.basis[i]
        r = space.flatten(product(space.unflatten(q, like))).to(wide)
        krylov.alphas.append(float(r @ q))
        stack = krylov.basis[: i + 1]
        r = _off(stack, r)
        beta = float(r.norm())
        krylov.betas.append(beta)
        if i + 1 == iterations or done(krylov):
            break
        if beta <= 1e-10 * max(abs(krylov.alphas[0]), 1e-30):
            if restart is None:
                break
            krylov.betas[-1] = 0.0
            r = _off(stack, restart().to(wide))
            beta = float(r.norm())
        torch.div(r, beta, out=krylov.basis[i + 1])
    return krylov


def _off(stack: Tensor, r: Tensor) -> Tensor:
    for _ in range(2):
        r = r - stack.T @ (stack @ r)
    return r


def top_pairs(
    product: Product,
    like: Mapping[str, Tensor],
    count: int,
    iterations: int = 0,
    seed: int = 0,
    *,
    tolerance: float | None = None,
) -> Spectrum:
    """Largest eigenvalues of a symmetric operator by Lanczos with full reorthogonalisation.

    Without a ``tolerance``: a fixed number of ``iterations`` (default ``2 * count + 8``); look at ``residuals``
    before trusting the lower pairs. With one: until ``errors`` of all ``count`` values are below ``tolerance``
    times the value (or times 1 % of the largest, for values near 0) at two checks four steps apart, at most
    ``iterations`` (default 500) steps; repeated eigenvalues are found too. If ``errors`` are above it at the
    end, it did not get there. In float32 no tolerance below 1e-6 can be kept.

    Eigenvectors are orthonormal. Cost: one product per iteration and as many vectors of memory.
    Source: Parlett 1980, chapter 13.
    """
    dimension = space.size(like)
    count = min(count, dimension)
    iterations = min(iterations or (2 * count + 8 if tolerance is None else 500), dimension)
    passed: list[int] = []

    def top(values: Tensor) -> list[int]:
        return values.argsort(descending=True)[:count].tolist()

    def settled(krylov: Krylov) -> bool:
        steps = len(krylov.alphas)
        if steps < count + 1 or (steps % 4 and krylov.betas[-1] > 0):
            return False
        values, small = krylov.ritz()
        floor = 0.01 * float(values.abs().max())
        good = all(
            e <= (tolerance or 0.0) * max(abs(float(values[i])), floor)
            for i, e in zip(top(values), krylov.errors(values, small, top(values)), strict=True)
        )
        passed[:] = [*passed, steps] if good else []
        return len(passed) >= 2

    restarts = itertools.count(1)

    def fresh() -> Tensor:
        return space.flatten(space.random_like(like, seed + 7919 * next(restarts), "normal"))

    start = space.flatten(space.random_like(like, seed, "normal"))
    if tolerance is None:
        krylov = lanczos(product, like, start, iterations)
    else:
        krylov = lanczos(product, like, start, iterations, settled, fresh)
    size = len(krylov.alphas)
    values, small = krylov.ritz()
    keep = top(values)
    stack = krylov.basis[:size]
    vectors = tuple(space.unflatten(small[:, i].to(stack.dtype) @ stack, like) for i in keep)
    largest = max(float(values.abs().max()), 1e-30)
    residuals = tuple(abs(krylov.betas[-1] * float(small[-1, i])) / largest for i in keep)
    errors = tuple(krylov.errors(values, small, keep))
    return Spectrum(tuple(float(values[i]) for i in keep), vectors, residuals, size, seed, errors)


def visibility(product: Product, displacement: Mapping[str, Tensor], rise: float) -> float:
    """Curvature visibility χ = ½ dᵀB d / (L(q) - L(w)): how much of the true rise a quadratic sees.

    Near 1: the wall is visible to ``B``. Much below 1: the local objective is blind to it. Cost: one product.
    Source: ``docs/theory.md``, protocol 8.6. Meaningless where the rise is within the noise.
    """
    if rise == 0:
        return float("nan")
    return 0.5 * space.dot(displacement, product(displacement)) / rise
