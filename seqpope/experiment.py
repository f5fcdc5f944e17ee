"""The verb `train`: twins and seeds, each in a run folder of its own, resumable, tested once.

runs/NAME/                        an experiment
    config.yaml                   everything needed to run it again
    pope-seed0/  rope-seed0/      runs
        config.yaml  versions.json
        logs/                     CSV and TensorBoard, a version each time the run was started
        last.ckpt                 for resuming: weights, optimiser, schedule
        best.safetensors          weights at the best validation step
        result.json               NLL of the test split at that step: the run is finished
    report.md  report.json  loss.png  position.png
"""

from __future__ import annotations

import datetime
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml

from seqpope.checkpoint import BEST, CheckpointInfo, save_checkpoint
from seqpope.config import TrainConfig
from seqpope.data.datamodule import Batch, TokenDataModule
from seqpope.data.shards import find_store
from seqpope.domains.base import open_store
from seqpope.errors import SeqpopeError
from seqpope.files import held, write_text
from seqpope.model.positions import find_position
from seqpope.model.transformer import Transformer
from seqpope.progress import Progress, clock, speed
from seqpope.provenance import choose_device
from seqpope.signals import SAVE_SECONDS, Interrupted, listen, stop_on_signal, tell
from seqpope.training import SequenceModule, begin_run, compiles_on, precision_on


class RunKeeper(lightning.Callback):
    """Validates, keeps the best weights and the latest state, reports progress, and stops when asked to."""

    def __init__(self, folder: Path, info: CheckpointInfo, config: TrainConfig, title: str) -> None:
        self.folder, self.info, self.config, self.title = folder, info, config, title
        self.best, self.best_step = math.inf, -1
        self.seconds = 0.0  # training time over all starts of the run, validations left out
        self.stop = False
        self._tick = self._shown = self._saved = time.perf_counter()
        self._tokens = 0
        self._first_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._tick = self._shown = self._started = time.perf_counter()
        self._first_step = trainer.global_step
        listen(self)  # once more: Lightning has meanwhile set a TERM handler that ends without saving

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        # Between two steps, where the state is whole: never in the middle of an optimiser step.
        if self.stop:
            self._save_last(trainer)
            raise Interrupted(
                f"stopped at step {trainer.global_step}; go on with `seqpope train --resume {self.folder.parent}`"
            )

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, SequenceModule)
        step, total = trainer.global_step, self.config.optimizer.steps
        self._tokens += batch.ids.numel()
        validate_now = step % self.config.eval_every == 0 or step == total
        # Every validated step is logged too, so that a loss that is no number is seen before it is saved.
        log_now = validate_now or step % max(1, min(50, total // 50)) == 0
        loss = float(outputs["loss"]) if log_now else 0.0  # waits for the GPU
        now = time.perf_counter()
        self.seconds += now - self._tick
        if log_now:
            _refuse_infinite(loss, step)
            rate = self.config.optimizer.rate_at(step - 1)  # the schedule has moved on by now
            values = {"train_nats_per_token": loss, "learning_rate": rate, "seconds": self.seconds}
            self._log(trainer, step, values)
        if validate_now:
            self._validate(trainer, pl_module, step)
        elif log_now:  # where the loss is known to be a number
            if now - self._saved > SAVE_SECONDS:
                self._save_last(trainer)
            if now - self._shown > 10:
                self._show(step, f"train {loss:.4f}")
        self._tick = time.perf_counter()

    def _validate(self, trainer: lightning.Trainer, module: SequenceModule, step: int) -> None:
        found = module.validated()
        nats = found.nats
        _refuse_infinite(nats, step)  # a good loss can have a gradient that is not
        better = nats < self.best
        if better:
            self.best, self.best_step = nats, step
            self.info.trained |= {
                "step": step,
                "validation_nats_per_token": nats,
                "seconds": round(self.seconds, 1),
                "steps": self.config.optimizer.steps,
            }
            save_checkpoint(self.folder / BEST, module.evaluated_model, self.info)
        self._log(trainer, step, found.logged())
        self._save_last(trainer)
        self._show(step, f"validation {nats:.4f}" + (" (best)" if better else ""))

    def _save_last(self, trainer: lightning.Trainer) -> None:
        fresh = self.folder / ".last.ckpt.part"
        try:
            trainer.save_checkpoint(fresh)
            fresh.replace(self.folder / "last.ckpt")
            self._saved = time.perf_counter()
        finally:
            fresh.unlink(missing_ok=True)

    @staticmethod
    def _log(trainer: lightning.Trainer, step: int, values: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
            logger.save()

    def _show(self, step: int, what: str) -> None:
        self._shown = time.perf_counter()
        elapsed = max(1e-9, self._shown - self._started)  # validations included: it is what is left to wait
        done = step - self._first_step
        left = (self.config.optimizer.steps - step) * elapsed / max(1, done)
        rate = speed(max(1, done) / elapsed, "step")
        tell(
            f"{self.title}  step {step}/{self.config.optimizer.steps}  {what}  {rate}  "
            f"{self._tokens / elapsed / 1000:.1f}k tokens/s  {clock(left)} left",
        )


def _refuse_infinite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise SeqpopeError(
            f"the loss is {loss} at step {step}: lower optimizer.learning_rate or lengthen "
            "optimizer.warmup_steps; the best weights so far are kept"
        )


def train_run(config: TrainConfig, folder: Path, title: str) -> Path:
    """Train one model into `folder`, from its last state if it has one; return the best weights' path.

    Raises:
        SeqpopeError: the data or the configuration cannot be used, the batch does not fit the device's memory,
            or the loss is no longer finite.
        Interrupted: Ctrl-C or TERM; the state is saved.
    """
    store = open_store(find_store(config.data_folder, config.dataset))
    device = choose_device(config.device)
    precision, compiled = precision_on(device, config), compiles_on(device, config)
    manifest = store.manifest
    if compiled:
        torch._dynamo.reset()  # a process trains many models; each gets a fresh set of compiled code
    # Both twins start from the same draws: an encoding draws what is its own last.
    torch.manual_seed(config.seed)
    model = Transformer(manifest.vocabulary_size, config.position, config.model)
    last = folder / "last.ckpt"
    start_step = 0
    if last.is_file():
        try:
            start_step = int(torch.load(last, map_location="cpu", weights_only=True, mmap=True)["global_step"])
        except Exception as error:
            raise SeqpopeError(
                f"{last} cannot be read ({error}): delete it to train this run from the start"
            ) from error
    info = begin_run(folder, config, manifest, device)
    data = TokenDataModule(
        store,
        config.data,
        seed=config.seed,
        steps=config.optimizer.steps,
        start_step=start_step,
        length_multiple=128 if compiled else 1,
        pad_whole=compiled,
        workers=1 if device == "cuda" else 0,
    )
    module = SequenceModule(
        model,
        config.optimizer,
        seed=config.seed,
        padding_id=manifest.padding_id,
        validation=store.split("validation"),
        eval_length=config.eval_length,
        eval_stride=config.eval_stride,
        compile_model=compiled,
        one_shape=device == "cuda" and data.batches.whole,
        one_target=data.batches.one_target,
    )
    keeper = RunKeeper(folder, info, config, title)
    if start_step >= config.optimizer.steps:
        return folder / BEST
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    _quiet_lightning()
    csv = CSVLogger(folder, name="logs")
    trainer = lightning.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=config.optimizer.steps,
        max_epochs=-1,
        gradient_clip_val=config.optimizer.gradient_clip or None,
        logger=[csv, TensorBoardLogger(folder, name="logs", version=csv.version)],
        callbacks=[keeper],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    parameters = sum(p.numel() for p in model.parameters())
    begun = f"from step {start_step}" if start_step else "from scratch"
    print(
        f"{title}  {parameters / 1e6:.2f}M parameters, {config.optimizer.steps} steps of "
        f"{config.data.batch_size} x {config.data.length} tokens, {precision} on {device}, {begun}",
        flush=True,
    )
    try:
        with stop_on_signal(keeper):
            trainer.fit(module, data, ckpt_path=last if start_step else None, weights_only=True)
            if keeper.stop:  # asked for in the last step
                raise Interrupted(f"stopped; go on with `seqpope train --resume {folder.parent}`")
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(config) from error
    except RuntimeError as error:
        if "alloc" in str(error) and "memory" in str(error):
            raise _too_large(config) from error
        raise
    except SystemExit as error:  # what Lightning makes of a second Ctrl-C
        raise KeyboardInterrupt from error
    return folder / BEST


def _quiet_lightning() -> None:
    # What it tells (hardware seen, settings not set, products to try) is in our own lines or of no use.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    messages = (
        ".*log_every_n_steps.*",
        ".*does not have many workers.*",
        ".*isinstance.treespec.*",
        ".*your dataloader is not resumable.*",  # ours starts at the step that is due
    )
    for message in messages:
        warnings.filterwarnings("ignore", message=message)


def _too_large(config: TrainConfig) -> SeqpopeError:
    return SeqpopeError(
        f"a batch of {config.data.batch_size} x {config.data.length} tokens does not fit the memory: lower "
        "data.batch_size or data.length (--data.batch_size N), or the model's width or layers"
    )


def _train_side_by_side(config: TrainConfig, folder: Path) -> None:
    from seqpope.stack import train_stack

    runs = [folder / f"{config.position}-seed{config.seed + number}" for number in range(config.seeds)]
    if all((run / "result.json").is_file() for run in runs):
        return
    device = choose_device(config.device)
    try:
        train_stack(config, open_store(find_store(config.data_folder, config.dataset)), folder, device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(config) from error


def train_runs(
    config: TrainConfig, folder: Path, *, say: Callable[[str], None] = print, test: bool = True
) -> list[Path]:
    """Train the encoding and its baseline under every seed, and test each once unless `test` is false.

    Runs that are finished are kept as they are, those begun are resumed.

    Returns:
        The runs' folders in `folder`, seed by seed.
    """
    from seqpope.evaluate import evaluate_run

    positions = [config.position] + [p for p in (config.baseline,) if p not in ("none", config.position)]
    runs = []
    if config.side_by_side:
        for position in positions:
            _train_side_by_side(replace(config, position=position), folder)
    for seed in range(config.seed, config.seed + config.seeds):
        for position in positions:
            run = folder / f"{position}-seed{seed}"
            runs.append(run)
            if (run / "result.json").is_file():
                say(f"{position} seed {seed}  finished before, kept")
                continue
            title = f"{position} seed {seed}"
            if not config.side_by_side:
                train_run(replace(config, position=position, baseline="none", seed=seed, seeds=1), run, title)
            if not test:
                continue
            shown = Progress(f"{title}  test", "tokens")
            result = evaluate_run(run, config.data_folder, split="test", device=config.device, progress=shown)
            say(f"{title}  test {result['nats_per_token']:.4f} nats/token at step {result['trained']['step']}")
    return runs


def train(config: TrainConfig, *, resume: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """Train the encoding and its baseline under every seed, test each once, write the report.

    Runs that are finished are kept as they are, those begun are resumed.

    Args:
        resume: the folder of an experiment begun earlier, whose configuration is `config`.

    Returns:
        The experiment's folder.

    Raises:
        SeqpopeError: the folder is there already or another process is at work in it, the data is not there, or
            `train_runs` does.
        Interrupted: Ctrl-C or TERM; what was done is saved.
    """
    for position in {config.position, config.baseline} - {"none"}:
        find_position(position)
    folder = resume or config.out / (config.name or f"{config.dataset}-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    if resume is None and folder.exists() and any(folder.iterdir()):
        raise SeqpopeError(
            f"{folder} exists already: go on with it by --resume {folder}, or choose another --name"
        )
    open_store(find_store(config.data_folder, config.dataset))  # nothing is made if the data is not there
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, "choose another --name"):
        write_text(folder / "config.yaml", yaml.safe_dump(config.as_dict(), sort_keys=False))
        runs = train_runs(config, folder, say=say)
        from seqpope.report import write_report

        write_report(runs, folder)
        for state in folder.glob("stack-*.ckpt"):  # large, and of no more use
            state.unlink()
    say((folder / "report.md").read_text())
    return folder
