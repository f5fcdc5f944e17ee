"""The forward pass of PoPE attention in Triton; `flash` launches it and says what it is built on."""

from __future__ import annotations

import triton
import triton.language as tl

from seqpope.kernels.tiles import (
    _PAD,
    SIZES,
    dropout_keep,
    dropout_rows,
    load_polar,
    load_tile,
    padded,
    place,
    store_tile,
)


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
def pope_forward(
    POLAR_Q, POLAR_K, V, OUT, LOGSUM, FIRST, LAST, OFFSETS, LENGTHS, SEED,
    stride_v_batch, stride_v_head, stride_v_row, stride_v_column,
    pairs, span, heads, queries, keys, offset, keep_scale, threshold,
    GROUP: tl.constexpr, D: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    CAUSAL: tl.constexpr, DOCUMENTS: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head against all keys it may see; the longest causal tiles start first.

    OUT lies as (B, Lq, H, D).
    """
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
    stride_out_row = heads * D
    OUT += (batch * queries + begin) * stride_out_row + head * D
    store_tile(OUT, acc1 * share[:, None], near, stride_out_row, tl.arange(0, E1), left, D)
    if E2 > 0:
        store_tile(OUT, acc2 * share[:, None], near, stride_out_row, E1 + tl.arange(0, E2), left, D)
    logsum = tl.where(empty, float("inf"), highest + tl.log2(tl.where(empty, 1.0, total)))
    LOGSUM += pair * padded(queries)
    tl.store(LOGSUM + rows, logsum)
    if begin + ROWS >= queries:
        rest = begin + ROWS + tl.arange(0, _PAD)
        tl.store(LOGSUM + rest, tl.full([_PAD], float("inf"), tl.float32), rest < padded(queries))
