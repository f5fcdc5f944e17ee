"""Frequencies and rotation tables, exact at any position.

An angle of 10^6 radians carries an error of 0.03 rad in fp32, so angles are made in fp64, reduced mod 2 pi,
and only their cosines and sines are rounded to fp32.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def frequencies(count: int, base: float) -> Tensor:
    """Angular frequencies base^(-c / count), c = 0..count-1, in radians a position: (count,) fp64.

    With count = D these are PoPE's (arXiv 2509.10534, eq. 5, with the sign that the definition of RoPE
    and the authors' code have); with count = D / 2 they are RoPE's (arXiv 2104.09864, eq. 15).
    """
    return torch.pow(torch.tensor(base, dtype=torch.float64), -torch.arange(count, dtype=torch.float64) / count)


def rotation_tables(
    start: int, length: int, count: int, base: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position x frequency for positions start..start+length-1: two (length, count) fp32."""
    if torch.compiler.is_compiling():
        return _tables(start, length, count, base, device)
    end = start + length
    if end > 1 << 17:  # far positions are rare: compute what is asked for and keep nothing
        return _tables(start, length, count, base, device)
    cosine, sine = _cached_tables(max(256, 1 << (end - 1).bit_length()), count, base, str(device))
    return cosine[start:end], sine[start:end]


@functools.lru_cache(maxsize=16)
def _cached_tables(length: int, count: int, base: float, device: str) -> tuple[Tensor, Tensor]:
    # Decoding asks for the tables of the whole prefix at every token and layer.
    with torch.inference_mode(False):
        return _tables(0, length, count, base, torch.device(device))


def _tables(start: int, length: int, count: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    positions = torch.arange(start, start + length, dtype=torch.float64, device=device)
    angles = torch.outer(positions, frequencies(count, base).to(device)) % (2 * math.pi)
    return angles.cos().float(), angles.sin().float()
