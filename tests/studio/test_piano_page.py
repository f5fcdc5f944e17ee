"""The Piano page in a browser: written, heard, brought, marked, drawn."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pages import NAMELESS, done, download, heard, midi_line, notices, press, running_studio, until

from seqpope.domains.music.piano.codec import Performance, parse_midi, write_midi

pytestmark = pytest.mark.slow  # a browser; test_genome_page.py is the one that always runs


@pytest.fixture(scope="module")
def pianos(tmp_path_factory) -> Iterator[str]:
    """Address of a studio that has two small untrained piano models, PoPE and RoPE."""
    from seqpope.checkpoint import CheckpointInfo, save_checkpoint
    from seqpope.domains.music.piano.tokenizer import RemiTokenizer
    from seqpope.model.config import ModelConfig
    from seqpope.model.transformer import Transformer

    folder, tokenizer = tmp_path_factory.mktemp("pianos"), RemiTokenizer()
    config = {"width": 32, "layers": 1, "heads": 2}
    for position in ("pope", "rope"):
        file = folder / "runs" / "twins" / f"{position}-0" / "best.safetensors"
        file.parent.mkdir(parents=True)
        torch.manual_seed(0)
        model = Transformer(tokenizer.vocabulary_size, position, ModelConfig(**config))
        told = {"specification": tokenizer.specification, "fingerprint": tokenizer.fingerprint}
        info = CheckpointInfo(
            "music", "maestro", position, tokenizer.vocabulary_size, 0, 256, config, *told.values()
        )
        save_checkpoint(file, model, info)
    with running_studio(folder) as address:
        yield address


@pytest.fixture(scope="module")
def midi(tmp_path_factory) -> bytes:
    """A scale of a minute and a half that gets louder, and its pedal."""
    count = 180
    pitch, velocity = 48 + np.arange(count) % 36, np.linspace(30, 110, count).astype(int)
    played = Performance(np.arange(count) / 2, np.full(count, 0.4), pitch, velocity, [[1, 3], [80, 89]])
    file = tmp_path_factory.mktemp("midi") / "scale.mid"
    write_midi(played, file)
    return file.read_bytes()


@pytest.fixture
def page(browser, pianos):
    page = browser.new_page(viewport={"width": 1280, "height": 1200}, accept_downloads=True)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{pianos}/#piano")
    page.get_by_role("button", name="Generate").wait_for()
    yield page
    page.close()
    assert not wrong


def bring(page, content: bytes, name: str = "scale.mid") -> None:
    page.get_by_label("MIDI file").set_input_files({"name": name, "mimeType": "audio/midi", "buffer": content})
    page.locator(".notice").first.wait_for()


def notes_of(page) -> Performance:
    return parse_midi(download(page, "MIDI"), "what the page has")


def readout(page) -> str:
    return page.locator(".roll-readout").first.inner_text()


def canvas(page):
    roll = page.locator(".take canvas").first
    roll.evaluate("canvas => canvas.scrollIntoView({ block: 'center' })")
    return roll


def sparse(page) -> None:
    """Untrained models strike a hundred keys a second: let them strike few."""
    page.locator("summary", has_text="More").click()
    page.get_by_label("Notes at once").select_option("2")
    page.get_by_label("Lowest key").select_option("60")
    page.get_by_label("Highest key").select_option("72")


def test_it_sounds_while_it_is_written_and_stops(page):
    sparse(page)
    page.get_by_label("Notes at once").select_option("8")
    page.get_by_label("Seconds to write").fill("120")
    press(page, "Generate")
    heard(page)
    assert page.get_by_role("button", name="Cancel").is_enabled()  # there is more to come
    assert " of 2:00" in page.evaluate("document.querySelector('.status').value")
    done(page)
    assert not notices(page)
    assert "nats a token (" in page.locator(".take-cost").first.inner_text()
    played = notes_of(page)
    assert set(played.pitch) <= set(range(60, 73))
    assert 80 < played.seconds <= 120
    press(page, "■ Stop")
    until(page, "seqpopeStudio.level() < 1e-4", 5)
    page.locator("h1").click()
    page.keyboard.press("Space")
    heard(page)
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Play").is_visible()


def test_two_models_from_one_seed(page):
    sparse(page)
    page.get_by_label("Compare with a second model").check()
    page.get_by_label("Seconds to write").fill("4")
    page.get_by_label("new one each time").uncheck()
    page.get_by_label("Seed").fill("11")
    press(page, "Generate")
    done(page)
    titles = page.locator(".take h3").all_inner_texts()
    assert ["PoPE" in titles[0], "RoPE" in titles[1]] == [True, True]
    assert all("seed 11" in title for title in titles)
    costs = page.locator(".take-cost").all_inner_texts()
    assert all("nats a token" in cost for cost in costs)
    assert costs[0] != costs[1]
    press(page, "Listen to this")
    assert midi_line(download(page, "MIDI"))
    heard(page)


def test_files_in_and_out(page, midi):
    bring(page, b"garbage", "garbage.mid")
    assert "not a MIDI file" in notices(page)[0]
    press(page, "Close")
    bring(page, midi)
    assert notices(page) == ["scale.mid: 1:30, 180 notes, pedal 2 times"]
    assert page.get_by_label("Start from").input_value() == "opening"
    before, after = parse_midi(midi, "sent"), notes_of(page)
    for name in ("onset", "duration", "pitch", "velocity", "pedal"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-3)
    assert download(page, "PNG").startswith(b"\x89PNG")
    with wave.open(io.BytesIO(download(page, "WAV"))) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16).reshape(-1, 2) / 32768
        assert sound.getnframes() / sound.getframerate() == pytest.approx(89.9 + 2, abs=0.2)  # the room dies away
    seconds = samples[: 90 * 44100].reshape(90, -1)
    loud = np.sqrt((seconds**2).mean(1))
    assert loud.min() > 1e-3
    assert 0.85 < np.abs(samples).max() < 0.95
    assert loud[60:78].mean() > 2 * loud[4:22].mean()  # it gets louder
    assert "no bars" in page.locator(".files").inner_text()
    page.get_by_label("Surprise").select_option("all")
    until(page, "document.querySelector('.take-cost').textContent.includes('by PoPE')")
    canvas(page).focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "0:00.50: C♯3, velocity 30, held 0.40 s" in readout(page)
    assert all(word in readout(page) for word in ("nats (when", "which key", "how loud", "how long", "1 in"))


def test_going_on_from_an_opening_keeps_it(page, midi):
    sparse(page)
    bring(page, midi)
    page.get_by_label("Seconds kept").fill("3")
    page.get_by_label("Seconds to write").fill("2")
    press(page, "Generate")
    done(page)
    played = notes_of(page)
    assert played.pitch[:6].tolist() == [48, 49, 50, 51, 52, 53]
    assert (played.onset[6:] >= 3).all()
    assert 3 < played.seconds <= 5
    press(page, "Undo")
    assert midi_line(download(page, "MIDI")) == midi_line(midi)


@pytest.mark.parametrize("versions", ["1", "4"])
def test_a_stretch_is_marked_and_written_anew(page, midi, versions):
    sparse(page)
    page.get_by_label("Versions to write anew").select_option(versions)
    bring(page, midi)
    roll = canvas(page)
    assert not page.get_by_role("button", name="Write marked anew").is_enabled()
    roll.focus()
    for key in ("Home", "ArrowRight", "ArrowRight", *["Shift+ArrowRight"] * 3):  # from a second on, a second each
        page.keyboard.press(key)
    assert "Marked from 0:01.00 to 0:04.00, 3.00 s" in readout(page)
    press(page, "Write marked anew")
    done(page)
    after, before = notes_of(page), parse_midi(midi, "sent")
    told = [text for text in notices(page) if "versions" in text]
    assert len(told) == (versions == "4")
    kept = (before.onset < 1) | (before.onset >= 4)
    same = (after.onset < 0.99) | (after.onset > 3.99)
    assert after.pitch[same].tolist() == before.pitch[kept].tolist()
    assert after.pitch.tolist() != before.pitch.tolist()
    press(page, "Undo")
    assert notes_of(page).pitch.tolist() == before.pitch.tolist()
    press(page, "Redo")
    assert notes_of(page).pitch.tolist() == after.pitch.tolist()
    roll.focus()
    page.keyboard.press("Escape")
    assert not page.get_by_role("button", name="Write marked anew").is_enabled()


def test_notes_are_drawn_and_deleted_by_the_keyboard(page):
    press(page, "Empty page to draw on")  # which has the focus then, and the pencil
    for key in ("Enter", "ArrowUp", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    assert midi_line(download(page, "MIDI")) == [60, 62]
    page.get_by_label("Pencil's velocity").fill("100")
    page.get_by_label("Pencil's length").select_option("2")
    canvas(page).focus()
    page.keyboard.press("Enter")
    played = notes_of(page)
    assert played.velocity.tolist() == [64, 64, 100]
    np.testing.assert_allclose(played.onset, [0, 0.5, 1], atol=1e-3)
    np.testing.assert_allclose(played.duration, [0.5, 0.5, 2], atol=1e-3)
    canvas(page).focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Delete")
    assert midi_line(download(page, "MIDI")) == [60, 62]
    page.keyboard.press("Control+z")
    assert midi_line(download(page, "MIDI")) == [60, 62, 62]
    page.keyboard.press("Control+y")
    assert midi_line(download(page, "MIDI")) == [60, 62]
    canvas(page).focus()
    page.keyboard.press("d")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "0:00.50: D4, velocity 64, held 0.50 s" in readout(page)


def test_pointers_draw_mark_and_seek(page):
    press(page, "Empty page to draw on")
    box = canvas(page).bounding_box()

    def drag(x: float, y: float, to: float) -> None:
        box = canvas(page).bounding_box()
        page.mouse.move(box["x"] + x, box["y"] + y)
        page.mouse.down()
        if to != x:
            page.mouse.move(box["x"] + to, box["y"] + y, steps=4)
        page.mouse.up()

    drag(138, 146, 298)
    drag(338, 200, 338)
    played = notes_of(page)
    assert len(played) == 2
    assert played.duration[0] == pytest.approx(2 * played.onset[0] * 0.8, rel=0.1)  # 160 pixels, begun after 100
    assert played.duration[1] == pytest.approx(0.5, abs=0.01)
    page.get_by_text("Look", exact=True).click()
    assert canvas(page).bounding_box() == box  # nothing jumps when the mode changes
    page.mouse.move(box["x"] + 200, box["y"] + 146)
    assert "velocity 64" in page.locator(".roll-tip").first.inner_text()
    drag(108, 100, 258)
    assert page.get_by_role("button", name="Write marked anew").is_enabled()
    drag(188, 8, 188)  # the ruler
    until(page, "Number(document.querySelector('.transport input').value) > 1")
    page.get_by_text("Draw", exact=True).click()
    drag(200, 146, 200)
    assert len(notes_of(page)) == 1


def test_cancelled_midway_keeps_what_is_there(page):
    page.get_by_label("Seconds to write").fill("180")
    press(page, "Generate")
    until(page, "document.querySelector('.status').value.includes(' of 3:00')")
    press(page, "Cancel")
    done(page)
    assert "Stopped" in notices(page)[0]
    assert midi_line(download(page, "MIDI"))


def test_leaving_cancels_and_the_piece_is_there_again(page, pianos, midi):
    bring(page, midi)
    page.get_by_role("link", name="Chorales").click()
    page.get_by_label("Bars to write").wait_for()
    page.get_by_role("link", name="Piano").click()
    page.get_by_label("Seconds to write").wait_for()
    assert midi_line(download(page, "MIDI")) == midi_line(midi)
    page.get_by_label("Seconds to write").fill("180")
    press(page, "Generate")
    until(page, "document.querySelector('.status').value.includes(' of 3:00')")
    page.get_by_role("link", name="Chorales").click()
    page.get_by_label("Bars to write").fill("1")
    press(page, "Generate")
    until(page, "document.querySelector('.status').value.includes('bar 1')", 20)  # nothing else is before it
    done(page)


def test_what_is_written_over_is_there_again_when_the_page_was_left(page, midi):
    sparse(page)
    page.get_by_label("Notes at once").select_option("8")  # so many that it is not done when the page is left
    page.get_by_label("Versions to write anew").select_option("1")
    bring(page, midi)
    canvas(page).focus()
    for key in ("Home", "ArrowRight", *["Shift+ArrowRight"] * 40):
        page.keyboard.press(key)
    press(page, "Write marked anew")
    until(page, "document.querySelector('.status').value.includes(' of 0:4')")
    page.get_by_role("link", name="Models").click()
    page.get_by_label("Filter").wait_for()
    page.get_by_role("link", name="Piano").click()
    page.get_by_label("Seconds to write").wait_for()
    assert midi_line(download(page, "MIDI")) == midi_line(midi)
    press(page, "Undo")
    assert page.locator(".take h3").first.inner_text() == "Nothing yet"
    press(page, "Redo")
    assert midi_line(download(page, "MIDI")) == midi_line(midi)


def test_the_chosen_model_writes_anew(page, midi):
    sparse(page)
    bring(page, midi)
    models = page.locator("label.field", has_text="Model").first.locator("select")
    canvas(page).focus()
    for key in ("Home", "Shift+ArrowRight"):
        page.keyboard.press(key)
    for number, name in ((1, "RoPE"), (0, "PoPE")):
        models.select_option(index=number)
        press(page, "Write marked anew")
        done(page)
        assert page.locator(".take h3").first.inner_text().startswith(name)


def test_forty_keys_struck_hard_are_no_louder_than_can_be(page, tmp_path):
    file = tmp_path / "loud.mid"
    write_midi(
        Performance(np.zeros(40), np.full(40, 2), np.arange(30, 70), np.full(40, 127), np.zeros((0, 2))), file
    )
    bring(page, file.read_bytes(), file.name)
    page.get_by_label("Volume").fill("1")
    press(page, "▶ Play")
    heard(page)
    loudest = 0.0
    for _ in range(20):
        loudest = max(loudest, page.evaluate("seqpopeStudio.level()"))
        page.wait_for_timeout(50)
    assert 0.1 < loudest < 0.5  # root mean square: peaks are twice as high


def test_positions_are_read_out_and_wrong_numbers_told(page, midi):
    bring(page, midi)
    seek = page.get_by_label("Position")
    seek.focus()
    for told in ("0:00.1", "0:00.2"):
        page.keyboard.press("ArrowRight")
        until(page, f"document.querySelector('.transport input').getAttribute('aria-valuetext') === '{told}'", 5)
    page.locator("summary", has_text="More").click()
    page.get_by_label("Temperature").fill("9")
    page.locator("summary", has_text="More").click()
    press(page, "Generate")
    assert page.get_by_label("Temperature").evaluate("input => input === document.activeElement")
    page.get_by_label("Temperature").fill("1")
    page.get_by_label("Seconds to write").fill("")
    press(page, "Generate")
    assert page.get_by_label("Seconds to write").evaluate("input => input === document.activeElement")
    assert page.get_by_role("button", name="Generate").is_enabled()


def test_a_file_is_made_once_and_the_volume_kept(page, midi):
    bring(page, midi)
    files: list[str] = []
    page.on("download", lambda file: files.append(file.suggested_filename))
    for _ in range(3):
        press(page, "WAV")
    page.get_by_label("Volume").fill("0.3")
    until(page, "document.querySelector('.status').value === ''")
    page.wait_for_timeout(500)
    assert files == ["piano.wav"]
    page.get_by_role("link", name="Chorales").click()
    page.get_by_label("Bars to write").wait_for()
    assert page.get_by_label("Volume").input_value() == "0.3"


def test_without_a_model_the_page_says_how_to_get_one(browser, studio, midi):
    page = browser.new_page(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    page.goto(f"{studio}/#piano")
    page.get_by_text("seqpope prepare maestro").wait_for()
    assert "CC BY-NC-SA" in page.locator("main").inner_text()
    assert not page.get_by_role("button", name="Generate").count()
    bring(page, midi)
    press(page, "▶ Play")
    heard(page)
    press(page, "■ Stop")
    assert midi_line(download(page, "MIDI")) == midi_line(midi)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_small_screen_and_names_for_all_controls(browser, pianos, midi, scheme):
    page = browser.new_page(viewport={"width": 375, "height": 700}, color_scheme=scheme)
    page.goto(f"{pianos}/#piano")
    page.get_by_role("button", name="Generate").wait_for()
    bring(page, midi)
    page.get_by_label("Compare with a second model").check()
    page.get_by_label("Surprise").select_option("all")
    for summary in page.locator("main summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.evaluate(NAMELESS) == []
    page.close()
