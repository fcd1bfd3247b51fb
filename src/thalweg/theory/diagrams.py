"""The four phase diagrams: what simulation does in each cell, and the lines where theory says that it
changes.

Each function returns a :class:`Diagram`: numbers only, no drawing (see :mod:`thalweg.theory.figures`).
``agreement`` is the share of cells outside a band of one cell around every line whose simulated class is the
predicted one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dynamics import lattice, simulate
from .scaling import BAND, chatter, mean_square
from .valleys import uniform

Array = np.ndarray
Line = tuple[str, Array, Array]


@dataclass(frozen=True)
class Diagram:
    """``simulated``, ``predicted``: class of each cell, ``[len(y), len(x)]``; ``classes``: their names;
    ``lines``: (label, x, y) of theory; ``judged``: cells outside the bands; ``says``: the conclusion with its
    numbers."""

    name: str
    title: str
    x: Array
    y: Array
    x_label: str
    y_label: str
    classes: tuple[str, ...]
    simulated: Array
    predicted: Array
    judged: Array
    lines: tuple[Line, ...]
    says: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """Cells outside the bands."""
        return int(self.judged.sum())

    @property
    def agreement(self) -> float:
        """Share of judged cells that do what theory says."""
        return float((self.simulated == self.predicted)[self.judged].mean())


def off_lines(predicted: Array) -> Array:
    """True where a cell and its eight neighbours are predicted alike: outside a band of one cell around each
    line."""
    padded = np.pad(predicted, 1, mode="edge")
    rows, columns = predicted.shape
    same = np.ones_like(predicted, dtype=bool)
    for i, j in itertools.product(range(3), range(3)):
        same &= padded[i : i + rows, j : j + columns] == predicted
    return same


def _share(mask: Array) -> str:
    return f"{100 * float(mask.mean()):.0f} %"


def damping_line(zeta: Array, theta: float, u: float) -> Array:
    """λ of (5.1) above which the damped proxy prefers the good point: ``λ/(1+λ) = α(2u-α)/(δ(δ-2ζ))``;
    infinite where no damping helps."""
    alpha, delta = math.cos(theta) - math.sin(theta), math.cos(theta) + math.sin(theta)
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = alpha * (2 * u - alpha) / (delta * (delta - 2 * zeta))
        return np.where((kappa < 1) & (delta > 2 * zeta), kappa / (1 - kappa), np.inf)


def damping(columns: int = 60, rows: int = 48, theta: float = math.radians(32), u: float = 0.25) -> Diagram:
    """(i) Which grid point the damped second-order proxy chooses in the paper's 2-D valley, against (5.1).

    Simulation: the minimiser of ``½(q-w)ᵀ(ττᵀ+λI)(q-w)`` over all nine points of the ternary grid.
    """
    c, s = math.cos(theta), math.sin(theta)
    lam, zeta = np.geomspace(1e-3, 10, columns), np.linspace(-0.15, 0.65, rows)
    tau, nu = np.array([c, s]), np.array([-s, c])
    q = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=2)))
    w = np.array([1.0, 0.0]) - u * tau + zeta[:, None] * nu  # [rows, 2]
    d = q[None] - w[:, None]  # [rows, 9, 2]
    proxy = (d @ tau)[:, None] ** 2 + lam[None, :, None] * (d**2).sum(-1)[:, None]
    height = np.abs((q[proxy.argmin(-1)] - np.array([1.0, 0.0])) @ nu)
    simulated = (height > 0.9).astype(int)
    line = damping_line(zeta, theta, u)
    predicted = (lam[None] < line[:, None]).astype(int)
    judged = off_lines(predicted)
    zero, high = damping_line(np.array([0.0, 0.6]), theta, u).tolist()
    fine = np.linspace(zeta[0], zeta[-1], 400)
    curve = damping_line(fine, theta, u)
    shown = curve <= lam[-1]
    return Diagram(
        "damping",
        "Which point does a second-order proxy choose?",
        lam,
        zeta,
        "damping λ (share of the tangential curvature)",
        "height ζ of the checkpoint",
        ("inside the basin", "outside"),
        simulated,
        predicted,
        judged,
        (("formula (5.1)", curve[shown], fine[shown]),),
        f"Without damping the proxy leaves the basin at every height; at the river (ζ = 0) a damping of "
        f"{zero:.3f} is "
        f"enough to stay, at ζ = 0.6 it takes {high:.2f}. {_share((simulated == predicted)[judged])} of "
        f"{int(judged.sum())} cells agree with (5.1).",
        {"threshold_at_river": zero},
    )


def _dense_normal(gen: torch.Generator, size: int, present: int) -> Tensor:
    nu = torch.zeros(size, dtype=torch.float64)
    nu[:present] = 1 + 0.6 * torch.rand(present, generator=gen, dtype=torch.float64)
    return nu / nu.norm()


def _wall(q: Tensor, centre: Tensor, nu: Tensor, radius: Tensor) -> Tensor:
    """Gradient of the wall ``(|z| - 0.9 R)_+`` of slope one."""
    z = (q - centre) @ nu
    return (z.sign() * (z.abs() > 0.9 * radius)).unsqueeze(1) * nu


def density(columns: int = 40, size: int = 64, phases: int = 8, steps: int = 3000, seed: int = 0) -> Diagram:
    """(ii) Basin width against density of the normal in codimension 1: the window between ½‖ν‖_∞ and ½‖ν‖₁.

    Each cell runs ``phases`` random checkpoints on the river and the two worst: every weight nearly half a
    step away on the same side (within 3 %, so that thresholds do not coincide; trained at a tenth of the
    rate), and the largest weight midway between two levels. Class: rounding always inside; rounding leaves
    and training returns from every start; training fails from some start.
    """
    gen = torch.Generator().manual_seed(seed)
    present = np.unique(np.round(np.geomspace(1, size, 16)).astype(int))
    radius = np.geomspace(0.04, 6.0, columns)
    simulated, predicted = np.zeros((len(present), columns), int), np.zeros((len(present), columns), int)
    inner, outer, lost = [], [], []
    for row, count in enumerate(present):
        nu = _dense_normal(gen, size, int(count))
        top, total = 0.5 * float(nu.max()), 0.5 * float(nu.sum())
        inner.append(top)
        outer.append(total)
        random = uniform(gen, (phases, size), -0.5, 0.5)
        corner = (0.5 - 0.03 * uniform(gen, (1, size))) * nu.sign()
        straddle = torch.zeros(1, size, dtype=torch.float64)
        straddle[0, int(nu.argmax())] = 0.5
        centre = torch.cat([random, corner, straddle])  # [P, D]
        starts = len(centre)
        centre = centre.repeat(columns, 1)
        r = torch.as_tensor(radius).repeat_interleave(starts)
        start = centre + 1e-6 * nu
        rounded = ((start.round() - centre) @ nu).abs() <= r
        # the latent weight must be able to travel the worst rounding error along ν
        rate = torch.full((starts, 1), 2.4 * total / steps, dtype=torch.float64)
        rate[phases] *= 0.1
        rate = rate.repeat(columns, 1)
        # drop what is inside already, and run the rest
        out = ~rounded
        entered = rounded.clone()
        if bool(out.any()):
            few = simulate(
                lambda q, c=centre[out], nu=nu, r=r[out]: _wall(q, c, nu, r),  # type: ignore[misc]
                start[out],
                lattice(1.0),
                rate[out],
                steps,
                inside=lambda q, c=centre[out], nu=nu, r=r[out]: ((q - c) @ nu).abs() <= r,  # type: ignore[misc]
            )
            entered[out] = few.entered
        keeps, recovers = (
            rounded.view(columns, starts).all(1).numpy(),
            entered.view(columns, starts).all(1).numpy(),
        )
        lost.append(1 - rounded.view(columns, starts)[:, :phases].double().mean(1).numpy())
        simulated[row] = np.where(keeps, 0, np.where(recovers, 1, 2))
        predicted[row] = np.where(radius >= total, 0, np.where(radius >= top, 1, 2))
    judged = off_lines(predicted)
    share = present / size
    return Diagram(
        "density",
        "When does training recover what rounding loses?",
        radius,
        share,
        "basin radius R / grid step Δ",
        "share of weights in the normal ν",
        ("rounding stays inside", "rounding leaves, training returns", "training can fail"),
        simulated,
        predicted,
        judged,
        (("½‖ν‖∞", np.array(inner), share), ("½‖ν‖₁", np.array(outer), share)),
        f"Between ½‖ν‖∞ and ½‖ν‖₁ rounding can leave the basin and training always returns; the window is "
        f"empty for a "
        f"normal along one weight and spans a factor of {outer[-1] / inner[-1]:.0f} for one through all "
        f"{size}. "
        f"{_share((simulated == predicted)[judged])} of {int(judged.sum())} cells agree.",
        {"rounding_lost_share": np.array(lost).round(3).tolist()},
    )


def codimension(columns: int = 20, rows: int = 44, size: int = 256, instances: int = 24, seed: int = 0) -> Diagram:
    """(iii) Basin width against the share of wall directions: rounding's line √(D/(12n)) and training's band.

    Class from the rms normal distance of rounding and of training's iterates, and from the best iterate.
    """
    codims = np.unique(np.round(np.geomspace(4, size / 2, columns)).astype(int))
    y = np.geomspace(0.12, 4.0, rows)
    simulated = np.zeros((rows, len(codims)), int)
    constants, bests, round_at = [], [], []
    for column, n in enumerate(codims):
        seen = chatter(size, int(n), instances, burn=500, keep=500, seed=seed + int(n))
        unit = n / math.sqrt(size)
        rounding, rms, best = (
            mean_square(seen.rounding) / unit,
            mean_square(seen.rms) / unit,
            float(seen.best.median()) / unit,
        )
        constants.append(rms)
        bests.append(best)
        round_at.append(rounding)
        simulated[:, column] = np.where(y >= rounding, 0, np.where(y >= rms, 1, np.where(y >= best, 2, 3)))
    share = codims / size
    line = np.sqrt(1 / (12 * share))
    middle = 0.54
    # classes 2 and 3 differ by the best iterate, which theory only brackets: they are judged as one
    predicted = np.where(y[:, None] >= np.maximum(line, 0)[None], 0, np.where(y[:, None] >= middle, 1, 2))
    merged = np.minimum(simulated, 2)
    step = y[1] / y[0]
    in_band = (y >= BAND[0] / step) & (y <= BAND[1] * step)
    judged = off_lines(predicted) & ~in_band[:, None]
    # where the lines have crossed, training is not needed and only rounding's line counts
    agreed = (merged == predicted)[judged]
    return Diagram(
        "codimension",
        "How many wall directions can rounding and training bear?",
        share,
        y,
        "share of wall directions n/D",
        "basin radius in units of Δn/√D",
        ("rounding stays inside", "training settles inside", "only its best iterates enter", "outside"),
        simulated,
        np.where((predicted == 2) & (simulated == 3), 3, predicted),
        judged,
        (
            ("rounding √(D/12n)", share, line),
            ("training, lower", share, np.full_like(line, BAND[0])),
            ("training, upper", share, np.full_like(line, BAND[1])),
        ),
        f"Rounding stays inside above √(D/12n); training settles at {min(constants):.2f} to "
        f"{max(constants):.2f} Δn/√D and "
        f"its best iterates reach {min(bests):.2f} to {max(bests):.2f}. The gap closes near n/D = 0.29. "
        f"{_share(agreed)} of {len(agreed)} cells agree outside the band.",
        {
            "constants": np.round(constants, 3).tolist(),
            "best": np.round(bests, 3).tolist(),
            "rounding_over_line": np.round(np.array(round_at) / line, 3).tolist(),
        },
    )
