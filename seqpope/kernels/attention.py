"""Attention with PoPE and RoPE: one signature, the backend chosen in one place.

`cartesian` writes PoPE as a dot product of twice the width (arXiv 2509.10534, section 3) and hands it to
torch's scaled_dot_product_attention; `reference` is the plain formula.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from seqpope.kernels import reference
from seqpope.kernels.rotation import rotation_tables

Backend = Literal["auto", "cartesian", "reference"]


def pope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    *,
    base: float = 10000.0,
    causal: bool = True,
    query_offset: int = 0,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Causal attention in which magnitudes say what and phases say where.

    Args:
        q: (B, H, Lq, D) queries as projected, before softplus, at positions query_offset + 0..Lq-1.
        k: (B, H, Lk, D) keys as projected, at positions 0..Lk-1.
        v: (B, H, Lk, D) values.
        delta: (H, D) phase biases in radians.
        softmax_scale: multiplies the scores; 1 / sqrt(D) if None.
        dropout_p: probability of dropping an attention weight.

    Returns:
        (B, H, Lq, D) in the dtype of v.

    Raises:
        ValueError: shapes do not fit each other, or the backend cannot do what is asked.
    """
    _check(q, k, v, query_offset, causal)
    if delta.shape != (q.shape[1], q.shape[3]):
        raise ValueError(f"delta must be (H, D) = {(q.shape[1], q.shape[3])}, it is {tuple(delta.shape)}")
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if backend == "reference":
        if dropout_p:
            raise ValueError("the reference backend has no dropout: pass dropout_p=0")
        scores = reference.pope_scores(q, k, delta, base=base, query_offset=query_offset)
        out = reference.softmax_attention(scores, v, causal=causal, query_offset=query_offset, softmax_scale=scale)
        return out.to(v.dtype)
    if backend not in ("auto", "cartesian"):
        raise ValueError(f"backend must be auto, cartesian or reference, it is {backend!r}")
    dim = q.shape[-1]
    cos_t, sin_t = rotation_tables(query_offset, q.shape[-2], dim, base, q.device)  # (Lq, D)
    cos_s, sin_s = rotation_tables(0, k.shape[-2], dim, base, k.device)  # (Lk, D)
    # cos and sin of (s theta + delta) by the addition theorem, each head its own: (H, Lk, D)
    cos_delta, sin_delta = delta.float().cos()[:, None], delta.float().sin()[:, None]
    cos_k, sin_k = cos_s * cos_delta - sin_s * sin_delta, sin_s * cos_delta + cos_s * sin_delta
    mu_q, mu_k = F.softplus(q.float()), F.softplus(k.float())
    q_polar = torch.cat((mu_q * cos_t, mu_q * sin_t), dim=-1).to(v.dtype)  # (B, H, Lq, 2D)
    k_polar = torch.cat((mu_k * cos_k, mu_k * sin_k), dim=-1).to(v.dtype)  # (B, H, Lk, 2D)
    return _attend(q_polar, k_polar, v, causal, query_offset, scale, dropout_p)


def rope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    base: float = 10000.0,
    causal: bool = True,
    query_offset: int = 0,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Causal attention with rotary position embedding (arXiv 2104.09864), pairs (c, c + D/2).

    Arguments, result and errors as in `pope_attention`; D must be even.
    """
    _check(q, k, v, query_offset, causal)
    if q.shape[-1] % 2:
        raise ValueError(f"RoPE rotates pairs: the head dimension must be even, it is {q.shape[-1]}")
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if backend == "reference":
        if dropout_p:
            raise ValueError("the reference backend has no dropout: pass dropout_p=0")
        scores = reference.rope_scores(q, k, base=base, query_offset=query_offset)
        out = reference.softmax_attention(scores, v, causal=causal, query_offset=query_offset, softmax_scale=scale)
        return out.to(v.dtype)
    if backend not in ("auto", "cartesian"):
        raise ValueError(f"backend must be auto, cartesian or reference, it is {backend!r}")
    half = q.shape[-1] // 2
    tables_t = rotation_tables(query_offset, q.shape[-2], half, base, q.device)
    tables_s = rotation_tables(0, k.shape[-2], half, base, k.device)
    q_turned, k_turned = _turn(q, *tables_t).to(v.dtype), _turn(k, *tables_s).to(v.dtype)
    return _attend(q_turned, k_turned, v, causal, query_offset, scale, dropout_p)


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)  # each (B, H, L, D/2)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def _check(q: Tensor, k: Tensor, v: Tensor, query_offset: int, causal: bool) -> None:
    if q.dim() != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            "expected q (B, H, Lq, D) and k, v (B, H, Lk, D), "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if causal and query_offset + q.shape[-2] > k.shape[-2]:
        raise ValueError(
            f"queries end at position {query_offset + q.shape[-2]}, but there are only {k.shape[-2]} keys: "
            "a causal query needs its own key"
        )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, query_offset: int, scale: float, dropout_p: float
) -> Tensor:
    """torch's SDPA on queries and keys of any width; every backend but one wants values as wide as the keys."""
    queries, keys, width = q.shape[-2], k.shape[-2], v.shape[-1]
    if q.shape[-1] != width:
        v = F.pad(v, (0, q.shape[-1] - width))
    mask, is_causal = None, False
    # Branches, not boolean expressions: under torch.compile lengths may be symbols, SDPA wants a plain bool.
    if not causal:
        pass
    elif queries == 1:
        k, v = k[..., : query_offset + 1, :], v[..., : query_offset + 1, :]
    elif query_offset == 0 and queries == keys:
        is_causal = True
    else:
        # SDPA's own causal mask is aligned to the first key, which is wrong for queries that start later.
        t = torch.arange(query_offset, query_offset + queries, device=q.device)
        mask = torch.arange(keys, device=q.device)[None, :] <= t[:, None]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale
    )
    return out[..., :width]
