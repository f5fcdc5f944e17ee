"""The Chorales page in a browser: heard, drawn on, marked, compared."""

from __future__ import annotations

import io
import time
import wave

import numpy as np
import pytest
from pages import NAMELESS, done, download, heard, midi_line, notices, press, running_studio, until

pytestmark = pytest.mark.slow  # a browser; test_genome_page.py is the one that always runs


@pytest.fixture
def page(browser, studio):
    page = browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(studio)
    page.get_by_role("button", name="Generate").wait_for()
    yield page
    page.close()
    assert not wrong


def draw_scale(page) -> None:
    """A bar of four quarters, by the keyboard alone."""
    page.get_by_label("Bars to write").fill("1")
    press(page, "Empty bars to draw on")
    for key in ("Enter", "ArrowUp", "ArrowUp", "Enter", "ArrowUp", "ArrowUp", "Enter", "ArrowUp", "Enter"):
        page.keyboard.press(key)


@pytest.mark.slow
def test_it_sounds_while_it_is_written_and_stops(page):
    page.get_by_label("Bars to write").fill("2")
    page.get_by_label("Tempo").fill("200")
    press(page, "Generate")
    heard(page)
    assert page.get_by_role("button", name="Cancel").is_enabled()
    done(page)
    assert not notices(page)
    assert "nats a token (128 tokens)" in page.locator(".take-cost").first.inner_text()
    until(page, "document.querySelector('.play').textContent.includes('Play')")  # to its end
    until(page, "seqpopeStudio.level() < 1e-4", 5)
    page.locator("h1").click()
    page.keyboard.press("Space")
    heard(page)
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Play").is_visible()


@pytest.mark.slow
def test_a_melody_is_drawn_harmonised_and_partly_written_anew(page):
    draw_scale(page)
    assert midi_line(download(page, "MIDI")) == [67, 69, 71, 72]
    page.locator("summary", has_text="More").click()
    page.get_by_label("Versions tried").select_option("4")
    press(page, "Generate")
    done(page)
    assert not notices(page)
    harmonised = midi_line(download(page, "MIDI"))
    assert len(harmonised) >= 13
    heard(page)
    press(page, "■ Stop")

    roll = page.locator(".take canvas").first
    roll.focus()
    page.keyboard.press("d")  # the pencil down
    assert not page.get_by_role("button", name="Write marked anew").is_enabled()
    for key in ("Home", "2", "Shift+ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    assert "Bar 1, beat 2: tenor" in page.locator(".roll-readout").first.inner_text()
    press(page, "Write marked anew")
    done(page)
    assert not notices(page)
    soprano = [67, 69, 71, 72]
    assert set(soprano) <= set(midi_line(download(page, "MIDI")))
    press(page, "Undo")
    assert midi_line(download(page, "MIDI")) == harmonised
    press(page, "Undo")
    assert midi_line(download(page, "MIDI")) == soprano


def test_undo_knows_who_wrote_and_the_skip_link_stays(page):
    draw_scale(page)
    title = page.locator(".take h3").first
    assert title.inner_text() == "Your piece"
    page.get_by_label("Start from").select_option("nothing")
    press(page, "Generate")
    done(page)
    assert "seed" in title.inner_text()
    press(page, "Undo")
    assert title.inner_text() == "Your piece"
    press(page, "Redo")
    assert "seed" in title.inner_text()
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("[location.hash, document.activeElement.id]") == ["", "main"]


def test_pointers_draw_and_mark(page):
    press(page, "Empty bars to draw on")
    roll = page.locator(".take canvas").first
    roll.evaluate("canvas => canvas.scrollIntoView({ block: 'center' })")
    box = roll.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 130, steps=5)
    page.mouse.up()
    assert len(midi_line(download(page, "MIDI"))) >= 2
    page.get_by_text("Look", exact=True).click()
    assert roll.bounding_box() == box  # nothing jumps when the mode changes
    bottom = box["y"] + box["height"]
    page.mouse.move(box["x"] + 60, bottom - 55)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, bottom - 25, steps=5)
    page.mouse.up()
    assert page.get_by_role("button", name="Write marked anew").is_enabled()
    page.keyboard.press("Escape")
    assert not page.get_by_role("button", name="Write marked anew").is_enabled()


@pytest.mark.slow
def test_files_in_and_out(page):
    draw_scale(page)
    with wave.open(io.BytesIO(download(page, "WAV"))) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16) / 32768
        assert sound.getnframes() / sound.getframerate() == pytest.approx(3 + 2, abs=0.1)  # the room dies away
    assert np.sqrt((samples**2).mean()) > 0.03
    assert np.abs(samples).max() < 0.95
    assert b"<score-partwise" in download(page, "MusicXML")
    assert download(page, "PNG").startswith(b"\x89PNG")
    midi = download(page, "MIDI")
    upload = page.get_by_label("MIDI or MusicXML file")
    upload.set_input_files({"name": "garbage.mid", "mimeType": "audio/midi", "buffer": b"garbage"})
    page.locator(".notice.error").wait_for()
    assert "not a MIDI file" in notices(page)[0]
    upload.set_input_files({"name": "tune.mid", "mimeType": "audio/midi", "buffer": midi})
    page.locator(".notice.info").wait_for()
    assert "tune.mid: 1 bar; soprano" in notices(page)[1]
    assert page.get_by_label("Start from").input_value() == "melody"
    page.get_by_label("Surprise").check()
    until(page, "document.querySelector('.take-cost').textContent.includes('by PoPE')")
    page.locator(".take canvas").first.focus()
    page.keyboard.press("Home")
    assert "nats, a chance of 1 in" in page.locator(".roll-readout").first.inner_text()
    pytest.importorskip("verovio")
    page.locator("summary", has_text="Score").click()
    page.locator(".score img").first.wait_for()
    assert (
        page.locator(".score img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    )


def test_two_models_from_one_seed(page):
    page.get_by_label("Compare with a second model").check()
    page.get_by_label("Bars to write").fill("1")
    page.get_by_label("new one each time").uncheck()
    page.get_by_label("Seed").fill("11")
    press(page, "Generate")
    done(page)
    titles = page.locator(".take h3").all_inner_texts()
    assert ["PoPE" in titles[0], "RoPE" in titles[1]] == [True, True]
    assert all("seed 11" in title for title in titles)
    costs = [float(text.split()[0]) for text in page.locator(".take-cost").all_inner_texts()]
    assert max(costs) < 1.5  # both come with the package; untrained ones would take 4.5
    press(page, "Listen to this")
    assert midi_line(download(page, "MIDI"))


@pytest.mark.slow
def test_cancelled_midway_keeps_what_is_there_and_others_wait_in_line(page, browser, studio):
    page.get_by_label("Bars to write").fill("32")
    press(page, "Generate")
    until(page, "document.querySelector('.status').value.includes('bar 1')")
    second = browser.new_page()
    second.goto(studio)
    second.get_by_label("Bars to write").fill("1")
    press(second, "Generate")
    until(second, "document.querySelector('.status').value.includes('one job is before yours')")
    press(page, "Cancel")
    done(page)
    assert "Stopped" in notices(page)[0]
    assert midi_line(download(page, "MIDI"))
    done(second)
    assert not notices(second)
    second.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_small_screen_and_names_for_all_controls(browser, studio, scheme):
    page = browser.new_page(viewport={"width": 375, "height": 700}, color_scheme=scheme)
    page.goto(studio)
    page.get_by_role("button", name="Generate").wait_for()
    page.get_by_label("Compare with a second model").check()
    for summary in page.locator("main summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.evaluate(NAMELESS) == []
    page.close()


def test_the_score_follows_and_seeks(page):
    pytest.importorskip("verovio")
    page.get_by_label("Bars to write").fill("2")
    page.get_by_label("Play while it is written").uncheck()
    press(page, "Generate")
    done(page)
    page.locator("summary", has_text="Score").click()
    page.locator(".score img").first.wait_for()
    page.get_by_label("Tempo").fill("30")  # a bar takes eight seconds
    press(page, "▶ Play")
    mark, sheet = page.locator(".score-bar"), page.locator(".score-page")
    mark.wait_for(state="attached")
    first = mark.bounding_box()
    page.get_by_label("Position").evaluate("input => { input.value = 20; input.oninput(); }")
    until(page, f"document.querySelector('.score-bar')?.getBoundingClientRect().x > {first['x'] + 50}")
    second = mark.bounding_box()
    assert second["x"] == pytest.approx(first["x"] + first["width"], abs=3)  # bars stand side by side
    box = sheet.bounding_box()
    sheet.click(position={"x": first["x"] - box["x"] + 60, "y": first["y"] - box["y"] + 20})
    until(page, f"Math.abs(document.querySelector('.score-bar').getBoundingClientRect().x - {first['x']}) < 3")
    assert 0 <= int(page.get_by_label("Position").input_value()) < 16
    press(page, "■ Stop")
    until(page, "!document.querySelector('.score-bar')", 5)  # at the next frame


def test_what_was_not_the_models_is_told(page):
    draw_scale(page)
    press(page, "Generate")
    until(page, "document.querySelector('.status').value.includes('bar')")  # it streams, particles or not
    done(page)
    title = page.locator(".take h3").first
    assert "around what was kept" in title.inner_text()
    page.locator(".take canvas").first.focus()
    for key in ("Home", "Enter"):  # the pencil is still in hand
        page.keyboard.press(key)
    assert "changed by hand" in title.inner_text()
    press(page, "Undo")
    assert "around what was kept" in title.inner_text()


@pytest.mark.parametrize("leave", ["close", "reload"])
def test_a_page_that_is_left_lets_go_and_a_studio_that_ended_is_told(browser, tmp_path, leave):
    with running_studio(tmp_path) as address:
        pages = [browser.new_page() for _ in range(2)]
        for page in pages:
            page.goto(address)
            page.get_by_role("button", name="Generate").wait_for()
        first, second = pages
        first.get_by_label("Bars to write").fill("32")
        press(first, "Generate")
        until(first, "document.querySelector('.status').value.includes('bar 1')")
        getattr(first, leave)()
        second.get_by_label("Bars to write").fill("1")
        press(second, "Generate")
        began = time.monotonic()
        until(second, "document.querySelector('.status').value.includes('bar 1 of 1')")
        assert time.monotonic() - began < 15  # half of when a job that nobody listens to would end
        done(second)
        assert not notices(second)
    press(second, "Generate")
    second.locator(".notice.error").wait_for()
    assert "does not answer: is it still running" in notices(second)[0]
    assert second.get_by_role("button", name="Generate").is_enabled()
    for page in (first, second):
        page.close()


def test_a_melody_is_there_again_when_the_page_was_left_while_it_was_harmonised(page):
    draw_scale(page)
    press(page, "Generate")
    until(page, "document.querySelector('.status').value.includes('bar')")
    page.get_by_role("link", name="Models").click()
    page.get_by_label("Filter").wait_for()
    page.get_by_role("link", name="Chorales").click()
    page.get_by_label("Bars to write").wait_for()
    assert midi_line(download(page, "MIDI")) == [67, 69, 71, 72]
    press(page, "Undo")  # the last of the strokes
    assert midi_line(download(page, "MIDI")) == [67, 69, 71]


def test_mistakes_are_told_once_and_a_thousand_bars_not_drawn(page):
    upload = page.get_by_label("MIDI or MusicXML file")
    for _ in range(2):
        upload.set_input_files({"name": "garbage.mid", "mimeType": "audio/midi", "buffer": b"garbage"})
        done(page)
    assert len(notices(page)) == 1
    page.get_by_label("Bars to write").fill("99999")
    press(page, "Empty bars to draw on")
    assert page.locator(".take h3").first.inner_text() == "Nothing yet"
    page.evaluate("location.hash = '#constructor'")
    page.get_by_label("Bars to write").wait_for()


def test_a_studio_that_ends_while_it_writes_is_told_and_its_job_given_up(browser, tmp_path):
    with running_studio(tmp_path) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_label("Bars to write").fill("32")
        press(page, "Generate")
        until(page, "document.querySelector('.status').value.includes('bar 1')")
    until(page, "document.querySelector('.status').value.includes('does not answer: trying again')")
    press(page, "Cancel")
    done(page)
    page.get_by_role("link", name="Piano").click()
    page.locator(".notice.error").wait_for()
    assert page.get_by_label("Bars to write").is_visible()
    page.close()
