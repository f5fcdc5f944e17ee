"""Writing files so that no half-written one is ever seen, and not by two processes at once."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from seqpope.errors import SeqpopeError


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write each beside its path and flush it to disk; once all are, rename them into place, one after another.

    Raises:
        OSError: one cannot be written, and none is; or one cannot be renamed. It names the path, not what was
            written beside it.
    """
    with contextlib.ExitStack() as beside:
        ready = [(_written_beside(Path(path), content, beside), Path(path)) for path, content in contents.items()]
        for fresh, path in ready:
            with _naming(path):
                os.replace(fresh, path)


def _written_beside(path: Path, content: bytes, beside: contextlib.ExitStack) -> Path:
    """A file beside `path` with its content, gone with `beside` if nothing was done with it."""
    with _naming(path):
        if path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        beside.callback(Path(name).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
    return Path(name)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have errors of writing name `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """`write_files` for one."""
    write_files({path: content})


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for text, in UTF-8."""
    write_bytes(path, content.encode())


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock on a file made for it; `waiting` is called if another process has it and this one must wait.

    Without fcntl (Windows) there is no lock.

    Raises:
        OSError: the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_until_free(folder: Path, waiting: Callable[[], None]) -> None:
    """Wait while another process works in a folder (`held`) that is about to let go; `waiting` is called first."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        pass
    finally:
        os.close(handle)


@contextlib.contextmanager
def held(folder: Path, advice: str) -> Iterator[None]:
    """Work in a folder alone: another process that asks for it is refused. Nothing is written.

    Without fcntl (Windows), and where a folder cannot be locked (some network drives), nobody is refused.

    Args:
        advice: what to do then, the end of a sentence.

    Raises:
        SeqpopeError: another process holds the folder.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SeqpopeError(f"another process is at work in {folder}: wait for it, or {advice}") from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)
