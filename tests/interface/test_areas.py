"""Areas of a spectrogram: as text, drawn, as masks, and made anew by the page."""

from pathlib import Path
from typing import Any

import pytest
import torch

import stable_audio_tools
from stable_audio_tools.interface.marks import (
    Area,
    add_rectangle,
    keep_mask,
    mel_of,
    parse_areas,
    show_areas,
    spectrogram_of,
)
from stable_audio_tools.interface.pages import pages_of

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from stable_audio_tools.core.config import load
    from stable_audio_tools.models import create_model_from_config
    from stable_audio_tools.models.checkpoints import save_weights

    config = load(next(Path(stable_audio_tools.__file__).parent.rglob("tiny_mel_unet.json")))
    config["sample_size"] = 8192
    config["model"]["config"]["block_out_channels"] = [8, 8]
    path = save_weights(create_model_from_config(config), tmp_path_factory.mktemp("mel") / "m.safetensors")
    return stable_audio_tools.load(config, path, device="cpu")


def test_text_and_back() -> None:
    text = "0.5-1.2:10-40, 3-4"
    assert parse_areas(text) == [Area(0.5, 1.2, 10, 40), Area(3.0, 4.0)]
    assert show_areas(parse_areas(text)) == text
    assert add_rectangle("", "0.25 0.5 0.75 0.5", 4.0, 64) == "1-2:16-32"
    assert add_rectangle(text, "0.3 0.3 0.1 0.9", 4.0, 64) == text  # a click
    for wrong, message in (("x", "'x' is not an area"), ("2-1", "ends before it starts"), ("1-2:9-3", "ends before")):
        with pytest.raises(ValueError, match=message):
            parse_areas(wrong)


def test_masks(model: Any) -> None:
    mel = mel_of(model)
    assert mel is not None
    mask = keep_mask([Area(0.1, 0.2, 10, 40)], mel, 32)
    assert mask.shape == (64, 32)
    assert (mask == 0).nonzero().amin(0).tolist() == [10, 9]
    assert (mask == 0).nonzero().amax(0).tolist() == [39, 16]
    with pytest.raises(ValueError, match="0-1:10-99 names more than the 64 bands of the model"):
        keep_mask([Area(0, 1, 10, 99)], mel, 32)
    with pytest.raises(ValueError, match="none overlaps the audio"):
        keep_mask([Area(5, 6)], mel, 32)
    picture = spectrogram_of(torch.zeros(1, 5000), mel, [Area(0, 0.1)])
    assert picture.size == (900, 300)
    assert picture.getpixel((800, 10)) == (0, 0, 4) and picture.getpixel((1, 150)) == (255, 255, 255)  # silence, frame


def test_the_page_makes_its_areas_anew_and_nothing_else(model: Any) -> None:
    page = pages_of(model)[-1]
    assert page.title == "Spectrogram"
    values = {control.name: control.default for control in page.controls}
    audio = torch.randn(1, 8192, generator=torch.Generator().manual_seed(0)) * 0.1
    values |= {"inpaint_audio": (22050, audio), "areas": "0.1-0.2:10-40", "steps": 4, "seed": 1, "num_samples": 1}
    request = page.request(values)
    made = model.generate(**request, progress=False).audio[0]
    assert torch.equal(made[:, :1500], audio[:, :1500])  # away from the area the samples are the same
    assert not torch.allclose(made[:, 2500:4000], audio[:, 2500:4000], atol=0.01)
    with pytest.raises(ValueError, match="there is no audio to edit"):
        page.request(values | {"inpaint_audio": None})


def test_the_app_holds_the_page(model: Any, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from stable_audio_tools.interface.gradio import create_app

    app = create_app(model, folder=tmp_path)
    names = {getattr(block, "elem_id", None) for block in app.blocks.values()}
    assert {"spectrogram-areas", "spectrogram-areas-picture", "spectrogram-areas-picture-drag"} <= names
