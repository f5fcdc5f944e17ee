from __future__ import annotations

import csv
import json
import os
import signal
import time

import pytest
import torch
import yaml
from stores import make_store

import seqpope.training
from seqpope.checkpoint import BEST, read_info
from seqpope.config import DataConfig, OptimizerConfig, TrainConfig
from seqpope.data.shards import StoreError
from seqpope.errors import SeqpopeError
from seqpope.evaluate import evaluate_run
from seqpope.experiment import Interrupted, RunKeeper, choose_device, train, train_run
from seqpope.model.config import ModelConfig
from seqpope.nll import Validation
from seqpope.progress import clock
from seqpope.training import SequenceModule

pytestmark = pytest.mark.usefixtures("unrendered")

STEPS = 12


def make_config(folder, position="pope", steps=STEPS, optimizer=None, **changes):
    """Everything on that a resumed run could lose: dropout, transposition, averaging, warm-up, delta's group."""
    values = {
        "dataset": "tiny",
        "position": position,
        "baseline": "rope",
        "device": "cpu",
        "model": ModelConfig(
            width=16, layers=2, heads=2, dropout=0.2, attention_dropout=0.1, delta_init="uniform"
        ),
        "data": DataConfig(length=16, batch_size=2, transpose=(-2, 3)),
        "optimizer": OptimizerConfig(
            **{
                "steps": steps,
                "learning_rate": 1e-2,
                "min_learning_rate": 1e-3,
                "warmup_steps": 5,
                "average_decay": 0.8,
                "delta_rate": 2.0,
                "delta_decay": 0.1,
                **(optimizer or {}),
            }
        ),
        "eval_every": 4,
        "eval_length": 16,
        "eval_stride": 8,
        "data_folder": folder / "data",
        "out": folder / "runs",
        "name": "x",
    }
    return TrainConfig(**{**values, **changes})


def at_step(monkeypatch, number, action):
    """Do something at the end of step `number`, as a user or the world might."""
    original = RunKeeper.on_train_batch_end

    def hook(self, trainer, *arguments):
        original(self, trainer, *arguments)
        if trainer.global_step == number:
            action(self)

    monkeypatch.setattr(RunKeeper, "on_train_batch_end", hook)


def stop(keeper):
    keeper.stop = True


def crash(keeper):
    raise RuntimeError("the power is gone")


def curve(run):
    """All that was logged but the time, by step and column, as text; what was logged twice must be the same."""
    rows = {}
    for file in sorted(run.glob("logs/version_*/metrics.csv")):
        for row in csv.DictReader(file.open()):
            for column, value in row.items():
                if column not in ("step", "seconds", "validation_seconds") and value:
                    assert rows.setdefault((int(row["step"]), column), value) == value
    return rows


def states(run):
    """Weights, averages, optimiser and schedule of a run's last state, and its best weights."""
    from safetensors.torch import load_file

    last = torch.load(run / "last.ckpt", weights_only=True)
    flat = {f"state.{name}": tensor for name, tensor in last["state_dict"].items()}

    def walk(prefix, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        elif isinstance(value, list | tuple):
            for index, inner in enumerate(value):
                walk(f"{prefix}.{index}", inner)
        else:
            flat[prefix] = value

    walk("optimizer", last["optimizer_states"])
    walk("schedule", last["lr_schedulers"])
    flat |= {f"best.{name}": tensor for name, tensor in load_file(str(run / BEST)).items()}
    keeper = last["callbacks"]["RunKeeper"]
    flat |= {"step": last["global_step"], "best": keeper["best"], "best_step": keeper["best_step"]}
    return flat


def assert_same_states(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


@pytest.fixture(scope="module", params=["adamw", "muon"])
def whole(request, tmp_path_factory):
    """A run that nothing interrupts: its configuration, curve and last states."""
    folder = tmp_path_factory.mktemp("whole")
    make_store(folder)
    config = make_config(folder, optimizer={"name": request.param})
    train_run(config, folder / "run", "whole")
    return config, curve(folder / "run"), states(folder / "run")


class TestExactResume:
    # Early, late (past half), on a validation, right after one, before the first saved state, one step before the
    # end; twice; and once more than twice.
    @pytest.mark.parametrize("stops", [[3], [8], [9], [11], [1], [2, 7], [5, 6, 10]], ids=str)
    def test_stopped_and_resumed(self, tmp_path, monkeypatch, whole, stops):
        config, expected_curve, expected_states = whole
        run = tmp_path / "run"
        for number in stops:
            with monkeypatch.context() as patch:
                at_step(patch, number, stop)
                with pytest.raises(Interrupted, match=f"stopped at step {number}; go on with .*--resume"):
                    train_run(config, run, "part")
            assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == number
        train_run(config, run, "rest")
        assert curve(run) == expected_curve
        assert_same_states(states(run), expected_states)

    @pytest.mark.parametrize("number", [2, 6, 10])
    def test_crashed_and_resumed(self, tmp_path, monkeypatch, whole, number):
        """Nothing was saved at the crash: training goes on from the last validation, or from the start."""
        config, expected_curve, expected_states = whole
        with monkeypatch.context() as patch:
            at_step(patch, number, crash)
            with pytest.raises(RuntimeError, match="the power is gone"):
                train_run(config, tmp_path / "run", "part")
        train_run(config, tmp_path / "run", "rest")
        assert curve(tmp_path / "run") == expected_curve
        assert_same_states(states(tmp_path / "run"), expected_states)

    def test_saved_between_validations_too(self, tmp_path, monkeypatch, whole):
        config, expected_curve, expected_states = whole
        run = tmp_path / "run"
        with monkeypatch.context() as patch:
            patch.setattr("seqpope.experiment.SAVE_SECONDS", 0.0)
            at_step(patch, 3, crash)
            with pytest.raises(RuntimeError, match="the power is gone"):
                train_run(config, run, "part")
        assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 3
        train_run(config, run, "rest")
        assert curve(run) == expected_curve
        assert_same_states(states(run), expected_states)

    def test_the_curve_is_whole(self, whole):
        _, rows, _ = whole
        assert {step for step, column in rows if column == "train_nats_per_token"} == set(range(1, STEPS + 1))
        assert {step for step, column in rows if column == "validation_nats_per_token"} == {4, 8, 12}

    def test_a_finished_run_is_not_trained_on(self, tmp_path, whole):
        config = whole[0]
        train_run(config, tmp_path / "run", "whole")
        before = (tmp_path / "run" / "last.ckpt").read_bytes()
        assert train_run(config, tmp_path / "run", "again") == tmp_path / "run" / BEST
        assert (tmp_path / "run" / "last.ckpt").read_bytes() == before
        assert len(list((tmp_path / "run" / "logs").iterdir())) == 1


def test_another_seed_is_another_run(tmp_path):
    """The comparison above can fail: another seed changes curve and weights."""
    make_store(tmp_path)
    for seed in (0, 1):
        train_run(make_config(tmp_path, steps=4, seed=seed), tmp_path / str(seed), "t")
    assert curve(tmp_path / "0") != curve(tmp_path / "1")
    with pytest.raises(AssertionError):
        assert_same_states(states(tmp_path / "0"), states(tmp_path / "1"))


class TestBestWeights:
    """Validation that goes up again, as overfitting makes it: 3.0, 1.0, 2.0 at steps 4, 8, 12."""

    @pytest.fixture
    def config(self, tmp_path, monkeypatch):
        make_store(tmp_path)
        values = iter([3.0, 1.0, 2.0])
        monkeypatch.setattr(SequenceModule, "validated", lambda module: Validation(next(values), 0.5))
        return make_config(tmp_path)

    @pytest.mark.parametrize("stop_at", [None, 7, 9])
    def test_are_kept_while_training_goes_on(self, tmp_path, monkeypatch, config, stop_at):
        run = tmp_path / "run"
        if stop_at:  # a resumed run knows what was best before
            with monkeypatch.context() as patch:
                at_step(patch, stop_at, stop)
                with pytest.raises(Interrupted):
                    train_run(config, run, "t")
        kept = []
        at_step(monkeypatch, 8, lambda keeper: kept.append((run / BEST).read_bytes()))
        train_run(config, run, "t")
        info = read_info(run / BEST)
        assert (info.trained["step"], info.trained["validation_nats_per_token"]) == (8, 1.0)
        assert kept in ([], [(run / BEST).read_bytes()])
        last = states(run)
        assert (last["best_step"], last["step"]) == (8, STEPS)
        weights = "average.embedding.weight"
        assert not torch.equal(last["best.embedding.weight"], last[f"state.{weights}"])


def test_twins_of_a_seed_start_from_the_same_weights(tmp_path):
    make_store(tmp_path)
    optimizer = {"learning_rate": 1e-30, "min_learning_rate": 0.0}  # stays at its start
    starts = {}
    for position, seed in (("pope", 0), ("rope", 0), ("pope", 1)):
        run = tmp_path / f"{position}{seed}"
        torch.rand(seed + len(position))  # whatever was drawn before
        train_run(make_config(tmp_path, position, steps=1, optimizer=optimizer, seed=seed), run, "t")
        starts[position, seed] = states(run)
    shared = [name for name in starts["rope", 0] if name.startswith("state.")]
    assert shared
    for name in shared:
        assert torch.equal(starts["pope", 0][name], starts["rope", 0][name]), name
    embedding = "state.model.embedding.weight"
    assert not torch.equal(starts["pope", 0][embedding], starts["pope", 1][embedding])


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_first_saves_and_handlers_come_back(self, tmp_path, monkeypatch, capsys, number):
        make_store(tmp_path)
        before = signal.getsignal(number)
        at_step(monkeypatch, 3, lambda keeper: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match="stopped at step 3"):
            train_run(make_config(tmp_path), tmp_path / "run", "t")
        assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3
        assert signal.getsignal(number) is before
        assert "once more to stop at once" in capsys.readouterr().err

    def test_the_same_one_twice_counts_once(self, tmp_path, monkeypatch):
        """As `timeout` sends it: to the process, and to the group it is in."""
        make_store(tmp_path)

        def twice(keeper):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        at_step(monkeypatch, 3, twice)
        with pytest.raises(Interrupted, match="stopped at step 3"):
            train_run(make_config(tmp_path), tmp_path / "run", "t")
        assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3

    def test_nobody_reads_what_is_said(self, tmp_path, monkeypatch):
        """A pipe that broke must not cost the state that the signal asks to save."""
        make_store(tmp_path)

        def broken(*words, **options):
            raise BrokenPipeError

        def stop_unheard(keeper):
            monkeypatch.setattr("seqpope.experiment.print", broken, raising=False)
            os.kill(os.getpid(), signal.SIGINT)

        at_step(monkeypatch, 5, stop_unheard)
        with pytest.raises(Interrupted, match="stopped at step 5"):
            train_run(make_config(tmp_path), tmp_path / "run", "t")
        assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 5

    def test_a_second_stops_at_once(self, tmp_path, monkeypatch):
        make_store(tmp_path)
        monkeypatch.setattr("seqpope.signals.SAME_SIGNAL_SECONDS", 0.0)
        before = signal.getsignal(signal.SIGINT)

        def twice(keeper):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        at_step(monkeypatch, 3, twice)
        with pytest.raises(KeyboardInterrupt):
            train_run(make_config(tmp_path), tmp_path / "run", "t")
        assert not (tmp_path / "run" / "last.ckpt").exists()
        assert signal.getsignal(signal.SIGINT) is before

    def test_of_an_orphan_the_second_is_not_another_request(self, tmp_path, monkeypatch):
        """Asked to stop, then its parent is killed: it goes on saving."""
        make_store(tmp_path)
        monkeypatch.setattr("seqpope.signals.SAME_SIGNAL_SECONDS", 0.0)

        def twice(keeper):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            monkeypatch.setattr("seqpope.signals.orphaned", True)
            os.kill(os.getpid(), signal.SIGTERM)

        at_step(monkeypatch, 3, twice)
        with pytest.raises(Interrupted, match="stopped at step 3"):
            train_run(make_config(tmp_path), tmp_path / "run", "t")
        assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3

    def test_in_the_last_step_all_is_saved_and_nothing_more_is_begun(self, tmp_path, monkeypatch):
        make_store(tmp_path)
        at_step(monkeypatch, STEPS, stop)
        with pytest.raises(Interrupted, match="go on with `seqpope train --resume"):
            train_run(make_config(tmp_path), tmp_path / "run", "t")
        assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == STEPS
        assert train_run(make_config(tmp_path), tmp_path / "run", "t").is_file()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished experiment: twins, two seeds, some tokens not scored."""
    folder = tmp_path_factory.mktemp("finished")
    make_store(folder, unscored=5)
    config = make_config(folder, seeds=2)
    said = []
    return train(config, say=said.append), config, said


RUNS = ["pope-seed0", "pope-seed1", "rope-seed0", "rope-seed1"]


class TestFinishedExperiment:
    def test_folder(self, finished):
        folder, config, _ = finished
        assert folder == config.out / "x"
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == RUNS
        assert (folder / "report.md").is_file()
        for name in RUNS:
            present = {path.name for path in (folder / name).iterdir()}
            assert present >= {"config.yaml", "versions.json", "logs", "last.ckpt", BEST, "result.json"}
            assert not any(name.startswith(".") for name in present)  # nothing half-written

    @pytest.mark.parametrize("name", RUNS)
    def test_test_is_read_once(self, finished, name):
        reads = (finished[0] / name / "test_reads.jsonl").read_text().splitlines()
        assert len(reads) == 1
        assert json.loads(reads[0]).keys() >= {"date", "commit", "length", "stride"}

    @pytest.mark.parametrize("name", RUNS)
    def test_best_weights_are_those_of_the_lowest_validation(self, finished, name):
        run = finished[0] / name
        validations = {
            step: float(value)
            for (step, column), value in curve(run).items()
            if column == "validation_nats_per_token"
        }
        assert len(validations) == 3
        info = read_info(run / BEST)
        assert info.trained["step"] == min(validations, key=validations.get)
        assert info.trained["validation_nats_per_token"] == pytest.approx(min(validations.values()), abs=1e-6)
        assert info.trained["seed"] == int(name[-1])
        assert info.position == name.split("-")[0]

    @pytest.mark.parametrize("name", RUNS)
    def test_logged_validation_is_what_evaluation_finds(self, finished, name):
        run = finished[0] / name
        result = evaluate_run(run, split="validation", device="cpu")
        assert result["nats_per_token"] == pytest.approx(
            read_info(run / BEST).trained["validation_nats_per_token"], rel=1e-6
        )
        assert result["tokens_scored"] < 56  # 30 + 9 + 17 tokens, every fifth of them not scored
        assert len((run / "test_reads.jsonl").read_text().splitlines()) == 1  # validation is no read of test

    def test_result_says_how_it_came_about(self, finished):
        result = json.loads((finished[0] / "pope-seed1" / "result.json").read_text())
        assert result["split"] == "test"
        assert result["position"] == "pope"
        assert result["trained"]["seed"] == 1
        assert result["config"]["seed"] == 1
        assert result["protocol"]["window"] == 16
        assert result["protocol"]["stride"] == 8
        assert result["tokens_scored"] == 39 - 5 - 2

    def test_twins_start_alike_and_each_seed_is_its_own(self, finished):
        configs = {name: yaml.safe_load((finished[0] / name / "config.yaml").read_text()) for name in RUNS}
        for name, config in configs.items():
            assert config["position"] == name.split("-")[0]
            assert config["seed"] == int(name[-1])
            assert {**config, "position": 0, "seed": 0} == {**configs[RUNS[0]], "position": 0, "seed": 0}

    def test_written_configuration_reads_back(self, finished):
        folder, config, _ = finished
        raw = yaml.safe_load((folder / "config.yaml").read_text())
        raw["model"] = ModelConfig(**raw["model"])
        raw["data"] = DataConfig(**raw["data"])
        raw["optimizer"] = OptimizerConfig(**raw["optimizer"])
        assert TrainConfig(**raw) == config

    def test_the_same_name_is_refused(self, finished):
        folder, config, _ = finished
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(SeqpopeError, match=r"exists already: go on with it by --resume .*, or choose another"):
            train(config)
        assert sorted(path.name for path in folder.iterdir()) == before


def test_finished_runs_are_kept_and_the_rest_is_made(tmp_path, monkeypatch):
    make_store(tmp_path)
    config = make_config(tmp_path, seeds=2)
    calls = []

    def stop_second(keeper):
        calls.append(keeper.title)
        keeper.stop = len(calls) == 2

    with monkeypatch.context() as patch:
        at_step(patch, 6, stop_second)
        with pytest.raises(Interrupted):
            train(config, say=lambda _: None)
    folder = config.out / "x"
    kept = (folder / "pope-seed0" / "result.json").read_bytes()
    weights = (folder / "pope-seed0" / BEST).read_bytes()
    assert not (folder / "rope-seed0" / "result.json").exists()
    said = []
    assert train(config, resume=folder, say=said.append) == folder
    assert "finished before, kept" in said[0]
    assert (folder / "pope-seed0" / "result.json").read_bytes() == kept
    assert (folder / "pope-seed0" / BEST).read_bytes() == weights
    for name in RUNS:
        assert len((folder / name / "test_reads.jsonl").read_text().splitlines()) == 1
    # Once more finds nothing to do, and reads no test split.
    train(config, resume=folder, say=lambda _: None)
    for name in RUNS:
        assert len((folder / name / "test_reads.jsonl").read_text().splitlines()) == 1


def test_baseline_none_trains_no_twin(tmp_path):
    make_store(tmp_path)
    folder = train(make_config(tmp_path, steps=2, baseline="none"), say=lambda _: None)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["pope-seed0"]


def test_the_data_folder_may_be_the_store_itself(tmp_path):
    """As `prepare --out` makes it, in a folder of any name."""
    make_store(tmp_path)
    (tmp_path / "data" / "tiny").rename(tmp_path / "other-split")
    config = make_config(tmp_path, steps=2, baseline="none", data_folder=tmp_path / "other-split")
    folder = train(config, say=lambda _: None)
    assert (folder / "pope-seed0" / "result.json").is_file()


class TestErrors:
    def test_no_data(self, tmp_path):
        with pytest.raises(StoreError, match=r"run `seqpope prepare tiny --data-folder .*` first"):
            train(make_config(tmp_path))
        assert not (tmp_path / "runs").exists()

    def test_unknown_encoding(self, tmp_path):
        make_store(tmp_path)
        with pytest.raises(SeqpopeError, match="unknown position encoding 'xpos'"):
            train(make_config(tmp_path, position="xpos"))
        assert not (tmp_path / "runs").exists()

    def test_damaged_last_state(self, tmp_path, monkeypatch):
        make_store(tmp_path)
        with monkeypatch.context() as patch:
            at_step(patch, 5, stop)
            with pytest.raises(Interrupted):
                train_run(make_config(tmp_path), tmp_path / "run", "t")
        last = tmp_path / "run" / "last.ckpt"
        for content in (last.read_bytes()[:1000], b"", b"nonsense"):
            last.write_bytes(content)
            with pytest.raises(SeqpopeError, match=r"last\.ckpt cannot be read .*: delete it to train this run"):
                train_run(make_config(tmp_path), tmp_path / "run", "t")
        last.unlink()
        train_run(make_config(tmp_path), tmp_path / "run", "t")

    @pytest.mark.parametrize("number", [1, 6])
    def test_a_loss_that_is_no_number(self, tmp_path, monkeypatch, number):
        make_store(tmp_path)
        good, count = seqpope.training.batch_nats, iter(range(1, 100))
        monkeypatch.setattr(
            seqpope.training,
            "batch_nats",
            lambda *a, **k: good(*a, **k) * (float("nan") if next(count) >= number else 1),
        )
        run = tmp_path / "run"
        with pytest.raises(SeqpopeError, match=rf"loss is nan at step {number}: lower optimizer\.learning_rate"):
            train_run(make_config(tmp_path), run, "t")
        assert (run / BEST).is_file() == (number > 4)  # the best weights so far are kept

    def test_weights_that_are_no_numbers_are_never_saved(self, tmp_path, monkeypatch):
        """Long runs do not log every step; a validation between two logged steps must see it all the same."""
        make_store(tmp_path)
        good, count = seqpope.training.batch_nats, iter(range(1, 200))
        monkeypatch.setattr(
            seqpope.training,
            "batch_nats",
            lambda *a, **k: good(*a, **k) * (float("nan") if next(count) >= 7 else 1),
        )
        run = tmp_path / "run"
        config = make_config(tmp_path, steps=500, eval_every=4)  # logs every tenth step
        with pytest.raises(SeqpopeError, match="the loss is nan"):
            train_run(config, run, "t")
        last = torch.load(run / "last.ckpt", weights_only=True)
        assert last["global_step"] == 4
        assert all(bool(torch.isfinite(tensor).all()) for tensor in last["state_dict"].values())

    def test_a_gradient_that_is_no_number_is_seen_at_the_validation(self, tmp_path, monkeypatch):
        """The loss of a validated step can be good and the weights after it not."""
        make_store(tmp_path)
        good, count = seqpope.training.batch_nats, iter(range(1, 100))

        def loss(*arguments, **keywords):
            value = good(*arguments, **keywords)
            return value + (0 * value).sqrt() if next(count) == 8 else value  # adds 0, whose slope is 0 * inf

        monkeypatch.setattr(seqpope.training, "batch_nats", loss)
        with pytest.raises(SeqpopeError, match="the loss is nan at step 8"):
            train_run(make_config(tmp_path), tmp_path / "run", "t")
        last = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
        assert last["global_step"] == 4
        assert all(bool(torch.isfinite(tensor).all()) for tensor in last["state_dict"].values())

    def test_other_data_under_the_same_name(self, finished, tmp_path):
        """Weights are tested on the very data they were trained on, or not at all."""
        make_store(tmp_path)
        with pytest.raises(SeqpopeError, match=r"is not what .* was trained on"):
            evaluate_run(finished[0] / "pope-seed0", tmp_path / "data", device="cpu")

    def test_a_batch_too_large_for_the_memory(self, tmp_path, monkeypatch):
        make_store(tmp_path)

        def full(*arguments, **keywords):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(seqpope.training, "batch_nats", full)
        with pytest.raises(SeqpopeError, match=r"2 x 16 tokens does not fit the memory: lower data\.batch_size"):
            train_run(make_config(tmp_path), tmp_path / "run", "t")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_no_gpu(self):
        with pytest.raises(SeqpopeError, match="torch sees no GPU"):
            choose_device("cuda")
        assert choose_device("auto") == choose_device("cpu") == "cpu"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_clock(seconds, text):
    assert clock(seconds) == text
