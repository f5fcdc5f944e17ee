"""How likely a model finds DNA: `score`, `track`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from seqpope.commands.options import Device, changed, words
from seqpope.errors import SeqpopeError
from seqpope.progress import Progress


def score(
    fasta: Path,
    out: Path,
    domain: Literal["genome"] = "genome",
    checkpoint: Path | None = None,
    bed: Path | None = None,
    region: str | None = None,
    all: bool = False,
    vcf: Path | None = None,
    strand: Literal["both", "+", "-"] = "both",
    phases: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    value: Literal["nats", "bits", "spread"] = "nats",
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_tokens: int = 16384,
    compile: bool = False,
    device: Device = "auto",
    devices: int = 1,
) -> None:
    """Score DNA: how likely a model finds regions of a genome or each base, and what variants change of that.

    Args:
        fasta: The genome: a FASTA file, or the folder that `prepare genome` has made.
        out: What to write. A row a region: .tsv, .tsv.gz, .parquet. A value a base: .bedgraph, .bedgraph.gz, .bw,
            .bigWig. Variants: .vcf.gz (with its index), .vcf, .tsv, .parquet. A JSON file beside it says how it
            was made. Stopped midway, the same command goes on.
        domain: What is scored.
        checkpoint: A .safetensors file, a run's folder or an experiment's, of a model of DNA; the shipped genome
            model if not given.
        bed: Regions to score, plain or gzipped; the table's rows are in its order.
        region: One region, from 1 and with its last base, such as chr7:5,500,000-5,600,000; or a contig.
        all: All that is known of the genome; in a table a row for every 100 kb.
        vcf: Variants to score, plain or gzipped VCF: the change of log-likelihood from REF to each ALT.
        strand: Strands that are read; bases and regions are means over them.
        phases: In how many of the six phases of the token boundaries each strand is read; all if not given.
        window: Tokens read at once; as in training if not given.
        stride: Tokens scored of each window, the others being context; half of the window if not given.
        value: Of a base: nats, bits, or the standard deviation of nats over strands and phases.
        precision: Of the forward pass.
        batch_tokens: About how many tokens are read at once; less takes less memory.
        compile: Compile the model first, which takes a minute; worth it for long work on a GPU.
        device: Where to compute.
        devices: How many GPUs, or processes on a CPU, share the work.
    """
    asked = dict(locals())
    from seqpope.checkpoint import shipped

    checkpoint = checkpoint or shipped("genome")
    if vcf is not None:
        if foreign := changed(score, asked, ("bed", "region", "all", "stride", "value")):
            raise SeqpopeError(
                f"--vcf scores variants, which have no {', '.join(foreign.values())}: leave that out"
            )
        _score_variants(
            {
                "checkpoint": checkpoint,
                "fasta": fasta,
                "out": out,
                "vcf": vcf,
                "strand": strand,
                "phases": phases,
            }
            | {"window": window, "device": device, "devices": devices, "precision": precision}
            | {"batch_tokens": batch_tokens, "compile": compile}
        )
        return
    from seqpope.score.work import Request, score_regions

    result = score_regions(
        Request(
            checkpoint,
            fasta,
            out,
            bed=bed,
            region=region,
            everything=all,
            strand=strand,
            phases=phases,
            window=window,
            stride=stride,
            value=value,
            device=device,
            devices=devices,
            precision=precision,
            batch_tokens=batch_tokens,
            compile=compile,
        )
    )
    if result is not None:
        bits, beyond = result["bits_per_base"], result["mass_outside_words"]
        print(
            f"{out}  {result['regions']} regions, {result['scored_bases']} bases scored, {result['n_bases']} N"
            + ("" if bits is None else f", {bits:.4f} bits/base")
            + ("" if beyond is None else f", {beyond:.2g} of the probability outside words")
        )


def _score_variants(asked: dict[str, Any]) -> None:
    from seqpope.score.annotate import Request, score_variants

    result = score_variants(Request(**asked))
    if result is not None:
        left = sum(some["count"] for some in result["alleles_not_scored"].values())
        print(
            f"{asked['out']}  {result['records']} records, {result['alleles_scored']} alleles scored, {left} not"
        )


def track(
    scores: list[Path],
    fasta: Path,
    region: str,
    out: Path,
    names: str = "",
    bed: str = "",
    vcf: Path | None = None,
    threshold: float | None = None,
    unit: Literal["nats", "bits"] = "nats",
) -> None:
    """Write scores of a region, its sequence and features as one HTML page that opens without a network.

    Args:
        scores: One value a base in nats, as bedGraph (plain or gzipped, sorted) or bigWig; several are compared.
        fasta: The genome: a FASTA file, plain or bgzipped, or a prepared genome's folder.
        region: Such as chr17:43,044,295-43,064,295, first and last base from 1; at most 2,000,000 bases.
        out: The page to write.
        names: What to call each score, such as PoPE,RoPE; by its header or file if not given.
        bed: BED files, such as genes.bed,repeats.bed.gz, a track each.
        vcf: A VCF with SP_DLL in INFO; its variants are coloured by that.
        threshold: Mark runs of bases above it, of the unit shown.
        unit: Show nats or bits.
    """
    from seqpope.domains.genome.store import open_genome
    from seqpope.track import write_page

    told = write_page(
        out,
        scores,
        open_genome(fasta),
        region,
        names=words(names),
        bed=[Path(word) for word in words(bed)],
        vcf=vcf,
        threshold=threshold,
        bits=unit == "bits",
        report=Progress("reading", "MB"),
    )
    print(f"{out}  {told}")
