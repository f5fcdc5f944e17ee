"""The automaton over bases that forbidden sites and stop codons become, and what it can count to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from seqpope.domains.genome.bases import BASES
from seqpope.domains.genome.sites import ConstraintError, may_be

STOP_CODONS = ("TAA", "TAG", "TGA")
STATE_LIMIT = 2_000  # the table of a 6-mer vocabulary then takes 33 MB
RAW_STATE_LIMIT = 60_000  # before merging states that behave alike
COUNT_TABLE_LIMIT = 40_000_000  # automaton states x bases: two int32 of each are 320 MB
NO_COUNT = np.iinfo(np.int32).max // 2  # the least of no counts


class Word(NamedTuple):
    """What may not be completed: how messages call it, and its IUPAC codes."""

    label: str
    pattern: str


class Automaton:
    """Which words (sites, stop codons) are begun: Shift-And masks, then a minimal deterministic table.

    A raw state is (bits, phase): bit `offset of a word + i` is set if the last i + 1 bases are the word's first;
    phase is how many bases remain before the next codon begins (always 0 without a frame).

    Attributes:
        step: (S, letters) int64: the next state, -1 where a word would be completed. Columns 0..3 are A, C, G, T.
        paths: bases that lead to each state, as few as may be (from the prompt's end, or a start).
    """

    def __init__(self, words: list[Word], frame: int | None, letters: str, context: bool) -> None:
        self.letters = BASES + "".join(letter for letter in letters if letter not in BASES)
        self.words = [*words]
        self.context = context
        self.framed = frame is not None
        if frame is not None:
            self.words += [Word(f"stop codon {codon} in frame {frame}", codon) for codon in STOP_CODONS]
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
                    if may_be(letter, code):
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

    def _placed(self) -> Iterator[tuple[Word, int]]:
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


class CountTable:
    """How many G and C the next k bases can have from a state: an interval [low, high] for each, grown as needed.

    Interval (k, s) is the union over the bases of (k - 1, next state), moved by 1 for G and C, so that each count
    in it is reached by a base and an interval that holds the rest. A union with gaps would be no interval: the run
    of counts that has most of the band `prefer` is kept, then the longest, and `gaps` is set.
    """

    def __init__(self, automaton: Automaton, prefer: tuple[float, float]) -> None:
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
            least[closed], most[closed] = NO_COUNT, -1
            order = least.argsort(1)
            least = np.take_along_axis(least, order, 1)
            most = np.maximum.accumulate(np.take_along_axis(most, order, 1), 1)
            low[k], high[k] = least[:, 0], most[:, -1]
            gap = (least[:, 1:] > most[:, :-1] + 1) & (least[:, 1:] < NO_COUNT)
            for state in np.flatnonzero(gap.any(1)):
                self.gaps = True
                cuts = np.flatnonzero(gap[state])
                runs = zip(least[state, [0, *(cuts + 1)]], most[state, [*cuts, -1]], strict=True)
                low[k, state], high[k, state] = max(runs, key=lambda run: self._worth(run, k))
        self.low, self.high = low, high

    def _worth(self, run: tuple[int, int], bases: int) -> tuple[float, int]:
        low, high = (share * bases for share in self._prefer)
        return min(high, float(run[1])) - max(low, float(run[0])), int(run[1] - run[0])
