"""What the page may ask for: every job's arguments, with their limits. The server imports it: never torch here."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from seqpope.errors import SeqpopeError

MAXIMUM_STEPS = 16 * 64  # of a grid of sixteenths: 64 bars
MAXIMUM_UPLOAD = 1 << 20  # bytes
MAXIMUM_SCORED = 20_000  # bases of a region: on a core 8 s, in both strands and all phases 75 s
MAXIMUM_MUTATED = 60  # bases of a window whose every change is scored
MAXIMUM_DRAWN = 6000  # bases, before what is drawn and in it: six-mers of a window of training
MAXIMUM_NOTES, MAXIMUM_PEDAL = 6000, 2000  # of a performance: ten minutes of MAESTRO are some 6,000 notes
MAXIMUM_WRITTEN = 17_500  # notes of a file: those, and as many as can be drawn at once, two tokens each
MAXIMUM_SECONDS = 900.0
SHORTEST_REWRITTEN, LONGEST_REWRITTEN = 0.25, 60.0  # seconds; the coarser grid has four steps in the shorter
LONGEST_REGION = 300  # letters: some FASTA files have long names
IDENTIFIER = r"^[0-9a-z-]{1,40}$"

Identifier = Annotated[str, Field(pattern=IDENTIFIER)]
Pitch = Annotated[int, Field(ge=-1, le=127)]
Voices = Annotated[list[Pitch | None], Field(min_length=4, max_length=4)]
# (steps, 4) pitches, soprano first: -1 is silence, null what the model is to choose.
Grid = Annotated[list[Voices], Field(max_length=MAXIMUM_STEPS)]


class Arguments(BaseModel):
    """What all arguments have in common: nothing unknown, no nan."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Sampling(Arguments):
    """How tokens are chosen (`sampling.SamplingConfig`)."""

    temperature: float = Field(default=1.0, ge=0, le=5)
    top_k: int = Field(default=0, ge=0, le=1000)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)


class Rules(Arguments):
    """Rules for chorales (`ChoraleConstraint`)."""

    ranges: bool = False
    no_parallels: bool = False
    cadence: bool = False
    no_rests: bool = False


class Chorale(Arguments):
    """Draw a chorale, or what is null in a given grid.

    `opening` stands before what is drawn. `given` has as many steps as are drawn; with it the sample is found by
    particles: with several, a step is told once all of them agree on it.
    """

    model: Identifier = "chorales"
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    bars: int = Field(default=8, ge=1, le=32)
    opening: Grid = []
    given: Grid | None = None
    particles: int = Field(default=8, ge=1, le=64)
    greed: float = Field(default=0.0, ge=0, le=4)
    sampling: Sampling = Sampling()
    rules: Rules = Rules()

    @model_validator(mode="after")
    def _fits(self) -> Chorale:
        if any(pitch is None for step in self.opening for pitch in step):
            raise ValueError("the opening has steps that are not known: they belong into given")
        if len(self.opening) + (16 * self.bars if self.given is None else len(self.given)) > MAXIMUM_STEPS:
            raise ValueError(f"opening and what is drawn are more than {MAXIMUM_STEPS} sixteenths")
        if self.given is not None and not self.given:
            raise ValueError("given has no steps")
        return self


class Surprise(Arguments):
    """Nats of each token of a grid, each given all before it."""

    model: Identifier = "chorales"
    grid: Grid = Field(min_length=1)


class Converted(Arguments):
    """A grid as a file, or engraved."""

    grid: Grid = Field(min_length=1)
    format: Literal["mid", "musicxml", "png", "svg"]
    tempo: float = Field(default=80.0, ge=10, le=400)
    title: str = Field(default="", max_length=80)


class Melody(Arguments):
    """One voice: a pitch a sixteenth, -1 silence."""

    line: list[Pitch] = Field(min_length=1, max_length=MAXIMUM_STEPS)


Second = Annotated[float, Field(ge=0, le=MAXIMUM_SECONDS)]
Key = Annotated[int, Field(ge=21, le=108)]
Velocity = Annotated[int, Field(ge=1, le=127)]
Polyphony = Annotated[int, Field(ge=1, le=88)]


Note = tuple[Second, Second, Key, Velocity]


class Performance(Arguments):
    """What was played on a piano: onset, duration, pitch, velocity of each note; the pedal down and up."""

    notes: list[Note] = Field(min_length=1, max_length=MAXIMUM_NOTES)
    pedal: list[tuple[Second, Second]] = Field(default=[], max_length=MAXIMUM_PEDAL)

    @model_validator(mode="after")
    def _fits(self) -> Performance:
        if any(after[0] < before[0] for before, after in pairwise(self.notes)):
            raise ValueError("notes must come in the order of their onsets")
        if any(up < down for down, up in self.pedal):
            raise ValueError("the pedal goes up before it goes down")
        return self

    @property
    def seconds(self) -> float:
        """When the last key is released."""
        return max(onset + duration for onset, duration, _, _ in self.notes)


class Written(Performance):
    """A performance that is to be saved: also the longest with what was drawn behind it."""

    notes: list[Note] = Field(min_length=1, max_length=MAXIMUM_WRITTEN)


class PianoRules(Arguments):
    """Keys that are struck, and a note only where fewer sound (`PianoConstraint`)."""

    keys: tuple[Key, Key] = (21, 108)
    polyphony: Polyphony | None = None

    @field_validator("keys")
    @classmethod
    def _rise(cls, keys: tuple[int, int]) -> tuple[int, int]:
        if keys[1] < keys[0]:
            raise ValueError("expected the lowest key and the highest, in this order")
        return keys


class PianoDrawn(PianoRules):
    """Draw so many seconds, behind what an opening has before `cut` (all of it if null)."""

    model: Identifier
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    seconds: float = Field(default=30.0, ge=0.5, le=180)
    opening: Performance | None = None
    cut: float | None = Field(default=None, gt=0, le=MAXIMUM_SECONDS)
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _fits(self) -> PianoDrawn:
        if self.opening is None:
            if self.cut is not None:
                raise ValueError("what is cut needs an opening")
            return self
        whole = min(self.cut or MAXIMUM_SECONDS, self.opening.seconds) + self.seconds
        if whole > MAXIMUM_SECONDS:
            raise ValueError(
                f"the opening and what is drawn last {whole:.0f} s; the studio takes up to {MAXIMUM_SECONDS:g}: "
                "use less of the opening"
            )
        return self


class PianoSurprise(Arguments):
    """Nats of each note of a performance, given all before it."""

    model: Identifier
    performance: Performance


class PianoRewritten(PianoRules):
    """Draw anew what begins from `begin` on and before `end`; of several the one that suits what follows best."""

    model: Identifier
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    performance: Performance
    begin: Second
    end: Second
    candidates: int = Field(default=4, ge=1, le=16)
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _fits(self) -> PianoRewritten:
        if not SHORTEST_REWRITTEN <= self.end - self.begin <= LONGEST_REWRITTEN:
            raise ValueError(
                f"begin and end are {self.end - self.begin:g} s apart: expected {SHORTEST_REWRITTEN:g} to "
                f"{LONGEST_REWRITTEN:g}"
            )
        return self


class PianoConverted(Arguments):
    """A performance as a file."""

    performance: Written
    format: Literal["mid", "png"]
    title: str = Field(default="", max_length=80)


class Scored(Arguments):
    """Nats of each base of a region, as `seqpope score` has them: `region` as in chr17:43,044,295-43,050,000."""

    model: Identifier = "genome"
    genome: Identifier
    region: str = Field(min_length=1, max_length=LONGEST_REGION)
    strand: Literal["both", "+", "-"] = "+"
    phases: int = Field(default=1, ge=1, le=6)


class Mutated(Scored):
    """What each other base would change at each place of a region, as `seqpope score --vcf` has it."""

    window: int = Field(default=250, ge=8, le=4096)


class DnaRules(Arguments):
    """Rules for drawn DNA (`domains.genome.rules.DnaRules`); the band of GC is a share, both ends included."""

    gc: tuple[float, float] | None = None
    gc_window: int | None = Field(default=None, ge=6, le=1000)
    forbid: list[Annotated[str, Field(min_length=1, max_length=40)]] = Field(default=[], max_length=20)
    open_frame: int | None = Field(default=None, ge=0, le=2)
    no_stop: bool = False
    judge_prompt: bool = False

    @model_validator(mode="after")
    def _fits(self) -> DnaRules:
        if self.gc_window is not None and self.gc is None:
            raise ValueError("the bases that the band of GC is for need a band")
        return self


class Continued(Arguments):
    """Draw DNA behind typed bases, or behind `before` bases that end where a region ends."""

    model: Identifier = "genome"
    genome: Identifier | None = None
    region: str = Field(default="", max_length=LONGEST_REGION)
    before: int = Field(default=1200, ge=0, le=MAXIMUM_DRAWN)
    prompt: str = Field(default="", max_length=MAXIMUM_DRAWN)
    bases: int = Field(default=300, ge=1, le=MAXIMUM_DRAWN)
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    sampling: Sampling = Sampling()
    rules: DnaRules = DnaRules()

    @model_validator(mode="after")
    def _fits(self) -> Continued:
        if self.region and (self.genome is None or self.prompt):
            raise ValueError("a region needs its genome, and no typed bases beside it")
        return self


# Of jobs, by kind "MODULE.FUNCTION": the function of that module of this package does it.
COMPUTED: dict[str, type[Arguments]] = {
    "music.generate": Chorale,
    "music.surprise": Surprise,
    "music.fit_melody": Melody,
    "piano.generate": PianoDrawn,
    "piano.surprise": PianoSurprise,
    "piano.rewrite": PianoRewritten,
    "genome.score": Scored,
    "genome.mutate": Mutated,
    "genome.continue_dna": Continued,
}
CLERICAL: dict[str, type[Arguments]] = {
    "music.convert": Converted,
    "piano.convert": PianoConverted,
}


def checked(kind: str, kinds: dict[str, type[Arguments]], raw: Any) -> Arguments:
    """Arguments of a job of that kind.

    Raises:
        SeqpopeError: there is no such kind, or they do not fit it; in words, with what came.
    """
    if kind not in kinds:
        raise SeqpopeError(f"unknown job {kind[:60]!r}: expected one of {', '.join(kinds)}")
    try:
        return kinds[kind].model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or kind
        came = "" if first["type"] == "value_error" else f", {str(first['input'])[:60]!r} came"
        raise SeqpopeError(f"{place}: {first['msg'].removeprefix('Value error, ')}{came}") from error
