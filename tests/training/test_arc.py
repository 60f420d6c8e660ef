"""ARC post-training: warm-up on the teacher's trajectories, its resume, and what the losses say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_cuda import FakeCuda
from support.small_training import arc_section, differences, flags, last, training_config
from torch.utils._pytree import tree_leaves

from stable_audio_tools.cli import train
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.checkpoints import save_weights
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training import create_training_wrapper_from_config
from stable_audio_tools.training.arc import ARCTrainingWrapper, Trajectory, draw_levels, interpolate, with_next_prompt
from stable_audio_tools.training.callbacks.checkpointing import Checkpointing
from stable_audio_tools.training.module import STAMP


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


def test_a_checkpoint_holds_a_trajectory_only_while_it_is_learnt(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is large and on the device, and every process has another."""
    config = training_config("tiny_diffusion_cond")
    warmed_up(config, teacher, steps=3)
    wrapper: Any = create_training_wrapper_from_config(config, create_model_from_config(config))
    with FakeCuda():
        states, end = torch.zeros(3, 2, 16, 16, device="cuda"), torch.zeros(2, 16, 16, device="cuda")
        wrapper._trajectory = Trajectory(states, torch.zeros(3), end, [{}, {}], {"inpaint_mask": [end]})
        for step, is_learnt in {1: True, 2: False, 3: False, 7: False}.items():
            monkeypatch.setattr(ARCTrainingWrapper, "global_step", step)
            checkpoint: dict[str, Any] = {}
            Checkpointing(tmp_path, 1, 1, {}).on_save_checkpoint(None, wrapper, checkpoint)  # type: ignore[arg-type]
            (process,) = checkpoint[STAMP]["processes"]
            held = [leaf for leaf in tree_leaves(process["module"]) if isinstance(leaf, torch.Tensor)]
            assert len(held) == (4 if is_learnt else 0)
            assert all(tensor.device.type == "cpu" for tensor in held)


def test_the_warm_up_pulls_the_student_to_the_end_of_the_trajectory(teacher: Path) -> None:
    config = training_config("tiny_diffusion_cond")
    warmed_up(config, teacher)
    torch.manual_seed(1)
    wrapper: Any = create_training_wrapper_from_config(config, create_model_from_config(config))
    latents = torch.randn(2, 16, 16)
    metadata = [{"sound": "drums", "seconds_total": 3}, {"sound": "rain", "seconds_total": 3}]
    items = wrapper._prepare(latents, metadata, None)
    trajectory = wrapper._ask_teacher(items)
    assert trajectory.x.shape == (3, 2, 16, 16) and trajectory.t[0] == 1
    assert torch.allclose(trajectory.t.sort(descending=True).values, trajectory.t), "from noise to data"
    optimizer = torch.optim.Adam(wrapper.diffusion.parameters(), lr=3e-3)
    wrapper._ask_teacher = lambda *_: trajectory
    losses = []
    for _ in range(40):
        loss = wrapper._follow_teacher(items)
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


CRITICS = {
    "convnext": {"channels": 4, "c_mults": [1], "strides": [2], "num_blocks": [1]},
    "conv": {"anti_aliased": True},
    "dilated_conv": {"hidden_dim": 8, "dilations": [1, 2]},
    "transformer": {"hidden_dim": 16, "depth": 1, "dim_heads": 8, "differential": False},
    "multi_scale": {"dim_heads": 8, "hidden_dim": 16, "depth": 1, "sliding_window": [2, 2], "heads": [{"stride": 1}]},
}
EVERY_TERM = {
    "dit_hidden_layer": [0, 1],
    "contrastive": True,
    "include_grad_penalties": True,
    "grad_penalty_weight": 100.0,
    "feature_matching_weight": 0.5,
    "logit_center_weight": 0.1,
    "disc_hinge_loss": True,
}


def critic_wrapper(masked: bool = False, **critic: Any) -> Any:
    config = training_config("tiny_diffusion_cond")
    arc_section(config)
    config["training"]["arc"]["discriminator"] = {"dit_hidden_layer": 1, **critic}
    config["training"]["mask_padding_attention"] = masked
    torch.manual_seed(1)
    return create_training_wrapper_from_config(config, create_model_from_config(config))


METADATA = [{"sound": "drums", "seconds_total": 3, "prompt": "a"}, {"sound": "rain", "seconds_total": 3, "prompt": "b"}]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["concat", "stack"])
@pytest.mark.parametrize("tag", CRITICS)
def test_every_critic_with_every_term(tag: str, mode: str, masked: bool) -> None:
    wrapper = critic_wrapper(masked, type=tag, config=CRITICS[tag], layer_combine_mode=mode, **EVERY_TERM)
    latents = torch.randn(2, 16, 64)
    masks = torch.arange(64)[None].expand(2, -1) < torch.tensor([[64], [40]])
    items = wrapper._prepare(latents, METADATA, masks)
    fake = wrapper._generate(items, 0.1)
    loss, terms = wrapper._generator_loss(items, fake)
    loss.backward()
    assert {"adv_loss", "feature_matching_loss"} <= set(terms)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in wrapper.diffusion.parameters())
    loss, terms = wrapper._critic_loss(items, fake.detach())
    loss.backward()
    assert {"dis_loss", "r1_penalty", "r2_penalty", "contrastive_loss_dis", "logit_center_penalty"} <= set(terms)
    assert all(torch.isfinite(term).all() for term in terms.values())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in wrapper.discriminator_head.parameters())


def test_what_lies_in_the_padding_changes_no_loss() -> None:
    wrapper = critic_wrapper(True, type="transformer", config=CRITICS["transformer"]).eval()
    masks = torch.arange(32)[None].expand(2, -1) < 20
    losses = []
    for padding in (0.0, 7.0):
        torch.manual_seed(2)
        latents = torch.randn(2, 16, 32).masked_fill(~masks[:, None], padding)
        items = wrapper._prepare(latents, METADATA, masks)
        torch.manual_seed(3)
        losses.append(wrapper._critic_loss(items, latents + 0.5)[0])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_a_frozen_network_trains_its_head_alone_and_a_reset_starts_it_again() -> None:
    wrapper = critic_wrapper(type="conv", freeze_backbone=True, reset_every=3)
    assert not any(p.requires_grad for p in wrapper.discriminator.parameters())
    assert all(p.requires_grad for p in wrapper.discriminator_head.parameters())
    before = [p.clone() for p in wrapper.discriminator_head.parameters() if p.ndim > 1]
    wrapper._reset_head()
    after = [p for p in wrapper.discriminator_head.parameters() if p.ndim > 1]
    assert not any(torch.equal(a, b) for a, b in zip(before, after))


def test_the_critics_network_teaches_its_warm_up(teacher: Path) -> None:
    config = training_config("tiny_diffusion_cond")
    arc_section(config)
    config["training"]["arc"].update(
        reuse_discriminator_as_teacher=True,
        discriminator_base_ckpt=str(teacher),
        ode_warmup={"warmup_steps": 2, "sampling_steps": 2},
        noise_dist={"generator": "congruent", "congruent_step_counts": [1, 2]},
        forward_sample_prob=1.0,
    )
    wrapper: Any = create_training_wrapper_from_config(config, create_model_from_config(config))
    assert wrapper.teacher_model is None
    items = wrapper._prepare(torch.randn(2, 16, 16), METADATA, None)
    assert wrapper._ask_teacher(items).x.shape == (2, 2, 16, 16)
    assert set(wrapper._draw("congruent", items).tolist()) <= {1.0, 0.5}
    assert wrapper._generate(items, 0.0).shape == (2, 16, 16)


@pytest.mark.parametrize("kind", ["audio_cosine_sim", "audio_contrastive", "audio_text_distance"])
def test_a_clap_guides_the_generator(kind: str, tmp_path: Path) -> None:
    from support.small_clap_model import clap_config, write_roberta

    clap = clap_config(write_roberta(tmp_path), noised=True)
    clap["model"]["audio"]["model"]["config"]["dim_in"] = 16
    del clap["model"]["pretransform"]
    save_weights(create_model_from_config(clap), tmp_path / "clap.safetensors")
    config = training_config("tiny_diffusion_cond")
    arc_section(config)
    section = {key: clap[key] for key in ("model", "sample_rate")} | {"ckpt_path": str(tmp_path / "clap.safetensors")}
    config["training"]["arc"].update(clap_config=section, clap_loss_type=kind)
    wrapper: Any = create_training_wrapper_from_config(config, create_model_from_config(config))
    items = wrapper._prepare(torch.randn(2, 16, 32), METADATA, None)
    loss, terms = wrapper._generator_loss(items, wrapper._generate(items, 0.0))
    loss.backward()
    assert terms["clap_loss"] > 0 and not any(p.requires_grad for p in wrapper.clap_model.parameters())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"discriminator": {"dit_hidden_layer": [0, 9]}}, "dit_hidden_layer: is 9, and the critic's transformer has"),
        ({"reuse_discriminator_as_teacher": True}, "give discriminator_base_ckpt and no other teacher"),
    ],
)
def test_mistakes_of_critics_are_one_sentence(change: dict[str, Any], sentence: str) -> None:
    config = training_config("tiny_diffusion_cond")
    arc_section(config)
    config["training"]["arc"].update(change)
    with pytest.raises(ConfigError, match=sentence):
        create_training_wrapper_from_config(config, create_model_from_config(config))


@pytest.mark.parametrize("tag", ["multi_scale", "transformer"])
def test_a_base_becomes_a_few_step_model_by_one_config(
    tag: str, write_config: Any, run_training: Any, losses_of: Any, tmp_path: Path
) -> None:
    weights = tmp_path / "base.safetensors"

    def few_steps(config: dict[str, Any]) -> None:
        save_weights(create_model_from_config(config), weights)
        rate = {"optimizer": {"type": "AdamW", "config": {"lr": 1e-4}}}
        arc = {
            "use_model_as_discriminator": True,
            "discriminator_base_ckpt": str(weights),
            "reuse_discriminator_as_teacher": True,
            "ode_warmup": {"warmup_steps": 2, "sampling_steps": 2, "cfg": 2.0},
            "noise_dist": {"generator": "congruent", "congruent_step_counts": [1, 2, 4]},
            "discriminator": {"type": tag, "dit_hidden_layer": [0], "config": CRITICS[tag], "grad_penalty_weight": 1.0},
        }
        training = config["training"]
        config["training"] = {
            "arc": arc,
            "optimizer_configs": {"diffusion": rate, "discriminator": rate},
            **{key: training[key] for key in ("mask_loss_weight", "silence_extension_scale_seconds", "inpainting")},
        }

    config = write_config("tiny_stable_audio_3", few_steps)
    folder = run_training(config, "--max-steps", "6", "--pretrained-ckpt-path", str(weights))
    with (folder / "metrics" / "metrics.csv").open() as file:
        names = set(file.readline().strip().split(","))
    assert {"train/ode_mse_loss", "train/adv_loss", "train/dis_loss"} <= names
