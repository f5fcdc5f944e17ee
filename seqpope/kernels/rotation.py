"""Frequencies and rotation tables, exact at any position.

An angle of 10^6 radians carries an error of 0.03 rad in fp32, so angles are made in fp64, reduced mod 2 pi,
and only their cosines and sines are rounded to fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

STEP = 256  # positions that one row of the coarse table stands for
KEPT_POSITIONS = 1 << 23  # tables that reach further are made anew at each call


def frequencies(count: int, base: float, device: torch.device | None = None) -> Tensor:
    """Angular frequencies base^(-c / count), c = 0..count-1, in radians a position: (count,) fp64.

    With count = D these are PoPE's (arXiv 2509.10534, eq. 5, with the sign that the definition of RoPE
    and the authors' code have); with count = D / 2 they are RoPE's (arXiv 2104.09864, eq. 15).
    """
    return torch.pow(base, -torch.arange(count, dtype=torch.float64, device=device) / count)


def rotation_tables(
    start: int | Tensor, length: int, count: int, base: float, device: torch.device, freqs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position x frequency for positions start..start+length-1.

    Args:
        start: first position, or one for each sequence, (B,).
        freqs: (count,) radians a position, in place of those that `base` gives.

    Returns:
        Two (length, count) fp32, or two (B, length, count) if there are B starts.
    """
    if isinstance(start, Tensor):
        return _tables(start[:, None] + torch.arange(length, device=device), count, base, freqs)
    end = start + length
    if torch.compiler.is_compiling():
        return opaque_tables(start, length, count, base, device, None if freqs is None else freqs.detach())
    # Far positions are rare: compute what is asked for and keep nothing.
    if freqs is not None or end > 1 << 17:
        return _tables(torch.arange(start, end, device=device), count, base, freqs)
    kept = max(256, 1 << (end - 1).bit_length())
    cosine, sine = _FULL.get(
        (kept, count, base, device), lambda: _tables(torch.arange(kept, device=device), count, base, None)
    )
    return cosine[start:end], sine[start:end]


@torch.library.custom_op("seqpope::rotation_tables", mutates_args=())
def opaque_tables(
    start: int, length: int, count: int, base: float, device: torch.device, freqs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same for torch.compile, which cannot look inside.

    If it could, it would make every angle anew, in fp64, for each element of queries and keys that is rotated.
    """
    return _tables(torch.arange(start, start + length, device=device), count, base, freqs)


@opaque_tables.register_fake
def _(
    start: int, length: int, count: int, base: float, device: torch.device, freqs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return torch.empty(length, count, device=device), torch.empty(length, count, device=device)


class RotationTables(NamedTuple):
    """Two small tables from which a kernel makes the rotation of any position by one complex product.

    position = STEP x coarse + fine. A row holds the cosines of all D frequencies, then the sines, in fp32. One
    table with a row for every position would be half a gigabyte at a million of them.
    """

    coarse: Tensor  # (at least length / STEP, 2D)
    fine: Tensor  # (STEP, 2D)


def two_level_tables(
    length: int, count: int, base: float, device: torch.device, freqs: Tensor | None = None
) -> RotationTables:
    """Tables that reach positions 0..length-1, arguments as for `rotation_tables`."""
    if freqs is not None or torch.compiler.is_compiling() or length > KEPT_POSITIONS:
        return _two_levels((length + STEP - 1) // STEP, count, base, device, freqs)
    rows = 1 << ((length - 1) // STEP).bit_length()
    return _TWO_LEVEL.get((rows, count, base, device), lambda: _two_levels(rows, count, base, device, None))


class _Shelf:
    """Tables by what they were made for, the oldest discarded: decoding asks for them at every token and layer.

    While a CUDA graph is captured nothing is added, since what is computed then belongs to the graph; and what the
    graph reads from here stays, since the graph will read it at the same address again.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: dict[Hashable, Any] = {}
        self.pinned: set[Hashable] = set()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if key in self.kept:
            value = self.kept.pop(key)
        elif capturing:
            return make()
        else:
            with torch.inference_mode(False):  # tables made in inference mode could not serve training
                value = make()
            # Tables made under a mode, such as FakeTensorMode, are of its own kind.
            if any(isinstance(table, Tensor) and type(table) is not Tensor for table in value):
                return value
            # Another stream may read them next, and does not wait for this one.
            if any(isinstance(table, Tensor) and table.is_cuda for table in value):
                torch.cuda.current_stream(value[0].device).synchronize()
        self.kept[key] = value  # last in order: most recently used
        if capturing:
            self.pinned.add(key)
        for oldest in list(self.kept)[: -self.size]:
            if oldest not in self.pinned:
                del self.kept[oldest]
        return value


_FULL = _Shelf(16)
_TWO_LEVEL = _Shelf(64)


def _two_levels(rows: int, count: int, base: float, device: torch.device, freqs: Tensor | None) -> RotationTables:
    coarse = _tables(STEP * torch.arange(rows, device=device), count, base, freqs)
    fine = _tables(torch.arange(STEP, device=device), count, base, freqs)
    return RotationTables(torch.cat(coarse, -1), torch.cat(fine, -1))


def _tables(positions: Tensor, count: int, base: float, freqs: Tensor | None) -> tuple[Tensor, Tensor]:
    # On the device: a graph being captured cannot wait for a copy from the host.
    theta = (
        frequencies(count, base, positions.device)
        if freqs is None
        else freqs.detach().to(positions.device).double()
    )
    angles = positions.double()[..., None] * theta % (2 * math.pi)
    return angles.cos().float(), angles.sin().float()
