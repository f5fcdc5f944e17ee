from __future__ import annotations

import json

import numpy as np
import pretty_midi
import pytest
import stores  # noqa: F401 - one thread for models this small
import torch

from seqpope import generate
from seqpope.checkpoint import CheckpointError, CheckpointInfo, save_checkpoint
from seqpope.domains.music.chorales.codec import Chorale, CodecError, read_score, write_midi
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.errors import SeqpopeError
from seqpope.generate import describe, generate_chorales
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer
from seqpope.sampling import SamplingConfig

TOKENIZER = ChoraleTokenizer()
STEPS_PER_BAR = 16
SHAPE = {"width": 16, "layers": 1, "heads": 2}


def make_checkpoint(path, **changes):
    torch.manual_seed(0)
    values = {
        "domain": "music",
        "dataset": "chorales",
        "position": "pope",
        "vocabulary_size": TOKENIZER.vocabulary_size,
        "padding_id": TOKENIZER.padding_id,
        "length": 128,
        "model": SHAPE,
        "tokenizer": TOKENIZER.specification,
        "fingerprint": TOKENIZER.fingerprint,
        "trained": {"seed": 3},
    }
    info = CheckpointInfo(**{**values, **changes})
    save_checkpoint(path, Transformer(info.vocabulary_size, info.position, ModelConfig(**SHAPE)), info)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors")


def make_prompt(path, steps=2 * STEPS_PER_BAR):
    step = np.arange(steps)[:, None]
    pitches = np.array([72, 67, 60, 48]) + step // 4 % 5
    pitches[steps // 2 :, 1] = -1  # the alto falls silent
    chorale = Chorale(pitches)
    write_midi(chorale, path)
    return chorale


@pytest.fixture
def prompt(tmp_path):
    return make_prompt(tmp_path / "prompt.mid")


class TestMidi:
    @pytest.mark.parametrize(("bars", "tempo"), [(1, 80), (3, 120)])
    def test_other_programs_can_read_it(self, tmp_path, checkpoint, bars, tempo):
        [(file, _)] = generate_chorales(tmp_path / "a.mid", checkpoint=checkpoint, bars=bars, tempo=tempo)
        assert file == tmp_path / "a.mid"
        midi = pretty_midi.PrettyMIDI(str(file))
        bar = 4 * 60 / tempo
        assert [track.name for track in midi.instruments] == ["Soprano", "Alto", "Tenor", "Bass"]
        assert midi.get_tempo_changes()[1] == pytest.approx([tempo], rel=1e-4)
        assert [event.time for event in midi.text_events] == pytest.approx([bars * bar], rel=1e-4)
        [signature] = midi.time_signature_changes
        assert (signature.numerator, signature.denominator, signature.time) == (4, 4, 0)
        assert 0 < max(note.end for track in midi.instruments for note in track.notes) <= bars * bar * 1.0001
        assert len(read_score(file)) == bars * STEPS_PER_BAR

    def test_merged_notes_are_fewer_and_say_the_same(self, tmp_path, checkpoint, prompt):
        counts = {}
        for merge in (True, False):
            out = tmp_path / f"{merge}.mid"
            generate_chorales(
                out, checkpoint=checkpoint, bars=1, prompt=tmp_path / "prompt.mid", merge_repeats=merge
            )
            counts[merge] = sum(len(track.notes) for track in pretty_midi.PrettyMIDI(str(out)).instruments)
        assert counts[True] < counts[False]
        merged, apart = (read_score(tmp_path / f"{merge}.mid") for merge in (True, False))
        assert np.array_equal(merged.pitches, apart.pitches)


class TestSeeds:
    def test_a_seed_is_a_file_whatever_is_drawn_beside_it(self, tmp_path, checkpoint):
        results = generate_chorales(tmp_path / "out", checkpoint=checkpoint, num=3, bars=1, seed=5)
        files = [file for file, _ in results]
        assert files == [tmp_path / "out" / f"chorale-{seed:04d}.mid" for seed in (5, 6, 7)]
        generate_chorales(tmp_path / "alone.mid", checkpoint=checkpoint, bars=1, seed=6)
        assert (tmp_path / "alone.mid").read_bytes() == files[1].read_bytes()
        assert len({file.read_bytes() for file in files}) == 3

    def test_again_is_the_same(self, tmp_path, checkpoint):
        for name in ("a", "b"):
            generate_chorales(tmp_path / f"{name}.mid", checkpoint=checkpoint, bars=2, seed=9)
        assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
        first, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("a", "b"))
        del first["date"], again["date"]
        assert first == again

    def test_one_into_a_folder(self, tmp_path, checkpoint):
        generate_chorales(tmp_path / "new" / "folder", checkpoint=checkpoint, bars=1)
        assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
            "chorale-0000.json",
            "chorale-0000.mid",
        ]


class TestPrompt:
    @pytest.mark.parametrize(("prompt_bars", "kept"), [(0, 2), (1, 1), (2, 2), (9, 2)])
    def test_opens_the_output(self, tmp_path, checkpoint, prompt, prompt_bars, kept):
        out = tmp_path / "out.mid"
        generate_chorales(
            out, checkpoint=checkpoint, bars=1, prompt=tmp_path / "prompt.mid", prompt_bars=prompt_bars
        )
        got = read_score(out)
        steps = kept * STEPS_PER_BAR
        assert len(got) == steps + STEPS_PER_BAR
        assert np.array_equal(got.pitches[:steps], prompt.pitches[:steps])
        assert json.loads(out.with_suffix(".json").read_text())["settings"]["prompt_tokens"] == 4 * steps

    def test_that_ends_inside_a_bar(self, tmp_path, checkpoint):
        prompt = make_prompt(tmp_path / "prompt.mid", steps=6)
        generate_chorales(tmp_path / "out.mid", checkpoint=checkpoint, bars=2, prompt=tmp_path / "prompt.mid")
        got = read_score(tmp_path / "out.mid")
        assert len(got) == 6 + 2 * STEPS_PER_BAR
        assert np.array_equal(got.pitches[:6], prompt.pitches)

    def test_decides_what_follows(self, tmp_path, checkpoint):
        """The continuation is the model's after that prompt: token by token the likeliest, without a cache."""
        prompt = make_prompt(tmp_path / "prompt.mid", steps=3)
        generate_chorales(
            tmp_path / "out.mid",
            checkpoint=checkpoint,
            bars=1,
            prompt=tmp_path / "prompt.mid",
            config=SamplingConfig(temperature=0.0),
        )
        model, _ = generate.load_checkpoint(checkpoint)
        ids = [TOKENIZER.padding_id, *TOKENIZER.encode(prompt).tolist()]
        with torch.no_grad():
            for _ in range(TOKENIZER.tokens_per_bar):
                logits = model(torch.tensor([ids]))[0, -1]
                logits[TOKENIZER.padding_id] = float("-inf")
                ids.append(int(logits.argmax()))
        assert np.array_equal(read_score(tmp_path / "out.mid").pitches, TOKENIZER.decode(ids[1:]).pitches)

    def test_that_cannot_be_read(self, tmp_path, checkpoint):
        (tmp_path / "bad.mid").write_bytes(b"no music")
        for name in ("bad.mid", "nothing.mid", "bad.txt"):
            with pytest.raises(CodecError, match=name.split(".")[0]):
                generate_chorales(tmp_path / "out.mid", checkpoint=checkpoint, prompt=tmp_path / name)
        assert not (tmp_path / "out.mid").exists()


class TestSidecar:
    def test_says_how_it_was_made(self, tmp_path, checkpoint, prompt):
        config = SamplingConfig(temperature=0.9, top_k=20, top_p=0.95)
        generate_chorales(
            tmp_path / "out",
            checkpoint=checkpoint,
            num=2,
            bars=1,
            prompt=tmp_path / "prompt.mid",
            prompt_bars=1,
            config=config,
            seed=4,
            tempo=100.0,
            device="cpu",
        )
        sidecar = json.loads((tmp_path / "out" / "chorale-0005.json").read_text())
        assert sidecar["model"] == {
            "checkpoint": str(checkpoint),
            "position": "pope",
            "dataset": "chorales",
            "fingerprint": TOKENIZER.fingerprint,
            "trained": {"seed": 3},
        }
        assert sidecar["settings"] == {
            "temperature": 0.9,
            "top_k": 20,
            "top_p": 0.95,
            "bars": 1,
            "prompt": str(tmp_path / "prompt.mid"),
            "prompt_tokens": 64,
            "tempo": 100.0,
            "merge_repeats": True,
            "samples_in_batch": 2,
        }
        assert sidecar["seed"] == 5
        assert sidecar["tokens"] == 64
        assert sidecar.keys() >= {"versions", "commit", "device", "date"}

    def test_nats_are_the_model_s_own_of_what_was_drawn(self, tmp_path, checkpoint, prompt):
        generate_chorales(
            tmp_path / "out.mid",
            checkpoint=checkpoint,
            bars=1,
            prompt=tmp_path / "prompt.mid",
            config=SamplingConfig(temperature=0.5),
        )
        model, _ = generate.load_checkpoint(checkpoint)
        ids = torch.from_numpy(TOKENIZER.encode(read_score(tmp_path / "out.mid")).astype("int64"))
        with torch.no_grad():
            logits = model(torch.cat((torch.tensor([TOKENIZER.padding_id]), ids[:-1]))[None])[0]
        nats = torch.nn.functional.cross_entropy(logits, ids, reduction="none")[128:]
        assert len(nats) == 64
        sidecar = json.loads((tmp_path / "out.json").read_text())
        assert sidecar["nats_per_token"] == pytest.approx(float(nats.mean()), rel=1e-5)

    @pytest.mark.parametrize(("bars", "beyond"), [(1, False), (2, False), (3, True)])
    def test_warns_of_more_than_was_trained(self, tmp_path, checkpoint, bars, beyond):
        generate_chorales(tmp_path / "a.mid", checkpoint=checkpoint, bars=bars)  # trained on 128 tokens
        assert json.loads((tmp_path / "a.json").read_text())["beyond_training_length"] is beyond


class TestRefused:
    @pytest.mark.parametrize(
        ("out", "num", "message"),
        [
            ("a.mid", 2, "2 samples do not fit into the one file .*a.mid: name a folder"),
            ("a.wav", 1, "expected a .mid file or a folder, not a .wav file"),
            ("folder.mid", 1, "exists and is not a file"),
            ("file", 1, "exists and is not a folder"),
        ],
    )
    def test_out_of_the_wrong_kind(self, tmp_path, checkpoint, out, num, message):
        (tmp_path / "folder.mid").mkdir()
        (tmp_path / "file").write_text("mine")
        with pytest.raises(SeqpopeError, match=message):
            generate_chorales(tmp_path / out, checkpoint=checkpoint, num=num, bars=1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mid"]
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize(
        "settings",
        [
            {"num": 0},
            {"bars": 0},
            {"prompt_bars": -1},
            {"seed": -1},
            {"seed": 2**64},
            {"tempo": 9.0},
            {"tempo": 401.0},
            {"tempo": float("nan")},
        ],
        ids=str,
    )
    def test_numbers_that_make_no_sense(self, tmp_path, checkpoint, settings):
        with pytest.raises(SeqpopeError, match="expected num and bars of at least 1"):
            generate_chorales(tmp_path / "a.mid", checkpoint=checkpoint, **settings)
        assert list(tmp_path.iterdir()) == []

    def test_a_model_of_other_tokens(self, tmp_path):
        other = make_checkpoint(tmp_path / "other.safetensors", dataset="genome", fingerprint="ab" * 32)
        with pytest.raises(
            CheckpointError,
            match=rf"tokens abababababab \(genome\), but this version's .* has {TOKENIZER.fingerprint[:12]}",
        ):
            generate_chorales(tmp_path / "a.mid", checkpoint=other)
        assert not (tmp_path / "a.mid").exists()

    def test_no_model_is_there(self, tmp_path, monkeypatch):
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            generate_chorales(tmp_path / "a.mid", checkpoint=tmp_path / "nothing")
        monkeypatch.setattr(generate, "SHIPPED", tmp_path / "none.safetensors")
        with pytest.raises(SeqpopeError, match="no model is shipped with this copy: train one"):
            generate_chorales(tmp_path / "a.mid")


def test_the_shipped_model(tmp_path):
    """What `seqpope generate` does with no checkpoint given: it fits this version and writes music."""
    [(file, text)] = generate_chorales(tmp_path / "a.mid", bars=1, device="cpu")
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert sidecar["model"]["checkpoint"] == "shipped"
    assert sidecar["nats_per_token"] < 1.5  # knowing nothing of music costs log 89 = 4.5
    assert len(read_score(file)) == STEPS_PER_BAR
    assert f"{sidecar['nats_per_token']:.3f} nats/token" in text


def test_description():
    chorale = Chorale(np.array([[72, -1, 60, 48], [74, -1, 59, 36]]))
    assert (
        describe(chorale, 0.5, 3)
        == "2 steps (3 bars drawn), S 72-74, A silent, T 59-60, B 36-48, 0.500 nats/token"
    )


def test_progress(tmp_path, checkpoint):
    calls = []
    generate_chorales(
        tmp_path / "a.mid", checkpoint=checkpoint, bars=1, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(i + 1, 64) for i in range(64)]
