"""The HTTP API: jobs with progress, uploads, OpenAI-style speech, metrics."""

import asyncio
import hmac
import json
import math
import shutil
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO
from uuid import uuid4

from stable_audio_tools.core.errors import AudioError, UserError
from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation.checks import validate, with_lengths, with_recommended
from stable_audio_tools.inference.generation.facts import ModelFacts
from stable_audio_tools.inference.generation.request import GenerationRequest
from stable_audio_tools.server.jobs import Job, JobStore, QueueFull
from stable_audio_tools.server.schema import (
    AUDIO_FIELDS,
    FileAnswer,
    JobAnswer,
    JobRequest,
    JobRequestBase,
    ModelAnswer,
    ModelList,
    SpeechRequest,
    answer_of,
)
from stable_audio_tools.server.worker import Dispatcher, WorkerSettings
from stable_audio_tools.version import __version__

if TYPE_CHECKING:
    from fastapi import FastAPI

_MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg", "opus": "audio/ogg"}
_POLL_SECONDS = 0.05
_CLEANING_SECONDS = 60.0
_ANYONE = "anyone"


@dataclass(frozen=True)
class ServerSettings:
    """Limits and users of a server."""

    folder: Path
    tokens: Mapping[str, str] = field(default_factory=dict)  # token -> user; empty: no login
    most_waiting: int = 1000
    most_per_user: int = 100
    jobs_per_minute: int = 600  # of each user
    longest_seconds: float = 600.0  # of a generated file
    most_upload_bytes: int = 200_000_000
    keep_hours: float = 24.0


class UploadRefused(UserError):
    """A file that the server does not keep, with the status of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server:
    """The state behind the API: jobs, worker processes and users."""

    def __init__(
        self,
        facts: Mapping[str, ModelFacts],
        workers: Sequence[WorkerSettings],
        settings: ServerSettings,
    ) -> None:
        self.facts, self.settings = facts, settings
        self.uploads = settings.folder / "uploads"
        self.jobs = JobStore(settings.folder / "jobs", settings.most_waiting, settings.most_per_user)
        self.dispatchers = [Dispatcher(self.jobs, worker) for worker in workers]
        self.rejected: Counter[str] = Counter()
        self._submitted: dict[str, deque[float]] = {}

    def start(self) -> None:
        for dispatcher in self.dispatchers:
            dispatcher.start()

    def stop(self) -> None:
        self.jobs.close()
        for dispatcher in self.dispatchers:
            dispatcher.stop()

    def submit(self, owner: str, body: JobRequestBase) -> Job:
        """Validate a request and queue it; raises `UserError` with every problem."""
        name = body.model or next(iter(self.facts))
        if name not in self.facts:
            raise UserError(f"model: no model named {name!r} on this server; it has {', '.join(self.facts)}")
        self._check_rate(owner)
        values: dict[str, Any] = body.model_dump(exclude_unset=True, exclude={"model"})
        uploads = {
            key: str(self._upload_of(owner, key, values[key])) for key in AUDIO_FIELDS if values.get(key) is not None
        }
        self._check(values, uploads, self.facts[name])
        return self.jobs.submit(owner, name, values, uploads)

    def keep_upload(self, owner: str, name: str, size: int, content: BinaryIO) -> FileAnswer:
        """Store an audio file under a new id; raises `UploadRefused` if it is too large or not readable."""
        most, suffix = self.settings.most_upload_bytes, Path(name).suffix.lower()
        if not suffix.isascii() or not suffix[1:].isalnum() or len(suffix) > 6:
            raise UploadRefused(400, "the file needs a name with the suffix of its format, such as clip.wav")
        if size > most:
            raise UploadRefused(413, f"the file is larger than {most / 1e6:g} MB")
        id = uuid4().hex
        path = self.uploads / owner / f"{id}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as target:
            shutil.copyfileobj(content, target)
        try:
            about = audio_io.info(path)
        except AudioError as error:
            path.unlink()
            raise UploadRefused(400, str(error).replace(str(path), name)) from None
        seconds = about.frames / about.sample_rate
        return FileAnswer(id=id, seconds=seconds, sample_rate=about.sample_rate, channels=about.channels)

    def cancel(self, job: Job) -> None:
        """Cancel a job that waits or runs."""
        self.jobs.cancel(job)
        for dispatcher in self.dispatchers:
            dispatcher.cancel(job)

    def clean(self) -> None:
        """Delete finished jobs and uploads that are older than `keep_hours`."""
        age = self.settings.keep_hours * 3600
        self.jobs.remove_older_than(age)
        for path in self.uploads.glob("*/*"):
            if path.stat().st_mtime < time.time() - age:
                path.unlink(missing_ok=True)

    def metrics(self) -> str:
        """Return the state in the text format of Prometheus."""
        jobs = self.jobs.all_jobs()
        states = Counter(job.status for job in jobs)
        done = [job for job in jobs if job.status == "done"]
        lines = [
            "# HELP stable_audio_jobs Jobs by status.",
            "# TYPE stable_audio_jobs gauge",
            *(
                f'stable_audio_jobs{{status="{status}"}} {states[status]}'
                for status in ("queued", "running", "done", "failed", "cancelled")
            ),
            "# HELP stable_audio_generated_seconds Seconds of audio in the finished jobs that are kept.",
            "# TYPE stable_audio_generated_seconds gauge",
            f"stable_audio_generated_seconds {sum(job.seconds for job in done):.3f}",
            "# HELP stable_audio_wait_seconds Seconds from submission to the start of a job.",
            "# TYPE stable_audio_wait_seconds summary",
            f"stable_audio_wait_seconds_sum {sum((job.started or 0) - job.created for job in done):.3f}",
            f"stable_audio_wait_seconds_count {len(done)}",
            "# HELP stable_audio_run_seconds Seconds from the start of a job to its end.",
            "# TYPE stable_audio_run_seconds summary",
            f"stable_audio_run_seconds_sum {sum((job.finished or 0) - (job.started or 0) for job in done):.3f}",
            f"stable_audio_run_seconds_count {len(done)}",
            "# HELP stable_audio_worker_restarts_total Worker processes that ended during a job.",
            "# TYPE stable_audio_worker_restarts_total counter",
            f"stable_audio_worker_restarts_total {sum(each.restarts for each in self.dispatchers)}",
            "# HELP stable_audio_rejected_total Requests refused, by reason.",
            "# TYPE stable_audio_rejected_total counter",
            *(f'stable_audio_rejected_total{{reason="{name}"}} {count}' for name, count in self.rejected.items()),
        ]
        return "\n".join(lines) + "\n"

    def _check(self, values: Mapping[str, Any], uploads: Mapping[str, str], facts: ModelFacts) -> None:
        fields = {key: value for key, value in {**values, **uploads}.items() if key not in ("prompt", "conditions")}
        conditions = dict(values.get("conditions", {}))
        if values.get("prompt") is not None:
            conditions["prompt"] = values["prompt"]
        for key, value in conditions.items():
            if key in facts.keys and facts.input_of(key).kind == "audio" and value is not None:
                raise UserError(f"{key}: conditions of audio cannot be sent to this server")
        request = GenerationRequest(conditions=conditions, **fields)
        request = with_lengths(with_recommended(request, facts), facts)
        problems = list(dict.fromkeys(validate(request, facts)))
        if problems:
            raise UserError("\n".join(problems))
        lengths = [facts.window_seconds if request.seconds is None else request.seconds]
        lengths += [audio_io.info(path).seconds for path in uploads.values()]
        if any(self.settings.longest_seconds < seconds < math.inf for seconds in lengths):
            raise UserError(
                f"seconds: this server reads and generates at most {self.settings.longest_seconds:g} s at once"
            )

    def _check_rate(self, owner: str) -> None:
        times = self._submitted.setdefault(owner, deque())
        now = time.monotonic()
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) >= self.settings.jobs_per_minute:
            raise QueueFull(f"more than {self.settings.jobs_per_minute} jobs in a minute; try again later")
        times.append(now)

    def _upload_of(self, owner: str, key: str, id: object) -> Path:
        found = [path for path in (self.uploads / owner).glob("*") if path.stem == id]
        if not found:
            raise UserError(f"{key}: no file of yours has the id {id!r}; upload it with POST /v1/files")
        found[0].touch()  # it is kept as long as the job
        return found[0]


def create_app(server: Server) -> "FastAPI":
    """Create the application; it starts and stops the workers of the server with itself."""
    from fastapi import Depends, FastAPI, File, HTTPException, Request, UploadFile
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.start()
        cleaning = asyncio.create_task(_clean_regularly(server))
        yield
        cleaning.cancel()
        await asyncio.to_thread(server.stop)

    app = FastAPI(
        title="stable-audio-tools",
        version=__version__,
        summary="Generates audio with the models of this server.",
        lifespan=lifespan,
    )

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(_error_body(error.status_code, error.detail), error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        sentences = []
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"] if part != "body")
            found = "" if problem["type"] == "missing" else f", got {json.dumps(problem['input'], default=str)[:80]}"
            sentences.append(f"{place or 'body'}: {problem['msg'][:1].lower()}{problem['msg'][1:]}{found}")
        return JSONResponse(_error_body(422, "\n".join(sentences)), 422)

    @app.exception_handler(UploadRefused)
    async def refused_upload(_: Request, error: UploadRefused) -> JSONResponse:
        return JSONResponse(_error_body(error.status, str(error)), error.status)

    bearer = HTTPBearer(auto_error=False, description="a token of this server")

    def user(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> str:
        tokens = server.settings.tokens
        if not tokens:
            return _ANYONE
        given = "" if credentials is None else credentials.credentials
        matches = [name for token, name in tokens.items() if hmac.compare_digest(token.encode(), given.encode())]
        if not matches:
            server.rejected["login"] += 1
            raise HTTPException(401, "missing or unknown token; send the header Authorization: Bearer TOKEN")
        return matches[0]

    def submit(owner: str, body: JobRequestBase) -> Job:
        try:
            return server.submit(owner, body)
        except QueueFull as error:
            server.rejected["limit"] += 1
            raise HTTPException(429, str(error), headers={"Retry-After": "10"}) from None
        except (UserError, ValueError, TypeError) as error:
            server.rejected["invalid"] += 1
            raise HTTPException(400, str(error)) from None

    def job_of(id: str, owner: str) -> Job:
        job = server.jobs.get(id, owner)
        if job is None:
            raise HTTPException(404, f"no job of yours has the id {id!r}")
        return job

    def answer(job: Job) -> JobAnswer:
        return answer_of(job, server.jobs.position(job.id))

    def file_of(job: Job, name: str) -> FileResponse:
        path = server.jobs.folder_of(job) / name
        headers = {"X-Job-Id": job.id, "X-Seed": ",".join(map(str, job.seeds))}
        media_type = _MEDIA_TYPES[path.suffix[1:]]
        return FileResponse(path, media_type=media_type, filename=f"{job.id}-{name}", headers=headers)

    User = Annotated[str, Depends(user)]

    @app.get("/health", tags=["server"])
    def health() -> dict[str, str]:
        """Answer when the server accepts requests."""
        return {"status": "ok"}

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    def metrics(_: User) -> str:
        """Return jobs, waiting times and restarts in the text format of Prometheus."""
        return server.metrics()

    @app.get("/v1/models", tags=["models"])
    def models(_: User) -> ModelList:
        """List the models of this server."""
        return ModelList(data=[_model_answer(name, facts) for name, facts in server.facts.items()])

    @app.post("/v1/files", tags=["files"], status_code=201)
    async def upload(owner: User, file: Annotated[UploadFile, File()]) -> FileAnswer:
        """Upload an audio file, for the fields `init_audio`, `inpaint_audio`, `audio` and `to_audio`."""
        return await asyncio.to_thread(server.keep_upload, owner, file.filename or "", file.size or 0, file.file)

    @app.post("/v1/jobs", tags=["jobs"], status_code=202)
    def create_job(owner: User, body: JobRequest) -> JobAnswer:  # type: ignore[valid-type]
        """Queue a request."""
        return answer(submit(owner, body))

    @app.get("/v1/jobs", tags=["jobs"])
    def list_jobs(owner: User, limit: int = 100) -> list[JobAnswer]:
        """List your jobs, the newest first."""
        return [answer(job) for job in server.jobs.jobs_of(owner)[: max(0, min(limit, 1000))]]

    @app.get("/v1/jobs/{id}", tags=["jobs"])
    def get_job(id: str, owner: User) -> JobAnswer:
        """Return the state of a job."""
        return answer(job_of(id, owner))

    @app.delete("/v1/jobs/{id}", tags=["jobs"])
    def cancel_job(id: str, owner: User) -> JobAnswer:
        """Cancel a job that waits or runs; a finished one stays as it is."""
        job = job_of(id, owner)
        server.cancel(job)
        return answer(job)

    @app.get("/v1/jobs/{id}/events", tags=["jobs"], response_class=StreamingResponse)
    async def events(id: str, owner: User) -> StreamingResponse:
        """Stream the state of a job as server-sent events until it is finished."""
        job = job_of(id, owner)

        async def stream() -> AsyncIterator[str]:
            last = ""
            while True:
                finished = job.is_finished  # before the answer, so that the last event is the finished job
                text = answer(job).model_dump_json()
                if text != last:
                    yield f"event: {job.status if finished else 'progress'}\ndata: {text}\n\n"
                    last = text
                if finished:
                    return
                await asyncio.sleep(_POLL_SECONDS)

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/v1/jobs/{id}/files/{name}", tags=["jobs"], response_class=FileResponse)
    def get_file(id: str, name: str, owner: User) -> FileResponse:
        """Return a generated file."""
        job = job_of(id, owner)
        if name not in job.files:
            raise HTTPException(404, f"the job has no file {name!r}; it is {job.status}")
        return file_of(job, name)

    @app.post("/v1/audio/speech", tags=["OpenAI-style"], response_class=FileResponse)
    async def speech(owner: User, body: SpeechRequest, http: Request) -> FileResponse:
        """Generate audio for a prompt and return the file; OpenAI's clients call this for text to speech."""
        values = {"seconds": body.seconds} if body.seconds is not None else {}
        job = submit(
            owner,
            JobRequest.model_validate(
                {"model": body.model, "prompt": body.input, "format": body.response_format, "seed": body.seed, **values}
            ),
        )
        while not job.is_finished:
            if await http.is_disconnected():
                server.cancel(job)
            await asyncio.sleep(_POLL_SECONDS)
        if job.status != "done":
            raise HTTPException(500 if job.status == "failed" else 409, job.error or "the job was cancelled")
        return file_of(job, job.files[0])

    return app


async def _clean_regularly(server: Server) -> None:
    while True:
        await asyncio.to_thread(server.clean)
        await asyncio.sleep(_CLEANING_SECONDS)


def _model_answer(name: str, facts: ModelFacts) -> ModelAnswer:
    return ModelAnswer(
        id=name,
        type=facts.model_type,
        sample_rate=facts.sample_rate,
        longest_seconds=None if facts.window is None else facts.window_seconds,
        conditions=facts.keys,
    )


def _error_body(status: int, message: str) -> dict[str, dict[str, object]]:
    """Return the body of an error in the form that OpenAI's clients read."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": "server_error" if status >= 500 else kind, "code": status}}
