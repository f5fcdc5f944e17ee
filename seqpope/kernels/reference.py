"""The formulas as the papers print them, slow and plain: what every kernel is compared with.

Everything is computed in the dtype of the inputs raised to at least fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from seqpope.kernels.rotation import Freqs, theta_of

MAGNITUDES: dict[str, Callable[[Tensor], Tensor]] = {  # what PoPE makes of queries and keys as projected
    "softplus": F.softplus,
    "relu": F.relu,
    "none": lambda x: x,  # signed: no polar form any more, the paper's ablation "no softplus"
}


def pope_scores(
    q: Tensor,
    k: Tensor,
    delta: Tensor,
    *,
    base: float = 10000.0,
    freqs: Freqs | None = None,
    query_offset: int | Tensor = 0,
    magnitude: str = "softplus",
) -> Tensor:
    """PoPE's attention scores before scaling (arXiv 2509.10534, eq. 6).

        score(t, s) = sum_c mu(q_tc) mu(k_sc) cos((s - t) theta_c + delta_c), mu = softplus in the paper

    Args:
        q: (B, H, Lq, D) queries as projected, at positions query_offset + 0..Lq-1.
        k: (B, H, Lk, D) keys as projected, at positions 0..Lk-1.
        delta: (H, D) learned phase biases in radians; (B, H, D) for each sequence its own.
        freqs: (D,) theta in radians a position, in place of base^(-c / D).
        query_offset: one for all sequences or (B,).
        magnitude: mu, a key of MAGNITUDES.

    Returns:
        (B, H, Lq, Lk).
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    distance = _distances(q, k, query_offset)  # (1 or B, Lq, Lk)
    theta = theta_of(q.shape[-1], base, freqs, q.device)
    angle = distance[..., None] * theta % (2 * math.pi)  # (1 or B, Lq, Lk, D)
    phase = torch.cos(angle.to(dtype)[:, None] + delta.to(dtype)[..., None, None, :])  # (1 or B, H, Lq, Lk, D)
    mu = MAGNITUDES[magnitude]
    mu_q, mu_k = mu(q.to(dtype)), mu(k.to(dtype))
    return torch.einsum("bhtc,bhsc,bhtsc->bhts", mu_q, mu_k, phase.expand(q.shape[0], -1, -1, -1, -1))


def rope_scores(
    q: Tensor, k: Tensor, *, base: float = 10000.0, freqs: Freqs | None = None, query_offset: int | Tensor = 0
) -> Tensor:
    """RoPE's attention scores before scaling (arXiv 2104.09864, eq. 16), pairs (c, c + D/2) as complex numbers.

    Arguments as in `pope_scores`; D is even, and there are D / 2 frequencies.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    half = q.shape[-1] // 2
    theta = theta_of(half, base, freqs, q.device)
    angle = -_distances(q, k, query_offset)[..., None] * theta  # (1 or B, Lq, Lk, D/2)
    turn = torch.polar(torch.ones_like(angle), angle).to(complex_dtype)
    q_pairs = torch.complex(q[..., :half].to(dtype), q[..., half:].to(dtype))
    k_pairs = torch.complex(k[..., :half].to(dtype), k[..., half:].to(dtype))
    return torch.einsum("bhtc,bhsc,btsc->bhts", q_pairs, k_pairs.conj(), turn.expand(q.shape[0], -1, -1, -1)).real


def _distances(q: Tensor, k: Tensor, query_offset: int | Tensor) -> Tensor:
    """s - t, (1 or B, Lq, Lk) fp64."""
    t = torch.arange(q.shape[-2], dtype=torch.float64, device=q.device)
    t = query_offset[:, None] + t if isinstance(query_offset, Tensor) else (query_offset + t)[None]
    return torch.arange(k.shape[-2], dtype=torch.float64, device=q.device) - t[..., None]


def softmax_attention(
    scores: Tensor,
    v: Tensor,
    *,
    visible: Tensor | None,
    softmax_scale: float,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """Scaled softmax over the keys that each query sees, times the values: (B, H, Lq, D).

    Args:
        scores: (B, H, Lq, Lk).
        v: (B, H, Lk, D).
        visible: (1 or B, Lq, Lk) bool; None if everything is. A query that sees nothing gives 0.
        dropout_seed: (1,) int64, needed if dropout_p > 0.
    """
    scores = scores * softmax_scale
    if visible is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        empty = ~visible.any(-1)[:, None, :, None]  # softmax of nothing is nan, and so would be its gradient
        scores = scores.masked_fill(~visible[:, None], float("-inf")).masked_fill(empty, 0.0)
        weights = torch.softmax(scores, dim=-1).masked_fill(empty, 0.0)
    if dropout_p:
        assert dropout_seed is not None
        kept = dropout_mask(dropout_seed, weights.shape, dropout_p)
        weights = torch.where(kept, weights / (1 - dropout_p), 0.0)
    return weights @ v.to(scores.dtype)


def dropout_mask(seed: Tensor, shape: torch.Size | tuple[int, int, int, int], p: float) -> Tensor:
    """Which attention weights (B, H, Lq, Lk) stay: a hash of (seed, sequence and head, query, key).

    A counter-based generator: a mask depends on where a weight stands, not on how a kernel walks over them, so
    the backward pass makes it anew. Each query row has two random words; key s of the row is the counter
    s x 2^32 / golden ratio + word_1, spread by MurmurHash3's finaliser with word_2 mixed in half way.

    Args:
        seed: (1,) int64.
        p: probability of dropping, rounded to a multiple of 2^-31.
    """
    batch, heads, queries, keys = shape
    golden, word = 0x9E3779B9, 0xFFFFFFFF

    def mix(x: Tensor) -> Tensor:
        x = (x ^ (x >> 16)) * 0x85EBCA6B & word
        x = (x ^ (x >> 13)) * 0xC2B2AE35 & word
        return x ^ (x >> 16)

    low = mix((seed & word) + golden & word)  # first of all: seeds 1 and 2 must not share rows in another order
    high = mix((seed >> 32) & word ^ low)
    rows = torch.arange(queries, device=seed.device)
    pair = torch.arange(batch * heads, device=seed.device)[:, None]
    first = mix((mix(rows ^ low) + (pair * golden & word) & word) ^ high)[..., None]  # (B H, Lq, 1)
    second = mix(first + golden & word)
    x = torch.arange(keys, device=seed.device) * golden + first & word
    x = (x ^ (x >> 16)) * 0x85EBCA6B & word ^ second
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & word
    x = x ^ (x >> 16)
    return ((x >> 1) >= round(p * (1 << 31))).view(batch, heads, queries, keys)
