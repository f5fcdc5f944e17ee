"""Jobs that do what no job should."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from seqpope.errors import SeqpopeError
from seqpope.studio.worker import Context


def echo(said: Any, context: Context) -> Any:
    return said


def count(to: int, context: Context) -> int:
    for number in range(to):
        context.emit("step", number)
        time.sleep(0.01)
    return to


def hang(_: Any, context: Context) -> None:
    context.emit("step", os.getpid())
    time.sleep(3600)


def die(_: Any, context: Context) -> None:
    context.emit("step", 0)
    os.kill(os.getpid(), signal.SIGKILL)


def take(memory: int, context: Context) -> int:
    return len(bytearray(memory))


def fill(device: str, context: Context) -> None:
    said = {
        "cpu": "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "cuda": "CUDA out of memory.",
    }
    raise RuntimeError(said[device])


def write(size: int, context: Context) -> int:
    import tempfile

    with tempfile.TemporaryFile() as file:
        return file.write(bytes(size))


def limits(_: Any, context: Context) -> list[int]:
    import resource

    kinds = (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)
    return [resource.getrlimit(kind)[0] for kind in kinds]


def refuse(_: Any, context: Context) -> None:
    raise SeqpopeError("not this")


def mistake(_: Any, context: Context) -> None:
    raise KeyError("inner details")


def deep(_: Any, context: Context) -> Any:
    return deep(_, context)


def unsendable(_: Any, context: Context) -> Any:
    return lambda: None


def ready(context: Context) -> None:
    context.kept["ready"] = True


def broken(context: Context) -> None:
    raise ImportError("no such module")
