"""Windows of a genome drawn to train on: anywhere in the training intervals, in any phase, on either strand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seqpope.domains.genome.sequences import A

if TYPE_CHECKING:
    from seqpope.domains.genome.store import GenomeStore


_AT_ONCE = 1 << 16  # bases; what is made of them stays in the cache, and malloc at hand for the next ones


class GenomeWindows:
    """The windows of step `step` of a run, a pure function of (seed, step).

    Of a known stretch at least as long as a window, every place is as likely as any other, so that each base is
    read in every phase; a shorter one is read to its end, from one of its first k bases. Stretches are drawn by
    their bases, those shorter than a window as if they were as long: all are then read equally often, but for the
    ends of long ones. A window is read on the other strand with probability 1/2. With the same probability it
    begins as a document does, after padding; else the model reads the token before it too, if the stretch has one.

    Attributes:
        whole: most rows are full windows.
    """

    one_target = False

    def __init__(
        self,
        store: GenomeStore,
        stretches: np.ndarray,
        *,
        length: int,
        batch_size: int,
        seed: int,
        reverse_complement: bool,
        soft_mask_weight: float,
    ) -> None:
        """`stretches` (P, 2) int64 in the store's `bases`, of at least 2 k bases each."""
        self.store, self.stretches, self.length, self.batch_size = store, stretches, length, batch_size
        self.seed, self.reverse_complement, self.soft_mask_weight = seed, reverse_complement, soft_mask_weight
        sizes = stretches[:, 1] - stretches[:, 0]
        window = length * store.reading.k
        self.until = np.cumsum(np.maximum(sizes, window))
        self._ids = np.concatenate((store.reading.forward, store.reading.reverse))
        self.whole = bool(2 * np.maximum(sizes, window)[sizes >= window].sum() >= self.until[-1])

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and targets (B, L) int64, views of one array, and what a target counts (B, L).

        That is bool, or float32 where soft-masked tokens have a weight of their own. L is the longest row; shorter
        ones end in padding that does not count.
        """
        size, k, padding = self.batch_size, self.store.reading.k, self.store.reading.tokenizer.padding_id
        random = np.random.default_rng([self.seed, 2, step])
        drawn = np.searchsorted(self.until, random.integers(0, self.until[-1], size), side="right")
        first, end = self.stretches[drawn].T
        room = np.where(end - first >= self.length * k, end - first - self.length * k + 1, k)
        start = first + random.integers(0, room)
        tokens = np.minimum(self.length, (end - start) // k)
        reverse = random.random(size) < (0.5 if self.reverse_complement else 0.0)
        before = random.random(size) < 0.5
        before &= np.where(reverse, start + tokens * k + k <= end, start - k >= first)
        longest = int(tokens.max())
        ids = np.empty((size, longest + 1), np.int64)
        counts = np.ones((size, longest), bool if self.soft_mask_weight == 1 else np.float32)
        rows = max(1, _AT_ONCE // (k * longest))
        for row in range(0, size, rows):
            some = slice(row, row + rows)
            bases = self._gather(start[some], tokens[some], reverse[some], before[some], longest)
            self._read(bases, reverse[some], ids[some], counts[some])
        ids[~before, 0] = padding
        for row in np.flatnonzero(tokens < longest).tolist():
            ids[row, tokens[row] + 1 :] = padding
            counts[row, tokens[row] :] = 0
        return ids[:, :-1], ids[:, 1:], counts

    def _read(self, bases: np.ndarray, reverse: np.ndarray, ids: np.ndarray, counts: np.ndarray) -> None:
        """Fill ids (B, L + 1) and what all but the first count (B, L) from bases (B, k (L + 1))."""
        reading, k = self.store.reading, self.store.reading.k
        numbers = reading.numbers(bases.reshape(-1)).reshape(ids.shape)
        numbers[reverse] = numbers[reverse][:, ::-1] + 4**k  # where the table has the other strand's
        # Indices are in range: without being checked they are taken faster.
        self._ids.take(numbers, mode="clip", out=ids)
        if counts.dtype != bool:
            soft = (2 * reading.soft(bases.reshape(-1)) > k).reshape(ids.shape)
            soft[reverse] = soft[reverse][:, ::-1]
            np.copyto(counts, np.float32(self.soft_mask_weight), where=soft[:, 1:])

    def _gather(
        self, start: np.ndarray, tokens: np.ndarray, reverse: np.ndarray, before: np.ndarray, longest: int
    ) -> np.ndarray:
        """Bases of the windows (B, k (longest + 1)) uint8, with a token's room before each.

        On the other strand that room is behind, and what a row has too much is in front. A where nothing was read.
        """
        k, source = self.store.reading.k, self.store.bases
        width = k * (longest + 1)
        out = np.empty((len(start), width), np.uint8)
        rows = zip(start.tolist(), (k * tokens).tolist(), reverse.tolist(), (k * before).tolist(), strict=True)
        for row, (place, size, other, extra) in enumerate(rows):
            if other:
                low, high, at = place, place + size + extra, width - k - size
            else:
                low, high, at = place - extra, place + size, k - extra
            if high - low < width:
                out[row] = A
            out[row, at : at + high - low] = source[low:high]
        return out
