"""A studio in a process of its own, and a browser to use it with."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

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


@pytest.fixture(scope="session")
def studio(tmp_path_factory) -> Iterator[str]:
    """Address of a studio with the shipped models alone."""
    with running_studio(tmp_path_factory.mktemp("studio")) as address:
        yield address


@pytest.fixture(scope="session")
def twins(tmp_path_factory) -> Iterator[str]:
    """Address of a studio that has a small untrained RoPE model of chorales beside the shipped PoPE one."""
    from seqpope.checkpoint import load_checkpoint, save_checkpoint
    from seqpope.model.config import ModelConfig
    from seqpope.model.transformer import Transformer
    from seqpope.studio.catalogue import WEIGHTS

    folder = tmp_path_factory.mktemp("twins")
    _, info = load_checkpoint(WEIGHTS / "chorales.safetensors")
    config = {"width": 32, "layers": 1, "heads": 2}
    file = folder / "runs" / "twins" / "rope-0" / "best.safetensors"
    file.parent.mkdir(parents=True)
    model = Transformer(info.vocabulary_size, "rope", ModelConfig(**config))
    save_checkpoint(file, model, replace(info, position="rope", model=config))
    with running_studio(folder) as address:
        yield address


@pytest.fixture
def client(studio) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=studio, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()
