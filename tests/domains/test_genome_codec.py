from __future__ import annotations

import gzip

import pytest

from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.codec import Record, as_array, is_fasta, read_fasta, read_prompt, write_fasta

TEXT = ">one seed=3 gc=0.5\nACGT\nacgtn\n>two\nTTT\n"


def test_read(tmp_path):
    plain, zipped, windows = tmp_path / "a.fa", tmp_path / "a.fa.gz", tmp_path / "w.fa"
    plain.write_text(TEXT)
    zipped.write_bytes(gzip.compress(TEXT.encode(), mtime=0))
    windows.write_bytes(TEXT.replace("\n", "\r\n").encode())
    for file in (plain, zipped, windows):
        records = list(read_fasta(file))
        assert records == [Record("one", "seed=3 gc=0.5", "ACGTacgtn"), Record("two", "", "TTT")]
        assert records[0].fields == {"seed": "3", "gc": "0.5"}


def test_write_and_read_back_with_biopython(tmp_path):
    from Bio import SeqIO

    records = [Record("dna-0000", "seed=0", "ACGT" * 40), Record("dna-0001", "", "A")]
    write_fasta(tmp_path / "a.fa", records)
    assert list(read_fasta(tmp_path / "a.fa")) == records
    parsed = list(SeqIO.parse(tmp_path / "a.fa", "fasta"))
    assert [(r.id, str(r.seq)) for r in parsed] == [(r.name, r.sequence) for r in records]
    assert parsed[0].description == "dna-0000 seed=0"
    assert max(map(len, (tmp_path / "a.fa").read_text().splitlines())) == 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no FASTA.*is empty"),
        (b"LOCUS  X\n", "begins with 'LOCUS  X'"),
        (b">a\nAC\n>a\nGT\n", "two sequences called 'a'"),
        (gzip.compress(b">a\n" + b"ACGT" * 5000, mtime=0)[:-20], "cut short or damaged"),
        (b">a\nAC\xff\n", "no FASTA: expected text, it has the byte 0xff"),
    ],
)
def test_what_cannot_be_read(tmp_path, content, message):
    (tmp_path / "a.fa").write_bytes(content)
    with pytest.raises(SequenceError, match=message):
        list(read_fasta(tmp_path / "a.fa"))


def test_no_file(tmp_path):
    with pytest.raises(SequenceError, match=r"cannot be read \(No such file"):
        list(read_fasta(tmp_path / "a.fa"))


def test_names():
    from pathlib import Path

    assert all(is_fasta(Path(name)) for name in ("a.fa", "b.FASTA", "c.fna.gz"))
    assert not any(is_fasta(Path(name)) for name in ("a.mid", "fa", "a.gz"))


class TestPrompt:
    def test_bases_or_a_file(self, tmp_path):
        (tmp_path / "p.fa").write_text(">p\nacg\ntNR\n")
        assert read_prompt("acgtN") == ("ACGTN", None)
        assert read_prompt(str(tmp_path / "p.fa")) == ("ACGTNR", tmp_path / "p.fa")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "the prompt is empty.*leave it out"),
            ("MKTAYIAKQR", r"the prompt: 'I' at position 5 .*protein"),
            ("ACGU", "the prompt: 'U' at position 3 .*RNA"),
            ("gone.fa", "the prompt gone.fa is no file"),
            ("a/b", "the prompt a/b is no file"),
        ],
    )
    def test_what_is_none(self, text, message):
        with pytest.raises(SequenceError, match=message):
            read_prompt(text)

    def test_files_that_are_none(self, tmp_path):
        file = tmp_path / "p.fa"
        file.write_text(TEXT)
        with pytest.raises(SequenceError, match=r"holds 2 sequences \(one, two"):
            read_prompt(str(file))
        file.write_text(">p\n")
        with pytest.raises(SequenceError, match=r"p\.fa is empty"):
            read_prompt(str(file))
        with pytest.raises(SequenceError, match="is no file"):
            read_prompt(str(tmp_path))


def test_numbers():
    assert as_array("ACGTacgtNRn").tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 4, 4]
    with pytest.raises(SequenceError, match="'X' at position 1"):
        as_array("AX")
