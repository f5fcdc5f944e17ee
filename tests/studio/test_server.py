"""The studio's server as somebody with bad intentions, or bad luck, meets it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from pages import running_studio

from seqpope.errors import SeqpopeError
from seqpope.studio.server import MOST_CLERICAL, POSTS_A_MINUTE, Settings, make_app

SLOW = {"bars": 32, "seed": 1}  # a chorale that takes some 10 s


@contextmanager
def process_of(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A studio's process and its address, so that signals can be sent."""
    command = [sys.executable, "-m", "seqpope", "app", "--port", "0", "--runs", str(folder / "runs"), *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found
            yield process, found[0].rstrip("/")
        finally:
            process.kill()


def children(parent: int) -> list[int]:
    """Processes that a process began."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def raw(address: str, request: bytes, wait: float = 10.0) -> bytes:
    """What the server answers to these very bytes."""
    host, port = address.removeprefix("http://").split("/")[0].rsplit(":", 1)
    with closing(socket.create_connection((host, int(port)), wait)) as connection:
        connection.sendall(request)
        connection.settimeout(wait)
        answer = b""
        try:
            while block := connection.recv(65536):
                answer += block
        except (TimeoutError, ConnectionResetError):  # closed before all was sent
            pass
    return answer


def events(client: httpx.Client, job: str, after: int | None = None) -> list[tuple[int, str, object]]:
    """All that a job says, to its end."""
    headers = {} if after is None else {"last-event-id": str(after)}
    found = []
    with client.stream("GET", f"/api/jobs/{job}/events", headers=headers) as answer:
        text = answer.read().decode()
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def submit(client: httpx.Client, kind: str = "music.generate", **arguments: object) -> str:
    answer = client.post("/api/jobs", json={"kind": kind, "arguments": arguments})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def error(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"])


class TestWhoMayAsk:
    @pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]:1"])
    def test_other_hosts_are_refused(self, client, host):
        assert "does not answer" in error(client.get("/api/state", headers={"host": host}), 421)

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]", "[::1]:8642"])
    def test_own_names_are_served(self, client, host):
        assert client.get("/api/state", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://", ""])
    def test_other_pages_are_refused(self, client, origin):
        error(client.post("/api/jobs", json={"kind": "x"}, headers={"origin": origin}), 403)

    def test_own_page_is_served(self, client, studio):
        assert "unknown job" in error(client.post("/api/jobs", json={"kind": "x"}, headers={"origin": studio}))

    def test_every_answer_forbids_foreign_scripts(self, client):
        for path in ("/", "/api/state", "/static/studio.js", "/nothing"):
            headers = client.get(path).headers
            assert "default-src 'self'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"

    def test_a_mistake_of_its_own_is_told_under_the_same_headers(self, tmp_path, capsys):
        app = make_app(Settings(tmp_path, tmp_path))
        app.state.studio.catalogue.models = lambda: 1 / 0
        answer = TestClient(app, base_url="http://localhost").get("/api/state")  # its processes are not started
        assert error(answer, 500) == "a mistake of seqpope's (ZeroDivisionError): the terminal has more"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert "Traceback" in capsys.readouterr().err

    def test_an_older_version_of_the_page_is_not_kept(self, client):
        assert client.get("/static/studio.js").headers["cache-control"] == "no-cache"

    @pytest.mark.parametrize(
        "path",
        ["/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py", "/static//etc/passwd"],
    )
    def test_static_files_stay_in_their_folder(self, client, path):
        assert b"import" not in raw(
            str(client.base_url), f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )


class TestClerk:
    def test_who_waits_for_it_stands_in_nobodys_way(self, tmp_path):
        """Threads that other requests need stay free, and there is an end to those that wait."""
        studio = make_app(Settings(tmp_path, tmp_path)).state.studio  # its processes are not started
        go = threading.Event()

        def work(kind, arguments, heard, stopping):
            assert go.wait(20)
            heard("result", arguments)

        studio.clerk.run = work

        async def ask() -> list[object]:
            asked = [asyncio.ensure_future(studio.ask_clerk("x", number)) for number in range(MOST_CLERICAL)]
            await asyncio.sleep(0)
            with pytest.raises(SeqpopeError, match="being read or written already"):
                await studio.ask_clerk("x", 0)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 10) == 1
            go.set()
            done = await asyncio.gather(*asked)
            return [*done, await studio.ask_clerk("x", "again")]

        with ThreadPoolExecutor(1) as thread:  # beside the browser's tests this one has a loop that runs already
            said = thread.submit(asyncio.run, ask()).result()
        assert said == [*range(MOST_CLERICAL), "again"]


def test_what_is_no_number_is_told_as_an_error(tmp_path):
    app = make_app(Settings(tmp_path, tmp_path))
    studio = app.state.studio
    studio.computer.run = lambda kind, arguments, heard, stopping: heard("result", {"nats": [float("nan")]})
    job = studio.jobs.submit("music.surprise", None)
    text = TestClient(app, base_url="http://localhost").get(f"/api/jobs/{job.id}/events").text
    assert "NaN" not in text
    assert text.split("\n\n")[-2].startswith('id: 2\nevent: error\ndata: "the model gives no numbers')


class TestToken:
    def test_beyond_this_machine_a_token_is_asked_for(self, tmp_path):
        with running_studio(tmp_path, "--host", "0.0.0.0") as address:
            address, token = address.split("/?token=")
            address = address.replace("0.0.0.0", "127.0.0.1")
            assert len(token) >= 24
            with httpx.Client(base_url=address) as client:
                for wrong in ({}, {"token": token[:-1]}, {"token": ""}, {"token": "ü" * 32}):
                    error(client.get("/api/state", params=wrong), 401)
                error(client.get("/api/state", headers={"cookie": "seqpope_token=wrong"}), 401)
                error(client.get("/", params={"token": token}, headers={"host": "evil.example"}), 421)
                answer = client.get("/", params={"token": token})
                assert answer.status_code == 200
                cookie = answer.headers["set-cookie"].lower()
                assert "httponly" in cookie
                assert "samesite=strict" in cookie
                assert client.get("/api/state").status_code == 200  # by the cookie
                # An old cookie does not stand in the way of a fresh address.
                client.cookies.set("seqpope_token", "of an earlier start", domain="127.0.0.1")
                assert (
                    client.get("/", params={"token": token}, headers={"cookie": "seqpope_token=old"}).status_code
                    == 200
                )


class TestBodies:
    def test_too_large(self, client):
        assert "1 MiB" in error(client.post("/api/jobs", content=b" " * ((1 << 20) + 1)), 413)

    @pytest.mark.parametrize(
        "length", ["", "Content-Length: -1\r\n", "Content-Length: 9e9\r\n", "Transfer-Encoding: chunked\r\n"]
    )
    def test_without_a_length(self, studio, length):
        request = f"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\n{length}Connection: close\r\n\r\n"
        answer = raw(studio, request.encode() + b"5\r\n{}   \r\n0\r\n\r\n" * bool(length.startswith("T")))
        assert re.match(rb"HTTP/1.1 4(00|11|13)", answer), answer[:100]

    def test_chunked_beside_a_length(self, studio):
        head = b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        head += b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        answer = raw(studio, head + chunk * 4 + b"0\r\n\r\n")
        assert re.match(rb"HTTP/1.1 4(00|11|13)", answer), answer[:100]

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"nul\0", b"NaN", b"1" * 5000, b'"\\ud800"'],
    )
    def test_no_json(self, client, body):
        for path in ("/api/jobs", "/api/music/convert", "/api/piano/convert"):
            answer = client.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400, (path, answer.status_code)
            assert "mistake" not in answer.text
            assert isinstance(answer.json()["error"], str)

    @pytest.mark.parametrize(
        "arguments",
        [
            '{"bars": NaN}', '{"bars": Infinity}', '{"bars": 1e400}', '{"bars": "8; rm"}', '{"bars": [[8]]}',
            '{"bars": null}', '{"seed": -1}', '{"seed": 1' + "0" * 400 + "}", '{"model": "../../etc/passwd"}',
            '{"model": "\\u0000"}', '{"unknown": 1}', '{"sampling": {"temperature": NaN}}',
            '{"sampling": {"temperature": -1}}', '{"opening": [[60, 60, 60]]}', '{"opening": [[60, 60, 60, 128]]}',
            '{"opening": [[60, 60, 60, null]]}', '{"given": []}', '{"rules": [1]}',
            '{"opening": ' + json.dumps([[60] * 4] * 1025) + "}", '{"opening": ' + "[" * 2000 + "]" * 2000 + "}",
            "[]", '"text"', "null", "3",
        ],
    )  # fmt: skip
    def test_wrong_arguments(self, client, arguments):
        body = f'{{"kind": "music.generate", "arguments": {arguments}}}'
        answer = client.post("/api/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        said = answer.json()["error"]
        assert isinstance(said, str)
        assert "mistake" not in said
        assert len(said) < 400

    @pytest.mark.parametrize(
        "kind",
        ["os.system", "music.load", "music.__import__", "worker.serve", "", "a.b.c", "music.read", "piano.load"],
    )
    def test_unknown_kinds(self, client, kind):
        assert "unknown job" in error(client.post("/api/jobs", json={"kind": kind}))

    def test_a_rate_limit(self, tmp_path):
        app = make_app(Settings(tmp_path, tmp_path))
        client = TestClient(app, base_url="http://localhost")  # its processes are not started
        codes = [client.post("/api/jobs", json={"kind": "x"}).status_code for _ in range(POSTS_A_MINUTE + 5)]
        assert codes == [400] * POSTS_A_MINUTE + [429] * 5
        assert client.get("/api/state").status_code == 200  # looking is not limited


CHORALE_XML = """<?xml version="1.0"?>%s<score-partwise version="3.0">
<part-list><score-part id="P1"><part-name>%s</part-name></score-part></part-list>
<part id="P1"><measure number="1"><attributes><divisions>4</divisions></attributes>%s</measure></part>
</score-partwise>"""
NOTE = "<note><pitch><step>C</step><octave>5</octave></pitch><duration>16</duration></note>"


def laughs(levels: int = 10) -> str:
    entities = '<!ENTITY l0 "lol">' + "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(levels))
    return CHORALE_XML % (f"<!DOCTYPE s [{entities}]>", f"&l{levels};", NOTE)


@cache
def bomb() -> bytes:
    """A compressed score of 64 MiB that is 64 kB long."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(
            "META-INF/container.xml",
            '<container><rootfiles><rootfile full-path="score.xml"/></rootfiles></container>',
        )
        with file.open("score.xml", "w", force_zip64=True) as opened:
            for _ in range(64):
                opened.write(b" " * (1 << 20))
    return made.getvalue()


def midi(notes: int, ticks: int = 480, delta: bytes = b"\x00") -> bytes:
    track = b"".join(delta + b"\x90\x3c\x40" + b"\x78\x80\x3c\x00" for _ in range(notes)) + b"\x00\xff\x2f\x00"
    head = b"MThd\x00\x00\x00\x06\x00\x00\x00\x01" + ticks.to_bytes(2, "big")
    return head + b"MTrk" + len(track).to_bytes(4, "big") + track


class TestUploads:
    def read(self, client: httpx.Client, name: str, content: bytes) -> httpx.Response:
        return client.post("/api/music/read", params={"name": name}, content=content)

    def test_a_score_is_read(self, client):
        answer = self.read(client, "c.musicxml", (CHORALE_XML % ("", "x", NOTE)).encode())
        assert answer.status_code in (200, 400)
        assert "mistake" not in answer.text

    @pytest.mark.parametrize(
        "name", ["a.mid", "a.musicxml", "a.mxl", "a.json", "a.xml", "a", "", ".", "a." + "x" * 5000]
    )
    @pytest.mark.parametrize(
        "content", [b"\0" * 50, bytes(range(256)) * 40, b"<a>" * 5000, b"PK\x03\x04" + b"x" * 100, b"MThd"]
    )
    def test_garbage(self, client, name, content):
        assert "mistake" not in error(self.read(client, name, content))

    def test_nothing_and_too_much(self, client):
        assert "empty" in error(self.read(client, "a.mid", b""))
        error(self.read(client, "a.mid", b"x" * (2 << 20)), 413)
        error(client.post("/api/music/read", content=b"x"))

    @pytest.mark.parametrize(
        "name",
        [
            "../../etc/passwd",
            "/etc/passwd.mid",
            "a\0b.mid",
            "a/b\\c.mid",
            "ä🎵.mid",
            "a\r\nX: y.mid",
            "con.mid",
            "-rf.mid",
        ],
    )
    def test_names_reach_no_file(self, client, name):
        said = self.read(client, name, b"nothing that could be read").text
        assert "root:" not in said
        assert "mistake" not in said
        assert "Traceback" not in said

    @pytest.mark.parametrize("name", ["a.musicxml", "a.xml", "a.mxl"])
    def test_entities_do_not_expand(self, client, name):
        began = time.monotonic()
        assert "mistake" not in error(self.read(client, name, laughs().encode()))
        assert time.monotonic() - began < 15
        secret = '<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        assert "root:" not in self.read(client, name, (CHORALE_XML % (secret, "&x;", NOTE)).encode()).text

    def test_deep_nesting(self, client):
        deep = CHORALE_XML % ("", "x", "<a>" * 50_000 + "</a>" * 50_000)
        assert "mistake" not in error(self.read(client, "a.musicxml", deep.encode()))

    @pytest.mark.parametrize("name", ["a.mxl", "a.xml", "a.krn"])
    def test_a_zip_bomb(self, client, name):
        began = time.monotonic()
        assert "MiB" in error(self.read(client, name, bomb()))
        assert time.monotonic() - began < 10  # by its own word, before it is unpacked
        assert self.read(client, "a.mid", b"MThd").status_code == 400  # the next one is answered

    @pytest.mark.parametrize(
        "content",
        [midi(3, 32767, b"\xff\xff\xff\x7f"), midi(1, 0), midi(2, 0x8001)],
        ids=["ticks", "division 0", "smpte"],
    )
    def test_absurd_midi(self, client, content):
        answer = self.read(client, "a.mid", content)
        assert answer.status_code in (200, 400)
        assert "mistake" not in answer.text

    @pytest.mark.slow
    def test_a_hundred_thousand_notes(self, client):
        answer = self.read(client, "a.mid", midi(100_000))
        assert answer.status_code == 400
        assert "mistake" not in answer.text


class TestJobs:
    def test_unknown_jobs(self, client):
        for name in ("nothing", "0" * 16, "..", "%00", "a" * 5000):
            assert client.get(f"/api/jobs/{name}/events").status_code in (400, 404)
            assert client.delete(f"/api/jobs/{name}").status_code in (400, 404, 405)

    def test_a_queue_with_an_end(self, client):
        """And waiting and working jobs cancelled."""
        working = submit(client, **SLOW)
        waiting = [submit(client, bars=1, seed=n) for n in range(7)]
        answers = [client.post("/api/jobs", json={"kind": "music.generate"}) for _ in range(4)]
        assert any("waiting already" in answer.text for answer in answers)
        waiting += [answer.json()["id"] for answer in answers if answer.status_code == 202]
        for job in reversed(waiting):
            assert client.delete(f"/api/jobs/{job}").json() == {"state": "done"}
            assert events(client, job)[-1][1] == "cancelled"
        began = time.monotonic()
        client.delete(f"/api/jobs/{working}")
        assert events(client, working)[-1][1] == "cancelled"
        assert time.monotonic() - began < 6
        assert events(client, submit(client, bars=1))[-1][1] == "result"

    def test_what_was_missed_is_told_again(self, client):
        job = submit(client, bars=1)
        whole = events(client, job)
        assert [number for number, _, _ in whole if number] == sorted(number for number, _, _ in whole if number)
        number = whole[4][0]
        assert events(client, job, after=number) == [one for one in whole if one[0] > number]
        for odd in ("x", "-1", "9" * 30, "²", "1e3"):
            with client.stream(
                "GET", f"/api/jobs/{job}/events", headers={"last-event-id": odd.encode()}
            ) as answer:
                assert answer.status_code == 200
                assert answer.read() is not None

    def test_two_clients_hear_the_same(self, client, studio):
        job = submit(client, bars=1, seed=5)
        heard: list[list[tuple[int, str, object]]] = [[], []]

        def hear(place: int) -> None:
            with httpx.Client(base_url=studio, timeout=60) as other:
                heard[place] = [one for one in events(other, job) if one[1] != "waiting"]

        threads = [threading.Thread(target=hear, args=(place,)) for place in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert heard[0] == heard[1]
        assert heard[0][-1][1] == "result"

    def test_the_server_stays_quick(self, client):
        job = submit(client, **SLOW)
        times = []
        for _ in range(15):
            began = time.monotonic()
            assert client.get("/api/state").status_code == 200
            times.append(time.monotonic() - began)
            time.sleep(0.05)
        client.delete(f"/api/jobs/{job}")
        assert sorted(times)[len(times) // 2] < 0.1, times


class TestProcesses:
    def test_answers_are_sent_at_once(self, client):
        """On a connection that is kept an answer's end would else wait 40 ms for the client's word."""
        client.get("/api/state")
        times = []
        for _ in range(12):
            began = time.monotonic()
            client.get("/api/state")
            times.append(time.monotonic() - began)
        assert min(times) < 0.035

    @pytest.mark.slow
    def test_one_killed_in_the_middle(self, tmp_path):
        with process_of(tmp_path) as (process, address), httpx.Client(base_url=address, timeout=120) as client:
            assert events(client, submit(client, bars=1))[-1][1] == "result"
            job = submit(client, **SLOW)
            time.sleep(0.5)
            # The one that computes, and the one that reads: neither takes the server with it.
            for child in children(process.pid):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(child, signal.SIGKILL)
            _number, name, said = events(client, job)[-1]
            assert name == "error"
            assert "killed" in str(said)
            assert events(client, submit(client, bars=1))[-1][1] == "result"
            answer = client.post("/api/music/read", params={"name": "a.mid"}, content=b"MThd")
            assert answer.status_code == 400
            assert "killed" not in answer.text

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("warm", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_it_ends_with_all_that_it_began(self, tmp_path, signum, warm):
        """While a job works, one waits, and a page listens; also while the processes still start."""
        with process_of(tmp_path) as (process, address), httpx.Client(base_url=address, timeout=120) as client:
            if warm:
                assert events(client, submit(client, bars=1))[-1][1] == "result"
            job = submit(client, **SLOW)
            submit(client, bars=1)
            listening = threading.Thread(target=lambda: _quietly(events, client, job), daemon=True)
            listening.start()
            time.sleep(0.5)
            began, mine = time.monotonic(), children(process.pid)
            assert len(mine) >= 2
            process.send_signal(signum)
            process.wait(15)
            assert time.monotonic() - began < 8
            assert process.returncode == 0
            time.sleep(0.2)
            assert not [child for child in mine if alive(child)]
            assert process.stderr is not None
            assert process.stderr.read() == ""

    def test_a_port_that_is_taken(self, tmp_path):
        with closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            done = subprocess.run(
                [sys.executable, "-m", "seqpope", "app", "--port", port],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert done.returncode != 0
        assert port in done.stderr
        assert "--port" in done.stderr
        assert "Traceback" not in done.stderr

    def test_nothing_heavy_is_imported(self, tmp_path):
        code = (
            "import sys; from pathlib import Path; from seqpope.studio.server import Settings, make_app\n"
            "make_app(Settings(Path('runs'), Path('data')))\n"
            "print(sorted({'torch', 'lightning', 'music21', 'scipy', 'matplotlib'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == "[]", done.stderr


def _quietly(function, *arguments):
    with suppress(httpx.HTTPError):
        function(*arguments)
