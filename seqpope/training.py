"""The LightningModule: loss, optimiser, schedule, validation, weight averaging. One model, one run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from torch import Tensor

from seqpope.checkpoint import CheckpointInfo
from seqpope.config import OptimizerConfig, TrainConfig
from seqpope.data.datamodule import Batch
from seqpope.data.shards import Manifest, Split
from seqpope.files import write_text
from seqpope.model.transformer import Transformer
from seqpope.muon import StackedMuon
from seqpope.nll import Validation, batch_nats, validate
from seqpope.provenance import provenance


def parameter_groups(
    model: torch.nn.Module, config: OptimizerConfig, *, models: bool = False
) -> list[dict[str, Any]]:
    """Matrices are decayed. Vectors are not, nor is delta: it is two-dimensional, but an angle, not a matrix.

    Delta has a group of its own only where its rate or decay differs: states saved of other runs have two.

    Args:
        models: parameters are those of several models, along a first axis that is no part of a matrix.
    """
    decayed: list[torch.nn.Parameter] = []
    free: list[torch.nn.Parameter] = []
    deltas: list[torch.nn.Parameter] = []
    own_way = config.delta_rate != 1 or config.delta_decay != 0
    for name, parameter in model.named_parameters():
        if name.endswith("delta"):
            (deltas if own_way else free).append(parameter)
        else:
            (decayed if parameter.dim() >= 2 + models else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if deltas:
        rate = config.learning_rate * config.delta_rate
        groups.append({"params": deltas, "weight_decay": config.delta_decay, "lr": rate})
    return groups


class Together(torch.optim.Optimizer):
    """Several optimisers of different parameters as one: Muon takes matrices alone."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([p for o in optimizers for g in o.param_groups for p in g["params"]], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # The very same dicts, so that a schedule that sets a rate here sets it there.
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._share_groups()


def make_optimizer(
    model: torch.nn.Module,
    config: OptimizerConfig,
    *,
    models: bool = False,
    precision: torch.dtype = torch.bfloat16,
) -> torch.optim.Optimizer:
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.

    Args:
        models: as for `parameter_groups`.
        precision: that several models' Muon works in; a single model's knows bf16 alone.
    """
    adamw: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2)}
    if next(model.parameters()).is_cuda:
        adamw["fused"] = True  # one kernel where there would be a dozen
    if config.name == "adamw":
        return torch.optim.AdamW(parameter_groups(model, config, models=models), **adamw)
    matrices = [
        p
        for name, p in model.named_parameters()
        if p.dim() == 2 + models and not name.endswith(("delta", "embedding.weight"))
    ]
    chosen = {id(p) for p in matrices}
    groups = parameter_groups(model, config, models=models)
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
    # match_rms_adamw: the same learning rate and decay serve both.
    both: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    muon = (
        StackedMuon(matrices, **both, precision=precision)
        if models
        else torch.optim.Muon(matrices, **both, adjust_lr_fn="match_rms_adamw")
    )
    return Together([muon, torch.optim.AdamW(groups, **adamw)])


@torch.no_grad()
def update_average(average: torch.nn.Module, model: torch.nn.Module, step: int, decay: float) -> None:
    """Move averaged weights towards those of step `step`, counted from 0.

    torch's AveragedModel reads a counter from the GPU at every step; here the step is at hand. The decay warms up,
    so that the random start is soon forgotten.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def precision_on(device: str, config: TrainConfig) -> str:
    """Lightning's name of the precision that a run is trained in."""
    half = config.precision == "bf16-mixed" or (config.precision == "auto" and device == "cuda")
    return "bf16-mixed" if half else "32-true"


def compiles_on(device: str, config: TrainConfig) -> bool:
    """Whether a run's training step is compiled."""
    return config.compile == "yes" or (config.compile == "auto" and device == "cuda")


def begin_run(folder: Path, config: TrainConfig, manifest: Manifest, device: str) -> CheckpointInfo:
    """Write config.yaml and versions.json of one run, of config.seed; what its weights will say of themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(config.as_dict(), sort_keys=False))
    write_text(folder / "versions.json", json.dumps(provenance(device), indent=1) + "\n")
    return CheckpointInfo(
        domain=manifest.domain,
        dataset=manifest.dataset,
        position=config.position,
        vocabulary_size=manifest.vocabulary_size,
        padding_id=manifest.padding_id,
        length=config.data.length,
        model=config.as_dict()["model"],
        tokenizer=manifest.tokenizer,
        fingerprint=manifest.fingerprint,
        trained={"seed": config.seed, "precision": precision_on(device, config), "data": manifest.content},
    )


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
        one_shape: bool = False,
        one_target: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False) if optimizer.average_decay else None
        self.optimizer_config, self.seed, self.padding_id = optimizer, seed, padding_id
        self.validation, self.eval_length, self.eval_stride = validation, eval_length, eval_stride
        self.compiled, self.one_shape, self.one_target = compile_model, one_shape, one_target
        forward: Any = model
        if compile_model and one_shape:
            # Batches all alike: their forward and backward passes are CUDA graphs, which a small model needs: its
            # kernels are done before the CPU has launched the next ones.
            forward = torch.compile(model, mode="reduce-overhead", dynamic=False)
        elif compile_model:
            forward = torch.compile(model)
        # Kept out of the module tree, so that names in the state dict stay those of the plain model.
        self._train_forward = (forward,)

    @property
    def evaluated_model(self) -> Transformer:
        """The model that is validated and saved: the averaged one where averaging is on."""
        return self.model if self.average is None else self.average

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.compiled and self.one_shape:
            torch.compiler.cudagraph_mark_step_begin()
        elif self.compiled:
            torch._dynamo.mark_dynamic(batch.ids, 1)  # one compiled model for all lengths
        return batch_nats(self._train_forward[0], batch, one_target=self.one_target)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses a fused optimiser here, which might unscale fp16's gradients itself; bf16 has no scale.
        if gradient_clip_val:
            # In the optimiser's order: Muon's sums are bf16, where the norm's last digit can grow a thousandfold.
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        super().optimizer_step(*arguments, **keywords)
        if self.average is not None:
            update_average(self.average, self.model, self.global_step, self.optimizer_config.average_decay)

    def configure_optimizers(self) -> Any:
        config = self.optimizer_config
        optimizer = make_optimizer(self.model, config)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: config.rate_at(step) / config.learning_rate
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def validated(self) -> Validation:
        """The validation split's nats per scored token and accuracy, in fp32 whatever the training precision."""
        model = self.evaluated_model
        was_training = model.training
        model.eval()
        with torch.autocast(self.device.type, enabled=False):
            found = validate(
                model,
                self.validation,
                self.padding_id,
                length=self.eval_length,
                stride=self.eval_stride,
                device=self.device,
            )
        model.train(was_training)
        return found
