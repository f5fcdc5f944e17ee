from __future__ import annotations

import pytest

from seqpope.errors import SeqpopeError
from seqpope.model.config import ModelConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "model.width must be at least 1, it is 0"),
        ({"layers": 0}, "model.layers"),
        ({"heads": -1}, "model.heads"),
        ({"width": 30, "heads": 4}, "30 is no multiple of 4"),
        ({"dropout": 1.0}, r"model.dropout must be in \[0, 1\), it is 1.0"),
        ({"dropout": -0.1}, "model.dropout"),
        ({"attention_dropout": 1.5}, "model.attention_dropout"),
        ({"base": 1.0}, "model.base must be above 1"),
        ({"mlp_ratio": 0.0}, "model.mlp_ratio above 0"),
        ({"magnitude": "gelu"}, "model.magnitude must be one of softplus, relu, none, it is 'gelu'"),
        ({"delta_init": "one"}, "model.delta_init must be one of zero, uniform, centred, local, it is 'one'"),
        ({"delta_bound": "box"}, "model.delta_bound must be one of periodic, clamp, tanh, it is 'box'"),
        ({"delta_window": 0}, "model.delta_window must be at least 1, it is 0"),
        ({"delta_init": "centred", "delta_bound": "clamp"}, "take delta_init uniform, or delta_bound periodic"),
        ({"longest_wavelength": 6.0}, r"0, which keeps all, or at least 2 pi \(6.2832\).*it is 6.0"),
        ({"longest_wavelength": float("nan")}, "model.longest_wavelength"),
        ({"longest_wavelength": float("inf")}, "model.longest_wavelength"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(changes, message):
    with pytest.raises(SeqpopeError, match=message):
        ModelConfig(**changes)


def test_head_dimension():
    assert ModelConfig(width=48, heads=3).head_dim == 16
