from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from stores import VOCABULARY

from seqpope import files
from seqpope.checkpoint import (
    BEST,
    SHIPPED,
    CheckpointError,
    CheckpointInfo,
    check_fingerprint,
    find_checkpoint,
    load_checkpoint,
    read_info,
    save_checkpoint,
)
from seqpope.errors import SeqpopeError
from seqpope.model.config import ModelConfig
from seqpope.model.positions import POSITIONS
from seqpope.model.transformer import Transformer


def make(position="pope", seed=0, validation=1.0, **changes):
    config = {"width": 16, "layers": 2, "heads": 2, "delta_init": "uniform"}
    torch.manual_seed(seed)
    model = Transformer(VOCABULARY, position, ModelConfig(**config))
    values = {
        "domain": "music",
        "dataset": "tiny",
        "position": position,
        "vocabulary_size": VOCABULARY,
        "padding_id": 0,
        "length": 64,
        "model": config,
        "tokenizer": {"name": "synthetic"},
        "fingerprint": "0123456789abcdef" * 4,
        "trained": {"seed": seed, "validation_nats_per_token": validation},
    }
    return model, CheckpointInfo(**{**values, **changes})


def saved(path, *arguments, **keywords):
    save_checkpoint(path, *make(*arguments, **keywords))
    return path


def rewrite_header(path, change):
    """Change a safetensors file's JSON header and leave its tensors."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize("position", POSITIONS)
def test_what_is_saved_is_loaded(tmp_path, position):
    model, info = make(position)
    model.train()
    save_checkpoint(tmp_path / "a.safetensors", model, info)
    loaded, read = load_checkpoint(tmp_path / "a.safetensors")
    assert read == info == read_info(tmp_path / "a.safetensors")
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids = torch.randint(VOCABULARY, (2, 9))
    assert torch.equal(loaded(ids), model.eval()(ids))


@pytest.mark.parametrize(
    "settings",
    [
        {"magnitude": "relu", "delta_init": "uniform"},
        {"magnitude": "none", "delta_init": "local", "delta_window": 20, "delta_learned": False},
        {"delta_init": "centred", "delta_bound": "tanh", "longest_wavelength": 50.0},
    ],
)
def test_settings_of_pope_come_back(tmp_path, settings):
    _, info = make()
    config = ModelConfig(width=16, layers=2, heads=2, **settings)
    model = Transformer(VOCABULARY, "pope", config).eval()
    info.model = asdict(config)
    save_checkpoint(tmp_path / "a.safetensors", model, info)
    loaded, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.config == config
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in model.named_parameters()]
    ids = torch.randint(VOCABULARY, (2, 9))
    assert torch.equal(loaded(ids), model(ids))
    # A header from before them: the paper's magnitudes, a learned delta, the same tensors.
    info.model = {"width": 16, "layers": 2, "heads": 2}
    save_checkpoint(tmp_path / "old.safetensors", model, info)
    older, _ = load_checkpoint(tmp_path / "old.safetensors")
    assert older.config == ModelConfig(width=16, layers=2, heads=2)
    assert (older(ids) - model(ids)).abs().max() > 1e-6
    info.model = asdict(config) | {"magnitude": "gelu"}
    save_checkpoint(tmp_path / "later.safetensors", model, info)
    with pytest.raises(SeqpopeError, match=r"model\.magnitude must be one of"):
        load_checkpoint(tmp_path / "later.safetensors")


def test_half_precision_on_disk_is_fp32_in_memory(tmp_path):
    model, info = make()
    save_checkpoint(tmp_path / "half.safetensors", model, info, dtype=torch.bfloat16)
    save_checkpoint(tmp_path / "full.safetensors", model, info)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.65 * (tmp_path / "full.safetensors").stat().st_size
    loaded, _ = load_checkpoint(tmp_path / "half.safetensors")
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], tensor.bfloat16().float()), name


class TestFind:
    def test_file_run_and_experiment(self, tmp_path):
        rope = saved(tmp_path / "rope-seed0" / BEST, "rope", validation=0.1)
        worse = saved(tmp_path / "pope-seed0" / BEST, validation=0.9)
        better = saved(tmp_path / "pope-seed1" / BEST, seed=1, validation=0.5)
        assert find_checkpoint(worse) == worse
        assert find_checkpoint(rope.parent) == rope
        assert find_checkpoint(tmp_path) == better  # the best PoPE, even if a RoPE is better still
        assert find_checkpoint(str(tmp_path)) == better
        assert load_checkpoint(tmp_path)[1].trained["seed"] == 1

    def test_an_experiment_without_pope(self, tmp_path):
        saved(tmp_path / "a" / BEST, "rope", validation=0.7)
        better = saved(tmp_path / "b" / BEST, "rope", validation=0.6)
        assert find_checkpoint(tmp_path) == better

    def test_what_comes_with_the_package(self, tmp_path, monkeypatch):
        for name, file in SHIPPED.items():
            assert find_checkpoint(Path(name)) == find_checkpoint(name) == file
        assert read_info(SHIPPED["chorales-rope"]).position == "rope"
        monkeypatch.chdir(tmp_path)
        mine = saved(tmp_path / "chorales" / BEST)
        assert find_checkpoint(Path("chorales")).resolve() == mine  # what lies there has the name first
        (tmp_path / "genome").mkdir()
        with pytest.raises(CheckpointError, match=r"no checkpoint at genome.*so give .*genome\.safetensors"):
            find_checkpoint(Path("genome"))

    @pytest.mark.parametrize("make_folder", [True, False])
    def test_nothing(self, tmp_path, make_folder):
        path = tmp_path / "nothing"
        if make_folder:
            path.mkdir()
        for look_up in (find_checkpoint, load_checkpoint):
            with pytest.raises(CheckpointError, match=f"no checkpoint at .*nothing: expected.*{BEST}"):
                look_up(path)


class TestDamage:
    @pytest.mark.parametrize("kept", [0, 5, 100, -1, -4000])
    def test_a_file_cut_short(self, tmp_path, kept):
        path = saved(tmp_path / "a.safetensors")
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            load_checkpoint(path)

    def test_something_else(self, tmp_path):
        path = tmp_path / "a.safetensors"
        torch.save({"weight": torch.zeros(3)}, path)
        with pytest.raises(CheckpointError, match="not a readable safetensors file"):
            load_checkpoint(path)

    @pytest.mark.parametrize(
        "numbers", [{"length": None}, {"length": "x"}, {"length": 0}, {"padding_id": 10**6}, {"padding_id": -1},
                    {"vocabulary_size": 2.5}, {"vocabulary_size": True}],
    )  # fmt: skip
    def test_a_header_whose_numbers_are_none(self, tmp_path, numbers):
        model, info = make()
        save_checkpoint(tmp_path / "a.safetensors", model, replace(info, **numbers))
        with pytest.raises(CheckpointError, match=r"a\.safetensors has vocabulary_size, padding_id and length \("):
            read_info(tmp_path / "a.safetensors")

    def test_safetensors_of_someone_else(self, tmp_path):
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(3)}, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match="has no seqpope header"):
            load_checkpoint(tmp_path / "a.safetensors")

    def test_another_format(self, tmp_path):
        path = saved(tmp_path / "a.safetensors", format="seqpope-2")
        with pytest.raises(CheckpointError, match="format 'seqpope-2', this version reads 'seqpope-1'"):
            load_checkpoint(path)

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "seqpope-1", "domain": 3}'])
    def test_a_header_that_is_none(self, tmp_path, text):
        path = saved(tmp_path / "a.safetensors")
        rewrite_header(path, lambda header: header["__metadata__"].update(seqpope=text))
        with pytest.raises(CheckpointError, match=r"header of .*a\.safetensors cannot be read|format None"):
            load_checkpoint(path)

    @pytest.mark.parametrize(
        "changes",
        [
            {"model": {"width": 32, "layers": 2, "heads": 2}},
            {"model": {"width": 16, "layers": 3, "heads": 2}},
            {"model": {"colour": "blue"}},
            {"position": "rope"},
            {"vocabulary_size": 5},
        ],
    )
    def test_weights_that_do_not_fit_the_header(self, tmp_path, changes):
        model, info = make()
        for name, value in changes.items():
            setattr(info, name, value)
        save_checkpoint(tmp_path / "a.safetensors", model, info)
        with pytest.raises(CheckpointError, match="do not fit its header"):
            load_checkpoint(tmp_path / "a.safetensors")

    def test_an_encoding_of_a_later_version(self, tmp_path):
        path = saved(tmp_path / "a.safetensors")
        rewrite_header(
            path,
            lambda header: header["__metadata__"].update(
                seqpope=header["__metadata__"]["seqpope"].replace('"pope"', '"popcorn"')
            ),
        )
        with pytest.raises(SeqpopeError, match="unknown position encoding 'popcorn'"):
            load_checkpoint(path)


class TestFingerprint:
    def test_equal_passes(self):
        _, info = make()
        check_fingerprint(info, info.fingerprint, "the data")

    def test_other_is_refused_and_both_are_named(self):
        _, info = make()
        with pytest.raises(
            CheckpointError, match=r"tokens 0123456789ab \(tiny\), but the file x has fedcba987654"
        ):
            check_fingerprint(info, "fedcba9876543210" * 4, "the file x")


class TestWriting:
    @pytest.mark.parametrize("call", ["replace", "fsync"])
    def test_failure_leaves_the_old_file_and_no_other(self, tmp_path, monkeypatch, call):
        path = saved(tmp_path / "a.safetensors", seed=0)
        before = path.read_bytes()

        def full(*arguments, **keywords):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, call, full)
        with pytest.raises(OSError, match="No space"):
            saved(path, seed=1)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["a.safetensors"]

    def test_interruption_leaves_nothing_behind(self, tmp_path, monkeypatch):
        def interrupt(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(files.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path / "a.safetensors")
        assert os.listdir(tmp_path) == []

    def test_replaces_what_was_there(self, tmp_path):
        path = saved(tmp_path / "deep" / "er" / "a.safetensors", seed=0)
        saved(path, seed=1)
        assert read_info(path).trained["seed"] == 1
        assert os.listdir(path.parent) == ["a.safetensors"]
