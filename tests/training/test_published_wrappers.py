"""Training modules as other people's scripts construct them: by keyword, with plain dictionaries of a config."""

import inspect
from typing import Any

import pytest
import torch
from support.small_models import small_model
from support.small_training import arc_section, training_config

from stable_audio_tools.core.config import components, load
from stable_audio_tools.core.config.registry import parameters
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training import (
    create_song_describer_eval_callback_from_config,
    create_tqdm_callback_from_config,
    create_training_wrapper_from_config,
)
from stable_audio_tools.training.arc import ARCTrainingWrapper
from stable_audio_tools.training.autoencoders import AutoencoderTrainingWrapper
from stable_audio_tools.training.diffusion import (
    DiffusionAutoencoderTrainingWrapper,
    DiffusionCondInpaintTrainingWrapper,
    DiffusionCondTrainingWrapper,
    DiffusionUncondTrainingWrapper,
)
from stable_audio_tools.training.lm import AudioLanguageModelTrainingWrapper

# Keyword parameters of the published classes, in their order, with their defaults.
PUBLISHED: dict[type, dict[str, Any]] = {
    AutoencoderTrainingWrapper: {
        "autoencoder": ...,
        "sample_rate": 48000,
        "loss_config": None,
        "eval_loss_config": None,
        "optimizer_configs": None,
        "lr": 1e-4,
        "warmup_steps": 0,
        "warmup_mode": "adv",
        "encoder_freeze_on_warmup": False,
        "use_ema": True,
        "ema_copy": None,
        "force_input_mono": False,
        "latent_mask_ratio": 0.0,
        "teacher_model": None,
        "clip_grad_norm": 0.0,
    },
    DiffusionUncondTrainingWrapper: {"model": ..., "lr": 1e-4, "pre_encoded": False},
    DiffusionCondTrainingWrapper: {
        "model": ...,
        "lr": None,
        "mask_padding": False,
        "mask_padding_dropout": 0.0,
        "use_ema": True,
        "log_loss_info": False,
        "optimizer_configs": None,
        "pre_encoded": False,
        "cfg_dropout_prob": 0.1,
        "timestep_sampler": "uniform",
        "timestep_sampler_options": None,
        "validation_timesteps": (0.1, 0.3, 0.5, 0.7, 0.9),
        "p_one_shot": 0.0,
        "inpainting_config": None,
    },
    DiffusionCondInpaintTrainingWrapper: {"model": ..., "lr": 1e-4, "max_mask_segments": 10},
    DiffusionAutoencoderTrainingWrapper: {
        "model": ...,
        "lr": 1e-4,
        "ema_copy": None,
        "use_reconstruction_loss": False,
    },
    AudioLanguageModelTrainingWrapper: {
        "model": ...,
        "lr": 1e-4,
        "use_ema": False,
        "ema_copy": None,
        "optimizer_configs": None,
        "pre_encoded": False,
    },
    ARCTrainingWrapper: {
        "model": ...,
        "discriminator": ...,
        "arc_config": ...,
        "optimizer_configs": ...,
        "teacher_model": None,
        "use_ema": True,
        "pre_encoded": False,
        "cfg_dropout_prob": 0.0,
    },
}


@pytest.mark.parametrize("wrapper", PUBLISHED, ids=lambda wrapper: wrapper.__name__)
def test_published_signatures_stand(wrapper: type) -> None:
    found = inspect.signature(wrapper).parameters
    published = PUBLISHED[wrapper]
    assert list(found)[: len(published)] == list(published)
    defaults = {
        name: ... if found[name].default is inspect.Parameter.empty else found[name].default for name in published
    }
    assert defaults == published


def test_a_training_module_is_registered_by_its_own_signature() -> None:
    for tag, component in components("training").items():
        assert inspect.isclass(component.target), tag
    own = {p.key: p.default for p in parameters(AutoencoderTrainingWrapper)}
    # Configs that do not say so train without an average; the published class has one.
    assert own["use_ema"] is False and own["learning_rate"] is None and "loss_configs" in own and "model" in own


def exported(wrapper: Any, tmp_path: Any) -> dict[str, Any]:
    wrapper.export_model(str(tmp_path / "out.ckpt"))
    return torch.load(tmp_path / "out.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("use_ema", [True, False])
def test_autoencoders_unwrap_as_the_original_scripts_do_it(
    use_ema: bool, write_config: Any, run_training: Any, checkpoint_of: Any, tmp_path: Any
) -> None:
    def with_average(config: dict[str, Any]) -> None:
        config["training"]["use_ema"] = use_ema

    path = write_config("tiny_autoencoder", with_average)
    checkpoint = checkpoint_of(run_training(path, "--max-steps", "2"))
    training = load(path)["training"]
    wrapper = AutoencoderTrainingWrapper.load_from_checkpoint(
        checkpoint,
        autoencoder=create_model_from_config(load(path)),
        strict=False,
        loss_config=training["loss_configs"],
        use_ema=training["use_ema"],
        ema_copy=create_model_from_config(load(path)) if use_ema else None,
    )
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    prefix = "autoencoder_ema.ema_model." if use_ema else "autoencoder."
    for name, tensor in exported(wrapper, tmp_path).items():
        stored = state.get(prefix + name, state.get("autoencoder." + name))
        torch.testing.assert_close(tensor, stored, rtol=0, atol=0)


def test_inpainting_models_unwrap_without_a_rate(
    write_config: Any, run_training: Any, checkpoint_of: Any, tmp_path: Any
) -> None:
    path = write_config("tiny_diffusion_cond_inpaint")
    checkpoint = checkpoint_of(run_training(path, "--max-steps", "1"))
    model = create_model_from_config(load(path))
    wrapper = DiffusionCondInpaintTrainingWrapper.load_from_checkpoint(checkpoint, model=model, strict=False)
    assert wrapper.inpainting is not None and wrapper.optimizer_config["optimizer"]["config"]["lr"] == 1e-4
    assert exported(wrapper, tmp_path)


def test_an_average_starts_from_the_copy_that_is_given(tmp_path: Any) -> None:
    config = load(small_model("tiny_autoencoder", tmp_path).config)
    model, copy = create_model_from_config(config), create_model_from_config(config)
    wrapper = AutoencoderTrainingWrapper(model, sample_rate=config["sample_rate"], ema_copy=copy)
    averages = wrapper.autoencoder_ema.averaged_state_dict()
    assert all(torch.equal(tensor, copy.state_dict()[name]) for name, tensor in averages.items())


def test_mistakes_in_plain_dictionaries_are_named(tmp_path: Any) -> None:
    config = load(small_model("tiny_autoencoder", tmp_path).config)
    model = create_model_from_config(config)
    with pytest.raises(ConfigError, match=r"loss_config\.spectrum: unknown key; did you mean 'spectral'"):
        AutoencoderTrainingWrapper(model, loss_config={"spectrum": {}})


def test_plain_dictionaries_build_what_configs_build() -> None:
    config = training_config("tiny_diffusion_cond")
    arc_section(config)
    model = create_model_from_config(config)
    built = create_training_wrapper_from_config(config, model)
    critic: Any = create_model_from_config(config)
    section = config["training"]
    by_hand = ARCTrainingWrapper(
        model=create_model_from_config(config),
        discriminator=critic,
        arc_config=section["arc"],
        optimizer_configs=section["optimizer_configs"],
    )
    assert by_hand.arc.discriminator == built.arc.discriminator
    assert list(by_hand.state_dict()) == list(built.state_dict())


def test_callbacks_by_their_published_names() -> None:
    config = training_config("tiny_diffusion_cond")
    config["training"]["tqdm"] = {"refresh_rate": 7}
    assert create_tqdm_callback_from_config(config).refresh_rate == 7
    assert create_song_describer_eval_callback_from_config(config) is None
