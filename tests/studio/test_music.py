"""Music by the studio's own requests: what streams in, what is kept, what is refused."""

from __future__ import annotations

import io
import json
from typing import Any

import mido
import pytest

BAR = 16
MELODY = [67] * 4 + [69] * 4 + [71] * 4 + [72] * 4


def events(client, kind: str, /, **arguments: Any) -> list[tuple[str, Any]]:
    """All that a job says, to its end."""
    asked = client.post("/api/jobs", json={"kind": kind, "arguments": arguments})
    assert asked.status_code == 202, asked.text
    return list(following(client, asked.json()["id"]))


def following(client, name: str):
    with client.stream("GET", f"/api/jobs/{name}/events") as stream:
        event = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield event, json.loads(line.removeprefix("data: "))


def last(said: list[tuple[str, Any]], name: str = "result") -> Any:
    assert said[-1][0] == name, said[-1]
    return said[-1][1]


@pytest.fixture(scope="module")
def drawn(studio) -> list[tuple[str, Any]]:
    import httpx

    with httpx.Client(base_url=studio, timeout=120) as client:
        return events(client, "music.generate", seed=3, bars=1)


def test_what_streams_in_is_what_comes_out(drawn):
    steps = [data for name, data in drawn if name == "step"]
    result = last(drawn)
    assert len(steps) == BAR
    assert [step["pitches"] for step in steps] == result["grid"]
    assert [step["nats"] for step in steps] == result["nats"]


def test_surprise_of_a_piece_is_what_drawing_it_cost(client, drawn):
    result = last(drawn)
    judged = last(events(client, "music.surprise", grid=result["grid"]))
    for drew, said in zip(result["nats"], judged["nats"], strict=True):
        assert said == pytest.approx(drew, abs=2e-3)
    assert judged["nats_per_token"] == pytest.approx(result["nats_per_token"], abs=1e-3)


def test_the_same_seed_draws_the_same(client, drawn):
    assert last(events(client, "music.generate", seed=3, bars=1))["grid"] == last(drawn)["grid"]


def test_an_opening_stands_first(client, drawn):
    opening = last(drawn)["grid"]
    result = last(events(client, "music.generate", seed=4, bars=1, opening=opening))
    assert result["grid"][:BAR] == opening
    assert result["from"] == BAR
    assert len(result["grid"]) == 2 * BAR


@pytest.mark.parametrize("particles", [1, 4])
def test_a_melody_is_kept_and_streams(client, particles):
    given = [[pitch, None, None, None] for pitch in MELODY]
    said = events(client, "music.generate", seed=5, given=given, particles=particles)
    result = last(said)
    assert [row[0] for row in result["grid"]] == MELODY
    assert any(row[3] >= 0 for row in result["grid"])
    assert [row["pitches"] for name, row in said if name == "step"] == result["grid"]
    assert ("progress" in {name for name, _ in said}) == (particles > 1)
    first = next(place for place, (name, _) in enumerate(said) if name == "step")
    assert (
        first < len(said) - len(result["grid"]) or particles == 1
    )  # before the end, where progress is still told


def test_only_what_is_marked_is_written_anew(client):
    long = [[72, 67, 64, 48]] * (4 * BAR)
    given = [[*row[:2], None, row[3]] if 8 <= step < 12 else row for step, row in enumerate(long)]
    result = last(events(client, "music.generate", seed=6, given=given, particles=2))
    assert len(result["grid"]) == len(long)
    for step, (row, old) in enumerate(zip(result["grid"], long, strict=True)):
        assert [*row[:2], row[3]] == [*old[:2], old[3]]
        assert row[2] == old[2] or 8 <= step < 12


def test_nothing_to_write_is_told(client):
    assert "nothing is left" in last(events(client, "music.generate", given=[[60, 55, 52, 48]]), "error")


def test_a_melody_is_fitted_by_octaves(client):
    assert last(events(client, "music.fit_melody", line=[48, 50, -1, 52])) == {"shift": 12}
    assert "no notes" in last(events(client, "music.fit_melody", line=[-1]), "error")


def test_a_job_can_be_cancelled_midway(client):
    name = client.post("/api/jobs", json={"kind": "music.generate", "arguments": {"bars": 32}}).json()["id"]
    for event, _ in following(client, name):
        if event == "step":
            assert client.delete(f"/api/jobs/{name}").status_code == 200
            break
    assert list(following(client, name))[-1] == ("cancelled", None)


def test_what_is_written_as_a_file_is_read_again(client, drawn):
    grid = last(drawn)["grid"]
    for format in ("mid", "musicxml"):
        made = client.post("/api/music/convert", json={"grid": grid, "format": format, "tempo": 90})
        assert made.status_code == 200, made.text
        read = client.post(f"/api/music/read?name=a.{format}", content=made.content)
        assert read.json()["grid"] == grid
        if format == "mid":
            messages = list(mido.MidiFile(file=io.BytesIO(made.content)))
            tempos = [message.tempo for message in messages if message.type == "set_tempo"]
            assert mido.tempo2bpm(tempos[0]) == pytest.approx(90, abs=0.1)


def test_pictures(client, drawn):
    grid = last(drawn)["grid"]
    png = client.post("/api/music/convert", json={"grid": grid, "format": "png"})
    assert png.content.startswith(b"\x89PNG\r\n\x1a\n")
    pytest.importorskip("verovio")
    svg = client.post("/api/music/convert", json={"grid": grid, "format": "svg", "title": "<script>"})
    assert svg.text.startswith("<svg")
    assert "<script" not in svg.text
    assert svg.headers["content-type"].startswith("text/plain")  # a browser that is led there shows text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.mid", b"", "empty"),
        ("a.mid", b"MThd" + bytes(40), "MIDI"),
        ("a.musicxml", b"<score-partwise><part", "cannot|not a score"),
        ("a.exe", b"MZ", "expected a score"),
        ("../../etc/passwd", b"x", "expected a score"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(client, name, content, words):
    answer = client.post("/api/music/read", params={"name": name}, content=content)
    assert answer.status_code == 400
    assert any(word in answer.json()["error"] for word in words.split("|")), answer.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bars": 33}, "bars"),
        ({"given": []}, "given has no steps"),
        ({"given": [[60, 60, 60]]}, "given"),
        ({"opening": [[None, 1, 1, 1]]}, "opening"),
        ({"model": "genome"}, "choose one of chorales"),
        ({"model": "nowhere"}, "no model"),
        ({"sampling": {"temperature": -1}}, "temperature"),
    ],
)
def test_wishes_that_cannot_be_granted(client, arguments, words):
    answer = client.post("/api/jobs", json={"kind": "music.generate", "arguments": arguments})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_notes_that_are_not_chosen_are_no_file(client):
    answer = client.post("/api/music/convert", json={"grid": [[60, None, 55, 48]], "format": "mid"})
    assert answer.status_code == 400
    assert "not chosen yet" in answer.json()["error"]
