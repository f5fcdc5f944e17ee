"""The LightningModule: loss, optimiser, schedule, validation, weight averaging. One model, one run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from seqpope.data.datamodule import Batch
from seqpope.data.shards import Split
from seqpope.errors import SeqpopeError
from seqpope.model.transformer import Transformer
from seqpope.nll import mean_nats, score_split


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay.

    Args:
        steps: Optimiser steps in all; the rate reaches its minimum at the last one.
        learning_rate: Highest learning rate.
        min_learning_rate: Learning rate at the last step.
        warmup_steps: Steps of linear rise from 0.
        weight_decay: Decay of matrices; norms and PoPE's delta are not decayed.
        beta1: AdamW's decay of the gradient's mean.
        beta2: AdamW's decay of the gradient's mean square.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        average_decay: Decay of an exponential moving average of the weights, which is then what is validated,
            tested and saved; 0 averages nothing.
    """

    steps: int = 3000
    learning_rate: float = 6e-4
    min_learning_rate: float = 6e-5
    warmup_steps: int = 10
    weight_decay: float = 0.01
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

    def rate_at(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * cosine


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed. Vectors are not, nor is delta: it is two-dimensional, but an angle, not a matrix."""
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() >= 2 and not name.endswith("delta")
        (decayed if is_matrix else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


class SequenceModule(lightning.LightningModule):
    """Trains a transformer on batches of token windows and validates it on every token of a split.

    The randomness of step s (dropout) is a pure function of (seed, s), as the batches are, so that a resumed
    run follows the very curve of an uninterrupted one.
    """

    def __init__(
        self,
        model: Transformer,
        optimizer: OptimizerConfig,
        *,
        seed: int,
        padding_id: int,
        validation: Split,
        eval_length: int,
        eval_stride: int,
        compile_model: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.average: AveragedModel | None = None
        if optimizer.average_decay:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optimizer.average_decay))
        self.optimizer_config, self.seed, self.padding_id = optimizer, seed, padding_id
        self.validation, self.eval_length, self.eval_stride = validation, eval_length, eval_stride
        # Kept out of the module tree, so that names in the state dict stay those of the plain model.
        self._train_forward = (torch.compile(model) if compile_model else model,)

    @property
    def evaluated_model(self) -> Transformer:
        """The model that is validated and saved: the averaged one where averaging is on."""
        return self.average.module if self.average is not None else self.model  # type: ignore[return-value]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self._train_forward[0](batch.ids)
        return mean_nats(logits, batch.targets, batch.scored)

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        super().optimizer_step(*arguments, **keywords)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def configure_optimizers(self) -> Any:
        config = self.optimizer_config
        groups = parameter_groups(self.model, config.weight_decay)
        optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            fused=self.device.type == "cuda",
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: config.rate_at(step) / config.learning_rate
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def validation_nats(self) -> float:
        """Nats per token over the whole validation split, in fp32 whatever the training precision."""
        model = self.evaluated_model
        was_training = model.training
        model.eval()
        with torch.autocast(self.device.type, enabled=False):
            nats = score_split(
                model,
                self.validation,
                self.padding_id,
                length=self.eval_length,
                stride=self.eval_stride,
                device=self.device,
            )
        model.train(was_training)
        return float(nats.mean())
