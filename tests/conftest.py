"""Fixtures that are too dear to make twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from seqpope.domains.music.chorales.codec import Chorale
from seqpope.domains.music.chorales.corpus import music21_chorales

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


@pytest.fixture(scope="session")
def music21_parsed(tmp_path_factory) -> tuple[list[Chorale], dict[str, str]]:
    """All chorales of music21, and the files left out with reasons: 11 s on two processes, once for all."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    kept = shared / "chorales.json"
    with open(shared / "chorales.lock", "w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.is_file():
            found, skipped = music21_chorales()
            pieces = [(chorale.name, chorale.pitches.tolist()) for chorale in found]
            kept.with_suffix(".part").write_text(json.dumps([pieces, skipped]))
            kept.with_suffix(".part").replace(kept)
    pieces, skipped = json.loads(kept.read_text())
    return [Chorale(np.array(pitches), name) for name, pitches in pieces], skipped


@pytest.fixture(scope="session")
def chorales(music21_parsed) -> list[Chorale]:
    """All chorales of music21."""
    return music21_parsed[0]


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
