"""`serve`: models behind an HTTP API, with a queue."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.packages import require
from stable_audio_tools.core.settings import Settings, option

logger = logging.getLogger(__name__)

_SERVER, _LIMITS, _MODELS = "server", "limits", "models"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_TOKENS = "STABLE_AUDIO_TOKENS"


@dataclass(frozen=True, kw_only=True)
class ServeSettings(Settings):
    """Models, users and limits of a server."""

    models: tuple[str, ...] = option(
        help="a folder, a name on the Hub, a weight file, or CONFIG.json,WEIGHTS; NAME= before it names it",
        positional=True,
        metavar="[NAME=]MODEL",
    )
    lora: tuple[str, ...] = option(
        (),
        "adapter of a model, and its strength (default: 1); may be repeated",
        group=_MODELS,
        metavar="NAME=PATH[:STRENGTH]",
        repeat=True,
    )
    devices: tuple[str, ...] = option(
        (),
        "one worker process on each, such as cuda:0 cuda:1 (default: the best device)",
        group=_MODELS,
        metavar="NAME",
    )
    precision: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "float32", "float32 gives the published numbers; the others are faster and less exact", group=_MODELS
    )
    model_memory: float | None = option(
        None,
        "weights that a worker keeps; the models used longest ago leave first (default: all stay)",
        group=_MODELS,
        metavar="GIB",
        gt=0,
    )
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 means all", group=_SERVER)
    port: int = option(7870, "port", group=_SERVER, metavar="N", ge=1, le=65_535)
    token: tuple[str, ...] = option(
        (),
        f"users log in with these; may also be set in the environment as {_TOKENS}, separated by spaces",
        group=_SERVER,
        metavar="[USER:]TOKEN",
        repeat=True,
    )
    output_dir: Path = option(Path("outputs/server"), "folder of jobs and uploads", group=_SERVER, metavar="DIR")
    keep_hours: float = option(
        24.0, "finished jobs and uploads are deleted after that time", group=_SERVER, metavar="HOURS", gt=0
    )
    max_queue: int = option(1000, "jobs that wait, in all", group=_LIMITS, metavar="N", ge=1)
    max_jobs: int = option(100, "jobs of a user that wait", group=_LIMITS, metavar="N", ge=1)
    rate: int = option(600, "jobs of a user in a minute", group=_LIMITS, metavar="N", ge=1)
    max_seconds: float = option(600.0, "length of a generated file", group=_LIMITS, metavar="SECONDS", gt=0)
    max_upload: float = option(200.0, "size of an uploaded file", group=_LIMITS, metavar="MB", gt=0)

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        names = [part.partition("=")[0] for part in self.models if "=" in part]
        for name in {name for name in names if names.count(name) > 1}:
            yield f"{name}: names two models; give each its own name"


def run(settings: ServeSettings) -> None:
    uvicorn = require("uvicorn", extra="server")
    require("fastapi", extra="server")
    require("multipart", extra="server")
    from stable_audio_tools.models.lora_choice import lora_choice
    from stable_audio_tools.server.api import Server, ServerSettings, create_app
    from stable_audio_tools.server.models import ServedModel, read_source
    from stable_audio_tools.server.worker import WorkerSettings

    sources = {source.name: source for source in map(read_source, settings.models)}
    if len(sources) < len(settings.models):
        raise UserError("two models have the same name; write NAME=MODEL to name them")
    for text in settings.lora:
        name, equals, path = text.partition("=")
        if not equals or name not in sources:
            raise UserError(f"--lora {text}: expected NAME=PATH[:STRENGTH] with a name among {', '.join(sources)}")
        choice, source = lora_choice(path), sources[name]
        adapters = (*source.adapters, (str(choice.path), choice.strength))
        sources[name] = ServedModel(name, source.model, source.weights, adapters)
    tokens = _read_tokens([*settings.token, *os.environ.get(_TOKENS, "").split()])
    if not tokens and settings.host not in _LOCAL:
        logger.warning("everybody who reaches %s can use this server; set --token", settings.host)
    facts = {name: source.facts() for name, source in sources.items()}
    most_bytes = float("inf") if settings.model_memory is None else settings.model_memory * 2**30
    workers = [
        WorkerSettings(sources, device, settings.precision, most_bytes) for device in (settings.devices or (None,))
    ]
    limits = ServerSettings(
        folder=settings.output_dir,
        tokens=tokens,
        most_waiting=settings.max_queue,
        most_per_user=settings.max_jobs,
        jobs_per_minute=settings.rate,
        longest_seconds=settings.max_seconds,
        most_upload_bytes=round(settings.max_upload * 1e6),
        keep_hours=settings.keep_hours,
    )
    app = create_app(Server(facts, workers, limits))
    address = f"http://{settings.host}:{settings.port}"
    print(f"{', '.join(facts)} at {address} (API: {address}/docs); Ctrl-C stops the server", flush=True)
    try:
        uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning")
    except SystemExit:
        raise UserError(f"--host {settings.host}, --port {settings.port}: cannot be opened; is it in use?") from None


def _read_tokens(entries: Iterable[str]) -> dict[str, str]:
    """Return users by their tokens; a token without a name is a separate user."""
    tokens: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        user, colon, token = entry.rpartition(":")
        user = user if colon else f"user{number}"
        if not token or not user.isidentifier():
            raise UserError(f"--token: expected TOKEN or USER:TOKEN with a user of letters and digits, got {entry!r}")
        if token in tokens:
            raise UserError("--token: the same token is given twice")
        tokens[token] = user
    return tokens


main = Command(
    ServeSettings,
    run,
    "Serve models over HTTP: jobs with a queue and progress, uploads, results, an endpoint for OpenAI's clients, "
    "metrics. /docs describes the API. Ctrl-C stops the server; unfinished jobs continue at the next start. Requires "
    "the extra 'server'.",
)
