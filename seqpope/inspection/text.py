"""What was found, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from seqpope.inspection.figures import STARTED
from seqpope.inspection.measure import WHAT
from seqpope.markdown import table

STRONGEST = 6  # frequencies that are named


def band_title(band: dict[str, Any]) -> str:
    """A band of wavelengths in words, such as "32 to 256"."""
    if band["beyond"]:
        return f"over {band['from']:g}"
    return f"{band['from']:g} to {band['to']:g}" if band["from"] else f"up to {band['to']:g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def beyond(group: dict[str, Any], name: str) -> list[float]:
    """Of each seed, the share of magnitude whose wavelength exceeds the training window, mean over layers."""
    last = len(group["bands"]) - 1
    return [seed[last] if group["bands"][last]["beyond"] else 0.0 for seed in group["shares_of_model"][name]]


def inspection_markdown(result: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """What `inspect_models` found as Markdown: shares of magnitude by band and layer, delta's statistics."""
    protocol = result["protocol"]
    parts = [
        f"# {result['dataset']}, {result['split']}: what each frequency is used for",
        f"Mean magnitudes on {protocol['tokens']:,} of {protocol['tokens_in_split']:,} tokens "
        f"({protocol['windows']} of {protocol['windows_in_split']} windows of up to {protocol['window']} "
        f"tokens, evenly spread, {protocol['precision']}). Magnitude: of each component in PoPE (softplus, "
        "unless the model's settings say relu or none), 2-norm of each pair of components in RoPE. "
        "A frequency adds at most query x key to a score. "
        "Wavelengths are in tokens, 2 pi / frequency. One that exceeds the training window never completes a "
        "turn in training. softplus(0) is 0.69, so a frequency that was never learned to be used is not at 0.",
        "## Beyond the training window",
        "Share of magnitude at wavelengths over the training window, mean over layers"
        + (
            " and seeds (± sample standard deviation)"
            if any(len(g["seeds"]) > 1 for g in result["groups"].values())
            else ""
        )
        + "; even would be the share of frequencies.",
        table(
            ["", "runs", "window", "frequencies", "query", "key", "query x key"],
            [
                [
                    label,
                    str(len(group["runs"])),
                    f"{group['trained_length']:,}",
                    _even(group),
                    *(_spread(beyond(group, name)) for name in WHAT),
                ]
                for label, group in result["groups"].items()
            ],
        ),
    ]
    others = [run["run"] for run in result["runs"] if not run["trained_on_this_data"]]
    if others:
        parts.append(f"Trained on other data than is read here: {', '.join(others)}.")
    for label, group in result["groups"].items():
        runs = [run for run in result["runs"] if run["label"] == label]
        parts += [f"## {label}", _bands_table(group), _strongest_table(runs)]
        if group["delta"] is not None:
            parts += _delta_text(group["delta"], runs[0]["delta"])
    parts += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def _even(group: dict[str, Any]) -> str:
    last, count = group["bands"][-1], len(group["wavelengths"])
    number = len(last["frequencies"]) if last["beyond"] else 0
    return f"{number} of {count} ({_percent(number / count)})"


def _spread(values: Sequence[float]) -> str:
    text = _percent(float(np.mean(values)))
    return text if len(values) == 1 else f"{text} ± {100 * float(np.std(values, ddof=1)):.1f}"


def _bands_table(group: dict[str, Any]) -> str:
    """Of query x key, each layer's share in each band."""
    bands, values = group["bands"], np.array(group["shares"]["product"])
    count = len(group["wavelengths"])
    rows = [[str(layer + 1), *map(_percent, row)] for layer, row in enumerate(values)]
    rows.append(["mean", *map(_percent, values.mean(0))])
    rows.append(["share of frequencies", *(_percent(len(band["frequencies"]) / count) for band in bands)])
    text = "Share of query x key by wavelength in tokens:\n\n"
    return text + table(["layer", *(band_title(band) for band in bands)], rows)


def _strongest_table(runs: Sequence[dict[str, Any]]) -> str:
    """The frequencies that hold most of a head's query x key."""
    rows = []
    for run in runs:
        product = np.array(run["magnitudes"]["product"])  # (layers, H, F)
        share = product / np.maximum(product.sum(-1, keepdims=True), np.finfo(float).tiny)  # a head may be dead
        delta = None if run["delta"] is None else np.array(run["delta"]["wrapped"])
        for place in np.argsort(-share, axis=None, kind="stable")[:STRONGEST]:
            layer, head, c = np.unravel_index(place, share.shape)
            wavelength = run["wavelengths"][c]
            phase = []
            if delta is not None:
                angle = float(delta[layer, head, c])
                phase = [angle, look_back(angle, wavelength)]
            row = [run["run"], str(layer + 1), str(head + 1), f"{wavelength:.1f}"]
            told = [*row, _percent(share[layer, head, c]), *(f"{value:.2f}" for value in phase)]
            rows.append((-share[layer, head, c], told))
    rows.sort(key=lambda row: row[0])
    head_row = ["run", "layer", "head", "wavelength", "share of its head"]
    if runs[0]["delta"] is not None:
        head_row += ["delta", "tokens back"]
    text = "Frequencies that hold most of their head's query x key:\n\n"
    return text + table(head_row, [told for _, told in rows[:STRONGEST]])


def look_back(delta: float, wavelength: float) -> float:
    """How many tokens back a frequency weighs keys most: the least n >= 0 with cos(delta - n theta) = 1."""
    return delta % (2 * math.pi) * wavelength / (2 * math.pi)


def _delta_text(layers: Sequence[dict[str, Any]], told: dict[str, Any]) -> list[str]:
    started = STARTED[told["init"]]
    if told["start"] is None:
        started += ", so how far they moved is not known"
    outside = "have no gradient under the clamp" if told["bound"] == "clamp" else "go on learning"
    rows = [
        [
            str(number + 1),
            f"{layer['mean']:.3f}",
            f"{layer['rms']:.3f}",
            f"{layer['largest']:.3f}",
            _percent(layer["opposed"]),
            _percent(layer["outside"]),
            *([f"{layer['moved']:.3f}", f"{layer['moved_most']:.3f}"] if layer["moved"] is not None else []),
        ]
        for number, layer in enumerate(layers)
    ]
    head = ["layer", "mean", "rms", "largest", "over pi/2", "outside [-2 pi, 0]"]
    if layers[0]["moved"] is not None:
        head += ["moved, mean", "moved, most"]
    return [
        f"Delta in radians, wrapped to [-pi, pi], absolute; {started}. Those outside [-2 pi, 0] {outside}. "
        "Over pi/2 a frequency counts against what stands at the query's own place. It weighs "
        "keys most (delta mod 2 pi) x wavelength / (2 pi) tokens back; where a small negative delta puts "
        "that beyond the window, the nearest.",
        table(head, rows),
    ]
