"""A model that reads on: a prompt at once, then one token a row and call. On a GPU a CUDA graph does it again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from seqpope.model.cache import KeyValueCache
from seqpope.model.transformer import Transformer

T = TypeVar("T")


class Replayed(Generic[T]):
    """A function of tensors that stay where they are; on a GPU recorded at its second call, then replayed.

    Launching a step's kernels one by one takes the CPU longer than the GPU needs to run them. The first call runs
    the function as it is: it compiles what has to be compiled. What a replay returns lies where the last one's
    result lay.

    Args:
        function: takes no argument, asks nothing of the device that the host waits for. It must not hold what
            holds this: caches and graphs would stay on the GPU until Python's cycle collector happens to run,
            which torch no longer calls before it captures.
        recorded: whether to record at all.
    """

    def __init__(self, function: Callable[[], T], recorded: bool) -> None:
        self.function, self.recorded, self.warm = function, recorded, False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: T

    def __call__(self) -> T:
        if not self.recorded or not self.warm:
            self.warm = True
            return self.function()
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.result = self.function()
        self.graph.replay()
        return self.result


class Decoder:
    """One batch of sequences, the model that continues them, and the cache between the two.

    Args:
        model: in evaluation mode.
        batch: sequences (B).
        capacity: positions that are attended to at most, the current one among them.
        cache_dtype: what keys and values are stored as; None is fp32 on a CPU and fp16 on a GPU, where reading
            the cache is what a step of a large batch waits for. Weights and all else stay as they are.
    """

    def __init__(
        self, model: Transformer, batch: int, capacity: int, cache_dtype: torch.dtype | None = None
    ) -> None:
        self.model = model
        weights = next(model.parameters())
        on_gpu = weights.is_cuda
        if cache_dtype is None:
            # Three bits more than bf16; keys and values of a trained model are far from fp16's end.
            cache_dtype = torch.float16 if on_gpu else weights.dtype
        self.cache = KeyValueCache(model.config, batch, capacity, weights.device, cache_dtype)
        self.ids = torch.zeros(batch, 1, dtype=torch.long, device=weights.device)
        self.again = Replayed(functools.partial(_read_one, model, self.ids, self.cache), on_gpu)

    def read(self, ids: Tensor, ends: Tensor | None = None) -> Tensor:
        """Logits (B, V) fp32 after prompts (B, L); `ends` (B,) says where each ends if they are padded.

        A prompt that all share is read once.
        """
        device, batch = self.ids.device, len(ids)
        if batch > 1 and not self.cache.length and ends is None and bool((ids == ids[:1]).all()):
            one = KeyValueCache(self.model.config, 1, ids.shape[1], device, self.cache.keys.dtype)
            logits = self.model(ids[:1].to(device), one, last_only=True).repeat(batch, 1, 1)
            self.cache.begin_as(one)
        else:
            logits = self.model(
                ids.to(device), self.cache, last_only=True, ends=None if ends is None else ends.to(device)
            )
        if self.again.recorded:
            self.cache.settle()
        return logits[:, 0].float()

    def step(self, ids: Tensor) -> Tensor:
        """Logits (B, V) fp32 after one more token a row, (B,); on a GPU valid until the next step.

        Raises:
            ValueError: the cache is full.
        """
        length = self.cache.length
        if length >= self.cache.max_length:
            raise ValueError(f"the cache holds {length} positions and is full: forget some, or allocate more")
        self.ids.copy_(ids[:, None])
        logits = self.again()
        self.cache.length = length + 1  # a replay runs nothing on the host
        return logits


def _read_one(model: Transformer, ids: Tensor, cache: KeyValueCache) -> Tensor:
    logits: Tensor = model(ids, cache, last_only=True)
    return logits[:, 0].float()
