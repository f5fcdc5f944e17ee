"""What tests of the studio share: a studio in a process of its own; waiting, pressing, downloading on a page."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mido

AUDIBLE = 0.005  # root mean square
SECONDS = 60.0
# Controls without a name, as the page's accessibility has it.
NAMELESS = """() => [...document.querySelectorAll("main :is(button, input, select, canvas)")]
    .filter((each) => ![each, ...(each.labels ?? [])].some((it) => it.ariaLabel || it.textContent.trim()))
    .map((each) => each.outerHTML)"""


@contextmanager
def running_studio(folder: Path, *words: str) -> Iterator[str]:
    """The address of a studio over folder/runs and folder/data."""
    command = [sys.executable, "-m", "seqpope", "app", "--port", "0", "--runs", str(folder / "runs")]
    command += ["--data_folder", str(folder / "data"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found, f"no address in {line!r}"
            yield found[0].rstrip("/")
        finally:
            process.terminate()
            process.wait(20)


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
