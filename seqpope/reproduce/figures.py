"""A study as a picture: each seed a dot, or NLL by length, or curves where it is a matter of when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from seqpope.figures import COLOURS, GREY, OTHER_COLOURS, as_png, load_pyplot


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


def _draw_lengths(document: Mapping[str, Any]) -> bytes:
    figure, axes = load_pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    for row, colour in zip(document["rows"], _colours(document), strict=True):
        for encoding, by_length in row.get("lengths", {}).items():
            yarn = encoding.endswith("+yarn")
            lengths = [int(length) for length in by_length]
            values = np.array(list(by_length.values()))  # (lengths, seeds)
            style: dict[str, Any] = {"color": colour, "linestyle": "--" if yarn else "-"}
            label = row["label"] + (" with YaRN" if yarn else "")
            axes.plot(lengths, values.mean(1), marker="o", markersize=4, label=label, **style)
            if values.shape[1] > 1:
                axes.fill_between(lengths, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)
    trained = document["rows"][0]["recipe"].get("data", {}).get("length")
    if trained:
        axes.axvline(trained, color=GREY, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.minorticks_off()
    axes.set(xlabel="tokens read at once", ylabel="test NLL, nats/token", title=document["title"])
    axes.legend(frameon=False, fontsize=8)
    return as_png(figure)
