from __future__ import annotations

import json

import numpy as np
import pretty_midi
import pytest
import stores  # noqa: F401 - one thread for models this small
import torch

from seqpope.checkpoint import SHIPPED, CheckpointError, CheckpointInfo, load_checkpoint, save_checkpoint
from seqpope.domains.music.chorales.codec import Chorale, CodecError, read_score, write_midi
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.errors import SeqpopeError
from seqpope.generate import chorales as generate
from seqpope.generate.chorales import ChoraleOutput, describe, fit, generate_chorales, harmonize, parse_voices
from seqpope.generate.draw import Draw
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


def draw_chorales(out, *, formats=(), tempo=80.0, merge_repeats=True, **options):
    names = ("num", "seed", "batch_size", "particles", "greed", "context", "config", "device", "progress")
    draw = Draw(**{name: options.pop(name) for name in names if name in options})
    return generate_chorales(
        ChoraleOutput(out, formats, tempo=tempo, merge_repeats=merge_repeats), draw, **options
    )


@pytest.fixture
def prompt(tmp_path):
    return make_prompt(tmp_path / "prompt.mid")


class TestMidi:
    @pytest.mark.parametrize(("bars", "tempo"), [(1, 80), (3, 120)])
    def test_other_programs_can_read_it(self, tmp_path, checkpoint, bars, tempo):
        [(file, _)] = draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, bars=bars, tempo=tempo)
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
            draw_chorales(out, checkpoint=checkpoint, bars=1, prompt=tmp_path / "prompt.mid", merge_repeats=merge)
            counts[merge] = sum(len(track.notes) for track in pretty_midi.PrettyMIDI(str(out)).instruments)
        assert counts[True] < counts[False]
        merged, apart = (read_score(tmp_path / f"{merge}.mid") for merge in (True, False))
        assert np.array_equal(merged.pitches, apart.pitches)


class TestSeeds:
    def test_a_seed_is_a_file_whatever_is_drawn_beside_it(self, tmp_path, checkpoint):
        results = draw_chorales(tmp_path / "out", checkpoint=checkpoint, num=3, bars=1, seed=5)
        files = [file for file, _ in results]
        assert files == [tmp_path / "out" / f"chorale-{seed:04d}.mid" for seed in (5, 6, 7)]
        draw_chorales(tmp_path / "alone.mid", checkpoint=checkpoint, bars=1, seed=6)
        assert (tmp_path / "alone.mid").read_bytes() == files[1].read_bytes()
        assert len({file.read_bytes() for file in files}) == 3

    def test_again_is_the_same(self, tmp_path, checkpoint):
        for name in ("a", "b"):
            draw_chorales(tmp_path / f"{name}.mid", checkpoint=checkpoint, bars=2, seed=9)
        assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
        first, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("a", "b"))
        del first["date"], again["date"]
        assert first == again

    def test_one_into_a_folder(self, tmp_path, checkpoint):
        draw_chorales(tmp_path / "new" / "folder", checkpoint=checkpoint, bars=1)
        assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
            "chorale-0000.json",
            "chorale-0000.mid",
        ]


class TestPrompt:
    @pytest.mark.parametrize(("prompt_bars", "kept"), [(0, 2), (1, 1), (2, 2), (9, 2)])
    def test_opens_the_output(self, tmp_path, checkpoint, prompt, prompt_bars, kept):
        out = tmp_path / "out.mid"
        draw_chorales(out, checkpoint=checkpoint, bars=1, prompt=tmp_path / "prompt.mid", prompt_bars=prompt_bars)
        got = read_score(out)
        steps = kept * STEPS_PER_BAR
        assert len(got) == steps + STEPS_PER_BAR
        assert np.array_equal(got.pitches[:steps], prompt.pitches[:steps])
        assert json.loads(out.with_suffix(".json").read_text())["settings"]["prompt_tokens"] == 4 * steps

    def test_that_ends_inside_a_bar(self, tmp_path, checkpoint):
        prompt = make_prompt(tmp_path / "prompt.mid", steps=6)
        draw_chorales(tmp_path / "out.mid", checkpoint=checkpoint, bars=2, prompt=tmp_path / "prompt.mid")
        got = read_score(tmp_path / "out.mid")
        assert len(got) == 6 + 2 * STEPS_PER_BAR
        assert np.array_equal(got.pitches[:6], prompt.pitches)

    def test_decides_what_follows(self, tmp_path, checkpoint):
        """The continuation is the model's after that prompt: token by token the likeliest, without a cache."""
        prompt = make_prompt(tmp_path / "prompt.mid", steps=3)
        draw_chorales(
            tmp_path / "out.mid",
            checkpoint=checkpoint,
            bars=1,
            prompt=tmp_path / "prompt.mid",
            config=SamplingConfig(temperature=0.0),
        )
        model, _ = load_checkpoint(checkpoint)
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
                draw_chorales(tmp_path / "out.mid", checkpoint=checkpoint, prompt=tmp_path / name)
        assert not (tmp_path / "out.mid").exists()


class TestSidecar:
    def test_says_how_it_was_made(self, tmp_path, checkpoint, prompt):
        config = SamplingConfig(temperature=0.9, top_k=20, top_p=0.95)
        draw_chorales(
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
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "bars": 1.0,
            "prompt": str(tmp_path / "prompt.mid"),
            "prompt_tokens": 64,
            "given": None,
            "voices": [],
            "rules": {},
            "particles": 1,
            "greed": 0.0,
            "context": None,
            "tempo": 100.0,
            "merge_repeats": True,
            "batch_size": 16,
            "samples": 2,
        }
        assert sidecar["seed"] == 5
        assert sidecar["tokens"] == 64
        assert sidecar.keys() >= {"versions", "commit", "device", "date"}

    def test_nats_are_the_model_s_own_of_what_was_drawn(self, tmp_path, checkpoint, prompt):
        draw_chorales(
            tmp_path / "out.mid",
            checkpoint=checkpoint,
            bars=1,
            prompt=tmp_path / "prompt.mid",
            config=SamplingConfig(temperature=0.5),
        )
        model, _ = load_checkpoint(checkpoint)
        ids = torch.from_numpy(TOKENIZER.encode(read_score(tmp_path / "out.mid")).astype("int64"))
        with torch.no_grad():
            logits = model(torch.cat((torch.tensor([TOKENIZER.padding_id]), ids[:-1]))[None])[0]
        nats = torch.nn.functional.cross_entropy(logits, ids, reduction="none")[128:]
        assert len(nats) == 64
        sidecar = json.loads((tmp_path / "out.json").read_text())
        assert sidecar["nats_per_token"] == pytest.approx(float(nats.mean()), rel=1e-5)

    @pytest.mark.parametrize(("bars", "beyond"), [(1, False), (2, False), (3, True)])
    def test_warns_of_more_than_was_trained(self, tmp_path, checkpoint, bars, beyond):
        draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, bars=bars)  # trained on 128 tokens
        assert json.loads((tmp_path / "a.json").read_text())["beyond_training_length"] is beyond


class TestRefused:
    @pytest.mark.parametrize(
        ("out", "num", "message"),
        [
            ("a.mid", 2, "2 samples do not fit into the one file .*a.mid: name a folder"),
            ("a.txt", 1, "expected a folder or a file that ends in .mid.*, not .txt"),
            ("folder.mid", 1, "exists and is not a file"),
            ("file", 1, "exists and is not a folder"),
        ],
    )
    def test_out_of_the_wrong_kind(self, tmp_path, checkpoint, out, num, message):
        (tmp_path / "folder.mid").mkdir()
        (tmp_path / "file").write_text("mine")
        with pytest.raises(SeqpopeError, match=message):
            draw_chorales(tmp_path / out, checkpoint=checkpoint, num=num, bars=1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mid"]
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num": 0}, "expected num, batch_size and particles of at least 1"),
            ({"batch_size": 0}, "expected num, batch_size"),
            ({"particles": 0}, "expected num, batch_size"),
            ({"bars": 0}, "bars must be at least 1, they are 0"),
            ({"bars": 2000}, "32000 sixteenths are more than the 16384"),
            ({"seconds": 0.0}, "seconds must be above 0"),
            ({"seconds": float("nan")}, "seconds must be above 0"),
            ({"seconds": 3.0, "bars": 1}, "say the same twice"),
            ({"prompt_bars": -1}, "prompt_bars must be at least 0"),
            ({"seed": -1}, "seeds of 32 bits"),
            ({"seed": 2**32}, "seeds of 32 bits"),
            ({"seconds": 1e308}, "at most a day"),
            ({"prompt_bars": 2}, "are those of a prompt"),
            ({"voices": "bass"}, "are those of a given score"),
            ({"context": 15}, "context must be at least 16"),
            ({"greed": -1.0}, "greed must be from 0 to 100"),
            ({"formats": ("mp3",)}, "unknown format 'mp3'"),
            ({"tempo": 9.0}, "tempo must be 10 to 400"),
            ({"tempo": 401.0}, "tempo must be 10 to 400"),
            ({"tempo": float("nan")}, "tempo must be 10 to 400"),
            ({"rules": {"fugue": True}}, "unknown rule 'fugue'"),
            ({"rules": {"cadence": True}, "seconds": 1e9}, "at most a day"),
        ],
        ids=str,
    )
    def test_numbers_that_make_no_sense(self, tmp_path, checkpoint, settings, message):
        with pytest.raises(SeqpopeError, match=message):
            draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, **settings)
        assert list(tmp_path.iterdir()) == []

    def test_a_model_of_other_tokens(self, tmp_path):
        other = make_checkpoint(tmp_path / "other.safetensors", dataset="genome", fingerprint="ab" * 32)
        with pytest.raises(
            CheckpointError,
            match=rf"tokens abababababab \(genome\), but this version's .* has {TOKENIZER.fingerprint[:12]}",
        ):
            draw_chorales(tmp_path / "a.mid", checkpoint=other)
        assert not (tmp_path / "a.mid").exists()

    def test_no_model_is_there(self, tmp_path, monkeypatch):
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            draw_chorales(tmp_path / "a.mid", checkpoint=tmp_path / "nothing")
        monkeypatch.setitem(SHIPPED, "chorales", tmp_path / "none.safetensors")
        with pytest.raises(CheckpointError, match="no chorales model comes with this copy of seqpope: train one"):
            draw_chorales(tmp_path / "a.mid")


def test_the_shipped_model(tmp_path):
    """What `seqpope generate` does with no checkpoint given: it fits this version and writes music."""
    [(file, text)] = draw_chorales(tmp_path / "a.mid", bars=1, device="cpu")
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert sidecar["model"]["checkpoint"] == "shipped: chorales"
    assert sidecar["nats_per_token"] < 1.5  # knowing nothing of music costs log 89 = 4.5
    assert len(read_score(file)) == STEPS_PER_BAR
    assert f"{sidecar['nats_per_token']:.3f} nats/token" in text


def test_description():
    chorale = Chorale(np.array([[72, -1, 60, 48], [74, -1, 59, 36]]))
    sidecar = {
        "tokens": 192,
        "nats_per_token": 0.5,
        "constraint_nats_per_token": 0.0,
        "beyond_training_length": False,
    }
    plain = "2 steps (3 bars drawn), S 72-74, A silent, T 59-60, B 36-48, 0.500 nats/token"
    assert describe(chorale, sidecar) == plain
    more = sidecar | {"constraint_nats_per_token": 0.1, "beyond_training_length": True}
    assert (
        describe(chorale, more) == plain + ", of which the rules cost 0.100; longer than the model was trained on"
    )


def test_progress(tmp_path, checkpoint):
    calls = []
    draw_chorales(
        tmp_path / "a.mid", checkpoint=checkpoint, bars=1, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(i + 1, 64) for i in range(64)]


class TestLengths:
    @pytest.mark.parametrize(("seconds", "bars"), [(0.5, 1), (3.0, 1), (3.1, 2), (12.0, 4)])
    def test_seconds_are_whole_bars(self, tmp_path, checkpoint, seconds, bars):
        """At 80 quarters a minute a bar lasts 3 seconds."""
        draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, seconds=seconds)
        assert len(read_score(tmp_path / "a.mid")) == bars * STEPS_PER_BAR

    def test_a_short_context_draws_on(self, tmp_path, checkpoint):
        draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, bars=3, context=64)
        sidecar = json.loads((tmp_path / "a.json").read_text())
        assert len(read_score(tmp_path / "a.mid")) == 3 * STEPS_PER_BAR
        assert 0 < sidecar["tokens_forgotten"] < 192

    def test_batches_change_nothing(self, tmp_path, checkpoint):
        draw_chorales(tmp_path / "a", checkpoint=checkpoint, bars=1, num=5)
        draw_chorales(tmp_path / "b", checkpoint=checkpoint, bars=1, num=5, batch_size=2)
        for file in sorted((tmp_path / "a").glob("*.mid")):
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


class TestGiven:
    def test_voices_are_kept(self, tmp_path, checkpoint, prompt):
        draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, given=tmp_path / "prompt.mid", voices="s,bass")
        got = read_score(tmp_path / "a.mid")
        assert len(got) == len(prompt)
        assert np.array_equal(got.pitches[:, [0, 3]], prompt.pitches[:, [0, 3]])
        assert not np.array_equal(got.pitches[:, 1:3], prompt.pitches[:, 1:3])
        sidecar = json.loads((tmp_path / "a.json").read_text())
        assert sidecar["settings"]["voices"] == ["soprano", "bass"]
        assert sidecar["constraint_nats_per_token"] > 0

    def test_longer_than_given(self, tmp_path, checkpoint, prompt):
        draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, given=tmp_path / "prompt.mid", bars=3)
        assert len(read_score(tmp_path / "a.mid")) == 3 * STEPS_PER_BAR

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bars": 1}, "given score has 32 sixteenths, 2 bars, and 1 bars are to be drawn"),
            ({"voices": "s,horn"}, "'horn' is no voice: expected some of soprano"),
            ({"voices": ""}, "'' is no voice"),
        ],
    )
    def test_that_does_not_fit(self, tmp_path, checkpoint, prompt, options, message):
        with pytest.raises(SeqpopeError, match=message):
            draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, given=tmp_path / "prompt.mid", **options)
        assert not (tmp_path / "a.mid").exists()

    def test_a_voice_that_is_not_there(self, tmp_path, checkpoint):
        make_melody(tmp_path / "melody.mid", [72, 74, 76])
        with pytest.raises(SeqpopeError, match="its bass has no notes; those that have: soprano"):
            draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, given=tmp_path / "melody.mid", voices="b")

    def test_names(self):
        assert parse_voices("Bass, s") == (0, 3)
        assert parse_voices("t,tenor") == (2,)


def make_melody(path, pitches, steps=4):
    line = np.repeat(pitches, steps)
    grid = np.full((len(line), 4), -1)
    grid[:, 0] = line
    write_midi(Chorale(grid), path)
    return line


def test_without_greed_a_sample_is_a_draw(checkpoint):
    """The likeliest of 24 free particles is likelier than one drawn straight on: for greed to ask for."""
    model = generate.load_model(checkpoint, "cpu")
    found = {}
    for particles, greed in ((1, 0.0), (24, 0.0), (24, 1e-9)):
        draw = Draw(num=24, particles=particles, greed=greed, batch_size=1000, device="cpu")
        drawn = generate.draw_chorales(model, np.zeros(0, np.int64), 16, draw, None)
        found[particles, greed] = np.mean([float(one.nats.mean()) for _, one in drawn])
    spread = found[1, 0.0] - found[24, 1e-9]
    assert spread > 0
    assert abs(found[24, 0.0] - found[1, 0.0]) < spread / 2


class TestHarmonize:
    def run(self, tmp_path, checkpoint, line, **rules):
        melody = make_melody(tmp_path / "melody.mid", line)
        [(file, _)] = harmonize(
            tmp_path / "melody.mid",
            ChoraleOutput(tmp_path / "a.mid"),
            Draw(particles=4),
            checkpoint=checkpoint,
            rules=rules,
        )
        return melody, read_score(file), json.loads((tmp_path / "a.json").read_text())

    def test_the_melody_is_the_soprano(self, tmp_path, checkpoint):
        melody, got, sidecar = self.run(
            tmp_path, checkpoint, [72, 74, 76, -1, 77, 79, 72, 72], no_rests=True, ranges=True, no_parallels=True
        )
        assert np.array_equal(got.pitches[:, 0], melody)
        assert (got.pitches[:, 1:] >= 0).all()
        assert sidecar["settings"]["transposed"] == 0
        assert sidecar["parallels"] == 0
        assert sidecar["settings"]["particles"] == 4

    @pytest.mark.parametrize(("by", "shift"), [(-24, 24), (12, -12), (36, -36)])
    def test_it_is_fitted_and_moved_back(self, tmp_path, checkpoint, by, shift):
        melody, got, sidecar = self.run(tmp_path, checkpoint, [67 + by, 69 + by, 71 + by, 72 + by], ranges=True)
        assert np.array_equal(got.pitches[:, 0], melody)
        assert sidecar["settings"]["transposed"] == shift

    @pytest.mark.parametrize(
        ("line", "shift"),
        [
            ([60, 81], 0),
            ([59, 72], 1),  # an octave up would leave the range
            ([48, 60], 12),
            ([82], -12),
            ([40, 70], 12),  # wider than the range: as much of it as can be
            ([-1, 65, -1], 0),
        ],
    )
    def test_fit(self, line, shift):
        assert fit(np.array(line)) == shift

    def test_no_melody(self, tmp_path, checkpoint):
        with pytest.raises(SeqpopeError, match="wider than the 88 pitches"):
            fit(np.array([10, 100]))
        make_melody(tmp_path / "low.mid", [3, 5])
        with pytest.raises(SeqpopeError, match=r"its range 3..5 is so far from a soprano's"):
            harmonize(tmp_path / "low.mid", ChoraleOutput(tmp_path / "a.mid"), checkpoint=checkpoint)
        make_melody(tmp_path / "rest.mid", [-1, -1])
        with pytest.raises(SeqpopeError, match="no notes: expected a melody"):
            harmonize(tmp_path / "rest.mid", ChoraleOutput(tmp_path / "a.mid"), checkpoint=checkpoint)
        assert not (tmp_path / "a.mid").exists()


class TestFormats:
    def test_all_of_a_sample(self, tmp_path, checkpoint):
        draw_chorales(tmp_path / "a.musicxml", checkpoint=checkpoint, bars=1, formats=("mid", "png"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.mid", "a.musicxml", "a.png"]
        assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
        assert np.array_equal(read_score(tmp_path / "a.musicxml").pitches, read_score(tmp_path / "a.mid").pitches)

    @pytest.mark.parametrize(("out", "formats"), [("prompt.mid", ()), ("prompt.musicxml", ("mid",))])
    def test_nothing_is_written_over_what_is_read(self, tmp_path, checkpoint, prompt, out, formats):
        before = (tmp_path / "prompt.mid").read_bytes()
        for name in ("prompt", "given"):
            with pytest.raises(SeqpopeError, match=r"prompt.mid is what is read: writing there would destroy it"):
                draw_chorales(
                    tmp_path / out, checkpoint=checkpoint, formats=formats, **{name: tmp_path / "prompt.mid"}
                )
        with pytest.raises(SeqpopeError, match="is what is read"):
            harmonize(tmp_path / "prompt.mid", ChoraleOutput(tmp_path / out, formats), checkpoint=checkpoint)
        assert (tmp_path / "prompt.mid").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["prompt.mid"]

    def test_what_tells_of_something_else_is_not_written_over(self, tmp_path, checkpoint, prompt):
        (tmp_path / "package.json").write_text("{}")
        with pytest.raises(SeqpopeError, match="another file is there"):
            draw_chorales(tmp_path / "package.mid", checkpoint=checkpoint, bars=1)
        draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, bars=1)
        draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, bars=1)  # its own may be made anew
        with pytest.raises(SeqpopeError, match=r"a.json says how what is read was made"):
            draw_chorales(tmp_path / "a.musicxml", checkpoint=checkpoint, given=tmp_path / "a.mid")
        with pytest.raises(SeqpopeError, match="is a file, not a folder"):
            draw_chorales(tmp_path / "prompt.mid" / "b.mid", checkpoint=checkpoint, bars=1)
        assert (tmp_path / "package.json").read_text() == "{}"

    def test_nothing_is_left_of_a_sample_that_could_not_be_finished(self, tmp_path, checkpoint, monkeypatch):
        from seqpope.domains.music.chorales import picture

        def fail(*_, **options):
            raise SeqpopeError("no picture")

        monkeypatch.setattr(picture, "draw_piano_roll", fail)
        with pytest.raises(SeqpopeError, match="no picture"):
            draw_chorales(tmp_path / "a.mid", checkpoint=checkpoint, bars=1, formats=("png",))
        assert list(tmp_path.iterdir()) == []

    def test_what_is_drawn_is_kept_if_the_rest_is_interrupted(self, tmp_path, checkpoint):
        def stop(done, total):
            if done > total // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            draw_chorales(tmp_path / "a", checkpoint=checkpoint, bars=1, num=4, batch_size=1, progress=stop)
        assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
            f"chorale-000{seed}.{form}" for seed in (0, 1) for form in ("json", "mid")
        ]

    def test_sound_leaves_a_midi_file_of_the_same_name_alone(self, tmp_path, checkpoint, monkeypatch):
        from seqpope.domains.music import audio

        monkeypatch.setattr(audio, "find_soundfont", lambda given=None: None)
        monkeypatch.setattr(audio, "find_fluidsynth", lambda: None)
        monkeypatch.setattr(audio, "write_wav", lambda midi, out, soundfont=None: out.write_bytes(b"sound"))
        (tmp_path / "a.mid").write_bytes(b"mine")
        draw_chorales(tmp_path / "a.wav", checkpoint=checkpoint, bars=1)
        assert (tmp_path / "a.mid").read_bytes() == b"mine"
        assert (tmp_path / "a.wav").read_bytes() == b"sound"

    def test_sound_is_refused_before_anything_is_drawn(self, tmp_path, checkpoint, monkeypatch):
        from seqpope.domains.music import audio

        def missing(given=None):
            raise SeqpopeError("no SoundFont")

        monkeypatch.setattr(audio, "find_fluidsynth", lambda: None)
        monkeypatch.setattr(audio, "find_soundfont", missing)
        with pytest.raises(SeqpopeError, match="no SoundFont"):
            draw_chorales(tmp_path / "a.wav", checkpoint=tmp_path / "nothing")
