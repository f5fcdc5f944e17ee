from __future__ import annotations

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_prep import download as module
from data_prep.download import DownloadError, download

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; /broken stops half-way, /plain ignores Range, /other serves something else."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Range")))
        if self.path == "/missing":
            self.send_error(404)
            return
        body = b"<html>moved</html>" if self.path == "/other" else CONTENT
        first = 0
        asked = self.headers.get("Range")
        if asked and self.path != "/plain":
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            if first >= len(body):
                self.send_error(416)
                return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        body = body[first:]
        self.wfile.write(body[: len(body) // 2] if self.path == "/broken" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.seen = []
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        running.url = f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def said():
    return []


def test_whole_file(server, tmp_path, said):
    target = download(f"{server.url}/a", tmp_path / "deep" / "a.bin", SHA256, progress=said.append)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["a.bin"]
    assert said[-1] == "a.bin: 1.3 MB"
    download(f"{server.url}/a", target, SHA256, progress=said.append)
    assert "already there" in said[-1]
    assert len(server.seen) == 1


def test_resumes_after_a_break(server, tmp_path, said):
    with pytest.raises(DownloadError, match=r"broke off after 640000 of 1280000 bytes.*carry on"):
        download(f"{server.url}/broken", tmp_path / "a.bin", SHA256, progress=said.append)
    assert (tmp_path / "a.bin.part").stat().st_size == len(CONTENT) // 2
    assert not (tmp_path / "a.bin").exists()
    download(f"{server.url}/a", tmp_path / "a.bin", SHA256, progress=said.append)
    assert server.seen[-1] == ("/a", f"bytes={len(CONTENT) // 2}-")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert not (tmp_path / "a.bin.part").exists()


def test_server_without_ranges_sends_all_again(server, tmp_path, said):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    download(f"{server.url}/plain", tmp_path / "a.bin", SHA256, progress=said.append)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_whole_part_needs_no_network(server, tmp_path, said):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    download(f"{server.url}/missing", tmp_path / "a.bin", SHA256, progress=said.append)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.seen == []


def test_checksum_mismatch(server, tmp_path, said):
    with pytest.raises(DownloadError, match=f"18 bytes with SHA-256 .*expected {SHA256}.*--source FILE"):
        download(f"{server.url}/other", tmp_path / "a.bin", SHA256, progress=said.append)
    assert list(tmp_path.iterdir()) == []


def test_damaged_part_is_found_and_the_next_try_succeeds(server, tmp_path, said):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="SHA-256"):
        download(f"{server.url}/a", tmp_path / "a.bin", SHA256, progress=said.append)
    download(f"{server.url}/a", tmp_path / "a.bin", SHA256, progress=said.append)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_part_longer_than_the_file(server, tmp_path, said):
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
    with pytest.raises(DownloadError, match="SHA-256"):
        download(f"{server.url}/a", tmp_path / "a.bin", SHA256, progress=said.append)
    assert list(tmp_path.iterdir()) == []


def test_another_file_in_place_is_replaced(server, tmp_path, said):
    (tmp_path / "a.bin").write_bytes(b"old")
    download(f"{server.url}/a", tmp_path / "a.bin", SHA256, progress=said.append)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_not_found(server, tmp_path, said):
    with pytest.raises(DownloadError, match=r"/missing answered 404 .*--source FILE"):
        download(f"{server.url}/missing", tmp_path / "a.bin", SHA256, progress=said.append)
    assert list(tmp_path.iterdir()) == []


def test_no_network(tmp_path, said):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a"
        with pytest.raises(DownloadError, match=r"cannot be reached.*check the network"):
            download(url, tmp_path / "a.bin", SHA256, progress=said.append, timeout=5)


def test_disk_too_small(server, tmp_path, said, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: module.shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(DownloadError, match=r"needs 1280000 more bytes, .* has 1 free"):
        download(f"{server.url}/a", tmp_path / "a.bin", SHA256, progress=said.append)


def test_rate_and_time_left_are_told(server, tmp_path, said, monkeypatch):
    monkeypatch.setattr(module, "REPORT_EVERY", 0.0)
    download(f"{server.url}/a", tmp_path / "a.bin", SHA256, progress=said.append)
    assert any("of 1.3 MB" in line and "s left" in line and "MB/s" in line for line in said)
