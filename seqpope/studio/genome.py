"""What the studio does with DNA: scores regions and every change of a window, and draws continuations.

Each is what the command of the same purpose does, called the same way, so that numbers are the same: `score` for
regions, `score --vcf` for changes, `generate` for continuations.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from seqpope.domains.genome.bases import BASES, letter_codes
from seqpope.domains.genome.sequences import UNKNOWN, Genome, as_text
from seqpope.domains.genome.store import open_genome
from seqpope.domains.genome.tracks import Place, parse_place
from seqpope.errors import SeqpopeError
from seqpope.studio import requests
from seqpope.studio.worker import Context, tokens_at_once

if TYPE_CHECKING:
    from torch import Tensor

    from seqpope.generate.draw import Model
    from seqpope.score.likelihood import Likelihood, Pending, Row


class Loaded(NamedTuple):
    """A model of DNA, its tokenizer, and what says how likely it finds a base."""

    model: Model
    tokenizer: Any
    likelihood: Likelihood


def load(context: Context, file: str) -> Loaded:
    """The model in memory, if it is this one; else this one in its place."""
    from seqpope.generate.dna import load_model
    from seqpope.score.likelihood import Likelihood

    def read(path: Path) -> Loaded:
        model, tokenizer = load_model(path, "auto")
        many = tokens_at_once(model.device)
        likelihood = Likelihood(model.transformer, model.info, device=model.device, batch_tokens=many)
        return Loaded(model, tokenizer, likelihood)

    return context.held(file, read)


def place_of(genome: Genome, region: str, most: int) -> Place:
    """The place that a region means.

    Raises:
        SeqpopeError: it is not there, has more than `most` bases, or none that is known.
    """
    place = parse_place(region, genome)
    if place.end - place.start > most:
        raise SeqpopeError(
            f"{place} has {place.end - place.start:,} bases: expected at most {most:,}, name a shorter region"
        )
    if not len(genome.stretches(*place)):
        raise SeqpopeError(f"{place} is all N in this genome: name a region whose bases are known")
    return place


def score(job: dict[str, Any], context: Context) -> dict[str, Any]:
    """Nats of each base of a region, None where it is N, the mean over strands and phases."""
    from seqpope.score.places import parse_region
    from seqpope.score.regions import Reading, score_units
    from seqpope.score.work import CHUNK, plan_units

    asked: requests.Scored = job["arguments"]
    genome = open_genome(Path(job["genome"]))
    place = place_of(genome, asked.region, requests.MAXIMUM_SCORED)
    loaded, began = load(context, job["file"]), time.monotonic()
    window = loaded.model.info.length
    reading = Reading(loaded.likelihood.k, window, max(1, window // 2), asked.strand, asked.phases)
    units = list(plan_units(parse_region(str(place), genome), list(genome.contigs), reading.reach, CHUNK))
    known = int(np.diff(np.asarray(genome.stretches(*place)), axis=1).sum())
    done, total = 0, known * len(reading.passes)

    def progress(bases: int) -> None:
        nonlocal done
        done += bases
        context.emit("progress", {"done": min(done, total), "of": total})

    values = np.full(place.end - place.start, np.nan)
    for spans, _ in score_units(loaded.likelihood, genome, reading, units, progress):
        for each in spans:
            values[each.span.start - place.start : each.span.end - place.start] = each.mean()
    values = values.astype(np.float32)
    return {
        **_told(place, genome, loaded, asked),
        "sequence": as_text(genome.fetch(*place)),
        # As bedGraph has them.
        "nats": [None if value != value else float(f"{value:.7g}") for value in values.tolist()],
        "mean": float(np.nanmean(values.astype(np.float64))),
        "known": known,
        "seconds": time.monotonic() - began,
    }


def mutate(job: dict[str, Any], context: Context) -> dict[str, Any]:
    """Delta log-likelihoods of each base of a region become each other one: emits "step" for each place.

    What is told of a place: delta for A, C, G and T in nats, 0 of the base itself, None if there is N; and the
    standard deviations over strands and phases, None with one of them.
    """
    from seqpope.domains.genome.vcf import Record
    from seqpope.score.annotate import SHORTEST
    from seqpope.score.variants import STRANDS, Contigs, score_records

    asked: requests.Mutated = job["arguments"]
    genome = open_genome(Path(job["genome"]))
    place = place_of(genome, asked.region, requests.MAXIMUM_MUTATED)
    loaded, began = load(context, job["file"]), time.monotonic()
    k, length = loaded.likelihood.k, loaded.model.info.length
    if not SHORTEST <= asked.window <= length or asked.phases > k:
        raise SeqpopeError(
            f"expected a window of {SHORTEST} to {length} tokens, as the model was trained with, and 1 to {k} "
            f"phases; they are {asked.window} and {asked.phases}"
        )
    contigs, sequence = Contigs(genome), as_text(genome.fetch(*place)).upper()
    columns = []
    for number, ref in enumerate(sequence):
        delta: list[float | None] = [None] * len(BASES)
        spread: list[float | None] = [None] * len(BASES)
        if ref in BASES:
            others = tuple(base for base in BASES if base != ref)
            record = Record(1, place.contig, place.start + number, "", ref, others, "")
            scored = score_records(
                [record],
                contigs,
                Watched(loaded.likelihood, context.check),
                window=asked.window,
                phases=[i * k // asked.phases for i in range(asked.phases)],
                strands=STRANDS[asked.strand],
            )()[0]
            delta[BASES.index(ref)] = 0.0
            for base, told in zip(others, scored, strict=True):
                delta[BASES.index(base)] = round(told.delta, 6)
                spread[BASES.index(base)] = None if told.sd != told.sd else round(told.sd, 6)
        columns.append({"at": number, "ref": ref, "delta": delta, "sd": spread})
        context.emit("step", columns[-1])
        context.emit("progress", {"done": number + 1, "of": len(sequence)})
    return {
        **_told(place, genome, loaded, asked),
        "window": asked.window,
        "columns": columns,
        "seconds": time.monotonic() - began,
    }


class Watched:
    """A likelihood that looks after each batch whether the job is to stop (`score.variants.Likelihoods`)."""

    def __init__(self, likelihood: Likelihood, check: Callable[[], None]) -> None:
        self.likelihood, self.check = likelihood, check
        self.k, self.length = likelihood.k, likelihood.length

    def begin(self, rows: Sequence[Row]) -> Pending:
        """As the likelihood's own.

        Raises:
            Cancelled: the job is to stop.
        """
        return self.likelihood.begin(rows, lambda _: self.check())


def _told(place: Place, genome: Genome, loaded: Loaded, asked: requests.Scored) -> dict[str, Any]:
    """What every answer says of where and how."""
    return {
        "region": str(place),
        "contig": place.contig,
        "start": place.start,
        "end": place.end,
        "length": genome.contigs[place.contig],
        "strand": asked.strand,
        "phases": asked.phases,
        "position": loaded.model.info.position,
    }


def continue_dna(job: dict[str, Any], context: Context) -> dict[str, Any]:
    """Draw bases behind a prompt: emits "step" with the bases and nats of each token, then all of it.

    The last token's bases may reach beyond what was asked for, and its nats are for all of them.
    """
    import torch

    from seqpope.domains.genome.rules import DnaRules
    from seqpope.files import sha256_of
    from seqpope.generate import dna
    from seqpope.generate.draw import Draw, describe_draw
    from seqpope.sampling import SamplingConfig

    asked: requests.Continued = job["arguments"]
    text, region = _prompt(job)
    ruled = asked.rules
    rules = DnaRules(
        forbidden_sites=tuple(ruled.forbid),
        open_frame=ruled.open_frame,
        no_stop=ruled.no_stop,
        gc=ruled.gc,
        gc_window=None if ruled.gc_window is None else ruled.gc,
        window=ruled.gc_window or 100,
        judge_prompt=ruled.judge_prompt,
    )
    dna.check_letters(text, rules)
    loaded = load(context, job["file"])
    begun = dna.begin(loaded.tokenizer, text, asked.bases, rules)
    drawn_so_far = 0

    def watch(tokens: Tensor, nats: Tensor) -> None:
        nonlocal drawn_so_far
        bases = loaded.tokenizer.decode(tokens[:1].cpu().numpy())[: asked.bases - drawn_so_far]
        drawn_so_far += len(bases)
        context.emit("step", {"bases": bases, "nats": round(float(nats[0]), 4)})
        context.emit("progress", {"done": drawn_so_far, "of": asked.bases})

    draw = Draw(seed=asked.seed, config=SamplingConfig(**asked.sampling.model_dump()), watch=watch)
    with torch.inference_mode():
        ids, count = torch.from_numpy(begun.ids.astype("int64")), begun.constraint.most_tokens(asked.bases)
        [(seed, drawn)] = loaded.model.draw(ids, count, draw, begun.constraint)
    sequence = text + loaded.tokenizer.decode(drawn.ids[0].cpu().numpy())[: asked.bases]
    settings = {"prompt_bases": len(text), "rules": dataclasses.asdict(rules)}
    sidecar = describe_draw(loaded.model, draw, settings, seed, drawn, len(begun.ids))
    sidecar |= dna.measure(sequence, len(text), drawn, loaded.tokenizer)
    told = ("gc", "gc_drawn", "nats_per_base", "constraint_nats_per_base", "beyond_training_length", "seed")
    return {
        "prompt": text,
        "region": region,
        "drawn": sequence[len(text) :],
        "tokens": loaded.tokenizer.bases_of[drawn.ids[0].cpu().numpy()].tolist(),
        "nats": np.round(drawn.nats[0].double().cpu().numpy(), 4).tolist(),
        **{key: sidecar[key] for key in told},
        "header": dna.header(sidecar, len(sequence), sha256_of(loaded.model.file)),
    }


def _prompt(job: dict[str, Any]) -> tuple[str, str]:
    """The bases to continue in upper case, and where they are from, "" if they were typed.

    Raises:
        SeqpopeError: what was typed is no DNA, or the region is not there or ends with N.
    """
    asked: requests.Continued = job["arguments"]
    if not asked.region:
        letters = "".join(asked.prompt.split()).upper()
        if letters:
            letter_codes(letters, BASES + "N")
        return letters, ""
    genome = open_genome(Path(job["genome"]))
    contig, _, end = parse_place(asked.region, genome)
    start = max(0, end - asked.before)
    bases = genome.fetch(contig, start, end)
    unknown = np.flatnonzero((bases & 7) == UNKNOWN)
    if len(unknown):
        start += int(unknown[-1]) + 1
    if asked.before and start == end:
        raise SeqpopeError(
            f"{contig} has N at {end:,}, where the region ends: name a region that ends with a base"
        )
    return as_text(genome.fetch(contig, start, end)).upper(), str(Place(contig, start, end)) if start < end else ""
