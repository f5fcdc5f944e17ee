"""What the page about models is told: runs of any state, damaged files, large logs, live ones."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from seqpope.studio import run_logs
from seqpope.studio import runs as studio_runs
from seqpope.studio.catalogue import Catalogue, id_of
from seqpope.studio.models_routes import card
from seqpope.studio.run_logs import CHUNK, POINTS, thinned
from seqpope.studio.runs import FIGURES, Library
from seqpope.studio.server import Settings, make_app

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
HEAD = "learning_rate,seconds,step,train_nats_per_token,validation_nats_per_token\n"
CONFIG = "dataset: chorales\nposition: {}\nbaseline: {}\nseed: 0\nseeds: 1\noptimizer:\n  steps: 100\n"
PNG = b"\x89PNG\r\n\x1a\n"


def rows(first: int, last: int, every: int = 1, start: float = 4.0) -> str:
    return "".join(f"0.001,{step / 10},{step},{start - step * 1e-5},\n" for step in range(first, last, every))


def log(run: Path, text: str, version: int = 0) -> Path:
    file = run / "logs" / f"version_{version}" / "metrics.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def runs(tmp_path) -> Path:
    """A finished experiment of stored results, one in training, one that was stopped."""
    folder = tmp_path / "runs"
    genome = folder / "genome"
    shutil.copytree(RESULTS / "genome-small", genome, ignore=shutil.ignore_patterns("*.csv"))
    (genome / "inspect").mkdir()
    for result in json.loads((genome / "report.json").read_text())["results"]:
        name = f"{result['position']}-seed{result['trained']['seed']}"
        log(genome / name, (RESULTS / "genome-small" / f"{name}.csv").read_text())
        bins = [{"from": 0, "to": 2, "tokens": 9, "nats_per_token": 7.5}]
        (genome / name / "result.json").write_text(json.dumps({**result, "by_position": bins}))
        (genome / "inspect" / "delta.png").write_bytes(PNG)
    live = folder / "live"
    log(live / "pope-seed0", HEAD + rows(1, 41) + "0.1,4,40,,3.5\n")
    (live / "config.yaml").write_text(CONFIG.format("pope", "rope"))
    (live / "pope-seed0" / "config.yaml").write_text(CONFIG.format("pope", "none"))
    old = log(folder / "old" / "rope-seed0", HEAD + rows(1, 9))
    (folder / "old" / "rope-seed0" / "config.yaml").write_text(CONFIG.format("rope", "none"))
    for file in (old, folder / "old" / "rope-seed0" / "config.yaml"):
        os.utime(file, (time.time() - 9999,) * 2)
    return folder


def told(library: Library, label: str) -> dict:
    experiment = next(one for one in library.overview()["experiments"] if one["label"] == label)
    return library.experiment(experiment["id"])


class TestExperiments:
    def test_a_finished_one_is_told_as_its_report_has_it(self, runs):
        report = json.loads((runs / "genome" / "report.json").read_text())
        genome = told(Library(runs), "genome")
        assert genome["report"]["differences"] == report["differences"]
        assert (
            genome["report"]["encodings"]["pope"]["nats_per_token"]
            == report["encodings"]["pope"]["nats_per_token"]
        )
        assert genome["report"]["baselines"] == report["baselines"]
        assert len(genome["report"]["references"]) == len(report["references"])
        assert genome["text"] == (runs / "genome" / "report.md").read_text()
        assert genome["figures"] == ["loss", "position", "delta"]
        assert genome["problems"] == []
        assert len(genome["runs"]) == 6
        run = genome["runs"][0]
        assert (run["position"], run["seed"], run["parameters"], run["state"]) == ("pope", 0, 27281408, "finished")
        assert run["curves"]["validation"]["steps"][-1] == 2500
        assert run["by_position"] == [[0, 2, 7.5]]

    def test_one_in_training_grows(self, runs):
        library = Library(runs)
        live = told(library, "live")
        [run] = live["runs"]
        assert live["expected"] == 2
        assert (run["state"], run["step"], run["steps"], run["left"]) == ("training", 40, 100, 6)
        assert run["curves"]["validation"] == {"steps": [40], "values": [3.5], "of": 1}
        with open(runs / "live" / "pope-seed0" / "logs" / "version_0" / "metrics.csv", "a") as file:
            file.write(rows(41, 60) + "0.1,6,60,3.")  # the last line is half-written
            file.flush()
            [run] = told(library, "live")["runs"]
            assert (run["step"], run["problems"]) == (59, [])
            file.write("25,3.2\n")
        [run] = told(library, "live")["runs"]
        assert run["curves"]["train"]["values"][-1] == 3.25
        assert run["curves"]["validation"]["steps"] == [40, 60]

    def test_one_that_was_stopped_is_not_said_to_train(self, runs):
        [run] = told(Library(runs), "old")["runs"]
        assert (run["state"], run["step"], run["left"]) == ("stopped", 8, None)

    def test_a_log_written_anew_is_read_anew(self, runs):
        """Its logger does that when a column comes."""
        library = Library(runs)
        told(library, "live")
        log(runs / "live" / "pope-seed0", "step,train_nats_per_token\n1,9.0\n")
        assert told(library, "live")["runs"][0]["curves"]["train"] == {"steps": [1], "values": [9.0], "of": 1}
        more = "".join(f"{step},8.0\n" for step in range(1, 99))
        log(runs / "live" / "pope-seed0", "step,seconds,train_nats_per_token\n" + more.replace(",", ",1,"))
        assert told(library, "live")["runs"][0]["curves"]["train"]["of"] == 98

    def test_a_resumed_start_overrides_later_steps(self, runs):
        log(runs / "live" / "pope-seed0", HEAD + rows(31, 35, start=2.0), version=1)
        log(runs / "live" / "pope-seed0", HEAD, version=10)
        train = told(Library(runs), "live")["runs"][0]["curves"]["train"]
        assert train["steps"] == list(range(1, 35))
        assert train["values"][29] > 3
        assert train["values"][30] < 2

    def test_a_report_without_its_runs(self, tmp_path):
        shutil.copytree(RESULTS / "jsb-paper", tmp_path / "runs" / "paper")
        paper = told(Library(tmp_path / "runs"), "paper")
        assert len(paper["runs"]) == 6
        assert all(run["test"] is not None for run in paper["runs"])

    def test_runs_that_lie_deeper_or_alone(self, tmp_path):
        for run in ("study/arm/pope-seed0", "alone", "study/arm/rope-seed0", "a/b/c/too-deep"):
            log(tmp_path / run, HEAD)
        labels = {one["label"]: len(one["runs"]) for one in Library(tmp_path).overview()["experiments"]}
        assert labels == {"study/arm": 2, "alone": 1}
        (tmp_path / "config.yaml").write_text(CONFIG.format("pope", "none"))  # the folder is itself an experiment
        assert "the runs folder" in {one["label"] for one in Library(tmp_path).overview()["experiments"]}

    def test_no_folder_at_all(self, tmp_path):
        assert Library(tmp_path / "none").overview() == {"experiments": [], "problems": []}


class TestDamage:
    @pytest.mark.parametrize("name", ["result.json", "report.json", "config.yaml", "best.safetensors"])
    @pytest.mark.parametrize(
        "content",
        [
            b"", b"\0" * 100, b"{", b"[]", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe\x00", b"nul",
            b"1" * 10_000, b'{"position": 3, "dataset": [], "nats_per_token": NaN, "trained": {}}',
            b"- &a [*a, *a]\n", b"x: " + b"[" * 5000,
            b'{"encodings": {"pope": {"seeds": "x", "nats_per_token": {"mean": Infinity}}}}',
        ],
        ids=[f"content {number}" for number in range(14)],
    )  # fmt: skip
    def test_a_damaged_file_is_named_and_the_rest_is_told(self, runs, name, content):
        (runs / "live" / "pope-seed0" / name).write_bytes(content)
        if name in ("report.json", "config.yaml"):
            (runs / "live" / name).write_bytes(content)
        client = TestClient(make_app(Settings(runs, runs)), base_url="http://localhost")
        experiments = client.get("/api/runs").json()["experiments"]
        live = client.get(f"/api/runs/{id_of(runs / 'live')}").json()
        assert len(experiments) == 3
        assert live["runs"][0]["curves"]["train"]["of"] == 40
        problems = live["problems"] + live["runs"][0]["problems"]
        assert problems or name == "best.safetensors"
        assert all(name in problem and len(problem) < 300 for problem in problems), problems
        assert client.get("/api/state").status_code == 200

    @pytest.mark.parametrize(
        ("content", "points"),
        [
            (b"", 0), (b"\n\n\n", 0), (b"\0" * 999 + b"\n", 0), (b"a,b\n1,2\n", 0), (HEAD.encode() * 3, 0),
            (HEAD.encode() + b"\xff\xfe\n1,1,1,2.5,\n", 1),
            (HEAD.encode() + b"1,1," + b"9" * 5000 + b",2.0,\n", 0),
            (HEAD.encode() + b"1,1,5,nan,\n1,1,6,inf,\n1,1,7,2.0,\n", 1),
            (HEAD.encode() + b"1,1,5,2.0,\n1,1,4,2.0,\n1,1,5,3.0,\n", 1),
            (HEAD.encode() + b"1,1,1,1e300,\n1,1,2,1.0,\n", 1), (HEAD.encode() + b'1,1,"1",x,\n,,,,\n', 0),
        ],
    )  # fmt: skip
    def test_damaged_logs(self, runs, content, points):
        (runs / "live" / "pope-seed0" / "logs" / "version_0" / "metrics.csv").write_bytes(content)
        [run] = told(Library(runs), "live")["runs"]
        assert run["curves"]["train"]["of"] == points
        assert json.dumps(run, allow_nan=False)

    def test_folders_where_files_belong_and_links_that_lead_nowhere(self, runs):
        run = runs / "live" / "pope-seed0"
        (run / "result.json").mkdir()
        (run / "best.safetensors").symlink_to(run / "nowhere")
        (run / "logs" / "version_x").mkdir()
        (run / "logs" / "version_7" / "metrics.csv").mkdir(parents=True)
        (runs / "circle").symlink_to(runs)
        live = told(Library(runs), "live")
        assert any("result.json cannot be read" in problem for problem in live["runs"][0]["problems"])

    @pytest.mark.parametrize(
        "header", [{"tokenizer": []}, {"trained": 3}, {"model": "x"}, {"trained": {"seed": []}}]
    )
    def test_headers_of_weights_that_say_odd_things(self, runs, header):
        inner = json.dumps(
            {"__metadata__": {"seqpope": json.dumps({"position": "pope", "dataset": "x", **header})}}
        )
        content = struct.pack("<Q", len(inner)) + inner.encode()
        (runs / "live" / "pope-seed0" / "best.safetensors").write_bytes(content)
        client = TestClient(make_app(Settings(runs, runs)), base_url="http://localhost")
        assert client.get("/api/state").status_code == 200
        assert client.get(f"/api/runs/{id_of(runs / 'live')}").status_code == 200

    def test_a_header_with_nan(self, runs):
        inner = '{"position": "pope", "dataset": "x", "trained": {"validation_nats_per_token": NaN}}'
        inner = json.dumps({"__metadata__": {"seqpope": inner}})
        content = struct.pack("<Q", len(inner)) + inner.encode()
        (runs / "live" / "pope-seed0" / "best.safetensors").write_bytes(content)
        client = TestClient(make_app(Settings(runs, runs)), base_url="http://localhost")
        assert "NaN" not in client.get("/api/state").text
        assert len(Catalogue(runs, runs).models()) >= 2


class TestLargeLogs:
    def test_they_are_read_piece_by_piece_and_thinned(self, runs, monkeypatch):
        monkeypatch.setattr(run_logs, "CHUNK", CHUNK >> 6)
        monkeypatch.setattr(studio_runs.Budget.__init__, "__defaults__", (CHUNK >> 6,))
        text = HEAD + rows(1, 20_000)
        log(runs / "live" / "pope-seed0", text)
        library = Library(runs)
        identity = id_of(runs / "live")
        parts = [library.experiment(identity)["runs"][0] for _ in range(len(text) // (CHUNK >> 6) + 3)]
        assert parts[0]["reading"]
        assert not parts[-1]["reading"]
        sizes = [part["curves"]["train"]["of"] for part in parts]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1] == 19_999
        train = parts[-1]["curves"]["train"]
        assert len(train["steps"]) <= POINTS
        assert (train["steps"][0], train["steps"][-1]) == (1, 19_999)

    def test_peaks_survive_thinning(self):
        from array import array

        values = array("d", [2.0] * 50_000)
        values[12_345], values[40_001] = 9.0, 0.5
        steps, kept = thinned(array("q", range(50_000)), values)
        assert len(steps) <= POINTS
        assert {9.0, 0.5} <= set(kept)
        assert steps == sorted(set(steps))

    def test_one_without_line_ends(self, runs, monkeypatch):
        monkeypatch.setattr(run_logs, "CHUNK", 1000)
        monkeypatch.setattr(studio_runs.Budget.__init__, "__defaults__", (1000,))
        log(runs / "live" / "pope-seed0", HEAD + "x" * 5000 + "\n" + rows(1, 3))
        library = Library(runs)
        for _ in range(10):
            run = library.experiment(id_of(runs / "live"))["runs"][0]
        assert run["curves"]["train"]["of"] == 2
        assert not run["reading"]
        assert "could not be read" in run["problems"][0]

    @pytest.mark.slow
    def test_many_runs_are_listed_quickly(self, tmp_path):
        for number in range(300):
            log(tmp_path / f"e{number}" / "pope-seed0", HEAD + rows(1, 200))
        library = Library(tmp_path)
        library.overview()
        began = time.monotonic()
        assert len(library.overview()["experiments"]) == 300
        assert time.monotonic() - began < 1


class TestRoutes:
    @pytest.fixture
    def client(self, runs) -> TestClient:
        return TestClient(make_app(Settings(runs, runs)), base_url="http://localhost")

    def test_only_what_is_new_is_told(self, client, runs):
        name = id_of(runs / "live")
        for path in ("/api/runs", f"/api/runs/{name}"):
            first = client.get(path).json()
            assert client.get(path, params={"since": first["version"]}).json() == {
                "version": first["version"],
                "unchanged": True,
            }
        with open(runs / "live" / "pope-seed0" / "logs" / "version_0" / "metrics.csv", "a") as file:
            file.write(rows(41, 50))
        assert client.get(path, params={"since": first["version"]}).json()["runs"][0]["step"] == 49

    def test_figures_are_served_by_id_and_name_alone(self, client, runs):
        name = id_of(runs / "genome")
        answer = client.get(f"/api/runs/{name}/figures/delta")
        assert answer.content == PNG
        assert answer.headers["content-type"] == "image/png"
        for figure in ("delta.png", "magnitudes", "..%2freport.json", "report", "%00", "inspect%2fdelta.png"):
            assert client.get(f"/api/runs/{name}/figures/{figure}").status_code in (400, 404), figure
        for other in ("genome", "..", str(runs), "0" * 12, "*", id_of(runs), id_of(runs.parent)):
            assert client.get(f"/api/runs/{other}/figures/delta").status_code in (400, 404), other
            assert client.get(f"/api/runs/{other}").status_code in (400, 404), other

    def test_nothing_told_is_a_path(self, client, runs):
        for path in ("/api/runs", f"/api/runs/{id_of(runs / 'genome')}", "/api/cards"):
            assert str(runs) not in client.get(path).text

    def test_cards_of_the_shipped_models(self, client):
        cards = client.get("/api/cards").json()
        assert [one["id"] for one in cards] == ["chorales", "chorales-rope", "genome"]
        for one in cards:
            assert {"test", "validation", "licence"} <= {name for name, _ in one["rows"]}
            assert one["title"]
            assert one["text"]

    def test_a_card_that_is_missing(self, tmp_path):
        assert card(tmp_path / "none.md", "none") == {"id": "none", "title": "none", "rows": [], "text": []}


def test_every_figure_is_one_that_is_drawn():
    source = "".join((ROOT / "seqpope" / name).read_text() for name in ("report.py", "inspection/writing.py"))
    for file in FIGURES.values():
        assert f'"{Path(file).name}"' in source
