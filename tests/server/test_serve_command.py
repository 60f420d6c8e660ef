"""`stable-audio-tools serve` as a process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from support.launching import free_port, restore_interrupt
from support.small_models import small_model

pytest.importorskip("uvicorn", reason="the extra 'server' is not installed")

COMMAND = [sys.executable, "-m", "stable_audio_tools.cli.main", "serve"]


def children_of(pid: int) -> set[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return set(map(int, listed.split()))


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_and_ends_with_its_workers(stop: signal.Signals, models: Path, tmp_path: Path) -> None:
    files, port = small_model("tiny_diffusion_uncond", models), free_port()
    words = [f"tones={files.config},{files.weights}", "--port", str(port), "--output-dir", str(tmp_path)]
    environment = os.environ | {"STABLE_AUDIO_TOKENS": "anna:secret"}
    process = subprocess.Popen(
        [*COMMAND, *words, "--devices", "cpu"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=restore_interrupt,
    )
    try:
        assert process.stdout is not None
        assert f"tones at http://127.0.0.1:{port}" in process.stdout.readline()
        headers = {"Authorization": "Bearer secret"}
        url, end = f"http://127.0.0.1:{port}/v1", time.monotonic() + 60
        while True:
            try:
                id = httpx.post(f"{url}/jobs", json={"steps": 2}, headers=headers).json()["id"]
                break
            except httpx.ConnectError:
                assert time.monotonic() < end
                time.sleep(0.1)
        while httpx.get(f"{url}/jobs/{id}", headers=headers).json()["status"] != "done":
            assert time.monotonic() < end
            time.sleep(0.1)
        workers = children_of(process.pid)
        assert workers
        process.send_signal(stop)
        assert process.wait(timeout=30) in (0, -stop, 128 + stop)
        end = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < end, "a worker outlived the server"
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.safetensors"], "missing.safetensors: no such file"),
        (["vae.json"], "a config alone has no weights"),
        (["a=x/y", "a=x/z"], "names two models"),
        (["a=x/y", "--token", "ben:"], "--token: expected TOKEN or USER:TOKEN"),
        (["a=x/y", "--lora", "b=song.safetensors"], "expected NAME=PATH[:STRENGTH] with a name among a"),
        (["a=x/y", "--port", "0"], "--port: expected 1 to 65535, got 0"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from stable_audio_tools.cli.serve import main

    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_named(models: Path, tmp_path: Path) -> None:
    files = small_model("tiny_diffusion_uncond", models)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = [f"{files.config},{files.weights}", "--port", str(port), "--output-dir", str(tmp_path)]
        result = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert f"--port {port}: cannot be opened" in result.stderr
    assert "Traceback" not in result.stderr
