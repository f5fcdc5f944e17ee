from __future__ import annotations

import functools
import shlex
import shutil

import pytest
import torch
import yaml

from seqpope import cli, presets
from seqpope.domains.base import DATASETS
from seqpope.errors import SeqpopeError
from seqpope.model.transformer import Transformer
from seqpope.presets import find_config

SHIPPED = presets.presets()


@functools.cache
def parse(*words):
    """The configuration that `seqpope train WORDS` would train."""
    got = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli, "train", lambda config, resume=None: got.append(config))
        assert cli.main(["train", *words]) == 0
    return got[0]


def printed(capsys, *words):
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["train", *words, "--print-config"])
    return capsys.readouterr().out


def commands(text):
    """The command lines in a preset's comments."""
    lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("# seqpope ")]
    return [shlex.split(command)[1:] for line in lines for command in line.split("&&")]


def test_every_data_set_has_its_preset():
    assert {dataset.preset for dataset in DATASETS.values()} <= SHIPPED.keys()


@pytest.mark.parametrize("name", SHIPPED)
class TestShipped:
    def test_parses_and_builds(self, name):
        config = parse("--config", name)
        vocabulary = DATASETS[config.dataset].load_tokenizer().vocabulary_size
        with torch.device("meta"):
            twins = [Transformer(vocabulary, p, config.model) for p in (config.position, config.baseline)]
        ids = torch.zeros(1, config.data.length, dtype=torch.long, device="meta")
        for model in twins:
            assert model(ids).shape == (1, config.data.length, vocabulary)
        assert {config.position, config.baseline} == {"pope", "rope"}

    def test_says_what_it_means(self, name):
        """Every value in the file arrives: none is misspelled, none is overridden by a default."""

        def check(written, parsed):
            for key, value in written.items():
                if isinstance(value, dict):
                    check(value, parsed[key])
                else:
                    assert parsed[key] == value, key

        written = yaml.safe_load(SHIPPED[name].read_text())
        check(written, parse("--config", name).as_dict())

    def test_its_data_can_be_scored_by_it(self, name):
        config = parse("--config", name)
        assert config.dataset in DATASETS
        assert config.optimizer.steps % config.eval_every == 0  # the last step is a validated one as all others
        assert config.optimizer.warmup_steps < config.optimizer.steps

    def test_twins_differ_in_one_line(self, capsys, name):
        pope, rope = (printed(capsys, "--config", name, "--position", p).splitlines() for p in ("pope", "rope"))
        assert len(pope) == len(rope)
        different = [(a, b) for a, b in zip(pope, rope, strict=True) if a != b]
        assert different == [("position: pope", "position: rope")]

    def test_commands_in_its_comments_are_valid(self, name):
        found = commands(SHIPPED[name].read_text())
        assert any(command[0] == "train" for command in found)
        for command in found:
            if command[0] == "train":
                config = parse(*command[1:])
                assert config == parse("--config", name, "--seeds", str(config.seeds))
            else:
                assert cli.build_parser().parse_args(command).verb == command[0]


class TestFind:
    def test_by_name_and_by_path(self, tmp_path):
        assert find_config("jsb-paper") == SHIPPED["jsb-paper"]
        file = tmp_path / "mine.yaml"
        file.write_text("seeds: 2\n")
        assert find_config(str(file)) == file

    def test_a_file_comes_before_a_preset_of_its_name(self, tmp_path, monkeypatch):
        (tmp_path / "jsb-paper").write_text("seeds: 2\n")
        monkeypatch.chdir(tmp_path)
        assert find_config("jsb-paper").read_text() == "seeds: 2\n"

    @pytest.mark.parametrize("name", ["nope", "", "jsb-paper.yaml", "."])
    def test_neither(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SeqpopeError, match=f"no configuration {name!r}.*one of .*jsb-paper"):
            find_config(name)

    def test_in_an_installed_package(self, tmp_path, monkeypatch):
        """In a wheel the presets lie inside the package, and those alone count."""
        shutil.copytree(SHIPPED["jsb-paper"].parent, tmp_path / "site" / "seqpope" / "configs")
        (tmp_path / "site" / "configs").mkdir()
        (tmp_path / "site" / "configs" / "of-another-package.yaml").touch()
        monkeypatch.setattr(presets, "__file__", str(tmp_path / "site" / "seqpope" / "presets.py"))
        assert presets.presets().keys() == SHIPPED.keys()
        assert find_config("jsb-paper").is_relative_to(tmp_path)
