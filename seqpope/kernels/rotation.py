"""Frequencies and rotation tables, exact at any position.

An angle of 10^6 radians carries an error of 0.03 rad in fp32, so angles are made in fp64, reduced mod 2 pi,
and only their cosines and sines are rounded to fp32.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

STEP = 256  # positions that one row of the coarse table stands for


def frequencies(count: int, base: float) -> Tensor:
    """Angular frequencies base^(-c / count), c = 0..count-1, in radians a position: (count,) fp64.

    With count = D these are PoPE's (arXiv 2509.10534, eq. 5, with the sign that the definition of RoPE
    and the authors' code have); with count = D / 2 they are RoPE's (arXiv 2104.09864, eq. 15).
    """
    return torch.pow(torch.tensor(base, dtype=torch.float64), -torch.arange(count, dtype=torch.float64) / count)


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
    # Far positions are rare: compute what is asked for and keep nothing.
    if freqs is not None or not _may_keep(device) or end > 1 << 17:
        return _tables(torch.arange(start, end, device=device), count, base, freqs)
    cosine, sine = _kept_tables(max(256, 1 << (end - 1).bit_length()), count, base, str(device))
    return cosine[start:end], sine[start:end]


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
    if freqs is not None or not _may_keep(device):
        return _two_levels((length + STEP - 1) // STEP, count, base, device, freqs)
    rows = 1 << max(0, (length - 1) // STEP).bit_length()
    return _kept_two_levels(rows, count, base, str(device))


def _may_keep(device: torch.device) -> bool:
    # A graph being captured owns the memory of what is computed then, and gives it back with the graph.
    return not (
        torch.compiler.is_compiling() or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )


@functools.lru_cache(maxsize=16)
def _kept_tables(length: int, count: int, base: float, device: str) -> tuple[Tensor, Tensor]:
    # Decoding asks for the tables of the whole prefix at every token and layer.
    with torch.inference_mode(False):
        return _tables(torch.arange(length, device=device), count, base, None)


@functools.lru_cache(maxsize=64)
def _kept_two_levels(rows: int, count: int, base: float, device: str) -> RotationTables:
    with torch.inference_mode(False):
        return _two_levels(rows, count, base, torch.device(device), None)


def _two_levels(
    rows: int, count: int, base: float, device: torch.device, freqs: Tensor | None
) -> RotationTables:
    coarse = _tables(STEP * torch.arange(rows, device=device), count, base, freqs)
    fine = _tables(torch.arange(STEP, device=device), count, base, freqs)
    return RotationTables(torch.cat(coarse, -1), torch.cat(fine, -1))


def _tables(positions: Tensor, count: int, base: float, freqs: Tensor | None) -> tuple[Tensor, Tensor]:
    theta = frequencies(count, base) if freqs is None else freqs.double()
    angles = positions.double()[..., None] * theta.to(positions.device) % (2 * math.pi)
    return angles.cos().float(), angles.sin().float()
