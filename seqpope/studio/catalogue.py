"""Models and genomes that the page may name: by ids of the server's own making, never by path."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqpope.checkpoint import BEST, SHIPPED, CheckpointError, read_info
from seqpope.domains.base import find_kind
from seqpope.errors import SeqpopeError

OBJECTS = ("tokenizer", "trained", "model")  # of a header


@dataclass(frozen=True)
class Entry:
    """A model: its weights, and what their header says."""

    id: str
    file: Path
    label: str
    header: dict[str, Any]

    @property
    def kind(self) -> str:
        """What it draws (`domains.base.KINDS`): chorales, piano or dna; its domain if nothing."""
        dataset, domain = str(self.header["dataset"]), str(self.header["domain"])
        try:
            return find_kind(dataset, domain).name
        except SeqpopeError:
            return domain

    def described(self) -> dict[str, Any]:
        """For the page: plain JSON without paths."""
        trained = self.header.get("trained", {})
        return {
            "id": self.id,
            "label": self.label,
            "kind": self.kind,
            "position": self.header.get("position"),
            "dataset": self.header.get("dataset"),
            "length": self.header.get("length"),
            "model": self.header.get("model"),
            "validation_nats_per_token": trained.get("validation_nats_per_token"),
            "seed": trained.get("seed"),
        }


def read_header(file: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself (`CheckpointInfo`); None if it is no checkpoint that can be read."""
    try:
        found = vars(read_info(file))
    except CheckpointError:
        return None
    return found if all(isinstance(found[name], dict) for name in OBJECTS) else None


def id_of(path: Path) -> str:
    """The page's name of a file or folder."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]


class Catalogue:
    """What lies in the folders that the studio was started with, looked up anew each time.

    Args:
        runs: folder of experiments, as `seqpope train` makes them.
        data: folder of prepared data.
    """

    def __init__(self, runs: Path, data: Path) -> None:
        self.runs, self.data = Path(runs), Path(data)

    def models(self) -> list[Entry]:
        """The shipped models, then those of runs."""
        return list(self._models())

    def shipped(self) -> Iterator[Entry]:
        """Those that come with the package."""
        for name, file in SHIPPED.items():
            header = read_header(file)
            if header is not None:
                yield Entry(name, file, f"{header['dataset']}, shipped", header)

    def _models(self) -> Iterator[Entry]:
        yield from self.shipped()
        if self.runs.is_dir():
            for file in sorted({*self.runs.glob(f"*/{BEST}"), *self.runs.glob(f"*/*/{BEST}")}):
                header = read_header(file)
                if header is not None:
                    yield Entry(id_of(file), file, str(file.parent.relative_to(self.runs)), header)

    def model(self, name: str, kind: str) -> Entry:
        """A model by id.

        Raises:
            SeqpopeError: there is none, or it is of another kind.
        """
        for entry in self._models():
            if entry.id == name:
                if entry.kind != kind:
                    raise SeqpopeError(f"{entry.label} is a model of {entry.kind}: choose one of {kind}")
                return entry
        raise SeqpopeError(f"there is no model {name!r}: it may have been moved; load the page again")

    def genomes(self) -> list[tuple[str, Path]]:
        """(id, folder) of prepared genomes."""
        return [(id_of(file.parent), file.parent) for file in sorted(self.data.glob("*/bases.u8"))]

    def genome(self, name: str) -> Path:
        """A prepared genome by id.

        Raises:
            SeqpopeError: there is none.
        """
        for found, folder in self.genomes():
            if found == name:
                return folder
        raise SeqpopeError(f"there is no genome {name!r}: prepare one, and load the page again")
