"""The page that users get is the one that app/ holds: what is built is committed, and could be forgotten."""

from __future__ import annotations

import hashlib
from pathlib import Path

from seqpope.studio.server import STATIC

APP = Path(__file__).resolve().parents[2] / "app"


def test_the_page_was_built_after_its_sources_changed():
    names = ["index.html"]
    names += [path.relative_to(APP).as_posix() for path in APP.glob("src/**/*") if path.suffix in (".ts", ".css")]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\0".encode() + (APP / name).read_bytes() + b"\0")
    built = (STATIC / "studio.js").read_text(encoding="utf-8")
    assert built.startswith(f"/* sources {digest.hexdigest()} */"), "in app/: npm ci && npm run build"
    assert (STATIC / "index.html").read_bytes() == (APP / "index.html").read_bytes()
