"""Launching a Triton kernel without what Triton does anew at every launch, and what its launchers ask of a GPU.

`kernel[grid](...)` finds out the type and the specialization of every argument, writes all options into a string,
and looks the compiled kernel up by both: of a small model's attention that is much of the time. Here the compiled
kernel is kept under a key that is quick to make and as fine as Triton's own of the arguments. Triton's knobs
(debug, instrumentation) are read when a kernel is first launched, not later.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

DECODE_ROWS = 16  # queries x heads of a group up to which the decoding kernel takes over


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
        self.interpreted = type(kernel).__name__ == "InterpretedFunction"
        self.compiled: dict[tuple[Any, ...], Any] = {}
        self.names = list(kernel.arg_names)
        sizes = getattr(kernel, "do_not_specialize", ())
        self.sized = [name in sizes for name in self.names]

    def __call__(self, programs: int, *arguments: Any, **options: Any) -> None:
        """Launch so many programs on the tensors' device, which must be the current one.

        Args:
            arguments: in the kernel's order, all but the constexpr ones.
            options: the constexpr arguments and Triton's own options, always in the same order.
        """
        grid = (programs, 1, 1)
        if self.interpreted:
            self.kernel[grid](*arguments, **options)
            return
        key = [arguments[0].device.index, *options.values()]
        for x, sized in zip(arguments, self.sized, strict=False):
            if isinstance(x, Tensor):
                key.append((x.dtype, x.data_ptr() % 16 == 0))
            elif isinstance(x, int):  # its type and, where Triton looks at it, whether it is 1 or a multiple of 16
                key.append((x >> 31, None if sized else (x == 1, x % 16 == 0)))
            else:
                key.append(type(x))
        known = self.compiled.get(entry := tuple(key))
        if known is not None:
            kernel, constants = known
            kernel[grid](*arguments, *constants)
            return
        kernel = self.kernel[grid](*arguments, **options)
        if kernel is not None:
            self.compiled[entry] = kernel, tuple(options[name] for name in self.names[len(arguments) :])
