"""Sampled performances judged: what sounds, how densely, how loud, and what is copied from the training split.

Terms. Notes come in the order they were struck. What sounds is what keys are held, without a pedal. An undefined
value is None: a share or a mean of nothing.

A copy is a run of notes that a training performance has too, in the same order and on the same steps of the
tokens' grid from one to the next: with equal intervals in whatever key ("any key"), or with equal pitches,
velocities and durations as the tokens have them ("exact").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from seqpope.domains.music.chorales.metrics import SCALE, divergence, turned_to_scale
from seqpope.domains.music.piano.codec import Performance
from seqpope.domains.music.piano.corpus import is_stretched
from seqpope.domains.music.tables import table_of
from seqpope.errors import SeqpopeError

WIDEST = 24  # intervals beyond two octaves are counted as these
COPY_NOTES = 24  # a run of as many notes that a training performance has is called a copy
LONGEST_COPY = 1 << 12  # notes; a longer copy is told as this long
PAIRS_AT_ONCE = 1 << 20
TIMES = np.geomspace(1 / 32, 8, 17)  # seconds, borders of the bins of durations and of times between notes
VELOCITY_BORDERS = np.arange(0, 129, 8)

Values = dict[str, float | None]


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


# ---------------------------------------------------------------- one performance


def sounding(played: Performance) -> np.ndarray:
    """How many notes sound where each is struck, itself included, (N,)."""
    struck = np.searchsorted(played.onset, played.onset, side="right")
    return struck - np.searchsorted(np.sort(played.end), played.onset, side="right")


def pitch_class_histogram(played: Performance) -> np.ndarray:
    """(12,) counts of notes by pitch modulo 12, from the tonic of the major scale that has most of them on."""
    return turned_to_scale(np.bincount(played.pitch % 12, minlength=12))


def melodic_histogram(played: Performance) -> np.ndarray:
    """(49,) counts: semitones from each note to the next, -24 to 24 (wider ones count there)."""
    steps = np.clip(np.diff(played.pitch.astype(int)), -WIDEST, WIDEST)
    return np.bincount(steps + WIDEST, minlength=2 * WIDEST + 1)


def harmonic_histogram(played: Performance) -> np.ndarray:
    """(12,) counts: of each note that is struck and each other that sounds then, their interval modulo 12."""
    counts = np.zeros(12, np.int64)
    onset, end, pitch = played.onset, played.end, played.pitch.astype(int)
    live: list[int] = []
    for note, now in enumerate(onset.tolist()):
        live = [other for other in live if end[other] > now]
        if live:
            counts += np.bincount(np.abs(pitch[live] - pitch[note]) % 12, minlength=12)
        live.append(note)
    return counts


def _binned(values: np.ndarray) -> np.ndarray:
    """(18,) counts between the borders TIMES, and of what lies before and behind."""
    return np.bincount(np.searchsorted(TIMES, values, side="right"), minlength=len(TIMES) + 1)


HISTOGRAMS = {
    "pitch_classes": pitch_class_histogram,
    "melodic": melodic_histogram,
    "harmonic": harmonic_histogram,
    "durations": lambda played: _binned(played.duration),
    "waits": lambda played: _binned(np.diff(played.onset)),
    "velocities": lambda played: np.histogram(played.velocity, VELOCITY_BORDERS)[0],
}


def measure(played: Performance, seconds: float) -> Values:
    """All values of a performance that need no other.

    - notes_per_second: over `seconds`, the length of the music.
    - polyphony, most_sounding: mean and greatest number of `sounding` notes; together: share of notes that are
      struck within 30 ms of the one before.
    - velocity, velocity_sd: mean and standard deviation. duration: median, seconds.
    - pitch: mean. in_scale: share of notes in the best major scale.
    """
    at_once, scale = sounding(played), pitch_class_histogram(played)
    return {
        "notes_per_second": len(played) / seconds if seconds > 0 else None,
        "polyphony": _mean(at_once),
        "most_sounding": float(at_once.max()) if len(played) else None,
        "together": _mean(np.diff(played.onset) < 0.03),
        "velocity": _mean(played.velocity),
        "velocity_sd": float(np.std(played.velocity)) if len(played) else None,
        "duration": float(np.median(played.duration)) if len(played) else None,
        "pitch": _mean(played.pitch),
        "in_scale": float(scale[list(SCALE)].sum() / scale.sum()) if len(played) else None,
    }


# ---------------------------------------------------------------- copies


@dataclass(frozen=True)
class Copy:
    """A run of notes of a sample that a training performance has too.

    Attributes:
        notes: how many.
        start, piece_start: its first note's number in the sample and in the performance.
        piece: the performance's number. transposition: the sample's pitches less its.
    """

    notes: int
    start: int
    piece: int
    piece_start: int
    transposition: int


def _symbols(played: Performance, rate: int, exact: bool) -> np.ndarray:
    """An integer for each note but the first, (N - 1,): equal ones are copies of each other."""
    pitch = played.pitch.astype(np.int64)
    step = np.floor(played.onset * rate + 1e-6).astype(np.int64)
    wait = step[1:] - step[:-1]
    if not exact:
        return (wait << 8) + np.diff(pitch) + 128
    held = np.rint(played.duration * rate).astype(np.int64)
    return (((wait << 20) + held[1:] << 7) + played.velocity[1:] << 14) + (pitch[:-1] << 7) + pitch[1:]


def _mixed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Hashes of pairs of hashes, uint64."""
    mixed = first * np.uint64(0x9E3779B97F4A7C15) + (second ^ (second >> np.uint64(29)))
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return mixed ^ (mixed >> np.uint64(32))


def copies(
    samples: Sequence[Performance], training: Sequence[Performance], rate: int, exact: bool = False
) -> list[Copy | None]:
    """The longest run of notes of each sample that is in a training performance; None if not two notes are.

    All runs of 1, 2, 4, ... notes are hashed; what agrees at the greatest length is compared note by note on.

    Args:
        rate: steps of the grid a second, on which times are compared.
        exact: pitches, velocities and durations must agree as well, not only intervals and times.
    """
    every = [*training, *samples]
    # Between performances stands a symbol that is nowhere else.
    parts = [np.append(_symbols(played, rate, exact), -1 - number) for number, played in enumerate(every)]
    text = np.concatenate([*parts, np.zeros(0, np.int64)])
    first = np.cumsum([0, *map(len, parts)])
    border = int(first[len(training)])
    best: list[Copy | None] = [None] * len(samples)
    starts = np.arange(border, len(text))
    starts = starts[text[starts] >= 0]
    level, length = _Level(text.astype(np.uint64), border), 1
    found = starts[level.has(starts)]
    while len(found):
        longer = _Level(_mixed(level.hashes[:-length], level.hashes[length:]), max(0, border - length))
        inside = found[found < len(longer.hashes)]
        further = inside[longer.has(inside)] if length < LONGEST_COPY else inside[:0]
        owners, going = (np.searchsorted(first, at, side="right") - 1 for at in (found, further))
        for owner in np.setdiff1d(owners, going).tolist():
            pairs = level.pairs(found[owners == owner])
            best[owner - len(training)] = _longest(text, *pairs, first, every)
        level, found, length = longer, further, 2 * length
    return best


class _Level:
    """Hashes of all runs of some length; those of the first `border` places are known."""

    def __init__(self, hashes: np.ndarray, border: int) -> None:
        self.hashes = hashes
        self.order = np.argsort(hashes[:border], kind="stable")
        self.known = hashes[self.order]

    def _span(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wanted = self.hashes[at]
        return np.searchsorted(self.known, wanted), np.searchsorted(self.known, wanted, side="right")

    def has(self, at: np.ndarray) -> np.ndarray:
        """Whether the runs at places (N,) are known, (N,) bool."""
        low, high = self._span(at)
        return high > low

    def pairs(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All places of `at` with all known places that agree, up to PAIRS_AT_ONCE or so."""
        low, high = self._span(at)
        count = np.minimum(high - low, max(1, PAIRS_AT_ONCE // len(at)))
        within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(at, count), self.order[np.repeat(low, count) + within]


def _longest(
    text: np.ndarray, a: np.ndarray, b: np.ndarray, first: np.ndarray, every: Sequence[Performance]
) -> Copy | None:
    """Of places of one sample and of the training, pair by pair, the longest match; the first of several."""
    shared, going = np.zeros(len(a), np.int64), np.arange(len(a))
    while len(going):
        going = going[text[a[going] + shared[going]] == text[b[going] + shared[going]]]
        shared[going] += 1  # ends at the latest where a performance does
    if shared.max() == 0:
        return None
    most = int(np.lexsort((b, a, -shared))[0])
    owner, piece = (int(np.searchsorted(first, at[most], side="right") - 1) for at in (a, b))
    start, piece_start = int(a[most] - first[owner]), int(b[most] - first[piece])
    shift = int(every[owner].pitch[start]) - int(every[piece].pitch[piece_start])
    return Copy(int(shared[most]) + 1, start, piece, piece_start, shift)


# ---------------------------------------------------------------- many performances


def excerpts(pieces: Iterable[Performance], seconds: float) -> list[Performance]:
    """Of each performance so many seconds, from places that differ; those that hold two notes or more."""
    found = []
    for number, played in enumerate(pieces):
        room = max(0, int(played.seconds - seconds))
        begin = int(np.random.default_rng(number).integers(0, room + 1))
        cut = between(played, begin, begin + seconds)
        if len(cut) > 1:
            found.append(replace(cut, onset=cut.onset - begin))
    return found


def between(played: Performance, begin: float, end: float = np.inf) -> Performance:
    """The notes struck from `begin` on and before `end`, seconds, without the pedal."""
    kept = (played.onset >= begin) & (played.onset < end)
    parts = (played.duration[kept], played.pitch[kept], played.velocity[kept])
    return Performance(played.onset[kept], *parts, name=played.name)


def examine(
    samples: Sequence[Performance],
    seconds: Sequence[float],
    training: Sequence[Performance] = (),
    reference: Sequence[Performance] = (),
    *,
    rate: int = 100,
) -> dict[str, Any]:
    """Everything measured of samples, and beside it of reference excerpts, as data that JSON can hold.

    Args:
        seconds: how long the music of each sample lasts; a reference lasts until its last note ends.
        training: performances in which copies are looked for, on a grid of `rate` steps a second; those whose
            names say that they are stretched are counted apart.

    Returns:
        "samples" and "reference" (None without), each with "pieces", a list of: name; seconds; notes; range
        (lowest and highest pitch); values, those of `measure`, distance_(histogram), which is the Jensen-Shannon
        divergence in bits from the sum of the reference's (of a reference from the others'), and copied_notes
        and copied_notes_exact; copied and copied_exact (a `Copy` as a dict, or None). "mean", "sd", "range" and
        "histograms" are over all pieces. "training_pieces" and "training_stretched" count performances as played
        and their stretched copies.

    Raises:
        SeqpopeError: there is no sample, or one has no notes.
    """
    if not samples:
        raise SeqpopeError("there is no sample to examine: generate some first")
    silent = next((played for played in samples if len(played) == 0), None)
    if silent is not None:
        raise SeqpopeError(f"{silent.name} has no notes to examine")
    every = [*samples, *reference]
    lengths = [*seconds, *(played.seconds for played in reference)]
    kinds = {kind: [histogram(played) for played in every] for kind, histogram in HISTOGRAMS.items()}
    pools = {kind: np.sum(counts[len(samples) :], axis=0) for kind, counts in kinds.items()}
    pieces: list[dict[str, Any]] = []
    for number, (played, length) in enumerate(zip(every, lengths, strict=True)):
        values = measure(played, length)
        for kind, counts in kinds.items():
            others = pools[kind] - (counts[number] if number >= len(samples) else 0)
            values[f"distance_{kind}"] = divergence(counts[number], others) if reference else None
        ends = [int(played.pitch.min()), int(played.pitch.max())]
        pieces.append(
            {"name": played.name, "seconds": length, "notes": len(played), "range": ends, "values": values}
            | {"copied": None, "copied_exact": None}
        )
    if training:
        for key, exact in (("copied", False), ("copied_exact", True)):
            for piece, copy in zip(pieces, copies(every, training, rate, exact), strict=True):
                if copy is not None:
                    piece[key] = asdict(copy) | {"piece_name": training[copy.piece].name}
                piece["values"][key.replace("copied", "copied_notes")] = copy.notes if copy else 0
    sums = {kind: np.sum(counts[: len(samples)], axis=0) for kind, counts in kinds.items()}
    stretched = sum(is_stretched(played.name) for played in training)
    return {
        "samples": _summary(pieces[: len(samples)], sums),
        "reference": _summary(pieces[len(samples) :], pools) if reference else None,
        "training_pieces": len(training) - stretched,
        "training_stretched": stretched,
        "copy_notes": COPY_NOTES,
    }


def _summary(pieces: list[dict[str, Any]], histograms: dict[str, np.ndarray]) -> dict[str, Any]:
    known = {
        key: [piece["values"][key] for piece in pieces if piece["values"][key] is not None]
        for key in pieces[0]["values"]
    }
    return {
        "pieces": pieces,
        "mean": {key: float(np.mean(values)) if values else None for key, values in known.items()},
        "sd": {key: float(np.std(values, ddof=1)) if len(values) > 1 else None for key, values in known.items()},
        "range": [min(piece["range"][0] for piece in pieces), max(piece["range"][1] for piece in pieces)],
        "histograms": {kind: counts.tolist() for kind, counts in histograms.items()},
    }


# ---------------------------------------------------------------- the table

# What a row is called, which value, times what, digits.
ROWS = [
    ("notes / s", "notes_per_second", 1, 2),
    ("notes sounding where one is struck", "polyphony", 1, 2),
    ("most notes sounding", "most_sounding", 1, 1),
    ("% of notes within 30 ms of the one before", "together", 100, 1),
    ("velocity", "velocity", 1, 1),
    ("velocity, standard deviation", "velocity_sd", 1, 1),
    ("duration, median, s", "duration", 1, 3),
    ("pitch", "pitch", 1, 1),
    ("% of notes in the best major scale", "in_scale", 100, 1),
    ("pitch classes: bits from reference", "distance_pitch_classes", 1, 3),
    ("intervals from note to note: bits from reference", "distance_melodic", 1, 3),
    ("intervals that sound: bits from reference", "distance_harmonic", 1, 3),
    ("durations: bits from reference", "distance_durations", 1, 3),
    ("times between notes: bits from reference", "distance_waits", 1, 3),
    ("velocities: bits from reference", "distance_velocities", 1, 3),
    ("longest copy, any key: notes", "copied_notes", 1, 1),
    ("longest exact copy: notes", "copied_notes_exact", 1, 1),
]


def render(result: dict[str, Any]) -> str:
    """What `examine` found as Markdown: a table, what it means, and a sentence for each sample that copies."""
    sets = {name: result[name] for name in ("samples", "reference") if result[name] is not None}
    ends = [f"{found['range'][0]} to {found['range'][1]}" for found in sets.values()]
    told = table_of(sets, ROWS, [["lowest to highest pitch", *ends]])
    text = "Mean over pieces ± sample standard deviation."
    if result["reference"] is not None:
        text += (
            " The reference is an excerpt of each performance of the test split, as long as the samples are at "
            "the median. Bits: Jensen-Shannon divergence from all excerpts together; an excerpt is compared with "
            "the others."
        )
    return "\n\n".join([told, text, *_copies_text(result)]) + "\n"


def _copies_text(result: dict[str, Any]) -> list[str]:
    if not result["training_pieces"]:
        return ["Copies were not looked for: no training performances were given."]
    limit, sentences = result["copy_notes"], []
    for piece in result["samples"]["pieces"]:
        copy = piece["copied"]
        if copy is not None and copy["notes"] >= limit:
            shift = copy["transposition"]
            key = (
                "in the same key" if not shift else f"{abs(shift)} semitones {'higher' if shift > 0 else 'lower'}"
            )
            sentences.append(
                f"**{piece['name']} copies {copy['piece_name']}**: {copy['notes']} notes from note "
                f"{copy['start']} on are that performance's from note {copy['piece_start']} on, {key}."
            )
    count = f"the {result['training_pieces']} training performances"
    if result["training_stretched"]:
        count += f" and stretched copies of them ({result['training_stretched']})"
    if not sentences:
        most = max(int(piece["values"]["copied_notes"]) for piece in result["samples"]["pieces"])
        sentences = [
            f"No sample shares {limit} notes in a row with {count}, in whatever key; the longest run has {most}."
        ]
    if result["reference"] is not None:
        pieces = result["reference"]["pieces"]
        like = sum(piece["copied"] is not None and piece["copied"]["notes"] >= limit for piece in pieces)
        sentences.append(f"Of the {len(pieces)} reference excerpts {like} share as many with {count}.")
    return sentences
