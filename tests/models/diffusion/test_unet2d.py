"""2-D U-Nets: published sizes, any number of bands, diffusers' own output, guidance."""

import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.diffusion.ddpm import DDPMObjective

pytest.importorskip("diffusers")
SMALL = {"block_out_channels": [8, 16], "attention_levels": [1], "norm_groups": 4}


@pytest.mark.parametrize(
    ("kind", "tag", "preset", "millions"),
    [
        ("unconditional", "unet2d", "tiny", 113.8),
        ("unconditional", "unet2d", "small", 113.7),
        ("unconditional", "unet2d", "large", 282.3),
        ("diffusion", "unet2d_cond", "small", 149.3),
        ("diffusion", "unet2d_cond", "large", 359.4),
    ],
)
def test_presets_have_the_published_sizes(kind: str, tag: str, preset: str, millions: float) -> None:
    more = {"cond_token_dim": 512} if kind == "diffusion" else {}
    with torch.device("meta"):
        model = build(kind, {"type": tag, "config": {"io_channels": 128, "preset": preset, **more}})
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(("bands", "frames"), [(80, 31), (100, 20), (6, 7)])
def test_any_number_of_bands_and_frames(bands: int, frames: int) -> None:
    model = build(
        "unconditional", {"type": "unet2d", "config": {"io_channels": 2 * bands, "image_channels": 2, **SMALL}}
    )
    x = torch.randn(2, 2 * bands, frames)
    assert model(x, torch.tensor([0.1, 0.9])).shape == x.shape


def test_the_output_is_that_of_diffusers_at_the_table_entry() -> None:
    model = build(
        "unconditional", {"type": "unet2d", "config": {"io_channels": 16, **SMALL}}, diffusion_objective=DDPMObjective()
    ).eval()
    x = torch.randn(2, 16, 8)
    with torch.no_grad():
        theirs = model.unet(x[:, None], torch.tensor([99, 700])).sample[:, 0]
        torch.testing.assert_close(model(x, torch.tensor([0.1, 0.701])), theirs)


def test_guidance_and_dropped_conditions() -> None:
    config = {"io_channels": 8, "cond_token_dim": 6, "global_cond_dim": 3, **SMALL}
    model = build("diffusion", {"type": "unet2d_cond", "config": config}).eval()
    x, t = torch.randn(2, 8, 8), torch.tensor([0.2, 0.8])
    given = {"cross_attn_cond": torch.randn(2, 3, 6), "global_cond": torch.randn(2, 3)}
    mask = torch.tensor([[True, True, False], [True, True, True]])
    with torch.no_grad():
        conditioned = model(x, t, **given, cross_attn_mask=mask)
        empty = model(x, t, **{**given, "cross_attn_cond": torch.zeros(2, 3, 6)}, cross_attn_mask=mask)
        guided = model(x, t, **given, cross_attn_mask=mask, cfg_scale=3.0)
        split = model(x, t, **given, cross_attn_mask=mask, cfg_scale=3.0, batch_cfg=False)
        dropped = model(x, t, **given, cross_attn_mask=mask, cfg_dropout_prob=1.0)
        changed = given["cross_attn_cond"].clone()
        changed[0, 2] = 9.0  # behind the mask
        masked = model(x, t, cross_attn_cond=changed, global_cond=given["global_cond"], cross_attn_mask=mask)
    torch.testing.assert_close(guided, empty + 3 * (conditioned - empty))
    torch.testing.assert_close(split, guided)
    torch.testing.assert_close(dropped, empty)
    torch.testing.assert_close(masked, conditioned)
    assert not torch.allclose(conditioned, empty)


def test_latents_of_other_channels_are_refused() -> None:
    """A U-Net sees bands as the height of an image, so it would take any number."""
    x, t = torch.randn(1, 17, 5), torch.tensor([0.5])
    plain = build("unconditional", {"type": "unet2d", "config": {"io_channels": 64, **SMALL}})
    conditioned = build(
        "diffusion", {"type": "unet2d_cond", "config": {"io_channels": 64, "cond_token_dim": 6, **SMALL}}
    )
    for model in (plain, conditioned):
        with pytest.raises(ValueError, match="latents have 17 channels, but the io_channels of this U-Net are 64"):
            model(x, t)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"io_channels": 7, "image_channels": 2}, "io_channels: is 7; it must be a multiple of image_channels, 2"),
        ({"io_channels": 8, "preset": "tiny", "block_out_channels": [32]}, "block_out_channels is given too"),
        ({"io_channels": 8, "block_out_channels": [30]}, "is 30; it must be a multiple of norm_groups, 32"),
        ({"io_channels": 8, "attention_levels": [9]}, "names level 9, and there are 0 to 5"),
    ],
)
def test_mistakes_of_the_config(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("unconditional", {"type": "unet2d", "config": config})
