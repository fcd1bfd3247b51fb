"""What straight-through training pays for its flips: an identity, a certificate and a rate.

Let ``w_{k+1} = w_k - d_k`` with ``d_k = η_k g_k``, *any* gradients g, ``q_k`` the nearest level of a fixed
codebook, x any point, and ``V_k = ½‖w_k - x‖² - ½‖w_k - q_k‖²``. Then, exactly,

    Σ ⟨d_k, q_k - x⟩ = V_0 - V_K + Σ_crossings gap·b                                   (6.6)

where b is how far the latent weight lies beyond a threshold that it crossed in that step. With convex loss
the left side bounds the loss of the deployed points: (6.7), (6.8). Proofs: docs/theory/regret.md. Ours;
related inequalities: Bai et al. 2018 (arXiv:1810.00861), Dockhorn et al. 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import space
from ..errors import ThalwegError
from ..grid import Grid
from .codebook import Codebook


def potential(w: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """``½(w - x)² - ½(w - q)²`` per weight."""
    return 0.5 * ((w - x).square() - (w - q).square())


@dataclass(frozen=True)
class Step:
    """One update, per weight. ``regret``: ``d (q - x)``. ``cost``: ``Σ gap·b``. ``ceiling``: ``Σ gap·|d|``,
    which bounds the cost because no overshoot exceeds the step. ``moved``: whether the code changed."""

    regret: Tensor
    cost: Tensor
    ceiling: Tensor
    moved: Tensor


def step_terms(book: Codebook, x: Tensor, before: Tensor, displacement: Tensor, after: Tensor) -> Step:
    """Both sides' summands for one update ``before -> after`` by ``-displacement``. Cost: two roundings."""
    old, new = book.nearest(before), book.nearest(after)
    q = book.value(old)
    jump = (book.value(new) - q).abs()
    return Step(displacement * (q - x), book.overshoot(old, new, after), jump * displacement.abs(), old != new)


@dataclass(frozen=True)
class RegretReport:
    """Both sides of (6.6) over a run, in units of loss × learning rate.

    ``regret``: left side. ``first``, ``last``: V_0 and V_K. ``cost``: ``Σ gap·b``. ``ceiling``: ``Σ
    gap·|d|``. ``distance``: ``½‖w_K - q_K‖²``. ``rates``: ``Σ η_k`` as inferred from d and g. ``flips``: per
    step. ``unlike_sgd``: largest ``‖d - ηg‖ / ‖d‖``; above 1e-3 the update was not plain SGD (momentum, Adam,
    weight decay) and the left side is not the gradient's. ``doubtful``: roundings where the grid's float32
    arithmetic deployed another level than float64 does (ties), counted at the start of steps.
    """

    steps: int
    regret: float
    first: float
    last: float
    cost: float
    ceiling: float
    distance: float
    rates: float
    flips: tuple[int, ...]
    unlike_sgd: float
    doubtful: int

    @property
    def right(self) -> float:
        """Right side of (6.6)."""
        return self.first - self.last + self.cost

    @property
    def relative_error(self) -> float:
        """``|left - right|`` over the largest single term of either side."""
        size = max(abs(self.regret), abs(self.first), abs(self.last), self.cost)
        return abs(self.regret - self.right) / size if size > 0 else 0.0

    @property
    def gamma(self) -> float:
        """Γ: flip cost per unit of training, ``Σ gap·b / Σ η``, in units of loss."""
        return self.cost / self.rates if self.rates > 0 else 0.0

    @property
    def transition_bound(self) -> float:
        """(6.8): Γ is at most ``Σ gap·|d| / Σ η``: transition rate × gap × gradient."""
        return self.ceiling / self.rates if self.rates > 0 else 0.0

    @property
    def excess_bound(self) -> float:
        """(6.7): with convex loss, ``Σ η (f(q_k) - f(x)) / Σ η`` is at most this (V_K enters through its
        floor)."""
        return (self.first + self.distance) / self.rates + self.gamma if self.rates > 0 else 0.0


class RegretAudit:
    """Attach to a run: ``train(..., audit=RegretAudit(point.grids))``; then read :meth:`report`.

    Called with (step, latent before, gradient, latent after), dictionaries by tensor name. ``comparator``:
    the point x (the first latent weights where absent: the river point). ``rate``: the learning rate where it
    is constant and known; the left side then uses ``η·g``, otherwise the realised displacement. All
    arithmetic is float64 with its own nearest rounding. Cost per step: three roundings and two copies of the
    weights.
    """

    def __init__(
        self,
        grids: Mapping[str, Grid | Codebook],
        comparator: Mapping[str, Tensor] | None = None,
        rate: float | None = None,
    ):
        self.grids = dict(grids)
        self.books = {n: Codebook.of(g) if isinstance(g, Grid) else g for n, g in grids.items()}
        self.comparator = None if comparator is None else {n: t.double() for n, t in space.clone(comparator).items()}
        self.rate = rate
        self._latest: dict[str, Tensor] = {}
        self._regret = self._first = self._cost = self._ceiling = self._rates = self._unlike = 0.0
        self._flips: list[int] = []
        self._doubtful = 0

    def __call__(
        self,
        step: int,
        before: Mapping[str, Tensor],
        gradient: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
    ) -> None:
        """Take in one update. Raises :class:`ThalwegError` where a step is missing."""
        missing = sorted(self.books.keys() - before.keys())
        if missing:
            raise ThalwegError(f"The audit has grids for {missing[:4]} but the step has no such weights. Pass both.")
        w = {n: before[n].detach().double() for n in self.books}
        if self._latest and any(not torch.equal(w[n], self._latest[n]) for n in w):
            raise ThalwegError(
                f"Step {step} does not start where the last one ended. "
                "Feed the audit every update, and give a resumed run a new audit."
            )
        if self.comparator is None:
            self.comparator = space.clone(w)
        if not self._flips:
            self._first = self._potential(w)
        y = {n: after[n].detach().double() for n in self.books}
        g = {n: gradient[n].detach().double() for n in self.books}
        d = space.sub(w, y)
        squared = space.dot(g, g)
        eta = self.rate if self.rate is not None else (space.dot(d, g) / squared if squared > 0 else 0.0)
        length = space.norm(d)
        if length > 0:
            self._unlike = max(self._unlike, space.norm(space.add(d, g, -eta)) / length)
        flips = 0
        for name, book in self.books.items():
            used = d[name] if self.rate is None else eta * g[name]
            terms = step_terms(book, self.comparator[name], w[name], used, y[name])
            self._regret += float(terms.regret.sum())
            self._cost += float(terms.cost.sum())
            self._ceiling += float(terms.ceiling.sum())
            flips += int(terms.moved.sum())
            grid = self.grids[name]
            if isinstance(grid, Grid):
                self._doubtful += int((grid.encode(before[name]).long() != book.nearest(w[name])).sum())
        self._rates += eta
        self._flips.append(flips)
        self._latest = space.clone(y)

    def _potential(self, w: Mapping[str, Tensor]) -> float:
        assert self.comparator is not None
        return sum(float(potential(w[n], b.round(w[n]), self.comparator[n]).sum()) for n, b in self.books.items())

    def report(self) -> RegretReport:
        """Both sides so far. Cost: one rounding."""
        if not self._flips:
            raise ThalwegError("The audit has seen no step. Attach it with train(..., audit=...).")
        far = sum(float((self._latest[n] - b.round(self._latest[n])).square().sum()) for n, b in self.books.items())
        return RegretReport(
            len(self._flips),
            self._regret,
            self._first,
            self._potential(self._latest),
            self._cost,
            self._ceiling,
            far / 2,
            self._rates,
            tuple(self._flips),
            self._unlike,
            self._doubtful,
        )


def certificate(excess: float, first: float, rho: float, rate: float, gamma: float) -> float:
    """(6.7): with convex loss and ``f(q) - f(x) ≥ excess`` outside the basin, training enters it within
    ``(V_0 + ½ρ²) / (η (excess - Γ))`` steps. Infinite where the flip cost Γ reaches ``excess``: no
    promise."""
    return (first + 0.5 * rho**2) / (rate * (excess - gamma)) if gamma < excess else float("inf")


def rms_radius_bound(gap: float, flips: Tensor, operator: Tensor, transient: Tensor) -> Tensor:
    """(6.8) for the wall ``½μ‖n‖²``: root mean square normal distance of the deployed points.

    ``r ≤ A/2 + √(A²/4 + B)`` with ``A = gap·√(mean flips per step)·max‖U_F‖`` and ``B = (V_0 + ½ρ²)/(ηKμ)``;
    ``operator``: largest norm of the rows of the normal basis that flipped together.
    """
    a = gap * flips.sqrt() * operator
    return a / 2 + (a.square() / 4 + transient).sqrt()
