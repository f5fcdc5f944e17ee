"""The verb `compare`, and the report that ends an experiment: tables, intervals, figures.

Numbers come from result.json files alone, so a report can be made again from them at any time.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seqpope.errors import SeqpopeError
from seqpope.evaluate import READS
from seqpope.files import write_bytes, write_text
from seqpope.statistics import Estimate, bootstrap_difference, detectable_effect, estimate

# arXiv 2509.10534, table 2: test nats/token by the paper's protocol.
PUBLISHED = {"jsb": {"pope": 0.4889, "rope": 0.5081}}
COLOURS = {"pope": "#0b6e99", "rope": "#d1541f"}
RECIPE_FREE = ("position", "baseline", "seed", "seeds", "name", "out", "data_folder", "device")


def load_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read the results of finished runs, each with its folder under "folder".

    Args:
        paths: folders of runs, or of experiments, whose finished runs are all taken.

    Raises:
        SeqpopeError: a folder holds no finished run, or a result cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        found = [path / "result.json"] if (path / "result.json").is_file() else sorted(path.glob("*/result.json"))
        if not found:
            raise SeqpopeError(
                f"no finished run in {path}: expected result.json in it or in the folders below it; "
                f"finish it with `seqpope train --resume {path}`"
            )
        files += [file for file in found if file not in files]
    results = []
    for file in files:
        try:
            result = json.loads(file.read_text())
            result["folder"] = str(file.parent)
            float(result["nats_per_token"])
        except (ValueError, KeyError, TypeError) as error:
            raise SeqpopeError(
                f"{file} is not a result ({error}): delete it and `seqpope evaluate` the run"
            ) from error
        results.append(result)
    results.sort(key=lambda r: (r["position"], r["trained"].get("seed", 0), r["folder"]))
    return results


def check_comparable(results: list[dict[str, Any]]) -> list[str]:
    """Refuse results of different data or protocol; name the recipe fields in which runs differ.

    Raises:
        SeqpopeError: data, tokens, split, window, stride or scoring precision differ, or a seed of an encoding
            comes twice.
    """
    first = results[0]
    for result in results[1:]:
        for name in ("dataset", "content", "fingerprint", "split", "protocol"):
            if result[name] != first[name]:
                raise SeqpopeError(
                    f"{result['folder']} and {first['folder']} cannot be compared: their {name} is "
                    f"{result[name]!r} and {first[name]!r}"
                )
    seen: dict[tuple[str, int], str] = {}
    for result in results:
        key = (result["position"], int(result["trained"].get("seed", 0)))
        if key in seen:
            raise SeqpopeError(
                f"{result['folder']} and {seen[key]} are both {key[0]} with seed {key[1]}: compare one of them"
            )
        seen[key] = result["folder"]
    recipes = [_flat(result["config"]) | {"training precision": _precision(result)} for result in results]
    names = sorted({name for recipe in recipes for name in recipe if name not in RECIPE_FREE})
    return [name for name in names if len({json.dumps(recipe.get(name)) for recipe in recipes}) > 1]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    # What auto became is compared instead.
    return {k: v for k, v in flat.items() if k != "precision"}


def _precision(result: dict[str, Any]) -> str:
    return str(result["trained"].get("precision", "unknown"))


def analyse(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Estimates by encoding and paired differences between each two encodings, as plain values."""
    positions = list(dict.fromkeys(r["position"] for r in results))
    groups = {p: [r for r in results if r["position"] == p] for p in positions}
    first = results[0]

    def over_seeds(group: list[dict[str, Any]], value: Any) -> dict[str, Any]:
        return vars(estimate([value(r) for r in group]))

    encodings = {}
    for position, group in groups.items():
        encodings[position] = {
            "seeds": [r["trained"].get("seed", 0) for r in group],
            "nats_per_token": over_seeds(group, lambda r: r["nats_per_token"]),
            "paper_protocol": over_seeds(group, lambda r: r["paper_protocol"]["nats_per_token"]),
            "units": {u: over_seeds(group, lambda r, u=u: r["units"][u]["nats"]) for u in first["units"]},
            "strata": {
                s: over_seeds(group, lambda r, s=s: r["strata"][s]["nats_per_token"])
                for s, value in first["strata"].items()
                if value["tokens"]
            },
        }
    differences = [_difference(groups[a], groups[b]) for i, a in enumerate(positions) for b in positions[i + 1 :]]
    return {"encodings": encodings, "differences": differences, "baselines": first["baselines"]}


def _difference(group_a: list[dict[str, Any]], group_b: list[dict[str, Any]]) -> dict[str, Any]:
    by_seed_a = {r["trained"].get("seed", 0): r for r in group_a}
    by_seed_b = {r["trained"].get("seed", 0): r for r in group_b}
    seeds = sorted(by_seed_a.keys() & by_seed_b.keys())
    out: dict[str, Any] = {"a": group_a[0]["position"], "b": group_b[0]["position"], "seeds": seeds}
    if not seeds:
        return out
    paired = [by_seed_a[s]["nats_per_token"] - by_seed_b[s]["nats_per_token"] for s in seeds]
    over_seeds = estimate(paired)
    out |= {"paired": paired, "over_seeds": vars(over_seeds)}
    if over_seeds.sd:
        out["detectable"] = detectable_effect(over_seeds.sd, len(seeds))

    def piece_nats(by_seed: dict[int, dict[str, Any]]) -> np.ndarray:
        return np.mean([[d["nats"] for d in by_seed[s]["documents"]] for s in seeds], axis=0)

    tokens = np.array([d["tokens"] for d in by_seed_a[seeds[0]]["documents"]])
    mean, low, high = bootstrap_difference(piece_nats(by_seed_a), piece_nats(by_seed_b), tokens)
    out["over_pieces"] = {"mean": mean, "low": low, "high": high, "pieces": len(tokens)}
    return out


def verdict(difference: dict[str, Any]) -> str:
    """One sentence that claims no more than the seeds allow."""
    a, b, seeds = difference["a"], difference["b"], difference["seeds"]
    if not seeds:
        return f"{a} and {b} have no seed in common: no paired difference."
    mean = difference["over_seeds"]["mean"]
    if len(seeds) < 3:
        runs = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
        return f"{runs}: no claim that one encoding beats the other (three or more are needed)."
    low, high = difference["over_seeds"]["low"], difference["over_seeds"]["high"]
    if low <= 0 <= high:
        return f"The interval over seeds contains 0: these {len(seeds)} seeds cannot tell {a} and {b} apart."
    better, worse = (a, b) if mean < 0 else (b, a)
    return f"{better} is better than {worse} by {abs(mean):.4f} nats/token; the interval over seeds excludes 0."


def _spread(e: dict[str, Any], digits: int = 4) -> str:
    return f"{e['mean']:.{digits}f}" + (f" ± {e['sd']:.{digits}f}" if e["sd"] is not None else "")


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that also reads well as plain text."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * w for w in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def markdown(results: list[dict[str, Any]], analysis: dict[str, Any], differing: list[str]) -> str:
    """The report as Markdown."""
    first = results[0]
    protocol = first["protocol"]
    encodings = analysis["encodings"]
    best_mean = min(e["nats_per_token"]["mean"] for e in encodings.values())
    reads = {r["folder"]: _reads(Path(r["folder"])) for r in results}
    commits = sorted({str(r["commit"]) for r in results})
    devices = sorted({r["device"] for r in results})
    out = [
        f"# {first['dataset']}: {' against '.join(encodings)}",
        "",
        f"Negative log-likelihood of the {first['split']} split: {first['tokens_scored']} tokens of "
        f"{len(first['documents'])} pieces, each scored once, in windows of {protocol['window']} with stride "
        f"{protocol['stride']}. First token: {protocol['first_token']}. Padding is never a target. Scored in "
        f"{protocol['precision']}, trained in {', '.join(sorted({_precision(r) for r in results}))}. Weights: "
        f"{protocol['selection']}; the test split was read {_times(reads.values())}.",
        "",
    ]
    if differing:
        out += [
            f"**The runs are no twins: they differ in {', '.join(differing)}.** The differences below are not "
            "those of the encodings alone.",
            "",
        ]
    units, strata = list(first["units"]), [s for s in first["strata"] if first["strata"][s]["tokens"]]
    head = ["encoding", "seeds", "nats/token", *[f"nats/{u}" for u in units], *strata, "paper's protocol"]
    rows = [
        [
            position,
            str(len(e["seeds"])),
            _spread(e["nats_per_token"]),
            *[_spread(e["units"][u], 3) for u in units],
            *[_spread(e["strata"][s]) for s in strata],
            _spread(e["paper_protocol"]),
        ]
        for position, e in encodings.items()
    ]
    for name, value in analysis["baselines"].items():
        if value is not None:
            per_unit = [f"{value / per:.3f}" for per in _units_per_token(first)]
            rows.append([name, "", f"{value:.4f}", *per_unit, *[""] * len(strata), ""])
    out += [_table(head, rows), ""]
    out += [
        "Mean over seeds ± sample standard deviation. "
        + "; ".join(f"{s}: the {first['strata'][s]['tokens']} tokens of that kind" for s in strata)
        + f". Paper's protocol: {first['paper_protocol']['definition']}, "
        f"{first['paper_protocol']['tokens']} tokens. Baselines are count tables of the training split.",
        "",
    ]
    beaten = [n for n, v in analysis["baselines"].items() if v is not None and best_mean < v]
    lost = [n for n, v in analysis["baselines"].items() if v is not None and best_mean >= v]
    if beaten:
        out += [f"The best encoding beats these baselines: {'; '.join(beaten)}."]
    if lost:
        out += [f"**It does not beat: {'; '.join(lost)}.**"]
    if first["dataset"] in PUBLISHED and first["split"] == "test":
        figures = ", ".join(f"{p} {v}" for p, v in PUBLISHED[first["dataset"]].items())
        out += [
            "",
            f"Published (arXiv 2509.10534, test nats/token): {figures}. The paper says neither whether first "
            "tokens count nor what happens past 2048 tokens; its recipe has no augmentation.",
        ]
    out += ["", "## Paired differences", ""]
    for difference in analysis["differences"]:
        out += [_difference_text(difference), ""]
    if not analysis["differences"]:
        out += ["One encoding alone: nothing to compare with.", ""]
    out += ["## Runs", ""]
    out += [
        _table(
            ["run", "parameters", "best step", "validation", "test", "reads of test", "minutes to best"],
            [
                [
                    Path(r["folder"]).name,
                    f"{r['parameters']:,}",
                    str(r["trained"].get("step")),
                    f"{r['trained'].get('validation_nats_per_token', float('nan')):.4f}",
                    f"{r['nats_per_token']:.4f}",
                    str(reads[r["folder"]]),
                    f"{r['trained']['seconds'] / 60:.1f}" if "seconds" in r["trained"] else "",
                ]
                for r in results
            ],
        ),
        "",
    ]
    versions = ", ".join(f"{k} {v}" for k, v in first["versions"].items())
    out += [
        f"Scored on: {'; '.join(devices)}. Commit: {', '.join(commits)}. {versions}. "
        f"Data {first['content'][:12]}, tokenizer {first['fingerprint'][:12]}. Date: {first['date']}.",
        "",
        "## Recipe",
        "",
        "```yaml",
        yaml.safe_dump(
            {k: v for k, v in first["config"].items() if k not in RECIPE_FREE}, sort_keys=False
        ).rstrip(),
        "```",
        "",
    ]
    return "\n".join(out)


def _units_per_token(result: dict[str, Any]) -> list[float]:
    return [value["count"] / result["tokens_scored"] for value in result["units"].values()]


def _reads(folder: Path) -> int:
    file = folder / READS
    return len(file.read_text().splitlines()) if file.is_file() else 0


def _times(reads: Any) -> str:
    counts = sorted(set(reads))
    return "once a run" if counts == [1] else f"{counts[0]} to {counts[-1]} times a run"


def _difference_text(difference: dict[str, Any]) -> str:
    text = f"{difference['a']} - {difference['b']}: "
    if difference["seeds"]:
        e = Estimate(**difference["over_seeds"])
        text += f"{e.mean:+.4f} nats/token over {e.n} seed{'s' if e.n > 1 else ''}"
        if e.low is not None and e.high is not None:
            text += f" (95% t interval {e.low:+.4f} to {e.high:+.4f}; each: "
            text += ", ".join(f"{d:+.4f}" for d in difference["paired"]) + ")"
        p = difference["over_pieces"]
        interval = f"{p['low']:+.4f} to {p['high']:+.4f}"
        text += f"; over the {p['pieces']} pieces, these seeds given: 95% bootstrap {interval}. "
        if "detectable" in difference:
            text += (
                f"Smallest difference that so many seeds find four times in five: {difference['detectable']:.4f}. "
            )
    return text + verdict(difference)


def read_curve(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, nats/token) of training and validation from a run's logs; a resumed start overrides later steps."""
    columns = ("train_nats_per_token", "validation_nats_per_token")
    curves: dict[str, dict[int, float]] = {name: {} for name in columns}
    files = sorted((run / "logs").glob("version_*/metrics.csv"), key=lambda f: int(f.parent.name.split("_")[1]))
    for file in files:
        with open(file, newline="") as handle:
            rows = [row for row in csv.DictReader(handle) if row.get("step")]
        if not rows:
            continue
        begun = int(rows[0]["step"])
        for name in columns:
            curves[name] = {step: value for step, value in curves[name].items() if step < begun}
            curves[name] |= {int(row["step"]): float(row[name]) for row in rows if row.get(name)}
    return {name: sorted(curve.items()) for name, curve in curves.items()}


def draw_loss(results: list[dict[str, Any]]) -> bytes | None:
    """Training and validation curves of every run as PNG; None if no run has logs."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    lowest, highest, labelled = np.inf, 0.0, set()
    for result in results:
        curves = read_curve(Path(result["folder"]))
        colour = COLOURS.get(result["position"], "#555555")
        train, validation = curves["train_nats_per_token"], curves["validation_nats_per_token"]
        if train:
            axes.plot(*zip(*train, strict=True), color=colour, linewidth=0.6, alpha=0.3)
        if validation:
            label = None if result["position"] in labelled else f"{result['position']}, validation"
            labelled.add(result["position"])
            axes.plot(*zip(*validation, strict=True), color=colour, linewidth=1.5, label=label)
            values = [v for _, v in validation]
            lowest, highest = min(lowest, *values, *[v for _, v in train]), max(highest, *values)
            axes.plot(result["trained"]["step"], min(values), "o", color=colour, markersize=5)
    if not np.isfinite(lowest):
        pyplot.close(figure)
        return None
    top = min(highest * 1.05, lowest * 4)
    for name, value in results[0]["baselines"].items():
        if value is not None and lowest < value < top:
            axes.axhline(value, color="#888888", linewidth=0.8, linestyle=":")
            place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "fontsize": 7}
            axes.annotate(name, (0.995, value), **place)
    axes.set_ylim(lowest * 0.95, top)
    axes.set(xlabel="step", ylabel="nats/token")
    axes.set_title(f"{results[0]['dataset']}: thin lines are training, dots the weights that are kept")
    axes.legend(frameon=False)
    return _png(figure)


def draw_position(results: list[dict[str, Any]]) -> bytes:
    """NLL against position in the piece, mean over seeds of each encoding, as PNG."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for position in dict.fromkeys(r["position"] for r in results):
        group = [r for r in results if r["position"] == position]
        colour = COLOURS.get(position, "#555555")
        bins = [b for b in group[0]["by_position"] if b["tokens"]]
        middle = [np.sqrt(max(1, b["from"]) * b["to"]) for b in bins]
        kept = [i for i, b in enumerate(group[0]["by_position"]) if b["tokens"]]
        values = np.array([[r["by_position"][i]["nats_per_token"] for i in kept] for r in group])
        for row in values if len(group) > 1 else []:
            axes.plot(middle, row, color=colour, linewidth=0.7, alpha=0.4)
        axes.plot(middle, values.mean(0), color=colour, linewidth=1.8, marker="o", markersize=4, label=position)
    window = results[0]["protocol"]["window"]
    if window < results[0]["by_position"][-1]["to"]:
        axes.axvline(window, color="#888888", linewidth=0.8, linestyle=":")
        axes.annotate(
            "window", (window, 0.98), xycoords=("data", "axes fraction"), ha="right", va="top", fontsize=7
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set(
        xlabel="position in the piece (tokens)",
        ylabel="nats/token",
        title=f"{results[0]['dataset']}, {results[0]['split']}: NLL against position",
    )
    axes.legend(frameon=False)
    return _png(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    return pyplot


def _png(figure: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    _pyplot().close(figure)
    return buffer.getvalue()


def compare(paths: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Put finished runs side by side; write report.md, report.json and figures to `out` if given.

    Returns:
        The analysis with the Markdown text under "markdown".

    Raises:
        SeqpopeError: there are no finished runs, or they cannot be compared.
    """
    results = load_results(paths)
    differing = check_comparable(results)
    analysis = analyse(results)
    text = markdown(results, analysis, differing)
    if out is not None:
        # Where a run lay on its machine is nobody's business; its pieces' NLLs stay in its own result.json.
        kept = [{k: v for k, v in r.items() if k not in ("documents", "by_position", "folder")} for r in results]
        for result in kept:
            result["config"] = {k: v for k, v in result["config"].items() if k not in RECIPE_FREE}
        report = {**analysis, "recipes_differ_in": differing, "results": kept}
        write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
        write_text(out / "report.md", text)
        write_bytes(out / "position.png", draw_position(results))
        loss = draw_loss(results)
        if loss is not None:
            write_bytes(out / "loss.png", loss)
    return {**analysis, "markdown": text}


def write_report(runs: Sequence[Path], folder: Path) -> None:
    """Write the report of an experiment's runs into its folder."""
    compare(runs, folder)
