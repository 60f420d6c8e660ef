"""The 2-D autoencoder: diffusers' own output with its weights, published sizes, any number of bands."""

import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.factory import create_model_from_config

diffusers = pytest.importorskip("diffusers")
SMALL = {"block_out_channels": [8, 8, 16], "norm_groups": 4}


def halves(**config: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    return tuple(build(kind, {"type": "kl_2d", "config": config}) for kind in ("encoder", "decoder"))  # type: ignore


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        ({"downsamplings": 2, "size": "small"}, 1.28),
        ({"downsamplings": 2, "size": "medium"}, 1.28),
        ({"downsamplings": 2, "size": "large"}, 3.47),
        ({"downsamplings": 4, "size": "small"}, 5.69),
        ({"downsamplings": 4, "size": "large"}, 15.74),
        ({"downsamplings": 3, "block_out_channels": [128, 256, 512, 512]}, 83.6),
    ],
)
def test_published_sizes(config: dict, millions: float) -> None:
    with torch.device("meta"):
        parts = halves(bands=128, **config)
    assert sum(p.numel() for part in parts for p in part.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_same_weights_same_output_as_diffusers() -> None:
    theirs = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=2,
        latent_channels=3,
        norm_num_groups=4,
    ).eval()
    encoder, decoder = (part.eval() for part in halves(bands=16, latent_channels=3, **SMALL))
    weights = theirs.state_dict()
    for part, names in ((encoder, ("encoder.", "quant_conv.")), (decoder, ("decoder.", "post_quant_conv."))):
        part.load_state_dict({name: value for name, value in weights.items() if name.startswith(names)})
    image = torch.randn(2, 1, 16, 12)
    with torch.no_grad():
        posterior = theirs.encode(image).latent_dist
        moments = encoder(image[:, 0])
        mean, log_variance = moments.chunk(2, dim=1)
        torch.testing.assert_close(mean.unflatten(1, (3, 4)), posterior.mean)
        torch.testing.assert_close(log_variance.unflatten(1, (3, 4)).clamp(-30, 20), posterior.logvar)
        torch.testing.assert_close(decoder(mean), theirs.decode(posterior.mean).sample[:, 0])
        bottleneck = build("bottleneck", {"type": "kl"}).train()
        _, info = bottleneck.encode(moments, return_info=True)
        torch.testing.assert_close(info["kl"], posterior.kl().mean() / 3)  # 3 frames


@pytest.mark.parametrize("bands", [16, 18, 21])
def test_any_number_of_bands(bands: int) -> None:
    encoder, decoder = halves(bands=bands, latent_channels=2, **SMALL)
    rows = -(-bands // 4)
    moments = encoder(torch.randn(2, bands, 24))
    assert moments.shape == (2, 2 * 2 * rows, 6)
    assert decoder(moments[:, : 2 * rows]).shape == (2, bands, 24)


def config(**changes: object) -> dict:
    part = {"bands": 16, "latent_channels": 2, **SMALL}
    return {
        "encoder": {"type": "kl_2d", "config": part},
        "decoder": {"type": "kl_2d", "config": part},
        "bottleneck": {"type": "kl"},
        "pretransform": {"type": "mel", "config": {"n_fft": 256, "hop_length": 64, "n_mels": 16}},
        "latent_dim": 8,
        "downsampling_ratio": 256,
        "io_channels": 1,
        **changes,
    }


def test_as_an_autoencoder_over_mel_bands() -> None:
    model = create_model_from_config({"model_type": "autoencoder", "sample_rate": 8000, "model": config()}).eval()
    audio = torch.randn(2, 1, 2048) * 0.1
    with torch.no_grad():
        latents = model.encode(audio)
        assert latents.shape == (2, 8, 8)
        assert model.decode(latents).shape == audio.shape
        bands = model.decode(latents, skip_pretransform=True)
    assert bands.shape == (2, 16, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsampling_ratio": 64}, "downsamplings multiply to 4 times 64 of the pretransform; set it to 256"),
        ({"latent_dim": 9}, r"encoder.config.latent_channels: is 16, but latent_dim is 9"),
        ({"pretransform": {"type": "mel", "config": {"n_fft": 256, "hop_length": 64, "n_mels": 20}}}, "bands"),
    ],
)
def test_its_numbers_agree(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model_from_config({"model_type": "autoencoder", "sample_rate": 8000, "model": config(**changes)})


def test_levels_and_groups_agree() -> None:
    with pytest.raises(ConfigError, match="has 1 levels, and downsamplings is 2: give 3"):
        halves(bands=8, block_out_channels=[8], norm_groups=4)
    with pytest.raises(ConfigError, match="norm_groups: is 5; the 8 channels"):
        halves(bands=8, block_out_channels=[8, 8, 8], norm_groups=5)
