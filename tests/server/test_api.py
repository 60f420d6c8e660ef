"""The HTTP API, against a running server with a real worker process."""

import io
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile as sf
import torch

from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation.model import load, within_range


def test_a_job_gives_the_audio_of_the_library(served: Any) -> None:
    client = served.client()
    body = {"model": "tones", "steps": 4, "seed": 7, "num_samples": 2, "format": "wav", "bits": 32}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202
    job = served.finished(client, answer.json()["id"])
    assert job["status"] == "done"
    assert job["seeds"] == [7, 8]
    assert job["step"] == job["total"] == 4
    source = served.server.dispatchers[0]._settings.sources["tones"]
    expected = load(source.model, source.weights, "cpu").generate(steps=4, seed=7, num_samples=2)
    for path, audio in zip(job["files"], expected.audio, strict=True):
        samples, rate = sf.read(io.BytesIO(client.get(path).content), dtype="float32", always_2d=True)
        assert rate == expected.sample_rate
        torch.testing.assert_close(torch.from_numpy(samples.T), within_range(audio))


def test_events_end_with_the_finished_job(served: Any) -> None:
    client = served.client()
    id = client.post("/v1/jobs", json={"model": "tones", "steps": 3}).json()["id"]
    with client.stream("GET", f"/v1/jobs/{id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = list(stream.iter_lines())
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert events[-1] == "done"
    assert data[-1]["status"] == "done"
    assert data[-1]["files"]
    steps = [each["step"] for each in data]
    assert steps == sorted(steps)


def test_uploaded_audio_is_reconstructed(served: Any, tmp_path: Path) -> None:
    client = served.client()
    clip = 0.1 * torch.randn(2, 8192, generator=torch.Generator().manual_seed(0))
    audio_io.write(tmp_path / "clip.wav", clip, 44_100)
    with (tmp_path / "clip.wav").open("rb") as file:
        upload = client.post("/v1/files", files={"file": ("clip.wav", file)})
    assert upload.status_code == 201
    assert upload.json()["channels"] == 2
    answer = client.post("/v1/jobs", json={"model": "codec", "init_audio": upload.json()["id"]})
    job = served.finished(client, answer.json()["id"])
    assert job["status"] == "done"
    assert str(served.server.settings.folder) not in answer.text
    other = served.client("secret-b").post("/v1/jobs", json={"model": "codec", "init_audio": upload.json()["id"]})
    assert other.status_code == 400
    assert "no file of yours" in other.json()["error"]["message"]


def test_clients_of_openai_get_a_file(served: Any) -> None:
    answer = served.client().post(
        "/v1/audio/speech", json={"model": "words", "input": "rain", "voice": "alloy", "response_format": "flac"}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/flac"
    assert sf.info(io.BytesIO(answer.content)).format == "FLAC"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "nothing"}, 400, "model: no model named 'nothing'"),
        ({"model": "tones", "stpes": 3}, 422, "stpes: extra inputs are not permitted"),
        ({"model": "tones", "steps": 0}, 422, "steps: "),
        ({"model": "tones", "prompt": "rain"}, 400, "prompt"),
        ({"model": "words"}, 400, "prompt: missing"),
        ({"model": "tones", "init_audio": "../../etc/passwd"}, 400, "no file of yours"),
        ({"model": "tones", "seconds": 900}, 400, "seconds"),
        ({"model": "tones", "format": "mp4"}, 422, "format: "),
        ({"model": "tones", "sampler_type": "unknown"}, 400, "sampler"),
        ("not an object", 422, "body: "),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(served: Any, body: Any, status: int, words: str) -> None:
    answer = served.client().post("/v1/jobs", json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_file_that_is_not_audio_is_refused(served: Any) -> None:
    answer = served.client().post("/v1/files", files={"file": ("clip.wav", b"not audio")})
    assert answer.status_code == 400
    assert "clip.wav" in answer.json()["error"]["message"]
    assert not list(served.server.uploads.glob("anna/*not*"))


def test_users_see_only_their_own_jobs(served: Any) -> None:
    assert httpx.get(f"{served.url}/v1/models").status_code == 401
    assert served.client("wrong").get("/v1/models").status_code == 401
    mine, other = served.client("secret-a"), served.client("secret-b")
    id = mine.post("/v1/jobs", json={"model": "tones", "steps": 1}).json()["id"]
    path = served.finished(mine, id)["files"][0]
    for method, place in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        assert other.request(method, f"/v1/jobs/{id}{place}").status_code == 404
    assert other.get(path).status_code == 404
    assert id not in {job["id"] for job in other.get("/v1/jobs").json()}
    assert mine.get(f"/v1/jobs/{id}/files/job.json").status_code == 404


def test_models_and_schema_are_described(served: Any) -> None:
    models = {each["id"]: each for each in served.client().get("/v1/models").json()["data"]}
    assert set(models) == {"tones", "words", "codec"}
    assert "prompt" in models["words"]["conditions"]
    schema = httpx.get(f"{served.url}/openapi.json").json()
    fields = schema["components"]["schemas"]["JobRequest"]["properties"]
    assert {"prompt", "steps", "cfg_scale", "init_audio", "mode", "spans", "seconds", "format"} <= set(fields)
    assert fields["steps"]["description"] == "steps of the sampler"
    assert "offload" not in fields


def test_a_running_job_is_cancelled(serve: Callable[..., Any]) -> None:
    with serve() as server, server.client() as client:
        long = client.post("/v1/jobs", json={"model": "tones", "steps": 100_000}).json()["id"]
        waiting = client.post("/v1/jobs", json={"model": "tones", "steps": 1}).json()["id"]
        end = time.monotonic() + 60
        while client.get(f"/v1/jobs/{long}").json()["step"] < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert client.get(f"/v1/jobs/{waiting}").json()["position"] == 0
        client.delete(f"/v1/jobs/{long}")
        assert server.finished(client, long)["status"] == "cancelled"
        assert server.finished(client, waiting)["status"] == "done"


def test_limits(serve: Callable[..., Any]) -> None:
    with serve(jobs_per_minute=3, most_per_user=1, most_upload_bytes=100) as server, server.client() as client:
        blocker = client.post("/v1/jobs", json={"model": "tones", "steps": 100_000}).json()["id"]
        while client.get(f"/v1/jobs/{blocker}").json()["status"] == "queued":
            time.sleep(0.02)
        assert client.post("/v1/jobs", json={"model": "tones"}).status_code == 202
        full = client.post("/v1/jobs", json={"model": "tones"})
        assert full.status_code == 429
        assert "of your jobs are waiting" in full.json()["error"]["message"]
        rate = client.post("/v1/jobs", json={"model": "tones"})
        assert rate.status_code == 429
        assert "in a minute" in rate.json()["error"]["message"]
        large = client.post("/v1/files", files={"file": ("clip.wav", bytes(1000))})
        assert large.status_code == 413
        metrics = client.get("/metrics").text
        assert 'stable_audio_rejected_total{reason="limit"} 2' in metrics
        assert 'stable_audio_jobs{status="queued"} 1' in metrics


def test_a_job_survives_the_death_of_its_worker(serve: Callable[..., Any]) -> None:
    with serve() as server, server.client() as client:
        body = {"model": "tones", "steps": 30, "seed": 1, "format": "wav"}
        ids = [client.post("/v1/jobs", json=body).json()["id"] for _ in range(3)]
        while client.get(f"/v1/jobs/{ids[0]}").json()["step"] < 2:
            time.sleep(0.02)
        os.kill(server.server.dispatchers[0].pid, signal.SIGKILL)
        files = [client.get(server.finished(client, id)["files"][0]).content for id in ids]
        assert files[0] == files[1] == files[2]
        assert server.server.jobs.get(ids[0], "anna").attempts == 2
        assert "stable_audio_worker_restarts_total 1" in client.get("/metrics").text


@pytest.mark.slow
def test_a_job_that_ends_its_worker_twice_fails(serve: Callable[..., Any]) -> None:
    with serve() as server, server.client() as client:
        id = client.post("/v1/jobs", json={"model": "tones", "steps": 100_000}).json()["id"]
        other = client.post("/v1/jobs", json={"model": "tones", "steps": 1}).json()["id"]
        for attempt in (1, 2):
            end = time.monotonic() + 60
            while (job := server.server.jobs.get(id, "anna")).attempts < attempt or job.step < 1:
                assert time.monotonic() < end
                time.sleep(0.02)
            os.kill(server.server.dispatchers[0].pid, signal.SIGKILL)
        job = server.finished(client, id)
        assert job["status"] == "failed"
        assert "the worker process ended 2 times" in job["error"]
        assert server.finished(client, other)["status"] == "done"


def test_unfinished_jobs_continue_after_a_restart(serve: Callable[..., Any], tmp_path: Path) -> None:
    with serve(tmp_path) as server, server.client() as client:
        done = client.post("/v1/jobs", json={"model": "tones", "steps": 1, "seed": 3}).json()["id"]
        file = server.finished(client, done)["files"][0]
        audio = client.get(file).content
        running = client.post("/v1/jobs", json={"model": "tones", "steps": 400, "seed": 3}).json()["id"]
        waiting = client.post("/v1/jobs", json={"model": "tones", "steps": 1, "seed": 3}).json()["id"]
        while client.get(f"/v1/jobs/{running}").json()["step"] < 1:
            time.sleep(0.02)
    with serve(tmp_path) as server, server.client() as client:
        assert client.get(file).content == audio
        assert server.finished(client, running)["status"] == "done"
        assert client.get(server.finished(client, waiting)["files"][0]).content == audio
