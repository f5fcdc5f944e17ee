"""What is said of finished runs: results loaded, refused or compared, estimates, paired differences, verdicts.

Numbers come from result.json files alone, so everything can be made again from them at any time.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.errors import SeqpopeError
from seqpope.statistics import bootstrap_difference, detectable_effect, estimate

# In these, twins, seeds of a recipe and the machines they ran on may differ.
RECIPE_FREE = ("position", "baseline", "seed", "seeds", "name", "out", "data_folder", "device", "side_by_side")

# Settings that came to the program after results had been written: those without were trained by these.
LATER: dict[str, Any] = {
    "model.longest_wavelength": 0.0,
    "model.magnitude": "softplus",
    "model.delta_window": 2048,
    "model.delta_learned": True,
    "optimizer.delta_rate": 1.0,
    "optimizer.delta_decay": 0.0,
}

OF_OTHERS = {  # what a domain's training does not read: in data, of the other domain
    "music": ("reverse_complement", "soft_mask_weight"),
    "genome": ("transpose",),
    "indexing": ("transpose", "reverse_complement", "soft_mask_weight"),
}

IN_BITS = {"base": "bases"}  # units, and their plural, whose NLL is told in bits: the custom of their field
TOLD_BY_ACCURACY = ("indexing",)  # domains whose reports have the share of targets that were the likeliest token
RESULT = "result.json"
READS = "test_reads.jsonl"
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
    results.sort(key=lambda r: (r["position"], seed_of(r), str(Path(r["folder"]).resolve())))
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


def seed_of(result: dict[str, Any]) -> int:
    """Seed of a run."""
    return int(result["trained"].get("seed", 0))


def check_comparable(results: list[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Refuse results of different data or protocol; name the recipe fields in which runs differ.

    Returns:
        For each recipe field that differs: the values that each encoding's runs have of it.

    Raises:
        SeqpopeError: data, tokens, split, strata, window, stride or scoring precision differ, or a seed of an
            encoding comes twice.
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
        key = (result["position"], seed_of(result))
        if key in seen:
            raise SeqpopeError(
                f"{seen[key]} and {result['folder']} are both {key[0]} with seed {key[1]}: compare one of them"
            )
        seen[key] = result["folder"]
    recipes = [_recipe(result) for result in results]
    differing: dict[str, dict[str, list[Any]]] = {}
    for name in sorted({name for one in recipes for name in one}):
        values: dict[str, list[Any]] = {}
        for result, one in zip(results, recipes, strict=True):
            group = values.setdefault(result["position"], [])
            if one.get(name) not in group:
                group.append(one.get(name))
        if any(group != values[first["position"]] or len(group) > 1 for group in values.values()):
            differing[name] = values
    return differing


def _compared(result: dict[str, Any]) -> dict[str, Any]:
    data = {
        "data set": result["dataset"],
        "data (content hash)": result["content"],
        "tokenizer (fingerprint)": result["fingerprint"],
        "split": result["split"],
        "set of strata": [*result["strata"]],
    }
    return data | {f"protocol's {name.replace('_', ' ')}": v for name, v in result["protocol"].items()}


def recipe(config: dict[str, Any]) -> dict[str, Any]:
    """What of a run's settings bears on what it learns: no names, no places, nothing that its domain ignores."""
    kept = {name: value for name, value in config.items() if name not in RECIPE_FREE}
    others = OF_OTHERS.get(config.get("domain", ""), ())
    if isinstance(data := kept.get("data"), dict):
        kept["data"] = {name: value for name, value in data.items() if name not in others}
    return kept


def _recipe(result: dict[str, Any]) -> dict[str, Any]:
    """What a run was trained by, flat; the precision is what `auto` became."""
    fields = LATER | flat(recipe(result["config"])) | {"training precision": precision_of(result)}
    fields.pop("precision", None)
    return fields


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return fields


def precision_of(result: dict[str, Any]) -> str:
    """Precision a run was trained in."""
    return str(result["trained"].get("precision", "unknown"))


def analyse(
    results: list[dict[str, Any]], differing: dict[str, dict[str, list[Any]]] | None = None
) -> dict[str, Any]:
    """Estimates by encoding and paired differences between each two encodings, as plain values.

    Args:
        differing: what `check_comparable` found; it bears on what may be claimed.
    """
    groups = group_by_position(results)
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
            "seeds": [seed_of(r) for r in group],
            "nats_per_token": over_seeds(group, lambda r: r["nats_per_token"]),
            "paper_protocol": over_seeds(group, lambda r: r["paper_protocol"]["nats_per_token"])
            if first["paper_protocol"]["tokens"]
            else None,
            "accuracy": over_seeds(group, lambda r: r["accuracy"])
            if first.get("domain") in TOLD_BY_ACCURACY
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
    return {
        "encodings": encodings,
        "differences": differences,
        "baselines": first["baselines"],
        "references": [r for position, group in groups.items() for r in _against_references(position, group)],
    }


ALL = "all"  # in the place of a stratum


def _against_references(position: str, group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An encoding's runs against the best of the measured baselines, on all tokens and in each stratum.

    The best is the one that is best on the very tokens compared, which favours it. Differences are in
    nats/token, of the mean over seeds, with a bootstrap over documents.
    """
    references = group[0].get("references")
    if not references or not references["baselines"]:
        return []
    baselines, found = references["baselines"], []
    for stratum in (ALL, *group[0]["strata"]):
        if stratum == ALL:
            tokens = [d["tokens"] for d in group[0]["documents"]]
            nats = [[d["nats"] for d in r["documents"]] for r in group]
            measured = baselines
        else:
            tokens = references["tokens"][stratum]
            nats = [r["references"]["nats"][stratum] for r in group]
            measured = {name: value["strata"][stratum] for name, value in baselines.items()}
        if not sum(tokens):
            continue
        best = min(measured, key=lambda name: measured[name]["nats_per_token"])
        mean, low, high = bootstrap_difference(
            np.mean(nats, axis=0), np.array(measured[best]["documents"]), np.array(tokens), resamples=2000
        )
        found.append(
            {
                "encoding": position,
                "stratum": stratum,
                "tokens": int(sum(tokens)),
                "documents": int(np.count_nonzero(tokens)),
                "nats_per_token": float(np.sum(np.mean(nats, axis=0)) / sum(tokens)),
                "baselines": {name: value["nats_per_token"] for name, value in measured.items()},
                "best": best,
                "difference": {"mean": mean, "low": low, "high": high},
                "verdict": "beats" if high < 0 else "does not beat" if low > 0 else "cannot be told apart from",
            }
        )
    return found


def group_by_position(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results of each encoding, in order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["position"], []).append(result)
    return groups


def _alike(values: list[list[Any]]) -> bool:
    return all(len(group) == 1 and group == values[0] for group in values)


def _difference(group_a: list[dict[str, Any]], group_b: list[dict[str, Any]]) -> dict[str, Any]:
    by_seed_a = {seed_of(r): r for r in group_a}
    by_seed_b = {seed_of(r): r for r in group_b}
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


LENGTHS = "lengths-test"  # files of this name are of the test split
WITH_YARN = "+yarn"  # behind an encoding's name: its weights, read through YaRN
_YARN = "-yarn"
_LENGTHS_FIELDS: dict[str, type | tuple[type, ...]] = {  # what a report needs of a run read in several lengths
    **dict.fromkeys(("position", "dataset", "split", "fingerprint", "content", "device", "date"), str),
    **dict.fromkeys(("targets", "scores", "protocol", "trained", "config"), dict),
    "trained_length": int,
    "commit": (str, type(None)),
}


def find_lengths(paths: Sequence[Path], name: str = LENGTHS) -> list[Path]:
    """The files of one protocol that `seqpope evaluate --lengths` wrote of runs, one a run.

    Args:
        paths: folders of runs, or of experiments, of which all runs are taken that hold such a file.
        name: of the files, or its beginning up to a hyphen where one protocol alone begins so in all runs. A file
            with YaRN is taken before the same one without it.

    Raises:
        SeqpopeError: a folder holds none, the runs have no protocol in common, or several.
    """
    name = name.removesuffix(".json").removesuffix(_YARN)
    runs: dict[Path, dict[str, Path]] = {}  # a run named twice, by whatever path, is one run
    for path in map(Path, paths):
        below = sorted({file.parent for file in path.glob("*/lengths-*.json")})
        own = [path] if _lengths_in(path, name) else below
        found = {run.resolve(): files for run in own if (files := _lengths_in(run, name))}
        if not found:
            there = sorted({protocol for run in (path, *below) for protocol in _lengths_in(run, "lengths")})
            raise SeqpopeError(
                f"{path} holds no {name}.json and no {name}-*.json"
                + (f", but {', '.join(there)}: name one of these" if there else "")
                + f"{', or' if there else ':'} make it with `seqpope evaluate {path} --lengths 2048,4096,...`"
            )
        runs |= found
    every = sorted({protocol for files in runs.values() for protocol in files})
    shared = [protocol for protocol in every if all(protocol in files for files in runs.values())]
    if not shared:
        raise SeqpopeError(
            f"the runs were not read alike, no one of {', '.join(every)} is in all of them: score them with the "
            "same `seqpope evaluate --lengths`"
        )
    if len(shared) > 1:
        raise SeqpopeError(f"{name} is the beginning of {' and '.join(shared)}: name one of them")
    return [files[shared[0]] for files in runs.values()]


def _lengths_in(run: Path, name: str) -> dict[str, Path]:
    """A run's files that a name means, by protocol: that is their own name without what YaRN adds to it."""
    files: dict[str, Path] = {}
    for file in sorted(run.glob("lengths-*.json"), key=lambda file: file.stem):  # one with YaRN behind its like
        protocol = file.stem.removesuffix(_YARN)
        if protocol == name or protocol.startswith(f"{name}-"):
            files[protocol] = file
    return {name: files[name]} if name in files else files


def load_lengths(paths: Sequence[Path], name: str = LENGTHS) -> list[dict[str, Any]]:
    """Read what `seqpope evaluate --lengths` wrote of runs, each with its folder under "folder", in order.

    Args:
        paths, name: as for `find_lengths`.

    Raises:
        SeqpopeError: `find_lengths` does, a file cannot be read, they differ in data or protocol, or a seed of an
            encoding comes twice.
    """
    results = [_load_lengths(file) for file in find_lengths(paths, name)]
    results.sort(key=lambda r: (r["position"], seed_of(r), str(Path(r["folder"]).resolve())))
    first = results[0]
    for result in results[1:]:
        one, other = _read_alike(first), _read_alike(result)
        for field in one:
            if one[field] != other[field]:
                raise SeqpopeError(
                    f"{first['folder']} and {result['folder']} cannot be compared: their {field} differs, "
                    f"{one[field]!r} and {other[field]!r}; compare runs scored alike on the same data"
                )
    for label, runs in group_by_label(results).items():
        seeds = [seed_of(result) for result, _ in runs]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            folders = " and ".join(r["folder"] for r, _ in runs if seed_of(r) == twice[0])
            raise SeqpopeError(f"{folders} are both {label} with seed {twice[0]}: compare one of them")
    return results


def _load_lengths(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text())
        missing = [field for field, kind in _LENGTHS_FIELDS.items() if not isinstance(result[field], kind)]
        if missing:
            raise ValueError(f"{', '.join(missing)}: of another kind than expected")
        result["protocol"]["lengths"], result["protocol"]["strides"], result["protocol"]["precision"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise SeqpopeError(
            f"{file} is not what `seqpope evaluate --lengths` writes ({what}): delete it, score the run again"
        ) from error
    result["folder"] = str(file.parent)
    return result


def _read_alike(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "data set": result["dataset"],
        "data (content hash)": result["content"],
        "tokenizer (fingerprint)": result["fingerprint"],
        "split": result["split"],
        "training length": result["trained_length"],
        **{f"protocol's {name}": result["protocol"][name] for name in ("lengths", "strides", "precision")},
    }


def recipe_labels(configs: Sequence[dict[str, Any]]) -> list[str]:
    """What tells the recipes of runs of one encoding apart, such as ", delta_init zero"; seeds do not."""
    recipes = [LATER | flat(recipe(config)) for config in configs]
    # A field that only some have was added to the program between the runs.
    shared = set(recipes[0]).intersection(*recipes)
    differing = sorted(f for f in shared if any(one[f] != recipes[0][f] for one in recipes))
    return ["".join(f", {field.rsplit('.', 1)[-1]} {one[field]}" for field in differing) for one in recipes]


# A run read in several lengths, and of one way to read it a record for each length.
Reading = tuple[dict[str, Any], list[dict[str, Any]]]


def group_by_label(results: list[dict[str, Any]]) -> dict[str, list[Reading]]:
    """Runs read in several lengths by what they were read with.

    A label is the encoding's name; where runs of one encoding differ in a field of their recipe, its value
    stands behind it, such as "pope, delta_init uniform".
    """
    groups: dict[str, list[Reading]] = {}
    for group in group_by_position(results).values():
        for result, told in zip(group, recipe_labels([r["config"] for r in group]), strict=True):
            for encoding, records in result["scores"].items():
                groups.setdefault(encoding + told, []).append((result, records))
    return {label: groups[label] for label in sorted(groups)}


def analyse_lengths(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Estimates over seeds by label, length and set of targets, and paired differences, as plain values."""
    labels, groups = {}, group_by_label(results)
    for label, runs in groups.items():
        each = []
        for records in zip(*(records for _, records in runs), strict=True):
            entry: dict[str, Any] = {"length": records[0]["length"]}
            for name, parts in (("own", records), ("same_targets", [r["same_targets"] for r in records])):
                entry[name] = {
                    half: {
                        "tokens": parts[0][half]["tokens"],
                        "nats_per_token": vars(estimate([part[half]["nats_per_token"] for part in parts]))
                        if parts[0][half]["tokens"]
                        else None,
                    }
                    for half in ("whole", "second_half")
                }
            each.append(entry)
        labels[label] = {"seeds": [seed_of(result) for result, _ in runs], "lengths": each}
    return {
        "trained_length": results[0]["trained_length"],
        "protocol": results[0]["protocol"],
        "targets": results[0]["targets"],
        "encodings": labels,
        "differences": [_length_difference(a, b, groups) for a, b in itertools.combinations(groups, 2)],
    }


def _length_difference(a: str, b: str, groups: dict[str, list[Reading]]) -> dict[str, Any]:
    """Of each length, a - b over the seeds that both have, on the targets that all lengths share."""
    by_seed = [{seed_of(result): records for result, records in groups[label]} for label in (a, b)]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())

    def difference(seed: int, index: int, half: str) -> float:
        one, other = (each[seed][index]["same_targets"][half]["nats_per_token"] for each in by_seed)
        return float(one - other)

    records = groups[a][0][1]
    return {
        "a": a,
        "b": b,
        "seeds": seeds,
        "lengths": [
            {
                half: vars(estimate([difference(seed, index, half) for seed in seeds]))
                if seeds and record["same_targets"][half]["tokens"]
                else None
                for half in ("whole", "second_half")
            }
            for index, record in enumerate(records)
        ],
    }
