"""Second derivatives: products with the Hessian or the Gauss-Newton matrix, and what follows from them.

All spectra are taken in the *step metric*: with ``x = w / Δ``, the operator is ``Δ B Δ``, so that an
eigenvalue is the curvature in nats per squared step of that direction.
"""

from __future__ import annotations

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
    each batch's graph between products: faster, at the memory of one graph per batch.

    Cost: about one gradient to build, then about two gradients per product. ReLU networks: the Hessian
    misses curvature in the kinks; the GGN too.
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

    built = [build(batch) for batch in objective.batches] if retain else None

    def product(v: Mapping[str, Tensor]) -> Point:
        space.same_names(at, v)
        objective.cost["products"] += 1
        total = space.zeros_like(at)
        for i, batch in enumerate(objective.batches):
            total = space.add(total, (built[i] if built else build(batch))(v))
        return total

    return product


def _named(names: list[str], values: tuple[Tensor | None, ...], like: Mapping[str, Tensor]) -> Point:
    return {n: torch.zeros_like(like[n]) if x is None else x.detach() for n, x in zip(names, values, strict=True)}


def in_steps(product: Product, step: Mapping[str, Tensor]) -> Product:
    """The same operator in the step metric: ``x -> Δ B Δ x``."""
    return lambda x: space.mul(product(space.mul(x, step)), step)


@dataclass(frozen=True)
class Spectrum:
    """Top eigenpairs. ``values`` descending, in nats per squared step; ``residuals``: ‖Ax - λx‖ / λ₁;
    ``dimensions``: effective number (Σλ)²/Σλ² of those found."""

    values: tuple[float, ...]
    vectors: tuple[Point, ...]
    residuals: tuple[float, ...]
    iterations: int
    seed: int

    @property
    def dimensions(self) -> float:
        """Effective number of directions among the pairs found."""
        positive = [v for v in self.values if v > 0]
        return sum(positive) ** 2 / sum(v * v for v in positive) if positive else 0.0


def top_pairs(product: Product, like: Mapping[str, Tensor], count: int, iterations: int = 0, seed: int = 0) -> Spectrum:
    """Largest eigenvalues of a symmetric operator by Lanczos with full reorthogonalisation.

    ``iterations`` defaults to ``2 * count + 8``. Eigenvectors are orthonormal. Cost: that many products
    and as many vectors of memory. Look at ``residuals`` before trusting the lower pairs.
    """
    dimension = space.size(like)
    iterations = min(iterations or 2 * count + 8, dimension)
    q = space.flatten(space.random_like(like, seed, "normal"))
    wide = torch.float64 if dimension <= 4096 or q.dtype == torch.float64 else torch.float32
    q = q.to(wide) / q.to(wide).norm()
    basis, alphas, betas = [q], [], []
    for i in range(iterations):
        r = space.flatten(product(space.unflatten(basis[i], like))).to(wide)
        alphas.append(float(r @ basis[i]))
        for _ in range(2):
            stack = torch.stack(basis)
            r = r - stack.T @ (stack @ r)
        beta = float(r.norm())
        betas.append(beta)
        if beta <= 1e-10 * max(abs(alphas[0]), 1e-30) or i + 1 == iterations:
            break
        basis.append(r / beta)
    size = len(alphas)
    t = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    if size > 1:
        off = torch.tensor(betas[: size - 1], dtype=torch.float64)
        t += torch.diag(off, 1) + torch.diag(off, -1)
    values, small = torch.linalg.eigh(t)
    keep = values.argsort(descending=True)[:count]
    stack = torch.stack(basis[:size])
    vectors = tuple(space.unflatten((small[:, i].to(wide) @ stack), like) for i in keep.tolist())
    top = max(float(values.abs().max()), 1e-30)
    residuals = tuple(abs(betas[size - 1] * float(small[-1, i])) / top for i in keep.tolist())
    return Spectrum(tuple(float(values[i]) for i in keep.tolist()), vectors, residuals, size, seed)


@dataclass(frozen=True)
class Trace:
    """Step-weighted trace ``tr(Δ B Δ)`` in nats, with the standard error over probes.

    ``forecast_nats``: ``trace / 24``, the mean loss increase that a quadratic predicts for plain rounding
    (errors uniform in a step have variance 1/12).
    """

    trace: float
    stderr: float
    probes: int
    seed: int

    @property
    def forecast_nats(self) -> float:
        """Loss increase of plain rounding in the quadratic model."""
        return self.trace / 24


def step_trace(product_in_steps: Product, like: Mapping[str, Tensor], probes: int = 8, seed: int = 0) -> Trace:
    """Hutchinson's estimate with random signs (1990). Cost: ``probes`` products."""
    values = []
    for i in range(probes):
        z = space.random_like(like, seed + i, "sign")
        values.append(space.dot(z, product_in_steps(z)))
    data = torch.tensor(values, dtype=torch.float64)
    spread = float(data.std() / probes**0.5) if probes > 1 else float("inf")
    return Trace(float(data.mean()), spread, probes, seed)


def visibility(product: Product, displacement: Mapping[str, Tensor], rise: float) -> float:
    """Curvature visibility χ = ½ dᵀB d / (L(q) - L(w)): how much of the true rise a quadratic sees.

    Near 1: the wall is visible to ``B``. Much below 1: the local objective is blind to it. Cost: one product.
    Source: ``docs/theory.md``, protocol 8.6. Meaningless where the rise is within the noise.
    """
    if rise == 0:
        return float("nan")
    return 0.5 * space.dot(displacement, product(displacement)) / rise
