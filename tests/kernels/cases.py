"""What the attention tests share: inputs, and every encoding on every backend that can do it."""

from __future__ import annotations

import math

import pytest
import torch

from seqpope.kernels import pope_attention, rope_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
DROPOUT = {"dropout_p": 0.3, "dropout_seed": 123_456_789_012_345}

ENCODINGS = ["pope", "pope relu", "pope none", "rope"]  # PoPE with softplus, and with another magnitude
FAST = [("pope", "triton"), *((encoding, "cartesian") for encoding in ENCODINGS)]
# Where the interpreter takes long, and test_triton.py asks as much of the kernels.
TRITON_SLOWLY = pytest.param("pope", "triton", marks=pytest.mark.slow)
ALL = [*FAST, *((encoding, "reference") for encoding in ENCODINGS)]
FAST_RARELY, ALL_RARELY = [TRITON_SLOWLY, *FAST[1:]], [TRITON_SLOWLY, *ALL[1:]]


def make_inputs(queries, keys, dim, *, batch=2, heads=3, key_heads=None, dtype=torch.float32, seed=0):
    """q, k, v and delta with magnitudes that make attention neither flat nor one-hot."""
    generator = torch.Generator().manual_seed(seed + 1000 * queries + keys + dim)
    q, k, v = (
        (1.5 * torch.randn(batch, h, length, dim, generator=generator)).to(DEVICE, dtype)
        for h, length in ((heads, queries), (key_heads or heads, keys), (key_heads or heads, keys))
    )
    delta = -2 * math.pi * torch.rand(heads, dim, generator=generator)
    return q, k, v, delta.to(DEVICE)


def upstream_like(q):
    """A gradient of what attention returns, the same each time."""
    return torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(q.device)


def attend(encoding, q, k, v, delta, **options):
    if encoding == "rope":
        return rope_attention(q, k, v, **options)
    magnitude = encoding.removeprefix("pope").strip() or "softplus"
    return pope_attention(q, k, v, delta, magnitude=magnitude, **options)


def with_gradients(encoding, inputs, upstream, dtype, **options):
    """Output, dq, dk, dv and, for PoPE, ddelta."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    if dtype.itemsize == 2:
        leaves[3] = inputs[3].detach().requires_grad_()  # delta is a parameter: fp32, whatever q, k and v are
    out = attend(encoding, *leaves, **options)
    wanted = leaves[:3] if encoding == "rope" else leaves
    return [out.detach(), *torch.autograd.grad(out, wanted, upstream.to(out.dtype))]


def relative_error(ours, exact):
    """Frobenius norm of the difference over that of `exact`; nan is an error of infinity."""
    error = float((ours.double() - exact).norm() / exact.norm().clamp(min=1e-6))
    return error if error == error else math.inf
