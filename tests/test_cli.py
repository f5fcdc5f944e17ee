from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import seqpope
from seqpope import cli
from seqpope.commands import sampling
from seqpope.domains.base import DATASETS, KINDS
from seqpope.errors import SeqpopeError


@pytest.fixture
def parsed(monkeypatch):
    """Calls of the verb train: (configuration, folder to resume)."""
    calls = []
    monkeypatch.setattr(cli, "train", lambda config, resume=None: calls.append((config, resume)))
    return calls


def configure(parsed, *words):
    assert cli.main(["train", *map(str, words)]) == 0
    return parsed.pop()[0]


def shown(capsys, *words):
    """What a call prints that ends by itself, such as --help."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, words)))
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


class TestHelp:
    def test_imports_nothing_heavy_and_is_quick(self):
        """The imports of --help and of every verb's --help, in one process."""
        code = f"""
import sys
import time
from seqpope.cli import main
for words in [["--help"], ["--version"]] + [[verb, "--help"] for verb in {list(cli.VERBS)!r}]:
    try:
        main(words)
    except SystemExit as ended:
        assert not ended.code, words
heavy = {{"torch", "lightning", "music21", "pretty_midi", "matplotlib", "scipy", "pandas"}} & set(sys.modules)
assert not heavy, heavy
"""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3

    def test_names_every_verb_and_data_set(self, capsys):
        text = shown(capsys, "--help")
        for word in (*cli.VERBS, "chorales", "jsb"):
            assert word in text

    @pytest.mark.parametrize(
        ("verb", "words"),
        [
            (
                "prepare",
                ["dataset", "--source", "--data_folder", "--out", "--force", "--stretch", "checksum pinned"],
            ),
            ("train", ["--config", "--resume", "--model.delta_init", "--optimizer.average_decay", "--seeds"]),
            ("evaluate", ["runs", "--split", "{validation,test,train}", "--stride"]),
            ("compare", ["runs", "--out"]),
            ("inspect", ["runs", "--split", "{validation,train}", "--tokens", "shipped"]),
            ("generate", ["--out", "--prompt_bars", "--temperature", "--top_p", "--keys", "quarter notes"]),
        ],
    )
    def test_of_a_verb(self, capsys, verb, words):
        text = shown(capsys, verb, "--help")
        for word in words:
            assert word in text

    def test_every_option_has_its_help(self, capsys):
        """A field without a line in its docstring would show up bare."""
        import argparse

        parser = cli.build_parser()
        [verbs] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        for verb, of_verb in verbs.choices.items():
            bare = [a.dest for a in of_verb._actions if not a.help and not isinstance(a, argparse._HelpAction)]
            assert not bare, (verb, bare)

    def test_version(self, capsys):
        assert shown(capsys, "--version").split() == ["seqpope", seqpope.__version__]

    def test_no_words_print_the_help(self, capsys):
        assert cli.main([]) == 2
        assert "generate" in capsys.readouterr().out

    def test_as_a_module(self, tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "seqpope", "train", "--dataset", "nope"],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
        assert done.returncode == 1
        known = ", ".join(DATASETS)
        assert done.stderr == f"seqpope: unknown data set 'nope': expected one of {known}\n"
        assert list(tmp_path.iterdir()) == []


class TestPrepare:
    @pytest.fixture
    def prepared(self, monkeypatch):
        """Folders that data sets were to be prepared in."""
        folders = []
        monkeypatch.setattr("data_prep.jsb.prepare", lambda folder, **_: folders.append(folder))
        return folders

    def test_where(self, tmp_path, prepared):
        assert cli.main(["prepare", "jsb"]) == 0
        assert cli.main(["prepare", "jsb", "--data-folder", str(tmp_path)]) == 0
        assert cli.main(["prepare", "jsb", "--out", str(tmp_path / "mine")]) == 0
        assert prepared == [Path("data/jsb"), tmp_path / "jsb", tmp_path / "mine"]

    def test_one_place_alone(self, tmp_path, prepared, capsys):
        assert cli.main(["prepare", "jsb", "--data-folder", str(tmp_path), "--out", str(tmp_path / "mine")]) == 1
        assert "takes the place of --data-folder" in capsys.readouterr().err
        assert prepared == []

    def test_nothing_else_is_replaced(self, tmp_path, prepared, capsys):
        (tmp_path / "work.txt").write_text("of years")
        assert cli.main(["prepare", "jsb", "--out", str(tmp_path)]) == 1
        assert f"{tmp_path} holds work.txt, which is no part of a store, and would be" in capsys.readouterr().err
        assert prepared == []


class TestGenerateDna:
    def test_options_reach_the_rules(self, monkeypatch, tmp_path, capsys):
        asked = {}

        def generate(output, draw, **options):
            asked.update(options, out=output.out, num=draw.num)
            return [(output.out, "a line")]

        monkeypatch.setattr("seqpope.generate.dna.generate_dna", generate)
        words = "--bases 90 --num 3 --prompt ACGT --gc 0.4,0.6 --gc-window 50 --forbid EcoRI,GGATCC --open-frame 1"
        words += " --no-stop --judge-prompt false"
        out = tmp_path / "a.fa"
        assert cli.main(["generate", "--domain", "genome", "--out", str(out), *words.split()]) == 0
        rules = asked.pop("rules")
        assert asked == {"checkpoint": None, "bases": 90, "prompt": "ACGT", "out": out, "num": 3}
        assert (rules.gc, rules.gc_window, rules.window) == ((0.4, 0.6), (0.4, 0.6), 50)
        assert rules.forbidden_sites == ("EcoRI", "GGATCC")
        assert (rules.open_frame, rules.no_stop, rules.judge_prompt, rules.letters) == (1, True, False, "ACGT")
        assert capsys.readouterr().out == f"{out}  a line\n"


class TestKinds:
    """What `generate` draws is what the checkpoint was trained on."""

    @pytest.fixture
    def checkpoints(self, tmp_path):
        from seqpope.checkpoint import CheckpointInfo, save_checkpoint
        from seqpope.model.config import ModelConfig
        from seqpope.model.transformer import Transformer

        shape = {"width": 16, "layers": 1, "heads": 2}
        found = {}
        for dataset, domain in (("jsb", "music"), ("maestro", "music"), ("mine", "genome")):
            found[dataset] = str(tmp_path / f"{dataset}.safetensors")
            info = CheckpointInfo(domain, dataset, "pope", 90, 0, 128, shape, {}, "ab" * 32)
            save_checkpoint(Path(found[dataset]), Transformer(90, "pope", ModelConfig(**shape)), info)
        return found

    @pytest.fixture
    def asked(self, monkeypatch):
        """What each kind's function is called with, by the kind's name."""
        calls = {}
        for name, function in (
            ("chorales", "generate_chorales"),
            ("piano", "generate_piano"),
            ("dna", "generate_dna"),
        ):

            def generate(output, draw, name=name, **options):
                calls[name] = options | {"output": output, "draw": draw}
                return []

            monkeypatch.setattr(f"seqpope.generate.{name}.{function}", generate)
        return calls

    def test_every_kind_has_options_of_generate(self):
        from inspect import signature

        assert sampling.GENERATORS.keys() == KINDS.keys()
        for generator in sampling.GENERATORS.values():
            assert set(generator.options) < set(signature(sampling.generate).parameters)
        for dataset in DATASETS.values():
            if not dataset.samples:  # nothing is drawn from its models
                assert dataset.domain not in {kind.domain for kind in KINDS.values()}
                continue
            assert KINDS[dataset.samples].domain == dataset.domain
            assert dataset.tokenizer in KINDS[dataset.samples].tokenizers

    def test_piano(self, checkpoints, asked):
        words = (
            "--prompt p.mid --prompt-seconds 30 --seconds 60 --keys C2-84 --polyphony 6 --formats wav,png --num 2"
        )
        out = ["generate", "--out", "folder", "--checkpoint", checkpoints["maestro"]]
        assert cli.main([*out, *words.split()]) == 0
        [(kind, options)] = asked.items()
        assert kind == "piano"
        draw = options.pop("draw")
        assert (options.pop("output").formats, draw.num, draw.progress.unit) == (("wav", "png"), 2, "s of music")
        assert options == {
            "checkpoint": Path(checkpoints["maestro"]), "seconds": 60.0, "prompt": Path("p.mid"),
            "prompt_seconds": 30.0, "keys": (36, 84), "polyphony": 6,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("dataset", "words", "kind"),
        [
            ("jsb", "--domain music --seconds 3 --cadence", "chorales"),
            ("mine", "--bases 9", "dna"),
            ("mine", "--domain genome", "dna"),
            (None, "--bars 3", "chorales"),
            (None, "--domain genome", "dna"),
        ],
    )
    def test_others(self, checkpoints, asked, dataset, words, kind):
        named = [] if dataset is None else ["--checkpoint", checkpoints[dataset]]
        assert cli.main(["generate", "--out", "x", *named, *words.split()]) == 0
        assert list(asked) == [kind]

    @pytest.mark.parametrize(
        ("dataset", "words", "message"),
        [
            ("maestro", "--bars 3 --cadence",
             "piano performances are to be drawn, which have no --bars (an option of chorales), --cadence (an"),
            ("jsb", "--keys C2-C6", "chorales are to be drawn, which have no --keys (an option of piano perf"),
            ("jsb", "--polyphony 3", "which have no --polyphony (an option of piano"),
            ("mine", "--seconds 3", "DNA sequences are to be drawn, which have no --seconds"),
            (None, "--keep-n", "chorales are to be drawn, which have no --keep-n (an option of DNA sequences)"),
            (None, "--domain genome --bars 3", "DNA sequences are to be drawn, which have no --bars"),
            ("maestro", "--domain genome", "is a model of piano performances (maestro), not of --domain genome"),
            ("maestro", "--keys 84-36", "keys: 84-36 is 84-36, expected a range in 21-108"),
        ],
    )  # fmt: skip
    def test_options_of_others_are_refused(self, checkpoints, asked, capsys, dataset, words, message):
        named = [] if dataset is None else ["--checkpoint", checkpoints[dataset]]
        assert cli.main(["generate", "--out", "x", *named, *words.split()]) == 1
        assert message in capsys.readouterr().err
        assert asked == {}


class TestWrongUsage:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["train", "--dataset", "nope"], "unknown data set 'nope': expected one of chorales, jsb"),
            (["train", "--domain", "nope"], "unknown domain 'nope': expected one of music"),
            (["train", "--config", "nope"], "no configuration 'nope': give a YAML file or one of chorales-cpu"),
            (["train", "--model.width", "30"], "model.width must be a multiple of model.heads"),
            (["train", "--data.transpose", "[1, 2]"], "data.transpose must be a range around 0"),
            (["train", "--optimizer.beta2", "1"], "optimizer.beta2 must be in [0, 1)"),
            (["train", "--eval_stride", "4096"], "1 <= eval_stride <= eval_length"),
            (["train", "--seeds", "0"], "seeds must be at least 1"),
            (["train", "--data.batch_size", "100000000"], "more than any memory holds"),
            (
                ["train", "--resume", "nowhere"],
                "nowhere is not an experiment's folder: expected config.yaml in it",
            ),
            (["prepare", "nope"], "unknown data set 'nope'"),
            (["evaluate", "nowhere"], "no trained run in nowhere"),
            (["compare", "nowhere"], "nowhere"),
            (["generate", "--domain", "nope", "--out", "x.mid"], "unknown domain 'nope': expected one of music"),
            (["generate", "--domain", "genome", "--out", "x.fa", "--bases", "0"], "bases must be from 1"),
            (["generate", "--domain", "genome", "--out", "x.mid"], "a file that ends in .fa"),
            (["generate", "--out", "x.txt"], "expected a folder or a file that ends in .mid"),
            (["harmonize", "nothing.mid", "--out", "x.mid"], "there is no file nothing.mid"),
            (["examine", "nothing.mid"], "there is no file nothing.mid"),
            (["generate", "--out", "x.mid", "--checkpoint", "nowhere"], "no checkpoint at nowhere"),
            (["generate", "--out", "x.mid", "--top_p", "0"], "expected top_p above 0 and at most 1, it is 0.0"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_told_in_words(self, capsys, tmp_path, monkeypatch, words, message):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, "data_prep.chorales", None)  # nothing may be prepared
        (tmp_path / "data" / "chorales").mkdir(parents=True)
        (tmp_path / "data" / "chorales" / "manifest.json").write_text("{}")
        assert cli.main(words) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("seqpope: ")
        assert message in captured.err
        assert "Traceback" not in captured.err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"\xff\xfe\x00", "cannot be read as YAML in UTF-8"), (b"", "holds NoneType"), (b"- a\n", "holds list")],
    )
    def test_configuration_that_is_none(self, capsys, tmp_path, content, message):
        (tmp_path / "c.yaml").write_bytes(content)
        assert cli.main(["train", "--config", str(tmp_path / "c.yaml")]) == 1
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
    def test_full_memory(self, capsys, monkeypatch, error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr("seqpope.generate.chorales.generate_chorales", fail)
        assert cli.main(["generate", "--out", "x.mid"]) == 1
        assert "this does not fit the memory" in capsys.readouterr().err

    def test_unknown_position(self, capsys, tmp_path):
        from stores import make_store

        make_store(tmp_path, dataset="chorales")
        (tmp_path / "data" / "tiny").rename(tmp_path / "data" / "chorales")
        words = ["--position", "xpos", "--data-folder", tmp_path / "data", "--out", tmp_path / "runs"]
        assert cli.main(["train", *map(str, words)]) == 1
        assert "unknown position encoding 'xpos': expected one of pope, rope" in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["nope"], "invalid choice: 'nope'"),
            (["train", "--nope", "3"], "unrecognized arguments: --nope"),
            (["train", "--model.nope", "3"], "unrecognized arguments: --model.nope"),
            (["train", "--seeds", "many"], "seeds"),
            (["train", "--device", "abacus"], "abacus"),
            (["train", "--seeds"], "expected one argument"),
            (["evaluate"], "runs"),
            (["evaluate", "x", "--split", "nope"], "nope"),
            (["generate"], "out"),
            (["prepare"], "dataset"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_refused_by_the_parser(self, capsys, words, message):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        "text", ["seedz: 3\n", "model:\n  depth: 3\n", "seeds: many\n", "model: 3\n", "- 1\n", "a: [\n", "\0"]
    )
    def test_a_configuration_file_that_makes_no_sense(self, capsys, tmp_path, parsed, text):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        try:
            status = cli.main(["train", "--config", str(file)])
        except SystemExit as ended:
            status = ended.code
        assert status in (1, 2)
        assert capsys.readouterr().err
        assert parsed == []


class TestTrainOptions:
    def test_data_set_brings_its_preset(self, parsed):
        assert configure(parsed).dataset == "chorales"
        assert configure(parsed, "--domain", "music") == configure(parsed, "--config", "chorales-cpu")
        assert configure(parsed, "--dataset", "jsb") == configure(parsed, "--config", "jsb-paper")
        assert configure(parsed, "--dataset=jsb") == configure(parsed, "--config=jsb-paper")

    def test_the_data_set_named_beside_a_configuration_is_taken(self, parsed):
        config = configure(parsed, "--config", "jsb-paper", "--dataset", "chorales")
        assert config.dataset == "chorales"
        assert config.optimizer.steps == 3000

    @pytest.mark.parametrize(
        "words",
        [
            ["--config", "jsb-paper", "--seeds", "5", "--model.layers", "2"],
            ["--seeds", "5", "--config", "jsb-paper", "--model.layers", "2"],
            ["--seeds", "5", "--model.layers", "2", "--config", "jsb-paper"],
            ["--seeds=5", "--model.layers=2", "--config=jsb-paper"],
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_options_beat_the_file_wherever_it_stands(self, parsed, words):
        config = configure(parsed, *words)
        expected = configure(parsed, "--config", "jsb-paper")
        assert (config.seeds, config.model.layers) == (5, 2)
        config.seeds, config.model.layers = expected.seeds, expected.model.layers
        assert config == expected

    @pytest.mark.parametrize("name", ["chorales-cpu", "jsb-augmented", "jsb-paper"])
    def test_printed_configuration_is_read_back(self, capsys, parsed, tmp_path, name):
        text = shown(
            capsys, "train", "--config", name, "--seeds", 2, "--data.transpose", "[-1, 2]", "--print-config"
        )
        assert {"seeds": 2, "dataset": name.split("-")[0]}.items() <= yaml.safe_load(text).items()
        file = tmp_path / "printed.yaml"
        file.write_text(text)
        assert shown(capsys, "train", "--config", file, "--print-config") == text
        expected = configure(parsed, "--config", name, "--seeds", 2, "--data.transpose", "[-1, 2]")
        assert configure(parsed, "--config", file) == expected
        assert expected.data.transpose == (-1, 2)

    def test_written_configuration_is_read_back(self, parsed, tmp_path):
        """config.yaml of an experiment is written by as_dict and not by the parser."""
        config = configure(parsed, "--config", "jsb-augmented", "--name", "x", "--seeds", 3)
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
        assert configure(parsed, "--config", file) == config

    @pytest.mark.parametrize(
        ("dashed", "underscored"),
        [
            (["--eval-stride", "7"], ["--eval_stride", "7"]),
            (["--eval-stride=7"], ["--eval_stride=7"]),
            (["--data.batch-size", "3"], ["--data.batch_size", "3"]),
            (["--optimizer.average-decay=0.5"], ["--optimizer.average_decay=0.5"]),
            (["--data-folder=a-b", "--name", "c-d"], ["--data_folder=a-b", "--name", "c-d"]),
        ],
    )
    def test_dashes_are_underscores(self, parsed, dashed, underscored):
        config = configure(parsed, *dashed)
        assert config == configure(parsed, *underscored)
        assert config != configure(parsed)

    def test_values_keep_their_dashes(self, parsed):
        config = configure(parsed, "--data-folder=a-b", "--name", "c-d", "--out", "e-f")
        assert (config.data_folder, config.name, config.out) == (Path("a-b"), "c-d", Path("e-f"))


class TestResume:
    @pytest.fixture
    def folder(self, tmp_path, parsed):
        config = configure(parsed, "--config", "jsb-paper", "--name", "old", "--seeds", 3, "--out", "elsewhere")
        folder = tmp_path / "moved"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
        return folder, config

    @pytest.mark.parametrize(
        "form", ["--resume {}", "--resume={}", "--resume {} --device auto", "--device=auto --resume {}"]
    )
    def test_takes_the_experiment_s_own_configuration(self, parsed, folder, form):
        assert cli.main(["train", *form.format(folder[0]).split()]) == 0
        [(config, resume)] = parsed
        assert config == folder[1]
        assert resume == folder[0]

    def test_device_may_be_another(self, parsed, folder):
        assert cli.main(["train", "--resume", str(folder[0]), "--device", "cpu"]) == 0
        assert parsed[0][0].device == "cpu"

    @pytest.mark.parametrize(
        "words",
        [
            "--seeds 4",
            "--seeds=4",
            "--model.width 32",
            "--config jsb-paper",
            "--dataset jsb",
            "--data-folder x",
            "--domain music",
        ],
    )
    @pytest.mark.parametrize("first", [True, False])
    def test_nothing_else_may_be_changed(self, capsys, parsed, folder, words, first):
        resume = ["--resume", str(folder[0])]
        given = [*resume, *words.split()] if first else [*words.split(), *resume]
        assert cli.main(["train", *given]) == 1
        assert "only --device may be given with it" in capsys.readouterr().err
        assert parsed == []


class TestStatus:
    @pytest.mark.parametrize(
        ("error", "status", "message"),
        [
            (SeqpopeError("in words"), 1, "seqpope: in words"),
            (KeyboardInterrupt(), 130, "seqpope: interrupted"),
            (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full: free some space"),
            (
                PermissionError(errno.EACCES, "Permission denied", "x"),
                1,
                "x cannot be read or written (Permission denied)",
            ),
            (OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_of_an_error(self, capsys, monkeypatch, error, status, message):
        def fail(config, resume=None):
            raise error

        monkeypatch.setattr(cli, "train", fail)
        assert cli.main(["train"]) == status
        assert message in capsys.readouterr().err

    def test_of_an_interrupted_run(self, capsys, monkeypatch):
        from seqpope.experiment import Interrupted

        def stop(config, resume=None):
            raise Interrupted("stopped at step 3; go on with `seqpope train --resume x`")

        monkeypatch.setattr(cli, "train", stop)
        assert cli.main(["train"]) == 130
        assert capsys.readouterr().err == "seqpope: stopped at step 3; go on with `seqpope train --resume x`\n"

    def test_a_bug_is_not_hidden(self, monkeypatch):
        def fail(config, resume=None):
            raise ZeroDivisionError

        monkeypatch.setattr(cli, "train", fail)
        with pytest.raises(ZeroDivisionError):
            cli.main(["train"])

    def test_a_reader_that_went_away(self):
        """As in `seqpope train --print-config | head -1`: no traceback."""
        code = f"{sys.executable} -m seqpope --help | true; echo status ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stderr


class TestInterrupted:
    """A real process, a real signal."""

    @pytest.fixture
    def start(self, tmp_path):
        from stores import make_store

        make_store(tmp_path, dataset="chorales")
        (tmp_path / "data" / "tiny").rename(tmp_path / "data" / "chorales")
        settings = {
            "baseline": "none",
            "device": "cpu",
            "name": "x",
            "model": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.1},
            "data": {"length": 16, "batch_size": 2},
            "optimizer": {"steps": 400, "warmup_steps": 5},
            "eval_every": 20,
            "eval_length": 16,
            "eval_stride": 8,
        }
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
        processes = []

        def run(*words, code=None):
            process = subprocess.Popen(
                [sys.executable, *(["-c", code] if code else ["-m", "seqpope"]), *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
            processes.append(process)
            return process

        yield run
        for process in processes:
            process.kill()
            process.communicate()

    @staticmethod
    def wait_for_a_validation(process):
        for line in process.stdout:
            if "validation" in line:
                return
        raise AssertionError(process.stderr.read())

    @pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
    def test_saves_says_how_to_go_on_and_does(self, tmp_path, start, number, monkeypatch, capsys):
        process = start("train", "--config", "tiny.yaml")
        self.wait_for_a_validation(process)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        found = re.search(r"stopped at step (\d+); go on with `seqpope (train --resume runs/x)`", said)
        assert found, said
        assert "Traceback" not in said
        assert 20 <= int(found[1]) < 400
        run = tmp_path / "runs" / "x" / "pope-seed0"
        assert not (run / "result.json").exists()
        if number == signal.SIGINT:
            monkeypatch.chdir(tmp_path)
            status = cli.main(found[2].split())
            out, said = capsys.readouterr()
            assert status == 0, said
            assert f"from step {found[1]}" in out
            assert (run / "result.json").is_file()
            assert (tmp_path / "runs" / "x" / "report.md").is_file()

    @pytest.mark.slow
    def test_twice_stops_at_once(self, tmp_path, start):
        """A second Ctrl-C does not wait for the step that is under way."""
        code = (
            "import time, seqpope.training as t; from seqpope.cli import main; "
            "good = t.SequenceModule.training_step; "
            "t.SequenceModule.training_step = lambda self, batch, i: "
            "(print('in a step', flush=True), time.sleep(60)) if i == 30 else good(self, batch, i); "
            "raise SystemExit(main())"
        )
        process = start("train", "--config", "tiny.yaml", code=code)
        for line in process.stdout:
            if "in a step" in line:
                break
        process.send_signal(signal.SIGINT)
        assert "once more to stop at once" in process.stderr.readline()
        time.sleep(1.5)  # what comes sooner is taken for the same signal
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 130, said
        assert "seqpope: interrupted" in said
        assert "Traceback" not in said
        assert (tmp_path / "runs" / "x" / "pope-seed0" / "last.ckpt").is_file()  # of the last validation


def test_a_port_that_is_none_is_refused(capsys):
    assert cli.main(["app", "--port", "65536"]) == 1
    assert "--port must be from 0 to 65535, it is 65536" in capsys.readouterr().err
