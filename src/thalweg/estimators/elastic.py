"""Stretched elastic quantization."""

from __future__ import annotations

from ._estimator import Estimator, within_cells


def elastic() -> Estimator:
    """Stretched elastic: learned scales, and outermost levels that own a cell as wide as the others (2 bits, ternary).

    As ``lsq``, but the gradient passes up to half a step *beyond* the outermost levels: on balanced levels that
    is ``|w| ≤ α`` for ``ŵ = α (⌊clip(w/α, -1, 1) k/2 - ½⌉ + ½) 2/k`` of ParetoQ (Liu et al., arXiv:2502.02631,
    section 3.2 and appendix), with ``α = s k/2``. Refused on grids of more than four levels, where the paper uses
    lsq. On two's complement (-2…1) the cells are as wide but not balanced. Cost: as ``lsq``.
    """
    return Estimator(passed=within_cells, learns_scale=True, lr=0.01, most_levels=4)
