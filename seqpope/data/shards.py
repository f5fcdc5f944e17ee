"""The one owner of the token-store format.

A store is a folder: `manifest.json` and, for each split, three NumPy files that are memory-mapped on
reading:

    SPLIT.tokens.npy   (N,) uint8 or uint16   token ids of all documents, end to end
    SPLIT.starts.npy   (documents + 1,) int64 where each document starts; the last entry is N
    SPLIT.flags.npy    (N,) uint8             bit 0: the token is scored; bit k: it is in stratum k

The manifest says everything that training and evaluation need to know of the tokens, so that neither
ever imports a tokenizer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seqpope.errors import SeqpopeError

FORMAT = 1
SCORED = 1
SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"
# Of this store; and of stores of bases, which are written elsewhere.
_FILES = {MANIFEST, *(f"{split}.{part}.npy" for split in SPLITS for part in ("tokens", "starts", "flags"))}
_FILES |= {"bases.u8", "strata.npy", "stretches.npy"} | {f"{split}.examples.npy" for split in SPLITS}
_FILES |= {name for split in SPLITS for name in (f"references-{split}.npz", f".references-{split}.lock")}


class StoreError(SeqpopeError):
    """A token store is missing, damaged, or was written by another version."""


@dataclass
class Manifest:
    """What training, evaluation and reports need to know of a store.

    `units` maps a unit's name to units per token (a chorale token is a quarter of a time step); units that tokens
    have no constant number of (notes, seconds) are counted for each document in `splits`.
    `strata` names flag bits 1, 2, ... `shift_range` is the inclusive range of ids that a transposition
    moves by one a semitone, None where the data cannot be transposed. `alignment` is the number of tokens
    a window may start at multiples of, counted from its document's start. `baselines` maps a baseline's
    name to nats/token for each split, counted on the training split alone, augmented copies left out. `splits`
    (document and token counts, names and units of documents) and `content` (SHA-256 over all arrays) are filled
    by `write_store`.
    """

    domain: str
    dataset: str
    tokenizer: dict[str, Any]
    fingerprint: str
    vocabulary_size: int
    padding_id: int
    alignment: int = 1
    units: dict[str, float] = field(default_factory=dict)
    strata: list[str] = field(default_factory=list)
    shift_range: tuple[int, int] | None = None
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    content: str = ""
    format: int = FORMAT


@dataclass(frozen=True)
class Split:
    """Documents of one split: `tokens` (N,), `starts` (documents + 1,), `flags` (N,), and their names.

    `units` maps a unit's name to how many of it each document has, (documents,).
    """

    tokens: np.ndarray
    starts: np.ndarray
    flags: np.ndarray
    names: list[str]
    units: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def document(self, index: int) -> np.ndarray:
        """Token ids of document `index`, (length,)."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]


def fingerprint(specification: dict[str, Any]) -> str:
    """SHA-256 of a tokenizer's specification as canonical JSON: equal tokens, equal fingerprint."""
    text = json.dumps(specification, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place only if the block succeeds."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield fresh
        os.chmod(fresh, 0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            os.replace(target, old)
            os.replace(fresh, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def leftovers(target: Path) -> list[Path]:
    """Folders that `replace_folder` made beside `target`: of processes that were killed or are at it now."""
    # As mkdtemp ends names: .a.b.xxxxxxxx is not one of a's.
    name = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]


def pack(
    documents: list[np.ndarray],
    flags: list[np.ndarray],
    names: list[str],
    dtype: Any,
    units: dict[str, list[float]] | None = None,
) -> Split:
    """Lay documents of token ids and their flag bytes end to end; `units` has a number for each document."""
    lengths = [len(document) for document in documents]
    if lengths != [len(flag) for flag in flags] or len(names) != len(documents):
        raise ValueError("documents, flags and names must correspond one to one, token by token")
    counted = {name: np.array(counts, np.float64) for name, counts in (units or {}).items()}
    if any(len(counts) != len(documents) for counts in counted.values()):
        raise ValueError("units must be counted for each document")
    starts = np.zeros(len(documents) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    tokens = np.concatenate([*documents, np.zeros(0, dtype)]).astype(dtype)
    return Split(tokens, starts, np.concatenate([*flags, np.zeros(0, np.uint8)]).astype(np.uint8), names, counted)


def write_store(folder: Path, manifest: Manifest, splits: dict[str, Split]) -> None:
    """Write a store beside `folder`, then put it in place; `folder` is never seen half-written."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        manifest.splits[name] = {
            "documents": len(split),
            "tokens": len(split.tokens),
            "scored": int((split.flags & SCORED).astype(bool).sum()),
            "names": split.names,
            "units": {unit: counts.tolist() for unit, counts in split.units.items()},
        }
        for array in (split.tokens, split.starts, split.flags):
            digest.update(np.ascontiguousarray(array).data)
    manifest.content = digest.hexdigest()
    with replace_folder(folder) as fresh:
        for name, split in splits.items():
            np.save(fresh / f"{name}.tokens.npy", split.tokens)
            np.save(fresh / f"{name}.starts.npy", split.starts)
            np.save(fresh / f"{name}.flags.npy", split.flags)
        (fresh / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")


def check_place(folder: Path, dataset: str) -> None:
    """Raise StoreError if a store of the data set, which replaces the folder, would destroy something else."""
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StoreError(f"{folder} is a file: name a folder that is new or holds a store of {dataset}")
    others = sorted(path.name for path in folder.iterdir() if path.name not in _FILES)
    if others:
        raise StoreError(
            f"{folder} holds {others[0]}, which is no part of a store, and would be replaced: name a folder that "
            f"is new or holds a store of {dataset}"
        )
    if (folder / MANIFEST).is_file():
        try:
            there = json.loads((folder / MANIFEST).read_text())["dataset"]
        except (OSError, ValueError, TypeError, KeyError):
            return  # a damaged one may be made again
        if there != dataset:
            raise StoreError(f"{folder} is a store of {there}: name another folder for one of {dataset}")


def find_store(data_folder: Path, dataset: str) -> Path:
    """Folder of a data set's store: `data_folder` itself if it is one, else that of the data set's name in it.

    Raises:
        StoreError: the folder is a store of another data set.
    """
    try:
        found = json.loads((Path(data_folder) / MANIFEST).read_text())["dataset"]
    except (OSError, ValueError, TypeError, KeyError):
        return Path(data_folder) / dataset
    if found != dataset:
        raise StoreError(
            f"{data_folder} is a store of {found}, not of {dataset}: give a store of {dataset}, or a folder that "
            "holds one of that name"
        )
    return Path(data_folder)


def in_folder(store: Path, dataset: str) -> str:
    """The option with which `prepare DATASET` makes a store just there; none where it would by itself."""
    if store.name != dataset:
        return f" --out {shlex.quote(str(store))}"
    return "" if store.parent == Path("data") else f" --data-folder {shlex.quote(str(store.parent))}"


def prepare_again(store: Path, dataset: str) -> str:
    """What to do about a store that cannot be read."""
    return f"prepare it again with `seqpope prepare {dataset}{in_folder(store, dataset)} --force`"


class Store(Protocol):
    """A prepared data set as training and evaluation know it, however its tokens are kept."""

    folder: Path
    manifest: Manifest

    def split(self, name: str, at_least: int = 0) -> Split:
        """Open or make one split.

        Args:
            at_least: where the store cuts documents itself, it cuts none shorter than so many tokens for its own
                reasons; others have the documents they have.

        Raises:
            StoreError: the store has no such split, or it is damaged.
        """
        ...


class TokenStore:
    """A prepared data set opened for reading.

    Raises:
        StoreError: nothing is there, a file is missing or of the wrong size, or the format is unknown.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise StoreError(
                f"no prepared data in {self.folder} (manifest.json is missing): "
                f"run `seqpope prepare {self.folder.name}{in_folder(self.folder, self.folder.name)}` first"
            )
        again = prepare_again(self.folder, self.folder.name)
        try:
            raw = json.loads(path.read_text())
            again = prepare_again(self.folder, str(raw.get("dataset", self.folder.name)))
            if raw.get("format") != FORMAT:
                raise StoreError(
                    f"{path} has store format {raw.get('format')!r}, this version reads {FORMAT}: {again}"
                )
            known = {f.name for f in fields(Manifest)}
            self.manifest = Manifest(**{key: value for key, value in raw.items() if key in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"{path} is not a store manifest ({error}): {again}") from error
        if self.manifest.shift_range is not None:
            low, high = self.manifest.shift_range
            self.manifest.shift_range = (low, high)

    def split(self, name: str, at_least: int = 0) -> Split:
        """Open one split, memory-mapped; its documents are as they are (`at_least`).

        Raises:
            StoreError: the store has no such split, or its files do not agree with the manifest.
        """
        if name not in self.manifest.splits:
            raise StoreError(
                f"{self.folder} has the splits {', '.join(self.manifest.splits)}; {name!r} was asked for"
            )
        described = self.manifest.splits[name]
        try:
            tokens, starts, flags = (
                np.load(self.folder / f"{name}.{part}.npy", mmap_mode="r", allow_pickle=False)
                for part in ("tokens", "starts", "flags")
            )
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(
                f"split {name!r} of {self.folder} cannot be read ({error}): "
                f"{prepare_again(self.folder, self.manifest.dataset)}"
            ) from error
        if not (len(tokens) == len(flags) == described["tokens"] and len(starts) == described["documents"] + 1):
            raise StoreError(
                f"split {name!r} of {self.folder} should have {described['tokens']} tokens in "
                f"{described['documents']} documents, its files hold {len(tokens)} in {len(starts) - 1}: "
                f"{prepare_again(self.folder, self.manifest.dataset)}"
            )
        units = {unit: np.array(counts) for unit, counts in described.get("units", {}).items()}
        return Split(tokens, starts, flags, described["names"], units)
