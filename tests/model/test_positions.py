from __future__ import annotations

import math

import pytest
import torch

from seqpope.errors import SeqpopeError
from seqpope.model.config import ModelConfig
from seqpope.model.positions import POSITIONS, PoPE, PositionEncoding, RoPE, find_position

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


@pytest.mark.parametrize("name", POSITIONS)
def test_base_and_offset_reach_the_kernel(name):
    q, k, v = small_inputs()
    encoding = POSITIONS[name](ModelConfig(**SMALL, base=7.0))
    far = POSITIONS[name](ModelConfig(**SMALL, base=70000.0))
    full = encoding.attend(q, k, v)
    torch.testing.assert_close(encoding.attend(q[:, :, 3:], k, v, query_offset=3), full[:, :, 3:])
    assert (encoding.attend(q[:, :, :2], k, v, query_offset=3) - full[:, :, :2]).abs().max() > 1e-3
    assert (far.attend(q, k, v) - full).abs().max() > 1e-3
