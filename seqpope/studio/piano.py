"""What the studio does with piano performances: draws, scores and rewrites them, reads and writes their files.

Drawing is what `seqpope generate` does, called the same way, so that a seed's notes are the same. Nats of a note
are told by `tokenizer.PARTS`: time, pitch, velocity, duration. Which token is of which note and part is the
tokenizer's to say (`owners`); every token is of one or of none, and the nats of those are told as "rest".
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from seqpope.domains.music.piano.codec import HIGHEST_KEY, LOWEST_KEY, Performance, parse_midi, write_midi
from seqpope.domains.music.piano.tokenizer import PARTS
from seqpope.errors import SeqpopeError
from seqpope.studio import requests
from seqpope.studio.music import nats_of
from seqpope.studio.worker import Context, tokens_at_once

if TYPE_CHECKING:
    from torch import Tensor

    from seqpope.generate.draw import Model
    from seqpope.generate.piano import Joined, Kind, Opening, Plan

SUFFIXES = (".mid", ".midi")
INTERVAL = 0.25  # seconds between two tellings of what is drawn
FOLLOWING = 4.0  # seconds behind what is written anew, by which candidates are judged
DURATION = PARTS.index("duration")


def load(context: Context, file: str) -> tuple[Model, Any, Kind]:
    """The model in memory with its tokenizer, if it is this one; else this one in its place."""
    from seqpope.generate.piano import load_model

    return context.held(file, lambda path: load_model(path, "auto"))


def as_performance(asked: requests.Performance, name: str = "") -> Performance:
    """A performance of the page's."""
    onset, duration, pitch, velocity = zip(*asked.notes, strict=True)
    return Performance(
        np.array(onset), np.array(duration), np.array(pitch), np.array(velocity), np.array(asked.pedal), name
    )


def as_json(played: Performance) -> dict[str, Any]:
    """A performance for the page."""
    return {"notes": _notes(played, np.arange(len(played))), "pedal": played.pedal.tolist()}


def _notes(played: Performance, chosen: np.ndarray) -> list[list[Any]]:
    columns = (played.onset, played.duration, played.pitch, played.velocity)
    return [list(note) for note in zip(*(column[chosen].tolist() for column in columns), strict=True)]


# ---------------------------------------------------------------- nats


class Costs(NamedTuple):
    """Nats of notes by PARTS, (N, 4); which notes the tokens have ended, (N,) bool."""

    nats: np.ndarray
    ended: np.ndarray

    def told(self, numbers: np.ndarray) -> list[list[float] | None]:
        """For the page: of the notes with these numbers, None where it is below 0."""
        rounded = np.round(self.nats, 4).tolist()
        return [None if number < 0 else rounded[number] for number in numbers.tolist()]


def costs_of(tokenizer: Any, ids: np.ndarray, nats: np.ndarray) -> Costs:
    """What the notes that ids decode to have cost, given the nats of each id."""
    note, part = tokenizer.owners(ids)
    count, owned = int(note.max(initial=-1)) + 1, note >= 0
    sums = np.bincount(note[owned] * len(PARTS) + part[owned], nats[owned], count * len(PARTS))
    ended = np.bincount(note[owned], part[owned] == DURATION, count) > 0
    return Costs(sums.reshape(count, len(PARTS)), ended)


def costs_of_drawn(plan: Plan, tokenizer: Any, drawn: np.ndarray, nats: np.ndarray) -> Costs:
    """What drawn notes have cost, those of the opening left out: what is drawn for them is of no note."""
    before = plan.opening.ids
    ids = np.concatenate((before, drawn))
    costs = costs_of(tokenizer, ids, np.concatenate((np.zeros(len(before)), nats)))
    known = int(tokenizer.owners(before)[0].max(initial=-1)) + 1
    return Costs(costs.nats[known:], costs.ended[known:])


# ---------------------------------------------------------------- drawing


class Stream:
    """Tells drawn notes as they become final, a few times a second.

    "notes": notes in the time of the whole output and their "nats"; "until": every note that begins before has
    been told; "shortened": onset, pitch and duration of notes that were told longer, whose key was struck again.
    A REMI note is told with its duration, a note of performance tokens with its note-off.
    """

    def __init__(self, context: Context, plan: Plan, tokenizer: Any) -> None:
        self.context, self.plan, self.tokenizer = context, plan, tokenizer
        self._ids: list[int] = []
        self._nats: list[float] = []
        self._durations = np.zeros(0)  # as told, of each drawn note; nan if it was not
        self._last = time.monotonic()

    def watch(self, tokens: Tensor, nats: Tensor) -> None:
        """One more token."""
        self.context.check()
        self._ids.append(int(tokens[0]))
        self._nats.append(float(nats[0]))
        if time.monotonic() - self._last >= INTERVAL:
            self.tell()
            self._last = time.monotonic()

    def tell(self, over: bool = False) -> None:
        """What is new since the last time; all that is left if it is over."""
        from seqpope.generate.piano import join

        plan, drawn = self.plan, np.array(self._ids, np.int64)
        played, number, count = join(plan, drawn, self.tokenizer)
        costs = costs_of_drawn(plan, self.tokenizer, drawn, np.array(self._nats))
        durations = np.append(self._durations, np.full(count - len(self._durations), np.nan))
        mine = np.flatnonzero(number >= 0)
        ended = costs.ended[number[mine]] | over
        final, held = mine[ended], played.onset[mine[~ended]]
        before, now = durations[number[final]], played.duration[final]
        new, shorter = final[np.isnan(before)], final[before > now]
        durations[number[final]] = now
        self._durations = durations
        reached = self.tokenizer.reached(np.concatenate((plan.opening.ids, drawn)))
        until = plan.end if over else float(min(plan.second(reached), plan.end, *held.tolist()))
        shortened = zip(*(c[shorter].tolist() for c in (played.onset, played.pitch, played.duration)), strict=True)
        self.context.emit(
            "notes",
            {
                "notes": _notes(played, new),
                "nats": costs.told(number[new]),
                "until": until,
                "shortened": [list(note) for note in shortened],
            },
        )


def open_with(model: Model, tokenizer: Any, whole: Performance, cut: float, called: str) -> Opening:
    """What a performance has before `cut`, as much of it read as `generate` reads."""
    from seqpope.generate.piano import make_opening

    return make_opening(whole, cut, tokenizer, model.info.length // 2 - 1, called)


def generate(job: dict[str, Any], context: Context) -> dict[str, Any]:
    """Draw a performance, or go on from an opening: tells notes while it draws (`Stream`), then all of it."""
    import torch

    from seqpope.generate.draw import Draw
    from seqpope.generate.piano import Opening, draw_piano, make_plan
    from seqpope.sampling import SamplingConfig

    asked: requests.PianoDrawn = job["arguments"]
    model, tokenizer, kind = load(context, job["file"])
    opening = Opening()
    if asked.opening is not None:
        whole = as_performance(asked.opening)
        cut = whole.seconds if asked.cut is None else min(asked.cut, whole.seconds)
        opening = open_with(model, tokenizer, whole, cut, "the opening")
    plan = make_plan(opening, kind, asked.seconds, asked.keys, asked.polyphony)
    stream = Stream(context, plan, tokenizer)
    draw = Draw(seed=asked.seed, config=SamplingConfig(**asked.sampling.model_dump()), watch=stream.watch)
    with torch.inference_mode():
        [(_, drawn, joined)] = draw_piano(model, tokenizer, plan, draw)
    stream.tell(over=True)
    nats = drawn.nats[0].double().numpy()
    costs = costs_of_drawn(plan, tokenizer, drawn.ids[0].numpy(), nats)
    return {
        **as_json(joined.played),
        "from": opening.cut,
        **_told(costs, joined.number, nats, asked.seconds),
        "seed": asked.seed,
        "position": model.info.position,
    }


def _told(costs: Costs, numbers: np.ndarray, nats: np.ndarray, seconds: float) -> dict[str, Any]:
    """What an answer says of what was drawn: of each note, and of all tokens."""
    return {
        "nats": costs.told(numbers),
        "rest": float(nats.sum() - costs.nats.sum()),
        "tokens": len(nats),
        "nats_per_token": float(nats.mean()),
        "nats_per_second": float(nats.sum()) / seconds,
    }


# ---------------------------------------------------------------- rewriting


def rewrite(job: dict[str, Any], context: Context) -> dict[str, Any]:
    """Draw anew what begins from `begin` on and before `end`, after what precedes it; all else stays as it is.

    Drawn notes are released by `end`. Presses of the pedal go as notes do: those that begin within are gone, but
    one that is still down at `end` begins there. Of several candidates that is taken under which what follows is
    likeliest; the first if nothing does. One alone is told while it is drawn (`Stream`), of several "progress".
    """
    import torch

    from seqpope.generate.draw import FEW_ROWS, Draw
    from seqpope.generate.piano import Opening, draw_piano, make_plan
    from seqpope.sampling import SamplingConfig

    asked: requests.PianoRewritten = job["arguments"]
    loaded = load(context, job["file"])
    model, tokenizer, kind = loaded
    whole, begin, end = as_performance(asked.performance), asked.begin, asked.end
    opening = Opening(read_from=begin, cut=begin)
    if (whole.onset < begin).any():
        opening = open_with(model, tokenizer, whole, begin, "what comes before")
    plan = make_plan(opening, kind, end - begin, asked.keys, asked.polyphony, end)
    stream, percent = Stream(context, plan, tokenizer), -1

    def watch(tokens: Tensor, nats: Tensor) -> None:
        if asked.candidates == 1:
            stream.watch(tokens, nats)
        context.check()

    def progress(done: int, total: int) -> None:
        nonlocal percent
        if asked.candidates > 1 and 100 * done // total > percent:
            percent = 100 * done // total
            context.emit("progress", {"done": percent, "of": 100})

    draw = Draw(
        num=asked.candidates,
        seed=asked.seed,
        batch_size=FEW_ROWS,  # more would be shared by threads, which wait for each other where others work too
        config=SamplingConfig(**asked.sampling.model_dump()),
        progress=progress,
        watch=watch,
    )
    with torch.inference_mode():
        drawn = list(draw_piano(model, tokenizer, plan, draw))
        if asked.candidates == 1:
            stream.tell(over=True)
        versions = [put_between(whole, joined, begin, end) for _, _, joined in drawn]
        following = nats_of_following(loaded, [version for version, _ in versions], end, context)
    best = min(range(len(versions)), key=lambda one: following[one] or 0.0)
    (played, numbers), (_, tokens, _) = versions[best], drawn[best]
    nats = tokens.nats[0].double().numpy()
    costs = costs_of_drawn(plan, tokenizer, tokens.ids[0].numpy(), nats)
    return {
        **as_json(played),
        "from": begin,
        **_told(costs, numbers, nats, end - begin),
        "seed": asked.seed,
        "position": model.info.position,
        "begin": begin,
        "end": end,
        "candidates": following,
        "chosen": best,
    }


def put_between(whole: Performance, joined: Joined, begin: float, end: float) -> tuple[Performance, np.ndarray]:
    """A performance with drawn notes instead of those from `begin` to `end`, and each note's number (`Joined`)."""
    drawn, number, _ = joined
    mine, head, tail = number >= 0, whole.onset < begin, whole.onset >= end

    def between(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return np.concatenate((old[head], new[mine], old[tail]))

    down, up = whole.pedal.T
    inside = (down >= begin) & (down < end)
    played = Performance(
        between(whole.onset, drawn.onset),
        between(whole.duration, drawn.duration),
        between(whole.pitch, drawn.pitch),
        between(whole.velocity, drawn.velocity),
        np.stack((np.where(inside, end, down), up), axis=1)[~inside | (up > end)],
    )
    return played, np.concatenate((np.full(head.sum(), -1), number[mine], np.full(tail.sum(), -1)))


def nats_of_following(
    loaded: tuple[Model, Any, Kind], versions: list[Performance], end: float, context: Context
) -> list[float | None]:
    """Nats per token of what follows `end` in each version, None where nothing does.

    What follows is all tokens from the first note at `end` or later on, for FOLLOWING seconds and half a window of
    training at most; they are read in one window with what comes before.
    """
    from seqpope.data.shards import SCORED, Split
    from seqpope.data.windows import Window
    from seqpope.generate.piano import tokens_between
    from seqpope.nll import token_nats, window_batches

    model, tokenizer, _ = loaded
    length, until = model.info.length, end + FOLLOWING
    found: list[float | None] = [None] * len(versions)
    if not any(((played.onset >= end) & (played.onset < until)).any() for played in versions):
        return found
    documents, windows, start = [], [], 0
    for number, played in enumerate(versions):
        near = played.onset < until
        heard = Performance(
            played.onset[near], played.duration[near], played.pitch[near], played.velocity[near], played.pedal
        )
        ids, notes = tokens_between(heard, 0.0, until, tokenizer), tokenizer.numbers(heard)[heard.onset >= end]
        first = int(np.flatnonzero(tokenizer.owners(ids)[0] >= notes[notes >= 0].min())[0])
        stop = min(first + length // 2, len(ids))
        documents.append(ids)
        windows.append(Window(number, start + max(0, stop - length), start + first, start + stop))
        start += len(ids)
    tokens, starts = np.concatenate(documents), np.cumsum([0, *map(len, documents)])
    split = Split(tokens, starts, np.full(len(tokens), SCORED, np.uint8), [""] * len(versions))
    many = tokens_at_once(model.device)
    for batch in window_batches(split, model.info.padding_id, windows, batch_tokens=many):
        context.check()
        logits = model.transformer(batch.ids.to(model.device))
        nats = token_nats(logits, batch.targets.to(model.device)).double().cpu()
        for row, window in enumerate(batch.windows):
            found[window.document] = float(
                nats[row, window.score - window.start : window.end - window.start].mean()
            )
    return found


# ---------------------------------------------------------------- scoring


def surprise(job: dict[str, Any], context: Context) -> dict[str, Any]:
    """Nats of each note given all before it, in windows of the training length.

    None of a note that performance tokens drop: of a key that is struck twice within 10 ms the last alone is kept.
    """
    asked: requests.PianoSurprise = job["arguments"]
    model, tokenizer, _ = load(context, job["file"])
    played = as_performance(asked.performance)
    ids = tokenizer.encode(played)
    nats = nats_of(model, ids, context)
    costs = costs_of(tokenizer, ids, nats)
    return {
        "nats": costs.told(tokenizer.numbers(played)),
        "rest": float(nats.sum() - costs.nats.sum()),
        "nats_per_token": float(nats.mean()),
        "nats_per_note": float(nats.sum()) / len(costs.nats),
        "tokens": len(ids),
        "position": model.info.position,
    }


# ---------------------------------------------------------------- files


def convert(asked: requests.PianoConverted, context: Context) -> bytes:
    """A performance as MIDI or PNG (a piano roll)."""
    from seqpope.domains.music.piano.picture import draw_performance

    played = as_performance(asked.performance, asked.title)
    if asked.format == "png":
        return draw_performance(played)
    with tempfile.TemporaryDirectory(prefix="seqpope-studio-") as folder:
        file = Path(folder) / "performance.mid"
        write_midi(played, file)
        return file.read_bytes()


def read(uploaded: dict[str, Any], context: Context) -> dict[str, Any]:
    """An uploaded MIDI file, {"suffix", "content"}, as a performance.

    Of one that is longer than the studio takes it is the beginning; "left_out" is how many notes are not in it,
    "seconds" how long what is there lasts.

    Raises:
        SeqpopeError: it is no piano performance.
    """
    if uploaded["suffix"] not in SUFFIXES:
        raise SeqpopeError(f"expected a MIDI file ending in {', '.join(SUFFIXES)}")
    whole = parse_midi(uploaded["content"], "what was uploaded")
    if not len(whole):
        raise SeqpopeError("there are no notes in it that sound")
    played = beginning(whole)
    if not len(played):
        raise SeqpopeError(
            f"its first note comes after {whole.onset[0]:.6g} seconds, or too many at once; the studio takes "
            f"{requests.MAXIMUM_SECONDS:g} seconds and {requests.MAXIMUM_NOTES} notes: cut it"
        )
    outside = int(((played.pitch < LOWEST_KEY) | (played.pitch > HIGHEST_KEY)).sum())
    if outside:
        raise SeqpopeError(
            f"it has {outside} notes outside a piano's keys, {LOWEST_KEY} to {HIGHEST_KEY}: transpose or remove "
            "them"
        )
    return as_json(played) | {"seconds": played.seconds, "left_out": len(whole) - len(played)}


def beginning(whole: Performance) -> Performance:
    """As much of a performance, from its beginning, as the studio takes; its last notes may end sooner."""
    cut = requests.MAXIMUM_SECONDS
    for times, most in ((whole.onset, requests.MAXIMUM_NOTES), (whole.pedal[:, 0], requests.MAXIMUM_PEDAL)):
        if len(times) > most:
            cut = min(cut, float(np.sort(times)[most]))
    kept = whole.onset < cut
    held = np.minimum(whole.duration[kept], requests.MAXIMUM_SECONDS - whole.onset[kept])
    pedal = np.minimum(whole.pedal[whole.pedal[:, 0] < cut], requests.MAXIMUM_SECONDS)
    return Performance(whole.onset[kept], held, whole.pitch[kept], whole.velocity[kept], pedal, whole.name)
