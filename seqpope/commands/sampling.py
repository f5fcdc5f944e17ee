"""Samples and what becomes of them: `generate`, `harmonize`, `examine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from seqpope.commands.options import Device, changed, words
from seqpope.domains.base import DOMAINS, KINDS, Kind, find_kind
from seqpope.errors import SeqpopeError
from seqpope.progress import Progress


def generate(
    out: Path,
    domain: str | None = None,
    checkpoint: Path | None = None,
    num: int = 1,
    seconds: float | None = None,
    bars: int | None = None,
    bases: int | None = None,
    prompt: str | None = None,
    prompt_seconds: float | None = None,
    prompt_bars: int = 0,
    keys: str = "",
    polyphony: int | None = None,
    given: Path | None = None,
    voices: str = "soprano",
    ranges: bool = False,
    no_parallels: bool = False,
    cadence: bool = False,
    no_rests: bool = False,
    gc: str | None = None,
    gc_window: int | None = None,
    forbid: str = "",
    open_frame: int | None = None,
    no_stop: bool = False,
    keep_n: bool = False,
    judge_prompt: bool = True,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    particles: int | None = None,
    context: int | None = None,
    formats: str = "",
    tempo: float = 80.0,
    merge_repeats: bool = True,
    soundfont: Path | None = None,
    device: Device = "auto",
) -> None:
    """Sample music or DNA from a model and write it, with a JSON file beside it that says how it was made.

    Args:
        out: Music: a file (.mid, .wav, .png, chorales also .musicxml), or a folder if more than one sample is
            drawn. DNA: a FASTA file (.fa) for all samples, or a folder with one for each.
        domain: What to sample, music or genome; if not given what the checkpoint was trained on, else music.
        checkpoint: A .safetensors file, a run's folder or an experiment's; the shipped model of chorales or, with
            --domain genome, of DNA if not given (chorales-rope names that of chorales' RoPE twin). What it was
            trained on says whether chorales, piano or DNA is drawn.
        num: How many samples.
        seconds: Piano: length of what is drawn, 60 if not given. Chorales: the same as bars at the tempo, rounded
            up to whole ones.
        bars: Chorales: length of what is drawn, in bars of 16 sixteenths; 16, or as long as the given score.
        bases: DNA: length of what is drawn; 3000.
        prompt: What to continue; it is part of the output. Chorales: MIDI or MusicXML in up to four voices. Piano:
            MIDI. DNA: a FASTA file of one sequence, or the bases themselves.
        prompt_seconds: Piano: use only so much of the prompt.
        prompt_bars: Chorales: use only so many bars of the prompt; 0 uses all.
        keys: Piano: range of the keys that are drawn, such as 36-84 or C2-C6; the prompt keeps its own.
        polyphony: Piano: a note is drawn only where fewer sound.
        given: Chorales: score of which some voices are kept while the model fills in the others.
        voices: Chorales: which voices of the given score are kept, such as soprano,bass.
        ranges: Chorales: every voice in its usual range (S 60-81, A 53-74, T 48-69, B 36-64).
        no_parallels: Chorales: no parallel fifths, octaves and unisons.
        cadence: Chorales: end on a dominant seventh and the tonic, in the key of what came before.
        no_rests: Chorales: voices that are not given never fall silent.
        gc: DNA: least and greatest share of G and C in the whole output, such as 0.4,0.6.
        gc_window: DNA: keep to that band in so many bases in a row too, everywhere.
        forbid: DNA: sites that must not occur on either strand, restriction enzymes or IUPAC sequences, such as
            EcoRI,GGATCC.
        open_frame: DNA: 0, 1 or 2; no stop codon in the reading frame that begins at that base.
        no_stop: DNA: no stop codon in any frame of the forward strand.
        keep_n: DNA: N may be drawn and may be in the prompt; only A, C, G and T if not given.
        judge_prompt: DNA: the prompt has to keep to the rules as well; false judges only what is drawn.
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the likeliest tokens that together reach this probability.
        min_p: Keep tokens at least so likely as this share of the likeliest.
        repetition_penalty: Above 1, tokens that are there already become less likely.
        seed: Sample i is drawn with seed + i, whatever is drawn beside it.
        batch_size: How many samples, or particles of samples, are drawn at once.
        particles: Draw each sample so many times side by side and go on with what fits given voices and rules
            best; 1 if nothing is given, else 16.
        context: Attend to at most so many tokens; all if not given.
        formats: Music: what to write of each sample beside, of mid, wav, png and musicxml, such as mid,png.
        tempo: Chorales: quarter notes a minute.
        merge_repeats: Chorales: write a pitch that is repeated from step to step as one held note.
        soundfont: Music: SoundFont for wav; the system's own if not given.
        device: Where to compute.
    """
    asked = dict(locals())
    kind = _kind_of(domain, checkpoint)
    _refuse_foreign(kind, asked)
    from seqpope.generate.draw import Draw
    from seqpope.sampling import SamplingConfig

    draw = Draw(
        num=num,
        seed=seed,
        batch_size=batch_size,
        particles=(1 if given is None else 16) if particles is None else particles,
        context=context,
        config=SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty),
        device=device,
        progress=Progress("sampling", GENERATORS[kind.name].unit),
    )
    for file, text in GENERATORS[kind.name].draw(draw, asked):
        print(f"{file}  {text}")


def _generate_chorales(draw: Any, asked: Mapping[str, Any]) -> list[tuple[Path, str]]:
    from seqpope.generate.chorales import ChoraleOutput, generate_chorales

    return generate_chorales(
        ChoraleOutput(
            asked["out"], words(asked["formats"]), asked["soundfont"], asked["tempo"], asked["merge_repeats"]
        ),
        draw,
        prompt=None if asked["prompt"] is None else Path(asked["prompt"]),
        rules={name: asked[name] for name in ("ranges", "no_parallels", "cadence", "no_rests")},
        **{name: asked[name] for name in ("checkpoint", "bars", "seconds", "prompt_bars", "given", "voices")},
    )


def _generate_piano(draw: Any, asked: Mapping[str, Any]) -> list[tuple[Path, str]]:
    from seqpope.generate.piano import PianoOutput, generate_piano, parse_keys

    options = {name: asked[name] for name in ("checkpoint", "seconds", "prompt_seconds", "polyphony")}
    if asked["keys"]:
        options["keys"] = parse_keys(asked["keys"])
    return generate_piano(
        PianoOutput(asked["out"], words(asked["formats"]), asked["soundfont"]),
        draw,
        prompt=None if asked["prompt"] is None else Path(asked["prompt"]),
        **options,
    )


def _generate_dna(draw: Any, asked: Mapping[str, Any]) -> list[tuple[Path, str]]:
    from seqpope.generate.dna import DnaOutput, generate_dna, make_rules

    rules = ("gc", "gc_window", "forbid", "open_frame", "no_stop", "keep_n", "judge_prompt")
    return generate_dna(
        DnaOutput(asked["out"]),
        draw,
        checkpoint=asked["checkpoint"],
        bases=3000 if asked["bases"] is None else asked["bases"],
        prompt=asked["prompt"],
        rules=make_rules(**{name: asked[name] for name in rules}),
    )


class Generator(NamedTuple):
    """What draws a kind of samples, and the options of `generate` that not all kinds have."""

    draw: Callable[[Any, Mapping[str, Any]], list[tuple[Path, str]]]
    options: tuple[str, ...]
    unit: str = "tokens"  # of progress


GENERATORS = {
    "chorales": Generator(
        _generate_chorales,
        (
            *(
                "bars",
                "seconds",
                "prompt_bars",
                "given",
                "voices",
                "ranges",
                "no_parallels",
                "cadence",
                "no_rests",
            ),
            *("formats", "tempo", "merge_repeats", "soundfont"),
        ),
    ),
    "piano": Generator(
        _generate_piano,
        ("seconds", "prompt_seconds", "keys", "polyphony", "formats", "soundfont"),
        unit="s of music",
    ),
    "dna": Generator(
        _generate_dna, ("bases", "gc", "gc_window", "forbid", "open_frame", "no_stop", "keep_n", "judge_prompt")
    ),
}


def _kind_of(domain: str | None, checkpoint: Path | None) -> Kind:
    """What is to be drawn: what a checkpoint's header says, or the domain's usual kind without one."""
    if domain is not None and domain not in DOMAINS:
        raise SeqpopeError(f"unknown domain {domain!r}: expected one of {', '.join(DOMAINS)}")
    if checkpoint is None:
        named = domain or "music"
        return find_kind(DOMAINS[named], named)
    from seqpope.checkpoint import find_checkpoint, read_info

    info = read_info(find_checkpoint(checkpoint))
    kind = find_kind(info.dataset, info.domain)
    if domain not in (None, kind.domain):
        raise SeqpopeError(
            f"{checkpoint} is a model of {kind.title} ({info.dataset}), not of --domain {domain}: leave the "
            "domain out, or give another checkpoint"
        )
    return kind


def _refuse_foreign(kind: Kind, asked: Mapping[str, Any]) -> None:
    """Raise SeqpopeError if an option is set that this kind of samples does not have."""
    foreign = {
        name: other
        for other, generator in GENERATORS.items()
        for name in generator.options
        if name not in GENERATORS[kind.name].options
    }
    if told := changed(generate, asked, foreign):
        words = [f"{option} (an option of {KINDS[foreign[name]].title})" for name, option in told.items()]
        raise SeqpopeError(
            f"{kind.title} are to be drawn, which have no {', '.join(words)}: leave out what is not theirs, or "
            "name another --checkpoint or --domain"
        )


def harmonize(
    melody: Path,
    out: Path,
    checkpoint: Path | None = None,
    num: int = 1,
    ranges: bool = True,
    no_parallels: bool = True,
    cadence: bool = False,
    no_rests: bool = True,
    temperature: float = 0.8,
    particles: int = 32,
    greed: float = 1.0,
    seed: int = 0,
    formats: str = "",
    tempo: float = 80.0,
    soundfont: Path | None = None,
    device: Device = "auto",
) -> None:
    """Set a melody for four voices: it is the soprano, the model adds alto, tenor and bass.

    Args:
        melody: MIDI or MusicXML, in any key, on a grid of sixteenths; its highest voice is taken.
        out: A file (.mid, .musicxml, .wav or .png), or a folder if more than one is drawn.
        checkpoint: A .safetensors file, a run's folder or an experiment's; the shipped chorale model if not given,
            chorales-rope for its RoPE twin.
        num: How many harmonizations.
        ranges: Keep the added voices in their usual ranges.
        no_parallels: No parallel fifths, octaves and unisons.
        cadence: End on a dominant seventh and the tonic; the melody is left as it is.
        no_rests: The added voices never fall silent.
        temperature: Divides the logits; 0 always takes the likeliest token.
        particles: Harmonizations drawn side by side, so that the coming melody counts.
        greed: 0 draws what the model would write to the melody, 1 searches for the likeliest and takes it.
        seed: Harmonization i is drawn with seed + i.
        formats: What to write of each beside, of mid, musicxml, wav and png, such as mid,png.
        tempo: Quarter notes a minute.
        soundfont: SoundFont for wav; the system's own if not given.
        device: Where to compute.
    """
    from seqpope.generate.chorales import ChoraleOutput
    from seqpope.generate.chorales import harmonize as run
    from seqpope.generate.draw import Draw
    from seqpope.sampling import SamplingConfig

    files = run(
        melody,
        ChoraleOutput(out, words(formats), soundfont, tempo),
        Draw(
            num=num,
            seed=seed,
            batch_size=64,
            particles=particles,
            greed=greed,
            config=SamplingConfig(temperature),
            device=device,
            progress=Progress("harmonizing", "tokens"),
        ),
        checkpoint=checkpoint,
        rules={"ranges": ranges, "no_parallels": no_parallels, "cadence": cadence, "no_rests": no_rests},
    )
    for file, text in files:
        print(f"{file}  {text}")


def examine(samples: list[Path], data: Path | None = None, out: Path | None = None) -> None:
    """Measure samples and see whether they copy what a model was trained on: chorales, piano or DNA.

    Args:
        samples: Scores (MIDI or MusicXML), performances (MIDI) or FASTA files, or folders of them.
        data: Music: prepared data, such as data/jsb or data/maestro; copies are looked for in its training split,
            and its test split stands beside for scale. DNA: a FASTA file of the training sequences,
            or a prepared genome such as data/genome.
        out: Folder to write examine.md and examine.json to; only print if not given.
    """
    from seqpope.examine import examine_files

    print(examine_files(samples, data, out))
