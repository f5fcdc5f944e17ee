"""What tests of the studio's pages share: waiting, pressing, downloading."""

from __future__ import annotations

import io
import time

import mido

AUDIBLE = 0.005  # root mean square
SECONDS = 60.0
# Controls without a name, as the page's accessibility has it.
NAMELESS = """() => [...document.querySelectorAll("main :is(button, input, select, canvas)")]
    .filter((each) => ![each, ...(each.labels ?? [])].some((it) => it.ariaLabel || it.textContent.trim()))
    .map((each) => each.outerHTML)"""


def until(page, expression: str, seconds: float = SECONDS) -> None:
    """Wait for JavaScript to be true; the page's policy forbids Playwright's own way."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"not within {seconds:g} s: {expression}"
        time.sleep(0.03)


def done(page) -> None:
    until(page, "!document.querySelector('button.primary').disabled")


def heard(page) -> None:
    until(page, f"seqpopeStudio.level() > {AUDIBLE}")


def press(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def notices(page) -> list[str]:
    return page.locator(".notice p").all_inner_texts()


def download(page, name: str) -> bytes:
    with page.expect_download() as got:
        press(page, name)
    with open(got.value.path(), "rb") as file:
        return file.read()


def midi_line(content: bytes) -> list[int]:
    """All pitches struck, in order."""
    return [m.note for m in mido.MidiFile(file=io.BytesIO(content)) if m.type == "note_on" and m.velocity]
