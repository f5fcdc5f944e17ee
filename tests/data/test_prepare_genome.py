from __future__ import annotations

import numpy as np
import pytest

from data_prep.genome import DOCUMENT, FEWEST, prepare
from seqpope.data.shards import TokenStore
from seqpope.domains.genome.tokenizer import K, SixMerTokenizer
from seqpope.errors import SeqpopeError


def dna(bases, seed=0):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), bases))


def write(path, **sequences):
    path.write_text("".join(f">{name}\n{text}\n" for name, text in sequences.items()))
    return path


def test_documents_are_the_sequence_cut_at_n_and_in_order(tmp_path):
    whole = dna(2 * FEWEST * DOCUMENT * K)
    hole = 5 * DOCUMENT * K
    text = whole[:hole] + "N" * 1000 + whole[hole + 1000 :].lower()
    prepare(tmp_path / "genome", source=write(tmp_path / "a.fa", one=text, short=dna(3000, 1)))
    store, tokenizer = TokenStore(tmp_path / "genome"), SixMerTokenizer()
    for name in ("train", "validation", "test"):
        split = store.split(name)
        for d, document in enumerate(split.names):
            contig, _, span = document.rpartition(":")
            first, end = (int(x) for x in span.split("-"))
            source = text if contig == "one" else dna(3000, 1)
            assert tokenizer.decode(split.document(d)) == source[first - 1 : end].upper()
            masked = (split.flags[split.starts[d] : split.starts[d + 1]] & 2).astype(bool)
            assert masked.all() == source[first - 1].islower() == masked.any()
    ends = {
        name: [int(n.split("-")[1]) for n in store.split(name).names if "one" in n] for name in ("train", "test")
    }
    assert max(ends["train"]) + DOCUMENT * K < min(ends["test"])
    assert store.manifest.units == {"base": 6.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (">p\nMKVLAEFPQ\n", "is no DNA"),
        (">s\n" + "ACGT" * 100 + "\n", "leave nothing for"),
    ],
)
def test_what_is_no_genome_is_told(tmp_path, content, message):
    (tmp_path / "a.fa").write_text(content)
    with pytest.raises(SeqpopeError, match=message):
        prepare(tmp_path / "genome", source=tmp_path / "a.fa")
    assert not (tmp_path / "genome").exists()


def test_without_a_source(tmp_path):
    with pytest.raises(SeqpopeError, match="--source FILE"):
        prepare(tmp_path / "genome")
