"""Training of spectrogram models: losses fall, the critic waits, the scale of the latents is measured."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stable_audio_tools
from stable_audio_tools.attribution.models import AttributedModel, SampleMaker
from stable_audio_tools.core.config import load
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.evaluation.embedders.spectral import LogmelEmbedder
from stable_audio_tools.evaluation.metrics.frechet import frechet_distance, gaussian_of
from stable_audio_tools.inference.generation import generate_diffusion_uncond
from stable_audio_tools.latents.identity import LatentEncoder
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training.diffusion.conditional import encode
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.run import Recipe, read_configs
from stable_audio_tools.training.settings import TrainSettings

pytest.importorskip("diffusers")
SMALL = {"block_out_channels": [8, 16], "norm_groups": 4}
PART = {"bands": 16, "latent_channels": 2, "downsamplings": 1, "mid_attention": False, **SMALL}
AUTOENCODER: dict[str, Any] = {
    "encoder": {"type": "kl_2d", "config": PART},
    "decoder": {"type": "kl_2d", "config": PART},
    "bottleneck": {"type": "kl"},
    "pretransform": {"type": "mel", "config": {"n_fft": 256, "hop_length": 64, "n_mels": 16}},
    "latent_dim": 16,
    "downsampling_ratio": 128,
    "io_channels": 1,
}
TRAINING: dict[str, Any] = {
    "learning_rate": 3e-3,
    "loss_space": "pretransform",
    "warmup_steps": 40,
    "warmup_mode": "full",
    "loss_configs": {
        "discriminator": {
            "type": "patch",
            "config": {"filters": 8, "num_layers": 2},
            "weights": {"adversarial": 0.1, "feature_matching": 0.0},
        },
        "time": {"type": "l1", "weights": {"l1": 1.0}},
        "bottleneck": {"type": "kl", "weights": {"kl": 1e-6}},
    },
}


def autoencoder_config(**training: Any) -> dict[str, Any]:
    return {
        "model_type": "autoencoder",
        "sample_rate": 8000,
        "sample_size": 2048,
        "audio_channels": 1,
        "model": copy.deepcopy(AUTOENCODER),
        "training": {**copy.deepcopy(TRAINING), **training},
    }


def unet_config(pretransform: dict[str, Any], channels: int, **objective: Any) -> dict[str, Any]:
    return {
        "model_type": "diffusion_uncond",
        "sample_rate": 8000,
        "sample_size": 2048,
        "audio_channels": 1,
        "model": {
            "type": "unet2d",
            "config": {"io_channels": channels, **SMALL},
            "diffusion_objective": {"type": "ddpm", "config": objective},
            "pretransform": pretransform,
        },
        "training": {"learning_rate": 3e-3, "use_ema": False},
    }


def wrapper_of(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    wrapper = create_training_wrapper_from_config(config, create_model_from_config(config))
    wrapper.log_terms = lambda terms: wrapper.__dict__.setdefault("told", []).append(terms)
    wrapper.learning_rate = lambda *_: 0.0
    return wrapper.train()


def chirps() -> torch.Tensor:
    time = torch.arange(2048) / 8000
    return torch.stack([torch.sin(6.28 * (300 * k + 500 * time) * time) * 0.3 for k in (1, 2, 3, 4)])[:, None]


def test_an_autoencoder_learns_spectrograms_and_its_critic_waits() -> None:
    wrapper = wrapper_of(autoencoder_config())
    optimizers, _ = wrapper.configure_optimizers()
    steps = iter(range(1000))
    type(wrapper).global_step = property(lambda self: self.__dict__["counted"])  # type: ignore[assignment]
    try:
        wrapper.optimizers = lambda: optimizers
        wrapper.lr_schedulers = lambda: None
        wrapper.manual_backward = lambda loss: loss.backward()
        before = copy.deepcopy(wrapper.discriminator.state_dict())
        for _ in range(40):
            wrapper.__dict__["counted"] = next(steps)
            wrapper.training_step((chirps(), [{}] * 4), 0)
        unchanged = all(torch.equal(before[key], value) for key, value in wrapper.discriminator.state_dict().items())
        first, last = wrapper.told[0], wrapper.told[-1]
        for _ in range(4):
            wrapper.__dict__["counted"] = next(steps)
            wrapper.training_step((chirps(), [{}] * 4), 0)
        trained = any(not torch.equal(before[key], value) for key, value in wrapper.discriminator.state_dict().items())
    finally:
        del type(wrapper).global_step
    assert unchanged
    assert trained
    assert last["image_loss"] < 0.6 * first["image_loss"]
    assert "discriminator_loss" in wrapper.told[-1] or "discriminator_loss" in wrapper.told[-2]


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_a_unet_learns_mel_bands(kind: str) -> None:
    mel = {"type": "mel", "config": {"n_fft": 256, "hop_length": 64, "n_mels": 16}}
    wrapper = wrapper_of(unet_config(mel, 16, prediction_type=kind, min_snr=5.0))
    optimizer = torch.optim.Adam(wrapper.diffusion.model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = wrapper.training_step((chirps(), [{}] * 4), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def distance(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """Fréchet distance of log-mel statistics, which need no weights."""
    embedder = LogmelEmbedder(8000, bands=8, window_seconds=0.064, hop_seconds=0.032)
    sets = [np.concatenate([embedder.frames(clip[0]) for clip in clips]) for clips in (made, wanted)]
    return frechet_distance(gaussian_of(sets[0]), gaussian_of(sets[1]))


def test_a_trained_unet_makes_what_is_nearer_to_the_data_than_an_untrained_one_does() -> None:
    """From audio through mel bands, training, sampling and Griffin-Lim to a score, as the guide does."""
    vocoder = {"type": "griffin_lim", "config": {"n_iter": 8}}
    mel = {"type": "mel", "config": {"n_fft": 256, "hop_length": 64, "n_mels": 16, "vocoder": vocoder}}
    wrapper = wrapper_of(unet_config(mel, 16, prediction_type="v", clip_sample=1.0))

    def made() -> torch.Tensor:
        return generate_diffusion_uncond(
            wrapper.diffusion.eval(), 15, 8, 2048, 3, "cpu", sampler_type="ddim", schedule="trailing", progress=False
        )

    before = distance(made(), chirps())
    optimizer = torch.optim.Adam(wrapper.diffusion.model.parameters(), 3e-3)
    wrapper.train()
    for _ in range(80):
        loss = wrapper.training_step((chirps(), [{}] * 4), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = distance(made(), chirps())
    assert after < before / 3


@pytest.mark.parametrize("chained", [True, False])
def test_the_scale_of_latents_is_measured_once_and_kept(chained: bool) -> None:
    node: dict[str, Any] = {"type": "autoencoder", "scale": "auto", "config": copy.deepcopy(AUTOENCODER)}
    if chained:
        mel = node["config"].pop("pretransform")
        node["config"] |= {"downsampling_ratio": 2, "io_channels": 16}
        node = {"type": "chain", "config": {"stages": [mel, node]}}
    config = unet_config(node, 16)
    wrapper = wrapper_of(config)
    with pytest.raises(ValueError, match="the scale of the latents is 'auto' and not measured yet"):
        wrapper.diffusion.pretransform.encode(chirps())
    wrapper.training_step((chirps(), [{}] * 4), 0)
    latents = wrapper.diffusion.pretransform.encode(chirps())
    assert latents.std().item() == pytest.approx(1, abs=0.1)  # the bottleneck draws
    kept = {name: value for name, value in wrapper.exported.state_dict().items() if "latent_scale" in name}
    assert len(kept) == 1
    wrapper.training_step((chirps() * 0.01, [{}] * 4), 1)
    assert {name: wrapper.exported.state_dict()[name] for name in kept} == kept
    again = create_model_from_config(config)
    again.load_state_dict(wrapper.exported.state_dict())
    assert again.pretransform.encode(chirps()).std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("scale", ["auto", 2.0])
def test_live_and_pre_encoded_latents_of_a_chain_are_the_same(scale: Any) -> None:
    node: dict[str, Any] = {"type": "autoencoder", "scale": scale, "config": copy.deepcopy(AUTOENCODER)}
    mel = node["config"].pop("pretransform")
    node["config"] |= {"downsampling_ratio": 2, "io_channels": 16}
    model = create_model_from_config(unet_config({"type": "chain", "config": {"stages": [mel, node]}}, 16))
    encode(model, chirps(), pre_encoded=False)  # measures the scale
    torch.manual_seed(0)  # the bottleneck draws
    live = encode(model, chirps(), pre_encoded=False)
    torch.manual_seed(0)
    stored = LatentEncoder(model)(chirps())
    torch.testing.assert_close(encode(model, stored, pre_encoded=True), live)
    made = SampleMaker(AttributedModel(model, {}, torch.device("cpu")), pre_encoded=True, seed=0)
    torch.testing.assert_close(made._clean(stored, "data"), live)


MEL_NODE = {"type": "mel", "config": {"n_fft": 256, "hop_length": 64, "n_mels": 16}}
LATENTS = {"dataset_type": "pre_encoded", "datasets": [{"id": "latents", "path": "latents"}]}
CLIPS = {"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": "clips"}]}
SHARDS = {"dataset_type": "wds", "datasets": [{"id": "shards", "path": "shards"}]}
HOLDS_LATENTS = (
    r"model.json: training.pre_encoded: is false, but .*{}.json: dataset_type: {} holds latents; set it to true"
)
HOLDS_AUDIO = r"model.json: training.pre_encoded: is true, but .*{}.json: dataset_type: {} holds audio; set it to false"


def configs_of(folder: Path, config: dict[str, Any], data: dict[str, Any], held_out: dict[str, Any]) -> TrainSettings:
    paths = []
    for name, content in (("model", config), ("data", data), ("held_out", held_out)):
        paths.append(str(folder / f"{name}.json"))
        Path(paths[-1]).write_text(json.dumps(content))
    return TrainSettings(model_config=paths[0], dataset_config=paths[1], val_dataset_config=paths[2])


@pytest.mark.parametrize(
    ("pre_encoded", "data", "held_out", "message"),
    [
        (False, LATENTS, CLIPS, HOLDS_LATENTS.format("data", "'pre_encoded'")),
        (False, CLIPS, {**SHARDS, "pre_encoded": True}, HOLDS_LATENTS.format("held_out", "'wds' with pre_encoded")),
        (True, CLIPS, LATENTS, HOLDS_AUDIO.format("data", "'audio_dir'")),
        (True, LATENTS, SHARDS, HOLDS_AUDIO.format("held_out", "'wds'")),
    ],
)
def test_data_of_the_wrong_kind_are_refused(
    pre_encoded: bool, data: dict[str, Any], held_out: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = unet_config(MEL_NODE, 16)
    config["training"]["pre_encoded"] = pre_encoded
    settings = configs_of(tmp_path, config, data, held_out)
    with pytest.raises(ConfigError, match=message):
        read_configs(settings, Recipe())


@pytest.mark.parametrize("pre_encoded", [False, True])
def test_data_of_the_right_kind_are_taken(pre_encoded: bool, tmp_path: Path) -> None:
    config = unet_config(MEL_NODE, 16)
    config["training"]["pre_encoded"] = pre_encoded
    both = (LATENTS, {**SHARDS, "pre_encoded": True}) if pre_encoded else (CLIPS, SHARDS)
    read_configs(configs_of(tmp_path, config, *both), Recipe())
    del config["model"]["pretransform"]  # the model takes what there is
    read_configs(configs_of(tmp_path, config, LATENTS, CLIPS), Recipe())


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"loss_configs": {"mrmel": {"type": "mel", "weights": {"mrmel": 1.0}}}}, "loss_configs.mrmel needs audio"),
        ({"eval_loss_configs": {"stft": {}}}, "teacher_model or eval_loss_configs needs audio"),
        ({"loss_space": "audio", "loss_configs": None, "pre_encoded": True}, "pre_encoded: the losses need audio"),
    ],
)
def test_losses_of_audio_and_spectrograms_do_not_mix(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrapper_of(autoencoder_config(**training))


def test_spectrograms_need_a_pretransform() -> None:
    config = autoencoder_config()
    del config["model"]["pretransform"]
    config["model"] |= {"downsampling_ratio": 2, "io_channels": 16}
    with pytest.raises(ConfigError, match="loss_space: is 'pretransform', but the model has none"):
        wrapper_of(config)


def test_the_examples_are_the_shipped_tiny_configs() -> None:
    shipped = Path(stable_audio_tools.__file__).parent / "configs/model_configs/mel"
    for path in (Path(__file__).parents[2] / "example/models").glob("mel_*.json"):
        assert load(path) == load(shipped / f"tiny_{path.name}"), path.name
