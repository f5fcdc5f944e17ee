"""What the studio does with music: draws, scores and converts grids of chorales, and reads what is uploaded."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqpope.domains.music.chorales.codec import SCORE_SUFFIXES, SILENCE, VOICES, Chorale, read_score
from seqpope.errors import SeqpopeError
from seqpope.studio import requests
from seqpope.studio.worker import Context, tokens_at_once

if TYPE_CHECKING:
    from torch import Tensor

    from seqpope.generate.draw import Model

BEHIND = 16  # known steps that particles are judged by behind the last free one
MOST_UNPACKED = 1 << 24  # bytes, and
MOST_PACKED_FILES = 100  # files of a compressed score; 64 bars of four voices are about a megabyte


def load(context: Context, file: str) -> Model:
    """The model in memory, if it is this one; else this one in its place."""
    from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
    from seqpope.generate.draw import Model

    fingerprint = ChoraleTokenizer().fingerprint
    return context.held(
        file, lambda path: Model.load(path, "auto", fingerprint, "this version's chorale tokenizer")
    )


def generate(job: dict[str, Any], context: Context) -> dict[str, Any]:
    """Draw a chorale: emits "step" with four pitches and their nats for each sixteenth, then all of it.

    With a given grid particles are drawn side by side: a "step" is told once all of them agree on it, and
    "progress" meanwhile. What is known before its first free note is read at once, as an opening; behind the last
    one a bar is enough for what is to come to count, and the rest is taken over.
    """
    import torch

    from seqpope.domains.music.chorales.constraints import FREE
    from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
    from seqpope.generate.chorales import draw_chorales, make_constraint
    from seqpope.generate.draw import Draw
    from seqpope.sampling import SamplingConfig

    asked: requests.Chorale = job["arguments"]
    model = load(context, job["file"])
    tokenizer = ChoraleTokenizer()
    opening = np.array(asked.opening, np.int64).reshape(-1, len(VOICES))
    steps, given, tail = 16 * asked.bars, None, np.zeros((0, len(VOICES)), np.int64)
    if asked.given is not None:
        given = np.array([[FREE if pitch is None else pitch for pitch in row] for row in asked.given], np.int64)
        free = np.flatnonzero((given == FREE).any(1))
        if len(free) == 0:
            raise SeqpopeError("nothing is left for the model to choose: mark what it is to write anew")
        head, tail = given[: free[0]], given[free[-1] + 1 + BEHIND :]
        opening = np.concatenate((opening, head))
        given = given[free[0] : free[-1] + 1 + BEHIND]
        steps = len(given)
    ids = tokenizer.encode(Chorale(opening)).astype(np.int64)
    constraint = make_constraint(given, asked.rules.model_dump())
    particles = 1 if given is None else asked.particles
    whole: list[tuple[int, float]] = []

    def watch(tokens: Tensor, nats: Tensor) -> None:
        context.check()
        whole.append((int(tokens[0]), round(float(nats[0]), 4)))
        if len(whole) % len(VOICES) == 0:
            last = whole[-len(VOICES) :]
            pitches = tokenizer.decode(np.array([token for token, _ in last]), "a step").pitches[0]
            context.emit("step", {"pitches": pitches.tolist(), "nats": [value for _, value in last]})

    def progress(done: int, total: int) -> None:
        context.check()
        if particles > 1 and done % 16 == 0:
            context.emit("progress", {"done": done, "of": total})

    draw = Draw(
        seed=asked.seed,
        batch_size=64,
        particles=particles,
        greed=0.0 if given is None else asked.greed,
        config=SamplingConfig(**asked.sampling.model_dump()),
        progress=progress,
        watch=watch,
    )
    with torch.inference_mode():
        [(_, drawn)] = draw_chorales(model, ids, steps, draw, constraint)
    chorale = tokenizer.decode(np.concatenate((ids, drawn.ids[0].numpy())), "what was drawn")
    nats = drawn.nats[0].double().numpy().reshape(-1, len(VOICES))
    known = np.zeros(nats.shape, bool) if given is None else given != FREE
    return {
        "grid": [*chorale.pitches.tolist(), *tail.tolist()],
        "from": len(opening),
        "nats": np.round(nats, 4).tolist(),
        "nats_per_token": float(nats[~known].mean()) if (~known).any() else None,
        "rules_cost": float(drawn.constraint_nats.double().mean()),
        "seed": asked.seed,
        "position": model.info.position,
    }


def surprise(job: dict[str, Any], context: Context) -> dict[str, Any]:
    """Nats of each token of a grid given all before it, in windows of the training length; (steps, 4)."""
    from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer

    asked: requests.Surprise = job["arguments"]
    model = load(context, job["file"])
    nats = nats_of(model, ChoraleTokenizer().encode(as_chorale(asked.grid)), context, least=len(VOICES))
    return {
        "nats": np.round(nats.reshape(-1, len(VOICES)), 4).tolist(),
        "nats_per_token": float(nats.mean()),
        "position": model.info.position,
    }


def nats_of(model: Model, ids: np.ndarray, context: Context, least: int = 1) -> np.ndarray:
    """Nats of each token of one document, (L,), in windows of the training length that move on by half of it.

    Emits "progress"; windows move on by `least` tokens at least.
    """
    import torch

    from seqpope.data.shards import SCORED, Split
    from seqpope.nll import score_split

    split = Split(ids, np.array([0, len(ids)]), np.full(len(ids), SCORED, np.uint8), ["uploaded"])
    with torch.inference_mode():
        return score_split(
            model.transformer,
            split,
            model.info.padding_id,
            length=model.info.length,
            stride=max(least, model.info.length // 2),
            device=model.device,
            batch_tokens=tokens_at_once(model.device),
            progress=lambda done, total: context.emit("progress", {"done": done, "of": total}),
        )


def as_chorale(grid: list[list[int | None]], title: str = "") -> Chorale:
    """A grid of the page's as a chorale.

    Raises:
        SeqpopeError: something in it is not known.
    """
    if any(pitch is None for row in grid for pitch in row):
        raise SeqpopeError("some notes of this are not chosen yet: let the model fill them first")
    return Chorale(np.array(grid, np.int64).reshape(-1, len(VOICES)), title)


def convert(asked: requests.Converted, context: Context) -> bytes:
    """A grid as MIDI, MusicXML, PNG (a piano roll) or SVG (engraved by Verovio; pages end to end)."""
    from seqpope.domains.music.chorales.codec import write_midi
    from seqpope.domains.music.chorales.notation import write_musicxml
    from seqpope.domains.music.chorales.picture import draw_piano_roll

    chorale = as_chorale(asked.grid, asked.title)
    if asked.format == "png":
        return draw_piano_roll(chorale, title=chorale.name, tempo=asked.tempo)
    with tempfile.TemporaryDirectory(prefix="seqpope-studio-") as folder:
        file = Path(folder) / ("score.mid" if asked.format == "mid" else "score.musicxml")
        if asked.format == "mid":
            write_midi(chorale, file, tempo=asked.tempo)
        else:
            write_musicxml(chorale, file, tempo=asked.tempo)
        return engrave(file.read_text()).encode() if asked.format == "svg" else file.read_bytes()


def engrave(musicxml: str) -> str:
    """MusicXML as SVG, one for each page, a line between them.

    Raises:
        SeqpopeError: Verovio is not installed, or cannot read it.
    """
    try:
        import verovio
    except ImportError as error:
        raise SeqpopeError("engraving needs Verovio: pip install verovio") from error
    verovio.enableLog(verovio.LOG_OFF)
    toolkit = verovio.toolkit()
    toolkit.setOptions(
        {"pageWidth": 2000, "adjustPageHeight": True, "scale": 40, "footer": "none", "svgViewBox": True}
    )
    if not toolkit.loadData(musicxml):
        raise SeqpopeError("Verovio cannot read this score")
    return "\n".join(toolkit.renderToSVG(page + 1) for page in range(toolkit.getPageCount()))


def read(uploaded: dict[str, Any], context: Context) -> dict[str, Any]:
    """An uploaded score, {"suffix", "content"}, as a grid; what it holds says which voices sound.

    Raises:
        SeqpopeError: it is no score that can be read.
    """
    if uploaded["suffix"] not in SCORE_SUFFIXES:
        raise SeqpopeError(f"expected a score ending in {', '.join(SCORE_SUFFIXES)}")
    check_packed(uploaded["content"])
    with tempfile.TemporaryDirectory(prefix="seqpope-studio-") as folder:
        file = Path(folder) / f"upload{uploaded['suffix']}"
        file.write_bytes(uploaded["content"])
        try:
            chorale = read_score(file)
        except SeqpopeError as error:
            said = str(error).replace(str(file), file.name).replace(file.name, "what was uploaded")
            raise SeqpopeError(said) from None
    pitches = chorale.pitches
    if len(pitches) > requests.MAXIMUM_STEPS:
        raise SeqpopeError(
            f"it has {len(pitches)} sixteenths; the studio takes up to {requests.MAXIMUM_STEPS}, 64 bars: cut it"
        )
    sounding = [name for name, line in zip(VOICES, pitches.T, strict=True) if (line != SILENCE).any()]
    if not sounding:
        raise SeqpopeError("there are no notes in it")
    return {"grid": pitches.tolist(), "voices": [name.lower() for name in sounding]}


def check_packed(content: bytes) -> None:
    """Look at what a compressed score says of its size; Python's zipfile unpacks no more of a file than is said.

    Raises:
        SeqpopeError: it is far more than a score has.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            files = packed.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # none, or one that the reader will refuse
        return
    size = sum(file.file_size for file in files)
    if size > MOST_UNPACKED or len(files) > MOST_PACKED_FILES:
        raise SeqpopeError(
            f"unpacked it has {size / 2**20:,.1f} MiB in {len(files)} files; a compressed score may have "
            f"{MOST_UNPACKED >> 20} MiB in {MOST_PACKED_FILES}"
        )


def fit_melody(job: dict[str, Any], context: Context) -> dict[str, int]:
    """Semitones that bring a melody into a soprano's range (`generate.chorales.fit`)."""
    from seqpope.generate.chorales import fit

    asked: requests.Melody = job["arguments"]
    line = np.array(asked.line)
    if not (line >= 0).any():
        raise SeqpopeError("the melody has no notes")
    return {"shift": fit(line)}


def warm(context: Context) -> None:
    """Have the shipped model in memory before anything is asked for."""
    from seqpope.checkpoint import SHIPPED

    if SHIPPED["chorales"].is_file():
        load(context, str(SHIPPED["chorales"]))
