"""Prepared examples of Indirect Indexing: whole, in fixed rows, their target alone scored.

A store is a folder: `SPLIT.examples.npy` (count, LONGEST) uint8 for each split, rows ended by padding, and
`manifest.json`, that of every store (`shards.Manifest`) with "indexing" beside it: the seed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from seqpope.data.shards import (
    MANIFEST,
    SCORED,
    SPLITS,
    Manifest,
    Split,
    StoreError,
    prepare_again,
    replace_folder,
)
from seqpope.domains.indexing.task import LONGEST, PADDING_ID, IndexingTokenizer, draw
from seqpope.errors import SeqpopeError

COUNTS = {"train": 1_000_000, "validation": 10_000, "test": 10_000}  # the paper's
FORMAT = 1  # of the part under "indexing"


class IndexingStore:
    """A prepared set opened for reading: a store as `TokenStore` is one.

    Raises:
        StoreError: nothing is there, a file is missing or damaged, or the format is unknown.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        again = prepare_again(self.folder, "indexing")
        try:
            raw = json.loads((self.folder / MANIFEST).read_text())
            if raw["indexing"]["format"] != FORMAT:
                raise StoreError(
                    f"{self.folder} has format {raw['indexing']['format']!r}, this version reads {FORMAT}: {again}"
                )
            known = {f.name for f in fields(Manifest)}
            self.manifest = Manifest(**{key: value for key, value in raw.items() if key in known})
            self._examples = {
                name: np.load(self.folder / f"{name}.examples.npy", mmap_mode="r", allow_pickle=False)
                for name in self.manifest.splits
            }
        except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
            raise StoreError(f"{self.folder} cannot be read as prepared examples ({error!r}): {again}") from error
        for name, rows in self._examples.items():
            expected = (self.manifest.splits[name]["documents"], LONGEST)
            if rows.shape != expected:
                raise StoreError(
                    f"split {name!r} of {self.folder} should be {expected}, it is {rows.shape}: {again}"
                )
            if rows.dtype != np.uint8:
                raise StoreError(f"split {name!r} of {self.folder} should be uint8, it is {rows.dtype}: {again}")

    def examples(self, name: str) -> np.ndarray:
        """Examples of a split, (count, LONGEST) uint8, memory-mapped.

        Raises:
            StoreError: the store has no such split.
        """
        if name not in self._examples:
            raise StoreError(f"{self.folder} has the splits {', '.join(self._examples)}; {name!r} was asked for")
        return self._examples[name]

    def split(self, name: str, at_least: int = 0) -> Split:
        """A split as documents, an example each (`at_least` changes nothing).

        Raises:
            StoreError: the store has no such split.
        """
        rows = np.asarray(self.examples(name))
        lengths = np.count_nonzero(rows, axis=1)
        starts = np.concatenate(([0], np.cumsum(lengths)))
        flags = np.zeros(starts[-1], np.uint8)
        flags[starts[1:] - 1] = SCORED
        return Split(rows[rows != PADDING_ID], starts, flags, [str(n) for n in range(len(rows))])

    def windows(
        self,
        split: str,
        *,
        length: int,
        batch_size: int,
        seed: int,
        reverse_complement: bool = True,
        soft_mask_weight: float = 1.0,
    ) -> IndexingWindows:
        """Batches of whole examples; there is no other strand to read.

        Raises:
            SeqpopeError: a window is shorter than the longest example, or soft-masked tokens have a weight.
        """
        if soft_mask_weight != 1:
            raise SeqpopeError("indexing has no soft-masked tokens: leave data.soft_mask_weight at 1")
        if length < LONGEST:
            raise SeqpopeError(
                f"data.length is {length}, and an example has up to {LONGEST} tokens: set it to {LONGEST}"
            )
        return IndexingWindows(self.examples(split), batch_size, seed)


class IndexingWindows:
    """Batch number `step`, a function of (seed, step): each pass over the examples is a permutation of them."""

    whole = one_target = True

    def __init__(self, examples: np.ndarray, batch_size: int, seed: int) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self._order: tuple[int, np.ndarray] | None = None

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and targets (B, LONGEST) int64, and where the target stands (B, LONGEST) bool."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = places // len(self.examples)
        chosen = np.concatenate(
            [self._permutation(int(e))[places[epochs == e] % len(self.examples)] for e in np.unique(epochs)]
        )
        targets = np.asarray(self.examples[chosen]).astype(np.int64)
        ids = np.full_like(targets, PADDING_ID)
        ids[:, 1:] = targets[:, :-1]
        last = np.count_nonzero(targets, axis=1) - 1
        return ids, targets, np.arange(LONGEST) == last[:, None]

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            random = np.random.default_rng([self.seed, 0, epoch])
            self._order = (epoch, random.permutation(len(self.examples)))
        return self._order[1]


def write_examples(folder: Path, seed: int, counts: dict[str, int]) -> Manifest:
    """Draw every split and put the store in place of `folder`, which is never seen half-written."""
    tokenizer = IndexingTokenizer()
    manifest = Manifest(
        domain="indexing",
        dataset="indexing",
        tokenizer=tokenizer.specification,
        fingerprint=tokenizer.fingerprint,
        vocabulary_size=tokenizer.vocabulary_size,
        padding_id=tokenizer.padding_id,
        provenance={"source": f"drawn from seed {seed}", "seed": seed, "counts": counts},
    )
    digest = hashlib.sha256()
    with replace_folder(folder) as fresh:
        for number, name in enumerate(SPLITS):
            rows = draw(seed, number, counts[name])
            digest.update(rows.data)
            np.save(fresh / f"{name}.examples.npy", rows)
            manifest.splits[name] = {
                "documents": len(rows),
                "tokens": int(np.count_nonzero(rows)),
                "scored": len(rows),
            }
        manifest.content = digest.hexdigest()
        told = {**asdict(manifest), "indexing": {"format": FORMAT}}
        (fresh / MANIFEST).write_text(json.dumps(told, indent=1) + "\n")
    return manifest
