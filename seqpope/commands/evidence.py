"""What the paper shows, measured: `reproduce`, `inspect`."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from seqpope.commands.options import Device, changed, words
from seqpope.commands.training import prepare
from seqpope.domains.base import find_dataset
from seqpope.errors import SeqpopeError
from seqpope.progress import Progress


def reproduce(
    study: str,
    take: list[str] | None = None,
    budget: float | None = None,
    share: float = 1.0,
    seed: int = 0,
    seeds: int | None = None,
    arms: str | None = None,
    jobs: int = 1,
    out: Path | None = None,
    documents: Path = Path("benchmarks/results/reproduce"),
    data_folder: Path = Path("data"),
    device: Device = "auto",
) -> None:
    """Make one of the paper's tables or figures: train what is missing, test it, write JSON, table and picture.

    Args:
        study: Its name, or what several begin with; or `results`: one Markdown file of all documents.
        take: Finished runs that stand for an arm, LABEL=FOLDER, or a STUDY.json made before; the seeds of several
            are put together.
        budget: Minutes that training, validation and tests may take, for which every run is shortened alike; all
            steps if not given. What --take names costs nothing; --jobs makes it less.
        share: Share of the recipes' steps to train, for work that is spread over several machines; at least a step
            for each validation.
        seed: The first.
        seeds: Runs of each arm; as many as the study has if not given.
        arms: Those to train, by their labels or the beginnings of them, with semicolons between; none trains none
            and writes what is taken.
        jobs: Runs that train at a time, each in a process of its own, spread over the GPUs: two or three of a
            small model fill one.
        out: Folder in which one of the study's name is made, runs/reproduce if not given; the same command goes on
            there after Ctrl-C. For `results` the file, RESULTS.md if not given.
        documents: For `results`, the folder of the studies' JSON files.
        data_folder: Folder of prepared data.
        device: Where to compute.
    """
    asked = dict(locals())
    from seqpope.reproduce.studies import arm_config, check_share, find_studies, meant

    chosen = [] if study == "results" else find_studies(study)
    foreign = ["documents"] if chosen else [name for name in asked if name not in ("study", "out", "documents")]
    if told := changed(reproduce, asked, foreign):
        raise SeqpopeError(f"`reproduce {study}` does not read {', '.join(told.values())}: leave it out")
    if study == "results":
        from seqpope.reproduce.summary import write_results

        file = out or Path("RESULTS.md")
        write_results(documents, file)
        print(f"{file}  written from {documents}")
        return
    from seqpope.reproduce.running import check_numbers, run_study

    out = out or Path("runs") / "reproduce"
    for one in chosen:
        check_numbers(budget, share, seed, one.seeds if seeds is None else seeds)
    # The option is not named `only`: torch.compile writes what follows a word `--only` into the programs that it
    # makes, as a benchmark's name, and a quotation mark in it breaks them.
    only = None if arms is None else [word.strip() for word in arms.split(";") if word.strip()]
    if only == []:
        raise SeqpopeError(f"--arms {arms!r} names none: expected labels with semicolons between, or none")
    if only == ["none"]:
        only = []
    if take and len(chosen) > 1:
        raise SeqpopeError(f"--take needs one study: {study} is {', '.join(one.name for one in chosen)}")
    trained = {label for one in chosen for begin in only or () for label in meant(one, begin)}
    taken = _taken(take or [], chosen[0], share, trained)
    if budget is None:
        for one in chosen:
            untaken = [arm for arm in one.arms if arm.label not in taken]
            check_share(one, [arm for arm in untaken if only is None or arm.label in trained], share)
    for arm in (arm for one in chosen for arm in one.arms if only is None or arm.label in trained):
        entry = find_dataset(arm_config(arm).dataset)
        places = (data_folder, data_folder / entry.name)
        there = any((p / "manifest.json").is_file() for p in places)
        if arm.label not in taken and entry.embedded and not there:
            prepare(entry.name, data_folder=data_folder)
    for one in chosen:
        run_study(
            one,
            out,
            budget=None if budget is None else budget / len(chosen),
            studies=len(chosen),
            share=share,
            seed=seed,
            seeds=seeds,
            only=only,
            taken=taken,
            jobs=jobs,
            data_folder=data_folder,
            device=device,
        )
        print((out / one.name / f"{one.name}.md").read_text())


def _taken(take: Sequence[str], study: Any, share: float, trained: Collection[str]) -> dict[str, list[Path]]:
    """Words of --take by the arm of a study that they stand for.

    Args:
        trained: labels of arms that are to be trained, which documents then do not stand for.

    Returns:
        Of an arm that LABEL= names what it names, else every document that has it.
    """
    from seqpope.reproduce.documents import standing_for

    taken: dict[str, list[Path]] = {}
    documents = [text for text in take if text.endswith(".json") and ("=" not in text or os.path.isfile(text))]
    for text in take:
        label, _, paths = text.partition("=")
        if text in documents:
            continue
        if not label.strip() or not words(paths):
            raise SeqpopeError(
                f"--take {text!r}: expected STUDY.json, or LABEL=FOLDER or LABEL=report.json, commas between more"
            )
        taken.setdefault(label.strip(), []).extend(Path(path) for path in words(paths))
    named = set(taken)  # which take the place of what documents have
    for path in map(Path, documents):
        for label in standing_for(study, path, share):
            if label in named and path not in taken[label]:
                stands = ", ".join(map(str, taken[label]))
                print(f'{label}: {stands}, not what {path} has of it; for both --take "{label}={stands},{path}"')
            elif label not in named and label not in trained:
                taken.setdefault(label, []).append(path)
    return taken


def inspect(
    runs: list[Path],
    split: Literal["validation", "train"] = "validation",
    data_folder: Path | None = None,
    out: Path | None = None,
    tokens: int = 32768,
    batch_tokens: int = 16384,
    device: Device = "auto",
) -> None:
    """Show what a model uses each frequency for: magnitudes by frequency, layer and head, and PoPE's delta.

    Args:
        runs: Folders of runs or of experiments, .safetensors files, or names of shipped models (chorales,
            chorales-rope, genome); the shipped chorale model if none is given. Twins come side by side, seeds of
            one recipe as their mean.
        split: Whose tokens are read. The test split is not offered: nothing here needs it.
        data_folder: Folder of prepared data, or of one data set; the run's own if not given.
        out: Folder to write inspect.json, inspect.md and the figures to; if not given `inspect` in the one
            folder that is inspected, else here.
        tokens: About how many tokens to read: windows of the training length, evenly spread over the split.
        batch_tokens: About how many of them at once; less takes less memory.
        device: Where to compute.
    """
    from seqpope.inspection.models import inspect_models
    from seqpope.inspection.text import beyond
    from seqpope.inspection.writing import inspect_to

    if out is None:
        out = runs[0] / "inspect" if len(runs) == 1 and runs[0].is_dir() else Path("inspect")
    if not next(place for place in (out, *out.absolute().parents) if os.path.lexists(place)).is_dir():
        raise SeqpopeError(f"{out} is, or lies in, what is no folder: choose another --out")
    result = inspect_models(
        runs,
        data_folder,
        split=split,
        tokens=tokens,
        device=device,
        batch_tokens=batch_tokens,
        progress=lambda name: Progress(f"{name}  {split}", "tokens"),
    )
    files = inspect_to(out, result)
    for label, group in result["groups"].items():
        parts = []
        for name in ("query", "key", "product"):
            values = beyond(group, name)
            parts.append(f"{name} {100 * sum(values) / len(values):.1f}%")
        print(
            f"{label} ({', '.join(group['runs'])}): at wavelengths over the training window of "
            f"{group['trained_length']} tokens lies of the magnitude: {', '.join(parts)}"
        )
    print(f"{files[0].parent}  {', '.join(file.name for file in files)}")
