"""Bodies of requests and answers, derived from `GenerationRequest` and `Job`."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from stable_audio_tools.core.seeds import MAX_SEED
from stable_audio_tools.inference.generation.request import FIELDS, OPTIONS, GenerationRequest
from stable_audio_tools.server.jobs import Job, Status

_NOT_SERVED = {
    *("conditions", "seed", "num_samples", "format", "bits"),  # declared by the base, with the limits of a server
    *("inpaint_bands", "precision", "offload", "allow_tf32", "keep_latents", "clip_length", "batch_size", "use_cache"),
}


class JobRequestBase(BaseModel):
    """A request to generate audio. Values that are left out are those recommended for the model."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="name of a model of this server; the first one if omitted")
    prompt: str | None = Field(None, max_length=10_000, description="text, for models that take one")
    conditions: dict[str, object] = Field(
        default_factory=dict, description="other conditions of the model by their ids"
    )
    num_samples: int = Field(1, ge=1, le=64, description="files to generate")
    seed: int = Field(-1, ge=-1, le=MAX_SEED, description="seed of the first file; -1 draws one")
    format: Literal["wav", "flac", "mp3", "ogg", "opus"] = Field("wav", description="format of the files")
    bits: Literal[16, 24, 32] = Field(16, description="of wav (32 is float) and flac samples")


def _fields_of_request() -> dict[str, tuple[object, object]]:
    """Return type and `Field` of each served field of `GenerationRequest`; audio is the id of an uploaded file."""
    types = get_type_hints(GenerationRequest, localns={"AudioSource": str, "Tensor": object})
    found: dict[str, tuple[object, object]] = {}
    for name in FIELDS:
        about = OPTIONS[name]
        if name not in _NOT_SERVED:
            bounds = {bound: getattr(about, bound) for bound in ("ge", "gt", "le", "lt")}
            limits = {bound: limit for bound, limit in bounds.items() if limit is not None}
            default = FIELDS[name].default
            found[name] = (types[name], Field(default, description=about.help, **limits))
    return found


JobRequest: type[JobRequestBase] = create_model("JobRequest", __base__=JobRequestBase, **_fields_of_request())  # type: ignore[call-overload]
AUDIO_FIELDS = ("init_audio", "inpaint_audio", "audio", "to_audio")


class SpeechRequest(BaseModel):
    """A request of clients that are written for OpenAI's text-to-speech."""

    model_config = ConfigDict(extra="ignore")

    model: str
    input: str = Field(max_length=10_000, description="the prompt")
    response_format: Literal["wav", "flac", "mp3", "ogg", "opus"] = "mp3"
    seconds: float | None = Field(None, gt=0)
    seed: int = Field(-1, ge=-1, le=MAX_SEED)


class JobAnswer(BaseModel):
    """A job as users see it."""

    id: str
    model: str
    status: Status
    position: int | None = Field(None, description="jobs that start before this one; null if it does not wait")
    step: int
    total: int | None = Field(None, description="steps in all, where the number is known")
    created: float
    started: float | None
    finished: float | None
    error: str
    seeds: list[int]
    files: list[str] = Field(description="paths on this server, one per generated file")
    request: Mapping[str, object]


def answer_of(job: Job, position: int | None) -> JobAnswer:
    """Return what clients see of a job; `position` is its place in the queue."""
    return JobAnswer(
        id=job.id,
        model=job.model,
        status=job.status,
        position=position,
        step=job.step,
        total=job.total,
        created=job.created,
        started=job.started,
        finished=job.finished,
        error=job.error,
        seeds=job.seeds,
        files=[f"/v1/jobs/{job.id}/files/{name}" for name in job.files],
        request=job.request,
    )


class ModelAnswer(BaseModel):
    """A model of the server, in the form of OpenAI's list of models."""

    id: str
    object: Literal["model"] = "model"
    type: str
    sample_rate: int
    longest_seconds: float | None
    conditions: Sequence[str]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class FileAnswer(BaseModel):
    """An uploaded file."""

    id: str
    seconds: float
    sample_rate: int
    channels: int
