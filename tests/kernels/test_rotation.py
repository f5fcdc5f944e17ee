from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext

import pytest
import torch

from seqpope.kernels import rope_attention, rotation
from seqpope.kernels.rotation import STEP, Spectrum, frequencies, rotation_tables, two_level_tables

CPU = torch.device("cpu")
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


@dataclass(frozen=True)
class Slowed(Spectrum):
    by: float

    def on(self, device):
        return frequencies(self.count, 10000.0, device) / self.by


def exact_angle(position: int, channel: int, count: int, base: float) -> float:
    """position * base^(-channel / count), reduced mod 2 pi in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        theta = Decimal(base) ** (-Decimal(channel) / Decimal(count))
        return float(position * theta % (2 * PI))


@pytest.mark.parametrize("base", [10000.0, 500.0])
@pytest.mark.parametrize("start", [0, 1, 255, 1000, (1 << 17) - 2, 1_000_000, (1 << 24) + 1, 248_956_422])
@pytest.mark.parametrize("count", [3, 48])
def test_tables_are_exact_wherever_they_start(start, count, base):
    cosine, sine = rotation_tables(start, 3, count, base, CPU)
    assert cosine.shape == sine.shape == (3, count)
    assert cosine.dtype == sine.dtype == torch.float32
    for row in range(3):
        for channel in range(count):
            angle = exact_angle(start + row, channel, count, base)
            # Half a unit in the last place of fp32, and a few in fp64's for the angle before it is reduced.
            bound = 3.1e-8 + 5e-16 * (start + row)
            assert float(cosine[row, channel]) == pytest.approx(math.cos(angle), abs=bound)
            assert float(sine[row, channel]) == pytest.approx(math.sin(angle), abs=bound)


def test_fp32_angles_would_not_pass():
    """The bound above tells exact angles from fp32 ones; otherwise the test above would prove nothing."""
    rough = torch.cos(torch.tensor(1_000_001, dtype=torch.float32) * frequencies(48, 10000.0).float())
    exact = torch.tensor([math.cos(exact_angle(1_000_001, c, 48, 10000.0)) for c in range(48)])
    assert (rough - exact).abs().max() > 1e-3  # thousands of times the bound


@pytest.mark.parametrize("position", [0, 1, STEP - 1, STEP, 12_345, 1_000_000, 1_048_575])
def test_two_levels_compose_to_the_exact_rotation(position):
    """As the kernels do it, in fp32: three roundings of numbers up to 1."""
    count = 48
    coarse, fine = two_level_tables(position + 1, count, 10000.0, CPU)
    assert coarse.dtype == fine.dtype == torch.float32
    a, b = coarse[position // STEP], fine[position % STEP]
    cosine = a[:count] * b[:count] - a[count:] * b[count:]
    sine = a[count:] * b[:count] + a[:count] * b[count:]
    for channel in range(count):
        angle = exact_angle(position, channel, count, 10000.0)
        assert float(cosine[channel]) == pytest.approx(math.cos(angle), abs=2e-7)
        assert float(sine[channel]) == pytest.approx(math.sin(angle), abs=2e-7)


def test_two_level_tables_are_small_and_long_enough():
    for length in (1, STEP, STEP + 1, 1_000_000):
        coarse, fine = two_level_tables(length, 16, 10000.0, CPU)
        assert len(fine) == STEP
        assert length <= len(coarse) * STEP <= max(STEP, 2 * length)


@pytest.mark.parametrize("make", [rotation_tables, two_level_tables])
def test_frequencies_of_ones_own(make):
    """Those of another base, given as numbers, give that base's tables; and base is then not looked at."""
    start = (0,) if make is rotation_tables else ()
    ours = make(*start, 300, 6, 10000.0, CPU, frequencies(6, 123.0))
    theirs = make(*start, 300, 6, 123.0, CPU)
    for x, y in zip(ours, theirs, strict=True):
        assert torch.equal(x, y[: len(x)])


def test_a_start_for_each_sequence():
    starts = torch.tensor([3, 1_000_000])
    cosine, sine = rotation_tables(starts, 5, 6, 10000.0, CPU)
    assert cosine.shape == (2, 5, 6)
    for row, start in enumerate((3, 1_000_000)):
        one = rotation_tables(start, 5, 6, 10000.0, CPU)
        assert torch.equal(cosine[row], one[0])
        assert torch.equal(sine[row], one[1])


def test_far_and_near_tables_join():
    """Tables kept for short positions and those computed on demand are one function."""
    edge = 1 << 17
    near = rotation_tables(edge - 4, 4, 6, 10000.0, CPU)
    across = rotation_tables(edge - 4, 8, 6, 10000.0, CPU)
    far = rotation_tables(edge, 4, 6, 10000.0, CPU)
    for n, a, f in zip(near, across, far, strict=True):
        assert torch.equal(torch.cat((n, f)), a)


@pytest.mark.parametrize("start", [5, 300, 1_000_000])
def test_turning_on_composes(start):
    """R(start + n) = R(start) R(n): angles add."""
    cosine, sine = (t.double() for t in rotation_tables(start, 8, 16, 10000.0, CPU))
    cosine_0, sine_0 = (t.double() for t in rotation_tables(0, 8, 16, 10000.0, CPU))
    torch.testing.assert_close(cosine, cosine[:1] * cosine_0 - sine[:1] * sine_0, atol=3e-7, rtol=0)
    torch.testing.assert_close(sine, sine[:1] * cosine_0 + cosine[:1] * sine_0, atol=3e-7, rtol=0)


def test_frequencies_fall_from_one_and_never_reach_one_over_base():
    theta = frequencies(8, 10000.0)
    assert theta.dtype == torch.float64
    assert float(theta[0]) == 1.0
    torch.testing.assert_close(theta[1:] / theta[:-1], torch.full((7,), 10000.0 ** (-1 / 8), dtype=torch.float64))
    assert float(theta[-1]) > 1 / 10000.0


@pytest.mark.parametrize("make", [rotation_tables, two_level_tables])
def test_tables_made_in_inference_mode_serve_training(make):
    start = (0,) if make is rotation_tables else ()
    with torch.inference_mode():
        make(*start, 7, 5, 1234.5, CPU)
    weight = torch.ones(5, requires_grad=True)
    cosine, _ = make(*start, 7, 5, 1234.5, CPU)
    (weight * cosine[:, :5]).sum().backward()
    assert torch.equal(weight.grad, cosine[:, :5].sum(0))


@pytest.mark.parametrize("make", [rotation_tables, two_level_tables])
def test_tables_of_a_spectrum_are_kept(make, monkeypatch):
    """Made once for all that are equal, and the very tables of its numbers."""
    start = (0,) if make is rotation_tables else ()
    first = make(*start, 300, 5, 1.0, CPU, Slowed(5, 7.5))
    for table, given in zip(first, make(*start, 300, 5, 1.0, CPU, Slowed(5, 7.5).on(CPU)), strict=True):
        assert torch.equal(table[: len(given)], given)
    other = make(*start, 300, 5, 1.0, CPU, Slowed(5, 2.5))
    assert not torch.equal(other[0], first[0])
    monkeypatch.setattr(rotation, "_tables", lambda *_: pytest.fail("they are there"))
    for again, wanted in (
        (make(*start, 300, 5, 1.0, CPU, Slowed(5, by)), of) for by, of in ((7.5, first), (2.5, other))
    ):
        assert [table.data_ptr() for table in again] == [table.data_ptr() for table in wanted]


class TestShelf:
    def test_keeps_the_most_recently_used(self):
        shelf = rotation._Shelf(2)
        made = []

        def get(key):
            return shelf.get(key, lambda: made.append(key) or key.upper())

        assert [get(k) for k in ("a", "b", "a", "c", "a", "b")] == ["A", "B", "A", "C", "A", "B"]
        assert made == ["a", "b", "c", "b"]  # c took the place of b, not of a

    def test_a_graph_being_captured_adds_nothing_and_pins_what_it_reads(self, monkeypatch):
        shelf = rotation._Shelf(1)
        shelf.get("old", lambda: "OLD")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert shelf.get("new", lambda: "graph's own") == "graph's own"
        assert shelf.get("old", lambda: pytest.fail("it is there")) == "OLD"
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        assert shelf.get("new", lambda: "NEW") == "NEW"
        shelf.get("newer", lambda: "NEWER")
        assert "old" in shelf.kept
        assert "new" not in shelf.kept


@pytest.mark.parametrize(
    "freqs",
    [
        (None, None),
        pytest.param([torch.tensor([1.0, 0.3, 0.0, 1e-3], dtype=torch.float64)] * 2, marks=pytest.mark.slow),
        pytest.param((Slowed(4, 2.0), Slowed(4, 2.0)), marks=pytest.mark.slow),
    ],
    ids=["base", "given", "spectrum"],
)
def test_compiled_models_make_their_tables_once(freqs):
    """One call for all layers, and nothing of fp64 in the graph for a compiler to put into every element.

    But for a spectrum's own few numbers.
    """
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def capture(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    def layers(q, k, v):
        return rope_attention(rope_attention(q, k, v, freqs=freqs[0]), k, v, freqs=freqs[1])

    partition = min_cut_rematerialization_partition
    backend = aot_autograd(fw_compiler=capture, bw_compiler=capture, partition_fn=partition)
    # dynamic=True would make an input of each layer's own number of a spectrum.
    dynamic = None if isinstance(freqs[0], Spectrum) else True
    compiled = torch.compile(layers, backend=backend, fullgraph=True, dynamic=dynamic)
    for length in (10, 13):  # a length that was not known when it was compiled
        q, k, v = (torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3))
        compiled(q, k, v).sum().backward()
        torch.testing.assert_close(compiled(q, k, v), layers(q, k, v))
    for graph in graphs:
        targets = [str(node.target) for node in graph.graph.nodes]
        assert sum("rotation_tables" in target for target in targets) <= 1
        assert not any(name in target for target in targets for name in ("aten.cos", "aten.sin"))
        powers = [node.meta["val"].shape for node in graph.graph.nodes if "aten.pow" in str(node.target)]
        assert powers in ([], [(4,)] if isinstance(freqs[0], Spectrum) else [])
    assert any("rotation_tables" in str(node.target) for graph in graphs for node in graph.graph.nodes)


@pytest.mark.parametrize("freqs", [(), (torch.rand(4, dtype=torch.float64),)], ids=["base", "given"])
def test_tables_operator(freqs):
    torch.library.opcheck(torch.ops.seqpope.rotation_tables.default, (3, 5, 4, 10000.0, CPU, *freqs))


def test_fake_tables_are_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        rotation_tables(0, 7, 5, 123.0, CPU)
        two_level_tables(7, 5, 123.0, CPU)
    for table in (*rotation_tables(0, 7, 5, 123.0, CPU), *two_level_tables(7, 5, 123.0, CPU)):
        assert type(table) is torch.Tensor
