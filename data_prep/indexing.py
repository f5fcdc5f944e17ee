"""Indirect Indexing, drawn from a seed (`python -m data_prep.indexing --out data/indexing`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from data_prep.stores import locked, run
from seqpope.data.shards import Manifest, StoreError
from seqpope.domains.indexing.store import COUNTS, IndexingStore, write_examples
from seqpope.domains.indexing.task import IndexingTokenizer
from seqpope.errors import SeqpopeError

SEED = 0


def prepare(
    folder: Path,
    *,
    source: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] = print,
    counts: dict[str, int] | None = None,
) -> Manifest:
    """Draw the examples into `folder`; complete ones that are there are left alone.

    Args:
        counts: examples of each split; the paper's if None.

    Raises:
        SeqpopeError: a source is given, or the store cannot be written.
    """
    folder, counts = Path(folder), counts or COUNTS
    if source is not None:
        raise SeqpopeError(
            f"the examples are drawn from a seed and take no source, {source} was given: leave it out"
        )
    with locked(folder, progress):
        try:
            manifest = IndexingStore(folder).manifest
            drawn = (manifest.fingerprint, manifest.provenance.get("counts"), manifest.provenance.get("seed"))
            if not force and drawn == (IndexingTokenizer().fingerprint, counts, SEED):
                progress(f"{folder} is already prepared (--force prepares it again)")
                return manifest
        except StoreError:
            pass
        try:
            manifest = write_examples(folder, SEED, counts)
        except OSError as error:
            raise SeqpopeError(
                f"{folder} cannot be written ({error.strerror}): make room or choose another place"
            ) from error
    told = ", ".join(f"{name} {split['documents']:,} examples" for name, split in manifest.splits.items())
    progress(f"{folder}: {told}")
    return manifest


if __name__ == "__main__":
    sys.exit(run(prepare, Path("data/indexing"), __doc__ or "", takes_source=False))
