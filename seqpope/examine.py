"""The verb `examine`: what samples are like beside what is real, and whether they copy any of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.data.shards import TokenStore
from seqpope.domains.genome import metrics
from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.codec import as_array, is_fasta, read_fasta
from seqpope.domains.music.chorales.codec import SCORE_SUFFIXES, Chorale, read_score
from seqpope.domains.music.chorales.metrics import examine, render
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.errors import SeqpopeError
from seqpope.files import write_text


def examine_files(paths: Sequence[Path], data: Path | None = None, out: Path | None = None) -> str:
    """Read samples of one domain, measure them, return the report as Markdown.

    Args:
        paths: scores or FASTA files, or folders of either; in a folder scores that differ in their ending alone
            count once.
        data: chorales: prepared ones, copies are looked for in their training split and their test split stands
            beside. DNA: a FASTA file; copies are looked for in it and random stretches of it stand beside.
        out: folder to write examine.md and examine.json to.

    Raises:
        SeqpopeError: there is no sample, samples are of both domains, one cannot be read, or the data are of
            another kind.
    """
    files = [file for path in paths for file in (sorted(p for p in path.iterdir()) if path.is_dir() else [path])]
    sequences = [file for file in files if is_fasta(file)]
    if sequences:
        scores = [file for file in files if file.suffix.lower() in SCORE_SUFFIXES]
        if scores:
            raise SeqpopeError(
                f"{sequences[0]} is DNA and {scores[0]} a score: examine samples of one domain at a time"
            )
        result, text = _examine_dna(sequences, data)
    else:
        result, text = _examine_chorales(paths, data)
    if out is not None:
        write_text(out / "examine.json", json.dumps(result, indent=1) + "\n")
        write_text(out / "examine.md", text)
    return text


def _examine_dna(files: Sequence[Path], data: Path | None) -> tuple[dict[str, Any], str]:
    """Of each sequence what was drawn: a prompt, if the header says how long it is, was copied on purpose."""
    samples = []
    for file in files:
        for record in read_fasta(file):
            prompt = record.fields.get("prompt", "0")
            drawn = record.sequence[int(prompt) if prompt.isdigit() else 0 :]
            samples.append((record.name, _as_array(file, record.name, drawn)))
    training = []
    if data is not None:
        if data.is_dir():
            raise SeqpopeError(f"{data} is a folder: give the training sequences as one FASTA file")
        training = [(record.name, _as_array(data, record.name, record.sequence)) for record in read_fasta(data)]
    result = metrics.examine(samples, training)
    return result, metrics.render(result)


def _as_array(file: Path, name: str, sequence: str) -> np.ndarray:
    try:
        return as_array(sequence)
    except SequenceError as error:
        raise SequenceError(f"{file}, sequence {name}: {error}") from None


def _examine_chorales(paths: Sequence[Path], data: Path | None) -> tuple[dict[str, Any], str]:
    files: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():  # a sample may lie there as MIDI and as MusicXML: once is enough
            scores = sorted(file for file in path.iterdir() if file.suffix.lower() in SCORE_SUFFIXES)
            found = list({file.with_suffix(""): file for file in reversed(scores)}.values())[::-1]
        files += found
    if not files:
        raise SeqpopeError(
            f"no samples in {', '.join(map(str, paths))}: expected {', '.join(SCORE_SUFFIXES)} or .fa files"
        )
    samples = [Chorale(read_score(file).pitches, file.stem) for file in files]
    training: list[Chorale] = []
    reference: list[Chorale] = []
    if data is not None:
        store, tokenizer = TokenStore(data), ChoraleTokenizer()
        if store.manifest.fingerprint != tokenizer.fingerprint:
            raise SeqpopeError(
                f"{data} does not hold chorales ({store.manifest.dataset}): give data/chorales or data/jsb"
            )
        for pieces, name in ((training, "train"), (reference, "test")):
            split = store.split(name)
            pieces += [tokenizer.decode(split.document(i), f"{name} {i}") for i in range(len(split))]
    result = examine(samples, training, reference)
    return result, render(result)
