"""The plain dict of data sets, and what a data set has to say of itself.

Nothing heavy is imported here: the command line reads this table to print its help.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqpope.errors import SeqpopeError

if TYPE_CHECKING:
    from seqpope.data.shards import Store


@dataclass(frozen=True)
class Dataset:
    """One entry of the table.

    `preparation` is the module in data_prep whose `prepare(folder, source, force)` writes the token store;
    `tokenizer` is "module:Class"; `embedded` data comes with a dependency and needs no network; `preset`
    is the configuration that `seqpope train --dataset NAME` starts from; `samples` is the kind (KINDS) of what a
    model of it draws, empty where that is of no use; `splits` are those that `prepare` takes, the usual one
    first, where there are several;
    `stretches` says that `prepare` takes factors by which training performances are stretched in time;
    `intervals` that it takes BED files, as a split of one's own and as strata.
    """

    name: str
    domain: str
    title: str
    embedded: bool
    preparation: str
    tokenizer: str
    preset: str
    samples: str
    splits: tuple[str, ...] = ()
    stretches: bool = False
    intervals: bool = False

    def load_tokenizer(self) -> Any:
        """Build the data set's tokenizer (imports its module)."""
        return _load(self.tokenizer)


def _load(tokenizer: str) -> Any:
    return _found(tokenizer)()


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


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
            samples="chorales",
        ),
        Dataset(
            name="jsb",
            domain="music",
            title="JSB Chorales, official 16th-note file and split (download)",
            embedded=False,
            preparation="data_prep.jsb",
            tokenizer="seqpope.domains.music.chorales.tokenizer:ChoraleTokenizer",
            preset="jsb-paper",
            samples="chorales",
        ),
        Dataset(
            name="maestro",
            domain="music",
            title="MAESTRO v3 piano performances as REMI tokens (download)",
            embedded=False,
            preparation="data_prep.maestro",
            tokenizer="seqpope.domains.music.piano.tokenizer:RemiTokenizer",
            preset="maestro-20min",
            samples="piano",
            splits=("official", "by-piece", "by-content"),
            stretches=True,
        ),
        Dataset(
            name="maestro-performance",
            domain="music",
            title="MAESTRO v3 as performance tokens, in 10 ms (download)",
            embedded=False,
            preparation="data_prep.maestro_performance",
            tokenizer="seqpope.domains.music.piano.tokenizer:PerformanceTokenizer",
            preset="maestro-20min",
            samples="piano",
            splits=("official", "by-piece", "by-content"),
            stretches=True,
        ),
        Dataset(
            name="indexing",
            domain="indexing",
            title="Indirect Indexing, drawn from a seed",
            embedded=True,
            preparation="data_prep.indexing",
            tokenizer="seqpope.domains.indexing.task:IndexingTokenizer",
            preset="indexing-paper",
            samples="",
        ),
        *(
            Dataset(
                name=name + suffix,
                domain="genome",
                title=f"{title} as {words}",
                embedded=False,
                preparation="data_prep.genome",
                tokenizer=f"seqpope.domains.genome.tokenizer:{tokenizer}",
                preset=preset,
                samples="dna",
                splits=splits,
                intervals=True,
            )
            for name, title, preset, splits in (
                ("genome", "any genome's FASTA (--source FILE)", "genome-cpu", ("fraction", "nt", "paper")),
                ("grch38", "human GRCh38 (download)", "genome-20min", ("nt", "paper", "fraction")),
            )
            for suffix, words, tokenizer in (
                ("", "six-mers", "SixMerTokenizer"),
                ("-bases", "single bases", "BaseTokenizer"),
            )
        ),
    )
}
DOMAINS = {
    "music": "chorales",
    "genome": "genome",
    "indexing": "indexing",
}  # domain -> data set when none is named
# Stores that are no token stores, by what their manifests have beside that of every store.
STORES = {
    "genome": "seqpope.domains.genome.store:GenomeStore",
    "indexing": "seqpope.domains.indexing.store:IndexingStore",
}
# domain -> what measures baselines and strata of a store's split at its first evaluation, where there is such
REFERENCES = {"genome": "seqpope.domains.genome.references:measure"}


@dataclass(frozen=True)
class Kind:
    """A kind of samples: its domain, what people call it, and tokenizers, one of which its models read."""

    name: str
    domain: str
    title: str
    tokenizers: tuple[str, ...]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("chorales", "music", "chorales", ("seqpope.domains.music.chorales.tokenizer:ChoraleTokenizer",)),
        Kind(
            "piano",
            "music",
            "piano performances",
            (
                "seqpope.domains.music.piano.tokenizer:PerformanceTokenizer",
                "seqpope.domains.music.piano.tokenizer:RemiTokenizer",
            ),
        ),
        Kind(
            "dna",
            "genome",
            "DNA sequences",
            (
                "seqpope.domains.genome.tokenizer:SixMerTokenizer",
                "seqpope.domains.genome.tokenizer:BaseTokenizer",
            ),
        ),
    )
}


def find_dataset(name: str) -> Dataset:
    """Look a data set up by name.

    Raises:
        SeqpopeError: there is none of that name; the message lists those there are.
    """
    if name not in DATASETS:
        raise SeqpopeError(f"unknown data set {name!r}: expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


def open_store(folder: Path) -> Store:
    """A prepared data set, opened as what its manifest says it is (imports its module).

    Raises:
        StoreError: nothing is there, or it is damaged.
    """
    from seqpope.data.shards import TokenStore

    try:
        told = json.loads((Path(folder) / "manifest.json").read_text())
        kind = next((place for key, place in STORES.items() if key in told), None)
    except (OSError, ValueError, TypeError):
        kind = None  # a token store's words for what is missing
    store: Store = TokenStore(folder) if kind is None else _found(kind)(folder)
    return store


def find_kind(dataset: str, domain: str) -> Kind:
    """The kind of samples of a model: that of its data set, or the first of its domain if that is not known here.

    Raises:
        SeqpopeError: neither is known.
    """
    if dataset in DATASETS and DATASETS[dataset].samples:
        return KINDS[DATASETS[dataset].samples]
    found = next((kind for kind in KINDS.values() if kind.domain == domain), None)
    if found is None:
        raise SeqpopeError(
            f"nothing can be drawn from a model of {domain!r}: expected one of "
            + ", ".join(dict.fromkeys(kind.domain for kind in KINDS.values()))
        )
    return found


def find_references(domain: str) -> Callable[..., Any] | None:
    """What measures `References` of (store, split's name, progress) in a domain (imports its module), if any."""
    if domain not in REFERENCES:
        return None
    measure: Callable[..., Any] = _found(REFERENCES[domain])
    return measure


def find_tokenizer(kind: str, fingerprint: str) -> Any:
    """The tokenizer of a kind of samples that has that fingerprint (imports modules); None if none has."""
    every = (_load(name) for name in KINDS[kind].tokenizers)
    return next((tokenizer for tokenizer in every if tokenizer.fingerprint == fingerprint), None)
