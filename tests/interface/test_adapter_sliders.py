"""A page has a slider for every adapter, and what it says acts in that run alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_adapters import small_adapter

from stable_audio_tools.inference.generation.model import load
from stable_audio_tools.interface.pages import pages_of


@pytest.mark.parametrize("name", ["tiny_diffusion_cond_inpaint", "tiny_autoencoder"])
def test_sliders_set_strengths(small_files: Any, name: str, tmp_path: Path) -> None:
    base = small_files(name)
    paths = [
        small_adapter(*base, tmp_path / file, seed) for seed, file in enumerate(("a-b.safetensors", "a b.safetensors"))
    ]
    model = load(*base, "cpu", lora={paths[0]: 0.5, paths[1]: 3})
    for page in pages_of(model):
        controls = {control.name: control for control in page.controls}
        first, second = controls["lora_a_b"], controls["lora_a_b_2"]
        assert (first.label, first.default, first.minimum, first.maximum) == ("a-b", 0.5, -1, 2)
        assert (second.label, second.default, second.maximum) == ("a b", 3, 3)
    page = pages_of(model)[0]
    values = {control.name: control.default for control in page.controls} | {"steps": 1}
    if "init_audio" in values:
        values["init_audio"] = (model.sample_rate, torch.rand(2, 4096) - 0.5)

    def heard(one: float, two: float) -> torch.Tensor:
        return model.generate(**page.request(values | {"seed": 1, "lora_a_b": one, "lora_a_b_2": two})).audio

    if "steps" not in controls:
        values.pop("steps")
    plain = heard(0, 0)
    assert torch.equal(plain, heard(0, 0)) and not torch.equal(plain, heard(1, 0))
    assert not torch.equal(heard(1, 0), heard(1, 1))
    assert [adapter.strength for adapter in model.adapters.values()] == [0.5, 3]
    assert [told["strength"] for told in model.describe_adapters({"a b": 0.1})] == [0.5, 0.1]


def test_the_api_takes_strengths_and_tells_them(
    small_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("gradio_client", reason="the extra 'ui' is not installed")
    pytest.importorskip("gradio", reason="the extra 'ui' is not installed")
    from stable_audio_tools.interface.gradio import create_ui, serve

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    base = small_files("tiny_diffusion_cond")
    song = small_adapter(*base, tmp_path / "song.safetensors")
    app = create_ui(*base, tmp_dir=tmp_path / "runs", device="cpu", lora=[(song, 0.5)])
    _, url, _ = serve(app, prevent_thread_lock=True, quiet=True)
    try:
        page = client.Client(url, verbose=False, download_files=str(tmp_path))
        asked = {"sound": "rain", "steps": 1, "sampler_type": "euler", "seed": 1, "api_name": "/generate"}
        audio, _, _, settings, _ = page.predict(**asked, lora_song=0.25)
        plain = page.predict(**asked, lora_song=0)[0]
    finally:
        app.close(verbose=False)
    assert [(told["file"], told["strength"]) for told in settings["adapters"]] == [("song.safetensors", 0.25)]
    assert Path(audio).read_bytes() != Path(plain).read_bytes()
