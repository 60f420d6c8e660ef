"""A real browser drives the app: every page, listening, reuse, drawing, cancelling, logging in."""

import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest
import soundfile as sf
import torch

from stable_audio_tools.data import audio_io
from stable_audio_tools.interface.marks import parse_areas
from stable_audio_tools.models.transformer.blocks import TransformerBlock

pytest.importorskip("gradio", reason="the extra 'ui' is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no chromium with chromedriver (apt-get install chromium chromium-driver)",
)
SHOTS = Path(__file__).parents[2] / "outputs" / "screenshots"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,1500"
)
RATE = 22050


class Browser:
    """A page, by the ids of its elements."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, ready: str) -> None:
        self.driver.get(url)
        self.find(f"#{ready}")

    def find(self, selector: str) -> Any:
        return self.wait(lambda: next(iter(self.driver.find_elements("css selector", selector)), None), selector)

    def click(self, selector: str) -> None:
        def click() -> bool:
            element = self.find(selector)
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()
            return True

        self.wait(click, f"clicking {selector}")

    def type(self, selector: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        field = self.find(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)

    def fold(self, title: str) -> None:
        """Open a group of controls."""
        from selenium.webdriver.common.by import By

        path = f"//button[contains(@class, 'label-wrap')][.//span[normalize-space()='{title}']]"
        self.wait(
            lambda: [each.click() or True for each in self.driver.find_elements(By.XPATH, path) if each.is_displayed()],
            title,
        )

    def tab(self, title: str) -> None:
        self.wait(
            lambda: [
                tab.click() or True
                for tab in self.driver.find_elements("css selector", "button[role=tab]")
                if tab.text == title
            ],
            f"the tab {title}",
        )

    def drag(self, picture_id: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Over a picture, between places: shares of its width from the left and of its height from the top."""
        from selenium.webdriver.common.action_chains import ActionChains

        picture = self.find(f"#{picture_id} img")
        self.wait(lambda: picture.is_displayed() and picture.size["width"] > 100, "the picture")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
        width, height = picture.size["width"], picture.size["height"]
        first = [round((place - 0.5) * side) for place, side in zip(start, (width, height))]
        move = [round((b - a) * side) for a, b, side in zip(start, end, (width, height))]
        hand = ActionChains(self.driver, duration=20).move_to_element_with_offset(picture, *first)
        hand.click_and_hold().move_by_offset(*move).release().perform()

    def written(self, element: str) -> str:
        """What a text box holds, once it holds something."""
        field = f"#{element} textarea, #{element} input"
        return str(self.wait(lambda: self.find(field).get_attribute("value"), f"text in {element}"))

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                found = condition()
            except WebDriverException:
                found = None
            if found:
                return found
            time.sleep(0.05)
        self.shot("failed")
        raise AssertionError(f"waited {seconds} s for {what}; see {SHOTS}/failed.png")

    def status(self, page: str, text: str) -> str:
        field = f"#{page}-status"
        self.wait(lambda: text in self.find(field).text, f"{text!r} in {field}")
        return str(self.find(field).text)

    def audio(self, element: str) -> tuple[np.ndarray, int]:
        """What the player offers for download, fetched with the cookies of this browser and decoded."""
        link = self.wait(
            lambda: self.driver.find_element("css selector", f"#{element} a[download]").get_attribute("href"),
            f"a download in #{element}",
        )
        cookies = {cookie["name"]: cookie["value"] for cookie in self.driver.get_cookies()}
        answer = httpx.get(urljoin(self.driver.current_url, link), cookies=cookies).raise_for_status()
        return sf.read(io.BytesIO(answer.content))

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        service = webdriver.chrome.service.Service(DRIVER, env={**os.environ, "SE_OFFLINE": "true"})
        driver = webdriver.Chrome(options=options, service=service)
        yield Browser(driver)
        driver.quit()


@pytest.fixture(scope="module")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "tone.wav"
    fade = torch.linspace(1, 0.1, 8000)
    audio_io.write(path, 0.5 * fade * torch.sin(torch.arange(8000) * 0.08).expand(2, -1), RATE)
    return path


def test_text_to_audio_then_reuse_as_input(browser: Browser, served: Any) -> None:
    app = served("prompted")
    browser.open(app.url, "generate-start")
    browser.fold("Sampling")
    browser.type("#generate-steps input[type=number]", "6")
    browser.type("#generate-preview_every input[type=number]", "2")
    browser.type("#generate-prompt textarea", "rain on a tin roof")
    browser.type("#generate-seed input", "7")
    browser.click("#generate-start")
    told = browser.status("generate", "Done in")
    assert "seed 7" in told
    heard, rate = browser.audio("generate-result")
    expected = app.model.generate("rain on a tin roof", seed=7, steps=6, conditions={"seconds_total": 1}).audio[0]
    expected = expected / expected.abs().max().clamp(min=1)
    assert rate == RATE
    # The file has 16 bits.
    np.testing.assert_allclose(heard.T, expected.numpy(), atol=1.1 / 32768)
    browser.wait(
        lambda: len(browser.driver.find_elements("css selector", "#generate-pictures button img")) == 4,
        "three previews and the result",
    )
    browser.shot("text-to-audio")

    browser.click("#runs button.thumbnail-item")
    browser.find("#chosen a[download]")
    browser.click("#use-generate-init_audio")
    browser.fold("Variation of audio")
    browser.find("#generate-init_audio a[download]")
    assert browser.find("#generate-use_init input").is_selected()
    browser.type("#generate-init_noise_level input[type=number]", "0.3")
    browser.type("#generate-sigma_min input", "0.01")
    browser.shot("variation")
    browser.click("#generate-start")
    browser.wait(lambda: len(browser.driver.find_elements("css selector", "#runs button")) == 2, "a second run")
    varied, _ = browser.audio("generate-result")
    assert varied.shape == heard.shape and not np.allclose(varied, heard, atol=1e-3)

    browser.driver.refresh()
    browser.wait(lambda: len(browser.driver.find_elements("css selector", "#runs button")) == 2, "the runs of before")
    browser.click("#runs button.thumbnail-item:last-child")
    browser.find("#chosen a[download]")
    browser.click("#use-settings")
    browser.wait(
        lambda: browser.find("#generate-prompt textarea").get_attribute("value") == "rain on a tin roof", "its prompt"
    )
    assert browser.find("#generate-seed input").get_attribute("value") == "7"
    browser.shot("gallery")


def start_a_long_run(browser: Browser, app: Any) -> None:
    browser.open(app.url, "generate-start")
    browser.fold("Sampling")
    browser.type("#generate-steps input[type=number]", "500")
    browser.click("#generate-start")
    browser.status("generate", "Step ")


def test_a_long_run_is_cancelled(browser: Browser, served: Any) -> None:
    app = served("prompted")
    start_a_long_run(browser, app)
    browser.click("#generate-cancel")
    browser.status("generate", "Stopped")
    browser.shot("cancelled")
    browser.type("#generate-steps input[type=number]", "2")
    browser.click("#generate-start")
    browser.status("generate", "Done in")


@pytest.fixture
def slowed(served: Any) -> Iterator[Any]:
    """`slowed(name)`: the app of that model, whose 500 steps take a minute, however fast the machine."""
    hooks = []

    def get(name: str) -> Any:
        app = served(name)
        layer = next(part for part in app.model.module.model.modules() if isinstance(part, TransformerBlock))
        hooks.append(layer.register_forward_pre_hook(lambda *_: time.sleep(0.12)))
        return app

    yield get
    for hook in hooks:
        hook.remove()


def test_a_run_is_cancelled_while_it_waits_for_its_turn(browser: Browser, slowed: Any) -> None:
    from gradio_client import Client

    app = slowed("prompted")
    somebody = Client(app.url, verbose=False)
    long = somebody.submit(prompt="bells", seconds_total=0.3, steps=500, api_name="/generate")
    browser.wait(lambda: any("Step" in output[4] for output in long.outputs()[-1:]), "somebody else's run")
    browser.open(app.url, "generate-start")
    runs = len(list(app.folder.rglob("*.wav")))
    browser.click("#generate-start")
    # The page says so, since the model is busy.
    browser.wait(lambda: "queue" in browser.find("#generate-status").text, "a place in the queue")
    browser.shot("queued")
    browser.click("#generate-cancel")
    assert not long.done()
    long.cancel()
    browser.status("generate", "Stopped")
    assert len(list(app.folder.rglob("*.wav"))) == runs


def test_cancel_is_for_its_own_page(browser: Browser, slowed: Any, tone: Path) -> None:
    app = slowed("tiny_diffusion_cond_inpaint")
    start_a_long_run(browser, app)
    browser.tab("Inpaint")
    browser.find("#inpaint-inpaint_audio input[type=file]").send_keys(str(tone))
    browser.type("#inpaint-spans textarea, #inpaint-spans input", "0.1-0.2")
    browser.click("#inpaint-start")
    browser.wait(lambda: "queue" in browser.find("#inpaint-status").text, "a place in the queue")
    browser.click("#inpaint-cancel")
    browser.tab("Generate")
    step = browser.status("generate", "Step ")
    browser.wait(lambda: browser.find("#generate-status").text not in ("", step), "a further step")
    browser.status("generate", "Step ")
    browser.click("#generate-cancel")
    browser.status("generate", "Stopped")
    browser.tab("Inpaint")
    browser.status("inpaint", "Stopped")


def test_inpainting_with_a_drawn_span(browser: Browser, served: Any, tone: Path) -> None:
    app = served("tiny_diffusion_cond_inpaint")
    browser.open(app.url, "generate-start")
    browser.tab("Inpaint")
    browser.find("#inpaint-inpaint_audio input[type=file]").send_keys(str(tone))
    browser.drag("inpaint-spans-picture", (0.25, 0.5), (0.5, 0.5))
    text = browser.written("inpaint-spans")
    start, end = (float(place) for place in text.split("-"))
    seconds = 8000 / RATE
    assert start == pytest.approx(0.25 * seconds, abs=0.02) and end == pytest.approx(0.5 * seconds, abs=0.02)

    browser.fold("Sampling")
    browser.type("#inpaint-steps input[type=number]", "3")
    browser.click("#inpaint-start")
    browser.status("inpaint", "Done in")
    browser.driver.execute_script("window.scrollTo(0, 0)")
    browser.shot("inpainting")
    made, _ = browser.audio("inpaint-result")
    original = audio_io.read(tone).samples.T.numpy()
    scale = np.abs(made[: round((start - 0.03) * RATE)] - original[: round((start - 0.03) * RATE)]).max()
    assert scale < 2e-4, "what was not drawn over is kept"
    middle = slice(round(start * RATE), round(end * RATE))
    assert not np.allclose(made[middle], original[middle], atol=1e-2)


def test_an_area_drawn_on_the_spectrogram_is_made_anew(browser: Browser, served: Any, tone: Path) -> None:
    pytest.importorskip("diffusers", reason="the extra 'mel' is not installed")
    app = served("tiny_mel_unet")
    browser.open(app.url, "generate-start")
    browser.tab("Spectrogram")
    browser.find("#spectrogram-inpaint_audio input[type=file]").send_keys(str(tone))
    browser.drag("spectrogram-areas-picture", (0.5, 0.25), (0.75, 0.75))
    (area,) = parse_areas(browser.written("spectrogram-areas"))
    seconds, bands = 8000 / RATE, 64
    assert (area.start, area.end) == (pytest.approx(0.5 * seconds, abs=0.02), pytest.approx(0.75 * seconds, abs=0.02))
    assert (area.low, area.high) == (pytest.approx(bands / 4, abs=2), pytest.approx(bands * 3 / 4, abs=2))

    browser.fold("Sampling")
    browser.type("#spectrogram-steps input[type=number]", "3")
    browser.click("#spectrogram-start")
    browser.status("spectrogram", "Done in")
    browser.driver.execute_script("window.scrollTo(0, 0)")
    browser.shot("spectrogram")
    made, _ = browser.audio("spectrogram-result")
    made = made.mean(axis=-1) if made.ndim == 2 else made
    original = audio_io.read(tone).samples.mean(0).numpy()
    before = slice(0, round((area.start - 0.1) * RATE))  # a window of the transform and a cross-fade away
    np.testing.assert_allclose(made[before], original[before], atol=2e-4)
    middle = slice(round(area.start * RATE), round(area.end * RATE))
    assert not np.allclose(made[middle], original[middle], atol=1e-2)


@pytest.mark.parametrize(
    ("name", "page", "steps"),
    [
        ("tiny_diffusion_uncond", "generate", 2),
        ("tiny_lm", "generate", None),
        ("tiny_autoencoder", "process", None),
        ("tiny_diffusion_autoencoder", "process", 2),
    ],
)
def test_the_page_of_every_other_kind(
    browser: Browser, served: Any, tone: Path, name: str, page: str, steps: int | None
) -> None:
    app = served(name)
    browser.open(app.url, f"{page}-start")
    if page == "process":
        browser.find(f"#{page}-init_audio input[type=file]").send_keys(str(tone))
        browser.find(f"#{page}-init_audio a[download], #{page}-init_audio .waveform-container")
    if steps is not None:
        browser.fold("Settings" if page == "process" else "Sampling")
        browser.type(f"#{page}-steps input[type=number]", str(steps))
    browser.click(f"#{page}-start")
    browser.status(page, "Done in")
    heard, rate = browser.audio(f"{page}-result")
    assert rate == RATE and heard.shape[1] == 2 and np.abs(heard).max() > 0
    assert len(heard) == (8000 if page == "process" else 8192)
    browser.shot(name)


def test_only_those_who_log_in_see_it(browser: Browser, served: Any) -> None:
    app = served("tiny_diffusion_cond_inpaint", login=True)
    browser.driver.get(app.url)
    browser.find("input[type=password]")

    def log_in(password: str) -> None:
        name, word = browser.driver.find_elements("css selector", "input")[:2]
        for field, text in ((name, "listener"), (word, password)):
            field.clear()
            field.send_keys(text)
        next(each for each in browser.driver.find_elements("css selector", "button") if "ogin" in each.text).click()

    log_in("wrong")
    browser.wait(lambda: "ncorrect" in browser.driver.page_source, "a refusal")
    assert not browser.driver.find_elements("css selector", "#generate-start")
    browser.shot("login-refused")
    log_in("open sesame")
    browser.find("#generate-start")
