"""How likely a model finds each base of DNA, exactly: base by base out of six-mer probabilities.

The ids of all 4,096 six-mers lie side by side, the last base fastest, so those that begin with given bases
are one contiguous block of the logits. With m(j) the log of the probability of all six-mers that begin with a
token's first j bases, base j costs m(j - 1) - m(j) nats. The first base carries the token's whole log mass:
m(0) = 0 is that of all 4,107 ids, so what the model gives to no six-mer counts against it, and a token's six
costs sum to its own -log p. Conditional probabilities of the four alternatives of a later base sum to 1, of a
first base to the mass of all six-mers. A token of which only the first bases are there costs what those cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqpope.checkpoint import CheckpointInfo
from seqpope.domains.base import find_tokenizer
from seqpope.errors import SeqpopeError
from seqpope.model.transformer import Transformer

HEAD = 4096  # tokens whose logits, 67 MB in fp32, are there at once
ALPHABET = "ACGT"  # of base codes 1 to 4


@dataclass(frozen=True)
class Row:
    """Bases that are read in one go, in reading direction.

    Args:
        bases: (n,) uint8 codes 1 to 4 of A, C, G and T; 8 more (soft-masking) is ignored; no N.
        lead: bases from the row's start to its first token boundary, 0 to k - 1: the suffix of a six-mer whose
            beginning is not known. They cost what the marginal over all beginnings says, the first of them
            unnormalised as a token's first base is, and are no context of what follows. With n below `lead` the
            row is the inside of one six-mer.
        context: bases at the row's start that are read but not scored.
    """

    bases: np.ndarray
    lead: int = 0
    context: int = 0


class Scores(NamedTuple):
    """What rows cost: for each (n - context,) float32 nats; over all tokens scored, the sum of the probabilities
    outside words of k bases, and how many tokens that were."""

    nats: list[np.ndarray]
    outside: float
    tokens: int


@dataclass(frozen=True)
class _Plan:
    """A row as tokens: `words` (T,) numbers from 0 of its words of k bases, the last filled up with any base if
    only its first bases are there; those from `first` on are scored."""

    words: np.ndarray
    first: int


def tokenizer_of(info: CheckpointInfo) -> Any:
    """The tokenizer that a model of DNA was trained with.

    Raises:
        SeqpopeError: the model is none of DNA.
    """
    tokenizer = find_tokenizer("dna", info.fingerprint)
    if tokenizer is None:
        raise SeqpopeError(
            f"the model was trained on {info.dataset} ({info.domain}), whose tokens {info.fingerprint[:12]} are "
            "no DNA: give a checkpoint of --domain genome"
        )
    return tokenizer


class Likelihood:
    """A model of DNA that says what each base costs.

    A row's first token is predicted from padding at the input, which is BOS here; rows of unequal length are
    padded on the right, which no token sees and no number counts.

    Attributes:
        k: bases in a token, 6 or 1, by the tokenizer that the checkpoint names.
        length: tokens of a window in training; rows of more are read all the same.
        bulk: tokens of the rows that most batches are made of; with `compile` those batches, all of one shape, go
            through the compiled model.
    """

    def __init__(
        self,
        model: Transformer,
        info: CheckpointInfo,
        *,
        device: str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        batch_tokens: int = 16384,
        compile: bool = False,
    ) -> None:
        """
        Args:
            model: moved to `device`.
            precision: of the forward pass; bf16 by autocast. Sums over the vocabulary are fp32 in both.
            batch_tokens: about as many tokens are read at once, at least one row.

        Raises:
            SeqpopeError: the model is none of DNA, or a number is out of range.
        """
        tokenizer = tokenizer_of(info)
        if precision not in ("fp32", "bf16") or batch_tokens < 1:
            raise SeqpopeError(
                "expected a precision of fp32 or bf16 and batch_tokens of at least 1, they are "
                f"{precision!r} and {batch_tokens}"
            )
        self.model, self.device = model.to(device).eval(), torch.device(device)
        self.precision, self.batch_tokens = precision, batch_tokens
        self.k, self.length, self.padding_id = int(tokenizer.units["base"]), info.length, info.padding_id
        self.bulk = self.length
        # The tokenizer says which id and digit is whose: AAAAAA is the first of 4^k words.
        self._first_id = int(tokenizer.encode("A" * self.k)[0])
        self._digits = np.zeros(8, np.uint16)  # of base codes
        for code, letter in enumerate(ALPHABET, 1):
            self._digits[code] = int(tokenizer.encode("A" * (self.k - 1) + letter)[0]) - self._first_id
        self._powers = tuple(4**left for left in reversed(range(self.k)))
        self._opening: list[list[np.ndarray]] | None = None
        self._compiled: tuple[Callable[..., Tensor], Callable[..., Any]] | None = None
        if compile:
            self._compiled = torch.compile(self.model, dynamic=False), torch.compile(self._costs)

    def nats(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """What each base of rows costs behind their context, (n - context,) float32 nats each.

        Raises:
            ValueError: a row has bases other than codes 1 to 4, or a lead or context that it cannot have.
        """
        return self.begin(rows).result().nats

    def begin(self, rows: Sequence[Row], progress: Callable[[int], None] | None = None) -> Pending:
        """Start to score rows; on a GPU the call returns as soon as all is asked for.

        Args:
            progress: called after each batch with the bases scored in it.

        Raises:
            ValueError: as `nats`.
        """
        pending = Pending(self, rows)
        with torch.inference_mode():
            for batch in self._batches(pending.plans):
                pending.take(batch.rows, *self._read(batch))
                if progress is not None:
                    progress(sum(len(rows[row].bases) - rows[row].context for row in batch.rows))
            pending.close()
        return pending

    def plan(self, row: Row) -> _Plan:
        """A row's words.

        Raises:
            ValueError: as `nats`.
        """
        bases, k = row.bases, self.k
        if bases.ndim != 1 or bases.dtype != np.uint8 or not 0 <= row.context <= len(bases):
            raise ValueError(
                f"expected uint8 bases of shape (n,) and 0 to n of them as context, got {bases.dtype} of shape "
                f"{bases.shape} and {row.context}"
            )
        if not 0 <= row.lead < k:
            raise ValueError(f"the first token boundary must be at 0 to {k - 1} bases, it is at {row.lead}")
        letters = bases & 7
        if letters.size and not 1 <= letters.min() <= letters.max() <= 4:
            raise ValueError("a row must hold A, C, G and T alone (codes 1 to 4): cut it at N")
        letters = letters[row.lead :]
        digits = np.zeros((-(-len(letters) // k), k), np.uint16)
        digits.reshape(-1)[: len(letters)] = self._digits[letters]
        words = digits[:, 0].astype(np.int64)
        for place in range(1, k):
            words = 4 * words + digits[:, place]
        return _Plan(words, len(words) if row.context == len(bases) else max(0, row.context - row.lead) // k)

    def opening(self, row: Row) -> np.ndarray:
        """Nats of a row's lead, (min(n, lead),) fp64: they depend on nothing else."""
        if self._opening is None:
            self._opening = self._opening_tables()
        digits = self._digits[row.bases[: row.lead] & 7]
        before, number, costs = 0.0, 0, []
        for digit, table in zip(digits, self._opening[row.lead], strict=False):
            number = 4 * number + int(digit)
            costs.append(before - table[number])
            before = table[number]
        return np.array(costs)

    def _opening_tables(self) -> list[list[np.ndarray]]:
        """For each lead l the log masses, under what the model expects first, of all six-mers whose last l bases
        begin with j given ones: (4^j,) for j = 1 to l."""
        with torch.inference_mode(), self._autocast():
            logits = self.model(torch.tensor([[self.padding_id]], device=self.device))
        chances = logits[0, 0].double().softmax(-1).cpu().numpy()
        words = chances[self._first_id : self._first_id + 4**self.k]
        tables = []
        for lead in range(self.k):
            endings = words.reshape(-1, 4**lead).sum(0)  # over all beginnings
            tables.append([np.log(endings.reshape(4**j, -1).sum(1)) for j in range(1, lead + 1)])
        return tables

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _batches(self, plans: Sequence[_Plan]) -> Iterator[_Batch]:
        """Rows with something to score, those of like length together, the longest first."""
        order = sorted(
            (row for row, plan in enumerate(plans) if plan.first < len(plan.words)),
            key=lambda row: -len(plans[row].words),
        )
        while order:
            longest = len(plans[order[0]].words)
            count = max(1, self.batch_tokens // longest)
            chosen, order = order[:count], order[count:]
            inputs = np.full((len(chosen), longest), self.padding_id, np.int64)
            at, targets = [], []
            for place, row in enumerate(chosen):
                words, first = plans[row].words, plans[row].first
                inputs[place, 1 : len(words)] = words[:-1] + self._first_id
                at.append(np.arange(place * longest + first, place * longest + len(words)))
                targets.append(words[first:])
            tensors = [torch.from_numpy(x) for x in (inputs, np.concatenate(at), np.concatenate(targets))]
            if self.device.type == "cuda":  # from pinned memory copying waits for nobody
                tensors = [x.pin_memory().to(self.device, non_blocking=True) for x in tensors]
            yield _Batch(chosen, *tensors)

    def _read(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Costs (N, k) of the words scored, and the sum of the probabilities outside words, (1,) fp64."""
        full = max(1, self.batch_tokens // self.bulk), self.bulk
        forward: Callable[..., Tensor] = self.model
        costs: Callable[..., Any] = self._costs
        if self._compiled is not None and tuple(batch.inputs.shape) == full:
            forward, costs = self._compiled
        with self._autocast():
            states = forward(batch.inputs, head=False).flatten(0, 1)[batch.at]  # (N, C)
            parts = [
                costs(some, words)
                for some, words in zip(states.split(HEAD), batch.targets.split(HEAD), strict=True)
            ]
        outside = torch.stack([part.sum(dtype=torch.float64) for _, part in parts]).sum(0, keepdim=True)
        return torch.cat([part for part, _ in parts]), outside

    def _costs(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """States (N, C) and words (N,) -> nats of their bases (N, k) and probability outside words (N,), fp32."""
        logits = self.model.logits(states).float()  # (N, V)
        begin, end = self._first_id, self._first_id + 4**self.k
        block = logits[:, begin:end]  # of all words that begin with what was read so far
        inside = block.logsumexp(-1)
        others = torch.cat((logits[:, :begin], logits[:, end:]), -1).logsumexp(-1)
        masses, rows = [torch.logaddexp(inside, others)], torch.arange(len(words), device=words.device)
        for power in self._powers:
            block = block.unflatten(-1, (4, power))[rows, words // power % 4]  # (N, 4^bases left)
            masses.append(block.logsumexp(-1))
        stacked = torch.stack(masses, -1)  # (N, k + 1)
        return stacked[:, :-1] - stacked[:, 1:], -torch.expm1(inside - masses[0])


@dataclass(frozen=True)
class _Batch:
    """Rows read together.

    rows: their numbers; inputs: (B, L) ids; at: (N,) places of B x L that predict what is scored; targets:
    (N,) its words.
    """

    rows: list[int]
    inputs: Tensor
    at: Tensor
    targets: Tensor


class Pending:
    """Rows that are being scored; `result` waits for them."""

    def __init__(self, likelihood: Likelihood, rows: Sequence[Row]) -> None:
        self.likelihood, self.rows = likelihood, rows
        self.plans = [likelihood.plan(row) for row in rows]
        self._taken: list[tuple[list[int], Tensor, Tensor]] = []
        self._done: torch.cuda.Event | None = None

    def take(self, rows: list[int], costs: Tensor, outside: Tensor) -> None:
        """Have a batch's numbers brought to the host."""
        self._taken.append((rows, costs.to("cpu", non_blocking=True), outside.to("cpu", non_blocking=True)))

    def close(self) -> None:
        """No batch follows."""
        if self.likelihood.device.type == "cuda":
            self._done = torch.cuda.Event()
            self._done.record()

    def result(self) -> Scores:
        """What the rows cost.

        Raises:
            SeqpopeError: the model gives numbers that are not finite.
        """
        if self._done is not None:
            self._done.synchronize()
        nats = [np.empty(len(row.bases) - row.context, np.float32) for row in self.rows]
        for index, row in enumerate(self.rows):
            if row.context < row.lead:
                lead = self.likelihood.opening(row)[row.context :]
                nats[index][: len(lead)] = lead
        outside, tokens, k = 0.0, 0, self.likelihood.k
        for batch, costs, beyond in self._taken:
            flat, start = costs.numpy().reshape(-1), 0  # words follow each other, and so do their bases
            for index in batch:
                row, plan = self.rows[index], self.plans[index]
                skipped = max(0, row.context - row.lead) - k * plan.first  # of the first word
                size = len(row.bases) - max(row.context, row.lead)
                nats[index][len(nats[index]) - size :] = flat[k * start + skipped :][:size]
                start += len(plan.words) - plan.first
            outside, tokens = outside + float(beyond), tokens + start
        if not all(np.isfinite(each).all() for each in nats):
            raise SeqpopeError(
                "the model gives probabilities that are no numbers: its weights are damaged or were never finite, "
                "give another checkpoint; or they are too large for --precision bf16, use fp32"
            )
        return Scores(nats, outside, tokens)
