"""Documents cut into windows: random ones to train on, and a plan that scores each token exactly once.

The model reads padding before a document's first token (padding stands in for BOS at the input), so a
window over tokens s..e-1 of a document reads the token before s (or padding) up to e-2 and predicts s..e-1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seqpope.data.shards import Split
from seqpope.errors import SeqpopeError


@dataclass(frozen=True)
class Window:
    """Tokens start..end-1 of the whole split, in document `document`; those from `score` on are scored."""

    document: int
    start: int
    score: int
    end: int


def plan_windows(split: Split, length: int, stride: int) -> list[Window]:
    """Windows of at most `length` tokens that score every token of every document exactly once.

    The first window of a document scores all it holds, each later one its last `stride` tokens, so that a
    scored token past the first window has at least length - stride tokens of context.

    Raises:
        SeqpopeError: stride is not between 1 and length.
    """
    if not 1 <= stride <= length:
        raise SeqpopeError(
            f"the evaluation stride must be between 1 and the window of {length} tokens, it is {stride}"
        )
    windows = []
    for document in range(len(split)):
        first, last = int(split.starts[document]), int(split.starts[document + 1])
        if first == last:
            continue
        score, end = first, min(first + length, last)
        windows.append(Window(document, first, score, end))
        while end < last:
            score, end = end, min(end + stride, last)
            # From where the window would be whole, so that a token's context never depends on the document's end.
            windows.append(Window(document, score + stride - length, score, end))
    return windows


def window_inputs(split: Split, start: int, end: int, document: int, padding_id: int) -> np.ndarray:
    """What the model reads to predict tokens start..end-1: (end - start,) int64."""
    first = int(split.starts[document])
    ids = np.empty(end - start, np.int64)
    ids[0] = split.tokens[start - 1] if start > first else padding_id
    ids[1:] = split.tokens[start : end - 1]
    return ids
