"""The Triton kernels as torch operators: packed projections, autograd, opcheck, torch.compile."""

from __future__ import annotations

import pytest
import torch
from cases import DEVICE, DROPOUT, ON_GPU, make_inputs, upstream_like, with_gradients

from seqpope.kernels import pope_attention, pope_attention_packed
from seqpope.kernels.rotation import two_level_tables

pytest.importorskip("triton")
from seqpope.kernels import operators


def turned(delta):
    return torch.cat((delta.cos(), delta.sin()), -1)


class TestPacked:
    """Queries, keys and values of one projection, as a model has them."""

    @pytest.mark.parametrize(
        ("backend", "options"),
        [
            pytest.param(backend, options, marks=[pytest.mark.slow] if options else [])
            for options in ({}, {"causal": False, "softmax_scale": 0.3, "base": 50.0}, DROPOUT)
            for backend in ("triton", "cartesian", "reference")
            if backend != "cartesian" or options is not DROPOUT  # SDPA draws dropout of its own
        ],
    )
    @pytest.mark.parametrize("length", [20, pytest.param(70, marks=pytest.mark.slow)])
    def test_is_the_same(self, backend, options, length, poisoned):
        inputs = make_inputs(length, length, 20, heads=2)
        upstream = upstream_like(inputs[0])
        expected = with_gradients("pope", inputs, upstream, torch.float32, backend=backend, **options)
        qkv = torch.stack(inputs[:3]).permute(1, 3, 0, 2, 4).contiguous().requires_grad_()
        delta = inputs[3].clone().requires_grad_()
        out = pope_attention_packed(qkv, delta, backend=backend, **options)
        dqkv, ddelta = torch.autograd.grad(out, (qkv, delta), upstream)
        got = (out.detach(), *dqkv.permute(2, 0, 3, 1, 4), ddelta)
        for ours, theirs in zip(got, expected, strict=True):
            if backend == "triton":
                assert torch.equal(ours, theirs)
            else:  # sums over another layout go in another order
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    def test_packed_documents(self):
        inputs = make_inputs(40, 40, 16, batch=1)
        cuts = torch.tensor([0, 13, 40], device=DEVICE)
        qkv = torch.stack(inputs[:3]).permute(1, 3, 0, 2, 4).contiguous()
        out = pope_attention_packed(qkv, inputs[3], backend="triton", cu_seqlens=cuts)
        assert torch.equal(out, pope_attention(*inputs, backend="triton", cu_seqlens=cuts))

    def test_wrong_shapes(self):
        with pytest.raises(ValueError, match=r"qkv must be \(B, L, 3, H, D\), it is \(2, 3, 4\)"):
            pope_attention_packed(torch.zeros(2, 3, 4), torch.zeros(3, 4))
        with pytest.raises(ValueError, match=r"delta must be \(H, D\) = \(2, 4\)"):
            pope_attention_packed(torch.zeros(1, 5, 3, 2, 4, device=DEVICE), torch.zeros(4, 2), backend="triton")

    def test_compiled_with_deltas_of_their_own(self):
        """As seeds side by side are: in half precision, the gradients in the shapes that are promised."""
        torch._dynamo.reset()

        def run(qkv, delta):
            with torch.autocast(DEVICE.type, torch.float16):
                return pope_attention_packed(qkv * 1, delta, backend="triton")

        compiled = torch.compile(run, backend="inductor" if ON_GPU else "aot_eager", fullgraph=True)
        inputs = make_inputs(9, 9, 16, batch=4, heads=2)[:3]
        qkv = torch.stack(inputs).permute(1, 3, 0, 2, 4).contiguous().requires_grad_()
        delta = torch.stack([make_inputs(1, 1, 16, heads=2, seed=n)[3] for n in range(2)]).requires_grad_()
        upstream, got = upstream_like(inputs[0]), []
        for f in (compiled, run):
            out = f(qkv, delta)
            got.append([out.detach(), *torch.autograd.grad(out, (qkv, delta), upstream.to(out.dtype))])
        for ours, theirs in zip(*got, strict=True):
            torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=5e-3)

    @pytest.mark.slow
    @pytest.mark.parametrize("groups", [0, 2])
    def test_operators(self, groups):
        q, k, v, delta = make_inputs(33, 33, 16, batch=groups or 1, heads=2)
        delta = torch.stack([delta] * groups) if groups else delta
        tables = two_level_tables(33, 16, 10000.0, DEVICE)
        qkv = torch.stack((q, k, v)).permute(1, 3, 0, 2, 4).contiguous().requires_grad_()
        rest = (turned(delta), *tables, None, None, None, None, None, 0, True, 0.25, 0.0)
        arguments = (qkv, delta.requires_grad_(), *rest)
        torch.library.opcheck(torch.ops.seqpope.pope_attention_packed.default, arguments)
        with torch.no_grad():
            out, logsum = operators.pope_packed_forward(*arguments)
        backward = (torch.randn_like(out), qkv.detach(), delta.detach(), out, logsum, *rest)
        torch.library.opcheck(torch.ops.seqpope.pope_attention_packed_backward.default, backward)


class TestInTorch:
    def arguments(self, groups=0, **options):
        q, k, v, delta = make_inputs(33, 33, 16, batch=groups or 1, heads=2)
        delta = torch.stack([delta] * groups) if groups else delta
        tables = two_level_tables(33, 16, 10000.0, DEVICE)
        extra = {"first": None, "last": None, "offsets": None, "lengths": None, "seed": None} | options
        return (
            q,
            k,
            v,
            delta,
            turned(delta),
            *tables,
            *extra.values(),
            0,
            True,
            0.25,
            0.2 if extra["seed"] is not None else 0.0,
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("groups", [0, 2])
    @pytest.mark.parametrize("seeded", [False, True])
    def test_forward_operator(self, seeded, groups):
        seed = {"seed": torch.tensor([7], device=DEVICE)} if seeded else {}
        arguments = self.arguments(groups, **seed)
        for x in arguments[:4]:
            x.requires_grad_()
        torch.library.opcheck(torch.ops.seqpope.pope_attention.default, arguments)

    @pytest.mark.parametrize("groups", [0, 2])
    def test_backward_operator(self, groups):
        q, k, v, delta, *rest = self.arguments(groups)
        out, logsum = operators.pope_forward(q, k, v, delta, *rest)
        arguments = (torch.randn_like(out), q, k, v, delta, out, logsum, *rest)
        torch.library.opcheck(torch.ops.seqpope.pope_attention_backward.default, arguments)

    def test_decoding_operator(self):
        q, k, v, delta = make_inputs(1, 33, 16, heads=2)
        tables = two_level_tables(33, 16, 10000.0, DEVICE)
        torch.library.opcheck(
            torch.ops.seqpope.decode.default, (q, k, v, delta, *tables, None, None, 32, True, 0.25)
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{}, {"dropout_p": 0.2, "dropout_seed": 3}, {"packed": True}])
    def test_compiled_without_a_break(self, options):
        """One graph, forward and backward, at lengths that were not known when it was compiled."""
        torch._dynamo.reset()
        options = dict(options)
        packed = options.pop("packed", False)

        def run(q, k, v, delta, cuts):
            more = {"cu_seqlens": cuts} if packed else {}
            return pope_attention(q * 2, k, v, delta, backend="triton", **options, **more) + 1

        compiled = torch.compile(run, backend="inductor" if ON_GPU else "aot_eager", fullgraph=True, dynamic=True)
        for length in (20, 33):
            inputs = [x.requires_grad_() for x in make_inputs(length, length, 16, heads=2)]
            cuts = torch.tensor([0, 7, 2 * length], device=DEVICE)
            upstream = upstream_like(inputs[0])
            for f in (compiled, run):
                out = f(*inputs, cuts)
                got = [out.detach(), *torch.autograd.grad(out, inputs, upstream)]
                if f is compiled:
                    ours = got
            for a, b in zip(ours, got, strict=True):
                torch.testing.assert_close(a, b, atol=5e-6, rtol=5e-6)

    @pytest.mark.parametrize("queries", [pytest.param(1, marks=pytest.mark.slow), 20])
    @pytest.mark.parametrize("wanted", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
    def test_any_gradient_may_be_asked_for_alone(self, queries, wanted):
        """Also of a few queries, which the decoding kernel would take: it has no backward pass."""
        inputs = make_inputs(queries, 20, 16)
        offset = {"query_offset": 20 - queries, "backend": "triton"}
        everything = with_gradients("pope", inputs, upstream_like(inputs[0]), torch.float32, **offset)
        inputs[wanted].requires_grad_()
        out = pope_attention(*inputs, **offset)
        (gradient,) = torch.autograd.grad(out, inputs[wanted], upstream_like(inputs[0]))
        assert torch.equal(gradient, everything[1 + wanted])
        assert gradient.any()

    @pytest.mark.parametrize("wanted", [0, 1])
    def test_and_of_a_packed_projection(self, wanted):
        q, k, v, delta = make_inputs(20, 20, 16)
        inputs = [torch.stack((q, k, v)).permute(1, 3, 0, 2, 4).contiguous(), delta]
        inputs[wanted].requires_grad_()
        out = pope_attention_packed(*inputs, backend="triton")
        (gradient,) = torch.autograd.grad(out.square().sum(), inputs[wanted])
        assert gradient.any()

    @pytest.mark.parametrize("queries", [1, 20])
    def test_forward_mode_is_refused(self, queries):
        """It has no such derivative, and none at all would look like zeros."""
        inputs = make_inputs(queries, queries, 16)
        with torch.autograd.forward_ad.dual_level():
            q = torch.autograd.forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
            with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward"):
                pope_attention(q, *inputs[1:], backend="triton")

    def test_the_decoding_operator_has_no_gradient_and_says_so(self):
        q, k, v, delta = make_inputs(1, 33, 16, heads=2)
        tables = two_level_tables(33, 16, 10000.0, DEVICE)
        with pytest.raises(RuntimeError, match="decoding kernels have no gradient"):
            operators.decode_few(q.requires_grad_(), k, v, delta, *tables, None, None, 32, True, 0.25)

    def test_output_with_strides_of_its_own(self):
        """The backward operator takes what its caller saved, however it lies in memory."""
        q, k, v, delta, *rest = self.arguments()
        out, logsum = operators.pope_forward(q, k, v, delta, *rest)
        grad = torch.randn_like(out)
        expected = operators.pope_backward(grad, q, k, v, delta, out, logsum, *rest)
        moved = out.transpose(-1, -2).contiguous().transpose(-1, -2)
        assert moved.stride(-1) != 1
        for a, b in zip(
            operators.pope_backward(grad, q, k, v, delta, moved, logsum, *rest), expected, strict=True
        ):
            assert torch.equal(a, b)

    def test_delta_keeps_its_dtype(self):
        inputs = make_inputs(20, 20, 16)
        delta = inputs[3].double().requires_grad_()
        pope_attention(*inputs[:3], delta, backend="triton").sum().backward()
        assert delta.grad.dtype == torch.float64
