"""The key-value cache: an argument of the transformer's forward, never state of a module."""

from __future__ import annotations

import torch
from torch import Tensor

from seqpope.model.config import ModelConfig


class KeyValueCache:
    """Keys and values of everything read so far, preallocated: per layer two (B, H, max_length, D).

    Keys are stored as projected, before any encoding of position, so that a cache is as large for PoPE as
    for RoPE. `length` positions are filled.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.layers, batch, config.heads, max_length, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
        self.max_length = max_length

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values (B, H, L, D) behind the filled part; return all of them.

        `length` moves only when every layer has written: the transformer calls `advance`.

        Raises:
            ValueError: the cache is full.
        """
        end = self.length + k.shape[-2]
        if end > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} positions, {end} are needed: allocate a longer one"
            )
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` new positions as filled."""
        self.length += count
