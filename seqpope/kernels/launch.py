"""Launching a Triton kernel without what Triton does anew at every launch, and what its launchers ask of a GPU.

`kernel[grid](...)` finds out the type and the specialization of every argument, writes all options into a string,
and looks the compiled kernel up by both: of a small model's attention that is much of the time. Here the compiled
kernel is kept under a key that is quick to make and at least as fine as Triton's own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

KEPT = 512  # compiled kernels under their keys; more is a sign of strides that are never the same again


class Card(NamedTuple):
    """What is asked of a GPU at every call; torch takes ten microseconds to answer."""

    major: int  # of its compute capability
    processors: int
    shared: int  # bytes of shared memory that a program may have
    l2: int  # bytes


def card(device: torch.device) -> Card:
    """A CUDA device's, asked for once."""
    # torch.compile would look through the memory of a cached function, with a warning to the user.
    return _ask(device) if torch.compiler.is_compiling() else _remembered(device)


def _ask(device: torch.device) -> Card:
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", 0)
    return Card(found.major, found.multi_processor_count, shared, found.L2_cache_size)


_remembered = functools.cache(_ask)


class Launcher:
    """One kernel, with what it was compiled to for the arguments seen so far.

    Args:
        kernel: a `triton.jit` function.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: dict[tuple[Any, ...], Any] = {}
        self.names = list(getattr(kernel, "arg_names", ()))  # the interpreter's functions have none
        sizes = getattr(kernel, "do_not_specialize", ())
        self.sizes = [place for place, name in enumerate(self.names) if name in sizes]

    def __call__(self, programs: int, *arguments: Any, **options: Any) -> None:
        """Launch so many programs on the tensors' device, which must be the current one.

        Args:
            arguments: in the kernel's order, all but the constexpr ones.
            options: the constexpr arguments and Triton's own options, always in the same order.
        """
        grid = (programs, 1, 1)
        device = arguments[0].device
        if device.type == "cpu":
            self.kernel[grid](*arguments, **options)  # the interpreter
            return
        key = [device.index, *options.values()]
        for x in arguments:
            # Triton asks of an address whether it is a multiple of 16; a number's value says all there is to know.
            key.append((x.dtype, x.data_ptr() % 16) if isinstance(x, Tensor) else x)
        start = 1 + len(options)
        for place in self.sizes:
            key[start + place] = arguments[place] >> 31  # its type is all that matters
        known = self.compiled.get(entry := tuple(key))
        if known is None:
            if len(self.compiled) >= KEPT:
                self.compiled.clear()
            constants = tuple(options[name] for name in self.names[len(arguments) :])
            self.compiled[entry] = self.kernel[grid](*arguments, **options), constants
        else:
            kernel, constants = known
            kernel[grid](*arguments, *constants)
