"""What files say of a region: bedGraph, bigWig, BED and VCF, cut to it, contigs by any name."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.sequences import ArrayGenome
from seqpope.domains.genome.tracks import (
    Place,
    TrackError,
    parse_place,
    read_features,
    read_scores,
    read_variants,
    runs_above,
)

LENGTH = 500
PLACE = Place("chr1", 100, 140)


class Aliased(ArrayGenome):
    """Knows chr1 as 1 too."""

    def resolve(self, name: str) -> str:
        return super().resolve(f"chr{name}" if f"chr{name}" in self.contigs else name)


@pytest.fixture
def genome() -> Aliased:
    codes = np.random.default_rng(0).integers(1, 5, LENGTH).astype(np.uint8)
    return Aliased({"chr0": codes[:200], "chr1": codes, "HLA-A*01:01": codes[:60]})


def bedgraph(path, values, contig="chr1", start=0):
    """One line a base, none where there is no value."""
    lines = [f"{contig}\t{i}\t{i + 1}\t{v:.7g}\n" for i, v in enumerate(values, start) if v == v]
    text = "".join(lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text)
    return path


@pytest.fixture
def values():
    values = np.random.default_rng(1).gamma(2, 0.7, LENGTH)
    values[110:117] = np.nan
    return values


class TestPlace:
    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ("chr1:101-140", PLACE),
            (" 1:101-140 ", PLACE),
            ("chr1:1-500", Place("chr1", 0, 500)),
            ("chr1", Place("chr1", 0, 500)),
            ("chr1:7-7", Place("chr1", 6, 7)),
            ("HLA-A*01:01", Place("HLA-A*01:01", 0, 60)),
            ("HLA-A*01:01:2-60", Place("HLA-A*01:01", 1, 60)),
        ],
    )
    def test_is_read_from_one_and_both_ends_in(self, genome, text, place):
        assert parse_place(text, genome) == place

    def test_commas_and_back(self, genome):
        big = ArrayGenome({"chr1": np.zeros(2_000, np.uint8)})
        place = parse_place("chr1:1,001-1,500", big)
        assert place == Place("chr1", 1000, 1500)
        assert parse_place(str(place), big) == place

    @pytest.mark.parametrize("text", ["chr1:0-10", "chr1:11-10", "chr1:1-501", "chr1:,-5"])
    def test_outside_is_refused(self, genome, text):
        with pytest.raises(TrackError, match="from 1 to 500"):
            parse_place(text, genome)

    @pytest.mark.parametrize("text", ["chr1:", "chr1:5", "chr1:5-", "chr9"])
    def test_half_a_region_is_refused(self, genome, text):
        with pytest.raises(TrackError, match="expected one like"):
            parse_place(text, genome)

    def test_one_base_is_not_guessed(self, genome):
        with pytest.raises(TrackError, match="for one base write chr1:1,005-1,005"):
            parse_place("chr1:1,005", genome)

    def test_no_such_contig(self, genome):
        with pytest.raises(SequenceError, match="chr9"):
            parse_place("chr9:1-5", genome)


class TestScores:
    @pytest.mark.parametrize("name", ["a.bedGraph", "a.bedgraph.gz"])
    @pytest.mark.parametrize("contig", ["chr1", "1"])
    def test_bedgraph_gives_the_region_alone(self, tmp_path, genome, values, name, contig):
        read, header = read_scores(bedgraph(tmp_path / name, values, contig), genome, PLACE)
        np.testing.assert_allclose(read, values[100:140], rtol=1e-6)
        assert np.isnan(read[10:17]).all()
        assert header == {}

    @pytest.mark.parametrize("end", [LENGTH, 120])
    def test_bigwig(self, tmp_path, genome, values, end):
        wig = pytest.importorskip("pyBigWig")
        path = tmp_path / "a.bw"
        with wig.open(str(path), "w") as file:
            file.addHeader([("chr0", 200), ("1", end)])
            for start, stop in ((0, 110), (117, end)):
                file.addEntries("1", start, values=values[start:stop].tolist(), span=1, step=1)
        read, _ = read_scores(path, genome, PLACE)
        expected = np.where(np.arange(100, 140) < end, values[100:140], np.nan)
        np.testing.assert_array_equal(read, expected.astype(np.float32).astype(np.float64))

    def test_a_bigwig_without_a_value(self, tmp_path, genome):
        import pyBigWig

        file = pyBigWig.open(str(tmp_path / "a.bw"), "w")
        file.addHeader([("chr1", LENGTH)])
        file.close()
        with pytest.raises(TrackError, match="no value in chr1"):
            read_scores(tmp_path / "a.bw", genome, PLACE)

    def test_a_byte_order_mark_is_no_part_of_a_name(self, tmp_path, genome):
        (tmp_path / "a.bedgraph").write_text("\ufeffchr1\t100\t140\t2\n", encoding="utf-8")
        assert (read_scores(tmp_path / "a.bedgraph", genome, PLACE)[0] == 2).all()

    def test_an_index_leads_to_the_same(self, tmp_path, genome, values):
        pysam = pytest.importorskip("pysam")
        path = bedgraph(tmp_path / "a.bedGraph", values, "1")
        packed = pysam.tabix_index(str(path), preset="bed", keep_original=True)
        plain, _ = read_scores(path, genome, PLACE)
        indexed, _ = read_scores(tmp_path / packed.split("/")[-1], genome, PLACE)
        np.testing.assert_array_equal(plain, indexed)

    def test_intervals_of_several_bases_and_other_contigs(self, tmp_path, genome):
        path = tmp_path / "a.bedGraph"
        path.write_text(
            'browser position chr1:1-5\ntrack type=bedGraph name="PoPE, seed 0" description=nats\n# model: tiny\n'
            "chr0\t100\t140\t9\nchr1 90 103 0.5\nchr1\t103\t105\tnan\n\nchr1\t130\t300\t-2\nchr1\t300\t310\t7\n"
        )
        read, header = read_scores(path, genome, PLACE)
        expected = np.full(40, np.nan)
        expected[:3], expected[30:] = 0.5, -2
        np.testing.assert_array_equal(read, expected)
        assert header == {"name": "PoPE, seed 0", "description": "nats", "model": "tiny"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no contig at all"),
            ("chr9\t1\t2\t3\n", "it has chr9"),
            ("chr1\t1\t2\t3\n", "it has that contig"),
            ("chr1\t100\t140\tnan\n", "no value in chr1:101-140"),
            ("chr1\t100\t101\n", "line 1 is no bedGraph"),
            ("chr1\t100\t101\tx\n", "line 1 is no bedGraph"),
            ("chr1\t110\t111\t1\nchr1\t100\t101\t1\n", "line 2: 100-101 comes after 110"),
            ("chr1\t110\t110\t1\n", "expected intervals in order"),
            ("chr1\t110\t120\t1\nchr1\t119\t121\t1\n", "two values"),
            ("chr1\t110\t120\tinf\n", "infinite"),
        ],
    )
    def test_what_cannot_be_read_is_told(self, tmp_path, genome, text, message):
        path = tmp_path / "a.bedGraph"
        path.write_text(text)
        with pytest.raises(TrackError, match=message):
            read_scores(path, genome, PLACE)

    def test_cut_short_missing_and_binary_files(self, tmp_path, genome, values):
        path = bedgraph(tmp_path / "a.bedgraph.gz", values)
        path.write_bytes(path.read_bytes()[:-400])
        with pytest.raises(TrackError, match="cut short"):
            read_scores(path, genome, Place("chr1", 0, LENGTH))
        with pytest.raises(TrackError, match="cannot be read"):
            read_scores(tmp_path / "none.bw", genome, PLACE)
        for content, message in ((b"\xff\xfe\xfd\t\xff\n", "no text"), (b"\xeb\xf2\x89\x87", "bigBed")):
            (tmp_path / "b").write_bytes(content)
            with pytest.raises(TrackError, match=message):
                read_scores(tmp_path / "b", genome, PLACE)


class TestFeatures:
    def test_are_cut_and_keep_what_they_say(self, tmp_path, genome):
        path = tmp_path / "a.bed"
        path.write_text(
            "track name=x\nchr0\t100\t140\tother\n1\t50\t120\tBRCA1\tlncRNA\t-\n"
            "chr1\t105\t300\tt\t0\t+\t110\t290\t255,0,0\t3\t10,5,6,\t0,20,189,\n"
            "chr1\t140\t150\tbehind\nchr1\t90\t100\tbefore\nchr1\t139\t141\t.\t.\t.\n"
        )
        first, second, third = read_features(path, genome, PLACE)
        assert first == (100, 120, "BRCA1", "lncRNA", "-", None, "", (), (50, 120))
        assert second == (105, 140, "t", "0", "+", (110, 140), "255,0,0", ((105, 115), (125, 130)), (105, 300))
        assert third == (139, 140, "", "", "", None, "", (), (139, 141))

    def test_none_here_is_no_fault_but_none_of_the_contig_is(self, tmp_path, genome):
        path = tmp_path / "a.bed"
        path.write_text("chr1\t1\t2\n")
        assert read_features(path, genome, PLACE) == []
        path.write_text("chr9\t100\t120\n")
        with pytest.raises(TrackError, match="nothing on chr1, it has chr9"):
            read_features(path, genome, PLACE)

    @pytest.mark.parametrize(
        "line", ["chr1\t5", "chr1\tx\t6", "chr1\t7\t6", "chr1\t1\t120\ta\t0\t+\t1\t9\t0\t2\t5\t0,9"]
    )
    def test_no_bed(self, tmp_path, genome, line):
        (tmp_path / "a.bed").write_text(line + "\n")
        with pytest.raises(TrackError, match="line 1 is no BED"):
            read_features(tmp_path / "a.bed", genome, PLACE)


HEAD = (
    '##fileformat=VCFv4.2\n##INFO=<ID=SP_DLL,Number=A,Type=Float,Description="x">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tsample\n"
)


class TestVariants:
    def test_one_an_allele(self, tmp_path, genome):
        path = tmp_path / "a.vcf"
        path.write_text(
            HEAD + "1\t101\trs1\tA\tC,G\t.\t.\tX;SP_DLL=-1.5,.\tGT\t0/1\n"
            "chr1\t140\t.\tAC\tA\t.\t.\tSP_DLL=.\tGT\t0/1\nchr1\t120\t.\tA\t.\t.\t.\t.\n"
            "chr1\t110\t.\tA\tT\t.\t.\tSP_DLL=2e-1\nchr1\t141\t.\tA\tT\t.\t.\tSP_DLL=1\nchr1\t100\t.\tA\tT\t.\t.\t.\n"
        )
        assert [tuple(v) for v in read_variants(path, genome, PLACE)] == [
            (100, "rs1", "A", "C", -1.5),
            (100, "rs1", "A", "G", None),
            (109, "", "A", "T", 0.2),
            (139, "", "AC", "A", None),
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("chr1\t101\t.\tA\tC\t.\t.\t.\n", "is no VCF"),
            ("##fileformat=VCFv4.2\nchr1\t101\t.\tA\tC\t.\t.\tSP_DLL=1\n", "no SP_DLL in its header"),
            (HEAD + "chr1\tx\t.\tA\tC\t.\t.\t.\n", "line 4 is no line of a VCF"),
            (HEAD + "chr1\t101\t.\tA\tC\n", "line 4 is no line of a VCF"),
            (HEAD + "chr1\t101\t.\tA\tC,G\t.\t.\tSP_DLL=1\n", "2 alternatives and 1 values"),
            (HEAD + "chr9\t101\t.\tA\tC\t.\t.\tSP_DLL=1\n", "nothing on chr1"),
        ],
    )
    def test_what_cannot_be_read_is_told(self, tmp_path, genome, text, message):
        (tmp_path / "a.vcf").write_text(text)
        with pytest.raises(TrackError, match=message):
            read_variants(tmp_path / "a.vcf", genome, PLACE)


@pytest.mark.parametrize("size", [0, 1, 2, 97])
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 1.5, 3.0])
def test_runs_above_cover_just_what_is_above(size, threshold):
    values = np.random.default_rng(size).gamma(2, 0.7, size)
    values[::5] = np.nan
    covered = np.zeros(size, int)
    runs = runs_above(values, threshold)
    for start, end in runs:
        covered[start:end] += 1
    np.testing.assert_array_equal(covered, values > threshold)
    assert (runs[1:, 0] > runs[:-1, 1]).all()  # else they would be one
