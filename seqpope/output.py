"""Where samples go: which files one is written to, whole or not at all, and over nothing that is another's."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from seqpope.errors import SeqpopeError
from seqpope.files import write_text


@dataclass(frozen=True)
class Output:
    """Where samples go and in which formats; a kind of samples names its own in SUFFIXES, endings to formats.

    Args:
        out: file for one sample, its ending says what; folder for several.
        formats: what is written of each sample beside that.
    """

    out: Path
    formats: Sequence[str] = ()

    SUFFIXES: ClassVar[dict[str, str]] = {}

    @property
    def known(self) -> list[str]:
        """Formats in the order in which they are written; in a folder every sample has the first."""
        return list(dict.fromkeys(self.SUFFIXES.values()))

    def check(self, num: int) -> None:
        """Raise SeqpopeError before anything is computed if it could not be written."""
        unknown = [name for name in self.formats if name not in self.known]
        if unknown:
            raise SeqpopeError(f"unknown format {unknown[0]!r}: expected some of {', '.join(self.known)}")
        if self.out.suffix and not self.out.is_dir() and self.out.suffix.lower() not in self.SUFFIXES:
            raise SeqpopeError(
                f"{self.out}: expected a folder or a file that ends in {', '.join(self.SUFFIXES)}, "
                f"not {self.out.suffix}"
            )
        if self.single and num > 1:
            raise SeqpopeError(f"{num} samples do not fit into the one file {self.out}: name a folder")
        if (self.single and self.out.is_dir()) or (
            not self.single and self.out.exists() and not self.out.is_dir()
        ):
            kind = "file" if self.single else "folder"
            raise SeqpopeError(f"{self.out} exists and is not a {kind}: choose another name")
        blocked = [parent for parent in self.out.absolute().parents if parent.exists() and not parent.is_dir()]
        if blocked:
            raise SeqpopeError(f"{self.out}: {blocked[0]} is a file, not a folder: choose another place")

    @property
    def single(self) -> bool:
        return self.out.suffix.lower() in self.SUFFIXES

    @property
    def wanted(self) -> list[str]:
        """Formats of each sample, in the order in which they are written."""
        named = self.SUFFIXES[self.out.suffix.lower()] if self.single else self.known[0]
        return [name for name in self.known if name in {named, *self.formats}]

    def files(self, name: str) -> dict[str, Path]:
        """Where a sample's formats go, and its sidecar, "json"."""
        first = self.out if self.single else self.out / f"{name}.{self.known[0]}"
        found = {
            form: first if self.SUFFIXES.get(first.suffix.lower()) == form else first.with_suffix(f".{form}")
            for form in self.wanted
        }
        return found | {"json": first.with_suffix(".json")}

    def spare(self, names: Sequence[str], inputs: Sequence[Path | None]) -> None:
        """Raise SeqpopeError if a sample would be written over what it is made from."""
        taken = {path.resolve() for path in inputs if path is not None}
        told = {path.with_suffix(".json") for path in taken}
        for name in names:
            files = self.files(name)
            for file in files.values():
                if file.resolve() in taken:
                    raise SeqpopeError(
                        f"{file} is what is read: writing there would destroy it, choose another name"
                    )
            sidecar = files["json"]
            if sidecar.resolve() in told and sidecar.exists():
                raise SeqpopeError(f"{sidecar} says how what is read was made: choose another name for {self.out}")
            if sidecar.exists() and not _is_sidecar(sidecar):
                raise SeqpopeError(
                    f"{sidecar} would say how the sample was made, but another file is there: choose another name"
                )

    def write(
        self, name: str, sidecar: Mapping[str, Any], writers: Mapping[str, Callable[[Path], object]]
    ) -> Path:
        """Write one sample, all its files or none, and return the one that was asked for.

        Args:
            writers: for each format what writes the sample to a path; others may be written beside it.
        """
        files = self.files(name)
        folder = files["json"].parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".sample-", dir=folder) as beside:
            made = {form: Path(beside) / file.name for form, file in files.items()}
            for form in self.wanted:
                writers[form](made[form])
            write_text(made["json"], json.dumps(sidecar, indent=1) + "\n")
            for form in (*self.wanted, "json"):
                os.replace(made[form], files[form])
        return self.out if self.single else files[self.known[0]]


def _is_sidecar(file: Path) -> bool:
    """Whether a JSON file was written beside a sample."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"model", "settings", "seed", "nats_per_token"} <= content.keys()
