"""Fixtures that are too dear to make twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from quick_chorales import quick_chorale

from seqpope.domains.music.chorales import corpus
from seqpope.domains.music.chorales.codec import Chorale

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

# Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Chromium's own requests home are refused by a closed network, many at a time.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]

# Tiny models: two threads on cores that others use are a hundred times slower than one.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Without a GPU what needs one is left out, however pytest was called."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def all_chorales() -> tuple[list[Chorale], dict[str, str]]:
    """What corpus.music21_chorales finds, most of it read by quick_chorales.py.

    The codec reads all that is not plain, and of what is every twelfth file, so that the two are held against
    each other; `pytest -m slow` does so for all of them.
    """
    files = corpus.music21_files()
    quick = {path: quick_chorale(path) for path in files}
    by_codec = [path for number, path in enumerate(files) if quick[path] is None or number % 12 == 0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(corpus, "music21_files", lambda: by_codec)
        found, skipped = corpus.music21_chorales()
    read: dict[str, Chorale | str] = {chorale.name: chorale for chorale in found} | skipped
    for path in files:
        if path.name not in read:
            read[path.name] = quick[path]
        elif quick[path] is not None:
            assert read[path.name] == quick[path], f"{path.name}: quick_chorales.py and the codec disagree"
    pieces = {path.name: read[path.name] for path in files}
    return (
        [piece for piece in pieces.values() if isinstance(piece, Chorale)],
        {name: reason for name, reason in pieces.items() if isinstance(reason, str)},
    )


@pytest.fixture(scope="session")
def music21_parsed(tmp_path_factory) -> tuple[list[Chorale], dict[str, str]]:
    """All chorales of music21, and the files left out with reasons, read once for all."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    kept = shared / "chorales.json"
    with open(shared / "chorales.lock", "w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.is_file():
            found, skipped = all_chorales()
            pieces = [(chorale.name, chorale.pitches.tolist()) for chorale in found]
            kept.with_suffix(".part").write_text(json.dumps([pieces, skipped]))
            kept.with_suffix(".part").replace(kept)
    pieces, skipped = json.loads(kept.read_text())
    return [Chorale(np.array(pitches), name) for name, pitches in pieces], skipped


@pytest.fixture(scope="session")
def chorales(music21_parsed) -> list[Chorale]:
    """All chorales of music21."""
    return music21_parsed[0]


@pytest.fixture
def unrendered(monkeypatch) -> None:
    """Figures are drawn, but their files are PNG in name alone: rendering takes longer than tiny models train."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure, "savefig", lambda self, file, **options: file.write(b"\x89PNG, not rendered"))


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A browser without a head, one for all tests: Playwright runs once in a process."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()
