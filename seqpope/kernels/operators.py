"""The Triton kernels as torch operators: visible to autograd, torch.compile, CUDA graphs and opcheck.

Defined with torch.library.Library, not with its decorator custom_op, whose wrappers look through every argument in
Python at every call: with torch 2.11 they cost half a millisecond a call, more than the kernels of a small model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from seqpope.kernels import decode, flash
from seqpope.kernels.rotation import RotationTables

_library = torch.library.Library("seqpope", "FRAGMENT")
_PROBLEM = (
    "Tensor turns, Tensor coarse, Tensor fine, Tensor? first, Tensor? last, Tensor? offsets, Tensor? lengths, "
    "Tensor? seed, SymInt offset, bool causal, float scale, float dropout_p"
)
_library.define(f"pope_attention(Tensor q, Tensor k, Tensor v, Tensor delta, {_PROBLEM}) -> (Tensor, Tensor)")
_library.define(
    "pope_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor delta, Tensor out, Tensor logsum, "
    f"{_PROBLEM}) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(f"pope_attention_packed(Tensor qkv, Tensor delta, {_PROBLEM}) -> (Tensor, Tensor)")
_library.define(
    f"pope_attention_packed_backward(Tensor grad, Tensor qkv, Tensor delta, Tensor out, Tensor logsum, {_PROBLEM})"
    " -> (Tensor, Tensor)"
)
_library.define(
    "decode(Tensor q, Tensor k, Tensor v, Tensor? delta, Tensor coarse, Tensor fine, Tensor? offsets, "
    "Tensor? lengths, SymInt offset, bool causal, float scale) -> Tensor"
)
pope_forward = torch.ops.seqpope.pope_attention.default
pope_backward = torch.ops.seqpope.pope_attention_backward.default
pope_packed_forward = torch.ops.seqpope.pope_attention_packed.default
pope_packed_backward = torch.ops.seqpope.pope_attention_packed_backward.default
decode_few = torch.ops.seqpope.decode.default


@contextlib.contextmanager
def _device_of(x: Tensor) -> Iterator[None]:
    # Triton launches on the current device, which need not be that of the tensors.
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            yield
    else:
        yield


def _problem(turns: Tensor, coarse: Tensor, fine: Tensor, *rest: Any) -> flash.Problem:
    return flash.Problem(turns, RotationTables(coarse, fine), *rest)


def _forward(q: Tensor, k: Tensor, v: Tensor, delta: Tensor, *problem: Any) -> tuple[Tensor, Tensor]:
    """Output (B, H, Lq, D) and log2 of the softmax sums."""
    with _device_of(q):
        return flash.attention_forward(q, k, v, _problem(*problem))


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, delta: Tensor, out: Tensor, logsum: Tensor, *problem: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv and ddelta."""
    gradients = flash.like_tokens(q), flash.like_tokens(k), flash.like_tokens(v)
    with _device_of(q):
        ddelta = flash.attention_backward(grad, q, k, v, out, logsum, _problem(*problem), gradients)
    return *gradients, ddelta


def _packed_forward(qkv: Tensor, delta: Tensor, *problem: Any) -> tuple[Tensor, Tensor]:
    """The same of a projection (B, L, 3, H, D)."""
    with _device_of(qkv):
        return flash.attention_forward(*flash.unpack(qkv), _problem(*problem))


def _packed_backward(
    grad: Tensor, qkv: Tensor, delta: Tensor, out: Tensor, logsum: Tensor, *problem: Any
) -> tuple[Tensor, Tensor]:
    """dqkv (B, L, 3, H, D) and ddelta."""
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    with _device_of(qkv):
        ddelta = flash.attention_backward(
            grad, *flash.unpack(qkv), out, logsum, _problem(*problem), flash.unpack(dqkv)
        )
    return dqkv, ddelta


def _decode(
    q: Tensor, k: Tensor, v: Tensor, delta: Tensor | None, coarse: Tensor, fine: Tensor, *rest: Any
) -> Tensor:
    """Output (B, H, Lq, D) of a few queries against a cache, RoPE's without delta; no gradient."""
    with _device_of(q):
        return decode.decode_attention(q, k, v, delta, RotationTables(coarse, fine), *rest)


for _name, _kernel in (
    ("pope_attention", _forward),
    ("pope_attention_backward", _backward),
    ("pope_attention_packed", _packed_forward),
    ("pope_attention_packed_backward", _packed_backward),
    ("decode", _decode),
):
    _library.impl(_name, _kernel, "CUDA")
    _library.impl(_name, _kernel, "CPU")  # Triton's interpreter


@torch.library.register_fake("seqpope::pope_attention", lib=_library)
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return flash.like_tokens(q), flash.new_row_sums(q)


@torch.library.register_fake("seqpope::pope_attention_backward", lib=_library)
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, delta: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return flash.like_tokens(q), flash.like_tokens(k), flash.like_tokens(v), delta.new_empty(delta.shape)


@torch.library.register_fake("seqpope::pope_attention_packed", lib=_library)
def _(qkv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    q = flash.unpack(qkv)[0]
    return flash.like_tokens(q), flash.new_row_sums(q)


@torch.library.register_fake("seqpope::pope_attention_packed_backward", lib=_library)
def _(grad: Tensor, qkv: Tensor, delta: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device), delta.new_empty(delta.shape)


@torch.library.register_fake("seqpope::decode", lib=_library)
def _(q: Tensor, *rest: Any) -> Tensor:
    return flash.like_tokens(q)


class _Attention(torch.autograd.Function):
    """The forward operators with their gradients."""

    @staticmethod
    def forward(ctx: Any, packed: bool, *arguments: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            out, logsum = (pope_packed_forward if packed else pope_forward)(*arguments)
        *tensors, offset, causal, scale, dropout_p = arguments
        learned = 2 if packed else 4  # qkv or q, k and v; and delta
        ctx.mark_non_differentiable(logsum)
        ctx.save_for_backward(*tensors[:learned], out, logsum, *tensors[learned:])
        ctx.packed, ctx.numbers = packed, (offset, causal, scale, dropout_p)
        return out, logsum

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "PoPE's Triton kernels have no second derivative (create_graph=True): use backend='cartesian' or "
                "'reference'"
            )
        operator = pope_packed_backward if ctx.packed else pope_backward
        return None, *operator(grad, *ctx.saved_tensors, *ctx.numbers), *[None] * 12


def _differentiable(packed: bool, *arguments: Any) -> tuple[Tensor, Tensor]:
    learned = arguments[: 2 if packed else 4]
    # In forward mode, too, the function below must see them: it says that it has no such derivative.
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    if forward_mode or (torch.is_grad_enabled() and any(x.requires_grad for x in learned)):
        return _Attention.apply(packed, *arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return (pope_packed_forward if packed else pope_forward)(*arguments)


def _not_differentiable(*arguments: Any) -> Tensor:
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
        raise RuntimeError(
            "the decoding kernels have no gradient: call pope_attention or rope_attention with tensors that need "
            "one, not through vmap, or use backend='cartesian'"
        )
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.seqpope.decode.default(*arguments)


_library.impl("decode", _not_differentiable, "Autograd")
_library.impl("pope_attention", functools.partial(_differentiable, False), "Autograd")
_library.impl("pope_attention_packed", functools.partial(_differentiable, True), "Autograd")
