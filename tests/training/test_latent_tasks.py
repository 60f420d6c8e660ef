"""Training of SAME: each task of the latents, its warm-up, the curriculum of strides, fine-tuning, augmentation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.next_cases import autoencoder, same_large, same_small

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training.autoencoders import AutoencoderTrainingWrapper
from stable_audio_tools.training.autoencoders.augmentation import append_chirps, silence_tails
from stable_audio_tools.training.factory import create_training_wrapper_from_config

SPECTRAL = {"config": {"fft_sizes": [64], "hop_sizes": [16], "win_lengths": [64], "version": "0.0.20"}}
TASKS: dict[str, dict[str, Any]] = {
    "contrastive": {"config": {"transformer_dim": 64, "depth": 1, "levels": 3}, "warmup": 0},
    "jepa": {"config": {"transformer_dim": 64, "depth": 1, "mask_block_size": 2}, "warmup": 0},
    "generative": {"config": {"embed_dim": 32, "depth": 1, "num_heads": 2}, "warmup": 0},
    "semantic_regressors": {"config": {"n_fft": 64}, "warmup": 0},
}
VALUES = {
    "contrastive": "contrastive_loss",
    "jepa": "jepa_loss",
    "generative": "diffusion_loss",
    "semantic_regressors": "chroma_5_regressor",
}


def wrapper(model: dict[str, Any] | None = None, losses: dict[str, Any] | None = None, **training: Any) -> Any:
    torch.manual_seed(0)
    config = autoencoder(model or same_small())
    config["training"] = {
        "learning_rate": 1e-3,
        "loss_configs": {"spectral": SPECTRAL, **(losses or {})},
        **training,
    }
    module = create_training_wrapper_from_config(config, create_model_from_config(config))
    assert isinstance(module, AutoencoderTrainingWrapper)
    return module


def steps(module: Any, monkeypatch: pytest.MonkeyPatch, count: int, step: int = 0) -> list[dict[str, float]]:
    """Run training steps with one Adam for the generator."""
    logged: list[dict[str, float]] = []
    optimizer = torch.optim.Adam([p for p in module.players()[0].parameters() if p.requires_grad], 2e-3)

    def take_turn(loss: torch.Tensor, index: int) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    monkeypatch.setattr(module, "take_turn", take_turn)
    monkeypatch.setattr(module, "learning_rate", lambda index=0: 0.0)
    monkeypatch.setattr(module, "log_terms", lambda terms: logged.append({k: float(v) for k, v in terms.items()}))
    monkeypatch.setattr(type(module), "global_step", step)
    audio = 0.3 * torch.sin(torch.arange(512) * torch.tensor([0.05, 0.11, 0.23])[:, None])[:, None].expand(-1, 2, -1)
    for _ in range(count):
        module.training_step((audio.contiguous(), [{}] * 3), 0)
    return logged


@pytest.mark.parametrize("task", TASKS)
def test_each_task_trains_with_the_autoencoder(task, monkeypatch):
    module = wrapper(losses={task: TASKS[task]})
    logged = steps(module, monkeypatch, 25)
    assert logged[-1]["loss"] < logged[0]["loss"] and VALUES[task] in logged[0]
    assert any(name.startswith("latent_tasks.") for name in module.state_dict())


@pytest.mark.parametrize("task", TASKS)
def test_during_the_warm_up_the_encoder_does_not_follow(task):
    gradients = []
    for warmup in (10, 0):
        module = wrapper(losses={task: {**TASKS[task], "warmup": warmup}})
        with torch.no_grad():
            for parameter in module.latent_tasks.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        latents = torch.randn(3, 8, 16, requires_grad=True)
        values = module.latent_tasks(torch.randn(3, 2, 512), latents, step=5)
        sum(value.square().sum() for value in values.values()).backward()
        gradients.append(0.0 if latents.grad is None else float(latents.grad.abs().max()))
    assert gradients[1] > 0
    assert gradients[0] == 0


def test_all_tasks_and_a_discriminator_in_a_run(write_config, run_training, losses_of, tmp_path: Path):
    import json

    config = autoencoder(same_large())
    config["sample_rate"], config["sample_size"] = 8000, 1024
    patched = {"patch_sizes": [7], "depths": [1], "strides": [2], "sliding_window_widths": [1]}
    config["training"] = {
        "learning_rate": 1e-3,
        "loss_configs": {
            "spectral": SPECTRAL,
            "discriminator": {"type": "transformer", "config": {"patched_kwargs": patched}},
            **TASKS,
        },
    }
    path = tmp_path / "same.json"
    path.write_text(json.dumps(config))
    folder = run_training(path, "--max-steps", "4")
    assert len(losses_of(folder)) >= 2
    state = torch.load(max(folder.rglob("*.ckpt")), weights_only=True)["state_dict"]
    assert any(name.startswith("latent_tasks.tasks.contrastive.critic.") for name in state)


def test_the_curriculum_changes_strides_now_and_then(monkeypatch):
    module = wrapper(stride_curriculum=[0.5, 2.0])
    monkeypatch.setattr("random.randint", lambda *_: 0)
    for step, expected in ((0, [2]), (2000, [8]), (4000, [2])):
        monkeypatch.setattr(type(module), "global_step", step)
        assert module._strides() == expected
    assert steps(module, monkeypatch, 2)[0]["loss"] > 0
    monkeypatch.setattr("random.randint", lambda *_: 1)
    assert module._strides() is None


def test_fine_tuning_trains_the_decoder_alone(monkeypatch):
    module = wrapper(decoder_finetune=True)
    before = {name: value.clone() for name, value in module.autoencoder.state_dict().items()}
    steps(module, monkeypatch, 2)
    changed = {
        name.split(".")[0] for name, value in module.autoencoder.state_dict().items() if not value.equal(before[name])
    }
    assert "decoder" in changed and "encoder" not in changed


def test_chirps_and_silent_tails():
    torch.manual_seed(0)
    audio = torch.randn(2, 2, 4000)
    more = append_chirps(audio, 8000, 3)
    assert more.shape == (5, 2, 4000) and torch.equal(more[:2], audio)
    assert 0.05 < more[2:].abs().amax() < 0.6 and torch.isfinite(more).all()
    torch.testing.assert_close(more[2:, 0], more[2:, 1], atol=1e-3, rtol=0)
    cut = silence_tails(torch.ones(400, 1, 100), patch=10, most=3)
    silent = (cut == 0).sum((1, 2))
    assert set(silent.tolist()) == {0, 10, 20, 30} and 2 < (silent > 0).sum() < 60
    assert torch.equal(silence_tails(audio, 10, 0), audio) and torch.equal(append_chirps(audio, 8000, 0), audio)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"decoder_finetune": True, "losses": {"jepa": TASKS["jepa"]}}, "need an encoder that trains"),
        ({"losses": {"contrastive": {"config": {"depth": 1}}}}, "transformer_dim"),
        ({"losses": {"generative": {"config": {"embed_dim": 32, "depth": 1}, "type": "gan"}}}, "diffusion"),
    ],
)
def test_mistakes_are_named(training, message):
    with pytest.raises(ConfigError, match=message):
        wrapper(**training)


def test_the_bottleneck_adds_its_term(monkeypatch):
    module = wrapper(losses={"bottleneck": {"weights": {"softnorm": 0.5}}})
    logged = steps(module, monkeypatch, 1)
    assert logged[0]["softnorm_loss"] > 0
