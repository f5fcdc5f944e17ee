"""Everything that can be set of a training experiment. Light to import: `--help` reads these classes.

A field's type is its schema and its line in the docstring is its help.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from seqpope.errors import SeqpopeError
from seqpope.model.config import ModelConfig

MAX_BATCH_TOKENS = 2**26  # their activations alone pass 80 GB at a width of 256


@dataclass
class DataConfig:
    """What a training batch is made of.

    Args:
        length: Tokens in a training window; longer documents are cropped at a random time step.
        batch_size: Windows in a batch.
        transpose: Semitones of random transposition, [lowest, highest]; a document's share of it is cut to what
            keeps its pitches inside the vocabulary. [0, 0] is none.
        reverse_complement: DNA: read a window on the other strand with probability 1/2; false reads the written
            strand alone.
        soft_mask_weight: DNA: what a mostly soft-masked token (repeats) counts in the training loss, 0 to 1.
    """

    length: int = 2048
    batch_size: int = 4
    transpose: tuple[int, int] = (0, 0)
    reverse_complement: bool = True
    soft_mask_weight: float = 1.0

    def __post_init__(self) -> None:
        low, high = self.transpose
        self.transpose = (int(low), int(high))
        if self.length < 2 or self.batch_size < 1:
            raise SeqpopeError(
                "data.length must be at least 2 and data.batch_size at least 1, "
                f"they are {self.length} and {self.batch_size}"
            )
        if self.batch_size * self.length > MAX_BATCH_TOKENS:
            raise SeqpopeError(
                f"a batch of {self.batch_size} x {self.length} tokens is more than any memory holds "
                f"({MAX_BATCH_TOKENS} tokens at most): lower data.batch_size or data.length"
            )
        if not 0 <= self.soft_mask_weight <= 1:
            raise SeqpopeError(f"data.soft_mask_weight must be from 0 to 1, it is {self.soft_mask_weight}")
        if not low <= 0 <= high:
            raise SeqpopeError(
                f"data.transpose must be a range around 0 such as [-5, 6], it is {list(self.transpose)}"
            )


@dataclass
class OptimizerConfig:
    """AdamW or Muon, linear warm-up, cosine decay.

    Args:
        name: adamw; or muon for the matrices of the blocks (arXiv 2502.16982), AdamW for all else.
        steps: Optimiser steps in all; the rate reaches its minimum at the last one.
        learning_rate: Highest learning rate.
        min_learning_rate: Learning rate at the last step.
        warmup_steps: Steps of linear rise from 0.
        weight_decay: Decay of matrices; norms and PoPE's delta are not decayed.
        delta_rate: PoPE only. Learning rate of delta over that of all else.
        delta_decay: PoPE only. Decay of delta towards 0: what nothing else moves is left with
            exp(-delta_decay x the sum of delta's learning rates) of its start.
        beta1: AdamW's decay of the gradient's mean.
        beta2: AdamW's decay of the gradient's mean square.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        average_decay: Decay of an exponential moving average of the weights, which is then what is validated,
            tested and saved; 0 averages nothing.
    """

    name: Literal["adamw", "muon"] = "adamw"
    steps: int = 3000
    learning_rate: float = 6e-4
    min_learning_rate: float = 6e-5
    warmup_steps: int = 10
    weight_decay: float = 0.01
    delta_rate: float = 1.0
    delta_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    gradient_clip: float = 1.0
    average_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.warmup_steps >= 0:
            raise SeqpopeError(
                "optimizer.steps must be at least 1 and optimizer.warmup_steps at least 0, "
                f"they are {self.steps} and {self.warmup_steps}"
            )
        if not self.learning_rate > 0 or not 0 <= self.min_learning_rate <= self.learning_rate:
            raise SeqpopeError(
                "expected 0 <= optimizer.min_learning_rate <= optimizer.learning_rate, learning_rate above 0; "
                f"they are {self.min_learning_rate} and {self.learning_rate}"
            )
        for name in ("beta1", "beta2", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise SeqpopeError(f"optimizer.{name} must be in [0, 1), it is {getattr(self, name)}")
        if self.gradient_clip < 0 or self.weight_decay < 0:
            raise SeqpopeError("optimizer.gradient_clip and optimizer.weight_decay must not be negative")
        if not 0 < self.delta_rate < math.inf or not 0 <= self.delta_decay < math.inf:
            raise SeqpopeError(
                "optimizer.delta_rate must be above 0 (model.delta_learned false keeps delta as it is) and "
                f"optimizer.delta_decay not negative, they are {self.delta_rate} and {self.delta_decay}"
            )

    def rate_at(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * cosine


@dataclass
class TrainConfig:
    """One experiment: an encoding, its baseline twin, and how both are trained.

    Args:
        domain: What is modelled.
        dataset: Prepared data set (chorales, jsb).
        position: Position encoding of the model (pope, rope, yarn, pope-yarn, nope, alibi).
        baseline: Encoding of the twin trained beside it under the same seeds; none trains no twin.
        seed: First seed.
        seeds: Number of seeds; run i of each encoding has seed + i.
        device: Where to train; auto is a GPU if there is one.
        precision: auto is bf16-mixed on a GPU and fp32 on a CPU. Validation and test are always fp32.
        compile: Compile the training step (torch.compile); auto compiles on a GPU.
        side_by_side: Train the seeds of an encoding as one model of all their weights, which is faster where a
            model is too small to fill a GPU.
        model: Shape and regularisation.
        data: Batches and augmentation.
        optimizer: AdamW and its schedule.
        eval_every: Steps between validations; weights are saved at each.
        eval_length: Tokens in a validation or test window.
        eval_stride: Tokens that each window after a piece's first one scores.
        data_folder: Where prepared data lies, a folder a data set; or the folder of the data set itself.
        out: Folder of experiments.
        name: Name of this experiment's folder; data set and time if empty.
    """

    domain: Literal["music", "genome", "indexing"] = "music"
    dataset: str = "chorales"
    position: str = "pope"
    baseline: str = "rope"
    seed: int = 0
    seeds: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16-mixed"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"
    side_by_side: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    eval_every: int = 100
    eval_length: int = 2048
    eval_stride: int = 1024
    data_folder: Path = Path("data")
    out: Path = Path("runs")
    name: str = ""

    def __post_init__(self) -> None:
        if self.seeds < 1 or not 0 <= self.seed <= 2**32 - self.seeds:
            raise SeqpopeError(
                f"seeds must be at least 1, and every seed from 0 to 2^32 - 1: {self.seeds} from {self.seed} on"
            )
        if self.eval_every < 1 or not 1 <= self.eval_stride <= self.eval_length:
            raise SeqpopeError(
                "expected eval_every >= 1 and 1 <= eval_stride <= eval_length, they are "
                f"{self.eval_every}, {self.eval_stride}, {self.eval_length}"
            )
        self.data_folder, self.out = Path(self.data_folder), Path(self.out)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> TrainConfig:
        """What `as_dict` or a preset gives; fields that it lacks are the defaults.

        Raises:
            SeqpopeError: a field is unknown or a value impossible.
        """
        parts = {"model": ModelConfig, "data": DataConfig, "optimizer": OptimizerConfig}
        try:
            return cls(**{k: parts[k](**v) if k in parts else v for k, v in raw.items()})
        except TypeError as error:
            raise SeqpopeError(f"the configuration cannot be used ({error})") from error

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as written to config.yaml and read back by --config."""
        raw = asdict(self)
        raw["data_folder"], raw["out"] = str(self.data_folder), str(self.out)
        raw["data"]["transpose"] = list(self.data.transpose)
        return raw
