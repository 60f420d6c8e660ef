"""Pipeline folders of diffusers: theirs here and ours there, with the same images."""

import copy
import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

import stable_audio_tools
from stable_audio_tools.cli.mel import convert as convert_pipeline
from stable_audio_tools.core.errors import CheckpointError, ConfigError
from stable_audio_tools.inference.generation.model import find_config
from stable_audio_tools.mel.pipeline_folders import PIPELINES, write_pipeline
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.pretrained import get_pretrained_model

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
    from stable_audio_tools.inference.generation.request import GenerationRequest, Hooks
    from stable_audio_tools.inference.generation.run import GenerationRun

    request = GenerationRequest(sampler_type="ddim")
    run = GenerationRun(model, 6, 2, 24 * 64, 0, "cpu", request, Hooks(progress=False))
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

    model, config = PIPELINES.load(tmp_path / "theirs")
    made = our_images(model, noise, encoding)
    assert (made.int() - expected.int()).abs().max() <= 1  # rounding of a value on the edge of two levels
    assert (made == expected).float().mean() > 0.99
    assert config["sample_size"] == 24 * 64

    write_pipeline(model, config, tmp_path / "ours")
    opened = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert torch.equal(their_images(opened, noise, encoding), expected)
    again, same = PIPELINES.load(tmp_path / "ours")
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
    with pytest.raises(CheckpointError, match=r"unet/config.json: act_fn is 'relu', and only 'silu' is supported here"):
        PIPELINES.load(tmp_path)
    (tmp_path / "unet/config.json").write_text(json.dumps(unet))
    scheduler = tmp_path / "scheduler/scheduler_config.json"
    told = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**told, "beta_schedule": "sigmoid"}))
    with pytest.raises(CheckpointError, match="beta_schedule is 'sigmoid'; known are linear"):
        PIPELINES.load(tmp_path)
    scheduler.write_text(json.dumps(told))
    model, config = PIPELINES.load(tmp_path)
    other = copy.deepcopy(config)
    other["model"]["pretransform"]["config"] = {"n_fft": 256, "hop_length": 64, "n_mels": 16}
    with pytest.raises(ConfigError, match="holds mels of the variant 'db_image'"):
        write_pipeline(model, other, tmp_path / "no")
    other = copy.deepcopy(config)
    other["model"]["diffusion_objective"] = "v"
    with pytest.raises(ConfigError, match="holds 'ddpm', and this is 'v'"):
        write_pipeline(create_model_from_config(other), other, tmp_path / "no")


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with an autoencoder; copy it to change it."""
    made = tmp_path_factory.mktemp("pipeline")
    their_pipeline(True, False).save_pretrained(made)
    return made


def test_the_config_of_a_folder_is_found_without_its_weights(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    (copied / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"none")
    assert find_config(copied) == PIPELINES.load(folder)[1]


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no unet": (lambda it: shutil.rmtree(it / "unet"), "unet/config.json: no such file, and model_index.json names"),
    "no weights": (
        lambda it: (it / "vqvae/diffusion_pytorch_model.safetensors").unlink(),
        "vqvae/diffusion_pytorch_model.safetensors: no such file, and model_index.json names",
    ),
    "damaged weights": (
        lambda it: (it / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"{"),
        "unet/diffusion_pytorch_model.safetensors: cannot be read (",
    ),
    "other weights": (
        lambda it: shutil.copy(it / "vqvae/diffusion_pytorch_model.safetensors", it / "unet"),
        "unet/diffusion_pytorch_model.safetensors: 'conv_",
    ),
    "bad JSON": (lambda it: (it / "unet/config.json").write_text("{"), "unet/config.json:1:"),
    "bad index": (lambda it: (it / "model_index.json").write_text("{"), "model_index.json:1:"),
    "words for channels": (
        lambda it: change(it / "unet/config.json", block_out_channels="x"),
        "unet/config.json: no UNet2DModel can be built from it",
    ),
    "a word for a hop": (
        lambda it: change(it / "mel/mel_config.json", hop_length="x"),
        "mel/mel_config.json: hop_length is 'x'; expected a whole number above 0",
    ),
    "no bands": (lambda it: change(it / "mel/mel_config.json", y_res=0), "y_res is 0; expected a whole number"),
    "no scale": (
        lambda it: change(it / "vqvae/config.json", scaling_factor=0),
        "vqvae/config.json: scaling_factor is 0; expected a number above 0",
    ),
    "half a class": (
        lambda it: change(it / "model_index.json", unet=["diffusers"]),
        "model_index.json: unet is ['diffusers']; expected a library and a class in it",
    ),
    "a word for a count": (
        lambda it: change(it / "scheduler/scheduler_config.json", num_train_timesteps="x"),
        "the pipeline cannot be built here: ",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_folders_are_told_in_a_sentence(
    how: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    spoil, sentence = BROKEN[how]
    spoil(broken)
    with pytest.raises(CheckpointError):
        PIPELINES.load(broken)
    assert convert_pipeline(["--from-pipeline", str(broken), "--output-dir", str(tmp_path / "out")]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and told[0].startswith(f"error: {broken}") and sentence in told[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("model_index.json", "scheduler", ["diffusers", "PNDMScheduler"]),
        ("model_index.json", "vqvae", ["diffusers", "VQModel"]),
        ("scheduler/scheduler_config.json", "timestep_spacing", "trailing"),
        ("scheduler/scheduler_config.json", "variance_type", "fixed_large"),
        ("scheduler/scheduler_config.json", "set_alpha_to_one", False),
        ("scheduler/scheduler_config.json", "steps_offset", 1),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1, 0.2]),
        ("scheduler/scheduler_config.json", "thresholding", True),
        ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", True),
        ("vqvae/config.json", "act_fn", "gelu"),
        ("vqvae/config.json", "shift_factor", 0.5),
        ("vqvae/config.json", "latents_mean", [0.5, 0.5]),
        ("vqvae/config.json", "use_quant_conv", False),
    ],
)
def test_settings_that_would_be_dropped_are_refused(
    file: str, name: str, value: Any, folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    change(other / file, **{name: value})
    told = value[1] if name in ("scheduler", "vqvae") else value
    with pytest.raises(CheckpointError) as caught:
        PIPELINES.load(other)
    assert str(caught.value).startswith(f"{other / file}: {name} is {told!r}")
    assert "supported here" in str(caught.value)


def test_settings_without_an_effect_pass(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    change(other / "vqvae/config.json", force_upcast=False, sample_size=7)
    change(other / "scheduler/scheduler_config.json", sample_max_value=3.0, variance_type="fixed_small")
    change(other / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    assert find_config(other) == find_config(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fmin": 20.0}, "fmin of the mel transform is 20.0, and pipeline folders hold only 0;"),
        ({"fmax": 3000.0}, "fmax of the mel transform is 3000.0, and pipeline folders hold only 4000;"),
        ({"win_length": 128}, "win_length of the mel transform is 128, and pipeline folders hold only 256;"),
        ({"channels": 2}, "channels of the mel transform is 2, and pipeline folders hold only 1;"),
        ({"n_mels": 15}, "n_mels is 15; diffusers cannot halve .* a multiple of 2"),
        ({"sample_size": 23 * 64}, "sample_size: is 1472, 23 frames; .* a multiple of 2 frames: of 128 samples"),
    ],
)
def test_what_a_pipeline_cannot_hold_is_not_written(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    their_pipeline(False, False).save_pretrained(tmp_path / "theirs")
    model, config = PIPELINES.load(tmp_path / "theirs")
    size = changes.pop("sample_size", config["sample_size"])
    other = copy.deepcopy(config) | {"sample_size": size}
    other["model"]["pretransform"]["config"] |= changes
    with pytest.raises(ConfigError, match=sentence):
        write_pipeline(model, other, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_sizes_are_halved_by_the_autoencoder_too(folder: Path, tmp_path: Path) -> None:
    model, config = PIPELINES.load(folder)
    with pytest.raises(ConfigError, match=r"22 frames; .* a multiple of 4 frames: of 256 samples"):
        write_pipeline(model, config | {"sample_size": 22 * 64}, tmp_path / "no")


def test_the_settings_of_a_pipeline_may_be_spelled_out(tmp_path: Path) -> None:
    their_pipeline(False, False).save_pretrained(tmp_path / "theirs")
    model, config = PIPELINES.load(tmp_path / "theirs")
    other = copy.deepcopy(config)
    other["model"]["pretransform"]["config"] |= {"fmin": 0.0, "fmax": 4000.0, "win_length": 256, "channels": 1}
    write_pipeline(model, other, tmp_path / "ours")
    assert find_config(tmp_path / "ours") == config


class Hub:
    """A repository at huggingface.co that is a folder, with a cache that is another."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache
        self.patterns: list[list[str]] = []

    def one(self, name: str, filename: str, local_files_only: bool, **_: Any) -> str:
        from huggingface_hub import errors

        if local_files_only and not (self.cache / filename).is_file():
            raise errors.LocalEntryNotFoundError("not cached")
        if not (self.repository / filename).is_file():
            raise errors.EntryNotFoundError("no")
        return str(self._fetched(filename))

    def several(self, name: str, allow_patterns: list[str], local_files_only: bool, **_: Any) -> str:
        if not local_files_only:
            self.patterns.append(allow_patterns)
            names = [str(path.relative_to(self.repository)) for path in self.repository.rglob("*") if path.is_file()]
            for filename in names:
                if any(fnmatch(filename, pattern) for pattern in allow_patterns):
                    self._fetched(filename)
        return str(self.cache)

    def _fetched(self, filename: str) -> Path:
        (self.cache / filename).parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(self.repository / filename, self.cache / filename))


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    made = Hub(shutil.copytree(folder, tmp_path / "repository"), tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", made.one)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.several)
    return made


def test_a_pipeline_opens_by_its_name_on_the_hub(hub: Hub, folder: Path) -> None:
    (hub.repository / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle beside the safetensors")
    (hub.repository / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another precision")
    model, config = get_pretrained_model("owner/pipeline")
    assert config == find_config(folder) and not model.training
    assert sorted(path.name for path in (hub.cache / "unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    again, _ = get_pretrained_model("owner/pipeline")
    assert len(hub.patterns) == 1  # the second time it was in the cache
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_older_pipelines_of_the_hub_have_pickles_only(hub: Hub, folder: Path) -> None:
    from safetensors.torch import load_file

    for part in ("unet", "vqvae"):
        file = hub.repository / part / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    model, _ = get_pretrained_model("owner/pipeline")
    expected = PIPELINES.load(folder)[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_half_a_pipeline_on_the_hub_is_told(hub: Hub) -> None:
    (hub.repository / "mel/mel_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"owner/pipeline: .* holds no mel/mel_config.json, which its model"):
        get_pretrained_model("owner/pipeline")


def test_other_kinds_of_pipelines_are_not_downloaded(hub: Hub) -> None:
    change(hub.repository / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(CheckpointError, match="describes a StableDiffusionPipeline, not an AudioDiffusionPipeline"):
        get_pretrained_model("owner/pipeline")
    assert not hub.patterns
