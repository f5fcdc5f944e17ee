"""What preparing data sets has in common: one at a time, only when needed; and chorales -> store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seqpope import files
from seqpope.data.baselines import count_baseline
from seqpope.data.shards import SCORED, SPLITS, Manifest, Split, StoreError, TokenStore, pack, write_store
from seqpope.domains.music.chorales.codec import Chorale
from seqpope.domains.music.chorales.corpus import shares_opening, shares_tune
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.errors import SeqpopeError

PREPARATION = 1  # raised when flags or the choice of pieces change, so that older stores are made again
STRATA = ["changed", "novel tune", "novel tune in any variant"]
CHANGED, NOVEL_TUNE, NOVEL_VARIANT = (1 << (bit + 1) for bit in range(len(STRATA)))
BASELINES: dict[str, dict[str, Any]] = {
    "unigram": {},
    "per-voice bigram": {"period": 4, "lags": (4,)},
    "voice, previous pitch, step mod 4": {"period": 16, "lags": (4,)},
    "voice, previous pitch, step mod 4, token before": {"period": 16, "lags": (4, 1)},
}


@contextlib.contextmanager
def locked(folder: Path, progress: Callable[[str], None] = print) -> Iterator[None]:
    """Hold a lock beside `folder`, so that of two processes preparing it the second waits for the first.

    Without fcntl (Windows) there is no lock; the store is still put in place whole.

    Raises:
        SeqpopeError: nothing can be written beside the folder.
    """
    folder = Path(folder)
    told = f"another process is preparing {folder}: waiting for it"
    with contextlib.ExitStack() as held:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(files.locked(folder.parent / f".{folder.name}.lock", lambda: progress(told)))
        except OSError as error:
            raise SeqpopeError(f"nothing can be written to {folder.parent} ({error.strerror})") from error
        yield


def finished(folder: Path, dataset: str, fingerprint: str, **provenance: Any) -> Manifest | None:
    """Manifest of a complete store in `folder` that preparing would make again, else None.

    That is one of the same data set and tokenizer, with these values in its provenance; None asks for nothing.
    """
    try:
        store = TokenStore(folder)
        for name in SPLITS:
            store.split(name)
    except StoreError:
        return None
    manifest = store.manifest
    same = (
        manifest.dataset == dataset
        and manifest.fingerprint == fingerprint
        and all(value is None or manifest.provenance.get(key) == value for key, value in provenance.items())
    )
    return manifest if same else None


def write(
    folder: Path, manifest: Manifest, splits: dict[str, Split], progress: Callable[[str], None] = print
) -> None:
    """Write a store and say what is in it.

    Raises:
        SeqpopeError: the store cannot be written.
    """
    try:
        write_store(folder, manifest, splits)
    except OSError as error:
        size = sum(split.tokens.nbytes + split.flags.nbytes for split in splits.values()) / 1e6
        raise SeqpopeError(
            f"the store {folder} cannot be written ({error.strerror or error}): "
            f"it needs {size:.0f} megabytes of room and a folder that may be replaced"
        ) from error
    counts = ", ".join(
        f"{name} {described['documents']} pieces {described['tokens']} tokens"
        for name, described in manifest.splits.items()
    )
    progress(f"{folder}: {counts}")
    for name, figures in manifest.baselines.items():
        progress(f"  {name}: {figures['test']:.4f} nats/token on test")


def changed_tokens(ids: np.ndarray, voices: int = 4) -> np.ndarray:
    """Which tokens (length,) differ from the one `voices` before; those of the first step count as such."""
    changed = np.ones(len(ids), bool)
    changed[voices:] = ids[voices:] != ids[:-voices]
    return changed


def pack_chorales(
    splits: dict[str, list[Chorale]], opening: dict[str, list[bool]], variant: dict[str, list[bool]]
) -> dict[str, Split]:
    """Tokens and flags of the pieces of each split, given which pieces share a tune with another split.

    Raises:
        SeqpopeError: a pitch is outside the vocabulary.
    """
    tokenizer = ChoraleTokenizer()
    packed = {}
    for name, pieces in splits.items():
        documents = [tokenizer.encode(chorale) for chorale in pieces]
        flags = []
        for ids, by_opening, by_variant in zip(documents, opening[name], variant[name], strict=True):
            flag = np.full(len(ids), SCORED, np.uint8)
            flag[changed_tokens(ids)] |= CHANGED
            if not by_opening:
                flag |= NOVEL_TUNE
            if not by_variant and not by_opening:
                flag |= NOVEL_VARIANT
            flags.append(flag)
        packed[name] = pack(documents, flags, [chorale.name for chorale in pieces], np.uint8)
    return packed


def write_chorales(
    folder: Path,
    dataset: str,
    splits: dict[str, list[Chorale]],
    provenance: dict[str, Any],
    progress: Callable[[str], None] = print,
) -> Manifest:
    """Write the token store of chorales to `folder`, with strata and baselines, and return its manifest.

    Raises:
        SeqpopeError: a pitch is outside the vocabulary, or the store cannot be written.
    """
    began = time.monotonic()
    tokenizer = ChoraleTokenizer()
    opening, variant = shares_opening(splits), shares_tune(splits)
    packed = pack_chorales(splits, opening, variant)
    sharing = {
        f"pieces that share {what} with another split": {
            name: f"{sum(shared)} of {len(shared)}" for name, shared in by_split.items()
        }
        for what, by_split in (("their opening", opening), ("a variant of a tune", variant))
    }
    manifest = Manifest(
        domain="music",
        dataset=dataset,
        tokenizer=tokenizer.specification,
        fingerprint=tokenizer.fingerprint,
        vocabulary_size=tokenizer.vocabulary_size,
        padding_id=tokenizer.padding_id,
        alignment=tokenizer.alignment,
        units=dict(tokenizer.units),
        strata=list(STRATA),
        shift_range=tokenizer.shift_range,
        baselines={
            name: count_baseline(packed, tokenizer.vocabulary_size, tokenizer.padding_id, **context)
            for name, context in BASELINES.items()
        },
        provenance={**provenance, "preparation": PREPARATION, **sharing},
    )
    write(folder, manifest, packed, progress)
    progress(f"{folder}: prepared in {time.monotonic() - began:.1f} s")
    return manifest


def run(prepare: Callable[..., Manifest], default: Path, description: str, takes_source: bool) -> int:
    """Command line of one preparing module: --out, --force and, where the data has to come, --source."""
    import argparse
    import sys

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=default, help="folder of the token store")
    parser.add_argument("--force", action="store_true", help="prepare again what is already there")
    if takes_source:
        parser.add_argument("--source", type=Path, help="a copy of the raw file, instead of downloading it")
    given = vars(parser.parse_args())
    try:
        prepare(given["out"], source=given.get("source"), force=given["force"])
    except SeqpopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
