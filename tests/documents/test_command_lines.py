"""Each command line of the documents runs to its end, on scaled-down models, a little data and one step."""

import csv
import json
import pickle
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from documents.commands import LINES
from support import stand_in_models as stand_ins
from support.docs_commands import of_script
from support.jamendo_mirror import Mirror, mirror, published
from support.small_clap import small_clap, tokenizer, write_folder
from support.small_sounds import tone, write_tones

from stable_audio_tools.core.config import load, save
from stable_audio_tools.evaluation.results import read_results
from stable_audio_tools.interface import gradio
from stable_audio_tools.mel.bigvgan import BigVGAN, BigVGANConfig
from stable_audio_tools.models.autoencoders import kl_2d
from stable_audio_tools.models.conditioners import CLAPTextConditioner
from stable_audio_tools.models.diffusion import unet2d
from stable_audio_tools.training.run_folder import checkpoint_at

__all__ = ["mirror", "published"]  # fixtures

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BRIEFLY = "--max-steps 1 --batch-size 2 --num-workers 0 --logger none --accelerator cpu --devices 1 --num-gpus 0"
SHORTER = {  # flags that follow those of the document
    "train.py": f"{BRIEFLY} --precision 32",
    "train_lora.py": f"{BRIEFLY} --precision 32",
    "pre_encode.py": "--num-workers 0 --sample-size 16384",
    "generate.py": "--pretrained-name models/stable-audio-open-1.0 --sample-steps 1 --batch-size 2",
    "run_gradio.py": "--pretrained-name models/stable-audio-open-1.0",
    "download_mtg_jamendo.py": "--target 6 --with-metadata --mirror MIRROR --lists MIRROR",
    "scripts/dac_hist_dedup.py": "--device cpu --similarity-device cpu --codec spectral",
    "scripts/precompute_song_describer_clap_embeddings.py": "--device cpu --clap-model-name weights/clap",
    "scripts/eval_song_describer_checkpoint_clap.py": "--device cpu --steps 1 --limit 2 --output outputs/scores",
}


_SMALL = "--hop_length 64 --n_fft 256 --sample_rate 8000"
_ONCE = "--num-workers 0 --logger none --accelerator cpu --max-steps 1 --accum-batches 1"
_UNET = "--save_model_steps 1 --save_images_steps 100 --num_inference_steps 1 --eval_batch_size 1"
_SAMPLING = "--num_images 2 --num_inference_steps 1"
MEL = [  # flags that follow those of each line of the guide to spectrogram models
    f"--resolution 16,32 {_SMALL} --num_workers 0",
    "--resolution 32,128 --num_workers 0 --max_examples 1",
    f"--resolution 16,32 --latent_dims 8 {_SMALL} -- {_ONCE}",
    f"{_UNET} {_SMALL} -- {_ONCE}",
    *[f"{_UNET} -- {_ONCE}"] * 3,
    f"{_SAMPLING} --n_iter 1",
    f"{_SAMPLING} --target_length 0.6",
    "--bigvgan_model weights/bigvgan",
    "--model_names mfcc --device cpu --output outputs/fad",
]


def rates(node: Any) -> Any:
    """A config whose adapters and critics are as small as its network."""
    config = stand_ins.scaled(node)
    if "song_describer_eval" in config["training"]:
        config["training"]["song_describer_eval"]["enabled"] = False
    if "lora" in config:
        config["lora"] |= {"rank": 2, "alpha": 2}
    return config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout of the documents: shipped configs under their paths, weights, music, prompts."""
    monkeypatch.chdir(tmp_path)
    configs = tmp_path / "stable_audio_tools" / "configs"
    stand_ins.configs(tmp_path)
    shutil.copytree(stand_ins.CONFIGS / "dataset_configs", configs / "dataset_configs", dirs_exist_ok=True)
    shutil.copytree(ROOT / "example", tmp_path / "example", ignore=shutil.ignore_patterns("clips"))
    stand_ins.clap(tmp_path)
    stand_ins.open_1_0(tmp_path)
    open_model = tmp_path / "models" / "stable-audio-open-1.0" / "model_config.json"
    save({**load(open_model), "sample_size": 2097152}, open_model)
    stand_ins.music(tmp_path)
    audio_dir = {"dataset_type": "audio_dir", "datasets": [{"id": "music", "path": "data/music"}]}
    save(audio_dir, configs / "dataset_configs" / "local_training_example.json")
    return tmp_path


def newest(name: str) -> Callable[[], str]:
    return lambda: str(checkpoint_at(next(path for path in Path().glob(f"**/{name}") if path.is_dir())))


def run(
    document: str, places: dict[str, str | Callable[[], str]], shorter: list[str] | None = None, mirror: str = ""
) -> Iterator[str]:
    """Run the lines of a document in order; yield each script after its line."""
    lines = [line for line in LINES if line.document == document]
    more = [SHORTER.get(line.script, "") for line in lines] if shorter is None else shorter
    for line, further in zip(lines, more, strict=True):
        flags = f"{line.flags} {further}"
        for place in sorted(places, key=len, reverse=True):
            value = places[place]
            if place in flags:
                flags = flags.replace(place, value if isinstance(value, str) else value())
        flags = flags.replace("MIRROR", mirror)
        assert "/path/to" not in flags, flags
        command, words = of_script(line.script, shlex.split(flags))
        assert command(words) == 0, f"{line.script} {flags}"
        yield line.script


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The apps that are built, instead of a server that waits."""
    apps: list[Any] = []
    monkeypatch.setattr(gradio, "serve", lambda app, *_: apps.append(app))
    return apps


def test_upstream(folder: Path, served: list[Any]) -> None:
    vae = "stable_audio_tools/configs/model_configs/autoencoders/stable_audio_2_0_vae.json"
    data = "stable_audio_tools/configs/dataset_configs/local_training_example.json"
    places = {
        "/path/to/D.json": data, "/path/to/D": data, "/path/to/M.json": vae, "/path/to/M": vae,
        "/path/to/wrapped": newest("harmonai_train"), "/path/to/model.ckpt": "model_unwrap.ckpt", "/path/to/out": "out",
    }  # fmt: skip
    scripts = list(run("upstream", places))
    assert len(scripts) == 4 and len(served) == 1
    assert list((folder / "out").rglob("*.npy"))


def test_friendly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLAPTextConditioner, "tokenizer", property(lambda _: tokenizer()))
    vae = "stable_audio_tools/configs/model_configs/autoencoders/stable_audio_2_0_vae.json"
    data = "stable_audio_tools/configs/dataset_configs/local_training_example.json"
    dit = folder / "stable_audio_tools" / "configs" / "model_configs" / "txt2audio" / "stable_audio_2_0.json"
    dit.write_text(dit.read_text().replace("/path/to/clap.ckpt", str(next((folder / "weights").glob("music*.pt")))))
    places = {
        "/path/to/D": data, "/path/to/M": vae, "/path/to/w.ckpt": newest("my_experiment"), "/path/to/new": "new",
        "/path/to/last.ckpt": newest("vae_training"), "/path/to/unwrapped_last": "unwrapped_last",
        "/path/to/audio": "data/music", "/path/to/out": "out",
    }  # fmt: skip
    assert len(list(run("friendly", places))) == 6
    assert (folder / "new.ckpt").exists() and (folder / "unwrapped_last.ckpt").exists()
    assert len(list((folder / "out").rglob("*.wav"))) >= 5
    assert list((folder / "out" / "dit_training").rglob("*.ckpt"))


def test_open(folder: Path, served: list[Any]) -> None:
    assert len(list(run("open", {"/path/to/out": "out", "/path/to/tmp": "tmp"}))) == 2
    files = sorted((folder / "out").rglob("*.wav"))
    assert len(files) == 14 and sf.info(files[0]).samplerate == 44100
    assert len(served) == 1


def test_jamendo(folder: Path, mirror: Mirror) -> None:
    for name in ("full", "freeze_vae", "lora"):
        config = rates(load(f"jamendo_{name}"))
        save(config, "model_config.json" if name == "full" else f"model_config_{name}.json")
    weights = folder / "dataset" / "pretrained_model"
    weights.mkdir(parents=True)
    full = load("model_config.json")
    stand_ins.random_model(full, weights / "model.ckpt")
    pretransform = full["model"]["pretransform"]["config"]
    vae = {key: full[key] for key in ("sample_size", "sample_rate", "audio_channels")}
    stand_ins.random_model({**vae, "model_type": "autoencoder", "model": pretransform}, weights / "vae_model.ckpt")
    song_describer = folder / "dataset" / "small-700"
    rows = [[number, number, f"{number % 100}/{number}.2min.wav", "a slow piano", 1.2] for number in (214, 314)]
    for number, _, name, *_ in rows:
        path = song_describer / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, tone(number, 1.2).numpy().T, 22050)
    shutil.copy(mirror.folder / "raw_30s.tsv", song_describer)
    with (song_describer / "song_describer.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["caption_id", "track_id", "path", "caption", "duration"], *rows])
    write_folder(small_clap(64), folder / "weights" / "clap")

    scripts = list(
        run("jamendo", {"/path/to/checkpoint.ckpt": newest("stable_audio_open_finetune")}, mirror=mirror.url)
    )
    assert len(scripts) == 8
    assert (folder / "outputs" / "dac_dedup" / "exclude_paths.txt").exists()
    assert list((folder / "outputs" / "stable_audio_lora_jamendo").rglob("*.safetensors"))
    (result,) = read_results(folder / "outputs" / "scores" / "scores.json")
    assert result.scores and json.dumps(result.scores)


def test_spectrogram_guide(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl_2d, "_MULTIPLES", {"small": (1, 1)})
    for presets in (unet2d.PRESETS, unet2d.CONDITIONED_PRESETS):
        monkeypatch.setitem(presets, "small", unet2d.Levels((32, 32), (1,)))
    write_tones(folder / "audio", 2, seconds=0.4)
    yaml = "model:\n  base_learning_rate: 4.5e-6\n  params:\n    ddconfig: {z_channels: 1, ch: 32, num_res_blocks: 1}\n"
    (folder / "config").mkdir()
    (folder / "config" / "ldm_autoencoder_kl.yaml").write_text(
        f"{yaml}    lossconfig: {{params: {{disc_start: 50001}}}}\n"
    )
    vectors = {path.name: np.ones((1, 8), np.float32) for path in (folder / "audio").glob("*.wav")}
    (folder / "data" / "encodings.p").write_bytes(pickle.dumps(vectors))
    size = {
        "sampling_rate": 8000,
        "num_mels": 8,
        "n_fft": 64,
        "hop_size": 4,
        "win_size": 64,
        "use_tanh_at_final": False,
    }
    size |= {"upsample_rates": [4], "upsample_kernel_sizes": [8], "upsample_initial_channel": 8}
    (folder / "weights" / "bigvgan").mkdir()
    (folder / "weights" / "bigvgan" / "config.json").write_text(json.dumps(size))
    network = BigVGAN(BigVGANConfig.parse(size, "config.json"))
    torch.save({"generator": network.state_dict()}, folder / "weights" / "bigvgan" / "bigvgan_generator.pt")
    (folder / "data" / "tensors").mkdir()
    torch.save(torch.randn(1, 8, 20), folder / "data" / "tensors" / "tensor_0.pt")

    scripts = list(run("mel", {"/path/to/audio": "audio"}, MEL))
    assert len(scripts) == 11
    for name in ("vae", "ddpm", "ddpm/model_step_1", "latent", "cond", "more"):
        assert (folder / "models" / name / "model.safetensors").exists(), name
    assert (folder / "data" / "tensors" / "audio" / "tensor_0.wav").exists()
    assert read_results(folder / "outputs" / "fad" / "scores.json")[0].scores
