"""Piano performances, drawn or continued: MIDI in; MIDI, WAV and pictures out, each with a JSON file: how.

A prompt opens the output as it was played, its pedal too. The model reads it as tokens; of a long prompt it
reads the end, from a multiple of two seconds on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from seqpope.checkpoint import CheckpointError, find_checkpoint, read_info
from seqpope.domains.base import find_tokenizer
from seqpope.domains.music.piano.codec import (
    HIGHEST_KEY,
    LOWEST_KEY,
    TICKS_PER_SECOND,
    Performance,
    next_onset,
    read_midi,
    write_midi,
)
from seqpope.domains.music.piano.constraints import PerformanceConstraint, PianoConstraint, RemiConstraint
from seqpope.domains.music.piano.tokenizer import LEVEL_ID, SHIFT_ID, PerformanceTokenizer, RemiTokenizer
from seqpope.errors import SeqpopeError
from seqpope.files import write_bytes
from seqpope.generate.draw import Draw, Model, describe_draw
from seqpope.generate.music import MusicOutput
from seqpope.sampling import Samples

SECONDS = 60.0  # that are drawn if nothing is said
MAXIMUM_SECONDS = 3600.0
# Twice what a second of MAESTRO takes over five minutes; its densest minute takes 114, its densest 5 s take 180.
TOKENS_PER_SECOND, TOKENS_AT_LEAST = 120, 400
READ_FROM = 2.0  # what is read of a long prompt begins at a multiple of a bar of REMI's
Kind = type[RemiConstraint] | type[PerformanceConstraint]
NAMES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


@dataclass(frozen=True)
class PianoOutput(MusicOutput):
    """Where performances go and how they are written."""

    SUFFIXES: ClassVar[dict[str, str]] = {".mid": "mid", ".midi": "mid", ".wav": "wav", ".png": "png"}

    def write_performance(
        self, played: Performance, name: str, sidecar: dict[str, Any], prompt_seconds: float, seconds: float
    ) -> Path:
        """Write one performance in every format that is wanted; return the file that was asked for."""
        from seqpope.domains.music.piano.picture import draw_performance

        def midi(file: Path) -> None:
            write_midi(played, file)

        made: dict[str, Callable[[Path], object]] = {
            "mid": midi,
            "wav": lambda file: self.sound(file, midi),
            "png": lambda file: write_bytes(
                file, draw_performance(played, prompt_seconds=prompt_seconds, seconds=seconds)
            ),
        }
        return self.write(name, sidecar, made)


def load_model(checkpoint: Path | None, device: str) -> tuple[Model, Any, Kind]:
    """A model of performances, its tokenizer and the constraint of its tokens.

    Raises:
        SeqpopeError: there is none, or it was trained on other tokens.
    """
    if checkpoint is None:
        raise SeqpopeError(
            "no piano model is shipped: train one (`seqpope prepare maestro`, `seqpope train --dataset maestro`) "
            "and give --checkpoint RUN"
        )
    info = read_info(find_checkpoint(checkpoint))
    tokenizer = find_tokenizer("piano", info.fingerprint)
    if tokenizer is not None:
        kind: Kind = RemiConstraint if isinstance(tokenizer, RemiTokenizer) else PerformanceConstraint
        return Model.load(checkpoint, device, tokenizer.fingerprint, "this version"), tokenizer, kind
    raise CheckpointError(
        f"the model was trained on tokens {info.fingerprint[:12]} ({info.dataset}), which are none of piano "
        "performances that this version knows: give a model trained on maestro or maestro-performance"
    )


def parse_keys(text: str) -> tuple[int, int]:
    """Lowest and highest key of a range, as MIDI pitches or names with octaves: "36-84", "C2-C6", "F#3-Bb5".

    C4 is middle C, 60.

    Raises:
        SeqpopeError: it is no range of a piano's keys.
    """
    name = r"(\d+|[A-Ga-g](?:#|b)?\d)"
    match = re.fullmatch(rf"\s*{name}\s*-\s*{name}\s*", text)
    if match is None:
        raise SeqpopeError(f"expected the lowest and the highest key, such as 36-84 or C2-C6; it is {text!r}")

    def pitch(word: str) -> int:
        if word.isdigit():
            return int(word)
        return NAMES[word[0].upper()] + word.count("#") - word[1:].count("b") + 12 * (int(word[-1]) + 1)

    low, high = (pitch(word) for word in match.groups())
    if not LOWEST_KEY <= low <= high <= HIGHEST_KEY:
        raise SeqpopeError(
            f"keys: {text.strip()} is {low}-{high}, expected a range in {LOWEST_KEY}-{HIGHEST_KEY} (A0-C8), "
            "the lower key first"
        )
    return low, high


def _nothing() -> Performance:
    none = np.zeros(0, np.int64)
    return Performance(none, none, none, none)


@dataclass(frozen=True)
class Opening:
    """A prompt: as it opens the output, and what of it the model reads; nothing if not given.

    Args:
        played: its notes and pedal, until `cut`.
        ids: (L,) tokens that are read; `read_from` is when they begin, seconds.
        cut: when the prompt ends and what is drawn begins, seconds.
        read: notes among the ids.
    """

    played: Performance = field(default_factory=_nothing)
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    read_from: float = 0.0
    cut: float = 0.0
    read: int = 0


def make_opening(whole: Performance, cut: float, tokenizer: Any, limit: int, called: str) -> Opening:
    """What of a performance comes before `cut`, to be continued there.

    Args:
        limit: how many tokens may be read at most.
        called: what errors call it.

    Raises:
        SeqpopeError: it has no notes there, or the limit leaves nothing of it.
    """
    played = _between(whole, 0.0, cut, cut)
    if len(played) == 0:
        first = f", its first note comes at {whole.onset[0]:.2f} s" if len(whole) else ""
        raise SeqpopeError(f"{called} has no note in its first {cut:g} s{first}: use more of it")
    low, high = -1, math.ceil(cut / READ_FROM)  # from the one on it is too long, from the other short enough
    while high - low > 1:
        middle = (low + high) // 2
        fits = len(tokens_between(whole, READ_FROM * middle, cut, tokenizer)) <= limit
        low, high = (low, middle) if fits else (middle, high)
    read_from = READ_FROM * high
    read = int(((whole.onset >= read_from) & (whole.onset < cut)).sum())
    if read == 0:
        raise SeqpopeError(
            f"the end of {called} takes more than the {limit} tokens of it that may be read (half of the "
            "context): raise the context, take a model of a longer one, or cut it elsewhere"
        )
    return Opening(played, tokens_between(whole, read_from, cut, tokenizer), read_from, cut, read)


def _between(played: Performance, begin: float, end: float, pedal_end: float) -> Performance:
    """Notes struck from `begin` on and before `end`, and the pedal until `pedal_end`, counted from `begin`."""
    kept = (played.onset >= begin) & (played.onset < end)
    pedal = np.clip(played.pedal, begin, pedal_end) - begin
    return Performance(
        played.onset[kept] - begin,
        played.duration[kept],
        played.pitch[kept],
        played.velocity[kept],
        pedal[pedal[:, 1] > pedal[:, 0]],
        played.name,
    )


def tokens_between(whole: Performance, begin: float, end: float, tokenizer: Any) -> np.ndarray:
    """Tokens of what happens from `begin` to `end`; note-offs that come later are the model's to choose."""
    ids = tokenizer.encode(_between(whole, begin, end, math.inf)).astype(np.int64)
    if isinstance(tokenizer, PerformanceTokenizer):
        time = np.cumsum(np.where((ids >= SHIFT_ID) & (ids < LEVEL_ID), ids - SHIFT_ID + 1, 0))
        last = PerformanceConstraint(starts=end - begin).first_step
        events = np.flatnonzero((ids < SHIFT_ID) & (time <= last))
        ids = ids[: events[-1] + 1 if len(events) else 0]
    return ids


@dataclass(frozen=True)
class Plan:
    """What is to be drawn.

    Args:
        constraint: its seconds count from where the opening is read.
        begin, end: when the output reaches the first step that it may be on, and its end, seconds.
        budget: tokens that it may take.
    """

    opening: Opening
    constraint: RemiConstraint | PerformanceConstraint
    begin: float
    end: float
    budget: int

    def second(self, time: np.ndarray) -> np.ndarray:
        """When what is drawn at times of the tokens comes in the output; not before the opening ends."""
        return np.maximum(_on_ticks(self.opening.read_from + time), self.opening.cut)


def make_plan(
    opening: Opening,
    kind: Kind,
    seconds: float,
    keys: tuple[int, int] = (LOWEST_KEY, HIGHEST_KEY),
    polyphony: int | None = None,
    end: float | None = None,
) -> Plan:
    """So many seconds behind an opening, from the next step of the tokens' grid on, or exactly until `end`.

    Raises:
        SeqpopeError: keys, polyphony or the end make no sense.
    """
    starts = kind(starts=opening.cut - opening.read_from).first_step / kind.STEPS_PER_SECOND
    ends = starts + seconds if end is None else end - opening.read_from
    # Each second before the cut in which no key is struck may take a token: one may be held for minutes.
    silence = opening.cut - float(opening.played.onset[-1]) if len(opening.played) else 0.0
    budget = TOKENS_AT_LEAST + math.ceil(seconds * TOKENS_PER_SECOND) + math.ceil(silence)
    begin, end = opening.read_from + starts, opening.read_from + ends if end is None else end
    return Plan(opening, kind(keys, polyphony, starts, ends), begin, end, budget)


class Joined(NamedTuple):
    """An opening with what was drawn behind it.

    `number` (N,) says which of the drawn notes each is, in their order among the tokens; it is below 0 for the
    opening's. `notes` are drawn.
    """

    played: Performance
    number: np.ndarray
    notes: int


def join(plan: Plan, drawn: np.ndarray, tokenizer: Any) -> Joined:
    """The opening as it was played with what was drawn behind it.

    What sounds when the opening ends lasts as the tokens say, its pedal goes up there, and a key that is struck
    again ends the note before. Drawn notes end on the tokens' grid.
    """
    opening, rate = plan.opening, plan.constraint.STEPS_PER_SECOND
    decoded = tokenizer.decode(np.concatenate((opening.ids, drawn)))
    played, before = opening.played, len(tokenizer.decode(opening.ids))
    end = played.end.copy()
    begin, until = plan.second(decoded.onset), _on_ticks(opening.read_from + _on_grid(decoded.end, rate))
    if isinstance(tokenizer, PerformanceTokenizer):  # REMI's prompt says how long its notes are held
        end = np.minimum(end, opening.cut)
        for note in np.flatnonzero(until[:before] > opening.cut + 1 / rate):
            end[np.flatnonzero(played.pitch == decoded.pitch[note])[-1]] = until[note]
    onset = np.concatenate((played.onset, begin[before:]))
    end = np.concatenate((end, np.minimum(until[before:], plan.end)))
    pitch = np.concatenate((played.pitch, decoded.pitch[before:]))
    velocity = np.concatenate((played.velocity, decoded.velocity[before:]))
    order = np.argsort(onset, kind="stable")
    onset, end, pitch, velocity = onset[order], end[order], pitch[order], velocity[order]
    again = next_onset(onset, pitch)
    end = np.where((again >= opening.cut) & (end > again), again, end)
    joined = Performance(onset, np.maximum(end - onset, 0), pitch, velocity, played.pedal)
    return Joined(joined, order - len(played), len(decoded) - before)


def draw_piano(model: Model, tokenizer: Any, plan: Plan, draw: Draw) -> Iterator[tuple[int, Samples, Joined]]:
    """(seed, tokens, performance) of each sample; what is drawn always decodes (`PianoConstraint`)."""
    opening, rules = torch.from_numpy(plan.opening.ids), plan.constraint
    for seed, drawn in model.draw(opening, plan.budget, draw, rules, share=rules.share):
        yield seed, drawn, join(plan, drawn.ids[0].numpy(), tokenizer)


def _on_grid(time: np.ndarray, rate: int) -> np.ndarray:
    """The last of `rate` steps a second that is not behind a time."""
    return np.floor(time * rate + 1e-6) / rate


def _on_ticks(time: np.ndarray) -> np.ndarray:
    """Times as a file has them: else a note that ends when another begins may end a tick late."""
    return np.rint(time * TICKS_PER_SECOND) / TICKS_PER_SECOND


def generate_piano(
    output: PianoOutput,
    draw: Draw | None = None,
    *,
    checkpoint: Path | None = None,
    seconds: float | None = None,
    prompt: Path | None = None,
    prompt_seconds: float | None = None,
    keys: tuple[int, int] = (LOWEST_KEY, HIGHEST_KEY),
    polyphony: int | None = None,
) -> list[tuple[Path, str]]:
    """Draw piano performances and write them; what is drawn always decodes (`PianoConstraint`).

    Args:
        checkpoint: of a model of REMI or performance tokens.
        seconds: of music to draw, after the prompt; a minute if None.
        prompt: MIDI file to continue, of any tempo; it opens the output as it is, pedal included. The model
            reads at most half of the context of it (of the training length without one), the end.
        prompt_seconds: of it to use; all if None.
        keys: lowest and highest MIDI pitch of notes that are drawn; the prompt keeps its own.
        polyphony: notes are drawn only where fewer sound, those of the prompt included.

    Returns:
        For each sample its file and a line that says what is in it.

    Raises:
        SeqpopeError: the checkpoint is none of performances, the prompt cannot be read or is empty, options
            contradict each other, or the output cannot be written.
    """
    draw = draw or Draw()
    draw.check()
    output.check(draw.num)
    output.spare([f"piano-{seed:04d}" for seed in draw.seeds], [prompt, checkpoint])
    seconds = SECONDS if seconds is None else seconds
    if not 0.1 <= seconds <= MAXIMUM_SECONDS:
        raise SeqpopeError(f"seconds must be from 0.1 to {MAXIMUM_SECONDS:g}, they are {seconds}")
    if prompt_seconds is not None:
        if prompt is None:
            raise SeqpopeError(
                f"prompt_seconds ({prompt_seconds:g}) are those of a prompt: name one, or leave them out"
            )
        if not 0 < prompt_seconds < math.inf:
            raise SeqpopeError(f"prompt_seconds must be above 0, they are {prompt_seconds}")
    PianoConstraint(keys, polyphony)  # refuses what makes no sense before a model is read
    model, tokenizer, kind = load_model(checkpoint, draw.device)
    opening = Opening()
    if prompt is not None:
        whole, limit = read_midi(prompt), (draw.context or model.info.length) // 2 - 1
        cut = whole.seconds if prompt_seconds is None else min(prompt_seconds, whole.seconds)
        opening = make_opening(whole, cut, tokenizer, limit, f"the prompt {prompt}")
    plan = make_plan(opening, kind, seconds, keys, polyphony)
    asked = {
        "seconds": seconds,
        "prompt": str(prompt) if prompt else None,
        "prompt_seconds": opening.cut,
        "prompt_notes": len(opening.played),
        "prompt_read_from_second": opening.read_from,
        "prompt_notes_read": opening.read,
        "prompt_tokens": len(opening.ids),
        "keys": list(keys),
        "polyphony": polyphony,
        "token_budget": plan.budget,
    }
    results = []
    told = replace(draw, progress=_in_seconds(draw.progress, seconds * draw.num))
    for seed, drawn, (joined, _, notes) in draw_piano(model, tokenizer, plan, told):
        played = replace(joined, name=f"{prompt.stem}, continued" if prompt else f"sample {seed}")
        sidecar = describe_piano(model, draw, asked, seed, drawn, len(opening.ids), notes)
        begin = plan.begin if prompt else 0.0
        file = output.write_performance(played, f"piano-{seed:04d}", sidecar, begin, plan.end)
        results.append((file, describe(played, sidecar)))
    return results


def _in_seconds(shown: Callable[[int, int], None] | None, seconds: float) -> Callable[[int, int], None] | None:
    """A progress of tokens out of a budget that tells one of so many seconds."""
    if shown is None:
        return None
    return lambda done, total: shown(round(done / total * seconds), max(1, round(seconds)))


def describe_piano(
    model: Model, draw: Draw, asked: dict[str, Any], seed: int, drawn: Samples, prompt_tokens: int, notes: int
) -> dict[str, Any]:
    """The sidecar of one performance: model, settings, seed, and what was drawn in numbers."""
    sidecar = describe_draw(model, draw, asked, seed, drawn, prompt_tokens)
    nats = float(drawn.nats.double().sum())
    return sidecar | {
        "notes": notes,
        "seconds": asked["seconds"],
        "nats_per_note": nats / notes if notes else None,
        "nats_per_second": nats / asked["seconds"],
    }


def describe(played: Performance, sidecar: dict[str, Any]) -> str:
    """One line: length, notes, keys, NLL of what was drawn, and what of the prompt was read."""
    asked = sidecar["settings"]
    text = f"{sidecar['seconds']:g} s drawn, {sidecar['notes']} notes"
    if asked["prompt"]:
        text = f"{asked['prompt_seconds']:.1f} s of prompt, {text}"
        if asked["prompt_read_from_second"]:
            text += f" (read from {asked['prompt_read_from_second']:g} s on)"
    text += f", keys {played.pitch.min()}-{played.pitch.max()}, {sidecar['nats_per_token']:.3f} nats/token"
    if sidecar["constraint_nats_per_token"] >= 5e-4:
        text += f", of which the rules cost {sidecar['constraint_nats_per_token']:.3f}"
    if sidecar["beyond_training_length"]:
        text += "; longer than the model was trained on"
    return text
