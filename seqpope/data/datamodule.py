"""Stores to training batches. Knows no tokenizer and no domain: the manifest says all it needs.

A store of tokens has its documents cropped here; one that draws windows itself (`DrawingStore`) is asked for them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from seqpope.config import DataConfig
from seqpope.data.shards import SCORED, Manifest, Split, Store
from seqpope.data.windows import window_inputs
from seqpope.errors import SeqpopeError
from seqpope.processes import kill_workers_at_exit


class Batch(NamedTuple):
    """`ids` and `targets` (B, L) int64, `scored` (B, L); padding is never scored.

    `scored` is bool, or float32 where targets have weights.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    scored: torch.Tensor


class Windows(Protocol):
    """Training windows of step `step`, drawn as a pure function of it.

    Called with a step it returns ids and targets (B, L) int64 and what each target counts (B, L), bool or float32,
    L being the longest row.

    Attributes:
        whole: most rows fill a window.
        one_target: every row has exactly one scored target.
    """

    whole: bool
    one_target: bool

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


@runtime_checkable
class DrawingStore(Store, Protocol):
    """A store that draws its training windows itself."""

    def windows(
        self,
        split: str,
        *,
        length: int,
        batch_size: int,
        seed: int,
        reverse_complement: bool,
        soft_mask_weight: float,
    ) -> Windows:
        """Windows of at most `length` tokens."""
        ...


class TrainingBatches(Dataset[Batch]):
    """Batch number `step` of a run, a pure function of (seed, step): that is what makes resuming exact.

    Each pass over the documents is a fresh permutation of them; crops and transpositions are drawn anew for
    every batch.

    `whole` says that the longest document of a batch fills half a window or more, on average: with `pad_whole`
    every batch is then as long as the longest there can be, a window or the split's longest document, so that one
    CUDA graph serves for all and none takes more memory than the largest would anyway. What it saves a small model
    in launches is more than what the padding costs.
    """

    one_target = False

    def __init__(
        self,
        split: Split,
        manifest: Manifest,
        config: DataConfig,
        seed: int,
        *,
        length_multiple: int = 1,
        pad_whole: bool = False,
    ) -> None:
        if len(split) == 0 or len(split.tokens) == 0:
            raise SeqpopeError(f"the training split of {manifest.dataset} is empty: prepare the data again")
        _check_transpose(manifest, config)
        if config.soft_mask_weight != 1:
            raise SeqpopeError(f"{manifest.dataset} has no soft-masked tokens: leave data.soft_mask_weight at 1")
        self.split, self.manifest, self.config, self.seed = split, manifest, config, seed
        self.length_multiple, self.pad_whole = length_multiple, pad_whole
        lengths = np.diff(split.starts)
        self.documents = np.flatnonzero(lengths > 0)
        kept = np.minimum(lengths[self.documents], config.length)
        self.longest = int(kept.max())
        self.whole = bool(2 * _mean_longest(kept, config.batch_size) >= config.length)

    def __getitem__(self, step: int) -> Batch:
        random = np.random.default_rng([self.seed, 1, step])
        rows = [self._window(int(document), random) for document in self._documents_of(step)]
        if self.pad_whole and self.whole:
            length = self.longest
        else:
            length = _rounded(max(len(targets) for _, targets, _ in rows), self.length_multiple)
        shape = (len(rows), length)
        ids = np.full(shape, self.manifest.padding_id, np.int64)
        targets = np.full(shape, self.manifest.padding_id, np.int64)
        scored = np.zeros(shape, bool)
        for row, (inputs, outputs, flags) in enumerate(rows):
            ids[row, : len(inputs)] = inputs
            targets[row, : len(outputs)] = outputs
            scored[row, : len(flags)] = flags
        return Batch(torch.from_numpy(ids), torch.from_numpy(targets), torch.from_numpy(scored))

    def _documents_of(self, step: int) -> np.ndarray:
        size, count = self.config.batch_size, len(self.documents)
        places = np.arange(step * size, (step + 1) * size)
        orders = {
            int(epoch): np.random.default_rng([self.seed, 0, int(epoch)]).permutation(count)
            for epoch in np.unique(places // count)
        }
        return self.documents[[orders[int(p // count)][p % count] for p in places]]

    def _window(self, document: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, last = int(self.split.starts[document]), int(self.split.starts[document + 1])
        start = first
        if last - first > self.config.length:
            steps = -(-(last - first - self.config.length) // self.manifest.alignment)
            start += int(random.integers(0, steps + 1)) * self.manifest.alignment
        end = min(start + self.config.length, last)
        inputs = window_inputs(self.split, start, end, document, self.manifest.padding_id)
        targets = self.split.tokens[start:end].astype(np.int64)
        if self.config.transpose != (0, 0) and self.manifest.shift_range is not None:
            shift = self._shift(document, random)
            low, high = self.manifest.shift_range
            for ids in (inputs, targets):
                ids[(ids >= low) & (ids <= high)] += shift
        return inputs, targets, (self.split.flags[start:end] & SCORED).astype(bool)

    def _shift(self, document: int, random: np.random.Generator) -> int:
        assert self.manifest.shift_range is not None
        low, high = self.manifest.shift_range
        ids = self.split.document(document)
        movable = ids[(ids >= low) & (ids <= high)].astype(np.int64)
        if len(movable) == 0:
            return 0
        lowest = max(self.config.transpose[0], low - int(movable.min()))
        highest = min(self.config.transpose[1], high - int(movable.max()))
        return int(random.integers(lowest, highest + 1))


class DrawnBatches(Dataset[Batch]):
    """As `TrainingBatches`, of a store that draws its windows itself."""

    def __init__(
        self,
        store: DrawingStore,
        config: DataConfig,
        seed: int,
        *,
        length_multiple: int = 1,
        pad_whole: bool = False,
    ) -> None:
        _check_transpose(store.manifest, config)
        self.windows = store.windows(
            "train",
            length=config.length,
            batch_size=config.batch_size,
            seed=seed,
            reverse_complement=config.reverse_complement,
            soft_mask_weight=config.soft_mask_weight,
        )
        self.padding_id, self.length = store.manifest.padding_id, config.length
        self.length_multiple, self.pad_whole = length_multiple, pad_whole
        self.whole, self.one_target = self.windows.whole, self.windows.one_target

    def __getitem__(self, step: int) -> Batch:
        ids, targets, counts = self.windows(step)
        whole = self.pad_whole and self.whole
        more = (self.length if whole else _rounded(ids.shape[1], self.length_multiple)) - ids.shape[1]
        if more:
            ids, targets = (
                np.pad(each, ((0, 0), (0, more)), constant_values=self.padding_id) for each in (ids, targets)
            )
            counts = np.pad(counts, ((0, 0), (0, more)))
        return Batch(torch.from_numpy(ids), torch.from_numpy(targets), torch.from_numpy(counts))


def _mean_longest(lengths: np.ndarray, count: int) -> float:
    """Of the longest of so many drawn with replacement, the mean."""
    at_most = (np.arange(len(lengths) + 1) / len(lengths)) ** count
    return float(np.sort(lengths) @ np.diff(at_most))


def _check_transpose(manifest: Manifest, config: DataConfig) -> None:
    if config.transpose != (0, 0) and manifest.shift_range is None:
        raise SeqpopeError(
            f"{manifest.dataset} cannot be transposed: set data.transpose to [0, 0], it is "
            f"{list(config.transpose)}"
        )


def _rounded(length: int, multiple: int) -> int:
    """As short as a batch allows on a grid, finer for short ones: compiled models prefer few lengths."""
    grid = multiple if length > multiple // 2 else max(1, multiple // 16)
    return -(-length // grid) * grid


class Steps(Sampler[int]):
    """Step numbers from `start` to `stop` - 1; a resumed run starts where it was."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        # Of the whole run: Lightning counts the batches of earlier starts too when it asks which is the last.
        return self.stop


class TokenDataModule(lightning.LightningDataModule):
    """Training batches of a store for Lightning."""

    def __init__(
        self,
        store: Store,
        config: DataConfig,
        *,
        seed: int,
        steps: int,
        start_step: int = 0,
        length_multiple: int = 1,
        pad_whole: bool = False,
        workers: int = 0,
    ) -> None:
        super().__init__()
        shape: dict[str, Any] = {"length_multiple": length_multiple, "pad_whole": pad_whole}
        self.batches: TrainingBatches | DrawnBatches
        if isinstance(store, DrawingStore):
            self.batches = DrawnBatches(store, config, seed, **shape)
        else:
            self.batches = TrainingBatches(store.split("train"), store.manifest, config, seed, **shape)
        self.steps, self.start_step, self.workers = steps, start_step, workers

    def train_dataloader(self) -> DataLoader[Batch]:
        if self.workers:
            kill_workers_at_exit()
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=Steps(self.start_step, self.steps),
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            collate_fn=None,
            worker_init_fn=leave_signals_to_the_trainer if self.workers else None,
        )


def leave_signals_to_the_trainer(_: int) -> None:
    """Start a worker that does not end at Ctrl-C or a cluster's TERM, which reach every process of the group.

    The trainer then finishes its step and saves, for which it still needs this worker.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
