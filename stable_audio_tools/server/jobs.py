"""Jobs of the server: a record per job on disk, and a queue that serves its users in turn."""

import dataclasses
import json
import shutil
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from uuid import uuid4

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import write_text

Status = Literal["queued", "running", "done", "failed", "cancelled"]

_RECORD = "job.json"
_FINISHED: tuple[Status, ...] = ("done", "failed", "cancelled")


class QueueFull(UserError):
    """A request that exceeds the queue or the share of its user."""


@dataclass
class Job:
    """One request of a user and what became of it. Times are seconds since 1970."""

    id: str
    owner: str
    model: str
    request: Mapping[str, object]
    uploads: Mapping[str, str] = field(default_factory=dict)  # paths of uploaded files, by field of the request
    status: Status = "queued"
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    step: int = 0
    total: int | None = None
    attempts: int = 0
    error: str = ""
    files: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    seconds: float = 0.0  # of audio, over all files

    @property
    def is_finished(self) -> bool:
        return self.status in _FINISHED


class JobStore:
    """Every job of a server, in a folder per job.

    The methods may be called from any thread. After a restart, jobs that were queued or running are queued again.
    """

    def __init__(self, folder: Path, most_waiting: int = 1000, most_per_owner: int = 100) -> None:
        self.folder = folder
        self.most_waiting, self.most_per_owner = most_waiting, most_per_owner
        self._jobs: dict[str, Job] = {}
        self._waiting: OrderedDict[str, deque[str]] = OrderedDict()  # job ids by owner; the first owner is served next
        self._changed = threading.Condition()
        self._closed = False
        folder.mkdir(parents=True, exist_ok=True)
        for job in sorted(self._stored(), key=lambda job: job.created):
            self._jobs[job.id] = job
            if not job.is_finished:
                self._enqueue(job)

    def submit(
        self, owner: str, model: str, request: Mapping[str, object], uploads: Mapping[str, str] | None = None
    ) -> Job:
        """Add a job to the end of its owner's queue; raises `QueueFull` at a limit."""
        with self._changed:
            if sum(map(len, self._waiting.values())) >= self.most_waiting:
                raise QueueFull(f"the queue is full ({self.most_waiting} jobs); try again later")
            if len(self._waiting.get(owner, ())) >= self.most_per_owner:
                raise QueueFull(f"{self.most_per_owner} of your jobs are waiting; cancel some, or try again later")
            job = Job(uuid4().hex, owner, model, request, uploads or {}, created=time.time())
            self._write(job)
            self._jobs[job.id] = job
            self._enqueue(job)
            return job

    def get(self, id: str, owner: str) -> Job | None:
        """Return the job if it exists and belongs to this owner."""
        job = self._jobs.get(id)
        return job if job is not None and job.owner == owner else None

    def jobs_of(self, owner: str) -> list[Job]:
        """Return the jobs of an owner, the newest first."""
        with self._changed:
            return sorted((job for job in self._jobs.values() if job.owner == owner), key=lambda job: -job.created)

    def all_jobs(self) -> list[Job]:
        with self._changed:
            return list(self._jobs.values())

    def position(self, id: str) -> int | None:
        """Return how many jobs start before a queued one; None if it does not wait."""
        with self._changed:
            queues = [list(queue) for queue in self._waiting.values()]
        for turn, queue in enumerate(queues):
            if id in queue:
                place = queue.index(
                    id
                )  # the owners before this one start `place + 1` jobs earlier, those behind `place`
                return sum(min(len(other), place + (number < turn)) for number, other in enumerate(queues))
        return None

    def take(self, timeout: float) -> Job | None:
        """Return the next job, now running; None after `timeout` seconds without one or when the store is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting, timeout)
            if self._closed or not self._waiting:
                return None
            owner, queue = next(iter(self._waiting.items()))
            job = self._jobs[queue.popleft()]
            if queue:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
            job.status, job.started, job.step = "running", time.time(), 0
            job.attempts += 1
            self._write(job)
            return job

    def cancel(self, job: Job) -> None:
        """Remove a waiting job from the queue; the caller stops one that runs."""
        with self._changed:
            queue = self._waiting.get(job.owner)
            if queue is not None and job.id in queue:
                queue.remove(job.id)
                if not queue:
                    del self._waiting[job.owner]
                self._finish(job, "cancelled")

    def put_back(self, job: Job) -> None:
        """Queue a running job again, before the other jobs of its owner."""
        with self._changed:
            job.status, job.started = "queued", None
            self._write(job)
            self._enqueue(job, first=True)

    def progress(self, job: Job, step: int, total: int | None) -> None:
        job.step, job.total = step, total

    def finish(
        self,
        job: Job,
        status: Literal["done", "failed", "cancelled"],
        error: str = "",
        files: Iterable[str] = (),
        seeds: Iterable[int] = (),
        seconds: float = 0.0,
    ) -> None:
        """Record the result of a running job."""
        with self._changed:
            job.error, job.files, job.seeds, job.seconds = error, list(files), list(seeds), seconds
            self._finish(job, status)

    def remove_older_than(self, age: float) -> int:
        """Delete jobs that finished more than `age` seconds ago, with their files; return how many."""
        with self._changed:
            limit = time.time() - age
            old = [job for job in self._jobs.values() if job.finished is not None and job.finished < limit]
            for job in old:
                del self._jobs[job.id]
        for job in old:
            shutil.rmtree(self.folder_of(job), ignore_errors=True)
        return len(old)

    def folder_of(self, job: Job) -> Path:
        return self.folder / job.id

    def close(self) -> None:
        """Wake up every thread that waits in `take`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _finish(self, job: Job, status: Status) -> None:
        job.status, job.finished = status, time.time()
        self._write(job)

    def _enqueue(self, job: Job, first: bool = False) -> None:
        queue = self._waiting.setdefault(job.owner, deque())
        if first:
            queue.appendleft(job.id)
        else:
            queue.append(job.id)
        job.status = "queued"
        with self._changed:  # reentrant
            self._changed.notify()

    def _write(self, job: Job) -> None:
        write_text(self.folder_of(job) / _RECORD, json.dumps(dataclasses.asdict(job)))

    def _stored(self) -> Iterable[Job]:
        for path in self.folder.glob(f"*/{_RECORD}"):
            try:
                yield Job(**json.loads(path.read_text(encoding="utf-8")))
            except (TypeError, ValueError) as error:
                raise UserError(f"{path}: not a job of this server ({error}); remove its folder") from None
