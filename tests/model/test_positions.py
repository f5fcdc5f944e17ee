from __future__ import annotations

import math

import pytest
import torch

from seqpope.errors import SeqpopeError
from seqpope.kernels import (
    alibi_attention,
    alibi_slopes,
    frequencies,
    pope_attention,
    rope_attention,
    rotation,
)
from seqpope.kernels.alibi import DIGIT
from seqpope.model.cache import KeyValueCache
from seqpope.model.config import ModelConfig
from seqpope.model.positions import (
    POSITIONS,
    PoPE,
    PositionEncoding,
    RoPE,
    YaRN,
    find_position,
    truncated_frequencies,
    yarn_frequencies,
    yarn_temperature,
)
from seqpope.model.transformer import Transformer, with_yarn

SMALL = {"width": 12, "heads": 2, "layers": 1}


def small_inputs(length=5):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 2, length, 6, generator=generator) for _ in range(3))


def test_found_by_name():
    for name, encoding in POSITIONS.items():
        assert find_position(name) is encoding
        assert issubclass(encoding, PositionEncoding)
    with pytest.raises(SeqpopeError, match=r"unknown position encoding 'xpos': expected one of .*pope.*rope"):
        find_position("xpos")


def test_rope_refuses_an_odd_head():
    with pytest.raises(SeqpopeError, match="must be even, it is 3"):
        RoPE(ModelConfig(width=6, heads=2))
    PoPE(ModelConfig(width=6, heads=2))


def test_delta_starts_where_it_is_told():
    zero, uniform = (PoPE(ModelConfig(width=512, heads=8, delta_init=init)) for init in ("zero", "uniform"))
    for encoding in (zero, uniform):
        encoding.reset_parameters()
    assert zero.delta.shape == (8, 64)
    assert not zero.delta.any()
    # 512 draws from U(-2 pi, 0): within the range, filling it, mean -pi within five standard errors.
    assert uniform.delta.min() >= -2 * math.pi
    assert uniform.delta.max() <= 0
    assert uniform.delta.min() < -6
    assert uniform.delta.max() > -0.2
    assert abs(uniform.delta.mean() + math.pi) < 5 * 2 * math.pi / math.sqrt(12 * 512)


def deltas(**changes):
    """Delta as the score sees it and as it is learned, 8 heads of 64, under one seed."""
    encoding = PoPE(ModelConfig(width=512, heads=8, **changes))
    torch.manual_seed(0)
    encoding.reset_parameters()
    return encoding.bounded_delta().detach(), encoding.delta.detach()


class TestStarts:
    uniform = deltas(delta_init="uniform")[0]

    def test_centred_is_uniform_told_from_minus_pi_to_pi(self):
        centred, _ = deltas(delta_init="centred")
        assert centred.abs().max() <= math.pi
        assert (centred.max() > 3, centred.min() < -3) == (True, True)
        torch.testing.assert_close(centred.cos(), self.uniform.cos(), atol=1e-6, rtol=0)
        torch.testing.assert_close(centred.sin(), self.uniform.sin(), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("window", [7, 500, 2048, 10**6])
    @pytest.mark.parametrize("longest", [0.0, 300.0])
    def test_local_is_uniform_where_a_turn_fits_into_the_window(self, window, longest):
        local, _ = deltas(delta_init="local", delta_window=window, longest_wavelength=longest)
        for c in range(64):
            wavelength = 2 * math.pi * 10000 ** (c / 64)
            fast = wavelength < window and (not longest or wavelength <= longest)
            assert torch.equal(local[:, c], self.uniform[:, c] if fast else torch.zeros(8)), c

    @pytest.mark.parametrize("init", ["zero", "uniform", "centred", "local"])
    def test_tanh_starts_with_the_same_phases(self, init):
        expected, _ = deltas(delta_init=init)
        got, raw = deltas(delta_init=init, delta_bound="tanh")
        assert got.abs().max() < math.pi
        assert raw.isfinite().all()
        # Its inverse is cut short of the ends, by pi / 1000.
        torch.testing.assert_close(got.cos(), expected.cos(), atol=1e-5, rtol=0)
        torch.testing.assert_close(got.sin(), expected.sin(), atol=4e-3, rtol=0)

    @pytest.mark.parametrize("init", ["zero", "uniform", "centred", "local"])
    def test_what_is_not_learned_is_no_parameter_but_saved(self, init):
        fixed, learned = (
            PoPE(ModelConfig(**SMALL, delta_init=init, delta_learned=learned)) for learned in (False, True)
        )
        for encoding in (fixed, learned):
            torch.manual_seed(0)
            encoding.reset_parameters()
        assert list(fixed.parameters()) == []
        assert list(fixed.state_dict()) == list(learned.state_dict()) == ["delta"]
        assert torch.equal(fixed.delta, learned.delta)
        inputs = small_inputs()
        assert torch.equal(fixed.attend(*inputs), learned.attend(*inputs))
        assert not fixed.attend(*inputs).requires_grad


@pytest.mark.parametrize("value", [0.5, -2 * math.pi - 0.5, 9.0])
def test_tanh_has_a_gradient_everywhere(value):
    encoding = PoPE(ModelConfig(**SMALL, delta_bound="tanh"))
    torch.nn.init.constant_(encoding.delta, value)
    encoding.attend(*small_inputs()).square().sum().backward()
    assert encoding.bounded_delta().abs().max() < math.pi
    assert (encoding.delta.grad != 0).all()


@pytest.mark.parametrize("value", [0.5, -2 * math.pi - 0.5])
def test_clamp_is_a_dead_zone_and_periodic_has_none(value):
    q, k, v = small_inputs()
    gradients, outs = {}, {}
    for bound in ("periodic", "clamp"):
        encoding = PoPE(ModelConfig(**SMALL, delta_bound=bound))
        torch.nn.init.constant_(encoding.delta, value)
        outs[bound] = encoding.attend(q, k, v)
        outs[bound].square().sum().backward()
        gradients[bound] = encoding.delta.grad
    assert not gradients["clamp"].any()
    assert gradients["periodic"].abs().max() > 1e-3
    edge = PoPE(ModelConfig(**SMALL))
    torch.nn.init.constant_(edge.delta, 0.0 if value > 0 else -2 * math.pi)
    assert torch.equal(outs["clamp"], edge.attend(q, k, v))  # outside, the clamp scores as its bound does
    assert (outs["periodic"] - outs["clamp"]).abs().max() > 1e-3


def test_inside_the_bounds_clamp_and_periodic_are_one():
    q, k, v = small_inputs()
    outs, gradients = [], []
    for bound in ("periodic", "clamp"):
        torch.manual_seed(0)
        encoding = PoPE(ModelConfig(**SMALL, delta_bound=bound, delta_init="uniform"))
        encoding.reset_parameters()
        outs.append(encoding.attend(q, k, v))
        outs[-1].square().sum().backward()
        gradients.append(encoding.delta.grad)
    assert torch.equal(*outs)
    assert torch.equal(*gradients)
    assert gradients[0].any()


MU = {"softplus": torch.nn.functional.softplus, "relu": torch.relu, "none": lambda x: x}


@pytest.mark.parametrize("magnitude", MU)
def test_magnitude_reaches_the_kernel(magnitude):
    """The formula once more, also of the packed projection."""
    q, k, v = small_inputs(9)
    encoding = PoPE(ModelConfig(**SMALL, magnitude=magnitude))
    torch.nn.init.uniform_(encoding.delta, -3, 3)
    theta = 10000.0 ** (-torch.arange(6) / 6)
    distance = torch.arange(9.0) - torch.arange(9.0)[:, None]  # s - t
    phase = torch.cos(distance[..., None] * theta + encoding.delta[:, None, None])  # (H, Lq, Lk, D)
    scores = torch.einsum("bhtc,bhsc,htsc->bhts", MU[magnitude](q), MU[magnitude](k), phase) / math.sqrt(6)
    expected = scores.masked_fill(distance > 0, float("-inf")).softmax(-1) @ v
    packed = encoding.attend_packed(torch.stack((q, k, v)).permute(1, 3, 0, 2, 4))
    for got in (encoding.attend(q, k, v), packed):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


class TestLongestWavelength:
    def test_frequencies(self):
        theta = frequencies(64, 1e4)
        longest = 2 * math.pi / float(theta[20]) * (1 + 1e-12)
        got = truncated_frequencies(64, 1e4, longest)
        assert torch.equal(got[:21], theta[:21])
        assert not got[21:].any()
        assert torch.equal(truncated_frequencies(64, 1e4), theta)

    @pytest.mark.parametrize("position", ["pope", "rope", "yarn", "pope-yarn"])
    def test_attention_is_that_of_the_frequencies_left(self, position):
        config = ModelConfig(**SMALL, base=100.0, longest_wavelength=30.0, yarn_factor=2.0)
        encoding = POSITIONS[position](config)
        q, k, v = small_inputs(40)
        theta = truncated_frequencies(6 if position.startswith("pope") else 3, 100.0, 30.0)
        assert 0 < int((theta == 0).sum()) < len(theta)
        if position == "pope":
            expected = pope_attention(q, k, v, encoding.delta, freqs=theta)
        elif position == "rope":
            expected = rope_attention(q, k, v, freqs=theta)
        else:  # what is 0 is not stretched
            theta = torch.where(theta == 0, 0.0, yarn_frequencies(len(theta), 100.0, 2.0, 2048))
            options = {"freqs": theta, "softmax_scale": encoding.softmax_scale}
            if position == "yarn":
                expected = rope_attention(q, k, v, **options)
            else:
                expected = pope_attention(q, k, v, encoding.delta, **options)
        torch.testing.assert_close(encoding.attend(q, k, v), expected)
        whole = POSITIONS[position](ModelConfig(**SMALL, base=100.0, yarn_factor=2.0))
        assert (whole.attend(q, k, v) - expected).abs().max() > 1e-3

    def test_the_triton_kernels_serve_it(self):
        pytest.importorskip("triton")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoding = PoPE(ModelConfig(**SMALL, base=100.0, longest_wavelength=30.0)).to(device)
        q, k, v = (x.to(device) for x in small_inputs(40))
        for queries in (q, q[:, :, -1:]):  # training, and decoding
            with torch.set_grad_enabled(queries is q):
                options = {"freqs": encoding.freqs, "query_offset": 40 - queries.shape[2]}
                got = pope_attention(queries, k, v, encoding.delta, backend="triton", **options)
                expected = encoding.attend(queries, k, v, query_offset=options["query_offset"])
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_yarn_reads_truncated_rope(self):
        torch.manual_seed(0)
        model = Transformer(11, "rope", ModelConfig(**SMALL, base=100.0, longest_wavelength=30.0)).eval()
        ids = torch.randint(11, (2, 30))
        assert torch.equal(with_yarn(model, 1.0, 10)(ids), model(ids))
        assert with_yarn(model, 3.0, 10).config.longest_wavelength == 30.0


@pytest.mark.parametrize("name", POSITIONS)
def test_base_and_offset_reach_the_kernel(name):
    q, k, v = small_inputs()
    encoding = POSITIONS[name](ModelConfig(**SMALL, base=7.0))
    far = POSITIONS[name](ModelConfig(**SMALL, base=70000.0))
    full = encoding.attend(q, k, v)
    torch.testing.assert_close(encoding.attend(q[:, :, 3:], k, v, query_offset=3), full[:, :, 3:])
    assert (encoding.attend(q[:, :, :2], k, v, query_offset=3) - full[:, :, :2]).abs().max() > 1e-3
    if name in ("nope", "alibi"):  # they have no wavelengths
        assert torch.equal(far.attend(q, k, v), full)
    else:
        assert (far.attend(q, k, v) - full).abs().max() > 1e-3


def yarn_written_out(count, base, factor, original_length):
    """Wavelengths as the paper has them (section 3.2), dimension by dimension, alpha = 1 and beta = 32."""
    found = []
    for d in range(count):
        theta = base ** (-2 * d / (2 * count))
        wavelength = 2 * math.pi * base ** (2 * d / (2 * count))
        r = original_length / wavelength
        gamma = 0.0 if r < 1 else 1.0 if r > 32 else (r - 1) / 31
        found.append((1 - gamma) * theta / factor + gamma * theta)
    return torch.tensor(found, dtype=torch.float64)


def sharp_model(position):
    """With weights so large that attention is far from even."""
    torch.manual_seed(0)
    model = Transformer(11, position, ModelConfig(**SMALL, delta_init="uniform")).eval()
    for block in model.blocks:
        block.attention.qkv.weight.data.mul_(30)
        block.attention.out.weight.data.mul_(30)
    return model


class TestYaRN:
    @pytest.mark.parametrize("factor", [1.0, 1.5, 2, 10, 256])
    @pytest.mark.parametrize(("count", "base", "length"), [(24, 1e4, 2048), (16, 1e4, 256), (64, 5e5, 8192)])
    def test_frequencies_are_the_papers(self, count, base, length, factor):
        got = yarn_frequencies(count, base, factor, length)
        torch.testing.assert_close(got, yarn_written_out(count, base, factor, length), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("factor", [2.0, 16.0])
    def test_laws(self, factor):
        """Fast ones are kept, slow ones interpolated, all keep their order, no share leaves [1 / s, 1]."""
        theta, length = frequencies(64, 1e4), 2048
        share = yarn_frequencies(64, 1e4, factor, length) / theta
        rotations = length * theta / (2 * math.pi)
        assert (share[rotations > 32] == 1).all()
        torch.testing.assert_close(share[rotations < 1], torch.full_like(share[rotations < 1], 1 / factor))
        between = share[(rotations >= 1) & (rotations <= 32)]
        assert min((rotations > 32).sum(), (rotations < 1).sum(), len(between)) > 5  # each part has some
        assert (share.diff() <= 0).all()
        assert ((between > 1 / factor) & (between < 1)).all()
        assert (between.diff() < 0).all()

    @pytest.mark.parametrize(("factor", "expected"), [(1, 1.0), (math.e, 1.1), (math.e**10, 2.0)])
    def test_temperature(self, factor, expected):
        assert yarn_temperature(factor) == pytest.approx(expected)

    def test_attention_is_the_formula(self):
        """Queries and keys turned by the new angles and multiplied by sqrt(1 / t), then plain attention."""
        q, k, v = small_inputs(9)
        config = ModelConfig(**SMALL, yarn_factor=4.0, yarn_original_length=32)
        theta = yarn_written_out(3, 1e4, 4.0, 32)
        angles = torch.arange(9, dtype=torch.float64)[:, None] * theta
        turned = []
        for x in (q, k):
            z = torch.complex(*x.double().chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
            turned.append((0.1 * math.log(4.0) + 1) * torch.view_as_real(z).flatten(-2))
        scores = turned[0] @ turned[1].mT / math.sqrt(6)
        scores = scores.masked_fill(~torch.ones(9, 9).tril().bool(), float("-inf"))
        expected = (scores.softmax(-1) @ v.double()).float()
        torch.testing.assert_close(YaRN(config).attend(q, k, v), expected, atol=1e-5, rtol=1e-5)
        assert (RoPE(config).attend(q, k, v) - expected).abs().max() > 1e-2

    def test_factor_one_is_rope(self):
        q, k, v = small_inputs(40)
        config = ModelConfig(**SMALL)
        assert torch.equal(YaRN(config).attend(q, k, v), RoPE(config).attend(q, k, v))

    @pytest.mark.parametrize(("position", "through"), [("rope", "yarn"), ("pope", "pope-yarn")])
    @torch.no_grad()
    def test_reads_the_weights_of_a_trained_model(self, position, through):
        """PoPE's deltas with them."""
        model = sharp_model(position)
        ids = torch.randint(11, (2, 30))
        before = model(ids)
        longer = with_yarn(model, 3.0, 10)
        told = (longer.position, longer.config.yarn_factor, longer.config.yarn_original_length)
        assert told == (through, 3.0, 10)
        assert not longer.training
        assert torch.equal(model(ids), before)  # the model itself is as it was
        same = Transformer(11, through, longer.config).eval()
        same.load_state_dict(model.state_dict())
        assert torch.equal(longer(ids), same(ids))
        assert (longer(ids) - before).abs().max() > 1e-3
        assert torch.equal(with_yarn(model, 1.0, 10)(ids), before)

    @torch.no_grad()
    def test_pope_is_the_formula(self):
        """Scores by the frequencies of YaRN for D of them, in fp64."""
        longer = with_yarn(sharp_model("pope"), 3.0, 10)
        encoding, (q, k, v) = longer.blocks[0].attention.position, small_inputs(40)
        theta, delta = yarn_frequencies(6, 1e4, 3.0, 10), encoding.delta.double()[:, None, None]
        assert torch.equal(encoding.theta(), theta)
        at = torch.arange(40, dtype=torch.float64)
        angles = (at[None, :, None] - at[:, None, None]) * theta  # (query, key, frequency), s - t
        mu_q, mu_k = (torch.nn.functional.softplus(x.double()) for x in (q, k))
        terms = mu_q[..., :, None, :] * mu_k[..., None, :, :] * torch.cos(angles + delta)
        scores = terms.sum(-1) * (0.1 * math.log(3.0) + 1) ** 2 / math.sqrt(6)
        scores = scores.masked_fill(~torch.ones(40, 40).tril().bool(), float("-inf"))
        expected = (scores.softmax(-1) @ v.double()).float()
        torch.testing.assert_close(encoding.attend(q, k, v), expected, atol=1e-5, rtol=1e-5)
        packed = torch.stack([q, k, v], 2).permute(0, 3, 2, 1, 4)
        torch.testing.assert_close(encoding.attend_packed(packed), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("position", [p for p in POSITIONS if p not in ("rope", "pope")])
    def test_extends_rope_and_pope_alone(self, position):
        model = Transformer(11, position, ModelConfig(**SMALL))
        with pytest.raises(SeqpopeError, match=f"YaRN extends models of pope, rope: this one has {position}"):
            with_yarn(model, 2.0, 10)

    @pytest.mark.parametrize(
        "changes", [{"yarn_factor": 0.5}, {"yarn_factor": math.inf}, {"yarn_original_length": 0}]
    )
    def test_numbers_that_make_no_sense(self, changes):
        with pytest.raises(SeqpopeError, match="must be at least 1"):
            ModelConfig(**changes)


@pytest.mark.parametrize("longest", [0.0, 100.0])
@pytest.mark.parametrize("position", [p for p in POSITIONS if p != "alibi"])
@torch.no_grad()
def test_tables_are_made_once_for_all_layers_and_steps(position, longest, monkeypatch):
    config = ModelConfig(width=12, heads=2, layers=3, yarn_factor=2.5, longest_wavelength=longest)
    model = Transformer(11, position, config).eval()
    made, tables = [], rotation._tables
    monkeypatch.setattr(rotation, "_FULL", rotation._Shelf(16))
    monkeypatch.setattr(rotation, "_tables", lambda *words: made.append(words) or tables(*words))
    cache = KeyValueCache(config, 1, 20)
    model(torch.ones(1, 9, dtype=torch.long), cache)
    for _ in range(5):
        model(torch.ones(1, 1, dtype=torch.long), cache)
    assert len(made) == 1


@pytest.mark.parametrize("position", ["yarn", "nope", "rope"])
def test_angles_are_exact_in_models_of_any_dtype(position):
    """Weights may be narrow: frequencies are none of them, nor of what a checkpoint holds."""
    encoding = POSITIONS[position](ModelConfig(**SMALL, yarn_factor=3.0))
    q, k, v = small_inputs(40)
    before = encoding.attend(q, k, v)
    assert torch.equal(encoding.to(torch.bfloat16).attend(q, k, v), before)
    assert list(encoding.buffers()) == []
    assert encoding.state_dict() == {}


def test_nope_is_attention_without_positions():
    q, k, v = small_inputs(9)
    scores = (q @ k.mT / math.sqrt(6)).masked_fill(~torch.ones(9, 9).tril().bool(), float("-inf"))
    got = POSITIONS["nope"](ModelConfig(**SMALL)).attend(q, k, v)
    torch.testing.assert_close(got, scores.softmax(-1) @ v, atol=1e-5, rtol=1e-5)


class TestALiBi:
    def test_slopes(self):
        """The paper's eight heads, 1/2 to 1/256; twelve as in the authors' code: half of sixteen's behind."""
        assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
        assert alibi_slopes(1).tolist() == [2.0**-8]
        assert alibi_slopes(12).tolist() == [2.0**-h for h in range(1, 9)] + [
            2.0 ** -(h / 2) for h in (1, 3, 5, 7)
        ]

    @pytest.mark.parametrize("length", [9, DIGIT, DIGIT + 1, 3 * DIGIT + 7])
    def test_attention_is_the_formula(self, length):
        """Positions of one digit and of two."""
        q, k, v = (x[:1] for x in small_inputs(length))
        scores = q @ k.mT / math.sqrt(6)
        distance = torch.arange(length)[:, None] - torch.arange(length)
        scores -= torch.tensor([2.0**-4, 2.0**-8])[:, None, None] * distance
        scores = scores.masked_fill(distance < 0, float("-inf"))
        got = POSITIONS["alibi"](ModelConfig(**SMALL)).attend(q, k, v)
        torch.testing.assert_close(got, scores.softmax(-1) @ v, atol=1e-5, rtol=1e-5)
        half = alibi_attention(*(x.bfloat16() for x in (q, k, v)), alibi_slopes(2))
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), got, atol=3e-2, rtol=3e-2)

    def test_gradients_are_those_of_the_formula(self):
        inputs = [x[:1].clone().requires_grad_() for x in small_inputs(DIGIT + 9)]
        q, k, v = inputs
        distance = torch.arange(DIGIT + 9)[:, None] - torch.arange(DIGIT + 9)
        scores = q @ k.mT / math.sqrt(6) - alibi_slopes(2).float()[:, None, None] * distance
        expected = scores.masked_fill(distance < 0, float("-inf")).softmax(-1) @ v
        into = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, inputs, into)
        found = torch.autograd.grad(alibi_attention(q, k, v, alibi_slopes(2)), inputs, into)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-3), (torch.bfloat16, 3e-2)])
    def test_far_from_the_start(self, dtype, error):
        """At positions of three digits, where bf16 tells no neighbours apart: the last queries against fp64."""
        torch.manual_seed(0)
        keys, heads = DIGIT**2 + 300, 8
        q, k, v = torch.randn(1, heads, 3, 16), torch.randn(1, heads, keys, 16), torch.randn(1, heads, keys, 16)
        q, k, v = (x.to(dtype) for x in (q, k, v))
        distance = torch.arange(keys - 3, keys)[:, None] - torch.arange(keys)
        scores = q.double() @ k.double().mT / 4 - alibi_slopes(heads)[:, None, None] * distance
        expected = scores.masked_fill(distance < 0, float("-inf")).softmax(-1) @ v.double()
        for offset in (keys - 3, torch.tensor([keys - 3])):
            got = alibi_attention(q, k, v, alibi_slopes(heads), query_offset=offset)
            torch.testing.assert_close(got.double(), expected, atol=error, rtol=error)
        with pytest.raises(ValueError, match=r"in float16 holds 65,536 positions, there are 65,836 keys.*bf"):
            alibi_attention(q.half(), k.half(), v.half(), alibi_slopes(heads), query_offset=keys - 3)
        with torch.autocast("cpu", torch.float16), pytest.raises(ValueError, match="in float16 holds 65,536"):
            alibi_attention(q.float(), k.float(), v.float(), alibi_slopes(heads), query_offset=keys - 3)

    def test_shapes_that_do_not_fit(self):
        q, k, v = small_inputs()
        with pytest.raises(ValueError, match=r"expected q \(B, H, Lq, D\)"):
            alibi_attention(q, k[:, :1], v, alibi_slopes(2))
        with pytest.raises(ValueError, match="only 5 keys"):
            alibi_attention(q, k, v, alibi_slopes(2), query_offset=1)
