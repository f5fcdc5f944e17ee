"""The verb `inspect`: how much trained attention makes of each frequency (arXiv 2509.10534, figures 3 and 4).

Magnitudes are those of `PositionEncoding.magnitudes`, measured on real tokens: PoPE's softplus(q_c) and
softplus(k_c), the 2-norms of RoPE's and YaRN's pairs. For both a frequency adds at most query x key to the
score of two tokens, so they are on one scale; PoPE has D frequencies where RoPE has D / 2. A frequency of
wavelength 2 pi / theta longer than the training window never completed a turn in training.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from seqpope.checkpoint import (
    BEST,
    SHIPPED,
    CheckpointError,
    CheckpointInfo,
    check_fingerprint,
    find_checkpoint,
    load_checkpoint,
    read_info,
)
from seqpope.data.shards import MANIFEST, Split, Store, find_store
from seqpope.data.windows import Window, plan_windows
from seqpope.domains.base import open_store
from seqpope.errors import SeqpopeError
from seqpope.files import write_bytes, write_text
from seqpope.frequency_figures import STARTED, draw_delta, draw_heads, draw_magnitudes
from seqpope.markdown import table
from seqpope.model.config import ModelConfig
from seqpope.model.positions import POSITIONS, PositionEncoding, find_position
from seqpope.model.transformer import Attention, Transformer
from seqpope.nll import window_batches
from seqpope.provenance import choose_device, provenance
from seqpope.results import recipe_labels

TOKENS = 32768
STRONGEST = 6  # frequencies that are named
WHAT = ("query", "key", "product")


def attentions(model: Transformer) -> list[Attention]:
    """Each layer's attention."""
    return [module for module in model.modules() if isinstance(module, Attention)]


@contextlib.contextmanager
def watched(model: Transformer, take: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
    """Within the block, each pass of the model calls take(layer, q, k) with (B, L, H, D) as projected."""

    def hook(attention: Attention) -> Callable[[nn.Module, Any, Tensor], None]:
        def projected(module: nn.Module, inputs: Any, qkv: Tensor) -> None:
            q, k, _ = qkv.unflatten(-1, (3, attention.heads, -1)).unbind(-3)
            take(attention.layer, q, k)

        return projected

    handles = [each.qkv.register_forward_hook(hook(each)) for each in attentions(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def position_encodings(model: Transformer) -> list[PositionEncoding]:
    """Each layer's position encoding."""
    return [attention.position for attention in attentions(model)]


@torch.inference_mode()
def measure_magnitudes(
    model: Transformer,
    split: Split,
    windows: Sequence[Window],
    padding_id: int,
    *,
    device: torch.device | str = "cpu",
    batch_tokens: int = 16384,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Mean magnitudes over what the model reads in these windows, padding before a document's start included.

    Memory does not grow with the number of windows. The forward pass is fp32, sums are fp64.

    Args:
        batch_tokens: about as many tokens are read at once, at least one window.
        progress: called with tokens done and tokens in all.

    Returns:
        (layers, H, F) each: "query" and "key" E[|q_c|], E[|k_c|]; "product" E[|q_c| |k_c|] of a token with
        itself, whose sum over frequencies is PoPE's mean score at distance 0 with delta 0, before the scale
        1 / sqrt(D).

    Raises:
        SeqpopeError: the model gives no numbers (nan).
    """
    encodings = position_encodings(model)
    theta = encodings[0].theta()
    assert theta is not None, "check first that the encoding has frequencies"
    sums = torch.zeros(
        len(WHAT), len(encodings), model.config.heads, len(theta), dtype=torch.float64, device=device
    )
    total, done = sum(window.end - window.start for window in windows), 0
    own = torch.empty(0)

    def take(layer: int, q: Tensor, k: Tensor) -> None:
        """Add a batch; (B, L, H, D)."""
        mu_q, mu_k = (encodings[layer].magnitudes(x.float()).double() * own for x in (q, k))  # (B, L, H, F)
        for row, magnitude in enumerate((mu_q, mu_k, mu_q * mu_k)):
            sums[row, layer] += magnitude.sum((0, 1))

    with watched(model, take):
        for batch in window_batches(split, padding_id, windows, batch_tokens=batch_tokens):
            sizes = torch.tensor([window.end - window.start for window in batch.windows])
            inside = torch.arange(batch.ids.shape[1]) < sizes[:, None]
            own = inside[..., None, None].to(device, torch.float64)
            model(batch.ids.to(device), head=False)
            done += int(sizes.sum())
            if progress is not None:
                progress(done, total)
    if not bool(sums.isfinite().all()):
        raise SeqpopeError(
            "the model gives no numbers (nan): its weights are damaged or its training went wrong; "
            "inspect another checkpoint"
        )
    means = (sums / total).cpu().numpy()
    return dict(zip(WHAT, means, strict=True))


def choose_windows(split: Split, length: int, tokens: int) -> tuple[list[Window], int]:
    """Windows side by side in their documents, evenly spread over the split; and how many there are in all.

    The same every time: of W windows that hold N tokens, number floor((i + 1/2) W / n) for i below n, where
    n = ceil(W tokens / N); all of them if `tokens` is N or more.

    Raises:
        SeqpopeError: the split holds no token.
    """
    windows = plan_windows(split, length, length)
    there = sum(window.end - window.start for window in windows)
    if not there:
        raise SeqpopeError(
            "expected a split with tokens to read, and it has none: prepare the data again, "
            "or name another --split"
        )
    count = min(len(windows), math.ceil(len(windows) * tokens / there))
    return [windows[(2 * i + 1) * len(windows) // (2 * count)] for i in range(count)], len(windows)


def bands_of(wavelengths: np.ndarray, length: int) -> list[dict[str, Any]]:
    """Frequencies by wavelength in tokens: up to 1/64 of the training window, 1/8, the whole, and beyond.

    Returns:
        A record for each band that has a frequency: "from" and "to" (None: no end) in tokens, and
        "frequencies", the indices of those with from < wavelength <= to. In the one that is "beyond" none
        turns once within the window.
    """
    edges = [0.0, length / 64, length / 8, float(length), math.inf]
    bands = []
    for low, high in itertools.pairwise(edges):
        inside = np.flatnonzero((wavelengths > low) & (wavelengths <= high)).tolist()
        if inside:
            bands.append(
                {
                    "from": low,
                    "to": None if high == math.inf else high,
                    "beyond": high == math.inf,
                    "frequencies": inside,
                }
            )
    return bands


def shares(values: np.ndarray, bands: Sequence[dict[str, Any]]) -> np.ndarray:
    """Share of each layer's magnitude in each band, all heads together: (layers, H, F) -> (layers, bands).

    Raises:
        SeqpopeError: a layer has no magnitude at all.
    """
    whole = values.sum((1, 2))
    if not whole.all():
        layer = int(np.flatnonzero(whole == 0)[0]) + 1
        raise SeqpopeError(
            f"no query or key of layer {layer} has a magnitude: its weights are 0, or a ReLU let nothing through; "
            "inspect another checkpoint"
        )
    return np.stack([values[..., band["frequencies"]].sum((1, 2)) / whole for band in bands], -1)


def wrapped(angles: np.ndarray) -> np.ndarray:
    """Angles in [-pi, pi]; cosines stay the same."""
    return angles - 2 * math.pi * np.round(angles / (2 * math.pi))


def describe_delta(model: Transformer) -> dict[str, Any] | None:
    """The learned phase biases; None if the encoding learns none.

    Returns:
        "wrapped": (layers, H, F) as the score sees them, in [-pi, pi]. "learned": the parameters themselves.
        "start": where they started, 0, or None where they were drawn; "init": model.delta_init. "bound":
        model.delta_bound. "layers":
        for each layer mean, root mean square and largest |wrapped|; "opposed", the share over a quarter turn,
        where the frequency counts against keys at the query's own place; "outside", the share of parameters
        outside [-2 pi, 0] (under the clamp they have no gradient); "moved" and "moved_most", mean and largest
        distance of a parameter from its start, None where that is not known. Radians.
    """
    encodings = position_encodings(model)
    seen, learned = [], []
    for encoding in encodings:
        bounded = encoding.bounded_delta()
        if bounded is None or not model.config.delta_learned:
            return None
        seen.append(bounded.detach().double().cpu().numpy())
        learned.append(encoding.get_parameter("delta").detach().double().cpu().numpy())
    raw, angles = np.stack(learned), wrapped(np.stack(seen))
    start = 0.0 if model.config.delta_init == "zero" else None
    layers = []
    for angle, parameter in zip(np.abs(angles), raw, strict=True):
        moved = None if start is None else np.abs(parameter - start)
        layers.append(
            {
                "mean": float(angle.mean()),
                "rms": float(np.sqrt((angle**2).mean())),
                "largest": float(angle.max()),
                "opposed": float((angle > math.pi / 2).mean()),
                "outside": float(((parameter > 0) | (parameter < -2 * math.pi)).mean()),
                "moved": None if moved is None else float(moved.mean()),
                "moved_most": None if moved is None else float(moved.max()),
            }
        )
    return {
        "wrapped": angles.tolist(),
        "learned": raw.tolist(),
        "start": start,
        "init": model.config.delta_init,
        "bound": model.config.delta_bound,
        "layers": layers,
    }


def _check_encoding(info: CheckpointInfo, file: Path) -> None:
    """Refuse a model whose position encoding has no frequencies, before its weights are read."""
    encoding = find_position(info.position)
    if encoding.theta is PositionEncoding.theta:
        others = POSITIONS.items()
        able = ", ".join(name for name, other in others if other.theta is not PositionEncoding.theta)
        raise SeqpopeError(
            f"{file} is of {info.position}, which has no frequencies to inspect: expected a model of {able}; "
            "leave it out"
        )
    if not isinstance(info.model, dict):
        raise CheckpointError(f"the header of {file} cannot be read: its model is {info.model!r}")
    if longest := info.model.get("longest_wavelength"):
        raise SeqpopeError(
            f"{file} was trained with model.longest_wavelength {longest:g}, so that some of its frequencies are "
            "0 and have no wavelength to be shown by: leave it out"
        )


@dataclass(frozen=True)
class Inspected:
    """A model to inspect: its weights' file, what its header says, its configuration and what to call it.

    `label` names the recipe, so that seeds of one recipe share it; `name` the run, no two alike.
    """

    file: Path
    info: CheckpointInfo
    config: dict[str, Any]
    label: str
    name: str


def find_models(paths: Sequence[Path]) -> list[Inspected]:
    """The models that folders of runs or of experiments and .safetensors files mean; the shipped one if none.

    A label is the encoding's name; where models of one encoding differ in a field of their recipe its value
    stands behind it, and the name of the run where a seed would come twice. What remains under one label are
    seeds.

    Raises:
        SeqpopeError: there is none, one cannot be read, or its position encoding has no frequencies.
    """
    files: dict[Path, Path] = {}
    for path in paths or [SHIPPED["chorales"]]:
        for file in _files_of(Path(path)):
            files.setdefault(file.resolve(), file)
    models = []
    for file in files.values():
        info = read_info(file)
        _check_encoding(info, file)
        config_file = file.parent / "config.yaml"
        try:
            config = yaml.safe_load(config_file.read_text()) if config_file.is_file() else None
            shape = asdict(ModelConfig()) | info.model  # with what came to the program after the run
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            what = str(error).splitlines()[0]
            raise SeqpopeError(f"{config_file} cannot be read ({what}): mend it or take it away") from error
        if not isinstance(config, dict):
            config = {"domain": info.domain, "dataset": info.dataset, "data": {"length": info.length}}
        config["model"] = shape
        name = file.parent.name if file.name == BEST else file.stem
        models.append(Inspected(file, info, config, info.position, name))
    if len({model.name for model in models}) < len(models):  # then by their experiments too
        names = [f"{model.file.resolve().parent.parent.name}/{model.name}" for model in models]
        models = [replace(model, name=name) for model, name in zip(models, names, strict=True)]
    labelled = []
    for position in sorted({model.info.position for model in models}):
        group = [model for model in models if model.info.position == position]
        told = recipe_labels([model.config for model in group])
        keys = [(text, model.info.trained.get("seed")) for text, model in zip(told, group, strict=True)]
        for model, text, key in zip(group, told, keys, strict=True):
            label = position + text + (f", {model.name}" if keys.count(key) > 1 else "")
            labelled.append(replace(model, label=label))
    return sorted(labelled, key=lambda m: (m.label, m.info.trained.get("seed") or 0, m.name))


def _files_of(path: Path) -> list[Path]:
    """All runs of an experiment, where `find_checkpoint` takes the best."""
    found = [] if (path / BEST).is_file() else sorted(path.glob(f"*/{BEST}"))
    return found or [find_checkpoint(path)]


def find_data(models: Sequence[Inspected], data_folder: Path | None) -> Store:
    """The prepared data that all models can be read on, the tokens being theirs.

    Args:
        data_folder: of prepared data, or one store's own, which may then be another than the models were
            trained on; if None the first run's own, "data" for a file.

    Raises:
        SeqpopeError: there is none, the models are of several data sets, or their tokens are others.
    """
    if data_folder is not None and (data_folder / MANIFEST).is_file():
        store = open_store(data_folder)
    else:
        datasets = sorted({model.info.dataset for model in models})
        if len(datasets) > 1:
            raise SeqpopeError(
                f"expected models of one data set, these are of {', '.join(datasets)}: inspect them apart, "
                "or give the store that all shall read, such as --data-folder data/" + datasets[0]
            )
        if data_folder is None:
            of_runs = [Path(m.config["data_folder"]) for m in models if m.config.get("data_folder")]
            data_folder = of_runs[0] if of_runs else Path("data")
        store = open_store(find_store(data_folder, datasets[0]))
    for model in models:
        check_fingerprint(model.info, store.manifest.fingerprint, f"the data set in {store.folder}")
    return store


def inspect_models(
    paths: Sequence[Path],
    data_folder: Path | None = None,
    *,
    split: str = "validation",
    tokens: int = TOKENS,
    device: str = "auto",
    batch_tokens: int = 16384,
    progress: Callable[[str], Callable[[int, int], None]] | None = None,
) -> dict[str, Any]:
    """Measure magnitudes of several models on the same windows and describe their phase biases.

    Args:
        paths, data_folder: as `find_models` and `find_data` take them.
        tokens: read about as many (`choose_windows`), in windows of the training length; of the shortest,
            where models differ in it.
        progress: given a model's name, what is to be called with tokens done and in all.

    Returns:
        Plain values: "runs", a record for each; "groups", by label what their seeds have in common, the mean
        over seeds of the mean over heads (head h of one seed has nothing to do with head h of another).

    Raises:
        SeqpopeError: models or data are not there or do not fit each other, or the split is empty.
    """
    if tokens < 1:
        raise SeqpopeError(f"expected at least 1 token to read, --tokens is {tokens}")
    models = find_models(paths)
    store = find_data(models, data_folder)
    part, manifest = store.split(split), store.manifest
    length = min(model.info.length for model in models)
    windows, there = choose_windows(part, length, tokens)
    device = choose_device(device)
    runs = []
    for found in models:
        model, info = load_checkpoint(found.file, device)
        magnitudes = measure_magnitudes(
            model,
            part,
            windows,
            manifest.padding_id,
            device=device,
            batch_tokens=batch_tokens,
            progress=progress(found.name) if progress is not None else None,
        )
        theta = position_encodings(model)[0].theta()
        assert theta is not None
        wavelengths = (2 * math.pi / theta).numpy()
        bands = bands_of(wavelengths, info.length)
        runs.append(
            {
                "run": f"shipped: {found.name}" if found.file.resolve() in SHIPPED.values() else found.name,
                "label": found.label,
                "position": info.position,
                "seed": info.trained.get("seed"),
                "trained_length": info.length,
                "trained_on_this_data": info.trained.get("data") == manifest.content,
                "theta": theta.tolist(),
                "wavelengths": wavelengths.tolist(),
                "magnitudes": {name: magnitudes[name].tolist() for name in WHAT},
                "bands": bands,
                "shares": {name: shares(magnitudes[name], bands).tolist() for name in WHAT},
                "delta": describe_delta(model),
                "parameters": sum(p.numel() for p in model.parameters()),
                "trained": info.trained,
                "model": info.model,
                "dataset": info.dataset,
            }
        )
    return {
        "domain": manifest.domain,
        "dataset": manifest.dataset,
        "split": split,
        "protocol": {
            "window": length,
            "windows": len(windows),
            "windows_in_split": there,
            "tokens": sum(window.end - window.start for window in windows),
            "tokens_in_split": len(part.tokens),
            "choice": "windows side by side in a document, evenly spread over the split, the same every time",
            "read": "every position that the model reads, padding before a document's first token included",
            "precision": "fp32, sums fp64",
            "magnitude": "as projected: of PoPE's components softplus, or what the model's settings say, "
            "2-norm of each pair that RoPE turns",
            "product": "of a token's query and its own key (distance 0), before the scale 1 / sqrt(D)",
            "selection": "best validation step",
        },
        "groups": {
            label: summarize_group([run for run in runs if run["label"] == label]) for label in _order(runs)
        },
        "runs": runs,
        "fingerprint": manifest.fingerprint,
        "content": manifest.content,
        **provenance(device),
    }


def _order(runs: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(run["label"] for run in runs))


def summarize_group(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What seeds of one label have in common.

    Returns:
        "magnitudes": (layers, F) each, mean over heads and seeds. "shares": (layers, bands) each, mean over
        seeds. "shares_of_model": (seeds, bands) each, mean over layers. "delta": statistics of each layer,
        mean over seeds (of the largest: the largest).
    """
    first = runs[0]
    delta = None
    if first["delta"] is not None:
        delta = []
        for layer in range(len(first["delta"]["layers"])):
            told = [run["delta"]["layers"][layer] for run in runs]
            merged: dict[str, float | None] = {}
            for name in told[0]:
                values = [one[name] for one in told]
                most = name in ("largest", "moved_most")
                merged[name] = None if values[0] is None else float(max(values) if most else np.mean(values))
            delta.append(merged)
    return {
        "runs": [run["run"] for run in runs],
        "seeds": [run["seed"] for run in runs],
        "position": first["position"],
        "trained_length": first["trained_length"],
        "wavelengths": first["wavelengths"],
        "bands": first["bands"],
        "magnitudes": {
            name: np.mean([run["magnitudes"][name] for run in runs], axis=(0, 2)).tolist() for name in WHAT
        },
        "shares": {name: np.mean([run["shares"][name] for run in runs], axis=0).tolist() for name in WHAT},
        "shares_of_model": {
            name: np.mean([run["shares"][name] for run in runs], axis=1).tolist() for name in WHAT
        },
        "delta": delta,
    }


def inspect_to(out: Path, result: dict[str, Any]) -> list[Path]:
    """Write inspect.json, inspect.md and the figures into a folder, each whole or not at all.

    Returns:
        The files, inspect.json first.
    """
    pictures = {
        "magnitudes.png": draw_magnitudes(result),
        "heads-query.png": draw_heads(result, "query"),
        "heads-key.png": draw_heads(result, "key"),
        "delta.png": draw_delta(result),
    }
    drawn = {name: picture for name, picture in pictures.items() if picture is not None}
    for name, picture in drawn.items():
        write_bytes(out / name, picture)
    write_text(out / "inspect.md", inspection_markdown(result, list(drawn)))
    write_text(out / "inspect.json", _as_json(result) + "\n")
    return [out / name for name in ("inspect.json", "inspect.md", *drawn)]


def _as_json(result: dict[str, Any]) -> str:
    """JSON with the numbers of a head on one line. A line break in it is never part of a string."""

    def one_line(found: re.Match[str]) -> str:
        return "[" + re.sub(r"\n\s+", " ", found[1]) + "]"

    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", one_line, json.dumps(result, indent=1))


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
