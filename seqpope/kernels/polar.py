"""What precedes attention: queries and keys as projected become polar vectors of twice the width."""

from __future__ import annotations

import triton
import triton.language as tl

from seqpope.kernels.tiles import SIZES, padded, polar_query, softplus, store_tile, turn_tile


@triton.jit
def rotate_keys(
    K, POLAR_K, COARSE, FINE, LENGTHS, stride_batch, stride_head, stride_row, stride_column,
    block, pair, key_heads, keys,
    D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """A block of K (B, Hkv, Lk, D) as projected -> POLAR_K (B, Hkv, Lk padded, 2D); zeros behind the last key."""
    begin = block * ROWS
    batch, head = pair // key_heads, pair % key_heads
    near, columns = tl.arange(0, ROWS), tl.arange(0, C)
    end = keys
    if HAS_LENGTHS:  # what lies behind them may be anything, and 0 x nan is nan
        end = tl.minimum(keys, tl.load(LENGTHS + batch))
    inside = (near < end - begin)[:, None] & (columns < D)[None, :]
    K += batch * stride_batch + head * stride_head + begin.to(tl.int64) * stride_row
    x = tl.load(K + near[:, None] * stride_row + columns[None, :] * stride_column, inside, 0.0)
    cosine, sine = turn_tile(COARSE, FINE, begin, near, columns, D)
    magnitude = tl.where(inside, softplus(x.to(tl.float32)), 0.0)
    polar = tl.interleave(magnitude * cosine, magnitude * sine)
    POLAR_K += (pair * padded(keys) + begin) * (2 * D)
    store_tile(POLAR_K, polar, near, 2 * D, tl.arange(0, 2 * C), ROWS, 2 * D)


@triton.jit
def rotate_queries(
    Q, POLAR_Q, TURN, COARSE, FINE, stride_batch, stride_head, stride_row, stride_column,
    block, pair, heads, queries, sharers, offset, scale,
    D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A block of Q (B, H, Lq, D) -> POLAR_Q (B, H, Lq padded, 2D), turned by delta too, and scaled.

    So many sequences (`sharers`), one after the other, share one delta.
    """
    begin = block * ROWS
    batch, head = pair // heads, pair % heads
    near, columns = tl.arange(0, ROWS), tl.arange(0, C)
    Q += batch * stride_batch + head * stride_head + begin.to(tl.int64) * stride_row
    TURN += (batch // sharers * heads + head) * (2 * D)
    origin = tl.where(begin < queries, offset + begin, 0)  # padding may lie beyond the tables: 0 x nan is nan
    polar = polar_query(
        Q, stride_row, stride_column, TURN, COARSE, FINE, near, queries - begin, origin, columns, scale, D
    )
    POLAR_Q += (pair * padded(queries) + begin) * (2 * D)
    store_tile(POLAR_Q, polar, near, 2 * D, tl.arange(0, 2 * C), ROWS, 2 * D)


@triton.jit
def dot_rows(
    OUT, GRAD, ROW_DOTS, stride_out_batch, stride_out_head, stride_out_row,
    stride_grad_batch, stride_grad_head, stride_grad_row, stride_grad_column,
    block, pair, heads, queries,
    D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Each query's sum of grad x out, which the gradient of its softmax subtracts; 0 behind the last query."""
    begin = block * ROWS
    batch, head = pair // heads, pair % heads
    near, columns = tl.arange(0, ROWS), tl.arange(0, C)
    inside = (near < queries - begin)[:, None] & (columns < D)[None, :]
    OUT += batch * stride_out_batch + head * stride_out_head + begin.to(tl.int64) * stride_out_row
    GRAD += batch * stride_grad_batch + head * stride_grad_head + begin.to(tl.int64) * stride_grad_row
    out = tl.load(OUT + near[:, None] * stride_out_row + columns[None, :], inside, 0.0)
    grad = tl.load(GRAD + near[:, None] * stride_grad_row + columns[None, :] * stride_grad_column, inside, 0.0)
    tl.store(ROW_DOTS + pair * padded(queries) + begin + near, tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1))


@triton.jit(do_not_specialize=SIZES)
def pope_rotate(
    Q, K, POLAR_Q, POLAR_K, TURN, COARSE, FINE, OUT, GRAD, ROW_DOTS, OFFSETS, LENGTHS,
    stride_q_batch, stride_q_head, stride_q_row, stride_q_column,
    stride_k_batch, stride_k_head, stride_k_row, stride_k_column,
    stride_out_batch, stride_out_head, stride_out_row,
    stride_grad_batch, stride_grad_head, stride_grad_row, stride_grad_column,
    key_programs, heads, queries, keys, sharers, offset, scale,
    GROUP: tl.constexpr, D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
    HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Q, K (B, H or Hkv, L, D) -> POLAR_Q, POLAR_K (B, H or Hkv, L padded, 2D); with BACKWARD, ROW_DOTS too."""
    program = tl.program_id(0)
    if program < key_programs:
        blocks = padded(keys) // ROWS
        rotate_keys(
            K, POLAR_K, COARSE, FINE, LENGTHS, stride_k_batch, stride_k_head, stride_k_row, stride_k_column,
            program % blocks, (program // blocks).to(tl.int64), heads // GROUP, keys, D, C, ROWS, HAS_LENGTHS,
        )  # fmt: skip
    else:
        program -= key_programs
        blocks = padded(queries) // ROWS
        block, pair = program % blocks, (program // blocks).to(tl.int64)
        if HAS_OFFSETS:
            offset = tl.load(OFFSETS + pair // heads)
        rotate_queries(
            Q, POLAR_Q, TURN, COARSE, FINE, stride_q_batch, stride_q_head, stride_q_row, stride_q_column,
            block, pair, heads, queries, sharers, offset, scale, D, C, ROWS,
        )  # fmt: skip
        if BACKWARD:
            dot_rows(
                OUT, GRAD, ROW_DOTS, stride_out_batch, stride_out_head, stride_out_row,
                stride_grad_batch, stride_grad_head, stride_grad_row, stride_grad_column,
                block, pair, heads, queries, D, C, ROWS,
            )  # fmt: skip
