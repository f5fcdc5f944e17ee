#!/usr/bin/env python3
"""From a fresh clone and nothing but Python 3.11 or newer: `python3 start.py demo` or `python3 start.py test`.

Both make a virtual environment in .venv and install this project into it. `demo` prepares the embedded
chorales, trains PoPE and its RoPE twin, writes the report and a chorale as MIDI; `test` lints, checks types and
runs the tests. Words after `test` go to pytest.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(*words: object, **settings: object) -> None:
    """Run a command in the project's folder; stop with its status if it fails."""
    status = subprocess.call([str(word) for word in words], cwd=HERE, **settings)  # type: ignore[arg-type]
    if status:
        raise SystemExit(status)


def install() -> None:
    """Make .venv and install the project, unless that was done for these very files."""
    stamp = VENV / "installed"
    files = [HERE / "pyproject.toml", HERE / "constraints.txt"]
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files) + sys.version.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted and PYTHON.exists():
        return
    print("making .venv and installing (a few minutes, most of it torch)", flush=True)
    try:
        import ensurepip  # noqa: F401
        import venv
    except ImportError:
        raise SystemExit(
            "this Python has no venv: install it (Debian and Ubuntu: apt install python3-venv)"
        ) from None
    venv.EnvBuilder(with_pip=True, clear=VENV.exists()).create(VENV)
    # Bytecode is made of what is imported, when it is: of all there is it takes half of the installation's time.
    how = ["--quiet", "--no-compile", "--constraint", "constraints.txt"]
    run(PYTHON, "-m", "pip", "install", *how, "--editable", ".[test]")
    stamp.write_text(wanted)


def demo() -> None:
    """Train both twins on the embedded chorales, report, and write a chorale."""
    out = HERE / "runs" / "demo"
    begun = (out / "config.yaml").is_file()
    run(
        PYTHON,
        "-m",
        "seqpope",
        "train",
        *(["--resume", out] if begun else ["--domain", "music", "--name", "demo"]),
    )
    chorale = ["--out", out / "chorale.mid", "--formats", "png", "--bars", 8]
    chorale += ["--ranges", "--no-rests", "--no-parallels", "--cadence"]
    run(PYTHON, "-m", "seqpope", "generate", "--domain", "music", "--checkpoint", out, *chorale)
    print(
        f"report: {out / 'report.md'}   figures: loss.png, position.png beside it   music: {out / 'chorale.mid'}"
    )


def test(words: list[str]) -> None:
    """Lint, types, then tests."""
    run(PYTHON, "-m", "ruff", "check", ".")
    run(PYTHON, "-m", "ruff", "format", "--check", ".")
    run(PYTHON, "-m", "mypy")
    run(PYTHON, "-m", "pytest", *(words or ["-m", "not slow and not gpu", "-n", "2"]))


def main() -> None:
    """Read the one word that says what to do."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the very check of that minimum
        raise SystemExit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    words = sys.argv[1:]
    if words[:1] not in (["demo"], ["test"]):
        raise SystemExit("usage: python3 start.py demo | test [words for pytest]")
    # Installed without bytecode: were none kept either, each process would compile torch and Lightning anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.time()
    install()
    if words[0] == "demo":
        demo()
        print(f"done in {(time.time() - start) / 60:.1f} minutes", flush=True)
    else:
        test(words[1:])


if __name__ == "__main__":
    main()
