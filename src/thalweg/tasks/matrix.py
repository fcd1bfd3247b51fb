"""Matrix factorisation as a task: the paper's smallest experiment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ThalwegError
from ..space import generator
from ..task import Progress, Task, silent

STEPS, RATE, SPREAD = 4000, 0.02, 0.3


class Factor(nn.Module):
    """``X`` as the weight of a linear layer; on the identity it gives ``XXᵀ``."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.factor = nn.Linear(width, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Identities ``[n, width, width]`` to ``XXᵀ`` as ``[n, size, size]``."""
        y = self.factor(x)
        return y.transpose(1, 2) @ y


def residual(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """``‖XXᵀ - M‖_F²`` per sample."""
    return (output - batch[1]).square().sum((1, 2))


def matrix(size: str = "100", *, seed: int = 0, progress: Progress = silent) -> Task:
    """Matrix factorisation ``‖XXᵀ - Diag(I_r, 0)‖²`` with X of SIZE × 5, trained by gradient descent.

    The paper's Appendix E.2 (arXiv:2606.09012): 100 × 5, start .3 N(0, I), 4,000 steps of rate .02. There is one
    sample, the identity; training, calibration and test data are the same. The loss is not in nats.

    Raises:
        ThalwegError: a size that is not a whole number above 5.

    Cost: about a second.
    """
    if not size.isdecimal() or int(size) <= 5:
        raise ThalwegError(f"The size of matrix is {size!r}. Use a whole number above 5, such as matrix:100.")
    rows, rank = int(size), 5
    target = torch.zeros(1, rows, rows)
    target[0, range(rank), range(rank)] = 1.0
    batch = (torch.eye(rank).unsqueeze(0), target)
    model = Factor(rows, rank)
    x = SPREAD * torch.randn(rows, rank, generator=generator(seed, "matrix start"), dtype=torch.float64)
    wanted = target[0].double()
    for _ in range(STEPS):
        x = x - RATE * 4 * (x @ (x.T @ x) - wanted @ x)
    with torch.no_grad():
        model.factor.weight.copy_(x)
    info = {"parameters": rows * rank, "rank": rank, "seed": seed, "steps": STEPS, "unit": "squared Frobenius norm"}
    return Task(
        name=f"matrix:{size}", kind="matrix", model=model.eval(), loss=residual, batches=[batch], calibration=[batch],
        test=[batch], train_batch=lambda step: batch, info=info,
    )  # fmt: skip
