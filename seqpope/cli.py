"""The command line: which verbs there are, how their options are read, and what becomes of errors.

Options may be written with dashes or underscores.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import seqpope
from seqpope.commands.evidence import inspect, reproduce
from seqpope.commands.sampling import examine, generate, harmonize
from seqpope.commands.scoring import score, track
from seqpope.commands.studio import app
from seqpope.commands.training import compare, evaluate, prepare, train
from seqpope.domains.base import DATASETS, DOMAINS, find_dataset
from seqpope.errors import SeqpopeError


class Words(NamedTuple):
    """Arguments of a verb that are written without an option's name; jsonargparse would want lists in brackets."""

    name: str
    help: str
    nargs: str | None = "+"


VERBS: dict[str, Callable[..., None]] = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "generate": generate,
    "harmonize": harmonize,
    "examine": examine,
    "score": score,
    "track": track,
    "reproduce": reproduce,
    "inspect": inspect,
    "app": app,
}
WORDS = {
    "evaluate": Words("runs", "Folders of runs or of experiments."),
    "compare": Words("runs", "Folders of runs or of experiments."),
    "harmonize": Words("melody", "The melody: MIDI or MusicXML.", nargs=None),
    "examine": Words("samples", "Scores or FASTA files, or folders of them."),
    "track": Words("scores", "Scores as bedGraph or bigWig."),
    "inspect": Words(
        "runs",
        "Folders of runs or of experiments, .safetensors files, or names of shipped models; chorales if none is "
        "given.",
        nargs="*",
    ),
}


def build_parser() -> Any:
    """The argument parser with all verbs (imports jsonargparse, nothing of torch)."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="seqpope",
        description="Symbolic music and genomes with PoPE, against its RoPE twin. Data sets: "
        + "; ".join(f"{d.name}: {d.title}" for d in DATASETS.values()),
        version=seqpope.__version__,
    )
    verbs = parser.add_subcommands(required=True, metavar="VERB", dest="verb")
    for name, function in VERBS.items():
        verb = ArgumentParser(description=(function.__doc__ or "").split("\n\n")[0])
        _add_arguments(verb, name)
        verbs.add_subcommand(name, verb, help=(function.__doc__ or "").split("\n")[0])
    return parser


def _add_arguments(verb: Any, name: str) -> None:
    if name == "train":
        from seqpope.config import TrainConfig

        verb.add_argument("--config", action="config", help="YAML file or name of a preset to start from.")
        verb.add_argument("--resume", type=Path | None, help="Folder of an experiment to go on with.")
        verb.add_class_arguments(TrainConfig, as_positional=False)
        return
    done: set[str | int] = set()
    if name == "reproduce":
        from seqpope.reproduce.studies import STUDIES

        named = "; ".join(f"{study.name}: {study.title}" for study in STUDIES.values())
        verb.add_argument("study", type=str, help=f"{named}; results: one Markdown file of all documents.")
        verb.add_argument(
            "--take",
            action="append",
            type=str,
            help="LABEL=FOLDER: finished runs, or a report.json, that stand for an arm; or STUDY.json: a "
            "document of this study or one that trained the same, for all arms in it that neither LABEL= nor "
            "--arms names. Seeds of several are put together; LABEL=a.json,FOLDER adds runs to a document's.",
        )
        done = {"study", "take"}
    if name in WORDS:
        words = WORDS[name]
        more: dict[str, Any] = {"default": []} if words.nargs == "*" else {}
        verb.add_argument(words.name, nargs=words.nargs, type=Path, help=words.help, **more)
        done = {words.name}
    verb.add_function_arguments(VERBS[name], as_positional=name == "prepare", skip=done)


def _normalize(arguments: Sequence[str]) -> list[str]:
    """Dashes in options to underscores, bare switches to `true`; for `train`, what to start from first."""
    function = VERBS.get(arguments[0]) if arguments else None
    switches = {name for name, kind in (function.__annotations__ if function else {}).items() if kind == "bool"}
    words = []
    for place, word in enumerate(arguments):
        words.append(word)
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
            option = option.replace("-", "_")
            words[-1] = "--" + option + equals + value
            following = arguments[place + 1 : place + 2]
            if option in switches and not equals and following not in (["true"], ["false"]):
                words.append("true")
    return ["train", *_start_from(words[1:])] if words[:1] == ["train"] else words


def _start_from(words: list[str]) -> list[str]:
    """Put --config first, so that everything else overrides it: a file, a preset, or the data set's preset."""
    from seqpope.presets import find_config

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--config", "--resume", "--domain", "--dataset"):
        first.add_argument(option)
    chosen, rest = first.parse_known_args(words)
    if chosen.resume is not None:
        if (
            chosen.config
            or chosen.dataset
            or chosen.domain
            or any(w.startswith("--") and w[:8] != "--device" for w in rest)
        ):
            raise SeqpopeError(
                "--resume goes on with an experiment's own configuration: only --device may be given with it"
            )
        file = Path(chosen.resume) / "config.yaml"
        if not file.is_file():
            raise SeqpopeError(f"{chosen.resume} is not an experiment's folder: expected config.yaml in it")
        # The folder is where the user says it is now, not where it was made.
        return ["--config", str(file), "--resume", chosen.resume, *rest]
    domain = chosen.domain or "music"
    if domain not in DOMAINS:
        raise SeqpopeError(f"unknown domain {domain!r}: expected one of {', '.join(DOMAINS)}")
    dataset = find_dataset(chosen.dataset or DOMAINS[domain])
    config = find_config(chosen.config or dataset.preset)
    named = ["--dataset", chosen.dataset] if chosen.dataset else []
    return ["--config", str(config), *(["--domain", chosen.domain] if chosen.domain else []), *named, *rest]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 1 an error told in words, 2 wrong usage, 130 interrupted."""
    try:
        words = _normalize(sys.argv[1:] if arguments is None else arguments)
        parser = build_parser()
        if not words:
            parser.print_help()
            return 2
        parsed = parser.parse_args(words)
        verb = parsed.verb
        try:
            options = parser.instantiate(parsed)[verb]
        except (TypeError, AttributeError) as error:
            raise SeqpopeError(
                f"the configuration cannot be used ({error}): compare it with what --print-config prints"
            ) from error
        if verb == "train":
            from seqpope.config import TrainConfig

            values = {k: v for k, v in vars(options).items() if k not in ("config", "resume")}
            train(TrainConfig(**values), resume=options.resume)
        else:
            VERBS[verb](**options.as_dict())  # not vars(): a namespace has a function of the name `keys`
        return 0
    except SeqpopeError as error:
        print(f"seqpope: {error}", file=sys.stderr)
        return 130 if type(error).__name__ == "Interrupted" else 1
    except KeyboardInterrupt:
        print("seqpope: interrupted", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        # torch has an error of its own for a full GPU and none for a full machine.
        if isinstance(error, MemoryError) or "memory" in str(error):
            print(
                f"seqpope: this does not fit the memory ({str(error).splitlines()[0] if str(error) else 'full'}): "
                "lower data.batch_size, data.length, model.width or model.layers, score with less --batch-tokens "
                "or --window, or draw fewer samples or particles at once",
                file=sys.stderr,
            )
            return 1
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = str(error)
        if error.errno == errno.ENOSPC:
            what = "the disk is full: free some space; finished work is kept"
        elif error.filename is not None:
            what = (
                f"{error.filename} cannot be read or written ({error.strerror}): see to it, or give another path"
            )
        print(f"seqpope: {what}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
