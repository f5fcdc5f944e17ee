"""What the attention benchmark compares: inputs as a model has them, the exact result, contenders, the gate."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from seqpope.kernels import pope_attention

MODES = ("forward", "forward+backward")
NAMES = ("out", "dq", "dk", "dv", "ddelta")
OURS = "pope-triton"
BASE = 10000.0

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # q, k, v (B, H, L, D), delta (H, D) -> (B, H, L, D)


class Shape(NamedTuple):
    """Size of one attention call."""

    batch: int
    heads: int
    length: int
    dim: int


# ---------------------------------------------------------------------------------------------------------------
# Inputs and the exact result
# ---------------------------------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """Leaves q, k, v (B, H, L, D), views of one projection, and delta (H, D) fp32; upstream (B, H, L, D)."""

    q: Tensor
    k: Tensor
    v: Tensor
    delta: Tensor
    upstream: Tensor

    def bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self)


def make_inputs(shape: Shape, device: torch.device, dtype: torch.dtype) -> Inputs:
    """As a model's layer has them: strides of a (B, L, 3, H, D) projection, the gradient lies as (B, L, H, D)."""
    generator = torch.Generator(device).manual_seed(shape.length * 1000 + shape.dim)
    options: dict[str, Any] = {"device": device, "generator": generator}
    batch, heads, length, dim = shape
    qkv = torch.randn(batch, length, 3, heads, dim, dtype=dtype, **options)
    q, k, v = (x.detach().requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4).unbind(0))
    delta = (-2 * math.pi * torch.rand(heads, dim, **options)).requires_grad_()
    upstream = torch.randn(batch, length, heads, dim, dtype=dtype, **options).transpose(1, 2)
    return Inputs(q, k, v, delta, upstream)


def exact_attention(inputs: Inputs, rows: int = 2048) -> list[Tensor]:
    """PoPE's output, dq, dk, dv (B, H, L, D) and ddelta (H, D), all in fp64, causal.

    The polar form of arXiv 2509.10534, eq. 6, written without seqpope, one head and `rows` queries at a time:
    a whole matrix of scores would be 2 GB a head at L = 16384.
    """
    batch, heads, length, dim = inputs.q.shape
    position = torch.arange(length, dtype=torch.float64, device=inputs.q.device)
    angle = position[:, None] * BASE ** (-torch.arange(dim, dtype=torch.float64, device=position.device) / dim)
    result = [torch.zeros(inputs.q.shape, dtype=torch.float64, device=position.device) for _ in range(4)]
    ddelta = torch.zeros(heads, dim, dtype=torch.float64, device=position.device)
    for b in range(batch):
        for h in range(heads):
            leaves = [x[b, h].detach().double().requires_grad_() for x in inputs[:3]]
            leaves.append(inputs.delta[h].detach().double().requires_grad_())
            for start in range(0, length, rows):
                stop = min(start + rows, length)
                q, k, v, delta = leaves
                phase = angle[start:stop] - delta
                mu_q, mu_k = F.softplus(q[start:stop]), F.softplus(k[:stop])
                q_polar = torch.cat((mu_q * phase.cos(), mu_q * phase.sin()), -1)
                k_polar = torch.cat((mu_k * angle[:stop].cos(), mu_k * angle[:stop].sin()), -1)
                hidden = position[:stop] > position[start:stop, None]
                scores = (q_polar @ k_polar.T * dim**-0.5).masked_fill(hidden, -math.inf)
                out = scores.softmax(-1) @ v[:stop]
                gradients = torch.autograd.grad(out, leaves, inputs.upstream[b, h, start:stop].double())
                result[0][b, h, start:stop] = out.detach()
                for total, gradient in zip(result[1:], gradients[:3], strict=True):
                    total[b, h] += gradient
                ddelta[h] += gradients[3]
    return [*result, ddelta]


def exact_decoding(q: Tensor, k: Tensor, v: Tensor, delta: Tensor, position: int, chunk: int = 1 << 16) -> Tensor:
    """Output (D,) in fp64 of one query (D,) at `position` against keys and values (L, D) of one head."""
    dim = q.shape[-1]
    theta = BASE ** (-torch.arange(dim, dtype=torch.float64, device=q.device) / dim)
    phase, magnitude = position * theta - delta.double(), F.softplus(q.double()) * dim**-0.5
    scores = []
    for start in range(0, len(k), chunk):
        part = F.softplus(k[start : start + chunk].double())
        angle = torch.arange(start, start + len(part), dtype=torch.float64, device=q.device)[:, None] * theta
        along, across = part * angle.cos(), part * angle.sin()
        scores.append(along @ (magnitude * phase.cos()) + across @ (magnitude * phase.sin()))
    weights = torch.cat(scores).softmax(0)
    return sum(
        (weights[start : start + chunk] @ v[start : start + chunk].double() for start in range(0, len(v), chunk)),
        torch.zeros(dim, dtype=torch.float64, device=q.device),
    )


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Frobenius norm of the difference over that of `exact`."""
    wide = exact.dtype if exact.dtype == torch.float64 else torch.float32
    return float((got.to(wide) - exact.to(wide)).norm() / exact.to(wide).norm())


# ---------------------------------------------------------------------------------------------------------------
# Contenders
# ---------------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """What a contender is built for."""

    shape: Shape
    device: torch.device
    compiled: bool

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return compiled(function) if self.compiled else function

    def tables(self, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of position x frequency, two (L, count) fp32, from fp64 angles."""
        angle = angles(self.shape.length, count, self.device)
        return angle.cos().float(), angle.sin().float()


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same compiled function for all contenders that share it."""
    return torch.compile(function, dynamic=False)


def angles(length: int, count: int, device: torch.device) -> Tensor:
    """Position x frequency mod 2 pi, (L, count) fp64."""
    position = torch.arange(length, dtype=torch.float64, device=device)
    theta = BASE ** (-torch.arange(count, dtype=torch.float64, device=device) / count)
    return position[:, None] * theta % (2 * math.pi)


class Contender(NamedTuple):
    """One way to compute attention, and the backend that torch's attention is to be held to meanwhile."""

    attend: Attend
    backend: SDPBackend | None = None


def held_to(backend: SDPBackend | None) -> contextlib.AbstractContextManager[Any]:
    """Entered around many calls: within each it would add to the time that launching takes."""
    return contextlib.nullcontext() if backend is None else sdpa_kernel(backend)


def rotate_pairs(q: Tensor, k: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """RoPE: pairs (c, c + D/2) of q and k turned by their position's angle, in fp32."""

    def turn(x: Tensor) -> Tensor:
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)

    return turn(q), turn(k)


def turn_of(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of delta, two (H, 1, D).

    Compiled apart from `to_polar`, which would compute both anew for every element of the batch.
    """
    return delta.cos()[:, None], delta.sin()[:, None]


def to_polar(
    q: Tensor, k: Tensor, cosine: Tensor, sine: Tensor, cos_delta: Tensor, sin_delta: Tensor
) -> tuple[Tensor, Tensor]:
    """PoPE's queries and keys as vectors (B, H, L, 2D) whose dot product is the score, in fp32 until rounded."""
    mu_q, mu_k = F.softplus(q.float()), F.softplus(k.float())
    cos_q, sin_q = cosine * cos_delta + sine * sin_delta, sine * cos_delta - cosine * sin_delta
    q_polar = torch.cat((mu_q * cos_q, mu_q * sin_q), dim=-1).to(q.dtype)
    return q_polar, torch.cat((mu_k * cosine, mu_k * sine), dim=-1).to(k.dtype)


def _rope(backend: SDPBackend, setting: Setting) -> Contender:
    cosine, sine = setting.tables(setting.shape.dim // 2)
    rotate = setting.compile(rotate_pairs)

    def attend(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        q, k = rotate(q, k, cosine, sine)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return Contender(attend, backend)


def _cartesian(backend: SDPBackend, pad: bool, setting: Setting) -> Contender:
    """PoPE on torch's attention; `pad`: values are brought to the keys' width, as most backends want it."""
    dim = setting.shape.dim
    cosine, sine = setting.tables(dim)
    turn, polar = setting.compile(turn_of), setting.compile(to_polar)

    def attend(q: Tensor, k: Tensor, v: Tensor, delta: Tensor) -> Tensor:
        q, k = polar(q, k, cosine, sine, *turn(delta))
        v = F.pad(v, (0, dim)) if pad else v
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=dim**-0.5)[..., :dim]

    return Contender(attend, backend)


def _flex(setting: Setting) -> Contender:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    dim, length = setting.shape.dim, setting.shape.length
    cosine, sine = setting.tables(dim)
    turn, polar, flex = setting.compile(turn_of), setting.compile(to_polar), setting.compile(flex_attention)

    def causal(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    mask = create_block_mask(causal, None, None, length, length, device=setting.device)

    def attend(q: Tensor, k: Tensor, v: Tensor, delta: Tensor) -> Tensor:
        q, k = polar(q, k, cosine, sine, *turn(delta))
        return flex(q, k, v, block_mask=mask, scale=dim**-0.5)

    return Contender(attend)


def _pope_pytorch(setting: Setting) -> Contender:
    """The fused attention of PoPE-pytorch 0.2.1; its bias on the keys' phase is delta."""
    from PoPE_pytorch.attention import TRITON_AVAILABLE, flash_attn_with_pope

    if not TRITON_AVAILABLE or setting.device.type != "cuda":
        raise RuntimeError("its Triton kernels need CUDA")
    batch, heads, length, dim = setting.shape
    phases = angles(length, dim, setting.device).float()

    def attend(q: Tensor, k: Tensor, v: Tensor, delta: Tensor) -> Tensor:
        return flash_attn_with_pope(q, k, v, pos_emb=(phases, delta), causal=True, fused=True)

    # It chooses its tiles by trying all, once for each length and head dimension, whatever batch and heads are.
    # On a part of the batch that fills a GPU this takes seconds, not minutes.
    heads = min(heads, max(1, 65536 // length))
    few = Shape(min(batch, max(1, 65536 // (length * heads))), heads, length, dim)
    part = make_inputs(few, setting.device, torch.bfloat16)
    torch.autograd.grad(attend(*part[:4]), part[:4], part.upstream)
    return Contender(attend)


def _ours(setting: Setting) -> Contender:
    def attend(q: Tensor, k: Tensor, v: Tensor, delta: Tensor) -> Tensor:
        return pope_attention(q, k, v, delta, base=BASE, backend="triton")

    return Contender(attend)


BUILDERS: dict[str, Callable[[Setting], Contender]] = {
    OURS: _ours,
    "rope-flash": functools.partial(_rope, SDPBackend.FLASH_ATTENTION),
    "rope-cudnn": functools.partial(_rope, SDPBackend.CUDNN_ATTENTION),
    "cartesian-cudnn": functools.partial(_cartesian, SDPBackend.CUDNN_ATTENTION, False),
    "cartesian-flash": functools.partial(_cartesian, SDPBackend.FLASH_ATTENTION, True),
    "flex": _flex,
    "pope-pytorch": _pope_pytorch,  # last: it is the slowest to warm up
}
QUICK = (OURS, "rope-flash", "rope-cudnn", "cartesian-cudnn")


def build_measures(setting: Setting) -> dict[str, Contender]:
    """PoPE by torch's attention, whose error is the measure of ours; the gate takes the first that runs."""
    measures = {name: BUILDERS[name](setting) for name in ("cartesian-cudnn", "cartesian-flash")}
    return measures | {"cartesian-math": _cartesian(SDPBackend.MATH, False, setting)}


def call_of(name: str, contender: Contender, inputs: Inputs, mode: str) -> Callable[[], list[Tensor]]:
    """One call of a contender: its output, and in "forward+backward" dq, dk, dv and, for PoPE, ddelta."""
    q, k, v, delta, upstream = inputs
    leaves = (q, k, v) if name.startswith("rope") else (q, k, v, delta)

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [contender.attend(q, k, v, delta)]

    def both() -> list[Tensor]:
        out = contender.attend(q, k, v, delta)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]

    return forward if mode == "forward" else both


# ---------------------------------------------------------------------------------------------------------------
# The gate
# ---------------------------------------------------------------------------------------------------------------


def attempt(action: Callable[[], Any]) -> tuple[Any, str | None]:
    """The action's result, or None and in one line why there is none."""
    with warnings.catch_warnings(record=True) as said:  # torch warns why it refuses, then raises without a reason
        try:
            return action(), None
        except Exception as error:
            words = [f"{type(error).__name__}: {error}", *(str(w.message) for w in said[-3:])]
            return None, " | ".join(" ".join(word.split())[:300] for word in words)


def _errors(contender: Contender, inputs: Inputs, exact: list[Tensor]) -> dict[str, float]:
    with held_to(contender.backend):
        got = call_of(OURS, contender, inputs, "forward+backward")()
    return {name: relative_error(x, y) for name, x, y in zip(NAMES, got, exact, strict=True)}


def judge(ours: dict[str, float], measure: dict[str, float]) -> bool:
    """Whether errors are at most 1.2 times the measure's + 1e-4; NaN never is."""
    return all(ours[name] <= 1.2 * measure[name] + 1e-4 for name in measure)


def gate(ours: Contender, measures: dict[str, Contender], inputs: Inputs) -> dict[str, Any]:
    """Relative Frobenius errors against fp64 of ours and of the first measure that runs; whether ours passes."""
    exact = exact_attention(inputs)
    record: dict[str, Any] = {"passed": False, "measure": None}
    record["ours"], record["reason"] = attempt(lambda: _errors(ours, inputs, exact))
    if record["ours"] is None:
        return record
    for name, contender in measures.items():
        record["cartesian"], why = attempt(functools.partial(_errors, contender, inputs, exact))
        if why is None and all(math.isfinite(x) for x in record["cartesian"].values()):
            record["measure"] = name
            record["passed"] = judge(record["ours"], record["cartesian"])
            record["reason"] = None if record["passed"] else "errors exceed 1.2 x the measure's + 1e-4"
            return record
        record["reason"] = f"no measure of the error: {name}: {why or record['cartesian']}"
    return record
