"""Worker processes and signals to their whole group, as a terminal's Ctrl-C and `timeout` send them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from seqpope.processes import worker_pool

PROGRAM = """
import sys, time
from pathlib import Path
from seqpope.processes import worker_pool

def work(number):
    Path(sys.argv[1], str(number)).touch()
    time.sleep(0.2)
    Path(sys.argv[1], f"{number} done").touch()

if __name__ == "__main__":
    with worker_pool(2) as pool:
        list(pool.map(work, range(1000)))
"""


def is_gone(group):
    """Whether nobody of a process group is left, after a moment."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(os.name != "posix", reason="signals to a group of processes are POSIX's")
@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_ends_what_has_begun_and_no_more(tmp_path, signals):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, script, out], start_new_session=True, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    end = time.monotonic() + 60
    while len(list(out.iterdir())) < 4 and time.monotonic() < end:
        time.sleep(0.02)
    for _ in range(signals):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    assert process.wait(30) != 0
    assert is_gone(process.pid)
    begun = {file.name for file in out.iterdir() if "done" not in file.name}
    assert 2 <= len(begun) < 100
    if signals == 1:
        assert {file.name for file in out.iterdir()} == begun | {f"{name} done" for name in begun}


def test_a_failure_is_the_callers(tmp_path):
    with pytest.raises(ZeroDivisionError), worker_pool(2) as pool:
        pool.submit(divmod, 1, 0).result()


HELD = """
import multiprocessing, signal, time
from seqpope.processes import kill_workers_at_exit

def work(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    context.Process(target=work, args=(ready,), daemon=True).start()
    ready.wait()
    kill_workers_at_exit()
    raise RuntimeError("nobody ended the worker")
"""


def test_a_worker_that_ignores_term_does_not_keep_the_process(tmp_path):
    (tmp_path / "program.py").write_text(HELD)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=30, env=environment
    )
    assert "nobody ended the worker" in ended.stderr
