"""Performances drawn and continued: what the prompt was stays, what is drawn keeps to what was asked."""

from __future__ import annotations

import json

import numpy as np
import pretty_midi
import pytest
import stores  # noqa: F401 - one thread for models this small
import torch
from piano_pieces import midi_bytes, note, random_performance, wait

from seqpope.checkpoint import CheckpointError, CheckpointInfo, save_checkpoint
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.domains.music.piano.codec import CodecError, Performance, read_midi, write_midi
from seqpope.domains.music.piano.tokenizer import PerformanceTokenizer, RemiTokenizer, TokenError
from seqpope.errors import SeqpopeError
from seqpope.generate.draw import Draw
from seqpope.generate.piano import PianoOutput, generate_piano, parse_keys
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer
from seqpope.sampling import SamplingConfig

SHAPE = {"width": 16, "layers": 1, "heads": 2}
TOKENIZERS = {"remi": RemiTokenizer(), "performance": PerformanceTokenizer()}
RATES = {"remi": 16, "performance": 100}


def make_checkpoint(path, tokenizer, **changes):
    torch.manual_seed(0)
    values = {
        "domain": "music",
        "dataset": "maestro",
        "position": "pope",
        "vocabulary_size": tokenizer.vocabulary_size,
        "padding_id": 0,
        "length": 1024,
        "model": SHAPE,
        "tokenizer": tokenizer.specification,
        "fingerprint": tokenizer.fingerprint,
    }
    info = CheckpointInfo(**{**values, **changes})
    save_checkpoint(path, Transformer(info.vocabulary_size, info.position, ModelConfig(**SHAPE)), info)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: make_checkpoint(folder / f"{name}.safetensors", t) for name, t in TOKENIZERS.items()}


@pytest.fixture(params=list(TOKENIZERS))
def kind(request):
    return request.param


@pytest.fixture
def checkpoint(kind, checkpoints):
    return checkpoints[kind]


def run(out, *, formats=(), **options):
    names = ("num", "seed", "batch_size", "particles", "context", "config", "device", "progress")
    draw = Draw(**{name: options.pop(name) for name in names if name in options})
    return generate_piano(PianoOutput(out, formats), draw, **options)


def sidecar(file):
    return json.loads(file.with_suffix(".json").read_text())


def make_prompt(path, seed=0, notes=40):
    played = random_performance(seed, notes)
    write_midi(played, path)
    return read_midi(path)


class TestLength:
    @pytest.mark.parametrize("seconds", [0.1, 2.0, 5.3])
    def test_is_what_was_asked(self, tmp_path, kind, checkpoint, seconds):
        results = run(tmp_path / "a", checkpoint=checkpoint, num=3, seconds=seconds)
        for file, line in results:
            played = read_midi(file)
            assert 0 < played.seconds <= seconds + 1e-3
            assert (played.onset < seconds).all()
            told = sidecar(file)
            assert told["seconds"] == seconds
            assert told["notes"] == len(played)
            assert f"{seconds:g} s drawn, {len(played)} notes" in line
            assert told["nats_per_note"] == pytest.approx(told["nats_per_token"] * told["tokens"] / told["notes"])
            assert told["nats_per_second"] == pytest.approx(told["nats_per_token"] * told["tokens"] / seconds)
            assert told["beyond_training_length"] == (told["tokens"] > 1024)

    def test_progress_is_in_seconds_of_it(self, tmp_path, checkpoint):
        """Of all samples, whatever number of tokens they take; the prompt does not count."""
        calls = []
        make_prompt(tmp_path / "p.mid")
        options = {"prompt": tmp_path / "p.mid", "prompt_seconds": 2.0, "num": 3, "batch_size": 2, "seconds": 5.0}
        progress = lambda done, total: calls.append((done, total))  # noqa: E731
        run(tmp_path / "a", checkpoint=checkpoint, progress=progress, **options)
        done = [each for each, _ in calls]
        assert done == sorted(done)
        assert done[0] <= 2
        assert done[-1] == 15
        assert {total for _, total in calls} == {15}
        assert len(set(done)) > 5

    def test_nats_are_the_model_s_own(self, tmp_path, kind, checkpoints):
        """Of the tokens drawn before the last one that counts: padding behind the end costs nothing."""
        torch.manual_seed(1)
        [(one, _)] = run(tmp_path / "one.mid", checkpoint=checkpoints[kind], seed=3, seconds=1.0)
        run(tmp_path / "many", checkpoint=checkpoints[kind], seed=0, num=5, seconds=1.0)
        beside = tmp_path / "many" / "piano-0003.mid"
        assert beside.read_bytes() == one.read_bytes()
        alone, among = sidecar(one), sidecar(beside)
        assert alone["tokens"] == among["tokens"]
        assert alone["nats_per_token"] == pytest.approx(among["nats_per_token"], rel=1e-4)

    def test_a_short_context_slides(self, tmp_path, checkpoint):
        [(file, _)] = run(tmp_path / "a.mid", checkpoint=checkpoint, seconds=6.0, context=64)
        assert sidecar(file)["tokens_forgotten"] > 0
        assert read_midi(file).seconds > 4

    def test_other_programs_can_read_it(self, tmp_path, checkpoint):
        for file, _ in run(tmp_path / "a", checkpoint=checkpoint, num=3, seconds=4.0):
            midi = pretty_midi.PrettyMIDI(str(file))
            [track] = midi.instruments  # a key that is struck again ended before: one track is enough
            assert len(track.notes) == sidecar(file)["notes"]


class TestPrompt:
    @pytest.mark.parametrize("prompt_seconds", [None, 1.0, 3.21])
    def test_opens_the_output_as_it_was_played(self, tmp_path, kind, checkpoint, prompt_seconds):
        prompt = make_prompt(tmp_path / "prompt.mid")
        cut = prompt.seconds if prompt_seconds is None else prompt_seconds
        [(file, line)] = run(
            tmp_path / "a.mid", checkpoint=checkpoint, seconds=4.0, prompt=tmp_path / "prompt.mid",
            prompt_seconds=prompt_seconds, context=4096,
        )  # fmt: skip
        played, told = read_midi(file), sidecar(file)
        kept = prompt.onset < cut
        count = int(kept.sum())
        assert told["settings"]["prompt_notes"] == told["settings"]["prompt_notes_read"] == count
        # Files have notes of one time by how long they are.
        order = np.lexsort((played.pitch[:count], played.onset[:count]))
        there = np.flatnonzero(kept)[np.lexsort((prompt.pitch[kept], prompt.onset[kept]))]
        assert played.onset[order] == pytest.approx(prompt.onset[there], abs=1e-9)
        assert np.array_equal(played.pitch[order], prompt.pitch[there])
        assert np.array_equal(played.velocity[order], prompt.velocity[there])
        # What ended before the cut is as long as it was.
        over = prompt.sounding().end[there] < cut
        assert over.any()
        assert played.duration[order][over] == pytest.approx(prompt.duration[there][over], abs=1e-9)
        assert played.pedal.max(initial=0) <= cut + 1e-3
        assert (played.onset[count:] >= cut - 1e-3).all()
        assert len(played) - count == told["notes"] > 0
        assert played.seconds <= cut + 4 + 1 / RATES[kind] + 1e-3 or prompt.end[kept].max() > cut
        assert f"{cut:.1f} s of prompt, 4 s drawn" in line

    def test_of_a_long_one_the_end_is_read(self, tmp_path, kind, checkpoint):
        prompt = make_prompt(tmp_path / "prompt.mid", notes=900)
        [(file, line)] = run(
            tmp_path / "a.mid", checkpoint=checkpoint, seconds=2.0, prompt=tmp_path / "prompt.mid"
        )
        asked = sidecar(file)["settings"]
        assert asked["prompt_notes"] == 900
        assert 100 < asked["prompt_notes_read"] < 200
        assert 400 < asked["prompt_tokens"] <= 511  # half of the 1,024 that the model was trained on
        begin = asked["prompt_read_from_second"]
        assert asked["prompt_notes_read"] == int((prompt.onset >= begin).sum())
        assert begin % 2 == 0
        played = read_midi(file)
        assert np.array_equal(played.pitch[:900], prompt.pitch)
        assert f"read from {begin:g} s on" in line
        [(_, line)] = run(
            tmp_path / "b.mid", checkpoint=checkpoint, seconds=2.0, prompt=tmp_path / "prompt.mid", context=16384
        )
        assert "read from" not in line

    def test_decides_what_follows(self, tmp_path, checkpoint):
        drawn = {}
        for seed in (0, 1):
            make_prompt(tmp_path / f"{seed}.mid", seed)
            [(file, _)] = run(
                tmp_path / f"{seed}-on.mid", checkpoint=checkpoint, seconds=4.0, prompt=tmp_path / f"{seed}.mid",
                prompt_seconds=2.0, config=SamplingConfig(temperature=0.0),
            )  # fmt: skip
            played = read_midi(file)
            drawn[seed] = played.pitch[played.onset >= 2].tolist()
        assert drawn[0] != drawn[1]

    def test_of_any_tempo(self, tmp_path, checkpoint):
        """A quarter of a second each at 240 quarters a minute, in a file that counts quarters."""
        events = b"\x00\xff\x51\x03" + (250_000).to_bytes(3, "big")
        events += b"".join(note(60 + i, 480) for i in range(8))
        (tmp_path / "prompt.mid").write_bytes(midi_bytes(events))
        [(file, _)] = run(tmp_path / "a.mid", checkpoint=checkpoint, seconds=1.0, prompt=tmp_path / "prompt.mid")
        assert read_midi(file).onset[:8] == pytest.approx(np.arange(8) / 4)
        assert sidecar(file)["settings"]["prompt_seconds"] == pytest.approx(2.0)

    def test_keys_held_at_the_cut_are_released(self, tmp_path, kind, checkpoint):
        """A key held when the prompt is cut sounds until the tokens release it, by the end at the latest."""
        write_midi(Performance([0, 0.5], [5, 5], [60, 64], [80, 80]), tmp_path / "prompt.mid")
        [(file, _)] = run(
            tmp_path / "a.mid", checkpoint=checkpoint, seconds=2.0, prompt=tmp_path / "prompt.mid",
            prompt_seconds=1.0, keys=(30, 31),
        )  # fmt: skip
        played = read_midi(file)
        assert played.pitch[:2].tolist() == [60, 64]
        if kind == "performance":
            assert ((played.end[:2] >= 1.0) & (played.end[:2] <= 3.0 + 1e-3)).all()
        else:
            assert played.duration[:2] == pytest.approx([5, 5], abs=1e-3)

    def test_what_the_tokens_have_ended_ends(self, tmp_path, kind, checkpoint):
        """A key struck again while it is held: the note before is over when the prompt is."""
        write_midi(Performance([0, 0.5], [9, 0.2], [60, 60], [80, 80]), tmp_path / "prompt.mid")
        [(file, _)] = run(
            tmp_path / "a.mid", checkpoint=checkpoint, seconds=2.0, prompt=tmp_path / "prompt.mid",
            prompt_seconds=1.0, keys=(30, 31),
        )  # fmt: skip
        played = read_midi(file)
        assert played.pitch[:2].tolist() == [60, 60]
        expected = {"performance": [1.0, 0.2], "remi": [9.0, 0.2]}[kind]  # REMI's durations may overlap
        assert played.duration[:2] == pytest.approx(expected, abs=1e-3)


class TestLimits:
    def test_keys_and_polyphony(self, tmp_path, kind, checkpoint):
        make_prompt(tmp_path / "prompt.mid")
        for prompt in (None, tmp_path / "prompt.mid"):
            files = run(
                tmp_path / "a", checkpoint=checkpoint, num=4, seconds=6.0, keys=(48, 60), polyphony=2,
                prompt=prompt, prompt_seconds=None if prompt is None else 1.5,
            )  # fmt: skip
            for file, _ in files:
                played = read_midi(file)
                drawn = played.onset >= (0.0 if prompt is None else 1.5 - 1e-3)
                assert drawn.sum() == sidecar(file)["notes"] > 0
                assert ((played.pitch[drawn] >= 48) & (played.pitch[drawn] <= 60)).all()
                if prompt is None:
                    ticks = np.rint(1920 * played.onset), np.rint(1920 * played.end)
                    for now in ticks[0]:
                        assert ((ticks[0] <= now) & (ticks[1] > now)).sum() <= 2
                assert sidecar(file)["settings"]["keys"] == [48, 60]
                assert sidecar(file)["settings"]["polyphony"] == 2

    @pytest.mark.parametrize(
        ("text", "keys"),
        [("36-84", (36, 84)), ("C2-C6", (36, 84)), ("c4 - c4", (60, 60)), ("F#3-Bb5", (54, 82)),
         ("A0-C8", (21, 108)), ("Cb4-B#4", (59, 72)), ("60-B4", (60, 71)), ("bb3-b3", (58, 59))],
    )  # fmt: skip
    def test_names_of_keys(self, text, keys):
        assert parse_keys(text) == keys

    @pytest.mark.parametrize("text", ["84-36", "C6-C2", "0-60", "60-109", "G0-A0"])
    def test_keys_that_are_no_range(self, text):
        with pytest.raises(
            SeqpopeError, match=rf"keys: {text} is .*expected a range in 21-108 \(A0-C8\), the lower"
        ):
            parse_keys(text)

    @pytest.mark.parametrize("text", ["", "C4", "H1-H2", "60", "60-", "1.5-60", "C-D"])
    def test_keys_that_are_none(self, text):
        with pytest.raises(SeqpopeError, match="expected the lowest and the highest key, such as 36-84 or C2-C6"):
            parse_keys(text)


class TestFormats:
    def test_all(self, tmp_path, checkpoint, monkeypatch):
        from seqpope.domains.music import audio

        monkeypatch.setattr(audio, "find_soundfont", lambda given=None: None)
        monkeypatch.setattr(audio, "find_fluidsynth", lambda: None)
        monkeypatch.setattr(
            audio, "write_wav", lambda midi, out, soundfont=None: out.write_bytes(midi.read_bytes()[:4])
        )
        make_prompt(tmp_path / "prompt.mid")
        run(
            tmp_path / "a.wav", checkpoint=checkpoint, seconds=1.0, formats=("mid", "png"),
            prompt=tmp_path / "prompt.mid", prompt_seconds=2.0,
        )  # fmt: skip
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "a.json",
            "a.mid",
            "a.png",
            "a.wav",
            "prompt.mid",
        ]
        assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
        assert (tmp_path / "a.wav").read_bytes() == b"MThd"

    def test_sidecar_says_how(self, tmp_path, checkpoint):
        run(tmp_path / "a.mid", checkpoint=checkpoint, seconds=1.0, seed=4, config=SamplingConfig(0.9, top_k=9))
        told = json.loads((tmp_path / "a.json").read_text())
        assert told["seed"] == 4
        assert told["model"]["checkpoint"] == str(checkpoint)
        assert told["settings"] | {
            "temperature": 0.9, "top_k": 9, "seconds": 1.0, "prompt": None, "prompt_seconds": 0.0,
            "prompt_notes": 0, "prompt_tokens": 0, "keys": [21, 108], "polyphony": None, "particles": 1,
        } == told["settings"]  # fmt: skip
        assert told.keys() >= {"versions", "commit", "device", "date", "notes", "nats_per_note", "nats_per_second"}


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"seconds": 0.0}, r"seconds must be from 0.1 to 3600, they are 0\.0"),
            ({"seconds": float("nan")}, "seconds must be from"),
            ({"seconds": 3601.0}, "seconds must be from"),
            ({"polyphony": 0}, "the polyphony must be at least 1, it is 0"),
            ({"keys": (60, 50)}, "the keys 60-50 must lie in a piano's 21-108, the lower one first"),
            ({"prompt_seconds": 3.0}, "are those of a prompt: name one"),
            ({"num": 2}, "2 samples do not fit into the one file"),
            ({"formats": ("musicxml",)}, "unknown format 'musicxml': expected some of mid, wav, png"),
            ({"context": 5}, "context must be at least 16"),
        ],
        ids=str,
    )
    def test_numbers_that_make_no_sense(self, tmp_path, checkpoint, options, message):
        with pytest.raises(SeqpopeError, match=message):
            run(tmp_path / "a.mid", checkpoint=checkpoint, **options)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("content", "options", "message", "error"),
        [
            (midi_bytes(b""), {}, "has no notes: expected a piano performance", CodecError),
            (midi_bytes(note(36, 10, channel=9)), {}, "has drums only: expected a piano", CodecError),
            (midi_bytes(note(10, 480)), {}, "pitch 10 is outside a piano's 21..108", TokenError),
            (b"no music", {}, "is not a MIDI file", CodecError),
            (midi_bytes(note(60, 480, before=4800)), {"prompt_seconds": 2.0},
             r"no note in its first 2 s, its first note comes at 5\.00 s: use more", SeqpopeError),
            (midi_bytes(note(60, 480)), {"prompt_seconds": 0.0}, "prompt_seconds must be above 0", SeqpopeError),
            (midi_bytes(b"".join(note(60 + i % 12, 20) for i in range(60))), {"context": 16},
             r"takes more than the 7 tokens of it that may be read \(half of the context\)", SeqpopeError),
        ],
    )  # fmt: skip
    def test_prompts(self, tmp_path, checkpoint, content, options, message, error):
        (tmp_path / "prompt.mid").write_bytes(content)
        with pytest.raises(error, match=message):
            run(tmp_path / "a.mid", checkpoint=checkpoint, prompt=tmp_path / "prompt.mid", **options)
        assert [path.name for path in tmp_path.iterdir()] == ["prompt.mid"]

    def test_an_empty_prompt_of_pauses(self, tmp_path, checkpoint):
        (tmp_path / "prompt.mid").write_bytes(midi_bytes(wait(500) + b"\xb0\x40\x7f"))
        with pytest.raises(CodecError, match="has no notes"):
            run(tmp_path / "a.mid", checkpoint=checkpoint, prompt=tmp_path / "prompt.mid")

    def test_the_prompt_is_not_written_over(self, tmp_path, checkpoint):
        make_prompt(tmp_path / "prompt.mid")
        before = (tmp_path / "prompt.mid").read_bytes()
        with pytest.raises(SeqpopeError, match="is what is read"):
            run(tmp_path / "prompt.mid", checkpoint=checkpoint, prompt=tmp_path / "prompt.mid")
        assert (tmp_path / "prompt.mid").read_bytes() == before

    def test_models(self, tmp_path):
        with pytest.raises(SeqpopeError, match="no piano model is shipped: train one"):
            run(tmp_path / "a.mid")
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            run(tmp_path / "a.mid", checkpoint=tmp_path / "nothing")
        other = make_checkpoint(tmp_path / "c.safetensors", ChoraleTokenizer(), dataset="jsb")
        with pytest.raises(CheckpointError, match=r"\(jsb\), which are none of piano performances"):
            run(tmp_path / "a.mid", checkpoint=other)
        assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
