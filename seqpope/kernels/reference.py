"""The formulas as the papers print them, slow and plain: what every kernel is compared with.

All shapes are (B, H, L, D); everything is computed in the dtype of the inputs raised to at least fp32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seqpope.kernels.rotation import frequencies


def pope_scores(q: Tensor, k: Tensor, delta: Tensor, *, base: float = 10000.0, query_offset: int = 0) -> Tensor:
    """PoPE's attention scores before scaling (arXiv 2509.10534, eq. 6).

        score(t, s) = sum_c softplus(q_tc) softplus(k_sc) cos((s - t) theta_c + delta_c)

    Args:
        q: (B, H, Lq, D) queries as projected, at positions query_offset + 0..Lq-1.
        k: (B, H, Lk, D) keys as projected, at positions 0..Lk-1.
        delta: (H, D) learned phase biases in radians.

    Returns:
        (B, H, Lq, Lk).
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    t = torch.arange(query_offset, query_offset + q.shape[-2], dtype=torch.float64, device=q.device)
    s = torch.arange(k.shape[-2], dtype=torch.float64, device=q.device)
    theta = frequencies(q.shape[-1], base).to(q.device)
    angle = (s[None, :] - t[:, None])[..., None] * theta % (2 * math.pi)  # (Lq, Lk, D)
    phase = torch.cos(angle.to(dtype) + delta.to(dtype)[:, None, None, :])  # (H, Lq, Lk, D)
    mu_q, mu_k = F.softplus(q.to(dtype)), F.softplus(k.to(dtype))
    return torch.einsum("bhtc,bhsc,htsc->bhts", mu_q, mu_k, phase)


def rope_scores(q: Tensor, k: Tensor, *, base: float = 10000.0, query_offset: int = 0) -> Tensor:
    """RoPE's attention scores before scaling (arXiv 2104.09864, eq. 16), pairs (c, c + D/2) as complex numbers.

    Shapes as in `pope_scores`; D is even.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    half = q.shape[-1] // 2
    t = torch.arange(query_offset, query_offset + q.shape[-2], dtype=torch.float64, device=q.device)
    s = torch.arange(k.shape[-2], dtype=torch.float64, device=q.device)
    angle = (t[:, None] - s[None, :])[..., None] * frequencies(half, base).to(q.device)  # (Lq, Lk, D/2)
    turn = torch.polar(torch.ones_like(angle), angle).to(complex_dtype)
    q_pairs = torch.complex(q[..., :half].to(dtype), q[..., half:].to(dtype))
    k_pairs = torch.complex(k[..., :half].to(dtype), k[..., half:].to(dtype))
    return torch.einsum("bhtc,bhsc,tsc->bhts", q_pairs, k_pairs.conj(), turn).real


def softmax_attention(
    scores: Tensor, v: Tensor, *, causal: bool = True, query_offset: int = 0, softmax_scale: float
) -> Tensor:
    """Scaled softmax over the keys at or before each query, times the values: (B, H, Lq, D)."""
    queries, keys = scores.shape[-2:]
    if causal:
        t = torch.arange(query_offset, query_offset + queries, device=scores.device)
        future = torch.arange(keys, device=scores.device)[None, :] > t[:, None]
        scores = scores.masked_fill(future, float("-inf"))
    weights = torch.softmax(scores * softmax_scale, dim=-1)
    return weights @ v.to(scores.dtype)
