"""Jobs of the page: a queue with a limit before the one process that computes; what each said so far."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from seqpope.errors import SeqpopeError
from seqpope.studio.worker import Worker

MOST_WAITING = 8
MOST_KEPT = 40  # finished jobs
MOST_EVENTS = 20_000  # of a job
DESERTED_SECONDS = 30.0  # that a job goes on while nobody listens: a page that was closed cannot always say so
LAST = ("result", "error", "cancelled")


@dataclass(eq=False)  # or the queue would compare arguments of thousands of notes to find one
class Job:
    """One thing asked for. `events` are (name, data), the last one of LAST once it is done."""

    kind: str
    arguments: Any
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    events: list[tuple[str, Any]] = field(default_factory=list)
    stop: bool = False
    listeners: int = 0
    heard: float = field(default_factory=time.monotonic)  # when somebody listened last

    @property
    def state(self) -> Literal["waiting", "working", "done"]:
        """Where it is."""
        if self.events and self.events[-1][0] in LAST:
            return "done"
        return "working" if self.events else "waiting"

    @property
    def deserted(self) -> bool:
        """Whether nobody has listened for so long that nobody will."""
        return self.listeners == 0 and time.monotonic() - self.heard > DESERTED_SECONDS

    def say(self, name: str, data: Any) -> None:
        """Add what happened; after the last event nothing is added."""
        if self.state != "done" and (len(self.events) < MOST_EVENTS or name in LAST):
            self.events.append((name, data))


class Jobs:
    """Jobs in the order they came, one at a time."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._all: OrderedDict[str, Job] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self.closing = False  # the server is ending: who listens need not wait for a job's end
        threading.Thread(target=self._work, daemon=True, name="studio jobs").start()

    def submit(self, kind: str, arguments: Any) -> Job:
        """Queue a job. It is cancelled if nobody listens to it (`events`) for DESERTED_SECONDS.

        Raises:
            SeqpopeError: too many are waiting.
        """
        for deserted in [one for one in list(self._waiting) if one.deserted]:
            self.cancel(deserted)
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise SeqpopeError(f"{MOST_WAITING} jobs are waiting already: cancel some, or try again later")
            job = Job(kind, arguments)
            self._all[job.id] = job
            self._waiting.append(job)
            for old in [one for one in self._all.values() if one.state == "done"][:-MOST_KEPT]:
                del self._all[old.id]
            self._changed.notify()
        return job

    def find(self, name: str) -> Job:
        """A job by its id.

        Raises:
            SeqpopeError: there is none, or it is long done.
        """
        job = self._all.get(name)
        if job is None:
            raise SeqpopeError("there is no such job: it is long done, or the studio was started anew")
        return job

    def cancel(self, job: Job) -> None:
        """Stop a job, or take it out of the queue."""
        with self._changed:
            job.stop = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.say("cancelled", None)

    def before(self, job: Job) -> int:
        """Jobs that are done before this one."""
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    async def events(self, job: Job, after: int = 0) -> AsyncIterator[tuple[int, str, Any]]:
        """(number, name, data) of what a job said and says, from number `after` on, to its end.

        Who heard all of a job that is done hears its end again.
        """
        told = -1
        after = min(after, len(job.events) - 1 if job.state == "done" else len(job.events))
        job.listeners += 1
        try:
            while not self.closing:
                while after < len(job.events):
                    name, data = job.events[after]
                    after += 1
                    yield after, name, data
                    if name in LAST:
                        return
                if job.state == "waiting" and self.before(job) != told:
                    told = self.before(job)
                    yield after, "waiting", told
                await asyncio.sleep(0.02)
        finally:
            job.heard = time.monotonic()  # first, or for a moment it would look deserted
            job.listeners -= 1

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                job = self._waiting.popleft()
                job.say("begun", None)
            if job.deserted:
                job.say("cancelled", None)
                continue
            try:
                stopping = lambda job=job: job.stop or job.deserted  # noqa: E731
                self.worker.run(job.kind, job.arguments, job.say, stopping)
            except Exception as error:  # whatever one job does, the next has its turn
                traceback.print_exc()
                job.say("error", f"a mistake of seqpope's ({type(error).__name__}): the terminal has more")
            if job.state != "done":
                job.say("error", "the process that did this ended without an answer")
