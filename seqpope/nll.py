"""Negative log-likelihood: the one formula for training, validation and every report.

Nats per token are cross-entropies of fp32 logits; sums are fp64; padding is never a target; sum, count,
and divide once at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seqpope.data.shards import SCORED, Split
from seqpope.data.windows import Window, plan_windows, window_inputs
from seqpope.progress import Progress


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-probability of each target in nats: logits (..., V), targets (...) -> (...) fp32."""
    flat = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view(targets.shape)


def mean_nats(logits: Tensor, targets: Tensor, scored: Tensor, parts: int = 1) -> Tensor:
    """Mean nats over the scored targets of a batch: the training loss.

    Args:
        scored: (B, L) bool, or float weights.
        parts: equal parts of the batch that have a mean each.

    Returns:
        A number, or (parts,) if they are more than one.
    """
    least = torch.finfo(scored.dtype).tiny if scored.is_floating_point() else 1
    sums = (token_nats(logits, targets) * scored).view(parts, -1).sum(1)
    means = sums / scored.reshape(parts, -1).sum(1).clamp(min=least)
    return means[0] if parts == 1 else means


def batch_nats(
    forward: Callable[..., Tensor], batch: Sequence[Tensor], parts: int = 1, *, one_target: bool = False
) -> Tensor:
    """As `mean_nats`, of a batch that a model reads.

    Args:
        forward: `Transformer.forward`, or what is compiled of it.
        batch: ids, targets and scored, (B, L) each.
        one_target: every row has one scored target, or none: logits are asked for there alone. Of more than one
            only the first would count.
    """
    ids, targets, scored = batch
    if not one_target:
        return mean_nats(forward(ids), targets, scored, parts)
    at = (scored > 0).int().argmax(1, keepdim=True)
    return mean_nats(forward(ids, at=at), targets.gather(1, at), scored.gather(1, at), parts)


@dataclass(frozen=True)
class ScoringBatch:
    """Windows read together: `ids` and `targets` (B, L) int64, padded at the right to the longest."""

    windows: list[Window]
    ids: Tensor
    targets: Tensor


def scoring_batches(
    split: Split,
    padding_id: int,
    *,
    length: int,
    stride: int,
    batch_tokens: int = 16384,
    documents: Collection[int] | None = None,
) -> Iterator[ScoringBatch]:
    """Every window of the plan once, windows of like length together, about `batch_tokens` a batch.

    Args:
        documents: read these alone; all if None.
    """
    windows = plan_windows(split, length, stride)
    if documents is not None:
        windows = [window for window in windows if window.document in documents]
    yield from window_batches(split, padding_id, windows, batch_tokens=batch_tokens)


def window_batches(
    split: Split, padding_id: int, windows: Sequence[Window], *, batch_tokens: int = 16384
) -> Iterator[ScoringBatch]:
    """These windows, those of like length together, about `batch_tokens` a batch."""
    windows = sorted(windows, key=lambda w: w.start - w.end)
    while windows:
        longest = windows[0].end - windows[0].start
        count = max(1, batch_tokens // longest)
        chosen, windows = windows[:count], windows[count:]
        ids = np.full((len(chosen), longest), padding_id, np.int64)
        targets = np.full((len(chosen), longest), padding_id, np.int64)
        for row, window in enumerate(chosen):
            size = window.end - window.start
            ids[row, :size] = window_inputs(split, window.start, window.end, window.document, padding_id)
            targets[row, :size] = split.tokens[window.start : window.end]
        yield ScoringBatch(chosen, torch.from_numpy(ids), torch.from_numpy(targets))


@torch.inference_mode()
def score_split(
    forward: Callable[[Tensor], Tensor],
    split: Split,
    padding_id: int,
    *,
    length: int,
    stride: int,
    device: torch.device | str = "cpu",
    batch_tokens: int = 16384,
    documents: Collection[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    right: np.ndarray | None = None,
) -> np.ndarray:
    """Nats of every token of a split, each scored once.

    Args:
        forward: token ids (B, L) -> logits (B, L, V).
        length: tokens in a window.
        stride: tokens that each window after a document's first one scores.
        batch_tokens: about as many tokens are read at once, at least one window.
        documents: score these alone; all if None.
        progress: called with tokens done and tokens in all.
        right: (N,) bool to be filled: whether no token had a greater logit.

    Returns:
        (N,) fp64, in the order of split.tokens; nan in documents that are not scored.
    """
    nats = np.full(len(split.tokens), np.nan)
    done, sizes = 0, np.diff(split.starts)
    total = int(sizes.sum() if documents is None else sum(sizes[d] for d in documents))
    for batch in scoring_batches(
        split, padding_id, length=length, stride=stride, batch_tokens=batch_tokens, documents=documents
    ):
        logits, targets = forward(batch.ids.to(device)), batch.targets.to(device)
        scores = token_nats(logits, targets).double().cpu().numpy()
        first = None if right is None else (logits.argmax(-1) == targets).cpu().numpy()
        for row, window in enumerate(batch.windows):
            part = slice(window.score - window.start, window.end - window.start)
            nats[window.score : window.end] = scores[row, part]
            if right is not None and first is not None:
                right[window.score : window.end] = first[row, part]
            done += window.end - window.score
        if progress is not None:
            progress(done, total)
    return nats


@dataclass(frozen=True)
class Validation:
    """What a split's scored targets come to.

    Attributes:
        nats: mean.
        accuracy: the share of them that were the likeliest token.
        seconds: that it took.
    """

    nats: float
    accuracy: float
    seconds: float = field(default=0.0, compare=False)

    def logged(self) -> dict[str, float]:
        """By the columns of a run's log."""
        return {
            "validation_nats_per_token": self.nats,
            "validation_accuracy": self.accuracy,
            "validation_seconds": self.seconds,
        }


def validate(
    forward: Callable[[Tensor], Tensor],
    split: Split,
    padding_id: int,
    *,
    length: int,
    stride: int,
    device: torch.device | str = "cpu",
    batch_tokens: int = 16384,
) -> Validation:
    """Score a split as `score_split` does and sum it up."""
    began = time.perf_counter()
    right = np.zeros(len(split.tokens), bool)
    nats = score_split(
        forward,
        split,
        padding_id,
        length=length,
        stride=stride,
        device=device,
        batch_tokens=batch_tokens,
        progress=Progress("validation", "tokens", every=10),
        right=right,
    )
    scored = (split.flags & SCORED).astype(bool)
    return Validation(float(nats[scored].mean()), float(right[scored].mean()), time.perf_counter() - began)
