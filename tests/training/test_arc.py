"""ARC post-training: warm-up on the teacher's trajectories, its resume, and what the losses say."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.cli import train
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.checkpoints import save_weights
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training import create_training_wrapper_from_config
from stable_audio_tools.training.arc import draw_levels, interpolate, with_next_prompt
from tests.training.conftest import training_config
from tests.training.test_end_to_end import arc_section
from tests.training.test_resume import differences, flags, last


def warmed_up(config: dict[str, Any], teacher: Path, steps: int = 3) -> None:
    arc_section(config)
    config["training"]["arc"].update(
        use_model_as_teacher=True,
        teacher_model_ckpt=str(teacher),
        ode_warmup={"warmup_steps": steps, "refresh_rate": 2, "sampling_steps": 3, "cfg": 2.0},
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = training_config("tiny_diffusion_cond")
    arc_section(config)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(create_model_from_config(config), path)
    return path


def test_a_run_killed_in_its_warm_up_goes_on_with_the_same_trajectory(
    teacher: Path, write_config: Any, dataset: Path, tmp_path: Path
) -> None:
    config = write_config("tiny_diffusion_cond", lambda config: warmed_up(config, teacher))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main(flags(config, dataset, whole, 5)) == 0
    # Step 1 is in the middle of a trajectory that lasts two steps.
    assert train.main(flags(config, dataset, parts, 5, "--ckpt-path", str(last(whole, 1)))) == 0
    differing = differences(last(whole, 5), last(parts, 5))
    assert [name for name in differing if not name.endswith("/load_time")] == []
    saved = torch.load(last(whole, 5), weights_only=True)["state_dict"]
    assert not any(name.startswith("teacher_model.") for name in saved), "the teacher has a file of its own"


def test_the_warm_up_pulls_the_student_to_the_end_of_the_trajectory(teacher: Path) -> None:
    config = training_config("tiny_diffusion_cond")
    warmed_up(config, teacher)
    torch.manual_seed(1)
    wrapper: Any = create_training_wrapper_from_config(config, create_model_from_config(config))
    latents = torch.randn(2, 16, 16)
    metadata = [{"sound": "drums", "seconds_total": 3}, {"sound": "rain", "seconds_total": 3}]
    trajectory = wrapper._ask_teacher(latents, metadata, {})
    assert trajectory.x.shape == (3, 2, 16, 16) and trajectory.t[0] == 1
    assert torch.allclose(trajectory.t.sort(descending=True).values, trajectory.t), "from noise to data"
    optimizer = torch.optim.Adam(wrapper.diffusion.parameters(), lr=3e-3)
    wrapper._ask_teacher = lambda *_: trajectory
    losses = []
    for _ in range(40):
        loss = wrapper._follow_teacher(latents, metadata, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_noise_levels_of_each_law() -> None:
    torch.manual_seed(0)
    drawn = {
        law: draw_levels(law, 4000, torch.device("cpu"))
        for law in ("uniform", "logit_normal", "trunc_logit_normal", "one_shot", "denoised", "logsnr_uniform")
    }
    assert all(((levels >= 0) & (levels <= 1)).all() for levels in drawn.values())
    assert drawn["one_shot"].eq(1).all() and drawn["denoised"].eq(0).all()
    assert drawn["uniform"].mean() == pytest.approx(0.5, abs=0.02)
    # log(SNR) = 2 log((1 - t) / t) lies in twice the range of log((1 - t) / t), which is uniform in [-6, 2].
    ratios = torch.log((1 - drawn["logsnr_uniform"]) / drawn["logsnr_uniform"])
    assert ratios.min() > -6.01 and ratios.max() < 2.01 and ratios.mean() == pytest.approx(-2, abs=0.15)


def test_ends_of_the_interpolation() -> None:
    clean, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(interpolate(clean, noise, torch.zeros(2)), clean)
    assert torch.equal(interpolate(clean, noise, torch.ones(2)), noise)


def test_the_critic_is_asked_about_the_neighbours_prompt() -> None:
    metadata = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}, {"n": 3}]
    assert with_next_prompt(metadata) == [{"prompt": "b", "n": 1}, {"prompt": "b", "n": 2}, {"n": 3, "prompt": "a"}]
    assert metadata[0]["prompt"] == "a"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ode_warmup": {"warmup_steps": 2}}, "needs a teacher; give teacher_model or use_model_as_teacher"),
        ({"use_model_as_teacher": True}, "teacher_model_ckpt: missing; a teacher needs its weights"),
        ({"use_model_as_discriminator": False}, "the critic needs a network; give discriminator_base_model"),
    ],
)
def test_mistakes_are_one_sentence(change: dict[str, Any], sentence: str) -> None:
    config = training_config("tiny_diffusion_cond")
    arc_section(config)
    model = create_model_from_config(config)
    config["training"]["arc"].update(change)
    with pytest.raises(ConfigError, match=sentence):
        create_training_wrapper_from_config(config, model)
