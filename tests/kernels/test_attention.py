"""What every encoding and every backend must do: the formula's values and gradients, and the laws it obeys."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from cases import (
    ALL,
    ALL_RARELY,
    DEVICE,
    ENCODINGS,
    FAST,
    FAST_RARELY,
    attend,
    make_inputs,
    relative_error,
    with_gradients,
)
from torch.nn import functional as F

from seqpope.kernels import pope_attention, pope_attention_packed, reference, rope_attention
from seqpope.kernels.scope import Scope

# Fewer queries than keys, lengths around powers of two, head dimensions that are none.
SHAPES = [  # (Lq, Lk, query_offset, D)
    (1, 1, 0, 6),
    (63, 63, 0, 16),
    (64, 64, 0, 48),
    (65, 65, 0, 6),
    (257, 257, 0, 16),
    (1, 65, 64, 48),
    (1, 65, 30, 16),
    (7, 64, 57, 6),
    (63, 257, 100, 16),
    (5, 9, 0, 6),
]
HEAVY = {(64, 64, 0, 48), (257, 257, 0, 16), (1, 65, 64, 48)}  # to the interpreter; test_triton.py has their like
CASES = [
    pytest.param(*kernel, *shape, marks=[pytest.mark.slow] if kernel[1] == "triton" and shape in HEAVY else [])
    for kernel in FAST
    for shape in SHAPES
]
NAMES = ("out", "dq", "dk", "dv", "ddelta")


def random_like(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.device)


def assert_formula(encoding, backend, inputs, *, bound=4e-6, **options):
    """Values and every gradient in fp32 against the formula in fp64."""
    upstream = random_like(inputs[0])
    got = with_gradients(encoding, inputs, upstream, torch.float32, backend=backend, **options)
    exact = with_gradients(encoding, inputs, upstream, torch.float64, backend="reference", **options)
    for name, ours, theirs in zip(NAMES, got, exact, strict=False):
        assert ours.dtype == torch.float32
        assert ours.shape == theirs.shape
        # Not relative to a norm below 0.05 an entry: gradients that cancel to 0 come out as 1e-8.
        error = (ours.double() - theirs).norm() / theirs.norm().clamp(min=0.05 * math.sqrt(theirs.numel()))
        assert error < bound, f"{name}: {float(error):.2e}"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("encoding", "backend", "queries", "keys", "offset", "dim"), CASES)
def test_values_and_gradients_are_those_of_the_formula_in_fp64(
    encoding, backend, queries, keys, offset, dim, causal
):
    inputs = make_inputs(queries, keys, dim, batch=1 if keys > 100 else 2, heads=2)
    assert_formula(encoding, backend, inputs, query_offset=offset, causal=causal)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 1), (4, 2), (6, 2)])
@pytest.mark.parametrize(("encoding", "backend"), FAST_RARELY)
def test_grouped_heads(encoding, backend, heads, key_heads):
    """Head h reads key head h // group: the formula's own gradient sums over the group."""
    inputs = make_inputs(37, 40, 16, heads=heads, key_heads=key_heads)
    assert_formula(encoding, backend, inputs, query_offset=3)


@pytest.mark.parametrize(("encoding", "backend"), FAST)
def test_base_frequencies_and_scale_are_used(encoding, backend):
    inputs = make_inputs(9, 9, 6, batch=1, heads=1)
    count = 3 if encoding == "rope" else 6
    freqs = torch.linspace(0.9, 0.1, count, dtype=torch.float64, device=DEVICE)
    plain = attend(encoding, *inputs, backend=backend)
    for options in ({"base": 50.0}, {"softmax_scale": 0.9}, {"freqs": freqs}):
        assert_formula(encoding, backend, inputs, **options)
        assert (attend(encoding, *inputs, backend=backend, **options) - plain).abs().max() > 1e-2


@pytest.mark.parametrize(("encoding", "backend"), FAST_RARELY)
def test_layout_in_memory_does_not_matter(encoding, backend):
    q, k, v, delta = make_inputs(65, 65, 16)
    # A model's q, k and v are slices of one projection; and every axis in another order; and gradients are
    # whatever the next operation left.
    sliced = torch.stack((q, k, v)).permute(1, 3, 0, 2, 4).contiguous().permute(2, 0, 3, 1, 4)
    turned = [x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for x in (q, k, v)]
    upstream = random_like(q)
    scattered = upstream.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    every_other = torch.stack((delta, delta + 1), -1)[..., 0]
    assert not any(x.is_contiguous() for x in (*sliced, *turned, scattered, every_other))
    plain = with_gradients(encoding, (q, k, v, delta), upstream, torch.float32, backend=backend)
    for inputs in (sliced, turned):
        # No .detach().to() as in with_gradients: clones would be contiguous.
        leaves = [x.detach().requires_grad_() for x in (*inputs, every_other)]
        out = attend(encoding, *leaves, backend=backend)
        wanted = leaves[:3] if encoding == "rope" else leaves
        for got, expected in zip((out, *torch.autograd.grad(out, wanted, scattered)), plain, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


BY_HAND = {
    "pope": lambda x: math.log1p(math.exp(x)),
    "pope relu": lambda x: max(x, 0.0),
    "pope none": lambda x: x,
}


def pope_by_hand(q, k, v, delta, mu, base, offset, causal, scale):
    """The paper's sum, term by term: nothing of seqpope in it."""
    batch, heads, queries, dim = q.shape
    out = torch.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            for t in range(queries):
                scores = []
                for s in range(k.shape[2]):
                    if causal and s > t + offset:
                        break
                    scores.append(
                        sum(
                            mu(float(q[b, h, t, c]))
                            * mu(float(k[b, h, s, c]))
                            * math.cos((s - t - offset) * base ** (-c / dim) + delta[h, c])
                            for c in range(dim)
                        )
                        * scale
                    )
                weights = torch.tensor(scores, dtype=q.dtype, device=q.device).softmax(0)
                out[b, h, t] = weights @ v[b, h, : len(scores)]
    return out


def rope_by_hand(q, k, v, base, offset, causal, scale):
    """Pairs (c, c + D/2) turned by position, one at a time."""
    dim = q.shape[-1]

    def turned(x, start):
        x = x.clone()
        for place in range(x.shape[2]):
            for c in range(dim // 2):
                angle = (start + place) * base ** (-2 * c / dim)
                a, b = x[:, :, place, c].clone(), x[:, :, place, c + dim // 2].clone()
                x[:, :, place, c] = a * math.cos(angle) - b * math.sin(angle)
                x[:, :, place, c + dim // 2] = b * math.cos(angle) + a * math.sin(angle)
        return x

    scores = turned(q, offset) @ turned(k, 0).transpose(-1, -2) * scale
    if causal:
        for t in range(q.shape[2]):
            scores[:, :, t, t + offset + 1 :] = float("-inf")
    return scores.softmax(-1) @ v


@pytest.mark.parametrize(
    ("queries", "keys", "offset", "causal"), [(5, 5, 0, True), (2, 6, 3, True), (3, 4, 9, False)]
)
@pytest.mark.parametrize("softmax_scale", [None, 0.9])
@pytest.mark.parametrize(("encoding", "backend"), ALL)
def test_every_backend_is_the_papers_formula(encoding, backend, softmax_scale, queries, keys, offset, causal):
    """Two backends could share a mistake; plain loops do not."""
    inputs = make_inputs(queries, keys, 6, heads=2)
    q, k, v, delta = (x.double() for x in inputs)
    scale = softmax_scale or 1 / math.sqrt(6)
    if encoding == "rope":
        expected = rope_by_hand(q, k, v, 100.0, offset, causal, scale)
    else:
        expected = pope_by_hand(q, k, v, delta, BY_HAND[encoding], 100.0, offset, causal, scale)
    options = {"query_offset": offset, "causal": causal, "softmax_scale": softmax_scale, "backend": backend}
    got = attend(encoding, *inputs, base=100.0, **options)
    torch.testing.assert_close(got.double(), expected, atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize("shift", [1, 8, 200])
@pytest.mark.parametrize("encoding", ["pope", "rope"])
def test_shifting_all_positions_changes_no_score(encoding, shift):
    q, k, _, delta = (x.double() for x in make_inputs(5, 7, 6))
    before = torch.randn(2, 3, shift, 6, dtype=torch.float64, device=DEVICE)
    score = (
        reference.rope_scores if encoding == "rope" else lambda q, k, **o: reference.pope_scores(q, k, delta, **o)
    )
    here = score(q, k, query_offset=2)
    there = score(q, torch.cat((before, k), 2), query_offset=2 + shift)[..., shift:]
    torch.testing.assert_close(there, here, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("encoding", "backend"), ALL)
def test_shifting_all_positions_changes_no_weight(encoding, backend):
    """The same law of the kernel itself: values that are unit vectors show the attention weights."""
    dim, real, before = 16, 9, 7
    q, k, _, delta = make_inputs(3, real, dim)
    options = {"causal": False, "backend": backend}
    values = torch.eye(dim, device=DEVICE).expand(2, 3, dim, dim)
    weights = attend(encoding, q, k, values[:, :, :real], delta, query_offset=6, **options)[..., :real]
    filler = torch.randn(2, 3, before, dim, device=DEVICE)
    moved = attend(encoding, q, torch.cat((filler, k), 2), values, delta, query_offset=6 + before, **options)
    moved = moved[..., before:] / moved[..., before:].sum(-1, keepdim=True)  # among the keys that both have
    torch.testing.assert_close(moved, weights, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("backend", ["reference", "cartesian", "triton"])
def test_delta_is_an_angle(backend):
    q, k, v, delta = make_inputs(17, 17, 16)
    turns = 2 * math.pi * torch.randint(-2, 3, delta.shape, device=DEVICE)
    out = pope_attention(q, k, v, delta, backend=backend)
    torch.testing.assert_close(pope_attention(q, k, v, delta + turns, backend=backend), out, atol=2e-5, rtol=2e-5)
    assert (pope_attention(q, k, v, delta + 1, backend=backend) - out).abs().max() > 1e-2


def test_pope_is_rope_of_twice_the_width():
    """With magnitudes on the x axis turned by delta, rotary pairs (c, c + D) have PoPE's very frequencies."""
    q, k, v, delta = (x.double() for x in make_inputs(9, 12, 6))
    zero, turn = torch.zeros_like(q), delta[:, None]
    wide_q = torch.cat((F.softplus(q), zero), -1)
    wide_k = torch.cat((F.softplus(k) * turn.cos(), F.softplus(k) * turn.sin()), -1)
    wide = rope_attention(wide_q, wide_k, F.pad(v, (0, 6)), query_offset=3, softmax_scale=6**-0.5)
    got = pope_attention(q, k, v, delta, query_offset=3, backend="cartesian")
    torch.testing.assert_close(got, wide[..., :6], atol=1e-5, rtol=1e-5)


def test_pope_without_delta_scores_the_own_position_highest():
    """cos is largest at distance 0: with equal keys and delta = 0 no other position beats the query's own."""
    q = torch.randn(1, 2, 9, 6, dtype=torch.float64)
    k = torch.randn(1, 2, 1, 6, dtype=torch.float64).expand(1, 2, 9, 6)
    scores = reference.pope_scores(q, k, torch.zeros(2, 6))
    assert torch.equal(scores.argmax(-1), torch.arange(9).expand(1, 2, 9))


@pytest.mark.parametrize("offset", [0, 11])
@pytest.mark.parametrize(("encoding", "backend"), ALL)
def test_the_future_changes_nothing(encoding, backend, offset):
    q, k, v, delta = make_inputs(6, 20, 16)
    last = offset + 3  # query 3 may see keys up to here
    out = attend(encoding, q, k, v, delta, query_offset=offset, backend=backend)
    k2, v2 = k.clone(), v.clone()
    k2[:, :, last + 1 :] += 3
    v2[:, :, last + 1 :] = 100
    after = attend(encoding, q, k2, v2, delta, query_offset=offset, backend=backend)
    torch.testing.assert_close(after[:, :, :4], out[:, :, :4], atol=1e-6, rtol=1e-6)
    v2 = v.clone()
    v2[:, :, last] += 1  # but its own key counts
    after = attend(encoding, q, k, v2, delta, query_offset=offset, backend=backend)
    assert ((after - out)[:, :, 3].abs().amax(-1) > 1e-4).all()
    torch.testing.assert_close(after[:, :, :3], out[:, :, :3], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("encoding", "backend"), ALL)
def test_the_first_query_sees_only_the_first_value(encoding, backend):
    q, k, v, delta = make_inputs(4, 4, 6)
    torch.testing.assert_close(attend(encoding, q, k, v, delta, backend=backend)[:, :, 0], v[:, :, 0])


@pytest.mark.parametrize(("encoding", "backend"), ALL_RARELY)
def test_dropout(encoding, backend):
    q, k, v, delta = make_inputs(33, 33, 16, batch=1)
    plain = attend(encoding, q, k, v, delta, backend=backend)
    assert torch.equal(attend(encoding, q, k, v, delta, dropout_p=0.0, backend=backend), plain)
    torch.manual_seed(0)
    count = 20 if backend == "triton" else 300
    draws = torch.stack([attend(encoding, q, k, v, delta, dropout_p=0.3, backend=backend) for _ in range(count)])
    assert not torch.equal(draws[0], draws[1])
    torch.manual_seed(0)
    assert torch.equal(attend(encoding, q, k, v, delta, dropout_p=0.3, backend=backend), draws[0])
    # What is kept is scaled up: the mean is that of no dropout, and every row was touched.
    spread = draws.std(0) / math.sqrt(count)
    assert ((draws.mean(0) - plain).abs() <= 7 * spread + 1e-5).all()
    assert (spread[:, :, 1:].amax(-1) > 1e-4).all()


class TestSequencesOfUnequalLength:
    """One call for a batch whose sequences stand at different positions and have different numbers of keys."""

    offsets, lengths = (2, 30, 11), (9, 40, 18)

    def options(self):
        return {
            "query_offset": torch.tensor(self.offsets, device=DEVICE),
            "key_lengths": torch.tensor(self.lengths, device=DEVICE),
        }

    @pytest.mark.parametrize("queries", [1, 7])
    @pytest.mark.parametrize(("encoding", "backend"), ALL)
    def test_is_a_call_each(self, encoding, backend, queries):
        q, k, v, delta = make_inputs(queries, 40, 16, batch=3)
        together = attend(encoding, q, k, v, delta, backend=backend, **self.options())
        for row, (offset, length) in enumerate(zip(self.offsets, self.lengths, strict=True)):
            one = slice(row, row + 1)
            alone = attend(
                encoding, q[one], k[one, :, :length], v[one, :, :length], delta,
                query_offset=offset, backend=backend,
            )  # fmt: skip
            torch.testing.assert_close(together[one], alone, atol=3e-6, rtol=3e-6)

    @pytest.mark.parametrize(("encoding", "backend"), FAST)
    def test_gradients(self, encoding, backend):
        assert_formula(encoding, backend, make_inputs(7, 40, 16, batch=3), **self.options())

    @pytest.mark.parametrize("queries", [1, 20])
    @pytest.mark.parametrize(("encoding", "backend"), ALL_RARELY)
    def test_no_sequence_has_more_keys_than_there_are(self, encoding, backend, queries):
        inputs = make_inputs(queries, 40, 16)
        most, more = (torch.tensor([40, 17 + n], device=DEVICE) for n in (23, 1000))
        options = {"causal": False, "backend": backend}
        upstream = random_like(inputs[0])
        expected = with_gradients(encoding, inputs, upstream, torch.float32, key_lengths=most, **options)
        got = with_gradients(encoding, inputs, upstream, torch.float32, key_lengths=more, **options)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    @pytest.mark.parametrize("queries", [1, 20])
    @pytest.mark.parametrize(("encoding", "backend"), ALL_RARELY)
    def test_what_lies_behind_a_sequence_is_never_felt(self, encoding, backend, queries):
        """Forward and backward: a mask of the scores alone lets nan through, since 0 x nan is nan."""
        q, k, v, delta = make_inputs(queries, 40, 16)
        lengths = torch.tensor([9, 33], device=DEVICE)
        options = {"key_lengths": lengths, "causal": False, "backend": backend}
        results = []
        for anything in (0.0, math.nan):
            for row, length in enumerate(lengths.tolist()):
                k[row, :, length:] = anything
                v[row, :, length:] = anything
            leaves = [x.clone().requires_grad_() for x in (q, k, v, delta)]
            out = attend(encoding, *leaves, **options)
            with torch.no_grad():
                assert attend(encoding, *leaves, **options).isfinite().all()
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves[:3])])
        for plain, poisoned in zip(*results, strict=True):
            assert torch.equal(plain, poisoned)

    @pytest.mark.parametrize("queries", [1, 20])
    @pytest.mark.parametrize(("encoding", "backend"), ALL)
    def test_a_sequence_without_keys_gives_zeros(self, encoding, backend, queries):
        q, k, v, delta = make_inputs(queries, 30, 16)
        leaves = [x.requires_grad_() for x in (q, k, v, delta)]
        lengths = torch.tensor([0, 30], device=DEVICE)
        options = {"causal": False, "key_lengths": lengths, "backend": backend}
        out = attend(encoding, *leaves, **options)
        assert torch.equal(out[0], torch.zeros_like(out[0]))
        assert (out[1] != 0).all()
        with torch.no_grad():
            torch.testing.assert_close(attend(encoding, *leaves, **options), out, atol=2e-6, rtol=2e-6)
        for gradient in torch.autograd.grad(out.square().sum(), leaves[:3]):
            assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
            assert gradient.isfinite().all()


class TestPackedDocuments:
    cuts = (0, 1, 4, 37, 38, 70, 99)

    def inputs(self, batch):
        return make_inputs(99 // batch, 99 // batch, 16, batch=batch, heads=2)

    def documents(self, batch):
        """(row, start, stop) of every document: the end of a row is one of a document too."""
        length = 99 // batch
        edges = sorted({*self.cuts, *range(0, 99, length)})
        return [(a // length, a % length, (b - 1) % length + 1) for a, b in itertools.pairwise(edges)]

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize(("encoding", "backend"), ALL)
    def test_packing_is_separate_calls(self, encoding, backend, batch, causal):
        """Also that a document does not feel where in the row it stands, since positions count along the row."""
        q, k, v, delta = self.inputs(batch)
        cuts = torch.tensor(self.cuts, device=DEVICE)
        packed = attend(encoding, q, k, v, delta, causal=causal, cu_seqlens=cuts, backend=backend)
        for row, start, stop in self.documents(batch):
            alone = attend(
                encoding, *(x[row : row + 1, :, start:stop] for x in (q, k, v)), delta,
                causal=causal, backend=backend,
            )  # fmt: skip
            torch.testing.assert_close(packed[row : row + 1, :, start:stop], alone, atol=3e-6, rtol=3e-5)

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize(("encoding", "backend"), FAST)
    def test_gradients(self, encoding, backend, causal):
        cuts = torch.tensor(self.cuts, device=DEVICE)
        assert_formula(encoding, backend, self.inputs(3), causal=causal, cu_seqlens=cuts)

    def test_what_lies_behind_the_last_length_is_a_document(self):
        scope = Scope(cu_seqlens=torch.tensor([0, 3, 5]))
        first, last = scope.documents(2, 4)
        assert first.tolist() == [[0, 0, 0, 3], [0, 1, 1, 1]]
        assert last.tolist() == [[3, 3, 3, 4], [1, 4, 4, 4]]


@pytest.mark.parametrize("offset", [0, 4088])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bf16_inputs_keep_exact_angles(encoding, offset):
    """bf16 may cost three digits, but not more at far positions, where bf16 angles are wrong by whole turns."""
    keys = offset + 8
    q, k, v, delta = make_inputs(8, keys, 16, batch=1, heads=2, dtype=torch.bfloat16)
    out = attend(encoding, q, k, v, delta, query_offset=offset)
    assert out.dtype == torch.bfloat16
    exact = attend(
        encoding, q.double(), k.double(), v.double(), delta.double(), query_offset=offset, backend="reference"
    )
    assert relative_error(out, exact) < 0.02


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bf16_queries_and_keys_are_raised_before_anything_is_done_to_them(encoding):
    """With fp32 values nothing is rounded again, so the error is that of fp32 whatever q and k came in."""
    q, k, v, delta = make_inputs(9, 65, 16, heads=2)
    q, k = q.bfloat16(), k.bfloat16()
    exact = attend(encoding, *(x.double() for x in (q, k, v, delta)), query_offset=56, backend="reference")
    got = attend(encoding, q, k, v, delta, query_offset=56)
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bf16_rounds_what_is_multiplied_once(encoding, monkeypatch):
    """Tables rounded to bf16 would hide in the error of the output: look at what reaches the dot product."""
    seen = []
    sdpa = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **o: seen.append(a) or sdpa(*a, **o))
    q, k, v, delta = make_inputs(8, 264, 16, heads=2)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = (x.bfloat16().to(dtype) for x in (q, k, v))
        attend(encoding, *inputs, delta, query_offset=256, backend="cartesian")
    for exact, rounded in list(zip(*seen, strict=True))[:2]:
        assert rounded.dtype == torch.bfloat16
        assert torch.equal(rounded, exact.bfloat16())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_compiled_for_any_length_it_is_the_same(encoding):
    """Lengths are symbols there: one graph, no break, the values of eager torch."""
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, v, delta: attend(encoding, q, k, v, delta), backend="eager", fullgraph=True, dynamic=True
    )
    for length in (5, 9, 300):
        inputs = make_inputs(length, length, 6)
        torch.testing.assert_close(compiled(*inputs), attend(encoding, *inputs), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_autocast_lowers_all_three_inputs(encoding):
    inputs = make_inputs(9, 9, 16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        out = attend(encoding, *inputs)
        reference_out = attend(encoding, *inputs, backend="reference")
    assert out.dtype == reference_out.dtype == torch.bfloat16
    lowered = [x.bfloat16() for x in inputs[:3]]
    assert torch.equal(out, attend(encoding, *lowered, inputs[3]))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_reference_gives_the_dtype_of_the_values(encoding):
    q, k, v, delta = make_inputs(5, 5, 6, dtype=torch.bfloat16)
    assert attend(encoding, q, k, v, delta, backend="reference").dtype == torch.bfloat16


@pytest.mark.parametrize("encoding", ENCODINGS[:3])
def test_packed_is_the_same(encoding):
    q, k, v, delta = make_inputs(65, 65, 16)
    magnitude = encoding.removeprefix("pope").strip() or "softplus"
    qkv = torch.stack((q, k, v)).permute(1, 3, 0, 2, 4)  # (B, L, 3, H, D)
    got = pope_attention_packed(qkv, delta, magnitude=magnitude)
    torch.testing.assert_close(got, attend(encoding, q, k, v, delta), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(("encoding", "backend"), [*FAST[:3], ("pope relu", "reference"), ("pope", "reference")])
@pytest.mark.parametrize(
    ("queries", "keys", "offset", "heads", "key_heads"), [(33, 33, 0, 3, 3), (2, 20, 18, 4, 2)]
)
class TestDeltaOfItsOwn:
    """Six sequences, of which two and two share a delta."""

    def test_values_and_gradients_are_those_of_the_groups_apart(
        self, encoding, backend, queries, keys, offset, heads, key_heads
    ):
        groups = [make_inputs(queries, keys, 20, heads=heads, key_heads=key_heads, seed=seed) for seed in range(3)]
        q, k, v, delta = zip(*groups, strict=True)
        together = [*(torch.cat(x) for x in (q, k, v)), torch.stack(delta)]
        upstream = torch.randn(6, heads, queries, 20, generator=torch.Generator().manual_seed(3)).to(DEVICE)
        options = {"backend": backend, "query_offset": offset}
        got = with_gradients(encoding, together, upstream, torch.float32, **options)
        apart = [
            with_gradients(encoding, group, upstream[2 * n : 2 * n + 2], torch.float32, **options)
            for n, group in enumerate(groups)
        ]
        *expected, ddelta = zip(*apart, strict=True)
        for ours, theirs in zip(got, [*(torch.cat(x) for x in expected), torch.stack(ddelta)], strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)
        assert len({round(float(x.norm()), 4) for x in ddelta}) == 3

    def test_one_query_without_gradient(self, encoding, backend, queries, keys, offset, heads, key_heads):
        groups = [make_inputs(1, keys, 20, heads=heads, key_heads=key_heads, seed=seed) for seed in range(3)]
        q, k, v, delta = zip(*groups, strict=True)
        options = {"backend": backend, "query_offset": keys - 1}
        with torch.no_grad():
            got = attend(encoding, *(torch.cat(x) for x in (q, k, v)), torch.stack(delta), **options)
            expected = torch.cat([attend(encoding, *group, **options) for group in groups])
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("backend", ["triton", "cartesian", "reference"])
def test_deltas_in_half_precision_are_raised(backend):
    q, k, v, _ = make_inputs(9, 9, 16, batch=4)
    half = torch.stack([make_inputs(9, 9, 16, seed=seed)[3] for seed in range(2)]).half().requires_grad_()
    whole = half.detach().float().requires_grad_()
    for ours, theirs in zip(
        *(
            (out := pope_attention(q, k, v, delta, backend=backend), *torch.autograd.grad((out * v).sum(), delta))
            for delta in (half, whole)
        ),
        strict=True,
    ):
        torch.testing.assert_close(ours.float(), theirs, atol=1e-6, rtol=6e-4)


@pytest.mark.parametrize("backend", ["triton", "cartesian"])
def test_packed_with_a_delta_for_each_sequence(backend):
    q, k, v, _ = make_inputs(35, 35, 16)
    delta = torch.stack([make_inputs(35, 35, 16, seed=seed)[3] for seed in range(2)])
    qkv = torch.stack((q, k, v)).permute(1, 3, 0, 2, 4)
    found = []
    for attention, arguments in ((pope_attention_packed, (qkv,)), (pope_attention, (q, k, v))):
        leaf = delta.clone().requires_grad_()
        out = attention(*arguments, leaf, backend=backend)
        found.append((out, *torch.autograd.grad((out * v).sum(), leaf)))
    for packed, plain in zip(*found, strict=True):
        torch.testing.assert_close(packed, plain, atol=2e-6, rtol=2e-6)
    alone = [pope_attention(q[n:][:1], k[n:][:1], v[n:][:1], delta[n], backend=backend) for n in range(2)]
    torch.testing.assert_close(found[0][0], torch.cat(alone), atol=2e-6, rtol=2e-6)


class TestErrors:
    @pytest.mark.parametrize("backend", ["auto", "reference"])
    @pytest.mark.parametrize(
        ("q_shape", "k_shape", "v_shape"),
        [
            ((2, 3, 6), (2, 3, 6), (2, 3, 6)),
            ((2, 3, 5, 6), (2, 3, 6), (2, 3, 6)),
            ((2, 3, 5, 6), (2, 3, 5, 4), (2, 3, 5, 4)),
            ((2, 3, 5, 6), (2, 2, 5, 6), (2, 2, 5, 6)),
            ((2, 3, 5, 6), (2, 6, 5, 6), (2, 6, 5, 6)),
            ((2, 3, 5, 6), (2, 0, 5, 6), (2, 0, 5, 6)),
            ((1, 3, 5, 6), (2, 3, 5, 6), (2, 3, 5, 6)),
            ((2, 3, 5, 6), (2, 3, 5, 6), (2, 3, 4, 6)),
        ],
    )
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_shapes_that_do_not_fit(self, encoding, q_shape, k_shape, v_shape, backend):
        q, k, v = torch.ones(q_shape), torch.ones(k_shape), torch.ones(v_shape)
        with pytest.raises(ValueError, match=r"expected q \(B, H, Lq, D\).*multiple of Hkv"):
            attend(encoding, q, k, v, torch.zeros(3, 6), backend=backend)

    @pytest.mark.parametrize("empty", [0, 2, 3])
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_nothing_to_attend(self, encoding, empty):
        shape = [2, 3, 5, 6]
        shape[empty] = 0
        x = torch.ones(shape)
        with pytest.raises(ValueError, match="nothing to attend"):
            attend(encoding, x, x, x, torch.zeros(3, shape[3]))

    @pytest.mark.parametrize("shape", [(6,), (2, 6), (3, 3), (3, 1, 6), (3, 3, 6), (0, 3, 6), (1, 1, 3, 6)])
    def test_delta_of_another_shape(self, shape):
        q, k, v, _ = make_inputs(4, 4, 6)
        with pytest.raises(ValueError, match=r"delta must be \(H, D\) = \(3, 6\)"):
            pope_attention(q, k, v, torch.zeros(shape))

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_a_causal_query_needs_its_own_key(self, encoding):
        q, k, v, delta = make_inputs(3, 5, 6)
        with pytest.raises(ValueError, match="end at position 6, but there are only 5 keys"):
            attend(encoding, q, k, v, delta, query_offset=3)
        attend(encoding, q, k, v, delta, query_offset=3, causal=False)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"query_offset": -1}, "query_offset must be at least 0, it is -1"),
            ({"query_offset": torch.tensor([1, 2, 3])}, r"query_offset must be whole numbers.*\(2,\).*\(3,\)"),
            ({"query_offset": torch.tensor([1, 2]), "causal": False}, "needs causal=True"),
            ({"key_lengths": torch.tensor([1.0, 2.0])}, "key_lengths must be whole numbers"),
            ({"cu_seqlens": torch.tensor([0])}, r"cu_seqlens must be whole numbers \(N \+ 1,\)"),
            ({"cu_seqlens": torch.tensor([0.0, 4.0])}, "cu_seqlens must be whole numbers"),
            (
                {"cu_seqlens": torch.tensor([0, 8]), "key_lengths": torch.tensor([4, 4])},
                "attend within themselves",
            ),
            ({"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\), it is 1.0"),
            ({"freqs": torch.ones(5)}, r"freqs must be \([63],\) for a head dimension of 6, it is \(5,\)"),
        ],
    )
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_options_that_do_not_fit(self, encoding, options, message):
        with pytest.raises(ValueError, match=message):
            attend(encoding, *make_inputs(4, 4, 6), **options)

    def test_packed_documents_want_as_many_queries_as_keys(self):
        with pytest.raises(ValueError, match=r"one length \(they are 3 and 4\)"):
            pope_attention(*make_inputs(3, 4, 6), cu_seqlens=torch.tensor([0, 8]))

    def test_rope_turns_pairs(self):
        x = torch.ones(1, 1, 2, 5)
        with pytest.raises(ValueError, match="must be even, it is 5"):
            rope_attention(x, x, x)
        pope_attention(x, x, x, torch.zeros(1, 5))  # PoPE has no pairs

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_unknown_backend(self, encoding):
        with pytest.raises(ValueError, match="backend must be"):
            attend(encoding, *make_inputs(2, 2, 6), backend="fast")

    @pytest.mark.parametrize("magnitude", ["relu", "none"])
    def test_triton_has_softplus_alone(self, magnitude):
        q, k, v, delta = make_inputs(2, 2, 6)
        qkv = torch.stack((q, k, v)).permute(1, 3, 0, 2, 4)
        for attention, inputs in ((pope_attention, (q, k, v)), (pope_attention_packed, (qkv,))):
            with pytest.raises(ValueError, match=f"magnitudes are softplus alone, here they are {magnitude}"):
                attention(*inputs, delta, magnitude=magnitude, backend="triton")

    @pytest.mark.parametrize("backend", ["auto", "cartesian", "reference"])
    def test_unknown_magnitude(self, backend):
        with pytest.raises(ValueError, match="magnitude must be one of softplus, relu, none, it is 'gelu'"):
            pope_attention(*make_inputs(2, 2, 6), magnitude="gelu", backend=backend)

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_sdpa_takes_no_seed(self, encoding):
        with pytest.raises(ValueError, match="SDPA draws its own dropout"):
            attend(encoding, *make_inputs(2, 2, 6), dropout_p=0.1, dropout_seed=1, backend="cartesian")


class TestMagnitudes:
    """The paper's ablations: ReLU, and components as they are, in place of softplus."""

    @pytest.mark.parametrize(("magnitude", "function"), [("relu", lambda x: max(x, 0.0)), ("none", lambda x: x)])
    def test_reference_is_the_formula_with_another_function(self, magnitude, function):
        q, k, v, delta = (x.cpu() for x in make_inputs(3, 3, 5, batch=1, heads=2))
        out = pope_attention(q, k, v, delta, magnitude=magnitude, causal=False, backend="reference")
        for head in range(2):
            for t in range(3):
                scores = [
                    sum(
                        function(float(q[0, head, t, c])) * function(float(k[0, head, s, c]))
                        * math.cos((s - t) * 10000 ** (-c / 5) + float(delta[head, c]))
                        for c in range(5)
                    ) / math.sqrt(5)
                    for s in range(3)
                ]  # fmt: skip
                shares = torch.tensor(scores).softmax(0)
                torch.testing.assert_close(out[0, head, t], shares @ v[0, head], rtol=1e-5, atol=1e-5)
