"""What a number was made with: versions, commit, device, date."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import seqpope
from seqpope.errors import SeqpopeError

PACKAGES = ("torch", "triton", "lightning", "numpy", "safetensors", "music21", "pretty_midi")


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Versions of seqpope, Python and the packages that matter, git commit, device name and date (UTC)."""
    versions = {"seqpope": seqpope.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "commit": commit(),
        "device": device_name(device),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def commit() -> str | None:
    """The commit of the checkout this package runs from, with "+changes" where files differ.

    Git is asked once a process, which goes on with the code that it has loaded. Without a repository (a copy on a
    GPU machine) it is what SEQPOPE_COMMIT says, or None.
    """
    folder = Path(__file__).resolve().parent.parent
    elsewhere = os.environ.get("SEQPOPE_COMMIT")
    if not (folder / ".git").exists():
        return elsewhere

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return elsewhere


def choose_device(device: str) -> str:
    """Resolve "auto".

    Raises:
        SeqpopeError: cuda is asked for and there is none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SeqpopeError("--device cuda was asked for, but torch sees no GPU: use --device cpu or auto")
    return device


def device_name(device: str) -> str:
    """The GPU's name, or the processor's with its number of threads in use."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
