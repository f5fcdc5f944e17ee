"""Attention with linear biases. A comparison, not a fast path: torch's SDPA with the biases written out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqpope.kernels.scope import Scope

BLOCK = 1024  # queries whose biases are written out at once: (H, BLOCK, Lk) and never (H, Lq, Lk)


def alibi_slopes(heads: int) -> Tensor:
    """Slope of each head, (H,) fp64: 2^(-8 h / H), h = 1..H (arXiv 2108.12409, section 3).

    If H is no power of two: those of the power of two below, then every second one of the power above, as in
    the authors' code.
    """
    below = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * h / below) for h in range(1, below + 1)]
    slopes += [2.0 ** (-8 * h / (2 * below)) for h in range(1, 2 * below, 2)][: heads - below]
    return torch.tensor(slopes, dtype=torch.float64)


def alibi_attention(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, *, query_offset: int | Tensor = 0, dropout_p: float = 0.0
) -> Tensor:
    """Causal attention whose scores lose slope x distance (arXiv 2108.12409, equation of section 3).

    Slow beside RoPE and PoPE: SDPA's flash kernels take no bias, and all is fp32 whatever comes in, since bf16
    could not tell far distances apart. Memory grows with H x BLOCK x Lk.

    Args:
        q: (B, H, Lq, D).
        k: (B, H, Lk, D).
        v: (B, H, Lk, D).
        slopes: (H,), no gradient flows to them.
        query_offset: position of the first query; (B,) for one each sequence.
        dropout_p: probability of dropping an attention weight.

    Returns:
        (B, H, Lq, D) in the dtype of v.

    Raises:
        ValueError: shapes do not fit each other.
    """
    (batch, heads, queries, dim), keys = q.shape, k.shape[2]
    if k.shape != v.shape or k.shape != (batch, heads, keys, dim) or slopes.shape != (heads,):
        raise ValueError(
            "expected q (B, H, Lq, D), k and v (B, H, Lk, D) and slopes (H,), "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, slopes {tuple(slopes.shape)}"
        )
    scope = Scope(True, query_offset)
    scope.check(batch, queries, keys)
    slopes = slopes.detach().to(q.device, torch.float32)[:, None, None]  # (H, 1, 1)
    positions, places = scope.positions(queries, q.device), torch.arange(keys, device=q.device)
    blocks = []
    with torch.autocast(q.device.type, enabled=False):
        for start in range(0, queries, BLOCK):
            end = min(start + BLOCK, queries)
            seen = keys if isinstance(query_offset, Tensor) else query_offset + end
            distance = (positions[:, start:end, None] - places[:seen])[:, None]  # (1 or B, 1, block, seen)
            bias = (-slopes * distance).masked_fill(distance < 0, float("-inf"))  # (1 or B, H, block, seen)
            rest = (k[:, :, :seen].float(), v[:, :, :seen].float())
            blocks.append(
                F.scaled_dot_product_attention(
                    q[:, :, start:end].float(), *rest, attn_mask=bias, dropout_p=dropout_p
                )
            )
    return torch.cat(blocks, 2).to(v.dtype)
