"""PoPE attention fused in Triton: what the kernels are built on, their tiles, and launching them.

With phi = t theta - delta for a query at position t and s theta for a key at position s, PoPE's score
(arXiv 2509.10534, eq. 6) is a dot product of twice the width,

    score(t, s) = sum_c mu(q_c) mu(k_c) [cos phi_c cos(s theta_c) + sin phi_c sin(s theta_c)],

so everything after the rotation is attention with queries and keys of width 2D and values of width D. Delta sits
on the queries: keys are then the same for all query heads of a group, and its gradient falls out beside dq's.

Queries and keys are rotated once a call into transient buffers, not in the loops (measured, see
benchmarks/results/attention-notes.md): a loop would repeat softplus for every tile that passes and keep the
operand from going straight from memory to the tensor cores. Nothing of width 2D outlives the call: the backward
pass rotates anew.

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

from seqpope.kernels.backward import pope_backward_keys, pope_backward_queries
from seqpope.kernels.forward import pope_forward
from seqpope.kernels.launch import Launcher, card
from seqpope.kernels.polar import pope_rotate
from seqpope.kernels.rotation import RotationTables
from seqpope.kernels.tiles import LOG2_E, PAD, padded_length


class Tiles(NamedTuple):
    """Sizes of one kernel's tiles and of the program that works on them."""

    rows: int  # queries
    cols: int  # keys
    warps: int
    stages: int
    registers: int | None = None  # at most so many a thread, so that more programs share a multiprocessor


class Tiling(NamedTuple):
    """The three kernels' tiles."""

    forward: Tiles
    backward_keys: Tiles
    backward_queries: Tiles


# For 16-bit elements on an H100, by the columns that the head dimension takes: 32, 48, 64 and 128 are the best of
# a sweep (results/attention-notes.md), the others by analogy until benchmarks/tune_attention.py has been run.
# Static, not autotuned: results are then the same on every run, and nothing is timed in a user's first step.
_KEYS = Tiles(64, 64, 4, 3)
_NARROW = Tiling(Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3, 168), Tiles(64, 64, 4, 3, 168))
_WIDE = Tiling(Tiles(128, 64, 8, 3), Tiles(32, 64, 4, 2), Tiles(128, 32, 8, 3))
HOPPER = {
    16: _NARROW,
    32: _NARROW,
    48: Tiling(Tiles(128, 64, 8, 3, 128), _KEYS, Tiles(64, 32, 4, 3, 128)),
    64: Tiling(Tiles(128, 64, 8, 3, 128), _KEYS, Tiles(64, 32, 4, 4, 168)),
    80: _WIDE,
    96: _WIDE,
    128: _WIDE,
}
_WIDEST = Tiling(Tiles(64, 32, 8, 2), Tiles(32, 64, 8, 1), Tiles(64, 32, 8, 2))  # up to 256: by what fits
# Where programs have many tiles to go through, their loop alone counts, not how many of them start at once.
LONG = 4096  # keys
HOPPER_LONG = {64: HOPPER[64]._replace(backward_queries=_KEYS)}
# For every other GPU and for fp32: small enough for 96 KB of shared memory.
_SMALL = Tiling(Tiles(64, 32, 4, 2), Tiles(32, 64, 4, 2), Tiles(64, 32, 4, 2))
SMALL = {
    16: _SMALL,
    32: _SMALL,
    64: Tiling(Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 1), Tiles(32, 32, 4, 1)),
    128: Tiling(Tiles(32, 32, 8, 1), Tiles(16, 16, 4, 1), Tiles(16, 16, 4, 1)),
    256: Tiling(Tiles(16, 16, 8, 1), Tiles(16, 16, 8, 1), Tiles(16, 16, 8, 1)),  # fp32: 112 KB
}
_SMALL_WIDEST = Tiling(Tiles(64, 16, 8, 1), Tiles(16, 32, 8, 1), Tiles(32, 16, 8, 1))  # 16-bit elements, up to 256
# For Triton's interpreter: so small that small tests cross every border.
INTERPRETED = Tiling(Tiles(32, 16, 4, 1), Tiles(16, 32, 4, 1), Tiles(32, 16, 4, 1))
ROTATED = 2048  # elements of a tile that is rotated

_rotate, _forward = Launcher(pope_rotate), Launcher(pope_forward)
_backward_keys, _backward_queries = Launcher(pope_backward_keys), Launcher(pope_backward_queries)


def split_head_dim(dim: int) -> tuple[int, int]:
    """D as one or two powers of two, of which the tensor cores want at least 16: 48 -> (32, 16), 56 -> (64, 0).

    256 is (128, 128): a tile twice as wide would need more registers at once.
    """
    if dim > 128:
        return 128, _padded(dim - 128)
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


def rotated_rows(dim: int) -> int:
    """Rows of a tile that is rotated, by four warps."""
    return min(PAD, ROTATED // _padded(dim))


def choose_tiling(dim: int, length: int, dtype: torch.dtype, device: torch.device) -> Tiling:
    """Tiles for a head dimension, a number of keys, a dtype and a GPU."""
    if device.type == "cpu":
        return INTERPRETED
    if dtype.itemsize == 2 and card(device).major >= 9 and card(device).shared >= 220_000:
        columns = sum(split_head_dim(dim))
        if columns > 128:
            return _WIDEST
        return HOPPER_LONG[columns] if length > LONG and columns in HOPPER_LONG else HOPPER[columns]
    return _SMALL_WIDEST if dim > 128 and dtype.itemsize == 2 else SMALL[_padded(dim)]


def fit(tiles: Tiles, queries: int, keys: int) -> Tiles:
    """Tiles of no more rows than short sequences are padded to; the program shrinks with them."""
    rows, cols = min(tiles.rows, padded_length(queries)), min(tiles.cols, padded_length(keys))
    whole = (rows, cols) == (tiles.rows, tiles.cols)
    return tiles if whole else tiles._replace(rows=rows, cols=cols, warps=max(1, tiles.warps // 2))


class Problem(NamedTuple):
    """What both passes need besides q, k and v."""

    turns: Tensor  # (H, 2D) or (G, H, 2D) fp32: the cosines and then the sines of delta
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
    def groups(self) -> int:
        """How many deltas there are, each of as many sequences."""
        return self.turns.shape[0] if self.turns.dim() == 3 else 1

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
    return q.new_empty(batch, heads, padded_length(queries), dtype=torch.float32)


def new_polar(x: Tensor) -> Tensor:
    """Empty (B, H, L rounded up to whole tiles, 2D): rotated queries or keys."""
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, heads, padded_length(length), 2 * dim)


def launch_rotate(
    q: Tensor, k: Tensor, polar_q: Tensor, polar_k: Tensor, problem: Problem,
    out: Tensor | None = None, grad: Tensor | None = None, row_dots: Tensor | None = None, rows: int | None = None,
) -> None:  # fmt: skip
    """Fill polar_q and polar_k (`new_polar`); for the backward pass row_dots too (`new_row_sums`)."""
    (batch, heads, queries, dim), (key_heads, keys) = q.shape, k.shape[1:3]
    rows = min(rows or rotated_rows(dim), polar_q.shape[2], polar_k.shape[2])
    key_programs = polar_k.shape[2] // rows * batch * key_heads
    query_programs = polar_q.shape[2] // rows * batch * heads
    _rotate(
        key_programs + query_programs,
        q, k, polar_q, polar_k, problem.turns, problem.tables.coarse, problem.tables.fine, out, grad, row_dots,
        problem.offsets, problem.lengths,
        *q.stride(), *k.stride(), *(out.stride()[:3] if out is not None else (0, 0, 0)),
        *(grad.stride() if grad is not None else (0, 0, 0, 0)),
        key_programs, heads, queries, keys, batch // problem.groups, problem.offset, problem.scale * LOG2_E,
        GROUP=heads // key_heads, D=dim, C=_padded(dim), ROWS=rows,
        HAS_OFFSETS=problem.offsets is not None, HAS_LENGTHS=problem.lengths is not None, BACKWARD=out is not None,
    )  # fmt: skip


def _span(pairs: int, length: int, v: Tensor) -> int:
    """How many pairs may start their longest blocks together: those whose streamed operands fill half the L2."""
    if v.device.type == "cpu":
        return 3  # an odd number, so that interpreted tests see a group that is not full
    return max(1, min(pairs, card(v.device).l2 // 2 // (3 * v.shape[-1] * length * v.element_size())))


def _options(problem: Problem, dim: int, group: int, tiles: Tiles) -> dict[str, Any]:
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
    """Fill out (`like_tokens`) and logsum (`new_row_sums`)."""
    (batch, heads, queries, dim), (key_heads, keys) = out.shape, v.shape[1:3]
    pairs = batch * heads
    _forward(
        triton.cdiv(queries, tiles.rows) * pairs,
        polar_q, polar_k, v, out, logsum,
        problem.first, problem.last, problem.offsets, problem.lengths, problem.seed,
        *v.stride(),
        pairs, _span(pairs, keys, v), heads, queries, keys, problem.offset, problem.keep_scale, problem.threshold,
        **_options(problem, dim, heads // key_heads, tiles),
    )  # fmt: skip


def launch_backward_keys(
    polar_q: Tensor, k: Tensor, polar_k: Tensor, v: Tensor, grad: Tensor, logsum: Tensor, row_dots: Tensor,
    dk: Tensor, dv: Tensor, problem: Problem, tiles: Tiles, overlap: bool = False,
) -> None:  # fmt: skip
    """Fill dk and dv, `like_tokens` or parts of one projection, laid out alike."""
    (batch, heads, queries, dim), (key_heads, keys) = grad.shape, k.shape[1:3]
    pairs = batch * key_heads
    _backward_keys(
        triton.cdiv(keys, tiles.cols) * pairs,
        polar_q, k, polar_k, v, grad, logsum, row_dots, dk, dv, problem.tables.coarse, problem.tables.fine,
        problem.first, problem.last, problem.offsets, problem.lengths, problem.seed,
        *k.stride(), *v.stride(), *grad.stride(), dk.stride(2),
        pairs, _span(pairs, queries, v), heads, queries, keys, problem.offset, problem.keep_scale,
        problem.threshold,
        **_options(problem, dim, heads // key_heads, tiles), OVERLAP=overlap, launch_pdl=overlap,
    )  # fmt: skip


def launch_backward_queries(
    q: Tensor, polar_q: Tensor, polar_k: Tensor, v: Tensor, grad: Tensor, logsum: Tensor, row_dots: Tensor,
    dq: Tensor, problem: Problem, tiles: Tiles, overlap: bool = False,
) -> Tensor:  # fmt: skip
    """Fill dq, `like_tokens` or part of a projection; ddelta in parts, (B, H, tiles, D) fp32."""
    (batch, heads, queries, dim), (key_heads, keys) = q.shape, v.shape[1:3]
    parts, pairs = triton.cdiv(queries, tiles.rows), batch * heads
    delta_part = q.new_empty(batch, heads, parts, dim, dtype=torch.float32)
    _backward_queries(
        parts * pairs,
        q, polar_q, polar_k, v, grad, logsum, row_dots, dq, delta_part,
        problem.first, problem.last, problem.offsets, problem.lengths, problem.seed,
        *q.stride(), *v.stride(), *grad.stride(), dq.stride(2),
        pairs, _span(pairs, keys, v), heads, queries, keys, problem.offset, problem.scale, problem.keep_scale,
        problem.threshold,
        **_options(problem, dim, heads // key_heads, tiles), OVERLAP=overlap,
    )  # fmt: skip
    return delta_part


def attention_forward(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (B, H, Lq, D) and the log2 of each query's softmax sum (`new_row_sums`)."""
    out, logsum, polar_q, polar_k = like_tokens(q), new_row_sums(q), new_polar(q), new_polar(k)
    launch_rotate(q, k, polar_q, polar_k, problem)
    tiles = fit(choose_tiling(q.shape[-1], k.shape[2], q.dtype, q.device).forward, q.shape[2], k.shape[2])
    launch_forward(polar_q, polar_k, v, out, logsum, problem, tiles)
    return out, logsum


def unpack(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, L, D) of a projection (B, L, 3, H, D), as views."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsum: Tensor, problem: Problem,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> Tensor:  # fmt: skip
    """Fill the gradients of q, k and v, `like_tokens` or parts of a projection; return ddelta, fp32, as delta."""
    chosen = choose_tiling(q.shape[-1], k.shape[2], q.dtype, q.device)
    tiling = Tiling(*(fit(tiles, q.shape[2], k.shape[2]) for tiles in chosen))
    # Programmatic dependent launch; the interpreter has none.
    overlap = q.is_cuda and not _forward.interpreted and card(q.device).major >= 9
    polar_q, polar_k, row_dots = new_polar(q), new_polar(k), new_row_sums(q)
    dq, dk, dv = gradients
    if out.stride(-1) != 1:  # not as the forward pass leaves it
        out = out.contiguous()
    launch_rotate(q, k, polar_q, polar_k, problem, out, grad, row_dots)
    delta_part = launch_backward_queries(
        q, polar_q, polar_k, v, grad, logsum, row_dots, dq, problem, tiling.backward_queries, overlap
    )
    launch_backward_keys(
        polar_q, k, polar_k, v, grad, logsum, row_dots, dk, dv, problem, tiling.backward_keys, overlap
    )
    *groups, heads, _ = problem.turns.shape
    return delta_part.view(problem.groups, -1, *delta_part.shape[1:]).sum((1, 3)).view(*groups, heads, -1)
