"""What all domains' samples have in common: a model, how many are drawn and how, batch by batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqpope.checkpoint import CheckpointInfo, check_fingerprint, find_checkpoint, load_checkpoint, named
from seqpope.errors import SeqpopeError
from seqpope.model.transformer import Transformer
from seqpope.provenance import choose_device, provenance
from seqpope.sampling import Constraint, Samples, SamplingConfig, sample

FEW_ROWS = 8  # on two cores one sequence took 7.9 s with one thread and 10.4 s with two


@dataclass(frozen=True)
class Draw:
    """How many samples, how they are drawn and where.

    Args:
        num: samples; sample i is drawn with seed + i.
        batch_size: samples drawn at once; particles count as samples.
        particles: of each sample, so that rules count for what comes before them; 1 draws it straight on.
        greed: 0 draws from the distribution given the rules, 1 searches for what is likeliest (`sample`).
        context: attend to at most so many tokens; None attends to all.
        progress: called with tokens drawn and tokens in all; piano: with seconds of music.
        watch: called with each token as it is drawn (`sample`).
    """

    num: int = 1
    seed: int = 0
    batch_size: int = 16
    particles: int = 1
    greed: float = 0.0
    context: int | None = None
    config: SamplingConfig | None = None
    device: str = "auto"
    progress: Callable[[int, int], None] | None = None
    watch: Callable[[torch.Tensor, torch.Tensor], None] | None = None

    @property
    def seeds(self) -> list[int]:
        """Each sample's."""
        return list(range(self.seed, self.seed + self.num))

    def check(self) -> None:
        """Raise SeqpopeError if a number is out of range."""
        if self.num < 1 or self.batch_size < 1 or self.particles < 1 or not 0 <= self.seed <= 2**32 - self.num:
            raise SeqpopeError(
                "expected num, batch_size and particles of at least 1 and seeds of 32 bits from 0; they are "
                f"{self.num}, {self.batch_size}, {self.particles} and {self.seed}"
            )
        if not 0 <= self.greed <= 100:
            raise SeqpopeError(f"greed must be from 0 to 100, it is {self.greed}")
        if self.context is not None and self.context < 16:
            raise SeqpopeError(f"the context must be at least 16 tokens, it is {self.context}")


@dataclass(frozen=True)
class Model:
    """A model with what its checkpoint says."""

    transformer: Transformer
    info: CheckpointInfo
    file: Path
    device: str

    @classmethod
    def load(cls, checkpoint: Path, device: str, fingerprint: str, what: str) -> Model:
        """Read the weights that `checkpoint` means (`find_checkpoint`) to a device.

        Args:
            fingerprint: of the tokenizer whose ids the model is to be given; `what` names it in errors.

        Raises:
            SeqpopeError: there is no such model, or it was trained on other tokens.
        """
        device = choose_device(device)
        file = find_checkpoint(checkpoint)
        transformer, info = load_checkpoint(file, device)
        check_fingerprint(info, fingerprint, what)
        return cls(transformer, info, file, device)

    def described(self) -> dict[str, Any]:
        """For a sidecar."""
        return {
            "checkpoint": named(self.file),
            "position": self.info.position,
            "dataset": self.info.dataset,
            "fingerprint": self.info.fingerprint,
            "trained": self.info.trained,
        }

    def draw(
        self,
        opening: torch.Tensor,
        count: int,
        draw: Draw,
        constraint: Constraint | None = None,
        *,
        resample_every: int = 1,
        share: Callable[[Any], np.ndarray] | None = None,
    ) -> Iterator[tuple[int, Samples]]:
        """(seed, what it drew) of each sample, batch by batch: what is there can be written meanwhile.

        A sample that is done before others of its batch comes without the padding behind it.

        Args:
            opening: (L,) token ids, possibly none; count: tokens to draw after them, at most.
            resample_every, share: as in `sample`.
        """
        seeds = draw.seeds
        at_once = max(1, draw.batch_size // draw.particles)
        for begin in range(0, len(seeds), at_once):
            some = seeds[begin : begin + at_once]

            def shown(done: int, _: int, begin: int = begin) -> None:
                if draw.progress is not None:
                    draw.progress(begin * count + done, len(seeds) * count)

            with _few_threads(self.device, len(some) * draw.particles):
                drawn = sample(
                self.transformer, opening, count, seeds=some, padding_id=self.info.padding_id, config=draw.config,
                constraint=constraint, particles=draw.particles, resample_every=resample_every, greed=draw.greed,
                pick="likeliest" if draw.greed else "any", context=draw.context, progress=shown,
                share=share, watch=draw.watch,
                )  # fmt: skip
            for row, seed in enumerate(some):
                # Padding is never drawn but after the end.
                one = (slice(row, row + 1), slice(int((drawn.ids[row] != self.info.padding_id).sum())))
                parts = drawn.ids[one], drawn.nats[one], drawn.constraint_nats[one]
                yield seed, Samples(*parts, drawn.forgotten[one[0]])


@contextlib.contextmanager
def _few_threads(device: str, rows: int) -> Iterator[None]:
    """One thread of the CPU for a few rows: steps this small take longer to share than to do."""
    before = torch.get_num_threads()
    if device == "cpu" and rows <= FEW_ROWS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_draw(
    model: Model, draw: Draw, asked: dict[str, Any], seed: int, drawn: Samples, prompt_tokens: int
) -> dict[str, Any]:
    """The sidecar of one sample, whatever its domain: model, settings, seed, and the NLL of what was drawn."""
    tokens = drawn.ids.shape[1]
    return {
        "model": model.described(),
        "settings": {
            **asdict(draw.config or SamplingConfig()),
            **asked,
            "particles": draw.particles,
            "greed": draw.greed,
            "context": draw.context,
            "batch_size": draw.batch_size,
            "samples": draw.num,
        },
        "seed": seed,
        "tokens": tokens,
        "nats_per_token": float(drawn.nats.double().mean()),
        "constraint_nats_per_token": float(drawn.constraint_nats.double().mean()),
        "beyond_training_length": prompt_tokens + tokens > model.info.length,
        "tokens_forgotten": int(drawn.forgotten),
        **provenance(model.device),
    }
