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
from seqpope.domains.genome import leakage
from seqpope.domains.genome.markov import Markov, count_bases
from seqpope.domains.genome.store import GenomeStore
from seqpope.files import locked, write_bytes
from seqpope.results import ALL

VERSION = 2  # raised when what is measured changes, so that kept ones are measured again
ORDERS = (2, 6, 12)
MASKED, UNIQUE, SEEN, NOT_SEEN = "soft-masked", "unique", "seen in training", "not seen in training"
UNSEEN_UNIQUE = f"{UNIQUE}, {NOT_SEEN}"
TAKEN = (ALL, MASKED, UNIQUE, SEEN, NOT_SEEN, UNSEEN_UNIQUE)  # names in a report that no BED file may have


def measure(
    store: GenomeStore, name: str, progress: Callable[[int, int], None] | None = None
) -> References | None:
    """Markov baselines and strata of a split; None for the training split, which is all counted and all seen.

    Baselines: interpolated Markov models of order 2, 6 and 12 (of lower order than 12 where the training bases are
    fewer than a sixteenth of its contexts), each document read from its start as the model does. Strata: seen in
    training (more than half of a token's bases lie in a 32-mer that the training sequences have on either strand),
    not seen, and, of a genome with soft-masking, unique and not seen; for each BED file the tokens that are not in
    its stratum.

    It takes minutes and a gigabyte for a human genome; the result is kept in the store's folder, if that can be
    written to, and read from there the next time.

    Args:
        progress: called with thousands of training bases read, and what is to be read of them.
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
        made = measure_anew(store, name, progress)
        with contextlib.suppress(OSError):
            write_bytes(file, _packed(made, store.manifest.content))
    return made


def measure_anew(store: GenomeStore, name: str, progress: Callable[[int, int], None] | None = None) -> References:
    """As `measure`, without looking for what was kept, of any split."""
    total = _size(store.known("train"))
    passes = 0

    def shown(done: int) -> None:
        if progress is not None:
            progress((passes * total + done) // 1000, 2 * total // 1000)

    known = store.known(name)
    found = leakage.find_shared([*_bases(store, known)], _bases(store, store.known("train")), progress=shown)
    passes = 1
    top = max(k for k in range(ORDERS[-1] + 1) if k <= 1 or 4**k <= 16 * total)
    orders = sorted({min(k, top) for k in ORDERS})
    counts = count_bases(_bases(store, store.known("train")), orders[-1], shown)
    model = Markov(counts, [*_bases(store, store.documents("validation"))])
    documents = store.documents(name)
    # As the model does, a document is read from its start, without what comes before.
    nats = model.nats([*_bases(store, documents)], orders)
    inside = _within(documents, known, found.masks)
    k = store.reading.k
    tokens = nats.reshape(len(orders), -1, k).sum(-1, dtype=np.float64).astype(np.float32)
    seen = 2 * inside.reshape(-1, k).sum(1) > k
    flags, told = store.split(name).flags, store.manifest.strata
    strata = {
        complement(title): ~(flags & (2 << bit)).astype(bool)
        for bit, title in enumerate(told)
        if title not in (MASKED, UNIQUE)
    }
    strata |= {SEEN: seen, NOT_SEEN: ~seen}
    if {MASKED, UNIQUE} <= {*told} and (flags & (2 << told.index(MASKED))).any():
        strata[UNSEEN_UNIQUE] = (flags & (2 << told.index(UNIQUE))).astype(bool) & ~seen
    return References(
        {f"Markov, order {order}": row for order, row in zip(orders, tokens, strict=True)},
        strata,
        [
            f"Markov models count {total:,} training bases on both strands; orders are interpolated with weights "
            "chosen on validation" + (", this very split." if name == "validation" else "."),
            f"Of the {found.words:,} {found.k}-mers of the split {100 * found.share:.1f}% occur in the training "
            "sequences on either strand; a token is seen in training if more than half of its bases lie in such a "
            "one.",
        ],
    )


def complement(stratum: str) -> str:
    """What the tokens that are not in a BED file's stratum are called."""
    return f"not {stratum}"


def _bases(store: GenomeStore, intervals: np.ndarray) -> Iterator[np.ndarray]:
    """Bases of intervals (I, 3): number of the contig, start, end."""
    names = list(store.contigs)
    for number, start, end in intervals.tolist():
        yield store.fetch(names[number], start, end)


def _size(intervals: np.ndarray) -> int:
    return int((intervals[:, 2] - intervals[:, 1]).sum())


def _within(documents: np.ndarray, stretches: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Masks of stretches (P, 3) cut to the documents (D, 3) inside them, end to end, (N,) bool."""
    out = [np.zeros(0, bool)]
    place = 0
    for number, start, end in documents.tolist():  # both are in order
        while not (stretches[place, 0] == number and stretches[place, 1] <= start and end <= stretches[place, 2]):
            place += 1
        out.append(masks[place][start - stretches[place, 1] : end - stretches[place, 1]])
    return np.concatenate(out)


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
