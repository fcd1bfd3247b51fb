"""The one exception of the library, and the helper that names the nearest spellings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ThalwegError(ValueError):
    """Bad input or an impossible request: one sentence of fact, one of advice.

    The command line prints the message without a traceback and exits with code 2.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> ThalwegError:
    """Error for a misspelt name, with the nearest known names as advice."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    advice = f"Did you mean {' or '.join(map(repr, near))}?" if near else "See `thalweg list`."
    return ThalwegError(f"Unknown {kind} {name!r}; known: {', '.join(names) or 'none'}. {advice}")
