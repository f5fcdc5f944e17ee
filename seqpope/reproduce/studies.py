"""What can be reproduced: studies, their arms, and what was published. Light to import: `--help` reads it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from seqpope.config import TrainConfig
from seqpope.errors import SeqpopeError
from seqpope.presets import find_config

PAPER = "arXiv 2509.10534"
SOLVED = 50.0  # per cent of targets, over which a seed has solved its task


@dataclass(frozen=True)
class Arm:
    """One row of a study: an encoding trained by a preset, with some of its settings changed.

    Attributes:
        label: of the row; unique in its study.
        settings: fields of `TrainConfig` by dotted name.
        published: what the paper has for it, in the study's measure.
        lengths: windows that its runs are read in beyond training, tokens.
    """

    label: str
    position: str
    preset: str
    settings: dict[str, Any] = field(default_factory=dict)
    published: float | None = None
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Study:
    """A table or figure.

    Attributes:
        measure: "nats_per_token", or "accuracy" (per cent of scored targets that were the likeliest token).
        pairs: labels of arms whose difference, first minus second, is told, paired by seed.
        seeds: of each arm, unless fewer are asked for.
        side_by_side: an arm's seeds are trained as one model (`stack`).
        published: where the figures of the arms are from, and what is to be known of them.
        notes: sentences that belong below the table.
        inspect: also show what its models use each frequency for (`inspection`).
        lengths_split: the split that is read in several lengths; where arms are searched for the best it is
            validation.
        candidates: labels of arms among which `lengths.choose` chooses.
        default: label of that which is the default before the choice.
        unrun: what is known as long as there is no document of it: what it takes, and where else to look.
        prepare: what makes the data of the recorded runs, where it is not what the data set's name alone makes.
    """

    name: str
    title: str
    question: str
    measure: str
    arms: tuple[Arm, ...]
    pairs: tuple[tuple[str, str], ...]
    seeds: int
    side_by_side: bool = False
    published: str = ""
    notes: tuple[str, ...] = ()
    inspect: bool = False
    lengths_split: str = "test"
    candidates: tuple[str, ...] = ()
    default: str = ""
    unrun: str = ""
    prepare: str = ""


_OF_POPE = ("model.delta_", "model.magnitude", "optimizer.delta_")


def is_read(setting: str, position: str) -> bool:
    """Whether an encoding does anything with a setting, by dotted name: others' may differ and change nothing."""
    return position.startswith("pope") or not setting.startswith(_OF_POPE)


def arm_config(arm: Arm, **settings: Any) -> TrainConfig:
    """The configuration of an arm's runs: its preset, its settings, then these.

    Raises:
        SeqpopeError: the preset or a setting cannot be used.
    """
    import yaml

    raw = yaml.safe_load(find_config(arm.preset).read_text())
    for name, value in {**arm.settings, **settings, "position": arm.position, "baseline": "none"}.items():
        at = raw
        *path, last = name.split(".")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return TrainConfig.from_dict(raw)


def slug(label: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def validations_of(config: TrainConfig) -> int:
    """How often a run is validated."""
    return max(1, config.optimizer.steps // config.eval_every)


def least_share(config: TrainConfig) -> float:
    """The smallest share of a recipe's steps: every validation has one of them, and the warm-up has not all."""
    return min(1.0, max(2, validations_of(config)) / config.optimizer.steps)


def check_share(study: Study, arms: Sequence[Arm], share: float) -> None:
    """Refuse a share with which arms would be trained longer than it says.

    Raises:
        SeqpopeError: of some arm it is fewer steps than there are validations, or than two.
    """
    needed = {arm.label: least_share(arm_config(arm)) for arm in arms}
    label = max(needed, key=lambda label: needed[label], default="")
    if label and share < needed[label] * (1 - 1e-9):
        raise SeqpopeError(
            f"{study.name}: a share of {share:g} is too small, {label} has more validations than steps by it: "
            f"give at least {math.ceil(1e6 * needed[label]) / 1e6:g}"
        )


def shortened(config: TrainConfig, share: float) -> TrainConfig:
    """A configuration with that share of the steps; warm-up shrinks with it, validations are as many."""
    if share == 1:
        return config
    steps = max(2, round(config.optimizer.steps * share))
    warmup = min(max(1, round(config.optimizer.warmup_steps * share)), steps - 1)
    validations = validations_of(config)
    every = max(1, steps // validations)
    optimizer = replace(config.optimizer, steps=every * validations, warmup_steps=warmup)
    return replace(config, optimizer=optimizer, eval_every=every)


def _twins(preset: str, name: str, **more: Any) -> tuple[Arm, Arm]:
    published = more.pop("published", (None, None))
    arms = [
        Arm(f"{title}, {name}", position, preset, published=value, **more)
        for (position, title), value in zip((("pope", "PoPE"), ("rope", "RoPE")), published, strict=True)
    ]
    return arms[0], arms[1]


_JSB = _twins("jsb-paper", "the paper's recipe", published=(0.4889, 0.5081))
_JSB_MORE = _twins("jsb-augmented", "augmented")
_MAESTRO = _twins("maestro-paper", "the paper's recipe", published=(1.486, 1.501))
_MAESTRO_MORE = _twins("maestro-20min", "held against overfitting")
_GENOME = _twins("genome-small", "genome-small", settings={"dataset": "grch38"})


_OUR_GENOME = "seqpope prepare grch38 --split benchmarks/results/genome-small/split.bed"
_A_PIANO_RUN = "80 seconds of an H200 by `--share 0.6`, compiling and tests included, three at a time"
_LOCAL = "uniform where waves fit the window"


def _beyond(preset: str, settings: dict[str, Any], lengths: tuple[int, ...]) -> tuple[Arm, ...]:
    """Encodings to be read beyond their training; the last two have nothing in them that could turn too far."""
    pope = {"from 0": "zero", "uniform": "uniform", _LOCAL: "local"}
    starts = {label: {**settings, "model.delta_init": start} for label, start in pope.items()}
    starts[_LOCAL]["model.delta_window"] = lengths[0]
    return (
        *(Arm(f"PoPE, delta {label}", "pope", preset, each, lengths=lengths) for label, each in starts.items()),
        Arm("RoPE", "rope", preset, settings, lengths=lengths),
        Arm("ALiBi", "alibi", preset, settings, lengths=lengths),
        Arm("NoPE", "nope", preset, settings, lengths=lengths),
    )


def _pairs(*twins: tuple[Arm, Arm]) -> tuple[tuple[str, str], ...]:
    return tuple((pope.label, rope.label) for pope, rope in twins)


_512 = {"data.length": 512, "data.batch_size": 16, "eval_length": 512, "eval_stride": 256}
_BEYOND = {
    "piano": _beyond("maestro-short", {}, (2048, 4096, 8192, 16384, 20480)),
    "jsb": _beyond("jsb-augmented", _512, (512, 1024, 1536, 2048)),
    "genome": _beyond("genome-small", {"dataset": "grch38"}, (1000, 2000, 4000, 8000, 10000)),
}


def _extrapolation(name: str, what: str, trained: int, side_by_side: bool = False, **more: Any) -> Study:
    arms = _BEYOND[name]
    return Study(
        name=f"extrapolation-{name}",
        title=f"Beyond the training length, {what}",
        question=f"What is left of a model trained on windows of {trained:,} tokens that reads further?",
        measure="nats_per_token",
        arms=arms,
        pairs=(
            *((arm.label, "RoPE") for arm in arms if arm.position == "pope"),
            *((arms[0].label, arm.label) for arm in arms if arm.label in ("ALiBi", f"PoPE, delta {_LOCAL}")),
            ("RoPE", "ALiBi"),
        ),
        seeds=3,
        side_by_side=side_by_side,
        published=f"{PAPER}, for text: RoPE collapses, PoPE holds",
        **more,
    )


def _ablation(name: str, what: str, preset: str, side_by_side: bool = False, **more: Any) -> Study:
    """The paper's ablations, each beside PoPE whole; all started at delta 0, so that one thing differs."""
    whole = Arm("PoPE", "pope", preset, {"model.delta_init": "zero"})
    parts: dict[str, dict[str, Any]] = {
        "no softplus": {"model.magnitude": "none"},
        "ReLU for softplus": {"model.magnitude": "relu"},
        "no delta": {"model.delta_learned": False},
        "delta clamped": {"model.delta_bound": "clamp"},
        "delta uniform": {"model.delta_init": "uniform"},
        "delta uniform and clamped (the paper's)": {"model.delta_init": "uniform", "model.delta_bound": "clamp"},
        f"delta {_LOCAL}": {"model.delta_init": "local"},
    }
    arms = [Arm(label, "pope", preset, {**whole.settings, **settings}) for label, settings in parts.items()]
    return Study(
        name=f"ablation-{name}",
        title=f"Ablations, {what}",
        question="What does each part of PoPE give?",
        measure="nats_per_token",
        arms=(whole, *arms, Arm("RoPE", "rope", preset, whole.settings)),
        pairs=tuple((label, whole.label) for label in (*parts, "RoPE")),
        seeds=3,
        side_by_side=side_by_side,
        **more,
        published=f"{PAPER}, perplexity on text: whole 21.33, no delta 21.42, ReLU 21.55, no softplus 21.57",
    )


def _delta() -> Study:
    """What of delta and the frequencies decides how far a model reads: the open question."""
    lengths, preset = (2048, 4096, 8192, 16384, 20480), "maestro-short"
    pope: dict[str, dict[str, Any]] = {
        "from 0": {},
        "uniform": {"model.delta_init": "uniform"},
        _LOCAL: {"model.delta_init": "local"},
        "uniform where waves fit a quarter of it": {"model.delta_init": "local", "model.delta_window": 512},
        "uniform, decaying to 0": {"model.delta_init": "centred", "optimizer.delta_decay": 3.0},
        "from 0, a tenth of the rate": {"optimizer.delta_rate": 0.1},
        "from 0, no wave longer than the window": {"model.longest_wavelength": 2048.0},
        "uniform, no wave longer than the window": {
            "model.delta_init": "uniform",
            "model.longest_wavelength": 2048.0,
        },
        "none": {"model.delta_learned": False},
    }
    arms = [
        Arm(f"PoPE, delta {label}", "pope", preset, settings, lengths=lengths) for label, settings in pope.items()
    ]
    rope = [
        Arm("RoPE", "rope", preset, lengths=lengths),
        Arm(
            "RoPE, no wave longer than the window",
            "rope",
            preset,
            {"model.longest_wavelength": 2048.0},
            lengths=lengths,
        ),
    ]
    return Study(
        name="delta",
        title="Delta and the frequencies, piano",
        question="Which start or form of delta is as good as any inside the window, and reads on beyond it?",
        measure="nats_per_token",
        arms=(*arms, *rope),
        pairs=(
            *((arm.label, arms[0].label) for arm in arms[1:]),
            *((arms[0].label, arm.label) for arm in rope),
        ),
        seeds=3,
        lengths_split="validation",
        candidates=tuple(arm.label for arm in arms),
        default=arms[0].label,
        unrun=f"33 runs of {_A_PIANO_RUN}.",
        published=f"{PAPER}: uniform is slightly better inside the window, 0 reads on further",
        notes=(
            "What becomes the default is chosen on the validation split by a rule set before the runs: of PoPE's "
            "starts as trained (no YaRN), those that the seeds cannot tell at 2,048 from the best one there, and "
            "of these the lowest at 20,480.",
        ),
    )


# The lowest of four rates tried with PoPE from uniform delta, and by 12,000 steps of each the best; other arms'
# rates were not searched (indexing-search.md).
_MUON = {
    "optimizer.name": "muon",
    "optimizer.learning_rate": 1e-4,
    "optimizer.min_learning_rate": 1e-5,
    "optimizer.warmup_steps": 1000,
    "optimizer.steps": 49000,
    "eval_every": 3500,
}
STUDIES = {
    study.name: study
    for study in (
        Study(
            name="indirect-indexing",
            title="Indirect Indexing",
            question="Can a model find a letter by what it is, and another by where it stands from there?",
            measure="accuracy",
            arms=(
                Arm(
                    "PoPE, delta uniform and clamped (the paper's)",
                    "pope",
                    "indexing-paper",
                    {"model.delta_bound": "clamp"},
                    published=94.82,
                ),
                Arm("PoPE, delta uniform", "pope", "indexing-paper"),
                Arm("PoPE, delta from 0", "pope", "indexing-paper", {"model.delta_init": "zero"}),
                Arm("RoPE", "rope", "indexing-paper", published=11.16),
                Arm("PoPE, delta uniform, by Muon", "pope", "indexing-paper", _MUON),
                Arm(
                    "PoPE, delta from 0, by Muon", "pope", "indexing-paper", {**_MUON, "model.delta_init": "zero"}
                ),
                Arm("RoPE, by Muon", "rope", "indexing-paper", _MUON),
            ),
            pairs=(
                ("PoPE, delta uniform and clamped (the paper's)", "RoPE"),
                ("PoPE, delta uniform", "RoPE"),
                ("PoPE, delta from 0", "RoPE"),
                ("PoPE, delta uniform, by Muon", "RoPE, by Muon"),
                ("PoPE, delta from 0, by Muon", "RoPE, by Muon"),
            ),
            seeds=8,
            side_by_side=True,
            published=f"{PAPER}: 3 seeds, RoPE 11.16 ± 2.45, PoPE 94.82 ± 2.91",
            notes=(
                "A seed is solved if it names more than half of the test targets. An independent replication "
                "(github PrashRangarajan/mapformer) found it all or nothing: 1 of 8 PoPE seeds at 100,000 "
                "steps, 7 at 200,000.",
                "The recorded 8 seeds by AdamW are of 3 and of 5 side by side (5: 17.3 minutes an arm with "
                "compiling, of an H200), PoPE from 0 is of 3, those by Muon of 8 (22 minutes an arm, by slower "
                "code); a step of 8 takes 15.4 ms with PoPE and 15.2 with RoPE, by Muon 22.9 and 22.8 "
                "(`benchmarks/results/side-by-side.md`). What decides whether it is learned: "
                "`benchmarks/results/indexing-search.md`, and for a smaller task "
                "`benchmarks/results/indexing-small.md`.",
                "By these steps 100,000 for 8 seeds are 26 minutes by AdamW and 49,000 are 19 by Muon, for an arm "
                "that is not run here; 200,000 by AdamW would be 51.",
                "The recorded runs by Muon have as many steps as fit into half an hour beside compiling; they "
                "were validated without accuracy: of most the test alone tells that they are solved.",
            ),
        ),
        Study(
            name="jsb",
            title="JSB Chorales",
            question="Which encoding models four-part chorales better?",
            measure="nats_per_token",
            arms=(*_JSB, *_JSB_MORE),
            pairs=_pairs(_JSB, _JSB_MORE),
            seeds=3,
            side_by_side=True,
            published=f"{PAPER}; its protocol is a little another (see a run's report)",
            notes=(
                "Other runs of the same recipes and seeds, on an H100, have reports with strata "
                "and the paper's protocol: `benchmarks/results/jsb-paper/report.md`, `jsb-augmented/report.md`. "
                "The recorded augmented rows are those of the study `frequencies`.",
            ),
        ),
        Study(
            name="maestro",
            title="MAESTRO",
            question="Which encoding models piano performances better?",
            measure="nats_per_token",
            arms=(*_MAESTRO, *_MAESTRO_MORE),
            pairs=_pairs(_MAESTRO, _MAESTRO_MORE),
            seeds=3,
            published=f"{PAPER}, on a split of its own that it does not describe",
            notes=(
                "The recorded run of PoPE by the paper's recipe was stopped at step 58,400. Runs by it took 15 to "
                "16 minutes each: three seeds of both encodings, validated as often as the preset says, would "
                "take about two hours of an H200. Of the other recipe seeds 1 and 2 shared a GPU, two at a time.",
            ),
        ),
        Study(
            name="genome",
            title="Human genome",
            question="Which encoding models human DNA better?",
            measure="nats_per_token",
            arms=_GENOME,
            pairs=_pairs(_GENOME),
            seeds=3,
            published=f"{PAPER}: RoPE 4.217, PoPE 4.152 on the whole genome",
            notes=(
                "The published figures are about a bit a base, which no model of human DNA reaches (the best need "
                "1.45 to 1.61): N, padding or remainders among the targets would explain it. Here they never are.",
                "The recorded runs were trained on 11 Mb of chr1, 2, 6, 20, 22 and X, validated on chr9 and "
                f"tested on chr17:42,425,000-43,600,000: `{_OUR_GENOME}`.",
            ),
            prepare=_OUR_GENOME,
        ),
        Study(
            name="frequencies",
            title="What frequencies are used for",
            question="At which wavelengths do queries and keys have their magnitude, and where did delta go?",
            measure="nats_per_token",
            arms=_JSB_MORE,
            pairs=_pairs(_JSB_MORE),
            seeds=3,
            side_by_side=True,
            published=f"{PAPER}, figures of magnitudes by frequency for text: RoPE uses few frequencies, PoPE all",
            inspect=True,
        ),
        _ablation(
            "jsb",
            "JSB Chorales",
            "jsb-paper",
            side_by_side=True,
            notes=(
                "Delta uniform and RoPE are what `jsb` trains by the paper's recipe, at another time: on a "
                "GPU the same seed does not give the same number twice.",
            ),
        ),
        _ablation("piano", "piano", "maestro-short", unrun=f"27 runs of {_A_PIANO_RUN}."),
        _delta(),
        _extrapolation(
            "piano",
            "piano",
            2048,
            unrun=f"18 runs of {_A_PIANO_RUN}. Four of its arms were measured run by run: "
            "`benchmarks/results/maestro-short/lengths.md`.",
        ),
        _extrapolation("jsb", "chorales", 512, side_by_side=True),
        _extrapolation("genome", "DNA", 1000, unrun="18 runs of 2.4 minutes on an H200.", prepare=_OUR_GENOME),
    )
}


# What the paper has and no document: by a study's name where one can be made, else for good.
UNRUN = (
    "The human genome by the paper's recipe (`seqpope prepare grch38 && seqpope train --config genome-paper "
    "--seeds 3`: 205.6M parameters, 100,000 steps of 64 x 1,000 six-mers). A step takes 224 ms (PoPE) and 211 ms "
    "(RoPE) on an H100 (`benchmarks/results/step.md`), so that a seed takes 6.2 and 5.9 hours.",
    "OpenWebText and its zero-shot tasks: seqpope models no text, so there is no command. At the rate of that "
    "step, scaled by parameters, 100,000 steps of 64 x 1,024 tokens would take PoPE on an H100 about 4 hours "
    "(124M), 8 (253M) and 24 (774M) a seed.",
)


def meant(study: Study, words: str) -> list[str]:
    """Labels of the arm that is called just so, or else of those that begin so."""
    labels = [arm.label for arm in study.arms]
    return [words] if words in labels else [label for label in labels if label.startswith(words)]


def find_studies(name: str) -> list[Study]:
    """The study of that name, or those whose names begin with it and a dash: `extrapolation` is three.

    Raises:
        SeqpopeError: there is none; the message lists those there are.
    """
    found = [study for study in STUDIES.values() if study.name == name or study.name.startswith(f"{name}-")]
    if not found:
        raise SeqpopeError(f"unknown study {name!r}: expected one of {', '.join(STUDIES)}, or results")
    return found
