"""JSB Chorales: the official file of sixteenths, with its split (`python -m data_prep.jsb --out data/jsb`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from data_prep.download import download
from data_prep.stores import PREPARATION, finished, locked, run, write_chorales
from seqpope.data.shards import Manifest
from seqpope.domains.music.chorales.codec import read_json
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.errors import SeqpopeError
from seqpope.files import sha256_of

COMMIT = "9a7f733ddb4ed91f48da64ac7f0f621c34aadd4d"
URL = f"https://raw.githubusercontent.com/czhuang/JSB-Chorales-dataset/{COMMIT}/Jsb16thSeparated.json"
SHA256 = "79294cc374f9252e95ef4b703161524c1c53dc1f712c236f00f1c1f5d54af5a7"


def prepare(
    folder: Path,
    *,
    source: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] = print,
) -> Manifest:
    """Write the token store of JSB Chorales to `folder`; a complete one that is there is left alone.

    Without `source` the file is downloaded to `downloads` beside the folder. A source with another checksum
    than the official file's is taken if it is valid; the manifest then says so.

    Raises:
        SeqpopeError: the file cannot be had or is no such file, or the store cannot be written.
    """
    folder = Path(folder)
    if source is not None and not Path(source).is_file():
        raise SeqpopeError(f"there is no file {source}: expected a copy of Jsb16thSeparated.json")
    sha256 = SHA256 if source is None else sha256_of(Path(source))
    with locked(folder, progress):
        manifest = finished(folder, "jsb", ChoraleTokenizer().fingerprint, preparation=PREPARATION, sha256=sha256)
        if not force and manifest is not None:
            progress(f"{folder} is already prepared (--force prepares it again)")
            return manifest
        if source is None:
            file = download(URL, folder.parent / "downloads" / "Jsb16thSeparated.json", SHA256, progress=progress)
        else:
            file = Path(source)
        official = sha256 == SHA256
        if not official:
            progress(f"warning: {file.name} has SHA-256 {sha256}, the official file {SHA256}: not comparable")
        provenance = {
            "source": URL if source is None else file.name,
            "official url": URL,
            "sha256": sha256,
            "official file": official,
            "licence": "the repository names no licence; the music is in the public domain",
            "skipped": {},
        }
        return write_chorales(folder, "jsb", read_json(file), provenance, progress)


if __name__ == "__main__":
    sys.exit(run(prepare, Path("data/jsb"), __doc__ or "", takes_source=True))
