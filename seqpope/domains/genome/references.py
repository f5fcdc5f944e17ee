"""What a genome model's NLL stands beside: Markov models on the very same bases, and which of these it has seen.

Measured once for a store's split, at its first evaluation, and kept beside the store's files.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.data.baselines import References
from seqpope.data.shards import SCORED, Split, StoreError, TokenStore
from seqpope.domains.base import find_tokenizer
from seqpope.domains.genome import leakage
from seqpope.domains.genome.bases import letter_codes
from seqpope.domains.genome.markov import Markov, count_bases
from seqpope.domains.genome.sequences import UNKNOWN, known_stretches
from seqpope.files import locked, write_bytes

VERSION = 1  # raised when what is measured changes, so that kept ones are measured again
ORDERS = (2, 6, 12)
MASKED, UNIQUE, SEEN, NOT_SEEN = "soft-masked", "unique", "seen in training", "not seen in training"
UNSEEN_UNIQUE = f"{UNIQUE}, {NOT_SEEN}"
_NO_BASE = 255


def measure(store: TokenStore, name: str, progress: Callable[[int, int], None] | None = None) -> References | None:
    """Markov baselines and strata of a split; None for the training split, which is all counted and all seen.

    Baselines: interpolated Markov models of order 2, 6 and 12 (of lower order than 12 where the training bases are
    fewer than a sixteenth of its contexts), each document read from its start as the model does. Strata: unique
    (where soft-masked is one), seen (more than half of a token's bases lie in a 32-mer that the training sequences
    have on either strand), not seen, and unique and not seen.

    It takes minutes and a gigabyte for a human genome; the result is kept in the store's folder, if that can be
    written to, and read from there the next time.

    Args:
        progress: called with thousands of training bases read, and what is to be read of them.

    Raises:
        StoreError: no tokenizer of DNA made the store, or a scored token stands for no base.
    """
    if name == "train":
        return None
    file = store.folder / f"references-{name}.npz"
    kept = _read(file, store.manifest.content)
    if kept is not None:
        return kept
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(locked(store.folder / f".references-{name}.lock"))
            kept = _read(file, store.manifest.content)  # by a process that this one waited for
            if kept is not None:
                return kept
        made = _measure(store, name, progress)
        with contextlib.suppress(OSError):
            write_bytes(file, _packed(made, store.manifest.content))
    return made


def _measure(store: TokenStore, name: str, progress: Callable[[int, int], None] | None) -> References:
    manifest, split = store.manifest, store.split(name)
    table = _letters(store)
    documents = [table[split.document(d)] for d in range(len(split))]  # (T, bases of the longest token)
    bases = np.concatenate([ids[ids != _NO_BASE] for ids in documents])
    sizes = np.concatenate([(ids != _NO_BASE).sum(1) for ids in documents])
    first = np.cumsum(sizes) - sizes
    if ((split.flags & SCORED).astype(bool) & (sizes == 0)).any():
        raise StoreError(
            f"split {name!r} of {store.folder} scores tokens that stand for no base: prepare it again"
        )
    of_document = np.repeat(np.arange(len(documents)), [int((ids != _NO_BASE).sum()) for ids in documents])
    # N and documents' borders cut alike.
    borders = np.flatnonzero(np.diff(of_document)) + 1
    stretches = [
        (a, b)
        for start, end in zip(np.append(0, borders), np.append(borders, len(bases)), strict=True)
        for a, b in known_stretches(bases[start:end], start)
    ]
    test = [bases[a:b] for a, b in stretches]
    total = sum(map(len, _training(store, table)))

    def shown(done: int) -> None:
        if progress is not None:
            progress((passes * total + done) // 1000, 2 * total // 1000)

    passes = 0
    found = leakage.find_shared(test, _training(store, table), progress=shown)
    passes = 1
    top = max(k for k in range(ORDERS[-1] + 1) if k <= 1 or 4**k <= 16 * total)
    orders = sorted({min(k, top) for k in ORDERS})
    counts = count_bases(_training(store, table), orders[-1], shown)
    held_out = store.split("validation")
    validation = [document[a:b] for document in _documents(held_out, table) for a, b in known_stretches(document)]
    model = Markov(counts, validation)
    nats = np.zeros((len(orders), len(bases)))
    inside = np.zeros(len(bases), bool)
    if test:
        places = np.concatenate([np.arange(a, b) for a, b in stretches])
        nats[:, places] = model.nats(test, orders)
        inside[places] = np.concatenate(found.masks)

    def per_token(values: np.ndarray) -> np.ndarray:
        sums = np.append(0, np.cumsum(values, dtype=np.float64))
        return sums[first + sizes] - sums[first]

    seen = 2 * per_token(inside) > sizes
    strata = {SEEN: seen, NOT_SEEN: ~seen}
    if MASKED in manifest.strata:
        unique = (split.flags & (2 << manifest.strata.index(MASKED))) == 0
        strata = {UNIQUE: unique, **strata, UNSEEN_UNIQUE: unique & ~seen}
    return References(
        {f"Markov, order {k}": per_token(row).astype(np.float32) for k, row in zip(orders, nats, strict=True)},
        strata,
        [
            f"Markov models count {total:,} training bases on both strands; orders are interpolated with weights "
            "chosen on validation"
            + (" (this very split)." if name == "validation" else ".")
            + f" Of the {found.words:,} {found.k}-mers of the split {100 * found.share:.1f}% occur in the "
            "training sequences on either strand; a token is seen in training if more than half of its bases lie "
            "in such a one.",
        ],
    )


def _letters(store: TokenStore) -> np.ndarray:
    """The bases that each token id stands for (V, bases of the longest) uint8 codes, 255 past a token's end."""
    tokenizer = find_tokenizer("dna", store.manifest.fingerprint)
    if tokenizer is None:
        raise StoreError(
            f"{store.folder} was made by a tokenizer that is not known here "
            f"({store.manifest.fingerprint[:12]}): prepare it again"
        )
    table = np.full((len(tokenizer.strings), max(map(len, tokenizer.strings))), _NO_BASE, np.uint8)
    for token, text in enumerate(tokenizer.strings):
        table[token, : len(text)] = letter_codes(text, "NACGT")
    return table


def _documents(split: Split, table: np.ndarray) -> Iterator[np.ndarray]:
    for number in range(len(split)):
        bases = table[split.document(number)]
        yield bases[bases != _NO_BASE]


def _training(store: TokenStore, table: np.ndarray) -> Iterator[np.ndarray]:
    """The known stretches of the training split."""
    for document in _documents(store.split("train"), table):
        if (document == UNKNOWN).any():
            yield from (document[a:b] for a, b in known_stretches(document))
        else:
            yield document


def _packed(made: References, content: str) -> bytes:
    """An .npz of the arrays and a JSON text that names them."""
    head = {
        "version": VERSION,
        "content": content,
        "nats": list(made.nats),
        "strata": list(made.strata),
        "text": made.text,
    }
    arrays: dict[str, Any] = {f"nats-{i}": values for i, values in enumerate(made.nats.values())}
    arrays |= {f"strata-{i}": values for i, values in enumerate(made.strata.values())}
    file = io.BytesIO()
    np.savez(file, head=np.array(json.dumps(head)), **arrays)
    return file.getvalue()


def _read(file: Path, content: str) -> References | None:
    """What was kept of this very store; None if there is nothing that can be used."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            head = json.loads(str(arrays["head"]))
            if (head["version"], head["content"]) != (VERSION, content):
                return None
            nats, strata = (
                {title: arrays[f"{kind}-{i}"] for i, title in enumerate(head[kind])} for kind in ("nats", "strata")
            )
            return References(nats, strata, head["text"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
