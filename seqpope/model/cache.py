"""The key-value cache: an argument of the transformer's forward, never state of a module."""

from __future__ import annotations

import torch
from torch import Tensor

from seqpope.model.config import ModelConfig


class KeyValueCache:
    """Keys and values of everything read so far, preallocated: per layer two (B, H, max_length, D).

    Keys are stored as projected, before any encoding of position, so that a cache is as large for PoPE as
    for RoPE, and may be moved: encodings see only how far apart a query and a key stand. `length` positions are
    filled in the longest sequence; `lengths` (B,) says it of each, and is None while all are alike. `dtype` may be
    narrower than the model's: attention is then computed from what is stored.

    Once settled, all shapes and addresses stay as they are, so that a CUDA graph of one step serves for all.
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
        self.lengths: Tensor | None = None
        self.settled = False

    def settle(self) -> None:
        """From now on `lengths` stays at one address, and `extend` hands out everything, filled or not."""
        if self.lengths is None:
            self.lengths = torch.full(self.keys.shape[1:2], self.length, device=self.keys.device)
        self.settled = True

    @property
    def position(self) -> int | Tensor:
        """Where the next token stands: one number, or (B,) if sequences differ."""
        return self.length if self.lengths is None else self.lengths

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values (B, H, L, D) behind the filled part; return all of them.

        Where sequences differ, what lies behind the end of a shorter one is none of its own: attend with
        `position`. `length` moves only when every layer has written: the transformer calls `advance`.

        Raises:
            ValueError: the cache is full.
        """
        end = self.length + k.shape[-2]
        if end > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} positions, {end} are needed: allocate a longer one"
            )
        if self.lengths is None:
            self.keys[layer, :, :, self.length : end] = k
            self.values[layer, :, :, self.length : end] = v
        else:
            places = self.lengths[:, None]
            if k.shape[-2] > 1:
                places = places + torch.arange(k.shape[-2], device=k.device)  # (B, L)
            places = places[:, None, :, None].expand(k.shape)
            self.keys[layer].scatter_(2, places, k.to(self.keys.dtype))
            self.values[layer].scatter_(2, places, v.to(self.values.dtype))
        if self.settled:
            return self.keys[layer], self.values[layer]
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` new positions as filled."""
        self.length += count
        if self.lengths is not None:
            self._set(self.lengths + count)

    def cut(self, lengths: Tensor) -> None:
        """Keep the first lengths[b] positions of sequence b alone: what was read behind them was padding."""
        self.length = int(lengths.max())
        alike = bool((lengths == self.length).all())
        self.lengths = None if alike else lengths.to(self.keys.device, torch.long)

    def begin_as(self, one: KeyValueCache) -> None:
        """Have every sequence of this empty cache begin as the only one of another."""
        for each, same in ((self.keys, one.keys), (self.values, one.values)):
            each[..., : one.length, :] = same[..., : one.length, :]
        self.length = one.length

    def keep_last(self, count: int, over: int | None = None) -> None:
        """Forget all but the last `count` positions of each sequence that has more than `over`; they move to the
        front.

        `over` is `count` if None. What a sequence forgets does not depend on the others.
        """
        over = count if over is None else over
        if self.length <= over:
            return
        if self.lengths is None:
            for each in (self.keys, self.values):
                each[..., :count, :] = each[..., self.length - count : self.length, :].clone()
            self.length = count
            return
        first = torch.where(self.lengths > over, self.lengths - count, 0)  # (B,)
        places = (first[:, None] + torch.arange(self.length, device=first.device)).clamp(max=self.length - 1)
        rows = torch.arange(len(first), device=first.device)[:, None]
        for each in (self.keys, self.values):
            for layer in each:
                layer[:, :, : self.length] = layer[rows, :, places].transpose(1, 2)
        self._set(self.lengths - first)
        self.length = int(self.lengths.max())

    def select(self, rows: Tensor) -> None:
        """Sequence b becomes what sequence rows[b] was, (B,).

        Only what is filled of those that become another is copied; with rows on the host nothing is waited for.
        """
        changed = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        to, source = changed.to(self.keys.device), rows[changed].to(self.keys.device)
        for each in (self.keys, self.values):
            each[:, to, :, : self.length] = each[:, source, :, : self.length]
        if self.lengths is not None:
            self._set(self.lengths[rows.to(self.keys.device)])

    def _set(self, lengths: Tensor) -> None:
        if self.settled:
            assert self.lengths is not None
            self.lengths.copy_(lengths)
        else:
            self.lengths = lengths
