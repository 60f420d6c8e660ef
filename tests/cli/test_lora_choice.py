"""`--lora PATH[:STRENGTH]`: paths may hold colons, strengths may be anything finite."""

import json
from pathlib import Path

import pytest
from support.small_adapters import small_adapter
from support.small_models import small_model

from stable_audio_tools.cli import generate
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.data.comments import read_comment
from stable_audio_tools.models.lora_choice import lora_choice


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1e-1", "a.safetensors", -0.1),
        ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1),
        ("C:\\loras\\a.safetensors:2", "C:\\loras\\a.safetensors", 2),
        ("C:/loras/a.safetensors", "C:/loras/a.safetensors", 1),
        ("take 12:30.safetensors", "take 12:30.safetensors", 1),
        ("take 12:30.safetensors:0.7", "take 12:30.safetensors", 0.7),
        (":0.5", ":0.5", 1),
    ],
)
def test_the_last_colon_may_begin_a_strength(text: str, path: str, strength: float) -> None:
    assert lora_choice(text) == (Path(path), strength)


def test_a_file_of_the_whole_name_comes_first(tmp_path: Path) -> None:
    (tmp_path / "mix:2").touch()
    assert lora_choice(f"{tmp_path}/mix:2") == (tmp_path / "mix:2", 1)
    assert lora_choice(f"{tmp_path}/mix:2:0.5") == (tmp_path / "mix:2", 0.5)


@pytest.mark.parametrize(("end", "sentence"), [("loud", "a strength is expected, got 'loud'"), ("nan", "finite")])
def test_what_is_no_strength_is_told(tmp_path: Path, end: str, sentence: str) -> None:
    (tmp_path / "a.ckpt").touch()
    with pytest.raises(UserError, match=sentence):
        lora_choice(f"{tmp_path / 'a.ckpt'}:{end}")


def test_generate_takes_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = small_model("tiny_diffusion_cond", tmp_path)
    one, two = (small_adapter(*base, tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("ab"))
    prompts = tmp_path / "p.yaml"
    prompts.write_text("rain: {sound: rain, seconds_total: 1}")
    model = ["--model-config", str(base.config), "--ckpt-path", str(base.weights), "--device", "cpu"]
    rest = ["--output-dir", str(tmp_path / "out"), "--cond-yaml-path", str(prompts), "--sample-steps", "1"]
    assert generate.main([*model, *rest, "--lora", f"{one}:0.25", "--lora", str(two)]) == 0
    said = json.loads(read_comment(tmp_path / "out" / "rain_item-1.wav") or "")["adapters"]
    assert [(each["file"], each["strength"]) for each in said] == [("a.safetensors", 0.25), ("b.safetensors", 1)]
    assert generate.main([*model, *rest, "--lora", f"{tmp_path}/absent.safetensors:1"]) == 2
    assert "absent.safetensors: no such file" in capsys.readouterr().err
