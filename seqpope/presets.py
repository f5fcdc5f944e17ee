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
        SeqpopeError: neither a file nor a preset, which the message lists; or a file without settings in it.
    """
    path = Path(name)
    if path.is_file():
        _check_text(path)
        return path
    shipped = presets()
    if name in shipped:
        return shipped[name]
    raise SeqpopeError(f"no configuration {name!r}: give a YAML file or one of {', '.join(shipped)}")


def _check_text(path: Path) -> None:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SeqpopeError(f"{path} cannot be read as YAML in UTF-8 ({error})") from error
    if not isinstance(content, dict):
        raise SeqpopeError(
            f"{path} should hold settings such as `optimizer: {{steps: 500}}`, it holds {type(content).__name__}: "
            "`seqpope train --print-config` writes a whole one"
        )
