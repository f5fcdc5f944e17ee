"""Attention with linear biases, as torch's SDPA of queries and keys that are a few columns wider."""

from __future__ import annotations

import torch
from torch import Tensor

from seqpope.kernels.cartesian import sdpa
from seqpope.kernels.scope import Scope

DIGIT = 256  # bf16 holds whole numbers exactly up to here
COLUMNS = 8  # SDPA's flash kernels take widths that are multiples of 8


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

    A softmax does not see what is added to a whole row, so that slope x (s - t) may as well be slope x s: a
    product of something of the query and something of the key, and no bias, which flash kernels would not take.
    The key's position comes in digits to base 256, a column each, since bf16 holds no large numbers exactly;
    products are summed in fp32. In bf16 a slope is rounded as every weight is, to 1 part in 512 at most, alike
    for all distances. In fp32 a score is rounded together with slope x s: outputs differ from fp64's by up to
    about 4e-5 at 2,048 keys and 7e-4 at 20,480.

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
        ValueError: shapes do not fit each other, or there are more positions than three digits hold, two in
            float16.
    """
    (batch, heads, queries, dim), keys = q.shape, k.shape[2]
    if k.shape != v.shape or k.shape != (batch, heads, keys, dim) or slopes.shape != (heads,):
        raise ValueError(
            "expected q (B, H, Lq, D), k and v (B, H, Lk, D) and slopes (H,), "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, slopes {tuple(slopes.shape)}"
        )
    scope = Scope(True, query_offset)
    scope.check(batch, queries, keys)
    device = q.device.type
    computed_in = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q.dtype
    most = DIGIT ** (2 if computed_in == torch.float16 else 3)
    if keys > most:
        raise ValueError(
            f"ALiBi in {str(computed_in)[6:]} holds {most:,} positions, there are {keys:,} keys: read fewer at "
            f"once{', or use bfloat16' if computed_in == torch.float16 else ''}"
        )
    powers = [DIGIT**n for n in range(3) if n == 0 or keys > DIGIT**n]
    scale = dim**-0.5
    weights = slopes.detach().to(q.device, torch.float32)[:, None] / scale  # (H, 1)
    weights = torch.cat([weights * power for power in powers], -1)  # (H, digits)
    places = torch.arange(keys, device=k.device)
    digits = torch.stack([places // power % DIGIT for power in powers], -1)  # (Lk, digits)
    pad = (0, COLUMNS - len(powers))
    of_queries = torch.nn.functional.pad(weights, pad).to(q.dtype)[:, None].expand(batch, heads, queries, COLUMNS)
    of_keys = torch.nn.functional.pad(digits, pad).to(k.dtype).expand(batch, heads, keys, COLUMNS)
    return sdpa(torch.cat((q, of_queries), -1), torch.cat((k, of_keys), -1), v, scope, scale, dropout_p)
