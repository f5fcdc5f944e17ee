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
    ],
)
def test_what_cannot_be_built_is_refused_in_words(changes, message):
    with pytest.raises(SeqpopeError, match=message):
        ModelConfig(**changes)


def test_head_dimension():
    assert ModelConfig(width=48, heads=3).head_dim == 16
