from __future__ import annotations

import contextlib
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest
from chorale_pieces import CHORD, files, held

from seqpope.domains.music import audio
from seqpope.domains.music.chorales import codec
from seqpope.domains.music.chorales.codec import SILENCE
from seqpope.errors import SeqpopeError

FONT = b"RIFF\x04\0\0\0sfbk"


def font_file(path: Path, content: bytes = FONT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def no_fonts(tmp_path, monkeypatch):
    """No SoundFont anywhere, whatever this machine has."""
    monkeypatch.delenv("SOUNDFONT", raising=False)
    monkeypatch.setattr(audio, "SOUNDFONT_FOLDERS", (str(tmp_path / "none"), str(tmp_path / "usual")))


def test_soundfont_given_then_variable_then_usual_places(tmp_path, monkeypatch, no_fonts):
    usual = font_file(tmp_path / "usual" / "any.sf2")
    assert audio.find_soundfont() == usual
    monkeypatch.setenv("SOUNDFONT", "")
    assert audio.find_soundfont() == usual
    named = font_file(tmp_path / "named.sf2")
    monkeypatch.setenv("SOUNDFONT", str(named))
    assert audio.find_soundfont() == named
    own = font_file(tmp_path / "own.sf3")
    assert audio.find_soundfont(own) == own


def test_general_midi_sets_come_first_and_what_is_no_font_never(tmp_path, no_fonts):
    font_file(tmp_path / "usual" / "a-piano.sf2")
    font_file(tmp_path / "usual" / "default-GM.sf2", b"RIFF\x04\0\0\0WAVE")
    font_file(tmp_path / "usual" / "FluidR3_GM.txt")
    best = font_file(tmp_path / "usual" / "TimGM6mb.sf2")
    assert audio.find_soundfont() == best


def test_missing_soundfonts_say_what_to_do(tmp_path, monkeypatch, no_fonts):
    with pytest.raises(SeqpopeError, match=r"apt install fluidsynth timgm6mb-soundfont.*brew install.*SOUNDFONT"):
        audio.find_soundfont()
    with pytest.raises(SeqpopeError, match=r"none\.sf2 is no file"):
        audio.find_soundfont(tmp_path / "none.sf2")
    with pytest.raises(SeqpopeError, match="not a SoundFont"):
        audio.find_soundfont(font_file(tmp_path / "text.sf2", b"hello"))
    monkeypatch.setenv("SOUNDFONT", str(tmp_path / "gone.sf2"))
    with pytest.raises(SeqpopeError, match=r"gone\.sf2, which the variable SOUNDFONT names, is no file"):
        audio.find_soundfont()


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

    monkeypatch.setattr(audio.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(audio.subprocess, "run", run)
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
    audio.write_wav(midi, out)
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
        audio.write_wav(midi, tmp_path / "out" / "a.wav")
    assert files(tmp_path / "out") == ["a.wav"]
    assert (tmp_path / "out" / "a.wav").read_text() == "old"


def test_silence_may_sound_silent(tmp_path, fluidsynth):
    fluidsynth["act"] = sound(1, 0)
    audio.write_wav(midi_file(tmp_path / "a.mid", [SILENCE] * 4), tmp_path / "a.wav")
    assert (tmp_path / "a.wav").is_file()


def test_fluidsynth_that_fails_or_hangs_is_reported(tmp_path, fluidsynth, monkeypatch):
    midi, out = midi_file(tmp_path / "a.mid"), tmp_path / "out" / "a.wav"
    fluidsynth |= {"status": 3, "said": "out of\nmemory"}
    with pytest.raises(SeqpopeError, match="failed with status 3: out of memory"):
        audio.write_wav(midi, out)

    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(audio.subprocess, "run", hang)
    with pytest.raises(SeqpopeError, match=r"not done after 6\d s"):
        audio.write_wav(midi, out)

    def broken(command, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(audio.subprocess, "run", broken)
    with pytest.raises(SeqpopeError, match=r"cannot be run .Permission denied"):
        audio.write_wav(midi, out)
    assert files(tmp_path / "out") == []


def test_write_wav_refuses(tmp_path, fluidsynth):
    midi = midi_file(tmp_path / "a.mid")
    with pytest.raises(SeqpopeError, match=r"ends in \.wav, not '\.mp3'"):
        audio.write_wav(midi, tmp_path / "a.mp3")
    with pytest.raises(SeqpopeError, match="rate must be 8000 to 96000"):
        audio.write_wav(midi, tmp_path / "a.wav", rate=100)
    with pytest.raises(SeqpopeError, match="there is no file"):
        audio.write_wav(tmp_path / "none.mid", tmp_path / "a.wav")
    (tmp_path / "bad.mid").write_bytes(b"MThd")
    with pytest.raises(SeqpopeError, match="not a MIDI file"):
        audio.write_wav(tmp_path / "bad.mid", tmp_path / "a.wav")
    with pytest.raises(SeqpopeError, match="cannot be written"):
        audio.write_wav(midi, midi / "a.wav")
    assert fluidsynth["commands"] == []


def test_missing_fluidsynth_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(audio.shutil, "which", lambda name: None)
    with pytest.raises(SeqpopeError, match=r"apt install fluidsynth timgm6mb-soundfont.*brew install fluid-synth"):
        audio.write_wav(midi_file(tmp_path / "a.mid"), tmp_path / "a.wav")
    assert files(tmp_path) == ["a.mid"]


def why_no_sound() -> str:
    if shutil.which("fluidsynth") is None:
        return "needs the command fluidsynth (apt install fluidsynth timgm6mb-soundfont)"
    with contextlib.suppress(SeqpopeError):
        audio.find_soundfont()
        return ""
    return "needs a SoundFont (apt install timgm6mb-soundfont)"


@pytest.mark.skipif(bool(why_no_sound()), reason=why_no_sound() or "-")
def test_real_sound_is_in_tune(tmp_path):
    """The A of the soprano is the strongest tone that is heard."""
    midi = midi_file(tmp_path / "a.mid", [69, -1, -1, -1], steps=16)
    audio.write_wav(midi, tmp_path / "a.wav", rate=22050)
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
        audio.write_wav(midi_file(tmp_path / "a.mid"), tmp_path / "a.wav", soundfont=font)
    assert files(tmp_path) == ["a.mid", "broken.sf2"]
