"""The scripts of the spectrogram guide: its flags write configs, train, resume, generate and score."""

import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from support.docs_commands import of_script
from support.small_sounds import write_tones

from stable_audio_tools.core.config import load
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.evaluation.results import read_results
from stable_audio_tools.mel import guide
from stable_audio_tools.models.autoencoders import kl_2d
from stable_audio_tools.models.diffusion import unet2d
from stable_audio_tools.models.factory import check_model_config
from stable_audio_tools.training.factory import check_training_config

IMAGES = "--resolution 16,32 --hop_length 64 --n_fft 256 --sample_rate 8000 --num_channels 1 --num_workers 0"
BRIEFLY = "-- --num-workers 0 --logger none --accelerator cpu --limit-train-batches 1 --log-every 1"
YAML = """
model:
  base_learning_rate: 1.0e-5
  params:
    embed_dim: 2
    ddconfig: {z_channels: 2, ch: 32, num_res_blocks: 1, in_channels: 1}
    lossconfig: {params: {disc_start: 4, kl_weight: 1.0e-5, disc_weight: 0.4}}
"""


def run(script: str, flags: str) -> int:
    command, words = of_script(script, shlex.split(flags))
    return command(words)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small sounds, and networks a fraction as wide."""
    write_tones(tmp_path / "audio", 3, seconds=0.4)
    monkeypatch.setattr(kl_2d, "_MULTIPLES", {"small": (1, 1)})
    narrow = unet2d.Levels((32, 32), (1,))
    for presets in (unet2d.PRESETS, unet2d.CONDITIONED_PRESETS):
        monkeypatch.setitem(presets, "small", narrow)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_guide_runs_from_clips_to_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scripts/audio_to_images.py", f"--input_dir audio --output_dir mels {IMAGES} --format arrow") == 0
    (folder / "kl.yaml").write_text(YAML)
    vae = (
        "-d mels -b 2 -c kl.yaml --latent_dims 16,8 --max_epochs 1 --ldm_checkpoint_dir ldm --hf_checkpoint_dir vae "
        "--save_every_n_batches 1 --save_images_batches 100"
    )
    assert run("scripts/train_vae.py", f"{vae} {BRIEFLY}") == 0
    config = load("vae/model_config.json")
    assert config["model"]["encoder"]["config"] == {
        "bands": 32, "latent_channels": 2, "downsamplings": 1, "layers_per_block": 1, "size": "small"
    }  # fmt: skip
    assert config["training"]["loss_configs"]["discriminator"]["weights"]["adversarial"] == 0.4
    assert "$ python train.py --model-config ldm/model_config.json" in capsys.readouterr().out

    unet = (
        "--dataset_name mels --mel_spec_method image --output_dir ddpm --train_batch_size 2 --num_epochs 1 "
        "--max_training_num_steps 2 --lr_scheduler cosine --lr_warmup_steps 1 --save_model_steps 1 2 "
        "--save_images_steps 100 --num_inference_steps 2 --train_scheduler ddpm --test_scheduler ddim"
    )
    assert run("scripts/train_unet.py", f"{unet} {BRIEFLY}") == 0
    (first,) = Path("ddpm/runs/unet").rglob("*.ckpt")
    assert (folder / "ddpm" / "model_step_1" / "model.safetensors").exists()
    assert run("scripts/train_unet.py", f"{unet} --num_epochs 2 --from_pretrained {first} {BRIEFLY}") == 0
    assert (folder / "ddpm" / "model_step_2" / "model.safetensors").exists(), "resumed where the first run ended"

    sampling = "--num_images 2 --num_inference_steps 2 --seed 1 --eval_batch_size 2"
    assert run("scripts/inference_unet.py", f"--pretrained_model_path ddpm {sampling} --n_iter 2 --eta 0.5") == 0
    files = sorted((folder / "ddpm" / "samples" / "sch_ddim_nisteps_2" / "gl2").rglob("*.wav"))
    assert len(files) == 2 and sf.info(files[0]).samplerate == 8000

    flags = f"{unet.replace('ddpm --train_batch', 'latent --train_batch')} --vae vae {BRIEFLY}"
    assert run("scripts/train_unet.py", flags) == 0
    assert load("latent/model_config.json")["model"]["pretransform"]["type"] == "autoencoder"
    outpaint = "--continuous_outpainting --target_length 0.6 --percentage_overlap 0.5 --gold_label_path audio"
    flags = f"--pretrained_model_path latent --scheduler ddpm {sampling} {outpaint} --num_images 1"
    assert run("scripts/inference_unet.py", flags) == 0
    found = sorted((folder / "latent" / "samples" / "sch_ddpm_nisteps_2").rglob("*.wav"))
    assert len(found) == 1, found
    (longer,) = found
    assert sf.info(longer).duration == pytest.approx(0.6, abs=0.01)

    scores = "--reference_paths audio --generated_path ddpm/samples/sch_ddim_nisteps_2/gl2 --model_names mfcc"
    metric = "--metric frechet_audio_distance --log_dir logs --log_step 1 --device cpu --output scores"
    assert run("scripts/evaluation.py", f"{scores} {metric}") == 0
    (result,) = read_results(folder / "scores" / "scores.json")
    assert all(np.isfinite(value) for value in result.scores.values()) and result.scores


def test_a_conditional_model_trains_on_pickled_encodings(folder: Path) -> None:
    assert run("scripts/audio_to_images.py", f"--input_dir audio --output_dir mels {IMAGES}") == 0
    names = [path.name for path in sorted((folder / "audio").glob("*.wav"))]
    vectors = {name: np.full((1, 8), index, np.float32) for index, name in enumerate(names)}
    (folder / "encodings.p").write_bytes(pickle.dumps(vectors))
    flags = (
        "--dataset_name mels --encodings encodings.p --output_dir cond --train_batch_size 2 --num_epochs 1 "
        f"--max_training_num_steps 1 --lr_warmup_steps 0 --use_ema False --num_inference_steps 1 {BRIEFLY}"
    )
    assert run("scripts/train_unet.py", flags) == 0
    config = load("cond/model_config.json")
    assert config["model_type"] == "diffusion_cond" and config["model"]["conditioning"]["cond_dim"] == 8
    sampling = "--num_images 2 --num_inference_steps 1 --mel_spec_method bigvgan"
    assert run("scripts/inference_unet.py", f"--pretrained_model_path cond {sampling}") == 0
    assert len(list((folder / "cond" / "samples").rglob("*.wav"))) == 2
    assert len(list((folder / "cond" / "samples").rglob("*.npy"))) == 2


def test_configs_of_the_guide_s_sizes_are_valid() -> None:
    mel = {"type": "mel", "config": {"variant": "db_image", "n_fft": 2048, "hop_length": 256, "n_mels": 256}}
    data = guide.Spectrograms({}, mel, 22050, 1024, 256, "path")
    assert guide.count_halvings((1024, 256), (256, 64)) == 2
    for size, preset in (("small", "tiny"), ("medium", "small"), ("large", "large")):
        codec = guide.autoencoder_config(data, guide.AutoencoderRecipe(), 2, size, 1000)
        adam = {"type": "AdamW", "config": {"lr": 1e-4}}
        schedule = {"type": "WarmupLR", "config": {"warmup_steps": 500, "total_steps": 10000, "shape": "cosine"}}
        recipe = guide.UNetRecipe(preset, adam, schedule, 1000, True, 1000, 50, 4)
        for config in (
            codec,
            guide.unet_config(data, recipe, None, None),
            guide.unet_config(data, recipe, codec, ("encodings.safetensors", 512)),
        ):
            check_model_config(config)
            check_training_config(config)


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("train_vae.py", "-d nowhere", "nowhere is not a folder; write it with scripts/audio_to_images.py"),
        ("train_vae.py", "-d mels --resolution 8,8", "--resolution: the spectrograms are 16,32"),
        ("train_vae.py", "-d mels --latent_dims 64", "--latent-dims: 64 is more than the larger side"),
        ("train_vae.py", "-d mels -c none.yaml", "--ldm-config-file: none.yaml: no such file"),
        ("train_vae.py", "-d mels --hop_length 512", "--hop-length: the spectrograms of mels have 64, not 512"),
        ("train_vae.py", "-d mels --mel_spec_method bigvgan", "are of the kind image"),
        ("train_unet.py", "--dataset_name mels --vae mels", "--vae: mels has no model_config.json"),
        ("train_unet.py", "--dataset_name mels --use_waveform True", "--use_waveform: unknown flag"),
        ("inference_unet.py", "--pretrained_model_path mels", "mels is not a folder with model_config.json"),
        ("inference_unet.py", "--pretrained_model_path mels --eta 60", "--eta: expected 0 to 1, got 60"),
        ("inference_unet.py", "--pretrained_model_path m --continuous_outpainting", "--gold-label-path: missing"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, script: str, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("scripts/audio_to_images.py", f"--input_dir audio --output_dir mels {IMAGES}") == 0
    assert run(f"scripts/{script}", flags) == 2
    assert message in capsys.readouterr().err


def test_a_yaml_file_without_its_sections_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kl.yaml").write_text("model: {}\n")
    with pytest.raises(ConfigError, match=r"kl\.yaml: expected model\.base_learning_rate"):
        guide.read_recipe(tmp_path / "kl.yaml")
