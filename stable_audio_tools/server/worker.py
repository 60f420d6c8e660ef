"""Worker processes: each holds models on one device and runs one job at a time.

A process that dies takes no job with it: the job is queued again, and the next process continues.
"""

import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.server.jobs import Job, JobStore
from stable_audio_tools.server.models import ModelPool, ServedModel

if TYPE_CHECKING:
    from stable_audio_tools.inference.generation.model import AudioModel

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 2
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class WorkerSettings:
    """The models of a worker process and how it holds them; it is pickled for the process."""

    sources: Mapping[str, ServedModel]
    device: str | None = None
    precision: str = "float32"
    most_bytes: float = float("inf")


class JobOrder(NamedTuple):
    """A job as the worker process gets it."""

    id: str
    model: str
    arguments: Mapping[str, object]  # keywords of `AudioModel.generate`
    format: str
    bits: int
    folder: Path


class Cancel(NamedTuple):
    id: str


class Progress(NamedTuple):
    id: str
    step: int
    total: int | None


class Finished(NamedTuple):
    id: str
    files: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float


class Failed(NamedTuple):
    id: str
    message: str
    is_cancelled: bool = False


Message = Progress | Finished | Failed


class Dispatcher:
    """Takes jobs from a store and runs them in one worker process, which is replaced when it dies."""

    def __init__(self, store: JobStore, settings: WorkerSettings) -> None:
        self._store, self._settings = store, settings
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._stopping = threading.Event()
        self._running: Job | None = None
        self._cancelled: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self.restarts = 0

    def start(self) -> None:
        self._thread.start()

    def cancel(self, job: Job) -> None:
        """Stop the job if this worker runs it."""
        running, connection = self._running, self._connection
        if running is not None and running.id == job.id:
            self._cancelled.add(job.id)
            if connection is not None:
                try:
                    connection.send(Cancel(job.id))
                except OSError:
                    logger.debug("the worker of job %s has already ended", job.id)

    @property
    def pid(self) -> int | None:
        """Process id of the worker, if it runs."""
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """End the worker process; a running job stays recorded as unfinished, so that the next server runs it."""
        self._stopping.set()
        self._end_process()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopping.is_set():
            job = self._store.take(_POLL_SECONDS)
            if job is None:
                if self._stopping.wait(0.01):
                    return
                continue
            self._running = job
            try:
                self._run_job(job)
            except (EOFError, OSError) as error:
                if self._stopping.is_set():
                    return
                self._end_process()
                self.restarts += 1
                self._retry(job, error)
            except Exception as error:  # a defect: this job fails, and the server goes on
                logger.exception("job %s", job.id)
                self._store.finish(job, "failed", f"internal error: {type(error).__name__}")
            finally:
                self._running = None
                self._cancelled.discard(job.id)

    def _run_job(self, job: Job) -> None:
        connection = self._connected()
        arguments = {**job.request, **job.uploads}
        format, bits = str(arguments.pop("format", "wav")), int(str(arguments.pop("bits", 16)))
        connection.send(JobOrder(job.id, job.model, arguments, format, bits, self._store.folder_of(job)))
        if job.id in self._cancelled:  # between `take` and `send`
            connection.send(Cancel(job.id))
        while True:
            message: Message = connection.recv()
            if message.id != job.id:
                continue
            if isinstance(message, Progress):
                self._store.progress(job, message.step, message.total)
            elif isinstance(message, Finished):
                self._store.finish(job, "done", files=message.files, seeds=message.seeds, seconds=message.seconds)
                return
            else:
                self._store.finish(job, "cancelled" if message.is_cancelled else "failed", message.message)
                return

    def _retry(self, job: Job, error: Exception) -> None:
        if job.id in self._cancelled:
            self._store.finish(job, "cancelled")
        elif job.attempts < MOST_ATTEMPTS:
            logger.warning("the worker process ended during job %s; the job is queued again", job.id)
            self._store.put_back(job)
        else:
            logger.error("the worker process ended during job %s again (%s)", job.id, type(error).__name__)
            self._store.finish(
                job, "failed", f"the worker process ended {job.attempts} times during this job; it may be out of memory"
            )

    def _connected(self) -> Connection:
        """Return the connection to the worker process, started if necessary."""
        if self._connection is None or self._process is None or not self._process.is_alive():
            self._end_process()
            context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
            self._connection, theirs = context.Pipe()
            self._process = context.Process(
                target=run_worker, args=(theirs, self._settings), name="generation", daemon=True
            )
            self._process.start()
            theirs.close()  # so that the end of the process ends the connection
        return self._connection

    def _end_process(self) -> None:
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is not None:
            process.terminate()
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        if connection is not None:
            connection.close()


def run_worker(connection: Connection, settings: WorkerSettings) -> None:
    """Run jobs from a connection until it closes; the main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from stable_audio_tools.core import logs

    logs.setup()
    pool = ModelPool(settings.sources, settings.device, settings.precision, settings.most_bytes)
    orders: queue.SimpleQueue[JobOrder] = queue.SimpleQueue()
    cancelled: dict[str, threading.Event] = {}

    def receive() -> None:
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                os._exit(0)  # the server has ended
            if isinstance(message, JobOrder):
                cancelled[message.id] = threading.Event()
                orders.put(message)
            elif message.id in cancelled:
                cancelled[message.id].set()

    threading.Thread(target=receive, name="orders", daemon=True).start()
    while True:
        order = orders.get()
        connection.send(_run_order(order, pool, connection, cancelled[order.id]))
        del cancelled[order.id]


def _run_order(order: JobOrder, pool: ModelPool, connection: Connection, cancel: threading.Event) -> Finished | Failed:
    from stable_audio_tools.inference.sampling.watching import Cancelled

    try:
        model = pool.get(order.model)
        return _generate(order, model, connection, cancel)
    except Cancelled:
        return Failed(order.id, "", is_cancelled=True)
    except UserError as error:
        return Failed(order.id, str(error))
    except (MemoryError, RuntimeError) as error:
        logger.exception("job %s", order.id)
        reason = "out of memory; ask for less at once" if "out of memory" in str(error) else "the model failed"
        return Failed(order.id, reason)
    except Exception as error:
        logger.exception("job %s", order.id)
        return Failed(order.id, f"internal error: {type(error).__name__}")


def _generate(order: JobOrder, model: "AudioModel", connection: Connection, cancel: threading.Event) -> Finished:
    from stable_audio_tools.data import audio_io
    from stable_audio_tools.inference.generation.model import within_range
    from stable_audio_tools.inference.sampling.watching import Cancelled

    def report(step: int, total: int | None) -> None:
        connection.send(Progress(order.id, step, total))

    hooks = {"progress": report, "cancel": cancel} if model.takes("progress") else {}
    generated = model.generate(**order.arguments, **hooks)  # type: ignore[arg-type]
    if cancel.is_set():
        raise Cancelled("the generation was cancelled")
    files = []
    for number, audio in enumerate(generated.audio, start=1):
        name = f"{number}.{order.format}"
        level = within_range(audio, generated.keeps_level)
        audio_io.write(order.folder / name, level, generated.sample_rate, bits=order.bits)  # type: ignore[arg-type]
        files.append(name)
    seconds = generated.audio.shape[0] * generated.audio.shape[-1] / generated.sample_rate
    return Finished(order.id, tuple(files), generated.seeds, seconds)
