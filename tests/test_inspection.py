from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from stores import PADDING, VOCABULARY, make_manifest, make_split, make_store
from torch.nn import functional as F

from seqpope import cli
from seqpope.checkpoint import BEST, CheckpointInfo, read_info, save_checkpoint
from seqpope.data.shards import fingerprint, pack, write_store
from seqpope.data.windows import window_inputs
from seqpope.errors import SeqpopeError
from seqpope.figures import load_pyplot
from seqpope.inspection.measure import (
    WHAT,
    bands_of,
    choose_windows,
    describe_delta,
    measure_magnitudes,
    shares,
    watched,
    wrapped,
)
from seqpope.inspection.models import find_models, inspect_models
from seqpope.inspection.text import _delta_text, look_back
from seqpope.inspection.writing import inspect_to
from seqpope.kernels.reference import pope_scores, rope_scores
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer

SHAPE = {"width": 16, "layers": 2, "heads": 2}
LENGTH = 16
SPLIT = make_split([21, 40, 3, 33])
PNG = b"\x89PNG\r\n\x1a\n"


def make_model(position="pope", seed=0, **changes):
    """A model with projections large enough for magnitudes to differ."""
    torch.manual_seed(seed)
    model = Transformer(VOCABULARY, position, ModelConfig(**{**SHAPE, **changes})).eval()
    for block in model.blocks:
        block.attention.qkv.weight.data.normal_(0, 0.7)
    return model


def read(model, window):
    """Queries and keys as projected of one window, each layer's (1, H, L, D), one window at a time."""
    found = {}

    def take(layer, q, k):
        found[layer] = (q.transpose(1, 2), k.transpose(1, 2))

    ids = window_inputs(SPLIT, window.start, window.end, window.document, PADDING)
    with watched(model, take), torch.inference_mode():
        model(torch.from_numpy(ids)[None])
    return [found[layer] for layer in range(len(model.blocks))]


def windows(tokens=10**6):
    return choose_windows(SPLIT, LENGTH, tokens)[0]


class TestMagnitudes:
    @pytest.mark.parametrize("position", ["pope", "rope", "yarn", "pope-yarn"])
    def test_equal_a_naive_loop(self, position):
        """Token by token, head by head, from weights and hidden states."""
        model = make_model(position)
        sums = np.zeros((3, 2, 2, 8 if position.startswith("pope") else 4))
        count = 0
        for window in windows():
            count += window.end - window.start
            for layer, (q, k) in enumerate(read(model, window)):
                for head in range(2):
                    for place in range(window.end - window.start):
                        mu = []
                        for x in (q, k):
                            row = x[0, head, place].double()
                            mu.append(
                                [math.log1p(math.exp(value)) for value in row.tolist()]
                                if position.startswith("pope")
                                else [math.hypot(row[c], row[c + 4]) for c in range(4)]
                            )
                        sums[:, layer, head] += [mu[0], mu[1], np.multiply(*mu)]
        found = measure_magnitudes(model, SPLIT, windows(), PADDING)
        assert count == len(SPLIT.tokens)
        for name, expected in zip(WHAT, sums / count, strict=True):
            np.testing.assert_allclose(found[name], expected, rtol=1e-5)

    def test_of_a_model_made_by_hand(self):
        """One-hot ids through an identity: every component of every query and key is known."""
        model = make_model(layers=1, heads=1)
        attention = model.blocks[0].attention
        model.embedding.weight.data.fill_(1.0)  # its norm is 1 everywhere
        attention.qkv.weight.data.zero_()
        values = torch.linspace(-3, 3, 16)
        attention.qkv.weight.data[:16, 0], attention.qkv.weight.data[16:32, 0] = values, values.flip(0)
        found = measure_magnitudes(model, SPLIT, windows(), PADDING)
        expected = F.softplus(values.double()).numpy()
        np.testing.assert_allclose(found["query"][0, 0], expected, rtol=1e-6)
        np.testing.assert_allclose(found["key"][0, 0], expected[::-1], rtol=1e-6)
        np.testing.assert_allclose(found["product"][0, 0], expected * expected[::-1], rtol=1e-6)

    def test_sum_over_frequencies_is_the_mean_score_at_distance_0(self):
        """With delta 0; the reference formula's diagonal."""
        model = make_model()
        total, count = torch.zeros(2, 2, dtype=torch.float64), 0
        for window in windows():
            for layer, (q, k) in enumerate(read(model, window)):
                scores = pope_scores(q.double(), k.double(), torch.zeros(2, 8))
                total[layer] += scores[0].diagonal(dim1=-2, dim2=-1).sum(-1)
            count += window.end - window.start
        found = measure_magnitudes(model, SPLIT, windows(), PADDING)["product"].sum(-1)
        np.testing.assert_allclose(found, (total / count).numpy(), rtol=1e-5)

    @pytest.mark.parametrize(
        ("position", "scores"), [("pope", lambda q, k: pope_scores(q, k, torch.rand(2, 8))), ("rope", rope_scores)]
    )
    def test_no_score_exceeds_what_they_allow(self, position, scores):
        encoding = make_model(position).blocks[0].attention.position
        torch.manual_seed(1)
        q, k = torch.randn(2, 3, 2, 9, 8, dtype=torch.float64)
        most = torch.einsum("bhtc,bhsc->bhts", encoding.magnitudes(q), encoding.magnitudes(k))
        assert (scores(q, k).abs() <= most + 1e-9).all()

    def test_rotation_does_not_change_those_of_rope(self):
        """A query at any position scores what it weighs against itself: the norm of every pair stays."""
        encoding = make_model("rope").blocks[0].attention.position
        torch.manual_seed(2)
        x = torch.randn(5, 8, dtype=torch.float64)
        angles = torch.arange(5)[:, None] * 37 * encoding.theta()
        turned = torch.polar(torch.ones_like(angles), angles) * torch.complex(x[:, :4], x[:, 4:])
        after = encoding.magnitudes(torch.cat([turned.real, turned.imag], -1))
        torch.testing.assert_close(after, encoding.magnitudes(x), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("position", ["pope", "rope"])
    @pytest.mark.parametrize("batch_tokens", [1, 40, 10**6])
    def test_do_not_depend_on_the_batch_size(self, position, batch_tokens):
        """Nor on the padding at the right that windows read together have."""
        model = make_model(position)
        one = measure_magnitudes(model, SPLIT, windows(), PADDING, batch_tokens=16)
        other = measure_magnitudes(model, SPLIT, windows(), PADDING, batch_tokens=batch_tokens)
        for name in WHAT:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5)

    def test_leave_the_model_as_it_was(self):
        model = make_model()
        measure_magnitudes(model, SPLIT, windows(), PADDING)
        assert not any(module._forward_hooks for module in model.modules())

    def test_hooks_go_also_when_something_breaks(self):
        model = make_model()
        with pytest.raises(ZeroDivisionError), watched(model, lambda *_: 1 / 0):
            model(torch.zeros(1, 3, dtype=torch.long))
        assert not any(module._forward_hooks for module in model.modules())

    def test_damaged_weights_are_told(self):
        model = make_model()
        model.blocks[1].attention.qkv.weight.data[0, 0] = math.nan
        with pytest.raises(SeqpopeError, match="gives no numbers"):
            measure_magnitudes(model, SPLIT, windows(), PADDING)


class TestWindows:
    def test_all_of_a_small_split(self):
        chosen, there = choose_windows(SPLIT, LENGTH, 10**6)
        assert len(chosen) == there
        read = [place for w in chosen for place in range(w.start, w.end)]
        assert sorted(read) == list(range(len(SPLIT.tokens)))

    @pytest.mark.parametrize("tokens", [1, 17, 40, 60])
    def test_are_spread_and_the_same_every_time(self, tokens):
        chosen, there = choose_windows(SPLIT, 8, tokens)
        assert chosen == choose_windows(SPLIT, 8, tokens)[0]
        assert len(set(chosen)) == len(chosen) == math.ceil(there * tokens / len(SPLIT.tokens))
        assert all(w.end - w.start <= 8 for w in chosen)
        if tokens == 40:
            assert {w.document for w in chosen} >= {0, 1, 3}

    @pytest.mark.parametrize("documents", [[], [0], [0, 0]])
    def test_of_an_empty_split(self, documents):
        with pytest.raises(SeqpopeError, match=r"expected a split with tokens.*prepare the data again"):
            choose_windows(make_split(documents), LENGTH, 10)


class TestBands:
    def test_part_the_frequencies(self):
        lengths = 2 * math.pi * 10000 ** (np.arange(32) / 32)
        bands = bands_of(lengths, 2048)
        assert sorted(i for band in bands for i in band["frequencies"]) == list(range(32))
        assert [band["from"] for band in bands] == [0, 32, 256, 2048]
        assert [i for i in bands[-1]["frequencies"]] == [i for i in range(32) if lengths[i] > 2048]

    def test_without_frequencies_are_left_out(self):
        [band] = bands_of(np.array([7.0, 8.0]), 8)
        assert (band["from"], band["to"], band["beyond"]) == (1.0, 8.0, False)

    def test_shares_are_of_all_heads_together(self):
        values = np.array([[[1.0, 2.0, 3.0], [0.0, 0.0, 4.0]]])
        bands = [{"frequencies": [0, 1]}, {"frequencies": [2]}]
        np.testing.assert_allclose(shares(values, bands), [[0.3, 0.7]])


class TestDelta:
    def test_wrapping_keeps_cosines(self):
        angles = np.linspace(-20, 20, 1001)
        assert np.abs(wrapped(angles)).max() <= math.pi + 1e-12
        np.testing.assert_allclose(np.cos(wrapped(angles)), np.cos(angles), atol=1e-12)
        inside = np.linspace(-3.1, 3.1, 99)
        np.testing.assert_array_equal(wrapped(inside), inside)

    def test_statistics(self):
        model = make_model(layers=1, heads=1, width=4)
        model.blocks[0].attention.position.delta.data = torch.tensor([[0.5, -1.0, -7.0, 2.0]])
        told = describe_delta(model)
        seen = [0.5, -1.0, -7.0 + 2 * math.pi, 2.0]
        np.testing.assert_allclose(told["wrapped"], [[seen]], rtol=1e-6)
        [layer] = told["layers"]
        assert layer["mean"] == pytest.approx(np.abs(seen).mean())
        assert layer["rms"] == pytest.approx(math.sqrt(np.square(seen).mean()))
        assert layer["largest"] == pytest.approx(2.0)
        assert layer["opposed"] == 0.25
        assert layer["outside"] == 0.75  # 0.5, -7 and 2
        assert (told["start"], layer["moved"], layer["moved_most"]) == (0.0, 2.625, 7.0)

    def test_under_the_clamp_is_what_the_score_sees(self):
        model = make_model(layers=1, heads=1, width=4, delta_bound="clamp")
        model.blocks[0].attention.position.delta.data = torch.tensor([[0.5, -1.0, -7.0, 0.0]])
        told = describe_delta(model)
        np.testing.assert_allclose(np.cos(told["wrapped"]), np.cos([[[0, -1, -2 * math.pi, 0]]]), atol=1e-6)
        assert (told["bound"], told["layers"][0]["outside"]) == ("clamp", 0.5)

    @pytest.mark.parametrize(
        ("init", "said"),
        [
            ("uniform", r"uniformly on [-2 pi, 0], so"),
            ("centred", r"uniformly on [-pi, pi], so"),
            ("local", "where"),
        ],
    )
    def test_how_they_started_is_told_as_it_was(self, init, said):
        told = describe_delta(make_model(delta_init=init, delta_window=20))
        assert said in _delta_text(told["layers"], told)[0]

    def test_drawn_ones_started_nowhere_known(self):
        told = describe_delta(make_model(delta_init="uniform"))
        assert told["start"] is None
        assert told["layers"][0]["moved"] is None
        assert np.shape(told["wrapped"]) == (2, 2, 8)

    def test_a_frequency_weighs_keys_most_where_it_looks_back(self):
        """The reference's score of one frequency, over distances."""
        theta = torch.tensor([2 * math.pi / 11.2], dtype=torch.float64)
        one = torch.ones(1, 1, 12, 1, dtype=torch.float64)
        for delta in (0.6, 1.7, 2.8, -2.8):
            scores = pope_scores(one, one, torch.tensor([[delta]]), freqs=theta)[0, 0, -1]  # (12,), oldest first
            back = int(scores.flip(0)[:11].argmax())  # 11.2 tokens later it comes again
            assert back == round(look_back(delta, 11.2))

    def test_none_in_rope(self):
        assert describe_delta(make_model("rope")) is None


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are before seconds are spent on making PNG of them."""
    figures = []
    monkeypatch.setattr("seqpope.inspection.figures.as_png", lambda figure: figures.append(figure) or PNG)
    yield figures
    for figure in figures:
        load_pyplot().close(figure)


@pytest.fixture
def make_run(tmp_path):
    """A store and a function that writes runs on it: position, seed and what differs -> folder."""
    store = make_store(tmp_path)
    manifest = store.manifest

    def run(position="pope", seed=0, folder="runs", name=None, config=True, **changes):
        place = tmp_path / folder / (name or f"{position}-seed{seed}")
        shape = {**SHAPE, **changes}
        info = CheckpointInfo(
            "music", manifest.dataset, position, VOCABULARY, PADDING, LENGTH, shape, manifest.tokenizer,
            manifest.fingerprint, {"seed": seed, "step": 3, "data": manifest.content},
        )  # fmt: skip
        save_checkpoint(place / BEST, make_model(position, seed, **changes), info)
        if config:
            told = {"domain": "music", "dataset": "tiny", "position": position, "seed": seed, "model": shape}
            told |= {"data_folder": str(tmp_path / "data"), "data": {"length": LENGTH}}
            (place / "config.yaml").write_text(yaml.safe_dump(told))
        return place

    return run


class TestInspect:
    def test_twins_and_seeds_side_by_side(self, make_run, tmp_path):
        for seed in (0, 1):
            for position in ("pope", "rope"):
                make_run(position, seed)
        result = inspect_models([tmp_path / "runs"], device="cpu")
        assert [(r["run"], r["label"]) for r in result["runs"]] == [
            ("pope-seed0", "pope"), ("pope-seed1", "pope"), ("rope-seed0", "rope"), ("rope-seed1", "rope"),
        ]  # fmt: skip
        pope, rope = result["groups"]["pope"], result["groups"]["rope"]
        assert (pope["seeds"], len(pope["wavelengths"]), len(rope["wavelengths"])) == ([0, 1], 8, 4)
        assert rope["delta"] is None
        assert pope["delta"][0]["mean"] == 0.0
        for name in WHAT:
            both = [np.mean(r["magnitudes"][name], axis=1) for r in result["runs"][:2]]
            np.testing.assert_allclose(pope["magnitudes"][name], np.mean(both, axis=0))
            np.testing.assert_allclose(np.sum(pope["shares"][name], -1), 1)
        protocol = result["protocol"]
        assert (protocol["window"], protocol["tokens"], protocol["tokens_in_split"]) == (LENGTH, 56, 56)
        assert all(run["trained_on_this_data"] for run in result["runs"])
        assert json.loads(json.dumps(result)) == result
        assert str(tmp_path) not in json.dumps(result)

    def test_what_is_written(self, make_run, tmp_path):
        make_run("pope")
        make_run("rope")
        out = tmp_path / "out"
        out.mkdir()
        (out / "mine.txt").write_text("kept")
        result = inspect_models([tmp_path / "runs"], device="cpu")
        files = inspect_to(out, result)
        pictures = ["magnitudes.png", "heads-query.png", "heads-key.png", "delta.png"]
        assert [file.name for file in files] == ["inspect.json", "inspect.md", *pictures]
        assert sorted(path.name for path in out.iterdir()) == sorted([*(f.name for f in files), "mine.txt"])
        assert all((out / name).read_bytes().startswith(PNG) for name in pictures)
        assert json.loads((out / "inspect.json").read_text()) == result
        text = (out / "inspect.md").read_text()
        for words in ("## pope", "## rope", "56 of 56 tokens", "| share of frequencies |", "started at 0"):
            assert words in text
        assert text.count("| wavelength | share of its head | delta | tokens back |") == 1
        assert text.count("| wavelength | share of its head |") == 2
        assert re.search(r"\| pope \| 1 \| 16 \| \d of 8 \(\d+\.\d%\) \| \d+\.\d% \|", text)

    def test_twins_are_in_one_figure(self, make_run, tmp_path, drawn):
        make_run("pope")
        make_run("rope")
        result = inspect_models([tmp_path / "runs"], device="cpu")
        inspect_to(tmp_path / "out", result)
        magnitudes, query, _, delta = drawn
        labels = [axes.get_ylabel() for axes in magnitudes.axes]
        assert any(label.startswith("PoPE") for label in labels)
        assert any(label.startswith("RoPE") for label in labels)
        assert [text.get_text() for text in query.legends[0].get_texts()] == ["PoPE", "RoPE"]
        assert any("PoPE, pope-seed0" in axes.get_title() for axes in delta.axes)

    def test_rope_alone_has_no_picture_of_delta(self, make_run, tmp_path, drawn):
        result = inspect_models([make_run("rope")], device="cpu")
        assert "delta.png" not in [file.name for file in inspect_to(tmp_path / "out", result)]
        assert "radians" not in (tmp_path / "out" / "inspect.md").read_text()

    def test_an_interrupted_write_leaves_nothing_half(self, make_run, tmp_path, monkeypatch, drawn):
        result = inspect_models([make_run()], device="cpu")
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            inspect_to(tmp_path / "out", result)
        assert list((tmp_path / "out").iterdir()) == []

    def test_recipes_that_differ_are_kept_apart(self, make_run):
        runs = [make_run(), make_run(name="drawn", delta_init="uniform"), make_run(name="wide", width=32)]
        result = inspect_models(runs, device="cpu")
        assert sorted(result["groups"]) == [
            "pope, delta_init uniform, width 16",
            "pope, delta_init zero, width 16",
            "pope, delta_init zero, width 32",
        ]

    def test_a_seed_twice_is_no_second_seed(self, make_run):
        result = inspect_models([make_run(), make_run(folder="again")], device="cpu")
        assert list(result["groups"]) == ["pope, again/pope-seed0", "pope, runs/pope-seed0"]

    def test_a_run_named_twice_is_one(self, make_run, tmp_path):
        run = make_run()
        assert len(find_models([run, tmp_path / "runs", run / BEST])) == 1

    def test_a_file_alone(self, make_run, tmp_path):
        file = shutil.copy(make_run() / BEST, tmp_path / "model.safetensors")
        result = inspect_models([file], tmp_path / "data", device="cpu")
        assert [run["run"] for run in result["runs"]] == ["model"]

    def test_reads_other_data_of_the_same_tokens_and_says_so(self, make_run, tmp_path, drawn):
        other = tmp_path / "other"
        write_store(other, make_manifest(dataset="cousin"), {"validation": make_split([30], 9)})
        result = inspect_models([make_run()], other, device="cpu")
        assert (result["dataset"], result["runs"][0]["trained_on_this_data"]) == ("cousin", False)
        inspect_to(tmp_path / "out", result)
        assert "Trained on other data than is read here: pope-seed0." in (tmp_path / "out/inspect.md").read_text()

    def test_the_number_of_tokens(self, make_run):
        result = inspect_models([make_run()], device="cpu", tokens=20)
        assert result["protocol"]["tokens"] < 56
        assert result["protocol"]["windows"] < result["protocol"]["windows_in_split"]


class TestRefused:
    @pytest.mark.parametrize("position", ["nope", "alibi"])
    def test_encodings_without_frequencies(self, make_run, position):
        with pytest.raises(
            SeqpopeError, match=f"is of {position}, which has no freq.*pope, rope, yarn, pope-yarn; leave"
        ):
            find_models([make_run(position)])

    def test_frequencies_of_zero(self, make_run):
        with pytest.raises(SeqpopeError, match=r"longest_wavelength 50, so that some of its frequencies are 0"):
            find_models([make_run(longest_wavelength=50.0)])

    def test_nothing_there(self, tmp_path):
        with pytest.raises(SeqpopeError, match=r"no checkpoint at .*expected a \.safetensors file"):
            find_models([tmp_path])

    def test_no_magnitude_at_all(self):
        with pytest.raises(SeqpopeError, match=r"no query or key of layer 2 has a magnitude: its weights are 0"):
            shares(np.stack([np.ones((2, 3)), np.zeros((2, 3))]), [{"frequencies": [0, 1, 2]}])

    def test_damaged_words_beside_the_weights(self, make_run):
        place = make_run()
        (place / "config.yaml").write_text("a: b: c")
        with pytest.raises(SeqpopeError, match=r"config\.yaml cannot be read .*mend it or take it away"):
            find_models([place])
        info = read_info(place / BEST)
        info.model = ["width", 16]
        save_checkpoint(place / BEST, make_model(), info)
        with pytest.raises(SeqpopeError, match=r"its model is \['width', 16\]"):
            find_models([place])

    def test_no_weights_at_all(self, tmp_path):
        (tmp_path / "notes.txt").write_text("hello")
        with pytest.raises(SeqpopeError, match="is not a readable safetensors file"):
            find_models([tmp_path / "notes.txt"])

    def test_other_tokens(self, make_run, tmp_path):
        specification = {"name": "bases"}
        manifest = make_manifest(
            domain="genome", dataset="dna", tokenizer=specification, fingerprint=fingerprint(specification)
        )
        write_store(tmp_path / "dna", manifest, {"validation": make_split([30], 9)})
        with pytest.raises(SeqpopeError, match=r"trained on tokens \w+ \(tiny\), but the data set in .*dna has"):
            inspect_models([make_run()], tmp_path / "dna", device="cpu")

    def test_models_of_several_data_sets(self, make_run):
        one, other = make_run(), make_run("rope")
        info = read_info(other / BEST)
        info.dataset = "other"
        save_checkpoint(other / BEST, make_model("rope"), info)
        with pytest.raises(SeqpopeError, match=r"models of one data set, these are of other, tiny: inspect them"):
            inspect_models([one, other], device="cpu")

    def test_an_empty_split(self, make_run, tmp_path):
        empty = tmp_path / "empty"
        write_store(empty, make_manifest(), {"validation": pack([], [], [], np.uint8)})
        with pytest.raises(SeqpopeError, match="expected a split with tokens to read, and it has none"):
            inspect_models([make_run()], empty, device="cpu")

    def test_a_split_that_is_not_there(self, make_run, tmp_path):
        write_store(tmp_path / "half", make_manifest(), {"train": make_split([30], 9)})
        with pytest.raises(SeqpopeError, match="has the splits train; 'validation' was asked for"):
            inspect_models([make_run()], tmp_path / "half", device="cpu")

    def test_no_tokens(self, make_run):
        with pytest.raises(SeqpopeError, match="at least 1 token to read, --tokens is 0"):
            inspect_models([make_run()], tokens=0, device="cpu")
        with pytest.raises(SeqpopeError, match="at least 1 token to read, --batch-tokens is -1"):
            inspect_models([make_run()], batch_tokens=-1, device="cpu")


class TestVerb:
    def test_writes_beside_the_run(self, make_run, capsys, drawn):
        run = make_run()
        assert cli.main(["inspect", str(run), "--tokens", "30", "--device", "cpu"]) == 0
        assert json.loads((run / "inspect" / "inspect.json").read_text())["split"] == "validation"
        assert "pope (pope-seed0): at wavelengths over the training window of 16 tokens" in capsys.readouterr().out

    def test_the_shipped_model_on_what_data_there_is(self, make_run, tmp_path, monkeypatch, capsys):
        """Without a run; its data is jsb's."""
        monkeypatch.chdir(tmp_path)
        assert cli.main(["inspect", "--device", "cpu"]) == 1
        assert "run `seqpope prepare jsb` first" in capsys.readouterr().err
        store = make_run().parent.parent / "data"
        assert cli.main(["inspect", "--device", "cpu", "--data-folder", str(store / "tiny")]) == 1
        assert "prepare the data with the tokenizer of the model" in capsys.readouterr().err

    @pytest.mark.parametrize("place", ["file", "file/in/it", "loop"])
    def test_a_place_that_is_no_folder_is_refused_before_anything_is_read(self, tmp_path, capsys, place):
        (tmp_path / "file").touch()
        (tmp_path / "loop").symlink_to("loop")
        assert cli.main(["inspect", str(tmp_path / "no run"), "--out", str(tmp_path / place)]) == 1
        assert "what is no folder: choose another --out" in capsys.readouterr().err

    def test_so_is_the_default(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "inspect").touch()
        assert cli.main(["inspect", "no run"]) == 1
        assert "inspect is, or lies in, what is no folder" in capsys.readouterr().err

    def test_the_test_split_is_not_offered(self, capsys):
        with pytest.raises(SystemExit):
            cli.main(["inspect", "x", "--split", "test"])
        assert "validation" in capsys.readouterr().err
