"""What may stand together: seeds in one row of a study, rows in one table; and parts of a row as one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from seqpope.errors import SeqpopeError
from seqpope.reproduce.studies import SOLVED, Arm, arm_config, is_read, shortened
from seqpope.results import LATER, flat, recipe, seed_of

Row = Mapping[str, Any]
OF_ALL = ("steps", "precision", "device", "commits")  # of a row: sorted, each once
# Settings that may differ between seeds of a row: the precision trained in is told beside them.
_MACHINES = ("precision", "compile")


def each_seed(row: Row) -> dict[tuple[str, ...], list[Any]]:
    """All that a row has a number of for each seed, by the names on the way to it."""
    found: dict[tuple[str, ...], list[Any]] = {
        (name,): row[name] for name in ("seeds", "values", "validation", "best_step", "minutes")
    }
    found |= {("units", unit): values for unit, values in row["units"].items()}
    if "solved" in row:
        found["solved_at",] = row["solved_at"]
    for name, by_length in row.get("lengths", {}).items():
        for length, parts in by_length.items():
            found |= {("lengths", name, length, which): values for which, values in parts.items()}
    return found


def differs(arm: Arm, found: Mapping[str, Any], share: float) -> dict[str, list[Any]]:
    """Settings of a recipe that the arm's, at that share of its steps, has otherwise: [the arm's, found]."""
    wanted = flat(recipe(shortened(arm_config(arm), share).as_dict()))
    return {
        name: [wanted[name], value]
        for name, value in flat(dict(found)).items()
        if name in wanted and wanted[name] != value
        if name not in ("eval_length", "eval_stride", "dataset", *_MACHINES) and is_read(name, arm.position)
    }


def measured_on(row: Row) -> dict[str, Any]:
    """What numbers must share to stand in one table: data, windows, targets."""
    found = {
        "data set": row["dataset"],
        "data (content hash)": row["data"],
        "window": row["protocol"]["window"],
        "stride": row["protocol"]["stride"],
        "number of targets": row["tokens_scored"],
    }
    if "length_targets" in row:
        same = row["length_targets"]["same"]
        found["precision at several lengths"] = row["length_targets"]["precision"]
        found["targets at several lengths"] = f"{same['tokens']} of {same['documents']} documents"
    return found


def check_alike(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuse arms, (label, what they are measured on), whose numbers cannot stand in one table.

    Raises:
        SeqpopeError: two differ in something that both tell.
    """
    for label, found in measured[1:]:
        first, wanted = measured[0]
        for name in wanted.keys() & found.keys():
            if found[name] != wanted[name]:
                raise SeqpopeError(
                    f"{first} and {label} cannot be compared: their {name} differs, {wanted[name]!r} and "
                    f"{found[name]!r}; take runs scored alike on the same data, and give its --data-folder"
                )


def check_seeds(label: str, results: Sequence[dict[str, Any]]) -> None:
    """Refuse results of an arm's runs, by rising seed, that are not seeds of one recipe measured alike.

    Raises:
        SeqpopeError: a seed comes twice, or two differ.
    """
    parts = [
        {
            **r,
            "seeds": [seed_of(r)],
            "encoding": r["position"],
            "recipe": recipe(r["config"]),
            "data": r["content"],
        }
        for r in results
    ]
    for one, other in itertools.combinations(parts, 2):
        if one["seeds"] == other["seeds"]:
            raise SeqpopeError(f"{label}: seed {one['seeds'][0]} comes twice: take each seed once")
        _check_one_recipe(label, one, other)


def _check_one_recipe(label: str, one: Row, other: Row) -> None:
    """Refuse parts of a row that were trained or scored differently."""
    first, second = (LATER | flat(dict(part["recipe"])) for part in (one, other))
    first, second = ({n: v for n, v in each.items() if is_read(n, one["encoding"])} for each in (first, second))
    first, second = ({n: v for n, v in each.items() if n not in _MACHINES} for each in (first, second))
    for part, settings in ((one, first), (other, second)):
        settings |= measured_on(part) | {f"protocol's {name}": v for name, v in part["protocol"].items()}
        settings |= {f"baseline {name}": v and round(v, 6) for name, v in part["baselines"].items()}
        settings["number of parameters"] = part["parameters"]
    for name in sorted(first.keys() & second.keys()):
        if first[name] != second[name]:
            raise SeqpopeError(
                f"{label}: seeds {one['seeds'][0]} and {other['seeds'][0]} differ in {name}, {first[name]!r} and "
                f"{second[name]!r}: expected seeds of one recipe, scored alike on the same data"
            )


def merge_rows(label: str, parts: Sequence[tuple[str, Row]]) -> dict[str, Any]:
    """One row of the seeds of several, whatever their order.

    It is what `row_of` would make of all their runs, but that curves of training stand in the order of the parts
    where some seeds have none. A seed that several have as the very same run counts once.

    Args:
        label: of the arm, for messages.
        parts: where each is from, for messages, and a row of the arm that is whole.

    Raises:
        SeqpopeError: two parts have a seed in common that is not the same run, or are of different recipes or
            data, or were not read alike in several lengths, or share a seed and cannot be taken apart.
    """
    for (where, one), (source, other) in itertools.combinations(parts, 2):
        _check_one_recipe(label, one, other)
        if "lengths" in one:
            _check_read_alike(label, one, other)
        _check_common(label, one, other, where, source)
    kept: list[Row] = []
    known: set[int] = set()
    for source, row in sorted(parts, key=_tells_most):
        new = [seed for seed in row["seeds"] if seed not in known]
        if new:
            kept.append(row if len(new) == len(row["seeds"]) else _without(label, row, known, source))
            known |= set(new)
    kept.sort(key=lambda row: min(row["seeds"]))
    return dict(kept[0]) if len(kept) == 1 else _joined(kept)


def _tells_most(part: tuple[str, Row]) -> tuple[int, int, str]:
    """Sorts parts so that of a run's copies that comes first which tells most."""
    source, row = part
    return -len(row["seeds"]), -len(row.get("curves", [])), source


def _check_common(label: str, one: Row, other: Row, where: str, source: str) -> None:
    """Refuse seeds that two rows have in common and that are not the same runs."""
    first, second = each_seed(one), each_seed(other)
    # What is told of the training alone may be missing where only a run's report was at hand.
    compared = [path for path in first.keys() & second.keys() if path[0] not in ("minutes", "solved_at")]
    for seed in sorted(set(one["seeds"]) & set(other["seeds"])):
        a, b = one["seeds"].index(seed), other["seeds"].index(seed)
        if any(first[path][a] != second[path][b] for path in compared):
            raise SeqpopeError(
                f"{label}: seed {seed} comes twice, by other runs, in {where} and in {source}: say what stands "
                f'for the arm with --take "{label}=...", commas between several'
            )


def _without(label: str, row: Row, known: Collection[int], source: str) -> dict[str, Any]:
    """A row without some of its seeds.

    Raises:
        SeqpopeError: it holds means over all of them.
    """
    if "positions" in row:
        raise SeqpopeError(
            f"{label}: {source} has seeds that others have too, and its curves by position are means over all of "
            f'its seeds: say what stands for the arm with --take "{label}=...", each seed once'
        )
    kept = [n for n, seed in enumerate(row["seeds"]) if seed not in known]
    left = dict(row)
    _put(left, {path: [values[n] for n in kept] for path, values in each_seed(row).items()})
    if "solved" in row:
        curves = row.get("curves", [])
        left["curves"] = [curves[n] for n in kept] if len(curves) == len(row["seeds"]) else []
        left["solved"] = sum(value > SOLVED for value in left["values"])
    return left


def _put(row: dict[str, Any], lists: Mapping[tuple[str, ...], list[Any]]) -> None:
    """Give a row these lists for what it has of each seed (`each_seed`), and no others."""
    row |= {name: {} for name in ("units", "lengths") if name in row}
    for path, values in lists.items():
        at = row
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = values


def _joined(rows: Sequence[Row]) -> dict[str, Any]:
    lists = [each_seed(row) for row in rows]
    seeds = [seed for row in rows for seed in row["seeds"]]
    order = sorted(range(len(seeds)), key=seeds.__getitem__)
    joined = dict(rows[0])
    joined |= {name: sorted({value for row in rows for value in row[name]}) for name in OF_ALL}
    shared = [path for path in lists[0] if all(path in each for each in lists)]
    every = {path: [value for each in lists for value in each[path]] for path in shared}
    _put(joined, {path: [values[n] for n in order] for path, values in every.items()})
    joined["recipe"] = _union([row["recipe"] for row in rows])
    joined["baselines"] = _union([row["baselines"] for row in rows])
    joined["differs_from_preset"] = _union([row["differs_from_preset"] for row in rows])
    joined["dates"] = [min(row["dates"][0] for row in rows), max(row["dates"][1] for row in rows)]
    if "solved" in joined:
        joined["solved"] = sum(row["solved"] for row in rows)
        curves = [curve for row in rows for curve in row.get("curves", [])]
        joined["curves"] = [curves[n] for n in order] if len(curves) == len(seeds) else curves
    if "positions" in joined:
        means = {name: _mean_curve(rows, name) for name in joined["positions"]["nats_per_token"]}
        joined["positions"] = {**joined["positions"], "nats_per_token": means}
    return joined


def _union(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All settings of any, the first's where several have one."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Mapping):
                found[name] = _union([found.get(name, {}), value])
            else:
                found.setdefault(name, value)
    return found


def _check_read_alike(label: str, one: Row, other: Row) -> None:
    def told(row: Row) -> dict[str, Any]:
        positions = row["positions"]
        return {
            "ways of reading": ", ".join(row["lengths"]),
            "lengths": ", ".join(next(iter(row["lengths"].values()))),
            "targets": row["length_targets"],
            "curves by position": (positions["length"], positions["documents"]),
            "bins": {n: [b[:2] for b in bins] for n, bins in positions["nats_per_token"].items()},
        }

    a, b = told(one), told(other)
    for name in a:
        if a[name] != b[name]:
            values = f", {a[name]} and {b[name]}" if isinstance(a[name], str) else ""
            raise SeqpopeError(
                f"{label}: seeds {one['seeds'][0]} and {other['seeds'][0]} were not read alike in several "
                f"lengths, their {name} differ{values}: take runs that one version of `seqpope reproduce` "
                "read, with or without YaRN"
            )


def _mean_curve(rows: Sequence[Row], name: str) -> list[list[float]]:
    """NLL by position, the mean over all seeds, from the rows' means over theirs."""
    counts = [len(row["seeds"]) for row in rows]
    curves = [row["positions"]["nats_per_token"][name] for row in rows]
    return [
        [bins[0][0], bins[0][1], math.fsum(c * b[2] for c, b in zip(counts, bins, strict=True)) / sum(counts)]
        for bins in zip(*curves, strict=True)
    ]
