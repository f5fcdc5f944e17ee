"""DNA in the studio: scores, mutations and continuations are those of the commands; wishes are judged."""

from __future__ import annotations

import gzip
import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from seqpope.cli import main
from seqpope.studio import requests
from seqpope.studio.catalogue import Catalogue
from seqpope.studio.genome_routes import read_genes
from seqpope.studio.worker import Worker

SHIPPED = "seqpope/weights/genome.safetensors"


@pytest.fixture(scope="module")
def folder(genome_folder):
    return genome_folder


@pytest.fixture(scope="module")
def client(genome_studio):
    with httpx.Client(base_url=genome_studio, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def genome(client):
    [found] = client.get("/api/state").json()["genomes"]
    return found["id"]


def done(client, kind, **arguments):
    """What a job said: its steps, and its answer."""
    asked = client.post("/api/jobs", json={"kind": kind, "arguments": arguments})
    assert asked.status_code == 202, asked.text
    steps, name = [], ""
    with client.stream("GET", f"/api/jobs/{asked.json()['id']}/events") as lines:
        for line in lines.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: ") and name in ("step", "result", "error", "cancelled"):
                said = json.loads(line[6:])
                if name != "step":
                    return steps, name, said
                steps.append(said)
    raise AssertionError("the job never ended")


@pytest.mark.parametrize(("strand", "phases"), [("+", 6), pytest.param("both", 2, marks=pytest.mark.slow)])
def test_scores_are_those_of_the_command(client, genome, folder, strand, phases):
    _, _, answer = done(client, "genome.score", genome=genome, region="3:251-400", strand=strand, phases=phases)
    assert (answer["contig"], answer["start"], answer["end"]) == ("chr3", 250, 400)
    assert answer["nats"][50:110] == [None] * 60
    assert answer["sequence"][50:110] == "N" * 60
    out = folder / f"{phases}.bedgraph"
    main(
        f"score --checkpoint {SHIPPED} --fasta {folder / 'data/genome'} --region chr3:251-400 --out {out} "
        f"--strand {strand} --phases {phases} --batch-tokens 2048".split()
    )
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert len(rows) == answer["known"] == 90
    told = [answer["nats"][int(row[1]) - 250] for row in rows]
    np.testing.assert_allclose(told, [float(row[3]) for row in rows], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("strand", "phases"), [("-", 2), pytest.param("both", 6, marks=pytest.mark.slow)])
def test_mutations_are_those_of_a_vcf(client, genome, folder, strand, phases):
    steps, _, answer = done(
        client, "genome.mutate", genome=genome, region="chr3:299-301", strand=strand, phases=phases, window=40
    )
    assert steps == answer["columns"]
    assert len(steps) == 3
    assert steps[2]["delta"] == [None] * 4  # N
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for column in steps[:2]:
        others = ",".join(base for base in "ACGT" if base != column["ref"])
        lines.append(f"chr3\t{299 + column['at']}\t.\t{column['ref']}\t{others}\t.\t.\t.")
    vcf, out = folder / "all.vcf", folder / f"{phases}.tsv"
    vcf.write_text("\n".join(lines) + "\n")
    main(
        f"score --checkpoint {SHIPPED} --fasta {folder / 'data/genome'} --vcf {vcf} --out {out} --window 40 "
        f"--strand {strand} --phases {phases}".split()
    )
    rows = [line.split("\t") for line in out.read_text().splitlines()[1:]]
    assert len(rows) == 6
    for row in rows:
        column = steps[int(row[1]) - 299]
        base = "ACGT".index(row[4])
        assert column["delta"][base] == pytest.approx(float(row[5]), abs=2e-4)
        assert column["sd"][base] == pytest.approx(float(row[7]), abs=2e-4)
        assert column["delta"]["ACGT".index(row[3])] == 0


def test_a_continuation_is_that_of_the_command(client, folder):
    rules = {"gc": [0.3, 0.7], "forbid": ["EcoRI"], "no_stop": True, "judge_prompt": True}
    prompt = "ACGTACGGTCCATG"
    steps, _, answer = done(client, "genome.continue_dna", prompt="acgt ACGGTCCATG", bases=50, seed=3, rules=rules)
    assert "".join(step["bases"] for step in steps) == answer["drawn"]
    assert len(answer["drawn"]) == 50
    out = folder / "drawn.fa"
    main(
        f"generate --checkpoint {SHIPPED} --out {out} --prompt {prompt} --bases 50 --seed 3 --gc 0.3,0.7 "
        "--forbid EcoRI --no-stop".split()
    )
    header, *lines = out.read_text().splitlines()
    assert prompt + answer["drawn"] == "".join(lines)
    assert header == f">dna-0003 {answer['header']}"


def test_a_continuation_of_a_region_reads_what_is_known_before_its_end(client, genome):
    _, _, answer = done(client, "genome.continue_dna", genome=genome, region="chr3:300-370", before=30, bases=7)
    assert answer["region"] == "chr3:361-370"
    assert len(answer["prompt"]) == 10
    assert len(answer["drawn"]) == 7
    _, name, said = done(client, "genome.continue_dna", genome=genome, region="chr3:290-310", bases=6)
    assert name == "error"
    assert "N at 310" in said


@pytest.mark.parametrize(
    ("kind", "region", "said"),
    [
        ("genome.score", "chr99:1-5", "no contig"),
        ("genome.score", "chr3:0-5", "not inside"),
        ("genome.score", "../../etc/passwd", "no region"),
        ("genome.score", "chr3:301-360", "all N"),
        ("genome.mutate", "chr3:1-61", "at most 60"),
    ],
)
def test_regions_that_are_none_are_told_in_words(client, genome, kind, region, said):
    _, name, told = done(client, kind, genome=genome, region=region)
    assert name == "error"
    assert said in told


@pytest.mark.parametrize(
    "arguments",
    [
        {"genome": "../data", "region": "chr3"},
        {"genome": "0" * 12, "region": "chr3"},
        {"region": "chr3"},
        {"genome": "x", "region": "chr3", "phases": 7},
        {"genome": "x", "region": "c" * 200},
    ],
)
def test_what_does_not_fit_is_refused_at_once(client, arguments):
    assert client.post("/api/jobs", json={"kind": "genome.score", "arguments": arguments}).status_code == 400


def test_long_regions_are_refused(client, genome, monkeypatch):
    from seqpope.domains.genome.sequences import ArrayGenome
    from seqpope.errors import SeqpopeError
    from seqpope.studio.genome import place_of

    large = ArrayGenome({"chr1": np.ones(requests.MAXIMUM_SCORED + 1, np.uint8)})
    with pytest.raises(SeqpopeError, match="at most 20,000"):
        place_of(large, "chr1", requests.MAXIMUM_SCORED)


def test_genes_and_places(client, genome):
    suggested = client.get("/api/genome/genes", params={"prefix": "ab"}).json()
    assert suggested == [{"name": "ABC1", "place": "chr3:100-400"}, {"name": "abd2", "place": "chr3:201-5,000"}]
    place = lambda text: client.get("/api/genome/place", params={"genome": genome, "text": text})  # noqa: E731
    assert place("abc1").json() | {"known": 241, "gene": "ABC1", "region": "chr3:100-400"} == place("ABC1").json()
    assert place("ABD2").json()["known"] == 4800 - 60
    assert place("3:1-10").json()["region"] == "chr3:1-10"
    assert "which this genome has not" in place("FAR1").json()["error"]
    assert "nor a gene" in place("nothing").json()["error"]
    drawn = client.get("/api/genome/features", params={"genome": genome, "region": "chr3:1-600"}).json()
    assert [gene["name"] for gene in drawn] == ["ABC1", "abd2"]
    assert drawn[1]["end"] == 600
    assert client.get("/api/genome/features", params={"genome": genome, "region": "chr4"}).json() == []
    about = client.get("/api/genome/about", params={"genome": genome}).json()
    assert about["genes"] == 3
    assert about["example"] == "chr3:361-4,360"


def test_genes_of_one_name_that_overlap_are_one(tmp_path):
    file = tmp_path / "genes.bed.gz"
    file.write_bytes(gzip.compress(b"chr1\t5\t9\tA\nchr1\t7\t20\tA\nchr2\t0\t3\tA\nchr1\t30\t40\tA\n"))
    assert [gene.place for gene in read_genes(file)] == ["chr1:6-20", "chr1:31-40", "chr2:1-3"]


def test_igv_comes_packed_to_who_can_unpack_it(client):
    packed = client.get("/igv.js")
    assert packed.headers["content-encoding"] == "gzip"
    assert b"igv" in packed.content[:5000]
    plain = client.get("/igv.js", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == packed.content
    assert client.get("/igv.js", headers={"if-none-match": packed.headers["etag"]}).status_code == 304


def test_a_running_job_is_cancelled(client, genome):
    asked = client.post(
        "/api/jobs",
        json={
            "kind": "genome.mutate",
            "arguments": {"genome": genome, "region": "chr3:1,001-1,060", "strand": "both", "phases": 6},
        },
    ).json()
    client.delete(f"/api/jobs/{asked['id']}")
    events = client.get(f"/api/jobs/{asked['id']}/events").text
    assert "event: cancelled" in events
    assert "event: result" not in events


def test_genomes_are_found_by_id_alone(folder):
    catalogue = Catalogue(folder / "runs", folder / "data")
    [(name, path)] = catalogue.genomes()
    assert catalogue.genome(name) == path


def test_a_process_is_started_once_whoever_asks_first():
    worker = Worker()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: worker.start(), range(2)))
    try:
        assert len(multiprocessing.active_children()) == 1
    finally:
        worker.kill()
