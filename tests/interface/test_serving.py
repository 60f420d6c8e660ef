"""`create_ui`, `serve` and the command: sources, precision, login, warnings."""

import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.launching import free_port, kill, restore_interrupt

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.interface.gradio import create_ui, serve

pytest.importorskip("gradio", reason="the extra 'ui' is not installed")
ROOT = Path(__file__).parents[2]


class Launched:
    """Records how an app is launched."""

    options: dict[str, Any]

    def queue(self, **_: Any) -> "Launched":
        return self

    def launch(self, **options: Any) -> None:
        self.options = options


def test_the_published_signature() -> None:
    names = list(inspect.signature(create_ui).parameters)
    assert names[:6] == [
        "model_config_path",
        "ckpt_path",
        "pretrained_name",
        "pretransform_ckpt_path",
        "model_half",
        "gradio_title",
    ]


def test_half_precision_is_not_for_the_cpu(small_files: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = small_files("tiny_diffusion_uncond")
    with caplog.at_level(logging.WARNING):
        app = create_ui(files.config, files.weights, model_half=True, tmp_dir=tmp_path, device="cpu")
    assert "stays in float32" in caplog.text
    assert any("float32 on cpu" in str(getattr(block, "value", "")) for block in app.blocks.values())


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "model: missing"),
        ({"model_config_path": "a.json"}, "model: missing"),
        ({"pretrained_name": "a/b", "ckpt_path": "c"}, "give it alone"),
    ],
)
def test_a_model_is_named_once(given: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        create_ui(**given)


def test_a_pretransform_needs_a_place(small_files: Any, tmp_path: Path) -> None:
    files = small_files("tiny_autoencoder")
    with pytest.raises(ConfigError, match="has no pretransform"):
        create_ui(files.config, files.weights, pretransform_ckpt_path=files.weights, device="cpu")


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        ({}, False),
        ({"share": True}, True),
        ({"host": "0.0.0.0"}, True),
        ({"share": True, "username": "a", "password": "b"}, False),
    ],
)
def test_an_open_door_is_warned_of(options: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    app = Launched()
    with caplog.at_level(logging.WARNING):
        serve(app, **options)
    assert ("without a login" in caplog.text) == warns
    assert app.options["auth"] == (("a", "b") if "username" in options else None)
    assert "allowed_paths" not in app.options


@pytest.mark.parametrize("login", [{"username": "a"}, {"password": "b"}, {"username": "", "password": ""}])
def test_half_a_login_is_refused(login: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"missing|must not be empty"):
        serve(Launched(), **login)


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match=rf"^port: must be from 0 \(any free port\) to 65535, got {port}$"):
        serve(Launched(), port=port)


def test_the_command_refuses_what_is_no_port(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stable_audio_tools.cli.run_gradio import main

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # the command sets another
    assert main(["--pretrained-name", "a/b", "--tmp-dir", str(tmp_path), "--port", "99999"]) == 2
    assert capsys.readouterr().err == "error: port: must be from 0 (any free port) to 65535, got 99999\n"


def test_port_0_is_any_that_is_free() -> None:
    app = Launched()
    serve(app, port=0)
    assert app.options["server_port"] > 0


def test_the_command_serves_until_it_is_interrupted(small_files: Any, tmp_path: Path) -> None:
    files = small_files("tiny_diffusion_uncond")
    port = free_port()
    command = [sys.executable, str(ROOT / "run_gradio.py"), "--model-config", str(files.config)]
    command += ["--ckpt-path", str(files.weights), "--port", str(port), "--tmp-dir", str(tmp_path), "--device", "cpu"]
    command += ["--username", "ann", "--title", "My model"]
    environment = {**os.environ, "STABLE_AUDIO_PASSWORD": "secret", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=restore_interrupt,
    )
    try:
        url, end = f"http://127.0.0.1:{port}/", time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            try:
                httpx.get(url)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        assert httpx.get(f"{url}config").status_code == 401
        with httpx.Client(base_url=url) as visitor:
            visitor.post("login", data={"username": "ann", "password": "secret"}).raise_for_status()
            assert visitor.get("config").json()["title"] == "My model"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=20)
        finally:
            kill(process)
    assert "Traceback" not in output and re.search(str(port), output)
    assert process.returncode in (0, 130), output
