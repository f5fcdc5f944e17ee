"""Data, training and test: `prepare`, `train`, `evaluate`, `compare`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from seqpope.commands.options import Device, factors, numbers
from seqpope.domains.base import DATASETS, find_dataset
from seqpope.errors import SeqpopeError
from seqpope.progress import Progress


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
        options["stretch"] = factors(stretch)
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
        _evaluate_lengths(found, numbers(lengths, "--lengths"), data_folder, options)
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
