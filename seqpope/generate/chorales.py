"""Chorales, drawn or harmonized: what is given in, scores out, each with a JSON file that says how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from seqpope.checkpoint import shipped
from seqpope.domains.music.chorales.codec import (
    SILENCE,
    STEPS_PER_BAR,
    STEPS_PER_QUARTER,
    VOICES,
    Chorale,
    read_score,
    write_midi,
)
from seqpope.domains.music.chorales.constraints import FREE, ChoraleConstraint, runs_parallel
from seqpope.domains.music.chorales.metrics import RANGES
from seqpope.domains.music.chorales.tokenizer import HIGHEST_PITCH, LOWEST_PITCH, ChoraleTokenizer
from seqpope.errors import SeqpopeError
from seqpope.files import write_bytes
from seqpope.generate.draw import Draw, Model, describe_draw
from seqpope.generate.music import MusicOutput
from seqpope.sampling import Samples

MAXIMUM_STEPS = 1 << 14  # a quarter of an hour at 80 quarters a minute: four times as many tokens


@dataclass(frozen=True)
class ChoraleOutput(MusicOutput):
    """Where chorales go and how they are written.

    Args:
        tempo: quarter notes a minute.
        merge_repeats: a pitch repeated from step to step is one held note.
    """

    tempo: float = 80.0
    merge_repeats: bool = True

    SUFFIXES: ClassVar[dict[str, str]] = {
        ".mid": "mid",
        ".midi": "mid",
        ".musicxml": "musicxml",
        ".xml": "musicxml",
        ".wav": "wav",
        ".png": "png",
    }

    def check(self, num: int) -> None:
        super().check(num)
        if not 10 <= self.tempo <= 400:
            raise SeqpopeError(f"the tempo must be 10 to 400 quarters a minute, it is {self.tempo}")

    def write_chorale(
        self,
        chorale: Chorale,
        name: str,
        sidecar: dict[str, Any],
        prompt_steps: int,
        given: tuple[int, ...],
        given_length: int,
    ) -> Path:
        """Write one chorale in every format that is wanted; return the file that was asked for.

        `given` are voices that were given for so many steps behind the prompt: pictures show them.
        """
        from seqpope.domains.music.chorales.notation import write_musicxml
        from seqpope.domains.music.chorales.picture import draw_piano_roll

        options: dict[str, Any] = {"tempo": self.tempo, "merge_repeats": self.merge_repeats}

        def picture(file: Path) -> None:
            drawn = draw_piano_roll(
                chorale,
                prompt_steps=prompt_steps,
                given=given,
                given_steps=(prompt_steps, prompt_steps + given_length),
                title=chorale.name,
                tempo=self.tempo,
            )
            write_bytes(file, drawn)

        def midi(file: Path) -> None:
            write_midi(chorale, file, **options)

        made: dict[str, Callable[[Path], object]] = {
            "mid": midi,
            "musicxml": lambda file: write_musicxml(chorale, file, **options),
            "png": picture,
            "wav": lambda file: self.sound(file, midi),
        }
        return self.write(name, sidecar, made)


def load_model(checkpoint: Path | None, device: str) -> Model:
    """A model of chorales; the shipped one if `checkpoint` is None.

    Raises:
        SeqpopeError: there is none, or it was trained on other tokens.
    """
    fingerprint = ChoraleTokenizer().fingerprint
    return Model.load(checkpoint or shipped("chorales"), device, fingerprint, "this version's chorale tokenizer")


def draw_chorales(
    model: Model, opening: np.ndarray, steps: int, draw: Draw, constraint: ChoraleConstraint | None
) -> Iterator[tuple[int, Samples]]:
    """(seed, what it drew) of each chorale: `steps` sixteenths after an opening of token ids."""
    count = steps * len(VOICES)
    return model.draw(torch.from_numpy(opening), count, draw, constraint, resample_every=len(VOICES))


def parse_voices(text: str) -> tuple[int, ...]:
    """Voice indices of names or initials, separated by commas: "soprano,bass" or "s,b".

    Raises:
        SeqpopeError: one is no voice.
    """
    found = []
    for word in text.lower().split(","):
        matching = [index for index, name in enumerate(VOICES) if word.strip() in (name.lower(), name[0].lower())]
        if not matching:
            raise SeqpopeError(f"{word.strip()!r} is no voice: expected some of soprano, alto, tenor, bass")
        found += matching
    return tuple(sorted(set(found)))


def read_given(path: Path, voices: tuple[int, ...]) -> np.ndarray:
    """The grid of a score's voices, (steps, 4), FREE where the model is to choose.

    Raises:
        SeqpopeError: the score cannot be read, or a voice that is asked for has no note in it.
    """
    pitches = read_score(path).pitches.astype(int)
    for voice in voices:
        if not (pitches[:, voice] >= 0).any():
            heard = [name.lower() for name, column in zip(VOICES, pitches.T, strict=True) if (column >= 0).any()]
            raise SeqpopeError(
                f"{path}: its {VOICES[voice].lower()} has no notes; those that have: {', '.join(heard) or 'none'}"
            )
    given = np.full(pitches.shape, FREE)
    given[:, list(voices)] = pitches[:, list(voices)]
    return given


def generate_chorales(
    output: ChoraleOutput,
    draw: Draw | None = None,
    *,
    checkpoint: Path | None = None,
    bars: int | None = None,
    seconds: float | None = None,
    prompt: Path | None = None,
    prompt_bars: int = 0,
    given: Path | None = None,
    voices: str = "soprano",
    rules: dict[str, bool] | None = None,
) -> list[tuple[Path, str]]:
    """Draw chorales and write them.

    Args:
        bars: bars to draw, of 16 sixteenths; seconds: the same at the output's tempo, rounded up to whole bars.
            What is given says it if neither does; 16 bars if nothing does.
        prompt: score to continue; it opens the output. prompt_bars: bars of it to use; 0 uses all.
        given: score of which `voices` are kept and the others filled in.
        rules: `ranges`, `no_parallels`, `cadence` and `no_rests`, each true or false (`ChoraleConstraint`).

    Returns:
        For each sample its file and a line that says what is in it.

    Raises:
        SeqpopeError: the checkpoint is none of chorales, a score cannot be read, options contradict each other,
            or the output cannot be written.
    """
    draw = draw or Draw()
    draw.check()
    output.check(draw.num)
    output.spare([f"chorale-{seed:04d}" for seed in draw.seeds], [prompt, given, checkpoint])
    chosen = parse_voices(voices)
    if given is None:
        if voices != "soprano":
            raise SeqpopeError(
                f"voices ({voices}) are those of a given score: name one with given, or leave it out"
            )
        chosen = ()
    if prompt_bars < 0:
        raise SeqpopeError(f"prompt_bars must be at least 0, it is {prompt_bars}")
    if prompt_bars and prompt is None:
        raise SeqpopeError(f"prompt_bars ({prompt_bars}) are those of a prompt: name one, or leave them out")
    fixed = read_given(given, chosen) if given is not None else None
    known = 0 if fixed is None else len(fixed)
    steps = _steps(bars, seconds, output.tempo, fixed)
    opening = np.zeros(0, np.int64)
    if prompt is not None:
        opening = ChoraleTokenizer().encode(read_score(prompt)).astype(np.int64)
        opening = opening[: prompt_bars * ChoraleTokenizer.tokens_per_bar or None]
        if len(opening) == 0:
            raise SeqpopeError(f"the prompt {prompt} has no music in it")
    constraint = make_constraint(fixed, rules or {})
    model = load_model(checkpoint, draw.device)
    asked = {
        "bars": steps / STEPS_PER_BAR,
        "prompt": str(prompt) if prompt else None,
        "prompt_tokens": len(opening),
        "given": str(given) if given else None,
        "voices": [VOICES[voice].lower() for voice in chosen],
        "rules": {name: True for name, value in (rules or {}).items() if value},
    }
    results = []
    for seed, drawn in draw_chorales(model, opening, steps, draw, constraint):
        chorale = ChoraleTokenizer().decode(np.concatenate((opening, drawn.ids[0].numpy())), f"sample {seed}")
        sidecar = describe_chorale(model, draw, output, asked, seed, drawn, chorale, len(opening) // len(VOICES))
        file = output.write_chorale(
            chorale, f"chorale-{seed:04d}", sidecar, len(opening) // len(VOICES), chosen, known
        )
        results.append((file, describe(chorale, sidecar)))
    return results


def harmonize(
    melody: Path,
    output: ChoraleOutput,
    draw: Draw | None = None,
    *,
    checkpoint: Path | None = None,
    rules: dict[str, bool] | None = None,
) -> list[tuple[Path, str]]:
    """Set a melody for four voices: it is the soprano, the model adds alto, tenor and bass.

    The melody is the highest voice of a score, MIDI or MusicXML, in any key. It is moved by octaves, and by
    semitones if those do not do, until it lies in a soprano's range, and the result is moved back.

    Returns, raises: as `generate_chorales`.
    """
    draw = draw or Draw(particles=16, greed=1.0)
    draw.check()
    output.check(draw.num)
    output.spare([f"harmony-{seed:04d}" for seed in draw.seeds], [melody, checkpoint])
    pitches = read_score(melody).pitches.astype(int)
    sounding = [voice for voice in range(len(VOICES)) if (pitches[:, voice] >= 0).any()]
    if not sounding:
        raise SeqpopeError(f"{melody} has no notes: expected a melody")
    line = pitches[:, sounding[0]]
    shift = fit(line)
    if RANGES[-1][0] - shift < 0 or RANGES[0][1] - shift > 127:
        raise SeqpopeError(
            f"{melody}: its range {line[line >= 0].min()}..{line.max()} is so far from a soprano's that what is "
            "set to it would leave MIDI's 0..127: transpose it by octaves towards 60..81"
        )
    given = np.full((len(line), len(VOICES)), FREE)
    given[:, 0] = np.where(line >= 0, line + shift, SILENCE)
    steps = _steps(None, None, output.tempo, given)
    constraint = make_constraint(given, rules or {})
    model = load_model(checkpoint, draw.device)
    asked = {
        "melody": str(melody),
        "melody_voice": VOICES[sounding[0]].lower(),
        "transposed": shift,
        "bars": steps / STEPS_PER_BAR,
        "rules": {name: True for name, value in (rules or {}).items() if value},
    }
    results = []
    for seed, drawn in draw_chorales(model, np.zeros(0, np.int64), steps, draw, constraint):
        fitted = ChoraleTokenizer().decode(drawn.ids[0].numpy())
        back = np.where(fitted.pitches >= 0, fitted.pitches.astype(int) - shift, SILENCE)
        if back.max(initial=0) > 127 or back[back != SILENCE].min(initial=0) < 0:
            raise SeqpopeError(
                f"{melody}: set for four voices and moved back by {-shift}, it leaves MIDI's 0..127"
            )
        chorale = Chorale(back.astype(np.int16), f"{melody.stem}, harmonized")
        sidecar = describe_chorale(model, draw, output, asked, seed, drawn, chorale, 0)
        file = output.write_chorale(chorale, f"harmony-{seed:04d}", sidecar, 0, (0,), len(line))
        results.append((file, describe(chorale, sidecar)))
    return results


def fit(line: np.ndarray) -> int:
    """Semitones that bring a melody (pitches, SILENCE for rests) into a soprano's range, as few as will do.

    By whole octaves if that is enough: then it stays in its key.

    Raises:
        SeqpopeError: its own range is wider than the vocabulary's.
    """
    low, high = int(line[line >= 0].min()), int(line.max())

    def outside(shift: int) -> int:
        return max(0, RANGES[0][0] - low - shift) + max(0, high + shift - RANGES[0][1])

    shifts = [shift for shift in range(-127, 128) if low + shift >= LOWEST_PITCH and high + shift <= HIGHEST_PITCH]
    if not shifts:
        raise SeqpopeError(
            f"the melody's range {low}..{high} is wider than the {HIGHEST_PITCH - LOWEST_PITCH + 1} pitches of "
            "the vocabulary: it is no melody for a soprano"
        )
    return min(shifts, key=lambda shift: (outside(shift), shift % 12 != 0, abs(shift)))


def make_constraint(given: np.ndarray | None, rules: dict[str, bool]) -> ChoraleConstraint | None:
    """The constraint that options mean; None if they ask for nothing."""
    unknown = set(rules) - {"ranges", "no_parallels", "cadence", "no_rests"}
    if unknown:
        raise SeqpopeError(
            f"unknown rule {sorted(unknown)[0]!r}: expected ranges, no_parallels, cadence or no_rests"
        )
    if given is None and not any(rules.values()):
        return None
    return ChoraleConstraint(
        ranges=RANGES if rules.get("ranges") or rules.get("cadence") else None,
        given=given,
        forbid_parallels=rules.get("no_parallels", False),
        cadence=rules.get("cadence", False),
        allow_rests=not rules.get("no_rests", False),
    )


def _steps(bars: int | None, seconds: float | None, tempo: float, given: np.ndarray | None) -> int:
    """Sixteenths to draw."""
    if bars is not None and seconds is not None:
        raise SeqpopeError(f"bars ({bars}) and seconds ({seconds}) say the same twice: give one of them")
    known = 0 if given is None else len(given)
    if seconds is not None:
        if not 0 < seconds <= 86400:
            raise SeqpopeError(f"seconds must be above 0 and at most a day's, they are {seconds}")
        bars = int(np.ceil(seconds * tempo / 60 * STEPS_PER_QUARTER / STEPS_PER_BAR))
    if bars is not None and bars < 1:
        raise SeqpopeError(f"bars must be at least 1, they are {bars}")
    steps = bars * STEPS_PER_BAR if bars is not None else known or 16 * STEPS_PER_BAR
    if steps < known:
        raise SeqpopeError(
            f"the given score has {known} sixteenths, {known / STEPS_PER_BAR:g} bars, and {bars} bars are to be "
            "drawn: draw as many, or cut the score"
        )
    if steps > MAXIMUM_STEPS:
        raise SeqpopeError(
            f"{steps} sixteenths are more than the {MAXIMUM_STEPS} that a sample may have: draw fewer"
        )
    return steps


def describe_chorale(
    model: Model,
    draw: Draw,
    output: ChoraleOutput,
    asked: dict[str, Any],
    seed: int,
    drawn: Samples,
    chorale: Chorale,
    prompt_steps: int,
) -> dict[str, Any]:
    """The sidecar of one chorale: model, settings, seed, and what was drawn in numbers."""
    asked = {**asked, "tempo": output.tempo, "merge_repeats": output.merge_repeats}
    sidecar = describe_draw(model, draw, asked, seed, drawn, prompt_steps * len(VOICES))
    rows = chorale.pitches.tolist()
    if asked["rules"].get("no_parallels"):
        sidecar["parallels"] = sum(
            runs_parallel(rows[step - 1], rows[step]) for step in range(max(1, prompt_steps), len(rows))
        )
    return sidecar


def describe(chorale: Chorale, sidecar: dict[str, Any]) -> str:
    """One line: length, range of each voice in MIDI pitches, NLL of what was drawn."""
    voices = []
    for name, voice in zip(("S", "A", "T", "B"), chorale.pitches.T, strict=True):
        sounding = voice[voice >= 0]
        voices.append(f"{name} {sounding.min()}-{sounding.max()}" if len(sounding) else f"{name} silent")
    drawn = sidecar["tokens"] / len(VOICES) / STEPS_PER_BAR
    text = f"{len(chorale.pitches)} steps ({drawn:g} bars drawn), {', '.join(voices)}, "
    text += f"{sidecar['nats_per_token']:.3f} nats/token"
    if sidecar["constraint_nats_per_token"]:
        text += f", of which the rules cost {sidecar['constraint_nats_per_token']:.3f}"
    if sidecar["beyond_training_length"]:
        text += "; longer than the model was trained on"
    return text
