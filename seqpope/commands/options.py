"""What options of several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from typing import Any, Literal

from seqpope.errors import SeqpopeError

Device = Literal["auto", "cpu", "cuda"]


def changed(verb: Callable[..., Any], asked: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Of these options of a verb those that are not as they are by default; by name, how they are typed."""
    parameters = signature(verb).parameters
    return {n: f"--{n.replace('_', '-')}" for n in names if asked[n] != parameters[n].default}


def words(text: str) -> tuple[str, ...]:
    """Words with commas between them."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers with commas between them."""
    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise SeqpopeError(f"{option} takes whole numbers such as 2048,4096, it is {text!r}") from None


def factors(text: str) -> list[float]:
    """Numbers with commas between them, one at least."""
    try:
        if factors := [float(word) for word in words(text)]:
            return factors
    except ValueError:
        pass
    raise SeqpopeError(f"--stretch takes numbers such as 0.95,1.05, it is {text!r}")
