"""The Triton kernels as torch operators: visible to autograd, torch.compile, CUDA graphs and opcheck."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from seqpope.kernels import decode, flash
from seqpope.kernels.rotation import RotationTables


@contextlib.contextmanager
def _device_of(x: Tensor) -> Iterator[None]:
    # Triton launches on the current device, which need not be that of the tensors.
    if x.is_cuda:
        with torch.cuda.device(x.device):
            yield
    else:
        yield


@torch.library.custom_op("seqpope::pope_attention", mutates_args=())
def pope_forward(
    q: Tensor, k: Tensor, v: Tensor, delta: Tensor, turns: Tensor, coarse: Tensor, fine: Tensor,
    first: Tensor | None, last: Tensor | None, offsets: Tensor | None, lengths: Tensor | None, seed: Tensor | None,
    offset: int, causal: bool, scale: float, dropout_p: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output (B, H, Lq, D) and log2 of the softmax sums; arguments as `flash.Problem` has them."""
    problem = flash.Problem(
        turns, RotationTables(coarse, fine), first, last, offsets, lengths, seed, offset, causal, scale, dropout_p
    )
    with _device_of(q):
        return flash.attention_forward(q, k, v, problem)


@pope_forward.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return flash.like_tokens(q), flash.new_row_sums(q)


@torch.library.custom_op("seqpope::pope_attention_backward", mutates_args=())
def pope_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, delta: Tensor, out: Tensor, logsum: Tensor,
    turns: Tensor, coarse: Tensor, fine: Tensor,
    first: Tensor | None, last: Tensor | None, offsets: Tensor | None, lengths: Tensor | None, seed: Tensor | None,
    offset: int, causal: bool, scale: float, dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv and ddelta."""
    problem = flash.Problem(
        turns, RotationTables(coarse, fine), first, last, offsets, lengths, seed, offset, causal, scale, dropout_p
    )
    with _device_of(q):
        return flash.attention_backward(grad, q, k, v, out, logsum, problem)


@pope_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, delta: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return flash.like_tokens(q), flash.like_tokens(k), flash.like_tokens(v), torch.empty_like(delta)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, delta, turns, coarse, fine, first, last, offsets, lengths, seed, *numbers = inputs
    out, logsum = output
    ctx.mark_non_differentiable(logsum)
    ctx.save_for_backward(q, k, v, delta, out, logsum, turns, coarse, fine, first, last, offsets, lengths, seed)
    ctx.numbers = numbers


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    gradients = pope_backward(grad, *ctx.saved_tensors, *ctx.numbers)
    return *gradients, *[None] * 12


torch.library.register_autograd("seqpope::pope_attention", _backward, setup_context=_setup_context)


@torch.library.custom_op("seqpope::pope_decode", mutates_args=())
def pope_decode(
    q: Tensor, k: Tensor, v: Tensor, turns: Tensor, coarse: Tensor, fine: Tensor,
    offsets: Tensor | None, lengths: Tensor | None, offset: int, causal: bool, scale: float,
) -> Tensor:  # fmt: skip
    """Output (B, H, Lq, D) of a few queries against a cache; no gradient."""
    with _device_of(q):
        tables = RotationTables(coarse, fine)
        return decode.decode_attention(q, k, v, turns, tables, offsets, lengths, offset, causal, scale)


@pope_decode.register_fake
def _(q: Tensor, *rest: Any) -> Tensor:
    return flash.like_tokens(q)
