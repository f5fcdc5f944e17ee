"""Attention by torch's scaled_dot_product_attention: positions are turned into queries and keys beforehand.

The proper path on a CPU, for RoPE everywhere, and for what the Triton kernels do not take.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from seqpope.kernels.reference import MAGNITUDES
from seqpope.kernels.rotation import Freqs, rotation_tables
from seqpope.kernels.scope import Scope


def pope_attention(
    q: Tensor, k: Tensor, v: Tensor, delta: Tensor, *, base: float, freqs: Freqs | None, scope: Scope,
    softmax_scale: float, dropout_p: float, magnitude: str,
) -> Tensor:  # fmt: skip
    """PoPE as a dot product of twice the width (arXiv 2509.10534, section 3)."""
    dim, mu = q.shape[-1], MAGNITUDES[magnitude]
    if q.shape[2] == 1 and dropout_p == 0 and q.device.type == "cpu":
        return _decode(q, k, v, delta, base, freqs, scope, softmax_scale, mu)
    cos_t, sin_t = _tables(scope.query_offset, q, dim, base, freqs)  # (Lq, D) or (B, 1, Lq, D)
    cos_s, sin_s = _tables(0, k, dim, base, freqs)  # (Lk, D)
    # cos and sin of (t theta - delta) by the addition theorem, each head its own: (H, Lq, D) or, with a
    # delta for each sequence, (B, H, Lq, D). On the queries, keys are the same for every head of a group.
    cos_delta, sin_delta = delta.float().cos()[..., None, :], delta.float().sin()[..., None, :]
    cos_q, sin_q = cos_t * cos_delta + sin_t * sin_delta, sin_t * cos_delta - cos_t * sin_delta
    mu_q, mu_k = mu(q.float()), mu(k.float())
    q_polar = torch.cat((mu_q * cos_q, mu_q * sin_q), dim=-1).to(v.dtype)  # (B, H, Lq, 2D)
    k_polar = torch.cat((mu_k * cos_s, mu_k * sin_s), dim=-1).to(v.dtype)  # (B, Hkv, Lk, 2D)
    return sdpa(q_polar, k_polar, v, scope, softmax_scale, dropout_p)


def _decode(
    q: Tensor, k: Tensor, v: Tensor, delta: Tensor, base: float, freqs: Freqs | None, scope: Scope, scale: float,
    mu: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """One query: keys stay D wide, each frequency and position has one weight for them."""
    (batch, heads, _, dim), (key_heads, keys) = q.shape, k.shape[1:3]
    group = heads // key_heads
    cos_t, sin_t = _tables(scope.query_offset, q, dim, base, freqs)  # (1, D) or (B, 1, 1, D)
    cos_s, sin_s = _tables(0, k, dim, base, freqs)  # (Lk, D)
    cos_delta, sin_delta = delta.float().cos()[..., None, :], delta.float().sin()[..., None, :]
    mu_q = mu(q.float()) * scale
    q_cos = mu_q * (cos_t * cos_delta + sin_t * sin_delta)  # (B, H, 1, D)
    q_sin = mu_q * (sin_t * cos_delta - cos_t * sin_delta)
    mu_k = mu(k.float())[:, :, None]  # (B, Hkv, 1, Lk, D)
    weight = (q_cos * cos_s).view(batch, key_heads, group, keys, dim)
    q_sin = q_sin.view(batch, key_heads, group, 1, dim)
    if torch.is_grad_enabled():
        weight = torch.addcmul(weight, q_sin, sin_s) * mu_k
    else:  # in place: fresh memory for a long cache costs more than what is computed in it
        weight.addcmul_(q_sin, sin_s).mul_(mu_k)
    scores = weight.sum(-1)  # (B, Hkv, H / Hkv, Lk)
    visible = scope.visible(batch, 1, keys, q.device)
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None], float("-inf"))
    shares = scores.softmax(-1)
    if scope.key_lengths is not None:
        shares = shares.nan_to_num(0.0)  # of a query that sees no key
    return (shares.to(v.dtype) @ v).view(batch, heads, 1, dim)


def rope_attention(
    q: Tensor, k: Tensor, v: Tensor, *, base: float, freqs: Freqs | None, scope: Scope, softmax_scale: float,
    dropout_p: float,
) -> Tensor:  # fmt: skip
    """RoPE, pairs (c, c + D/2) turned by their position's angle (arXiv 2104.09864)."""
    half = q.shape[-1] // 2
    q_turned = _turn(q, *_tables(scope.query_offset, q, half, base, freqs)).to(v.dtype)
    k_turned = _turn(k, *_tables(0, k, half, base, freqs)).to(v.dtype)
    return sdpa(q_turned, k_turned, v, scope, softmax_scale, dropout_p)


def _tables(start: int | Tensor, x: Tensor, count: int, base: float, freqs: Freqs | None) -> tuple[Tensor, Tensor]:
    cosine, sine = rotation_tables(start, x.shape[-2], count, base, x.device, freqs)
    if cosine.dim() == 3:
        return cosine[:, None], sine[:, None]
    return cosine, sine


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)  # each (B, H, L, D/2)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def sdpa(q: Tensor, k: Tensor, v: Tensor, scope: Scope, scale: float, dropout_p: float) -> Tensor:
    """torch's SDPA on queries and keys of any width; every backend but one wants values as wide as the keys."""
    (batch, heads, queries, wide), keys, width = q.shape, k.shape[-2], v.shape[-1]
    if scale <= 0:  # torch's kernels scale after masking, and -inf x 0 is nan
        q, scale = q * scale, 1.0
    if heads != k.shape[1]:  # enable_gqa would leave fewer backends to choose from
        k, v = (x.repeat_interleave(heads // k.shape[1], dim=1) for x in (k, v))
    if wide != width:
        v = F.pad(v, (0, wide - width))
    mask, is_causal, empty = None, False, None
    offset = scope.query_offset
    # Branches, not boolean expressions: under torch.compile lengths may be symbols, SDPA wants a plain bool.
    if scope.key_lengths is not None or scope.cu_seqlens is not None or isinstance(offset, Tensor):
        visible = scope.visible(batch, queries, keys, q.device)
        assert visible is not None
        mask = visible[:, None]  # (1 or B, 1, Lq, Lk)
        if scope.key_lengths is not None:
            empty = ~mask.any(-1, keepdim=True)
            mask = mask | empty
    elif not scope.causal:
        pass
    elif queries == 1:
        k, v = k[..., : offset + 1, :], v[..., : offset + 1, :]
    elif offset == 0 and queries == keys:
        is_causal = True
    else:
        # SDPA's own causal mask is aligned to the first key, which is wrong for queries that start later.
        mask = scope.visible(batch, queries, keys, q.device)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale
    )[..., :width]
    return out if empty is None else out.masked_fill(empty, 0.0)
