"""The four-part chorales that music21 ships (`python -m data_prep.chorales --out data/chorales`).

`--make-split FILE` writes the fixed split again, which is part of the package, from the installed music21.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from data_prep.stores import PREPARATION, finished, locked, run, write_chorales
from seqpope.data.shards import Manifest
from seqpope.domains.music.chorales.codec import Chorale
from seqpope.domains.music.chorales.corpus import load_split, make_split, music21_chorales, split_chorales
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.errors import SeqpopeError
from seqpope.files import write_text

REPORT_EVERY = 50  # files


def _parse(progress: Callable[[str], None]) -> tuple[list[Chorale], dict[str, str], str]:
    """Chorales, reasons of the files left out, and music21's version."""

    def report(done: int, total: int) -> None:
        if done % REPORT_EVERY == 0 or done == total:
            progress(f"parsed {done} of {total} files")

    chorales, skipped = music21_chorales(report)
    import music21

    return chorales, skipped, str(music21.__version__)


def prepare(
    folder: Path,
    *,
    source: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] = print,
) -> Manifest:
    """Write the token store of music21's chorales to `folder`; a complete one that is there is left alone.

    Raises:
        SeqpopeError: a source is given (the data comes with music21), music21 or a piece of the split is
            missing, or the store cannot be written.
    """
    folder = Path(folder)
    if source is not None:
        raise SeqpopeError(
            f"the chorales come with music21 and take no source, {source} was given: leave it out, "
            "or prepare the data set jsb from it"
        )
    split_sha256 = hashlib.sha256(json.dumps(load_split(), sort_keys=True).encode()).hexdigest()
    with locked(folder, progress):
        manifest = finished(
            folder, "chorales", ChoraleTokenizer().fingerprint, preparation=PREPARATION, sha256=split_sha256
        )
        if not force and manifest is not None:
            progress(f"{folder} is already prepared (--force prepares it again)")
            return manifest
        chorales, skipped, version = _parse(progress)
        splits, skipped = split_chorales(chorales, skipped)
        provenance = {
            "source": f"the Bach files of music21 {version}'s corpus",
            "music21": version,
            "sha256": split_sha256,  # of the split: the music has no one file
            "split made from music21": load_split()["music21"],
            "licence": "music21's corpus comes with music21 (BSD-3-Clause); some of its encodings bar commercial "
            "use, as its corpus/license.txt and the files themselves say; the music is in the public domain",
            "skipped": skipped,
        }
        return write_chorales(folder, "chorales", splits, provenance, progress)


def write_split(path: Path, progress: Callable[[str], None] = print) -> None:
    """Divide the installed music21's chorales and write the split file.

    Raises:
        SeqpopeError: music21 or its corpus is missing.
    """
    chorales, _, version = _parse(progress)
    split = make_split(chorales)
    write_text(path, json.dumps({"music21": version, **split}, indent=1) + "\n")
    progress(f"{path}: " + ", ".join(f"{name} {len(names)} pieces" for name, names in split.items()))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--make-split":
        write_split(Path(sys.argv[2]))
        sys.exit(0)
    sys.exit(run(prepare, Path("data/chorales"), __doc__ or "", takes_source=False))
