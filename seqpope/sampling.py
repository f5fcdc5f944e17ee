"""Prefill, decode, choose: token ids in, token ids out. Knows no domain.

What may come next is said by a `Constraint`; how likely it is by the model; `SamplingConfig` bends that. With
particles a sample is drawn by sequential Monte Carlo, so that what a constraint asks of later tokens counts for
earlier ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from seqpope.decoding import Decoder, Replayed
from seqpope.errors import SeqpopeError
from seqpope.model.transformer import Transformer


@dataclass
class SamplingConfig:
    """How the next token is chosen, in this order.

    Args:
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the likeliest tokens that together reach this probability (arXiv 1904.09751).
        min_p: Keep tokens at least so likely as this share of the likeliest (arXiv 2407.01082).
        repetition_penalty: Above 1, logits of tokens that are there already are divided by it where they are
            positive and multiplied where they are negative (arXiv 1909.05858); before the temperature.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} {what}, it is {getattr(self, name)}"
            for name, what, right in (
                (
                    "temperature",
                    "0 or from 0.001 to 1000",
                    self.temperature == 0 or 1e-3 <= self.temperature <= 1e3,
                ),
                ("top_k", "of at least 0", self.top_k >= 0),
                ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
                ("min_p", "from 0 to 1", 0 <= self.min_p <= 1),
                ("repetition_penalty", "from 0.01 to 100", 0.01 <= self.repetition_penalty <= 100),
            )
            if not right
        ]
        if wrong:
            raise SeqpopeError(f"expected {'; '.join(wrong)}")


class Constraint(Protocol):
    """Which tokens may come next, for a whole batch at once; each row has a state of its own.

    A row may be done before `count` tokens are drawn: padding follows, at no cost, and sampling ends when all are.
    """

    def begin(self, prompts: Sequence[np.ndarray], count: int) -> Any:
        """The state after prompts of token ids, with `count` tokens to come.

        Raises:
            SeqpopeError: what is asked for contradicts itself or a prompt.
        """

    def allowed(self, state: Any) -> np.ndarray:
        """(B, V) bool; every row that is not done has a token that may come."""

    def done(self, state: Any) -> np.ndarray:
        """(B,) bool: rows after which nothing is to come; `advance` leaves them as they are."""

    def advance(self, state: Any, tokens: np.ndarray) -> Any:
        """The state after one more token a row, (B,)."""

    def take(self, state: Any, rows: np.ndarray) -> Any:
        """The state whose row b is row rows[b]."""


@dataclass
class Samples:
    """What was drawn.

    `nats` are the NLL of each token under the untouched model; `constraint_nats` are -log of the probability
    that the model gave to all tokens that were allowed: what the constraint cost, 0 without one. All (B, count),
    or less where all rows were done before: a row that is done has padding, of 0 nats. `forgotten` (B,) are the
    tokens that the context had dropped when a row's last own one was drawn.
    """

    ids: Tensor
    nats: Tensor
    constraint_nats: Tensor
    forgotten: Tensor


def next_distribution(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Probabilities of the next token after temperature, top-k, top-p and min-p: (B, V) -> (B, V) fp64."""
    logits = logits.double()
    if config.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        kept = logits.topk(config.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kept, float("-inf"))
    probabilities = logits.softmax(-1)
    if config.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        # A token stays if those before it have not yet reached top_p; the likeliest always stays.
        out = (ordered.cumsum(-1) - ordered) >= config.top_p
        probabilities = probabilities.masked_fill(out.scatter(-1, order, out), 0.0)
    if config.min_p > 0:
        least = config.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return probabilities / probabilities.sum(-1, keepdim=True)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) with those of tokens that were `seen`, (B, V) bool, pushed down (arXiv 1909.05858)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


class Chooser:
    """Chooses the next token of every row from its logits, on their device; on a GPU as a CUDA graph.

    What it reads lies in `logits` (B, V), `uniform` (B, 1) in [0, 1), `allowed` and `seen` (B, V) bool (None where
    nothing is constrained or penalised).
    """

    def __init__(
        self,
        logits: Tensor,
        config: SamplingConfig,
        padding_id: int,
        *,
        constrained: bool,
        weighed: bool,
        seen: Tensor | None,
    ) -> None:
        self.seen = seen
        self.logits = logits.clone()
        self.uniform = torch.zeros(len(logits), 1, dtype=torch.float64, device=logits.device)
        self.allowed = torch.ones(logits.shape, dtype=torch.bool, device=logits.device) if constrained else None
        self.done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)  # these rows get padding
        choose = functools.partial(
            _choose, self.logits, self.uniform, self.allowed, self.done, seen, config, padding_id, weighed
        )
        self.again = Replayed(choose, logits.is_cuda)

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For each row (B,): the token, its nats, what the constraint cost in nats, and its log weight.

        The weight is that of a particle: how much probability, tempered, was there before anything was cut away.
        """
        self.logits.copy_(logits)
        return self.again()


def _choose(
    logits: Tensor, uniform: Tensor, allowed: Tensor | None, done: Tensor, seen: Tensor | None,
    config: SamplingConfig, padding_id: int, weighed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    bent = logits.clone()
    if seen is not None:
        bent = penalise(bent, seen, config.repetition_penalty)
    bent[:, padding_id].masked_fill_(~done, float("-inf"))
    tempered = bent.double() / (config.temperature or 1.0)
    log_shares = logits.log_softmax(-1)
    cost = logits.new_zeros(len(logits))
    if allowed is not None:
        bent = bent.masked_fill(~allowed, float("-inf"))
        cost = (-log_shares.masked_fill(~allowed, float("-inf")).logsumexp(-1)).clamp(min=0)
    probabilities = next_distribution(bent, config)
    weight = cost
    if weighed:
        kept = tempered.masked_fill(probabilities == 0, float("-inf"))
        weight = kept.logsumexp(-1) - tempered.logsumexp(-1)
    cumulative = probabilities.cumsum(-1)
    # One uniform number a row, inverted through the distribution.
    chosen = (cumulative <= uniform * cumulative[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
    if seen is not None:
        seen.scatter_(1, chosen[:, None], True)
    return chosen, -log_shares.gather(1, chosen[:, None])[:, 0], cost, weight


@torch.inference_mode()
def sample(
    model: Transformer,
    prompts: Tensor | Sequence[Tensor],
    count: int,
    *,
    seeds: Sequence[int],
    padding_id: int,
    config: SamplingConfig | None = None,
    constraint: Constraint | None = None,
    particles: int = 1,
    resample_every: int = 1,
    greed: float = 0.0,
    pick: Literal["likeliest", "any"] = "likeliest",
    context: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    share: Callable[[Any], np.ndarray] | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> Samples:
    """Draw `count` tokens after each prompt, padding standing in for BOS before it.

    Each sample has its own generator, so that what a seed draws does not depend on what is drawn beside it; the
    numbers of a batch of another size may differ in their last bits all the same. Padding itself is never drawn.

    Args:
        prompts: one (L,) of token ids for all samples, possibly empty, or one for each; their lengths may differ.
        model: in evaluation mode.
        count: tokens after each prompt; fewer where the constraint is done before.
        seeds: one for each sample (B of them).
        constraint: which tokens may come next.
        particles: of each sample so many are drawn side by side. A particle weighs what the model gave to all
            that the constraint allowed it (arXiv 2306.03081); where weights have become too unequal the
            particles are drawn anew by them (systematic resampling).
        resample_every: only after a multiple of so many tokens.
        greed: also weigh a particle by the probability of what it drew, to this power: 0 leaves the
            distribution given the constraint, more searches for what is likeliest.
        pick: which of the last particles is the sample: the likeliest, or any, by their weights. Only the
            latter is a draw from the distribution that the particles stand for.
        context: at most so many positions are attended to. When they are full the older half is forgotten; None
            forgets nothing.
        progress: called with tokens drawn and tokens in all.
        share: of the constraint's state, how much of each row is there, (B,) from 0 to 1: where `count` is but an
            upper bound `progress` goes by it.
        watch: called with each token of the samples, (B,) ids, and its nats, as soon as it is sure to stay: with
            particles that is when all of a sample's agree, up to there, on what they drew. In the order of
            the tokens, and each of them once; what it raises ends the sampling.

    Raises:
        SeqpopeError: a prompt is longer than the context, the constraint cannot be met, or the model gives no
            numbers.
        ValueError: prompts and seeds are not as many, or the model would drop out.
    """
    config = config or SamplingConfig()
    if model.training and (model.config.dropout or model.config.attention_dropout):
        raise ValueError("the model is in training mode and would drop out: call model.eval() first")
    each = [prompts] * len(seeds) if isinstance(prompts, Tensor) else list(prompts)
    if len(each) != len(seeds):
        raise ValueError(f"there must be one prompt for each seed: {len(each)} and {len(seeds)}")
    longest = max(len(prompt) for prompt in each)
    if context is not None and longest + 1 > context // 2:
        raise SeqpopeError(
            f"a prompt of {longest} tokens does not fit half a context of {context}: shorten the prompt or raise "
            "the context"
        )
    rows = [prompt for prompt in each for _ in range(particles)]
    batch = len(rows)
    ids = torch.full((batch, 1 + longest), padding_id, dtype=torch.long)
    for row, prompt in enumerate(rows):
        ids[row, 1 : 1 + len(prompt)] = prompt
    ends = torch.tensor([1 + len(prompt) for prompt in rows])
    decoder = Decoder(model, batch, 1 + longest + count if context is None else min(context, 1 + longest + count))
    device = decoder.ids.device
    state = constraint.begin([prompt.numpy() for prompt in rows], count) if constraint is not None else None
    logits = decoder.read(ids, None if bool((ends == ends[0]).all()) else ends)
    _refuse_nan(logits)
    seen = None
    if config.repetition_penalty != 1:
        seen = torch.zeros(batch, model.vocabulary_size, dtype=torch.bool)
        for row, prompt in enumerate(rows):
            seen[row, prompt.long()] = True
        seen = seen.to(device)
    chooser = Chooser(
        logits, config, padding_id, constrained=constraint is not None,
        weighed=constraint is not None and particles > 1, seen=seen,
    )  # fmt: skip
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    uniform = None
    if particles == 1:  # nothing else is drawn: all numbers at once
        uniform = torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in generators]).to(device)
    drawn = torch.empty(batch, count, dtype=torch.long, device=device)
    nats, cost = (torch.empty(batch, count, device=device) for _ in range(2))
    weights = torch.zeros(len(seeds), particles, dtype=torch.float64)
    chosen = torch.zeros(batch, dtype=torch.long, device=device)
    done = np.zeros(batch, bool)
    told = 0  # tokens, to `watch`
    for step in range(count):
        if constraint is not None:
            done = constraint.done(state)
            if done.all():
                drawn, nats, cost = drawn[:, :step], nats[:, :step], cost[:, :step]
                break
        if step:
            if context is not None and decoder.cache.length + 1 > context:
                decoder.cache.keep_last(context // 2, over=context - 1)
            logits = decoder.step(chosen)
        if constraint is not None:
            assert chooser.allowed is not None
            allowed = constraint.allowed(state)
            if not ((allowed.sum(-1) > allowed[:, padding_id]) | done).all():
                raise SeqpopeError(
                    f"the constraint leaves no token at position {step}: this is a mistake of seqpope's"
                )
            chooser.allowed.copy_(torch.from_numpy(allowed))
            chooser.done.copy_(torch.from_numpy(done))
            if done.any():  # padding is all that is left, and certain
                chooser.allowed[chooser.done, padding_id] = True
                logits = logits.masked_fill(chooser.done[:, None], float("-inf"))
                logits[chooser.done, padding_id] = 0.0
        ended: np.ndarray = np.all(done.reshape(len(seeds), particles), axis=1)  # their generators rest
        if uniform is None:
            some = [
                torch.zeros(particles).double() if end else torch.rand(particles, generator=g, dtype=torch.float64)
                for g, end in zip(generators, ended, strict=True)
            ]
            chooser.uniform.copy_(torch.cat(some)[:, None])
        else:
            chooser.uniform.copy_(uniform[:, step : step + 1])
        chosen, nats[:, step], cost[:, step], weight = chooser(logits)
        drawn[:, step] = chosen
        if constraint is not None:
            state = constraint.advance(state, chosen.cpu().numpy())
        if particles > 1:
            if constraint is not None:
                weights += weight.cpu().view(len(seeds), particles)
            if greed:
                weights -= greed * nats[:, step].cpu().view(len(seeds), particles)
            again = resampled(weights, generators, ended) if (step + 1) % resample_every == 0 else None
            if again is not None:
                decoder.cache.select(again)
                there = again.to(device)
                drawn, nats, cost, chosen = (x[there] for x in (drawn, nats, cost, chosen))
                if seen is not None:
                    seen.copy_(seen[there])
                if constraint is not None:
                    state = constraint.take(state, again.numpy())
        if watch is not None:
            told = _tell(watch, drawn, nats, told, told + _agreed(drawn[:, told : step + 1], particles), particles)
        if progress is not None:
            if device.type == "cuda" and step % 32 == 31:
                torch.cuda.synchronize(device)  # else it would say what was asked for, not what is done
            much = (step + 1) / count if share is None else float(share(state).mean())
            progress(round(much * count * len(seeds)), count * len(seeds))
    drawn, nats, cost = drawn.cpu(), nats.cpu(), cost.cpu()
    _refuse_nan(nats)
    if particles > 1:
        if pick == "likeliest":
            best = nats.sum(-1).view(len(seeds), particles).argmin(-1)
        else:
            points = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])[:, None]
            best = _owners(weights.softmax(-1), points)[:, 0]
        best += particles * torch.arange(len(seeds))
        drawn, nats, cost = drawn[best], nats[best], cost[best]
        if watch is not None:
            _tell(watch, drawn, nats, told, drawn.shape[1], 1)
    # Before its last own token a row has read BOS, its prompt, and all it drew but that.
    read = ends[::particles] + ((drawn != padding_id).sum(-1) - 1).clamp(min=0)
    return Samples(drawn, nats, cost, _forgotten(read, context))


def _agreed(drawn: Tensor, particles: int) -> int:
    """How many of the first tokens, (B x particles, n), all particles of each sample have in common."""
    each = drawn.view(-1, particles, drawn.shape[1])
    return int((each == each[:, :1]).all(1).all(0).cumprod(-1).sum())


def _tell(
    watch: Callable[[Tensor, Tensor], None], drawn: Tensor, nats: Tensor, begin: int, end: int, particles: int
) -> int:
    """Give tokens `begin` to `end` of each sample to `watch`, one after the other; return `end`."""
    for step in range(begin, end):
        watch(drawn[::particles, step].cpu(), nats[::particles, step].cpu())
    return end


def _forgotten(read: Tensor, context: int | None) -> Tensor:
    """Tokens that a context has dropped, BOS left out, when so many positions were read: (B,) -> (B,)."""
    if context is None:
        return torch.zeros_like(read)
    dropped = context - context // 2  # each time it was full and one more came
    times = -(-(read - context).clamp(min=0) // dropped)
    return (times * dropped - 1).clamp(min=0)


def _refuse_nan(numbers: Tensor) -> None:
    if bool(numbers.isnan().any()):
        raise SeqpopeError(
            "the model gives no numbers (nan): its weights are damaged, its training went wrong, or its keys "
            "and values are too large for the cache's number format"
        )


def _owners(share: Tensor, points: Tensor) -> Tensor:
    """Which part of shares (..., P) points in [0, 1) fall on; one of 0 owns not even a point."""
    ends = share.cumsum(-1)
    return torch.searchsorted(ends, points * ends[..., -1:], right=True).clamp(max=share.shape[-1] - 1)


def resampled(
    weights: Tensor, generators: Sequence[torch.Generator], ended: np.ndarray | None = None
) -> Tensor | None:
    """Which particle each becomes, (B x P,); None if none changes. Log weights (B, P) that were used become 0.

    Those of samples that have `ended`, (B,) bool, stay.

    Systematic resampling where the effective number of particles, (sum w)^2 / sum w^2, is below half of them.
    """
    batch, particles = weights.shape
    rows = torch.arange(batch * particles).view(batch, particles)
    changed = False
    for b, generator in enumerate(generators):
        share = weights[b].softmax(-1)
        if (ended is not None and ended[b]) or 1 / float((share * share).sum()) >= particles / 2:
            continue
        start = torch.rand(1, generator=generator, dtype=torch.float64)
        points = (torch.arange(particles) + start) / particles
        rows[b] = b * particles + _owners(share, points)
        weights[b] = 0.0
        changed = True
    return rows.view(-1) if changed else None
