"""Text into frozen rows of tokens."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..errors import ThalwegError


def documentation() -> dict[str, str]:
    """CPython's own documentation of its language, topic by topic, from the standard library."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ThalwegError(
            "This Python has no pydoc_data.topics, the text of the task. Install a full CPython, or pass --text FILE."
        ) from None
    return {name: text for name, text in sorted(topics.items()) if len(text) > 200}


def split_topics(topics: dict[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Train, validation and test texts; a topic's place depends on its name only, so that other versions of
    Python split alike. A topic whose text repeats another's goes where the first went."""
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    place: dict[str, int] = {}
    for name, text in topics.items():
        digest = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
        key = hashlib.sha256(text.encode()).hexdigest()
        if key in place:
            continue
        place[key] = 2 if digest == 0 else 1 if digest == 1 else 0
        parts[place[key]].append(text)
    return parts


def rows(ids: list[int], context: int, limit: int | None = None) -> Tensor:
    """Consecutive rows ``[count, context]`` of int64 tokens; the rest is dropped."""
    count = len(ids) // context
    if count == 0:
        raise ThalwegError(f"The text has {len(ids)} tokens, too few for one row of {context}. Pass more text.")
    count = count if limit is None else min(count, limit)
    return torch.tensor(ids[: count * context], dtype=torch.long).view(count, context)


def spread_rows(ids: list[int], context: int, limit: int) -> Tensor:
    """At most ``limit`` rows taken evenly over the text."""
    every = rows(ids, context)
    if len(every) <= limit:
        return every
    return every[torch.linspace(0, len(every) - 1, limit).round().long()]


def unigram_loss(train: list[int], judged: Tensor, vocabulary: int) -> float:
    """Mean loss, in nats per token, of the token frequencies of ``train`` (add-one smoothed) on the targets of
    ``judged`` (all but the first token of each row)."""
    counts = torch.bincount(torch.tensor(train), minlength=vocabulary).double() + 1
    return float(-(counts / counts.sum()).log()[judged[:, 1:]].mean())
