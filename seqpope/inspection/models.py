"""Which models are inspected on which data, and what is found of each and of its seeds together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seqpope.checkpoint import (
    BEST,
    SHIPPED,
    CheckpointError,
    CheckpointInfo,
    check_fingerprint,
    find_checkpoint,
    load_checkpoint,
    named,
    read_info,
)
from seqpope.data.shards import MANIFEST, Store, find_store
from seqpope.domains.base import open_store
from seqpope.errors import SeqpopeError
from seqpope.inspection.measure import (
    WHAT,
    bands_of,
    choose_windows,
    describe_delta,
    measure_magnitudes,
    position_encodings,
    shares,
)
from seqpope.model.config import ModelConfig
from seqpope.model.positions import POSITIONS, PositionEncoding, find_position
from seqpope.provenance import choose_device, provenance
from seqpope.results import recipe_labels

TOKENS = 32768


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
    for name, value in (("tokens", tokens), ("batch-tokens", batch_tokens)):
        if value < 1:
            raise SeqpopeError(f"expected at least 1 token to read, --{name} is {value}")
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
                "run": named(found.file, found.name),
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
