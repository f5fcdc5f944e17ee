"""Launching under our own key: as fine as Triton's, and the arguments in the kernel's order."""

from __future__ import annotations

import pytest
import torch

from seqpope.kernels.launch import Launcher


class Compiled:
    def __init__(self, calls):
        self.calls = calls

    def __getitem__(self, grid):
        return lambda *arguments: self.calls.append(("again", grid, arguments))


class Kernel:
    """Stands for a triton.jit function."""

    arg_names = ("X", "stride", "size", "A", "B")
    do_not_specialize = ("size",)

    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.calls.append(("compiled", grid, arguments, options))
            return Compiled(self.calls)

        return launch


class Pointer(torch.Tensor):
    """A tensor that says it is on a GPU, at an address of its own."""

    device = torch.device("cuda:0")

    def data_ptr(self):
        return self.address


def pointer(address=64, dtype=torch.float32):
    x = torch.zeros(1, dtype=dtype).as_subclass(Pointer)
    x.address = address
    return x


def test_the_second_time_nothing_is_looked_up():
    launch = Launcher(kernel := Kernel())
    x = pointer()
    launch(7, x, 8, 100, B=2, A=1, num_warps=4)
    launch(9, x, 8, 200, B=2, A=1, num_warps=4)  # another size is no other kernel
    first, second = kernel.calls
    assert first[:2] == ("compiled", (7, 1, 1))
    assert first[3] == {"B": 2, "A": 1, "num_warps": 4}
    assert second[:2] == ("again", (9, 1, 1))
    assert second[2][0] is x
    assert second[2][1:] == (8, 200, 1, 2)


@pytest.mark.parametrize(
    "other",
    [
        ((pointer(72), 8, 100), {}),  # not a multiple of 16
        ((pointer(dtype=torch.bfloat16), 8, 100), {}),
        ((None, 8, 100), {}),
        ((pointer(), 16, 100), {}),
        ((pointer(), 8, 1 << 31), {}),  # needs 64 bits
        ((pointer(), 8, 100), {"A": 2}),
        ((pointer(), 8, 100), {"num_warps": 8}),
    ],
)
def test_what_makes_another_kernel(other):
    launch = Launcher(kernel := Kernel())
    arguments, options = other
    launch(1, pointer(), 8, 100, A=1, B=2, num_warps=4)
    if arguments[0] is None:
        arguments = (pointer(), None, 100)
    launch(1, *arguments, **{"A": 1, "B": 2, "num_warps": 4} | options)
    assert [call[0] for call in kernel.calls] == ["compiled", "compiled"]


@pytest.mark.parametrize("other", [(pointer(128), 8, 100), (pointer(), 24, 100), (pointer(), 8, 1 << 30)])
def test_what_makes_none(other):
    """Another address, stride or size of the same kind is the same kernel to Triton, too."""
    launch = Launcher(kernel := Kernel())
    launch(1, pointer(), 8 if other[1] == 8 else 40, 100, A=1, B=2)
    launch(1, *other, A=1, B=2)
    assert [call[0] for call in kernel.calls] == ["compiled", "again"]


def test_nothing_is_kept_where_nothing_came():
    """A hook of Triton's may launch in its place and give nothing back."""

    class Hooked(Kernel):
        def __getitem__(self, grid):
            return lambda *arguments, **options: self.calls.append(("compiled", grid, arguments, options))

    launch = Launcher(kernel := Hooked())
    for _ in range(2):
        launch(1, pointer(), 8, 100, A=1, B=2)
    assert len(kernel.calls) == 2


def test_the_interpreter_is_left_alone():
    class InterpretedFunction(Kernel):
        pass

    launch = Launcher(kernel := InterpretedFunction())
    for _ in range(2):
        launch(1, torch.zeros(1), 8, 100, A=1, B=2)
    assert [call[0] for call in kernel.calls] == ["compiled", "compiled"]
