"""A study as a picture: each seed a dot, or NLL by length, or curves where it is a matter of when."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seqpope.figures import COLOURS, GREY, OTHER_COLOURS, as_png, load_pyplot
from seqpope.reproduce.lengths import series_of
from seqpope.results import WITH_YARN


def _colours(document: Mapping[str, Any]) -> list[str]:
    """One a row: its encoding's for the first of that encoding, then others."""
    others, taken, found = iter(OTHER_COLOURS * 4), set(), []
    for row in document["rows"]:
        colour = COLOURS.get(row["encoding"])
        found.append(colour if colour and colour not in taken else next(others))
        taken.add(found[-1])
    return found


def draw_study(document: Mapping[str, Any]) -> bytes:
    """PNG of a study's document."""
    if any(row.get("lengths") for row in document["rows"]):
        return _draw_lengths(document)
    if any(row.get("curves") for row in document["rows"]):
        return _draw_curves(document)
    return _draw_dots(document)


def _draw_dots(document: Mapping[str, Any]) -> bytes:
    rows, accuracy = document["rows"], document["measure"] == "accuracy"
    figure, axes = load_pyplot().subplots(figsize=(8, 1.2 + 0.55 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        colour = COLOURS.get(row["encoding"], GREY)
        values = np.array(row["values"])
        axes.plot(values, np.full(len(values), place), "o", color=colour, alpha=0.6, markersize=6, clip_on=False)
        axes.plot([values.mean()] * 2, [place - 0.28, place + 0.28], color=colour, linewidth=2)
        if row["published"] is not None:
            axes.plot(row["published"], place, "x", color=GREY, markersize=7)
    if any(row["published"] is not None for row in rows):
        axes.plot([], [], "x", color=GREY, label="published")
    axes.plot([], [], "o", color=GREY, alpha=0.6, label="a seed")
    axes.plot([], [], color=GREY, linewidth=2, label="their mean")
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if accuracy:
        axes.set_xlim(0, 100)
    axes.set(xlabel="test accuracy, %" if accuracy else "test NLL, nats/token", title=document["title"])
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return as_png(figure)


def _draw_curves(document: Mapping[str, Any]) -> bytes:
    figure, axes = load_pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    for row, colour in zip(document["rows"], _colours(document), strict=True):
        for number, curve in enumerate(row.get("curves", [])):
            steps = [step for step, _ in curve]
            nats = [math.nan if value is None else value for _, value in curve]
            label = f"{row['label']}: {row['solved']} of {len(row['seeds'])} solved" if number == 0 else None
            axes.plot(steps, nats, color=colour, linewidth=1, alpha=0.8, label=label)
    axes.set(xlabel="optimiser step", ylabel="validation NLL of the target, nats", title=document["title"])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return as_png(figure)


def _second_halves(by_length: Mapping[str, Any]) -> np.ndarray:
    """(lengths, seeds) nats/token; nan where nothing is scored."""
    return np.array([value["second_half"] for value in by_length.values()], float)


def enlarged_range(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """From the least to the most NLL of the series that end in the lowest fifth at the longest length.

    None where that is one series or all, or where they take more than a third of what all take: then they can be
    told apart as they are.
    """
    found = [values for row in rows for values in map(_second_halves, series_of(row).values())]
    found = [values for values in found if values.size and np.isfinite(values).all()]
    last = np.array([values[-1].mean() for values in found])
    if not last.size:
        return None
    low = last <= last.min() + (last.max() - last.min()) / 5
    if not 1 < low.sum() < len(last):
        return None
    kept = np.concatenate([values for values, kept in zip(found, low, strict=True) if kept], axis=None)
    every = np.concatenate(found, axis=None)
    least, most = float(kept.min()), float(kept.max())
    return (least, most) if 0 < most - least <= (every.max() - every.min()) / 3 else None


def _draw_lengths(document: Mapping[str, Any]) -> bytes:
    """NLL by what is read at once, and by position in the longest window that many documents fill.

    What lies close together beside what collapses is enlarged in a panel of its own.
    """
    rows = document["rows"]
    enlarged = enlarged_range(rows)
    size = (14 if enlarged is None else 18, max(4.8, 0.4 * len(rows)))
    figure, panels = load_pyplot().subplots(1, 2 if enlarged is None else 3, figsize=size, layout="constrained")
    axes, places, halves = panels[0], panels[-1], panels[:-1]
    places.sharey(axes)
    places.tick_params(labelleft=enlarged is not None)  # not those of its neighbour
    for number, (row, colour) in enumerate(zip(rows, _colours(document), strict=True)):
        common: dict[str, Any] = {"color": colour, "zorder": 3 + len(rows) - number}  # the first is hidden by none
        for label, by_length in series_of(row).items():
            style = {**common, "linestyle": "--" if label != row["label"] else "-"}
            lengths = [int(length) for length in by_length]
            values = _second_halves(by_length)
            own = label if label == row["label"] else None
            for panel in halves:
                named = own if panel is axes else None
                panel.plot(lengths, values.mean(1), marker="o", markersize=4, label=named, **style)
                if values.shape[1] > 1 and np.isfinite(values).all():
                    least, most = values.min(1), values.max(1)
                    panel.fill_between(lengths, least, most, color=colour, alpha=0.15, linewidth=0)
        for name, bins in row.get("positions", {}).get("nats_per_token", {}).items():
            start, end, nats = np.array(bins, float).reshape(-1, 3).T
            style = {**common, "linestyle": "--" if name.endswith(WITH_YARN) else "-"}
            places.plot(np.sqrt((start + 1) * end), nats, linewidth=1.2, **style)
    trained = rows[0]["recipe"].get("data", {}).get("length")
    for each in panels:
        if trained:
            each.axvline(trained, color=GREY, linestyle=":", linewidth=1)
        each.set_xscale("log", base=2)
    first = next(row for row in rows if row.get("lengths"))
    lengths = [int(length) for length in next(iter(first["lengths"].values()))]
    shown = [n for n, after in itertools.pairwise(lengths) if after >= 1.3 * n] + lengths[-1:]
    for panel in halves:
        panel.set_xticks(shown, [f"{n:,}" for n in shown])
        panel.minorticks_off()
        panel.set(xlabel="tokens read at once")
    if enlarged is not None:
        room = 0.05 * (enlarged[1] - enlarged[0])
        panels[1].set(ylim=(enlarged[0] - room, enlarged[1] + room), title="the same, enlarged")
    split = document.get("lengths_split", "test")
    axes.set(ylabel=f"{split} NLL, nats/token", title="second halves of windows")
    at = first["positions"]
    # Each a few times the one before, so that numbers do not run into each other.
    ticks = [1]
    for n in (*(n for n in (8, 64, 512) if 3 * n < lengths[0]), *lengths):
        if 3 * ticks[-1] < n <= at["length"]:
            ticks.append(n)
    places.set_xticks(ticks, [f"{n:,}" for n in ticks])
    places.minorticks_off()
    places.set(
        xlabel="tokens read before and with the target",
        title=f"windows of {at['length']:,}, {at['documents']:,} documents",
    )
    if any(len(series_of(row)) > 1 for row in rows):
        axes.plot([], [], color=GREY, linestyle="--", label="the same read through YaRN")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(document["title"])
    return as_png(figure)
