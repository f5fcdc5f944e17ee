"""Tiny models of DNA, untrained but opinionated, and random genomes."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache

import numpy as np
import torch

from seqpope.checkpoint import CheckpointInfo
from seqpope.domains.genome.tokenizer import BaseTokenizer, SixMerTokenizer
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer

torch.set_num_threads(1)  # models this small only wait for each other


def tiny_model(
    k: int = 6, position: str = "pope", length: int = 16, seed: int = 0
) -> tuple[Transformer, CheckpointInfo]:
    """A model with weights large enough that contexts and bases matter, and what its checkpoint would say."""
    tokenizer = SixMerTokenizer() if k == 6 else BaseTokenizer()
    config = ModelConfig(width=16, layers=2, heads=2)
    torch.manual_seed(seed)
    model = Transformer(tokenizer.vocabulary_size, position, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12 if parameter.dim() > 1 else 1)
    info = CheckpointInfo(
        domain="genome",
        dataset="genome",
        position=position,
        vocabulary_size=tokenizer.vocabulary_size,
        padding_id=tokenizer.padding_id,
        length=length,
        model=asdict(config),
        tokenizer=tokenizer.specification,
        fingerprint=tokenizer.fingerprint,
    )
    return model.eval(), info


@cache
def shared_model(k: int = 6, length: int = 16) -> tuple[Transformer, CheckpointInfo]:
    """One of them for all tests that leave it as it is."""
    return tiny_model(k, length=length)


def random_bases(count: int, seed: int = 0) -> np.ndarray:
    """(count,) codes 1 to 4."""
    return np.random.default_rng(seed).integers(1, 5, count).astype(np.uint8)
