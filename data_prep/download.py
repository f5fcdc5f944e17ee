"""Downloading one file: resumed where it broke off, checked against a pinned SHA-256, never half in place."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from pathlib import Path

from seqpope.errors import SeqpopeError
from seqpope.files import sha256_of

BLOCK = 1 << 18
TIMEOUT = 60.0  # seconds without a byte
REPORT_EVERY = 2.0  # seconds


class DownloadError(SeqpopeError):
    """A file could not be downloaded, or is not the one that was expected."""


def download(
    url: str,
    target: Path,
    sha256: str,
    *,
    progress: Callable[[str], None] = print,
    timeout: float = TIMEOUT,
) -> Path:
    """Download `url` to `target` unless it is there already with the pinned SHA-256.

    What has arrived is kept as `target`.part and carried on from there next time (HTTP Range); the file
    gets its name only after its checksum was found right.

    Raises:
        DownloadError: no network, an HTTP error, a connection that broke off, too little space, or content
            with another SHA-256 (which is deleted, as carrying on from it would be no use).
    """
    target = Path(target)
    if target.is_file():
        if sha256_of(target) == sha256:
            progress(f"{target.name} is already there, checksum right")
            return target
        progress(f"{target.name} is there but is another file (checksum differs): downloading it again")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if not (part.is_file() and part.stat().st_size and sha256_of(part) == sha256):
        _fetch(url, part, progress, timeout)
    found = sha256_of(part)
    if found != sha256:
        size = part.stat().st_size
        part.unlink()
        raise DownloadError(
            f"{url} gave a file of {size} bytes with SHA-256 {found}, expected {sha256}: the file was changed or "
            "damaged on its way; try again, or give a copy of the right one with --source FILE"
        )
    os.replace(part, target)
    return target


def _fetch(url: str, part: Path, progress: Callable[[str], None], timeout: float) -> None:
    """Append what `part` lacks of `url` to it."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "seqpope"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    by_hand = f"download it by hand and give it with --source FILE ({url})"
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            if have and answer.status != 206:  # the server ignored the range and sends all of it
                have = 0
            total = _total(answer.headers, have)
            needed = (total or have) - have
            free = shutil.disk_usage(part.parent).free
            if needed > free:
                raise DownloadError(f"{url} needs {needed} more bytes, {part.parent} has {free} free: make room")
            _copy(answer, part, have, total, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is as long as the file or longer: the checksum will say
            return
        raise DownloadError(f"{url} answered {error.code} {error.reason}: {by_hand}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"no space left for {part}: make room and start again, it will carry on"
            ) from error
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"{url} cannot be reached or broke off ({reason}): check the network and start again (it will "
            f"carry on), or {by_hand}"
        ) from error
    except HTTPException as error:
        raise DownloadError(f"{url} broke off ({error!r}): start again, it will carry on") from error
    if total is not None and part.stat().st_size < total:
        raise DownloadError(
            f"{url} broke off after {part.stat().st_size} of {total} bytes: start again, it will carry on"
        )


def _total(headers: HTTPMessage, have: int) -> int | None:
    """Length of the whole file in bytes, where the server says it."""
    with contextlib.suppress(TypeError, ValueError):
        return have + int(headers["Content-Length"])
    return None


def _copy(answer: object, part: Path, have: int, total: int | None, progress: Callable[[str], None]) -> None:
    """Write the answer's body to `part` from byte `have` on, with rate and time left now and then."""
    began = reported = time.monotonic()
    done = have
    with open(part, "ab" if have else "wb") as file:
        while block := answer.read(BLOCK):  # type: ignore[attr-defined]
            file.write(block)
            done += len(block)
            now = time.monotonic()
            if now - reported >= REPORT_EVERY:
                reported = now
                rate = (done - have) / max(now - began, 1e-9)
                left = f" of {total / 1e6:.1f} MB, {(total - done) / rate:.0f} s left" if total else " MB"
                progress(f"{part.stem}: {done / 1e6:.1f}{left}, {rate / 1e6:.2f} MB/s")
    progress(f"{part.stem}: {done / 1e6:.1f} MB")
