"""Sampled chorales judged: what sounds, how voices move, and what is copied from the training pieces.

All that is measured here is a function of the grid of pitches. Held and repeated notes cannot be told apart
in it and notes have no spelling, so nothing here asks for either: there are no augmented seconds (a minor
third sounds alike), no leading notes and no resolutions of dissonances. A bar is sixteen steps, whatever the
metre, and step 0 is taken to lie on a beat.

Terms. A voice sounds at a step unless it is silent. A chord change is a step, not the first, at which any
voice has another pitch than at the step before (falling silent and coming in count). A voice moves at a
step if it sounds there and at the step before, at another pitch. An undefined value is None: a share of
nothing, or a rate of a piece without chord changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from seqpope.domains.music.chorales.codec import SILENCE, STEPS_PER_BAR, STEPS_PER_QUARTER, VOICES, Chorale
from seqpope.domains.music.chorales.copies import COPY_CHANGES, copies, soprano_copies
from seqpope.domains.music.tables import table_of
from seqpope.errors import SeqpopeError

# Lowest and highest MIDI pitch, soprano first: the textbook's, with a bass that goes down to C2 instead of E2,
# where Bach's goes for one step in a hundred. Of each voice's sounding steps in the JSB training split, 99.97%
# or more lie inside, and all of the soprano's.
RANGES = ((60, 81), (53, 74), (48, 69), (36, 64))
SCALE = (0, 2, 4, 5, 7, 9, 11)
OCTAVE, FIFTH, TRITONE, STEP = 12, 7, 6, 2
WIDEST = 12  # melodic intervals beyond are counted as this one

# Semitones above the root. A chord without its fifth counts where the rest still says what it is.
QUALITIES = {
    "major": (0, 4, 7),
    "minor": (0, 3, 7),
    "diminished": (0, 3, 6),
    "dominant seventh": (0, 4, 7, 10),
    "minor seventh": (0, 3, 7, 10),
    "half-diminished seventh": (0, 3, 6, 10),
    "major seventh": (0, 4, 7, 11),
    "diminished seventh": (0, 3, 6, 9),
}
UPPER, LOWER = (np.array(side) for side in zip(*itertools.combinations(range(len(VOICES)), 2), strict=True))

Histogram = np.ndarray
Values = dict[str, float | None]


def _share(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def chord_changes(chorale: Chorale) -> np.ndarray:
    """Whether a step is a chord change, (steps,) bool; the first never is."""
    changed = np.zeros(len(chorale), bool)
    changed[1:] = (chorale.pitches[1:] != chorale.pitches[:-1]).any(axis=1)
    return changed


# ---------------------------------------------------------------- histograms


def pitch_class_histogram(chorale: Chorale) -> Histogram:
    """(12,) counts: steps at which a voice sounds, summed over voices, by pitch modulo 12 (0 is C)."""
    return np.bincount(chorale.pitches[chorale.pitches != SILENCE] % OCTAVE, minlength=OCTAVE)


def scale_histogram(chorale: Chorale) -> Histogram:
    """`pitch_class_histogram` turned to begin with the tonic of the piece's major scale: the same in any key.

    That scale is the one of the twelve with the largest part of the counts; of several, the one whose
    turned histogram is the largest in lexicographic order. A minor piece is counted from its relative major.
    """
    return turned_to_scale(pitch_class_histogram(chorale))


def turned_to_scale(counts: Histogram) -> Histogram:
    """(12,) counts of pitch classes, turned as `scale_histogram` says."""
    turned = [np.roll(counts, -tonic) for tonic in range(OCTAVE)]
    return max(turned, key=lambda counts: (counts[list(SCALE)].sum(), counts.tolist()))


def melodic_histogram(chorale: Chorale) -> Histogram:
    """(4, 25) counts: the moves of each voice by interval in semitones, -12 to 12 (wider ones count there).

    A voice that comes in after a rest does not move.
    """
    before, after = chorale.pitches[:-1].astype(int), chorale.pitches[1:].astype(int)
    moved = (before != SILENCE) & (after != SILENCE) & (before != after)
    cells = np.clip(after - before, -WIDEST, WIDEST) + WIDEST + (2 * WIDEST + 1) * np.arange(len(VOICES))
    counts = np.bincount(cells[moved], minlength=len(VOICES) * (2 * WIDEST + 1))
    return counts.reshape(len(VOICES), -1)


def harmonic_histogram(chorale: Chorale) -> Histogram:
    """(12,) counts: all pairs of voices that sound at a step, by the size of their interval modulo 12."""
    upper, lower = chorale.pitches[:, UPPER], chorale.pitches[:, LOWER]
    both = (upper != SILENCE) & (lower != SILENCE)
    return np.bincount(np.abs(upper - lower)[both] % OCTAVE, minlength=OCTAVE)


def _quality_table() -> np.ndarray:
    """The index in QUALITIES of every set of pitch classes, as 12 bits; the number of qualities for no chord."""
    table = np.full(1 << OCTAVE, len(QUALITIES))
    for whole in (False, True):  # whole chords last: they are what they are
        for index, template in enumerate(QUALITIES.values()):
            notes = template if whole else tuple(note for note in template if note != FIFTH)
            if whole or len(notes) < len(template):
                for root in range(OCTAVE):
                    table[sum(1 << (root + note) % OCTAVE for note in notes)] = index
    return table


_QUALITY = _quality_table()


def chord_histogram(chorale: Chorale) -> Histogram:
    """(9,) counts: steps by the chord they sound, in the order of QUALITIES, last those that are none.

    The set of sounding pitch classes must be all of a template on one of twelve roots, in any inversion and
    doubling, or all but its perfect fifth. Steps at which no voice sounds are left out. Bare octaves
    and fifths are none, and so is a chord with a passing note or a suspension.
    """
    sounding = chorale.pitches != SILENCE
    bits = np.where(sounding, 1 << (chorale.pitches.astype(int) % OCTAVE), 0)
    sets = np.bitwise_or.reduce(bits, axis=1)[sounding.any(axis=1)]
    return np.bincount(_QUALITY[sets], minlength=len(QUALITIES) + 1)


def divergence(a: Histogram, b: Histogram) -> float | None:
    """Jensen-Shannon divergence of two histograms in bits: 0 for equal shares, 1 for nothing in common.

    Of p and q, the counts divided by their sums, and m = (p + q) / 2 it is the mean of the sums of
    p log2(p / m) and of q log2(q / m). Of two-dimensional histograms it is the mean over those rows that
    are empty in neither; None if there is no such row.
    """
    rows = []
    for p, q in zip(np.atleast_2d(a).astype(float), np.atleast_2d(b).astype(float), strict=True):
        if p.sum() and q.sum():
            p, q = p / p.sum(), q / q.sum()
            m = (p + q) / 2
            with np.errstate(divide="ignore", invalid="ignore"):
                bits = np.where(p > 0, p * np.log2(p / m), 0) + np.where(q > 0, q * np.log2(q / m), 0)
            rows.append(min(1.0, max(0.0, float(bits.sum()) / 2)))
    return sum(rows) / len(rows) if rows else None


HISTOGRAMS = {
    "pitch_classes": scale_histogram,
    "melodic": melodic_histogram,
    "harmonic": harmonic_histogram,
    "chords": chord_histogram,
}


# ---------------------------------------------------------------- one piece


def compass(chorale: Chorale) -> dict[str, tuple[int, int] | None]:
    """Lowest and highest pitch of each voice; None for one that is silent throughout."""
    voices = {name: line[line != SILENCE] for name, line in zip(VOICES, chorale.pitches.T, strict=True)}
    return {name: (int(line.min()), int(line.max())) if len(line) else None for name, line in voices.items()}


def outside_range(chorale: Chorale, ranges: Sequence[tuple[int, int]] = RANGES) -> dict[str, float | None]:
    """Share of each voice's sounding steps that lie below or above its range, both ends belonging to it."""
    shares = {}
    for name, line, (low, high) in zip(VOICES, chorale.pitches.T, ranges, strict=True):
        sounding = line[line != SILENCE]
        shares[name] = _share(((sounding < low) | (sounding > high)).sum(), len(sounding))
    return shares


def voice_leading(chorale: Chorale, direct: bool = True) -> dict[str, int]:
    """What textbooks forbid, counted over all chord changes.

    Intervals are of sounding size modulo 12, so compound ones count as simple ones, and of crossed voices
    too. Of a change, every pair of voices (or voice) that fits is counted:

    - changes: the chord changes, by which the others are divided.
    - parallel_fifths, parallel_octaves: both voices of one of the six pairs move, in the same direction, and
      their interval is 7 (0 for octaves and unisons) before and after.
    - direct_fifths, direct_octaves: soprano and bass move in the same direction to an interval of 7 (or 0)
      from another, the soprano by more than two semitones. Left out if `direct` is false.
    - crossings: of one of the six pairs, the upper voice is below the lower in the new chord.
    - overlaps: of neighbouring voices, crossed neither before nor after, the upper one moves below where the
      lower one was, or the lower one above where the upper one was.
    - spacing: soprano and alto, or alto and tenor, are more than 12 semitones apart in the new chord.
    - wide_leaps: a voice moves by more than 12 semitones.
    - tritone_leaps: a voice moves by 6 semitones.
    """
    changes = np.flatnonzero(chord_changes(chorale))
    before, after = chorale.pitches[changes - 1].astype(int), chorale.pitches[changes].astype(int)
    throughout = (before != SILENCE) & (after != SILENCE)
    motion = np.where(throughout, after - before, 0)
    sounding = (after[:, UPPER] != SILENCE) & (after[:, LOWER] != SILENCE)
    similar = np.sign(motion[:, UPPER]) * np.sign(motion[:, LOWER]) > 0
    old = np.abs(before[:, UPPER] - before[:, LOWER]) % OCTAVE
    new = np.abs(after[:, UPPER] - after[:, LOWER]) % OCTAVE
    counts = {
        "changes": np.ones(len(changes)),
        "parallel_fifths": similar & (old == FIFTH) & (new == FIFTH),
        "parallel_octaves": similar & (old == 0) & (new == 0),
    }
    if direct:
        outer = UPPER + len(VOICES) - 1 == LOWER
        leaping = similar & outer & (np.abs(motion[:, :1]) > STEP)
        counts["direct_fifths"] = leaping & (new == FIFTH) & (old != FIFTH)
        counts["direct_octaves"] = leaping & (new == 0) & (old != 0)
    uncrossed = throughout[:, :-1] & throughout[:, 1:]
    uncrossed &= (before[:, :-1] >= before[:, 1:]) & (after[:, :-1] >= after[:, 1:])
    apart = sounding & (UPPER + 1 == LOWER) & (UPPER < 2)
    counts |= {
        "crossings": sounding & (after[:, UPPER] < after[:, LOWER]),
        "overlaps": uncrossed & ((after[:, :-1] < before[:, 1:]) | (after[:, 1:] > before[:, :-1])),
        "spacing": apart & (after[:, UPPER] - after[:, LOWER] > OCTAVE),
        "wide_leaps": np.abs(motion) > OCTAVE,
        "tritone_leaps": np.abs(motion) == TRITONE,
    }
    return {name: int(events.sum()) for name, events in counts.items()}


def rhythm(chorale: Chorale) -> Values:
    """How much happens, and when.

    - notes_per_bar_(voice): notes divided by bars (steps / 16, not rounded); a note is a longest run of steps
      at one pitch, so repeated notes are one.
    - changes: chord changes divided by the steps after the first.
    - changes_on_1 to changes_on_4: of the chord changes, the share at each of the four sixteenths of a beat.
    """
    pitches, changed = chorale.pitches, chord_changes(chorale)
    begins = pitches != SILENCE
    begins[1:] &= pitches[1:] != pitches[:-1]
    values: Values = {
        f"notes_per_bar_{name.lower()}": _share(STEPS_PER_BAR * begins[:, voice].sum(), len(chorale))
        for voice, name in enumerate(VOICES)
    }
    values["changes"] = _share(changed.sum(), max(0, len(chorale) - 1))
    places = np.bincount(np.flatnonzero(changed) % STEPS_PER_QUARTER, minlength=STEPS_PER_QUARTER)
    return values | {f"changes_on_{place + 1}": _share(n, changed.sum()) for place, n in enumerate(places)}


def measure(chorale: Chorale) -> Values:
    """All values of one piece that need no other piece.

    outside_(voice): see `outside_range`. Those of `voice_leading`: times 100, divided by the chord changes.
    tonal: share of steps that sound a triad or a seventh chord by `chord_histogram`. in_scale: of what
    sounds, the share in the piece's scale by `scale_histogram`. The rest: see `rhythm`.
    """
    values: Values = {f"outside_{voice.lower()}": share for voice, share in outside_range(chorale).items()}
    counts = voice_leading(chorale)
    changes = counts.pop("changes")
    values |= {name: _share(100 * count, changes) for name, count in counts.items()}
    chords, scale = chord_histogram(chorale), scale_histogram(chorale)
    values["tonal"] = _share(chords[:-1].sum(), chords.sum())
    values["in_scale"] = _share(scale[list(SCALE)].sum(), scale.sum())
    return values | rhythm(chorale)


# ---------------------------------------------------------------- many pieces


def examine(
    samples: Sequence[Chorale], training: Sequence[Chorale] = (), reference: Sequence[Chorale] = ()
) -> dict[str, Any]:
    """Everything measured of samples, and beside it of reference pieces, as data that JSON can hold.

    Returns:
        "samples" and "reference" (None without), each with "pieces", a list of: name; steps; range
        (`compass`); values, which are those of `measure`, the following, or None; copied (None without
        training pieces, or a `Copy` as a dict). Values of distances need a reference, of copies training
        pieces:

        - distance_(histogram): `divergence` from the sum of the reference's histograms of that kind in
          HISTOGRAMS; a reference piece is compared with the sum of the others. Shorter pieces differ more.
        - copied_changes, copied_steps: of `copied`, 0 for none; copied_changes_in_key: if not transposed.
        - soprano_notes, soprano_notes_in_key: notes of `copied_soprano`, transposed and not.

        "mean" and "sd" are plain means and sample standard deviations over the pieces where a value is not
        None (sd: two or more), "range" is that of all pieces and "histograms" are sums of counts.
        "training_pieces" and "copy_changes" say how many pieces copies were looked for in and how many
        changes make one.

    Raises:
        SeqpopeError: there is no sample.
    """
    if not samples:
        raise SeqpopeError("there is no sample to examine: generate some first")
    every = [*samples, *reference]
    kinds = {kind: [histogram(piece) for piece in every] for kind, histogram in HISTOGRAMS.items()}
    pools = {kind: np.sum(counts[len(samples) :], axis=0) for kind, counts in kinds.items()}
    sums = {kind: np.sum(counts[: len(samples)], axis=0) for kind, counts in kinds.items()}
    pieces: list[dict[str, Any]] = []
    for number, piece in enumerate(every):
        values = measure(piece)
        for kind, counts in kinds.items():
            if not reference:
                values[f"distance_{kind}"] = None
            else:
                others = pools[kind] - (counts[number] if number >= len(samples) else 0)
                values[f"distance_{kind}"] = divergence(counts[number], others)
        ranges = {voice: None if ends is None else list(ends) for voice, ends in compass(piece).items()}
        pieces.append({"name": piece.name, "steps": len(piece), "range": ranges, "values": values, "copied": None})
    if training:
        found = [
            search(every, training, transposed)
            for search in (copies, soprano_copies)
            for transposed in (True, False)
        ]
        for entry, copy, in_key, tune, tune_in_key in zip(pieces, *found, strict=True):
            entry["copied"] = None if copy is None else asdict(copy) | {"bars": copy.bars}
            entry["values"] |= {
                "copied_changes": copy.changes if copy else 0,
                "copied_steps": copy.steps if copy else 0,
                "copied_changes_in_key": in_key.changes if in_key else 0,
                "soprano_notes": tune.changes + 1 if tune else 0,
                "soprano_notes_in_key": tune_in_key.changes + 1 if tune_in_key else 0,
            }
    return {
        "samples": _summary(pieces[: len(samples)], sums),
        "reference": _summary(pieces[len(samples) :], pools) if reference else None,
        "training_pieces": len(training),
        "copy_changes": COPY_CHANGES,
    }


def _summary(pieces: list[dict[str, Any]], histograms: dict[str, Histogram]) -> dict[str, Any]:
    known = {
        key: [piece["values"][key] for piece in pieces if piece["values"][key] is not None]
        for key in pieces[0]["values"]
    }
    ends = {voice: [piece["range"][voice] for piece in pieces if piece["range"][voice]] for voice in VOICES}
    return {
        "pieces": pieces,
        "mean": {key: float(np.mean(values)) if values else None for key, values in known.items()},
        "sd": {key: float(np.std(values, ddof=1)) if len(values) > 1 else None for key, values in known.items()},
        "range": {
            voice: [min(low for low, _ in each), max(high for _, high in each)] if each else None
            for voice, each in ends.items()
        },
        "histograms": {kind: counts.tolist() for kind, counts in histograms.items()},
    }


# ---------------------------------------------------------------- the table

# What a row is called, which value, times what, digits.
ROWS = [
    *[(f"{voice}: % of steps out of range", f"outside_{voice.lower()}", 100, 1) for voice in VOICES],
    ("parallel fifths / 100 changes", "parallel_fifths", 1, 2),
    ("parallel octaves, unisons / 100 changes", "parallel_octaves", 1, 2),
    ("direct fifths, outer voices / 100 changes", "direct_fifths", 1, 2),
    ("direct octaves, outer voices / 100 changes", "direct_octaves", 1, 2),
    ("crossings / 100 changes", "crossings", 1, 2),
    ("overlaps / 100 changes", "overlaps", 1, 2),
    ("spacing over an octave / 100 changes", "spacing", 1, 2),
    ("leaps over an octave / 100 changes", "wide_leaps", 1, 2),
    ("tritone leaps / 100 changes", "tritone_leaps", 1, 2),
    ("% of steps a triad or seventh chord", "tonal", 100, 1),
    ("% of pitches in the best major scale", "in_scale", 100, 1),
    *[(f"{voice}: notes a bar", f"notes_per_bar_{voice.lower()}", 1, 2) for voice in VOICES],
    ("% of steps with a change", "changes", 100, 1),
    *[(f"% of changes on sixteenth {n} of the beat", f"changes_on_{n}", 100, 1) for n in range(1, 5)],
    ("pitch classes: bits from reference", "distance_pitch_classes", 1, 3),
    ("melodic intervals: bits from reference", "distance_melodic", 1, 3),
    ("harmonic intervals: bits from reference", "distance_harmonic", 1, 3),
    ("chords: bits from reference", "distance_chords", 1, 3),
    ("longest copy, any key: changes", "copied_changes", 1, 1),
    ("longest copy, any key: steps", "copied_steps", 1, 1),
    ("longest copy, same key: changes", "copied_changes_in_key", 1, 1),
    ("longest soprano copy, any key: notes", "soprano_notes", 1, 1),
    ("longest soprano copy, same key: notes", "soprano_notes_in_key", 1, 1),
]


def render(result: dict[str, Any]) -> str:
    """What `examine` found as Markdown: a table, what it means, and a sentence for each sample that copies."""
    sets = {name: result[name] for name in ("samples", "reference") if result[name] is not None}
    ranges = []
    for voice in VOICES:
        ends = [found["range"][voice] for found in sets.values()]
        told = ["silent" if e is None else f"{e[0]} to {e[1]}" for e in ends]
        ranges.append([f"{voice}: lowest to highest", *told])
    return "\n\n".join([table_of(sets, ROWS, ranges), _legend(result), *_copies_text(result)]) + "\n"


def _legend(result: dict[str, Any]) -> str:
    text = "Mean over pieces ± sample standard deviation. A change is a step at which any voice changes its pitch."
    if result["reference"] is not None:
        text += (
            " Bits: Jensen-Shannon divergence from all reference pieces together; a reference piece is compared "
            "with the others."
        )
    return text


def _copies_text(result: dict[str, Any]) -> list[str]:
    if not result["training_pieces"]:
        return ["Copies were not looked for: no training pieces were given."]
    limit, sentences = result["copy_changes"], []
    for number, piece in enumerate(result["samples"]["pieces"], 1):
        copy = piece["copied"]
        if copy is None or copy["changes"] < limit:
            continue
        shift = copy["transposition"]
        key = "in the same key" if not shift else f"{abs(shift)} semitones {'higher' if shift > 0 else 'lower'}"
        key = key.replace("1 semitones", "1 semitone") if abs(shift) == 1 else key
        source = copy["piece"] or f"training piece {copy['index']}"
        whole = "all of it" if copy["steps"] == piece["steps"] else f"from step {copy['start']}"
        sentences.append(
            f"**Sample {number}{' (' + piece['name'] + ')' if piece['name'] else ''} copies "
            f"{source}**: {copy['changes']} chord changes of four "
            f"voices, {copy['bars']:.3g} bars, {whole}, are that piece's from step {copy['piece_start']}, {key}."
        )
    count = f"the {result['training_pieces']} training pieces"
    if not sentences:
        most = max(int(piece["values"]["copied_changes"]) for piece in result["samples"]["pieces"])
        sentences = [
            f"No sample shares {limit} chord changes of four voices with {count}, in whatever key; the longest "
            f"span shared has {most}."
        ]
    if result["reference"] is not None:
        pieces = result["reference"]["pieces"]
        like = sum(piece["copied"] is not None and piece["copied"]["changes"] >= limit for piece in pieces)
        sentences.append(
            f"Of the {len(pieces)} reference pieces {like} share{'s' if like == 1 else ''} as many with {count}."
        )
    return sentences
