from __future__ import annotations

import gzip
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from genomes import fasta, make_store, random_dna

import data_prep.genome
from data_prep.genome import count, prepare
from data_prep.intervals import FEWEST, GAP, splits_of, strata_of
from seqpope import cli
from seqpope.data.baselines import count_baseline
from seqpope.data.shards import SCORED, SPLITS
from seqpope.domains.genome.sequences import known_stretches
from seqpope.domains.genome.store import BASES, DOCUMENT, LEAST, MOST_FILES, GenomeStore
from seqpope.domains.genome.tokenizer import BaseTokenizer, SixMerTokenizer
from seqpope.errors import SeqpopeError


def write(path, sequences):
    path.write_bytes(fasta(sequences))
    return path


def bed(path, *rows):
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def small(seed=0):
    """Two contigs with N inside and one too short for three splits."""
    one = random_dna(150_001, seed)
    return {
        "one": one[:40_003] + "N" * 999 + one[41_002:],
        "two": "N" * 50 + random_dna(70_000, seed + 1, "ACGT") + "NN" + random_dna(100, seed + 2) + "R",
        "short": random_dna(FEWEST - 1, seed + 3),
    }


def prepared(tmp_path, sequences=None, name="genome", **options):
    source = write(tmp_path / "a.fa", sequences or small())
    lines = []
    prepare(tmp_path / "data" / name, source=source, progress=lines.append, dataset=name, **options)
    return GenomeStore(tmp_path / "data" / name), lines


@pytest.fixture(params=["genome", "genome-bases"])
def both(request, tmp_path):
    regions = bed(tmp_path / "genes.bed", ("one", 5, 5_000), ("one", 4_000, 9_001), ("two", 7, 61_000))
    return prepared(tmp_path, name=request.param, strata=str(regions))[0]


class TestDocuments:
    def test_are_the_sequence_in_whole_tokens_between_n(self, both):
        sequences, tokenizer, k = small(), both.reading.tokenizer, both.reading.k
        genes = {"one": np.zeros(150_001, bool), "two": np.zeros(200_000, bool), "short": np.zeros(FEWEST, bool)}
        genes["one"][5:9_001] = genes["two"][7:61_000] = True
        seen = {name: np.zeros(len(text), np.uint8) for name, text in sequences.items()}
        for name in SPLITS:
            split, told = both.split(name), both.manifest.splits[name]
            assert len(split) == told["documents"] == len(split.names)
            assert len(split.tokens) == len(split.flags) == told["tokens"] == told["scored"] == split.starts[-1]
            bases = 0
            strata = dict.fromkeys(both.manifest.strata, 0)
            for d, document in enumerate(split.names):
                contig, _, span = document.rpartition(":")
                first, end = (int(x) for x in span.split("-"))
                text = sequences[contig][first - 1 : end]
                assert tokenizer.decode(split.document(d)) == text.upper()
                assert LEAST <= len(text) <= DOCUMENT
                assert len(text) == k * len(split.document(d))
                bases += len(text)
                seen[contig][first - 1 : end] += 1
                flags = split.flags[split.starts[d] : split.starts[d + 1]]
                lower = np.array([letter.islower() for letter in text]).reshape(-1, k).sum(1)
                inside = genes[contig][first - 1 : end].reshape(-1, k).sum(1)
                assert (flags & SCORED).all()
                for bit, expected in enumerate((2 * lower > k, 2 * lower < k, 2 * inside > k), 1):
                    assert (((flags >> bit) & 1).astype(bool) == expected).all()
                    strata[both.manifest.strata[bit - 1]] += int(expected.sum())
            assert bases == told["bases"]
            assert strata == told["strata"]
        # No base is in two documents; a stretch loses what fills no token, what is too short, and the gaps.
        assert max(s.max() for s in seen.values()) == 1
        assert both.manifest.strata == ["soft-masked", "unique", "genes"]
        assert both.manifest.units == {"base": k}

    def test_stretches_begin_where_the_known_bases_do(self, tmp_path):
        text = "N" * 7 + random_dna(30_000) + "N" + random_dna(LEAST - 1) + "N" + random_dna(LEAST)
        store = make_store(tmp_path / "s", {"a": text}, {"train": [("a", 0, len(text))]})
        assert store.split("train").names == [
            "a:8-12007",
            "a:12008-24007",
            "a:24008-30007",
            f"a:{len(text) - LEAST + 1}-{len(text)}",
        ]

    def test_in_pieces_of_any_size(self, tmp_path, monkeypatch):
        sequences, whole = small(), {}
        store = make_store(tmp_path / "s", sequences, {"train": [(n, 0, len(t)) for n, t in sequences.items()]})
        for size in (DOCUMENT * 1000, DOCUMENT, 1):
            monkeypatch.setattr("seqpope.domains.genome.store._AT_ONCE", size)
            whole[size] = store.split("train")
        one, *others = whole.values()
        for other in others:
            assert (one.tokens == other.tokens).all()
            assert (one.flags == other.flags).all()


class TestSplits:
    def lengths(self, sequences):
        codes = {n: np.frombuffer(t.encode(), np.uint8) for n, t in sequences.items()}
        known = [known_stretches(np.where(np.isin(c | 32, list(b"acgt")), 1, 0)) for c in codes.values()]
        numbered = [np.column_stack((np.full(len(k), n), k)) for n, k in enumerate(known)]
        return {n: len(t) for n, t in sequences.items()}, np.concatenate(numbered)

    def test_fractions_are_of_known_bases_in_order_with_gaps(self):
        lengths, stretches = self.lengths(small())
        splits = splits_of("fraction", lengths, stretches)
        for number, total in ((0, 149_002), (1, 70_100)):
            rows = {name: [row[1:] for row in splits[name] if row[0] == number] for name in SPLITS}
            edges = stretches[stretches[:, 0] == number, 1:]

            def known(start, end, edges=edges):
                return int((np.clip(edges[:, 1], start, end) - np.clip(edges[:, 0], start, end)).sum())

            assert sum(known(0, 10**9) for _ in "1") == total
            sizes = {name: known(*rows[name][0]) for name in SPLITS}
            assert sizes["validation"] == sizes["test"] == round(0.05 * total)
            assert known(rows["train"][0][1], rows["validation"][0][0]) == total // 100 < GAP
            assert known(rows["validation"][0][1], rows["test"][0][0]) == total // 100
            assert sizes["train"] == total - 2 * round(0.05 * total) - 2 * (total // 100)
        assert [row[0] for row in splits["train"]] == [0, 1, 2]
        assert len(splits["test"]) == 2  # the short one trains

    def test_time_grows_with_the_number_of_contigs_and_not_with_its_square(self, tmp_path):
        """A draft assembly's 40,000 scaffolds, after one contig that can be divided."""
        count = 40_001
        lengths = {f"s{n}": 300 for n in range(count)} | {"s0": 30_000}
        stretches = np.column_stack((np.arange(count), np.zeros(count, int), [*lengths.values()]))
        path = tmp_path / "x.bed"
        path.write_text("".join(f"{name}\t0\t100\n" for name in lengths))
        began = time.process_time()
        splits = splits_of("fraction", lengths, stretches)
        assert len(strata_of([path], lengths)[0].rows) == count
        assert time.process_time() - began < 6  # 2; with its square 15
        assert [len(splits[name]) for name in SPLITS] == [count, 1, 1]

    @pytest.mark.parametrize("prefix", ["chr", ""])
    @pytest.mark.parametrize("name", ["nt", "paper"])
    def test_by_chromosome(self, prefix, name):
        names = [f"{prefix}{n}" for n in (*range(1, 23), "X", "Y")] + ["chrM", "chrUn_1"]
        splits = splits_of(name, dict.fromkeys(names, 500), np.array([[0, 0, 500]]))
        assert splits["validation"] == [(20, 0, 500)]
        assert splits["test"] == [(21, 0, 500)]
        assert [row[0] for row in splits["train"]] == [*range(20), 22, 23]  # neither M nor what is unplaced

    def test_by_a_bed_file_in_any_order_and_by_any_name(self, tmp_path):
        path = bed(
            tmp_path / "s.bed",
            ("# a comment",),
            ("track name=x",),
            (),
            ("2", 30, 40, "test", "more"),
            ("chr2", 10, 20, "train"),
            ("chr2", 15, 25, "train"),
            ("1", 0, 9, "validation"),
            ("chr2", 25, 30, "train"),
        )
        splits = splits_of(str(path), {"chr1": 9, "chr2": 40}, np.zeros((0, 3)))
        assert splits == {"train": [(1, 10, 30)], "validation": [(0, 0, 9)], "test": [(1, 30, 40)]}
        with gzip.open(tmp_path / "s.bed.gz", "wb") as file:
            file.write(path.read_bytes())
        assert splits_of(str(tmp_path / "s.bed.gz"), {"chr1": 9, "chr2": 40}, np.zeros((0, 3))) == splits

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([("a", 0, 9, "training")], "line 1: expected train, validation, test in the fourth column"),
            ([("a", 0, 9)], "line 1: expected train"),
            ([("a", 0, 9, "train"), ("b", 0, 9, "test")], "line 2: there is no contig 'b'"),
            ([("a", 0, 101, "train")], "line 1: .*not inside a, which has 100 bases"),
            ([("a", 9, 9, "train")], "line 1: expected 0 <= start < end"),
            ([("a", -1, 9, "train")], "line 1: expected 0 <= start < end"),
            ([("a", "x", 9, "train")], "line 1: expected contig, start and end"),
            ([("a",)], "line 1: expected contig"),
            ([("a", 50, 60, "test"), ("a", 0, 51, "train")], r"line 1 \(test\) overlaps line 2 \(train\)"),
            ([("a", 0, 90, "train"), ("a", 5, 6, "train"), ("a", 70, 71, "test")], r"line 3 .*overlaps line 1 "),
            ([("a", 0, 9, "train")], "leaves nothing for validation and test"),
        ],
    )
    def test_a_bed_file_that_is_none(self, tmp_path, rows, message):
        with pytest.raises(SeqpopeError, match=message):
            splits_of(str(bed(tmp_path / "s.bed", *rows)), {"a": 100}, np.zeros((0, 3)))

    def test_touching_is_no_overlap(self, tmp_path):
        rows = [("a", 50, 60, "test"), ("a", 0, 50, "train"), ("a", 60, 70, "validation")]
        assert splits_of(str(bed(tmp_path / "s.bed", *rows)), {"a": 100}, np.zeros((0, 3)))["test"]

    @pytest.mark.parametrize(
        ("split", "message"),
        [
            ("nt", "lacks chr21 and chr22 .*one, two.*--split fraction or a BED file"),
            ("official", "unknown split 'official'"),
        ],
    )
    def test_splits_that_do_not_fit(self, split, message):
        with pytest.raises(SeqpopeError, match=message):
            splits_of(split, {"one": 5, "two": 7}, np.zeros((0, 3)))


class TestStrata:
    def test_a_mark_before_the_first_line_is_no_part_of_a_name(self, tmp_path):
        path = tmp_path / "x.bed"
        path.write_bytes(b"\xef\xbb\xbfa\t0\t9\r\na\t12\t13\r\n")
        assert strata_of([path], {"a": 20})[0].rows.tolist() == [[0, 0, 9], [0, 12, 13]]

    def test_files_of_other_assemblies(self, tmp_path):
        path = bed(tmp_path / "x.bed", ("a", 0, 9), ("z", 0, 9))
        (stratum,) = strata_of([path], {"a": 20})
        assert (stratum.name, stratum.rows.tolist(), stratum.elsewhere) == ("x", [[0, 0, 9]], 1)
        with pytest.raises(SeqpopeError, match=r"line 1: .*not inside a, which has 8 bases"):
            strata_of([path], {"a": 8})
        with pytest.raises(SeqpopeError, match="says nothing of this genome: 2 rows"):
            strata_of([path], {"b": 20})

    def test_what_the_flag_byte_has_room_for(self, tmp_path):
        paths = [bed(tmp_path / f"x{k}.bed", ("one", 0, 9)) for k in range(MOST_FILES + 1)]
        with pytest.raises(SeqpopeError, match=r"6 files .* room for 5"):
            strata_of(paths, {"one": 20})
        store, _ = prepared(tmp_path, strata=",".join(map(str, paths[:MOST_FILES])))
        assert (store.split("train").flags[0] >> 3).tolist() == 2**MOST_FILES - 1

    @pytest.mark.parametrize("name", ["unique", "all", "seen in training", "not x"])
    def test_a_name_that_a_report_has_is_refused(self, tmp_path, name):
        paths = [bed(tmp_path / f"{each}.bed", ("one", 0, 9)) for each in ("x", name)]
        with pytest.raises(SeqpopeError, match=f"two strata of a report would be called '{name}'.*{name}.bed"):
            strata_of(paths, {"one": 20})


@pytest.mark.parametrize("tokenizer", [SixMerTokenizer(), BaseTokenizer()])
def test_tables_are_those_of_count_baseline(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(data_prep.genome, "_TOKENS_AT_ONCE", 5000)
    rows = {"train": [("one", 0, 90_000), ("two", 0, 999)], "validation": [("one", 90_000, 120_000)]}
    store = make_store(tmp_path / "s", small(), {**rows, "test": [("two", 9_000, 60_000)]}, tokenizer)
    splits = {name: store.split(name) for name in SPLITS}
    found, _ = count(store)
    for name, lags in (("unigram", ()), ("bigram", (1,))):
        expected = count_baseline(splits, tokenizer.vocabulary_size, tokenizer.padding_id, lags=lags)
        assert found[name] == pytest.approx(expected, rel=1e-9)


class TestCommandLine:
    def run(self, tmp_path, *words):
        return cli.main(["prepare", *map(str, words), "--data-folder", str(tmp_path / "data")])

    def test_fasta_and_files(self, tmp_path, capsys):
        source = write(tmp_path / "a.fa", small())
        rows = [("one", 0, 20_000, "train"), ("one", 20_000, 40_000, "test"), ("two", 0, 9_000, "validation")]
        split, genes = bed(tmp_path / "s.bed", *rows), bed(tmp_path / "genes.bed", ("one", 0, 9_000))
        words = ("genome-bases", "--fasta", source, "--split", split, "--strata", genes)
        assert self.run(tmp_path, *words) == 0
        manifest = GenomeStore(tmp_path / "data" / "genome-bases").manifest
        assert manifest.dataset == "genome-bases"
        assert manifest.splits["train"]["strata"]["genes"] == 9_000
        assert "bigram" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("genome", "--fasta", "a", "--source", "a"), "--fasta and --source are the same"),
            (("jsb", "--strata", "a.bed"), "jsb is none"),
            (("jsb", "--fasta", "a.fa"), "jsb is none"),
            (("genome", "--split", "mine.bed"), "one of fraction, nt, paper or a BED file, and there is none"),
        ],
    )
    def test_refused(self, tmp_path, capsys, words, message):
        assert self.run(tmp_path, *words) == 1
        assert message in capsys.readouterr().err


class TestPreparing:
    def test_once_is_enough_until_something_changes(self, tmp_path):
        store, _ = prepared(tmp_path)
        content, made = store.manifest.content, (tmp_path / "data" / "genome").stat().st_ino
        assert "already prepared" in prepared(tmp_path)[1][0]
        assert (tmp_path / "data" / "genome").stat().st_ino == made
        again, _ = prepared(tmp_path, force=True)
        assert again.manifest.content == content
        assert (tmp_path / "data" / "genome").stat().st_ino != made
        other, _ = prepared(tmp_path, sequences=small(9))
        assert other.manifest.content != content

    def test_another_split_or_tokenizer_borrows_the_bases(self, tmp_path):
        store, _ = prepared(tmp_path)
        rows = [("one", 0, 20_000, "train"), ("one", 20_000, 40_000, "test"), ("two", 0, 9_000, "validation")]
        path = bed(tmp_path / "s.bed", *rows)
        bases, lines = prepared(tmp_path, name="genome-bases", split=str(path))
        assert any("bases are those of" in line for line in lines)
        assert os.path.samefile(store.folder / BASES, bases.folder / BASES)
        assert bases.statistics == store.statistics
        assert bases.manifest.content != store.manifest.content
        assert bases.manifest.splits["validation"]["tokens"] == 8_950
        # The same by reading it again.
        own, lines = prepared(tmp_path, name="genome-bases", split=str(path), force=True)
        assert own.manifest.content == bases.manifest.content
        assert not os.path.samefile(store.folder / BASES, own.folder / BASES)
        # A BED file that has changed is another split.
        rows[0] = ("one", 0, 19_999, "train")
        bed(path, *rows)
        changed, _ = prepared(tmp_path, name="genome-bases", split=str(path))
        assert changed.manifest.content != own.manifest.content

    def test_what_is_in_the_manifest(self, tmp_path):
        store, lines = prepared(tmp_path)
        told = store.statistics["two"]
        text = small()["two"]
        assert told["length"] == len(text) == sum(told["counts"].values())
        assert told["counts"]["N"] == 53
        assert told["replaced"] == {"R": 1}
        assert told["stretches"] == 2
        assert told["soft_masked"] == sum(map(text.count, "acgt"))
        assert lines.count("read as N, each contig's in the manifest: 1 R") == 1
        assert store.manifest.provenance["split"] == "fraction"
        assert len(store.manifest.provenance["sha256"]) == 64

    def test_an_interrupted_preparation_leaves_nothing(self, tmp_path, monkeypatch):
        def stop(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(data_prep.genome, "write_genome", stop)
            with pytest.raises(KeyboardInterrupt):
                prepared(tmp_path)
        of_others = [".genome-bases.gq3w0ug9", ".genome.masked.6j9_72sw", ".genome.old.v5xbgq5e"]
        for name in (".genome.oquyul3u", *of_others):
            (tmp_path / "data" / name).mkdir()
        assert not (tmp_path / "data" / "genome").exists()
        prepared(tmp_path)
        left = sorted(path.name for path in (tmp_path / "data").iterdir())
        assert left == sorted([*of_others, ".genome.lock", "genome"])

    def test_two_at_once_make_it_once(self, tmp_path):
        source = write(tmp_path / "a.fa", small())
        words = [
            sys.executable,
            "-m",
            "data_prep.genome",
            "--source",
            source,
            "--out",
            tmp_path / "data" / "genome",
        ]
        both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        told = [process.communicate(timeout=60)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0]
        assert sum("already prepared" in text for text in told) == 1
        GenomeStore(tmp_path / "data" / "genome").split("test")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b">p\nMKVLAEFPQ\n", "is no DNA"),
            (
                b">s\n" + b"ACGT" * 100 + b"\n",
                "leaves nothing for validation and test: a contig of at least",
            ),
            (gzip.compress(fasta({"a": random_dna(50_000)}), mtime=0)[:-9], "cut short"),
            (fasta({"a": random_dna(5_000)}, end=b"\r"), "line 1: lines that end with a carriage return alone"),
            (fasta({"a": random_dna(70_000)}, end=b"\r"), "a header without an end, .* with a line feed"),
        ],
    )
    def test_what_is_no_genome_is_told(self, tmp_path, content, message):
        (tmp_path / "a.fa").write_bytes(content)
        with pytest.raises(SeqpopeError, match=message):
            prepare(tmp_path / "data" / "genome", source=tmp_path / "a.fa", progress=lambda _: None)
        assert [path.name for path in (tmp_path / "data").iterdir()] == [".genome.lock"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "no genome is named: .*--source FILE"),
            ({"source": "there.fa"}, "there is no file there.fa"),
            ({"source": "."}, r"\. is a folder or a pipe: give a FASTA"),
            ({"source": __file__, "strata": "there.bed"}, "there is no file there.bed"),
            ({"source": __file__, "split": "there.bed"}, "there is no file there.bed"),
        ],
    )
    def test_files_that_are_missing(self, tmp_path, options, message):
        with pytest.raises(SeqpopeError, match=message):
            prepare(tmp_path / "genome", **options)

    def test_a_source_that_cannot_be_read(self, tmp_path, monkeypatch):
        def refused(_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(data_prep.genome, "sha256_of", refused)
        with pytest.raises(SeqpopeError, match=r"a\.fa cannot be read \(Permission denied\): look at"):
            prepared(tmp_path)

    def test_grch38_is_downloaded_and_checked(self, tmp_path, monkeypatch):
        asked = []

        def download(url, target, sha256, progress):
            asked.append((url.rsplit("/")[-1], sha256))
            target.parent.mkdir(parents=True)
            sequences = {"chr1": random_dna(500), "chr21": random_dna(600, 1), "chr22": random_dna(700, 2)}
            return write(target, sequences)

        monkeypatch.setattr(data_prep.genome, "download", download)
        folder = tmp_path / "data" / "grch38"
        manifest = prepare(folder, dataset="grch38", progress=lambda _: None)
        assert asked == [("hg38.fa.gz", data_prep.genome.SHA256)]
        assert {name: told["tokens"] for name, told in manifest.splits.items()} == {
            "train": 83,
            "validation": 100,
            "test": 116,
        }
        assert manifest.provenance["official file"]
        prepare(folder, dataset="grch38", progress=lambda _: None)
        assert len(asked) == 1
