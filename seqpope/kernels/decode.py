"""Attention for decoding, PoPE's and RoPE's: a few new queries against a long cache of keys as projected.

Decoding is bound by reading the cache, so the cache holds width D, as RoPE's does, and keys are rotated on the
way: scores depend on s - t alone, so each tile of keys is counted from its own first position. The keys' table is
then the same few rows for every tile, and the queries, few as they are, are turned anew by t minus that start.

The keys are split among programs; a second kernel joins the partial softmaxes (as in Flash-Decoding).

RoPE has a kernel here for one reason: what decoding with PoPE costs should be compared with something as good. It
is the same loop without softplus.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqpope.kernels.flash import like_tokens
from seqpope.kernels.launch import DECODE_ROWS, Launcher, card
from seqpope.kernels.rotation import STEP, RotationTables
from seqpope.kernels.tiles import LOG2_E, softplus, turn_one

SHIFT, LOW = tl.constexpr(STEP.bit_length() - 1), tl.constexpr(STEP - 1)
SIZES = ["parts", "key_heads", "queries", "keys", "offset", "last_position"]  # they grow with every token


@triton.jit
def turn_rows(COARSE, FINE, positions, columns, inside, D: tl.constexpr):
    """Cosine and sine of position x frequency for rows anywhere, [positions, columns]."""
    coarse = COARSE + (positions >> SHIFT)[:, None] * (2 * D) + columns[None, :]
    fine = FINE + (positions & LOW)[:, None] * (2 * D) + columns[None, :]
    cos_a, sin_a = tl.load(coarse, inside, 1.0), tl.load(coarse + D, inside, 0.0)
    cos_b, sin_b = tl.load(fine, inside, 1.0), tl.load(fine + D, inside, 0.0)
    return cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b


@triton.jit
def keys_of_part(
    OFFSETS, LENGTHS, batch, part, parts, queries, keys, offset, last_position,
    COLS: tl.constexpr, CAUSAL: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """Where a sequence's queries begin, and which keys, start..stop-1, are one part of what they see."""
    keys_end = keys
    if HAS_OFFSETS:
        offset = tl.minimum(tl.maximum(tl.load(OFFSETS + batch), 0), last_position).to(tl.int32)
    if HAS_LENGTHS:
        keys_end = tl.minimum(tl.maximum(tl.load(LENGTHS + batch), 0), keys).to(tl.int32)
    if CAUSAL:
        keys_end = tl.minimum(keys_end, offset + queries)
    share = (keys_end + parts * COLS - 1) // (parts * COLS) * COLS
    start = part * share
    return offset, start, tl.minimum(start + share, keys_end)


@triton.jit(do_not_specialize=SIZES)
def decode_part(
    Q, K, V, DELTA, COARSE, FINE, PART, LOGSUM, OFFSETS, LENGTHS,
    stride_q_batch, stride_q_head, stride_q_row, stride_q_column,
    stride_k_batch, stride_k_head, stride_k_row, stride_k_column,
    stride_v_batch, stride_v_head, stride_v_row, stride_v_column,
    parts, key_heads, queries, keys, offset, last_position, scale,
    GROUP: tl.constexpr, D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All queries of one group of heads against one of the parts that its keys are split into."""
    part, pair = tl.program_id(0) % parts, (tl.program_id(0) // parts).to(tl.int64)
    batch, key_head = pair // key_heads, pair % key_heads
    offset, start, stop = keys_of_part(
        OFFSETS, LENGTHS, batch, part, parts, queries, keys, offset, last_position,
        COLS, CAUSAL, HAS_OFFSETS, HAS_LENGTHS,
    )  # fmt: skip

    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, C)
    near = tl.arange(0, COLS)
    real = rows < GROUP * queries
    wide = (columns < D)[None, :]
    inside = real[:, None] & wide
    head = key_head * GROUP + rows // queries
    position = offset + rows % queries
    address = Q + batch * stride_q_batch + head[:, None] * stride_q_head + (rows % queries)[:, None] * stride_q_row
    q = tl.load(address + columns[None, :] * stride_q_column, inside, 0.0)
    magnitude = tl.where(inside, softplus(q.to(tl.float32)) * scale, 0.0)
    delta = tl.load(DELTA + head[:, None] * D + columns[None, :], inside, 0.0)
    # mu (cos delta, sin delta): only the turn by t - start is left to do for each tile
    along, across = magnitude * tl.cos(delta), magnitude * tl.sin(delta)
    cos_near = tl.load(FINE + near[:, None] * (2 * D) + columns[None, :], wide, 0.0)
    sin_near = tl.load(FINE + near[:, None] * (2 * D) + D + columns[None, :], wide, 0.0)

    K += batch * stride_k_batch + key_head * stride_k_head
    V += batch * stride_v_batch + key_head * stride_v_head
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, C], tl.float32)
    for begin in tl.range(start, stop, COLS):
        keys_here = begin + near
        there = (keys_here < stop)[:, None] & wide
        far = tl.cast(begin, tl.int64)
        k = tl.load(
            K + far * stride_k_row + near[:, None] * stride_k_row + columns[None, :] * stride_k_column, there, 0.0
        )
        v = tl.load(
            V + far * stride_v_row + near[:, None] * stride_v_row + columns[None, :] * stride_v_column, there, 0.0
        )
        mu = softplus(k.to(tl.float32))
        distance = position - begin
        cosine, sine = turn_rows(COARSE, FINE, tl.abs(distance), columns, inside, D)
        sine = tl.where((distance < 0)[:, None], -sine, sine)
        # (cos, sin) of (distance theta - delta)
        q_cos = (along * cosine + across * sine).to(k.dtype)
        q_sin = (along * sine - across * cosine).to(k.dtype)
        s = tl.dot(q_cos, tl.trans((mu * cos_near).to(k.dtype)), input_precision=PRECISION)
        s = tl.dot(q_sin, tl.trans((mu * sin_near).to(k.dtype)), s, input_precision=PRECISION)
        seen = (keys_here < stop)[None, :] & real[:, None]
        if CAUSAL:
            seen = seen & (keys_here[None, :] <= position[:, None])
        s = tl.where(seen, s, float("-inf"))
        higher = tl.maximum(highest, tl.max(s, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - level[:, None])
        fade = tl.exp2(highest - level)
        total = total * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
        highest = higher

    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    logsum = tl.where(empty, float("-inf"), highest + tl.log2(tl.where(empty, 1.0, total)))
    place = (pair * parts + part) * ROWS + rows
    tl.store(PART + place[:, None] * D + columns[None, :], acc, wide)
    tl.store(LOGSUM + place, logsum)


@triton.jit
def fold(s, v, highest, total, acc):
    """One more tile, scores [COLS] and values [COLS, C], into the softmaxes of its rows."""
    higher = tl.maximum(highest, s)
    level = tl.where(higher == float("-inf"), 0.0, higher)
    p, fade = tl.exp2(s - level), tl.exp2(highest - level)
    return higher, total * fade + p, acc * fade[:, None] + p[:, None] * v.to(tl.float32)


@triton.jit
def join_rows(
    highest, total, acc, PART, LOGSUM, OUT, place, target, columns, inside, D: tl.constexpr, WHOLE: tl.constexpr
):
    """The rows' softmaxes together, stored as one part, or as the output where one part is all."""
    level = tl.max(highest, 0)
    level = tl.where(level == float("-inf"), 0.0, level)
    weight = tl.exp2(highest - level)
    sum_of_all = tl.sum(total * weight, 0)
    some = tl.where(sum_of_all == 0.0, 1.0, sum_of_all)
    out = tl.sum(acc * weight[:, None], 0) / some
    if WHOLE:
        tl.store(OUT + target + columns, out.to(OUT.dtype.element_ty), inside)
    else:
        tl.store(PART + place * D + columns, out, inside)
        tl.store(LOGSUM + place, tl.where(sum_of_all == 0.0, float("-inf"), level + tl.log2(some)))


@triton.jit(do_not_specialize=SIZES)
def decode_part_of_one(
    Q, K, V, DELTA, COARSE, FINE, PART, LOGSUM, OUT, OFFSETS, LENGTHS,
    stride_q_batch, stride_q_head, stride_q_row, stride_q_column,
    stride_k_batch, stride_k_head, stride_k_row, stride_k_column,
    stride_v_batch, stride_v_head, stride_v_row, stride_v_column,
    stride_out_batch, stride_out_head,
    parts, key_heads, queries, keys, offset, last_position, scale,
    D: tl.constexpr, C: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr, WHOLE: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """The same of one query of one head, without matrix products: of 16 rows that they take, 15 would be none.

    Each row of a tile goes through a softmax of its own and they are joined at the end: in the loop no warp waits
    for another. All in fp32.
    """
    part, pair = tl.program_id(0) % parts, (tl.program_id(0) // parts).to(tl.int64)
    batch, head = pair // key_heads, pair % key_heads
    offset, start, stop = keys_of_part(
        OFFSETS, LENGTHS, batch, part, parts, queries, keys, offset, last_position,
        COLS, CAUSAL, HAS_OFFSETS, HAS_LENGTHS,
    )  # fmt: skip

    columns, near = tl.arange(0, C), tl.arange(0, COLS)
    inside = columns < D
    wide = inside[None, :]
    q = tl.load(Q + batch * stride_q_batch + head * stride_q_head + columns * stride_q_column, inside, 0.0)
    magnitude = tl.where(inside, softplus(q.to(tl.float32)) * scale, 0.0)
    delta = tl.load(DELTA + head * D + columns, inside, 0.0)
    along, across = magnitude * tl.cos(delta), magnitude * tl.sin(delta)
    cos_near = tl.load(FINE + near[:, None] * (2 * D) + columns[None, :], wide, 0.0)
    sin_near = tl.load(FINE + near[:, None] * (2 * D) + D + columns[None, :], wide, 0.0)

    K += batch * stride_k_batch + head * stride_k_head
    V += batch * stride_v_batch + head * stride_v_head
    highest = tl.full([COLS], float("-inf"), tl.float32)
    total = tl.zeros([COLS], tl.float32)
    acc = tl.zeros([COLS, C], tl.float32)
    for begin in tl.range(start, stop, COLS, num_stages=STAGES):
        there = (begin + near < stop)[:, None] & wide
        far = tl.cast(begin, tl.int64)
        k = tl.load(
            K + far * stride_k_row + near[:, None] * stride_k_row + columns[None, :] * stride_k_column, there, 0.0
        )
        v = tl.load(
            V + far * stride_v_row + near[:, None] * stride_v_row + columns[None, :] * stride_v_column, there, 0.0
        )
        distance = offset - begin
        cosine, sine = turn_one(COARSE, FINE, tl.abs(distance), columns, D)
        sine = tl.where(distance < 0, -sine, sine)
        q_cos, q_sin = along * cosine + across * sine, along * sine - across * cosine
        s = tl.sum(softplus(k.to(tl.float32)) * (cos_near * q_cos[None, :] + sin_near * q_sin[None, :]), 1)
        s = tl.where(begin + near < stop, s, float("-inf"))
        highest, total, acc = fold(s, v, highest, total, acc)
    target = batch * stride_out_batch + head * stride_out_head
    place = pair * parts + part
    join_rows(highest, total, acc, PART, LOGSUM, OUT, place, target, columns, inside, D, WHOLE)


@triton.jit(do_not_specialize=SIZES)
def rope_part_of_one(
    Q, K, V, COARSE, FINE, PART, LOGSUM, OUT, OFFSETS, LENGTHS,
    stride_q_batch, stride_q_head, stride_q_row, stride_q_column,
    stride_k_batch, stride_k_head, stride_k_row, stride_k_column,
    stride_v_batch, stride_v_head, stride_v_row, stride_v_column,
    stride_out_batch, stride_out_head,
    parts, key_heads, queries, keys, offset, last_position, scale,
    D: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, C_HALF: tl.constexpr, COLS: tl.constexpr,
    STAGES: tl.constexpr, WHOLE: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """RoPE of one query of one head, pairs (c, c + D/2): the query turned by t - start, each key by s - start."""
    part, pair = tl.program_id(0) % parts, (tl.program_id(0) // parts).to(tl.int64)
    batch, head = pair // key_heads, pair % key_heads
    offset, start, stop = keys_of_part(
        OFFSETS, LENGTHS, batch, part, parts, queries, keys, offset, last_position,
        COLS, CAUSAL, HAS_OFFSETS, HAS_LENGTHS,
    )  # fmt: skip

    columns, halves, near = tl.arange(0, C), tl.arange(0, C_HALF), tl.arange(0, COLS)
    inside, within = columns < D, halves < HALF
    wide, narrow = inside[None, :], within[None, :]
    Q += batch * stride_q_batch + head * stride_q_head + halves * stride_q_column
    first = tl.load(Q, within, 0.0).to(tl.float32) * scale
    second = tl.load(Q + HALF * stride_q_column, within, 0.0).to(tl.float32) * scale
    cos_near = tl.load(FINE + near[:, None] * (2 * HALF) + halves[None, :], narrow, 0.0)
    sin_near = tl.load(FINE + near[:, None] * (2 * HALF) + HALF + halves[None, :], narrow, 0.0)

    K += batch * stride_k_batch + head * stride_k_head
    V += batch * stride_v_batch + head * stride_v_head
    highest = tl.full([COLS], float("-inf"), tl.float32)
    total = tl.zeros([COLS], tl.float32)
    acc = tl.zeros([COLS, C], tl.float32)
    for begin in tl.range(start, stop, COLS, num_stages=STAGES):
        there = (begin + near < stop)[:, None]
        far = tl.cast(begin, tl.int64)
        k = K + far * stride_k_row + near[:, None] * stride_k_row + halves[None, :] * stride_k_column
        k_first = tl.load(k, there & narrow, 0.0).to(tl.float32)
        k_second = tl.load(k + HALF * stride_k_column, there & narrow, 0.0).to(tl.float32)
        v = tl.load(
            V + far * stride_v_row + near[:, None] * stride_v_row + columns[None, :] * stride_v_column,
            there & wide, 0.0,
        )  # fmt: skip
        distance = offset - begin
        cosine, sine = turn_one(COARSE, FINE, tl.abs(distance), halves, HALF)
        sine = tl.where(distance < 0, -sine, sine)
        q_first, q_second = first * cosine - second * sine, second * cosine + first * sine
        for_first = cos_near * q_first[None, :] + sin_near * q_second[None, :]
        for_second = cos_near * q_second[None, :] - sin_near * q_first[None, :]
        s = tl.sum(k_first * for_first + k_second * for_second, 1)
        s = tl.where(begin + near < stop, s, float("-inf"))
        highest, total, acc = fold(s, v, highest, total, acc)
    target = batch * stride_out_batch + head * stride_out_head
    place = pair * parts + part
    join_rows(highest, total, acc, PART, LOGSUM, OUT, place, target, columns, inside, D, WHOLE)


@triton.jit(do_not_specialize=SIZES)
def join_parts(
    PART, LOGSUM, OUT, stride_out_batch, stride_out_head, stride_out_row, parts, key_heads, queries,
    GROUP: tl.constexpr, D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One query of one head: its partial outputs, weighted by their shares of the whole softmax sum.

    Some at a time, not one by one: each would be waited for.
    """
    row, pair = tl.program_id(0) % (GROUP * queries), (tl.program_id(0) // (GROUP * queries)).to(tl.int64)
    columns = tl.arange(0, C)
    part = tl.arange(0, PARTS)
    logs = tl.load(LOGSUM + (pair * parts + part) * ROWS + row, part < parts, float("-inf"))
    highest = tl.max(logs, 0)
    level = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.sum(tl.exp2(logs - level), 0)
    acc = tl.zeros([C], tl.float32)
    for begin in range(0, parts, 16):
        some = begin + tl.arange(0, 16)
        place = (pair * parts + some) * ROWS + row
        weight = tl.exp2(tl.load(LOGSUM + place, some < parts, float("-inf")) - level)
        inside = (some < parts)[:, None] & (columns < D)[None, :]
        acc += tl.sum(weight[:, None] * tl.load(PART + place[:, None] * D + columns[None, :], inside, 0.0), 0)
    acc = acc / tl.where(total == 0.0, 1.0, total)
    head = pair % key_heads * GROUP + row // queries
    OUT += pair // key_heads * stride_out_batch + head * stride_out_head + (row % queries) * stride_out_row
    tl.store(OUT + columns, acc.to(OUT.dtype.element_ty), columns < D)


_decode_part, _decode_part_of_one = Launcher(decode_part), Launcher(decode_part_of_one)
_rope_part_of_one, _join_parts = Launcher(rope_part_of_one), Launcher(join_parts)


class One(NamedTuple):
    """How one query of one head is decoded: elements of a tile of keys, its warps, tiles loaded ahead."""

    elements: int = 2048
    warps: int = 2
    stages: int = 3


ONE = One()


def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, delta: Tensor | None, tables: RotationTables, offsets: Tensor | None,
    lengths: Tensor | None, offset: int, causal: bool, scale: float,
) -> Tensor:  # fmt: skip
    """Output (B, H, Lq, D) of a few queries, no backward pass.

    Args:
        delta: (H, D) fp32 phase biases of PoPE; None for RoPE, which takes one query a key head alone.
        tables: of D frequencies, D / 2 for RoPE.

    All else as in `flash.Problem`.
    """
    (batch, heads, queries, dim), (key_heads, keys) = q.shape, k.shape[1:3]
    group = heads // key_heads
    one = group * queries == 1
    rows = 1 if one else max(16, 1 << (group * queries - 1).bit_length())
    if rows > DECODE_ROWS:
        raise ValueError(f"decoding takes queries x heads of a group up to {DECODE_ROWS}, not {queries} x {group}")
    if delta is None and not one:
        raise ValueError(f"RoPE decodes one query of one head a time, not {queries} x {group}")
    width = _power(dim)
    large = width * q.element_size() > 256  # of what 100 KB of shared memory hold in tiles of 64 keys
    cols = 16 if q.device.type == "cpu" else min(STEP, ONE.elements // width) if one else 32 if large else 64
    assert cols <= STEP
    parts = _parts(batch * key_heads, triton.cdiv(keys, cols), q.device)
    out = like_tokens(q)
    whole = one and parts == 1
    part = q.new_empty(1 if whole else batch * key_heads, parts, rows, dim, dtype=torch.float32)
    logsum = part.new_empty(part.shape[:3])
    strides = (*q.stride(), *k.stride(), *v.stride())
    sizes = (parts, key_heads, queries, keys, offset, keys, scale * LOG2_E)
    mask = {"CAUSAL": causal, "HAS_OFFSETS": offsets is not None, "HAS_LENGTHS": lengths is not None}
    if one:
        made = (part, logsum, out, offsets, lengths, *strides, *out.stride()[:2], *sizes)
        options = {"COLS": cols, "STAGES": ONE.stages, "WHOLE": whole, **mask, "num_warps": ONE.warps}
        programs = parts * batch * heads
        if delta is None:
            half = dim // 2
            _rope_part_of_one(
                programs, q, k, v, tables.coarse, tables.fine, *made,
                D=dim, C=width, HALF=half, C_HALF=_power(half), **options,
            )  # fmt: skip
        else:
            _decode_part_of_one(
                programs, q, k, v, delta, tables.coarse, tables.fine, *made, D=dim, C=width, **options
            )
        if whole:
            return out
    else:
        _decode_part(
            parts * batch * key_heads,
            q, k, v, delta, tables.coarse, tables.fine, part, logsum, offsets, lengths, *strides, *sizes,
            GROUP=group, D=dim, C=width, ROWS=rows, COLS=cols, **mask,
            PRECISION="tf32x3", num_warps=4, num_stages=1 if large else 2,
        )  # fmt: skip
    _join_parts(
        group * queries * batch * key_heads,
        part, logsum, out, *out.stride()[:3], parts, key_heads, queries,
        GROUP=group, D=dim, C=width, ROWS=rows, PARTS=1 << (parts - 1).bit_length(), num_warps=1,
    )  # fmt: skip
    return out


def _power(dim: int) -> int:
    """Columns of a tile: a power of two, 16 at least."""
    return max(16, 1 << (dim - 1).bit_length())


def _parts(pairs: int, tiles: int, device: torch.device) -> int:
    """Enough programs to fill the GPU four times over, but none with fewer than two tiles to do."""
    processors = card(device).processors if device.type == "cuda" else 4
    return max(1, min(tiles // 2, 4 * processors // pairs, 128))
