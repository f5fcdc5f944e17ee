"""The plain dict of data sets, and what a data set has to say of itself.

Nothing heavy is imported here: the command line reads this table to print its help.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from seqpope.errors import SeqpopeError


@dataclass(frozen=True)
class Dataset:
    """One entry of the table.

    `preparation` is the module in data_prep whose `prepare(folder, source, force)` writes the token store;
    `tokenizer` is "module:Class"; `embedded` data comes with a dependency and needs no network; `preset`
    is the configuration that `seqpope train --dataset NAME` starts from; `splits` are those that `prepare` takes,
    the usual one first, where there are several.
    """

    name: str
    domain: str
    title: str
    embedded: bool
    preparation: str
    tokenizer: str
    preset: str
    splits: tuple[str, ...] = ()

    def load_tokenizer(self) -> Any:
        """Build the data set's tokenizer (imports its module)."""
        return _load(self.tokenizer)


def _load(tokenizer: str) -> Any:
    module, _, name = tokenizer.partition(":")
    return getattr(import_module(module), name)()


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="chorales",
            domain="music",
            title="four-part Bach chorales that music21 ships",
            embedded=True,
            preparation="data_prep.chorales",
            tokenizer="seqpope.domains.music.chorales.tokenizer:ChoraleTokenizer",
            preset="chorales-cpu",
        ),
        Dataset(
            name="jsb",
            domain="music",
            title="JSB Chorales, official 16th-note file and split (download)",
            embedded=False,
            preparation="data_prep.jsb",
            tokenizer="seqpope.domains.music.chorales.tokenizer:ChoraleTokenizer",
            preset="jsb-paper",
        ),
        Dataset(
            name="maestro",
            domain="music",
            title="MAESTRO v3 piano performances as REMI tokens (download)",
            embedded=False,
            preparation="data_prep.maestro",
            tokenizer="seqpope.domains.music.piano.tokenizer:RemiTokenizer",
            preset="maestro-20min",
            splits=("official", "by-piece", "by-content"),
        ),
        Dataset(
            name="maestro-performance",
            domain="music",
            title="MAESTRO v3 as performance tokens, in 10 ms (download)",
            embedded=False,
            preparation="data_prep.maestro_performance",
            tokenizer="seqpope.domains.music.piano.tokenizer:PerformanceTokenizer",
            preset="maestro-20min",
            splits=("official", "by-piece", "by-content"),
        ),
    )
}
DOMAINS = {"music": "chorales", "genome": "grch38"}  # domain -> data set when none is named
# The tokenizers of each domain: a checkpoint's fingerprint says which one it was trained with.
TOKENIZERS = {
    "music": ("seqpope.domains.music.chorales.tokenizer:ChoraleTokenizer",),
    "genome": (
        "seqpope.domains.genome.tokenizer:SixMerTokenizer",
        "seqpope.domains.genome.tokenizer:BaseTokenizer",
    ),
}


def find_dataset(name: str) -> Dataset:
    """Look a data set up by name.

    Raises:
        SeqpopeError: there is none of that name; the message lists those there are.
    """
    if name not in DATASETS:
        raise SeqpopeError(f"unknown data set {name!r}: expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


def find_tokenizer(domain: str, fingerprint: str) -> Any:
    """The tokenizer of a domain that has that fingerprint (imports their modules); None if none has."""
    every = (_load(name) for name in TOKENIZERS[domain])
    return next((tokenizer for tokenizer in every if tokenizer.fingerprint == fingerprint), None)
