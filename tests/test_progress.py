"""Progress of long work."""

import re

import numpy as np
import pytest
import torch

from seqpope.data.shards import SCORED, Split
from seqpope.nll import validate
from seqpope.progress import Progress, speed


@pytest.mark.parametrize(
    ("rate", "told"),
    [(128.43, "128.4 steps/s"), (1.0, "1.0 steps/s"), (0.5, "2.0 s/step"), (0.001, "1000.0 s/step")],
)
def test_speed(rate, told):
    assert speed(rate, "step") == told


def validated():
    split = Split(np.zeros(64, np.int64), np.array([0, 64]), np.full(64, SCORED, np.uint8), ["a"], {})
    return validate(lambda ids: torch.zeros(*ids.shape, 4), split, 0, length=8, stride=8, batch_tokens=8)


def test_a_validation_tells_how_far_it_is_if_it_takes_long(capsys, monkeypatch):
    assert validated().nats == pytest.approx(np.log(4))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("seqpope.nll.Progress", lambda title, unit, every: Progress(title, unit, 0.0))
    validated()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8
    assert re.fullmatch(r"validation  32/64 tokens  [\d.]+ tokens/s  0:00 left", lines[3])


def test_it_does_not_end_because_nobody_reads_on(monkeypatch):
    def broken(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("seqpope.signals.print", broken, raising=False)
    monkeypatch.setattr("seqpope.nll.Progress", lambda title, unit, every: Progress(title, unit, 0.0))
    assert validated().nats == pytest.approx(np.log(4))
