"""The verb `score` for regions: cut into units, score each once, by as many processes as there are, and merge.

A unit is what is wanted of some stretches of a contig's fixed coordinates. Its numbers go into a file of their
own in `.OUT.parts/`, whose name has the unit's number and the request's fingerprint: what is there is not computed
again after an interruption, and never taken for an answer to another request. At the end one process merges all
in order into OUT and removes them.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
import logging
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from seqpope.checkpoint import CheckpointInfo, find_checkpoint, load_checkpoint, named, read_info
from seqpope.domains.genome.store import identity, open_genome
from seqpope.errors import SeqpopeError
from seqpope.files import sha256_of, write_bytes, write_text
from seqpope.processes import term_as_interrupt
from seqpope.progress import Progress
from seqpope.provenance import choose_device, provenance
from seqpope.score.likelihood import Likelihood, tokenizer_of
from seqpope.score.output import LN2, TABLES, Piece, ending, write_table, write_track
from seqpope.score.places import Regions, parse_region, read_bed, told_skipped, whole_genome
from seqpope.score.regions import Reading, RegionSums, Span, SpanScores, score_units

FORMAT = 1  # of parts; raised when what is in them changes
CHUNK = 240_000  # bases between a contig's borders of units
# What Lightning says of starting processes is of no use; set by import, for processes that it has started too.
for _name in ("lightning.fabric.utilities", "lightning.pytorch.utilities"):
    logging.getLogger(_name).setLevel(logging.WARNING)
WAIT = datetime.timedelta(days=30)  # that processes which are done wait for others


@dataclass(frozen=True)
class Request:
    """What is to be scored and how.

    Args:
        checkpoint: whatever `find_checkpoint` takes.
        fasta: whatever `open_genome` takes.
        out: its ending says what is written.
        bed, region, everything: one of them.
        phases, window, stride: the model's k, its training window and half of the window if None.
        value: of a base in a track: nats, bits, or the spread over strands and phases in nats.
        devices: processes on this machine, each with a device of its own.
        chunk: bases of a contig between two borders of units.
    """

    checkpoint: Path
    fasta: Path
    out: Path
    bed: Path | None = None
    region: str | None = None
    everything: bool = False
    strand: Literal["both", "+", "-"] = "both"
    phases: int | None = None
    window: int | None = None
    stride: int | None = None
    value: Literal["nats", "bits", "spread"] = "nats"
    device: str = "auto"
    devices: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_tokens: int = 16384
    compile: bool = False
    chunk: int = CHUNK


class Job:
    """A request with all that it means: genome, regions, units, and where their numbers go.

    Raises:
        SeqpopeError: something of the request is not there or does not fit.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.ending = ending(request.out)
        if sum((request.bed is not None, request.region is not None, request.everything)) != 1:
            raise SeqpopeError(
                "say what to score by one of --bed FILE, --region chr7:5,500,000-5,600,000 and --all"
            )
        for path in (request.fasta, request.bed, request.checkpoint):
            if path is not None and request.out.resolve() == path.resolve():
                raise SeqpopeError(f"{path} is what is read: writing there would destroy it, choose another --out")
        if request.out.is_dir():
            raise SeqpopeError(f"{request.out} is a folder: expected a file's name")
        if request.devices < 1 or request.batch_tokens < 1:
            raise SeqpopeError(
                "expected devices and batch_tokens of at least 1, they are "
                f"{request.devices} and {request.batch_tokens}"
            )
        self.checkpoint = find_checkpoint(request.checkpoint)
        self.info = read_info(self.checkpoint)
        k = int(tokenizer_of(self.info).units["base"])
        window = self.info.length if request.window is None else request.window
        stride = max(1, window // 2) if request.stride is None else request.stride
        self.reading = Reading(k, window, stride, request.strand, k if request.phases is None else request.phases)
        self.window = window
        self.genome = open_genome(request.fasta)
        self.contigs = list(self.genome.contigs)
        if request.bed is not None:
            self.regions = read_bed(request.bed, self.genome)
        elif request.region is not None:
            self.regions = parse_region(request.region, self.genome)
        else:
            self.regions = whole_genome(self.genome)
        self.units = list(plan_units(self.regions, self.contigs, self.reading.reach, request.chunk))
        self.bases = [sum(int(np.diff(span.wanted).sum()) for span in unit) for unit in self.units]
        self.options = {
            "strand": request.strand,
            "phases": self.reading.phases,
            "window": self.reading.window,
            "stride": self.reading.stride,
            "precision": request.precision,
            "value": None if self.is_table else request.value,
        }
        self.identity = identity(self.genome)
        self.weights = sha256_of(self.checkpoint)
        self.fingerprint = self._fingerprint()
        self.parts = request.out.parent / f".{request.out.name}.parts"
        self._sorted = {name: _by_start(self.regions, number) for number, name in enumerate(self.contigs)}

    @property
    def is_table(self) -> bool:
        """Whether regions are wanted rather than bases."""
        return self.ending in TABLES

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        said = [FORMAT, self.request.chunk, self.weights, self.identity, self.is_table, self.options]
        digest.update(json.dumps(said).encode())
        for column in (self.regions.contig, self.regions.start, self.regions.end):
            digest.update(column.tobytes())
        return digest.hexdigest()

    def part(self, unit: int) -> Path:
        """Where a unit's numbers go."""
        return self.parts / f"unit-{unit:06}-{self.fingerprint[:16]}.npz"

    def missing(self) -> list[int]:
        """Units that are still to be scored."""
        return [unit for unit in range(len(self.units)) if not self.part(unit).is_file()]

    def score(self, units: Sequence[int], device: str, *, among: Sequence[int], quiet: bool = False) -> None:
        """Score units and save their numbers; see `_score`."""
        _score(self, units, device, among=among, quiet=quiet)

    def save(self, unit: int, spans: Sequence[SpanScores], outside: float, tokens: int) -> None:
        """Write a scored unit's numbers."""
        wanted = [scores.sums(scores.span.wanted) for scores in spans]
        numbers: dict[str, Any] = {
            "total": sum(sums.nats.sum(0) for sums in wanted),  # (P,)
            "scored": sum(int(sums.scored.sum()) for sums in wanted),
            "unknown": sum(int(sums.unknown.sum()) for sums in wanted),
            "outside": outside,
            "tokens": tokens,
        }
        if self.is_table:
            regions, sums = zip(*(self._regions_of(scores) for scores in spans), strict=True)
            numbers["regions"] = np.concatenate(regions)
            for name in RegionSums.__dataclass_fields__:
                numbers[f"region_{name}"] = np.concatenate([getattr(some, name) for some in sums])
        else:
            numbers["values"] = np.concatenate([self._values_of(scores) for scores in spans])
        buffer = io.BytesIO()
        np.savez(buffer, **numbers)
        write_bytes(self.part(unit), buffer.getvalue())

    def _regions_of(self, scores: SpanScores) -> tuple[np.ndarray, RegionSums]:
        """Regions that lie in a span, at least in part, and their sums in it."""
        start, end = scores.span.start, scores.span.end
        order, starts, ends, furthest = self._sorted[scores.span.contig]
        some = slice(np.searchsorted(furthest, start, "right"), np.searchsorted(starts, end))
        inside = ends[some] > start
        intervals = np.stack((starts[some][inside], ends[some][inside]), 1).clip(start, end)
        return order[some][inside], scores.sums(intervals)

    def _values_of(self, scores: SpanScores) -> np.ndarray:
        """Values of a span's wanted bases end to end, float32, nan at N."""
        values = scores.spread() if self.request.value == "spread" else scores.mean()
        values = np.where(scores.known, values / (LN2 if self.request.value == "bits" else 1), np.nan)
        kept = [values[a:b] for a, b in (scores.span.wanted - scores.span.start).tolist()]
        return np.concatenate(kept).astype(np.float32)

    def load(self, unit: int) -> dict[str, np.ndarray]:
        """A unit's numbers."""
        with np.load(self.part(unit)) as file:
            return dict(file)

    def merge(self) -> dict[str, Any]:
        """Write OUT from all units' numbers, and the sidecar; what is in it."""
        totals: dict[str, Any] = dict.fromkeys(("total", "scored", "unknown", "outside", "tokens"), 0)

        def loaded() -> Iterator[tuple[list[Span], dict[str, np.ndarray]]]:
            for number, unit in enumerate(self.units):
                numbers = self.load(number)
                for name in totals:
                    totals[name] = totals[name] + numbers[name]
                yield unit, numbers

        if self.is_table:
            sums = RegionSums.zeros(len(self.regions), len(self.reading.passes))
            for _, numbers in loaded():
                more = (numbers[f"region_{name}"] for name in RegionSums.__dataclass_fields__)
                sums.add(numbers["regions"], RegionSums(*more))
            write_table(self.request.out, self.contigs, self.regions, sums)
        else:
            write_track(self.request.out, self.genome.contigs, (p for part in loaded() for p in _pieces(*part)))
        return self._sidecar(totals)

    def _sidecar(self, totals: dict[str, Any]) -> dict[str, Any]:
        nats, scored, request = np.asarray(totals["total"], float), int(totals["scored"]), self.request
        per_base = nats / scored / LN2 if scored else None
        result = {
            **made_of(self),
            "asked": {"bed": str(request.bed) if request.bed else None, "region": request.region},
            "regions": len(self.regions),
            "skipped": {
                reason: {"count": some.count, "lines": some.lines}
                for reason, some in self.regions.skipped.items()
                if some.count
            },
            "scored_bases": scored,
            "n_bases": int(totals["unknown"]),
            "nats": float(nats.mean()) if scored else None,
            "bits_per_base": float(per_base.mean()) if per_base is not None else None,
            "bits_per_base_by_pass": None
            if per_base is None
            else {f"{s}{p}": float(x) for (s, p), x in zip(self.reading.passes, per_base, strict=True)},
            "mass_outside_words": float(totals["outside"]) / int(totals["tokens"]) if totals["tokens"] else None,
        }
        write_text(request.out.with_name(request.out.name + ".json"), json.dumps(result, indent=1) + "\n")
        return result


def plan_units(regions: Regions, contigs: Sequence[str], reach: int, chunk: int) -> Iterator[list[Span]]:
    """What is wanted, every base once: in the genome's order, about `chunk` bases to read a unit.

    Contigs are cut where a position is a multiple of `chunk` and where more than `reach` bases are not wanted.
    """
    unit: list[Span] = []
    cost = 0
    for number, contig in enumerate(contigs):
        for span in _spans(contig, _union(regions, number, chunk), reach, chunk):
            more = span.end - span.start + reach
            if unit and cost + more > chunk + reach:
                yield unit
                unit, cost = [], 0
            unit.append(span)
            cost += more
    if unit:
        yield unit


def _union(regions: Regions, number: int, chunk: int) -> np.ndarray:
    """A contig's wanted bases as (W, 2) intervals, rising, apart and inside a chunk each."""
    _, starts, _, furthest = _by_start(regions, number)
    if not len(starts):
        return np.zeros((0, 2), np.int64)
    new = np.concatenate(([True], starts[1:] > furthest[:-1]))
    last = np.append(np.flatnonzero(new)[1:] - 1, len(starts) - 1)
    parts = []
    for start, end in zip(starts[new].tolist(), furthest[last].tolist(), strict=True):
        cuts = [start, *range(start - start % chunk + chunk, end, chunk), end]
        parts.append(np.stack((cuts[:-1], cuts[1:]), 1))
    return np.concatenate(parts)


def _by_start(regions: Regions, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A contig's regions by their start: numbers, starts, ends, and the furthest end so far."""
    chosen = np.flatnonzero(regions.contig == number)
    order = chosen[np.argsort(regions.start[chosen], kind="stable")]
    ends = regions.end[order]
    return order, regions.start[order], ends, np.maximum.accumulate(ends) if len(ends) else ends


def _spans(contig: str, wanted: np.ndarray, reach: int, chunk: int) -> Iterator[Span]:
    if not len(wanted):
        return
    apart = wanted[1:, 0] - wanted[:-1, 1] > reach
    apart |= wanted[1:, 0] // chunk != wanted[:-1, 0] // chunk
    for part in np.split(wanted, np.flatnonzero(apart) + 1):
        yield Span(contig, part)


def _pieces(unit: list[Span], numbers: dict[str, np.ndarray]) -> Iterator[Piece]:
    """The known stretches of a unit with their values."""
    values, place = numbers["values"], 0
    for span in unit:
        for start, end in span.wanted.tolist():
            part = values[place : place + end - start]
            place += end - start
            known = np.concatenate(([False], ~np.isnan(part), [False]))
            for a, b in np.flatnonzero(known[1:] != known[:-1]).reshape(-1, 2).tolist():
                yield Piece(span.contig, start + a, part[a:b])


@contextlib.contextmanager
def _locked(job: Work) -> Iterator[None]:
    """Hold the lock of a job's parts, which are then nobody else's.

    Raises:
        SeqpopeError: another process holds it, or nothing can be written there.
    """
    with contextlib.ExitStack() as opened:
        try:
            job.parts.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(open(job.parts / "lock", "w"))
        except OSError as error:
            raise SeqpopeError(
                f"{job.request.out} cannot be written ({error.strerror}: {error.filename}): choose another --out"
            ) from error
        with contextlib.suppress(ImportError):  # Windows
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SeqpopeError(
                    f"another process is writing {job.request.out}: wait for it, or choose another --out"
                ) from None
        yield


def score_regions(request: Request) -> dict[str, Any] | None:
    """Score regions and write them; see `run`.

    Raises:
        SeqpopeError: the request cannot be met.
    """
    job = Job(request)
    if skipped := told_skipped(job.regions):
        print(f"{request.bed}: {skipped}", file=sys.stderr)
    return run(job)


class Work(Protocol):
    """What is done in units: a `Job`, which its class makes of a request, or the like."""

    request: Any
    parts: Path
    checkpoint: Path
    info: CheckpointInfo
    weights: str  # SHA-256
    identity: str
    options: dict[str, Any]
    window: int  # tokens

    def missing(self) -> list[int]: ...

    def score(self, units: Sequence[int], device: str, *, among: Sequence[int], quiet: bool = False) -> None: ...

    def merge(self) -> dict[str, Any]: ...


def made_of(job: Work) -> dict[str, Any]:
    """What a sidecar says of how scores were made: model, genome, settings, versions."""
    request = job.request
    return {
        "model": {
            "checkpoint": named(job.checkpoint),
            "sha256": job.weights,
            "position": job.info.position,
            "trained": job.info.trained,
            "training_window": job.info.length,
        },
        "genome": {"path": str(request.fasta), "identity": job.identity},
        "settings": {**job.options, "batch_tokens": request.batch_tokens, "compile": request.compile},
        **provenance(choose_device(request.device)),
    }


def run(job: Work) -> dict[str, Any] | None:
    """Do what a job has to do; what `merge` returns, None in a process that is not the first.

    With several devices, processes are started by Lightning Fabric; where a launcher has started them already
    (torchrun, SLURM), each takes its share.

    Raises:
        SeqpopeError: another process is at it, there are not as many devices, or one of the processes failed.
    """
    request, world = job.request, _external_world()
    fabric = None if request.devices == 1 and world == 1 else _fabric(request, world)
    if fabric is not None and world > 1:
        fabric.launch()
        if fabric.global_rank > 0:
            _share(fabric, job)
            return None
    if job.window > job.info.length:
        _say(f"the window of {job.window} tokens is beyond the {job.info.length} of the model's training")
    device = choose_device(request.device)  # refused before anything is made
    try:
        with term_as_interrupt(), _locked(job):
            if fabric is None:
                todo = job.missing()
                job.score(todo, device, among=todo)
            elif world > 1:
                _share(fabric, job)
            else:
                _spawn(fabric, job)
            result = job.merge()
            # With what other requests and killed processes left; NFS keeps an open lock a little longer.
            shutil.rmtree(job.parts, ignore_errors=True)
            return result
    except KeyboardInterrupt:
        _say(f"{request.out.name}: stopped; the same command goes on from here")
        raise


def _spawn(fabric: Any, job: Work) -> None:
    """Have fabric's processes score what is missing; none of them is left when this ends.

    Raises:
        SeqpopeError: one of them failed.
        MemoryError: one of them found the memory full.
    """
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    try:  # launching takes no frozen dataclass
        fabric.launch(_share_anew, type(job), type(job.request), asdict(job.request))
    except ProcessExitedException as error:
        raise SeqpopeError(
            f"one of {job.request.devices} processes was killed from outside ({error}), by the system if the "
            "memory was full: the same command goes on from here; fewer --devices or --batch-tokens need less"
        ) from error
    except ProcessRaisedException as error:  # all that it has is the other one's traceback
        last = str(error).rstrip().rpartition("\n")[2]
        if told := re.match(r"seqpope\.[\w.]+: (.*)", last):
            raise SeqpopeError(told[1]) from error
        if "memory" in last.lower():
            raise MemoryError(last) from error
        raise
    finally:
        for child in multiprocessing.active_children():  # those that fabric has started
            child.terminate()
            child.join()


def _external_world() -> int:
    """Processes that a cluster's launcher has started for this command, 1 if none has."""
    if not {"RANK", "SLURM_NTASKS"} & os.environ.keys():
        return 1  # importing lightning takes seconds
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment().world_size()
    return 1


def _fabric(request: Any, world: int) -> Any:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    if world > 1 and world % request.devices:
        raise SeqpopeError(
            f"{world} processes were started, which is no multiple of --devices {request.devices}: give the "
            "number of processes on a machine"
        )
    accelerator = choose_device(request.device)
    if accelerator == "cuda":
        import torch

        most, what = torch.cuda.device_count(), "GPUs"
    else:
        most, what = os.cpu_count() or 1, "CPU cores"
    if request.devices > most:
        raise SeqpopeError(f"--devices {request.devices} were asked for, there are {most} {what}: ask for no more")
    # Processes only tell each other which units are left and that they are done.
    strategy = DDPStrategy(
        process_group_backend="gloo", timeout=WAIT, start_method="popen" if world > 1 else "spawn"
    )
    return Fabric(
        accelerator=accelerator,
        devices=request.devices,
        num_nodes=max(1, world // request.devices),
        strategy=strategy,
    )


def _share(fabric: Any, job: Work) -> None:
    """Score one process's share of the units; ends when all have done theirs."""
    todo = fabric.broadcast(job.missing() if fabric.global_rank == 0 else None)
    rank, world = fabric.global_rank, fabric.world_size
    job.score(todo[rank::world], str(fabric.device), among=todo, quiet=rank > 0)
    fabric.barrier()


def _share_anew(fabric: Any, kind: Any, request: Any, asked: dict[str, Any]) -> None:
    """`_share` in a process of its own, of a request as fields of its class."""
    _share(fabric, kind(request(**asked)))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _score(job: Job, units: Sequence[int], device: str, *, among: Sequence[int], quiet: bool = False) -> None:
    """Score units and save their numbers.

    Args:
        among: units that this command scores by all of its processes, taken to be as far as this one.
    """
    if not units:
        return
    model, info = load_checkpoint(job.checkpoint, device)
    request, total = job.request, sum(job.bases)
    likelihood = Likelihood(
        model,
        info,
        device=device,
        precision=request.precision,
        batch_tokens=request.batch_tokens,
        compile=request.compile,
    )
    likelihood.bulk = job.reading.window
    own, left = (sum(job.bases[unit] for unit in some) for some in (units, among))
    already = total - left
    shown = Progress(f"{request.out.name}", "bases", already=already)
    if already and not quiet:
        _say(f"{request.out.name}: going on, {already} of {total} bases are there")
    passes, done, began = len(job.reading.passes), 0, time.monotonic()

    def progress(bases: int) -> None:
        nonlocal done
        done += bases
        if not quiet:
            shown(min(total, already + left * done // (passes * own)), total)

    every = score_units(likelihood, job.genome, job.reading, (job.units[unit] for unit in units), progress)
    for unit, (spans, scores) in zip(units, every, strict=True):
        job.save(unit, spans, scores.outside, scores.tokens)
        # N counts as done, and what was scored between wanted bases does not.
        scored = sum(len(row.bases) - row.context for span in spans for row in span.rows)
        done += passes * job.bases[unit] - scored
    if not quiet:
        seconds = max(1e-9, time.monotonic() - began)
        _say(f"{request.out.name}: {left / seconds:.0f} bases/s, each {passes} times")
