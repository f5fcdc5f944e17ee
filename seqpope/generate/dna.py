"""DNA, drawn under rules: a prompt in, FASTA out, with a JSON file that says how."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from seqpope.checkpoint import find_checkpoint, read_info, shipped
from seqpope.domains.base import find_tokenizer
from seqpope.domains.genome.bases import BASES, gc_content
from seqpope.domains.genome.codec import Record, as_array, read_prompt, write_fasta
from seqpope.domains.genome.constraints import DnaConstraint
from seqpope.domains.genome.metrics import common_kmers, spectra
from seqpope.domains.genome.rules import DnaRules
from seqpope.domains.genome.sites import ConstraintError
from seqpope.errors import SeqpopeError
from seqpope.files import sha256_of
from seqpope.generate.draw import Draw, Model, describe_draw
from seqpope.output import Output
from seqpope.sampling import Samples

MAXIMUM_BASES = 1 << 20
SUMMARY_K = 3  # of the k-mers that a summary names


@dataclass(frozen=True)
class DnaOutput(Output):
    """Where sequences go: a FASTA file for all of them, or a folder with one a sample."""

    SUFFIXES: ClassVar[dict[str, str]] = {".fa": "fa", ".fasta": "fa", ".fna": "fa"}

    def check(self, num: int) -> None:
        super().check(1 if self.single else num)  # one file holds any number

    def write_dna(self, name: str, records: list[Record], sidecar: dict[str, Any]) -> Path:
        """Write sequences as one FASTA file; return it."""
        return self.write(name, sidecar, {"fa": lambda file: write_fasta(file, records)})


def load_model(checkpoint: Path | None, device: str) -> tuple[Model, Any]:
    """A model of DNA, the shipped one if `checkpoint` is None, and the tokenizer that it names.

    Raises:
        SeqpopeError: there is none, or it is none of DNA.
    """
    checkpoint = checkpoint or shipped("genome")
    info = read_info(find_checkpoint(checkpoint))
    tokenizer = find_tokenizer("dna", info.fingerprint)
    if tokenizer is None:
        raise SeqpopeError(
            f"{checkpoint} was trained on tokens {info.fingerprint[:12]} ({info.domain}, {info.dataset}), which "
            "are no tokens of DNA that this version knows: give a model of --domain genome"
        )
    return Model.load(checkpoint, device, tokenizer.fingerprint, "this version's DNA tokenizer"), tokenizer


def parse_band(text: str) -> tuple[float, float]:
    """A band of shares, such as "0.4,0.6".

    Raises:
        SeqpopeError: it is not two numbers.
    """
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        raise SeqpopeError(
            f"expected the least and the greatest share of G and C, such as 0.4,0.6; it is {text!r}"
        ) from None
    return low, high


def make_rules(
    gc: str | None = None,
    gc_window: int | None = None,
    forbid: str = "",
    open_frame: int | None = None,
    no_stop: bool = False,
    keep_n: bool = False,
    judge_prompt: bool = True,
) -> DnaRules:
    """Rules that options mean.

    Args:
        gc: a band such as "0.4,0.6" for the whole output; with gc_window for so many bases in a row too.
        forbid: sites with commas between.
        open_frame, no_stop, judge_prompt: as in `DnaRules`.
        keep_n: N may be drawn.

    Raises:
        SeqpopeError: they make no sense.
    """
    if gc_window is not None and gc is None:
        raise SeqpopeError(f"gc_window ({gc_window}) is for how many bases the band of gc holds: give gc as well")
    band = None if gc is None else parse_band(gc)
    return DnaRules(
        letters=BASES + ("N" if keep_n else ""),
        forbidden_sites=tuple(word.strip() for word in forbid.split(",") if word.strip()),
        open_frame=open_frame,
        no_stop=no_stop,
        gc=band,
        gc_window=None if gc_window is None else band,
        window=100 if gc_window is None else gc_window,
        judge_prompt=judge_prompt,
    )


class Begun(NamedTuple):
    """A prompt as ids (L,), its bases at the start that they leave out, the codes in it that were read as N, and
    the rules with the prompt behind them."""

    ids: np.ndarray
    unseen: int
    replaced: Counter[str]
    constraint: DnaConstraint


def begin(tokenizer: Any, text: str, bases: int, rules: DnaRules, letters_anywhere: bool = False) -> Begun:
    """What is needed to draw `bases` bases after a prompt's letters.

    Raises:
        SeqpopeError: the prompt cannot be read, or it and the rules contradict each other.
    """
    replaced: Counter[str] = Counter()
    ids, unseen = tokenizer.encode_prompt(text, replaced)
    constraint = DnaConstraint(
        rules, tokenizer.strings, bases=bases, unseen=text[:unseen], letters_anywhere=letters_anywhere
    )
    try:
        constraint.begin([ids], constraint.most_tokens(bases))
    except ConstraintError as error:
        raise SeqpopeError(str(error).replace("prompt 0", "the prompt", 1)) from None
    return Begun(ids, unseen, replaced, constraint)


def generate_dna(
    output: DnaOutput,
    draw: Draw | None = None,
    *,
    checkpoint: Path | None = None,
    bases: int = 3000,
    prompt: str | None = None,
    rules: DnaRules | None = None,
    letters_anywhere: bool = False,
) -> list[tuple[Path, str]]:
    """Draw DNA and write it as FASTA.

    Args:
        bases: bases to draw after the prompt.
        prompt: bases to continue, or a FASTA file of one sequence; they open the output. For a six-mer model they
            are read so that their end is a six-mer's (`SixMerTokenizer.encode_prompt`): what follows is in phase
            whatever their number.
        rules: what to keep to; letters ACGT alone if None.
        letters_anywhere: as in `DnaConstraint`.

    Returns:
        For each sample its file and a line that says what is in it.

    Raises:
        SeqpopeError: the checkpoint is none of DNA, the prompt cannot be read, it and the rules contradict each
            other, or the output cannot be written.
    """
    draw, rules = draw or Draw(), rules or DnaRules()
    draw.check()
    output.check(draw.num)
    if not 1 <= bases <= MAXIMUM_BASES:
        raise SeqpopeError(f"bases must be from 1 to {MAXIMUM_BASES}, they are {bases}")
    text, file = ("", None) if prompt is None else read_prompt(prompt)
    names = ["dna"] if output.single else [f"dna-{seed:04d}" for seed in draw.seeds]
    output.spare(names, [file, checkpoint])
    check_letters(text, rules)
    model, tokenizer = load_model(checkpoint, draw.device)
    opening, unseen, replaced, constraint = begin(tokenizer, text, bases, rules, letters_anywhere)
    digest = sha256_of(model.file)
    asked = {
        "bases": bases,
        "prompt": str(file) if file else text or None,
        "prompt_bases": len(text),
        "prompt_tokens": len(opening),
        "prompt_bases_unseen": unseen,
        "prompt_codes_read_as_n": dict(replaced),
        "rules": asdict(rules),
        "letters_anywhere": letters_anywhere,
    }
    ids = torch.from_numpy(opening.astype("int64"))
    results, records, sidecars = [], [], []
    for seed, drawn in model.draw(ids, constraint.most_tokens(bases), draw, constraint):
        sequence = text + tokenizer.decode(drawn.ids[0].numpy())[:bases]
        sidecar = describe_draw(model, draw, asked, seed, drawn, len(opening))
        sidecar |= measure(sequence, len(text), drawn, tokenizer)
        sidecar["weights_sha256"] = digest
        record = Record(f"dna-{seed:04d}", header(sidecar, len(sequence), digest), sequence)
        line = describe(sequence, sidecar)
        if output.single:
            records.append(record)
            sidecars.append(sidecar)
            results.append((output.out, f"{record.name}  {line}"))
        else:
            results.append((output.write_dna(record.name, [record], sidecar), line))
    if output.single:
        output.write_dna("dna", records, sidecars[0] if len(sidecars) == 1 else _together(sidecars, records))
    return results


def check_letters(text: str, rules: DnaRules) -> None:
    """Raise SeqpopeError if a prompt has letters that the rules do not, before a model is read."""
    if not rules.judge_prompt:
        return
    wrong = next((place for place, letter in enumerate(text) if letter not in rules.letters), None)
    if wrong is not None:
        more = ", or keep N with --keep-n" if text[wrong] == "N" and not rules.gc else ""
        raise SeqpopeError(
            f"the prompt has {text[wrong]!r} at position {wrong} (from 0), expected {rules.letters} alone: cut it "
            f"there, put a base for it{more}, or have only what is drawn judged with --judge-prompt false"
        )


def measure(sequence: str, prompt_bases: int, drawn: Samples, tokenizer: Any) -> dict[str, Any]:
    """Of a sidecar, what is said in bases. A token that is cut off at the end has nats for all its bases."""
    stood_for = int(tokenizer.bases_of[drawn.ids[0].numpy()].sum())
    counts = spectra([as_array(sequence[prompt_bases:])], [SUMMARY_K])[SUMMARY_K]
    return {
        "bases": len(sequence) - prompt_bases,
        "bases_of_tokens": stood_for,
        "nats_per_base": float(drawn.nats.double().sum() / stood_for),
        "constraint_nats_per_base": float(drawn.constraint_nats.double().sum() / stood_for),
        "gc": _known(gc_content(sequence)),
        "gc_drawn": _known(gc_content(sequence[prompt_bases:])),
        "common_kmers": common_kmers(counts, SUMMARY_K, 3),
    }


def _known(share: float) -> float | None:
    """JSON has no nan."""
    return None if share != share else share


def header(sidecar: dict[str, Any], length: int, digest: str) -> str:
    """Of a FASTA record, what stands behind its name."""
    gc = "nan" if sidecar["gc"] is None else f"{sidecar['gc']:.4f}"
    return (
        f"seed={sidecar['seed']} length={length} prompt={sidecar['settings']['prompt_bases']} gc={gc} "
        f"nats_per_base={sidecar['nats_per_base']:.4f} model={digest[:12]} "
        f"tokens={sidecar['model']['fingerprint'][:12]}"
    )


def _together(sidecars: list[dict[str, Any]], records: list[Record]) -> dict[str, Any]:
    """The sidecar of a file with several samples: what they share, and for each what is its own."""
    common = {key: value for key, value in sidecars[0].items() if all(each[key] == value for each in sidecars)}
    own = [
        {"name": record.name} | {key: value for key, value in each.items() if key not in common}
        for record, each in zip(records, sidecars, strict=True)
    ]
    tokens = sum(each["tokens"] for each in sidecars)
    nats = sum(each["nats_per_token"] * each["tokens"] for each in sidecars) / tokens
    return common | {"seed": sidecars[0]["seed"], "nats_per_token": nats, "samples": own}


def describe(sequence: str, sidecar: dict[str, Any]) -> str:
    """One line: bases, GC, commonest k-mers, NLL of what was drawn."""
    gc = "no bases" if sidecar["gc"] is None else f"GC {100 * sidecar['gc']:.1f}%"
    words = ", ".join(f"{word} {100 * share:.1f}%" for word, share in sidecar["common_kmers"])
    text = f"{len(sequence)} bases ({sidecar['bases']} drawn), {gc}, {words or 'no 3-mers'}; "
    text += f"{sidecar['nats_per_base']:.3f} nats/base"
    if sidecar["constraint_nats_per_base"] >= 5e-4:
        text += f", of which the rules cost {sidecar['constraint_nats_per_base']:.3f}"
    if sidecar["beyond_training_length"]:
        text += "; longer than the model was trained on"
    return text
