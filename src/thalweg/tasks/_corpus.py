"""Text from data sets that the package datasets reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import ThalwegError
from ..task import Progress

CHARACTERS = 20_000_000
Parts = tuple[list[str], list[str], list[str]]


def corpus(
    place: str, config: str, column: str, characters: int, progress: Progress
) -> tuple[str, Parts, dict[str, Any]]:
    """Name, documents that train, judge and test, and what to record about them.

    ``place``: ``NAME``, ``OWNER/NAME`` or ``OWNER/NAME/CONFIG`` of the hub, or a local folder of that name. The first
    ``characters`` of the training split are taken, whole documents, and an eighth as many of its validation and test
    splits; without both of these, of every ten training documents eight train, one judges and one tests. Data sets
    are streamed; in offline mode (``HF_DATASETS_OFFLINE=1``) they are read from the package's cache. Cost: reading so
    much text, into memory.

    Raises:
        ThalwegError: datasets missing, no such data set or configuration, no such column, or a column of no text.
    """
    try:
        import datasets
    except ImportError:
        raise ThalwegError("The package datasets is missing. Run `pip install datasets`.") from None
    words = [word for word in place.split("/") if word]
    if len(words) > 3 or not words or (len(words) == 3 and config):
        raise ThalwegError(f"datasets/{place} is not NAME, OWNER/NAME or OWNER/NAME/CONFIG. Correct the name.")
    name, config = "/".join(words[:2]), config or "".join(words[2:])
    offline = bool(getattr(getattr(datasets, "config", None), "HF_DATASETS_OFFLINE", False))
    try:
        found = datasets.load_dataset(name, config or None, streaming=not offline)
        if "train" not in found:
            raise ThalwegError(f"The data set {name} has no split train (it has {', '.join(found)}). Take another.")
        own = "validation" in found and "test" in found
        take = lambda part, count: _documents(found[part], column, count, name, progress)
        if own:
            judged, tested = (take(part, characters // 8) for part in ("validation", "test"))
            parts: Parts = (take("train", characters), judged, tested)
        else:
            every = take("train", characters)
            parts = ([text for i, text in enumerate(every) if i % 10 < 8], every[8::10], every[9::10])
    except ThalwegError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ThalwegError(
            f"The data set {name}{f' ({config})' if config else ''} cannot be read ({line}). "
            "Check its name and configuration (config=NAME), or the network."
        ) from None
    info = {
        "text": "/".join(["datasets", name, *([config] if config else [])]),
        "split": "the data set's own" if own else "documents, 8 / 1 / 1 of every ten",
        "documents": sum(map(len, parts)), "characters": sum(len(text) for part in parts for text in part),
    }  # fmt: skip
    return "-".join([*name.split("/"), *([config] if config else [])]), parts, info


def _documents(rows: Iterable[Any], column: str, characters: int, name: str, progress: Progress) -> list[str]:
    out: list[str] = []
    seen = 0
    for row in rows:
        if column not in row:
            raise ThalwegError(
                f"The data set {name} has no column {column!r} (it has {', '.join(row)}). Name one with column=NAME."
            )
        text = row[column]
        if not isinstance(text, str):
            raise ThalwegError(f"Column {column!r} of {name} holds {type(text).__name__}, not text. Name another.")
        if text.strip():
            out.append(text)
            seen += len(text)
        if seen >= characters:
            break
        if len(out) % 1000 == 0:
            progress(f"reading {name}", min(seen, characters), characters)
    return out
