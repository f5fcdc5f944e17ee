"""Models and constraints of few tokens, for tests of what is drawn."""

from __future__ import annotations

import numpy as np
import torch
from stores import VOCABULARY

from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer

NO_PROMPT = torch.zeros(0, dtype=torch.long)
PROMPT = torch.tensor([3, 1, 4, 1, 5])
PROMPTS = [
    torch.tensor([3, 1, 4, 1, 5]),
    torch.zeros(0, dtype=torch.long),
    torch.tensor([2, 2]),
    torch.arange(1, 9),
]


def make_model(position="pope", seed=0, scale=8.0):
    torch.manual_seed(seed)
    model = Transformer(VOCABULARY, position, ModelConfig(width=16, layers=2, heads=2)).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight *= 20
            block.attention.out.weight *= 10
        model.embedding.weight *= scale
    return model


class FixedModel(torch.nn.Module):
    """Always the same logits: what is drawn follows a distribution that is known."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.as_tensor(logits))
        self.config = ModelConfig(width=2, layers=1, heads=1)

        self.vocabulary_size = self.logits.shape[-1]

    def forward(self, ids, cache, *, last_only, ends=None):
        return self.logits.expand(ids.shape[0], 1, -1)


class Alternate:
    """Even tokens after odd ones, and odd ones after even ones; the state is the last token."""

    def begin(self, prompts, count):
        return np.array([prompt[-1] if len(prompt) else 0 for prompt in prompts])

    def allowed(self, state):
        return (np.arange(VOCABULARY)[None] + state[:, None]) % 2 == 1

    def done(self, state):
        return np.zeros(len(state), bool)

    def advance(self, state, tokens):
        return tokens.copy()

    def take(self, state, rows):
        return state[rows]


class Ending:
    """All that is drawn is free, but the last token must be 1."""

    def begin(self, prompts, count):
        return np.full(len(prompts), count)

    def allowed(self, state):
        last = state[:, None] == 1
        return ~last | (np.arange(VOCABULARY)[None] == 1)

    def done(self, state):
        return np.zeros(len(state), bool)

    def advance(self, state, tokens):
        return state - 1

    def take(self, state, rows):
        return state[rows]
