"""A server of tiny models on a free port, with real worker processes."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from support.small_models import small_model

pytest.importorskip("fastapi", reason="the extra 'server' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'server' is not installed")

from stable_audio_tools.server.api import Server, ServerSettings, create_app
from stable_audio_tools.server.models import ServedModel
from stable_audio_tools.server.worker import WorkerSettings

TOKENS = {"secret-a": "anna", "secret-b": "ben"}
MODELS = {"tones": "tiny_diffusion_uncond", "words": "tiny_text_to_audio", "codec": "tiny_autoencoder"}


class Running(NamedTuple):
    """A server that accepts requests."""

    url: str
    server: Server

    def client(self, token: str = "secret-a") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def finished(self, client: httpx.Client, id: str, timeout: float = 90.0) -> dict[str, object]:
        """Wait until a job is finished and return it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            job = client.get(f"/v1/jobs/{id}").json()
            if job["status"] in ("done", "failed", "cancelled"):
                return job  # type: ignore[no-any-return]
            time.sleep(0.05)
        raise AssertionError(f"job {id} is still {job['status']}")


@contextmanager
def running(folder: Path, models: Path, **settings: object) -> Iterator[Running]:
    import uvicorn

    sources = {}
    for name, config in MODELS.items():
        files = small_model(config, models)
        sources[name] = ServedModel(name, str(files.config), str(files.weights))
    options = {"tokens": TOKENS, **settings}
    server = Server(
        {name: source.facts() for name, source in sources.items()},
        [WorkerSettings(sources, "cpu")],
        ServerSettings(folder, **options),  # type: ignore[arg-type]
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service = uvicorn.Server(uvicorn.Config(create_app(server), port=port, log_level="warning"))
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    while not service.started:
        time.sleep(0.02)
        assert thread.is_alive()
    try:
        yield Running(f"http://127.0.0.1:{port}", server)
    finally:
        service.should_exit = True
        thread.join(timeout=20)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server"), models) as server:
        yield server


@pytest.fixture
def serve(models: Path, tmp_path: Path) -> Callable[..., object]:
    """`with serve(jobs_per_minute=2) as server:` a server of its own with these settings."""
    return lambda folder=tmp_path, **settings: running(folder, models, **settings)
