"""Rules that sampled DNA keeps, as masks over the vocabulary that never paint themselves into a corner.

The rules (`DnaRules`) speak of bases, a vocabulary of tokens that stand for one or more. Forbidden sites and stop
codons become one automaton over bases (Shift-And masks, made deterministic and minimal), so that token and prompt
borders do not matter. A token is allowed if each of its bases keeps the rules and the bases still to draw after it
can keep them too. What makes that last part provable:

- *Sites, stop codons.* For each automaton state, whether k more bases can be survived, by backward reachability.
- *GC of the whole output.* For each state and k, an interval of GC counts that k more bases can have, every count
  in it reached through such intervals. Mostly that is all counts there are, and the mask is exact; where counts
  have gaps, one run of counts is kept and the rest given up (`DnaConstraint.exact` then says False).
- *GC of sliding windows.* Call a state free if a letter of either kind (A or T, G or C) is open at every later
  base whatever kinds came before. From there kinds can be chosen as if there were no sites, and for kinds alone
  the answer is known: a window repeated for ever keeps its count, and how many G and C the rest can hold under all
  windows is a system of difference constraints, whose answers form an interval with a closed form. A token is
  allowed if after it a free state can be reached in a few bases (none, mostly; `LOOK_AHEAD` at most) of kinds
  after which the windows can be kept. How many is the least that makes the mask exact; where none up to
  `LOOK_AHEAD` does, tokens that have no such way are given up (and `exact` says False).

In each case the bases that show a continuation possible are themselves single-letter tokens, which the vocabulary
must hold: hence some token is always allowed until the last base is drawn.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from seqpope.errors import SeqpopeError

IUPAC = {
    "A": "A",
    "C": "C",
    "G": "G",
    "T": "T",
    "R": "AG",
    "Y": "CT",
    "S": "CG",
    "W": "AT",
    "K": "GT",
    "M": "AC",
    "B": "CGT",
    "D": "AGT",
    "H": "ACT",
    "V": "ACG",
    "N": "ACGT",
}
BASES = "ACGT"
WEAK, STRONG = [0, 3], [1, 2]  # A and T, G and C, as indices of BASES
STOP_CODONS = ("TAA", "TAG", "TGA")
STATE_LIMIT = 2_000  # the table of a 6-mer vocabulary then takes 33 MB
RAW_STATE_LIMIT = 60_000  # before merging states that behave alike
LOOK_AHEAD = 4  # bases; one is enough for most sets of enzymes, three for all that cut six bases
COUNT_TABLE_LIMIT = 40_000_000  # automaton states x bases: two int32 of each are 320 MB
_COMPLEMENT = dict(zip("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN", strict=True))
_COMPLEMENT_TABLE = str.maketrans({**_COMPLEMENT, **{a.lower(): b.lower() for a, b in _COMPLEMENT.items()}})
_NONE = np.iinfo(np.int32).max // 2  # the least of no counts


class ConstraintError(SeqpopeError):
    """Rules that make no sense, or that nothing can satisfy."""


class Site(NamedTuple):
    """A site found: its leftmost base counted from 0, what was looked for, and +1 or -1 for the strand."""

    position: int
    name: str
    strand: int


# --- Bases -----------------------------------------------------------------------------------------------------


def reverse_complement(text: str) -> str:
    """The other strand, read in its own direction; IUPAC codes and lower case are kept as such.

    Raises:
        ConstraintError: a letter is no IUPAC code.
    """
    for position, letter in enumerate(text):
        if letter.upper() not in IUPAC:
            raise ConstraintError(
                f"cannot complement {letter!r} at position {position} (from 0): "
                f"expected the IUPAC codes {''.join(IUPAC)}, remove what is no DNA"
            )
    return text.translate(_COMPLEMENT_TABLE)[::-1]


def gc_content(text: str) -> float:
    """The share of G and C among the letters A, C, G and T, upper or lower case; nan if there are none."""
    text = text.upper()
    strong = text.count("G") + text.count("C")
    known = strong + text.count("A") + text.count("T")
    return strong / known if known else float("nan")


@functools.cache
def resolve_site(text: str) -> tuple[tuple[str, str], ...]:
    """What a forbidden site is called and its IUPAC sequence; a few enzymes have more than one.

    Upper-case IUPAC codes are a sequence; anything else is the name of a restriction enzyme (Bio.Restriction's,
    which is imported here and only here), case aside if need be; failing that, IUPAC codes in any case.

    Raises:
        ConstraintError: it is none of these (the message names enzymes spelled alike), or biopython is missing.
    """
    if text and set(text) <= set(IUPAC):
        return ((text, text),)
    try:
        from Bio.Restriction.Restriction_Dictionary import rest_dict
    except ImportError as error:
        raise ConstraintError(
            f"forbidden site {text!r} is no sequence of IUPAC codes ({''.join(IUPAC)}), and to look it up as a "
            "restriction enzyme takes biopython: pip install 'biopython>=1.84', or write the recognition sequence"
        ) from error
    folded = {name.lower(): name for name in rest_dict}
    name = text if text in rest_dict else folded.get(text.lower())
    if name is not None:
        return tuple((f"{name} ({site})", site) for site in str(rest_dict[name]["site"]).split("|"))
    if text and set(text.upper()) <= set(IUPAC):
        return ((text.upper(), text.upper()),)
    close = [folded[match] for match in difflib.get_close_matches(text.lower(), folded, n=5, cutoff=0.6)]
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise ConstraintError(
        f"unknown forbidden site {text!r}: expected the name of a restriction enzyme{hint} or a sequence of the "
        f"IUPAC codes {''.join(IUPAC)}"
    )


def find_sites(sequence: str, sites: Sequence[str]) -> list[Site]:
    """Every place where one of `sites` (names or IUPAC sequences) lies, on either strand, by plain search.

    Overlapping places all count; a site that is its own reverse complement is found once, on strand +1. Case does
    not matter. A code such as N in `sequence` stands for any of its bases: a site that could be there is found.
    """
    found = []
    for text in sites:
        for name, pattern in resolve_site(text):
            for strand, word in ((1, pattern), (-1, reverse_complement(pattern))):
                if strand == -1 and word == pattern:
                    continue
                places = re.finditer(_expression(word), sequence.upper())
                found += [Site(match.start(), name, strand) for match in places]
    return sorted(found)


@functools.cache
def _expression(word: str) -> str:
    classes = ("".join(letter for letter in IUPAC if _may_be(letter, code)) for code in word)
    return "(?=" + "".join(f"[{letters}]" for letters in classes) + ")"


def _may_be(letter: str, code: str) -> bool:
    return not set(IUPAC[letter]).isdisjoint(IUPAC[code])


# --- Settings --------------------------------------------------------------------------------------------------


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
            low, high = _count_band(self.gc_window, self.window)
            if low > high:
                raise ConstraintError(
                    f"gc_window {_band(self.gc_window)} holds no whole count of {self.window} bases: "
                    f"{high} of them is too few, {low} too many; widen the band or the window"
                )


def _count_band(band: tuple[float, float], bases: int) -> tuple[int, int]:
    """The least and the greatest count whose share of `bases` lies in the band, as division in floats has it."""
    low = max(0, int(band[0] * bases) - 1)
    while low / bases < band[0]:
        low += 1
    high = min(bases, int(band[1] * bases) + 1)
    while high / bases > band[1]:
        high -= 1
    return low, high


def _band(band: tuple[float, float]) -> str:
    return f"{band[0]:g}-{band[1]:g}"


# --- The automaton of sites and stop codons --------------------------------------------------------------------


class _Word(NamedTuple):
    label: str
    pattern: str


class _Automaton:
    """Which words (sites, stop codons) are begun: Shift-And masks, then a minimal deterministic table.

    A raw state is (bits, phase): bit `offset of a word + i` is set if the last i + 1 bases are the word's first;
    phase is how many bases remain before the next codon begins (always 0 without a frame).

    Attributes:
        step: (S, letters) int64: the next state, -1 where a word would be completed. Columns 0..3 are A, C, G, T.
        paths: bases that lead to each state, as few as may be (from the prompt's end, or a start).
    """

    def __init__(self, words: list[_Word], frame: int | None, letters: str, context: bool) -> None:
        self.letters = BASES + "".join(letter for letter in letters if letter not in BASES)
        self.words = [*words]
        self.context = context
        self.framed = frame is not None
        if frame is not None:
            self.words += [_Word(f"stop codon {codon} in frame {frame}", codon) for codon in STOP_CODONS]
        self.first_phase = frame or 0
        self.longest = max((len(word.pattern) for word in self.words), default=1)
        self.offsets: list[int] = []
        self._finals, self._free_starts, self._codon_starts, self._free = 0, 0, 0, 0
        self._masks = dict.fromkeys(self.letters, 0)
        offset = 0
        for index, word in enumerate(self.words):
            self.offsets.append(offset)
            if index < len(words):
                self._free_starts |= 1 << offset
                self._free |= ((1 << len(word.pattern)) - 1) << offset
            else:
                self._codon_starts |= 1 << offset
            for i, code in enumerate(word.pattern):
                for letter in self.letters:
                    if _may_be(letter, code):
                        self._masks[letter] |= 1 << (offset + i)
            offset += len(word.pattern)
            self._finals |= 1 << (offset - 1)
        self._build()

    def _raw_step(self, bits: int, phase: int, letter: str) -> tuple[int, int, int]:
        """Next bits and phase, and the bits of words completed (which next bits leave out)."""
        starts = self._free_starts | (self._codon_starts if phase == 0 else 0)
        bits = ((bits << 1) | starts) & self._masks[letter]
        return bits & ~self._finals, (phase - 1) % 3 if self.framed else 0, bits & self._finals

    def _explore(
        self, starts: list[tuple[int, int]], paths: list[str], through: bool
    ) -> tuple[dict[tuple[int, int], int], list[list[int]], list[str]]:
        """Raw states that the starts lead to, their steps (-1 for a completed word unless `through`) and paths."""
        ids = {start: index for index, start in enumerate(starts)}
        queue, paths, rows = list(starts), list(paths), []
        for index, (bits, phase) in enumerate(queue):  # grows while it is walked
            row = []
            for letter in self.letters:
                *after, hit = self._raw_step(bits, phase, letter)
                if hit and not through:
                    row.append(-1)
                    continue
                state = (after[0], after[1])
                if state not in ids:
                    ids[state] = len(queue)
                    queue.append(state)
                    paths.append(paths[index] + letter)
                row.append(ids[state])
            rows.append(row)
            if len(queue) > RAW_STATE_LIMIT:
                raise ConstraintError(
                    f"the {len(self.words)} words that forbidden sites (both strands) and stop codons come to "
                    f"need an automaton of more than {RAW_STATE_LIMIT} states before merging, the limit: forbid "
                    "fewer sites, above all fewer with long runs of N"
                )
        return ids, rows, paths

    def _build(self) -> None:
        starts = [(0, self.first_phase)]
        if self.context:  # any prompt may come before: whatever of sites it leaves begun, the frame begins anew
            seen, _, words = self._explore(starts, [""], through=True)
            known: dict[tuple[int, int], str] = {}
            for (bits, _), word in zip(seen, words, strict=True):
                known.setdefault((bits & self._free, self.first_phase), word)
            starts, paths = list(known), list(known.values())
        else:
            paths = [""]
        self._ids, rows, paths = self._explore(starts, paths, through=False)
        step = np.array(rows, np.int64).reshape(len(rows), len(self.letters))
        # Merge states that no continuation tells apart: refine until refining finds nothing new.
        classes, count = np.zeros(len(step), np.int64), 0
        while True:
            after = np.where(step < 0, -1, classes[step])
            _, chosen, classes = np.unique(
                np.column_stack((classes, after)), axis=0, return_index=True, return_inverse=True
            )
            classes = classes.reshape(-1)
            if len(chosen) == count:
                break
            count = len(chosen)
        if count > STATE_LIMIT:
            raise ConstraintError(
                f"forbidden sites and stop codons need an automaton of {count} states, the limit is "
                f"{STATE_LIMIT}: forbid fewer sites, above all fewer with long runs of N"
            )
        self.step = np.where(step < 0, -1, classes[step])[chosen]
        self.paths: list[str] = [""] * count
        for path, index in sorted(zip(paths, classes.tolist(), strict=True), key=lambda pair: -len(pair[0])):
            self.paths[index] = path
        self._classes = classes

    def __len__(self) -> int:
        return len(self.step)

    def after(self, prompt: str) -> tuple[int, list[tuple[str, int]]]:
        """The state after a prompt, and the words that it leaves begun: (label, bases so far).

        Raises:
            ConstraintError: the prompt holds a word (never if it is context).
        """
        bits, phase = 0, self.first_phase
        skipped = max(0, len(prompt) - self.longest + 1) if self.context else 0
        for position in range(skipped, len(prompt)):
            bits, phase, hit = self._raw_step(bits, phase, prompt[position])
            if hit and not self.context:
                word = next(word for word, bit in self._placed() if hit >> (bit + len(word.pattern) - 1) & 1)
                raise ConstraintError(
                    f"already holds {word.label} at position {position + 1 - len(word.pattern)} (from 0): change "
                    "it there, drop that rule, or set judge_prompt to false so that only what is drawn is judged"
                )
        if self.context:
            bits, phase = bits & self._free, self.first_phase
        begun = []
        for word, bit in self._placed():
            lengths = [i + 1 for i in range(len(word.pattern)) if bits >> (bit + i) & 1]
            if lengths:
                begun.append((word.label, max(lengths)))
        return int(self._classes[self._ids[bits, phase]]), begun

    def _placed(self) -> Iterator[tuple[_Word, int]]:
        """Each word and its first bit."""
        return zip(self.words, self.offsets, strict=True)

    def survivors(self, choices: list[list[int]]) -> np.ndarray:
        """(K, S) bool: row k tells whether k more bases can be drawn from a state, the last row also any more.

        `choices` are sets of bases (columns of `step`). Before each base one set is chosen by an adversary, then a
        base of it by us: with [ACGT] that is survival, with [AT, GC] survival whatever the kinds of bases are.
        """
        rows = [np.ones(len(self), bool)]
        while True:
            open_ = (self.step >= 0) & rows[-1][self.step]
            row = np.all([open_[:, columns].any(1) for columns in choices], 0)
            if np.array_equal(row, rows[-1]):
                return np.stack(rows)
            rows.append(row)


class _CountTable:
    """How many G and C the next k bases can have from a state: an interval [low, high] for each, grown as needed.

    Interval (k, s) is the union over the bases of (k - 1, next state), moved by 1 for G and C, so that each count
    in it is reached by a base and an interval that holds the rest. A union with gaps would be no interval: the run
    of counts that has most of the band `prefer` is kept, then the longest, and `gaps` is set.
    """

    def __init__(self, automaton: _Automaton, prefer: tuple[float, float]) -> None:
        self._step = automaton.step[:, : len(BASES)]
        self._strong = np.array([int(base in "GC") for base in BASES], np.int32)
        self._prefer = prefer
        self._states = len(automaton)
        self.low = np.zeros((1, self._states), np.int32)
        self.high = np.zeros((1, self._states), np.int32)
        self.gaps = False

    def grow(self, bases: int) -> None:
        """Have rows 0 .. bases."""
        first = len(self.low)
        if bases < first:
            return
        if (bases + 1) * self._states > COUNT_TABLE_LIMIT:
            raise ConstraintError(
                f"gc over {bases} drawn bases with an automaton of {self._states} states takes a table of "
                f"{(bases + 1) * self._states} entries, the limit is {COUNT_TABLE_LIMIT}: draw fewer bases at "
                "once, forbid fewer sites, or use gc_window instead of gc"
            )
        low, high = (np.empty((bases + 1, self._states), np.int32) for _ in range(2))
        low[:first], high[:first] = self.low, self.high
        for k in range(first, bases + 1):
            least, most = low[k - 1][self._step] + self._strong, high[k - 1][self._step] + self._strong  # (S, 4)
            closed = (self._step < 0) | (least > most)
            least[closed], most[closed] = _NONE, -1
            order = least.argsort(1)
            least = np.take_along_axis(least, order, 1)
            most = np.maximum.accumulate(np.take_along_axis(most, order, 1), 1)
            low[k], high[k] = least[:, 0], most[:, -1]
            gap = (least[:, 1:] > most[:, :-1] + 1) & (least[:, 1:] < _NONE)
            for state in np.flatnonzero(gap.any(1)):
                self.gaps = True
                cuts = np.flatnonzero(gap[state])
                runs = zip(least[state, [0, *(cuts + 1)]], most[state, [*cuts, -1]], strict=True)
                low[k, state], high[k, state] = max(runs, key=lambda run: self._worth(run, k))
        self.low, self.high = low, high

    def _worth(self, run: tuple[int, int], bases: int) -> tuple[float, int]:
        low, high = (share * bases for share in self._prefer)
        return min(high, float(run[1])) - max(low, float(run[0])), int(run[1] - run[0])


# --- The constraint --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DnaState:
    """Where each row of a batch stands, B rows; `DnaConstraint.take` duplicates and drops rows.

    Attributes:
        node: (B,) state of the automaton.
        remaining: (B,) bases still to draw.
        least, most: (B,) how many of them must at least and may at most be G or C (0 without `gc`).
        seen: (B,) bases judged so far.
        recent: (B, window) uint8, 1 for G and C: the last bases judged, the latest last (no columns without
            `gc_window`).
    """

    node: np.ndarray
    remaining: np.ndarray
    least: np.ndarray
    most: np.ndarray
    seen: np.ndarray
    recent: np.ndarray

    def __len__(self) -> int:
        return len(self.node)

    @property
    def done(self) -> np.ndarray:
        """(B,) bool: nothing is left to draw."""
        return self.remaining == 0


class DnaConstraint:
    """Masks for drawing DNA under rules, a whole batch at once.

    From `begin` until a row's last base is drawn, `allowed` has a true entry in that row, whichever allowed tokens
    were taken. Only tokens no longer than the bases still to draw are allowed, so lengths are hit exactly. A row
    with nothing left to draw (`DnaState.done`) has no true entry, and `advance` leaves it as it is.

    Args:
        rules: What to keep to.
        vocabulary: For each token id its bases; "" or None for tokens that are never allowed. A, C, G and T must
            each be a token. Lower-case tokens count as other letters, so are never allowed.

    Raises:
        ConstraintError: an unknown site, too large an automaton, a vocabulary that lacks a base.
    """

    def __init__(self, rules: DnaRules, vocabulary: Sequence[str | None]) -> None:
        missing = [base for base in BASES if base not in vocabulary]
        if missing:
            raise ConstraintError(
                f"the vocabulary of {len(vocabulary)} tokens has none for {', '.join(missing)} alone: expected A, "
                "C, G and T among them, without which not every length can be reached; use a tokenizer with them"
            )
        self.rules = rules
        self.vocabulary_size = len(vocabulary)
        words = []
        for text in rules.forbidden_sites:
            for name, pattern in resolve_site(text):
                words.append(_Word(f"the forbidden site {name}", pattern))
                words.append(_Word(f"the forbidden site {name} (other strand)", reverse_complement(pattern)))
        if rules.no_stop:
            words += [_Word(f"stop codon {codon}", codon) for codon in STOP_CODONS]
        unique: dict[str, _Word] = {}  # a palindrome is one word, the first of its kind
        for word in words:
            unique.setdefault(word.pattern, word)
        frame = None if rules.no_stop else rules.open_frame
        self._automaton = _Automaton(list(unique.values()), frame, rules.letters, not rules.judge_prompt)
        self._alive = self._automaton.survivors([WEAK + STRONG])
        self._look_ahead()
        self._counts = _CountTable(self._automaton, rules.gc) if rules.gc and not rules.gc_window else None
        self._window_band = _count_band(rules.gc_window, rules.window) if rules.gc_window else (0, 0)
        self._columns = rules.window if rules.gc_window else 0
        self._tabulate([token or "" for token in vocabulary])

    def _look_ahead(self) -> None:
        """Which states may be landed in.

        `_ahead` are words of kinds (0 for A or T, 1 for G or C), P of them, and `_open` is (K, P, S) bool: with k
        bases to draw (the last row: k or more), a path of the kinds of word p (its first k only) leads from a
        state to a free one. Without `gc_window` the only word is the empty one, and survival is enough.
        """
        self._ahead, self._open, self._ahead_exact = [""], self._alive[:, None], True
        if not self.rules.gc_window:
            return
        survives = self._open
        levels = [self._automaton.survivors([WEAK, STRONG])[:, None]]  # (K, 2^d, S) for words of d kinds
        while True:
            size = max(len(survives), len(levels[-1]))
            self._ahead_exact = not (_rows(survives, size) & ~_rows(levels[-1], size)).any()
            if self._ahead_exact or len(levels) > LOOK_AHEAD:
                break
            survives = self._kind_before(survives)
            levels.append(self._kind_before(levels[-1]))
        # Of the words only those count that are the first on their way to lead to a free state, from some state.
        size = max(len(level) for level in levels)
        self._ahead, tables = [], []
        covered = np.zeros((size, 1, len(self._automaton)), bool)
        for depth, level in enumerate(levels):
            free = _rows(level, size)
            for index, word in enumerate(itertools.product("01", repeat=depth)):
                if (free[:, index] & ~covered[:, index]).any():
                    self._ahead.append("".join(word))
                    tables.append(free[:, index])
            covered = np.repeat(covered | free, 2, axis=1)
        self._open = np.stack(tables, 1)

    def _kind_before(self, table: np.ndarray) -> np.ndarray:
        """(K, w, S) -> (K + 1, 2w, S): first a base of a kind, A or T in the first half of the words."""
        step = self._automaton.step
        halves = [((step[:, kind] >= 0) & table[:, :, step[:, kind]]).any(-1) for kind in (WEAK, STRONG)]
        before = np.concatenate(halves, 1)
        return np.concatenate((np.ones_like(before[:1]), before))

    def _tabulate(self, vocabulary: list[str]) -> None:
        """Classes of tokens that GC rules cannot tell apart, and where state x token lands.

        Class 0 is the empty token: it stands for "stay here" and no id has it.
        """
        rules, states = self.rules, len(self._automaton)
        classes = {"": 0}
        class_of = np.zeros(len(vocabulary), np.int64)
        by_length: dict[int, list[int]] = {}
        for index, token in enumerate(vocabulary):
            if token and set(token) <= set(rules.letters):
                kinds = "".join("1" if base in "GC" else "0" for base in token)
                if not rules.gc_window:
                    kinds = "".join(sorted(kinds)) if rules.gc else "0" * len(token)
                class_of[index] = classes.setdefault(kinds, len(classes))
                by_length.setdefault(len(token), []).append(index)
        self._class_of = class_of
        self._lengths = np.array([len(kinds) for kinds in classes])  # (C,)
        longest = int(self._lengths.max())
        self._kinds = np.zeros((len(classes), longest), np.uint8)  # (C, longest), from the left
        for kinds, index in classes.items():
            self._kinds[index, : len(kinds)] = [int(kind) for kind in kinds]
        self._strong = self._kinds.sum(1, dtype=np.int64)  # (C,)
        # Each class with each word ahead after it, X = C * P of them; G and C in their first 0, 1, 2 ... bases.
        furthest = longest + max(map(len, self._ahead))
        beginnings = [kinds + word for kinds in classes for word in self._ahead]
        self._long_lengths = np.array([len(each) for each in beginnings])  # (X,)
        padded = [each.ljust(furthest, "0") for each in beginnings]
        padded = [each.ljust(furthest, "0") for each in beginnings]
        self._long = np.array([[int(kind) for kind in each] for each in padded], np.int64)
        self._long = self._long.reshape(len(beginnings), furthest)
        self._inside = np.concatenate((np.zeros((len(self._long), 1), np.int64), self._long.cumsum(1)), 1)
        self._cell_count = len(classes) * (states + 1)
        # Cell class * (S + 1) + state after the token; state S is dead.
        self._index = np.full((states, len(vocabulary)), states, np.int32)
        column = {letter: i for i, letter in enumerate(self._automaton.letters)}
        dead_last = np.vstack((self._automaton.step, np.full((1, len(column)), -1)))  # and -1 is that row too
        for length, members in by_length.items():
            letters = np.array([[column[base] for base in vocabulary[index]] for index in members])
            node = np.arange(states)[:, None]
            for i in range(length):
                node = dead_last[node, letters[:, i]]
            node = np.where(node < 0, states, node)
            self._index[:, members] = class_of[members] * (states + 1) + node

    @property
    def exact(self) -> bool:
        """Whether, for the lengths begun so far, no sequence that keeps the rules was shut out.

        False comes only with `gc` (counts with gaps) or `gc_window` (kinds of bases hardly free).
        """
        return self._ahead_exact and not (self._counts is not None and self._counts.gaps)

    def begin(self, prompts: Sequence[str], lengths: Sequence[int]) -> DnaState:
        """The state before the first draw.

        Args:
            prompts: bases already there, one text a row (B of them); lower case counts as upper case.
            lengths: bases still to draw, one number a row.

        Raises:
            ConstraintError: a prompt has other letters or breaks a rule (the message says where), its end makes
                breaking one unavoidable, or no sequence of that length keeps the rules (it says which collide).
        """
        if isinstance(prompts, str) or len(prompts) != len(lengths):
            raise ConstraintError(
                "expected a list of prompts and as many lengths, one each a row, they are "
                f"{f'the text {prompts!r}' if isinstance(prompts, str) else len(prompts)} and {len(lengths)}"
            )
        if any(length < 0 or int(length) != length for length in lengths):
            raise ConstraintError(f"lengths must be whole numbers of bases, 0 or more, they are {list(lengths)}")
        known: dict[str, tuple[int, list[tuple[str, int]], np.ndarray]] = {}
        for row, prompt in enumerate(prompts):
            if prompt not in known:
                known[prompt] = self._read(prompt, row)
        rest = np.array(lengths, np.int64).reshape(-1)
        kinds = [known[prompt][2] for prompt in prompts]
        seen = np.array([len(each) for each in kinds], np.int64)
        strong = [int(each.sum()) for each in kinds]
        band = np.zeros((len(rest), 2), np.int64)
        for row, total in enumerate((seen + rest).tolist()):
            if self.rules.gc and total:
                band[row] = np.array(_count_band(self.rules.gc, total)) - strong[row]
        recent = np.zeros((len(rest), self._columns), np.uint8)
        for row, each in enumerate(kinds):
            held = min(len(each), self._columns)
            recent[row, self._columns - held :] = each[len(each) - held :]
        node = np.array([known[prompt][0] for prompt in prompts], np.int64)
        state = DnaState(node, rest, band[:, 0], band[:, 1], seen, recent)
        if self._counts is not None:
            self._counts.grow(int(rest.max(initial=0)))
        stuck = np.flatnonzero(~self._cells(state)[np.arange(len(state)), 0, state.node])
        if len(stuck):
            row = int(stuck[0])
            self._refuse(state, row, prompts[row].upper(), known[prompts[row]][1])
        return state

    def allowed(self, state: DnaState) -> np.ndarray:
        """(B, V) bool: tokens that may be drawn next."""
        cells = self._cells(state).reshape(len(state), self._cell_count)
        start = np.arange(len(state), dtype=np.int64)[:, None] * cells.shape[1]
        return cells.reshape(-1)[self._index[state.node] + start]

    def advance(self, state: DnaState, tokens: np.ndarray) -> DnaState:
        """The state after a token in each row, (B,) ids; rows that are done stay as they are, whatever their id.

        Raises:
            ConstraintError: a token is not allowed (or no token of the vocabulary).
        """
        tokens = np.asarray(tokens)
        done = state.done
        if tokens.shape != state.node.shape or tokens.dtype.kind not in "iu":
            raise ConstraintError(
                f"expected {len(state)} token ids, one each a row, they are {tokens.dtype} of shape {tokens.shape}"
            )
        wrong = ~done & ((tokens < 0) | (tokens >= self.vocabulary_size))
        chosen = np.where(done | wrong, 0, tokens).astype(np.int64)
        rows = np.arange(len(state))
        index = self._index[state.node, chosen].astype(np.int64)
        wrong |= ~done & ~self._cells(state).reshape(len(state), self._cell_count)[rows, index]
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ConstraintError(
                f"row {row}: token {int(tokens[row])} is not allowed with {int(state.remaining[row])} bases to "
                "draw: take only tokens for which allowed(state) is true"
            )
        kind = np.where(done, 0, self._class_of[chosen])
        length, strong = self._lengths[kind], self._strong[kind]
        node = np.where(done, state.node, index % (len(self._automaton) + 1))
        counted = strong if self.rules.gc else 0
        recent = state.recent
        if self._columns:
            joined = np.concatenate((recent, self._kinds[kind]), 1)
            recent = np.take_along_axis(joined, length[:, None] + np.arange(self._columns), 1)
        return DnaState(
            node,
            state.remaining - length,
            state.least - counted,
            state.most - counted,
            state.seen + length,
            recent,
        )

    def take(self, state: DnaState, rows: np.ndarray) -> DnaState:
        """The rows named, in that order: indices (some perhaps twice) or a bool mask."""
        return DnaState(
            state.node[rows],
            state.remaining[rows],
            state.least[rows],
            state.most[rows],
            state.seen[rows],
            state.recent[rows],
        )

    def _cells(self, state: DnaState) -> np.ndarray:
        """(B, C, S + 1) bool: whether a token of a class may lead to a state; never to the last."""
        rest = state.remaining[:, None] - self._lengths  # (B, C)
        fits = rest >= 0
        rest = np.maximum(rest, 0)
        cells = np.zeros((len(state), len(self._lengths), len(self._automaton) + 1), bool)
        if self._counts is not None:
            least, most = (bound[:, None] - self._strong for bound in (state.least, state.most))  # (B, C)
            fits &= least <= most
            cells[..., :-1] = self._counts.low[rest] <= most[..., None]
            cells[..., :-1] &= self._counts.high[rest] >= least[..., None]
        elif self.rules.gc_window:
            holds = self._windows_hold(state)  # (B, X)
            if self.rules.gc:
                low, high = self._totals(state)
                holds &= np.maximum(low, state.least[:, None]) <= np.minimum(high, state.most[:, None])
            holds = holds.reshape(*rest.shape, len(self._ahead))  # (B, C, P)
            row = np.minimum(rest, len(self._open) - 1)
            for word in range(len(self._ahead)):
                cells[..., :-1] |= self._open[row, word] & holds[:, :, word, None]
        else:
            cells[..., :-1] = self._open[np.minimum(rest, len(self._open) - 1), 0]
        cells &= fits[..., None]
        return cells

    def _windows_hold(self, state: DnaState) -> np.ndarray:
        """(B, X) bool: every window that a class and the word after it complete is in the band, the first can."""
        window, (low, high) = self.rules.window, self._window_band
        tail = _tail_counts(state.recent)  # (B, W + 1)
        ends = np.minimum(self._long_lengths, state.remaining[:, None])  # (B, X): no word reaches beyond the end
        holds = np.ones(ends.shape, bool)
        for end in range(1, self._inside.shape[1]):
            begins = max(0, end - window)
            count = tail[:, [max(0, window - end)]] + (self._inside[:, end] - self._inside[:, begins])
            judged = (state.seen[:, None] + end >= window) & (end <= ends)
            holds &= ~judged | ((low <= count) & (count <= high))
        after = state.seen[:, None] + ends
        strong = tail[:, [window]] + self._inside[np.arange(len(self._inside)), ends]
        possible = (strong <= high) & (strong + window - after >= low)
        coming = (after < window) & ((state.seen + state.remaining)[:, None] >= window)
        return holds & (~coming | possible)

    def _totals(self, state: DnaState) -> tuple[np.ndarray, np.ndarray]:
        """(B, X) each: the least and the greatest number of G and C from here to the end, beginning so.

        All windows hold then, and every number between is possible too: the counts P of G and C up to each base
        are bound by 0 <= P(i) - P(i - 1) <= 1 and low <= P(i) - P(i - W) <= high alone, differences, of which the
        whole-number solutions at one base are an interval. Its ends are shortest paths of such steps from some
        base k before the end of what is there: as many windows as fit and single bases for what is left, or one
        window more and back.
        """
        window, (low, high) = self.rules.window, self._window_band
        tail = _tail_counts(state.recent)
        far = np.arange(window + 1)
        within = np.minimum(self._long_lengths, state.remaining[:, None])
        least = self._inside[
            np.arange(len(self._inside)), within
        ]  # (B, X): what classes and words hold themselves
        most = least.copy()
        for length in np.unique(self._long_lengths).tolist():
            members = np.flatnonzero(self._long_lengths == length)
            rest = np.maximum(state.remaining - length, 0)
            own = (
                self._inside[members, length, None] - self._inside[members, length::-1]
            )  # in the last 0, 1, 2 ...
            more = self._reach(rest, high, own, tail, state.seen)
            weak = self._reach(rest, window - low, np.arange(length + 1) - own, far - tail, state.seen)
            inside = (state.remaining >= length)[:, None]
            most[:, members] += np.where(inside, more, 0)
            least[:, members] += np.where(inside, rest[:, None] - weak, 0)
        return least, most

    def _reach(
        self, rest: np.ndarray, cap: int, own: np.ndarray, tail: np.ndarray, seen: np.ndarray
    ) -> np.ndarray:
        """(B, x): the most bases of a kind among `rest` more, at most `cap` of them a window.

        `own` (x, length + 1) counts the kind in the last 0, 1, 2 ... bases of a beginning, `tail` (B, W + 1) in
        those before it.
        """
        window, length = self.rules.window, own.shape[1] - 1
        back = np.arange(window)
        windows, single = np.divmod(rest[:, None] + back, window)
        bound = windows * cap + np.minimum(single, cap)  # (B, W)
        near = min(length + 1, window)
        most = (bound[:, None, :near] - own[None, :, :near]).min(-1)  # (B, x)
        if window > near:
            before = back[near:] - length  # bases before the beginning
            older = np.where(before <= seen[:, None], bound[:, near:] - tail[:, before], _NONE).min(1)
            most = np.minimum(most, older[:, None] - own[:, -1])
        return np.where((seen + length + rest < window)[:, None], rest[:, None], most)

    def _read(self, prompt: str, row: int) -> tuple[int, list[tuple[str, int]], np.ndarray]:
        """State after a prompt, words begun in it, and the kinds of its bases that GC rules judge."""
        text, rules = prompt.upper(), self.rules
        first = 0 if rules.judge_prompt else max(0, len(text) - self._automaton.longest + 1)
        wrong = next((i for i in range(first, len(text)) if text[i] not in rules.letters), None)
        if wrong is not None:
            letter = text[wrong]
            advice = "cut the prompt there or replace the letter"
            if letter in IUPAC and not (rules.gc or rules.gc_window):
                advice += f", or allow it with letters={rules.letters + letter!r}"
            raise ConstraintError(
                f"prompt {row} has {letter!r} at position {wrong} (from 0): expected only {rules.letters}: "
                f"{advice}"
            )
        try:
            node, begun = self._automaton.after(text)
        except ConstraintError as error:
            raise ConstraintError(f"prompt {row} {error}") from None
        judged = text if rules.judge_prompt and (rules.gc or rules.gc_window) else ""
        kinds = np.isin(np.frombuffer(judged.encode(), np.uint8), np.frombuffer(b"GC", np.uint8)).astype(np.uint8)
        if rules.gc_window and len(kinds) >= rules.window:
            total = np.concatenate(([0], kinds.cumsum(dtype=np.int64)))
            counts = total[rules.window :] - total[: -rules.window]
            outside = np.flatnonzero((counts < self._window_band[0]) | (counts > self._window_band[1]))
            if len(outside):
                place = int(outside[0])
                raise ConstraintError(
                    f"prompt {row} breaks gc_window: its {rules.window} bases from position {place} (from 0) have "
                    f"{int(counts[place])} G and C, expected {self._window_band[0]} to {self._window_band[1]} "
                    f"({_band(rules.gc_window)}): widen the band, change the prompt, or set judge_prompt to false"
                )
        return node, begun, kinds

    def _refuse(self, state: DnaState, row: int, prompt: str, begun: list[tuple[str, int]]) -> None:
        """Raise, saying which rules collide for a row that cannot go on.

        Raises:
            ConstraintError: always.
        """
        rules = self.rules
        node, rest = int(state.node[row]), int(state.remaining[row])
        named = self._named()
        if not self._alive[min(rest, len(self._alive) - 1), node]:
            possible = int(np.flatnonzero(self._alive[:, node])[-1])
            if begun:
                tail = max(length for _, length in begun)
                raise ConstraintError(
                    f"prompt {row} ends in {prompt[-tail:]!r} (from position {len(prompt) - tail}), after which "
                    f"no more than {possible} of the {rest} bases to draw can keep the rules: they complete "
                    f"{' or '.join(label for label, _ in begun)}; cut or change the prompt's end, or drop a rule"
                )
            raise ConstraintError(
                f"prompt {row}: no {rest} bases avoid {named}, at most {possible} do: drop one of these rules"
            )
        open_ = self._open[min(rest, len(self._open) - 1), :, node]  # (P,)
        if not open_.any():
            raise ConstraintError(f"prompt {row}: {self._no_choice()} ({named}): drop one of these, or gc_window")
        under = [named] if named else []
        there = int(state.seen[row])
        if rules.gc_window:
            holds = self._windows_hold(state)[row, : len(open_)]
            if not holds.any():
                raise ConstraintError(
                    f"prompt {row} has {int(state.recent[row].sum())} G and C in {there} bases; the first window "
                    f"of {rules.window} cannot have {self._window_band[0]} to {self._window_band[1]} after it "
                    f"({_band(rules.gc_window)}): widen gc_window or change the prompt"
                )
            open_ = open_ & holds
            if not open_.any():
                raise ConstraintError(
                    f"prompt {row}: the bases that gc_window {_band(rules.gc_window)} of {rules.window} asks for "
                    f"after its end ({prompt[-self._automaton.longest :]!r}) complete one of {named}: widen "
                    "gc_window, change the prompt's end, or drop a rule"
                )
        assert rules.gc is not None
        if self._counts is not None:
            low, high = int(self._counts.low[rest, node]), int(self._counts.high[rest, node])
        else:
            least_each, most_each = self._totals(state)
            low = int(least_each[row, : len(open_)][open_].min())
            high = int(most_each[row, : len(open_)][open_].max())
            assert rules.gc_window is not None
            under.insert(0, f"gc_window {_band(rules.gc_window)} of {rules.window} bases")
        if state.least[row] > state.most[row]:
            raise ConstraintError(
                f"prompt {row}: gc {_band(rules.gc)} holds no whole count of {there + rest} bases: widen it, or "
                "draw more bases"
            )
        least, most = max(0, int(state.least[row])), int(state.most[row])
        wanted = f"{least} to {most}" if most >= 0 else f"{-most} fewer than it already has"
        words = f" under {' and '.join(under)}" if under else ""
        note = "" if self.exact else " (counted cautiously: these rules leave gaps between the counts possible)"
        raise ConstraintError(
            f"prompt {row}: to have gc {_band(rules.gc)} over {there + rest} bases ({there} there, {rest} to "
            f"draw), those to draw need {wanted} G and C, but{words} they can have {low} to {high}{note}: widen "
            "gc or drop what it collides with"
        )

    def _named(self) -> str:
        """The rules that the automaton holds, in words."""
        sites = [name for text in self.rules.forbidden_sites for name, _ in resolve_site(text)]
        named = [f"forbidden sites {', '.join(sites[:8])}" + (f" and {len(sites) - 8} more" if sites[8:] else "")]
        if self.rules.no_stop:
            named.append("no_stop")
        elif self.rules.open_frame is not None:
            named.append(f"open_frame {self.rules.open_frame}")
        return " and ".join(named if sites else named[1:])

    def _no_choice(self) -> str:
        """Where the sites leave no choice of kinds, in words."""
        automaton = self._automaton
        for node in sorted(range(len(automaton)), key=lambda node: len(automaton.paths[node])):
            for columns, kinds in ((WEAK, "A nor T"), (STRONG, "G nor C")):
                if (automaton.step[node, columns] < 0).all():
                    return (
                        f"gc_window cannot be guaranteed with these rules: after {automaton.paths[node]!r} "
                        f"neither {kinds} may follow, and not every way there can be steered around"
                    )
        raise AssertionError("a state without a free choice leads to one with a kind closed")


def _rows(table: np.ndarray, size: int) -> np.ndarray:
    """The first rows of a table whose last row holds for all that would follow."""
    return table[np.minimum(np.arange(size), len(table) - 1)]


def _tail_counts(recent: np.ndarray) -> np.ndarray:
    """(B, W) -> (B, W + 1): how many of the last 0, 1 ... W bases are G or C."""
    counts = recent[:, ::-1].cumsum(1, dtype=np.int64)
    return np.concatenate((np.zeros((len(recent), 1), np.int64), counts), 1)
