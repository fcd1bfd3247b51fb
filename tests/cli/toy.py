"""A task for the command line tests: trained in a second, separable, quantizable."""

import torch
from torch import nn

from thalweg.task import Task


def toy() -> Task:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 12, generator=g) * 1.6

    def draw(count, seed):
        gen = torch.Generator().manual_seed(seed)
        y = torch.randint(0, 4, (count,), generator=gen)
        return centres[y] + torch.randn(count, 12, generator=gen), y

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(150):
            x, y = draw(128, 100 + step)
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Task(
        name="toy", kind="vision", model=model.eval(), loss="cross_entropy", batches=[draw(200, 1)],
        calibration=[draw(64, 2), draw(64, 3)], test=[draw(300, 4)], train_batch=lambda step: draw(64, 1000 + step),
        metric="accuracy",
    )  # fmt: skip


def not_a_task():
    return 3


def broken() -> Task:
    task = toy()
    with torch.no_grad():
        task.model[0].weight[0, 0] = float("nan")
    return task
