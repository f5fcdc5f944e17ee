"""`seqpope score`: the same numbers whatever is written, however asked for and by how many computed."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from genomes import random_bases, shared_model, tiny_model
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from seqpope.checkpoint import SHIPPED, named, save_checkpoint
from seqpope.cli import main
from seqpope.domains.genome.sequences import as_text, other_strand
from seqpope.domains.genome.store import open_genome
from seqpope.errors import SeqpopeError
from seqpope.score import work
from seqpope.score.output import LN2
from seqpope.score.places import parse_region, read_bed, whole_genome
from seqpope.score.work import Job, Request, score_regions

SIZES = {"chr1": 700, "chr2": 310, "chrN": 20}


def sequences() -> dict[str, np.ndarray]:
    made = {name: random_bases(size, size) for name, size in SIZES.items()}
    made["chr1"][300:350] = 0
    made["chr1"][[0, 699]] = 0
    made["chr2"][100:160] |= 8
    made["chrN"][:] = 0
    return made


def write_fasta(path: Path, made: dict[str, np.ndarray]) -> Path:
    path.write_text("".join(f">{name} more\n{as_text(bases)}\n" for name, bases in made.items()))
    return path


@pytest.fixture
def here(tmp_path) -> Path:
    save_checkpoint(tmp_path / "m.safetensors", *shared_model())
    write_fasta(tmp_path / "g.fa", sequences())
    return tmp_path


def request(here: Path, out: str, **options) -> Request:
    options = {"window": 8, "stride": 4, "phases": 2, "chunk": 120, "device": "cpu", **options}
    return Request(here / "m.safetensors", here / "g.fa", here / out, **options)


def table(path: Path) -> list[dict[str, str]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    head, *rows = (line.split("\t") for line in text.splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def track(path: Path) -> dict[str, np.ndarray]:
    """Values of each contig, nan where there are none."""
    values = {name: np.full(size, np.nan) for name, size in SIZES.items()}
    if path.name.lower().endswith((".bw", ".bigwig")):
        import pyBigWig

        with contextlib.closing(pyBigWig.open(str(path))) as file:
            assert file.chroms() == SIZES
            return {name: np.array(file.values(name, 0, size)) for name, size in SIZES.items()}
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    for line in text.splitlines():
        contig, start, end, value = line.split("\t")
        assert int(end) == int(start) + 1
        assert np.isnan(values[contig][int(start)])  # each base once
        values[contig][int(start)] = float(value)
    return values


def test_regions_are_the_sums_of_their_bases_in_every_format(here):
    bed = here / "r.bed"
    rows = [("chr2", 5, 300, "late", 0, "-"), ("chr1", 290, 360, "gap", 0, "+"), ("chr1", 310, 330, "N", 0, ".")]
    bed.write_text(
        "track name=x\n#c\n" + "".join("\t".join(map(str, row)) + "\n" for row in rows) + "chr1 20 21\n"
    )
    for out in ("a.tsv", "a.tsv.gz", "a.parquet", "a.bedgraph", "a.bedGraph.gz", "a.bw", "b.bigWig"):
        result = score_regions(request(here, out, bed=bed))
        assert result is not None
        assert result["scored_bases"] == 295 + 20 + 1
        assert result["n_bases"] == 50
    assert [path.name for path in here.iterdir() if path.name.startswith(".")] == []
    found = table(here / "a.tsv")
    assert [(r["contig"], r["start"], r["name"], r["strand"]) for r in found] == [
        ("chr2", "5", "late", "-"),
        ("chr1", "290", "gap", "+"),
        ("chr1", "310", "N", "."),
        ("chr1", "20", "", ""),
    ]
    assert table(here / "a.tsv.gz") == found
    values = track(here / "a.bedgraph")
    for name in ("a.bedGraph.gz", "a.bw", "b.bigWig"):
        for contig, each in track(here / name).items():
            np.testing.assert_allclose(each, values[contig], rtol=1e-6)
    assert sum(np.isfinite(each).sum() for each in values.values()) == 295 + 20 + 1
    for row in found:
        inside = values[row["contig"]][int(row["start"]) : int(row["end"])]
        known = np.isfinite(inside)
        assert int(row["scored_bases"]) == known.sum()
        assert int(row["n_bases"]) == (~known).sum()
        if row["name"] == "N":
            assert {row[c] for c in ("nll", "bits_per_base", "spread_bits_per_base", "context_mean")} == {"NA"}
        else:
            assert float(row["nll"]) == pytest.approx(inside[known].sum(), abs=1e-4)
            assert float(row["bits_per_base"]) == pytest.approx(inside[known].mean() / LN2, abs=1e-6)
            assert float(row["spread_bits_per_base"]) > 0
            assert 0 <= float(row["context_least"]) < float(row["context_mean"]) < 48 or known.sum() == 1
    from pyarrow.parquet import read_table

    for row, other in zip(found, read_table(here / "a.parquet").to_pylist(), strict=True):
        for name, value in other.items():
            same = "NA" if value is None else value
            assert row[name] == same or float(row[name]) == pytest.approx(same, rel=1e-8)


def test_values_may_be_bits_or_the_spread(here):
    for value in ("nats", "bits", "spread"):
        score_regions(request(here, f"{value}.bedgraph", region="chr2", value=value))
    nats, bits, spread = (track(here / f"{value}.bedgraph")["chr2"] for value in ("nats", "bits", "spread"))
    np.testing.assert_allclose(bits * LN2, nats, rtol=1e-5)
    assert spread.max() > 0.1


def test_alone_among_thousands_and_the_whole_genome(here):
    random = np.random.default_rng(0)
    bed, lines = here / "many.bed", []
    for _ in range(1500):
        contig = random.choice(["chr1", "chr2"])
        start, end = np.sort(random.choice(SIZES[contig] + 1, 2, replace=False))
        lines.append(f"{contig}\t{start}\t{end}\n")
    bed.write_text("".join(lines))
    score_regions(request(here, "many.tsv", bed=bed))
    score_regions(request(here, "all.bw", everything=True))
    many, whole = table(here / "many.tsv"), track(here / "all.bw")
    assert len(many) == 1500
    for row, line in zip(many, lines, strict=True):
        assert line.split() == [row["contig"], row["start"], row["end"]]
        inside = whole[row["contig"]][int(row["start"]) : int(row["end"])]
        if np.isfinite(inside).any():
            assert float(row["nll"]) == pytest.approx(np.nansum(inside), abs=1e-3)
    for row in many[:8]:
        text = f"{row['contig']}:{int(row['start']) + 1}-{int(row['end']):,}"
        score_regions(request(here, "alone.tsv", region=text, chunk=100_000))
        [alone] = table(here / "alone.tsv")
        for name in ("nll", "bits_per_base", "spread_bits_per_base", "context_least", "context_mean"):
            assert alone[name] == row[name] or float(alone[name]) == pytest.approx(float(row[name]), abs=1e-4)


def test_a_table_of_the_whole_genome_has_known_pieces(here, monkeypatch):
    from seqpope.score import places

    monkeypatch.setattr(places, "PIECE", 200)
    score_regions(request(here, "all.tsv", everything=True))
    rows = [(row["contig"], int(row["start"]), int(row["end"])) for row in table(here / "all.tsv")]
    assert rows == [
        *(("chr1", a, b) for a, b in ((1, 200), (200, 300), (350, 400), (400, 600), (600, 699))),
        *(("chr2", a, b) for a, b in ((0, 200), (200, 310))),
    ]


def test_the_other_strand_of_the_fasta_has_the_same_values(here):
    score_regions(request(here, "a.bw", everything=True))
    write_fasta(here / "g.fa", {name: other_strand(bases) for name, bases in sequences().items()})
    score_regions(request(here, "b.bw", everything=True))
    there = track(here / "b.bw")
    for name, values in track(here / "a.bw").items():
        np.testing.assert_allclose(there[name][::-1], values, atol=1e-4)


def test_two_processes_find_the_same_and_leave_nothing(here, monkeypatch, capfd):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    score_regions(request(here, "one.bw", everything=True))
    result = score_regions(request(here, "two.bw", everything=True, devices=2))
    assert result is not None
    assert result["scored_bases"] == 698 - 50 + 310
    one, two = track(here / "one.bw"), track(here / "two.bw")
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, atol=1e-4)
    assert not list(here.glob(".*"))
    # Units that the other process has scored already are no earlier command's, and Lightning keeps still.
    assert [line.partition(" ")[0] for line in capfd.readouterr().err.splitlines()] == ["one.bw:", "two.bw:"]


def test_only_what_was_there_before_is_gone_on_from(here, capsys):
    job = Job(request(here, "a.tsv", everything=True))
    todo = job.missing()
    job.score(todo[1::2], "cpu", among=todo, quiet=True)
    assert capsys.readouterr().err == ""
    job.score(todo[::2], "cpu", among=todo)
    assert "going on" not in capsys.readouterr().err
    job.part(2).unlink()
    job.score([2], "cpu", among=[2])
    assert f"going on, {sum(job.bases) - job.bases[2]} of {sum(job.bases)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("last", "raised", "told"),
    [
        (None, SeqpopeError, "killed from outside.*signal SIGKILL.*the same command goes on"),
        ("seqpope.domains.genome.bases.SequenceError: chr7: no such contig", SeqpopeError, "^chr7: no such"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", MemoryError, "Tried"),
        ("KeyError: 7", ProcessRaisedException, "KeyError: 7"),
    ],
)
def test_a_process_that_fails_is_told_in_words(here, last, raised, told):
    def launch(*_):
        if last is None:
            raise ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 7, -9)
        raise ProcessRaisedException(f"\n\n-- Process 1 ...:\nTraceback ...\n{last}\n", 1, 7)

    with pytest.raises(raised, match=told):
        work._spawn(SimpleNamespace(launch=launch), Job(request(here, "a.tsv", region="chr2", devices=2)))


def test_more_processes_than_cores_are_refused(here):
    with pytest.raises(SeqpopeError, match=r"--devices 1000000 were asked for, there are \d+ CPU cores"):
        score_regions(request(here, "a.tsv", region="chr2", devices=1_000_000))


def test_term_stops_as_an_interrupt_does(here, monkeypatch, capsys):
    monkeypatch.setattr(Job, "merge", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    words = ["score", "--checkpoint", here / "m.safetensors", "--fasta", here / "g.fa", "--out", here / "a.tsv"]
    before = signal.getsignal(signal.SIGTERM)
    assert main([*map(str, words), "--region", "chr2", "--device", "cpu"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_gzipped_output_is_the_same_every_time(here):
    for out in ("a.tsv.gz", "a.bedgraph.gz"):
        score_regions(request(here, out, region="chr2"))
        content = (here / out).read_bytes()
        assert content[3:8] == bytes(5)  # neither a name nor a time
        score_regions(request(here, out, region="chr2"))
        assert (here / out).read_bytes() == content


def test_contigs_of_any_letters(here):
    name = "chr\u00e4"
    (here / "g.fa").write_text(f">{name}\nACGTACGTAC\n", encoding="utf-8")
    score_regions(request(here, "a.bedgraph", everything=True))
    lines = (here / "a.bedgraph").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == [name] * 10


def test_weights_that_are_no_numbers_are_refused(here):
    model, info = tiny_model()
    with torch.no_grad():
        next(model.parameters())[:] = math.nan
    save_checkpoint(here / "m.safetensors", model, info)
    with pytest.raises(SeqpopeError, match=r"no numbers.*another checkpoint"):
        score_regions(request(here, "a.tsv", region="chr2"))
    assert not (here / "a.tsv").exists()


def test_what_a_killed_process_left_goes_with_the_parts(here):
    job = Job(request(here, "a.tsv", region="chr2"))
    job.parts.mkdir()
    (job.parts / ".unit-000001.npz.x2y").touch()
    score_regions(job.request)
    assert not job.parts.exists()


def test_a_device_that_is_not_there_leaves_nothing_behind(here, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job = Job(request(here, "a.tsv", region="chr2"))
    with pytest.raises(SeqpopeError, match="cuda"):
        score_regions(replace(job.request, device="cuda"))
    assert not job.parts.exists()


def test_a_shipped_model_is_told_by_its_name(here):
    shipped = replace(request(here, "a.tsv", region="chr2:1-60"), checkpoint=SHIPPED["genome"])
    score_regions(replace(shipped, window=None, stride=None, phases=1, strand="+"))
    assert json.loads((here / "a.tsv.json").read_text())["model"]["checkpoint"] == "shipped: genome"
    (here / "mine.safetensors").symlink_to(SHIPPED["genome"])
    assert named(here / "mine.safetensors") == "shipped: genome"
    assert named(here / "m.safetensors") == str(here / "m.safetensors")


def test_a_place_that_cannot_be_written_to(here):
    with pytest.raises(SeqpopeError, match=r"a.tsv cannot be written \(Not a directory.*choose another --out"):
        score_regions(request(here, "g.fa/a.tsv", region="chr2"))


def test_a_prepared_store_reads_as_its_fasta_does(here):
    """By any of a contig's names."""
    from data_prep.genome import prepare

    score_regions(request(here, "a.tsv", region="chr2:11-200"))
    large = {**sequences(), "more": random_bases(300_000)}
    write_fasta(here / "large.fa", large)
    prepare(here / "store", source=here / "large.fa", progress=lambda _: None)
    score_regions(replace(request(here, "b.tsv", region="2:11-200"), fasta=here / "store"))
    assert table(here / "a.tsv") == table(here / "b.tsv")


class Stop(Exception):
    pass


def stop_after(monkeypatch, units: int) -> list[int]:
    """Have the n-th unit's saving fail; what was saved."""
    saved: list[int] = []
    save = Job.save

    def saving(self, unit, *rest):
        if len(saved) == units:
            raise Stop
        saved.append(unit)
        save(self, unit, *rest)

    monkeypatch.setattr(Job, "save", saving)
    return saved


def test_finished_units_are_not_scored_again(here, monkeypatch):
    asked = request(here, "a.tsv", everything=True)
    units = len(Job(asked).units)
    assert units > 8
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            score_regions(asked)
    assert not (here / "a.tsv").exists()
    with monkeypatch.context() as patch:
        saved = stop_after(patch, 1000)
        score_regions(asked)
    assert saved == list(range(5, units))
    score_regions(replace(asked, out=here / "b.tsv"))
    assert table(here / "a.tsv") == table(here / "b.tsv")


@pytest.mark.parametrize(
    "change",
    [{"phases": 1}, {"strand": "+"}, {"stride": 3}, {"precision": "bf16"}, {"region": "chr1"}, {"chunk": 99}],
)
def test_parts_of_another_request_are_not_taken(here, monkeypatch, change):
    asked = request(here, "a.bw", region="chr2")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stop):
            score_regions(asked)
    assert len(Job(asked).missing()) == len(Job(asked).units) - 2
    other = replace(asked, **change)
    assert len(Job(other).missing()) == len(Job(other).units)
    made = sequences()
    made["chr2"][300] = 5 - made["chr2"][300]
    write_fasta(here / "g.fa", made)
    assert len(Job(asked).missing()) == len(Job(asked).units)
    write_fasta(here / "g.fa", sequences())
    save_checkpoint(here / "m.safetensors", shared_model(length=17)[0], shared_model(length=17)[1])
    assert len(Job(asked).missing()) == len(Job(asked).units)
    score_regions(asked)
    assert not list(here.glob(".*"))


def test_an_interrupted_command_says_that_it_goes_on(here, monkeypatch, capsys):
    words = ["score", "--checkpoint", here / "m.safetensors", "--fasta", here / "g.fa", "--out", here / "a.tsv"]
    words = [*map(str, words), "--all", "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(Job, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(words) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (here / "a.tsv").exists()
    assert main(words) == 0
    assert not list(here.glob(".*"))


def test_two_commands_do_not_write_one_file(here):
    job = Job(request(here, "a.tsv", region="chr2"))
    with work._locked(job), pytest.raises(SeqpopeError, match="another process is writing"):
        score_regions(job.request)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of --bed"),
        ({"region": "chr1", "everything": True}, "one of --bed"),
        ({"region": "chr1", "out": "a.txt"}, "ends in .tsv"),
        ({"region": "chr1", "out": "g.fa/../.tsv"}, "ends in .tsv"),
        ({"region": "chr7:1-2"}, "chr7"),
        ({"region": "chr1:650-701"}, "from 1 to 700"),
        ({"region": "chr1:0-7"}, "from 1 to 700"),
        ({"region": "chr1:9-8"}, "from 1 to 700"),
        ({"region": "chr1:9"}, "is no region"),
        ({"region": "chr1", "devices": 0}, "devices"),
        ({"region": "chr1", "phases": 7}, "phases"),
        ({"region": "chr1", "phases": 0}, "phases"),
        ({"region": "chr1", "stride": 9}, "stride <= window"),
        ({"region": "chr1", "bed": None, "window": 0}, "stride <= window"),
    ],
)
def test_requests_that_cannot_be_met(here, options, message):
    with pytest.raises(SeqpopeError, match=message):
        Job(request(here, **{"out": "a.tsv", **options}))


def test_what_is_read_is_not_written_over(here):
    (here / "r.tsv").write_text("chr1\t3\t4\n")
    with pytest.raises(SeqpopeError, match="is what is read"):
        Job(request(here, "r.tsv", bed=here / "r.tsv"))


class TestBed:
    def read(self, here: Path, text: str):
        (here / "r.bed").write_text(text)
        return read_bed(here / "r.bed", open_genome(here / "g.fa"))

    def test_a_header_comments_and_carriage_returns_are_passed_over(self, here):
        regions = self.read(here, "chrom\tstart\tend\tname\r\n#x\r\n\r\nbrowser hide\r\nchr2\t3\t9\tn 1\r\n")
        assert (regions.contig.tolist(), regions.start.tolist(), regions.end.tolist()) == ([1], [3], [9])
        assert regions.names == ["n 1"]

    def test_a_byte_order_mark_is_no_part_of_a_name(self, here):
        assert len(self.read(here, "\ufeffchr2\t3\t9\n")) == 1

    def test_gzipped(self, here):
        (here / "r.bed.gz").write_bytes(gzip.compress(b"chr2\t3\t9\n", mtime=0))
        assert len(read_bed(here / "r.bed.gz", open_genome(here / "g.fa"))) == 1

    def test_what_is_not_there_is_left_out_counted_and_named(self, here):
        text = "chr1\t0\t700\nchrX\t1\t5\nchr1\t0\t701\nchr2\t7\t7\nchrX\t2\t5\n"
        regions = self.read(here, text)
        assert len(regions) == 1
        assert {reason: (s.count, s.lines) for reason, s in regions.skipped.items()} == {
            "unknown contig": (2, ["line 2: chrX:1-5", "line 5: chrX:2-5"]),
            "past the contig's end": (1, ["line 3: chr1:0-701 of 700 bases"]),
            "no base": (1, ["line 4: chr2:7-7"]),
        }

    @pytest.mark.parametrize("line", ["chr1\t9\t8", "chr1\t5", "chr1\t-1\t8", "chr1\t1.5\t8", "chr1\tx\t8"])
    def test_lines_that_are_no_intervals_are_refused(self, here, line):
        with pytest.raises(SeqpopeError, match=r"1 lines that are no intervals.*line 2"):
            self.read(here, f"chr1\t1\t2\n{line}\n")

    def test_nothing_left_is_refused(self, here):
        with pytest.raises(SeqpopeError, match=r"no region to score.*chrX"):
            self.read(here, "chrX\t1\t2\n")
        with pytest.raises(SeqpopeError, match="no region to score"):
            self.read(here, "# nothing\n")
        with pytest.raises(SeqpopeError, match="cannot be read"):
            read_bed(here / "none.bed", open_genome(here / "g.fa"))


def test_regions_in_words(here):
    genome = open_genome(here / "g.fa")
    for text, place in (("chr1:1-700", (0, 0, 700)), ("chr1", (0, 0, 700)), ("chr2:1,0-1,1", (1, 9, 11))):
        regions = parse_region(text, genome)
        assert (regions.contig[0], regions.start[0], regions.end[0]) == place
    assert len(whole_genome(genome)) == 3


class TestCommand:
    def test_scores_a_region(self, here, capsys):
        words = ["--checkpoint", here / "m.safetensors", "--fasta", here / "g.fa", "--region", "chr1:11-120"]
        words += ["--domain", "genome", "--strand", "-", "--out", here / "a.tsv", "--device", "cpu"]
        assert main(["score", *map(str, words)]) == 0
        assert "110 bases scored, 0 N" in capsys.readouterr().out
        told = json.loads((here / "a.tsv.json").read_text())
        assert told["settings"]["strand"] == "-"
        assert (told["settings"]["window"], told["settings"]["stride"], told["settings"]["phases"]) == (16, 8, 6)
        assert list(told["bits_per_base_by_pass"]) == [f"-{p}" for p in range(6)]
        assert 0 < told["mass_outside_words"] < 1
        assert main(["score", *map(str, words), "--strand", "+", "--phases", "1"]) == 0

    def test_the_shipped_model_scores_where_none_is_given(self, here, capsys):
        words = ["--fasta", here / "g.fa", "--region", "chr1:11-120", "--out", here / "b.tsv", "--device", "cpu"]
        assert main(["score", *map(str, words), "--phases", "1"]) == 0
        captured = capsys.readouterr()
        assert "the genome model that comes with seqpope is taken" in captured.err
        assert "110 bases scored" in captured.out
