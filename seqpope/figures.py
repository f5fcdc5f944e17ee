"""Figures of finished runs: loss curves, NLL against position, beyond the training length too. PNG out."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.results import group_by_label, group_by_position

COLOURS = {"pope": "#0b6e99", "rope": "#d1541f", "rope+yarn": "#b8860b", "alibi": "#3a7d44", "nope": "#4d4d4d"}
COLOURS |= {"pope, delta_init zero": COLOURS["pope"], "pope, delta_init uniform": "#7b4fa3"}
WORDS = {"pope": "PoPE", "rope": "RoPE", "rope+yarn": "RoPE with YaRN", "yarn": "YaRN", "alibi": "ALiBi"}
WORDS |= {"nope": "no positions", "pope+yarn": "PoPE with YaRN", "pope-yarn": "PoPE trained with YaRN"}
COLOURS["pope+yarn"] = "#5b9bd5"
OTHER_COLOURS = ("#c2477f", "#e6ab02", "#6b8e23", "#8c564b", "#17a2b8", "#5b7fb5", "#7570b3", "#1b9e77", "#f08080")
GREY = "#666666"


def read_curve(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by what was logged of training and validation; a resumed start overrides later steps.

    Nats/token, and accuracy as a share of the scored targets.
    """
    columns = ("train_nats_per_token", "validation_nats_per_token", "validation_accuracy")
    curves: dict[str, dict[int, float]] = {name: {} for name in columns}
    versions = [f for f in (run / "logs").glob("version_*/metrics.csv") if f.parent.name[8:].isdigit()]
    for file in sorted(versions, key=lambda f: int(f.parent.name[8:])):
        with open(file, newline="", errors="replace") as handle:
            read = {name: [] for name in columns}  # type: dict[str, list[tuple[int, float]]]
            for row in csv.DictReader(handle):
                for name in columns:
                    # A start stopped before its first validation has no such column; a power cut can leave half
                    # a line. A picture is not worth failing for.
                    with contextlib.suppress(ValueError, TypeError, KeyError):
                        read[name].append((int(row["step"]), float(row[name])))
        begun = min((step for rows in read.values() for step, _ in rows), default=None)
        if begun is None:
            continue
        for name in columns:
            curves[name] = {step: value for step, value in curves[name].items() if step < begun}
            curves[name] |= dict(read[name])
    return {name: sorted(curve.items()) for name, curve in curves.items()}


def colours_of(positions: Iterable[str]) -> dict[str, str]:
    """A colour for each encoding, or label that begins with one."""
    others = itertools.cycle(OTHER_COLOURS)
    return {p: COLOURS[p] if p in COLOURS else next(others) for p in sorted(set(positions))}


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean over the last `width` values, over fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_loss(results: list[dict[str, Any]]) -> bytes | None:
    """Curves of every run as PNG, with test NLL of what is tested and of baselines; None if no run has logs."""
    curves = [read_curve(Path(r["folder"])) for r in results]
    if not any(curve for run in curves for curve in run.values()):
        return None
    pyplot = load_pyplot()
    from matplotlib.lines import Line2D

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    shown: list[float] = []
    highest, width, legend = 0.0, 1, []
    for position, colour in colours_of(r["position"] for r in results).items():
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
                mark: dict[str, Any] = {"color": colour, "markeredgecolor": "white", "zorder": 5}
                axes.plot(best, validation[best], "o", markersize=4, **mark)
                axes.plot(best, result["nats_per_token"], "D", markersize=4, **mark)
                shown.append(result["nats_per_token"])
        common = sorted(set.intersection(*map(set, validations)))
        if len(group) > 1 and common:
            mean = [np.mean([v[step] for v in validations]) for step in common]
            axes.plot(common, mean, color=colour, linewidth=2)
        seeds = f"mean of {len(group)} seeds, each thin" if len(group) > 1 else "1 seed"
        legend.append(Line2D([], [], color=colour, linewidth=2, label=f"{position}, validation, {seeds}"))
    training = "training, each seed" + (f" (running mean of {width} logged batches)" if width > 1 else "")
    legend.append(Line2D([], [], color=GREY, linewidth=0.8, linestyle="--", label=training))
    if any(c["validation_nats_per_token"] for c in curves):
        for marker, label in ("o", "weights that are tested"), ("D", "their NLL on test, as the dotted lines' is"):
            legend.append(Line2D([], [], color=GREY, marker=marker, markersize=4, linestyle="", label=label))
    # The first steps are far above all that matters; what was learned shall fill the picture.
    low, top = min(shown), min(highest * 1.05, min(shown) * 4)
    within = {n: v for n, v in results[0]["baselines"].items() if v is not None and low < v < top}
    labels: list[tuple[list[str], float]] = []  # lines so near each other that their names would overlap share one
    for name, value in sorted(within.items(), key=lambda item: item[1]):
        axes.axhline(value, color=GREY, linewidth=0.8, linestyle=":")
        if labels and value - labels[-1][1] < 0.035 * (top - low):
            labels[-1] = ([*labels[-1][0], name], value)
        else:
            labels.append(([name], value))
    for names, value in labels:
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        text = "; ".join(names)
        axes.annotate(text, (0.995, value), (0, 1), **place, ha="right", va="bottom", fontsize=7, color=GREY)
    axes.set_ylim(low - 0.05 * (top - low), top)
    axes.set(
        xlabel="optimiser step", ylabel="nats/token", title=f"{results[0]['dataset']}: training and validation"
    )
    axes.legend(handles=legend, frameon=False, fontsize=8)
    return as_png(figure)


def draw_position(results: list[dict[str, Any]]) -> bytes:
    """NLL against position in the piece, mean over seeds of each encoding, as PNG."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    groups = group_by_position(results)
    bins = [i for i, b in enumerate(results[0]["by_position"]) if b["tokens"]]
    ends = [(results[0]["by_position"][i]["from"], results[0]["by_position"][i]["to"]) for i in bins]
    middle = [math.sqrt(max(1, low) * high) for low, high in ends]
    for position, colour in colours_of(groups).items():
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
    return as_png(figure)


FIRST_SHOWN = 16  # tokens read: bins before hold a handful of targets, and all models start alike


def in_words(label: str) -> str:
    """What a reader calls an encoding, or one with a field of its recipe behind it."""
    encoding, comma, rest = label.partition(", ")
    return WORDS.get(encoding, encoding) + comma + rest.replace("_", " ")


def draw_extrapolation(results: list[dict[str, Any]]) -> bytes:
    """NLL against how much of the window was read, in windows of the longest length, as PNG.

    Args:
        results: what `load_lengths` returns.
    """
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    groups, trained = group_by_label(results), results[0]["trained_length"]
    shown, length = [], results[0]["protocol"]["lengths"][-1]
    for label, colour in colours_of(groups).items():
        curves = [records[-1]["by_position"] for _, records in groups[label]]
        bins = [i for i, b in enumerate(curves[0]) if b["tokens"] and b["from"] + 1 >= min(FIRST_SHOWN, length)]
        middle = [math.sqrt((curves[0][i]["from"] + 1) * curves[0][i]["to"]) for i in bins]
        values = np.array([[curve[i]["nats_per_token"] for i in bins] for curve in curves])
        for row in values if len(values) > 1 else []:
            axes.plot(middle, row, color=colour, linewidth=0.7, alpha=0.5)
        seeds = f"mean of {len(values)} seeds" if len(values) > 1 else "1 seed"
        axes.plot(middle, values.mean(0), color=colour, linewidth=2, label=f"{in_words(label)} ({seeds})")
        shown.append(values)
    if trained < length:
        axes.axvline(trained, color=GREY, linewidth=1, linestyle="--")
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        text = f"trained on windows of {trained:,}"
        axes.annotate(text, (trained, 0.98), (-4, 0), **place, ha="right", va="top", fontsize=8, color=GREY)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    low, high = _range(shown)
    margin = max(0.08 * (high - low), 0.05)
    axes.set_ylim(max(0.0, low - margin), high + margin)
    first = results[0]
    tokens = sum(b["tokens"] for b in next(iter(groups.values()))[0][1][-1]["by_position"])
    axes.set(
        xlabel=f"tokens read before the target, in windows of {length:,} (logarithmic)",
        ylabel="NLL, nats/token",
        title=f"{first['dataset']}, {first['split']}: beyond the training length ({tokens:,} targets)",
    )
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    return as_png(figure)


def _range(arrays: Iterable[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([array.ravel() for array in arrays])
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def load_pyplot() -> Any:
    """pyplot in this project's style, without a window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    return pyplot


def as_png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    load_pyplot().close(figure)
    return buffer.getvalue()
