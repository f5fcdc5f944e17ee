"""Attention with PoPE and RoPE: one signature each, and the one place where a backend is chosen."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from seqpope.kernels import cartesian, reference
from seqpope.kernels.launch import DECODE_ROWS, card
from seqpope.kernels.rotation import Freqs, RotationTables, Spectrum, two_level_tables
from seqpope.kernels.scope import Scope

Backend = Literal["auto", "triton", "cartesian", "reference"]
Magnitude = Literal["softplus", "relu", "none"]
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
TRITON_MAX_HEAD_DIM = 256
WIDE_FP32_BYTES = 115_000  # of shared memory for head dimensions beyond 128 in fp32
# torch.compile of torch 2.11 cannot look into the question itself.
_AUTOCAST = frozenset(
    device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device)
)


def pope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    *,
    base: float = 10000.0,
    freqs: Freqs | None = None,
    causal: bool = True,
    query_offset: int | Tensor = 0,
    key_lengths: Tensor | None = None,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    magnitude: Magnitude = "softplus",
    backend: Backend = "auto",
) -> Tensor:
    """Attention in which magnitudes say what and phases say where (arXiv 2509.10534).

    Queries stand at positions query_offset + 0..Lq-1 and keys at 0..Lk-1; under autocast q, k and v are taken in
    its dtype. Deterministic in both directions, whatever the backend, but for SDPA's own atomics on CUDA.

    Args:
        q: (B, H, Lq, D) queries as projected, before `magnitude`.
        k: (B, Hkv, Lk, D) keys as projected; H is a multiple of Hkv, and head h reads key head h // (H / Hkv).
        v: (B, Hkv, Lk, D) values.
        delta: (H, D) phase biases in radians; or (G, H, D), each that of B / G sequences in turn (models side by
            side).
        base: frequencies are base^(-c / D), c = 0..D-1.
        freqs: (D,) frequencies in radians a position, in place of those of `base`; no gradient flows to them. A
            Spectrum's tables are kept, those of a tensor are made anew at each call.
        causal: a query sees no key behind its own position.
        query_offset: position of the first query; (B,) for one each sequence, as in batched decoding.
        key_lengths: (B,) how many of the keys are each sequence's own; what lies behind them may be anything. A
            query that sees no key gives 0.
        softmax_scale: multiplies the scores; 1 / sqrt(D) if None. On triton it goes into the queries: in float16
            softplus(q) x softmax_scale x log2 e must stay below 65,504.
        dropout_p: probability of dropping an attention weight.
        dropout_seed: which weights are dropped, a number or a (1,) int64 tensor; drawn from torch's generator of
            the device if None. The same seed drops the same weights on every device (triton and reference).
        cu_seqlens: (N + 1,) cumulative lengths of documents packed into the rows, from 0 to B x L, counted along
            the rows laid end to end; a query sees its own document alone.
        magnitude: what is made of each component of queries and keys: "softplus", or, as the paper's ablations,
            "relu" or "none" (the component itself, signed). Those two are not for triton.
        backend: "triton" (CUDA, D up to 256), "cartesian" (a dot product of twice the width for torch's SDPA),
            "reference" (the formula), or "auto": triton where it can, else cartesian.

    Returns:
        (B, H, Lq, D) in the dtype of v.

    Raises:
        ValueError: shapes do not fit each other, or the backend cannot do what is asked.
    """
    q, k, v = _autocast(q, k, v)
    scope = Scope(causal, query_offset, key_lengths, cu_seqlens)
    _check_numbers(base, softmax_scale)
    _check_pope(q, k, v, delta, scope, dropout_p, freqs, magnitude)
    k, v = _seen_by_some(k, v, scope, q.shape[2])
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    backend = _choose(backend, q, k, v, magnitude)
    if backend == "triton":
        return _triton(q, k, v, delta, base, freqs, scope, scale, dropout_p, dropout_seed)
    k, v = scope.own(k), scope.own(v)
    if delta.dim() == 3:  # each sequence its own: (B, H, D)
        delta = delta.to(torch.promote_types(delta.dtype, torch.float32))  # in which its gradients are summed
        delta = delta.repeat_interleave(q.shape[0] // delta.shape[0], 0)
    if backend == "reference":
        scores = functools.partial(reference.pope_scores, delta=delta, magnitude=magnitude)
        return _reference(scores, q, k, v, base, freqs, scope, scale, dropout_p, dropout_seed)
    _refuse_seed(dropout_seed)
    return cartesian.pope_attention(
        q, k, v, delta, base=base, freqs=freqs, scope=scope, softmax_scale=scale, dropout_p=dropout_p,
        magnitude=magnitude,
    )  # fmt: skip


def pope_attention_packed(
    qkv: Tensor,
    delta: Tensor,
    *,
    base: float = 10000.0,
    freqs: Freqs | None = None,
    causal: bool = True,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    magnitude: Magnitude = "softplus",
    backend: Backend = "auto",
) -> Tensor:
    """`pope_attention` of queries, keys and values that lie in one projection.

    The Triton kernels then write one gradient; three would be copied together before the projection's own.

    Args:
        qkv: (B, L, 3, H, D) as projected.

    Returns:
        (B, H, L, D). All else as in `pope_attention`.
    """
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be (B, L, 3, H, D), it is {tuple(qkv.shape)}")
    (qkv,) = _autocast(qkv)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if _choose(backend, q, k, v, magnitude) != "triton":
        return pope_attention(
            q, k, v, delta, base=base, freqs=freqs, causal=causal, softmax_scale=softmax_scale,
            dropout_p=dropout_p, dropout_seed=dropout_seed, cu_seqlens=cu_seqlens, magnitude=magnitude,
            backend=backend,
        )  # fmt: skip
    scope = Scope(causal, cu_seqlens=cu_seqlens)
    _check_numbers(base, softmax_scale)
    _check_pope(q, k, v, delta, scope, dropout_p, freqs, magnitude)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    return _triton(q, k, v, delta, base, freqs, scope, scale, dropout_p, dropout_seed, qkv)


def rope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    base: float = 10000.0,
    freqs: Freqs | None = None,
    causal: bool = True,
    query_offset: int | Tensor = 0,
    key_lengths: Tensor | None = None,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention with rotary position embedding (arXiv 2104.09864), pairs (c, c + D/2).

    Arguments, result and errors as in `pope_attention`, but D is even, there are D / 2 frequencies,
    base^(-2 c / D), and "triton" decodes alone: one query, as many key heads, no gradient. "auto" takes SDPA for
    all else.
    """
    q, k, v = _autocast(q, k, v)
    scope = Scope(causal, query_offset, key_lengths, cu_seqlens)
    if q.shape[-1] % 2:
        raise ValueError(f"RoPE rotates pairs: the head dimension must be even, it is {q.shape[-1]}")
    _check_numbers(base, softmax_scale)
    _check(q, k, v, scope, dropout_p, freqs, q.shape[-1] // 2)
    k, v = _seen_by_some(k, v, scope, q.shape[2])
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    decoding = _is_decoding(q, k, (q, k, v), scope, dropout_p, 1)
    if (backend == "auto" and decoding and q.is_cuda and _why_not_triton(q, k, v) is None) or backend == "triton":
        backend = _choose("triton", q, k, v)
        if not decoding:
            raise ValueError(
                "with RoPE the triton backend decodes alone: one query, no gradient, as many key heads"
            )
        return _decode(q, k, v, None, q.shape[-1] // 2, base, freqs, scope, scale)
    k, v = scope.own(k), scope.own(v)
    if backend == "reference":
        return _reference(reference.rope_scores, q, k, v, base, freqs, scope, scale, dropout_p, dropout_seed)
    if backend not in ("auto", "cartesian"):
        raise ValueError(f"backend must be auto, triton, cartesian or reference, it is {backend!r}")
    _refuse_seed(dropout_seed)
    return cartesian.rope_attention(
        q, k, v, base=base, freqs=freqs, scope=scope, softmax_scale=scale, dropout_p=dropout_p
    )


def _autocast(*tensors: Tensor) -> list[Tensor]:
    device = tensors[0].device.type
    if device not in _AUTOCAST or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors]


def _seen_by_some(k: Tensor, v: Tensor, scope: Scope, queries: int) -> tuple[Tensor, Tensor]:
    """Without the keys behind the last query: a cache may not be filled there, and 0 x nan is nan."""
    if not scope.causal or isinstance(scope.query_offset, Tensor) or scope.cu_seqlens is not None:
        return k, v
    end = scope.query_offset + queries
    return k[:, :, :end], v[:, :, :end]


def _check_numbers(base: float, scale: float | None) -> None:
    for name, value in (("base", base), ("softmax_scale", scale)):
        if isinstance(value, Tensor):
            raise ValueError(f"{name} must be a number, no gradient flows to it; it is a {type(value).__name__}")


def _check(
    q: Tensor, k: Tensor, v: Tensor, scope: Scope, dropout_p: float, freqs: Freqs | None, count: int
) -> None:
    if (
        q.dim() != 4
        or k.dim() != 4
        or k.shape != v.shape
        or q.shape[0] != k.shape[0]
        or q.shape[3] != k.shape[3]
        or k.shape[1] == 0
        or q.shape[1] % k.shape[1]
    ):
        raise ValueError(
            "expected q (B, H, Lq, D) and k, v (B, Hkv, Lk, D) with H a multiple of Hkv, "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v must be on one device, they are on {q.device}, {k.device} and {v.device}")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"there is nothing to attend: q {tuple(q.shape)}, k {tuple(k.shape)}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be in [0, 1), it is {dropout_p}")
    if freqs is not None:
        shape = (freqs.count,) if isinstance(freqs, Spectrum) else tuple(freqs.shape)
        if shape != (count,):
            raise ValueError(f"freqs must be ({count},) for a head dimension of {q.shape[3]}, it is {shape}")
    scope.check(q.shape[0], q.shape[2], k.shape[2])


def _check_pope(
    q: Tensor, k: Tensor, v: Tensor, delta: Tensor, scope: Scope, dropout_p: float, freqs: Freqs | None,
    magnitude: str,
) -> None:  # fmt: skip
    if magnitude not in reference.MAGNITUDES:
        raise ValueError(f"magnitude must be one of {', '.join(reference.MAGNITUDES)}, it is {magnitude!r}")
    _check(q, k, v, scope, dropout_p, freqs, q.shape[-1])
    *groups, heads, dim = delta.shape if delta.dim() in (2, 3) else (0, 0, 0)
    if (heads, dim) != (q.shape[1], q.shape[3]) or (groups and (groups[0] == 0 or q.shape[0] % groups[0])):
        raise ValueError(
            f"delta must be (H, D) = {(q.shape[1], q.shape[3])}, or (G, H, D) where G divides the {q.shape[0]} "
            f"sequences; it is {tuple(delta.shape)}"
        )
    if delta.device != q.device:
        raise ValueError(f"delta must be on q's device, {q.device}, it is on {delta.device}")


def _refuse_seed(dropout_seed: int | Tensor | None) -> None:
    if dropout_seed is not None:
        raise ValueError(
            "SDPA draws its own dropout: dropout_seed needs backend='triton' or 'reference'; "
            "with this backend use torch.manual_seed"
        )


def _seed_tensor(dropout_p: float, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
    if not dropout_p:
        return None
    if seed is None:
        # On the device, from its generator: no synchronisation, and a CUDA graph draws a new one each replay.
        return torch.randint(1 << 62, (1,), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        if seed.shape != (1,) or seed.dtype != torch.int64:
            raise ValueError(f"dropout_seed must be (1,) int64, it is {tuple(seed.shape)} {seed.dtype}")
        return seed.to(device)
    return torch.full((1,), seed, dtype=torch.int64, device=device)


def _reference(
    scores: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, base: float, freqs: Freqs | None,
    scope: Scope, scale: float, dropout_p: float, dropout_seed: int | Tensor | None,
) -> Tensor:  # fmt: skip
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    out = reference.softmax_attention(
        scores(q, k, base=base, freqs=freqs, query_offset=scope.query_offset),
        v,
        visible=scope.visible(q.shape[0], q.shape[2], k.shape[2], q.device),
        softmax_scale=scale,
        dropout_p=dropout_p,
        dropout_seed=_seed_tensor(dropout_p, dropout_seed, q.device),
    )
    return out.to(v.dtype)


def _why_not_triton(q: Tensor, k: Tensor, v: Tensor, magnitude: str = "softplus") -> str | None:
    """What keeps these tensors from the Triton kernels; None if nothing does."""
    if magnitude != "softplus":
        return f"its magnitudes are softplus alone, here they are {magnitude}"
    if not TRITON_INSTALLED:
        return "triton is not installed: pip install triton"
    if q.shape[-1] > TRITON_MAX_HEAD_DIM:
        return f"its head dimension goes up to {TRITON_MAX_HEAD_DIM}, here it is {q.shape[-1]}"
    if not q.dtype == k.dtype == v.dtype or v.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"q, k and v must all be float16, bfloat16 or float32, they are {q.dtype}, {k.dtype} and {v.dtype}"
    if q.is_cuda:
        if torch.version.hip is None and card(q.device).major >= 8:
            if q.dtype == torch.float32 and q.shape[-1] > 128 and card(q.device).shared < WIDE_FP32_BYTES:
                return "head dimensions beyond 128 in float32 need more shared memory than this GPU has"
            return None
        return "the GPU must be one of NVIDIA's of compute capability 8.0 or more"
    if q.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        if q.dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 products wrongly: take float16 or float32 there"
        return None
    return f"tensors must be on a CUDA device, they are on {q.device}"


def _choose(backend: Backend, q: Tensor, k: Tensor, v: Tensor, magnitude: str = "softplus") -> Backend:
    """The backend that is meant, none other than asked for."""
    if backend == "auto":
        return "triton" if q.is_cuda and _why_not_triton(q, k, v, magnitude) is None else "cartesian"
    if backend not in ("triton", "cartesian", "reference"):
        raise ValueError(f"backend must be auto, triton, cartesian or reference, it is {backend!r}")
    if backend == "triton":
        reason = _why_not_triton(q, k, v, magnitude)
        if reason is not None:
            raise ValueError(f"the triton backend cannot do this: {reason}. backend='auto' takes what can")
    return backend


def _triton(
    q: Tensor, k: Tensor, v: Tensor, delta: Tensor, base: float, freqs: Freqs | None, scope: Scope, scale: float,
    dropout_p: float, dropout_seed: int | Tensor | None, qkv: Tensor | None = None,
) -> Tensor:  # fmt: skip
    from seqpope.kernels import operators

    batch, queries = q.shape[0], q.shape[2]
    delta = delta.float()
    if delta.dim() == 2 and _is_decoding(q, k, (q, k, v, delta), scope, dropout_p, DECODE_ROWS):
        return _decode(q, k, v, delta.contiguous(), q.shape[-1], base, freqs, scope, scale)
    first = last = None
    if scope.cu_seqlens is not None:
        first, last = scope.documents(batch, queries)
    offsets, lengths, offset, tables = _standing(q, k, q.shape[-1], base, freqs, scope)
    offsets, lengths = (None if x is None else x.clamp(0, k.shape[2]).to(torch.int32) for x in (offsets, lengths))
    with torch.no_grad():
        turns = torch.cat((delta.cos(), delta.sin()), -1)
    seed = _seed_tensor(dropout_p, dropout_seed, q.device)
    rest = (turns, *tables, first, last, offsets, lengths, seed, offset, scope.causal, scale, dropout_p)
    if qkv is not None:
        return operators.pope_packed_forward(qkv, delta, *rest)[0]
    return operators.pope_forward(q, k, v, delta, *rest)[0]


def _is_decoding(
    q: Tensor, k: Tensor, learned: tuple[Tensor, ...], scope: Scope, dropout_p: float, rows: int
) -> bool:
    """Whether these are few enough queries, of no gradient, for the decoding kernels."""
    # A derivative in forward mode shows in no tensor; the operators of training say that they have none.
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in learned)
    wants_gradient |= torch.autograd.forward_ad._current_level >= 0
    few = q.shape[2] * (q.shape[1] // k.shape[1]) <= rows
    return few and not wants_gradient and not dropout_p and scope.cu_seqlens is None


def _decode(
    q: Tensor, k: Tensor, v: Tensor, delta: Tensor | None, count: int, base: float, freqs: Freqs | None,
    scope: Scope, scale: float,
) -> Tensor:  # fmt: skip
    from seqpope.kernels import operators

    offsets, lengths, offset, tables = _standing(q, k, count, base, freqs, scope)
    return operators.decode_few(q, k, v, delta, *tables, offsets, lengths, offset, scope.causal, scale)


def _standing(
    q: Tensor, k: Tensor, count: int, base: float, freqs: Freqs | None, scope: Scope
) -> tuple[Tensor | None, Tensor | None, int, RotationTables]:
    """Where sequences' queries begin and their keys end, if they differ; else where the queries begin; tables."""
    queries, keys = q.shape[2], k.shape[2]
    lengths = None if scope.key_lengths is None else _numbers(scope.key_lengths, q.device)
    if isinstance(scope.query_offset, Tensor):
        offsets, offset, reach = _numbers(scope.query_offset, q.device), 0, keys + queries
    else:
        offsets, offset, reach = None, scope.query_offset, max(scope.query_offset + queries, keys)
    return offsets, lengths, offset, two_level_tables(reach, count, base, q.device, freqs)


def _numbers(x: Tensor, device: torch.device) -> Tensor:
    # What is on the device cannot be checked without waiting for it; it is kept inside the keys at least.
    return x.to(device, torch.int64).contiguous()
