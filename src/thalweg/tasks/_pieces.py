"""Tokenizers of llama2.c: byte-pair encoding by scores, from a JSON list of ``[bytes, score]`` per token."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import ThalwegError

FIRST = 259
"""The first token that is a piece: 0 is unknown, 1 and 2 begin and end a text, 3 to 258 are the bytes."""


def pieces_file(folder: str | Path) -> Path | None:
    """``tok512.json`` or the like in a model folder, or None."""
    return next(iter(sorted(Path(folder).glob("tok[0-9]*.json"))), None)


def read_pieces(path: Path) -> list[tuple[bytes, float]]:
    """Bytes and score per token; :class:`ThalwegError` where the file is something else."""
    try:
        return [(bytes(piece), float(value)) for piece, value in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise ThalwegError(f"{path} is no list of [bytes, score] per token ({error}). Fetch it again.") from None


def encoder(path: Path) -> Callable[[str], list[int]]:
    """The definition, in Python: in each word (with the space before it) the neighbours whose joint token has the best
    score are joined, until none has one; unknown characters are bytes, whose tokens are 3 to 258. A text begins with
    a space. Cost: slow for long texts, which :func:`fast` is for; both give the same tokens."""
    score = {piece: (value, i) for i, (piece, value) in enumerate(read_pieces(path)) if i >= FIRST}

    @cache
    def word(text: str) -> list[int]:
        parts = [c.encode() for c in text]
        while len(parts) > 1:
            joined = [score.get(a + b, (float("-inf"), -1))[0] for a, b in pairwise(parts)]
            best = max(joined)
            if best == float("-inf"):
                break
            i = joined.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [t for p in parts for t in ([score[p][1]] if p in score else [3 + byte for byte in p])]

    return lambda text: [token for part in re.findall(r" ?[^ ]+| ", f" {text}") for token in word(part)]


def fast(path: Path) -> Any:
    """The same tokenizer as transformers uses and saves it: merges in the order of their token's score.

    Raises:
        ThalwegError: the file is damaged, or transformers is missing.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise ThalwegError("The package transformers is missing. Run `pip install thalweg[hf]`.") from None
    pieces = read_pieces(path)
    try:
        words = [piece.decode().replace(" ", "▁") for piece, _ in pieces[FIRST:]]
    except UnicodeDecodeError as error:
        raise ThalwegError(f"{path}: a token is not UTF-8 ({error}). Fetch the file again.") from None
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    known = set(words)
    ranked = sorted(range(len(words)), key=lambda i: -pieces[FIRST + i][1])
    merges = [
        (words[i][:cut], words[i][cut:])
        for i in ranked
        for cut in range(1, len(words[i]))
        if words[i][:cut] in known and words[i][cut:] in known
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
