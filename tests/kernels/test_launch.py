"""Launching under our own key: as fine as Triton's, and the arguments in the kernel's order."""

from __future__ import annotations

import pytest
import torch

from seqpope.kernels.launch import KEPT, Launcher


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


def test_what_never_comes_again_does_not_pile_up():
    launch = Launcher(Kernel())
    for stride in range(3 * KEPT):
        launch(1, pointer(), stride, 100, A=1, B=2)
    assert 0 < len(launch.compiled) <= KEPT


def test_on_a_cpu_it_is_the_interpreter():
    launch = Launcher(kernel := Kernel())
    for _ in range(2):
        launch(1, torch.zeros(1), 8, 100, A=1, B=2)
    assert [call[0] for call in kernel.calls] == ["compiled", "compiled"]
