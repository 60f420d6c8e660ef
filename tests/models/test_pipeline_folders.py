"""Pipeline folders of diffusers: theirs here and ours there, with the same images."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stable_audio_tools
from stable_audio_tools.config import CheckpointError, ConfigError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.pipeline_folders import load_pipeline, write_pipeline

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("librosa")
SIZE = {"bands": 16, "frames": 24}
MEL = {"x_res": 24, "y_res": 16, "sample_rate": 8000, "n_fft": 256, "hop_length": 64, "n_iter": 1}
UNET = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
CODEC = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 2, "layers_per_block": 1}


def their_pipeline(latent: bool, conditioned: bool) -> Any:
    torch.manual_seed(0)
    codec = None
    if latent:
        codec = diffusers.AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            scaling_factor=0.7,
            **CODEC,
        )
    channels = 2 if latent else 1
    size = (8, 12) if latent else (16, 24)
    if conditioned:
        unet = diffusers.UNet2DConditionModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            cross_attention_dim=6,
            attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            **UNET,
        )
    else:
        unet = diffusers.UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            **UNET,
        )
    scheduler = diffusers.DDIMScheduler(clip_sample=not latent)
    return diffusers.AudioDiffusionPipeline(vqvae=codec, unet=unet, mel=diffusers.Mel(**MEL), scheduler=scheduler)


def their_images(pipeline: Any, noise: torch.Tensor, encoding: torch.Tensor | None) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    more = {} if encoding is None else {"encoding": encoding}
    images, _ = pipeline(batch_size=2, steps=6, noise=noise.clone(), eta=0.0, return_dict=False, **more)
    pixels = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images]
    return torch.stack(pixels).reshape(-1, 16, 24)


def our_images(model: Any, noise: torch.Tensor, encoding: torch.Tensor | None) -> torch.Tensor:
    """From the same noise, by the sampler ddim; (b, 16, 24) in 8 bits."""
    from stable_audio_tools.inference.generation_run import GenerationRun
    from stable_audio_tools.inference.options import SamplingOptions

    options = SamplingOptions(sampler_type="ddim", progress=False)
    run = GenerationRun(model, 6, 2, 24 * 64, 0, "cpu", options)
    with torch.no_grad():
        if encoding is None:
            denoiser = model.denoiser()
        else:
            tensors = model.conditioner([{"encoding": row} for row in encoding[:, 0]], "cpu")
            denoiser = model.denoiser(model.get_conditioning_inputs(tensors))
        latents = run.sample(lambda _: denoiser, start=noise.flatten(1, 2))
        codec = getattr(model.pretransform, "model", None)
        bands = latents if codec is None else codec.decode(latents * model.pretransform.scale, skip_pretransform=True)
    return ((bands / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("latent", [False, True], ids=["pixels", "latents"])
@pytest.mark.parametrize("conditioned", [False, True], ids=["unconditional", "conditional"])
def test_there_and_back(latent: bool, conditioned: bool, tmp_path: Path) -> None:
    theirs = their_pipeline(latent, conditioned)
    theirs.save_pretrained(tmp_path / "theirs")
    noise = torch.randn(2, *((2, 8, 12) if latent else (1, 16, 24)), generator=torch.Generator().manual_seed(1))
    encoding = torch.randn(2, 1, 6) if conditioned else None
    expected = their_images(theirs, noise, encoding)

    model, config = load_pipeline(tmp_path / "theirs")
    made = our_images(model, noise, encoding)
    assert (made.int() - expected.int()).abs().max() <= 1  # rounding of a value on the edge of two levels
    assert (made == expected).float().mean() > 0.99
    assert config["sample_size"] == 24 * 64

    write_pipeline(model, config, tmp_path / "ours")
    opened = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert torch.equal(their_images(opened, noise, encoding), expected)
    again, same = load_pipeline(tmp_path / "ours")
    assert same == config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_folder_loads_by_its_path(tmp_path: Path) -> None:
    their_pipeline(False, False).save_pretrained(tmp_path)
    model = stable_audio_tools.load(tmp_path, device="cpu")
    made = model.generate(steps=2, seed=1, progress=False)
    assert made.audio.shape == (1, 1, 24 * 64)
    assert model.facts.recommended is not None
    assert model.facts.recommended.sampler_type == "ddim"


def test_what_would_be_another_model_is_refused(tmp_path: Path) -> None:
    pipeline = their_pipeline(False, False)
    pipeline.save_pretrained(tmp_path)
    unet = json.loads((tmp_path / "unet/config.json").read_text())
    (tmp_path / "unet/config.json").write_text(json.dumps({**unet, "act_fn": "relu"}))
    with pytest.raises(CheckpointError, match=r"unet/config.json: act_fn is 'relu', and only 'silu' is known here"):
        load_pipeline(tmp_path)
    (tmp_path / "unet/config.json").write_text(json.dumps(unet))
    scheduler = tmp_path / "scheduler/scheduler_config.json"
    told = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**told, "beta_schedule": "sigmoid"}))
    with pytest.raises(CheckpointError, match="beta_schedule is 'sigmoid'; known are linear"):
        load_pipeline(tmp_path)
    scheduler.write_text(json.dumps(told))
    model, config = load_pipeline(tmp_path)
    other = copy.deepcopy(config)
    other["model"]["pretransform"]["config"] = {"n_fft": 256, "hop_length": 64, "n_mels": 16}
    with pytest.raises(ConfigError, match="holds mels of the variant 'db_image'"):
        write_pipeline(model, other, tmp_path / "no")
    other = copy.deepcopy(config)
    other["model"]["diffusion_objective"] = "v"
    with pytest.raises(ConfigError, match="holds 'ddpm', and this is 'v'"):
        write_pipeline(create_model_from_config(other), other, tmp_path / "no")
