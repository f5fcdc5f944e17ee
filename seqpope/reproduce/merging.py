"""What may stand together: seeds in one row of a study, rows in one table; and rows of several machines as one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from seqpope.errors import SeqpopeError
from seqpope.reproduce.studies import is_read
from seqpope.results import LATER, flat, recipe, seed_of

OF_EACH_SEED = ("seeds", "values", "validation", "best_step", "minutes")
_OF_ALL = ("steps", "precision", "device", "commits")  # sorted, each once


def measured_on(row: Mapping[str, Any]) -> dict[str, Any]:
    """What numbers must share to stand in one table: data, windows, targets."""
    return {
        "data set": row["dataset"],
        "data (content hash)": row["data"],
        "window": row["protocol"]["window"],
        "stride": row["protocol"]["stride"],
        "number of targets": row["tokens_scored"],
        **(
            {"precision at several lengths": row["length_targets"]["precision"]} if "length_targets" in row else {}
        ),
    }


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
    for before, part in itertools.pairwise(parts):
        _check_new(label, before, part)
    for part in parts[1:]:
        _check_one_recipe(label, parts[0], part)


def _check_new(label: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    twice = sorted(set(one["seeds"]) & set(other["seeds"]))
    if twice:
        raise SeqpopeError(f"{label}: seed {twice[0]} comes twice: take each seed once")


def _check_one_recipe(label: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    first, second = (LATER | flat(part["recipe"]) for part in (one, other))
    apart = [(name, first[name], second[name]) for name in sorted(first.keys() & second.keys())]
    apart = [(name, a, b) for name, a, b in apart if a != b and name not in ("precision", "compile")]
    apart = [values for values in apart if is_read(values[0], one["encoding"])]
    a, b = measured_on(one), measured_on(other)
    apart += [(name, a[name], b[name]) for name in a if name in b and a[name] != b[name]]
    if apart:
        name, *values = apart[0]
        raise SeqpopeError(
            f"{label}: seeds {one['seeds'][0]} and {other['seeds'][0]} differ in {name}, {values[0]!r} and "
            f"{values[1]!r}: expected seeds of one recipe, scored alike on the same data"
        )


def merge_rows(label: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of the seeds of several, as if all had been trained at once.

    Args:
        label: of the arm, for messages.
        rows: of the arm, as `row_of` makes them; whole.

    Raises:
        SeqpopeError: a seed comes twice, they are of different recipes or data, or were not read alike in
            several lengths.
    """
    merged = dict(rows[0])
    for row in rows[1:]:
        _check_new(label, merged, row)
        _check_one_recipe(label, merged, row)
        merged = _two(label, merged, row)
    return merged


def _two(label: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    seeds = [*one["seeds"], *other["seeds"]]
    order = sorted(range(len(seeds)), key=lambda n: seeds[n])

    def each(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
        both = [*a, *b]
        return [both[n] for n in order]

    merged = {**one, **{name: each(one[name], other[name]) for name in OF_EACH_SEED}}
    merged |= {name: sorted({*one[name], *other[name]}) for name in _OF_ALL}
    merged["units"] = {
        unit: each(values, other["units"][unit]) for unit, values in one["units"].items() if unit in other["units"]
    }
    merged["dates"] = [min(one["dates"][0], other["dates"][0]), max(one["dates"][1], other["dates"][1])]
    if "solved" in one:
        merged["solved"] = one["solved"] + other["solved"]
        merged["solved_at"] = each(one["solved_at"], other["solved_at"])
        # Those of seeds whose logs were there, which need not be all.
        merged["curves"] = [*one.get("curves", []), *other.get("curves", [])]
    if "lengths" in one:
        _check_read_alike(label, one, other)
        merged["lengths"] = {
            name: {
                length: {which: each(values[which], other["lengths"][name][length][which]) for which in values}
                for length, values in by_length.items()
            }
            for name, by_length in one["lengths"].items()
        }
        merged["positions"] = {
            **one["positions"],
            "nats_per_token": {
                name: _mean_curve((one, other), name) for name in one["positions"]["nats_per_token"]
            },
        }
    return merged


def _check_read_alike(label: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    def told(row: Mapping[str, Any]) -> dict[str, Any]:
        positions = {name: row["positions"][name] for name in ("length", "documents")}
        return {
            "encodings": {name: list(by_length) for name, by_length in row["lengths"].items()},
            "targets": row["length_targets"],
            "curves by position": positions,
        }

    a, b = told(one), told(other)
    for name in a:
        if a[name] != b[name]:
            raise SeqpopeError(
                f"{label}: seeds {one['seeds'][0]} and {other['seeds'][0]} were not read alike in several "
                f"lengths, their {name} are {a[name]} and {b[name]}: take runs read by one `seqpope reproduce`"
            )


def _mean_curve(rows: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """NLL by position, the mean over all seeds, from the rows' means over theirs."""
    counts = [len(row["seeds"]) for row in rows]
    curves = [row["positions"]["nats_per_token"][name] for row in rows]
    return [
        [bins[0][0], bins[0][1], sum(c * b[2] for c, b in zip(counts, bins, strict=True)) / sum(counts)]
        for bins in zip(*curves, strict=True)
    ]
