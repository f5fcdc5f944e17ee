"""Figures of what `inspect` found, from its result alone: magnitudes by layer and head, delta. PNG out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from seqpope.figures import GREY, as_png, colours_of, in_words, load_pyplot

TITLES = {"query": "query", "key": "key", "product": "query x key, share of the score"}
MAGNITUDES, SHARES, SIGNED, ANGLES = "viridis", "magma", "RdBu_r", "twilight_shifted"  # colour maps
STARTED = {  # delta, by model.delta_init
    "zero": "started at 0",
    "uniform": "started uniformly on [-2 pi, 0]",
    "centred": "started uniformly on [-pi, pi]",
    "local": "started uniformly where waves are short (model.delta_window), else at 0",
}
BRIGHTEST = 98  # percentile that a scale ends at: one outlier would leave all else dark


def _edges(wavelengths: Sequence[float]) -> np.ndarray:
    """Where cells of a heat map end, half way between neighbours on a logarithmic axis: (F,) -> (F + 1,)."""
    x = np.log(np.asarray(wavelengths, np.float64))
    if len(x) == 1:
        return np.exp(np.array([x[0] - 0.5, x[0] + 0.5]))
    middle = (x[1:] + x[:-1]) / 2
    return np.exp(np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]]))


def _heat(axes: Any, group: dict[str, Any], values: np.ndarray, **style: Any) -> Any:
    """Rows of values (rows, F) over wavelengths, the first row on top, the training window marked."""
    from matplotlib import patheffects

    rows = np.arange(len(values) + 1) + 0.5
    mesh = axes.pcolormesh(_edges(group["wavelengths"]), rows, values, rasterized=True, **style)
    axes.invert_yaxis()
    _wavelength_axis(axes, group["trained_length"], "white")
    # Seen on light colours and on dark.
    axes.lines[-1].set_path_effects([patheffects.withStroke(linewidth=2.6, foreground="black")])
    return mesh


def _wavelength_axis(axes: Any, trained: int, colour: str = GREY) -> None:
    axes.set_xscale("log")
    axes.axvline(trained, color=colour, linewidth=1.2, linestyle="--")


def _runs(group: dict[str, Any]) -> str:
    count = len(group["runs"])
    return f"mean of {count} seeds" if count > 1 else "1 run"


def draw_magnitudes(result: dict[str, Any]) -> bytes:
    """Heat maps of layer x wavelength: mean magnitudes of queries and keys, and the share of their product.

    A row of panels for each label; a column has one scale, so that labels can be compared.
    """
    pyplot = load_pyplot()
    groups = result["groups"]
    layers = max(len(group["magnitudes"]["key"]) for group in groups.values())
    height = 0.9 + len(groups) * max(1.9, min(4.5, 0.9 + 0.17 * layers))
    figure, panels = pyplot.subplots(
        len(groups), 3, figsize=(12, height), layout="constrained", squeeze=False, sharex=True
    )
    shown = {(label, name): _panel_values(group, name) for label, group in groups.items() for name in TITLES}
    for column, (name, title) in enumerate(TITLES.items()):
        every = np.concatenate([shown[label, name].ravel() for label in groups])
        top = float(np.percentile(every, BRIGHTEST))
        for row, (label, group) in enumerate(groups.items()):
            axes = panels[row, column]
            style = {"cmap": SHARES if name == "product" else MAGNITUDES, "vmin": 0, "vmax": top}
            mesh = _heat(axes, group, shown[label, name], **style)
            axes.set_title(title if row == 0 else "", fontsize=9)
            axes.yaxis.get_major_locator().set_params(integer=True)
            if column == 0:
                axes.set_ylabel(f"{in_words(label)}\n({_runs(group)})\nlayer")
            if row == len(groups) - 1:
                axes.set_xlabel("wavelength, tokens")
        bar = figure.colorbar(mesh, ax=panels[:, column].tolist(), aspect=40, pad=0.02, extend="max")
        bar.set_label("share of a layer, % an octave" if name == "product" else "mean magnitude", fontsize=8)
    figure.suptitle(f"{_what(result)}: magnitude by layer and wavelength (dashed: the training window)")
    return as_png(figure)


def _panel_values(group: dict[str, Any], name: str) -> np.ndarray:
    """(layers, F): mean magnitudes, or for the product percent of its layer in an octave of wavelengths."""
    values = np.array(group["magnitudes"][name])
    if name != "product":
        return values
    octaves = np.diff(np.log2(_edges(group["wavelengths"])))  # RoPE has half as many, twice as wide
    return 100 * values / values.sum(1, keepdims=True) / octaves


def _what(result: dict[str, Any]) -> str:
    return f"{result['dataset']}, {result['split']} ({result['protocol']['tokens']:,} tokens)"


def draw_heads(result: dict[str, Any], name: str) -> bytes:
    """Mean magnitude against wavelength, a panel for each layer: all seeds' heads thin, mean thick.

    Args:
        name: query or key.
    """
    pyplot = load_pyplot()
    from matplotlib import patheffects

    groups, runs = result["groups"], result["runs"]
    layers = max(len(group["magnitudes"][name]) for group in groups.values())
    columns = 4 if layers % 4 == 0 else min(3, layers)  # layers side by side, few places empty
    rows = math.ceil(layers / columns)
    figure, panels = pyplot.subplots(
        rows,
        columns,
        figsize=(max(6, 3 * columns), 1 + 2.2 * rows),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    halo = [patheffects.withStroke(linewidth=3.5, foreground="white")]
    lines = []
    for label, colour in colours_of(groups).items():
        group = groups[label]
        own = [np.array(run["magnitudes"][name]) for run in runs if run["label"] == label]
        x, heads = group["wavelengths"], np.concatenate(own, axis=1)  # (layers, seeds x H, F)
        faint = min(0.4, 6 / heads.shape[1])
        for layer, mean in enumerate(group["magnitudes"][name]):
            axes = panels.flat[layer]
            axes.plot(x, heads[layer].T, color=colour, linewidth=0.6, alpha=faint)
            [line] = axes.plot(
                x, mean, color=colour, linewidth=2, zorder=4, path_effects=halo, label=in_words(label)
            )
        lines.append(line)
    lengths = sorted({group["trained_length"] for group in groups.values()})
    for layer, axes in enumerate(panels.flat):
        if layer >= layers:
            axes.set_visible(False)
            continue
        axes.set_title(f"layer {layer + 1}", fontsize=9)
        for length in lengths:
            _wavelength_axis(axes, length)
        if layer >= layers - columns:
            axes.set_xlabel("wavelength, tokens")
            axes.tick_params(labelbottom=True)
        if layer % columns == 0:
            axes.set_ylabel(f"mean |{name}|, square-root axis")
        # A head with one strong frequency would leave all others at the bottom.
        axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
        axes.set_ylim(bottom=0)
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    figure.suptitle(f"{_what(result)}: {name} magnitude of each head (dashed: the training window)")
    return as_png(figure)


def draw_delta(result: dict[str, Any]) -> bytes | None:
    """Learned phase biases of each run: heat map of heads x wavelength, and their size against wavelength.

    None if no run has any.
    """
    runs = [run for run in result["runs"] if run["delta"] is not None]
    if not runs:
        return None
    pyplot = load_pyplot()
    shape = [np.array(run["delta"]["wrapped"]).shape for run in runs]
    height = sum(max(2.6, min(7.0, 1 + 0.06 * layers * heads)) for layers, heads, _ in shape)
    figure, panels = pyplot.subplots(
        len(runs), 2, figsize=(12, 0.8 + height), layout="constrained", squeeze=False, width_ratios=(3, 2)
    )
    for row, run in enumerate(runs):
        delta = np.array(run["delta"]["wrapped"])  # (layers, H, F)
        layers, heads, count = delta.shape
        largest = float(np.abs(delta).max())
        turned = largest > math.pi / 2
        limit = math.pi if turned else max(largest, 1e-6)
        style = {"cmap": ANGLES if turned else SIGNED, "vmin": -limit, "vmax": limit}
        axes = panels[row, 0]
        mesh = _heat(axes, run, delta.reshape(layers * heads, count), **style)
        for layer in range(1, layers):
            axes.axhline(layer * heads + 0.5, color="black", linewidth=0.6)
        axes.set_yticks([(layer + 0.5) * heads + 0.5 for layer in range(layers)], range(1, layers + 1))
        started = STARTED[run["delta"]["init"]]
        name = f"{in_words(run['label'])}, {run['run']}"
        axes.set(ylabel=f"layer ({heads} heads each)", title=f"{name}: delta, {started}")
        axes.title.set_fontsize(9)
        figure.colorbar(mesh, ax=axes, pad=0.02).set_label("radians", fontsize=8)
        axes = panels[row, 1]
        shades = pyplot.get_cmap(MAGNITUDES)(np.linspace(0, 0.9, layers))
        for layer in range(layers):
            size = np.abs(delta[layer]).mean(0)
            axes.plot(run["wavelengths"], size, color=shades[layer], linewidth=1.2, label=str(layer + 1))
        _wavelength_axis(axes, run["trained_length"])
        axes.set_ylim(bottom=0)
        axes.set(ylabel="mean |delta| over heads, radians")
        outside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
        axes.legend(title="layer", **outside, fontsize=7, title_fontsize=7, ncols=math.ceil(layers / 18))
    for axes in panels[-1]:
        axes.set_xlabel("wavelength, tokens")
    figure.suptitle("Learned phase biases, wrapped to [-pi, pi] (dashed: the training window)")
    return as_png(figure)
