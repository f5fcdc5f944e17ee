"""Chorale <-> token ids: a raster scan over voices (soprano to bass), then time; one token each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from seqpope.data import shards
from seqpope.domains.music.chorales.codec import SILENCE, VOICES, Chorale
from seqpope.errors import SeqpopeError

LOWEST_PITCH, HIGHEST_PITCH = 21, 108  # the piano
PADDING_ID, SILENCE_ID, LOWEST_PITCH_ID = 0, 1, 2


class TokenError(SeqpopeError):
    """A piece that the vocabulary cannot hold, or ids that are no piece."""


class ChoraleTokenizer:
    """90 tokens: padding 0 (which stands in for BOS at the model's input), silence 1, pitch p -> p - 19.

    The pitches are the piano's, 21..108 -> 2..89. Four tokens are a time step of a sixteenth.
    """

    vocabulary_size = 90
    padding_id = PADDING_ID
    silence_id = SILENCE_ID
    alignment = len(VOICES)
    shift_range = (LOWEST_PITCH_ID, LOWEST_PITCH_ID + HIGHEST_PITCH - LOWEST_PITCH)
    tokens_per_bar = 64  # of 4/4: 16 steps of four voices

    def __init__(self) -> None:
        self.units = {"time step": 1 / self.alignment}

    @property
    def specification(self) -> dict[str, Any]:
        """All that decides which ids a piece becomes, as plain data."""
        return {
            "name": "chorale raster",
            "version": 1,
            "vocabulary_size": self.vocabulary_size,
            "order": [voice.lower() for voice in VOICES],
            "scan": "voices, then time",
            "step": "sixteenth",
            "padding_id": PADDING_ID,
            "silence_id": SILENCE_ID,
            "pitches": [LOWEST_PITCH, HIGHEST_PITCH],
            "pitch_ids": list(self.shift_range),
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the specification."""
        return shards.fingerprint(self.specification)

    def encode(self, chorale: Chorale) -> np.ndarray:
        """Token ids of a piece, (4 * steps,) uint8.

        Raises:
            TokenError: a pitch lies outside the piano's 21..108.
        """
        pitches = chorale.pitches
        silent = pitches == SILENCE
        wrong = np.argwhere(~silent & ((pitches < LOWEST_PITCH) | (pitches > HIGHEST_PITCH)))
        if len(wrong):
            step, voice = (int(index) for index in wrong[0])
            raise TokenError(
                f"chorale {chorale.name!r}, step {step}, {VOICES[voice]}: pitch {pitches[step, voice]} is "
                f"outside the vocabulary's {LOWEST_PITCH}..{HIGHEST_PITCH}: transpose the piece"
            )
        ids = np.where(silent, SILENCE_ID, pitches - LOWEST_PITCH + LOWEST_PITCH_ID)
        return ids.astype(np.uint8).reshape(-1)

    def decode(self, ids: Sequence[int] | np.ndarray, name: str = "") -> Chorale:
        """The piece that token ids (length,) say.

        Padding at the end is left out, and so is a last step that lacks voices: sampling may stop anywhere.

        Raises:
            TokenError: ids are no integers, one is outside 0..89, or padding stands before a pitch.
        """
        given = np.asarray(ids)
        if given.size == 0:
            return Chorale(np.zeros((0, len(VOICES)), np.int16), name)
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise TokenError(
                f"token ids must be a list of integers, they are {given.dtype} of shape {given.shape}"
            )
        wrong = np.flatnonzero((given < 0) | (given >= self.vocabulary_size))
        if len(wrong):
            raise TokenError(
                f"token {int(wrong[0])} is {given[wrong[0]]}, outside the vocabulary's "
                f"0..{self.vocabulary_size - 1}: these are another tokenizer's ids"
            )
        sounding = np.flatnonzero(given != PADDING_ID)
        length = int(sounding[-1]) + 1 if len(sounding) else 0
        padding = np.flatnonzero(given[:length] == PADDING_ID)
        if len(padding):
            raise TokenError(
                f"token {int(padding[0])} is padding (id {PADDING_ID}) inside the piece: "
                "it has no meaning there, padding may only follow the last step; forbid it when sampling"
            )
        whole = given[: length - length % len(VOICES)].astype(np.int16).reshape(-1, len(VOICES))
        pitches = np.where(whole == SILENCE_ID, SILENCE, whole - LOWEST_PITCH_ID + LOWEST_PITCH)
        return Chorale(pitches, name)
