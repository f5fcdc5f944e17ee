"""How the attention benchmark takes times and memory."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from attention_contenders import Inputs, attempt, held_to
from torch.nn.attention import SDPBackend

SLOW_MS = 50.0  # such calls are timed a few times only; twice as long, and graphs tell nothing either
FLUSH_BYTES = 256 << 20


class PoisonedError(Exception):
    """The GPU answers nothing any more in this process, since a contender wrecked its context."""

    def __init__(self, contender: str, reason: str) -> None:
        super().__init__(f"{contender}: {reason}")
        self.contender, self.reason = contender, reason


def attempt_on_gpu(name: str, device: torch.device, action: Callable[[], Any]) -> tuple[Any, str | None]:
    """`attempt`, but PoisonedError if the device is unusable afterwards."""
    result, reason = attempt(action)
    if reason is not None and device.type == "cuda":
        _, broken = attempt(torch.cuda.synchronize)
        if broken is not None:
            raise PoisonedError(name, reason)
        release(device)
    return result, reason


def release(device: torch.device) -> None:
    """Give memory back: other processes share the GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Clock:
    """Median time of a call in ms, the L2 cache flushed before each."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(FLUSH_BYTES if self.cuda else 1, dtype=torch.int8, device=device)

    def measure(self, call: Callable[[], Any], graph: bool) -> dict[str, float]:
        """`graph`: the call is captured in a CUDA graph, replays are timed."""
        if not self.cuda:
            return self._measure_cpu(call)
        graphed = self._capture(call) if graph else None
        run = graphed.replay if graphed is not None else call
        self._times(run, 1)
        estimate = self._times(run, 1)[0]
        fewest = 10 if estimate < SLOW_MS else 3
        count = max(fewest, min(100, int(250 / estimate)))  # about a quarter of a second
        return {"ms": statistics.median(self._times(run, count)), "calls": count}

    def _times(self, call: Callable[[], Any], count: int) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in events:
            self.flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]

    def _capture(self, call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # The outer context puts the stream back should the capture fail.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            call()
        return graph

    def _measure_cpu(self, call: Callable[[], Any]) -> dict[str, float]:
        begun = time.perf_counter()
        call()
        return {"ms": 1000 * (time.perf_counter() - begun), "calls": 1}


Calls = dict[str, tuple[SDPBackend | None, Callable[[], Any]]]


def interleave(
    calls: Calls, clock: Clock, device: torch.device, rounds: int, graph: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Time all calls in turn, `rounds` times over, so that ratios are of the same minutes; and those not run."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    not_run: dict[str, str] = {}
    for turn in range(rounds):
        for name in list(calls) if turn % 2 == 0 else list(reversed(calls)):
            if name in not_run:
                continue
            backend, call = calls[name]
            with held_to(backend):
                once, reason = attempt_on_gpu(name, device, functools.partial(clock.measure, call, graph))
            if reason is None:
                found[name].append(once)
            else:
                not_run[name] = reason
    times = {}
    for name, each in found.items():
        if name not in not_run:
            rounds_ms = [x["ms"] for x in each]
            median = statistics.median(rounds_ms)
            spread = (max(rounds_ms) - min(rounds_ms)) / median
            times[name] = {"ms": median, "spread": spread, "rounds_ms": rounds_ms, "calls": each[0]["calls"]}
    return times, not_run


def peak_memory(call: Callable[[], Any], inputs: Inputs) -> dict[str, float] | None:
    """MiB at the peak of one call: `extra` beyond the inputs, `total` with them and the upstream gradient."""
    if inputs.q.device.type != "cuda":
        return None
    release(inputs.q.device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    return {"extra": extra / 2**20, "total": (extra + inputs.bytes()) / 2**20}


def kernel_times(call: Callable[[], Any], calls: int = 5) -> list[dict[str, Any]]:
    """GPU kernels of one call with their ms, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    rows = [
        {
            "kernel": event.key[:120],
            "ms": event.self_device_time_total / 1000 / calls,
            "launches": event.count / calls,
        }
        for event in profiler.key_averages()
        if event.self_device_time_total > 0
    ]
    return sorted(rows, key=lambda row: -row["ms"])
