"""Reading FASTA of any kind, prepared or through an index: whatever holds it, the same genome."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from genomes import bgzip, fasta, make_store, random_dna

from seqpope.data.shards import StoreError
from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.ingest import BLOCK, PAGE, ingest
from seqpope.domains.genome.names import Names
from seqpope.domains.genome.sequences import ArrayGenome, as_text, known_stretches
from seqpope.domains.genome.store import BASES, MANIFEST, GenomeStore, merged, open_genome

READ_AS_N = str.maketrans("RYSWKMBDHVryswkmbdhv", "N" * 10 + "n" * 10)


def awkward(seed=0):
    """Sequences that meet, miss and lie across blocks and pages, with N and other codes at every edge."""
    random = np.random.default_rng(seed)
    one = random_dna(2 * PAGE + 17, seed)
    two = "N" * (3 * PAGE) + random_dna(PAGE, seed + 1) + "n" * 7 + random_dna(1, seed) + "N" * (BLOCK + 5)
    three = "".join(random.choice(list("ACGTNacgtnRYKryk"), 5000))
    return {"one": one, "two": two, "three": three, "4": "A", "five": "N" * 100, "six": "nACGTn"}


def written(path, sequences, **options):
    path.write_bytes(fasta(sequences, **options))
    return path


def through(opener, data, tmp_path, name="a.fa.gz"):
    path = tmp_path / name
    path.write_bytes(opener(data))
    return path


def sequences_of(genome):
    return {name: as_text(genome.fetch(name, 0, length)) for name, length in genome.contigs.items()}


class TestIngest:
    @pytest.mark.parametrize("line", [1, 60, 80, 70_001, 10_000_000])
    @pytest.mark.parametrize("end", [b"\n", b"\r\n"])
    def test_bases_stretches_and_counts(self, tmp_path, line, end):
        sequences = awkward() if line > 1 else {"three": awkward()["three"]}
        source = written(tmp_path / "a.fa", sequences, line=line, end=end)
        found = ingest(source, tmp_path / "bases")
        bases = np.fromfile(tmp_path / "bases", np.uint8)
        whole = "".join(sequences.values()).translate(READ_AS_N)
        assert as_text(bases) == whole
        place = 0
        for number, (contig, text) in enumerate(zip(found.contigs, sequences.values(), strict=True)):
            assert contig.length == len(text) == sum(contig.counts.values())
            upper = text.upper()
            for letter in "ACGT":
                assert contig.counts[letter] == upper.count(letter)
            assert contig.soft_masked == sum(map(text.count, "acgt"))
            assert contig.replaced == {c: upper.count(c) for c in "RYK" if upper.count(c)}
            expected = known_stretches(bases[place : place + len(text)])
            assert found.stretches[found.stretches[:, 0] == number, 1:].tolist() == expected.tolist()
            place += len(text)

    def test_compression_and_wrapping_change_nothing(self, tmp_path):
        text = fasta(awkward(), line=60)
        paths = [
            through(bytes, text, tmp_path, "a"),
            through(gzip.compress, text, tmp_path, "b"),
            through(bgzip, fasta(awkward(), line=77, end=b"\r\n"), tmp_path, "c"),
        ]
        one, *others = [ingest(path, tmp_path / "bases") for path in paths]
        for other in others:
            assert other.digest == one.digest
            assert other.contigs == one.contigs
            assert (other.stretches == one.stretches).all()

    @pytest.mark.parametrize("place", [0, 1, 5000, 5001])
    def test_the_digest_sees_every_base_and_name(self, tmp_path, place):
        text = random_dna(5002)
        changed = text[:place] + {"A": "C"}.get(text[place].upper(), "A") + text[place + 1 :]
        texts = [{"a": text}, {"b": text}, {"a": changed}, {"a": text + "N"}, {"a": text[:9], "b": text[9:]}]
        digests = {ingest(written(tmp_path / "a.fa", t), tmp_path / "bases").digest for t in texts}
        assert len(digests) == len(texts)

    def test_runs_of_n_are_holes(self, tmp_path):
        sequences = {"a": "N" * 20_000_000 + random_dna(1000) + "N" * 20_000_000}
        ingest(written(tmp_path / "a.fa", sequences), tmp_path / "bases")
        told = os.stat(tmp_path / "bases")
        assert told.st_size == 40_001_000
        assert told.st_blocks * 512 <= 4 * PAGE

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"\n\n", "is empty"),
            (b">a\n>b\n", "not one base"),
            (b"ACGT\n", "no FASTA: expected a line with >"),
            (b"\xef\xbb\xbf>a\nACGT\n", "no FASTA"),
            (b">a\nACGT\n>a\nACGT\n", "line 3: a second sequence called 'a'"),
            (b">a\nACGT\n>\nACGT\n", "line 3: a header without a name"),
            (b">a\nACGT\n> b\nACGT\n", "line 3: a header without a name"),
            (b">\xc3\xa4\nACGT\n", "line 1: the header has the byte 0xc3"),
            (b">p\nACGT\nMKVLAEF\n", "contig p, line 3, base 8 .*'L' is no DNA.*protein"),
            (b">r\nACGT\n\nACGU\n", "contig r, line 4, base 8 .*'U' is no DNA.*RNA"),
            (b">q\r\nACGT\r\nAC\xffT\r\n", "contig q, line 3, base 7 .*is no DNA"),
            (b">g\nACGT\nAC>T\n", "contig g, line 3, base 7 .*'>' is no DNA"),
            (b">g\nAC-T\n", "contig g, line 2, base 3 .*take gaps out"),
            (b">g\nAC T\n", "contig g, line 2, base 3"),
            (b">" + b"x" * 70_000, "without an end"),
        ],
    )
    def test_what_is_no_genome_is_told_where(self, tmp_path, content, message):
        (tmp_path / "a.fa").write_bytes(content)
        if content.startswith(b">xx"):
            (tmp_path / "a.fa").write_bytes(content * 20)
        with pytest.raises(SequenceError, match=message):
            ingest(tmp_path / "a.fa", tmp_path / "bases")

    def test_a_wrong_letter_far_on_is_counted_over_blocks(self, tmp_path):
        text = bytearray(fasta({"a": random_dna(3 * BLOCK)}, line=80))
        line = 30_000
        text[len(b">a described\n") + 81 * line + 5] = ord("@")
        (tmp_path / "a.fa").write_bytes(text)
        with pytest.raises(SequenceError, match=f"contig a, line {line + 2}, base {80 * line + 6} "):
            ingest(tmp_path / "a.fa", tmp_path / "bases")

    @pytest.mark.parametrize("opener", [gzip.compress, bgzip])
    @pytest.mark.parametrize("lost", [1, 8, 28, 5000])
    def test_a_file_cut_short(self, tmp_path, opener, lost):
        data = opener(fasta({"a": random_dna(200_000)}))
        (tmp_path / "a.fa.gz").write_bytes(data[:-lost])
        with pytest.raises(SequenceError, match="cut short"):
            ingest(tmp_path / "a.fa.gz", tmp_path / "bases")


class TestBothGenomes:
    @pytest.fixture(params=["store", "plain", "bgzipped", "array"])
    def genome(self, request, tmp_path):
        # Lines of one length: pyfaidx can't do without. A last line of its own for each.
        sequences = awkward()
        if request.param == "array":
            codes = {name: ingest_text(tmp_path, text) for name, text in sequences.items()}
            return ArrayGenome(codes)
        data = fasta(sequences, line=60)
        if request.param == "store":
            return make_store(tmp_path / "store", sequences, {"train": [("one", 0, 100)]})
        zipped = request.param == "bgzipped"
        return open_genome(through(bgzip if zipped else bytes, data, tmp_path, "a.fa.gz" if zipped else "a.fa"))

    def test_reads_the_same_everywhere(self, genome):
        expected = {name: text.translate(READ_AS_N) for name, text in awkward().items()}
        assert list(genome.contigs.items()) == [(name, len(text)) for name, text in expected.items()]
        assert sequences_of(genome) == expected
        random = np.random.default_rng(1)
        for name, text in expected.items():
            for _ in range(20):
                start, end = sorted(random.integers(0, len(text) + 1, 2))
                assert as_text(genome.fetch(name, start, end)) == text[start:end]
                bases = genome.fetch(name, start, end)
                assert bases.dtype == np.uint8
                found = genome.stretches(name, start, end)
                assert found.tolist() == known_stretches(bases, start).tolist()
                assert found.shape[1:] == (2,)
            assert genome.stretches(name).tolist() == known_stretches(genome.fetch(name, 0, len(text))).tolist()

    @pytest.mark.parametrize(("start", "end"), [(-1, 3), (0, 10**9), (5, 4)])
    def test_outside_a_contig(self, genome, start, end):
        with pytest.raises(SequenceError, match="is not inside"):
            genome.fetch("three", start, end)

    def test_no_such_contig(self, genome):
        with pytest.raises(SequenceError, match=r"no contig 'seven'.*one, two"):
            genome.fetch("seven", 0, 1)

    def test_other_processes_read_it_too(self, genome):
        expected = awkward()["two"].translate(READ_AS_N)
        before = as_text(genome.fetch("two", 3 * PAGE, 4 * PAGE))  # opened here already
        for method in ("fork", "spawn"):
            context = multiprocessing.get_context(method)
            with ProcessPoolExecutor(2, mp_context=context) as pool:
                jobs = [pool.submit(genome.fetch, "two", 3 * PAGE + k, 4 * PAGE) for k in range(8)]
                for k, job in enumerate(jobs):
                    assert as_text(job.result()) == before[k:] == expected[3 * PAGE + k : 4 * PAGE]
            if isinstance(genome, ArrayGenome):
                break


def ingest_text(tmp_path, text):
    ingest(written(tmp_path / "one.fa", {"x": text}), tmp_path / "one.u8")
    return np.fromfile(tmp_path / "one.u8", np.uint8)


class TestStore:
    @pytest.mark.parametrize("at_least", [0, 2000, 2001, 4000, 20_000])
    def test_documents_as_long_as_is_asked_for(self, tmp_path, at_least):
        text = random_dna(12_000 * 5 + 601)
        store = make_store(
            tmp_path / "store", {"one": text, "two": text[:600]}, {"test": [("one", 0, 60_601), ("two", 0, 600)]}
        )
        split = store.split("test", at_least=at_least)
        sizes = np.diff(split.starts)
        longest = max(2000, min(at_least, 10_100))
        expected = [longest] * (10_100 // longest) + ([10_100 % longest] if 10_100 % longest else [])
        assert sizes.tolist() == [*expected, 100]
        assert (split.tokens == store.split("test").tokens).all()
        assert (split.flags == store.split("test").flags).all()

    def test_a_pickled_store_takes_no_bases_along(self, tmp_path):
        store = make_store(tmp_path / "s", {"a": random_dna(1_000_000)}, {"train": [("a", 0, 500)]})
        store.fetch("a", 0, 10)
        packed = pickle.dumps(store)
        assert len(packed) < 20_000
        assert (pickle.loads(packed).fetch("a", 5, 50) == store.fetch("a", 5, 50)).all()

    def test_bases_cannot_be_written(self, tmp_path):
        store = make_store(tmp_path / "s", {"a": random_dna(1000)}, {"train": [("a", 0, 500)]})
        with pytest.raises(ValueError, match="read-only"):
            store.fetch("a", 0, 10)[0] = 1

    @pytest.mark.parametrize(
        ("harm", "message"),
        [
            (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
            (lambda folder: (folder / BASES).unlink(), "bases.u8 is missing"),
            (lambda folder: os.truncate(folder / BASES, 10), "should have 1000 bases, it has 10"),
            (lambda folder: (folder / "stretches.npy").write_bytes(b""), "cannot be read"),
            (lambda folder: (folder / MANIFEST).write_text("{}"), "cannot be read"),
            (lambda folder: (folder / MANIFEST).write_text("{"), "cannot be read"),
            (lambda folder: np.save(folder / "stretches.npy", np.zeros(4)), "cannot be read"),
            (lambda folder: changed(folder, splits=[]), "cannot be read"),
            (lambda folder: changed(folder, format=99), "has genome format 99"),
        ],
    )
    def test_a_damaged_store(self, tmp_path, harm, message):
        make_store(tmp_path / "s", {"a": random_dna(1000)}, {"train": [("a", 0, 500)]})
        harm(tmp_path / "s")
        with pytest.raises(StoreError, match=message):
            GenomeStore(tmp_path / "s")

    def test_a_damaged_store_of_another_name_says_how_to_make_it(self, tmp_path):
        folder = tmp_path / "mine"
        make_store(folder, {"a": random_dna(1000)}, {"train": [("a", 0, 500)]}, dataset="genome")
        (folder / "stretches.npy").unlink()
        with pytest.raises(StoreError, match=f"`seqpope prepare genome --out {folder} --force`"):
            GenomeStore(folder)


def changed(folder, **values):
    raw = json.loads((folder / MANIFEST).read_text())
    raw["genome"] |= values
    (folder / MANIFEST).write_text(json.dumps(raw))


class TestIndexedFasta:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "it is empty"),
            (b"ACGT\n", "no FASTA"),
            (b">a\nACGT\nA\nACGT\n", "equally long"),
            (b">a\nACGT\n>a\nACGT\n", "cannot be read as an indexed FASTA"),
            (gzip.compress(b">a\nACGT\n", mtime=0), "bgzip it"),
            (b">a\n>b\n", "not one base"),
        ],
    )
    def test_what_cannot_be_indexed(self, tmp_path, content, message):
        (tmp_path / "a.fa").write_bytes(content)
        with pytest.raises(SequenceError, match=message):
            open_genome(tmp_path / "a.fa")

    def test_a_protein_is_told_when_read(self, tmp_path):
        genome = open_genome(written(tmp_path / "a.fa", {"p": "ACGTMKVLAEF"}))
        with pytest.raises(SequenceError, match=r"contig p, base 8 \(from 1\): 'L' is no DNA"):
            genome.fetch("p", 2, 11)

    def test_an_old_index_is_made_anew(self, tmp_path):
        path = written(tmp_path / "a.fa", {"a": "ACGT" * 10})
        open_genome(path)
        written(path, {"b": "TTTT" * 5})
        os.utime(path, (2e9, 2e9))
        assert dict(open_genome(path).contigs) == {"b": 20}

    def test_where_nothing_can_be_written_the_cache_is_taken(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        path = written(tmp_path / "a.fa", {"a": "ACGT" * 10})
        real = os.replace

        def refuse(source, target):
            if Path(target).parent == tmp_path:
                raise PermissionError(13, "Permission denied")
            real(source, target)

        monkeypatch.setattr(os, "replace", refuse)
        assert as_text(open_genome(path).fetch("a", 1, 5)) == "CGTA"
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.fa", "cache"]
        assert len(list((tmp_path / "cache" / "seqpope").iterdir())) == 1

    @pytest.mark.parametrize("indexed", [False, True])
    @pytest.mark.parametrize("place", [100, 20_000, 24_000])
    def test_a_damaged_block(self, tmp_path, indexed, place):
        path = tmp_path / "a.fa.gz"
        whole = bgzip(fasta({"a": random_dna(60_000)}), 8_000)
        path.write_bytes(whole)
        if indexed:
            open_genome(path)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        os.utime(path, (0, 0))
        with pytest.raises(SequenceError, match=r"a\.fa\.gz is damaged .*: copy it again"):
            open_genome(path).fetch("a", 0, 60_000)

    @pytest.mark.parametrize("lost", [28, 29, 3_000])
    def test_a_bgzipped_file_cut_short(self, tmp_path, lost):
        (tmp_path / "a.fa.gz").write_bytes(bgzip(fasta({"a": random_dna(60_000)}), 8_000)[:-lost])
        with pytest.raises(SequenceError, match=r"cut short .*: copy it again"):
            open_genome(tmp_path / "a.fa.gz")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(SequenceError, match="there is no"):
            open_genome(tmp_path / "a.fa")
        (tmp_path / MANIFEST).write_text('{"domain": "music"}')
        with pytest.raises(StoreError, match="store of tokens, no genome"):
            open_genome(tmp_path)


class TestNames:
    def test_human(self):
        names = Names({"chr1": 248956422, "chrX": 156040895, "chrM": 16569, "chrUn_1": 5})
        for name in ("chr1", "1", "NC_000001.11", "CM000663.2"):
            assert names.resolve(name) == "chr1"
        for name in ("MT", "M", "chrMT", "NC_012920.1"):
            assert names.resolve(name) == "chrM"
        assert names.resolve("NC_000023.11") == "chrX"

    def test_accessions_are_those_of_the_assembly(self):
        grch37 = Names({"1": 249250621})
        assert grch37.resolve("chr1") == "1"
        with pytest.raises(SequenceError, match=r"no contig 'NC_000001.11'"):
            grch37.resolve("NC_000001.11")

    def test_accessions_as_names(self):
        names = Names({"NC_000021.9": 46709983, "NC_000021.8": 48129895})
        assert names.resolve("21") == names.resolve("chr21") == "NC_000021.9"

    def test_a_name_of_its_own_comes_first(self):
        names = Names({"1": 10, "chr1": 20})
        assert names.resolve("1") == "1"
        assert names.resolve("chr1") == "chr1"


def test_merged_against_painting():
    random = np.random.default_rng(0)
    for _ in range(50):
        starts = random.integers(0, 60, 12)
        rows = np.column_stack((random.integers(0, 3, 12), starts, starts + random.integers(0, 9, 12)))
        painted = np.zeros((3, 80), np.uint8)
        for number, start, end in rows:
            painted[number, start:end] = 1
        expected = [[n, *edge] for n in range(3) for edge in known_stretches(painted[n]).tolist()]
        assert merged(rows).tolist() == expected
