"""Frequencies and rotation tables, exact at any position.

An angle of 10^6 radians carries an error of 0.03 rad in fp32, so angles are made in fp64, reduced mod 2 pi,
and only their cosines and sines are rounded to fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Spectrum:
    """Frequencies that a formula gives: `count` of them. Of equal ones the tables are made once and kept."""

    count: int

    def on(self, device: torch.device) -> Tensor:
        """(count,) fp64, radians a position, made on the device: a graph being captured waits for no host."""
        raise NotImplementedError(f"{type(self).__name__} must define on")


Freqs = Tensor | Spectrum


def theta_of(count: int, base: float, freqs: Freqs | None, device: torch.device) -> Tensor:
    """The frequencies that are meant: those given, or else those of `base`; (count,) fp64, no gradient."""
    if freqs is None:
        return frequencies(count, base, device)
    return freqs.on(device) if isinstance(freqs, Spectrum) else freqs.detach().to(device).double()


def rotation_tables(
    start: int | Tensor, length: int, count: int, base: float, device: torch.device, freqs: Freqs | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position x frequency for positions start..start+length-1.

    Args:
        start: first position, or one for each sequence, (B,).
        freqs: (count,) radians a position, in place of those that `base` gives; a Spectrum's tables are kept.

    Returns:
        Two (length, count) fp32, or two (B, length, count) if there are B starts.
    """
    if isinstance(start, Tensor):
        return _tables(start[:, None] + torch.arange(length, device=device), count, base, freqs)
    end = start + length
    if torch.compiler.is_compiling():
        given = None if freqs is None else theta_of(count, base, freqs, device)
        return opaque_tables(start, length, count, base, device, given)
    # Far positions are rare: compute what is asked for and keep nothing.
    if isinstance(freqs, Tensor) or end > 1 << 17:
        return _tables(torch.arange(start, end, device=device), count, base, freqs)
    kept = max(256, 1 << (end - 1).bit_length())
    cosine, sine = _FULL.get(
        (kept, count, base, device, freqs), lambda: _tables(torch.arange(kept, device=device), count, base, freqs)
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
    length: int, count: int, base: float, device: torch.device, freqs: Freqs | None = None
) -> RotationTables:
    """Tables that reach positions 0..length-1, arguments as for `rotation_tables`."""
    if isinstance(freqs, Tensor) or torch.compiler.is_compiling() or length > KEPT_POSITIONS:
        return _two_levels((length + STEP - 1) // STEP, count, base, device, freqs)
    rows = 1 << ((length - 1) // STEP).bit_length()
    key = (rows, count, base, device, freqs)
    return _TWO_LEVEL.get(key, lambda: _two_levels(rows, count, base, device, freqs))


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


def _two_levels(rows: int, count: int, base: float, device: torch.device, freqs: Freqs | None) -> RotationTables:
    coarse = _tables(STEP * torch.arange(rows, device=device), count, base, freqs)
    fine = _tables(torch.arange(STEP, device=device), count, base, freqs)
    return RotationTables(torch.cat(coarse, -1), torch.cat(fine, -1))


def _tables(positions: Tensor, count: int, base: float, freqs: Freqs | None) -> tuple[Tensor, Tensor]:
    theta = theta_of(count, base, freqs, positions.device)
    angles = positions.double()[..., None] * theta % (2 * math.pi)
    return angles.cos().float(), angles.sin().float()
