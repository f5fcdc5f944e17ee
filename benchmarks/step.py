"""Time one optimiser step of PoPE and of its RoPE twin on a GPU: milliseconds, memory, FLOPs utilisation.

    python benchmarks/step.py --preset genome --profile
    python benchmarks/step.py --preset jsb maestro text-124m
    python benchmarks/step.py --tiny --device cpu        # only whether the script runs: its numbers say nothing

A step is what `seqpope train` does with a batch, here of random tokens, all scored: forward of the compiled model
under bf16 autocast, `mean_nats`, zero_grad, backward, clipping at norm 1, AdamW. Each encoding has a process of
its own. Both compile at the same time; then one at a time has the GPU, the other holds only weights and optimiser
state: warm-up first, then two turns each (--rounds), alternating, every turn warmed up anew.

FLOPs of a step, from B sequences of L tokens, a width of C and a vocabulary of V:
    matrices   6 x (weights of the blocks' matrices + C V of the output projection) x B L
    attention  2 B (L^2 / 2) C for each product of each layer: half of it, for the causal mask, as is usual
"Model FLOPs" count 6 products a layer, 2 forward and 4 backward, for both encodings alike: useful work, by which
they can be compared. "Hardware FLOPs" count what a fused kernel has to do, which computes the scores once more in
its backward pass: 7 products as wide as a head for RoPE, 11 for PoPE, whose scores are twice as wide (kernels that
recompute more get no credit for it). Utilisation (MFU, HFU) is these over the step's time, against the datasheet's
989 TFLOP/s (H100 and H200 SXM, bf16, dense) and against a bf16 product of 8192^3 timed in the same run.

Results: step.json and step.md in --out, with --profile step-profile.txt too, written anew after every turn: a run
cut short leaves what it had. What fails (memory, compilation, no answer) is recorded with its reason and stops
nothing else; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from seqpope.config import OptimizerConfig
from seqpope.files import write_text
from seqpope.model.config import ModelConfig
from seqpope.provenance import choose_device, provenance

ROOT = Path(__file__).resolve().parent.parent
PRODUCTS = {"pope": 11, "rope": 7}  # matrix products of a layer's attention, each as wide as a head
GOAL = 1.05  # PoPE over RoPE, of time and of memory
DATASHEET = 989e12  # FLOP/s
WARM_UP, TURN_WARM_UP = 5, 3  # steps: the first ones compile and tune, those of a turn refill the allocator


@dataclass(frozen=True)
class Preset:
    """A model, its optimiser and its batch, batch x length tokens."""

    model: ModelConfig
    optimizer: OptimizerConfig
    vocabulary: int
    batch: int
    length: int


def paper(
    width: int, layers: int, heads: int, dropout: float, vocabulary: int, batch: int, length: int, **rates: Any
) -> Preset:
    """A column of the paper's table (arXiv 2509.10534, appendix)."""
    model = ModelConfig(width, layers, heads, dropout=dropout, delta_init="uniform" if dropout else "zero")
    return Preset(model, OptimizerConfig(**rates), vocabulary, batch, length)


PRESETS = {
    "genome": paper(1024, 16, 16, 0.1, 4107, 64, 1000, learning_rate=2.5e-4, beta2=0.999),
    "maestro": paper(384, 6, 8, 0.1, 328, 16, 2048, learning_rate=6e-4, beta2=0.99),
    "jsb": paper(256, 6, 8, 0.2, 90, 4, 2048, learning_rate=6e-4, beta2=0.99),
    "text-124m": paper(768, 12, 12, 0.0, 50257, 64, 1024, learning_rate=6e-4, beta2=0.95),
}
TINY = paper(32, 2, 4, 0.1, 37, 2, 48, learning_rate=6e-4)


def count_flops(preset: Preset) -> dict[str, float]:
    """FLOPs of a step as this file's head defines them: "model", and the hardware's by encoding."""
    model, tokens = preset.model, preset.batch * preset.length
    per_layer = 4 * model.width**2 + 2 * model.width * int(model.mlp_ratio * model.width)
    matrices = 6.0 * (model.layers * per_layer + model.width * preset.vocabulary) * tokens
    product = model.layers * 2 * tokens * (preset.length / 2) * model.width
    return {"model": matrices + 6 * product} | {p: matrices + n * product for p, n in PRODUCTS.items()}


class Trial:
    """One encoding's model, optimiser and batch, in a process of its own; who holds `lock` may use the GPU."""

    def __init__(self, position: str, preset: Preset, options: argparse.Namespace, lock: Path) -> None:
        # Here, not at the head: they take seconds, which the two processes then spend at the same time.
        from seqpope.model.transformer import Transformer
        from seqpope.nll import mean_nats
        from seqpope.training import make_optimizer

        self.options, self.cuda, self.loss = options, options.device == "cuda", mean_nats
        self.lock = lock.open("w")
        if not self.cuda:
            torch.set_num_threads(1)  # two processes of many threads each only wait for each other
        torch.manual_seed(0)
        with torch.device(options.device):
            self.model = Transformer(preset.vocabulary, position, preset.model)
            shape = (preset.batch, preset.length)
            self.ids, self.targets = (torch.randint(preset.vocabulary, shape) for _ in range(2))
            self.scored = torch.ones(shape, dtype=torch.bool)
        self.forward = torch.compile(self.model) if options.compile else self.model
        self.clip, self.optimizer = preset.optimizer.gradient_clip, make_optimizer(self.model, preset.optimizer)

    def step(self) -> torch.Tensor:
        """One optimiser step, in Lightning's order and with its autocast; the loss in nats."""
        if self.options.compile and not self.options.static:
            torch._dynamo.mark_dynamic(self.ids, 1)  # as training does
        with torch.autocast(self.options.device, torch.bfloat16, cache_enabled=False):
            loss = self.loss(self.forward(self.ids), self.targets, self.scored)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.detach()

    def warm(self) -> dict[str, float]:
        """Compile, wait for the GPU, run the first steps; seconds of the first and the last of these."""
        marks = [time.perf_counter()]

        def take_gpu(*_: Any) -> None:
            if len(marks) == 1:
                marks.append(time.perf_counter())
                fcntl.flock(self.lock, fcntl.LOCK_EX)  # a process that dies lets go of it
                marks.append(time.perf_counter())

        # Between compiling, the CPU's work, and running what was compiled. With a dynamic length the backward pass
        # is compiled before the forward pass runs, with a static one only if told so.
        hooked = False
        if self.options.compile:
            with contextlib.suppress(AttributeError, ImportError):  # another torch: compile with the GPU in hand
                import torch._functorch.config

                torch._functorch.config.force_non_lazy_backward_lowering = True
                torch._dynamo.callback_handler.register_end_callback(take_gpu)
                hooked = True
        if not hooked:
            take_gpu()
        for _ in range(WARM_UP):
            self.step()
            take_gpu()  # nothing, unless the hook never came
        self.intervals([])
        return {"compile_seconds": marks[1] - marks[0], "warm_up_seconds": time.perf_counter() - marks[2]}

    def turn(self) -> dict[str, float]:
        """Milliseconds a step (median, lowest, highest), peak bytes of memory over whole steps, the last loss."""
        for _ in range(TURN_WARM_UP):
            loss = self.step()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        marks = [self.mark()]
        for _ in range(self.options.steps):
            loss = self.step()
            marks.append(self.mark())
        times = self.intervals(marks)
        if not torch.isfinite(loss):
            raise ArithmeticError(f"the loss is {float(loss)}: the time of a step that goes wrong says nothing")
        result = {"median": statistics.median(times), "lowest": min(times), "highest": max(times)}
        if self.cuda:
            result |= {"peak": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        # More than one graph: the model was broken up or compiled again.
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] if self.options.compile else 0
        return result | {"loss": float(loss), "graphs": graphs}

    def profile(self) -> dict[str, Any]:
        """The kernels that take most time of one step (on a CPU operators): name, calls, ms; and ms of all."""
        from torch.profiler import ProfilerActivity, profile

        self.step()
        self.intervals([])
        with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.cuda) as profiler:
            self.step()
            self.intervals([])
        rows = []
        for event in profiler.key_averages():
            on_cpu = event.device_type == torch.autograd.DeviceType.CPU
            if on_cpu != self.cuda and not getattr(event, "is_user_annotation", False):
                microseconds = event.self_device_time_total if self.cuda else event.self_cpu_time_total
                rows.append({"name": event.key[:120], "calls": event.count, "ms": microseconds / 1000})
        rows.sort(key=lambda row: -row["ms"])
        return {"all_ms": sum(row["ms"] for row in rows), "kernels": rows[:25]}

    def ceiling(self) -> float:
        """FLOP/s of bf16 products of random 8192 x 8192 matrices (64 x 64 on a CPU), by the median of 30."""
        size = 8192 if self.cuda else 64
        a, b = (torch.randn(size, size, device=self.options.device).bfloat16() for _ in range(2))
        marks = [self.mark()]
        for _ in range(40):
            torch.mm(a, b)
            marks.append(self.mark())
        return 2000 * size**3 / statistics.median(self.intervals(marks)[10:])

    def mark(self) -> Any:
        """A point in time, of the GPU's stream where there is one."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def intervals(self, marks: list[Any]) -> list[float]:
        """Milliseconds between marks, once the GPU has passed them all."""
        if self.cuda:
            torch.cuda.synchronize()
        return [a.elapsed_time(b) if self.cuda else 1000 * (b - a) for a, b in itertools.pairwise(marks)]

    def release(self) -> None:
        """Keep weights and optimiser state alone, so that the other encoding has the GPU and its memory."""
        self.optimizer.zero_grad()
        gc.collect()
        if self.cuda:
            with contextlib.suppress(RuntimeError):  # after a kernel's fault nothing works: that one is reported
                torch.cuda.empty_cache()
        fcntl.flock(self.lock, fcntl.LOCK_UN)


def serve(connection: Connection, position: str, preset: Preset, options: argparse.Namespace, lock: Path) -> None:
    """Do what the parent says, word by word: answer (result, None) or (None, failure), until it says stop."""
    trial: Trial | None = None
    answer: tuple[Any, dict[str, Any] | None]
    while (word := connection.recv()) != "stop":
        try:
            trial = trial or Trial(position, preset, options, lock)
            answer = (getattr(trial, word)(), None)
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(f"{word}: {type(error).__name__}: {error}".replace(str(ROOT), ".").split())
            answer = (None, {"reason": reason[:600], "memory": isinstance(error, torch.OutOfMemoryError)})
        if trial is not None:
            trial.release()  # out here, where no exception holds the step's frames any more
        connection.send(answer)


class Worker:
    """The parent's end of one encoding's process; `failure` says what went wrong last, None if nothing."""

    def __init__(self, position: str, preset: Preset, options: argparse.Namespace, lock: Path) -> None:
        self.position, self.timeout = position, options.timeout
        self.failure: dict[str, Any] | None = None
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, position, preset, options, lock))
        self.process.start()
        theirs.close()  # so that a process that dies is an end of file at ours

    def say(self, word: str) -> None:
        """Send a word. That a process is gone is noticed where its answer is read."""
        with contextlib.suppress(OSError):
            self.connection.send(word)

    def result(self) -> Any:
        """What the last word gave; None where `failure` then says why. A process that does not answer is ended."""
        try:
            if self.connection.poll(self.timeout):
                result, self.failure = self.connection.recv()
                return result
            reason = f"no answer for {self.timeout:g} s"
            self.process.kill()
            self.process.join()
        except (EOFError, OSError):
            reason = "the process died (of the host's memory?)"
        self.failure = {"reason": reason, "memory": False}
        return None

    def do(self, word: str) -> Any:
        """`say`, then `result`."""
        self.say(word)
        return self.result()

    def stop(self) -> None:
        """End the process, so that its memory is free."""
        self.say("stop")
        self.process.join(20)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def measure(
    name: str, preset: Preset, options: argparse.Namespace, document: dict[str, Any], workers: list[Worker]
) -> None:
    """Both encodings of one preset, into the document, which is saved after every turn."""
    found = document["presets"][name] = {"preset": asdict(preset), "flops": count_flops(preset), "encodings": {}}
    for worker in workers:
        worker.say("warm")
    warmed = {worker.position: worker.result() for worker in workers}
    well = [worker for worker in workers if not worker.failure]

    def turn(worker: Worker) -> None:
        result = worker.do("turn")
        if result is not None:
            fresh = {"rounds": [], **(warmed[worker.position] or {})}
            found["encodings"].setdefault(worker.position, fresh)["rounds"].append(result)
            summarise(found, document)
            save(document, options.out)

    if well and not document["matmul_flops"]:
        document["matmul_flops"] = well[0].do("ceiling")
        if well[0].failure:
            document["failures"].append({"preset": name, "position": well[0].position, **well[0].failure})
            well[0].failure = None  # its turns may go well all the same
    for _ in range(options.rounds):
        for worker in [worker for worker in well if not worker.failure]:
            turn(worker)
    # Who found too little memory beside the other comes last, when the other has ended.
    for worker in sorted(workers, key=lambda w: bool(w.failure)):
        if worker.failure and worker.failure["memory"]:
            for _ in range(options.rounds):
                turn(worker)
        if options.profile and not worker.failure and (profile := worker.do("profile")):
            found["encodings"][worker.position]["profile"] = profile
        if worker.failure:
            document["failures"].append({"preset": name, "position": worker.position, **worker.failure})
        worker.stop()
    save(document, options.out)


def summarise(found: dict[str, Any], document: dict[str, Any]) -> None:
    """From an encoding's turns its time, memory and utilisation, and PoPE over RoPE."""
    tokens = found["preset"]["batch"] * found["preset"]["length"]
    most = {"datasheet": document["datasheet_flops"], "matmul": document["matmul_flops"]}
    for position, entry in found["encodings"].items():
        ms = statistics.median(one["median"] for one in entry["rounds"])
        entry |= {"ms_per_step": ms, "tokens_per_second": tokens / ms * 1000}
        entry["peak_gib"] = max(one.get("peak", 0) for one in entry["rounds"]) / 2**30
        for kind, flops in (("mfu", found["flops"]["model"]), ("hfu", found["flops"][position])):
            entry[kind] = {against: flops / ms * 1000 / of if of else None for against, of in most.items()}
    if len(found["encodings"]) == len(PRODUCTS):
        pope, rope = (found["encodings"][position] for position in PRODUCTS)
        found["pope_over_rope"] = {
            "time": pope["ms_per_step"] / rope["ms_per_step"],
            "memory": pope["peak_gib"] / rope["peak_gib"] if rope["peak_gib"] else None,
            "goal": GOAL,
        }


def markdown(document: dict[str, Any]) -> str:
    """The document as a small table."""
    lines = [
        f"# One optimiser step, {document['device']}",
        "",
        f"Commit {document['commit']}, {document['date']}, torch {document['versions'].get('torch')}. MFU and HFU",
        f"(see `benchmarks/step.py`) of the datasheet's {DATASHEET / 1e12:.0f} TFLOP/s / of a measured product's",
        f"{(document['matmul_flops'] or 0) / 1e12:.0f} TFLOP/s.",
        *([] if document["claims"] else ["", "**A trial of the script: these numbers say nothing.**"]),
        "",
        "| preset | encoding | ms/step (turns) | tokens/s | peak GiB | MFU | HFU |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name, found in document["presets"].items():
        for position, entry in found["encodings"].items():
            cells = [name, position, f"{entry['ms_per_step']:.2f}", f"{entry['tokens_per_second']:,.0f}"]
            cells[2] += " (" + ", ".join(f"{one['median']:.2f}" for one in entry["rounds"]) + ")"
            cells.append(f"{entry['peak_gib']:.2f}")
            for kind in ("mfu", "hfu"):
                cells.append(" / ".join("-" if x is None else f"{100 * x:.1f}%" for x in entry[kind].values()))
            lines.append("| " + " | ".join(cells) + " |")
        if ratio := found.get("pope_over_rope"):
            memory = f"memory {ratio['memory']:.3f}, " if ratio["memory"] else ""
            notes.append(f"- {name}, PoPE / RoPE: time {ratio['time']:.3f}, {memory}goal {GOAL}")
    notes += [f"- {one['preset']}, {one['position']} failed: {one['reason']}" for one in document["failures"]]
    return "\n".join([*lines, "", *notes]) + "\n"


def save(document: dict[str, Any], out: Path) -> None:
    """Write step.json, step.md and, where there are profiles, step-profile.txt."""
    write_text(out / "step.json", json.dumps(document, indent=1) + "\n")
    write_text(out / "step.md", markdown(document))
    text = []
    for name, found in document["presets"].items():
        for position, entry in found["encodings"].items():
            if profile := entry.get("profile"):
                text.append(f"{name} {position}: {profile['all_ms']:.2f} ms in all kernels of a step")
                text += [f"{row['ms']:10.3f} ms {row['calls']:6d} x  {row['name']}" for row in profile["kernels"]]
    if text:
        write_text(out / "step-profile.txt", "\n".join(text) + "\n")


def main(words: list[str] | None = None) -> None:
    """Read the options, measure preset by preset, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=["genome"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    parser.add_argument("--commit", help="where there is no git repository")
    parser.add_argument("--steps", type=int, default=20, help="steps in a turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each encoding")
    parser.add_argument("--profile", action="store_true", help="the 25 kernels that take most time of a step")
    parser.add_argument("--attention-dropout", type=float, default=0.0, metavar="P")
    parser.add_argument("--batch-size", type=int, metavar="B", help="instead of the preset's")
    parser.add_argument("--dynamic", action="store_false", dest="static", help="length as in training (default)")
    parser.add_argument("--static", action="store_true", help="compile for this very length")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script: claims nothing")
    parser.add_argument("--timeout", type=float, default=240, help="seconds after which a silent process is ended")
    parser.set_defaults(static=False)
    options = parser.parse_args(words)
    if options.device == "cpu" and not options.tiny:
        parser.error("on a CPU only --tiny runs: the presets are for a GPU")
    choose_device(options.device)
    options.compile = options.device == "cuda" if options.compile is None else options.compile
    document = provenance(options.device)
    document["commit"] = options.commit or document["commit"]
    known = any(name in document["device"] for name in ("H100", "H200"))
    document |= {
        "cuda": torch.version.cuda,
        "claims": options.device == "cuda" and not options.tiny,
        "settings": {name: value for name, value in vars(options).items() if name not in ("out", "commit")},
        "datasheet_flops": DATASHEET if known else None,
        "matmul_flops": None,
        "presets": {},
        "failures": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, preset in ({"tiny": TINY} if options.tiny else {n: PRESETS[n] for n in options.preset}).items():
            model = replace(preset.model, attention_dropout=options.attention_dropout)
            preset = replace(preset, model=model, batch=options.batch_size or preset.batch)
            with contextlib.ExitStack() as stack:
                workers = [Worker(position, preset, options, Path(folder) / "gpu") for position in PRODUCTS]
                for worker in workers:
                    stack.callback(worker.stop)
                measure(name, preset, options, document, workers)
    print((options.out / "step.md").read_text(), flush=True)
    raise SystemExit(1 if document["failures"] else 0)


if __name__ == "__main__":
    main()
