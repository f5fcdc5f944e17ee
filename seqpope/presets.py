"""The shipped configurations: one YAML a preset, in configs/ of the checkout or inside the installed package."""

from __future__ import annotations

from pathlib import Path

from seqpope.errors import SeqpopeError


def presets() -> dict[str, Path]:
    """Every shipped preset by name."""
    here = Path(__file__).resolve().parent
    folder = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """A configuration file by path, or a shipped one by name.

    Raises:
        SeqpopeError: neither a file nor a preset; the message lists the presets.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = presets()
    if name in shipped:
        return shipped[name]
    raise SeqpopeError(f"no configuration {name!r}: give a YAML file or one of {', '.join(shipped)}")
