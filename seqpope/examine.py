"""The verb `examine`: what sampled chorales are like beside real ones, and whether they copy any."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from seqpope.data.shards import TokenStore
from seqpope.domains.music.chorales.codec import SCORE_SUFFIXES, Chorale, read_score
from seqpope.domains.music.chorales.metrics import examine, render
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.errors import SeqpopeError
from seqpope.files import write_text


def examine_files(paths: Sequence[Path], data: Path | None = None, out: Path | None = None) -> str:
    """Read scores, measure them, return the report as Markdown.

    Args:
        paths: scores, or folders of them; in a folder files that differ in their ending alone count once.
        data: prepared chorales: copies are looked for in their training split, and their test split stands beside.
        out: folder to write examine.md and examine.json to.

    Raises:
        SeqpopeError: there is no score, one cannot be read, or the data are none of chorales.
    """
    files: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():  # a sample may lie there as MIDI and as MusicXML: once is enough
            scores = sorted(file for file in path.iterdir() if file.suffix.lower() in SCORE_SUFFIXES)
            found = list({file.with_suffix(""): file for file in reversed(scores)}.values())[::-1]
        files += found
    if not files:
        raise SeqpopeError(
            f"no scores in {', '.join(map(str, paths))}: expected {', '.join(SCORE_SUFFIXES)} files"
        )
    samples = [Chorale(read_score(file).pitches, file.stem) for file in files]
    training: list[Chorale] = []
    reference: list[Chorale] = []
    if data is not None:
        store, tokenizer = TokenStore(data), ChoraleTokenizer()
        if store.manifest.fingerprint != tokenizer.fingerprint:
            raise SeqpopeError(
                f"{data} does not hold chorales ({store.manifest.dataset}): give data/chorales or data/jsb"
            )
        for pieces, name in ((training, "train"), (reference, "test")):
            split = store.split(name)
            pieces += [tokenizer.decode(split.document(i), f"{name} {i}") for i in range(len(split))]
    result = examine(samples, training, reference)
    text = render(result)
    if out is not None:
        write_text(out / "examine.json", json.dumps(result, indent=1) + "\n")
        write_text(out / "examine.md", text)
    return text
