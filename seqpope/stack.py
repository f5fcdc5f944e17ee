"""Seeds of one encoding trained side by side as one model: small models leave most of a GPU idle, one at a time.

The weights of M models of one shape lie along a first axis, their batches end to end, so that M small matrix
products are one large one. The forward pass is `Transformer`'s own: only its leaves are exchanged. Each model has
the initial weights, batches, gradient norm and best step that it would have alone; only dropout is drawn at once.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from seqpope.checkpoint import BEST, CheckpointInfo, save_checkpoint
from seqpope.config import TrainConfig
from seqpope.data.datamodule import Batch, Steps, TokenDataModule, leave_signals_to_the_trainer
from seqpope.data.shards import Store
from seqpope.errors import SeqpopeError
from seqpope.model.positions import PositionEncoding
from seqpope.model.transformer import Block, Transformer
from seqpope.nll import Validation, batch_nats, validate
from seqpope.processes import kill_workers_at_exit
from seqpope.progress import clock, speed
from seqpope.signals import SAVE_SECONDS, Interrupted, stop_on_signal, tell
from seqpope.training import begin_run, compiles_on, make_optimizer, precision_on, update_average

LOGGED = (
    "learning_rate",
    "seconds",
    "step",
    "train_nats_per_token",
    "validation_nats_per_token",
    "validation_accuracy",
    "validation_seconds",
)


def _apart(x: Tensor, models: int) -> Tensor:
    """(M B, L, C) as (M, B L, C).

    By way of one row of all tokens: from one shape to the other directly torch 2.11's compiler does not see that
    nothing moves, and copies (2.13's does).
    """
    return x.reshape(-1, x.shape[-1]).view(models, -1, x.shape[-1])


def _together(y: Tensor, x: Tensor) -> Tensor:
    """(M, B L, C') as (M B, L, C'), where x is (M B, L, C)."""
    return y.reshape(-1, y.shape[-1]).view(*x.shape[:-1], y.shape[-1])


class StackedLinear(nn.Module):
    """M linear maps: (M B, L, C) to (M B, L, C'), `weight` (M, C, C').

    That is nn.Linear's weight turned: as the product's own operand its gradient lies in memory as it does, where
    that of a transposed view would be copied into the parameter's order at every step.
    """

    def __init__(self, models: int, out: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(models, width, out))

    def forward(self, x: Tensor) -> Tensor:
        return _together(torch.bmm(_apart(x, len(self.weight)), self.weight), x)


class StackedNorm(nn.Module):
    """M RMSNorms, `weight` (M, C)."""

    def __init__(self, models: int, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.weight = nn.Parameter(torch.empty(models, *norm.normalized_shape))

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x.reshape(-1, x.shape[-1]), self.shape, eps=self.eps)
        return _together(_apart(y, len(self.weight)) * self.weight[:, None], x)


class StackedEmbedding(nn.Module):
    """M embeddings, `weight` (M, V, C)."""

    def __init__(self, models: int, size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(models, size, width))

    def forward(self, ids: Tensor) -> Tensor:
        models, size, width = self.weight.shape
        first = torch.arange(models, device=ids.device)[:, None] * size
        return F.embedding(ids.view(models, -1) + first, self.weight.view(-1, width)).view(*ids.shape, width)


def make_room(position: PositionEncoding, models: int) -> None:
    """Give an encoding a first axis of models in all that it has learned.

    PoPE's attention takes a delta for each so many sequences; no other encoding learns anything.
    """
    learned = dict(position.named_parameters())
    for name, values in position.state_dict().items():
        wide = values.new_empty(models, *values.shape)
        setattr(position, name, nn.Parameter(wide) if name in learned else wide)


class StackedTransformer(Transformer):
    """M transformers of one shape as one, which reads (M B, L) ids, model by model."""

    def __init__(self, models: Sequence[Transformer]) -> None:
        nn.Module.__init__(self)
        first = models[0]
        self.models = len(models)
        self.config, self.position, self.vocabulary_size = first.config, first.position, first.vocabulary_size
        self.embedding: Any = StackedEmbedding(len(models), first.vocabulary_size, first.config.width)
        self.dropout = nn.Dropout(first.config.dropout)
        self.blocks = copy.deepcopy(first.blocks)
        self.norm: Any = StackedNorm(len(models), first.norm)
        for block in self.blocks:
            assert isinstance(block, Block)
            self._exchange(block)
        linear = {name for name, child in self.named_modules() if isinstance(child, StackedLinear)}
        self.turned = {f"{name}.weight" for name in linear}
        parts = [model.state_dict() for model in models]
        with torch.no_grad():
            for name, values in self.state_dict().items():
                stacked = torch.stack([part[name] for part in parts])
                values.copy_(stacked.transpose(1, 2) if name in self.turned else stacked)

    def _exchange(self, module: nn.Module) -> None:
        for name, child in module.named_children():
            leaf: nn.Module | None = None
            if isinstance(child, nn.Linear):
                leaf = StackedLinear(self.models, child.out_features, child.in_features)
            elif isinstance(child, nn.RMSNorm):
                leaf = StackedNorm(self.models, child)
            elif isinstance(child, PositionEncoding):
                make_room(child, self.models)
            else:
                self._exchange(child)
            if leaf is not None:
                setattr(module, name, leaf)

    def logits(self, states: Tensor) -> Tensor:
        y = _apart(self.norm(states), self.models)
        return _together(torch.bmm(y, self.embedding.weight.transpose(1, 2)), states)

    def clip_gradients(self, largest: float) -> None:
        """Scale each model's gradient down to that norm, all its parameters together."""
        gradients = [p.grad.view(self.models, -1) for p in self.parameters() if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gradients]).norm(dim=0)
        scale = (largest / (norms + 1e-6)).clamp(max=1.0)[:, None]  # as torch's clip_grad_norm_
        for gradient in gradients:
            gradient.mul_(scale)

    @torch.no_grad()
    def take_out(self, number: int, into: Transformer) -> Transformer:
        """Copy one model's weights into a transformer of its own."""
        targets = into.state_dict()
        for name, values in self.state_dict().items():
            targets[name].copy_(values[number].T if name in self.turned else values[number])
        return into


class StackedBatches(Dataset[Batch]):
    """The batches that each seed would have alone, end to end, all as long as the longest."""

    def __init__(self, parts: Sequence[Dataset[Batch]], padding_id: int) -> None:
        self.parts, self.padding_id = parts, padding_id

    def __getitem__(self, step: int) -> Batch:
        batches = [part[step] for part in self.parts]
        longest = max(batch.ids.shape[1] for batch in batches)

        def joined(each: Sequence[Tensor], value: int) -> Tensor:
            return torch.cat([F.pad(x, (0, longest - x.shape[1]), value=value) for x in each])

        ids, targets, scored = zip(*batches, strict=True)
        return Batch(joined(ids, self.padding_id), joined(targets, self.padding_id), joined(scored, 0))


class StackTraining:
    """One training of a stack: what is saved, logged and kept of each seed's run.

    Attributes:
        stop: asked to stop after this step (`signals.listen` sets it).
    """

    def __init__(self, config: TrainConfig, store: Store, folder: Path, device: str) -> None:
        self.config, self.store, self.folder, self.device = config, store, folder, device
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.stop = False
        manifest = store.manifest

        def made(seed: int) -> Transformer:
            torch.manual_seed(seed)
            return Transformer(manifest.vocabulary_size, config.position, config.model)

        self.model = StackedTransformer([made(seed) for seed in self.seeds]).to(device)
        self.alone = made(config.seed).to(device).eval()  # each model in turn, to validate and to save
        decay = config.optimizer.average_decay
        self.average = copy.deepcopy(self.model).requires_grad_(False) if decay else None
        self.optimizer = make_optimizer(self.model, config.optimizer, models=True)
        for group in self.optimizer.param_groups:
            group["initial"] = group["lr"]
        self.step, self.seconds = 0, 0.0
        self.best, self.best_step = [math.inf] * len(self.seeds), [-1] * len(self.seeds)
        self.validation = store.split("validation")
        self.precision, self.compiled = precision_on(device, config), compiles_on(device, config)
        self.one_shape = self.one_target = False  # of all batches: known with them
        self.losses: Callable[[Tensor, Tensor, Tensor], Tensor] = self.mean_nats
        self.clip_gradients = self.model.clip_gradients

    @property
    def state_file(self) -> Path:
        """Where the state for resuming lies: beside the runs, since it is that of them all."""
        return self.folder / f"stack-{self.config.position}.ckpt"

    def run(self, seed: int) -> Path:
        """Folder of a seed's run."""
        return self.folder / f"{self.config.position}-seed{seed}"

    def load(self) -> None:
        """Take up the saved state, if there is one.

        Raises:
            SeqpopeError: it cannot be read, or is of other seeds or of another model.
        """
        if not self.state_file.is_file():
            return
        try:
            state = torch.load(self.state_file, map_location=self.device, weights_only=True, mmap=True)
            seeds = state["seeds"]
        except Exception as error:
            raise SeqpopeError(
                f"{self.state_file} cannot be read ({error}): delete it to train these runs from the start"
            ) from error
        if seeds != list(self.seeds):
            raise SeqpopeError(
                f"{self.state_file} is of the seeds {seeds}, these are {list(self.seeds)}: choose "
                "another --name, or the same --seed and --seeds"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.step, self.seconds = state["step"], state["seconds"]
            self.best, self.best_step = state["best"], state["best_step"]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise SeqpopeError(
                f"{self.state_file} is not of this model and optimiser ({str(error).splitlines()[0]}): give the "
                "settings that it was begun with, or, if an earlier version wrote it, delete it to train these "
                "runs from the start"
            ) from error

    def check_best(self) -> None:
        """Refuse to go on to tests where a model has no weights to be tested.

        Raises:
            SeqpopeError: a model never had a finite validation.
        """
        lost = [seed for seed, best in zip(self.seeds, self.best, strict=True) if math.isinf(best)]
        if lost:
            raise SeqpopeError(
                f"no validation of {self.config.position} was finite under the seeds {lost}: lower "
                "optimizer.learning_rate or lengthen optimizer.warmup_steps"
            )

    def save(self) -> None:
        """Write the state for resuming."""
        state = {
            "seeds": list(self.seeds),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "best_step": self.best_step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else {},
        }
        fresh = self.state_file.with_name(f".{self.state_file.name}.part")
        try:
            torch.save(state, fresh)
            fresh.replace(self.state_file)
        finally:
            fresh.unlink(missing_ok=True)

    def batches(self) -> DataLoader[Batch]:
        """The batches of the steps that are left."""
        parts = [
            TokenDataModule(
                self.store,
                self.config.data,
                seed=seed,
                steps=self.config.optimizer.steps,
                length_multiple=128 if self.compiled else 1,
                pad_whole=self.compiled,
            ).batches
            for seed in self.seeds
        ]
        workers = min(4, len(parts)) if self.device == "cuda" else 0
        if workers:
            kill_workers_at_exit()
        self.one_shape = all(part.whole for part in parts)
        self.one_target = all(part.one_target for part in parts)
        return DataLoader(
            StackedBatches(parts, self.store.manifest.padding_id),
            batch_size=None,
            sampler=Steps(self.step, self.config.optimizer.steps),
            num_workers=workers,
            prefetch_factor=8 if workers else None,
            pin_memory=self.device == "cuda",
            worker_init_fn=leave_signals_to_the_trainer if workers else None,
        )

    def mean_nats(self, ids: Tensor, targets: Tensor, scored: Tensor) -> Tensor:
        """Mean nats over the scored targets of each model's batch, (M,)."""
        batch = (ids, targets, scored)
        return batch_nats(self.model, batch, self.model.models, one_target=self.one_target).view(-1)

    def compile(self) -> None:
        """Compile what a step computes, if this run is; as CUDA graphs where all batches have one shape."""
        if not self.compiled:
            return
        torch._dynamo.reset()  # as for a run trained alone
        # One kernel for the norms of all the gradients where there would be three for each of them.
        self.clip_gradients = torch.compile(self.model.clip_gradients)
        if self.device == "cuda" and self.one_shape:
            self.losses = torch.compile(self.mean_nats, mode="reduce-overhead", dynamic=False)
        else:
            self.losses = torch.compile(self.mean_nats)

    def read(self, batch: Batch) -> Tensor:
        """Mean nats of each model's part of a batch, (M,), for `update`."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # dropout, a function of the step
        ids, targets, scored = (x.to(self.device, non_blocking=True) for x in batch)
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision != "32-true"):
            return self.losses(ids, targets, scored)

    def update(self, losses: Tensor) -> None:
        """One optimiser step; the models' gradients have nothing to do with each other."""
        settings = self.config.optimizer
        for group in self.optimizer.param_groups:  # delta's may be another
            group["lr"] = settings.rate_at(self.step) * group["initial"] / settings.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        if settings.gradient_clip:
            self.clip_gradients(settings.gradient_clip)
        self.optimizer.step()
        if self.average is not None:
            update_average(self.average, self.model, self.step, settings.average_decay)
        self.step += 1

    def validate(self, infos: Sequence[CheckpointInfo]) -> list[Validation]:
        """Each model on the validation split; the weights of those that were never better are saved."""
        found = []
        for number, (seed, info) in enumerate(zip(self.seeds, infos, strict=True)):
            model = (self.model if self.average is None else self.average).take_out(number, self.alone)
            validation = validate(
                model,
                self.validation,
                self.store.manifest.padding_id,
                length=self.config.eval_length,
                stride=self.config.eval_stride,
                device=self.device,
                batch_tokens=65536 if self.device == "cuda" else 16384,
            )
            found.append(validation)
            value = validation.nats
            if value < self.best[number]:
                self.best[number], self.best_step[number] = value, self.step
                info.trained |= {
                    "step": self.step,
                    "validation_nats_per_token": value,
                    "seconds": round(self.seconds / len(self.seeds), 1),
                    "steps": self.config.optimizer.steps,
                    "side_by_side": len(self.seeds),
                }
                save_checkpoint(self.run(seed) / BEST, model, info)
        return found


def train_stack(
    config: TrainConfig, store: Store, folder: Path, device: str, say: Callable[[str], None] = print
) -> list[Path]:
    """Train config.seeds seeds of config.position side by side; each gets a run's folder in `folder`.

    Returns:
        The runs' folders, with their best weights.

    Raises:
        SeqpopeError: a model never had a finite validation, or a saved state cannot be taken up.
        Interrupted: Ctrl-C or TERM; the state is saved.
    """
    training = StackTraining(config, store, folder, device)
    training.load()
    steps = config.optimizer.steps
    one = len(training.seeds) == 1
    title = f"{config.position} seed" + (f" {config.seed}" if one else f"s {config.seed} to {training.seeds[-1]}")
    infos = [
        begin_run(training.run(seed), replace(config, baseline="none", seed=seed, seeds=1), store.manifest, device)
        for seed in training.seeds
    ]
    if training.step >= steps:
        training.check_best()
        return [training.run(seed) for seed in training.seeds]
    parameters = sum(p.numel() for p in training.alone.parameters())
    tell(
        f"{title}  {len(infos)} x {parameters / 1e6:.2f}M parameters, {steps} steps of {len(infos)} x "
        f"{config.data.batch_size} x {config.data.length} tokens, {training.precision} on {device}, "
        + (f"from step {training.step}" if training.step else "from scratch")
    )
    batches = training.batches()
    training.compile()
    training.model.train()
    first, began, shown, saved = training.step, time.perf_counter(), 0.0, time.perf_counter()
    with stop_on_signal(training), _logs(training) as log:
        for batch in batches:
            tick = time.perf_counter()
            found = training.read(batch)
            training.update(found)
            validate_now = training.step % config.eval_every == 0 or training.step == steps
            log_now = validate_now or training.step % max(1, min(50, steps // 50)) == 0
            values = found.tolist() if log_now else []  # waits for the GPU
            training.seconds += time.perf_counter() - tick
            if log_now:
                log(training.step, values)
            if validate_now:
                found_now = training.validate(infos)
                log(training.step, (), found_now)
                nats = [each.nats for each in found_now]
                told = f"validation {_span(nats)}"
            elif log_now:
                told = f"train {_span(values)}"
            now = time.perf_counter()
            if validate_now or (log_now and now - shown > 10):
                shown, rate = now, (training.step - first) / (now - began)
                left = clock((steps - training.step) / rate)
                tell(f"{title}  step {training.step}/{steps}  {told}  {speed(rate, 'step')}  {left} left")
            if training.stop or training.step == steps or now - saved > SAVE_SECONDS:
                training.save()
                saved = time.perf_counter()
            if training.stop:
                raise Interrupted(f"stopped at step {training.step}; go on with `seqpope train --resume {folder}`")
    training.check_best()
    return [training.run(seed) for seed in training.seeds]


def _span(values: Sequence[float]) -> str:
    """From the least to the greatest, or the one there is."""
    return f"{values[0]:.4f}" if len(values) == 1 else f"{min(values):.4f} to {max(values):.4f}"


@contextlib.contextmanager
def _logs(training: StackTraining) -> Iterator[Callable[..., None]]:
    """Log rows of each run to a CSV file of its own, as a run trained alone has it, a new one at each start."""
    with contextlib.ExitStack() as held:
        files = []
        for seed in training.seeds:
            logs = training.run(seed) / "logs"
            logs.mkdir(exist_ok=True)
            there = [int(path.name[8:]) for path in logs.glob("version_*") if path.name[8:].isdigit()]
            place = logs / f"version_{max(there, default=-1) + 1}"
            place.mkdir()
            files.append(held.enter_context(open(place / "metrics.csv", "w", newline="")))
            csv.DictWriter(files[-1], LOGGED).writeheader()

        def log(step: int, train: Sequence[float], validated: Sequence[Validation] = ()) -> None:
            rate, seconds = training.config.optimizer.rate_at(step - 1), round(training.seconds, 3)
            for number, file in enumerate(files):
                row: dict[str, float] = {"step": step}
                if train:
                    row |= {"learning_rate": rate, "seconds": seconds, "train_nats_per_token": train[number]}
                else:
                    row |= validated[number].logged()
                csv.DictWriter(file, LOGGED).writerow(row)
                file.flush()

        yield log
