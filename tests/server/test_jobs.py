"""The queue of jobs, and the sources of models."""

import threading
import time
from pathlib import Path

import pytest

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.server.jobs import Job, JobStore, QueueFull
from stable_audio_tools.server.models import ModelPool, read_source


def order_of(store: JobStore) -> list[str]:
    taken = []
    while (job := store.take(0)) is not None:
        taken.append(str(job.request["name"]))
        store.finish(job, "done")
    return taken


def submit(store: JobStore, owner: str, *names: str) -> list[Job]:
    return [store.submit(owner, "model", {"name": name}) for name in names]


def test_users_take_turns(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    jobs = [*submit(store, "anna", "a1", "a2", "a3"), *submit(store, "ben", "b1", "b2"), *submit(store, "cleo", "c1")]
    positions = {str(job.request["name"]): store.position(job.id) for job in jobs}
    order = order_of(store)
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert positions == {name: place for place, name in enumerate(order)}
    assert store.position(jobs[0].id) is None


def test_a_job_that_is_put_back_is_the_next_of_its_user(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    submit(store, "anna", "a1", "a2")
    job = store.take(0)
    assert job is not None
    store.put_back(job)
    assert order_of(store) == ["a1", "a2"]
    assert job.attempts == 2


def test_cancelled_jobs_are_not_taken(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    first, _ = submit(store, "anna", "a1", "a2")
    store.cancel(first)
    assert first.status == "cancelled"
    assert order_of(store) == ["a2"]


def test_limits_of_the_queue(tmp_path: Path) -> None:
    store = JobStore(tmp_path, most_waiting=3, most_per_owner=2)
    submit(store, "anna", "a1", "a2")
    with pytest.raises(QueueFull, match="2 of your jobs are waiting"):
        submit(store, "anna", "a3")
    submit(store, "ben", "b1")
    with pytest.raises(QueueFull, match="the queue is full"):
        submit(store, "cleo", "c1")


def test_a_store_is_read_again_in_order(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    submit(store, "anna", "a1", "a2", "a3")
    running = store.take(0)
    assert running is not None
    assert order_of(JobStore(tmp_path)) == ["a1", "a2", "a3"]


def test_old_jobs_are_removed_with_their_files(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    old, new = submit(store, "anna", "a1", "a2")
    for job in (old, new):
        store.take(0)
        (store.folder_of(job) / "1.wav").write_bytes(b"audio")
    store.finish(old, "done", files=["1.wav"])
    old.finished = time.time() - 100
    assert store.remove_older_than(50) == 1
    assert not store.folder_of(old).exists()
    assert store.folder_of(new).exists()
    assert store.get(old.id, "anna") is None


def test_a_waiting_thread_gets_the_job_at_once(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    taken: list[Job | None] = []
    thread = threading.Thread(target=lambda: taken.append(store.take(30)))
    thread.start()
    submit(store, "anna", "a1")
    thread.join(timeout=10)
    assert taken
    assert taken[0] is not None


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / "job.json").write_text("{}")
    with pytest.raises(UserError, match="not a job of this server"):
        JobStore(tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "model", "weights"),
    [
        ("stabilityai/stable-audio-open-1.0", "stable-audio-open-1.0", "stabilityai/stable-audio-open-1.0", None),
        ("open=stabilityai/stable-audio-open-1.0", "open", "stabilityai/stable-audio-open-1.0", None),
        ("vae=vae.json,vae.ckpt", "vae", "vae.json", "vae.ckpt"),
    ],
)
def test_sources(text: str, name: str, model: str, weights: str | None) -> None:
    source = read_source(text)
    assert (source.name, source.model, source.weights) == (name, model, weights)


@pytest.mark.parametrize("text", ["", "name=", "=model", "vae.json"])
def test_a_source_without_a_model_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        read_source(text)


def test_models_leave_when_memory_is_short(models: Path) -> None:
    from support.small_models import small_model

    sources = {}
    for name in ("tiny_diffusion_uncond", "tiny_autoencoder", "tiny_lm"):
        files = small_model(name, models)
        sources[name] = read_source(f"{name}={files.config},{files.weights}")
    together = sum(source.file_bytes or 0 for source in sources.values())
    pool = ModelPool(sources, "cpu", "float32", 0.9 * together)
    for name in sources:
        assert pool.get(name) is pool.get(name)
    assert pool.names[-1] == "tiny_lm"
    assert len(pool.names) < 3
    everything = ModelPool(sources, "cpu", "float32", float("inf"))
    for name in sources:
        everything.get(name)
    assert everything.names == list(sources)
