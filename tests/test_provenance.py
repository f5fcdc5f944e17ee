from __future__ import annotations

import subprocess

import pytest

from seqpope.provenance import commit, provenance


@pytest.fixture
def asked(monkeypatch):
    """Calls of git, which is answered for: commit abc, in which a file differs."""
    calls = []

    def run(words, **_):
        calls.append(words[3])
        return subprocess.CompletedProcess(words, 0, {"rev-parse": "abc\n", "status": " M x\n"}[words[3]], "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("pathlib.Path.exists", lambda self: True)
    commit.cache_clear()
    yield calls
    commit.cache_clear()


def test_git_is_asked_once_a_process(asked):
    """Each sample has a sidecar with the commit in it."""
    assert [provenance()["commit"] for _ in range(3)] == ["abc+changes"] * 3
    assert asked == ["rev-parse", "status"]
