"""The HTTP API as `gradio_client` sees it: results, privacy of eight users, login, uploads, files."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile as sf
import torch

from stable_audio_tools.data import audio_io

gradio_client = pytest.importorskip("gradio_client", reason="the extra 'ui' is not installed")
pytest.importorskip("gradio", reason="the extra 'ui' is not installed")

RATE = 22050
QUICK = {"sound": "rain", "steps": 2, "sampler_type": "euler"}


def connect(url: str, folder: Path, **options: Any) -> Any:
    return gradio_client.Client(url, verbose=False, download_files=str(folder), **options)


@pytest.fixture(scope="module")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "tone.wav"
    audio_io.write(path, 0.5 * torch.sin(torch.arange(6000) * 0.08).expand(2, -1), RATE)
    return path


def expected(model: Any, **asked: Any) -> np.ndarray:
    audio = model.generate(**asked).audio[0]
    return (audio / audio.abs().max().clamp(min=1)).T.numpy()


def test_generation_gives_what_python_gives(served: Any, tmp_path: Path) -> None:
    app = served("tiny_diffusion_cond_inpaint")
    client = connect(app.url, tmp_path)
    audio, files, pictures, settings, status = client.predict(
        **QUICK, seed=5, num_samples=2, preview_every=1, seconds_total=0.3, api_name="/generate"
    )
    heard, rate = sf.read(audio)
    wanted = expected(app.model, sound="rain", steps=2, seed=5, seconds=0.3)
    assert rate == RATE and len(heard) == round(0.3 * RATE)
    np.testing.assert_allclose(heard, wanted, atol=1.1 / 32768)  # 16 bits; previews and batches change nothing
    assert len(files) == 2 and settings["seed"] == 5 and settings["settings"]["sound"] == "rain"
    assert [picture["caption"] for picture in pictures] == ["seed 5", "seed 6", "after step 2", "after step 1"]
    assert "seed 5, 6" in status
    kept = sorted(app.folder.glob(f"*/{settings['name']}.*"))
    assert [path.suffix for path in kept] == [".json", ".png", ".wav"]
    assert json.loads(kept[0].read_text()) == settings


def test_variation_has_an_off_switch(served: Any, tmp_path: Path, tone: Path) -> None:
    client = connect(served("tiny_diffusion_cond_inpaint").url, tmp_path)
    init = gradio_client.handle_file(tone)

    def make(**more: Any) -> np.ndarray:
        return sf.read(client.predict(**QUICK, seed=5, **more, api_name="/generate")[0])[0]

    plain = make()
    assert np.array_equal(plain, make(init_audio=init, use_init=False))
    assert not np.allclose(plain, make(init_audio=init, use_init=True), atol=1e-3)


def test_a_loop_is_what_python_gives(served: Any, tmp_path: Path) -> None:
    app = served("tiny_diffusion_cond_inpaint")
    audio, *_ = connect(app.url, tmp_path).predict(**QUICK, seed=5, loop=True, api_name="/generate")
    wanted = expected(app.model, sound="rain", steps=2, seed=5, loop=True)
    heard = sf.read(audio)[0]
    np.testing.assert_allclose(heard, wanted[: len(heard)], atol=2 / 32768)
    plain = expected(app.model, sound="rain", steps=2, seed=5)
    assert not np.allclose(heard[:50], plain[:50], atol=1e-2)


def test_inpainting_and_reconstruction(served: Any, tmp_path: Path, tone: Path) -> None:
    original = audio_io.read(tone).samples.T.numpy()
    client = connect(served("tiny_diffusion_cond_inpaint").url, tmp_path)
    audio, *_ = client.predict(
        inpaint_audio=gradio_client.handle_file(tone), spans="0.1-0.15", **QUICK, seed=1, api_name="/inpaint"
    )
    heard = sf.read(audio)[0]
    np.testing.assert_allclose(heard[: int(0.07 * RATE)], original[: int(0.07 * RATE)], atol=2e-4)
    assert not np.allclose(heard[2300:3200], original[2300:3200], atol=1e-2)
    app = served("tiny_autoencoder")
    audio, _, pictures, *_ = connect(app.url, tmp_path).predict(
        gradio_client.handle_file(tone), seed=4, api_name="/process"
    )
    wanted = expected(app.model, init_audio=tone, seed=4)
    np.testing.assert_allclose(sf.read(audio)[0], wanted, atol=1.1 / 32768)
    assert len(pictures) == 2, "before and after"


def test_eight_users_at_once_get_their_own(served: Any, tmp_path: Path) -> None:
    app = served("tiny_diffusion_cond_inpaint")
    sounds = ["drums", "bass", "chords", "rain", "bells", "drums", "bass", "chords"]

    def use(number: int) -> tuple[np.ndarray, dict[str, Any]]:
        client = connect(app.url, tmp_path / str(number))
        audio, _, _, settings, _ = client.predict(
            **{**QUICK, "sound": sounds[number]}, seed=100 + number, api_name="/generate"
        )
        return sf.read(audio)[0], settings

    before = set(app.folder.iterdir())
    with ThreadPoolExecutor(8) as users:
        results = list(users.map(use, range(8)))
    for number, (heard, settings) in enumerate(results):
        assert settings["seed"] == 100 + number and settings["settings"]["sound"] == sounds[number]
        wanted = expected(app.model, sound=sounds[number], steps=2, seed=100 + number, seconds_total=1)
        np.testing.assert_allclose(heard, wanted, atol=1.1 / 32768)
    assert len(set(app.folder.iterdir()) - before) == 8, "each has a folder of their own"


def test_a_client_that_cancels_stops_the_run(served: Any, tmp_path: Path) -> None:
    app = served("tiny_diffusion_cond_inpaint")
    client = connect(app.url, tmp_path)
    job = client.submit(**{**QUICK, "steps": 500}, api_name="/generate")
    end = time.monotonic() + 20
    while not any("Step" in output[4] for output in job.outputs()[-1:]) and time.monotonic() < end:
        time.sleep(0.05)
    job.cancel()
    started = time.monotonic()
    client.predict(**QUICK, seed=1, api_name="/generate")
    assert time.monotonic() - started < 3, "the next run does not wait for five hundred steps"


def test_mistakes_are_told_in_words(served: Any, tmp_path: Path, tone: Path) -> None:
    client = connect(served("tiny_diffusion_cond_inpaint").url, tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("no audio")
    broken = tmp_path / "broken.wav"
    broken.write_text("no audio either")
    long = tmp_path / "long.flac"
    audio_io.write(long, torch.zeros(1, 601 * 1000), 1000)
    holed = tmp_path / "holed.wav"
    sf.write(holed, np.array([0, np.nan, 0]), RATE, "FLOAT")
    for path, match in (
        (text, "this type of file is not accepted"),
        (broken, "holds text, not audio"),
        (long, "at most 600 s"),
        (holed, "holed.wav: holds NaN or infinite samples"),
    ):
        with pytest.raises(gradio_client.exceptions.AppError, match=match) as caught:
            client.predict(**QUICK, init_audio=gradio_client.handle_file(path), use_init=True, api_name="/generate")
        assert "/tmp" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    with pytest.raises(gradio_client.exceptions.AppError, match="there is no audio"):
        client.predict(**QUICK, use_init=True, api_name="/generate")
    with pytest.raises(gradio_client.exceptions.AppError, match="is not a span"):
        client.predict(inpaint_audio=gradio_client.handle_file(tone), spans="x", **QUICK, api_name="/inpaint")
    with pytest.raises(gradio_client.exceptions.AppError, match="exchange the two"):
        client.predict(**QUICK, cfg_interval_min=0.8, cfg_interval_max=0.2, api_name="/generate")
    with pytest.raises(gradio_client.exceptions.AppError):
        client.predict(**{**QUICK, "sound": "$(touch /tmp/x)"}, api_name="/generate")


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"steps": "x"}, r"Steps \(steps\): must be a whole number from 1 to 500, got 'x'"),
        ({"steps": 2.5}, "must be a whole number from 1 to 500, got 2.5"),
        ({"cfg_scale": 26}, r"Guidance \(cfg_scale\): must be a number from 0 to 25, got 26"),
        ({"seed": 10**400}, r"Seed \(seed\): must be a whole number from -1 to \d+, got 1000"),
        ({"preview_every": None}, r"\(preview_every\): must be a whole number from 0 to 50, got nothing"),
        ({"use_init": "off"}, r"\(use_init\): must be true or false, got 'off'"),
        ({"sampler_type": 3}, r"\(sampler_type\): must be one of euler, .*, got 3"),
        ({"use_init": True, "init_audio": "tone.wav"}, r"\(init_audio\): must be an uploaded file, .*, got 'tone.wav'"),
        ({"spans": 5}, r"\(spans\): must be text, got 5"),
        ({"spans": "1-" + "9" * 400}, "spans: '1-999.* is beyond 86400 s"),
    ],
)
def test_values_of_the_wrong_kind_are_told_in_words(
    served: Any, tmp_path: Path, tone: Path, asked: dict[str, Any], match: str, capfd: pytest.CaptureFixture[str]
) -> None:
    client = connect(served("tiny_diffusion_cond_inpaint").url, tmp_path)
    where = {"api_name": "/generate"}
    if "spans" in asked:
        where = {"api_name": "/inpaint", "inpaint_audio": gradio_client.handle_file(tone)}
    with pytest.raises(gradio_client.exceptions.AppError, match=match):
        client.predict(**{**QUICK, **asked}, **where)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_files_of_the_machine_are_out_of_reach(served: Any, tmp_path: Path, tone: Path) -> None:
    app = served("tiny_diffusion_cond_inpaint")
    client = connect(app.url, tmp_path)
    *_, settings, _ = client.predict(**QUICK, seed=2, api_name="/generate")
    kept = next(app.folder.glob(f"*/{settings['name']}.wav"))
    for path in (kept, tone, Path("/etc/passwd"), Path(__file__), Path(f"{app.folder}/../../etc/passwd")):
        answer = httpx.get(f"{app.url}gradio_api/file={path}")
        assert answer.status_code in (403, 404), f"{path} was served"
    posing = {"path": str(tone), "meta": {"_type": "gradio.FileData"}}
    values = client.view_api(return_format="dict")["named_endpoints"]["/generate"]["parameters"]
    data = [entry["parameter_default"] for entry in values]
    names = [entry["parameter_name"] for entry in values]
    data[names.index("init_audio")], data[names.index("use_init")], data[names.index("steps")] = posing, True, 1
    call = httpx.post(f"{app.url}gradio_api/call/generate", json={"data": data}).json()["event_id"]
    events = httpx.get(f"{app.url}gradio_api/call/generate/{call}", timeout=20).text
    assert "event: error" in events and "event: complete" not in events


def test_login_guards_page_and_api(served: Any, tmp_path: Path) -> None:
    app = served("tiny_diffusion_cond_inpaint", login=True)
    for path in ("config", "gradio_api/info", "gradio_api/file=/etc/passwd"):
        assert httpx.get(app.url + path).status_code == 401, path
    assert httpx.post(f"{app.url}gradio_api/call/generate", json={"data": []}).status_code == 401
    assert httpx.post(f"{app.url}gradio_api/queue/join", json={"data": [], "fn_index": 1}).status_code == 401
    assert httpx.post(f"{app.url}gradio_api/upload", files={"files": b"x"}).status_code == 401
    with pytest.raises(ValueError, match="Could not login"):
        connect(app.url, tmp_path, auth=("listener", "wrong"))
    *_, settings, _ = connect(app.url, tmp_path, auth=("listener", "open sesame")).predict(
        **QUICK, seed=3, api_name="/generate"
    )
    assert next(app.folder.glob(f"*/{settings['name']}.wav")).parent.name.startswith("user-")
