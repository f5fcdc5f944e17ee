"""Synthetic piano performances, and MIDI files written byte by byte."""

from __future__ import annotations

import struct

import numpy as np

from seqpope.domains.music.piano.codec import Performance

END = b"\x00\xff\x2f\x00"


def midi_bytes(*tracks: bytes, ticks: int = 480, kind: int = 1) -> bytes:
    """A MIDI file of these tracks' events; each track's end is added."""
    chunks = [b"MTrk" + struct.pack(">I", len(track + END)) + track + END for track in tracks]
    return b"MThd" + struct.pack(">IHHH", 6, kind, len(tracks), ticks) + b"".join(chunks)


def wait(ticks: int) -> bytes:
    """A delta time."""
    digits = [ticks & 0x7F]
    while ticks := ticks >> 7:
        digits.append(0x80 | (ticks & 0x7F))
    return bytes(reversed(digits))


def note(pitch: int, length: int, *, before: int = 0, channel: int = 0, velocity: int = 64) -> bytes:
    """A note-on after `before` ticks and its note-off after `length` more."""
    return (
        wait(before) + bytes([0x90 | channel, pitch, velocity]) + wait(length) + bytes([0x80 | channel, pitch, 0])
    )


def random_performance(seed: int, notes: int = 300, *, rate: int = 768) -> Performance:
    """Dense playing in ticks of 1/`rate` s: chords, repeated and overlapping keys, long notes, pedal, ties."""
    random = np.random.default_rng(seed)
    gaps = random.choice([0, 1, 7, 24, 48, 72, 300, 4000], notes, p=[0.3, 0.15, 0.1, 0.1, 0.1, 0.1, 0.14, 0.01])
    onset = np.cumsum(gaps)
    length = random.choice([1, 23, 24, 25, 100, 840, 1584, 9000], notes)
    pitch = random.choice([21, 36, 48, 52, 55, 60, 63, 64, 66, 67, 70, 71, 74, 108], notes)
    order = np.lexsort((pitch, length, onset))  # as files are read
    edges = np.sort(random.choice(int(onset[-1]) + 100, 20, replace=False)).reshape(-1, 2)
    return Performance(
        onset / rate,
        length[order] / rate,
        pitch[order],
        random.integers(1, 128, notes)[order],
        edges / rate,
        f"random-{seed}",
    )


def chords(rate: int = 768) -> Performance:
    """Every interval pattern that MidiTok calls a chord and some that it does not, on several roots."""
    patterns = [(0, 3, 7), (0, 4, 7), (0, 3, 6), (0, 4, 8), (0, 2, 7), (0, 5, 7), (0, 4, 7, 10), (0, 3, 7, 10)]
    patterns += [(0, 4, 7, 11), (0, 3, 6, 10), (0, 3, 6, 9), (0, 4, 8, 11), (0, 4, 7, 10, 14), (0, 4, 7, 10, 13)]
    patterns += [(0, 7), (0, 1, 2), (7, 4, 0), (0, 4, 7, 12, 16, 19)]
    onset, pitch = [], []
    for place, pattern in enumerate(patterns * 3):
        onset += [place * 400] * len(pattern)
        pitch += [40 + place % 12 + interval for interval in pattern]
    count = len(onset)
    return Performance(
        np.array(onset) / rate, np.full(count, 300) / rate, pitch, np.full(count, 80), name="chords"
    )
