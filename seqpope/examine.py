"""The verb `examine`: what samples are like beside what is real, and whether they copy any of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.domains.base import find_kind, find_tokenizer, open_store
from seqpope.domains.genome import metrics
from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.codec import as_array, is_fasta, read_fasta
from seqpope.domains.genome.store import GenomeStore, is_genome_store
from seqpope.domains.music.chorales.codec import SCORE_SUFFIXES, Chorale, read_score
from seqpope.domains.music.chorales.metrics import examine, render
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.domains.music.piano import metrics as performances
from seqpope.domains.music.piano.codec import Performance, read_midi
from seqpope.domains.music.piano.corpus import MIDI_SUFFIXES
from seqpope.errors import SeqpopeError
from seqpope.files import write_text

TICK = 0.001  # seconds by which a file's times may be early


def examine_files(paths: Sequence[Path], data: Path | None = None, out: Path | None = None) -> str:
    """Read samples of one domain, measure them, return the report as Markdown.

    Args:
        paths: scores, performances or FASTA files, or folders of them; in a folder scores that differ in their
            ending alone count once. What a file's sidecar calls a prompt is left out of performances and DNA.
        data: music: prepared data, copies are looked for in their training split and their test split stands
            beside; whether samples are chorales or performances goes by them, else by sidecars, else by whether
            the first file is a score in four voices on a grid. DNA: a FASTA file, or a prepared
            genome (its training split); copies are looked for in it and random stretches of it stand beside.
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
    elif _kind_of(files, data) == "piano":
        result, text = _examine_piano(files, data)
    else:
        result, text = _examine_chorales(paths, data)
    if out is not None:
        write_text(out / "examine.json", json.dumps(result, indent=1) + "\n")
        write_text(out / "examine.md", text)
    return text


def _sidecar(file: Path) -> dict[str, Any]:
    """What the JSON file beside a sample says; nothing if there is none of ours."""
    try:
        told = json.loads(file.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) and {"model", "settings"} <= told.keys() else {}


def _kind_of(files: Sequence[Path], data: Path | None) -> str:
    """Chorales or piano: by the data, by the first sidecar, by what the first file can be read as."""
    if data is not None and (data / "manifest.json").is_file():
        manifest = open_store(data).manifest
        return find_kind(manifest.dataset, manifest.domain).name
    scores = [file for file in files if file.suffix.lower() in SCORE_SUFFIXES and file.is_file()]
    for file in scores:
        if told := _sidecar(file):
            return find_kind(told["model"]["dataset"], "music").name
    if scores and scores[0].suffix.lower() in MIDI_SUFFIXES:
        try:
            read_score(scores[0])
        except SeqpopeError:
            try:
                read_midi(scores[0])
                return "piano"
            except SeqpopeError:
                pass  # the message of what is read as a chorale tells more
    return "chorales"


def _examine_piano(files: Sequence[Path], data: Path | None) -> tuple[dict[str, Any], str]:
    files = [file for file in files if file.suffix.lower() in MIDI_SUFFIXES]
    if not files:
        raise SeqpopeError("there are no performances: expected .mid files")
    training: list[Performance] = []
    reference: list[Performance] = []
    samples, seconds, rate = [], [], 100
    for file in files:
        told = _sidecar(file).get("settings", {})
        begin = float(told.get("prompt_seconds", 0.0))
        played = performances.between(read_midi(file), begin - TICK)
        samples.append(replace(played, name=file.stem))
        seconds.append(float(told.get("seconds", played.seconds - begin)))
    if data is not None:
        store = open_store(data)
        tokenizer = find_tokenizer("piano", store.manifest.fingerprint)
        if tokenizer is None:
            raise SeqpopeError(
                f"{data} does not hold piano performances of this version's tokens ({store.manifest.dataset}): "
                "give data/maestro or data/maestro-performance"
            )
        rate = tokenizer.steps_per_second
        # Measured as the data are, on their grid.
        samples = [tokenizer.decode(tokenizer.encode(played), played.name) for played in samples]
        for pieces, name in ((training, "train"), (reference, "test")):
            split = store.split(name)
            pieces += [tokenizer.decode(split.document(i), split.names[i]) for i in range(len(split))]
        reference = performances.excerpts(reference, statistics.median(seconds))
    result = performances.examine(samples, seconds, training, reference, rate=rate)
    return result, performances.render(result)


def _examine_dna(files: Sequence[Path], data: Path | None) -> tuple[dict[str, Any], str]:
    """Of each sequence what was drawn: a prompt, if the header says how long it is, was copied on purpose."""
    samples = []
    for file in files:
        for record in read_fasta(file):
            prompt = record.fields.get("prompt", "0")
            drawn = record.sequence[int(prompt) if prompt.isdigit() else 0 :]
            samples.append((record.name, _as_array(file, record.name, drawn)))
    training: Sequence[tuple[str, np.ndarray]] = []
    if data is not None and data.is_dir():
        if not is_genome_store(data):
            raise SeqpopeError(f"{data} holds no prepared genome: give data/genome, or a FASTA file")
        training = _Training(GenomeStore(data))
    elif data is not None:
        training = [(record.name, _as_array(data, record.name, record.sequence)) for record in read_fasta(data)]
    result = metrics.examine(samples, training)
    return result, metrics.render(result)


class _Training(Sequence[tuple[str, np.ndarray]]):
    """The known stretches of a prepared genome's training split, each read as it is asked for."""

    def __init__(self, store: GenomeStore) -> None:
        self.store, self.known, self.names = store, store.known("train"), list(store.contigs)

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, index: Any) -> Any:
        number, start, end = self.known[index].tolist()
        bases = self.store.fetch(self.names[number], start, end)
        return f"{self.names[number]}:{start + 1}-{end}", (bases & 7) - 1


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
        store, tokenizer = open_store(data), ChoraleTokenizer()
        if store.manifest.fingerprint != tokenizer.fingerprint:
            raise SeqpopeError(
                f"{data} does not hold chorales ({store.manifest.dataset}): give data/chorales or data/jsb"
            )
        for pieces, name in ((training, "train"), (reference, "test")):
            split = store.split(name)
            pieces += [tokenizer.decode(split.document(i), f"{name} {i}") for i in range(len(split))]
    result = examine(samples, training, reference)
    return result, render(result)
