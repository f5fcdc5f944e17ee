"""MAESTRO v3.0.0, or any folder of piano MIDI, as REMI tokens (`python -m data_prep.maestro --out data/maestro`).

Two entries share this module: `maestro` is REMI, `maestro-performance` keeps the timing of the performance.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_prep.download import download
from data_prep.stores import finished, locked, run, write
from seqpope.data.baselines import count_baseline
from seqpope.data.shards import SCORED, SPLITS, Manifest, Split, pack
from seqpope.domains.base import find_dataset
from seqpope.domains.music.piano.codec import CodecError, parse_midi
from seqpope.domains.music.piano.corpus import (
    CorpusError,
    divide,
    divide_by_piece,
    find_catalogue,
    midi_files,
    open_source,
    read_catalogue,
    stretched_name,
)
from seqpope.domains.music.piano.tokenizer import TokenError
from seqpope.errors import SeqpopeError
from seqpope.files import sha256_of, write_bytes
from seqpope.processes import worker_pool
from seqpope.progress import Progress

URL = "https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/maestro-v3.0.0-midi.zip"
SHA256 = "70470ee253295c8d2c71e6d9d4a815189e35c89624b76d22fce5a019d5dde12c"
PREPARATION = 1  # raised when flags, units or the choice of files change, so that older stores are made again
# Trigrams take a minute more and are no better on test: 3.146 against 3.145 nats/token.
BASELINES: dict[str, dict[str, Any]] = {"unigram": {}, "bigram": {"lags": (1,)}}
FILES_AT_ONCE = 32  # what an interrupted preparation has to do again at most, for each process
SLOWEST, FASTEST = 2.0, 0.5  # factors of time: beyond, it is hardly the piece that was played
OFFICIAL, BY_PIECE, BY_CONTENT = "official", "by-piece", "by-content"


@dataclass(frozen=True)
class _Job:
    """Files that a worker tokenizes together, all times multiplied by `factor`, and where it leaves the result."""

    source: Path
    files: list[str]
    factor: float
    dataset: str
    result: Path


def prepare(
    folder: Path,
    *,
    source: Path | None = None,
    force: bool = False,
    split: str = "",
    stretch: Sequence[float] = (),
    dataset: str = "maestro",
    processes: int | None = None,
    progress: Callable[[str], None] = print,
) -> Manifest:
    """Write the token store of MAESTRO to `folder`; a complete one that is there is left alone.

    Files that are damaged, empty or no piano are left out, and the manifest says which and why. Interrupted
    work goes on where it was.

    Args:
        source: a copy of the archive, or a folder with MIDI files; downloaded to `downloads` beside the
            folder if None.
        split: official (MAESTRO's, by its catalogue), by-piece (the paper's 90/5/5; a composer's title is in
            one split), or by-content (90/5/5 by the files' hashes). Empty is official with a catalogue and
            by-content without one.
        stretch: factors from 0.5 to 2. By each of them all times of each training performance are multiplied,
            before anything is put on a grid, which makes a further training document that `stretched_name`
            names. Validation and test stay as played; so do count tables, and totals of the manifest, which says
            apart what is stretched.
        dataset: maestro or maestro-performance, which decides on the tokenizer.
        processes: how many tokenize; as many as there are CPUs (16 at most) if None; 1 works in this process.

    Raises:
        SeqpopeError: the archive cannot be had, there is nothing to tokenize or too little for three splits,
            a factor is out of range, 1 or there twice, or the store cannot be written.
    """
    folder = Path(folder)
    began = time.monotonic()
    if split not in ("", OFFICIAL, BY_PIECE, BY_CONTENT):
        raise SeqpopeError(f"unknown split {split!r}: expected {OFFICIAL}, {BY_PIECE} or {BY_CONTENT}")
    factors = _factors(stretch)
    tokenizer = find_dataset(dataset).load_tokenizer()
    with locked(folder, progress):
        archive = Path(source) if source is not None else None
        sha256 = SHA256 if archive is None else _identity(archive)
        split = split or (OFFICIAL if archive is None or _has_catalogue(archive) else BY_CONTENT)
        same = {"preparation": PREPARATION, "sha256": sha256, "split": split}
        manifest = finished(folder, dataset, tokenizer.fingerprint, **same)
        # Stores that say nothing of it are older than the option: nothing in them is stretched.
        if not force and manifest is not None and manifest.provenance.get("stretch", []) == factors:
            progress(f"{folder} is already prepared (--force prepares it again)")
            return manifest
        if archive is None:
            archive = download(URL, folder.parent / "downloads" / URL.rsplit("/")[-1], SHA256, progress=progress)
        chosen, skipped = _choose(archive, split)
        work = folder.parent / f".{folder.name}.parts"
        try:
            work.mkdir(parents=True, exist_ok=True)
            parts = _tokenize(archive, chosen, factors, dataset, tokenizer, work, sha256, processes)
        except OSError as error:
            raise SeqpopeError(
                f"nothing can be written to {work} ({error.strerror or error}): it needs "
                f"{100 * (1 + len(factors))} megabytes of room"
            ) from error
        splits, played, facts = _collect(parts, chosen, skipped, tokenizer)
        empty = [name for name in SPLITS if not len(splits[name])]
        if empty:
            raise SeqpopeError(
                f"{archive}: {sum(map(len, played.values()))} performances were read and {len(skipped)} files "
                f"left out{_first(skipped)}, which leaves nothing for {' and '.join(empty)}: three "
                "performances are the least, give a source with more"
            )
        provenance = {
            "source": URL if source is None else archive.name,
            "sha256": sha256,
            **_origin(archive, sha256),
            "split": split,
            "stretch": factors,
            "preparation": PREPARATION,
            **facts,
            "skipped": skipped,
        }
        progress(f"tokenized in {time.monotonic() - began:.1f} s; counting baselines")
        manifest = Manifest(
            domain="music",
            dataset=dataset,
            tokenizer=tokenizer.specification,
            fingerprint=tokenizer.fingerprint,
            vocabulary_size=tokenizer.vocabulary_size,
            padding_id=tokenizer.padding_id,
            alignment=tokenizer.alignment,
            units=dict(tokenizer.units),
            strata=list(tokenizer.kinds),
            shift_range=tokenizer.shift_range,
            baselines={
                name: count_baseline(played, tokenizer.vocabulary_size, tokenizer.padding_id, **context)
                for name, context in BASELINES.items()
            },
            provenance=provenance,
        )
        write(folder, manifest, splits, progress)
        if factors:
            copies = len(splits["train"]) - len(played["train"])
            progress(
                f"  {copies} of train's pieces are stretched copies, by {', '.join(map(str, factors))}; baselines "
                "count the others"
            )
        shutil.rmtree(work, ignore_errors=True)
        for reason, count in Counter(skipped.values()).most_common(5):
            progress(f"  left out {count}: {reason}")
        progress(f"{folder}: prepared in {time.monotonic() - began:.1f} s")
        return manifest


def _factors(stretch: Sequence[float]) -> list[float]:
    """Factors of time, rising; refused are those out of range, 1 and one that is there twice."""
    factors = sorted(map(float, stretch))
    wrong = [factor for factor in factors if not FASTEST <= factor <= SLOWEST]  # not a number is neither
    if wrong:
        raise SeqpopeError(
            f"performances cannot be stretched by {', '.join(map(str, wrong))}: expected factors of time from "
            f"{FASTEST:g} to {SLOWEST:g}, such as 0.95 and 1.05"
        )
    if 1 in factors:
        raise SeqpopeError(
            "stretched by 1 a performance is as it was played, and that is there anyway: leave 1 out"
        )
    twice = sorted({factor for factor in factors if factors.count(factor) > 1})
    if twice:
        raise SeqpopeError(f"stretching by {', '.join(map(str, twice))} is asked for twice: give each factor once")
    return factors


def _origin(source: Path, sha256: str) -> dict[str, Any]:
    """What is known of where the performances come from; other people's folders have their own licences."""
    if not _has_catalogue(source):
        return {"official file": False}
    return {
        "official url": URL,
        "official file": sha256 == SHA256,
        "licence": "MAESTRO is CC BY-NC-SA 4.0 (Hawthorne et al. 2019)",
    }


def _first(skipped: dict[str, str]) -> str:
    return "".join(f" (such as {name}: {reason})" for name, reason in list(skipped.items())[:1])


def _identity(source: Path) -> str:
    """SHA-256 of an archive, or of the names and contents of a folder's MIDI files."""
    if source.is_file():
        return sha256_of(source)
    digest = hashlib.sha256()
    with open_source(source) as (names, read):
        catalogue = find_catalogue(names)
        for name in [*midi_files(names), *([catalogue] if catalogue else [])]:
            try:
                content = hashlib.sha256(read(name)).hexdigest()
            except CorpusError:  # it will be left out, and named
                content = "unreadable"
            digest.update(f"{content}  {name}\n".encode())
    return digest.hexdigest()


def _has_catalogue(source: Path) -> bool:
    with open_source(source) as (names, _):
        return find_catalogue(names) is not None


def _choose(source: Path, split: str) -> tuple[dict[str, str], dict[str, str]]:
    """Split of each file by its name in the source, and files left out with reasons."""
    skipped: dict[str, str] = {}
    with open_source(source) as (names, read):
        files = midi_files(names)
        if not files:
            raise SeqpopeError(f"{source} has no MIDI files (.mid or .midi): expected MAESTRO or a folder of them")
        catalogue = find_catalogue(names)
        if split == BY_CONTENT:
            keys = {}
            for name in files:
                try:
                    keys[name] = hashlib.sha256(read(name)).hexdigest()
                except CorpusError as error:
                    skipped[name] = str(error)
            return divide(keys), skipped
        if catalogue is None:
            raise SeqpopeError(
                f"{source} has no catalogue (maestro-v3.0.0.csv), which the split {split!r} needs: "
                f"leave the split out, and files are divided by their content"
            )
        recordings = read_catalogue(read(catalogue), catalogue)
        parent = PurePosixPath(catalogue).parent
        by_file = {recording.file: recording.split for recording in recordings}
        if split == BY_PIECE:
            by_file = divide_by_piece(recordings)
        chosen = {(parent / file).as_posix(): part for file, part in by_file.items()}
        there = set(files)
        skipped |= {name: "the catalogue lists it, the source lacks it" for name in sorted(chosen.keys() - there)}
        skipped |= {name: "the catalogue does not list it" for name in sorted(there - chosen.keys())}
        return {name: part for name, part in chosen.items() if name in there}, skipped


# ---------------------------------------------------------------- tokenizing, in parallel


def _tokenize(
    source: Path,
    chosen: dict[str, str],
    factors: list[float],
    dataset: str,
    tokenizer: Any,
    work: Path,
    sha256: str,
    processes: int | None,
) -> Iterator[dict[str, Any]]:
    """Tokenize files in processes; results that an earlier start left in `work` are taken as they are.

    First come all files as played, then by each factor those of the training split. They are read anew for each
    (3 ms a file), so that what an interrupted start leaves serves with other factors too.
    """
    jobs = []
    for factor in [1.0, *factors]:
        files = sorted(file for file, split in chosen.items() if factor == 1 or split == "train")
        for first in range(0, len(files), FILES_AT_ONCE):
            part = files[first : first + FILES_AT_ONCE]
            key = json.dumps([tokenizer.fingerprint, PREPARATION, sha256, factor, part])
            result = work / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
            jobs.append(_Job(source, part, factor, dataset, result))
    waiting = [job for job in jobs if not job.result.is_file()]
    total = sum(len(job.files) for job in jobs)
    done = total - sum(len(job.files) for job in waiting)
    shown = Progress("tokenizing", "files", already=done)
    count = min(os.cpu_count() or 1, 16) if processes is None else processes
    if count > 1 and len(waiting) > 1:
        with worker_pool(min(count, len(waiting))) as pool:
            futures = {pool.submit(_tokenize_files, job): job for job in waiting}
            try:
                for future in as_completed(futures):
                    future.result()
                    done += len(futures[future].files)
                    shown(done, total)
            except BrokenProcessPool as error:
                lost = next(job for job in waiting if not job.result.is_file())
                raise SeqpopeError(
                    f"a process died, for lack of memory or on one of {lost.files[0]} to {lost.files[-1]}: start "
                    "again (it will go on), and if it dies again remove the file it dies on"
                ) from error
    else:
        for job in waiting:
            _tokenize_files(job)
            done += len(job.files)
            shown(done, total)
    return map(_load, jobs)


def _load(job: _Job) -> dict[str, Any]:
    with np.load(job.result, allow_pickle=False) as saved:
        return {"files": job.files, "factor": job.factor, **{key: saved[key] for key in saved.files}}


def _tokenize_files(job: _Job) -> None:
    """Tokenize the files of a job and save ids, lengths, notes, seconds and reasons; runs in a worker."""
    tokenizer = find_dataset(job.dataset).load_tokenizer()
    documents, notes, seconds, reasons = [], [], [], []
    with open_source(job.source) as (_, read):
        for name in job.files:
            try:
                performance = parse_midi(read(name), PurePosixPath(name).name).stretched(job.factor)
                ids, reason = tokenizer.encode(performance), ""
                size, length = len(performance), performance.seconds
            except (CodecError, CorpusError, TokenError) as error:
                ids, reason, size, length = np.zeros(0, np.uint16), str(error), 0, 0.0
            documents.append(ids)
            reasons.append(reason)
            notes.append(size)
            seconds.append(length)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        ids=np.concatenate(documents),
        lengths=[len(ids) for ids in documents],
        notes=notes,
        seconds=seconds,
        reasons=np.array(reasons, np.str_),
    )
    write_bytes(job.result, buffer.getvalue())


def _collect(
    parts: Iterator[dict[str, Any]], chosen: dict[str, str], skipped: dict[str, str], tokenizer: Any
) -> tuple[dict[str, Split], dict[str, Split], dict[str, Any]]:
    """Splits of what was tokenized, the same without stretched copies, and what the manifest says of them.

    Reasons go to `skipped`: once a file, however many factors there are.
    """
    flag_of = np.full(tokenizer.vocabulary_size, SCORED, np.uint8)
    for bit, spans in enumerate(tokenizer.kinds.values()):
        for first, last in spans:
            flag_of[first : last + 1] |= 2 << bit
    documents: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    names: dict[str, list[str]] = {name: [] for name in SPLITS}
    units: dict[str, dict[str, list[float]]] = {name: {"note": [], "second": []} for name in SPLITS}
    copies: dict[str, dict[str, float]] = {}  # of the training split, which they end
    for part in parts:
        ends = np.cumsum(part["lengths"])
        stretched = part["factor"] != 1
        for index, file in enumerate(part["files"]):
            title = stretched_name(file, part["factor"]) if stretched else file
            reason = str(part["reasons"][index])
            if reason:
                if file not in skipped:
                    skipped[title] = reason
                continue
            name = chosen[file]
            ids = part["ids"][ends[index] - part["lengths"][index] : ends[index]]
            counted = {"note": float(part["notes"][index]), "second": float(part["seconds"][index])}
            documents[name].append(ids)
            names[name].append(title)
            for unit, count in counted.items():
                units[name][unit].append(count)
            if stretched:
                sums = copies.setdefault(
                    str(part["factor"]), {"documents": 0, "tokens": 0, "note": 0.0, "second": 0.0}
                )
                for key, count in {"documents": 1, "tokens": len(ids), **counted}.items():
                    sums[key] += count
    splits = {
        name: pack(documents[name], [flag_of[ids] for ids in documents[name]], names[name], np.uint16, units[name])
        for name in SPLITS
    }
    played = dict(splits)
    if copies:
        train = splits["train"]
        played["train"] = _beginning(train, len(train) - int(sum(sums["documents"] for sums in copies.values())))
    totals = {
        name: {unit: round(float(counts.sum()), 3) for unit, counts in split.units.items()}
        for name, split in played.items()
    }
    tokens = sum(len(split.tokens) for split in played.values())
    notes = sum(total["note"] for total in totals.values())
    facts: dict[str, Any] = {"totals": totals, "tokens per note": tokens / notes if notes else None}
    if copies:
        for sums in copies.values():
            sums["second"] = round(sums["second"], 3)
        facts["stretched copies, not in the totals"] = copies
    return splits, played, facts


def _beginning(split: Split, count: int) -> Split:
    """The first `count` documents of a split."""
    end = int(split.starts[count])
    units = {unit: counts[:count] for unit, counts in split.units.items()}
    return Split(split.tokens[:end], split.starts[: count + 1], split.flags[:end], split.names[:count], units)


if __name__ == "__main__":
    sys.exit(run(prepare, Path("data/maestro"), __doc__ or "", takes_source=True))
