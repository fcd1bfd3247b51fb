"""Arithmetic on points: dictionaries of tensors, named like the parameters they stand for.

Every function returns new tensors and leaves its arguments alone. Sums are accumulated in
float64, so that distances over millions of weights do not depend on the order of addition.
Lengths are *rms steps* wherever a ``step`` is given: each displacement divided by its own grid
step, then the root mean square over all entries.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .errors import ThalwegError

Point = dict[str, Tensor]


def same_names(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Raise if two points do not hold the same tensors with the same shapes."""
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ThalwegError(f"Two points differ in their tensors: {odd[:4]}. Use points of the same model.")
    for name in a:
        if a[name].shape != b[name].shape:
            raise ThalwegError(
                f"Tensor {name!r} has shape {tuple(a[name].shape)} in one point and "
                f"{tuple(b[name].shape)} in the other. Use points of the same model."
            )


def each(function: Callable[..., Tensor], *points: Mapping[str, Tensor]) -> Point:
    """Apply a function tensor by tensor over points with equal names."""
    first = points[0]
    for other in points[1:]:
        same_names(first, other)
    return {name: function(*(p[name] for p in points)) for name in first}


def clone(a: Mapping[str, Tensor]) -> Point:
    """Detached copies."""
    return {name: value.detach().clone() for name, value in a.items()}


def zeros_like(a: Mapping[str, Tensor]) -> Point:
    """The origin of the space of ``a``."""
    return each(torch.zeros_like, a)


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor], scale: float = 1.0) -> Point:
    """``a + scale * b``."""
    return each(lambda x, y: torch.add(x, y, alpha=scale), a, b)


def sub(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Point:
    """``a - b``."""
    return each(torch.sub, a, b)


def mul(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Point:
    """Elementwise product."""
    return each(torch.mul, a, b)


def div(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Point:
    """Elementwise quotient; 0/0 counts as 0 (a weight that cannot move has moved no steps)."""
    return each(lambda x, y: torch.where(y == 0, torch.zeros_like(x), x / torch.where(y == 0, 1, y)), a, b)


def scale(a: Mapping[str, Tensor], factor: float) -> Point:
    """``factor * a``."""
    return each(lambda x: x * factor, a)


def line(a: Mapping[str, Tensor], b: Mapping[str, Tensor], t: float) -> Point:
    """The point ``a + t (b - a)``; exactly ``a`` at t=0 and exactly ``b`` at t=1."""
    if t == 0.0:
        return clone(a)
    if t == 1.0:
        return clone(b)
    return each(lambda x, y: x + t * (y - x), a, b)


def plane(origin: Mapping[str, Tensor], u: Mapping[str, Tensor], v: Mapping[str, Tensor], s: float, t: float) -> Point:
    """The point ``origin + s u + t v``."""
    return each(lambda o, x, y: o + s * x + t * y, origin, u, v)


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Inner product over all entries, accumulated in float64."""
    same_names(a, b)
    return float(sum(float((a[n].double() * b[n].double()).sum()) for n in a))


def norm(a: Mapping[str, Tensor]) -> float:
    """Euclidean length."""
    return math.sqrt(max(dot(a, a), 0.0))


def size(a: Mapping[str, Tensor]) -> int:
    """Number of entries."""
    return sum(value.numel() for value in a.values())


def rms(displacement: Mapping[str, Tensor], step: Mapping[str, Tensor] | None = None) -> float:
    """Root mean square of the entries, in grid steps where ``step`` is given."""
    x = displacement if step is None else div(displacement, step)
    count = size(x)
    return norm(x) / math.sqrt(count) if count else 0.0


def cosine(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Cosine of the angle between two displacements; 0 where one of them vanishes."""
    length = norm(a) * norm(b)
    return dot(a, b) / length if length > 0 else 0.0


def flatten(a: Mapping[str, Tensor]) -> Tensor:
    """One long vector, in the order of the dictionary."""
    return torch.cat([value.reshape(-1) for value in a.values()]) if a else torch.zeros(0)


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Point:
    """Inverse of :func:`flatten`."""
    out: Point = {}
    offset = 0
    for name, value in like.items():
        out[name] = vector[offset : offset + value.numel()].view(value.shape).to(value.dtype)
        offset += value.numel()
    if offset != vector.numel():
        raise ThalwegError(f"A vector of {vector.numel()} entries does not fit a point of {offset}.")
    return out


def project(displacement: Mapping[str, Tensor], basis: Sequence[Mapping[str, Tensor]]) -> Point:
    """Part of a displacement in the span of an orthonormal basis."""
    out = zeros_like(displacement)
    for direction in basis:
        out = add(out, direction, dot(displacement, direction))
    return out


def generator(seed: int, name: str = "") -> torch.Generator:
    """A CPU generator that depends on the seed and a name only, so results do not depend on order."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def random_like(a: Mapping[str, Tensor], seed: int, kind: str = "normal") -> Point:
    """Seeded noise of unit variance shaped like ``a``; the same bits on every device.

    ``normal``: Gaussian. ``rounding``: uniform in ±√3, the law of plain rounding errors scaled to
    unit variance. ``sign``: ±1.
    """
    out: Point = {}
    for name, value in a.items():
        gen = generator(seed, name)
        if kind == "normal":
            x = torch.randn(value.shape, generator=gen)
        elif kind == "rounding":
            x = (torch.rand(value.shape, generator=gen) * 2 - 1) * math.sqrt(3.0)
        elif kind == "sign":
            x = torch.randint(0, 2, value.shape, generator=gen).float() * 2 - 1
        else:
            raise ThalwegError(f"Unknown kind of noise {kind!r}. Use 'normal', 'rounding' or 'sign'.")
        out[name] = x.to(value.device, value.dtype)
    return out


def check_finite(a: Mapping[str, Tensor]) -> None:
    """Raise, naming the tensor, if a weight is NaN or infinite. Cost: one pass (a finite sum has finite terms)."""
    for name, value in a.items():
        if math.isfinite(float(value.sum(dtype=torch.float32 if value.is_floating_point() else None))):
            continue
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise ThalwegError(
                f"Tensor {name!r} has {bad} NaN or infinite entries of {value.numel()}. "
                "Repair or retrain the model before quantizing it."
            )


def fingerprint(a: Mapping[str, Tensor]) -> str:
    """Hex digest over names, shapes, types and bits."""
    h = hashlib.sha256()
    for name in sorted(a):
        value = a[name].detach().cpu().contiguous()
        h.update(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
        h.update(value.view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return h.hexdigest()[:16]
