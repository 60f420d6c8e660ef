"""The documents that people follow: each command line is understood, and a whole guide runs on small models."""

import json
import shlex
from pathlib import Path

import pytest
import soundfile as sf
import torch
from documents.commands import LINES, STARTED
from support.docs_commands import of_script, parse
from support.small_models import narrowed
from support.small_sounds import write_tones

from stable_audio_tools.cli import describe
from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.config.json_files import resolve_config
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.dataset import load_dataset_config
from stable_audio_tools.models.factory import check_model_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.document}-{line.script}")
def test_every_command_line_is_understood(line) -> None:
    assert parse(*of_script(line.script, shlex.split(line.flags))) is not None


@pytest.mark.parametrize("file", STARTED)
def test_files_that_are_started_exist_and_name_files_that_do(file: str) -> None:
    text = (ROOT / file).read_text()
    assert text.startswith("#!")
    for word in text.replace('"', " ").split():
        if word.startswith("scripts/") and word.endswith((".py", ".sh", ".slurm")):
            assert (ROOT / word).is_file(), word


def test_a_shipped_config_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("stable_audio_2_0", "stable_audio_2_0_vae", "jamendo_full"):
        check_model_config(load(name))
    save({"model_type": "mine"}, "stable_audio_2_0")
    assert load("stable_audio_2_0") == {"model_type": "mine"}
    assert resolve_config("other/stable_audio_2_0") == Path("other/stable_audio_2_0")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model_config.json", "for example jamendo_full"),
        ("model_config_freeze_vae.json", "for example jamendo_freeze_vae"),
        ("model_config_lora.json", "for example jamendo_lora"),
        ("stable_audio_2_0.json", "to use the shipped config, give its name alone: stable_audio_2_0"),
        ("mine.json", "mine.json: no such file$"),
    ],
)
def test_a_missing_config_is_answered_with_the_shipped_one(name: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=remedy):
        load(tmp_path / name)


def test_a_comment_in_a_config_is_answered_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    file.write_text('{\n  "sample_rate": 44100, // of the audio\n  "sample_size": 8192\n}\n')
    with pytest.raises(ConfigError, match=r"model\.json:2:25: JSON has no comments; remove this one"):
        load(file)


def test_paths_of_a_dataset_may_be_relative_to_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tones(tmp_path / "sounds" / "audio", 1)
    (tmp_path / "sounds" / "only.txt").write_text("000.wav\n")
    entry = {"id": "tones", "path": "audio"}
    config = tmp_path / "sounds" / "data.json"
    save({"dataset_type": "audio_dir", "datasets": [entry], "include_paths_file": "only.txt"}, config)
    monkeypatch.chdir(tmp_path)
    loaded = load_dataset_config(config)
    assert loaded["datasets"][0]["path"] == str(tmp_path / "sounds" / "audio")
    assert loaded["include_paths_file"] == str(tmp_path / "sounds" / "only.txt")
    (tmp_path / "audio").mkdir()
    assert load_dataset_config(config)["datasets"][0]["path"] == "audio", "the current folder comes first"
    (tmp_path / "audio").rmdir()
    assert describe.check([str(config)]) == 0


def test_one_process_of_a_launcher_serves_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run("run_gradio.py", "--pretrained-name nobody/nothing")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small stand-ins for what the guides have the reader prepare."""
    write_tones(tmp_path / "audio", 3, seconds=0.8)
    for sound in (tmp_path / "audio").glob("*.wav"):
        about = {"prompt": "a tone", "seconds_start": 0, "seconds_total": 1}
        sound.with_suffix(".json").write_text(json.dumps(about))
    save(
        {"dataset_type": "audio_dir", "datasets": [{"id": "music", "path": str(tmp_path / "audio")}]},
        tmp_path / "data.json",
    )
    text = narrowed(load("tiny_text_to_audio"))
    start = {"id": "seconds_start", "type": "number", "config": {"min_val": 0, "max_val": 16}}
    text["model"]["conditioning"]["configs"].append(start)
    text["model"]["diffusion"]["global_cond_ids"] = ["seconds_total"]
    text["model"]["diffusion"]["cross_attention_cond_ids"] = ["prompt", "seconds_start"]
    del text["training"]["demo"]
    save(text, tmp_path / "dit.json")
    first = narrowed(load("tiny_autoencoder"))
    shared = {key: text[key] for key in ("sample_size", "sample_rate", "audio_channels")}
    save({**first, **shared, "model": text["model"]["pretransform"]["config"]}, tmp_path / "vae.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


_BRIEFLY = "--max-steps 1 --num-workers 0 --logger none --accelerator cpu --precision 32"


def run(script: str, flags: str) -> None:
    command, words = of_script(script, shlex.split(flags))
    assert command(words) == 0, f"{script} {flags}"


@pytest.mark.slow
def test_both_stages_of_the_guide_run_to_the_end(folder: Path) -> None:
    """The guide of friendly-stable-audio-tools and that on pre-encoding, with its flags and smaller numbers."""
    run(
        "train.py",
        f"--dataset-config data.json --model-config vae.json --name vae --batch-size 2 --save-dir out {_BRIEFLY}",
    )
    (wrapped,) = (folder / "out" / "vae").rglob("*.ckpt")
    run("unwrap_model.py", f"--model-config vae.json --ckpt-path {wrapped} --name out/unwrapped_last")
    run(
        "reconstruct_audios.py",
        "--model-config vae.json --ckpt-path out/unwrapped_last.ckpt --audio-dir audio --output-dir out/again "
        "--frame-duration 1.0 --overlap-rate 0.01 --batch-size 50",
    )
    assert len(list((folder / "out" / "again").rglob("*.wav"))) == 3
    run(
        "pre_encode.py",
        "--model-config vae.json --ckpt-path out/unwrapped_last.ckpt --dataset-config data.json "
        "--output-path out/latents --sample-size 8192 --num-workers 0 --batch-size 1",
    )
    assert len(list((folder / "out" / "latents").rglob("*.npy"))) == 3
    run(
        "train.py",
        "--dataset-config data.json --model-config dit.json --pretransform-ckpt-path out/unwrapped_last.ckpt "
        f"--name dit --batch-size 2 --save-dir out {_BRIEFLY}",
    )
    (wrapped,) = (folder / "out" / "dit").rglob("*.ckpt")
    run("unwrap_model.py", f"--model-config dit.json --ckpt-path {wrapped} --name out/dit_last")
    saved = torch.load(folder / "out" / "dit_last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    assert any(name.startswith("pretransform.model.encoder") for name in saved)
    save({**load("dit.json"), "sample_size": 45 * 22050 // 256 * 256 + 256}, "long.json")
    run(
        "generate.py",
        f"--model-config long.json --ckpt-path out/dit_last.ckpt --output-dir out/made --cond-yaml-path "
        f"{ROOT}/example/generation/generate_conditions.yaml --n-sample-per-cond 2 --batch-size 20 --clip-length "
        "--sample-steps 1",
    )
    made = list((folder / "out" / "made").rglob("*.wav"))
    assert len(made) == 14 and sf.info(made[0]).samplerate == 22050
