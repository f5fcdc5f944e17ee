"""A VCF's scores written to VCF and tables: what stands where, in which order, after interruptions."""

from __future__ import annotations

import json
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pysam
import pytest
from chains import Chain, letters
from genomes import random_bases, shared_model

from seqpope.checkpoint import save_checkpoint
from seqpope.cli import main
from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.sequences import ArrayGenome, as_text
from seqpope.domains.genome.vcf import VcfError, VcfFile
from seqpope.errors import SeqpopeError
from seqpope.score.annotate import TABLE, Annotation, Job, Request, score_variants
from seqpope.score.likelihood import Likelihood
from seqpope.score.variants import Contigs, score_records
from seqpope.score.work import _share_anew

CONTIGS = {"chr1": random_bases(300, seed=1), "chr2": random_bases(200, seed=2)}
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
HEADER = '##fileformat=VCFv4.2\n##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">\n'
ALL = {"window": 16, "phases": range(6), "strands": (False, True)}
MADE = {"model": "a" * 12}


class Aliased(ArrayGenome):
    """Takes 1 for chr1, as genomes from files do."""

    def resolve(self, name):
        return super().resolve(name if name.startswith("chr") else "chr" + name)


GENOME = Aliased(CONTIGS)


def at(contig, position, size=1):
    return letters(CONTIGS["chr" + contig.removeprefix("chr")][position - 1 : position - 1 + size])


def other(letter, by=1):
    return "ACGT"[("ACGT".index(letter) + by) % 4]


def snv(contig, position, info="."):
    ref = at(contig, position)
    return f"{contig}\t{position}\t.\t{ref}\t{other(ref)}\t.\tPASS\t{info}"


LINES = [
    snv("chr1", 50, "DP=3"),
    f"chr1\t60\trs1\t{at('chr1', 60)}\t{other(at('chr1', 60))},<DEL>,{at('chr1', 60)}GA\t.\t.\t.",
    f"chr1\t60\t.\t{at('chr1', 60, 4)}\t{at('chr1', 60)}\t.\t.\t.",
    f"chr1\t70\t.\t{other(at('chr1', 70))}\t{at('chr1', 70)}\t.\t.\tDP=5",
    f"chr1\t80\t.\t{at('chr1', 80)}\t.\t.\t.\t.",
    f"chr1\t90\t.\t{at('chr1', 90)}\t{at('chr1', 90)}N,*\t.\t.\t.",
    snv("2", 1),
    snv("2", 200),
    "chrUn\t5\t.\tA\tC\t.\t.\t.",
]


def write(path, lines=LINES, header=HEADER, columns=COLUMNS):
    path.write_text(header + "\n".join([columns, *lines, ""]))
    return path


def run(vcf, out, model=None, progress=None, rank=0, world=1, together=2, **options):
    """A process's share of the units, those of all but the first left to others; the last to come writes."""
    model = model or Chain(borders=True)
    options = {"k": model.k, "window": model.length, "made": MADE, "tell": pytest.fail, **options}
    job = Annotation(vcf, GENOME, out, **options)
    job.compute(job.missing() if world == 1 else range(rank, job.units, world), model, progress, together=together)
    if job.missing():
        return None
    summary = job.write()
    shutil.rmtree(job.parts, ignore_errors=True)
    return summary


def infos(path):
    return {
        (record.contig, record.position, record.ref, record.alts): record.text.split("\t")[7]
        for record in VcfFile(path)
    }


def test_fields(tmp_path):
    summary = run(write(tmp_path / "in.vcf"), tmp_path / "out.vcf.gz")
    with pysam.VariantFile(str(tmp_path / "out.vcf.gz")) as file:
        records = list(file)
        line = next(str(line) for line in file.header.records if line.key == "seqpope")
        assert {name: file.header.info[name].number for name in ("SP_DLL", "SP_WHY")} == {
            "SP_DLL": "A",
            "SP_WHY": ".",
        }
        assert [str(c.name) for c in file.header.contigs.values()] == ["chr1", "2", "chrUn"]
        assert file.header.contigs["2"].length == 200
    assert 'model="aaaaaaaaaaaa"' in line
    assert 'phases="0 1 2 3 4 5"' in line
    expected = score_records(VcfFile(tmp_path / "in.vcf"), Contigs(GENOME), Chain(borders=True), **ALL)()
    assert [(r.chrom, r.pos) for r in records] == [
        tuple(int(x) if x.isdigit() and i else x for i, x in enumerate(line.split("\t")[:2])) for line in LINES
    ]
    for record, scores in zip(records, expected, strict=True):
        why = [score.why for score in scores]
        if all(why):
            assert set(record.info) - {"DP"} == {"SP_WHY"}
            assert list(record.info["SP_WHY"]) == why
            continue
        for name, values in zip(
            ("SP_DLL", "SP_DLLC", "SP_SD", "SP_N"), zip(*(s[:4] for s in scores), strict=True), strict=True
        ):
            told = record.info[name]
            assert len(told) == len(record.alts)
            for value, score, reason in zip(told, values, why, strict=True):
                assert (value is None) == bool(reason)
                assert reason or value == pytest.approx(score, abs=1e-4)
        assert any(why) == ("SP_WHY" in record.info)
    assert records[0].info["DP"] == 3
    assert records[1].info["SP_WHY"] == (".", "symbolic", ".")
    assert summary.records == 9
    assert summary.scored == 6
    assert summary.why == {"symbolic": 2, "ref_mismatch": 1, "no_alt": 1, "alt_unknown": 1, "no_contig": 1}
    assert "ref_mismatch: 1 (REF is not what the genome has there; line 7)" in str(summary)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.vcf", "out.vcf.gz", "out.vcf.gz.tbi"]


@pytest.mark.parametrize("ending", [".tsv", ".parquet"])
def test_tables_have_a_row_an_allele(tmp_path, ending):
    run(write(tmp_path / "in.vcf"), tmp_path / "out.vcf")
    run(write(tmp_path / "in.vcf"), tmp_path / f"out{ending}")
    if ending == ".parquet":
        table = pq.read_table(tmp_path / "out.parquet")
        assert table.column_names == list(TABLE)
        rows = [tuple(row.values()) for row in table.to_pylist()]
    else:
        lines = (tmp_path / "out.tsv").read_text().splitlines()
        assert lines[0].split("\t") == list(TABLE)
        rows = []
        for line in lines[1:]:
            words = line.split("\t")
            numbers = [None if word == "NA" else float(word) for word in words[5:8]]
            rows.append((words[0], int(words[1]), *words[2:5], *numbers, int(words[8]), words[9]))
    assert len(rows) == 12
    flat = []
    for (contig, position, ref, alts), info in infos(tmp_path / "out.vcf").items():
        fields = dict(word.split("=") for word in info.split(";"))
        for i, alt in enumerate(alts or (".",)):
            why = fields.get("SP_WHY", ".,.,.").split(",")[i].replace(".", "")
            flat.append(
                (contig, position + 1, ref, alt, None if why else float(fields["SP_DLL"].split(",")[i]), why)
            )
    for row, told in zip(rows, flat, strict=True):
        assert (row[0], row[1], row[3], row[4], row[9]) == (*told[:4], told[5])
        assert (row[5] is None) == (told[4] is None)
        assert row[5] is None or row[5] == pytest.approx(told[4], abs=1e-4)


def test_what_comes_out_of_order_is_sorted_and_scored_the_same(tmp_path):
    run(write(tmp_path / "in.vcf"), tmp_path / "out.vcf")
    usual = infos(tmp_path / "out.vcf")
    order = np.random.default_rng(0).permutation(len(LINES))
    header = HEADER + "##contig=<ID=chrUn>\n##contig=<ID=2>\n"
    run(write(tmp_path / "mixed.vcf", [LINES[i] for i in order], header), tmp_path / "sorted.vcf.gz")
    assert infos(tmp_path / "sorted.vcf.gz") == usual
    with pysam.VariantFile(str(tmp_path / "sorted.vcf.gz")) as file:
        assert [r.chrom for r in file] == ["chrUn", "2", "2", *["chr1"] * 6]
        assert [r.pos for r in file.fetch("chr1")] == [50, 60, 60, 70, 80, 90]


def test_parts_shards_and_lone_records_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("seqpope.score.annotate.UNIT", 2)
    run(write(tmp_path / "in.vcf"), tmp_path / "whole.vcf")
    usual = infos(tmp_path / "whole.vcf")
    for rank in (2, 0, 1):
        summary = run(write(tmp_path / "in.vcf"), tmp_path / "out.vcf", rank=rank, world=3)
        assert (summary is None) == (rank != 1)
        assert (tmp_path / "out.vcf").exists() == (rank == 1)
    assert infos(tmp_path / "out.vcf") == usual
    for together in (1, 3, 100):  # records read at once end within units, or are of several
        seen = []
        run(write(tmp_path / "in.vcf"), tmp_path / "out.vcf", progress=seen.append, together=together)
        assert infos(tmp_path / "out.vcf") == usual
        assert seen == [*range(together, len(LINES), together), len(LINES)]
    model = Chain(borders=True)
    made = {"k": model.k, "window": model.length, "made": MADE, "tell": pytest.fail}
    job = Annotation(write(tmp_path / "in.vcf"), GENOME, tmp_path / "out.vcf", **made)
    job.compute([1, 0, 1], model)  # in any order
    assert job.missing() == list(range(2, job.units))
    job.compute(job.missing(), model)
    job.write()
    assert infos(tmp_path / "out.vcf") == usual
    alone = {}
    for line in LINES:
        run(write(tmp_path / "one.vcf", [line]), tmp_path / "one-out.vcf", tell=lambda text: None)
        alone |= infos(tmp_path / "one-out.vcf")
    assert alone == usual


def test_a_trained_models_scores_do_not_depend_on_what_else_is_in_the_file(tmp_path):
    """Up to fp32's noise in batches of other shapes, below what VCF fields tell."""
    model = Likelihood(*shared_model(), batch_tokens=512)
    run(write(tmp_path / "in.vcf", LINES[:3]), tmp_path / "out.parquet", model)
    together = pq.read_table(tmp_path / "out.parquet")["delta"].to_pylist()
    alone = []
    for line in LINES[:3]:
        run(write(tmp_path / "in.vcf", [line]), tmp_path / "out.parquet", model)
        alone += pq.read_table(tmp_path / "out.parquet")["delta"].to_pylist()
    assert len(alone) == 5
    assert [x for x in alone if x] == pytest.approx([x for x in together if x], abs=2e-4)


def test_an_interrupted_start_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("seqpope.score.annotate.UNIT", 2)
    vcf, model = write(tmp_path / "in.vcf"), Chain()
    run(vcf, tmp_path / "whole.vcf", model)
    all_rows, model.rows, begin = model.rows, 0, model.begin

    def stops(rows):
        if model.rows > all_rows // 2:
            raise KeyboardInterrupt
        return begin(rows)

    monkeypatch.setattr(model, "begin", stops)
    with pytest.raises(KeyboardInterrupt):
        run(vcf, tmp_path / "out.vcf", model)
    assert not (tmp_path / "out.vcf").exists()
    monkeypatch.setattr(model, "begin", begin)
    read, model.rows, seen = model.rows, 0, []
    run(vcf, tmp_path / "out.vcf", model, progress=seen.append)
    assert 0 < model.rows < all_rows
    assert model.rows + read >= all_rows
    assert 0 < seen[0] <= 2
    assert seen[-1] < 9
    assert (tmp_path / "out.vcf").read_text() == (tmp_path / "whole.vcf").read_text()
    # What was scored with other options or by another model is not taken.
    for options in ({"strand": "+"}, {"phases": 2}, {"window": 12}, {"made": {"model": "b"}}):
        monkeypatch.setattr(model, "begin", stops)
        model.rows = 0
        with pytest.raises(KeyboardInterrupt):
            run(vcf, tmp_path / "out.vcf", model)
        monkeypatch.setattr(model, "begin", begin)
        run(vcf, tmp_path / "out.vcf", model, **options)
        run(vcf, tmp_path / "fresh.vcf", model, **options)
        assert (tmp_path / "out.vcf").read_text() == (tmp_path / "fresh.vcf").read_text()


def test_scored_again_it_has_one_set_of_fields(tmp_path):
    run(write(tmp_path / "in.vcf"), tmp_path / "out.vcf")
    run(tmp_path / "out.vcf", tmp_path / "again.vcf")
    assert (tmp_path / "again.vcf").read_text() == (tmp_path / "out.vcf").read_text()


def test_samples_are_kept(tmp_path):
    columns = COLUMNS + "\tFORMAT\ta\tb"
    header = HEADER + '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">\n'
    run(
        write(tmp_path / "in.vcf", [f"{line}\tDP\t7\t." for line in LINES], header, columns),
        tmp_path / "out.vcf.gz",
    )
    with pysam.VariantFile(str(tmp_path / "out.vcf.gz")) as file:
        assert {record.samples["a"]["DP"] for record in file} == {7}


@pytest.mark.parametrize("ending", [".vcf", ".vcf.gz", ".tsv", ".parquet"])
def test_a_file_of_a_header_alone(tmp_path, ending):
    out = tmp_path / f"out{ending}"
    assert run(write(tmp_path / "in.vcf", []), out).records == 0
    if "vcf" in ending:
        with pysam.VariantFile(str(out)) as file:
            assert list(file) == []
            assert "SP_DLL" in file.header.info
    elif ending == ".parquet":
        assert pq.read_table(out).num_rows == 0


def test_another_assembly_is_told(tmp_path):
    wrong = [f"chr1\t{p}\t.\t{other(at('chr1', p))}\t{at('chr1', p)}\t.\t.\t." for p in range(50, 80)]
    with pytest.raises(SeqpopeError, match=r"30 of 30 records .*line 4, chr1:50 .*another assembly"):
        run(write(tmp_path / "in.vcf", wrong), tmp_path / "out.vcf")
    told = []
    run(write(tmp_path / "in.vcf", [*wrong[:2], snv("chr1", 90)]), tmp_path / "out.vcf", tell=told.append)
    assert len(told) == 1
    assert "another assembly" in told[0]
    assert len(infos(tmp_path / "out.vcf")) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"out": "out.bed"}, "ends in .vcf, .vcf.gz"),
        ({"phases": 7}, "1 to 6 phases"),
        ({"phases": 0}, "1 to 6 phases"),
        ({"strand": "x"}, "strand of both"),
        ({"window": 3}, "window of at least 4"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path, options, told):
    vcf, model = write(tmp_path / "in.vcf"), Chain()
    with pytest.raises(SeqpopeError, match=told):
        run(vcf, tmp_path / options.pop("out", "out.vcf"), model, **options)
    assert model.rows == 0


def test_malformed_lines_stop_it_before_anything_is_scored(tmp_path):
    model = Chain()
    with pytest.raises(VcfError, match="line 5"):
        run(write(tmp_path / "in.vcf", [LINES[0], "chr1\t5"]), tmp_path / "out.vcf", model)
    assert model.rows == 0
    with pytest.raises(SequenceError):
        run(write(tmp_path / "in.fa", header=">"), tmp_path / "out.vcf", model)


def test_contigs_of_another_length_are_another_assemblys(tmp_path):
    """Whatever REF says: one in four agrees by chance."""
    header = HEADER + "##contig=<ID=chr1,length=301>\n##contig=<ID=2,length=200>\n"
    right = [snv("chr1", p) for p in range(50, 80)]
    with pytest.raises(SeqpopeError, match=r"length.* 30 of 30 records .*line 6, chr1:50 .*another assembly"):
        run(write(tmp_path / "in.vcf", right, header), tmp_path / "out.vcf")
    some = [right[0], snv("2", 9), snv("2", 10)]
    summary = run(write(tmp_path / "in.vcf", some, header), tmp_path / "out.vcf")
    assert summary.scored == 2
    assert summary.why == {"other_length": 1}
    assert summary.lines == {"other_length": [6]}


def test_letters_that_only_look_like_bases(tmp_path):
    line = f"chr1\t50\t.\t\u017f\t{at('chr1', 50)}\t.\t.\t."  # a long s, whose upper case is a code of IUPAC
    assert run(write(tmp_path / "in.vcf", [line]), tmp_path / "out.vcf").why == {"not_dna": 1}


def test_contigs_of_another_genome_are_told(tmp_path):
    told = []
    run(write(tmp_path / "in.vcf", LINES[-1:]), tmp_path / "out.vcf", tell=told.append)
    assert len(told) == 1
    assert "none of its contigs (chrUn), it has chr1, chr2" in told[0]


def test_positions_before_the_first_base(tmp_path):
    """Position 0, a telomere, is valid VCF."""
    run(write(tmp_path / "in.vcf", ["chr1\t0\t.\tN\t<DEL>\t.\t.\t.", *LINES]), tmp_path / "out.vcf.gz")
    with pysam.VariantFile(str(tmp_path / "out.vcf.gz")) as file:
        assert next(iter(file)).info["SP_WHY"] == ("outside",)


@pytest.mark.skipif(shutil.which("bcftools") is None, reason="bcftools is not installed")
def test_bcftools_reads_it(tmp_path):
    run(write(tmp_path / "in.vcf"), tmp_path / "out.vcf.gz")

    def bcftools(*words):
        done = subprocess.run(["bcftools", *words], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stderr.replace("Lines   total/split/realigned/skipped:", "").strip(" \t\n0123456789/") == ""
        return done.stdout

    assert bcftools("view", "-H", "out.vcf.gz").count("\n") == 9
    assert bcftools("view", "-H", "-r", "2:200", "out.vcf.gz").count("\n") == 1
    told = bcftools("query", "-f", "%POS %SP_N %SP_WHY\n", "out.vcf.gz").splitlines()
    assert told[1] == "60 12,.,12 .,symbolic,."
    split = bcftools("norm", "-m", "-any", "out.vcf.gz")
    assert sum("SP_N=12" in line for line in split.splitlines() if line[0] != "#") == 6


@pytest.fixture
def here(tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", *shared_model())
    (tmp_path / "g.fa").write_text("".join(f">{name}\n{as_text(bases)}\n" for name, bases in CONTIGS.items()))
    write(tmp_path / "in.vcf", [line for line in LINES if line.startswith("chr")])
    return tmp_path


def command(here, *more, out="out.vcf.gz"):
    files = ("--fasta", here / "g.fa", "--vcf", here / "in.vcf", "--out", here / out)
    return main([str(word) for word in ("score", "--checkpoint", here / "m.safetensors", *files, *more)])


def test_the_command(here, capsys):
    assert command(here, "--batch-tokens", "512") == 0
    told = capsys.readouterr()
    assert "7 records, 4 alleles scored, 6 not" in told.out
    assert "ref_mismatch: 1" in told.err
    with pysam.VariantFile(str(here / "out.vcf.gz")) as file:
        assert sum("SP_DLL" in record.info for record in file) == 3
    sidecar = json.loads((here / "out.vcf.gz.json").read_text())
    assert sidecar["alleles_not_scored"]["ref_mismatch"] == {"count": 1, "lines": [7]}
    assert sorted(path.name for path in here.iterdir()) == [
        *("g.fa", "g.fa.fai", "in.vcf", "m.safetensors", "out.vcf.gz", "out.vcf.gz.json", "out.vcf.gz.tbi")
    ]


def test_processes_share_the_units(here, monkeypatch):
    """What each of two does, one after the other: that they are started and wait is tested where regions are."""
    monkeypatch.setattr("seqpope.score.annotate.UNIT", 2)
    asked = {
        "checkpoint": here / "m.safetensors",
        "fasta": here / "g.fa",
        "vcf": here / "in.vcf",
        "batch_tokens": 512,
    }
    for rank in (1, 0):
        fabric = SimpleNamespace(
            global_rank=rank, world_size=2, device="cpu", broadcast=lambda _: range(4), barrier=lambda: None
        )
        _share_anew(fabric, Job, Request, {**asked, "out": here / "two.vcf"})
    job = Job(Request(**asked, out=here / "two.vcf"))
    assert job.missing() == []
    assert job.merge()["records"] == 7
    score_variants(Request(**asked, out=here / "one.vcf"))
    assert infos(here / "two.vcf") == infos(here / "one.vcf")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--bed", "x.bed"), "have no --bed"),
        (("--all",), "have no --all"),
        (("--value", "bits", "--stride", "3"), "have no --stride, --value"),
        (("--window", "2"), "a window of at least 4"),
        (("--devices", "0"), "devices"),
    ],
)
def test_what_goes_with_variants(here, capsys, words, told):
    assert command(here, *words) == 1
    assert told in capsys.readouterr().err


def test_an_input_is_not_written_over(here, capsys):
    before = (here / "in.vcf").read_bytes()
    assert command(here, out="in.vcf") == 1
    assert "would destroy it" in capsys.readouterr().err
    assert (here / "in.vcf").read_bytes() == before
