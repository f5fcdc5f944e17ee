from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
import wave
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from seqpope.domains.music import writers
from seqpope.domains.music.chorales import codec
from seqpope.domains.music.chorales.codec import SILENCE, Chorale, CodecError
from seqpope.errors import SeqpopeError

CHORD = [72, 67, 64, 48]


def held(*chords, steps: int = 4, name: str = "x") -> Chorale:
    return Chorale(np.repeat(np.array(chords), steps, axis=0), name)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- MusicXML


def assert_round_trip(chorale: Chorale, path: Path, **options) -> None:
    writers.write_musicxml(chorale, path, **options)
    assert np.array_equal(codec.read_score(path).pitches, chorale.pitches)


@pytest.mark.parametrize("merge_repeats", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 5, 15, 16, 17, 33])
def test_musicxml_round_trip_of_any_length(tmp_path, steps, merge_repeats):
    assert_round_trip(held(CHORD, steps=steps), tmp_path / "a.musicxml", merge_repeats=merge_repeats)


def test_musicxml_keeps_silence_at_both_ends_and_voices_that_never_sing(tmp_path):
    rest = [SILENCE] * 4
    assert_round_trip(held(rest, [72, -1, 64, -1], [-1, -1, 64, -1], rest, steps=7), tmp_path / "a.xml")


voice_runs = st.lists(
    st.tuples(st.one_of(st.just(SILENCE), st.integers(0, 127)), st.integers(1, 20)), min_size=1, max_size=4
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(voices=st.tuples(*[voice_runs] * 4), fifths=st.none() | st.integers(-7, 7), merge_repeats=st.booleans())
def test_musicxml_round_trip_of_anything(tmp_path, voices, fifths, merge_repeats):
    """Crossing voices, unisons, extreme pitches in extreme keys and notes over bar lines all come back."""
    columns = [np.repeat([p for p, _ in runs], [n for _, n in runs]) for runs in voices]
    steps = min(map(len, columns))
    grid = np.stack([column[:steps] for column in columns], axis=1)
    if (grid == SILENCE).all():
        grid[0, 0] = 60
    assert_round_trip(Chorale(grid), tmp_path / "a.musicxml", key_fifths=fifths, merge_repeats=merge_repeats)


def test_musicxml_of_nothing_but_silence_is_a_score_of_rests(tmp_path):
    from music21 import converter

    writers.write_musicxml(held([SILENCE] * 4, steps=20), tmp_path / "a.musicxml")
    score = converter.parseFile(tmp_path / "a.musicxml", forceSource=True, storePickle=False)
    assert len(score.parts) == 4
    assert score.parts[0].highestTime == 5
    with pytest.raises(CodecError, match="no notes"):
        codec.read_score(tmp_path / "a.musicxml")


def test_musicxml_has_what_a_reader_of_scores_wants(tmp_path):
    from music21 import converter

    # D major: four bars less a quarter; the alto's half note begins on the last beat of the first bar.
    grid = np.repeat([[74, 69, 66, 50], [73, 69, 64, 57], [74, 66, 62, 50]], 20, axis=0)
    grid[:12, 1] = SILENCE
    writers.write_musicxml(Chorale(grid, "Dir, dir\x00 <&> Jehova"), tmp_path / "a.musicxml", tempo=72)
    score = converter.parseFile(tmp_path / "a.musicxml", forceSource=True, storePickle=False)
    assert score.metadata.bestTitle == "Dir, dir  <&> Jehova"
    assert score.metadata.composer == "seqpope"
    assert [part.partName for part in score.parts] == ["Soprano", "Alto", "Tenor", "Bass"]
    clefs = [part.recurse().getElementsByClass("Clef").first() for part in score.parts]
    assert [(clef.sign, clef.octaveChange) for clef in clefs] == [("G", 0), ("G", 0), ("G", -1), ("F", 0)]
    for part in score.parts:
        measures = list(part.getElementsByClass("Measure"))
        assert [float(measure.highestTime) for measure in measures] == [4, 4, 4, 3]
        assert measures[0].timeSignature.ratioString == "4/4"
        assert measures[0].keySignature.sharps == 2
        assert measures[-1].rightBarline.type == "final"
    tempo = score.recurse().getElementsByClass("MetronomeMark").first()
    assert tempo.number == 72
    soprano = [note.pitch.nameWithOctave for note in score.parts[0].recurse().notes if note.pitch.midi == 73]
    assert set(soprano) == {"C#5"}
    alto = list(score.parts[1].recurse().notesAndRests)
    assert [(element.isRest, float(element.quarterLength)) for element in alto[:4]] == [
        (True, 2),
        (True, 1),
        (False, 1),
        (False, 4),
    ]
    assert [element.tie.type for element in alto[2:4]] == ["start", "continue"]
    text = (tmp_path / "a.musicxml").read_text()
    assert 'print-object="no"' not in text  # music21's hidden rests
    assert "<accidental>" not in text  # nothing that the key signature does not say


def test_musicxml_strikes_repeated_notes_when_told_to(tmp_path):
    from music21 import converter

    counts = []
    for merge_repeats in (True, False):
        writers.write_musicxml(held(CHORD), tmp_path / "a.musicxml", merge_repeats=merge_repeats)
        score = converter.parseFile(tmp_path / "a.musicxml", forceSource=True, storePickle=False)
        counts.append([len(part.recurse().notes) for part in score.parts])
        assert not any(note.tie for note in score.recurse().notes)
    assert counts == [[1] * 4, [4] * 4]


def test_the_same_piece_is_the_same_file(tmp_path):
    written = []
    for name in ("a.musicxml", "b.musicxml"):
        writers.write_musicxml(held(CHORD), tmp_path / name)
        lines = (tmp_path / name).read_text().splitlines()
        written.append([line for line in lines if "encoding-date" not in line])  # midnight may lie between
    assert written[0] == written[1]


@pytest.mark.parametrize("fifths", range(-7, 8))
@pytest.mark.parametrize("mode", [None, "minor"])
def test_every_pitch_is_spelled_as_itself_and_the_scale_by_the_signature(fifths, mode):
    from music21 import key, pitch

    spelled = writers.spell(fifths, mode)
    assert [pitch.Pitch(name, octave=octave).ps for name, octave in spelled] == list(range(128))
    scale = {p.name for p in key.KeySignature(fifths).asKey("major").pitches}
    assert scale <= {name for name, _ in spelled}


def test_spelling_of_leading_notes():
    names = dict(enumerate(name for name, _ in writers.spell(0, "minor")[60:72]))
    assert (names[8], names[6], names[3], names[10]) == ("G#", "F#", "D#", "B-")
    names = dict(enumerate(name for name, _ in writers.spell(-3, "minor")[60:72]))
    assert (names[11], names[8], names[3], names[6]) == ("B", "A-", "E-", "F#")


@pytest.mark.parametrize(("tonic", "fifths"), [(0, 0), (2, 2), (4, 4), (5, -1), (7, 1), (9, 3), (10, -2), (3, -3)])
def test_estimated_key_of_a_cadence(tonic, fifths):
    cadence = np.array([[72, 67, 64, 48], [72, 69, 65, 53], [71, 67, 62, 55], [72, 67, 64, 48]])
    assert writers.estimate_key(held(*(cadence + tonic))) == (fifths, "major")


def test_a_given_key_signature_spells(tmp_path):
    from music21 import converter

    for fifths, name in ((4, "G#4"), (-4, "A-4")):
        writers.write_musicxml(held([68, -1, -1, -1]), tmp_path / "a.xml", key_fifths=fifths)
        score = converter.parseFile(tmp_path / "a.xml", forceSource=True, storePickle=False)
        assert [note.pitch.nameWithOctave for note in score.recurse().notes] == [name]
        assert {key.sharps for key in score.recurse().getElementsByClass("KeySignature")} == {fifths}


def test_estimated_key_needs_next_to_nothing():
    assert writers.estimate_key(held([SILENCE] * 4)) == (0, "major")
    fifths, mode = writers.estimate_key(held([61, -1, -1, -1], steps=1))
    assert -6 <= fifths <= 6
    assert mode in ("major", "minor")


@pytest.mark.parametrize("rest", [True, False])
def test_notes_are_cut_into_what_one_sign_writes(rest):
    for start in range(16):
        for end in range(start + 1, start + 70):
            pieces = list(writers._pieces(start, end, rest))
            assert [pieces[0][0], *(last for _, last in pieces)] == [*(first for first, _ in pieces), end]
            for first, last in pieces:
                assert last - first in (1, 2, 3, 4, 6, 8, 12, 16)
                assert first // 16 == (last - 1) // 16


@pytest.mark.parametrize(
    ("start", "end", "lengths"),
    [
        (0, 6, [6]),  # dotted quarter
        (4, 12, [8]),  # half note on the second beat
        (2, 6, [4]),  # syncopation within half a bar
        (6, 10, [2, 2]),  # the middle of the bar is seen
        (0, 5, [4, 1]),
        (12, 36, [4, 16, 4]),
    ],
)
def test_notes_are_cut_by_custom(start, end, lengths):
    assert [last - first for first, last in writers._pieces(start, end, rest=False)] == lengths


@pytest.mark.parametrize(
    ("chorale", "name", "options", "message"),
    [
        (Chorale(np.zeros((0, 4), int)), "a.xml", {}, "no steps"),
        (held(CHORD), "a.mid", {}, r"ends in \.musicxml or \.xml, not '\.mid'"),
        (held(CHORD), "a.xml", {"tempo": 0}, "tempo must be 4 to 1000"),
        (held(CHORD), "a.xml", {"tempo": float("nan")}, "tempo must be"),
        (held(CHORD), "a.xml", {"key_fifths": 8}, "key_fifths must be -7"),
    ],
)
def test_write_musicxml_refuses(tmp_path, chorale, name, options, message):
    with pytest.raises(CodecError, match=message):
        writers.write_musicxml(chorale, tmp_path / name, **options)
    assert files(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.xml"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("seqpope.files.os.replace", full)
    with pytest.raises(CodecError, match=r"cannot be written .No space left"):
        writers.write_musicxml(held(CHORD), path)
    assert path.read_text() == "old"
    assert files(tmp_path) == ["a.xml"]


# ---------------------------------------------------------------- SoundFont

FONT = b"RIFF\x04\0\0\0sfbk"


def font_file(path: Path, content: bytes = FONT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def no_fonts(tmp_path, monkeypatch):
    """No SoundFont anywhere, whatever this machine has."""
    monkeypatch.delenv("SOUNDFONT", raising=False)
    monkeypatch.setattr(writers, "SOUNDFONT_FOLDERS", (str(tmp_path / "none"), str(tmp_path / "usual")))


def test_soundfont_given_then_variable_then_usual_places(tmp_path, monkeypatch, no_fonts):
    usual = font_file(tmp_path / "usual" / "any.sf2")
    assert writers.find_soundfont() == usual
    monkeypatch.setenv("SOUNDFONT", "")
    assert writers.find_soundfont() == usual
    named = font_file(tmp_path / "named.sf2")
    monkeypatch.setenv("SOUNDFONT", str(named))
    assert writers.find_soundfont() == named
    own = font_file(tmp_path / "own.sf3")
    assert writers.find_soundfont(own) == own


def test_general_midi_sets_come_first_and_what_is_no_font_never(tmp_path, no_fonts):
    font_file(tmp_path / "usual" / "a-piano.sf2")
    font_file(tmp_path / "usual" / "default-GM.sf2", b"RIFF\x04\0\0\0WAVE")
    font_file(tmp_path / "usual" / "FluidR3_GM.txt")
    best = font_file(tmp_path / "usual" / "TimGM6mb.sf2")
    assert writers.find_soundfont() == best


def test_missing_soundfonts_say_what_to_do(tmp_path, monkeypatch, no_fonts):
    with pytest.raises(SeqpopeError, match=r"apt install fluidsynth timgm6mb-soundfont.*brew install.*SOUNDFONT"):
        writers.find_soundfont()
    with pytest.raises(SeqpopeError, match=r"none\.sf2 is no file"):
        writers.find_soundfont(tmp_path / "none.sf2")
    with pytest.raises(SeqpopeError, match="not a SoundFont"):
        writers.find_soundfont(font_file(tmp_path / "text.sf2", b"hello"))
    monkeypatch.setenv("SOUNDFONT", str(tmp_path / "gone.sf2"))
    with pytest.raises(SeqpopeError, match=r"gone\.sf2, which the variable SOUNDFONT names, is no file"):
        writers.find_soundfont()


# ---------------------------------------------------------------- WAV


def midi_file(path: Path, *chords, steps: int = 4) -> Path:
    codec.write_midi(held(*(chords or [CHORD]), steps=steps), path, tempo=120)
    return path


@pytest.fixture
def fluidsynth(tmp_path, monkeypatch):
    """Stands in for the command: `act` does to its -F file what a test wants; gives the commands run."""
    commands = []
    state = {"act": lambda target: None, "status": 0, "said": ""}

    def run(command, **options):
        assert options.get("timeout", 0) > 0
        assert not options.get("shell")
        commands.append(command)
        state["act"](Path(command[command.index("-F") + 1]))
        return subprocess.CompletedProcess(command, state["status"], "", state["said"])

    monkeypatch.setattr(writers.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(writers.subprocess, "run", run)
    monkeypatch.setenv("SOUNDFONT", str(font_file(tmp_path / "fonts" / "font.sf2")))
    state["commands"] = commands
    return state


def sound(seconds: float, loudness: int, rate: int = 44100):
    def act(target: Path) -> None:
        with wave.open(str(target), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(np.full((int(seconds * rate), 2), -loudness, "<i2").tobytes())

    return act


def test_wav_is_rendered_beside_and_renamed(tmp_path, fluidsynth):
    fluidsynth["act"] = sound(1, 9000)
    midi = midi_file(tmp_path / "-a.mid")
    out = tmp_path / "new" / "-a.wav"
    writers.write_wav(midi, out)
    assert files(out.parent) == ["-a.wav"]
    (command,) = fluidsynth["commands"]
    assert command[0] == "/bin/fluidsynth"
    assert command[-2:] == [str(tmp_path / "fonts" / "font.sf2"), str(midi)]
    target = Path(command[command.index("-F") + 1])
    assert target.parent == out.parent
    assert target != out
    assert command[command.index("-r") + 1] == "44100"


@pytest.mark.parametrize(
    ("act", "said", "message"),
    [
        (sound(1, 0), "", r"silence of the 4 notes of a\.mid with the SoundFont font\.sf2"),
        (sound(1, 1), "no preset", "silence.*no preset"),  # dither
        (sound(9, 9000), "", r"wrote 9\.0 s of sound for .*, which lasts 12\.0"),
        (sound(12, 9000, 22050), "", "16 bits at 22050 Hz .*: expected 16 bits at 44100 Hz"),
        (lambda target: None, "", "wrote no WAV"),
        (lambda target: target.write_bytes(b"RIFF"), "", "wrote no WAV"),
        (lambda target: target.write_text("hello" * 30), "trouble", "wrote no WAV.*trouble"),
        (lambda target: target.unlink(), "", "wrote no WAV"),
    ],
)
def test_what_fluidsynth_wrote_is_checked(tmp_path, fluidsynth, act, said, message):
    midi = midi_file(tmp_path / "a.mid", steps=96 if "lasts" in message else 8)
    fluidsynth |= {"act": act, "said": said}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.wav").write_text("old")
    with pytest.raises(SeqpopeError, match=message):
        writers.write_wav(midi, tmp_path / "out" / "a.wav")
    assert files(tmp_path / "out") == ["a.wav"]
    assert (tmp_path / "out" / "a.wav").read_text() == "old"


def test_silence_may_sound_silent(tmp_path, fluidsynth):
    fluidsynth["act"] = sound(1, 0)
    writers.write_wav(midi_file(tmp_path / "a.mid", [SILENCE] * 4), tmp_path / "a.wav")
    assert (tmp_path / "a.wav").is_file()


def test_fluidsynth_that_fails_or_hangs_is_reported(tmp_path, fluidsynth, monkeypatch):
    midi, out = midi_file(tmp_path / "a.mid"), tmp_path / "out" / "a.wav"
    fluidsynth |= {"status": 3, "said": "out of\nmemory"}
    with pytest.raises(SeqpopeError, match="failed with status 3: out of memory"):
        writers.write_wav(midi, out)

    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(writers.subprocess, "run", hang)
    with pytest.raises(SeqpopeError, match=r"not done after 6\d s"):
        writers.write_wav(midi, out)

    def broken(command, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(writers.subprocess, "run", broken)
    with pytest.raises(SeqpopeError, match=r"cannot be run .Permission denied"):
        writers.write_wav(midi, out)
    assert files(tmp_path / "out") == []


def test_write_wav_refuses(tmp_path, fluidsynth):
    midi = midi_file(tmp_path / "a.mid")
    with pytest.raises(SeqpopeError, match=r"ends in \.wav, not '\.mp3'"):
        writers.write_wav(midi, tmp_path / "a.mp3")
    with pytest.raises(SeqpopeError, match="rate must be 8000 to 96000"):
        writers.write_wav(midi, tmp_path / "a.wav", rate=100)
    with pytest.raises(SeqpopeError, match="there is no file"):
        writers.write_wav(tmp_path / "none.mid", tmp_path / "a.wav")
    (tmp_path / "bad.mid").write_bytes(b"MThd")
    with pytest.raises(SeqpopeError, match="not a MIDI file"):
        writers.write_wav(tmp_path / "bad.mid", tmp_path / "a.wav")
    with pytest.raises(SeqpopeError, match="cannot be written"):
        writers.write_wav(midi, midi / "a.wav")
    assert fluidsynth["commands"] == []


def test_missing_fluidsynth_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(writers.shutil, "which", lambda name: None)
    with pytest.raises(SeqpopeError, match=r"apt install fluidsynth timgm6mb-soundfont.*brew install fluid-synth"):
        writers.write_wav(midi_file(tmp_path / "a.mid"), tmp_path / "a.wav")
    assert files(tmp_path) == ["a.mid"]


def why_no_sound() -> str:
    if shutil.which("fluidsynth") is None:
        return "needs the command fluidsynth (apt install fluidsynth timgm6mb-soundfont)"
    with contextlib.suppress(SeqpopeError):
        writers.find_soundfont()
        return ""
    return "needs a SoundFont (apt install timgm6mb-soundfont)"


@pytest.mark.skipif(bool(why_no_sound()), reason=why_no_sound() or "-")
def test_real_sound_is_in_tune(tmp_path):
    """The A of the soprano is the strongest tone that is heard."""
    midi = midi_file(tmp_path / "a.mid", [69, -1, -1, -1], steps=16)
    writers.write_wav(midi, tmp_path / "a.wav", rate=22050)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 22050)
        samples = np.frombuffer(file.readframes(2 * 22050), "<i2").reshape(-1, 2)[:, 0]
    assert len(samples) == 2 * 22050
    assert 300 < np.abs(samples.astype(int)).max() < 32767
    loudest = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() / 2  # hertz
    octaves = np.log2(loudest / 440)
    assert octaves == pytest.approx(round(octaves), abs=0.02)
    assert files(tmp_path) == ["a.mid", "a.wav"]


@pytest.mark.skipif(bool(why_no_sound()), reason=why_no_sound() or "-")
def test_a_font_that_cannot_be_loaded_is_not_replaced_by_another(tmp_path):
    font = font_file(tmp_path / "broken.sf2", FONT + b"\0" * 100)
    with pytest.raises(SeqpopeError, match=r"broken\.sf2"):
        writers.write_wav(midi_file(tmp_path / "a.mid"), tmp_path / "a.wav", soundfont=font)
    assert files(tmp_path) == ["a.mid", "broken.sf2"]


# ---------------------------------------------------------------- piano roll


@pytest.fixture
def figures(monkeypatch):
    """The figures behind the pictures that a test draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = []
    original = FigureCanvasAgg.print_png

    def keep(self, *words, **options):
        drawn.append(self.figure)
        return original(self, *words, **options)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", keep)
    return drawn


def image(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def pixels(png: bytes, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image(png) - wanted).max(-1) <= 2).sum())


def texts(figure) -> dict[str, list]:
    """All that is written, with where it is."""
    from matplotlib.text import Text

    found: dict[str, list] = {}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text():
            found.setdefault(text.get_text(), []).append(text.get_window_extent())
    return found


def assert_legible(figure) -> None:
    boxes = [box for several in texts(figure).values() for box in several]
    assert all(not one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(
        box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes
    )


def tune(bars: float, name: str = "tune") -> Chorale:
    steps = np.arange(round(16 * bars)) // 4
    return Chorale(np.stack([72 + steps % 5, 67 - steps % 3, 60 - steps % 4, 48 + steps % 7], 1), name)


def test_piano_roll_shows_voices_prompt_and_facts(figures):
    png = writers.draw_piano_roll(tune(16), prompt_steps=40, given=(0, 3), title="A title", tempo=80)
    written = texts(figures[0])
    assert {"A title", "prompt", "Soprano (given)", "Alto", "Tenor", "Bass (given)", "C4", "C5"} <= set(written)
    assert any("16 bars" in text and "80" in text and "0:48" in text for text in written)
    assert {str(bar) for bar in range(1, 17)} <= set(written)
    assert_legible(figures[0])
    assert len(figures[0].axes) == 2
    # Voices that were made are in full colour, those given only in the frame and hatching of their notes.
    assert pixels(png, writers.COLOURS[1]) > 5000
    assert pixels(png, writers.COLOURS[2]) > 5000
    assert pixels(png, writers.COLOURS[0]) == pixels(png, writers.COLOURS[3]) == 0
    part = writers.draw_piano_roll(tune(16), given=(0, 3), given_steps=(40, 150))
    assert (
        2000
        < pixels(part, writers.COLOURS[0])
        < 0.8 * pixels(writers.draw_piano_roll(tune(16)), writers.COLOURS[0])
    )
    del figures[1:]
    plain = writers.draw_piano_roll(tune(16))
    assert "tune" in texts(figures[1])
    assert "prompt" not in texts(figures[1])
    assert all(pixels(plain, colour) > 5000 for colour in writers.COLOURS)


@pytest.mark.parametrize("bars", [1 / 16, 1, 3.2, 12, 25])
def test_piano_roll_of_any_length_is_legible(figures, bars):
    chorale = tune(bars, "A name that is far too long for the room that a picture has for it, " * 3)
    png = writers.draw_piano_roll(chorale, prompt_steps=1, given=(0, 1, 2, 3), tempo=1000)
    assert_legible(figures[0])
    assert image(png).shape[1] <= 1440
    bars_drawn = [text for text in texts(figures[0]) if text.isdecimal()]
    assert len(bars_drawn) == int(np.ceil(bars))


def test_piano_roll_of_a_very_long_piece_is_cut_and_says_so(figures, monkeypatch):
    monkeypatch.setattr(writers, "MAXIMUM_ROWS", 6)
    monkeypatch.setattr(writers, "PICTURE_HEIGHT", 12.0)
    chorale = Chorale(np.tile([[127, 60, 48, 0]], (400 * 16, 1)))
    height, width, _ = image(writers.draw_piano_roll(chorale)).shape
    assert any("bars 1\N{EN DASH}72 of 400" in text for text in texts(figures[0]))
    assert height <= 12 * writers.DPI + 1
    assert width <= 13 * writers.DPI + 1


def test_piano_roll_of_silence_says_so(figures):
    writers.draw_piano_roll(held([SILENCE] * 4, steps=16), tempo=60)
    assert "silence" in texts(figures[0])
    assert_legible(figures[0])


def test_unisons_show_every_voice():
    png = writers.draw_piano_roll(held([60, 60, 60, 60], steps=64))
    in_legend = [pixels(writers.draw_piano_roll(held([SILENCE] * 4, steps=64)), c) for c in writers.COLOURS]
    assert all(pixels(png, c) > 400 + n for c, n in zip(writers.COLOURS, in_legend, strict=True))


def test_piano_roll_title_is_words_not_mathematics(figures):
    writers.draw_piano_roll(tune(4), title="$x_ \\frac\n\x07")
    assert any(text.startswith("$x_ \\frac") for text in texts(figures[0]))


def test_piano_roll_leaves_pyplot_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    assert image(writers.draw_piano_roll(tune(1))).size


@pytest.mark.parametrize(
    ("chorale", "options", "message"),
    [
        (Chorale(np.zeros((0, 4), int)), {}, "no steps"),
        (tune(1), {"prompt_steps": 17}, "prompt_steps must be 0 to 16"),
        (tune(1), {"prompt_steps": -1}, "prompt_steps must be"),
        (tune(1), {"given": (4,)}, "given must be voices 0"),
        (tune(1), {"tempo": 0.0}, "tempo must be"),
    ],
)
def test_draw_piano_roll_refuses(chorale, options, message):
    with pytest.raises(SeqpopeError, match=message):
        writers.draw_piano_roll(chorale, **options)
