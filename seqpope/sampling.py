"""Prefill, decode, choose: token ids in, token ids out. Knows no domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqpope.errors import SeqpopeError
from seqpope.model.cache import KeyValueCache
from seqpope.model.transformer import Transformer


@dataclass
class SamplingConfig:
    """How the next token is chosen.

    Args:
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the likeliest tokens that together reach this probability.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf") or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise SeqpopeError(
                "expected temperature >= 0, top_k >= 0 and 0 < top_p <= 1, they are "
                f"{self.temperature}, {self.top_k}, {self.top_p}"
            )


def next_distribution(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Probabilities of the next token after temperature, top-k and top-p: (B, V) -> (B, V) fp64."""
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
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


@torch.inference_mode()
def sample(
    model: Transformer,
    prompt: Tensor,
    count: int,
    *,
    seeds: list[int],
    padding_id: int,
    config: SamplingConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw `count` tokens after a prompt, padding standing in for BOS before it.

    Each sample has its own generator, so that what a seed draws does not depend on what is drawn beside it.
    Padding itself is never drawn.

    Args:
        prompt: (L,) token ids, possibly none, shared by all samples.
        seeds: one for each sample (B of them).
        progress: called with tokens drawn and tokens in all.

    Returns:
        ids (B, count), and their NLL under the untouched model in nats (B, count).
    """
    config = config or SamplingConfig()
    device = next(model.parameters()).device
    batch = len(seeds)
    start = torch.full((1,), padding_id, dtype=torch.long)
    ids = torch.cat((start, prompt.long().cpu())).repeat(batch, 1).to(device)  # (B, 1 + L)
    cache = KeyValueCache(model.config, batch, ids.shape[1] + count, device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = torch.empty(batch, count, dtype=torch.long)
    nats = torch.empty(batch, count)
    for step in range(count):
        logits = model(ids, cache, last_only=True)[:, 0].float().cpu()  # (B, V)
        allowed = logits.clone()
        allowed[:, padding_id] = float("-inf")
        cumulative = next_distribution(allowed, config).cumsum(-1)
        # One uniform number a token and sample, inverted through the distribution.
        uniform = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        chosen = (cumulative <= uniform * cumulative[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
        drawn[:, step] = chosen
        nats[:, step] = -logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        ids = chosen[:, None].to(device)
        if progress is not None:
            progress(step + 1, count)
    return drawn, nats
