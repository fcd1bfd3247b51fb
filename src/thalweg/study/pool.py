"""Where cells run: in this process, in several, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent import futures
from typing import Any, Protocol

from ..errors import ThalwegError


class Pool(Protocol):
    """Takes work and gives results as they come."""

    size: int

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Start work; returns its ticket."""

    def wait(self, tickets: list[Any]) -> Any:
        """The ticket of work that is done; blocks until there is one."""

    def result(self, ticket: Any) -> Any:
        """Its result, or its exception."""

    def close(self) -> None:
        """Let go of everything, unfinished work too."""


class Here:
    """In this process, one after another."""

    size = 1

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return lambda: function(*arguments)

    def wait(self, tickets: list[Any]) -> Any:
        return tickets[0]

    def result(self, ticket: Any) -> Any:
        return ticket()

    def close(self) -> None:
        pass


class Processes:
    """In processes of this machine, each with so many threads."""

    def __init__(self, size: int, threads: int):
        self.size = size
        self.pool = futures.ProcessPoolExecutor(
            size, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,)
        )

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.pool.submit(function, *arguments)

    def wait(self, tickets: list[Any]) -> Any:
        return next(iter(futures.wait(tickets, return_when=futures.FIRST_COMPLETED).done))

    def result(self, ticket: Any) -> Any:
        try:
            return ticket.result()
        except futures.process.BrokenProcessPool:
            raise ThalwegError(
                "A worker of the study ended without a word, most likely for want of memory. "
                "Run again with fewer --workers: what is done is kept."
            ) from None

    def close(self) -> None:
        for process in list((self.pool._processes or {}).values()):
            process.terminate()
        self.pool.shutdown(wait=False, cancel_futures=True)


class Ray:
    """On a Ray cluster whose machines share the study's folder. ``address``: see ``ray.init``; ``auto`` joins a
    running cluster."""

    def __init__(self, address: str = "auto", gpus: float = 0.0):
        try:
            import ray
        except ImportError:
            raise ThalwegError("Ray is missing. Run `pip install ray`, or leave --ray out.") from None
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ThalwegError(
                f"No Ray cluster answers at {address!r} ({str(error).splitlines()[0][:120]}). "
                "Start one with `ray start --head`, or leave --ray out."
            ) from None
        self.ray, self.gpus = ray, gpus
        have = ray.cluster_resources()
        self.size = max(1, int(have.get("GPU", 0) / gpus) if gpus else int(have.get("CPU", 1)))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        remote = self.ray.remote(function)
        return (remote.options(num_gpus=self.gpus) if self.gpus else remote).remote(*arguments)

    def wait(self, tickets: list[Any]) -> Any:
        return self.ray.wait(tickets, num_returns=1)[0][0]

    def result(self, ticket: Any) -> Any:
        return self.ray.get(ticket)

    def close(self) -> None:
        self.ray.shutdown()


def _begin(threads: int) -> None:
    import signal
    import threading

    import torch

    from ..heap import one_heap

    one_heap()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends a study
    torch.set_num_threads(threads)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    """End with the parent, however it ended: a worker that outlives its study keeps a core busy for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
