"""The verb `compare`, and the report that ends an experiment: tables, intervals, figures.

Numbers come from result.json files alone, so a report can be made again from them at any time.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
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
PAPER_WINDOW = 2048
COLOURS = {"pope": "#0b6e99", "rope": "#d1541f"}
OTHER_COLOURS = ("#3a7d44", "#7b4fa3", "#b8860b", "#c2477f", "#4d4d4d", "#5b7fb5")
GREY = "#666666"
# In these, twins, seeds of a recipe and the machines they ran on may differ.
RECIPE_FREE = ("position", "baseline", "seed", "seeds", "name", "out", "data_folder", "device")

RESULT = "result.json"
FIELDS: dict[str, type | tuple[type, ...]] = {  # what a report needs of a result
    **dict.fromkeys(("position", "dataset", "split", "fingerprint", "content", "device", "date"), str),
    **dict.fromkeys(("units", "strata", "paper_protocol", "baselines", "protocol"), dict),
    **dict.fromkeys(("trained", "config", "versions"), dict),
    **dict.fromkeys(("by_position", "documents"), list),
    **dict.fromkeys(("tokens_scored", "parameters"), int),
    "nats_per_token": (int, float),
    "commit": (str, type(None)),
}


def load_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read the results of finished runs, each with its folder under "folder", in an order of their own.

    Args:
        paths: folders of runs, or of experiments, of which all runs are taken.

    Raises:
        SeqpopeError: a folder holds no run or one that is not finished, or a result cannot be read.
    """
    files: dict[Path, Path] = {}  # a run named twice, by whatever path, is one run
    for path in paths:
        for file in _finished(Path(path)):
            files.setdefault(file.resolve(), file)
    results = [_load(file) for file in files.values()]
    results.sort(key=lambda r: (r["position"], _seed(r), str(Path(r["folder"]).resolve())))
    return results


def _finished(path: Path) -> list[Path]:
    """The result files of a run or of all runs of an experiment."""
    if (path / RESULT).is_file():
        return [path / RESULT]
    if not path.is_dir():
        raise SeqpopeError(f"{path} is no folder: expected that of a run or of an experiment")
    if (path / "versions.json").is_file():  # a run writes its versions, an experiment does not
        raise SeqpopeError(
            f"the run in {path} is not finished ({RESULT} is missing): "
            f"go on with it by `seqpope train --resume {path.parent}`"
        )
    found = sorted(path.glob(f"*/{RESULT}"))
    begun = sorted(file.parent for file in path.glob("*/versions.json"))
    unfinished = [run.name for run in begun if not (run / RESULT).is_file()]
    if unfinished:
        raise SeqpopeError(
            f"{path} has runs that are not finished: {', '.join(unfinished)}; go on with them by "
            f"`seqpope train --resume {path}`, or name the finished runs' own folders"
        )
    if not found:
        raise SeqpopeError(f"no finished run in {path}: expected {RESULT} in it or in the folders below it")
    return found


def _load(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text())
        missing = [name for name, kind in FIELDS.items() if not isinstance(result[name], kind)]
        if missing:
            raise ValueError(f"{', '.join(missing)}: of another kind than expected")
        if not math.isfinite(result["nats_per_token"]):
            raise ValueError(f"nats_per_token is {result['nats_per_token']}")
        result["protocol"]["window"], result["protocol"]["stride"], result["protocol"]["precision"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise SeqpopeError(
            f"{file} is not a result ({what}): delete it and score the run again with "
            f"`seqpope evaluate {file.parent}`"
        ) from error
    result["folder"] = str(file.parent)
    return result


def _seed(result: dict[str, Any]) -> int:
    return int(result["trained"].get("seed", 0))


def check_comparable(results: list[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Refuse results of different data or protocol; name the recipe fields in which runs differ.

    Returns:
        For each recipe field that differs: the values that each encoding's runs have of it.

    Raises:
        SeqpopeError: data, tokens, split, window, stride or scoring precision differ, or a seed of an encoding
            comes twice.
    """
    first = results[0]
    for result in results[1:]:
        one, other = _compared(first), _compared(result)
        for name in one | other:
            if one.get(name) != other.get(name):
                raise SeqpopeError(
                    f"{first['folder']} and {result['folder']} cannot be compared: their {name} differs, "
                    f"{one.get(name)!r} and {other.get(name)!r}; compare runs scored alike on the same data"
                )
    seen: dict[tuple[str, int], str] = {}
    for result in results:
        key = (result["position"], _seed(result))
        if key in seen:
            raise SeqpopeError(
                f"{seen[key]} and {result['folder']} are both {key[0]} with seed {key[1]}: compare one of them"
            )
        seen[key] = result["folder"]
    recipes = [_recipe(result) for result in results]
    differing: dict[str, dict[str, list[Any]]] = {}
    for name in sorted({name for recipe in recipes for name in recipe}):
        values: dict[str, list[Any]] = {}
        for result, recipe in zip(results, recipes, strict=True):
            group = values.setdefault(result["position"], [])
            if recipe.get(name) not in group:
                group.append(recipe.get(name))
        if any(group != values[first["position"]] or len(group) > 1 for group in values.values()):
            differing[name] = values
    return differing


def _compared(result: dict[str, Any]) -> dict[str, Any]:
    data = {
        "data set": result["dataset"],
        "data (content hash)": result["content"],
        "tokenizer (fingerprint)": result["fingerprint"],
        "split": result["split"],
    }
    return data | {f"protocol's {name.replace('_', ' ')}": v for name, v in result["protocol"].items()}


def _recipe(result: dict[str, Any]) -> dict[str, Any]:
    """What a run was trained by, flat; the precision is what `auto` became."""
    kept = {k: v for k, v in result["config"].items() if k not in (*RECIPE_FREE, "precision")}
    return _flat(kept) | {"training precision": _precision(result)}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _precision(result: dict[str, Any]) -> str:
    return str(result["trained"].get("precision", "unknown"))


def analyse(
    results: list[dict[str, Any]], differing: dict[str, dict[str, list[Any]]] | None = None
) -> dict[str, Any]:
    """Estimates by encoding and paired differences between each two encodings, as plain values.

    Args:
        differing: what `check_comparable` found; it bears on what may be claimed.
    """
    groups = _by_position(results)
    first = results[0]

    def over_seeds(group: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
        return vars(estimate([value(r) for r in group]))

    def nats_per(unit: str) -> Callable[[dict[str, Any]], float]:
        return lambda r: r["units"][unit]["nats"]

    def nats_in(stratum: str) -> Callable[[dict[str, Any]], float]:
        return lambda r: r["strata"][stratum]["nats_per_token"]

    encodings = {}
    for position, group in groups.items():
        encodings[position] = {
            "seeds": [_seed(r) for r in group],
            "nats_per_token": over_seeds(group, lambda r: r["nats_per_token"]),
            "paper_protocol": over_seeds(group, lambda r: r["paper_protocol"]["nats_per_token"])
            if first["paper_protocol"]["tokens"]
            else None,
            "units": {u: over_seeds(group, nats_per(u)) for u in first["units"]},
            "strata": {
                s: over_seeds(group, nats_in(s)) for s, value in first["strata"].items() if value["tokens"]
            },
        }
    differences = [_difference(a, b) for a, b in itertools.combinations(groups.values(), 2)]
    for difference in differences:
        pair = (difference["a"], difference["b"])
        recipes = [name for name, values in (differing or {}).items() if not _alike([values[p] for p in pair])]
        difference["verdict"] = verdict(difference, recipes)
    return {"encodings": encodings, "differences": differences, "baselines": first["baselines"]}


def _by_position(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["position"], []).append(result)
    return groups


def _alike(values: list[list[Any]]) -> bool:
    return all(len(group) == 1 and group == values[0] for group in values)


def _difference(group_a: list[dict[str, Any]], group_b: list[dict[str, Any]]) -> dict[str, Any]:
    by_seed_a = {_seed(r): r for r in group_a}
    by_seed_b = {_seed(r): r for r in group_b}
    seeds = sorted(by_seed_a.keys() & by_seed_b.keys())
    out: dict[str, Any] = {
        "a": group_a[0]["position"],
        "b": group_b[0]["position"],
        "seeds": seeds,
        "seeds_without_twin": sorted(by_seed_a.keys() ^ by_seed_b.keys()),
    }
    if not seeds:
        return out
    paired = [by_seed_a[s]["nats_per_token"] - by_seed_b[s]["nats_per_token"] for s in seeds]
    over_seeds = estimate(paired)
    out |= {"paired": paired, "over_seeds": vars(over_seeds)}
    if over_seeds.sd is not None:
        out["detectable"] = detectable_effect(over_seeds.sd, len(seeds))

    def piece_nats(by_seed: dict[int, dict[str, Any]]) -> np.ndarray:
        return np.mean([[d["nats"] for d in by_seed[s]["documents"]] for s in seeds], axis=0)

    tokens = np.array([d["tokens"] for d in by_seed_a[seeds[0]]["documents"]])
    mean, low, high = bootstrap_difference(piece_nats(by_seed_a), piece_nats(by_seed_b), tokens)
    out["over_pieces"] = {"mean": mean, "low": low, "high": high, "pieces": int((tokens > 0).sum())}
    return out


def verdict(difference: dict[str, Any], recipes: Sequence[str] = ()) -> str:
    """One sentence that claims no more than seeds, pieces and recipes allow.

    Args:
        recipes: recipe fields in which the two encodings' runs differ.
    """
    a, b, seeds = difference["a"], difference["b"], difference["seeds"]
    if not seeds:
        return f"{a} and {b} have no seed in common: no paired difference, no claim."
    if len(seeds) < 3:
        runs = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
        return f"{runs}: no claim that one encoding beats the other (three or more are needed)."
    over_seeds, over_pieces = difference["over_seeds"], difference["over_pieces"]
    if over_seeds["low"] <= 0 <= over_seeds["high"]:
        return f"The interval over seeds contains 0: these {len(seeds)} seeds cannot tell {a} and {b} apart."
    if recipes:
        return (
            f"The interval over seeds excludes 0, but the recipes differ in {', '.join(recipes)}: "
            "no claim that it is the encoding."
        )
    better, worse = (a, b) if over_seeds["mean"] < 0 else (b, a)
    better_by = f"{better} is better than {worse} by {abs(over_seeds['mean']):.4f} nats/token"
    if over_pieces["low"] <= 0 <= over_pieces["high"]:
        return (
            f"On these {over_pieces['pieces']} pieces {better_by} and the interval over seeds excludes 0; the one "
            "over pieces contains it: no claim for other pieces."
        )
    return f"{better_by}; the intervals over seeds and over pieces exclude 0."


def _spread(e: dict[str, Any], digits: int = 4) -> str:
    return f"{e['mean']:.{digits}f}" + (f" ± {e['sd']:.{digits}f}" if e["sd"] is not None else "")


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that also reads well as plain text."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in [head, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * w for w in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def markdown(
    results: list[dict[str, Any]], analysis: dict[str, Any], differing: dict[str, dict[str, list[Any]]]
) -> str:
    """The report as Markdown: protocol, means, baselines, paired differences, runs, recipe."""
    first = results[0]
    encodings = analysis["encodings"]
    parts = [
        f"# {first['dataset']}: {' against '.join(encodings)}",
        _protocol_text(results),
        *_recipes_text(differing),
        _means_table(first, analysis),
        _legend(first, encodings),
        *_baselines_text(first, encodings),
    ]
    if first["dataset"] in PUBLISHED and first["split"] == "test":
        window = first["protocol"]["window"]
        figures = ", ".join(f"{p} {v}" for p, v in PUBLISHED[first["dataset"]].items())
        parts.append(
            f"Published (arXiv 2509.10534, test nats/token; nearest to the paper's protocol here): {figures}. The "
            "paper says neither whether first tokens count nor what happens past 2048 tokens; its recipe has no "
            "augmentation."
            + ("" if window == PAPER_WINDOW else f" Its windows are {PAPER_WINDOW} tokens, these are {window}.")
        )
    parts.append("## Paired differences")
    parts += [_difference_text(difference) for difference in analysis["differences"]]
    if len(analysis["differences"]) > 1:
        parts.append(f"The intervals are not corrected for {len(analysis['differences'])} comparisons.")
    if not analysis["differences"]:
        parts.append("One encoding alone: nothing to compare with.")
    kept = {k: v for k, v in first["config"].items() if k not in RECIPE_FREE}
    recipe = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).rstrip()
    parts += [
        "## Runs",
        _runs_table(results),
        _provenance_text(results),
        "## Recipe",
        *([f"That of {_run_names(results)[0]}; what differs in others stands at the top."] if differing else []),
        f"```yaml\n{recipe}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _protocol_text(results: list[dict[str, Any]]) -> str:
    first, protocol = results[0], results[0]["protocol"]
    seeds = {p: ", ".join(str(_seed(r)) for r in group) for p, group in _by_position(results).items()}
    if len(set(seeds.values())) == 1:
        of_each = " of each encoding" if len(seeds) > 1 else ""
        numbers = next(iter(seeds.values()))
        seeds_text = f"Seed{'s' if ',' in numbers else ''} {numbers}{of_each}."
    else:
        seeds_text = f"Seeds: {'; '.join(f'{p} {numbers}' for p, numbers in seeds.items())}."
    reads = sorted({len(_reads(r)) for r in results})
    times = {0: "not logged", 1: "once a run"}.get(reads[0], f"{reads[0]} times a run")
    if len(reads) > 1:
        times = f"{reads[0]} to {reads[-1]} times a run"
    trained = _listed(_precision(r) for r in results)
    return (
        f"Negative log-likelihood of the {first['split']} split: {first['tokens_scored']} tokens of "
        f"{len(first['documents'])} pieces, each scored once, in windows of {protocol['window']} with stride "
        f"{protocol['stride']}. First token: {protocol.get('first_token', 'not told')}. "
        f"Padding is never a target. Scored in {protocol['precision']}, trained in {trained}. Weights: "
        f"{protocol.get('selection', 'not told')}; reads of the test split: {times}. {seeds_text}"
    )


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(sorted({str(v) for v in values}))


def _recipes_text(differing: dict[str, dict[str, list[Any]]]) -> list[str]:
    if not differing:
        return []
    lines = []
    for name, values in differing.items():
        each = "; ".join(f"{p} {' and '.join(map(_plain, group))}" for p, group in values.items())
        lines.append(f"- {name}: {each}")
    text = [
        "**These recipes differ: this is no comparison of twins**, and the differences below are not those of the "
        "encodings alone.\n\n" + "\n".join(lines)
    ]
    mixed = sorted({p for values in differing.values() for p, group in values.items() if len(group) > 1})
    if mixed:
        text.append(
            f"**Runs of {' and of '.join(mixed)} differ among themselves**: mean and spread below are not "
            "those of seeds of one recipe."
        )
    return text


def _plain(value: Any) -> str:
    return "not set" if value is None else str(value)


def _means_table(first: dict[str, Any], analysis: dict[str, Any]) -> str:
    units, strata = list(first["units"]), [s for s in first["strata"] if first["strata"][s]["tokens"]]
    head = ["encoding", "seeds", "nats/token", *[f"nats/{u}" for u in units], *strata, "paper's protocol"]
    rows = [
        [
            position,
            str(len(e["seeds"])),
            _spread(e["nats_per_token"]),
            *[_spread(e["units"][u], 3) for u in units],
            *[_spread(e["strata"][s]) for s in strata],
            _spread(e["paper_protocol"]) if e["paper_protocol"] else "",
        ]
        for position, e in analysis["encodings"].items()
    ]
    units_per_token = [value["count"] / first["tokens_scored"] for value in first["units"].values()]
    for name, value in analysis["baselines"].items():
        if value is not None:
            per_unit = [f"{value / per:.3f}" for per in units_per_token]
            rows.append([name, "", f"{value:.4f}", *per_unit, *[""] * len(strata), ""])
    return _table(head, rows)


def _legend(first: dict[str, Any], encodings: dict[str, Any]) -> str:
    one = [p for p, e in encodings.items() if len(e["seeds"]) == 1]
    parts = []
    if len(one) < len(encodings):
        parts.append("Mean over seeds ± sample standard deviation.")
    if one:
        parts.append(f"One seed of {' and of '.join(one)}: nothing is known of the spread over seeds.")
    strata = [(s, value["tokens"]) for s, value in first["strata"].items() if value["tokens"]]
    if strata:
        parts.append("; ".join(f"{s}: the {tokens} tokens of that kind" for s, tokens in strata) + ".")
    paper = first["paper_protocol"]
    parts.append(f"Paper's protocol: {paper['definition']}, {paper['tokens']} tokens.")
    if any(value is not None for value in first["baselines"].values()):
        parts.append("Baselines are count tables of the training split.")
    return " ".join(parts)


def _baselines_text(first: dict[str, Any], encodings: dict[str, Any]) -> list[str]:
    baselines = {name: value for name, value in first["baselines"].items() if value is not None}
    lines = []
    for position, e in encodings.items():
        mean = e["nats_per_token"]["mean"]
        beaten = [name for name, value in baselines.items() if mean < value]
        lost = [name for name in baselines if name not in beaten]
        if lost:
            lines.append(f"- **{position} does not beat: {'; '.join(lost)}.**")
        if beaten:
            lines.append(f"- {position} beats: {'; '.join(beaten)}.")
    return ["Against the baselines:\n\n" + "\n".join(lines)] if lines else []


def _run_names(results: list[dict[str, Any]]) -> list[str]:
    """Folder names; with the experiment's before them where two runs would be called alike."""
    folders = [Path(r["folder"]).resolve() for r in results]
    names = [folder.name for folder in folders]
    return [f"{f.parent.name}/{f.name}" if names.count(f.name) > 1 else f.name for f in folders]


def _runs_table(results: list[dict[str, Any]]) -> str:
    head = ["run", "encoding", "seed", "parameters", "best step", "validation", "test", "reads of test"]
    rows = []
    for name, result in zip(_run_names(results), results, strict=True):
        trained = result["trained"]
        validation = trained.get("validation_nats_per_token")
        rows.append(
            [
                name,
                result["position"],
                str(_seed(result)),
                f"{result['parameters']:,}",
                str(trained.get("step", "")),
                "" if validation is None else f"{validation:.4f}",
                f"{result['nats_per_token']:.4f}",
                str(len(_reads(result)) or "not logged"),
                f"{trained['seconds'] / 60:.1f}" if "seconds" in trained else "",
            ]
        )
    return _table([*head, "minutes to best"], rows)


def _provenance_text(results: list[dict[str, Any]]) -> str:
    first = results[0]
    packages = dict.fromkeys(name for r in results for name in r["versions"])
    versions = [f"{name} {_listed(r['versions'].get(name, 'none') for r in results)}" for name in packages]
    dates = sorted({r["date"] for r in results})
    read_by: dict[str, int] = {}
    for read in (read for r in results for read in _reads(r)):
        key = str(read.get("commit") or "unknown")
        read_by[key] = read_by.get(key, 0) + 1
    reads = "; ".join(f"{commit} {count}" for commit, count in sorted(read_by.items())) or "not logged"
    return (
        f"Scored on: {'; '.join(sorted({r['device'] for r in results}))}. "
        f"Commit: {_listed(r['commit'] or 'unknown' for r in results)}. Reads of test by commit: {reads}. "
        f"{'; '.join(versions)}. Data {first['content'][:12]}, tokenizer {first['fingerprint'][:12]}. "
        f"Scored {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
    )


def _reads(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The run's logged reads of the test split; a line that cannot be read was a read too."""
    file = Path(result["folder"]) / READS
    reads = []
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else []:
        try:
            read = json.loads(line)
        except ValueError:
            read = None
        reads.append(read if isinstance(read, dict) else {})
    return reads


def _difference_text(difference: dict[str, Any]) -> str:
    text = f"{difference['a']} - {difference['b']}: "
    if difference["seeds"]:
        e = Estimate(**difference["over_seeds"])
        text += f"{e.mean:+.4f} nats/token over {e.n} seed{'s' if e.n > 1 else ''} "
        if e.low is None or e.high is None:
            text += "(no interval over seeds: one seed has no spread)"
        else:
            text += f"(95% t interval {e.low:+.4f} to {e.high:+.4f}; each: "
            text += ", ".join(f"{d:+.4f}" for d in difference["paired"]) + ")"
        p = difference["over_pieces"]
        interval = f"{p['low']:+.4f} to {p['high']:+.4f}"
        text += f"; over the {p['pieces']} pieces, these seeds given: 95% bootstrap {interval}. "
        if "detectable" in difference:
            text += (
                f"Smallest difference that so many seeds find four times in five: {difference['detectable']:.4f}. "
            )
        if difference["seeds_without_twin"]:
            alone = ", ".join(map(str, difference["seeds_without_twin"]))
            text += f"Not in it, having no twin: seed {alone}. "
    return text + difference["verdict"]


def read_curve(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, nats/token) of training and validation from a run's logs; a resumed start overrides later steps."""
    columns = ("train_nats_per_token", "validation_nats_per_token")
    curves: dict[str, dict[int, float]] = {name: {} for name in columns}
    versions = [f for f in (run / "logs").glob("version_*/metrics.csv") if f.parent.name[8:].isdigit()]
    for file in sorted(versions, key=lambda f: int(f.parent.name[8:])):
        with open(file, newline="", errors="replace") as handle:
            read = {name: [] for name in columns}  # type: dict[str, list[tuple[int, float]]]
            for row in csv.DictReader(handle):
                for name in columns:
                    # A power cut can leave a last line in pieces: a picture is not worth failing for.
                    with contextlib.suppress(ValueError, TypeError):
                        read[name].append((int(row["step"]), float(row[name])))
        begun = min((step for rows in read.values() for step, _ in rows), default=None)
        if begun is None:
            continue
        for name in columns:
            curves[name] = {step: value for step, value in curves[name].items() if step < begun}
            curves[name] |= dict(read[name])
    return {name: sorted(curve.items()) for name, curve in curves.items()}


def _colours(positions: Iterable[str]) -> dict[str, str]:
    others = itertools.cycle(OTHER_COLOURS)
    return {p: COLOURS[p] if p in COLOURS else next(others) for p in sorted(set(positions))}


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean over the last `width` values, over fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_loss(results: list[dict[str, Any]]) -> bytes | None:
    """Training and validation curves of every run as PNG; None if no run has logs."""
    curves = [read_curve(Path(r["folder"])) for r in results]
    if not any(curve for run in curves for curve in run.values()):
        return None
    pyplot = _pyplot()
    from matplotlib.lines import Line2D

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    shown: list[float] = []
    highest, width, legend = 0.0, 1, []
    for position, colour in _colours(r["position"] for r in results).items():
        group = [(r, c) for r, c in zip(results, curves, strict=True) if r["position"] == position]
        validations = [dict(c["validation_nats_per_token"]) for _, c in group]
        for (result, curve), validation in zip(group, validations, strict=True):
            if train := curve["train_nats_per_token"]:
                steps, values = np.array([s for s, _ in train]), np.array([v for _, v in train])
                width = max(1, round(len(values) / 25))
                values = _smooth(values, width)
                axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.55, linestyle="--")
                shown.append(float(values.min()))
                highest = max(highest, float(values.max()))
            if validation:
                line = {"linewidth": 0.7, "alpha": 0.6} if len(group) > 1 else {"linewidth": 2}
                axes.plot(list(validation), list(validation.values()), color=colour, **line)
                shown.append(min(validation.values()))
                highest = max(highest, *validation.values())
            best = result["trained"].get("step")
            if best in validation:
                axes.plot(
                    best, validation[best], "o", color=colour, markersize=4, markeredgecolor="white", zorder=5
                )
        common = sorted(set.intersection(*map(set, validations)))
        if len(group) > 1 and common:
            mean = [np.mean([v[step] for v in validations]) for step in common]
            axes.plot(common, mean, color=colour, linewidth=2)
        seeds = f"mean of {len(group)} seeds, each thin" if len(group) > 1 else "1 seed"
        legend.append(Line2D([], [], color=colour, linewidth=2, label=f"{position}, validation, {seeds}"))
    training = "training, each seed" + (f" (running mean of {width} logged batches)" if width > 1 else "")
    legend.append(Line2D([], [], color=GREY, linewidth=0.8, linestyle="--", label=training))
    if any(c["validation_nats_per_token"] for c in curves):
        kept = "weights that are tested"
        legend.append(Line2D([], [], color=GREY, marker="o", markersize=4, linestyle="", label=kept))
    # The first steps are far above all that matters; what was learned shall fill the picture.
    low, top = min(shown), min(highest * 1.05, min(shown) * 4)
    for name, value in results[0]["baselines"].items():
        if value is not None and low < value < top:
            axes.axhline(value, color=GREY, linewidth=0.8, linestyle=":")
            place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate(name, (0.995, value), (0, 1), **place, ha="right", va="bottom", fontsize=7, color=GREY)
    axes.set_ylim(low - 0.05 * (top - low), top)
    axes.set(
        xlabel="optimiser step", ylabel="nats/token", title=f"{results[0]['dataset']}: training and validation"
    )
    axes.legend(handles=legend, frameon=False, fontsize=8)
    return _png(figure)


def draw_position(results: list[dict[str, Any]]) -> bytes:
    """NLL against position in the piece, mean over seeds of each encoding, as PNG."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    groups = _by_position(results)
    bins = [i for i, b in enumerate(results[0]["by_position"]) if b["tokens"]]
    ends = [(results[0]["by_position"][i]["from"], results[0]["by_position"][i]["to"]) for i in bins]
    middle = [math.sqrt(max(1, low) * high) for low, high in ends]
    for position, colour in _colours(groups).items():
        values = np.array([[r["by_position"][i]["nats_per_token"] for i in bins] for r in groups[position]])
        for row in values if len(values) > 1 else []:
            axes.plot(middle, row, color=colour, linewidth=0.7, alpha=0.5)
        seeds = f"mean of {len(values)} seeds" if len(values) > 1 else "1 seed"
        axes.plot(
            middle,
            values.mean(0),
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=4,
            label=f"{position}, {seeds}",
        )
    window = results[0]["protocol"]["window"]
    if ends and window < ends[-1][1]:
        axes.axvline(window, color=GREY, linewidth=0.8, linestyle=":")
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate("window", (window, 0.98), (-3, 0), **place, ha="right", va="top", fontsize=7, color=GREY)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_ylim(bottom=0)
    axes.set(
        xlabel="position in the piece (tokens; bins double, dots at their middle)",
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    _pyplot().close(figure)
    return buffer.getvalue()


def compare(paths: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Put finished runs side by side; write report.md, report.json and figures to `out` if given.

    Returns:
        The analysis with the Markdown text under "markdown".

    Raises:
        SeqpopeError: there are no runs, some are not finished, or they cannot be compared.
    """
    results = load_results(paths)
    differing = check_comparable(results)
    analysis = analyse(results, differing)
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
        else:  # one of an earlier report would be of other runs
            (out / "loss.png").unlink(missing_ok=True)
    return {**analysis, "markdown": text}


def write_report(runs: Sequence[Path], folder: Path) -> None:
    """Write the report of an experiment's runs into its folder."""
    compare(runs, folder)
