"""Piano in the studio: what streams in comes out, nats are the model's, rewriting leaves the rest alone."""

from __future__ import annotations

import io
import itertools
import json
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pretty_midi
import pytest
import torch
from pages import running_studio
from piano_pieces import midi_bytes, note

from seqpope.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from seqpope.cli import main
from seqpope.domains.music.piano.codec import TICKS_PER_SECOND, Performance, parse_midi, read_midi, write_midi
from seqpope.domains.music.piano.tokenizer import (
    DURATION_IDS,
    LEVEL_ID,
    OFF_ID,
    ON_ID,
    PITCH_IDS,
    SHIFT_ID,
    PerformanceTokenizer,
    RemiTokenizer,
)
from seqpope.errors import SeqpopeError
from seqpope.generate.piano import TOKENS_AT_LEAST, TOKENS_PER_SECOND
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer
from seqpope.studio import piano, requests
from seqpope.studio.worker import Cancelled, Context

TOKENIZERS = {"remi": RemiTokenizer(), "performance": PerformanceTokenizer()}
SHAPE = {"width": 16, "layers": 1, "heads": 2}
LENGTH = 128  # of a window of training: short, so that pieces have several


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """runs/piano with an untrained model of each tokenizer whose next tokens are not all as likely."""
    made = tmp_path_factory.mktemp("piano")
    for name, tokens in TOKENIZERS.items():
        torch.manual_seed(0)
        model = Transformer(tokens.vocabulary_size, "pope", ModelConfig(**SHAPE))
        with torch.no_grad():
            for weights in model.parameters():
                weights *= 6
        info = CheckpointInfo(
            domain="music",
            dataset="maestro" if name == "remi" else "maestro-performance",
            position="pope",
            vocabulary_size=tokens.vocabulary_size,
            padding_id=0,
            length=LENGTH,
            model=SHAPE,
            tokenizer=tokens.specification,
            fingerprint=tokens.fingerprint,
        )
        file = made / "runs" / "piano" / name / "best.safetensors"
        file.parent.mkdir(parents=True)
        save_checkpoint(file, model, info)
    return made


@pytest.fixture(params=list(TOKENIZERS))
def name(request):
    return request.param


@pytest.fixture
def file(folder, name):
    return folder / "runs" / "piano" / name / "best.safetensors"


@pytest.fixture(scope="module")
def address(folder):
    with running_studio(folder) as address:
        yield address


@pytest.fixture
def client(address):
    with httpx.Client(base_url=address, timeout=120) as client:
        yield client


@pytest.fixture
def model(client, name):
    """The studio's name of the model."""
    [found] = [one["id"] for one in client.get("/api/state").json()["models"] if one["label"] == f"piano/{name}"]
    return found


KEPT: dict[str, Any] = {}  # the one model in memory


def done(file, kind, /, *, stopping=lambda: False, **arguments) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
    """What a job says, and its result as the page gets it."""
    said: list[tuple[str, Any]] = []
    asked = requests.checked(f"piano.{kind}", requests.COMPUTED, {"model": "x", **arguments})
    job = {"arguments": asked, "file": str(file)}
    result = getattr(piano, kind)(job, Context(said.append, stopping, KEPT))
    return json.loads(json.dumps(said)), json.loads(json.dumps(result))


def steady(count: int = 48, apart: float = 0.25) -> dict[str, Any]:
    """Notes of two voices in a row, some held under others, with a pedal; for the page."""
    random = np.random.default_rng(count)
    notes = [
        [apart * i, 0.1 + 0.4 * float(random.random()), int(random.integers(40, 80)), int(random.integers(1, 128))]
        for i in range(count)
    ]
    pedal = [[2 * i + 0.3, 2 * i + 1.6] for i in range(int(count * apart / 2))]
    return {"notes": notes, "pedal": pedal}


def total(result: dict[str, Any]) -> float:
    return sum(sum(nats) for nats in result["nats"] if nats is not None) + result["rest"]


def parted(result: dict[str, Any]) -> tuple[list[list[Any]], list[list[Any]]]:
    """Drawn notes with their nats, and the others."""
    both = list(zip(result["notes"], result["nats"], strict=True))
    return [[*told, nats] for told, nats in both if nats is not None], [
        told for told, nats in both if nats is None
    ]


def followed(said: list[tuple[str, Any]]) -> list[list[Any]]:
    """Notes and their nats as a page has them that heard "notes", checked on the way."""
    heard: dict[tuple[float, int], list[Any]] = {}
    last = 0.0
    for kind, data in said:
        assert kind == "notes"
        for told, nats in zip(data["notes"], data["nats"], strict=True):
            assert told[0] >= last, "a note that begins before what was said to be all"
            assert (told[0], told[2]) not in heard
            heard[told[0], told[2]] = [*told, nats]
        for onset, pitch, duration in data["shortened"]:
            assert duration < heard[onset, pitch][1]
            heard[onset, pitch][1] = duration
        assert data["until"] >= last
        last = data["until"]
    return sorted(heard.values())


class TestGenerate:
    @pytest.mark.parametrize("opened", [False, True])
    def test_what_streams_in_is_what_comes_out(self, file, name, opened, monkeypatch):
        clock = itertools.count(step=piano.INTERVAL / 5)  # told every five tokens
        monkeypatch.setattr(piano, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        opening = {"opening": steady(), "cut": 3.3} if opened else {}
        said, result = done(file, "generate", seed=1, seconds=4.0, **opening)
        drawn, kept = parted(result)
        assert followed(said) == sorted(drawn)
        assert len(said) > 4
        assert sum(bool(data["notes"]) for _, data in said) > 2
        assert any(data["shortened"] for _, data in said) == (name == "remi")
        assert said[-1][1]["until"] >= result["from"] + 4
        assert min(told[0] for told in drawn) >= result["from"] == (3.3 if opened else 0)
        assert len(kept) == (14 if opened else 0)
        assert all(told[0] < 3.3 for told in kept)
        assert total(result) == pytest.approx(result["nats_per_token"] * result["tokens"], abs=1e-2)
        assert result["nats_per_second"] * 4 == pytest.approx(result["nats_per_token"] * result["tokens"])
        assert result["seed"] == 1
        assert result["position"] == "pope"

    def test_nats_are_those_of_the_piece(self, folder):
        """Performance tokens of what was drawn are those that were drawn, but for a pause at the end."""
        file = folder / "runs" / "piano" / "performance" / "best.safetensors"
        _, result = done(file, "generate", seed=2, seconds=1.0)
        assert result["tokens"] < LENGTH
        _, judged = done(file, "surprise", performance={"notes": result["notes"]})
        assert 0 < judged["tokens"] <= result["tokens"]
        for drew, said in zip(result["nats"], judged["nats"], strict=True):
            assert said == pytest.approx(drew, abs=2e-3)

    @pytest.mark.parametrize("prompted", [False, True])
    def test_notes_are_those_of_the_command(self, tmp_path, file, prompted):
        words, opening = [], {}
        if prompted:
            given = steady()
            played = Performance(*np.array(given["notes"]).T, given["pedal"])
            write_midi(played, tmp_path / "prompt.mid")
            words = ["--prompt", str(tmp_path / "prompt.mid"), "--prompt-seconds", "3.7"]
            uploaded = {"suffix": ".mid", "content": (tmp_path / "prompt.mid").read_bytes()}
            read = piano.read(uploaded, Context(print, lambda: False))
            opening = {"opening": {name: read[name] for name in ("notes", "pedal")}, "cut": 3.7}
        words += ["--seconds", "2", "--seed", "5", "--keys", "40-80", "--polyphony", "3", "--top-k", "50"]
        assert main(["generate", "--checkpoint", str(file), "--out", str(tmp_path / "out.mid"), *words]) == 0
        sampling = {"top_k": 50}
        asked = {"seed": 5, "seconds": 2.0, "keys": [40, 80], "polyphony": 3, "sampling": sampling, **opening}
        _, result = done(file, "generate", **asked)
        written = read_midi(tmp_path / "out.mid")
        columns = (written.onset, written.end, written.pitch, written.velocity)
        ticks = lambda seconds: round(seconds * TICKS_PER_SECOND)  # noqa: E731
        there = sorted((ticks(a), ticks(b), int(c), int(d)) for a, b, c, d in zip(*columns, strict=True))
        ours = sorted((ticks(a), max(ticks(a) + 1, ticks(a + b)), c, d) for a, b, c, d in result["notes"])
        assert ours == there
        told = json.loads((tmp_path / "out.json").read_text())
        assert told["nats_per_token"] == pytest.approx(result["nats_per_token"])
        assert told["nats_per_second"] == pytest.approx(result["nats_per_second"])
        assert sum(nats is not None for nats in result["nats"]) == told["notes"] > 0

    def test_behind_minutes_of_silence(self, file):
        """Or behind a key that is held for as long: every second may take a token."""
        held = {"notes": [[0.0, 1.0, 50, 50], [1.0, 800.0, 60, 60]]}
        _, result = done(file, "generate", opening=held, cut=701.0, seconds=1.0)
        assert all(701 <= told[0] < 702.1 for told in result["notes"][2:])
        _, result = done(file, "rewrite", performance=steady(4), begin=899.5, end=900.0, candidates=1)
        assert result["notes"][:4] == steady(4)["notes"]
        assert all(899.5 <= told[0] < 900 for told in result["notes"][4:])

    def test_an_opening_that_says_nothing(self, file):
        late = {"notes": [[5.0, 1.0, 60, 60]]}
        with pytest.raises(SeqpopeError, match=r"the opening has no note in its first 2 s, its first .* 5\.00 s"):
            done(file, "generate", opening=late, cut=2.0)


def naive(file, ids: np.ndarray) -> np.ndarray:
    """Nats of ids in one window, one by one."""
    model, info = load_checkpoint(file)
    read = torch.tensor([[info.padding_id, *ids[:-1].tolist()]])
    with torch.inference_mode():
        logits = model(read)[0].double()
    return np.array(
        [float(row.logsumexp(0) - row[token]) for row, token in zip(logits, ids.tolist(), strict=True)]
    )


class TestSurprise:
    def test_is_the_models(self, file, name):
        played = steady(18)
        said, result = done(file, "surprise", performance=played)
        given = Performance(*np.array(played["notes"]).T, played["pedal"])
        ids = TOKENIZERS[name].encode(given).astype(int)
        assert len(ids) <= LENGTH
        nats = naive(file, ids)
        assert result["tokens"] == len(ids)
        assert total(result) == pytest.approx(nats.sum(), abs=1e-2)
        assert result["rest"] == pytest.approx(0, abs=1e-6)
        assert result["nats_per_token"] == pytest.approx(nats.mean(), abs=1e-4)
        assert result["nats_per_note"] == pytest.approx(nats.sum() / 18, abs=1e-3)
        pitches = (
            (ids >= PITCH_IDS[0]) & (ids <= PITCH_IDS[1]) if name == "remi" else (ids >= ON_ID) & (ids < OFF_ID)
        )
        assert [parts[1] for parts in result["nats"]] == pytest.approx(nats[pitches], abs=1e-3)
        lengths = nats[(ids >= DURATION_IDS[0]) & (ids <= DURATION_IDS[1])]
        if name == "remi":
            assert [parts[3] for parts in result["nats"]] == pytest.approx(lengths, abs=1e-3)
        assert said[-1] == ["progress", {"done": len(ids), "of": len(ids)}]

    def test_of_a_long_piece_is_that_of_its_windows(self, file, name):
        played = steady(200)
        _, result = done(file, "surprise", performance=played)
        given = Performance(*np.array(played["notes"]).T, played["pedal"])
        ids = TOKENIZERS[name].encode(given).astype(int)
        assert result["tokens"] == len(ids) > 3 * LENGTH
        nats = list(naive(file, ids[:LENGTH]))
        model, _ = load_checkpoint(file)
        while len(nats) < len(ids):  # a window's second half after its first
            start = len(nats) - LENGTH // 2
            window = torch.tensor(ids[start - 1 : start + LENGTH])[None]
            with torch.inference_mode():
                shares = model(window[:, :-1])[0].double().log_softmax(-1)
            costs = -shares.gather(1, window[0, 1:, None])[:, 0]
            nats += costs[LENGTH // 2 :].tolist()
        assert total(result) == pytest.approx(sum(nats), abs=5e-2)

    def test_a_note_that_is_dropped_has_none(self, file, name):
        """Performance tokens keep the last of a key's notes within 10 ms, and write a chord from below."""
        notes = [[0.0, 0.5, 70, 40], [1.0, 0.5, 60, 40], [1.002, 0.5, 60, 90], [1.002, 0.5, 50, 90]]
        _, result = done(file, "surprise", performance={"notes": notes})
        assert [nats is None for nats in result["nats"]] == [False, name == "performance", False, False]
        if name == "performance":
            _, sorted_ = done(file, "surprise", performance={"notes": [notes[0], notes[3], notes[2]]})
            assert result["nats"][2:] == sorted_["nats"][:0:-1]


class TestRewrite:
    BEGIN, END = 4.01, 6.03  # the end lies on a step of 10 ms, before its tick

    def ask(self, file, **changes):
        asked = {"performance": steady(), "begin": self.BEGIN, "end": self.END, "seed": 3, "candidates": 1}
        return done(file, "rewrite", **{**asked, **changes})

    @pytest.mark.parametrize("candidates", [1, 3])
    def test_what_is_outside_stays(self, file, candidates):
        said, result = self.ask(file, candidates=candidates, keys=[50, 60], polyphony=2)
        given = steady()
        drawn, kept = parted(result)
        assert kept == [told for told in given["notes"] if not self.BEGIN <= told[0] < self.END]
        assert drawn
        for onset, duration, pitch, _, _ in drawn:
            assert self.BEGIN <= onset < self.END
            assert onset + duration <= self.END + 1e-9
            assert 50 <= pitch <= 60
        onsets = [told[0] for told in result["notes"]]
        assert onsets == sorted(onsets)
        assert (result["begin"], result["end"], result["from"]) == (self.BEGIN, self.END, self.BEGIN)
        assert total(result) == pytest.approx(result["nats_per_token"] * result["tokens"], abs=1e-2)
        if candidates == 1:
            assert followed(said) == sorted(drawn)
            assert said[-1][1]["until"] == self.END
        else:
            assert {kind for kind, _ in said} == {"progress"}
            assert said[-1][1] == {"done": 100, "of": 100}

    def test_presses_of_the_pedal_go_as_notes_do(self, file):
        given = {**steady(), "pedal": [[0, 1], [3, 4.5], [4.6, 5], [5.5, 7], [8, 9]]}
        _, result = self.ask(file, performance=given)
        assert result["pedal"] == [[0, 1], [3, 4.5], [self.END, 7], [8, 9]]

    def test_a_note_that_sounds_into_it_stays(self, file):
        """Even where its key is struck again."""
        given = {"notes": [[0.0, 9.0, 60, 60], [4.5, 1.0, 64, 60], [8.0, 1.0, 60, 60]]}
        _, result = self.ask(file, performance=given, keys=[60, 60])
        assert result["notes"][0] == given["notes"][0]
        assert result["notes"][-1] == given["notes"][-1]
        assert given["notes"][1] not in result["notes"]

    def test_with_nothing_before(self, file):
        given = {"notes": [[5.0, 1.0, 60, 60], [7.0, 1.0, 62, 60]]}
        _, result = self.ask(file, performance=given)
        assert result["notes"][-1] == given["notes"][1]
        assert all(self.BEGIN <= told[0] < self.END for told in result["notes"][:-1])
        assert len(result["notes"]) > 1

    @pytest.mark.parametrize("name", ["performance", pytest.param("remi", marks=pytest.mark.slow)], indirect=True)
    def test_the_likeliest_candidate_is_taken(self, file, name):
        _, chosen = self.ask(file, seed=4, candidates=4)
        alone = [self.ask(file, seed=4 + i)[1] for i in range(4)]
        expected = [self.following(file, name, one) for one in alone]
        assert chosen["candidates"] == pytest.approx(expected, abs=1e-4)
        assert [one["candidates"][0] for one in alone] == pytest.approx(expected, abs=1e-4)
        best = int(np.argmin(expected))
        assert min(abs(expected[i] - expected[best]) for i in range(4) if i != best) > 1e-3
        assert best > 0, "choose a seed whose first candidate is not the best one"
        assert chosen["chosen"] == best
        assert chosen["notes"] == alone[best]["notes"]
        assert chosen["nats_per_token"] == pytest.approx(alone[best]["nats_per_token"], abs=1e-4)

    def following(self, file, name, result) -> float:
        """Nats per token from the first note behind the end on, for four seconds, half a window at most."""
        notes = [told for told in result["notes"] if told[0] < self.END + 4]
        ids = TOKENIZERS[name].encode(Performance(*np.array(notes).T, result["pedal"])).astype(int).tolist()
        before = sum(told[0] < self.END for told in notes)
        if name == "remi":
            ends = [i for i, token in enumerate(ids) if DURATION_IDS[0] <= token <= DURATION_IDS[1]]
            first = ends[before - 1] + 1
        else:
            strikes = [i for i, token in enumerate(ids) if ON_ID <= token < OFF_ID]
            first = strikes[before]
            while ids[first - 1] >= SHIFT_ID:  # its velocity, and the time before it
                first -= 1
            times = np.cumsum([token - SHIFT_ID + 1 if SHIFT_ID <= token < LEVEL_ID else 0 for token in ids])
            last = np.ceil((self.END + 4) * 100)
            events = [i for i, token in enumerate(ids) if token < SHIFT_ID and times[i] <= last]
            ids = ids[: events[-1] + 1]
        stop = min(len(ids), first + LENGTH // 2)
        start = max(0, stop - LENGTH)
        assert start > 0, "the window should not reach the piece's beginning"
        model, _ = load_checkpoint(file)
        window = torch.tensor(ids[start - 1 : stop])[None]
        with torch.inference_mode():
            shares = model(window[:, :-1])[0].double().log_softmax(-1)
        return float(-shares.gather(1, window[0, 1:, None])[first - start :].mean())

    def test_with_nothing_behind_the_first_is_taken(self, file):
        end = {"begin": 11.0, "end": 12.5}
        _, result = self.ask(file, candidates=3, **end)
        assert result["candidates"] == [None] * 3
        assert result["chosen"] == 0
        assert result["notes"] == self.ask(file, **end)[1]["notes"]


class TestCancel:
    @pytest.mark.parametrize(
        ("kind", "arguments", "checks"),
        [
            ("generate", {"seconds": 100.0}, 50),
            ("generate", {"seconds": 100.0}, 0),
            ("surprise", {"performance": steady(2000)}, 1),
            ("rewrite", {"performance": steady(), "begin": 3.0, "end": 9.0, "candidates": 1}, 20),
            ("rewrite", {"performance": steady(), "begin": 3.0, "end": 9.0, "candidates": 3}, 20),
        ],
    )
    def test_at_any_time(self, file, kind, arguments, checks):
        asked = iter(range(checks))
        with pytest.raises(Cancelled):
            done(file, kind, stopping=lambda: next(asked, None) is None, **arguments)

    def test_while_candidates_are_judged(self, file, monkeypatch):
        monkeypatch.setattr(piano, "tokens_at_once", lambda _: 1)
        stop = []
        judge = piano.nats_of_following

        def judged(*words):
            stop.append(1)
            return judge(*words)

        monkeypatch.setattr(piano, "nats_of_following", judged)
        given = {"performance": steady(), "begin": 3.0, "end": 4.0, "candidates": 2}
        with pytest.raises(Cancelled):
            done(file, "rewrite", stopping=lambda: bool(stop), **given)


NOTE = [0.0, 1.0, 60, 60]
PRESS = b"\x08\xb0\x40\x7f\x08\xb0\x40\x00"  # of the pedal


def performance(**changes: Any) -> dict[str, Any]:
    return {"performance": {"notes": [NOTE], **changes}}


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("surprise", performance(notes=[]), "performance.notes: .*at least 1"),
        ("surprise", performance(notes=[NOTE] * 6001), "performance.notes: .*at most 6000"),
        ("surprise", performance(pedal=[[0, 1]] * 2001), "performance.pedal: .*at most 2000"),
        ("surprise", performance(notes=[[1.0, 1, 60, 60], NOTE]), "in the order of their onsets"),
        ("surprise", performance(pedal=[[2, 1]]), "goes up before it goes down"),
        ("surprise", performance(notes=[[900.1, 1, 60, 60]]), r"performance.notes.0.0: .*900, 900\.1|900\.1"),
        ("surprise", performance(notes=[[0, 901, 60, 60]]), "performance.notes.0.1: .*900"),
        ("surprise", performance(notes=[[-1e-9, 1, 60, 60]]), "performance.notes.0.0: .*0"),
        ("surprise", performance(notes=[[float("nan"), 1, 60, 60]]), "performance.notes.0.0: .*finite"),
        ("surprise", performance(notes=[[0, float("inf"), 60, 60]]), "performance.notes.0.1: "),
        ("surprise", performance(pedal=[[0, float("inf")]]), "performance.pedal.0.1: "),
        ("surprise", performance(notes=[[0, 1, 20, 60]]), "performance.notes.0.2: .*21, '20' came"),
        ("surprise", performance(notes=[[0, 1, 109, 60]]), "performance.notes.0.2: .*108, '109' came"),
        ("surprise", performance(notes=[[0, 1, 60, 0]]), "performance.notes.0.3: .*1, '0' came"),
        ("surprise", performance(notes=[[0, 1, 60, 128]]), "performance.notes.0.3: .*127, '128' came"),
        ("surprise", performance(notes=[[0, 1, 60]]), "performance.notes.0"),
        ("surprise", performance(notes=[[0, 1, 60.5, 60]]), "performance.notes.0.2"),
        ("surprise", {"performance": None}, "performance"),
        ("generate", {"seconds": 0.4}, "seconds: .*0.5"),
        ("generate", {"seconds": 181}, "seconds: .*180"),
        ("generate", {"keys": [60, 59]}, "keys: expected the lowest key and the highest"),
        ("generate", {"keys": [20, 59]}, "keys.0: .*21"),
        ("generate", {"polyphony": 0}, "polyphony: .*1"),
        ("generate", {"cut": 3.0}, "what is cut needs an opening"),
        ("generate", {"opening": {"notes": [[800, 1, 60, 60]]}, "seconds": 100}, "last 901 s; .*900: use less"),
        ("generate", {"opening": {"notes": [NOTE]}, "cut": 0}, "cut: .*0"),
        ("rewrite", {**performance(), "begin": 1, "end": 1}, "are 0 s apart: expected 0.25 to 60"),
        ("rewrite", {**performance(), "begin": 2, "end": 1}, "are -1 s apart"),
        ("rewrite", {**performance(), "begin": 1, "end": 62}, "are 61 s apart"),
        ("rewrite", {**performance(), "begin": 1, "end": 2, "candidates": 17}, "candidates: .*16"),
        ("rewrite", {"begin": 1, "end": 2}, "performance: .*required"),
    ],
)  # fmt: skip
def test_wishes_that_cannot_be_granted(kind, arguments, words):
    with pytest.raises(SeqpopeError, match=words):
        requests.checked(f"piano.{kind}", requests.COMPUTED, {"model": "x", **arguments})


def test_as_much_as_is_allowed_is_taken():
    most = {"notes": [[900, 900, 108, 127]] * 6000, "pedal": [[900, 900]] * 2000}
    assert len(json.dumps(most)) < 1 << 20
    requests.checked("piano.surprise", requests.COMPUTED, {"model": "x", "performance": most})
    cut = {"opening": {"notes": [[800, 1, 60, 60]]}, "seconds": 100, "cut": 800}
    requests.checked("piano.generate", requests.COMPUTED, {"model": "x", **cut})


def test_what_was_drawn_can_be_saved():
    """However many notes it has now."""
    drawn = [[899.1234567890123, 0.1234567890123456, 108, 127]] * requests.MAXIMUM_WRITTEN
    asked = {"performance": {"notes": drawn, "pedal": [[899.1234567890123] * 2] * 2000}, "format": "mid"}
    assert len(json.dumps(asked, separators=(",", ":"))) < 1 << 20
    requests.checked("piano.convert", requests.CLERICAL, asked)
    tokens = TOKENS_AT_LEAST + 180 * TOKENS_PER_SECOND + requests.MAXIMUM_SECONDS  # the last for silence before
    assert requests.MAXIMUM_NOTES + tokens / 2 <= requests.MAXIMUM_WRITTEN
    more = {"notes": [*drawn, drawn[0]]}
    with pytest.raises(SeqpopeError, match=r"performance\.notes: .*at most 17500"):
        requests.checked("piano.convert", requests.CLERICAL, {**asked, "performance": more})


class TestOverTheWire:
    def submitted(self, client, kind, **arguments):
        asked = client.post("/api/jobs", json={"kind": kind, "arguments": arguments})
        assert asked.status_code == 202, asked.text
        return asked.json()["id"]

    def events(self, client, kind, **arguments):
        return self.following(client, self.submitted(client, kind, **arguments))

    def following(self, client, job):
        with client.stream("GET", f"/api/jobs/{job}/events") as lines:
            kind = ""
            for line in lines.iter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: "):
                    yield kind, json.loads(line[6:])

    def test_jobs_reach_the_model(self, client, model, file):
        *said, (kind, result) = self.events(client, "piano.generate", model=model, seed=1, seconds=1.5)
        assert kind == "result", result
        assert result["notes"] == done(file, "generate", seed=1, seconds=1.5)[1]["notes"]
        told = [one for one in said if one[0] == "notes"]
        assert len(followed(told)) == len(result["notes"])
        piece = {"notes": result["notes"], "pedal": result["pedal"]}
        *_, (kind, judged) = self.events(client, "piano.surprise", model=model, performance=piece)
        assert kind == "result", judged
        assert len(judged["nats"]) == len(result["notes"])
        *_, (kind, anew) = self.events(client, "piano.rewrite", model=model, performance=piece, begin=0.5, end=1.0)
        assert kind == "result", anew
        assert len(anew["candidates"]) == 4

    def test_cancelled_midway(self, client, model):
        job = self.submitted(client, "piano.generate", model=model, seconds=180)
        for kind, _ in self.following(client, job):
            if kind == "notes":
                client.delete(f"/api/jobs/{job}")
                break
        *_, (kind, _) = self.following(client, job)
        assert kind == "cancelled"

    def test_models_of_another_kind(self, client, model):
        for kind, named, words in (
            ("piano.generate", "chorales", "is a model of chorales: choose one of piano"),
            ("piano.generate", "nothing", "there is no model"),
            ("music.generate", model, "is a model of piano: choose one of chorales"),
        ):
            answer = client.post("/api/jobs", json={"kind": kind, "arguments": {"model": named}})
            assert answer.status_code == 400
            assert words in answer.json()["error"]
        answer = client.post("/api/jobs", json={"kind": "piano.generate"})
        assert "model: " in answer.json()["error"]

    def read(self, client, content, file="a.mid"):
        return client.post("/api/piano/read", params={"name": file}, content=content)

    def test_what_is_written_is_read_again(self, client):
        played = steady()
        made = client.post("/api/piano/convert", json={"performance": played, "format": "mid", "title": "x"})
        assert made.headers["content-type"] == "audio/midi"
        there = parse_midi(made.content)
        read = self.read(client, made.content, "../b.MIDI").json()
        columns = (there.onset, there.duration, there.pitch, there.velocity)
        assert read["notes"] == [list(one) for one in zip(*(c.tolist() for c in columns), strict=True)]
        assert read["pedal"] == there.pedal.tolist()
        assert read["seconds"] == there.seconds
        assert [told[2:] for told in read["notes"]] == [told[2:] for told in played["notes"]]
        assert [told[0] for told in read["notes"]] == pytest.approx(
            [told[0] for told in played["notes"]], abs=1e-3
        )
        tracks = pretty_midi.PrettyMIDI(io.BytesIO(made.content)).instruments
        assert sum(len(track.notes) for track in tracks) == len(played["notes"])

    def test_a_picture(self, client):
        asked = {"performance": steady(), "format": "png", "title": "<b>$x"}
        made = client.post("/api/piano/convert", json=asked)
        assert made.headers["content-type"] == "image/png"
        assert made.content.startswith(b"\x89PNG\r\n\x1a\n")

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("a.mid", b"", "empty"),
            ("a.mid", b"MThd" + bytes(40), "what was uploaded is not a MIDI file"),
            ("a.wav", b"RIFF", "ending in .mid, .midi"),
            ("../../etc/passwd", b"x", "ending in .mid, .midi"),
            ("a.mid", midi_bytes(b"\x00\xc0\x28" + note(60, 480)), "other instruments (program 40)"),
            ("a.mid", midi_bytes(note(36, 10, channel=9)), "drums only"),
            ("a.mid", midi_bytes(b""), "no notes"),
            ("a.mid", midi_bytes(note(60, 480, before=960 * 901)), "its first note comes after 901 seconds"),
            ("a.mid", midi_bytes(note(20, 480)), "1 notes outside a piano's keys, 21 to 108"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_read_is_refused_in_words(self, client, name, content, words):
        answer = self.read(client, content, name)
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]
        assert "mistake" not in answer.text
        assert "/" not in answer.json()["error"]

    @pytest.mark.parametrize(
        ("content", "notes", "left_out", "pedal", "seconds"),
        [
            (midi_bytes(note(60, 10) * 6001), 6000, 1, 0, 6000 * 10 / 960),
            (midi_bytes(note(60, 480) + note(60, 480, before=960 * 901)), 1, 1, 0, 0.5),
            (midi_bytes(note(60, 480) + note(60, 1920, before=960 * 899)), 2, 0, 0, 900),
            (midi_bytes(note(60, 10) + PRESS * 2001 + note(60, 10)), 1, 1, 2000, 10 / 960),
        ],
        ids=["notes", "onsets", "ends", "pedal"],
    )
    def test_of_what_is_too_long_the_beginning_is_taken(self, client, content, notes, left_out, pedal, seconds):
        found = self.read(client, content, "a.mid").json()
        assert (len(found["notes"]), found["left_out"], len(found["pedal"])) == (notes, left_out, pedal)
        assert found["seconds"] == pytest.approx(seconds)
        taken = {"notes": found["notes"], "pedal": found["pedal"]}
        assert client.post("/api/piano/convert", json={"performance": taken, "format": "mid"}).status_code == 200

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"[" * 100_000, b"NaN", b"3", b"null", b'"\\ud800"', b'{"format": "mid"}', b'{"\\ud800": 1}',
         json.dumps({**performance(), "format": "exe"}).encode(),
         json.dumps({**performance(notes=[[float("nan"), 1, 60, 60]]), "format": "mid"}).encode()],
    )  # fmt: skip
    def test_no_wish_for_a_file(self, client, body):
        answer = client.post("/api/piano/convert", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert "mistake" not in answer.text
