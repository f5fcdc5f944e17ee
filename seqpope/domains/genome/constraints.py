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

A vocabulary that holds all words of k bases (six-mers) is a model's that was trained on them: then nothing else
is drawn, single letters least of all, and of the last token only so many bases count as are still to draw. The k
bases that show a continuation possible are such a word themselves, so one is allowed in every state.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from seqpope.domains.genome.automaton import NO_COUNT, STOP_CODONS, Automaton, CountTable, Word
from seqpope.domains.genome.bases import BASES, IUPAC, reverse_complement
from seqpope.domains.genome.rules import DnaRules, band_text, count_band
from seqpope.domains.genome.sites import ConstraintError, resolve_site

WEAK, STRONG = [0, 3], [1, 2]  # A and T, G and C, as indices of BASES
LOOK_AHEAD = 4  # bases; one is enough for most sets of enzymes, three for all that cut six bases


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
    """Masks for drawing DNA under rules, a whole batch at once. See `Constraint` in seqpope.sampling.

    Until a row's last base is drawn, `allowed` has a true entry in that row, whichever allowed tokens were taken,
    and lengths are hit exactly. A row with nothing left to draw (`done`) has no true entry, and `advance` leaves
    it as it is.

    Args:
        rules: What to keep to.
        vocabulary: For each token id its bases; "" or None for tokens that are never allowed. A, C, G and T must
            each be a token. Lower-case tokens count as other letters, so are never allowed.
        bases: How many bases `begin` has drawn; None has whole words of `word` bases.
        unseen: Bases that stand before the prompts' tokens, which the model does not see and the rules do.
        letters_anywhere: All tokens that fit may be drawn. False: of a vocabulary that has all words of several
            bases only the longest such are, and other letters than ACGT if the rules have them. If fewer bases are
            still to draw, as many from the word's start count and the rest says nothing: cut the text to its
            length.

    Attributes:
        word: bases in those words; 1 if tokens of all lengths may be drawn.

    Raises:
        ConstraintError: an unknown site, too large an automaton, a vocabulary that lacks a base.
    """

    def __init__(
        self,
        rules: DnaRules,
        vocabulary: Sequence[str | None],
        *,
        bases: int | None = None,
        unseen: str = "",
        letters_anywhere: bool = False,
    ) -> None:
        missing = [base for base in BASES if base not in vocabulary]
        if missing:
            raise ConstraintError(
                f"the vocabulary of {len(vocabulary)} tokens has none for {', '.join(missing)} alone: expected A, "
                "C, G and T among them, without which not every length can be reached; use a tokenizer with them"
            )
        self.bases, self.unseen = bases, unseen
        self._strings = [token or "" for token in vocabulary]
        self.word = 1 if letters_anywhere else _longest_words(self._strings)
        self.rules = rules
        self.vocabulary_size = len(vocabulary)
        words = []
        for text in rules.forbidden_sites:
            for name, pattern in resolve_site(text):
                words.append(Word(f"the forbidden site {name}", pattern))
                words.append(Word(f"the forbidden site {name} (other strand)", reverse_complement(pattern)))
        if rules.no_stop:
            words += [Word(f"stop codon {codon}", codon) for codon in STOP_CODONS]
        unique: dict[str, Word] = {}  # a palindrome is one word, the first of its kind
        for word in words:
            unique.setdefault(word.pattern, word)
        frame = None if rules.no_stop else rules.open_frame
        self._automaton = Automaton(list(unique.values()), frame, rules.letters, not rules.judge_prompt)
        self._alive = self._automaton.survivors([WEAK + STRONG])
        self._look_ahead()
        self._counts = CountTable(self._automaton, rules.gc) if rules.gc and not rules.gc_window else None
        self._window_band = count_band(rules.gc_window, rules.window) if rules.gc_window else (0, 0)
        self._columns = rules.window if rules.gc_window else 0
        self._ends: dict[int, DnaConstraint] = {}
        self._tabulate(self._strings if self.word == 1 else self._words(self.word))

    def _words(self, rest: int) -> list[str]:
        """What each token stands for with `rest` bases to draw: as much of a word, and letters beside ACGT."""
        of_bases = [bool(text) and set(text) <= set(BASES) for text in self._strings]
        return [
            (text[:rest] if len(text) == self.word else "") if plain else text
            for text, plain in zip(self._strings, of_bases, strict=True)
        ]

    def _parts(self, state: DnaState) -> list[tuple[DnaConstraint, np.ndarray]]:
        """Rows by what tokens stand for: whole words, or words of which the end is cut off."""
        rest = np.where(state.done, self.word, np.minimum(state.remaining, self.word))
        parts = []
        for length in np.unique(rest).tolist():
            if length < self.word and length not in self._ends:
                self._ends[length] = copy.copy(self)
                self._ends[length]._tabulate(self._words(length))
            parts.append((self._ends.get(length, self), np.flatnonzero(rest == length)))
        return parts

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

    def most_tokens(self, bases: int) -> int:
        """How many tokens so many bases may take, at most."""
        return -(-bases // (self.word if self.rules.letters == BASES else 1))

    def begin(self, prompts: Sequence[np.ndarray], count: int) -> DnaState:
        """See `Constraint`: as `start`, after prompts of token ids, with `bases` bases to draw in `count` tokens.

        Raises:
            ConstraintError: as `start`; or `count` may be too few, or a token of a prompt stands for no bases.
        """
        bases = count * self.word if self.bases is None else self.bases
        if count < self.most_tokens(bases):
            raise ConstraintError(
                f"{bases} bases may take {self.most_tokens(bases)} tokens and {count} are to be drawn: draw as "
                "many, padding comes after the last base"
            )
        texts = []
        for row, prompt in enumerate(prompts):
            strings = [self._strings[token] for token in prompt.tolist()]
            if "" in strings:
                raise ConstraintError(
                    f"prompt {row}: token {strings.index('')} ({prompt[strings.index('')]}) stands for no bases: "
                    "prompts are what the tokenizer makes of a sequence"
                )
            texts.append(self.unseen + "".join(strings))
        return self.start(texts, [bases] * len(texts))

    def done(self, state: DnaState) -> np.ndarray:
        """(B,) bool: rows with nothing left to draw."""
        return state.done

    def start(self, prompts: Sequence[str], lengths: Sequence[int]) -> DnaState:
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
                band[row] = np.array(count_band(self.rules.gc, total)) - strong[row]
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
        mask = np.zeros((len(state), self.vocabulary_size), bool)
        for part, rows in self._parts(state):
            mask[rows] = part._allowed(self.take(state, rows))
        return mask

    def _allowed(self, state: DnaState) -> np.ndarray:
        cells = self._cells(state).reshape(len(state), self._cell_count)
        start = np.arange(len(state), dtype=np.int64)[:, None] * cells.shape[1]
        return cells.reshape(-1)[self._index[state.node] + start]

    def advance(self, state: DnaState, tokens: np.ndarray) -> DnaState:
        """The state after a token in each row, (B,) ids; rows that are done stay as they are, whatever their id.

        Raises:
            ConstraintError: a token is not allowed (or no token of the vocabulary).
        """
        tokens = np.asarray(tokens)
        if tokens.shape != state.node.shape or tokens.dtype.kind not in "iu":
            raise ConstraintError(
                f"expected {len(state)} token ids, one each a row, they are {tokens.dtype} of shape {tokens.shape}"
            )
        after = self.take(state, np.arange(len(state)))
        for part, rows in self._parts(state):
            some = part._advance(self.take(state, rows), tokens[rows], rows)
            for field in fields(DnaState):
                getattr(after, field.name)[rows] = getattr(some, field.name)
        return after

    def _advance(self, state: DnaState, tokens: np.ndarray, names: np.ndarray) -> DnaState:
        done = state.done
        wrong = ~done & ((tokens < 0) | (tokens >= self.vocabulary_size))
        chosen = np.where(done | wrong, 0, tokens).astype(np.int64)
        rows = np.arange(len(state))
        index = self._index[state.node, chosen].astype(np.int64)
        wrong |= ~done & ~self._cells(state).reshape(len(state), self._cell_count)[rows, index]
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ConstraintError(
                f"row {names[row]}: token {int(tokens[row])} is not allowed with {int(state.remaining[row])} "
                "bases to draw: take only tokens for which allowed(state) is true"
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
            older = np.where(before <= seen[:, None], bound[:, near:] - tail[:, before], NO_COUNT).min(1)
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
                    f"({band_text(rules.gc_window)}): widen the band, change the prompt, or set judge_prompt to "
                    "false"
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
                    f"({band_text(rules.gc_window)}): widen gc_window or change the prompt"
                )
            open_ = open_ & holds
            if not open_.any():
                raise ConstraintError(
                    f"prompt {row}: the bases that gc_window {band_text(rules.gc_window)} of {rules.window} asks "
                    f"for after its end ({prompt[-self._automaton.longest :]!r}) complete one of {named}: widen "
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
            under.insert(0, f"gc_window {band_text(rules.gc_window)} of {rules.window} bases")
        if state.least[row] > state.most[row]:
            raise ConstraintError(
                f"prompt {row}: gc {band_text(rules.gc)} holds no whole count of {there + rest} bases: widen it, "
                "or draw more bases"
            )
        least, most = max(0, int(state.least[row])), int(state.most[row])
        wanted = f"{least} to {most}" if most >= 0 else f"{-most} fewer than it already has"
        words = f" under {' and '.join(under)}" if under else ""
        note = "" if self.exact else " (counted cautiously: these rules leave gaps between the counts possible)"
        raise ConstraintError(
            f"prompt {row}: to have gc {band_text(rules.gc)} over {there + rest} bases ({there} there, {rest} to "
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


def _longest_words(strings: list[str]) -> int:
    """The greatest k for which all words of k bases are tokens."""
    of_bases = {text for text in strings if text and set(text) <= set(BASES)}
    counts = np.bincount([len(text) for text in of_bases])
    return max(length for length, count in enumerate(counts.tolist()) if length and count == len(BASES) ** length)


def _rows(table: np.ndarray, size: int) -> np.ndarray:
    """The first rows of a table whose last row holds for all that would follow."""
    return table[np.minimum(np.arange(size), len(table) - 1)]


def _tail_counts(recent: np.ndarray) -> np.ndarray:
    """(B, W) -> (B, W + 1): how many of the last 0, 1 ... W bases are G or C."""
    counts = recent[:, ::-1].cumsum(1, dtype=np.int64)
    return np.concatenate((np.zeros((len(recent), 1), np.int64), counts), 1)
