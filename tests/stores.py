"""A tiny synthetic token store for tests: small to train on, and learnable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from seqpope.data.shards import SCORED, Manifest, Split, TokenStore, fingerprint, pack, write_store

# On models this small two threads wait for each other far longer than they compute.
torch.set_num_threads(1)

PADDING, SILENCE, LOWEST, HIGHEST = 0, 1, 2, 13
VOCABULARY = HIGHEST + 1
ALIGNMENT = 4
CYCLE = 6  # different ids in a document: room for some transposition, and easy to learn


def make_documents(lengths: list[int], seed: int) -> list[np.ndarray]:
    """Rising scales that start anywhere, with a silence at every seventh place."""
    random = np.random.default_rng(seed)
    documents = []
    for length in lengths:
        ids = LOWEST + 2 + (random.integers(CYCLE) + np.arange(length)) % CYCLE
        ids[6::7] = SILENCE
        documents.append(ids.astype(np.uint8))
    return documents


def make_split(lengths: list[int], seed: int = 0, *, unscored: int = 0) -> Split:
    """Documents of these lengths; every `unscored`-th token is not scored, 0 scores all."""
    flags = []
    for length in lengths:
        flag = np.full(length, SCORED, np.uint8)
        if unscored:
            flag[unscored - 1 :: unscored] = 0
        flag[1::2] |= 2
        flags.append(flag)
    return pack(make_documents(lengths, seed), flags, [f"piece-{i}" for i in range(len(lengths))], np.uint8)


def make_manifest(**changes) -> Manifest:
    """What the store says of itself."""
    specification = {"name": "synthetic"}
    values = {
        "domain": "music",
        "dataset": "tiny",
        "tokenizer": specification,
        "fingerprint": fingerprint(specification),
        "vocabulary_size": VOCABULARY,
        "padding_id": PADDING,
        "alignment": ALIGNMENT,
        "units": {"step": 0.25},
        "strata": ["odd"],
        "shift_range": (LOWEST, HIGHEST),
        "baselines": {"unigram": {"train": 2.0, "validation": 2.0, "test": 2.0}},
    }
    return Manifest(**{**values, **changes})


def make_store(tmp_path: Path, *, unscored: int = 0, **changes) -> TokenStore:
    """Write a store to tmp_path / "data" / "tiny" and open it."""
    folder = tmp_path / "data" / "tiny"
    splits = {
        "train": make_split([21, 40, 8, 33, 16, 27, 12], 1, unscored=unscored),
        "validation": make_split([30, 9, 17], 2, unscored=unscored),
        "test": make_split([25, 14], 3, unscored=unscored),
    }
    write_store(folder, make_manifest(**changes), splits)
    return TokenStore(folder)
