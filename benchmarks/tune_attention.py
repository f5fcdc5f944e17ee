"""Time the tiles that PoPE's attention kernels could have, and say which belong into flash.HOPPER.

    python benchmarks/tune_attention.py                                      every kernel at every shape
    python benchmarks/tune_attention.py --kernels forward --shapes genome    one at one
    python benchmarks/tune_attention.py --device cpu                         two entries a kernel: plumbing only

Of a grid of entries those that arithmetic rules out are left away (`why_not`). The rest is compiled by --jobs
processes at once; then one process times each by replays of a CUDA graph, the L2 cache flushed. What fails, hangs
or gives another result than the present entry is recorded with its reason and stops nothing. After --seconds
nothing more is started. The result lands in --out: tune.json, written anew after every shape. The best entries are
printed as lines of flash.HOPPER. The exit status is 1 if a kernel has no time at some shape.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attention import SHAPES, TINY_SWEEP, command_line, strict, versions
from attention_contenders import BASE, Shape, make_inputs, relative_error
from attention_timing import Clock, PoisonedError, attempt_on_gpu, release
from torch import Tensor

from seqpope.files import write_text
from seqpope.kernels import flash
from seqpope.kernels.rotation import two_level_tables

Entry = tuple[int | None, ...]  # a flash.Tiles; rotation's is its rows alone

TILED = flash.Tiling._fields
KERNELS = (*TILED, "rotate")
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}  # the interpreter's bf16 dot is wrong
SHARED = (
    227 << 10
)  # bytes that a program may have on an H100; a multiprocessor has 1 KB more and takes 1 a program
REGISTERS = 65536  # of a multiprocessor
MOST = 30  # entries a kernel and head dimension
WRONG = 0.01  # relative difference of results
SLOW, SLACK_MS = 1.5, 0.2  # a call slower than SLOW x the quickest + slack (its launch) need not be timed better
BUDGET_MS = 25.0  # of replays an entry
PATIENCE = 90.0  # seconds until a process that does not answer is killed
COMPILING = 0.6  # share of --seconds that compiling may take


class Needs(NamedTuple):
    """What a program takes of an H100's multiprocessor, for 16-bit elements."""

    held: int  # rows of the tile that it keeps, while others pass
    shared: int  # bytes
    registers: float  # a thread's: sums and scores in fp32, weights in 16 bits
    programs: int  # that fit at once


def needs(kernel: str, dim: int, tiles: flash.Tiles) -> Needs:
    """By arithmetic; from two stages on shared memory is within 3 % of what Triton 3.6 takes."""
    held, passing = (tiles.cols, tiles.rows) if kernel == "backward_keys" else (tiles.rows, tiles.cols)
    polar, values = 2 * sum(flash.split_head_dim(dim)), sum(flash.split_values(dim))
    sums = {"forward": values, "backward_keys": polar + values, "backward_queries": polar}[kernel]
    forward = kernel == "forward"  # which holds no more than queries and has no gradients of scores
    shared = 2 * (held * (polar if forward else polar + values) + tiles.stages * passing * (polar + values))
    threads = 32 * tiles.warps
    registers = held * (sums + (1.5 if forward else 2.5) * passing) / threads
    taken = min(tiles.registers or 255, int(registers) + 80)  # about what ptxas takes
    return Needs(held, shared, registers, min(REGISTERS // (taken * threads), (SHARED + 1024) // (shared + 1024)))


def why_not(kernel: str, dim: int, tiles: flash.Tiles) -> str | None:
    """What arithmetic says against tiles; None if nothing does."""
    mine, other = needs(kernel, dim, tiles), functools.partial(needs, kernel, dim)
    if mine.held < 16 * tiles.warps:
        return "four warps multiply 64 rows of the tile that is held, eight 128"
    if mine.shared > SHARED:
        return "does not fit into shared memory"
    if mine.registers > 280:
        return "spills: needs more registers than the 255 that there are, and addresses come on top"
    if tiles.registers is not None:
        if mine.registers + 24 > tiles.registers:
            return "spills: addresses and the softmax want some 24 registers besides"
        looser = [None, *(limit for limit in (128, 168) if limit > tiles.registers)]
        if mine.programs <= max(other(tiles._replace(registers=limit)).programs for limit in looser):
            return "a limit of registers that lets no further program in"
    with_two = other(tiles._replace(stages=2)).programs
    if tiles.stages > 2 and mine.programs < with_two:
        return "stages that cost a program, whose warps would hide more latency"
    if tiles.stages == 1 and mine.programs <= with_two:
        return "one stage loads nothing ahead, and two let as many programs in"
    if kernel == "forward" and tiles.cols < 64 and why_not(kernel, dim, tiles._replace(cols=64)) is None:
        return "products 32 columns wide wait for shared memory, and 64 are possible"
    return None


def unlikeness(entry: Sequence[Any], other: Sequence[Any]) -> float:
    """How far apart two tiles are, in doublings; a stage or another limit of registers counts half of one."""
    doublings = sum(abs(math.log2(a / b)) for a, b in zip(entry[:3], other[:3], strict=True))
    return doublings + abs(entry[3] - other[3]) / 2 + (entry[4] != other[4]) / 2


def present_entry(
    kernel: str, dim: int, device: torch.device, dtype: torch.dtype | None = None, keys: int = 1
) -> Entry:
    """What a kernel takes today."""
    if kernel == "rotate":
        return (flash.rotated_rows(dim),)
    return tuple(getattr(flash.choose_tiling(dim, keys, dtype or DTYPES[device.type], device), kernel))


def candidates(kernel: str, dim: int, device: torch.device) -> list[Entry]:
    """The present entry, then up to MOST others, the likest to it first: time may run out."""
    present = present_entry(kernel, dim, device)
    far = present_entry(kernel, dim, device, keys=flash.LONG + 1)
    others: Iterable[Sequence[Any]]
    if device.type == "cpu":
        others = [(16,) if kernel == "rotate" else flash.Tiles(16, 16, 4, 1)]
    elif kernel == "rotate":
        others = [(16,), (32,), (64,)]
    else:
        sizes = itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3, 4), (None, 168, 128, 96))
        possible = [
            tiles for tiles in itertools.starmap(flash.Tiles, sizes) if why_not(kernel, dim, tiles) is None
        ]
        others = sorted(possible, key=lambda tiles: unlikeness(tiles, present))
        others = dict.fromkeys((far, *map(tuple, others)))
    return [present, *[tuple(entry) for entry in others if tuple(entry) != present][:MOST]]


class Request(NamedTuple):
    """One entry of one kernel at one shape."""

    kernel: str
    shape: Shape
    entry: Entry
    trusted: Entry | None = None  # whose result is the right one; None: only launch it once, which compiles it
    slow_ms: float = math.inf  # a call that takes longer is not timed any better


class Case:
    """Tensors of one attention call, and the kernels' launches on them."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        inputs = make_inputs(shape, device, DTYPES[device.type])
        self.q, self.k, self.v = q, k, v = [x.detach() for x in inputs[:3]]
        delta, self.grad = inputs.delta.detach(), inputs.upstream
        self.problem = flash.Problem(
            turns=torch.cat((delta.cos(), delta.sin()), -1),
            tables=two_level_tables(shape.length, shape.dim, BASE, device),
            first=None, last=None, offsets=None, lengths=None, seed=None,
            offset=0, causal=True, scale=shape.dim**-0.5, dropout_p=0.0,
        )  # fmt: skip
        self.polar = flash.new_polar(q), flash.new_polar(k)
        self.out, self.logsum, self.row_dots = flash.like_tokens(q), flash.new_row_sums(q), flash.new_row_sums(q)
        self.written = {  # apart from what is read, since wrong entries write too
            "rotate": [flash.new_polar(q), flash.new_polar(k), flash.new_row_sums(q)],
            "forward": [flash.like_tokens(q), flash.new_row_sums(q)],
            "backward_keys": [flash.like_tokens(k), flash.like_tokens(v)],
            "backward_queries": [flash.like_tokens(q)],
        }

    def fill(self) -> None:
        """Make what the kernels read, by tiles that suit every GPU."""
        flash.launch_rotate(self.q, self.k, *self.polar, self.problem)
        tiles = flash.Tiles(*present_entry("forward", self.q.shape[-1], self.q.device, torch.float32))
        tiles = flash.fit(tiles, self.q.shape[2], self.k.shape[2])
        flash.launch_forward(*self.polar, self.v, self.out, self.logsum, self.problem, tiles)
        flash.launch_rotate(self.q, self.k, *self.polar, self.problem, self.out, self.grad, self.row_dots)

    def launch(self, kernel: str, entry: Entry) -> list[Tensor]:
        """Launch it once; what it writes."""
        written, problem, (polar_q, polar_k) = self.written[kernel], self.problem, self.polar
        if kernel == "rotate":  # as the forward and the backward pass do
            flash.launch_rotate(self.q, self.k, *written[:2], problem, rows=entry[0])
            flash.launch_rotate(
                self.q, self.k, *written[:2], problem, self.out, self.grad, written[2], rows=entry[0]
            )
            return written
        tiles = flash.fit(flash.Tiles(*entry), self.q.shape[2], self.k.shape[2])  # or it would write past buffers
        read = (self.v, self.grad, self.logsum, self.row_dots)
        if kernel == "forward":
            flash.launch_forward(polar_q, polar_k, self.v, *written, problem, tiles)
            return written
        if kernel == "backward_keys":
            flash.launch_backward_keys(polar_q, self.k, polar_k, *read, *written, problem, tiles)
            return written
        return [*written, flash.launch_backward_queries(self.q, polar_q, polar_k, *read, *written, problem, tiles)]

    def result(self, kernel: str, entry: Entry) -> list[Tensor]:
        """What one launch gives, NaN where it writes nothing."""
        for x in self.written[kernel]:
            x.fill_(math.nan)
        first, *rest = self.launch(kernel, entry)
        if kernel == "forward":
            return [first, rest[0][..., : self.q.shape[2]]]  # infinite behind them
        return [first, rest[0].sum((0, 2))] if kernel == "backward_queries" else [first, *rest]


class BriefClock(Clock):
    """Median ms of a few replays."""

    def brief(self, call: Callable[[], Any], slow_ms: float) -> dict[str, float]:
        if not self.cuda:
            return self.measure(call, False)
        once = self._times(call, 1)[0]
        if once > slow_ms:
            return {"ms": once, "calls": 1}
        graph, count = self._capture(call), max(3, min(50, int(BUDGET_MS / once)))
        return {"ms": statistics.median(self._times(graph.replay, count + 1)[1:]), "calls": count}


class Bench:
    """Does what requests say; keeps the last shape's tensors, and right results of its kernels, for the next."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.clock = device, BriefClock(device)
        self.shape: Shape | None = None
        self.case: Case | None = None
        self.right: dict[str, list[Tensor]] = {}

    def answer(self, request: Request) -> dict[str, Any]:
        """Nothing if it was only to be launched; else ms, calls and difference, or "failed" with the reason."""
        kernel, shape, entry, trusted, slow_ms = request
        if self.case is None or self.shape != shape:
            self.case, self.shape, self.right = None, shape, {}
            release(self.device)
            case = Case(shape, self.device)
            if trusted is not None:
                case.fill()
            self.case = case
        case = self.case
        if trusted is None:
            case.launch(kernel, entry)
            release(self.device)  # waits: what goes wrong on the GPU is raised here
            return {}
        if kernel not in self.right:
            self.right[kernel] = [x.clone() for x in case.result(kernel, trusted)]
        errors = list(map(relative_error, case.result(kernel, entry), self.right[kernel]))
        if not all(error <= WRONG for error in errors):  # NaN neither
            return {"failed": f"wrong: differs from the present entry's result by {max(errors):.2g}"}
        return {**self.clock.brief(lambda: case.launch(kernel, entry), slow_ms), "difference": max(errors)}


def serve(pipe: Connection, device: str) -> None:
    """A process's life: answer requests until the parent ends it or the GPU is wrecked."""
    torch.set_num_threads(1)
    bench = Bench(torch.device(device))
    while True:
        request = pipe.recv()
        try:
            answer, reason = attempt_on_gpu(request.kernel, bench.device, functools.partial(bench.answer, request))
        except PoisonedError as error:
            pipe.send({"failed": f"the GPU answers nothing any more: {error.reason}", "poisoned": True})
            return
        pipe.send(answer if reason is None else {"failed": reason})


class Worker:
    """A process that serves, started anew after it was wrecked, died or was silent."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.process: Any = None

    def ask(self, request: Request) -> None:
        if self.process is None:
            context = multiprocessing.get_context("spawn")  # a forked process could not use the GPU
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs, self.device), daemon=True)
            self.process.start()
            theirs.close()  # else its end would not be noticed
        self.deadline = time.monotonic() + PATIENCE
        with contextlib.suppress(OSError):  # `answer` says why
            self.pipe.send(request)

    def answer(self) -> dict[str, Any]:
        """What it says, or "failed" if it says nothing in time."""
        answer = {"failed": f"no answer for {PATIENCE:g} s"}
        try:
            if self.pipe.poll(max(0.0, self.deadline - time.monotonic())):
                answer = self.pipe.recv()
                if "poisoned" not in answer:
                    return answer
        except (EOFError, OSError):
            self.process.join(5)
            answer = {"failed": f"the process died, exit status {self.process.exitcode}"}
        self.end()
        return answer

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def compile_all(workers: Sequence[Worker], jobs: Sequence[Request], until: float) -> dict[Request, str]:
    """Launch all; why some failed."""
    failed: dict[Request, str] = {}
    pending, busy = deque(jobs), dict[Worker, Request]()
    while (pending or busy) and time.monotonic() < until:
        for worker in workers:
            if pending and worker not in busy:
                busy[worker] = pending.popleft()
                worker.ask(busy[worker])
        ready = wait([worker.pipe for worker in busy], timeout=0.5)
        for worker in [each for each in busy if each.pipe in ready or each.deadline < time.monotonic()]:
            answer, job = worker.answer(), busy.pop(worker)
            if "failed" in answer:
                failed[job] = answer["failed"]
    failed |= dict.fromkeys([*pending, *busy.values()], "no time was left to compile it")
    for worker in busy:
        worker.end()
    return failed


def sweep(
    worker: Worker, kernel: str, shape: Shape, entries: Sequence[Entry], failed: dict[Entry, str], until: float
) -> dict[str, Any]:
    """Times (ms) of a kernel's entries at one shape, the present one first, and why others have none."""
    rows: dict[Entry, dict[str, Any]] = {}

    def take(entry: Entry) -> None:
        quickest = min((row["ms"] for row in rows.values()), default=math.inf)
        worker.ask(Request(kernel, shape, entry, next(iter(rows), entry), SLOW * quickest + SLACK_MS))
        answer = worker.answer()
        if "failed" in answer:
            failed[entry] = answer["failed"]
            rows.pop(entry, None)
            return
        rounds = [*rows.get(entry, {"rounds_ms": []})["rounds_ms"], answer["ms"]]
        rows[entry] = {"entry": entry, **answer, "ms": statistics.mean(rounds), "rounds_ms": rounds}

    pending = deque(entry for entry in entries if entry not in failed)
    while pending and time.monotonic() < until:
        take(pending.popleft())
    # The quickest of many is so by luck too: the first three and the present one are timed once more.
    for entry in dict.fromkeys([entries[0], *sorted(rows, key=lambda entry: rows[entry]["ms"])[:3]]):
        if entry in rows and time.monotonic() < until:
            take(entry)
    reasons = [{"entry": entry, "reason": reason} for entry, reason in failed.items()]
    return {"present": entries[0], "complete": not pending, "times": list(rows.values()), "failed": reasons}


def choose(tables: Sequence[dict[Entry, float]], present: Entry) -> tuple[Entry, float | None]:
    """The entry with the least sum of times relative to each table's best, and how many percent that gains.

    Entries without a time in some table are not chosen; the gain is None if the present one is such.
    """
    everywhere = [entry for entry in tables[0] if all(entry in table for table in tables)]
    sums = {entry: sum(table[entry] / min(table.values()) for table in tables) for entry in everywhere}
    best = min(sums, key=lambda entry: (sums[entry], entry != present), default=present)
    return best, 100 * (1 - sums[best] / sums[present]) if present in sums else None


def tiles_text(entry: Iterable[int | None]) -> str:
    """As flash.HOPPER has it."""
    return f"Tiles({', '.join(str(number) for number in entry if number is not None)})"


def recommend(shapes: dict[str, Any], present: dict[tuple[int, bool], dict[str, Entry]]) -> str:
    """Lines for flash.HOPPER and HOPPER_LONG by the times of `shapes`.

    Above each stands what is there now and the gain in time.
    """
    lines = []
    for title, longer in ((f"up to {flash.LONG:,} keys", False), (f"more than {flash.LONG:,} keys", True)):
        for (dim, far), now in present.items():
            if far != longer:
                continue
            here = {
                name: x
                for name, x in shapes.items()
                if x["shape"][3] == dim and (x["shape"][2] > flash.LONG) == longer
            }
            best, notes = dict(now), []
            for kernel in KERNELS:
                sweeps = {name: x["kernels"][kernel] for name, x in here.items() if x["kernels"].get(kernel)}
                # Where time ran out few entries are left to choose from.
                sweeps = {name: x for name, x in sweeps.items() if x["complete"]} or sweeps
                tables = [{tuple(row["entry"]): row["ms"] for row in x["times"]} for x in sweeps.values()]
                if tables:
                    best[kernel], gain = choose(tables, now[kernel])
                    percent = "unknown" if gain is None else f"{gain:.1f} %"
                    rows = f" by {best[kernel][0]} rows, now {now[kernel][0]}" if kernel == "rotate" else ""
                    notes.append(f"    # {kernel}: gain {percent}{rows} ({', '.join(sweeps)})")
            if notes:
                old, new = (", ".join(tiles_text(x[kernel]) for kernel in TILED) for x in (now, best))
                key = sum(flash.split_head_dim(dim))
                lines += ["", f"    # {title}; now Tiling({old})", *notes, f"    {key}: Tiling({new}),"]
    return "\n".join(lines)


def main() -> int:
    """Read the options, compile, time, write down, print; 1 if a kernel has no time at some shape."""
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help=f"of {', '.join(SHAPES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("--jobs", type=int, default=14, help="processes that compile at once")
    parser.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        help="start nothing new after so many, nor compile after 60 %% of them",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--commit", help="what to record where there is no git repository")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # for the processes to come
    elif not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu tests the plumbing")
    known = SHAPES if options.device == "cuda" else {"tiny": TINY_SWEEP[0]}
    if unknown := set(options.shapes or ()) - set(known):
        parser.error(f"no such shape: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    shapes = {name: known[name] for name in options.shapes or known}
    dims = sorted({shape.dim for shape in shapes.values()})
    tried = {(kernel, dim): candidates(kernel, dim, device) for kernel in options.kernels for dim in dims}
    present = {
        (dim, far): {kernel: present_entry(kernel, dim, device, keys=flash.LONG + far) for kernel in KERNELS}
        for dim in dims
        for far in (False, True)
    }

    def job(kernel: str, dim: int, entry: Entry) -> Request:
        return Request(kernel, Shape(1, 2, 256 if options.device == "cuda" else 8, dim), entry)

    ranked = [
        (rank, -dim, job(kernel, dim, x)) for (kernel, dim), each in tried.items() for rank, x in enumerate(each)
    ]
    # First what all cases are filled with, then the likest entries, of them the widest: they take longest.
    jobs = [job("forward", dim, present_entry("forward", dim, device, torch.float32)) for dim in dims]
    jobs = list(dict.fromkeys([*jobs, *(request for *_, request in sorted(ranked, key=lambda item: item[:2]))]))

    command = command_line().replace("attention.py", "tune_attention.py")
    result: dict[str, Any] = {"device": options.device, "command": command, "seconds": {}, "shapes": {}}

    def save(what: str) -> None:
        result["seconds"][what] = round(time.monotonic() - begun, 1)
        write_text(options.out / "tune.json", json.dumps(strict(result), indent=1) + "\n")
        print(f"{result['seconds'][what]:7.1f} s  {what}", flush=True)

    workers = [Worker(options.device) for _ in range(max(1, min(options.jobs, len(jobs))))]
    try:
        failed = compile_all(workers, jobs, begun + COMPILING * options.seconds)
        timer = next((worker for worker in workers if worker.process is not None), workers[0])
        for worker in workers:
            if worker is not timer:
                worker.end()
        result["provenance"] = versions(options)
        save(f"{len(jobs) - len(failed)} of {len(jobs)} entries compiled")
        for name, shape in shapes.items():
            measured = result["shapes"][name] = {"shape": shape, "kernels": {}}
            for kernel in dict.fromkeys(options.kernels):
                entries = tried[kernel, shape.dim]
                bad = {
                    x: failed[job(kernel, shape.dim, x)] for x in entries if job(kernel, shape.dim, x) in failed
                }
                measured["kernels"][kernel] = sweep(timer, kernel, shape, entries, bad, begun + options.seconds)
            save(name)
    finally:
        for worker in workers:
            worker.end()
    print(recommend(result["shapes"], present))
    found = [(name, kernel, y) for name, x in result["shapes"].items() for kernel, y in x["kernels"].items()]
    missing = [f"NO TIME {kernel} {name}" for name, kernel, y in found if not y["times"]]
    print("\n".join(missing))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
