"""Is a melody harmonized better if its future counts? Particles against plain constrained sampling.

    python benchmarks/harmony.py --data data/jsb --judge runs/JUDGE

Sopranos of the JSB test split, cut to --bars, are harmonized by the shipped model: one sample drawn straight on,
the best of as many independent samples as there are particles, and by particles, without greed and with it. Each
result is judged by - nats/token of alto, tenor and bass given all before them, under the model itself and under
  --judge, a model that was trained independently (another seed and encoding) and has drawn nothing;
- voice-leading errors per 100 chord changes, beside Bach's own harmonization of the same melody.

Result: harmony.json and harmony.md in --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqpope.data.shards import TokenStore
from seqpope.domains.music.chorales.codec import Chorale
from seqpope.domains.music.chorales.constraints import FREE
from seqpope.domains.music.chorales.metrics import examine
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.files import write_text
from seqpope.generate.chorales import fit, load_model, make_constraint
from seqpope.generate.draw import Draw, Model
from seqpope.provenance import provenance
from seqpope.sampling import SamplingConfig, sample

ROOT = Path(__file__).resolve().parent.parent
RULES = {"ranges": True, "no_parallels": False, "no_rests": True}


@torch.inference_mode()
def lower_voices_nats(model: Model, grid: np.ndarray) -> float:
    """Mean nats of alto, tenor and bass tokens of a grid (steps, 4), each given what stands before it.

    In windows of the length that the model was trained on; each but the first scores its later half.
    """
    ids = torch.from_numpy(ChoraleTokenizer().encode(Chorale(grid.astype(np.int16))).astype(np.int64))
    inputs = torch.cat((torch.tensor([model.info.padding_id]), ids[:-1])).to(model.device)
    length, nats = model.info.length, torch.empty(len(ids))
    for end in range(min(length, len(ids)), len(ids) + length // 2, length // 2):
        end = min(end, len(ids))
        begin = max(0, end - length)
        logits = model.transformer(inputs[None, begin:end])[0].float().cpu()
        scored = torch.nn.functional.cross_entropy(logits, ids[begin:end], reduction="none")
        fresh = 0 if begin == 0 else length // 2
        nats[begin + fresh : end] = scored[fresh:]
    return float(nats.view(-1, 4)[:, 1:].double().mean())


def draw_one(
    model: Model, given: np.ndarray, particles: int, num: int, greed: float, seed: int, temperature: float
) -> np.ndarray:
    """A harmonization: the likeliest of `num` samples of so many particles each."""
    drawn = sample(
        model.transformer,
        torch.zeros(0, dtype=torch.long),
        given.size,
        seeds=list(range(seed, seed + num)),
        padding_id=model.info.padding_id,
        config=SamplingConfig(temperature),
        constraint=make_constraint(given, RULES),
        particles=particles,
        resample_every=4,
        greed=greed,
    )
    best = int(drawn.nats.sum(-1).argmin())
    return ChoraleTokenizer().decode(drawn.ids[best].numpy()).pitches.astype(int)


def main() -> None:
    """Harmonize, judge, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/jsb"), help="prepared JSB Chorales")
    parser.add_argument("--judge", type=Path, help="run or checkpoint that was not used to draw")
    parser.add_argument("--checkpoint", type=Path, help="model that draws; the shipped one if not given")
    parser.add_argument("--pieces", type=int, default=20)
    parser.add_argument("--bars", type=int, default=8)
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.checkpoint, Draw().device)
    judge = load_model(options.judge, Draw().device) if options.judge else None
    split = TokenStore(options.data).split("test")
    pieces = []
    for index in range(min(options.pieces, len(split))):
        grid = ChoraleTokenizer().decode(split.document(index)).pitches.astype(int)[: 16 * options.bars]
        if (grid[:, 0] >= 0).any():
            pieces.append(grid)
    ways = {
        "one sample": {"particles": 1, "num": 1, "greed": 0.0},
        f"best of {options.particles} samples": {"particles": 1, "num": options.particles, "greed": 0.0},
        f"{options.particles} particles": {"particles": options.particles, "num": 1, "greed": 0.0},
        f"{options.particles} particles, greed 1": {"particles": options.particles, "num": 1, "greed": 1.0},
    }
    drawn: dict[str, list[np.ndarray]] = {"Bach": pieces} | {name: [] for name in ways}
    seconds = dict.fromkeys(ways, 0.0)
    for index, grid in enumerate(pieces):
        shift = fit(grid[:, 0])
        given = np.full(grid.shape, FREE)
        given[:, 0] = np.where(grid[:, 0] >= 0, grid[:, 0] + shift, grid[:, 0])
        for name, way in ways.items():
            begun = time.perf_counter()
            result = draw_one(model, given, seed=1000 * index, temperature=options.temperature, **way)
            drawn[name].append(np.where(result >= 0, result - shift, result))
            seconds[name] += time.perf_counter() - begun
        print(f"{index + 1}/{len(pieces)}", flush=True)
    result: dict[str, Any] = {
        "pieces": len(pieces),
        "bars": options.bars,
        "temperature": options.temperature,
        "rules": RULES,
        "model": model.described(),
        "judge": judge.described() if judge else None,
        "ways": {},
        **provenance(model.device),
    }
    for name, grids in drawn.items():
        own = [lower_voices_nats(model, grid) for grid in grids]
        other = [lower_voices_nats(judge, grid) for grid in grids] if judge else None
        measured = examine([Chorale(grid.astype(np.int16), str(i)) for i, grid in enumerate(grids)])
        result["ways"][name] = {
            "own_nats": own, "judge_nats": other, "metrics": measured["samples"]["mean"],
            "seconds_a_piece": seconds.get(name, 0.0) / len(grids),
        }  # fmt: skip
    write_text(options.out / "harmony.json", json.dumps(result, indent=1) + "\n")
    write_text(options.out / "harmony.md", render(result))
    print(render(result))


def render(result: dict[str, Any]) -> str:
    """The table, and the paired differences from one sample."""
    lines = [
        f"# Harmonizing {result['pieces']} sopranos of the JSB test split, {result['bars']} bars each",
        "",
        "nats/token of alto, tenor and bass, mean over pieces; errors per 100 chord changes; tonal: share of",
        "steps that sound a triad or a seventh chord.",
        "",
    ]
    shown = ["parallel_fifths", "parallel_octaves", "crossings", "overlaps", "tritone_leaps", "tonal"]
    lines.append("| way | own model | judge | " + " | ".join(shown) + " | s/piece |")
    lines.append("|---|---|---|" + "---|" * (len(shown) + 1))
    for name, way in result["ways"].items():
        values = way["metrics"]
        judge = f"{statistics.mean(way['judge_nats']):.3f}" if way["judge_nats"] else "-"
        cells = [f"{values.get(key, float('nan')):.2f}" for key in shown]
        lines.append(
            f"| {name} | {statistics.mean(way['own_nats']):.3f} | {judge} | {' | '.join(cells)} | "
            f"{way['seconds_a_piece']:.1f} |"
        )
    base = result["ways"]["one sample"]
    for name, way in result["ways"].items():
        for key, label in (("own_nats", "own model"), ("judge_nats", "judge")):
            if name in ("Bach", "one sample") or not way[key]:
                continue
            differences = [a - b for a, b in zip(way[key], base[key], strict=True)]
            mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
            lines.append(f"- {name} - one sample, {label}: {mean:+.3f} ± {error:.3f} (standard error over pieces)")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
