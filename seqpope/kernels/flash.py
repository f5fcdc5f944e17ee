"""PoPE attention fused in Triton: forward and backward, for training and prefill.

With phi = t theta - delta for a query at position t and s theta for a key at position s, PoPE's score
(arXiv 2509.10534, eq. 6) is a dot product of twice the width,

    score(t, s) = sum_c mu(q_c) mu(k_c) [cos phi_c cos(s theta_c) + sin phi_c sin(s theta_c)],

so everything after the rotation is attention with queries and keys of width 2D and values of width D. Delta sits
on the queries: keys are then the same for all query heads of a group, and its gradient falls out beside dq's.

What is rotated where (measured, see benchmarks/results/attention-notes.md): a tile that stays put is rotated by
the program that owns it; a tensor that is streamed through a loop is rotated once per call into a transient
buffer, because rotating in the loop repeats softplus for every tile that passes and keeps the operand from going
straight from memory to the tensor cores. Nothing of width 2D outlives the call: the backward pass rotates anew.

Rotated tensors are interleaved, (cos_0, sin_0, cos_1, sin_1, ...): then any split of the D frequencies splits the
2D columns too, and a pair sits in one thread's registers. A head dimension that is no power of two is taken as
the sum of two (48 = 32 + 16), so that 48 does not cost what 64 does.

Scores are in units of log 2 (log2 e is folded into the queries' scale) so that the softmax is exp2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqpope.kernels.rotation import STEP, RotationTables

LOG2_E = math.log2(math.e)
_LOG2_E = tl.constexpr(LOG2_E)
_SHIFT = tl.constexpr(STEP.bit_length() - 1)
_LOW = tl.constexpr(STEP - 1)
PAD = 128  # no tile has more rows
_PAD = tl.constexpr(PAD)
# Triton compiles a kernel anew for numbers that are 1 or multiples of 16, unless told that it does not matter.
SIZES = ["pairs", "span", "heads", "queries", "keys", "length", "offset", "threshold"]


# ---------------------------------------------------------------------------------------------------------------
# Tiles: what programs are made of
# ---------------------------------------------------------------------------------------------------------------


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
    """The derivative of softplus."""
    return 1.0 / (1.0 + tl.exp2(-x * _LOG2_E))


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
    """Length of the fp32 vectors that hold a number a query: a whole number of tiles."""
    return (length + _PAD - 1) // _PAD * _PAD


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


# ---------------------------------------------------------------------------------------------------------------
# Prologue: rotate a whole tensor once
# ---------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=SIZES)
def rotate(
    Q, K, POLAR_Q, POLAR_K, TURN, OUT, GRAD, ROW_DOTS, COARSE, FINE, OFFSETS, LENGTHS,
    stride_q_batch, stride_q_head, stride_q_row, stride_q_column,
    stride_k_batch, stride_k_head, stride_k_row, stride_k_column,
    stride_out_batch, stride_out_head, stride_out_row,
    stride_grad_batch, stride_grad_head, stride_grad_row, stride_grad_column,
    key_programs, heads, queries, keys, offset, scale,
    GROUP: tl.constexpr, D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
    HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """K (B, Hkv, Lk, D) as projected -> POLAR_K (B, Hkv, Lk padded, 2D), interleaved, zeros behind the last key.

    The same for queries, with delta and the scale; and for the backward pass each query's sum of grad x out.
    """
    program = tl.program_id(0)
    near = tl.arange(0, ROWS)
    columns, wide = tl.arange(0, C), tl.arange(0, 2 * C)
    if program < key_programs:
        blocks = padded(keys) // ROWS
        begin, pair = program % blocks * ROWS, (program // blocks).to(tl.int64)
        batch, head = pair // (heads // GROUP), pair % (heads // GROUP)
        end = keys
        if HAS_LENGTHS:  # what lies behind them may be anything, and 0 x nan is nan
            end = tl.minimum(keys, tl.load(LENGTHS + batch))
        left = end - begin
        inside = (near < left)[:, None] & (columns < D)[None, :]
        K += batch * stride_k_batch + head * stride_k_head + begin.to(tl.int64) * stride_k_row
        x = tl.load(K + near[:, None] * stride_k_row + columns[None, :] * stride_k_column, inside, 0.0)
        cosine, sine = turn_tile(COARSE, FINE, begin, near, columns, D)
        magnitude = tl.where(inside, softplus(x.to(tl.float32)), 0.0)
        polar = tl.interleave(magnitude * cosine, magnitude * sine).to(x.dtype)
        POLAR_K += (pair * padded(keys) + begin) * (2 * D)
        store_tile(POLAR_K, polar, near, 2 * D, wide, ROWS, 2 * D)
    else:
        program -= key_programs
        blocks = padded(queries) // ROWS
        begin, pair = program % blocks * ROWS, (program // blocks).to(tl.int64)
        batch, head = pair // heads, pair % heads
        if HAS_OFFSETS:
            offset = tl.load(OFFSETS + batch)
        left = queries - begin
        far = begin.to(tl.int64)
        Q += batch * stride_q_batch + head * stride_q_head + far * stride_q_row
        TURN += head * (2 * D)
        polar = polar_query(
            Q, stride_q_row, stride_q_column, TURN, COARSE, FINE, near, left, offset + begin, columns, scale, D
        )
        POLAR_Q += (pair * padded(queries) + begin) * (2 * D)
        store_tile(POLAR_Q, polar, near, 2 * D, wide, ROWS, 2 * D)
        if BACKWARD:
            inside = (near < left)[:, None] & (columns < D)[None, :]
            OUT += batch * stride_out_batch + head * stride_out_head + far * stride_out_row
            GRAD += batch * stride_grad_batch + head * stride_grad_head + far * stride_grad_row
            out = tl.load(OUT + near[:, None] * stride_out_row + columns[None, :], inside, 0.0)
            address = GRAD + near[:, None] * stride_grad_row + columns[None, :] * stride_grad_column
            grad = tl.load(address, inside, 0.0)
            dots = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
            tl.store(ROW_DOTS + pair * padded(queries) + begin + near, dots)


# ---------------------------------------------------------------------------------------------------------------
# Forward
# ---------------------------------------------------------------------------------------------------------------


@triton.jit
def attend_keys(
    acc1, acc2, highest, total,
    q1, q2, POLAR, V, stride_v_row, stride_v_column,
    start, plain, plain_end, stop, keys_end,
    position, first_key, last_key, noise1, noise2, threshold,
    D: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, COLS: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys start..stop-1, COLS at a time (Milakov & Gimelshein, arXiv 1805.02867).

    Tiles in plain..plain_end-1 are seen whole. One loop with a branch: two loops one after the other, masked and
    plain, made ptxas wait for every single matrix instruction of the backward pass (its warning C7515).
    """
    near = tl.arange(0, COLS)
    for begin in tl.range(start, stop, COLS):
        left = keys_end - begin
        polar = POLAR + tl.cast(begin, tl.int64) * (2 * D)
        k = load_polar(polar, near, tl.arange(0, 2 * C1), D, C1 + C2 == D)
        s = tl.dot(q1, tl.trans(k), input_precision=PRECISION)  # [ROWS, COLS]
        if C2 > 0:
            k = load_polar(polar, near, 2 * C1 + tl.arange(0, 2 * C2), D, C1 + C2 == D)
            s = tl.dot(q2, tl.trans(k), s, input_precision=PRECISION)
        keys = begin + near
        if (begin < plain) | (begin >= plain_end):
            seen = (keys[None, :] >= first_key[:, None]) & (keys[None, :] < last_key[:, None])
            if CAUSAL:
                seen = seen & (keys[None, :] <= position[:, None])
            s = tl.where(seen, s, float("-inf"))
        higher = tl.maximum(highest, tl.max(s, 1))
        # A row that has seen no key yet has no maximum: -inf - -inf would be nan.
        level = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - level[:, None])
        fade = tl.exp2(highest - level)
        total = total * fade + tl.sum(p, 1)
        if DROPOUT:
            p = tl.where(dropout_keep(noise1[:, None], noise2[:, None], keys[None, :], threshold), p, 0.0)
        values = V + tl.cast(begin, tl.int64) * stride_v_row
        v = load_tile(values, near, stride_v_row, tl.arange(0, E1), stride_v_column, left, D, E1, E2)
        acc1 = tl.dot(p.to(v.dtype), v, acc1 * fade[:, None], input_precision=PRECISION)  # [ROWS, E1]
        if E2 > 0:
            v = load_tile(values, near, stride_v_row, E1 + tl.arange(0, E2), stride_v_column, left, D, E1, E2)
            acc2 = tl.dot(p.to(v.dtype), v, acc2 * fade[:, None], input_precision=PRECISION)
        highest = higher
    return acc1, acc2, highest, total


@triton.jit
def ranges(lowest, lowest_full, highest_full, highest, STEP: tl.constexpr):
    """[lowest, highest) as three ranges at multiples of STEP: masked, plain, masked; their four borders."""
    a = lowest // STEP * STEP
    d = tl.maximum(highest, a)
    b = tl.maximum(a, tl.minimum((lowest_full + STEP - 1) // STEP, (d + STEP - 1) // STEP) * STEP)
    c = tl.maximum(b, tl.minimum(highest_full, d) // STEP * STEP)
    return a, b, c, d


@triton.jit
def key_ranges(
    FIRST, LAST, batch, begin, rows, length, keys_end, offset,
    ROWS: tl.constexpr, COLS: tl.constexpr, CAUSAL: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Keys that a tile of queries reads: `ranges`, and for each query its first key and the end of its keys."""
    if DOCUMENTS:
        FIRST += batch * length
        LAST += batch * length
        end = tl.minimum(begin + ROWS, length) - 1
        first_key = tl.load(FIRST + rows, rows < length, 0)
        last_key = tl.load(LAST + rows, rows < length, 0)
        lowest, lowest_full = tl.load(FIRST + begin), tl.load(FIRST + end)
        highest_full, highest = tl.load(LAST + begin), tl.load(LAST + end)
    else:
        first_key = tl.zeros([ROWS], tl.int32)
        last_key = tl.zeros([ROWS], tl.int32) + keys_end
        lowest, lowest_full, highest_full, highest = 0, 0, keys_end, keys_end
    if CAUSAL:
        highest = tl.minimum(highest, begin + ROWS + offset)
        highest_full = tl.minimum(highest_full, begin + 1 + offset)
    a, b, c, d = ranges(lowest, lowest_full, highest_full, highest, COLS)
    return a, b, c, d, first_key, last_key


@triton.jit(do_not_specialize=SIZES)
def forward(
    POLAR_Q, POLAR_K, V, OUT, LOGSUM, FIRST, LAST, OFFSETS, LENGTHS, SEED,
    stride_v_batch, stride_v_head, stride_v_row, stride_v_column,
    stride_out_batch, stride_out_head, stride_out_row,
    pairs, span, heads, queries, keys, offset, keep_scale, threshold,
    GROUP: tl.constexpr, D: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    CAUSAL: tl.constexpr, DOCUMENTS: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head against all keys it may see; the longest causal tiles start first."""
    blocks = tl.cdiv(queries, ROWS)
    block, pair = place(blocks, pairs, span)
    begin = (blocks - 1 - block) * ROWS
    batch, head = pair // heads, pair % heads
    keys_end = keys
    if HAS_OFFSETS:
        offset = tl.load(OFFSETS + batch)
    if HAS_LENGTHS:
        keys_end = tl.minimum(keys, tl.load(LENGTHS + batch))
    near, left = tl.arange(0, ROWS), queries - begin
    rows = begin + near
    POLAR_Q += (pair * padded(queries) + begin) * (2 * D)
    POLAR_K += (pair // GROUP) * padded(keys) * (2 * D)
    V += batch * stride_v_batch + (head // GROUP) * stride_v_head
    q1 = load_polar(POLAR_Q, near, tl.arange(0, 2 * C1), D, C1 + C2 == D)
    q2 = q1
    if C2 > 0:
        q2 = load_polar(POLAR_Q, near, 2 * C1 + tl.arange(0, 2 * C2), D, C1 + C2 == D)
    a, b, c, d, first_key, last_key = key_ranges(
        FIRST, LAST, batch, begin, rows, queries, keys_end, offset, ROWS, COLS, CAUSAL, DOCUMENTS
    )
    noise1, noise2 = rows, rows
    if DROPOUT:
        noise1, noise2 = dropout_rows(SEED, pair, rows)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc1 = tl.zeros([ROWS, E1], tl.float32)
    acc2 = tl.zeros([ROWS, E2 if E2 > 0 else 16], tl.float32)
    acc1, acc2, highest, total = attend_keys(
        acc1, acc2, highest, total, q1, q2, POLAR_K, V, stride_v_row, stride_v_column, a, b, c, d, keys_end,
        rows + offset, first_key, last_key, noise1, noise2, threshold,
        D, C1, C2, E1, E2, COLS, CAUSAL, DROPOUT, PRECISION,
    )  # fmt: skip
    # A query without a single key attends to nothing: its output is 0, and +inf makes its weights 0 in the
    # backward pass. So it does for the rows that pad the last tile: `backward_keys` need not mask them.
    empty = (total == 0.0) | (rows >= queries)
    share = tl.where(empty, 0.0, keep_scale / tl.where(empty, 1.0, total))
    OUT += batch * stride_out_batch + head * stride_out_head + begin.to(tl.int64) * stride_out_row
    store_tile(OUT, acc1 * share[:, None], near, stride_out_row, tl.arange(0, E1), left, D)
    if E2 > 0:
        store_tile(OUT, acc2 * share[:, None], near, stride_out_row, E1 + tl.arange(0, E2), left, D)
    logsum = tl.where(empty, float("inf"), highest + tl.log2(tl.where(empty, 1.0, total)))
    LOGSUM += pair * padded(queries)
    tl.store(LOGSUM + rows, logsum)
    if begin + ROWS >= queries:
        rest = begin + ROWS + tl.arange(0, _PAD)
        tl.store(LOGSUM + rest, tl.full([_PAD], float("inf"), tl.float32), rest < padded(queries))


# ---------------------------------------------------------------------------------------------------------------
# Backward: one pass over keys for dq and ddelta, one over queries for dk and dv; no atomics, so deterministic
# ---------------------------------------------------------------------------------------------------------------


@triton.jit
def gather_queries(
    dk1, dk2, dv1, dv2,
    k1, k2, v1, v2, POLAR, GRAD, LOGSUM, ROW_DOTS, stride_grad_row, stride_grad_column,
    start, plain, plain_end, stop,
    queries, offset, keys, first_query, last_query, SEED, pair, keep_scale, threshold,
    D: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, ROWS: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to dk and dv of a tile of keys what the queries start..stop-1 send; tiles are [keys, queries].

    Rows behind the last query are zeros, and so are their weights, since their logsum is +inf.
    """
    near = tl.arange(0, ROWS)
    for begin in tl.range(start, stop, ROWS):
        rows = begin + near
        left = queries - begin
        polar = POLAR + tl.cast(begin, tl.int64) * (2 * D)
        grads = GRAD + tl.cast(begin, tl.int64) * stride_grad_row
        q1 = load_polar(polar, near, tl.arange(0, 2 * C1), D, C1 + C2 == D)
        s = tl.dot(k1, tl.trans(q1), input_precision=PRECISION)
        if C2 > 0:
            q2 = load_polar(polar, near, 2 * C1 + tl.arange(0, 2 * C2), D, C1 + C2 == D)
            s = tl.dot(k2, tl.trans(q2), s, input_precision=PRECISION)
        # Both products that need no other come first: their tensor cores work while the weights are computed.
        g1 = load_tile(grads, near, stride_grad_row, tl.arange(0, E1), stride_grad_column, left, D, E1, E2)
        dp = tl.dot(v1, tl.trans(g1), input_precision=PRECISION)
        if E2 > 0:
            g2 = load_tile(
                grads, near, stride_grad_row, E1 + tl.arange(0, E2), stride_grad_column, left, D, E1, E2
            )
            dp = tl.dot(v2, tl.trans(g2), dp, input_precision=PRECISION)
        logsum, row_dots = tl.load(LOGSUM + rows), tl.load(ROW_DOTS + rows)
        p = tl.exp2(s - logsum[None, :])
        if (begin < plain) | (begin >= plain_end):
            seen = (rows[None, :] >= first_query[:, None]) & (rows[None, :] < last_query[:, None])
            if CAUSAL:
                seen = seen & (keys[:, None] <= rows[None, :] + offset)
            p = tl.where(seen, p, 0.0)
        kept = p
        if DROPOUT:
            noise1, noise2 = dropout_rows(SEED, pair, rows)
            keep = dropout_keep(noise1[None, :], noise2[None, :], keys[:, None], threshold)
            kept = tl.where(keep, p * keep_scale, 0.0)
            dp = tl.where(keep, dp * keep_scale, 0.0)
        ds = (p * (dp - row_dots[None, :])).to(q1.dtype)
        dv1 = tl.dot(kept.to(g1.dtype), g1, dv1, input_precision=PRECISION)
        if E2 > 0:
            dv2 = tl.dot(kept.to(g2.dtype), g2, dv2, input_precision=PRECISION)
        dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION)  # [COLS, 2 C1]
        if C2 > 0:
            dk2 = tl.dot(ds, q2, dk2, input_precision=PRECISION)
    return dk1, dk2, dv1, dv2


@triton.jit
def store_key_gradient(
    dk, K, DK, COARSE, FINE, stride_k_row, stride_k_column, stride_dk_row,
    near, left, origin, valid, columns, factor,
    D: tl.constexpr, C: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """dk' (cos and sin interleaved) -> dk: back along the rotation, then through softplus."""
    inside = (near < left)[:, None]
    cosine, sine = turn_tile(COARSE, FINE, origin, near, columns, D)
    along, across = tl.split(tl.reshape(dk, (COLS, C, 2)))
    address = K + near[:, None] * stride_k_row + columns[None, :] * stride_k_column
    k = tl.load(address, inside & (columns < D)[None, :], 0.0).to(tl.float32)
    gradient = (along * cosine + across * sine) * sigmoid(k) * factor
    store_tile(DK, tl.where(valid[:, None], gradient, 0.0), near, stride_dk_row, columns, left, D)


@triton.jit(do_not_specialize=SIZES)
def backward_keys(
    POLAR_Q, K, POLAR_K, V, GRAD, LOGSUM, ROW_DOTS, DK, DV, COARSE, FINE, FIRST, LAST, OFFSETS, LENGTHS, SEED,
    stride_k_batch, stride_k_head, stride_k_row, stride_k_column,
    stride_v_batch, stride_v_head, stride_v_row, stride_v_column,
    stride_grad_batch, stride_grad_head, stride_grad_row, stride_grad_column,
    stride_dk_batch, stride_dk_head, stride_dk_row,
    pairs, span, heads, queries, length, offset, keep_scale, threshold,
    GROUP: tl.constexpr, D: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    CAUSAL: tl.constexpr, DOCUMENTS: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys: all queries that see it, of every head of its group in turn."""
    block, pair = place(tl.cdiv(length, COLS), pairs, span)  # pairs of sequence and key head
    begin = block * COLS
    key_heads = heads // GROUP
    batch, key_head = pair // key_heads, pair % key_heads
    keys_end = length
    if HAS_OFFSETS:
        offset = tl.load(OFFSETS + batch)
    if HAS_LENGTHS:
        keys_end = tl.minimum(length, tl.load(LENGTHS + batch))
    near, left = tl.arange(0, COLS), length - begin
    keys = begin + near
    K += batch * stride_k_batch + key_head * stride_k_head + begin.to(tl.int64) * stride_k_row
    V += batch * stride_v_batch + key_head * stride_v_head + begin.to(tl.int64) * stride_v_row
    polar = POLAR_K + (pair * padded(length) + begin) * (2 * D)
    k1 = load_polar(polar, near, tl.arange(0, 2 * C1), D, C1 + C2 == D)
    v1 = load_tile(V, near, stride_v_row, tl.arange(0, E1), stride_v_column, keys_end - begin, D, E1, E2)
    k2, v2 = k1, v1
    if C2 > 0:
        k2 = load_polar(polar, near, 2 * C1 + tl.arange(0, 2 * C2), D, C1 + C2 == D)
    if E2 > 0:
        v2 = load_tile(V, near, stride_v_row, E1 + tl.arange(0, E2), stride_v_column, keys_end - begin, D, E1, E2)

    lowest, lowest_full, highest_full, highest = 0, 0, queries, queries
    last_query = tl.zeros([COLS], tl.int32) + queries
    if DOCUMENTS:
        FIRST += batch * length
        LAST += batch * length
        end = tl.minimum(begin + COLS, length) - 1
        last_query = tl.load(LAST + keys, keys < length, 0)
        first_query = tl.load(FIRST + keys, keys < length, 0)
        lowest, lowest_full = tl.load(FIRST + begin), tl.load(FIRST + end)
        highest_full, highest = tl.load(LAST + begin), tl.load(LAST + end)
    else:
        first_query = tl.zeros([COLS], tl.int32)
    if CAUSAL:
        lowest = tl.maximum(lowest, begin - offset)
        lowest_full = tl.maximum(lowest_full, begin + COLS - 1 - offset)
    if HAS_LENGTHS:
        highest = tl.where(begin < keys_end, highest, 0)
    a, b, c, d = ranges(lowest, lowest_full, highest_full, highest, ROWS)
    if not DOCUMENTS:
        c = d  # the last tile needs no mask

    dk1 = tl.zeros([COLS, 2 * C1], tl.float32)
    dv1 = tl.zeros([COLS, E1], tl.float32)
    dk2 = tl.zeros([COLS, 2 * C2 if C2 > 0 else 16], tl.float32)
    dv2 = tl.zeros([COLS, E2 if E2 > 0 else 16], tl.float32)
    for member in range(GROUP):
        head = key_head * GROUP + member
        query_pair = batch * heads + head
        polar = POLAR_Q + query_pair * padded(queries) * (2 * D)
        grad = GRAD + batch * stride_grad_batch + head * stride_grad_head
        logsum, row_dots = LOGSUM + query_pair * padded(queries), ROW_DOTS + query_pair * padded(queries)
        dk1, dk2, dv1, dv2 = gather_queries(
            dk1, dk2, dv1, dv2, k1, k2, v1, v2, polar, grad, logsum, row_dots, stride_grad_row, stride_grad_column,
            a, b, c, d, queries, offset, keys, first_query, last_query, SEED, query_pair, keep_scale, threshold,
            D, C1, C2, E1, E2, ROWS, CAUSAL, DROPOUT, PRECISION,
        )  # fmt: skip
    DK += batch * stride_dk_batch + key_head * stride_dk_head + begin.to(tl.int64) * stride_dk_row
    DV += batch * stride_dk_batch + key_head * stride_dk_head + begin.to(tl.int64) * stride_dk_row
    valid = keys < keys_end
    # dk' was gathered from queries that carry log2 e and the softmax scale: take log2 e back out.
    store_key_gradient(
        dk1, K, DK, COARSE, FINE, stride_k_row, stride_k_column, stride_dk_row,
        near, left, begin, valid, tl.arange(0, C1), 1.0 / _LOG2_E, D, C1, COLS,
    )  # fmt: skip
    store_tile(DV, tl.where(valid[:, None], dv1, 0.0), near, stride_dk_row, tl.arange(0, E1), left, D)
    if C2 > 0:
        store_key_gradient(
            dk2, K, DK, COARSE, FINE, stride_k_row, stride_k_column, stride_dk_row,
            near, left, begin, valid, C1 + tl.arange(0, C2), 1.0 / _LOG2_E, D, C2, COLS,
        )  # fmt: skip
    if E2 > 0:
        store_tile(DV, tl.where(valid[:, None], dv2, 0.0), near, stride_dk_row, E1 + tl.arange(0, E2), left, D)


@triton.jit
def gather_keys(
    dq1, dq2,
    q1, q2, g1, g2, POLAR, V, stride_v_row, stride_v_column,
    start, plain, plain_end, stop, keys_end, logsum, row_dots,
    position, first_key, last_key, noise1, noise2, keep_scale, threshold,
    D: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, COLS: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to dq' of a tile of queries what the keys start..stop-1 send; tiles are [queries, keys]."""
    near = tl.arange(0, COLS)
    for begin in tl.range(start, stop, COLS):
        left = keys_end - begin
        keys = begin + near
        polar = POLAR + tl.cast(begin, tl.int64) * (2 * D)
        k1 = load_polar(polar, near, tl.arange(0, 2 * C1), D, C1 + C2 == D)
        s = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
        if C2 > 0:
            k2 = load_polar(polar, near, 2 * C1 + tl.arange(0, 2 * C2), D, C1 + C2 == D)
            s = tl.dot(q2, tl.trans(k2), s, input_precision=PRECISION)
        values = V + tl.cast(begin, tl.int64) * stride_v_row
        v = load_tile(values, near, stride_v_row, tl.arange(0, E1), stride_v_column, left, D, E1, E2)
        dp = tl.dot(g1, tl.trans(v), input_precision=PRECISION)
        if E2 > 0:
            v = load_tile(values, near, stride_v_row, E1 + tl.arange(0, E2), stride_v_column, left, D, E1, E2)
            dp = tl.dot(g2, tl.trans(v), dp, input_precision=PRECISION)
        p = tl.exp2(s - logsum[:, None])
        if (begin < plain) | (begin >= plain_end):
            seen = (keys[None, :] >= first_key[:, None]) & (keys[None, :] < last_key[:, None])
            if CAUSAL:
                seen = seen & (keys[None, :] <= position[:, None])
            p = tl.where(seen, p, 0.0)
        if DROPOUT:
            keep = dropout_keep(noise1[:, None], noise2[:, None], keys[None, :], threshold)
            dp = tl.where(keep, dp * keep_scale, 0.0)
        ds = (p * (dp - row_dots[:, None])).to(k1.dtype)
        dq1 = tl.dot(ds, k1, dq1, input_precision=PRECISION)  # [ROWS, 2 C1]
        if C2 > 0:
            dq2 = tl.dot(ds, k2, dq2, input_precision=PRECISION)
    return dq1, dq2


@triton.jit
def store_query_gradient(
    dq, Q, DQ, TURN, DELTA_PART, COARSE, FINE, stride_q_row, stride_q_column, stride_dq_row,
    near, left, origin, columns, scale,
    D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dq' (cos and sin interleaved) -> dq and this tile's share of ddelta."""
    inside = (near < left)[:, None]
    cosine, sine = turn_query_tile(COARSE, FINE, TURN, origin, near, columns, D)
    along, across = tl.split(tl.reshape(dq * scale, (ROWS, C, 2)))
    address = Q + near[:, None] * stride_q_row + columns[None, :] * stride_q_column
    q = tl.load(address, inside & (columns < D)[None, :], 0.0).to(tl.float32)
    gradient = (along * cosine + across * sine) * sigmoid(q)
    store_tile(DQ, gradient, near, stride_dq_row, columns, left, D)
    # d cos(phi) / d delta = sin(phi), d sin(phi) / d delta = -cos(phi)
    part = tl.where(inside, (along * sine - across * cosine) * softplus(q), 0.0)
    tl.store(DELTA_PART + columns, tl.sum(part, 0), columns < D)


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    Q, POLAR_Q, POLAR_K, V, GRAD, LOGSUM, ROW_DOTS, DQ, TURN, DELTA_PART, COARSE, FINE,
    FIRST, LAST, OFFSETS, LENGTHS, SEED,
    stride_q_batch, stride_q_head, stride_q_row, stride_q_column,
    stride_v_batch, stride_v_head, stride_v_row, stride_v_column,
    stride_grad_batch, stride_grad_head, stride_grad_row, stride_grad_column,
    stride_dq_batch, stride_dq_head, stride_dq_row,
    pairs, span, heads, queries, keys, offset, scale, keep_scale, threshold,
    GROUP: tl.constexpr, D: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    CAUSAL: tl.constexpr, DOCUMENTS: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries, and its part of ddelta."""
    blocks = tl.cdiv(queries, ROWS)
    block, pair = place(blocks, pairs, span)
    block = blocks - 1 - block
    begin = block * ROWS
    batch, head = pair // heads, pair % heads
    keys_end = keys
    if HAS_OFFSETS:
        offset = tl.load(OFFSETS + batch)
    if HAS_LENGTHS:
        keys_end = tl.minimum(keys, tl.load(LENGTHS + batch))
    near, left = tl.arange(0, ROWS), queries - begin
    rows = begin + near
    far = begin.to(tl.int64)
    POLAR_Q += (pair * padded(queries) + begin) * (2 * D)
    POLAR_K += (pair // GROUP) * padded(keys) * (2 * D)
    V += batch * stride_v_batch + (head // GROUP) * stride_v_head
    GRAD += batch * stride_grad_batch + head * stride_grad_head + far * stride_grad_row
    q1 = load_polar(POLAR_Q, near, tl.arange(0, 2 * C1), D, C1 + C2 == D)
    g1 = load_tile(GRAD, near, stride_grad_row, tl.arange(0, E1), stride_grad_column, left, D, E1, E2)
    q2, g2 = q1, g1
    if C2 > 0:
        q2 = load_polar(POLAR_Q, near, 2 * C1 + tl.arange(0, 2 * C2), D, C1 + C2 == D)
    if E2 > 0:
        g2 = load_tile(GRAD, near, stride_grad_row, E1 + tl.arange(0, E2), stride_grad_column, left, D, E1, E2)
    logsum = tl.load(LOGSUM + pair * padded(queries) + rows)
    row_dots = tl.load(ROW_DOTS + pair * padded(queries) + rows)
    a, b, c, d, first_key, last_key = key_ranges(
        FIRST, LAST, batch, begin, rows, queries, keys_end, offset, ROWS, COLS, CAUSAL, DOCUMENTS
    )
    noise1, noise2 = rows, rows
    if DROPOUT:
        noise1, noise2 = dropout_rows(SEED, pair, rows)
    dq1 = tl.zeros([ROWS, 2 * C1], tl.float32)
    dq2 = tl.zeros([ROWS, 2 * C2 if C2 > 0 else 16], tl.float32)
    dq1, dq2 = gather_keys(
        dq1, dq2, q1, q2, g1, g2, POLAR_K, V, stride_v_row, stride_v_column, a, b, c, d, keys_end,
        logsum, row_dots, rows + offset, first_key, last_key, noise1, noise2, keep_scale, threshold,
        D, C1, C2, E1, E2, COLS, CAUSAL, DROPOUT, PRECISION,
    )  # fmt: skip
    Q += batch * stride_q_batch + head * stride_q_head + far * stride_q_row
    DQ += batch * stride_dq_batch + head * stride_dq_head + far * stride_dq_row
    TURN += head * (2 * D)
    DELTA_PART += (pair * blocks + block) * D
    store_query_gradient(
        dq1, Q, DQ, TURN, DELTA_PART, COARSE, FINE, stride_q_row, stride_q_column, stride_dq_row,
        near, left, offset + begin, tl.arange(0, C1), scale, D, C1, ROWS,
    )  # fmt: skip
    if C2 > 0:
        store_query_gradient(
            dq2, Q, DQ, TURN, DELTA_PART, COARSE, FINE, stride_q_row, stride_q_column, stride_dq_row,
            near, left, offset + begin, C1 + tl.arange(0, C2), scale, D, C2, ROWS,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# Launching
# ---------------------------------------------------------------------------------------------------------------


class Tiles(NamedTuple):
    """Sizes of one kernel's tiles and of the program that works on them."""

    rows: int
    cols: int
    warps: int
    stages: int
    registers: int | None = None  # at most so many a thread, so that more programs share a multiprocessor


class Tiling(NamedTuple):
    """The three kernels' tiles."""

    forward: Tiles
    backward_keys: Tiles
    backward_queries: Tiles


# Measured on an H100 (benchmarks/results/attention-notes.md) for 16-bit elements, by the columns that the head
# dimension takes. Static, not autotuned: results are then the same on every run, and nothing is timed in a user's
# first step. Small programs that share a multiprocessor overlap one's softmax with another's matrix products.
_NARROW = Tiling(Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3, 168), Tiles(64, 64, 4, 3, 168))
_WIDE = Tiling(Tiles(128, 64, 8, 3), Tiles(32, 128, 8, 2), Tiles(128, 64, 8, 2))
HOPPER = {
    16: _NARROW,
    32: _NARROW,
    48: _NARROW,
    64: Tiling(Tiles(64, 32, 4, 3, 128), Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 2, 168)),
    80: _WIDE,
    96: _WIDE,
    128: _WIDE,
}
# Beyond 4096 keys the second level cache's bandwidth counts for more than how many programs there are.
HOPPER_LONG = HOPPER | {64: Tiling(Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3))}
# For every other GPU and for fp32: small enough for 96 KB of shared memory.
SMALL = {
    16: Tiling(Tiles(64, 32, 4, 2), Tiles(32, 64, 4, 2), Tiles(64, 32, 4, 2)),
    32: Tiling(Tiles(64, 32, 4, 2), Tiles(32, 64, 4, 2), Tiles(64, 32, 4, 2)),
    64: Tiling(Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 1), Tiles(32, 32, 4, 1)),
    128: Tiling(Tiles(32, 32, 8, 1), Tiles(16, 32, 8, 1), Tiles(32, 16, 8, 1)),
}
# For Triton's interpreter: so small that small tests cross every border.
INTERPRETED = Tiling(Tiles(32, 16, 4, 1), Tiles(16, 32, 4, 1), Tiles(32, 16, 4, 1))


def split_head_dim(dim: int) -> tuple[int, int]:
    """D as one or two powers of two, of which the tensor cores want at least 16: 48 -> (32, 16), 56 -> (64, 0)."""
    whole = _padded(dim)
    largest = max(16, 1 << (dim.bit_length() - 1))
    rest = _padded(dim - largest) if dim > largest else 0
    return (largest, rest) if largest + rest < whole else (whole, 0)


def split_values(dim: int) -> tuple[int, int]:
    """The columns of values, likewise, but 48 is 64: with 16 apart ptxas makes matrix products wait (C7514)."""
    return split_head_dim(dim) if dim > 64 else (_padded(dim), 0)


def _padded(dim: int) -> int:
    """Columns that one tile needs for so many: a power of two, at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def choose_tiling(dim: int, keys: int, dtype: torch.dtype, device: torch.device) -> Tiling:
    """Tiles for a head dimension, a number of keys, a dtype and a GPU."""
    if device.type == "cpu":
        return INTERPRETED
    if dtype.itemsize == 2 and torch.cuda.get_device_capability(device) >= (9, 0):
        properties = torch.cuda.get_device_properties(device)
        if getattr(properties, "shared_memory_per_block_optin", 0) >= 220_000:
            return (HOPPER if keys <= 4096 else HOPPER_LONG)[sum(split_head_dim(dim))]
    return SMALL[_padded(dim)]


class Problem(NamedTuple):
    """What both passes need besides q, k and v."""

    turns: Tensor  # (H, 2D) fp32: the cosines and then the sines of delta
    tables: RotationTables
    first: Tensor | None  # (B, L) int32: first key that each query may see, for packed documents
    last: Tensor | None  # (B, L) int32: end of the keys that each query may see
    offsets: Tensor | None  # (B,) int32: position of each sequence's first query, instead of `offset`
    lengths: Tensor | None  # (B,) int32: keys of each sequence
    seed: Tensor | None  # (1,) int64
    offset: int
    causal: bool
    scale: float
    dropout_p: float

    @property
    def keep_scale(self) -> float:
        return 1.0 / (1.0 - self.dropout_p)

    @property
    def threshold(self) -> int:
        """31 random bits below this drop a weight."""
        return round(self.dropout_p * (1 << 31))


def like_tokens(x: Tensor) -> Tensor:
    """An empty (B, H, L, D) that lies in memory as (B, L, H, D): what the output projection reads, uncopied."""
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, length, heads, dim).transpose(1, 2)


def new_row_sums(q: Tensor) -> Tensor:
    """Empty (B, H, Lq rounded up to whole tiles) fp32, one number a query (`padded`)."""
    batch, heads, queries, _ = q.shape
    return q.new_empty(batch, heads, (queries + PAD - 1) // PAD * PAD, dtype=torch.float32)


ROTATED_ROWS = 32


def new_polar(x: Tensor) -> Tensor:
    """Empty (B, H, L rounded up to whole tiles, 2D)."""
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, heads, (length + PAD - 1) // PAD * PAD, 2 * dim)


def launch_rotate(
    q: Tensor, k: Tensor, polar_q: Tensor, polar_k: Tensor, problem: Problem,
    out: Tensor | None = None, grad: Tensor | None = None, row_dots: Tensor | None = None,
) -> None:  # fmt: skip
    """Fill polar_q and polar_k (`new_polar`); for the backward pass row_dots too (`new_row_sums`)."""
    (batch, heads, queries, dim), (key_heads, keys) = q.shape, k.shape[1:3]
    key_programs = polar_k.shape[2] // ROTATED_ROWS * batch * key_heads
    query_programs = polar_q.shape[2] // ROTATED_ROWS * batch * heads
    rotate[(key_programs + query_programs,)](
        q, k, polar_q, polar_k, problem.turns, out, grad, row_dots, problem.tables.coarse, problem.tables.fine,
        problem.offsets, problem.lengths,
        *q.stride(), *k.stride(), *(out.stride()[:3] if out is not None else (0, 0, 0)),
        *(grad.stride() if grad is not None else (0, 0, 0, 0)),
        key_programs, heads, queries, keys, problem.offset, problem.scale * LOG2_E,
        GROUP=heads // key_heads, D=dim, C=_padded(dim), ROWS=ROTATED_ROWS,
        HAS_OFFSETS=problem.offsets is not None, HAS_LENGTHS=problem.lengths is not None, BACKWARD=out is not None,
    )  # fmt: skip


def _span(pairs: int, length: int, v: Tensor) -> int:
    """How many pairs may start their longest blocks together: those whose streamed operands fill half the L2."""
    if v.device.type == "cpu":
        return 3  # an odd number, so that interpreted tests see a group that is not full
    half = torch.cuda.get_device_properties(v.device).L2_cache_size // 2
    return max(1, min(pairs, half // (3 * v.shape[-1] * length * v.element_size())))


def _options(problem: Problem, dim: int, group: int, tiles: Tiles) -> dict[str, object]:
    (c1, c2), (e1, e2) = split_head_dim(dim), split_values(dim)
    return {
        "GROUP": group,
        "D": dim,
        "C1": c1,
        "C2": c2,
        "E1": e1,
        "E2": e2,
        "ROWS": tiles.rows,
        "COLS": tiles.cols,
        "CAUSAL": problem.causal,
        "DOCUMENTS": problem.first is not None,
        "HAS_OFFSETS": problem.offsets is not None,
        "HAS_LENGTHS": problem.lengths is not None,
        "DROPOUT": problem.dropout_p > 0,
        "PRECISION": "tf32x3",  # of fp32 inputs: near fp32's accuracy on the tensor cores
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        **({"maxnreg": tiles.registers} if tiles.registers else {}),
    }


def launch_forward(
    polar_q: Tensor, polar_k: Tensor, v: Tensor, out: Tensor, logsum: Tensor, problem: Problem, tiles: Tiles
) -> None:
    """Fill out (B, H, Lq, D) and logsum (B, H, Lq)."""
    (batch, heads, queries, dim), (key_heads, keys) = out.shape, v.shape[1:3]
    pairs = batch * heads
    forward[(triton.cdiv(queries, tiles.rows) * pairs,)](
        polar_q, polar_k, v, out, logsum,
        problem.first, problem.last, problem.offsets, problem.lengths, problem.seed,
        *v.stride(), *out.stride()[:3],
        pairs, _span(pairs, keys, v), heads, queries, keys, problem.offset, problem.keep_scale, problem.threshold,
        **_options(problem, dim, heads // key_heads, tiles),
    )  # fmt: skip


def launch_backward_keys(
    polar_q: Tensor, k: Tensor, polar_k: Tensor, v: Tensor, grad: Tensor, logsum: Tensor, row_dots: Tensor,
    dk: Tensor, dv: Tensor, problem: Problem, tiles: Tiles,
) -> None:  # fmt: skip
    """Fill dk and dv (B, Hkv, Lk, D), which are laid out alike."""
    (batch, heads, queries, dim), (key_heads, keys) = grad.shape, k.shape[1:3]
    pairs = batch * key_heads
    backward_keys[(triton.cdiv(keys, tiles.cols) * pairs,)](
        polar_q, k, polar_k, v, grad, logsum, row_dots, dk, dv, problem.tables.coarse, problem.tables.fine,
        problem.first, problem.last, problem.offsets, problem.lengths, problem.seed,
        *k.stride(), *v.stride(), *grad.stride(), *dk.stride()[:3],
        pairs, _span(pairs, queries, v), heads, queries, keys, problem.offset, problem.keep_scale,
        problem.threshold,
        **_options(problem, dim, heads // key_heads, tiles),
    )  # fmt: skip


def launch_backward_queries(
    q: Tensor, polar_q: Tensor, polar_k: Tensor, v: Tensor, grad: Tensor, logsum: Tensor,
    row_dots: Tensor, dq: Tensor, problem: Problem, tiles: Tiles,
) -> Tensor:  # fmt: skip
    """Fill dq (B, H, Lq, D); ddelta in parts, (B, H, tiles, D) fp32."""
    (batch, heads, queries, dim), (key_heads, keys) = q.shape, v.shape[1:3]
    parts = triton.cdiv(queries, tiles.rows)
    delta_part = q.new_empty(batch, heads, parts, dim, dtype=torch.float32)
    pairs = batch * heads
    backward_queries[(parts * pairs,)](
        q, polar_q, polar_k, v, grad, logsum, row_dots, dq, problem.turns, delta_part,
        problem.tables.coarse, problem.tables.fine,
        problem.first, problem.last, problem.offsets, problem.lengths, problem.seed,
        *q.stride(), *v.stride(), *grad.stride(), *dq.stride()[:3],
        pairs, _span(pairs, keys, v), heads, queries, keys, problem.offset, problem.scale, problem.keep_scale,
        problem.threshold,
        **_options(problem, dim, heads // key_heads, tiles),
    )  # fmt: skip
    return delta_part


def attention_forward(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (B, H, Lq, D) and the log2 of each query's softmax sum (`new_row_sums`)."""
    out, logsum, polar_q, polar_k = like_tokens(q), new_row_sums(q), new_polar(q), new_polar(k)
    tiles = choose_tiling(q.shape[-1], k.shape[2], q.dtype, q.device).forward
    launch_rotate(q, k, polar_q, polar_k, problem)
    launch_forward(polar_q, polar_k, v, out, logsum, problem, tiles)
    return out, logsum


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsum: Tensor, problem: Problem
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv as q, k, v and ddelta (H, D) fp32."""
    tiling = choose_tiling(q.shape[-1], k.shape[2], q.dtype, q.device)
    polar_q, polar_k, row_dots = new_polar(q), new_polar(k), new_row_sums(q)
    dq, dk, dv = like_tokens(q), like_tokens(k), like_tokens(v)
    launch_rotate(q, k, polar_q, polar_k, problem, out, grad, row_dots)
    delta_part = launch_backward_queries(
        q, polar_q, polar_k, v, grad, logsum, row_dots, dq, problem, tiling.backward_queries
    )
    launch_backward_keys(polar_q, k, polar_k, v, grad, logsum, row_dots, dk, dv, problem, tiling.backward_keys)
    return dq, dk, dv, delta_part.sum((0, 2))
