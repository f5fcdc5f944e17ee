"""Time PoPE's Triton attention against RoPE, against PoPE by torch's own attention and against PoPE-pytorch.

    python benchmarks/attention.py                          all shapes, a sweep over lengths, decoding
    python benchmarks/attention.py --quick --no-sweep       RoPE, Cartesian with cuDNN and ours, one round
    python benchmarks/attention.py --render-only            attention.md and .png from attention.json
    python benchmarks/attention.py --device cpu             tiny shapes: tests the plumbing, says nothing of speed

Every shape is a process of its own: up to --jobs of them check results, compile and warm up at once, then they are
timed one at a time while all others wait. A shape whose gate fails (ours further from fp64 than 1.2 times PoPE by
torch's attention) is not timed. A contender that raises is "not run" with its reason and stops nothing.

The result lands in --out: attention.json with every number, written anew after every shape, attention.md and
attention.png. The exit status is 1 if a gate failed or a worker died. Contenders and the gate are in
attention_contenders.py. Where seqpope is not installed set PYTHONPATH to the checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attention_report as report
import torch
from attention_contenders import (
    BASE,
    BUILDERS,
    MODES,
    OURS,
    QUICK,
    Contender,
    Setting,
    Shape,
    attempt,
    build_measures,
    call_of,
    exact_decoding,
    gate,
    held_to,
    judge,
    make_inputs,
    relative_error,
)
from attention_timing import (
    SLOW_MS,
    Calls,
    Clock,
    PoisonedError,
    attempt_on_gpu,
    interleave,
    kernel_times,
    peak_memory,
    release,
)
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from seqpope.files import write_text
from seqpope.kernels import pope_attention, rope_attention
from seqpope.provenance import provenance

SHAPES = {
    "JSB": Shape(4, 8, 2048, 32),
    "MAESTRO": Shape(16, 8, 2048, 48),
    "genome": Shape(64, 16, 1000, 64),
    "text-124M": Shape(32, 12, 1024, 64),
    "text-774M": Shape(16, 20, 1024, 64),
    "long": Shape(1, 16, 16384, 64),
    "wide": Shape(8, 16, 2048, 128),
    "wide-long": Shape(8, 16, 8192, 128),
}
SWEEP = [Shape(16384 // length, 16, length, 64) for length in (512, 1024, 2048, 4096, 8192, 16384)]
DECODE = [(1, 1024), (1, 16384), (1, 131072), (1, 1048576), (16, 1024), (16, 16384), (16, 131072)]  # batch, keys
DECODE_HEADS, DECODE_DIM = 16, 64
# In Triton's interpreter: whether everything runs, not how fast.
TINY_SHAPES = {"tiny": Shape(1, 2, 40, 16)}
TINY_SWEEP = [Shape(1, 1, 24, 16)]
TINY_DECODE = [(1, 32)]

BORN = time.monotonic()


# ---------------------------------------------------------------------------------------------------------------
# Jobs, each a worker's: preparation by many at once, then the timed part by one
# ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Job:
    """What one worker does."""

    name: str
    kind: str  # shape, sweep, decode or ceilings
    device: str
    quick: bool
    patience: float  # seconds until the parent gives it up
    shape: list[int] = dataclasses.field(default_factory=list)
    without: dict[str, str] = dataclasses.field(default_factory=dict)  # contenders left out and why

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32  # the interpreter's bf16 dot is wrong

    @property
    def rounds(self) -> int:
        return 1 if self.quick or self.device == "cpu" else 2


def prepare_shape(job: Job) -> Callable[[], dict[str, Any]]:
    """Gate, compile and warm up; what is returned takes the times."""
    device, shape = torch.device(job.device), Shape(*job.shape)
    modes = MODES if job.kind == "shape" else MODES[1:]
    result: dict[str, Any] = {"shape": list(shape), "times": {}, "not_run": dict(job.without)}
    result |= {"memory": {}, "difference": {}, "warm_up_s": {}, "kernels": None}
    small = Shape(1, min(2, shape.heads), shape.length, shape.dim)
    eager = Setting(small, device, compiled=False)
    say("gate")
    result["gate"] = gate(BUILDERS[OURS](eager), build_measures(eager), make_inputs(small, device, job.dtype))
    if not result["gate"]["passed"]:
        return lambda: result

    release(device)
    inputs = make_inputs(shape, device, job.dtype)
    setting = Setting(shape, device, compiled=device.type == "cuda")
    built: dict[str, Contender] = {}
    reference: dict[str, list[Tensor]] = {}

    def warm_up(name: str) -> None:
        contender = BUILDERS[name](setting)
        got: list[Tensor] = []
        with held_to(contender.backend):
            for mode in modes:
                call = call_of(name, contender, inputs, mode)
                call()
                got = call()
            result["memory"][name] = peak_memory(call, inputs)
        built[name] = contender
        encoding = "rope" if name.startswith("rope") else "pope"
        if name == OURS:
            reference["pope"] = got
        elif encoding == "rope" and "rope" not in reference:
            plain = Contender(lambda q, k, v, _: rope_attention(q, k, v, base=BASE))
            reference["rope"] = call_of(name, plain, inputs, MODES[1])()
        if encoding in reference:
            result["difference"][name] = max(map(relative_error, got, reference[encoding]))

    for name in QUICK if job.quick else BUILDERS:
        if name in job.without:
            continue
        begun = time.monotonic()
        if begun - BORN > job.patience * 0.6:  # better without the last ones than killed with all
            result["not_run"][name] = "no time was left to warm it up: raise --patience"
            continue
        say(name)
        _, reason = attempt_on_gpu(name, device, functools.partial(warm_up, name))
        if reason is not None:
            result["not_run"][name] = reason
        result["warm_up_s"][name] = round(time.monotonic() - begun, 1)
    reference.clear()
    release(device)

    def measure() -> dict[str, Any]:
        clock = Clock(device)
        try:
            for mode in modes:
                slow: set[str] = set()
                for graph in (False, True) if device.type == "cuda" else (False,):
                    calls: Calls = {
                        name: (contender.backend, call_of(name, contender, inputs, mode))
                        for name, contender in built.items()
                        if name not in slow
                    }
                    where = f"{mode}/{'graph' if graph else 'eager'}"
                    times, not_run = interleave(calls, clock, device, job.rounds, graph)
                    result["times"][where] = times
                    result["not_run"] |= {f"{name} {where}": reason for name, reason in not_run.items()}
                    slow = {name for name, each in times.items() if each["ms"] > 2 * SLOW_MS}
            if job.kind == "shape" and not job.quick and device.type == "cuda" and OURS in built:
                call = call_of(OURS, built[OURS], inputs, MODES[1])
                result["kernels"], reason = attempt_on_gpu(OURS, device, lambda: kernel_times(call))
                if reason is not None:
                    result["not_run"]["breakdown by kernel"] = reason
        except PoisonedError as error:  # what was timed before stays
            result["not_run"]["everything after"] = str(error)
        return result

    return measure


def prepare_decode(job: Job) -> Callable[[], dict[str, Any]]:
    """One new query against caches of several lengths."""
    device = torch.device(job.device)
    cases, heads = (DECODE, DECODE_HEADS) if device.type == "cuda" else (TINY_DECODE, 2)
    for batch in sorted({batch for batch, _ in cases}):
        say(f"batch {batch}")
        decode_case(batch, cases[0][1], heads, job, None)

    def measure() -> dict[str, Any]:
        clock = Clock(device)
        rows: list[dict[str, Any]] = []
        result = {"heads": heads, "dim": DECODE_DIM, "rows": rows, "not_run": None}
        for batch, keys in cases:
            say(f"batch {batch}, {keys} keys")
            try:
                action = functools.partial(decode_case, batch, keys, heads, job, clock)
                row, reason = attempt_on_gpu(OURS, device, action)
            except PoisonedError as error:
                return result | {"not_run": f"from batch {batch}, {keys} keys on: {error}"}
            rows.append(row if reason is None else {"batch": batch, "keys": keys, "not_run": {"case": reason}})
            release(device)
        return result

    return measure


@torch.no_grad()
def decode_case(batch: int, keys: int, heads: int, job: Job, clock: Clock | None) -> dict[str, Any]:
    """Gate and time one cache (B, H, keys, D); RoPE's keys count as rotated: its step is SDPA alone.

    Without a clock everything is called once, to compile it.
    """
    device = torch.device(job.device)
    generator = torch.Generator(device).manual_seed(keys + batch)
    options: dict[str, Any] = {"device": device, "generator": generator}
    q = torch.randn(batch, heads, 1, DECODE_DIM, dtype=job.dtype, **options)
    k, v = (torch.randn(batch, heads, keys, DECODE_DIM, dtype=job.dtype, **options) for _ in range(2))
    delta = -2 * math.pi * torch.rand(heads, DECODE_DIM, **options)
    decode = functools.partial(pope_attention, base=BASE, query_offset=keys - 1)
    backends = {
        "rope-flash": SDPBackend.FLASH_ATTENTION,
        "rope-cudnn": SDPBackend.CUDNN_ATTENTION,
        "rope-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "rope-math": SDPBackend.MATH,
    }
    calls: Calls = {OURS: (None, lambda: decode(q, k, v, delta, backend="triton"))}
    attend = functools.partial(F.scaled_dot_product_attention, q, k, v)
    calls |= {name: (backend, attend) for name, backend in backends.items()}
    if clock is None:
        for name, (backend, call) in calls.items():
            with held_to(backend):
                attempt_on_gpu(name, device, call)
        return {}

    row: dict[str, Any] = {"batch": batch, "keys": keys, "cache_bytes": 2 * k.numel() * k.element_size()}
    out = decode(q, k, v, delta, backend="triton")
    exact, got, cartesian = [], [], []
    for b in sorted({0, batch - 1}):
        for h in range(heads):
            exact.append(exact_decoding(q[b, h, 0], k[b, h], v[b, h], delta[h], keys - 1))
            got.append(out[b, h, 0])
            one = (slice(b, b + 1), slice(h, h + 1))
            cartesian.append(decode(q[one], k[one], v[one], delta[h : h + 1], backend="cartesian")[0, 0, 0])
    stacked = torch.stack(exact)
    ours = {"out": relative_error(torch.stack(got), stacked)}
    measure = {"out": relative_error(torch.stack(cartesian), stacked)}
    row["gate"] = {"passed": judge(ours, measure), "ours": ours, "cartesian": measure, "measure": "cartesian"}
    if row["gate"]["passed"]:
        row["times"], row["not_run"] = interleave(calls, clock, device, job.rounds, device.type == "cuda")
    return row


def prepare_ceilings(job: Job) -> Callable[[], dict[str, Any]]:
    """What the machine can do: TFLOP/s of a large bf16 matrix product, GB/s of a copy, read and written."""
    device = torch.device(job.device)
    size, length = (8192, 1 << 30) if device.type == "cuda" else (64, 1 << 16)
    a, b = (torch.randn(size, size, device=device, dtype=job.dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.randint(-128, 127, (length,), device=device, dtype=torch.int8)
    target = torch.empty_like(source)

    def measure() -> dict[str, Any]:
        clock = Clock(device)
        multiply = clock.measure(lambda: torch.mm(a, b, out=product), False)["ms"]
        copy = clock.measure(lambda: target.copy_(source), False)["ms"]
        return {"matmul_tflops": 2 * size**3 / multiply / 1e9, "copy_gbs": 2 * length / copy / 1e6}

    clock = Clock(device)
    clock.measure(lambda: torch.mm(a, b, out=product), False)
    return measure


PREPARE: dict[str, Callable[[Job], Callable[[], dict[str, Any]]]] = {
    "shape": prepare_shape,
    "sweep": prepare_shape,
    "decode": prepare_decode,
    "ceilings": prepare_ceilings,
}


def say(words: str) -> None:
    """A line for whoever reads why a worker died."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def work(job: Job) -> None:
    """A worker's life: prepare, report "ready", wait for a line, take the times, report them."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the messages

    def send(event: str, **content: Any) -> None:
        channel.write(json.dumps({"event": event, **content}) + "\n")
        channel.flush()

    torch.set_num_threads(1)
    try:
        measure = PREPARE[job.kind](job)
        send("ready")
        if sys.stdin.readline():
            send("done", result=measure())
    except PoisonedError as error:
        send("poisoned", contender=error.contender, reason=error.reason)
    except Exception as error:
        send("failed", reason=" ".join(f"{type(error).__name__}: {error}".split())[:600])
        raise
    finally:
        channel.close()


# ---------------------------------------------------------------------------------------------------------------
# The parent
# ---------------------------------------------------------------------------------------------------------------


class Worker:
    """A process that runs one job, and what it says."""

    def __init__(self, job: Job, environment: dict[str, str]) -> None:
        self.job = job
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(dataclasses.asdict(job))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        self.messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self.messages.put(json.loads(line))
        self.messages.put(None)

    def wait(self, seconds: float) -> dict[str, Any]:
        """Its next message, or a "failed" one with the tail of its log."""
        try:
            message = self.messages.get(timeout=max(0.1, seconds))
        except queue.Empty:
            return {"event": "failed", "reason": f"no answer in time; its log ends: {self._tail()}"}
        if message is None:
            return {"event": "failed", "reason": f"exit status {self.process.wait()}: {self._tail()}"}
        return message

    def _tail(self) -> str:
        size = os.fstat(self.log.fileno()).st_size
        # pread: the file's position is shared with the process that writes to it
        return os.pread(self.log.fileno(), 2000, max(0, size - 2000)).decode(errors="replace").strip()

    def start_timing(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # a dead one is noticed by `wait`
            self.process.stdin.write("time\n")
            self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def run_jobs(jobs: list[Job], options: argparse.Namespace) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Each job with its last message: "done" with a result, or "failed" with a reason."""
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    if options.device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    if options.commit:
        environment["SEQPOPE_COMMIT"] = options.commit
    pending = deque(jobs)
    while pending:
        batch = [pending.popleft() for _ in range(min(options.jobs, len(pending)))]
        workers: list[Worker] = []
        try:
            workers += [Worker(job, environment) for job in batch]
            deadline = time.monotonic() + options.patience
            ready = []
            for worker in workers:
                message = worker.wait(deadline - time.monotonic())
                if message["event"] == "ready":
                    ready.append(worker)
                    continue
                worker.end()
                broken = message.get("contender", OURS)
                if message["event"] == "poisoned" and broken not in (OURS, *worker.job.without):
                    without = worker.job.without | {broken: message["reason"]}
                    pending.append(dataclasses.replace(worker.job, without=without))
                else:
                    yield worker.job, message
            for worker in ready:
                worker.start_timing()
                yield worker.job, worker.wait(options.patience)
                worker.end()
        finally:
            for worker in workers:
                if not worker.log.closed:
                    worker.end()


def list_jobs(options: argparse.Namespace) -> list[Job]:
    """What was asked for, the slowest to prepare first."""
    shapes, sweep = (SHAPES, SWEEP) if options.device == "cuda" else (TINY_SHAPES, TINY_SWEEP)
    unknown = set(options.shapes or ()) - set(shapes)
    if unknown:
        raise SystemExit(f"no such shape: {', '.join(sorted(unknown))}; there are {', '.join(shapes)}")
    common: dict[str, Any] = {"device": options.device, "quick": options.quick, "patience": options.patience}
    jobs = [Job("ceilings", "ceilings", **common)]
    jobs += [Job(name, "shape", **common, shape=list(shapes[name])) for name in options.shapes or shapes]
    if not options.no_sweep:
        jobs += [Job(f"length {shape.length}", "sweep", **common, shape=list(shape)) for shape in sweep]
    if not options.no_decode:
        jobs.append(Job("decode", "decode", **common))
    return jobs


def versions(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers were made with."""
    made = provenance(options.device)
    if options.commit:
        made["commit"] = options.commit
    if options.device == "cuda":
        made["versions"] |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        driver, _ = attempt(
            lambda: subprocess.run(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                capture_output=True, text=True, timeout=20, check=True,
            ).stdout.split()[0]
        )  # fmt: skip
        made["versions"]["driver"] = driver
    return made


def failures(result: dict[str, Any]) -> list[str]:
    """Gates not passed and jobs that failed."""
    gates = {name: each["gate"] for part in ("shapes", "sweep") for name, each in result[part].items()}
    for row in result["decode"].get("rows", []):
        gates[f"decode {row['batch']} x {row['keys']}"] = row.get("gate", {"passed": False})
    return [f"{name}: gate" for name, gate in gates.items() if not gate["passed"]] + list(result["failed"])


def strict(value: Any) -> Any:
    """The same without numbers that JSON has no word for: NaN and infinity become None."""
    if isinstance(value, dict):
        return {key: strict(each) for key, each in value.items()}
    if isinstance(value, list):
        return [strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def command_line() -> str:
    """What was typed, without the folder of the results, which is of this machine alone."""
    words = [word for word in sys.argv[1:] if not word.startswith("--out=")]
    if "--out" in words:
        at = words.index("--out")
        words = words[:at] + words[at + 2 :]
    return " ".join(["python benchmarks/attention.py", *words])


def main() -> int:
    """Read the options, run what is asked for, write it down; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help=f"of {', '.join(SHAPES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("--jobs", type=int, default=8, help="workers that warm up at once")
    parser.add_argument("--patience", type=float, default=240, help="seconds a batch may warm up, or one be timed")
    parser.add_argument("--no-sweep", action="store_true")
    parser.add_argument("--no-decode", action="store_true")
    parser.add_argument("--quick", action="store_true", help="ours, RoPE and Cartesian with cuDNN, one round")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--commit", help="what to record where there is no git repository")
    parser.add_argument("--render-only", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(Job(**json.loads(options.worker)))
        return 0
    file = options.out / "attention.json"
    if options.render_only:
        report.write(json.loads(file.read_text()), options.out)
        return 0

    result: dict[str, Any] = {"device": options.device, "quick": options.quick}
    result |= {"command": command_line(), "seconds": {}}
    result |= {"ceilings": {}, "shapes": {}, "sweep": {}, "decode": {}, "failed": {}}
    begun = time.monotonic()
    for job, message in run_jobs(list_jobs(options), options):
        if "provenance" not in result:  # not before: the workers have been warming up meanwhile
            result["provenance"] = versions(options)
        if message["event"] != "done":
            result["failed"][job.name] = message.get("reason", message["event"])
        elif job.kind in ("shape", "sweep"):
            result["shapes" if job.kind == "shape" else "sweep"][job.name] = message["result"]
        else:
            result[job.kind] = message["result"]
        result["seconds"][job.name] = round(time.monotonic() - begun, 1)
        write_text(file, json.dumps(strict(result), indent=1) + "\n")
        print(f"{result['seconds'][job.name]:7.1f} s  {job.name}: {message['event']}", flush=True)
    text, reason = attempt(lambda: report.write(strict(result), options.out))
    print(text or f"no report: {reason}; mend the cause, then use --render-only")
    failed = failures(result)
    for name in failed:
        print(f"FAILED {name} {result['failed'].get(name, '')}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
