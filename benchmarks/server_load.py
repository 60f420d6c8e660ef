"""Load on the server: 32 clients send 500 jobs, and the worker process is killed half-way.

Every result is compared with a direct call of the library for its seed, so that a lost or exchanged result is found.
`python benchmarks/server_load.py` prints throughput, waiting times and the figures of the kill.
"""

import argparse
import hashlib
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import uvicorn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.small_models import small_model

from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation.model import load, within_range
from stable_audio_tools.server.api import Server, ServerSettings, create_app
from stable_audio_tools.server.models import ServedModel
from stable_audio_tools.server.worker import WorkerSettings

STEPS, SEEDS = 2, 20


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--no-kill", action="store_true", help="leave the worker alone")
    return parser


def main() -> None:
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = small_model("tiny_diffusion_uncond", folder)
        source = ServedModel("tones", str(files.config), str(files.weights))
        expected = expected_digests(source, folder)
        tokens = {f"token{number}": f"user{number}" for number in range(arguments.clients)}
        server = Server(
            {"tones": source.facts()},
            [WorkerSettings({"tones": source}, "cpu")],
            ServerSettings(folder / "server", tokens, most_waiting=10_000, jobs_per_minute=10_000),
        )
        service, url = start(server)
        killed = threading.Event()

        def client(number: int) -> list[tuple[float, bool]]:
            """Send jobs one after the other; return the seconds of each and whether its audio is right."""
            results = []
            with httpx.Client(headers={"Authorization": f"Bearer token{number}"}, timeout=300) as http:
                for job in range(number, arguments.jobs, arguments.clients):
                    began, seed = time.perf_counter(), job % SEEDS
                    id = http.post(f"{url}/v1/jobs", json={"steps": STEPS, "seed": seed, "bits": 16}).json()["id"]
                    with http.stream("GET", f"{url}/v1/jobs/{id}/events") as events:
                        for _ in events.iter_lines():
                            pass
                    answer = http.get(f"{url}/v1/jobs/{id}").json()
                    content = http.get(url + answer["files"][0]).content if answer["files"] else b""
                    results.append((time.perf_counter() - began, samples_digest(content) == expected[seed]))
                    if job >= arguments.jobs // 2 and not arguments.no_kill and not killed.is_set():
                        killed.set()
                        os.kill(server.dispatchers[0].pid or 0, signal.SIGKILL)
            return results

        began = time.perf_counter()
        with ThreadPoolExecutor(arguments.clients) as pool:
            results = [result for each in pool.map(client, range(arguments.clients)) for result in each]
        wall = time.perf_counter() - began
        states = Counter(job.status for job in server.jobs.all_jobs())
        service.should_exit = True
    times = sorted(seconds for seconds, _ in results)
    rate = len(results) / wall
    print(f"{arguments.clients} clients, {len(results)} jobs of {STEPS} steps: {wall:.1f} s, {rate:.1f} jobs/s")
    print(f"from request to file: median {statistics.median(times):.2f} s, 95 % {times[int(0.95 * len(times))]:.2f} s")
    print(f"worker processes replaced: {server.dispatchers[0].restarts}; states: {dict(states)}")
    wrong = sum(not is_right for _, is_right in results)
    print(f"results that were lost or belong to another request: {wrong} of {len(results)}")
    sys.exit(1 if wrong or len(results) != arguments.jobs else 0)


def expected_digests(source: ServedModel, folder: Path) -> list[str]:
    """Return the digest of the samples for each seed, from the library."""
    model, digests = load(source.model, source.weights, "cpu"), []
    for seed in range(SEEDS):
        generated = model.generate(steps=STEPS, seed=seed, progress=False)
        path = folder / "expected.wav"
        audio_io.write(path, within_range(generated.audio[0]), generated.sample_rate)
        digests.append(samples_digest(path.read_bytes()))
    return digests


def samples_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def start(server: Server) -> tuple[uvicorn.Server, str]:
    """Run the server in a thread of this process, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service = uvicorn.Server(uvicorn.Config(create_app(server), port=port, log_level="warning"))
    threading.Thread(target=service.run, daemon=True).start()
    while not service.started:
        time.sleep(0.02)
    return service, f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    main()
