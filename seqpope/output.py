"""Where samples go: which files one is written to, whole or not at all, and over nothing that is another's."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqpope.domains.music.chorales.codec import Chorale, write_midi
from seqpope.errors import SeqpopeError
from seqpope.files import write_bytes, write_text

FORMATS = ("mid", "musicxml", "wav", "png")
SUFFIXES = {
    ".mid": "mid",
    ".midi": "mid",
    ".musicxml": "musicxml",
    ".xml": "musicxml",
    ".wav": "wav",
    ".png": "png",
}


@dataclass(frozen=True)
class Output:
    """Where samples go and how they are written.

    Args:
        out: file for one sample, its ending says what; folder for several.
        formats: what is written of each sample beside that: mid, musicxml, wav, png.
        tempo: quarter notes a minute.
        merge_repeats: a pitch repeated from step to step is one held note.
        soundfont: for wav; the system's own if None.
    """

    out: Path
    formats: Sequence[str] = ()
    tempo: float = 80.0
    merge_repeats: bool = True
    soundfont: Path | None = None

    def check(self, num: int) -> None:
        """Raise SeqpopeError before anything is computed if it could not be written."""
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown:
            raise SeqpopeError(f"unknown format {unknown[0]!r}: expected some of {', '.join(FORMATS)}")
        if not 10 <= self.tempo <= 400:
            raise SeqpopeError(f"the tempo must be 10 to 400 quarters a minute, it is {self.tempo}")
        if self.out.suffix and not self.out.is_dir() and self.out.suffix.lower() not in SUFFIXES:
            raise SeqpopeError(
                f"{self.out}: expected a folder or a file that ends in {', '.join(SUFFIXES)}, "
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
        if "wav" in self.wanted:
            from seqpope.domains.music.writers import find_fluidsynth, find_soundfont

            find_fluidsynth()
            find_soundfont(self.soundfont)

    @property
    def single(self) -> bool:
        return self.out.suffix.lower() in SUFFIXES

    @property
    def wanted(self) -> list[str]:
        """Formats of each sample, in the order in which they are written."""
        named = [SUFFIXES[self.out.suffix.lower()]] if self.single else ["mid"]
        return [name for name in FORMATS if name in {*named, *self.formats}]

    def files(self, name: str) -> dict[str, Path]:
        """Where a sample's formats go, and its sidecar, "json"."""
        first = self.out if self.single else self.out / f"{name}.mid"
        found = {
            form: first if SUFFIXES.get(first.suffix.lower()) == form else first.with_suffix(f".{form}")
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
        self, chorale: Chorale, name: str, sidecar: dict[str, Any], prompt_steps: int, given: tuple[int, ...]
    ) -> Path:
        """Write one sample; return the file that was asked for."""
        files = self.files(name)
        folder = files["json"].parent
        folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"tempo": self.tempo, "merge_repeats": self.merge_repeats}
        with tempfile.TemporaryDirectory(prefix=".sample-", dir=folder) as beside:
            made = {form: Path(beside) / file.name for form, file in files.items()}
            midi = made.get("mid", Path(beside) / "sample.mid")
            if "mid" in made or "wav" in made:
                write_midi(chorale, midi, **options)
            if self.wanted != ["mid"]:
                from seqpope.domains.music import writers

                if "musicxml" in made:
                    writers.write_musicxml(chorale, made["musicxml"], **options)
                if "png" in made:
                    picture = writers.draw_piano_roll(
                        chorale, prompt_steps=prompt_steps, given=given, title=chorale.name, tempo=self.tempo
                    )
                    write_bytes(made["png"], picture)
                if "wav" in made:
                    writers.write_wav(midi, made["wav"], soundfont=self.soundfont)
            write_text(made["json"], json.dumps(sidecar, indent=1) + "\n")
            for form in (*self.wanted, "json"):
                os.replace(made[form], files[form])
        return self.out if self.single else files["mid"]


def _is_sidecar(file: Path) -> bool:
    """Whether a JSON file was written beside a sample."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"model", "settings", "seed", "nats_per_token"} <= content.keys()
