"""What the attention kernels are made of: tiles of tensors, rotation, dropout's mask, which program does what."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from seqpope.kernels.rotation import STEP

LOG2_E = math.log2(math.e)
_LOG2_E = tl.constexpr(LOG2_E)
_SHIFT = tl.constexpr(STEP.bit_length() - 1)
_LOW = tl.constexpr(STEP - 1)
PAD = 128  # no tile has more rows
SHORT = 64  # nor any tile of sequences no longer than this, which are padded to no more
_PAD, _SHORT = tl.constexpr(PAD), tl.constexpr(SHORT)
# Triton compiles a kernel anew for numbers that are 1 or multiples of 16, unless told that it does not matter.
SIZES = ["key_programs", "pairs", "span", "heads", "queries", "keys", "sharers", "offset", "threshold"]


def padded_length(length: int) -> int:
    """Rows of a buffer for so many queries or keys: whole tiles, so that loops need no mask."""
    return SHORT if length <= SHORT else (length + PAD - 1) // PAD * PAD


@triton.jit
def softplus(x):
    """ln(1 + e^x) = max(x, 0) + log1p(e^-|x|), to a relative (4 + |x|) 1e-7 wherever e^x is no subnormal.

    log1p(y) / y on [0, 1] is a polynomial of degree 9, interpolated at Chebyshev's nodes: a library logarithm took
    four times as many instructions, which at short lengths cost as much as the attention itself.
    """
    y = tl.exp2(-tl.abs(x) * _LOG2_E)
    p = y * -0.0031760570127516985 + 0.019542528316378593
    p = y * p - 0.05637361481785774
    p = y * p + 0.10543623566627502
    p = y * p - 0.1526966691017151
    p = y * p + 0.1966327428817749
    p = y * p - 0.24951615929603577
    p = y * p + 0.33329710364341736
    p = y * p - 0.49999892711639404
    p = y * p + 1.0
    return tl.maximum(x, 0.0) + y * p


@triton.jit
def sigmoid(x):
    """The derivative of softplus; a square of inverse roots takes fewer instructions than a division."""
    root = tl.rsqrt(1.0 + tl.exp2(-x * _LOG2_E))
    return root * root


@triton.jit
def turn_one(COARSE, FINE, position, columns, D: tl.constexpr):
    """Cosine and sine of one position x each frequency, [columns], from the two-level tables."""
    inside = columns < D
    coarse = COARSE + (position >> _SHIFT) * (2 * D) + columns
    fine = FINE + (position & _LOW) * (2 * D) + columns
    cos_a, sin_a = tl.load(coarse, inside, 1.0), tl.load(coarse + D, inside, 0.0)
    cos_b, sin_b = tl.load(fine, inside, 1.0), tl.load(fine + D, inside, 0.0)
    return cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b


@triton.jit
def turn_on(FINE, cos_origin, sin_origin, near, columns, D: tl.constexpr):
    """Cosine and sine of (origin + near) x frequency, [near, columns]; `near` is below STEP.

    Every tile reads the same few rows of the table, which stay in the L1 cache.
    """
    inside = (columns < D)[None, :]
    fine = FINE + near[:, None] * (2 * D) + columns[None, :]
    cosine, sine = tl.load(fine, inside, 1.0), tl.load(fine + D, inside, 0.0)
    a, b = cos_origin[None, :], sin_origin[None, :]
    return a * cosine - b * sine, b * cosine + a * sine


@triton.jit
def turn_tile(COARSE, FINE, origin, near, columns, D: tl.constexpr):
    """The rotation s theta of a tile of keys at positions origin + near."""
    a, b = turn_one(COARSE, FINE, origin, columns, D)
    return turn_on(FINE, a, b, near, columns, D)


@triton.jit
def turn_query_tile(COARSE, FINE, TURN, origin, near, columns, D: tl.constexpr):
    """The rotation phi = t theta - delta of queries at positions origin + near; TURN is their head's."""
    a, b = turn_one(COARSE, FINE, origin, columns, D)
    cosine, sine = tl.load(TURN + columns, columns < D, 1.0), tl.load(TURN + D + columns, columns < D, 0.0)
    return turn_on(FINE, a * cosine + b * sine, b * cosine - a * sine, near, columns, D)


@triton.jit
def mix(x):
    """Spread every bit of a 32-bit word over all of them (the finaliser of MurmurHash3)."""
    x ^= x >> 16
    x *= 0x85EBCA6B
    x ^= x >> 13
    x *= 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def dropout_rows(SEED, head, rows):
    """Two random 32-bit words for each query row of one head of one sequence (reference.dropout_mask)."""
    seed = tl.load(SEED)
    low = mix((seed & 0xFFFFFFFF).to(tl.uint32) + 0x9E3779B9)
    high = mix(((seed >> 32) & 0xFFFFFFFF).to(tl.uint32) ^ low)
    first = mix((mix(rows.to(tl.uint32) ^ low) + head.to(tl.uint32) * 0x9E3779B9) ^ high)
    return first, mix(first + 0x9E3779B9)


@triton.jit
def dropout_keep(first, second, keys, threshold):
    """Which attention weights stay; `first`, `second` and `keys` broadcast to the tile."""
    x = keys.to(tl.uint32) * 0x9E3779B9 + first
    x ^= x >> 16
    x *= 0x85EBCA6B
    x ^= second
    x ^= x >> 13
    x *= 0xC2B2AE35
    x ^= x >> 16
    return (x >> 1).to(tl.int32) >= threshold


@triton.jit
def load_polar(POLAR, rows, columns, D: tl.constexpr, EVEN: tl.constexpr):
    """A tile of rotated queries or keys: padded with zeros to whole tiles, so that no row is out of bounds."""
    address = POLAR + rows[:, None] * (2 * D) + columns[None, :]
    return tl.load(address) if EVEN else tl.load(address, (columns < 2 * D)[None, :], 0.0)


@triton.jit
def load_tile(
    X, rows, stride_row, columns, stride_column, limit, D: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr
):
    """A tile [rows, columns] of a matrix D columns wide; rows at and beyond `limit` read 0.

    Columns beyond D exist only where D was rounded up to E1 + E2.
    """
    address = X + rows[:, None] * stride_row + columns[None, :] * stride_column
    if E1 + E2 == D:
        tile = tl.load(address, (rows < limit)[:, None], 0.0)
    else:
        tile = tl.load(address, (rows < limit)[:, None] & (columns < D)[None, :], 0.0)
    return tile


@triton.jit
def store_tile(X, tile, rows, stride_row, columns, limit, D: tl.constexpr):
    """Write a tile whose columns lie beside each other, except what is beyond `limit` rows or D columns."""
    address = X + rows[:, None] * stride_row + columns[None, :]
    tl.store(address, tile.to(X.dtype.element_ty), (rows < limit)[:, None] & (columns < D)[None, :])


@triton.jit
def polar_query(
    Q, stride_row, stride_column, TURN, COARSE, FINE, near, limit, origin, columns, scale, D: tl.constexpr
):  # fmt: skip
    """Rotated queries of a tile that begins at position `origin`, interleaved, scaled: [near, 2 columns]."""
    inside = (near < limit)[:, None] & (columns < D)[None, :]
    x = tl.load(Q + near[:, None] * stride_row + columns[None, :] * stride_column, inside, 0.0)
    cosine, sine = turn_query_tile(COARSE, FINE, TURN, origin, near, columns, D)
    magnitude = tl.where(inside, softplus(x.to(tl.float32)) * scale, 0.0)
    return tl.interleave(magnitude * cosine, magnitude * sine).to(x.dtype)


@triton.jit
def padded(length):
    """`padded_length`."""
    return tl.where(length <= _SHORT, _SHORT, (length + _PAD - 1) // _PAD * _PAD)


@triton.jit
def place(blocks, pairs, span):
    """Which block of which pair (sequence and head) a program works on; block 0 is the one to start first.

    Under a causal mask blocks differ in work. `span` pairs at a time start their longest blocks before any shorter
    one, so that what is left at the end is short; no more than that, so that their keys stay in the L2 cache.
    """
    program = tl.program_id(0)
    group = program // (span * blocks)
    within = program - group * span * blocks
    here = tl.minimum(span, pairs - group * span)
    return within // here, (group * span + within % here).to(tl.int64)
