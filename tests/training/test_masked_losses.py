"""Losses of batches whose items differ in length, and a training step on them."""

from typing import Any

import pytest
import torch
from support.small_diffusion import model_config, with_random_weights

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.masked_losses import (
    compute_masked_loss,
    compute_normalized_mse,
    couple_noise,
    create_augmented_padding_mask,
    masked_mean,
    resize_padding_mask,
)


def mask_of(*lengths: int, total: int = 12) -> torch.Tensor:
    return torch.arange(total) < torch.tensor(lengths)[:, None]


def test_masked_attention_leaves_padding_out_and_a_weight_counts_it() -> None:
    errors, mask = torch.rand(2, 3, 12), mask_of(5, 12)
    alone = torch.stack([errors[0, :, :5].mean(), errors[1].mean()]).mean()
    torch.testing.assert_close(compute_masked_loss(errors, mask, True, 0.7).loss, alone)
    torch.testing.assert_close(masked_mean(errors, mask), alone)
    torch.testing.assert_close(compute_masked_loss(errors, mask, False, 1.0).loss, errors.mean())
    assert compute_masked_loss(errors, mask_of(0, 12), True).loss.isfinite()


@pytest.mark.parametrize("kind", ["timestep", "sample", "sample_channel"])
def test_normalised_errors_do_not_depend_on_the_loudness(kind: Any) -> None:
    pred, target, mask = torch.randn(2, 3, 12), torch.randn(2, 3, 12), mask_of(5, 12)
    loud = compute_normalized_mse(10 * pred, 10 * target, mask, kind, 1e-12)
    quiet = compute_normalized_mse(pred, target, mask, kind, 1e-12)
    torch.testing.assert_close(loud[mask[:, None].expand_as(loud)], quiet[mask[:, None].expand_as(quiet)])
    padding = ~mask[:, None].expand_as(loud)
    torch.testing.assert_close(loud[padding], 100 * quiet[padding])


def test_masks_are_resized_so_that_no_sound_is_lost() -> None:
    assert resize_padding_mask(mask_of(5, 12), 6).sum(1).tolist() == [3, 6]
    assert resize_padding_mask(mask_of(5)[0], 7).sum() == 3


def test_silence_is_added_at_the_end_only() -> None:
    torch.manual_seed(0)
    mask = mask_of(5, 3, 12)
    longer = create_augmented_padding_mask(mask, 4.0, sample_rate=1)
    assert (longer | ~mask).all()
    assert longer.sum() > mask.sum()
    assert create_augmented_padding_mask(mask) is mask


def test_coupled_noise_is_a_permutation_with_shorter_paths() -> None:
    torch.manual_seed(0)
    data, noise = torch.randn(8, 2, 3), torch.randn(8, 2, 3)
    coupled = couple_noise(data, noise)
    assert sorted(coupled.sum((1, 2)).tolist()) == sorted(noise.sum((1, 2)).tolist())
    assert (coupled - data).square().mean() < 0.9 * (noise - data).square().mean()


def wrapper(**training: Any) -> Any:
    config = model_config("rectified_flow", mask_padding_attention=True, use_effective_length_for_schedule=True)
    torch.manual_seed(0)
    model = with_random_weights(create_model_from_config(config))
    config["training"] = {"learning_rate": 1e-4, "use_ema": False, "pre_encoded": True, **training}
    return create_training_wrapper_from_config(config, model)


def step(module: Any, *lengths: int) -> torch.Tensor:
    module._trainer = type("Trainer", (), {"optimizers": [torch.optim.SGD(module.parameters(), lr=0.1)]})()
    mask = mask_of(*lengths)
    metadata = [{"mood": "calm", "tempo": 100, "padding_mask": [row]} for row in mask]
    latents = torch.randn(len(lengths), 4, 12, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(4)
    return module.training_step((latents * mask[:, None], metadata), 0)


@pytest.mark.parametrize(
    "options", [{"ot_coupling": True}, {"loss_normalization": "sample"}, {"mask_loss_weight": 0.5}]
)
def test_every_option_trains(options: dict[str, Any]) -> None:
    module = wrapper(silence_extension_scale_seconds=0.001, **options)
    optimizer = torch.optim.Adam(module.diffusion.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = step(module, 5, 12, 8)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5])


def test_two_ways_of_leaving_padding_out_are_refused() -> None:
    with pytest.raises(ConfigError, match="mask_padding: mask_loss_weight"):
        wrapper(mask_padding=True)
