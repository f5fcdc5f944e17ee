"""PoPE attention fused in Triton: what the kernels are built on, their tiles, and launching them.

With phi = t theta - delta for a query at position t and s theta for a key at position s, PoPE's score
(arXiv 2509.10534, eq. 6) is a dot product of twice the width,

    score(t, s) = sum_c mu(q_c) mu(k_c) [cos phi_c cos(s theta_c) + sin phi_c sin(s theta_c)],

so everything after the rotation is attention with queries and keys of width 2D and values of width D. Delta sits
on the queries: keys are then the same for all query heads of a group, and its gradient falls out beside dq's.

Queries and keys are rotated once a call into transient buffers, not in the loops (measured, see
benchmarks/results/attention-notes.md): a loop would repeat softplus for every tile that passes and keep the
operand from going straight from memory to the tensor cores. The same launch rotates and attends, so that the
buffers are read while they are in the L2 cache and rotation, which waits for memory, runs beside matrix products
(`tiles.place`). Nothing of width 2D outlives the call: the backward pass rotates anew.

Rotated tensors are interleaved, (cos_0, sin_0, cos_1, sin_1, ...): then any split of the D frequencies splits the
2D columns too, and a pair sits in one thread's registers. A head dimension that is no power of two is taken as
the sum of two (48 = 32 + 16), so that 48 does not cost what 64 does.

Scores are in units of log 2 (log2 e is folded into the queries' scale) so that the softmax is exp2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from seqpope.kernels.backward import pope_backward
from seqpope.kernels.forward import pope_forward
from seqpope.kernels.rotation import RotationTables
from seqpope.kernels.tiles import LOG2_E, PAD


class Forward(NamedTuple):
    """Sizes of the forward kernel's tiles and of the program that works on them."""

    rows: int
    cols: int
    warps: int
    stages: int
    registers: int | None = None  # at most so many a thread, so that more programs share a multiprocessor


class Backward(NamedTuple):
    """The same of the backward kernel: tiles of `key_cols` keys gather from queries, of `query_rows` from keys."""

    key_rows: int
    key_cols: int
    query_rows: int
    query_cols: int
    warps: int
    stages: int
    registers: int | None = None


class Tiling(NamedTuple):
    """Both kernels' tiles."""

    forward: Forward
    backward: Backward


# Measured on an H100 (benchmarks/results/attention-notes.md) for 16-bit elements, by the columns that the head
# dimension takes. Static, not autotuned: results are then the same on every run, and nothing is timed in a user's
# first step.
_NARROW = Tiling(Forward(128, 64, 8, 3, 128), Backward(64, 64, 64, 64, 4, 3))
_WIDE = Tiling(Forward(128, 64, 8, 3), Backward(32, 64, 64, 32, 4, 2))
HOPPER = {16: _NARROW, 32: _NARROW, 48: _NARROW, 64: _NARROW, 80: _WIDE, 96: _WIDE, 128: _WIDE}
# For every other GPU and for fp32: small enough for 96 KB of shared memory.
_SMALL = Tiling(Forward(64, 32, 4, 2), Backward(32, 64, 64, 32, 4, 2))
SMALL = {
    16: _SMALL,
    32: _SMALL,
    64: Tiling(Forward(64, 32, 4, 2), Backward(32, 32, 32, 32, 4, 1)),
    128: Tiling(Forward(32, 32, 8, 1), Backward(16, 32, 32, 16, 8, 1)),
}
# For Triton's interpreter: so small that small tests cross every border.
INTERPRETED = Tiling(Forward(32, 16, 4, 1), Backward(16, 32, 32, 16, 4, 1))


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


def choose_tiling(dim: int, dtype: torch.dtype, device: torch.device) -> Tiling:
    """Tiles for a head dimension, a dtype and a GPU."""
    if device.type == "cpu":
        return INTERPRETED
    if dtype.itemsize == 2 and torch.cuda.get_device_capability(device) >= (9, 0):
        properties = torch.cuda.get_device_properties(device)
        if getattr(properties, "shared_memory_per_block_optin", 0) >= 220_000:
            return HOPPER[sum(split_head_dim(dim))]
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
    """Empty (B, H, L rounded up to whole tiles, 2D): rotated queries or keys."""
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, heads, (length + PAD - 1) // PAD * PAD, 2 * dim)


class Plan(NamedTuple):
    """How one launch is laid out; see `tiles.place`."""

    grid: tuple[int]
    span: int
    rotated: int  # rows that one program rotates


def plan(q: Tensor, k: Tensor, jobs: int, warps: int) -> Plan:
    """Programs for q and k; `jobs` of each unit attend, with so many warps each."""
    units, group = k.shape[0] * k.shape[1], q.shape[1] // k.shape[1]
    rotated = 8 * warps
    rows = (k.shape[2] + PAD - 1) // PAD * PAD + group * ((q.shape[2] + PAD - 1) // PAD * PAD)
    if q.device.type == "cpu":
        span = 2  # interpreted tests see several groups, the last of them not full
    else:
        # As many programs at a time as the GPU holds: what they read, and what is rotated next, stays in its L2.
        span = torch.cuda.get_device_properties(q.device).multi_processor_count * 16 // warps // jobs
    span = max(1, min(span, units))
    rotations = span * (rows // rotated)
    return Plan((rotations + triton.cdiv(units, span) * (rotations + span * jobs),), span, rotated)


def _options(problem: Problem, q: Tensor, k: Tensor, tiles: Forward | Backward, rotated: int) -> dict[str, Any]:
    dim = q.shape[-1]
    (c1, c2), (e1, e2) = split_head_dim(dim), split_values(dim)
    return {
        "GROUP": q.shape[1] // k.shape[1],
        "D": dim,
        "C": _padded(dim),
        "C1": c1,
        "C2": c2,
        "E1": e1,
        "E2": e2,
        "ROTATED": rotated,
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


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, tiles: Forward | None = None
) -> tuple[Tensor, Tensor]:
    """Output (B, H, Lq, D) and the log2 of each query's softmax sum (`new_row_sums`)."""
    batch, heads, queries, dim = q.shape
    key_heads, keys = k.shape[1:3]
    tiles = tiles or choose_tiling(dim, q.dtype, q.device).forward
    out, logsum, polar_q, polar_k = like_tokens(q), new_row_sums(q), new_polar(q), new_polar(k)
    grid, span, rotated = plan(q, k, heads // key_heads * triton.cdiv(queries, tiles.rows), tiles.warps)
    units = batch * key_heads
    pope_forward[grid](
        q, k, v, problem.turns, problem.tables.coarse, problem.tables.fine, polar_q, polar_k,
        torch.zeros(units, dtype=torch.int32, device=q.device), out, logsum,
        problem.first, problem.last, problem.offsets, problem.lengths, problem.seed,
        *q.stride(), *k.stride(), *v.stride(),
        units, span, heads, queries, keys, problem.offset, problem.scale * LOG2_E, problem.keep_scale,
        problem.threshold,
        ROWS=tiles.rows, COLS=tiles.cols, **_options(problem, q, k, tiles, rotated),
    )  # fmt: skip
    return out, logsum


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsum: Tensor, problem: Problem,
    tiles: Backward | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv as q, k, v and ddelta (H, D) fp32."""
    batch, heads, queries, dim = q.shape
    key_heads, keys = k.shape[1:3]
    tiles = tiles or choose_tiling(dim, q.dtype, q.device).backward
    polar_q, polar_k, row_dots = new_polar(q), new_polar(k), new_row_sums(q)
    dq, dk, dv = like_tokens(q), like_tokens(k), like_tokens(v)
    query_tiles, units = triton.cdiv(queries, tiles.query_rows), batch * key_heads
    delta_part = q.new_empty(batch, heads, query_tiles, dim, dtype=torch.float32)
    jobs = triton.cdiv(keys, tiles.key_cols) + heads // key_heads * query_tiles
    grid, span, rotated = plan(q, k, jobs, tiles.warps)
    pope_backward[grid](
        q, k, v, out, grad, logsum, problem.turns, problem.tables.coarse, problem.tables.fine, polar_q, polar_k,
        row_dots, torch.zeros(units, dtype=torch.int32, device=q.device), dq, dk, dv, delta_part,
        problem.first, problem.last, problem.offsets, problem.lengths, problem.seed,
        *q.stride(), *k.stride(), *v.stride(), *out.stride()[:3], *grad.stride(),
        units, span, heads, queries, keys, problem.offset, problem.scale * LOG2_E, problem.keep_scale,
        problem.threshold,
        KEY_ROWS=tiles.key_rows, KEY_COLS=tiles.key_cols, QUERY_ROWS=tiles.query_rows, QUERY_COLS=tiles.query_cols,
        **_options(problem, q, k, tiles, rotated),
    )  # fmt: skip
    return dq, dk, dv, delta_part.sum((0, 2))
