"""The backward pass of PoPE attention in Triton; `flash` launches it and says what it is built on.

One kernel sums over queries for dk and dv of a tile of keys, another over keys for dq and ddelta of a tile of
queries. Both compute the weights anew; there are no atomic sums, so that gradients are the same every time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from seqpope.kernels.forward import key_ranges, ranges
from seqpope.kernels.tiles import (
    _LOG2_E,
    SIZES,
    dropout_keep,
    dropout_rows,
    load_polar,
    load_tile,
    padded,
    place,
    sigmoid,
    store_tile,
    turn_tile,
)


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
def unrotate_queries(
    gradient, POLAR, X, stride_row, stride_column, near, left,
    D: tl.constexpr, FIRST: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Gradient of polar queries, interleaved, [ROWS, 2 C] -> those of X as projected and of its phase, [ROWS, C].

    The polar vector itself says where it points; tables and softplus need not be gone through again. Its magnitude
    is none where it was too small for its dtype: there the gradient, at most as large, is 0.
    """
    columns, wide = FIRST + tl.arange(0, C), 2 * FIRST + tl.arange(0, 2 * C)
    polar = tl.reshape(load_polar(POLAR, near, wide, D, EVEN).to(tl.float32), (ROWS, C, 2))
    cosine, sine = tl.split(polar)  # both times the magnitude
    along, across = tl.split(tl.reshape(gradient, (ROWS, C, 2)))
    size = cosine * cosine + sine * sine
    inside = (near < left)[:, None] & (columns < D)[None, :]
    x = tl.load(X + near[:, None] * stride_row + columns[None, :] * stride_column, inside, 0.0).to(tl.float32)
    direction = tl.rsqrt(size + 1e-37)
    return (along * cosine + across * sine) * direction * sigmoid(x), along * sine - across * cosine


@triton.jit
def unrotate_keys(
    gradient, K, COARSE, FINE, stride_row, stride_column, near, left, origin,
    D: tl.constexpr, FIRST: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The same of keys at origin + near, by tables: their polar tile would take registers from the loop."""
    columns = FIRST + tl.arange(0, C)
    cosine, sine = turn_tile(COARSE, FINE, origin, near, columns, D)
    along, across = tl.split(tl.reshape(gradient, (ROWS, C, 2)))
    inside = (near < left)[:, None] & (columns < D)[None, :]
    k = tl.load(K + near[:, None] * stride_row + columns[None, :] * stride_column, inside, 0.0).to(tl.float32)
    return tl.where(inside, (along * cosine + across * sine) * sigmoid(k), 0.0)


@triton.jit(do_not_specialize=SIZES)
def pope_backward_keys(
    POLAR_Q, K, POLAR_K, V, GRAD, LOGSUM, ROW_DOTS, DK, DV, COARSE, FINE, FIRST, LAST, OFFSETS, LENGTHS, SEED,
    stride_k_batch, stride_k_head, stride_k_row, stride_k_column,
    stride_v_batch, stride_v_head, stride_v_row, stride_v_column,
    stride_grad_batch, stride_grad_head, stride_grad_row, stride_grad_column, stride_dk_row,
    pairs, span, heads, queries, keys, offset, keep_scale, threshold,
    GROUP: tl.constexpr, D: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    CAUSAL: tl.constexpr, DOCUMENTS: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys: all queries that see it, of every head of its group in turn.

    DK and DV lie as (B, Lk, Hkv, D), rows `stride_dk_row` apart. The first keys start first: most queries see
    them.
    """
    block, pair = place(tl.cdiv(keys, COLS), pairs, span)  # pairs of sequence and key head
    begin = block * COLS
    key_heads = heads // GROUP
    batch, key_head = pair // key_heads, pair % key_heads
    keys_end = keys
    if HAS_OFFSETS:
        offset = tl.load(OFFSETS + batch)
    if HAS_LENGTHS:
        keys_end = tl.minimum(keys, tl.load(LENGTHS + batch))
    near, left = tl.arange(0, COLS), keys - begin
    positions = begin + near
    K += batch * stride_k_batch + key_head * stride_k_head + begin.to(tl.int64) * stride_k_row
    V += batch * stride_v_batch + key_head * stride_v_head + begin.to(tl.int64) * stride_v_row
    POLAR_K += (pair * padded(keys) + begin) * (2 * D)
    k1 = load_polar(POLAR_K, near, tl.arange(0, 2 * C1), D, C1 + C2 == D)
    v1 = load_tile(V, near, stride_v_row, tl.arange(0, E1), stride_v_column, keys_end - begin, D, E1, E2)
    k2, v2 = k1, v1
    if C2 > 0:
        k2 = load_polar(POLAR_K, near, 2 * C1 + tl.arange(0, 2 * C2), D, C1 + C2 == D)
    if E2 > 0:
        v2 = load_tile(V, near, stride_v_row, E1 + tl.arange(0, E2), stride_v_column, keys_end - begin, D, E1, E2)

    lowest, lowest_full, highest_full, highest = 0, 0, queries, queries
    last_query = tl.zeros([COLS], tl.int32) + queries
    if DOCUMENTS:
        FIRST += batch * keys
        LAST += batch * keys
        end = tl.minimum(begin + COLS, keys) - 1
        last_query = tl.load(LAST + positions, positions < keys, 0)
        first_query = tl.load(FIRST + positions, positions < keys, 0)
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
            a, b, c, d, queries, offset, positions, first_query, last_query,
            SEED, query_pair, keep_scale, threshold,
            D, C1, C2, E1, E2, ROWS, CAUSAL, DROPOUT, PRECISION,
        )  # fmt: skip
    DK += (batch * keys + begin) * stride_dk_row + key_head * D
    DV += (batch * keys + begin) * stride_dk_row + key_head * D
    valid = (positions < keys_end)[:, None]
    # dk' was gathered from queries that carry log2 e and the softmax scale: take log2 e back out.
    gradient = unrotate_keys(
        dk1, K, COARSE, FINE, stride_k_row, stride_k_column, near, keys_end - begin, begin, D, 0, C1, COLS
    )
    store_tile(DK, gradient / _LOG2_E, near, stride_dk_row, tl.arange(0, C1), left, D)
    if C2 > 0:
        gradient = unrotate_keys(
            dk2, K, COARSE, FINE, stride_k_row, stride_k_column, near, keys_end - begin, begin, D, C1, C2, COLS
        )
        store_tile(DK, gradient / _LOG2_E, near, stride_dk_row, C1 + tl.arange(0, C2), left, D)
    store_tile(DV, tl.where(valid, dv1, 0.0), near, stride_dk_row, tl.arange(0, E1), left, D)
    if E2 > 0:
        store_tile(DV, tl.where(valid, dv2, 0.0), near, stride_dk_row, E1 + tl.arange(0, E2), left, D)
    if OVERLAP:
        gdc_wait()


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


@triton.jit(do_not_specialize=SIZES)
def pope_backward_queries(
    Q, POLAR_Q, POLAR_K, V, GRAD, LOGSUM, ROW_DOTS, DQ, DELTA_PART,
    FIRST, LAST, OFFSETS, LENGTHS, SEED,
    stride_q_batch, stride_q_head, stride_q_row, stride_q_column,
    stride_v_batch, stride_v_head, stride_v_row, stride_v_column,
    stride_grad_batch, stride_grad_head, stride_grad_row, stride_grad_column, stride_dq_row,
    pairs, span, heads, queries, keys, offset, scale, keep_scale, threshold,
    GROUP: tl.constexpr, D: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    CAUSAL: tl.constexpr, DOCUMENTS: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries, and its part of ddelta; the last queries, which see most keys, start first.

    DQ lies as (B, Lq, H, D), its rows `stride_dq_row` apart, DELTA_PART as (B, H, tiles, D). `scale` is without
    log2 e; a negative one has turned the polar vectors round already.
    """
    if OVERLAP:
        gdc_launch_dependents()
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
    DQ += (batch * queries + begin) * stride_dq_row + head * D
    DELTA_PART += (pair * blocks + block) * D
    gradient, phase = unrotate_queries(
        dq1, POLAR_Q, Q, stride_q_row, stride_q_column, near, left, D, 0, C1, ROWS, C1 + C2 == D
    )
    store_tile(DQ, gradient * tl.abs(scale), near, stride_dq_row, tl.arange(0, C1), left, D)
    tl.store(DELTA_PART + tl.arange(0, C1), tl.sum(phase, 0) / _LOG2_E, tl.arange(0, C1) < D)
    if C2 > 0:
        columns = C1 + tl.arange(0, C2)
        gradient, phase = unrotate_queries(
            dq2, POLAR_Q, Q, stride_q_row, stride_q_column, near, left, D, C1, C2, ROWS, C1 + C2 == D
        )
        store_tile(DQ, gradient * tl.abs(scale), near, stride_dq_row, columns, left, D)
        tl.store(DELTA_PART + columns, tl.sum(phase, 0) / _LOG2_E, columns < D)
