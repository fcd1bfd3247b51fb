"""Text into frozen rows of tokens."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import re
from collections import Counter
from pathlib import Path

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


def read_text(path: str) -> str:
    """A UTF-8 file; :class:`ThalwegError` where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ThalwegError(f"Cannot read the text {path}: {error.strerror or error}. Check the path.") from None
    except UnicodeDecodeError:
        raise ThalwegError(f"The text {path} is not UTF-8. Convert it first.") from None


def split_text(whole: str) -> tuple[str, str, str]:
    """Train, validation and test: whole lines up to eight, nine and ten tenths of the characters."""
    lines = whole.splitlines(keepends=True)
    ends = list(itertools.accumulate(map(len, lines)))
    a, b = (bisect.bisect_left(ends, share * len(whole)) for share in (0.8, 0.9))
    return "".join(lines[:a]), "".join(lines[a:b]), "".join(lines[b:])


def split_topics(topics: dict[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Train, validation and test texts that share no paragraph.

    CPython's topics overlap: ``compound`` holds all of ``if``, ``for`` and ``try``. Topics with a common paragraph
    are one family, and families are never split. A family's place depends on the name of its first topic, so
    that other versions of Python split much alike; one with more than a tenth of the text trains. A paragraph
    that comes again is dropped.
    """
    family = _families(topics)
    size: Counter[str] = Counter()
    for name, text in topics.items():
        size[family[name]] += len(text)
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    seen: set[str] = set()
    for name, text in sorted(topics.items()):
        digit = int(hashlib.sha256(family[name].encode()).hexdigest(), 16) % 10
        large = size[family[name]] > 0.1 * size.total()
        fresh = [p for p in paragraphs(text) if mark(p) not in seen]
        seen.update(key for p in fresh if (key := mark(p)))
        if fresh:
            parts[0 if large or digit > 1 else 2 - digit].append("\n\n".join(fresh))
    return parts


def paragraphs(text: str) -> list[str]:
    """Blocks of lines between blank lines."""
    return [block for block in re.split(r"\n[ \t]*\n", text) if block.strip()]


def mark(paragraph: str) -> str:
    """What makes two paragraphs the same: the words without the layout. Empty below 80 characters, where
    equality means nothing (headings, short examples)."""
    words = " ".join(paragraph.split())
    return words if len(words) >= 80 else ""


def _families(topics: dict[str, str]) -> dict[str, str]:
    """Each topic's family, under the name of its alphabetically first member."""
    parent = {name: name for name in topics}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    owner: dict[str, str] = {}
    for name, text in sorted(topics.items()):
        for key in filter(None, map(mark, paragraphs(text))):
            first, last = sorted((root(owner.setdefault(key, name)), root(name)))
            parent[last] = first
    return {name: root(name) for name in topics}


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
