"""What drawn DNA is to keep to, as settings."""

from __future__ import annotations

from dataclasses import dataclass

from seqpope.domains.genome.bases import BASES, IUPAC
from seqpope.domains.genome.sites import ConstraintError


@dataclass(frozen=True)
class DnaRules:
    """What drawn DNA keeps to; the rules hold together.

    Args:
        letters: The letters that may be drawn: ACGT, and more IUPAC codes (such as N) if wanted. Such a code
            stands for any of its bases, so it may not be drawn where one of them would complete a site or stop
            codon. Tokens with other letters are never allowed.
        forbidden_sites: Restriction enzymes by name ("EcoRI") or IUPAC sequences ("GAANNTTC"). None of them lies
            in the sequence, on either strand, across token borders and across the prompt's border.
        open_frame: 0, 1 or 2: no stop codon (TAA, TAG, TGA) among the codons that begin at base `open_frame`, + 3,
            + 6 ..., of the forward strand. Bases are counted from the prompt's first if `judge_prompt`, otherwise
            from the first drawn. A codon cut off by the end is none.
        no_stop: No stop codon in any frame of the forward strand.
        gc: The least and the greatest share of G and C in the whole output, both included.
        gc_window: The same for every `window` bases in a row. Fewer bases than a window are not judged by it.
        window: How many bases a window has.
        judge_prompt: True: the prompt and what is drawn are one sequence that keeps the rules, and a prompt that
            breaks them is refused. False: the prompt is mere context. Sites and (`no_stop`) stop codons are
            forbidden as soon as one of their bases is drawn; `open_frame`, `gc` and `gc_window` see drawn bases
            only.
    """

    letters: str = BASES
    forbidden_sites: tuple[str, ...] = ()
    open_frame: int | None = None
    no_stop: bool = False
    gc: tuple[float, float] | None = None
    gc_window: tuple[float, float] | None = None
    window: int = 100
    judge_prompt: bool = True

    def __post_init__(self) -> None:
        wrong = [letter for letter in self.letters if letter not in IUPAC]
        if wrong or len(set(self.letters)) != len(self.letters) or not set(BASES) <= set(self.letters):
            raise ConstraintError(
                f"letters must be {BASES} and may add others of {''.join(IUPAC)}, each once and in upper case; "
                f"they are {self.letters!r}"
            )
        if isinstance(self.forbidden_sites, str):
            raise ConstraintError(
                f"forbidden_sites must be a list of names or sequences, it is the text {self.forbidden_sites!r}: "
                f"write [{self.forbidden_sites!r}]"
            )
        object.__setattr__(self, "forbidden_sites", tuple(self.forbidden_sites))
        if self.open_frame not in (None, 0, 1, 2) or isinstance(self.open_frame, bool):
            raise ConstraintError(f"open_frame must be 0, 1, 2 or none, it is {self.open_frame!r}")
        for name in ("gc", "gc_window"):
            band = getattr(self, name)
            if band is None:
                continue
            if len(band) != 2 or not 0 <= band[0] <= band[1] <= 1:
                raise ConstraintError(
                    f"{name} must be two shares, 0 <= low <= high <= 1, it is {band!r}: write (0.4, 0.6) for "
                    "40 to 60%"
                )
            object.__setattr__(self, name, (float(band[0]), float(band[1])))
            if self.letters != BASES:
                raise ConstraintError(
                    f"{name} counts G and C, which codes that stand for several bases have no count of: expected "
                    f"letters={BASES!r} with it, they are {self.letters!r}; leave out one of the two settings"
                )
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise ConstraintError(f"window must be a whole number of bases, 1 or more, it is {self.window!r}")
        if self.gc_window is not None:
            low, high = count_band(self.gc_window, self.window)
            if low > high:
                raise ConstraintError(
                    f"gc_window {band_text(self.gc_window)} holds no whole count of {self.window} bases: "
                    f"{high} of them is too few, {low} too many; widen the band or the window"
                )


def count_band(band: tuple[float, float], bases: int) -> tuple[int, int]:
    """The least and the greatest count whose share of `bases` lies in the band, as division in floats has it."""
    low = max(0, int(band[0] * bases) - 1)
    while low / bases < band[0]:
        low += 1
    high = min(bases, int(band[1] * bases) + 1)
    while high / bases > band[1]:
        high -= 1
    return low, high


def band_text(band: tuple[float, float]) -> str:
    """A band as messages name it."""
    return f"{band[0]:g}-{band[1]:g}"
