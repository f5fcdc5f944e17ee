"""A studio in a process of its own, and a browser to use it with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from pages import running_studio


@pytest.fixture(scope="session")
def studio(tmp_path_factory) -> Iterator[str]:
    """Address of a studio with the shipped models alone."""
    with running_studio(tmp_path_factory.mktemp("studio")) as address:
        yield address


@pytest.fixture(scope="session")
def genome_folder(tmp_path_factory) -> Path:
    """data/genome, prepared of 24,000 random bases (chr3, 301 to 360 N) and a repeat (chr4), and genes.bed."""
    from seqpope.cli import main

    folder = tmp_path_factory.mktemp("genome")
    letters = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(7).integers(0, 4, 24_000)]
    letters[300:360] = ord("N")
    (folder / "small.fa").write_text(f">chr3\n{letters.tobytes().decode()}\n>chr4\n{'ACGTTGCA' * 200}\n")
    (folder / "genes.bed").write_text("chr3\t99\t400\tABC1\nchr3\t200\t5000\tabd2\nchr9\t5\t90\tFAR1\n")
    prepared = main(
        ["prepare", "genome", "--source", f"{folder / 'small.fa'}", "--data_folder", f"{folder / 'data'}"]
    )
    assert prepared == 0
    return folder


@pytest.fixture(scope="session")
def genome_studio(genome_folder) -> Iterator[str]:
    """Address of a studio with a small genome and its genes."""
    with running_studio(genome_folder, "--genes", str(genome_folder / "genes.bed")) as address:
        yield address


@pytest.fixture
def client(studio) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=studio, timeout=120) as client:
        yield client
