"""Time the scoring of DNA on a GPU: bases/s of PoPE against RoPE, a model of the paper's size with random weights.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --eager --precision fp32
    python benchmarks/scoring.py --tiny --device cpu        # only whether the script runs: its numbers say nothing

A turn is what `seqpope score --all` does with a contig of random bases, but for its files: rows are planned and
tokenized, read on both strands in all six phases, and every base's mean and spread come back to the host. Windows
are of 1,000 tokens (6 kb), and three strides say how much of each is context:

    1000   windows side by side: the cheapest, and the first tokens of each have next to no context
     916   at least 84 tokens (504 bases) of context for every token beyond a contig's first window
     500   at least 500 tokens (3 kb): the default of `seqpope score`

The encodings take turns (--rounds) in one process, warmed up before. "Bases/s" are bases of one strand in one
phase; a genome read in all twelve passes takes twelve times as long. Before anything is timed, the very model
that is timed scores a piece that the same weights score in fp32, uncompiled, too: where the means differ by more
than 0.01 nats a base, nothing is claimed.

Results: scoring.json and scoring.md in --out, written anew after every turn. What fails is recorded with its
reason; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqpope.checkpoint import CheckpointInfo
from seqpope.domains.genome.sequences import ArrayGenome
from seqpope.domains.genome.tokenizer import SixMerTokenizer
from seqpope.files import write_text
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer
from seqpope.provenance import choose_device, provenance
from seqpope.score.likelihood import Likelihood
from seqpope.score.regions import Reading, Span, score_units

ROOT = Path(__file__).resolve().parent.parent
POSITIONS = ("pope", "rope")
PAPER = ModelConfig(1024, 16, 16)
TINY = ModelConfig(16, 1, 2)
UNIT = 240_000  # bases scored in one go, as `seqpope score` does
LIMIT = 0.01  # nats a base that the timed model may differ by at the mean
GATE = 12_000  # bases compared


def make_model(position: str, config: ModelConfig, window: int) -> tuple[Transformer, CheckpointInfo]:
    """A model with random weights, the same for both encodings but for what is the encoding's own."""
    tokenizer = SixMerTokenizer()
    torch.manual_seed(0)
    model = Transformer(tokenizer.vocabulary_size, position, config)
    info = CheckpointInfo(
        domain="genome",
        dataset="random",
        position=position,
        vocabulary_size=tokenizer.vocabulary_size,
        padding_id=tokenizer.padding_id,
        length=window,
        model=asdict(config),
        tokenizer=tokenizer.specification,
        fingerprint=tokenizer.fingerprint,
    )
    return model, info


class Trial:
    """One encoding's model, which scores a contig of random bases."""

    def __init__(self, position: str, options: argparse.Namespace) -> None:
        self.options, self.cuda = options, options.device == "cuda"
        config = TINY if options.tiny else PAPER
        self.model, info = make_model(position, config, options.window)
        self.scorers = {
            precision: Likelihood(
                self.model,
                info,
                device=options.device,
                precision=precision,
                batch_tokens=options.batch_tokens,
                compile=options.compile and precision == options.precision,
            )
            for precision in {"fp32", options.precision}
        }
        if options.compile and options.precision == "fp32":  # to compare with
            self.scorers["fp32, eager"] = Likelihood(
                self.model, info, device=options.device, batch_tokens=options.batch_tokens
            )
        bases = np.random.default_rng(0).integers(1, 5, options.bases).astype(np.uint8)
        self.genome = ArrayGenome({"contig": bases})

    def score(self, name: str, stride: int, bases: int) -> np.ndarray:
        """Mean nats of the contig's first bases, as a region of it."""
        reading = Reading(6, self.options.window, stride)
        borders = [*range(0, bases, UNIT), bases]
        units = [[Span("contig", np.array([edges]))] for edges in itertools.pairwise(borders)]
        found = []
        for spans, _ in score_units(self.scorers[name], self.genome, reading, units):
            for span in spans:
                found.append(span.mean())
                span.spread()
        return np.concatenate(found)

    def gate(self) -> dict[str, float]:
        """How far what is timed is from the same weights in fp32, uncompiled, in nats a base."""
        bases, stride = min(GATE, self.options.bases), self.options.window // 2
        exact = self.score("fp32, eager" if "fp32, eager" in self.scorers else "fp32", stride, bases)
        timed = self.score(self.options.precision, stride, bases)
        if not np.isfinite(timed).all():
            raise ArithmeticError("a base has no finite value: the time of what goes wrong says nothing")
        away = np.abs(timed - exact)
        return {
            "of_means": float(abs(timed.mean() - exact.mean())),
            "mean": float(away.mean()),
            "most": float(away.max()),
        }

    def turn(self, stride: int) -> dict[str, float]:
        """Seconds and peak bytes of memory of one scoring of the whole contig."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        values = self.score(self.options.precision, stride, self.options.bases)
        result = {"seconds": time.perf_counter() - began, "nats_per_base": float(values.mean())}
        if self.cuda:
            result["peak"] = torch.cuda.max_memory_allocated()
        return result


def summarise(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Bases/s of each encoding at a stride, and their ratio, from the turns so far."""
    passes = 12
    for entry in found["encodings"].values():
        seconds = statistics.median(one["seconds"] for one in entry["rounds"])
        entry["bases_per_second"] = passes * options.bases / seconds
        entry["hours_per_gigabase_in_12_passes"] = passes * 1e9 / entry["bases_per_second"] / 3600
        entry["peak_gib"] = max(one.get("peak", 0) for one in entry["rounds"]) / 2**30
    if len(found["encodings"]) == len(POSITIONS):
        pope, rope = (found["encodings"][position] for position in POSITIONS)
        found["pope_over_rope"] = {
            "time": rope["bases_per_second"] / pope["bases_per_second"],
            "memory": pope["peak_gib"] / rope["peak_gib"] if rope["peak_gib"] else None,
        }


def markdown(document: dict[str, Any]) -> str:
    """The document as a small table."""
    settings = document["settings"]
    lines = [
        f"# Scoring DNA, {document['device']}",
        "",
        f"Commit {document['commit']}, {document['date']}, torch {document['versions'].get('torch')}. "
        f"{settings['precision']}, {'compiled' if settings['compile'] else 'eager'}, windows of "
        f"{settings['window']} tokens, {settings['bases']:,} random bases in 12 passes a turn. Bases/s are of one "
        "pass.",
        *([] if document["claims"] else ["", "**A trial, or something failed: these numbers say nothing.**"]),
        "",
        "| stride | encoding | bases/s | hours a Gb, 12 passes | peak GiB | s a turn |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for stride, found in document["strides"].items():
        for position, entry in found["encodings"].items():
            turns = ", ".join(f"{one['seconds']:.2f}" for one in entry["rounds"])
            cells = [stride, position, f"{entry['bases_per_second']:,.0f}"]
            cells += [f"{entry['hours_per_gigabase_in_12_passes']:.2f}", f"{entry['peak_gib']:.2f}", turns]
            lines.append("| " + " | ".join(cells) + " |")
        if ratio := found.get("pope_over_rope"):
            memory = f", memory {ratio['memory']:.3f}" if ratio["memory"] else ""
            notes.append(f"- stride {stride}, PoPE / RoPE: time {ratio['time']:.3f}{memory}")
    for position, gate in document["gate"].items():
        notes.append(
            f"- {position} against fp32, uncompiled, nats: means {gate['of_means']:.2g}, bases {gate['mean']:.2g} "
            f"at the mean and {gate['most']:.2g} at most"
        )
    notes += [f"- {one['position']} failed: {one['reason']}" for one in document["failures"]]
    return "\n".join([*lines, "", *notes]) + "\n"


def save(document: dict[str, Any], out: Path) -> None:
    """Write scoring.json and scoring.md."""
    write_text(out / "scoring.json", json.dumps(document, indent=1) + "\n")
    write_text(out / "scoring.md", markdown(document))


def measure(document: dict[str, Any], options: argparse.Namespace) -> None:
    """Both encodings at every stride, into the document, which is saved after every turn."""
    trials: dict[str, Trial] = {}

    def failed(position: str, error: Exception) -> None:
        traceback.print_exc()
        trials.pop(position, None)
        reason = " ".join(f"{type(error).__name__}: {error}".replace(str(ROOT), ".").split())[:600]
        document["failures"].append({"position": position, "reason": reason})
        save(document, options.out)

    for position in POSITIONS:
        try:
            trials[position] = Trial(position, options)
            document["gate"][position] = gate = trials[position].gate()
            if gate["of_means"] > LIMIT:
                raise ArithmeticError(
                    f"the timed model is {gate['of_means']:.3g} nats a base off, {LIMIT} allowed"
                )
        except Exception as error:
            failed(position, error)
    for stride in options.strides:
        found = document["strides"][str(stride)] = {"encodings": {}}
        for position, trial in list(trials.items()):
            try:
                trial.score(options.precision, stride, min(UNIT, options.bases))  # warm: shapes of this stride
            except Exception as error:
                failed(position, error)
        for _ in range(options.rounds):
            for position, trial in list(trials.items()):
                try:
                    result = trial.turn(stride)
                except Exception as error:
                    failed(position, error)
                    continue
                found["encodings"].setdefault(position, {"rounds": []})["rounds"].append(result)
                summarise(found, options)
                save(document, options.out)


def main(words: list[str] | None = None) -> None:
    """Read the options, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    parser.add_argument("--commit", help="where there is no git repository")
    parser.add_argument("--bases", type=int, default=4 * UNIT, help="of the contig, scored 12 times a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each encoding and stride")
    parser.add_argument("--batch-tokens", type=int, default=64_000, help="tokens read at once")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--eager", action="store_false", dest="compile", help="do not compile (default: on a GPU)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script: claims nothing")
    options = parser.parse_args(words)
    if options.device == "cpu" and not options.tiny:
        parser.error("on a CPU only --tiny runs: a model of the paper's size is for a GPU")
    choose_device(options.device)
    options.compile = options.compile and options.device == "cuda"
    options.window, options.strides = 1000, (1000, 916, 500)
    if options.tiny:
        options.window, options.strides, options.bases = 20, (20, 15, 10), min(options.bases, 3000)
        options.batch_tokens = 200
    document = provenance(options.device)
    document["commit"] = options.commit or document["commit"]
    document |= {
        "cuda": torch.version.cuda,
        "claims": options.device == "cuda" and not options.tiny,
        "settings": {name: value for name, value in vars(options).items() if name not in ("out", "commit")},
        "model": asdict(TINY if options.tiny else PAPER),
        "gate": {},
        "strides": {},
        "failures": [],
    }
    measure(document, options)
    document["claims"] = document["claims"] and not document["failures"]
    save(document, options.out)
    print((options.out / "scoring.md").read_text(), flush=True)
    raise SystemExit(1 if document["failures"] else 0)


if __name__ == "__main__":
    main()
