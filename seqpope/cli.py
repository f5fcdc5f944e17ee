"""The command line: verbs and wiring only. Nothing heavy is imported before a verb runs.

Each verb is a function here; its signature is the schema of its options and its docstring is their help.
Options may be written with dashes or underscores.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal, NamedTuple

import seqpope
from seqpope.domains.base import DATASETS, DOMAINS, KINDS, Kind, find_dataset, find_kind
from seqpope.errors import SeqpopeError
from seqpope.progress import Progress

Device = Literal["auto", "cpu", "cuda"]


def prepare(
    dataset: str,
    source: Path | None = None,
    data_folder: Path = Path("data"),
    out: Path | None = None,
    force: bool = False,
    split: str = "",
    stretch: str = "",
    strata: str = "",
    fasta: Path | None = None,
) -> None:
    """Turn a data set into tokens that can be trained on.

    Args:
        dataset: chorales (comes with music21, no network); or downloaded, checksum pinned: jsb, maestro,
            maestro-performance, grch38; or genome, any FASTA (--source). grch38-bases and genome-bases read
            single bases instead of six-mers.
        source: The raw file, if you have it already; nothing is downloaded then; maestro also takes a folder.
        data_folder: Folder of prepared data; a folder of the data set's name is made in it.
        out: Folder to write to instead, such as data/maestro-by-piece, so that several of one data set can lie
            side by side; to train on it, give it as --data-folder.
        force: Prepare again even if it is there.
        split: For maestro: official; by-piece (the paper's 90/5/5, a title in one split); by-content (90/5/5 by
            hash of the file). Empty is official where there is a catalogue. For genomes: nt (validation chr21,
            test chr22), paper (the same), fraction (90/5/5 along each contig), or a BED file whose fourth column
            names train, validation or test. Empty is nt for grch38, else fraction.
        stretch: For maestro: factors, such as 0.95,0.975,1.025,1.05; the training split then holds each of its
            performances also with all times multiplied by each. Validation and test stay as played.
        strata: For genomes: BED files with commas between, plain or gzipped; reports then show each by its name.
        fasta: For genomes: the same as source.
    """
    from importlib import import_module

    from seqpope.data.shards import check_place

    entry = find_dataset(dataset)
    if split and split not in entry.splits and not (entry.intervals and Path(split).is_file()):
        known = f"one of {', '.join(entry.splits)}" if entry.splits else "none to be named, it has only one"
        more = " or a BED file, and there is none of that name" if entry.intervals else ""
        raise SeqpopeError(f"{dataset} has no split {split!r}: expected {known}{more}")
    options: dict[str, Any] = {"split": split} if split else {}
    if stretch:
        if not entry.stretches:
            able = ", ".join(other.name for other in DATASETS.values() if other.stretches)
            raise SeqpopeError(
                f"{dataset} is not in seconds, so that nothing can be stretched: --stretch is for {able}"
            )
        options["stretch"] = _factors(stretch)
    if not entry.intervals and (strata or fasta is not None):
        raise SeqpopeError(f"--strata and --fasta are for genomes, {dataset} is none: leave them out")
    if fasta is not None and source is not None:
        raise SeqpopeError("--fasta and --source are the same: give one of them")
    source = source if fasta is None else fasta
    if entry.intervals:
        options |= {"dataset": dataset, "strata": strata}
    if out is not None and data_folder != Path("data"):
        raise SeqpopeError(f"--out {out} takes the place of --data-folder {data_folder}: give one of them")
    folder = data_folder / dataset if out is None else out
    check_place(folder, dataset)
    import_module(entry.preparation).prepare(folder, source=source, force=force, **options)


def train(config: Any, resume: Path | None = None) -> None:
    """Train an encoding and its baseline twin, test both once, and write the report."""
    from seqpope.experiment import train as run
    from seqpope.model.positions import find_position

    for position in {config.position, config.baseline} - {"none"}:
        find_position(position)  # before minutes of preparation
    entry = find_dataset(config.dataset)
    places = (config.data_folder, config.data_folder / config.dataset)
    if entry.embedded and not any((folder / "manifest.json").is_file() for folder in places):
        prepare(config.dataset, data_folder=config.data_folder)
    run(config, resume=resume)


def evaluate(
    runs: list[Path],
    split: Literal["validation", "test", "train"] = "test",
    length: int | None = None,
    stride: int | None = None,
    lengths: str = "",
    stride_share: float | None = None,
    yarn: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_tokens: int = 32768,
    data_folder: Path | None = None,
    device: Device = "auto",
) -> None:
    """Score the best weights of runs on a split, every token once. Each read of the test split is logged.

    Args:
        runs: Folders of runs or of experiments.
        split: Which split.
        length: Tokens in a window; as in training's validation if not given.
        stride: Tokens that each window after a piece's first one scores.
        lengths: Windows of several lengths instead, such as 2048,4096,16384, to see what lies beyond the
            training's: NLL by length and by position, to lengths-SPLIT-2048-4096-16384.json or the like beside
            the run; what differs from windows side by side in fp32 is in the name too.
        stride_share: With --lengths, the stride as a share of each length, such as 0.5; windows side by side if
            neither it nor --stride is given.
        yarn: With --lengths, score RoPE and PoPE runs a second time through YaRN, without fine-tuning.
        precision: With --lengths, of the forward pass; bf16 is for long windows on a GPU.
        batch_tokens: With --lengths, about how many tokens are read at once; less takes less memory.
        data_folder: Folder of prepared data, or of the data set itself; the run's own if not given.
        device: Where to compute.
    """
    from seqpope.checkpoint import BEST

    found = [run for path in runs for run in ([path] if (path / BEST).exists() else _runs_in(path))]
    if lengths:
        if length is not None or (stride is not None and stride_share is not None):
            raise SeqpopeError(
                "--lengths takes the place of --length and goes with one of --stride and --stride-share"
            )
        options: dict[str, Any] = {
            "split": split,
            "device": device,
            "stride": stride,
            "yarn": yarn,
            "precision": precision,
        }
        options |= {"batch_tokens": batch_tokens, "stride_share": 1.0 if stride_share is None else stride_share}
        _evaluate_lengths(found, _numbers(lengths, "--lengths"), data_folder, options)
        return
    if yarn or stride_share is not None or precision != "fp32":
        raise SeqpopeError("--yarn, --stride-share and --precision go with --lengths 2048,4096 or the like")
    from seqpope.evaluate import evaluate_run
    from seqpope.results import IN_BITS

    for run in found:
        shown = Progress(f"{run.name}  {split}", "tokens")
        result = evaluate_run(
            run, data_folder, split=split, device=device, length=length, stride=stride, progress=shown
        )
        changed = "".join(
            f", {name}: {value['nats_per_token']:.4f}"
            for name, value in result["strata"].items()
            if value["tokens"]
        )
        in_bits = "".join(
            f" ({value['nats'] / math.log(2):.4f} bits/{unit} over {value['count']:.0f} {IN_BITS[unit]})"
            for unit, value in result["units"].items()
            if unit in IN_BITS
        )
        print(
            f"{run}  {split}  {result['nats_per_token']:.4f} nats/token over {result['tokens_scored']} tokens"
            f"{in_bits}{changed}"
        )
        for name, value in (result["references"] or {"baselines": {}})["baselines"].items():
            print(f"  {name}: {value['nats_per_token']:.4f} nats/token")


def _evaluate_lengths(
    runs: Sequence[Path], lengths: list[int], data_folder: Path | None, options: dict[str, Any]
) -> None:
    from seqpope.checkpoint import find_checkpoint, read_info
    from seqpope.evaluate import evaluate_lengths
    from seqpope.model.positions import find_position

    positions = [read_info(find_checkpoint(run)).position for run in runs]
    if options["yarn"] and not any(find_position(position).longer for position in positions):
        raise SeqpopeError(
            f"--yarn extends RoPE and PoPE, and these runs are of {', '.join(sorted(set(positions)))}"
        )
    for run in runs:
        bars: dict[tuple[str, int], Progress] = {}

        def shown(encoding: str, length: int, done: int, total: int, run: Path = run, bars: Any = bars) -> None:
            title = f"{run.name}  {options['split']}  {encoding} at {length}"
            bars.setdefault((encoding, length), Progress(title, "tokens"))(done, total)

        result = evaluate_lengths(run, lengths, data_folder, progress=shown, **options)
        print(f"{run}  {options['split']}, trained at {result['trained_length']}, nats/token:")
        for encoding, records in result["scores"].items():
            for record in records:
                own, same = record, record["same_targets"]
                print(
                    f"  {encoding:9}  {record['length']:6}  {_nats(own['whole'])}  second half "
                    f"{_nats(own['second_half'])}  over {own['whole']['tokens']} tokens of {own['documents']} "
                    f"pieces; same targets {_nats(same['whole'])}  second half {_nats(same['second_half'])}"
                )


def _nats(value: dict[str, Any]) -> str:
    return "none" if value["nats_per_token"] is None else f"{value['nats_per_token']:.4f}"


def _numbers(text: str, option: str) -> list[int]:
    """Whole numbers with commas between them."""
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise SeqpopeError(f"{option} takes whole numbers such as 2048,4096, it is {text!r}") from None


def _factors(text: str) -> list[float]:
    """Numbers with commas between them, one at least."""
    try:
        if factors := [float(word) for word in _words(text)]:
            return factors
    except ValueError:
        pass
    raise SeqpopeError(f"--stretch takes numbers such as 0.95,1.05, it is {text!r}")


def _runs_in(folder: Path) -> list[Path]:
    from seqpope.checkpoint import BEST

    found = sorted(path.parent for path in folder.glob(f"*/{BEST}"))
    if not found:
        raise SeqpopeError(f"no trained run in {folder}: expected a run's folder (with {BEST}) or an experiment's")
    return found


def compare(runs: list[Path], out: Path | None = None, lengths: str = "") -> None:
    """Put finished runs side by side: means, spread, paired differences and their intervals.

    Args:
        runs: Folders of runs or of experiments, all on the same data and protocol.
        out: Folder to write report.md, report.json and the figures to; only print if not given. If all runs
            were read in the same --lengths of the test split, and in no others, lengths.md, lengths.json and
            lengths.png are written too.
        lengths: Compare what `evaluate --lengths` wrote instead: the name of its files or the beginning, such as
            lengths-test; where that means several they are listed. What YaRN added to it is taken where there
            is some.
    """
    from seqpope.report import compare as run
    from seqpope.report import compare_lengths

    if lengths:
        print(compare_lengths(runs, out, lengths)["markdown"])
    else:
        print(run(runs, out)["markdown"])


def generate(
    out: Path,
    domain: str | None = None,
    checkpoint: Path | None = None,
    num: int = 1,
    seconds: float | None = None,
    bars: int | None = None,
    bases: int | None = None,
    prompt: str | None = None,
    prompt_seconds: float | None = None,
    prompt_bars: int = 0,
    keys: str = "",
    polyphony: int | None = None,
    given: Path | None = None,
    voices: str = "soprano",
    ranges: bool = False,
    no_parallels: bool = False,
    cadence: bool = False,
    no_rests: bool = False,
    gc: str | None = None,
    gc_window: int | None = None,
    forbid: str = "",
    open_frame: int | None = None,
    no_stop: bool = False,
    keep_n: bool = False,
    judge_prompt: bool = True,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    particles: int | None = None,
    context: int | None = None,
    formats: str = "",
    tempo: float = 80.0,
    merge_repeats: bool = True,
    soundfont: Path | None = None,
    device: Device = "auto",
) -> None:
    """Sample music or DNA from a model and write it, with a JSON file beside it that says how it was made.

    Args:
        out: Music: a file (.mid, .wav, .png, chorales also .musicxml), or a folder if more than one sample is
            drawn. DNA: a FASTA file (.fa) for all samples, or a folder with one for each.
        domain: What to sample, music or genome; if not given what the checkpoint was trained on, else music.
        checkpoint: A .safetensors file, a run's folder or an experiment's; the shipped model of chorales or, with
            --domain genome, of DNA if not given (chorales-rope names that of chorales' RoPE twin). What it was
            trained on says whether chorales, piano or DNA is drawn.
        num: How many samples.
        seconds: Piano: length of what is drawn, 60 if not given. Chorales: the same as bars at the tempo, rounded
            up to whole ones.
        bars: Chorales: length of what is drawn, in bars of 16 sixteenths; 16, or as long as the given score.
        bases: DNA: length of what is drawn; 3000.
        prompt: What to continue; it is part of the output. Chorales: MIDI or MusicXML in up to four voices. Piano:
            MIDI. DNA: a FASTA file of one sequence, or the bases themselves.
        prompt_seconds: Piano: use only so much of the prompt.
        prompt_bars: Chorales: use only so many bars of the prompt; 0 uses all.
        keys: Piano: range of the keys that are drawn, such as 36-84 or C2-C6; the prompt keeps its own.
        polyphony: Piano: a note is drawn only where fewer sound.
        given: Chorales: score of which some voices are kept while the model fills in the others.
        voices: Chorales: which voices of the given score are kept, such as soprano,bass.
        ranges: Chorales: every voice in its usual range (S 60-81, A 53-74, T 48-69, B 36-64).
        no_parallels: Chorales: no parallel fifths, octaves and unisons.
        cadence: Chorales: end on a dominant seventh and the tonic, in the key of what came before.
        no_rests: Chorales: voices that are not given never fall silent.
        gc: DNA: least and greatest share of G and C in the whole output, such as 0.4,0.6.
        gc_window: DNA: keep to that band in so many bases in a row too, everywhere.
        forbid: DNA: sites that must not occur on either strand, restriction enzymes or IUPAC sequences, such as
            EcoRI,GGATCC.
        open_frame: DNA: 0, 1 or 2; no stop codon in the reading frame that begins at that base.
        no_stop: DNA: no stop codon in any frame of the forward strand.
        keep_n: DNA: N may be drawn and may be in the prompt; only A, C, G and T if not given.
        judge_prompt: DNA: the prompt has to keep to the rules as well; false judges only what is drawn.
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the likeliest tokens that together reach this probability.
        min_p: Keep tokens at least so likely as this share of the likeliest.
        repetition_penalty: Above 1, tokens that are there already become less likely.
        seed: Sample i is drawn with seed + i, whatever is drawn beside it.
        batch_size: How many samples, or particles of samples, are drawn at once.
        particles: Draw each sample so many times side by side and go on with what fits given voices and rules
            best; 1 if nothing is given, else 16.
        context: Attend to at most so many tokens; all if not given.
        formats: Music: what to write of each sample beside, of mid, wav, png and musicxml, such as mid,png.
        tempo: Chorales: quarter notes a minute.
        merge_repeats: Chorales: write a pitch that is repeated from step to step as one held note.
        soundfont: Music: SoundFont for wav; the system's own if not given.
        device: Where to compute.
    """
    asked = dict(locals())
    kind = _kind_of(domain, checkpoint)
    _refuse_foreign(kind, asked)
    from seqpope.generate.draw import Draw
    from seqpope.sampling import SamplingConfig

    draw = Draw(
        num=num,
        seed=seed,
        batch_size=batch_size,
        particles=(1 if given is None else 16) if particles is None else particles,
        context=context,
        config=SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty),
        device=device,
        progress=Progress("sampling", GENERATORS[kind.name].unit),
    )
    for file, text in GENERATORS[kind.name].draw(draw, asked):
        print(f"{file}  {text}")


def _generate_chorales(draw: Any, asked: Mapping[str, Any]) -> list[tuple[Path, str]]:
    from seqpope.generate.chorales import ChoraleOutput, generate_chorales

    return generate_chorales(
        ChoraleOutput(
            asked["out"], _words(asked["formats"]), asked["soundfont"], asked["tempo"], asked["merge_repeats"]
        ),
        draw,
        prompt=None if asked["prompt"] is None else Path(asked["prompt"]),
        rules={name: asked[name] for name in ("ranges", "no_parallels", "cadence", "no_rests")},
        **{name: asked[name] for name in ("checkpoint", "bars", "seconds", "prompt_bars", "given", "voices")},
    )


def _generate_piano(draw: Any, asked: Mapping[str, Any]) -> list[tuple[Path, str]]:
    from seqpope.generate.piano import PianoOutput, generate_piano, parse_keys

    options = {name: asked[name] for name in ("checkpoint", "seconds", "prompt_seconds", "polyphony")}
    if asked["keys"]:
        options["keys"] = parse_keys(asked["keys"])
    return generate_piano(
        PianoOutput(asked["out"], _words(asked["formats"]), asked["soundfont"]),
        draw,
        prompt=None if asked["prompt"] is None else Path(asked["prompt"]),
        **options,
    )


def _generate_dna(draw: Any, asked: Mapping[str, Any]) -> list[tuple[Path, str]]:
    from seqpope.generate.dna import DnaOutput, generate_dna, make_rules

    rules = ("gc", "gc_window", "forbid", "open_frame", "no_stop", "keep_n", "judge_prompt")
    return generate_dna(
        DnaOutput(asked["out"]),
        draw,
        checkpoint=asked["checkpoint"],
        bases=3000 if asked["bases"] is None else asked["bases"],
        prompt=asked["prompt"],
        rules=make_rules(**{name: asked[name] for name in rules}),
    )


class Generator(NamedTuple):
    """What draws a kind of samples, and the options of `generate` that not all kinds have."""

    draw: Callable[[Any, Mapping[str, Any]], list[tuple[Path, str]]]
    options: tuple[str, ...]
    unit: str = "tokens"  # of progress


GENERATORS = {
    "chorales": Generator(
        _generate_chorales,
        (
            *(
                "bars",
                "seconds",
                "prompt_bars",
                "given",
                "voices",
                "ranges",
                "no_parallels",
                "cadence",
                "no_rests",
            ),
            *("formats", "tempo", "merge_repeats", "soundfont"),
        ),
    ),
    "piano": Generator(
        _generate_piano,
        ("seconds", "prompt_seconds", "keys", "polyphony", "formats", "soundfont"),
        unit="s of music",
    ),
    "dna": Generator(
        _generate_dna, ("bases", "gc", "gc_window", "forbid", "open_frame", "no_stop", "keep_n", "judge_prompt")
    ),
}


def _kind_of(domain: str | None, checkpoint: Path | None) -> Kind:
    """What is to be drawn: what a checkpoint's header says, or the domain's usual kind without one."""
    if domain is not None and domain not in DOMAINS:
        raise SeqpopeError(f"unknown domain {domain!r}: expected one of {', '.join(DOMAINS)}")
    if checkpoint is None:
        named = domain or "music"
        return find_kind(DOMAINS[named], named)
    from seqpope.checkpoint import find_checkpoint, read_info

    info = read_info(find_checkpoint(checkpoint))
    kind = find_kind(info.dataset, info.domain)
    if domain not in (None, kind.domain):
        raise SeqpopeError(
            f"{checkpoint} is a model of {kind.title} ({info.dataset}), not of --domain {domain}: leave the "
            "domain out, or give another checkpoint"
        )
    return kind


def _refuse_foreign(kind: Kind, asked: Mapping[str, Any]) -> None:
    """Raise SeqpopeError if an option is set that this kind of samples does not have."""
    parameters = signature(generate).parameters
    foreign = {
        name: other
        for other, generator in GENERATORS.items()
        for name in generator.options
        if name not in GENERATORS[kind.name].options and asked[name] != parameters[name].default
    }
    if foreign:
        words = [f"--{name.replace('_', '-')} (an option of {KINDS[of].title})" for name, of in foreign.items()]
        raise SeqpopeError(
            f"{kind.title} are to be drawn, which have no {', '.join(words)}: leave out what is not theirs, or "
            "name another --checkpoint or --domain"
        )


def harmonize(
    melody: Path,
    out: Path,
    checkpoint: Path | None = None,
    num: int = 1,
    ranges: bool = True,
    no_parallels: bool = True,
    cadence: bool = False,
    no_rests: bool = True,
    temperature: float = 0.8,
    particles: int = 32,
    greed: float = 1.0,
    seed: int = 0,
    formats: str = "",
    tempo: float = 80.0,
    soundfont: Path | None = None,
    device: Device = "auto",
) -> None:
    """Set a melody for four voices: it is the soprano, the model adds alto, tenor and bass.

    Args:
        melody: MIDI or MusicXML, in any key, on a grid of sixteenths; its highest voice is taken.
        out: A file (.mid, .musicxml, .wav or .png), or a folder if more than one is drawn.
        checkpoint: A .safetensors file, a run's folder or an experiment's; the shipped chorale model if not given,
            chorales-rope for its RoPE twin.
        num: How many harmonizations.
        ranges: Keep the added voices in their usual ranges.
        no_parallels: No parallel fifths, octaves and unisons.
        cadence: End on a dominant seventh and the tonic; the melody is left as it is.
        no_rests: The added voices never fall silent.
        temperature: Divides the logits; 0 always takes the likeliest token.
        particles: Harmonizations drawn side by side, so that the coming melody counts.
        greed: 0 draws what the model would write to the melody, 1 searches for the likeliest and takes it.
        seed: Harmonization i is drawn with seed + i.
        formats: What to write of each beside, of mid, musicxml, wav and png, such as mid,png.
        tempo: Quarter notes a minute.
        soundfont: SoundFont for wav; the system's own if not given.
        device: Where to compute.
    """
    from seqpope.generate.chorales import ChoraleOutput
    from seqpope.generate.chorales import harmonize as run
    from seqpope.generate.draw import Draw
    from seqpope.sampling import SamplingConfig

    files = run(
        melody,
        ChoraleOutput(out, _words(formats), soundfont, tempo),
        Draw(
            num=num,
            seed=seed,
            batch_size=64,
            particles=particles,
            greed=greed,
            config=SamplingConfig(temperature),
            device=device,
            progress=Progress("harmonizing", "tokens"),
        ),
        checkpoint=checkpoint,
        rules={"ranges": ranges, "no_parallels": no_parallels, "cadence": cadence, "no_rests": no_rests},
    )
    for file, text in files:
        print(f"{file}  {text}")


def examine(samples: list[Path], data: Path | None = None, out: Path | None = None) -> None:
    """Measure samples and see whether they copy what a model was trained on: chorales, piano or DNA.

    Args:
        samples: Scores (MIDI or MusicXML), performances (MIDI) or FASTA files, or folders of them.
        data: Music: prepared data, such as data/jsb or data/maestro; copies are looked for in its training split,
            and its test split stands beside for scale. DNA: a FASTA file of the training sequences,
            or a prepared genome such as data/genome.
        out: Folder to write examine.md and examine.json to; only print if not given.
    """
    from seqpope.examine import examine_files

    print(examine_files(samples, data, out))


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
    from seqpope.checkpoint import shipped

    checkpoint = checkpoint or shipped("genome")
    if vcf is not None:
        given = {"--bed": bed, "--region": region, "--all": all or None, "--stride": stride}
        given["--value"] = None if value == "nats" else value
        if foreign := [name for name, what in given.items() if what is not None]:
            raise SeqpopeError(f"--vcf scores variants, which have no {', '.join(foreign)}: leave that out")
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
        names=_words(names),
        bed=[Path(word) for word in _words(bed)],
        vcf=vcf,
        threshold=threshold,
        bits=unit == "bits",
        report=Progress("reading", "MB"),
    )
    print(f"{out}  {told}")


def reproduce(
    study: str,
    take: list[str] | None = None,
    budget: float | None = None,
    share: float = 1.0,
    seed: int = 0,
    seeds: int | None = None,
    arms: str | None = None,
    jobs: int = 1,
    out: Path | None = None,
    documents: Path = Path("benchmarks/results/reproduce"),
    data_folder: Path = Path("data"),
    device: Device = "auto",
) -> None:
    """Make one of the paper's tables or figures: train what is missing, test it, write JSON, table and picture.

    Args:
        study: Its name, or what several begin with; or `results`: one Markdown file of all documents.
        take: Finished runs that stand for an arm.
        budget: Minutes of training, for which every run is shortened alike; all steps if not given.
        share: Share of the recipes' steps to train, for work that is spread over several machines.
        seed: The first.
        seeds: Runs of each arm; as many as the study has if not given.
        arms: Those to train, by their labels or the beginnings of them, with semicolons between; none trains none
            and writes what is taken.
        jobs: Runs that train at a time, each in a process of its own, spread over the GPUs: two or three of a
            small model fill one.
        out: Folder in which one of the study's name is made, runs/reproduce if not given; the same command goes on
            there after Ctrl-C. For `results` the file, RESULTS.md if not given.
        documents: For `results`, the folder of the studies' JSON files.
        data_folder: Folder of prepared data.
        device: Where to compute.
    """
    from seqpope.reproduce.studies import arm_config, find_studies, meant

    if study == "results":
        from seqpope.reproduce.summary import write_results

        file = out or Path("RESULTS.md")
        write_results(documents, file)
        print(f"{file}  written from {documents}")
        return
    from seqpope.reproduce.running import check_numbers, run_study

    chosen, out = find_studies(study), out or Path("runs") / "reproduce"
    for one in chosen:
        check_numbers(budget, share, seed, one.seeds if seeds is None else seeds)
    # The option is not named `only`: torch.compile writes what follows a word `--only` into the programs that it
    # makes, as a benchmark's name, and a quotation mark in it breaks them.
    only = None if arms is None else [word.strip() for word in arms.split(";") if word.strip()]
    if only == []:
        raise SeqpopeError(f"--arms {arms!r} names none: expected labels with semicolons between, or none")
    if only == ["none"]:
        only = []
    if take and len(chosen) > 1:
        raise SeqpopeError(f"--take needs one study: {study} is {', '.join(one.name for one in chosen)}")
    trained = {label for one in chosen for begin in only or () for label in meant(one, begin)}
    taken = _taken(take or [], chosen[0], share, trained)
    for arm in (arm for one in chosen for arm in one.arms if only is None or arm.label in trained):
        entry = find_dataset(arm_config(arm).dataset)
        places = (data_folder, data_folder / entry.name)
        there = any((p / "manifest.json").is_file() for p in places)
        if arm.label not in taken and entry.embedded and not there:
            prepare(entry.name, data_folder=data_folder)
    for one in chosen:
        run_study(
            one,
            out,
            budget=None if budget is None else budget / len(chosen),
            share=share,
            seed=seed,
            seeds=seeds,
            only=only,
            taken=taken,
            jobs=jobs,
            data_folder=data_folder,
            device=device,
        )
        print((out / one.name / f"{one.name}.md").read_text())


def _taken(take: Sequence[str], study: Any, share: float, trained: Collection[str]) -> dict[str, list[Path]]:
    """Words of --take by the arm of a study that they stand for.

    Args:
        trained: labels of arms that are to be trained, which documents then do not stand for.
    """
    from seqpope.reproduce.rows import standing_for

    taken: dict[str, list[Path]] = {}
    documents = [
        words for words in take if words.endswith(".json") and ("=" not in words or Path(words).is_file())
    ]
    for words in take:
        label, _, paths = words.partition("=")
        if words in documents:
            continue
        if not label.strip() or not _words(paths):
            raise SeqpopeError(
                f"--take {words!r}: expected STUDY.json, or LABEL=FOLDER or LABEL=report.json, commas between more"
            )
        taken.setdefault(label.strip(), []).extend(Path(path) for path in _words(paths))
    named = set(taken)  # which take the place of what documents have
    for path in map(Path, documents):
        for label in standing_for(study, path, share):
            if label not in named and label not in trained:
                taken.setdefault(label, []).append(path)
    return taken


def inspect(
    runs: list[Path],
    split: Literal["validation", "train"] = "validation",
    data_folder: Path | None = None,
    out: Path | None = None,
    tokens: int = 32768,
    batch_tokens: int = 16384,
    device: Device = "auto",
) -> None:
    """Show what a model uses each frequency for: magnitudes by frequency, layer and head, and PoPE's delta.

    Args:
        runs: Folders of runs or of experiments, .safetensors files, or names of shipped models (chorales,
            chorales-rope, genome); the shipped chorale model if none is given. Twins come side by side, seeds of
            one recipe as their mean.
        split: Whose tokens are read. The test split is not offered: nothing here needs it.
        data_folder: Folder of prepared data, or of one data set; the run's own if not given.
        out: Folder to write inspect.json, inspect.md and the figures to; if not given `inspect` in the one
            folder that is inspected, else here.
        tokens: About how many tokens to read: windows of the training length, evenly spread over the split.
        batch_tokens: About how many of them at once; less takes less memory.
        device: Where to compute.
    """
    from seqpope.inspection import beyond, inspect_models, inspect_to

    result = inspect_models(
        runs,
        data_folder,
        split=split,
        tokens=tokens,
        device=device,
        batch_tokens=batch_tokens,
        progress=lambda name: Progress(f"{name}  {split}", "tokens"),
    )
    if out is None:
        out = runs[0] / "inspect" if len(runs) == 1 and runs[0].is_dir() else Path("inspect")
    files = inspect_to(out, result)
    for label, group in result["groups"].items():
        parts = []
        for name in ("query", "key", "product"):
            values = beyond(group, name)
            parts.append(f"{name} {100 * sum(values) / len(values):.1f}%")
        print(
            f"{label} ({', '.join(group['runs'])}): at wavelengths over the training window of "
            f"{group['trained_length']} tokens lies of the magnitude: {', '.join(parts)}"
        )
    print(f"{files[0].parent}  {', '.join(file.name for file in files)}")


def app(
    host: str = "127.0.0.1",
    port: int = 8642,
    runs: Path = Path("runs"),
    data_folder: Path = Path("data"),
    genes: Path | None = None,
) -> None:
    """Open the studio: a page on this machine to hear, see and probe models of music and DNA.

    Args:
        host: Address to listen at. Beyond this machine's own a token is asked for, which is part of the address
            that is shown.
        port: Port to listen at; 0 takes any that is free.
        runs: Folder of runs and experiments; their models and curves are shown beside the shipped models.
        data_folder: Folder of prepared data; its genomes can be looked at.
        genes: BED file of genes, so that a locus can be found by name.
    """
    import secrets

    from seqpope.studio.server import LOCAL, Settings, run

    local = host in LOCAL
    settings = Settings(
        runs,
        data_folder,
        genes,
        hosts=LOCAL if local else (*LOCAL, host, *_names_of_this_machine()),
        token=None if local else secrets.token_urlsafe(24),
    )
    run(settings, host, port, lambda text: print(text, flush=True))


def _names_of_this_machine() -> tuple[str, ...]:
    """By which a browser elsewhere may call it."""
    import socket

    name = socket.gethostname()
    try:
        return (name, socket.getfqdn(), *{str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    except OSError:
        return (name,)


VERBS: dict[str, Callable[..., None]] = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "generate": generate,
    "harmonize": harmonize,
    "examine": examine,
    "score": score,
    "track": track,
    "reproduce": reproduce,
    "inspect": inspect,
    "app": app,
}


def _score_variants(asked: dict[str, Any]) -> None:
    from seqpope.score.annotate import Request, score_variants

    result = score_variants(Request(**asked))
    if result is not None:
        left = sum(some["count"] for some in result["alleles_not_scored"].values())
        print(
            f"{asked['out']}  {result['records']} records, {result['alleles_scored']} alleles scored, {left} not"
        )


def _words(text: str) -> tuple[str, ...]:
    """Words with commas between them."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def build_parser() -> Any:
    """The argument parser with all verbs (imports jsonargparse, nothing of torch)."""
    from jsonargparse import ArgumentParser

    from seqpope.config import TrainConfig

    parser = ArgumentParser(
        prog="seqpope",
        description="Symbolic music and genomes with PoPE, against its RoPE twin. Data sets: "
        + "; ".join(f"{d.name}: {d.title}" for d in DATASETS.values()),
        version=seqpope.__version__,
    )
    verbs = parser.add_subcommands(required=True, metavar="VERB", dest="verb")
    for name, function in VERBS.items():
        verb = ArgumentParser(description=(function.__doc__ or "").split("\n\n")[0])
        if name == "train":
            verb.add_argument("--config", action="config", help="YAML file or name of a preset to start from.")
            verb.add_argument("--resume", type=Path | None, help="Folder of an experiment to go on with.")
            verb.add_class_arguments(TrainConfig, as_positional=False)
        else:
            listed = name in ("evaluate", "compare")
            skipped: set[str | int] = set() if name == "app" else {"runs", "melody", "samples", "scores"}
            if name == "reproduce":
                from seqpope.reproduce.studies import STUDIES

                skipped |= {"study", "take"}
                named = "; ".join(f"{study.name}: {study.title}" for study in STUDIES.values())
                verb.add_argument("study", type=str, help=f"{named}; results: one Markdown file of all documents.")
                verb.add_argument(
                    "--take",
                    action="append",
                    type=str,
                    help="LABEL=FOLDER: finished runs, or a report.json, that stand for an arm; or STUDY.json: a "
                    "document of this study or one that trained the same, for all arms in it that neither --take "
                    "nor --arms names. May be repeated; one document an arm.",
                )
            if name == "examine":
                verb.add_argument(
                    "samples", nargs="+", type=Path, help="Scores or FASTA files, or folders of them."
                )
            if name == "track":
                verb.add_argument("scores", nargs="+", type=Path, help="Scores as bedGraph or bigWig.")
            if name == "harmonize":
                verb.add_argument("melody", type=Path, help="The melody: MIDI or MusicXML.")
            if listed:  # one word each, where jsonargparse would want a list in brackets
                verb.add_argument("runs", nargs="+", type=Path, help="Folders of runs or of experiments.")
            if name == "inspect":
                text = (
                    "Folders of runs or of experiments, .safetensors files, or names of shipped models; "
                    "chorales if none is given."
                )
                verb.add_argument("runs", nargs="*", type=Path, default=[], help=text)
            verb.add_function_arguments(function, as_positional=name == "prepare", skip=skipped)
        verbs.add_subcommand(name, verb, help=(function.__doc__ or "").split("\n")[0])
    return parser


def _normalize(arguments: Sequence[str]) -> list[str]:
    """Dashes in options to underscores, bare switches to `true`; for `train`, what to start from first."""
    function = VERBS.get(arguments[0]) if arguments else None
    switches = {name for name, kind in (function.__annotations__ if function else {}).items() if kind == "bool"}
    words = []
    for place, word in enumerate(arguments):
        words.append(word)
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
            option = option.replace("-", "_")
            words[-1] = "--" + option + equals + value
            following = arguments[place + 1 : place + 2]
            if option in switches and not equals and following not in (["true"], ["false"]):
                words.append("true")
    return ["train", *_start_from(words[1:])] if words[:1] == ["train"] else words


def _start_from(words: list[str]) -> list[str]:
    """Put --config first, so that everything else overrides it: a file, a preset, or the data set's preset."""
    from seqpope.presets import find_config

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--config", "--resume", "--domain", "--dataset"):
        first.add_argument(option)
    chosen, rest = first.parse_known_args(words)
    if chosen.resume is not None:
        if (
            chosen.config
            or chosen.dataset
            or chosen.domain
            or any(w.startswith("--") and w[:8] != "--device" for w in rest)
        ):
            raise SeqpopeError(
                "--resume goes on with an experiment's own configuration: only --device may be given with it"
            )
        file = Path(chosen.resume) / "config.yaml"
        if not file.is_file():
            raise SeqpopeError(f"{chosen.resume} is not an experiment's folder: expected config.yaml in it")
        # The folder is where the user says it is now, not where it was made.
        return ["--config", str(file), "--resume", chosen.resume, *rest]
    domain = chosen.domain or "music"
    if domain not in DOMAINS:
        raise SeqpopeError(f"unknown domain {domain!r}: expected one of {', '.join(DOMAINS)}")
    dataset = find_dataset(chosen.dataset or DOMAINS[domain])
    config = find_config(chosen.config or dataset.preset)
    named = ["--dataset", chosen.dataset] if chosen.dataset else []
    return ["--config", str(config), *(["--domain", chosen.domain] if chosen.domain else []), *named, *rest]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 1 an error told in words, 2 wrong usage, 130 interrupted."""
    try:
        words = _normalize(sys.argv[1:] if arguments is None else arguments)
        parser = build_parser()
        if not words:
            parser.print_help()
            return 2
        parsed = parser.parse_args(words)
        verb = parsed.verb
        try:
            options = parser.instantiate(parsed)[verb]
        except (TypeError, AttributeError) as error:
            raise SeqpopeError(
                f"the configuration cannot be used ({error}): compare it with what --print-config prints"
            ) from error
        if verb == "train":
            from seqpope.config import TrainConfig

            values = {k: v for k, v in vars(options).items() if k not in ("config", "resume")}
            train(TrainConfig(**values), resume=options.resume)
        else:
            VERBS[verb](**options.as_dict())  # not vars(): a namespace has a function of the name `keys`
        return 0
    except SeqpopeError as error:
        print(f"seqpope: {error}", file=sys.stderr)
        return 130 if type(error).__name__ == "Interrupted" else 1
    except KeyboardInterrupt:
        print("seqpope: interrupted", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        # torch has an error of its own for a full GPU and none for a full machine.
        if isinstance(error, MemoryError) or "memory" in str(error):
            print(
                f"seqpope: this does not fit the memory ({str(error).splitlines()[0] if str(error) else 'full'}): "
                "lower data.batch_size, data.length, model.width or model.layers, score with less --batch-tokens "
                "or --window, or draw fewer samples or particles at once",
                file=sys.stderr,
            )
            return 1
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = "the disk is full: free some space; finished work is kept" if error.errno == errno.ENOSPC else ""
        print(f"seqpope: {what or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
