"""The Triton kernels beyond what every backend does: tiles, dtypes, dropout's mask.

Without a GPU they run in Triton's interpreter, whose dot of bf16 is silently wrong (Triton 3.9): there fp32 and
fp16 are tested, bf16 on a GPU.
"""

from __future__ import annotations

import math

import pytest
import torch
from cases import DEVICE, DROPOUT, ON_GPU, make_inputs, relative_error, upstream_like, with_gradients
from scipy import stats

from seqpope.kernels import attention, pope_attention, reference, rope_attention
from seqpope.kernels.rotation import two_level_tables

pytest.importorskip("triton")
from seqpope.kernels import decode, flash, operators, tiles

NAMES = ("out", "dq", "dk", "dv", "ddelta")
# fp32 is computed in three TF32 products on a GPU. 16-bit types round what is multiplied, so that SDPA on the
# Cartesian form, which rounds in the same places, is the measure there.
SLOW = pytest.mark.slow
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if ON_GPU else [])


def errors(inputs, backend, dtype, by="reference", **options):
    """Relative Frobenius errors of output and gradients against the formula in fp64, of the same rounded input.

    By the Cartesian form the same takes D times less memory.
    """
    rounded = [x.to(dtype) for x in inputs[:3]] + [inputs[3]]
    upstream = upstream_like(inputs[0]).to(dtype)
    exact = with_gradients("pope", rounded, upstream, torch.float64, backend=by, **options)
    got = with_gradients("pope", rounded, upstream, dtype, backend=backend, **options)
    assert all(x.dtype == dtype for x in got[:4])
    return dict(zip(NAMES, map(relative_error, got, exact), strict=True))


def assert_within(ours, cartesian, dtype):
    """Errors no larger than those of SDPA on the Cartesian form."""
    for name, error in ours.items():
        # ddelta sums terms of either sign: in fp16 chance decides who is nearer.
        slack = 1.6 if name == "ddelta" and dtype == torch.float16 else 1.2
        assert error <= slack * cartesian[name] + 1e-4, (name, error, cartesian[name])


SHAPES = [  # (Lq, Lk, query_offset, D, heads of queries, of keys), and whether the interpreter is soon done
    ((1, 1, 0, 16, 1, 1), True),
    ((63, 63, 0, 48, 2, 1), True),
    ((64, 64, 0, 20, 2, 2), True),
    ((65, 65, 0, 96, 2, 2), False),
    ((33, 100, 67, 80, 1, 1), True),
    ((17, 40, 5, 128, 2, 1), True),
    ((9, 20, 3, 200, 2, 1), False),
    ((40, 40, 0, 1, 1, 1), True),
]


@pytest.mark.parametrize(
    ("queries", "keys", "offset", "dim", "heads", "key_heads", "dtype"),
    [
        pytest.param(*shape, dtype, marks=[] if soon and (dtype != torch.float16 or shape[1] <= 40) else [SLOW])
        for shape, soon in SHAPES
        for dtype in DTYPES
    ],
)
def test_values_and_gradients(queries, keys, offset, dim, heads, key_heads, dtype, poisoned):
    inputs = make_inputs(queries, keys, dim, heads=heads, key_heads=key_heads)
    got = errors(inputs, "triton", dtype, query_offset=offset)
    if queries == 1:  # one query that sees one key: nothing depends on q, k or delta
        got = {"out": got["out"], "dv": got["dv"]}
    if dtype == torch.float32:
        assert max(got.values()) < 5e-6, got
    else:
        cartesian = errors(inputs, "cartesian", dtype, query_offset=offset)
        assert_within(got, cartesian, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [16, 48])
def test_a_thousand_keys(dim, poisoned):
    inputs = make_inputs(1000, 1000, dim, batch=1, heads=1)
    assert max(errors(inputs, "triton", torch.float32).values()) < 5e-6


def test_poison_would_be_seen(poisoned, monkeypatch):
    """The fixture proves something: a kernel that leaves its last tile out does not pass."""
    launch = flash.launch_forward
    monkeypatch.setattr(flash, "launch_forward", lambda q, k, v, out, *a: launch(q, k, v, out[:, :, :32], *a))
    q, k, v, delta = make_inputs(65, 65, 16)
    assert pope_attention(q, k, v, delta, backend="triton", dropout_p=1e-9).isnan().any()


def test_far_positions_are_exact():
    """At a million positions fp32 angles would be off by 0.03 radians."""
    q, k, v, delta = make_inputs(3, 40, 16, batch=1, heads=2)
    options = {"query_offset": 1_000_000, "causal": False}
    exact = pope_attention(q.double(), k.double(), v.double(), delta.double(), backend="reference", **options)
    for inputs in ((q, k, v, delta), (q, k, v, delta.requires_grad_())):  # the decoding kernel, the other
        far = pope_attention(*inputs, backend="triton", **options)
        torch.testing.assert_close(far.double(), exact, atol=1e-5, rtol=1e-5)


def test_twice_is_the_same_to_the_bit():
    inputs = make_inputs(70, 70, 16, batch=1, heads=2, key_heads=1)
    upstream = upstream_like(inputs[0])
    runs = [with_gradients("pope", inputs, upstream, torch.float32, backend="triton") for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    "tiles", [(64, 16), (16, 16), *(pytest.param(t, marks=pytest.mark.slow) for t in ((32, 64), (128, 32)))]
)
def test_tiles_change_nothing(tiles, monkeypatch):
    """Every kernel with tiles of other shapes than its own, down to a single one."""
    inputs = make_inputs(70, 90, 20, heads=2, batch=1)
    upstream = upstream_like(inputs[0])
    options = {"query_offset": 20, "backend": "triton"}
    expected = with_gradients("pope", inputs, upstream, torch.float32, **options)
    one = flash.Tiles(*tiles, 4, 1)
    monkeypatch.setattr(flash, "choose_tiling", lambda *_: flash.Tiling(one, one, one))
    for got, want in zip(
        with_gradients("pope", inputs, upstream, torch.float32, **options), expected, strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(40, 64), (64, 65), (65, 51)])
def test_tiles_shrink_with_short_sequences(queries, keys, monkeypatch):
    """Sequences of at most 64 are padded to 64, and no tile may reach into the next one's."""
    wide = flash.Tiles(128, 128, 8, 1)
    monkeypatch.setattr(flash, "choose_tiling", lambda *_: flash.Tiling(wide, wide, wide))
    inputs = make_inputs(queries, keys, 16, heads=2, batch=2)
    scope = {"query_offset": keys - queries} if keys > queries else {"causal": False}
    assert max(errors(inputs, "triton", torch.float32, **scope).values()) < 1e-5


@pytest.mark.parametrize("span", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_order_of_programs_changes_nothing(span, monkeypatch):
    inputs = make_inputs(70, 70, 16, heads=4, key_heads=2, batch=2)
    upstream = upstream_like(inputs[0])
    expected = with_gradients("pope", inputs, upstream, torch.float32, backend="triton")
    monkeypatch.setattr(flash, "_span", lambda pairs, *_: min(span, pairs))
    got = with_gradients("pope", inputs, upstream, torch.float32, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dim", range(1, 257))
def test_a_head_dimension_is_split_into_what_tensor_cores_take(dim):
    first, second = flash.split_head_dim(dim)
    assert first + second >= dim
    assert first in (16, 32, 64, 128)
    assert second in (0, 16, 32, 64, 128)
    assert first + second <= max(16, 1 << (dim - 1).bit_length())
    assert dim > 128 or first + second in flash.HOPPER
    assert tiles.PAD % flash.rotated_rows(dim) == 0


def test_softplus_is_exact_at_both_ends():
    import triton
    import triton.language as tl

    @triton.jit
    def apply(X, Y, N: tl.constexpr):
        i = tl.arange(0, N)
        tl.store(Y + i, tiles.softplus(tl.load(X + i)))

    x = torch.cat((torch.linspace(-80, 80, 3000), torch.randn(1096))).to(DEVICE)
    y = torch.empty_like(x)
    apply[(1,)](x, y, 4096)
    exact = torch.nn.functional.softplus(x.double())
    # The exponent x log2 e is itself rounded, relatively, so that the error grows with |x|.
    assert ((y.double() - exact).abs() / exact / (4 + x.double().abs())).max() < 1e-7


class TestDropout:
    @pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_values_and_gradients_with_the_formulas_mask(self, packed):
        inputs = make_inputs(65, 65, 16, heads=4, key_heads=2)
        more = {"cu_seqlens": torch.tensor([0, 20, 65, 130], device=DEVICE)} if packed else {}
        assert max(errors(inputs, "triton", torch.float32, **DROPOUT, **more).values()) < 5e-6

    @pytest.mark.slow
    def test_a_mask_belongs_to_its_seed(self):
        inputs = make_inputs(40, 40, 16)
        one, again, other = (
            pope_attention(*inputs, dropout_p=0.3, dropout_seed=seed, backend="triton") for seed in (5, 5, 6)
        )
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        as_tensor = torch.tensor([5], device=DEVICE)
        assert torch.equal(one, pope_attention(*inputs, dropout_p=0.3, dropout_seed=as_tensor, backend="triton"))
        high = pope_attention(*inputs, dropout_p=0.3, dropout_seed=5 + (1 << 32), backend="triton")
        assert not torch.equal(one, high)  # all 64 bits of it count

    def test_seeds_of_another_shape(self):
        for seed in (torch.tensor(5), torch.tensor([5.0]), torch.tensor([5, 6])):
            with pytest.raises(ValueError, match=r"dropout_seed must be \(1,\) int64"):
                pope_attention(*make_inputs(3, 3, 6), dropout_p=0.1, dropout_seed=seed, backend="triton")

    @pytest.mark.slow
    def test_none_is_none(self):
        inputs = make_inputs(33, 33, 16)
        upstream = upstream_like(inputs[0])
        plain = with_gradients("pope", inputs, upstream, torch.float32, backend="triton")
        off = with_gradients(
            "pope", inputs, upstream, torch.float32, backend="triton", dropout_p=0.0, dropout_seed=7
        )
        assert all(torch.equal(a, b) for a, b in zip(plain, off, strict=True))

    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
    def test_the_mask_is_as_random_as_it_should_be(self, p):
        """Rate, rows, columns, heads, neighbours, and the same place under other seeds: chi-squared tests."""
        masks = torch.stack(
            [reference.dropout_mask(torch.tensor([s]), (2, 3, 128, 160), p) for s in (0, 1, 2, 1 << 40)]
        )
        dropped = (~masks).double()
        total = dropped.numel()
        assert stats.binomtest(int(dropped.sum()), total, p).pvalue > 1e-4
        for axis in range(dropped.dim()):
            counts = dropped.movedim(axis, 0).flatten(1).sum(1)
            each = total / len(counts)
            chi2 = float(((counts - p * each) ** 2 / (p * (1 - p) * each)).sum())
            assert 1e-4 < stats.chi2.sf(chi2, len(counts)) < 1 - 1e-4
        centred = dropped - p
        for axis, step in ((3, 1), (3, 2), (4, 1), (4, 2), (4, 16), (2, 1), (1, 1), (0, 1)):
            a = centred.narrow(axis, 0, centred.shape[axis] - step)
            b = centred.narrow(axis, step, centred.shape[axis] - step)
            z = float((a * b).sum()) / (p * (1 - p) * math.sqrt(a.numel()))
            assert abs(z) < 4, (axis, step, z)

    def test_rows_of_a_mask_are_not_shifts_of_each_other(self):
        """All rows walk one cycle of 2^32 counters: where they overlap the second word keeps them apart."""
        mask = reference.dropout_mask(torch.tensor([3]), (1, 1, 512, 512), 0.5)[0, 0].double() - 0.5
        spectrum = torch.fft.rfft(mask, n=1024)
        for shift in range(1, 200, 13):
            correlation = torch.fft.irfft(spectrum * spectrum.roll(shift, 0).conj(), n=1024)
            assert correlation.abs().max() < 0.25 * 7 * math.sqrt(512)


class TestDecoding:
    def test_a_step_is_the_last_row_of_prefill(self):
        """At every length, so that the parts into which the keys are split begin and end everywhere."""
        length = 75
        q, k, v, delta = make_inputs(length, length, 48, heads=4, key_heads=2, batch=1)
        full = pope_attention(q, k, v, delta, backend="triton")
        for t in (0, 1, 15, 16, 17, 31, 40, 63, 64, 74):
            keys = slice(0, t + 1)
            step = pope_attention(
                q[:, :, t : t + 1], k[:, :, keys], v[:, :, keys], delta, query_offset=t, backend="triton"
            )
            torch.testing.assert_close(step, full[:, :, t : t + 1], atol=2e-6, rtol=2e-6)

    @pytest.mark.parametrize(
        ("dtype", "queries", "key_heads", "dim", "causal"),
        [
            pytest.param(dtype, *case, causal, marks=[] if dtype == torch.float32 or causal == once else [SLOW])
            for dtype in DTYPES
            for case, once in [
                ((1, 2, 20), True),
                ((1, 4, 20), False),
                ((1, 4, 48), True),
                ((2, 2, 20), False),
                ((5, 2, 20), True),
            ]
            for causal in (True, False)
        ],
    )
    def test_is_the_formula(self, dtype, queries, key_heads, dim, causal, poisoned):
        """Of one head as of several; keys behind the query, too, are seen where nothing forbids it."""
        q, k, v, delta = make_inputs(queries, 70, dim, heads=4, key_heads=key_heads, dtype=dtype)
        options = {"query_offset": 40, "causal": causal}
        exact = pope_attention(q.double(), k.double(), v.double(), delta.double(), backend="reference", **options)
        out = pope_attention(q, k, v, delta, backend="triton", **options)
        assert relative_error(out, exact) < {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]

    @pytest.mark.parametrize(
        ("dtype", "dim", "causal"),
        [
            pytest.param(dtype, dim, causal, marks=[] if dtype == torch.float32 or causal == once else [SLOW])
            for dtype in DTYPES
            for dim, once in [(2, True), (20, False), (48, True), (64, False)]
            for causal in (True, False)
        ],
    )
    def test_of_rope_is_the_formula(self, dtype, dim, causal, poisoned):
        q, k, v, _ = make_inputs(1, 70, dim, heads=4, dtype=dtype)
        options = {"query_offset": 40, "causal": causal}
        exact = rope_attention(q.double(), k.double(), v.double(), backend="reference", **options)
        out = rope_attention(q, k, v, backend="triton", **options)
        assert relative_error(out, exact) < {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]

    @pytest.mark.parametrize("parts", [1, 2, pytest.param(17, marks=pytest.mark.slow)])
    def test_of_rope_in_parts_with_lengths_of_their_own(self, parts, monkeypatch):
        q, k, v, _ = make_inputs(1, 300, 16, heads=4)
        lengths = torch.tensor([290, 3], device=DEVICE)
        k[1, :, 3:], v[1, :, 3:] = math.nan, math.nan
        options = {"query_offset": lengths - 1, "key_lengths": lengths}
        exact = rope_attention(q.double(), k.double(), v.double(), backend="reference", **options)
        monkeypatch.setattr(decode, "_parts", lambda *_: parts)
        assert relative_error(rope_attention(q, k, v, backend="triton", **options), exact) < 1e-6

    def test_of_rope_is_refused_where_it_is_none(self):
        q, k, v, _ = make_inputs(2, 20, 16)
        with pytest.raises(ValueError, match="one query"):
            rope_attention(q, k, v, query_offset=18, backend="triton")

    @pytest.mark.parametrize(("queries", "key_heads"), [(2, 2), (1, 4)])
    @pytest.mark.parametrize("parts", [1, 17, *(pytest.param(p, marks=pytest.mark.slow) for p in (2, 15, 16, 40))])
    def test_however_many_parts_are_joined(self, parts, queries, key_heads, monkeypatch):
        q, k, v, delta = make_inputs(queries, 700, 16, heads=4, key_heads=key_heads, batch=1)
        options = {"query_offset": 600}  # parts behind the queries have nothing to see
        exact = pope_attention(q.double(), k.double(), v.double(), delta, backend="reference", **options)
        monkeypatch.setattr(attention, "_seen_by_some", lambda k, v, *_: (k, v))
        monkeypatch.setattr(decode, "_parts", lambda *_: parts)
        out = pope_attention(q, k, v, delta, backend="triton", **options)
        assert relative_error(out, exact) < 1e-6

    @pytest.mark.parametrize("key_heads", [2, 4])
    def test_a_sequence_without_keys_gives_zero(self, key_heads):
        q, k, v, delta = make_inputs(1, 70, 16, heads=4, key_heads=key_heads)
        lengths = torch.tensor([0, 50], device=DEVICE)
        for options in ({"causal": False}, {"query_offset": torch.tensor([0, 49], device=DEVICE)}):
            out = pope_attention(q, k, v, delta, key_lengths=lengths, backend="triton", **options)
            exact = pope_attention(q, k, v, delta, key_lengths=lengths, backend="reference", **options)
            assert not out[0].any()
            torch.testing.assert_close(out, exact, atol=1e-5, rtol=1e-5)

    def test_is_taken_for_few_queries_without_gradient_only(self, monkeypatch):
        called = []
        decoding = operators.decode_few
        monkeypatch.setattr(operators, "decode_few", lambda *a: called.append(1) or decoding(*a))
        q, k, v, delta = make_inputs(1, 20, 16)
        pope_attention(q, k, v, delta, query_offset=19, backend="triton")
        assert called == [1]
        pope_attention(q, k, v, delta.requires_grad_(), query_offset=19, backend="triton")
        with torch.no_grad():
            pope_attention(*make_inputs(attention.DECODE_ROWS + 1, 20, 16), backend="triton")
        assert called == [1]

    def test_a_cache_longer_than_what_is_filled(self):
        """What lies behind key_lengths is never read: a cache is allocated once and filled by and by."""
        q, k, v, delta = make_inputs(1, 64, 16)
        lengths = torch.tensor([10, 33], device=DEVICE)
        for row, length in enumerate(lengths.tolist()):
            k[row, :, length:] = math.nan
            v[row, :, length:] = math.nan
        out = pope_attention(q, k, v, delta, query_offset=lengths - 1, key_lengths=lengths, backend="triton")
        assert out.isfinite().all()

    def test_takes_a_limited_number_of_rows(self):
        q, k, v, delta = make_inputs(40, 40, 16, heads=2, key_heads=1)
        tables = two_level_tables(40, 16, 10000.0, DEVICE)
        with pytest.raises(ValueError, match="up to 16, not 40 x 2"):
            decode.decode_attention(q, k, v, delta, tables, None, None, 0, True, 0.25)


class TestAwkward:
    @pytest.mark.parametrize("scale", [-0.3, 1e-3, 2.0])
    def test_any_scale(self, scale):
        inputs = make_inputs(20, 20, 16)
        assert max(errors(inputs, "triton", torch.float32, softmax_scale=scale).values()) < 1e-5

    def test_padding_of_queries_reads_nothing_behind_the_tables(self, monkeypatch):
        """The last tile's rows behind the last query have positions that no table reaches."""
        tables = two_level_tables(256, 16, 10000.0, DEVICE)
        guarded = []
        for table in tables:
            room = torch.full((3 * len(table), table.shape[1]), math.nan, device=DEVICE)
            room[: len(table)] = table
            guarded.append(room[: len(table)])
        monkeypatch.setattr(attention, "two_level_tables", lambda *_: guarded)
        wide = flash.Tiles(64, 64, 4, 1)
        monkeypatch.setattr(flash, "choose_tiling", lambda *_: flash.Tiling(wide, wide, wide))
        inputs = make_inputs(20, 250, 16, batch=1, heads=1)
        assert max(errors(inputs, "triton", torch.float32, query_offset=230).values()) < 1e-5

    @pytest.mark.parametrize("queries", [1, 20])
    def test_lengths_of_any_kind(self, queries):
        q, k, v, delta = make_inputs(queries, 20, 16)
        plain = torch.tensor([3, 9], device=DEVICE)
        options = {"causal": False, "backend": "triton"}
        expected = pope_attention(q, k, v, delta, key_lengths=plain, **options)
        strided = torch.tensor([3, 20, 9, 20], dtype=torch.int32, device=DEVICE)[::2]
        assert torch.equal(pope_attention(q, k, v, delta, key_lengths=strided, **options), expected)
        everything = pope_attention(q, k, v, delta, **options)
        no_limit = torch.tensor([1 << 40] * 2, device=DEVICE)
        assert torch.equal(pope_attention(q, k, v, delta, key_lengths=no_limit, **options), everything)

    def test_few_queries_with_documents_or_dropout_are_not_decoded(self):
        """The decoding kernel knows neither."""
        q, k, v, delta = make_inputs(12, 12, 16)
        for options in ({"cu_seqlens": torch.tensor([0, 5, 12, 24], device=DEVICE)}, DROPOUT):
            exact = pope_attention(q, k, v, delta, backend="reference", **options)
            got = pope_attention(q, k, v, delta, backend="triton", **options)
            torch.testing.assert_close(got, exact, atol=1e-5, rtol=1e-5)

    def test_a_second_derivative_is_refused_not_zero(self):
        inputs = [x.requires_grad_() for x in make_inputs(9, 9, 16)]
        out = pope_attention(*inputs, backend="triton")
        with pytest.raises(RuntimeError, match=r"no second derivative .* use backend='cartesian'"):
            torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)

    @pytest.mark.parametrize("backend", ["triton", "cartesian", "reference"])
    @pytest.mark.parametrize("queries", [1, 20])
    def test_a_cache_that_is_not_filled(self, backend, queries):
        q, k, v, delta = make_inputs(queries, 60, 16)
        expected = pope_attention(q, k[:, :, :30], v[:, :, :30], delta, query_offset=30 - queries, backend=backend)
        k[:, :, 30:], v[:, :, 30:] = math.nan, math.nan
        got = pope_attention(q, k, v, delta, query_offset=30 - queries, backend=backend)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("backend", ["triton", "cartesian", "reference"])
    def test_boundaries_need_not_begin_at_0(self, backend):
        q, k, v, delta = make_inputs(20, 20, 16)
        full, short = (torch.tensor(cuts, device=DEVICE) for cuts in ([0, 5, 40], [5]))
        expected = pope_attention(q, k, v, delta, cu_seqlens=full, backend=backend)
        got = pope_attention(q, k, v, delta, cu_seqlens=torch.cat((short, full[-1:])), backend=backend)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("backend", ["triton", "cartesian", "reference"])
    def test_no_gradient_flows_to_frequencies(self, backend):
        inputs = [x.requires_grad_() for x in make_inputs(9, 9, 16)]
        freqs = torch.rand(16, device=DEVICE, requires_grad=True)
        out = pope_attention(*inputs, freqs=freqs, backend=backend)
        assert torch.autograd.grad(out.sum(), freqs, allow_unused=True) == (None,)

    def test_tensors_elsewhere(self):
        q, k, v, delta = make_inputs(9, 9, 16)
        with pytest.raises(ValueError, match="delta must be on q's device"):
            pope_attention(q, k, v, delta.to("meta"))
        with pytest.raises(ValueError, match="must be on one device"):
            pope_attention(q, k.to("meta"), v, delta)


class TestChoice:
    def test_cpu_takes_sdpa_even_where_the_interpreter_could(self, monkeypatch):
        monkeypatch.setattr(attention, "_triton", lambda *a: pytest.fail("on a CPU, auto is SDPA"))
        pope_attention(*(x.cpu() for x in make_inputs(5, 5, 16)))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dim": 257}, "head dimension goes up to 256, here it is 257"),
            ({"dtype": torch.float64}, "must all be float16, bfloat16 or float32, they are torch.float64"),
        ],
    )
    def test_what_triton_cannot_do_goes_elsewhere_or_says_so(self, change, message):
        dim, dtype = change.get("dim", 16), change.get("dtype", torch.float32)
        inputs = make_inputs(5, 5, dim, dtype=dtype)
        exact = pope_attention(*(x.double() for x in inputs), backend="reference")
        torch.testing.assert_close(pope_attention(*inputs).double(), exact, atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match=message):
            pope_attention(*inputs, backend="triton")

    @pytest.mark.skipif(ON_GPU, reason="of the interpreter")
    def test_the_interpreter_is_not_asked_for_bfloat16(self):
        with pytest.raises(ValueError, match="interpreter computes bfloat16 products wrongly"):
            pope_attention(*make_inputs(5, 5, 16, dtype=torch.bfloat16), backend="triton")

    def test_without_triton(self, monkeypatch):
        monkeypatch.setattr(attention, "TRITON_INSTALLED", False)
        inputs = make_inputs(5, 5, 16)
        with pytest.raises(ValueError, match="triton is not installed: pip install triton"):
            pope_attention(*inputs, backend="triton")
        pope_attention(*inputs)

    @pytest.mark.skipif(ON_GPU, reason="on a GPU the tensors are on a CUDA device")
    def test_without_interpreter_or_gpu(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.raises(ValueError, match="must be on a CUDA device, they are on cpu"):
            pope_attention(*make_inputs(5, 5, 16), backend="triton")


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("dim", [16, 32, 48, 64, 80, 96, 128, 192, 256])
    def test_every_table_entry(self, dim, dtype, poisoned):
        """Each head dimension's own tiles, short and long, with every kind of mask, against fp64."""
        inputs = make_inputs(1000, 1000, dim, batch=1, heads=2, key_heads=1)
        cuts = torch.tensor([0, 300, 301, 1000], device=DEVICE)
        for options in ({}, {"causal": False}, {"cu_seqlens": cuts}):
            got = errors(inputs, "triton", dtype, by="cartesian", **options)
            if dtype == torch.float32:
                assert max(got.values()) < 1e-5, got
                continue
            cartesian = errors(inputs, "cartesian", dtype, by="cartesian", **options)
            assert_within(got, cartesian, dtype)
        few = make_inputs(300, 300, dim, batch=1, heads=2, key_heads=1)
        got = errors(few, "triton", dtype, dropout_p=0.2, dropout_seed=3)
        assert max(got.values()) < (1e-5 if dtype == torch.float32 else 0.01), got

    @pytest.mark.parametrize("dim", [32, 48, 64, 128])
    def test_long(self, dim):
        """8,192 keys, the long tiles: against SDPA on the Cartesian form in fp32."""
        inputs = make_inputs(8192, 8192, dim, batch=1, heads=2)
        upstream = upstream_like(inputs[0])
        exact = with_gradients("pope", inputs, upstream, torch.float32, backend="cartesian")
        got = with_gradients("pope", inputs, upstream, torch.bfloat16, backend="triton")
        for name, ours, theirs in zip(NAMES, got, exact, strict=True):
            assert relative_error(ours, theirs) < 0.02, name

    def test_cuda_graph(self):
        """Captured with dropout: each replay reads new inputs and draws a new mask."""
        inputs = [x.requires_grad_() for x in make_inputs(200, 200, 64, dtype=torch.bfloat16)[:3]]
        delta = make_inputs(200, 200, 64)[3].requires_grad_()
        upstream = upstream_like(inputs[0]).bfloat16()

        def run(p):
            out = pope_attention(*inputs, delta, dropout_p=p)
            return [out, *torch.autograd.grad(out, [*inputs, delta], upstream)]

        for p in (0.0, 0.3):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                run(p)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = run(p)
            graph.replay()
            first = [x.clone() for x in captured]
            graph.replay()
            if p:
                assert not torch.equal(first[0], captured[0])
            else:
                for got, eager in zip(captured, run(p), strict=True):
                    assert torch.equal(got, eager)
                with torch.no_grad():
                    inputs[0].mul_(2)
                graph.replay()
                for got, eager in zip(captured, run(p), strict=True):
                    assert torch.equal(got, eager)

    def test_a_million_keys(self):
        """A decoding step against a cache of 2^20 keys, the last of them exactly where they are."""
        length = 1 << 20
        generator = torch.Generator(DEVICE).manual_seed(0)
        q, k, v = (
            torch.randn(1, 2, n, 64, generator=generator, device=DEVICE, dtype=torch.bfloat16)
            for n in (1, length, length)
        )
        delta = torch.zeros(2, 64, device=DEVICE)
        out = pope_attention(q, k, v, delta, query_offset=length - 1)
        exact = pope_attention(
            q.float(), k.float(), v.float(), delta, query_offset=length - 1, backend="cartesian"
        )
        assert relative_error(out, exact) < 0.02

    def test_the_model_takes_triton_on_cuda(self, monkeypatch):
        """In training and with a cache, and what it says is what it says by SDPA."""
        from seqpope.model.cache import KeyValueCache
        from seqpope.model.config import ModelConfig
        from seqpope.model.transformer import Transformer

        called = []
        real = attention._triton
        monkeypatch.setattr(attention, "_triton", lambda *a: called.append(1) or real(*a))
        config = ModelConfig(width=128, layers=2, heads=2, dropout=0.0)
        model = Transformer(30, "pope", config).to(DEVICE)
        ids = torch.randint(30, (2, 70), device=DEVICE)
        with torch.no_grad():
            got = model(ids)
            cache = KeyValueCache(config, 2, 70, DEVICE)
            steps = [model(ids[:, :69], cache), model(ids[:, 69:], cache)]
            assert len(called) == 6
            monkeypatch.setattr(attention, "_why_not_triton", lambda *_: "this test says so")
            expected = model(ids)
        assert len(called) == 6
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-4, rtol=1e-4)
