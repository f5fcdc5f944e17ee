"""MAESTRO's archive, or any folder of MIDI files -> bytes of files, and which split each belongs to."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from seqpope.data.shards import SPLITS
from seqpope.errors import SeqpopeError

MIDI_SUFFIXES = (".mid", ".midi")
CATALOGUE_COLUMNS = ("canonical_composer", "canonical_title", "split", "midi_filename")
SHARES = {"train": 0.90, "validation": 0.05, "test": 0.05}  # the paper's
STRETCHED = re.compile(r" \[x[^\]]+\]$")  # no file of MIDI_SUFFIXES ends like that


class CorpusError(SeqpopeError):
    """There are no MIDI files where they were looked for, or their catalogue cannot be used."""


class Reader(Protocol):
    """An open source: bytes of a file by its name."""

    def __call__(self, name: str) -> bytes: ...


@contextmanager
def open_source(path: Path) -> Iterator[tuple[list[str], Reader]]:
    """Names of all files in a zip archive or a folder, in order and with / between folders, and their reader.

    The reader raises CorpusError for a file that cannot be read, as a damaged one of an archive.

    Raises:
        CorpusError: it is neither, or cannot be opened.
    """
    path = Path(path)
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}

        def read_file(name: str) -> bytes:
            try:
                return files[name].read_bytes()
            except OSError as error:
                raise CorpusError(f"it cannot be read ({error.strerror or error})") from error

        yield sorted(files), read_file
        return
    if not path.is_file():
        raise CorpusError(f"there is no {path}: expected a zip archive or a folder of MIDI files")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise CorpusError(
            f"{path} is not a zip archive that can be read ({error}): expected maestro-v3.0.0-midi.zip or a "
            "folder of MIDI files; download it again"
        ) from error
    with archive:

        def read_member(name: str) -> bytes:
            try:
                return archive.read(name)
            # A wrong password or an unknown compression is a RuntimeError or its NotImplementedError.
            except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
                raise CorpusError(f"it is damaged in the archive ({error})") from error

        yield sorted(info.filename for info in archive.infolist() if not info.is_dir()), read_member


def midi_files(names: Iterable[str]) -> list[str]:
    """Those of `names` that are MIDI files by their suffix; hidden ones (macOS adds some to archives) are not."""
    return [
        name
        for name in names
        if PurePosixPath(name).suffix.lower() in MIDI_SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    ]


def stretched_name(name: str, factor: float) -> str:
    """What a file's performance is called when its times are multiplied by `factor`."""
    return f"{name} [x{float(factor)!r}]"


def is_stretched(name: str) -> bool:
    """Whether a document is called as `stretched_name` calls them, and not as a MIDI file."""
    return STRETCHED.search(name) is not None


@dataclass(frozen=True)
class Recording:
    """A line of MAESTRO's catalogue; `file` is relative to the catalogue's folder."""

    file: str
    composer: str
    title: str
    split: str


def find_catalogue(names: Iterable[str]) -> str | None:
    """Name of MAESTRO's CSV file among a source's files, the one nearest the root; None if there is none."""
    found = [name for name in names if PurePosixPath(name).match("maestro-v*.csv")]
    return min(found, key=lambda name: (name.count("/"), name), default=None)


def read_catalogue(content: bytes, name: str) -> list[Recording]:
    """Recordings that MAESTRO's CSV file lists.

    Raises:
        CorpusError: it is no UTF-8, a column is missing, or a split is unknown.
    """
    try:
        lines = list(csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{name} is not MAESTRO's catalogue ({error}): expected CSV in UTF-8") from error
    missing = [column for column in CATALOGUE_COLUMNS if not lines or lines[0].get(column) is None]
    if missing:
        raise CorpusError(f"{name} is not MAESTRO's catalogue: it has no {', '.join(missing)}")
    recordings = [
        Recording(
            line["midi_filename"] or "",
            line["canonical_composer"] or "",
            line["canonical_title"] or "",
            line["split"] or "",
        )
        for line in lines
    ]
    unknown = sorted({recording.split for recording in recordings} - set(SPLITS))
    if unknown:
        raise CorpusError(f"{name}: expected the splits {', '.join(SPLITS)}, it also has {', '.join(unknown)}")
    return recordings


def divide(keys: Mapping[str, str]) -> dict[str, str]:
    """Split of each file, 90/5/5, where files of one key stay together.

    Groups come in the order of a hash of their keys and go where the largest part of the share is missing:
    the same files are always divided alike.

    Args:
        keys: for each file what it must not be parted from: its piece, or the hash of its content.
    """
    groups: dict[str, list[str]] = {}
    for file, key in keys.items():
        groups.setdefault(key, []).append(file)
    counts = dict.fromkeys(SPLITS, 0)
    split = {}
    for key in sorted(groups, key=lambda key: hashlib.sha256(key.encode()).hexdigest()):
        wanted = min(SPLITS, key=lambda name: counts[name] / SHARES[name])
        counts[wanted] += len(groups[key])
        split.update(dict.fromkeys(groups[key], wanted))
    return split


def divide_by_piece(recordings: Iterable[Recording]) -> dict[str, str]:
    """Split of each recording's file, 90/5/5, all recordings of a composer's title in one split."""
    return divide({recording.file: f"{recording.composer}\n{recording.title}" for recording in recordings})
