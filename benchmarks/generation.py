"""How fast samples are drawn: tokens/s with and without the cache, PoPE beside RoPE, and a chorale of 16 bars.

    python benchmarks/generation.py                          the shipped model; a small model of each encoding
    python benchmarks/generation.py --preset maestro         384 wide, 6 layers, as for MAESTRO, random weights
    python benchmarks/generation.py --constrained 1000       and so many chorales under each kind of rule, all
    checked

    python benchmarks/generation.py --preset maestro --length 2048 --batch 1 256 --sampled 2048     on a GPU

    python benchmarks/generation.py --constrained 1000 --checkpoint RUN     what that model draws: DNA, judged by
    Biopython; piano performances, judged by what pretty_midi reads

"Recomputed" runs the model over everything for each token, as one would without a cache; it is timed on the last
tokens of the length. The encodings take turns. Result: generation.json and generation.md in --out,
generation-maestro.* for that preset, generation-genome.* for DNA, generation-(data set)-rules.* for performances.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import torch
from Bio import Restriction, SeqIO
from Bio.Seq import Seq
from Bio.SeqUtils import gc_fraction, nt_search

from seqpope.checkpoint import find_checkpoint, read_info
from seqpope.decoding import Decoder
from seqpope.domains.base import find_kind
from seqpope.domains.music.chorales.codec import read_score
from seqpope.domains.music.chorales.constraints import FINAL, runs_parallel
from seqpope.domains.music.chorales.metrics import RANGES
from seqpope.domains.music.piano.codec import Performance, write_midi
from seqpope.files import write_text
from seqpope.generate.chorales import ChoraleOutput, draw_chorales, generate_chorales, load_model
from seqpope.generate.dna import DnaOutput, generate_dna, make_rules
from seqpope.generate.draw import Draw
from seqpope.generate.piano import PianoOutput, generate_piano
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer
from seqpope.provenance import choose_device, provenance
from seqpope.sampling import sample

ROOT = Path(__file__).resolve().parent.parent
PRESETS = {"chorales": (ModelConfig(256, 6, 8), 90), "maestro": (ModelConfig(384, 6, 8), 328)}
NOTHING = torch.zeros(0, dtype=torch.long)


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@torch.inference_mode()
def time_recomputed(model: Transformer, length: int, device: str, steps: int) -> float:
    """Seconds a token when the whole sequence is read again for each."""
    ids = torch.zeros(1, length, dtype=torch.long, device=device)
    model(ids[:, :-1], last_only=True)
    synchronize(device)
    begun = time.perf_counter()
    for back in range(steps, 0, -1):
        model(ids[:, : length - back + 1], last_only=True)
    synchronize(device)
    return (time.perf_counter() - begun) / steps


@torch.inference_mode()
def time_cached(model: Transformer, length: int, batch: int, device: str, steps: int) -> float:
    """Seconds a token of each sequence in a batch, on the way to that length, the model alone."""
    decoder = Decoder(model, batch, length + 1)
    read = max(1, length - steps - 2)
    decoder.read(torch.zeros(batch, read, dtype=torch.long))
    one = torch.zeros(batch, dtype=torch.long, device=device)
    for _ in range(2):  # the second records the graph on a GPU
        decoder.step(one)
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(steps):
        decoder.step(one)
    synchronize(device)
    return (time.perf_counter() - begun) / steps


def time_samples(model: Transformer, count: int, batch: int, device: str) -> float:
    """Seconds a token of each sequence, from nothing to `count` tokens, with all that sampling does."""
    begun = time.perf_counter()
    sample(model, NOTHING, count, seeds=list(range(batch)), padding_id=0)
    synchronize(device)
    return (time.perf_counter() - begun) / count


def constrained(number: int, bars: int) -> dict[str, Any]:
    """So many chorales under each kind of rule: written, read back, checked; violations and failures counted."""
    generator = np.random.default_rng(0)
    melody = 60 + np.cumsum(generator.integers(-2, 3, 4 * bars)) % 20
    given = np.full((16 * bars, 4), -1)
    given[:, 0] = np.repeat(melody, 4)
    kinds: dict[str, dict[str, Any]] = {
        "ranges": {"rules": {"ranges": True, "no_rests": True}},
        "no parallels": {"rules": {"no_parallels": True, "ranges": True}},
        "cadence": {"rules": {"cadence": True, "no_parallels": True, "no_rests": True, "ranges": True}},
        "given soprano": {"given": True, "rules": {"no_parallels": True, "no_rests": True, "ranges": True}},
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        score = Path(folder) / "given.mid"
        from seqpope.domains.music.chorales.codec import Chorale, write_midi

        write_midi(Chorale(given.astype(np.int16)), score)
        for name, options in kinds.items():
            begun, violations, unread = time.perf_counter(), 0, 0
            more = {"given": score, "voices": "soprano"} if options.get("given") else {"bars": bars}
            files = generate_chorales(
                ChoraleOutput(Path(folder) / name.replace(" ", "-"), ("musicxml",) if name == "cadence" else ()),
                Draw(num=number, batch_size=64),
                rules=options["rules"],
                **more,
            )
            for file, _ in files:
                try:
                    grid = read_score(file).pitches.astype(int)
                    if name == "cadence":
                        other = read_score(file.with_suffix(".musicxml")).pitches
                        unread += not np.array_equal(grid, other)
                except Exception as error:
                    unread += 1
                    print(f"{file}: {error}")
                    continue
                violations += broken(grid, options["rules"], given if options.get("given") else None)
            found[name] = {
                "samples": len(files),
                "violations": violations,
                "not_read_back": unread,
                "seconds": round(time.perf_counter() - begun, 1),
            }
            print(name, found[name], flush=True)
    return {"bars": bars, "kinds": found}


def broken(grid: np.ndarray, rules: dict[str, bool], given: np.ndarray | None) -> int:
    """Whether a chorale breaks a rule: 1 or 0."""
    free = grid[:, 1:] if given is not None else grid
    ranges = RANGES[1:] if given is not None else RANGES
    if rules.get("no_rests") and (free < 0).any():
        return 1
    if any(((v >= 0) & ((v < low) | (v > high))).any() for v, (low, high) in zip(free.T, ranges, strict=True)):
        return 1
    if rules.get("no_parallels") and any(runs_parallel(a, b) for a, b in itertools.pairwise(grid.tolist())):
        return 1
    if given is not None and not np.array_equal(grid[:, 0], given[:, 0]):
        return 1
    return int(bool(rules.get("cadence")) and not (grid[-FINAL:] == grid[-1]).all())


ENZYMES = ("EcoRI", "BamHI", "HindIII", "BsaI", "BsmBI", "NotI")
DNA_KINDS: dict[str, dict[str, Any]] = {
    "letters alone": {},
    "sites": {"forbid": ",".join(ENZYMES)},
    "sites with codes": {"forbid": "BglI,GCNNGC,CCWGG"},
    "GC": {"gc": "0.45,0.5"},
    "GC of windows of 50": {"gc": "0.4,0.6", "gc_window": 50},
    "open frame": {"open_frame": 1},
    "no stop": {"no_stop": True},
    "all": {"gc": "0.4,0.6", "gc_window": 50, "forbid": ",".join(ENZYMES), "open_frame": 1},
    "all, particles": {"gc": "0.4,0.6", "gc_window": 50, "forbid": ",".join(ENZYMES), "open_frame": 1},
    "drawn bases alone": {"forbid": ",".join(ENZYMES), "no_stop": True, "judge_prompt": False},
}
DNA_PROMPTS = ("", "GCA", "GCAGCAATTCAGAAGGAATT", "GGTCTCAGAATTCATAGGTC")  # the last holds sites and a stop codon


def constrained_dna(checkpoint: Path, number: int, bases: int) -> dict[str, Any]:
    """So many sequences under each kind of rule, after prompts by turns: read and judged by Biopython, counted."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in DNA_KINDS.items():
            begun, violations, unread, drawn, nats = time.perf_counter(), 0, 0, 0, 0.0
            prompts = DNA_PROMPTS if not options.get("judge_prompt", True) else DNA_PROMPTS[:3]
            for turn, prompt in enumerate(prompts):
                share = number // len(prompts) + (turn < number % len(prompts))
                if not share:
                    continue
                particles = 4 if "particles" in name else 1
                length = bases + turn  # no multiple of six alone
                file = Path(folder) / f"{name.replace(' ', '-')}-{turn}.fa"
                generate_dna(
                    DnaOutput(file),
                    Draw(num=share, seed=1000 * turn, batch_size=64, particles=particles),
                    checkpoint=checkpoint,
                    bases=length,
                    prompt=prompt or None,
                    rules=make_rules(**options),
                )
                sidecar = json.loads(file.with_suffix(".json").read_text())
                nats += sum(own["nats_per_base"] for own in sidecar.get("samples", [sidecar]))
                sequences = [str(record.seq) for record in SeqIO.parse(file, "fasta")]
                drawn += len(sequences)
                unread += share - len(sequences)
                for text in sequences:
                    right = text.startswith(prompt) and len(text) == len(prompt) + length
                    violations += not right or dna_broken(text, len(prompt), options)
            found[name] = {
                "samples": drawn,
                "violations": violations,
                "not_read_back": unread,
                "nats_per_base": round(nats / max(1, drawn), 4),
                "seconds": round(time.perf_counter() - begun, 1),
            }
            print(name, found[name], flush=True)
    return {"bases": bases, "kinds": found}


def dna_broken(text: str, prompt: int, options: dict[str, Any]) -> bool:
    """Whether a sequence breaks a rule, by Biopython and plain search, not by the constraint's own code."""
    first = 0 if options.get("judge_prompt", True) else prompt
    if not set(text) <= set("ACGT"):
        return True
    for word in filter(None, options.get("forbid", "").split(",")):
        site = getattr(Restriction, word).site if hasattr(Restriction, word) else word
        for strand in {site, str(Seq(site).reverse_complement())}:
            # nt_search gives the pattern first, then where it lies.
            if any(place + len(site) > first for place in nt_search(text, strand)[1:]):
                return True
        if hasattr(Restriction, word) and first == 0 and getattr(Restriction, word).search(Seq(text)):
            return True
    band = tuple(map(float, options["gc"].split(","))) if "gc" in options else (0.0, 1.0)
    window = options.get("gc_window", len(text))
    shares = [gc_fraction(text[i : i + window]) for i in range(len(text) - window + 1)]
    if not all(band[0] <= share <= band[1] for share in [*shares, gc_fraction(text)]):
        return True
    frames = {0, 1, 2} if options.get("no_stop") else {options[k] for k in ("open_frame",) if k in options}
    start = max(0, first - 2)  # a stop codon counts as soon as one of its bases is drawn
    for frame in frames:
        begin = frame if options.get("no_stop") is None else start + frame
        codons = text[begin : begin + (len(text) - begin) // 3 * 3]
        if "*" in Seq(codons).translate():
            return True
    return False


PIANO_KINDS: dict[str, dict[str, Any]] = {
    "grammar alone": {},
    "keys": {"keys": (55, 79)},
    "one key": {"keys": (60, 60)},
    "polyphony": {"polyphony": 3},
    "keys and polyphony": {"keys": (48, 72), "polyphony": 2},
    "one key, one note": {"keys": (60, 60), "polyphony": 1},
    "continuation": {"prompt": True},
    "continuation, keys and polyphony": {"keys": (48, 72), "polyphony": 2, "prompt": True},
}
PROMPTS = 4
SECONDS_READ, EARLY = 3.0, 0.001


def make_prompt(number: int) -> Performance:
    """A performance with pedal, chords and repeated keys, in which notes sound where it is cut."""
    random = np.random.default_rng(number)
    onset = np.sort(random.uniform(0, 6, 20 * (number + 1)))
    parts = (random.uniform(0.05, 2, len(onset)), random.integers(30, 90, len(onset)))
    pedal = [] if number == 0 else [[0.5, 1.5], [2.5, 4.0]]
    return Performance(onset, *parts, random.integers(20, 120, len(onset)), np.reshape(pedal, (-1, 2)))


def constrained_piano(checkpoint: Path, number: int, seconds: float) -> dict[str, Any]:
    """So many performances under each kind of rule: what pretty_midi reads is checked; violations counted."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        prompts = [Path(folder) / f"prompt-{turn}.mid" for turn in range(PROMPTS)]
        for turn, file in enumerate(prompts):
            write_midi(make_prompt(turn), file)
        for name, rules in PIANO_KINDS.items():
            begun, notes, nats, broken_rules, unread, drawn = time.perf_counter(), 0, 0.0, [], 0, 0
            silent = 0
            options = {key: value for key, value in rules.items() if key != "prompt"}
            turns: list[Path | None] = list(prompts) if "prompt" in rules else [None]
            for turn, prompt in enumerate(turns):
                share = number // len(turns) + (turn < number % len(turns))
                if not share:
                    continue
                files = generate_piano(
                    PianoOutput(Path(folder) / f"{name.replace(' ', '-')}-{turn}"),
                    Draw(num=share, seed=1000 * turn, batch_size=64),
                    checkpoint=checkpoint,
                    seconds=seconds,
                    prompt=prompt,
                    prompt_seconds=None if prompt is None else SECONDS_READ,
                    **options,
                )
                for file, _ in files:
                    drawn += 1
                    told = json.loads(file.with_suffix(".json").read_text())
                    notes += told["notes"]
                    nats += told["nats_per_token"] * told["tokens"]
                    silent += told["notes"] == 0
                    try:
                        broken_rules += broken_piano(file, prompt, told["notes"], seconds, **options)
                    except Exception as error:
                        unread += 1
                        print(f"{file}: {error}")
            found[name] = {
                "samples": drawn,
                "violations": len(broken_rules),
                "not_read_back": unread,
                "notes": notes,
                "without_notes": silent,
                "nats_per_note": round(nats / max(1, notes), 3),
                "seconds": round(time.perf_counter() - begun, 1),
            }
            print(name, found[name], *broken_rules[:5], flush=True)
    return {"seconds": seconds, "kinds": found}


def broken_piano(
    file: Path,
    prompt: Path | None,
    told: int,
    seconds: float,
    keys: tuple[int, int] = (21, 108),
    polyphony: int | None = None,
) -> list[str]:
    """What a performance breaks, by what pretty_midi reads of its file and its prompt's, in words."""
    notes = sorted(read_notes(file), key=lambda note: (note.start, note.pitch))
    opening: list[pretty_midi.Note] = []
    begin = 0.0
    if prompt is not None:
        begin = SECONDS_READ
        opening = [note for note in read_notes(prompt) if note.start < begin - EARLY]
    drawn = [note for note in notes if note.start >= begin - EARLY]
    broken = []
    kept = [(round(note.start, 3), note.pitch, note.velocity) for note in notes if note.start < begin - EARLY]
    if kept != sorted((round(note.start, 3), note.pitch, note.velocity) for note in opening):
        broken.append("the prompt is not as it was")
    if len(drawn) != told or not notes:  # a prompt may be followed by silence
        broken.append(f"{told} notes told, {len(drawn)} found")
    if any(not keys[0] <= note.pitch <= keys[1] for note in drawn):
        broken.append("a key outside the range")
    # The grid's first step may lie a sixteenth of a second behind the cut.
    if any(note.end > begin + seconds + (1 / 16 if prompt else 0) + EARLY for note in drawn):
        broken.append("a note behind the end")
    for note, later in itertools.combinations(sorted(drawn, key=lambda note: (note.pitch, note.start)), 2):
        if later.pitch != note.pitch:
            continue
        if later.start < note.end - 1e-6:
            broken.append("a key that sounds is struck")
            break
    for note in drawn if polyphony is not None else ():
        # Notes of the prompt end on the tokens' grid for the rule, and as they were played in the file.
        at_once = sum(
            other.start <= note.start + 1e-6
            and other.end - (1e-6 if other.start >= begin - EARLY else 0.07) > note.start
            for other in notes
        )
        if at_once > polyphony:
            broken.append(f"{at_once} notes at once")
            break
    return broken


def read_notes(file: Path) -> list[pretty_midi.Note]:
    """All notes of a MIDI file's instruments."""
    return [note for track in pretty_midi.PrettyMIDI(str(file)).instruments for note in track.notes]


def main() -> None:
    """Time, check, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="chorales")
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument(
        "--sampled", type=int, help="tokens of each sequence that is sampled; --steps if not given"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--constrained", type=int, default=0, metavar="N")
    parser.add_argument("--bars", type=int, default=2, help="of each constrained chorale")
    parser.add_argument("--checkpoint", type=Path, metavar="RUN", help="constrained samples are this model's")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each constrained performance")
    parser.add_argument("--bases", type=int, default=300, help="of each constrained sequence, and up to 3 more")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    if options.checkpoint:
        info = read_info(find_checkpoint(options.checkpoint))
        kind = find_kind(info.dataset, info.domain)
        if kind.name == "chorales":
            parser.error("chorales are drawn by the shipped model: leave --checkpoint out")
        if kind.name == "piano":
            made = constrained_piano(options.checkpoint, options.constrained, options.seconds)
        else:
            made = constrained_dna(options.checkpoint, options.constrained, options.bases)
        drawn = {"dataset": info.dataset, "constrained": made, "model": info.trained, **provenance(device)}
        name = f"generation-{info.dataset}-rules" if kind.name == "piano" else "generation-genome"
        title = (
            f"{info.dataset}: performances of {options.seconds:g} s under rules, judged by what pretty_midi reads"
            if kind.name == "piano"
            else f"DNA of {options.bases} bases and more under rules, judged by Biopython"
        )
        write_text(options.out / f"{name}.json", json.dumps(drawn, indent=1) + "\n")
        write_text(options.out / f"{name}.md", render_rules(title, made))
        return
    config, vocabulary = PRESETS[options.preset]
    models = {name: Transformer(vocabulary, name, config).to(device).eval() for name in ("pope", "rope")}
    result: dict[str, Any] = {
        "preset": options.preset, "length": options.length, "steps": options.steps,
        "sampled": options.sampled or options.steps, "threads": torch.get_num_threads(), "encodings": {},
        **provenance(device),
    }  # fmt: skip
    if device.startswith("cuda"):
        result["gpu"] = torch.cuda.get_device_name()
    times: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for model in models.values() if device.startswith("cuda") else ():  # kernels are compiled once
        time_samples(model, 8, 1, device)
    for turn in range(options.rounds):
        for name, model in list(models.items())[:: 1 if turn % 2 == 0 else -1]:
            row = times[name]
            row.setdefault("recomputed", []).append(time_recomputed(model, options.length, device, 3))
            for batch in options.batch:
                one = time_cached(model, options.length, batch, device, options.steps)
                row.setdefault(f"cached {batch}", []).append(one)
                whole = time_samples(model, options.sampled or options.steps, batch, device)
                row.setdefault(f"sampled {batch}", []).append(whole)
    for name, row in times.items():
        result["encodings"][name] = {key: statistics.median(value) for key, value in row.items()}
        cache = Decoder(models[name], 1, options.length).cache
        bytes_of = sum(x.numel() * x.element_size() for x in (cache.keys, cache.values))
        result["encodings"][name]["cache_bytes_per_token"] = bytes_of / options.length
    result["rounds"] = {name: dict(row) for name, row in times.items()}
    if options.preset == "chorales":
        shipped = load_model(None, device)
        begun = time.perf_counter()
        list(draw_chorales(shipped, NOTHING.numpy(), 256, Draw(device=device), None))
        result["chorale_of_16_bars_s"] = time.perf_counter() - begun
    if options.constrained:
        result["constrained"] = constrained(options.constrained, options.bars)
    name = "generation" if options.preset == "chorales" else f"generation-{options.preset}"
    write_text(options.out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    write_text(options.out / f"{name}.md", render(result))
    print(render(result))


def render(result: dict[str, Any]) -> str:
    """Tables of a result."""
    first = result["encodings"]["pope"]
    batches = [int(key.split()[1]) for key in first if key.startswith("cached")]
    where = result.get("gpu", f"{result['threads']} CPU threads")
    lines = [f"# Sampling, {result['preset']} model at {result['length']} tokens, {where}", ""]
    lines += [
        "| encoding | recomputed, tokens/s | "
        + " | ".join(f"cached, batch {b}" for b in batches)
        + " | cache gain |"
    ]
    lines += ["|---|---|" + "---|" * (len(batches) + 1)]
    for name, row in result["encodings"].items():
        cells = [f"{b / row[f'cached {b}']:,.0f}" for b in batches]
        gain = row["recomputed"] / row["cached 1"] if "cached 1" in row else float("nan")
        lines.append(f"| {name} | {1 / row['recomputed']:,.1f} | {' | '.join(cells)} | {gain:.1f} |")
    lines += ["", f"With all of sampling, from nothing to {result['sampled']} tokens, tokens/s:", ""]
    for name, row in result["encodings"].items():
        lines.append(f"- {name}: " + ", ".join(f"batch {b} {b / row[f'sampled {b}']:,.0f}" for b in batches))
    if "rope" in result["encodings"]:
        other = result["encodings"]["rope"]
        ratios = ", ".join(
            f"batch {b} {first[f'cached {b}'] / other[f'cached {b}']:.3f} "
            f"(sampling {first[f'sampled {b}'] / other[f'sampled {b}']:.3f})"
            for b in batches
        )
        lines += ["", f"Time of PoPE over RoPE's: {ratios}."]
        sizes = {name: row["cache_bytes_per_token"] for name, row in result["encodings"].items()}
        lines += [
            "",
            "Cache, bytes a token: " + ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items()) + ".",
        ]
    if "chorale_of_16_bars_s" in result:
        lines += ["", f"A chorale of 16 bars by the shipped model: {result['chorale_of_16_bars_s']:.2f} s."]
    if "constrained" in result:
        lines += ["", f"Chorales of {result['constrained']['bars']} bars under rules:", ""]
        lines += ["| rules | samples | violations | not read back | s |", "|---|---|---|---|---|"]
        for name, row in result["constrained"]["kinds"].items():
            lines.append(
                f"| {name} | {row['samples']} | {row['violations']} | {row['not_read_back']} | {row['seconds']} |"
            )
    return "\n".join(lines) + "\n"


def render_rules(title: str, made: dict[str, Any]) -> str:
    """The table of samples under rules."""
    first = next(iter(made["kinds"].values()))
    words = [key.replace("_per_", "/").replace("_", " ") for key in first]
    lines = [f"# {title}", "", "| rules | " + " | ".join(words) + " |", "|---" * (len(first) + 1) + "|"]
    for name, row in made["kinds"].items():
        lines.append(f"| {name} | {' | '.join(str(value) for value in row.values())} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
