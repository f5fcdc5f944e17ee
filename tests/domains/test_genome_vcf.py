"""VCF read and written: nothing lost, nothing passed over unseen, readable by htslib."""

from __future__ import annotations

import gzip

import pysam
import pytest

from seqpope.domains.genome.vcf import Field, VcfError, VcfFile, made_header, with_info, write_vcf

HEADER = """##fileformat=VCFv4.2
##contig=<ID=c2,length=300>
##contig=<ID=c1>
##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth, of all">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
"""
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
TEXT = (
    HEADER
    + COLUMNS
    + "\tFORMAT\ts1\ts2\n"
    + "c1\t5\trs1\tA\tC,<DEL>\t9.5\tPASS\tDP=3;X\tGT\t0/1\t.\nc1\t7\t.\tAC\t.\t.\t.\t.\tGT\t1\t0\n"
)
FIELD = Field("SP_X", "A", "Float", "of x, y")


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def bgzip(path, text):
    with pysam.BGZFile(str(path), "wb", None) as file:
        file.write(text.encode())
    return path


@pytest.mark.parametrize("how", ["plain", "gzip", "bgzip", "windows", "mark", "blank lines", "no last line end"])
def test_read(tmp_path, how):
    path = tmp_path / "in.vcf.gz"
    if how == "gzip":
        write(path, gzip.compress(TEXT.encode(), mtime=0))
    elif how == "bgzip":
        bgzip(path, TEXT)
    else:
        text = {
            "plain": TEXT,
            "windows": TEXT.replace("\n", "\r\n"),
            "mark": "\ufeff" + TEXT,
            "blank lines": TEXT + "\n\n",
            "no last line end": TEXT[:-1],
        }[how]
        write(path, text)
    file = VcfFile(path)
    for _ in range(2):
        first, second = file
        assert first[:6] == (7, "c1", 4, "rs1", "A", ("C", "<DEL>"))
        assert second[:6] == (8, "c1", 6, ".", "AC", ())
    assert first.text == "c1\t5\trs1\tA\tC,<DEL>\t9.5\tPASS\tDP=3;X\tGT\t0/1\t."
    assert file.meta == HEADER.splitlines()
    assert file.columns[-2:] == ["s1", "s2"]
    assert file.contig_lengths() == {"c2": 300, "c1": None}


def test_header_only(tmp_path):
    assert list(VcfFile(write(tmp_path / "in.vcf", HEADER + COLUMNS + "\n"))) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        (">chr1\nACGT\n", "no VCF.*'>chr1'"),
        (COLUMNS + "\n", "no VCF: expected ##fileformat"),
        (b"\x00\x01\x02\xff\xfe", "no VCF"),
        (gzip.compress(b"BCF\x02\x02" + b"\x00" * 50, mtime=0), "bcftools view"),
        (HEADER, "ends in its header"),
        (HEADER + COLUMNS.replace("\t", " ") + "\n", "line 6: expected the columns.*tabs"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-20], "cut short or damaged"),
        (b"\x1f\x8bnothing of the kind", "cut short or damaged|cannot be read"),
    ],
)
def test_what_is_no_vcf_is_refused(tmp_path, content, told):
    with pytest.raises(VcfError, match=told):
        list(VcfFile(write(tmp_path / "in.vcf", content)))


def test_a_missing_file_and_a_missing_last_block(tmp_path):
    with pytest.raises(VcfError, match="cannot be read"):
        VcfFile(tmp_path / "none.vcf")
    path = bgzip(tmp_path / "in.vcf.gz", TEXT)
    path.write_bytes(path.read_bytes()[:-28])
    with pytest.raises(VcfError, match="last block"):
        VcfFile(path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("c1\t5\t.\tA\tC\t.\t.", "7 columns of 8"),
        ("c1\t5\t.\tA\tC\t.\t.\t.\tGT", "9 columns of 8"),
        ("c1 5 . A C . . .", "1 columns of 8"),
        ("c1\tfive\t.\tA\tC\t.\t.\t.", "POS 'five'"),
        ("c1\t-5\t.\tA\tC\t.\t.\t.", "POS '-5'"),
        ("c1\t99999999999\t.\tA\tC\t.\t.\t.", "POS"),
        ("c1\t5\t.\t\tC\t.\t.\t.", "empty"),
        ("c1\t5\t.\tA\tC,,G\t.\t.\t.", "empty"),
        ("\t5\t.\tA\tC\t.\t.\t.", "empty"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, told):
    good = "c1\t5\t.\tA\tC\t.\t.\t."
    path = write(tmp_path / "in.vcf", "\n".join([HEADER + COLUMNS, good, line, good, line, ""]))
    with pytest.raises(VcfError, match=f"2 malformed lines: line 8 .*{told}.*line 10"):
        list(VcfFile(path))
    path = write(tmp_path / "in.vcf", "\n".join([HEADER + COLUMNS, *[line] * 30]))
    with pytest.raises(VcfError, match="30 malformed lines") as told_of:
        list(VcfFile(path))
    assert len(str(told_of.value)) < 500


def test_fields_of_info():
    values = {"SP_X": "1", "SP_Y": None}
    for before, after in (
        (".", "SP_X=1"),
        ("", "SP_X=1"),
        ("DP=3;FLAG", "DP=3;FLAG;SP_X=1"),
        ("SP_X=7;DP=3;SP_Y=2;SP_XX=5;", "DP=3;SP_XX=5;SP_X=1"),
    ):
        line = f"c\t1\t.\tA\tC\t.\t.\t{before}\tGT\t0/1"
        assert with_info(line, values) == f"c\t1\t.\tA\tC\t.\t.\t{after}\tGT\t0/1"
    assert with_info("c\t1\t.\tA\tC\t.\t.\tSP_X=1", {"SP_X": None}).endswith("\t.")


def test_a_header_is_kept_and_added_to_once(tmp_path):
    file = VcfFile(write(tmp_path / "in.vcf", TEXT))
    more = ['##seqpope=<ID=score,a="b">']
    lines = made_header(file, [FIELD], {"c1": 100, "c3": 50, "c4": None}, more)
    assert lines[:5] == HEADER.splitlines()
    assert lines[5:7] == ["##contig=<ID=c3,length=50>", "##contig=<ID=c4>"]
    assert lines[-1].startswith("#CHROM")
    again = VcfFile(write(tmp_path / "again.vcf", "\n".join([*lines, ""])))
    assert made_header(again, [FIELD], {"c1": 100, "c3": 50, "c4": None}, more) == lines


@pytest.mark.parametrize("longest", [0, 1 << 29])
def test_what_is_written_is_read_by_htslib(tmp_path, longest):
    file = VcfFile(write(tmp_path / "in.vcf", TEXT))
    (tmp_path / "out.vcf.gz.csi").write_bytes(b"of another file")
    lines = [with_info(record.text, {"SP_X": "0.5,." if record.alts else None}) for record in file]
    write_vcf(tmp_path / "out.vcf.gz", made_header(file, [FIELD], {}, []), lines, longest)
    index = tmp_path / f"out.vcf.gz.{'csi' if longest else 'tbi'}"
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "in.vcf", tmp_path / "out.vcf.gz", index])
    with pysam.VariantFile(str(tmp_path / "out.vcf.gz")) as read:
        assert [record.pos for record in read.fetch("c1", 5, 10)] == [7]
        (record,) = read.fetch("c1", 0, 5)
        assert record.info["SP_X"] == (0.5, None)
        assert record.info["DP"] == 3
        assert record.samples["s1"]["GT"] == (0, 1)
        assert list(read.header.samples) == ["s1", "s2"]
        assert read.header.info["SP_X"].number == "A"


def test_bytes_that_are_no_utf8_are_written_as_they_were(tmp_path):
    text = TEXT.encode().replace(b"rs1", b"rs\xe4").replace(b"Depth", "Tiefe ä".encode())
    file = VcfFile(write(tmp_path / "in.vcf", text))
    write_vcf(tmp_path / "out.vcf", made_header(file, [], {}, []), [record.text for record in file])
    assert (tmp_path / "out.vcf").read_bytes() == text
