"""Which keys each query sees: causal order, where queries stand, sequences of unequal length, packed documents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FURTHEST = 1 << 27  # position: its tables are a gigabyte


@dataclass(frozen=True)
class Scope:
    """The mask of one attention call, in the terms of its caller; backends read of it what they can use.

    Args:
        causal: a query sees no key after its own position.
        query_offset: position of the first query among the keys; (B,) for one each sequence.
        key_lengths: (B,) how many keys each sequence has; None if all of them.
        cu_seqlens: (N + 1,) where documents begin, counted along the batch's rows laid end to end, from 0 to
            B x L. The end of a row ends a document too.
    """

    causal: bool = True
    query_offset: int | Tensor = 0
    key_lengths: Tensor | None = None
    cu_seqlens: Tensor | None = None

    def check(self, batch: int, queries: int, keys: int) -> None:
        """Raise ValueError if this mask does not fit B sequences of so many queries and keys."""
        for name, each in (("query_offset", self.query_offset), ("key_lengths", self.key_lengths)):
            if isinstance(each, Tensor) and (each.shape != (batch,) or each.dtype not in WHOLE):
                raise ValueError(
                    f"{name} must be whole numbers, one each sequence, ({batch},); "
                    f"it is {each.dtype} {tuple(each.shape)}"
                )
        if not isinstance(self.query_offset, Tensor | int | torch.SymInt):
            raise ValueError(
                f"query_offset must be an int or a tensor, it is a {type(self.query_offset).__name__}"
            )
        for name, each in (("key_lengths", self.key_lengths), ("cu_seqlens", self.cu_seqlens)):
            if each is not None and not isinstance(each, Tensor):
                raise ValueError(f"{name} must be a tensor, it is a {type(each).__name__}")
        if isinstance(self.query_offset, Tensor):
            if not self.causal:
                raise ValueError("query_offset for each sequence needs causal=True: without it pass one number")
        elif self.query_offset < 0:
            raise ValueError(f"query_offset must be at least 0, it is {self.query_offset}")
        elif self.query_offset + queries > FURTHEST:
            raise ValueError(f"positions go up to {FURTHEST}, query_offset is {self.query_offset}")
        elif self.causal and self.query_offset + queries > keys:
            raise ValueError(
                f"queries end at position {self.query_offset + queries}, but there are only {keys} keys: "
                "a causal query needs its own key"
            )
        if self.cu_seqlens is None:
            return
        if self.cu_seqlens.dim() != 1 or len(self.cu_seqlens) < 2 or self.cu_seqlens.dtype not in WHOLE:
            raise ValueError(
                "cu_seqlens must be whole numbers (N + 1,), N >= 1, from 0 to B x L; "
                f"it is {self.cu_seqlens.dtype} {tuple(self.cu_seqlens.shape)}"
            )
        if (
            queries != keys
            or isinstance(self.query_offset, Tensor)
            or self.query_offset
            or self.key_lengths is not None
        ):
            raise ValueError(
                "packed documents attend within themselves: with cu_seqlens, queries and keys must be of one "
                f"length (they are {queries} and {keys}), without query_offset and key_lengths"
            )

    def documents(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """First key of each token's document and the end of its keys, two (B, L) int32, counted within its row."""
        assert self.cu_seqlens is not None
        bounds = self.cu_seqlens.long()
        place = torch.arange(batch * length, device=bounds.device)
        # 1..N; 0 before the first boundary and N + 1 behind the last, should they not be 0 and B x L
        document = torch.searchsorted(bounds, place, right=True)
        row = place // length * length
        bounds = torch.cat((bounds.new_zeros(1), bounds, bounds.new_full((1,), batch * length)))
        first = torch.maximum(bounds[document], row) - row
        last = torch.minimum(bounds[document + 1], row + length) - row
        return first.view(batch, length).int(), last.view(batch, length).int()

    def own(self, x: Tensor) -> Tensor:
        """Keys or values (B, Hkv, Lk, D) with 0 behind each sequence's own: what lies there may be anything.

        A mask of the scores is not enough: 0 x nan is nan.
        """
        if self.key_lengths is None:
            return x
        behind = torch.arange(x.shape[2], device=x.device) >= self.key_lengths.to(x.device)[:, None]  # (B, Lk)
        return x.masked_fill(behind[:, None, :, None], 0.0)

    def positions(self, queries: int, device: torch.device) -> Tensor:
        """Positions of the queries: (1 or B, Lq)."""
        steps = torch.arange(queries, device=device)
        if isinstance(self.query_offset, Tensor):
            return self.query_offset.to(device)[:, None] + steps
        return (self.query_offset + steps)[None]

    def visible(self, batch: int, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """(1 or B, Lq, Lk) bool, true where a query sees a key; None if every query sees every key."""
        s = torch.arange(keys, device=device)
        seen = s <= self.positions(queries, device)[..., None] if self.causal else None
        for limit in self._limits(batch, queries, s):
            seen = limit if seen is None else seen & limit
        return seen

    def _limits(self, batch: int, length: int, s: Tensor) -> list[Tensor]:
        limits = []
        if self.key_lengths is not None:
            limits.append(s < self.key_lengths.to(s.device)[:, None, None])
        if self.cu_seqlens is not None:
            first, last = (x.to(s.device) for x in self.documents(batch, length))
            limits += [s >= first[..., None], s < last[..., None]]
        return limits
