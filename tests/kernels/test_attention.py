from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from seqpope.kernels import pope_attention, reference, rope_attention

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
ENCODINGS = ["pope", "rope"]


def make_inputs(queries, keys, dim, *, batch=2, heads=3, dtype=torch.float32, seed=0):
    """q, k, v and delta with magnitudes that make attention neither flat nor one-hot."""
    generator = torch.Generator().manual_seed(seed + 1000 * queries + keys + dim)
    q, k, v = (
        (1.5 * torch.randn(batch, heads, length, dim, generator=generator)).to(dtype)
        for length in (queries, keys, keys)
    )
    delta = -2 * math.pi * torch.rand(heads, dim, generator=generator)
    return q, k, v, delta


def attend(encoding, q, k, v, delta, **options):
    if encoding == "pope":
        return pope_attention(q, k, v, delta, **options)
    return rope_attention(q, k, v, **options)


def with_gradients(encoding, inputs, upstream, dtype, **options):
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    out = attend(encoding, *leaves, **options)
    wanted = leaves if encoding == "pope" else leaves[:3]
    return [out.detach(), *torch.autograd.grad(out, wanted, upstream.to(out.dtype))]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "keys", "offset", "dim"), SHAPES)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_values_and_gradients_are_those_of_the_formula_in_fp64(encoding, queries, keys, offset, dim, causal):
    inputs = make_inputs(queries, keys, dim, batch=1 if keys > 100 else 2, heads=2)
    upstream = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    options = {"query_offset": offset, "causal": causal}
    got = with_gradients(encoding, inputs, upstream, torch.float32, **options)
    expected = with_gradients(encoding, inputs, upstream, torch.float64, backend="reference", **options)
    for name, ours, exact in zip(("out", "dq", "dk", "dv", "ddelta"), got, expected, strict=False):
        assert ours.dtype == torch.float32
        # Relative to the largest entry: fp32 sums of a few hundred terms.
        error = (ours.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-3)
        assert error < 2e-5, f"{name}: {float(error):.2e}"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_base_and_scale_are_used(encoding):
    inputs = make_inputs(9, 9, 6)
    options = {"base": 50.0, "softmax_scale": 0.9}
    exact = attend(encoding, *(x.double() for x in inputs), backend="reference", **options)
    torch.testing.assert_close(attend(encoding, *inputs, **options).double(), exact, atol=1e-5, rtol=1e-5)
    assert (attend(encoding, *inputs) - exact).abs().max() > 1e-2


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_layout_in_memory_does_not_matter(encoding):
    q, k, v, delta = make_inputs(65, 65, 16)
    strided = [x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for x in (q, k, v)]
    every_other = torch.stack((delta, delta + 1), -1)[..., 0]
    assert not strided[0].is_contiguous()
    assert not every_other.is_contiguous()
    torch.testing.assert_close(
        attend(encoding, *strided, every_other), attend(encoding, q, k, v, delta), atol=1e-6, rtol=1e-6
    )


def pope_by_hand(q, k, v, delta, base, offset, causal, scale):
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
                            math.log1p(math.exp(q[b, h, t, c]))
                            * math.log1p(math.exp(k[b, h, s, c]))
                            * math.cos((s - t - offset) * base ** (-c / dim) + delta[h, c])
                            for c in range(dim)
                        )
                        * scale
                    )
                weights = torch.tensor(scores, dtype=q.dtype).softmax(0)
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


@pytest.mark.parametrize("backend", ["reference", "cartesian"])
@pytest.mark.parametrize(
    ("queries", "keys", "offset", "causal"), [(5, 5, 0, True), (2, 6, 3, True), (3, 4, 9, False)]
)
@pytest.mark.parametrize("softmax_scale", [None, 0.9])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_both_backends_are_the_papers_formula(encoding, softmax_scale, queries, keys, offset, causal, backend):
    """Two backends could share a mistake; plain loops do not."""
    q, k, v, delta = (x.double() for x in make_inputs(queries, keys, 6, heads=2))
    scale = softmax_scale or 1 / math.sqrt(6)
    if encoding == "pope":
        expected = pope_by_hand(q, k, v, delta, 100.0, offset, causal, scale)
    else:
        expected = rope_by_hand(q, k, v, 100.0, offset, causal, scale)
    options = {"query_offset": offset, "causal": causal, "softmax_scale": softmax_scale, "backend": backend}
    got = attend(encoding, q, k, v, delta, base=100.0, **options)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("shift", [1, 8, 200])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_shifting_all_positions_changes_no_score(encoding, shift):
    q, k, _, delta = (x.double() for x in make_inputs(5, 7, 6))
    before = torch.randn(2, 3, shift, 6, dtype=torch.float64)
    score = (
        reference.rope_scores if encoding == "rope" else lambda q, k, **o: reference.pope_scores(q, k, delta, **o)
    )
    here = score(q, k, query_offset=2)
    there = score(q, torch.cat((before, k), 2), query_offset=2 + shift)[..., shift:]
    torch.testing.assert_close(there, here, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "cartesian"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_shifting_all_positions_changes_no_weight(encoding, backend):
    """The same law of the kernel itself: values that are unit vectors show the attention weights."""
    dim, real, before = 16, 9, 7
    q, k, _, delta = make_inputs(3, real, dim)
    options = {"causal": False, "backend": backend}
    values = torch.eye(dim).expand(2, 3, dim, dim)
    weights = attend(encoding, q, k, values[:, :, :real], delta, query_offset=6, **options)[..., :real]
    filler = torch.randn(2, 3, before, dim)
    moved = attend(encoding, q, torch.cat((filler, k), 2), values, delta, query_offset=6 + before, **options)
    moved = moved[..., before:] / moved[..., before:].sum(-1, keepdim=True)  # among the keys that both have
    torch.testing.assert_close(moved, weights, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("backend", ["reference", "cartesian"])
def test_delta_is_an_angle(backend):
    q, k, v, delta = make_inputs(17, 17, 16)
    turns = 2 * math.pi * torch.randint(-2, 3, delta.shape)
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
    got = pope_attention(q, k, v, delta, query_offset=3)
    torch.testing.assert_close(got, wide[..., :6], atol=1e-5, rtol=1e-5)


def test_pope_without_delta_scores_the_own_position_highest():
    """cos is largest at distance 0: with equal keys and delta = 0 no other position beats the query's own."""
    q = torch.randn(1, 2, 9, 6, dtype=torch.float64)
    k = torch.randn(1, 2, 1, 6, dtype=torch.float64).expand(1, 2, 9, 6)
    scores = reference.pope_scores(q, k, torch.zeros(2, 6))
    assert torch.equal(scores.argmax(-1), torch.arange(9).expand(1, 2, 9))


@pytest.mark.parametrize("offset", [0, 11])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_future_changes_nothing(encoding, offset):
    q, k, v, delta = make_inputs(6, 20, 16)
    last = offset + 3  # query 3 may see keys up to here
    out = attend(encoding, q, k, v, delta, query_offset=offset)
    k2, v2 = k.clone(), v.clone()
    k2[:, :, last + 1 :] += 3
    v2[:, :, last + 1 :] = 100
    after = attend(encoding, q, k2, v2, delta, query_offset=offset)
    torch.testing.assert_close(after[:, :, :4], out[:, :, :4], atol=1e-6, rtol=1e-6)
    v2 = v.clone()
    v2[:, :, last] += 1  # but its own key counts
    after = attend(encoding, q, k, v2, delta, query_offset=offset)
    assert ((after - out)[:, :, 3].abs().amax(-1) > 1e-4).all()
    torch.testing.assert_close(after[:, :, :3], out[:, :, :3], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_first_query_sees_only_the_first_value(encoding):
    q, k, v, delta = make_inputs(4, 4, 6)
    torch.testing.assert_close(attend(encoding, q, k, v, delta)[:, :, 0], v[:, :, 0])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_dropout(encoding):
    q, k, v, delta = make_inputs(33, 33, 16)
    plain = attend(encoding, q, k, v, delta)
    assert torch.equal(attend(encoding, q, k, v, delta, dropout_p=0.0), plain)
    torch.manual_seed(0)
    draws = torch.stack([attend(encoding, q, k, v, delta, dropout_p=0.3) for _ in range(300)])
    assert not torch.equal(draws[0], draws[1])
    spread = draws.std(0) / math.sqrt(300)
    assert ((draws.mean(0) - plain).abs() <= 6 * spread + 1e-5).all()  # what is kept is scaled up
    with pytest.raises(ValueError, match="no dropout"):
        attend(encoding, q, k, v, delta, dropout_p=0.1, backend="reference")


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
    error = (out.double() - exact).norm() / exact.norm()
    assert error < 0.02, float(error)


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
        torch.testing.assert_close(compiled(*inputs), attend(encoding, *inputs))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_reference_gives_the_dtype_of_the_values(encoding):
    q, k, v, delta = make_inputs(5, 5, 6, dtype=torch.bfloat16)
    assert attend(encoding, q, k, v, delta, backend="reference").dtype == torch.bfloat16


class TestErrors:
    @pytest.mark.parametrize("backend", ["auto", "reference"])
    @pytest.mark.parametrize(
        ("q_shape", "k_shape", "v_shape"),
        [
            ((2, 3, 6), (2, 3, 6), (2, 3, 6)),
            ((2, 3, 5, 6), (2, 3, 5, 4), (2, 3, 5, 4)),
            ((2, 3, 5, 6), (2, 1, 5, 6), (2, 1, 5, 6)),
            ((1, 3, 5, 6), (2, 3, 5, 6), (2, 3, 5, 6)),
            ((2, 3, 5, 6), (2, 3, 5, 6), (2, 3, 4, 6)),
        ],
    )
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_shapes_that_do_not_fit(self, encoding, q_shape, k_shape, v_shape, backend):
        q, k, v = torch.ones(q_shape), torch.ones(k_shape), torch.ones(v_shape)
        with pytest.raises(ValueError, match=r"expected q \(B, H, Lq, D\)"):
            attend(encoding, q, k, v, torch.zeros(3, 6), backend=backend)

    @pytest.mark.parametrize("shape", [(6,), (2, 6), (3, 3), (3, 1, 6)])
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

    def test_rope_turns_pairs(self):
        x = torch.ones(1, 1, 2, 5)
        with pytest.raises(ValueError, match="must be even, it is 5"):
            rope_attention(x, x, x)
        pope_attention(x, x, x, torch.zeros(1, 5))  # PoPE has no pairs

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_unknown_backend(self, encoding):
        with pytest.raises(ValueError, match="backend must be"):
            attend(encoding, *make_inputs(2, 2, 6), backend="fast")
