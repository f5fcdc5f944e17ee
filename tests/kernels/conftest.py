"""What makes the kernels' tests bearable without a GPU.

One thread: on tensors this small, two threads wait for each other far longer than they compute. And a Triton
interpreter that leaves out what changes no result.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

torch.set_num_threads(1)


def hurry(interpreter) -> None:
    """Spare the interpreter what it does again and again to no effect: half of its time."""
    language, patch, scope = interpreter.tl, interpreter._patch_lang, interpreter._LangPatchScope

    # triton.language is made the interpreter's own at every launch, and anew wherever a kernel calls a function.
    @functools.cache
    def seen_by(fn):
        values = fn.__globals__.values()
        return [module for module in (language, language.core) if any(value is module for value in values)]

    def patch_once(fn):
        return patch(fn) if any(language.core.is_builtin(module.load) for module in seen_by(fn)) else scope()

    # Every sum and product of whole numbers is computed again in 64 bits, though only `debug` looks at the result.
    options = interpreter.interpreter_builder.options
    if not options.debug:
        interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)

    # A table of all types is made wherever one of them is looked up. Types of blocks and pointers have no hash.
    dtype = interpreter._get_np_dtype
    known = functools.cache(dtype)

    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = lambda x: known(x) if type(x) is language.dtype else dtype(x)


if not torch.cuda.is_available():
    try:
        from triton.runtime import interpreter

        hurry(interpreter)
    except (ImportError, AttributeError):  # no Triton, or one that is another inside: it takes its time
        pass


@pytest.fixture
def poisoned():
    """Memory that nothing was written to reads as nan."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before
