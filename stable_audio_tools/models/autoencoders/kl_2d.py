"""The 2-D convolutional autoencoder of latent diffusion (Rombach et al. 2022), by diffusers, over spectrograms.

Outside, bands are channels: (b, channels * bands, t). Inside it is an image (b, channels, bands, t), the last band
repeated up to what can be halved. State-dict names are those of diffusers' AutoencoderKL, split into its two halves.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.packages import require

Size = Literal["small", "medium", "large"]

_WIDTH = 32
_MULTIPLES: dict[Size, tuple[int, ...]] = {  # of the levels below the first
    "small": (2, 2, 4, 4, 4, 8, 8, 8, 8, 16, 16),
    "medium": (2, 2, 4, 4, 8, 8, 16, 16, 32, 32, 64),
    "large": (2, 4, 4, 8, 8, 16, 32, 32, 64, 64, 128),
}

_Bands = Annotated[int, Field(ge=1, description="bands of the spectrogram")]
_ImageChannels = Annotated[int, Field(ge=1, description="channels of the spectrogram, each with its own bands")]
_LatentChannels = Annotated[int, Field(ge=1, description="channels of the latents, each with its own rows")]
_Downsamplings = Annotated[int, Field(ge=0, le=11, description="how often bands and frames are halved")]
_Size = Annotated[Size, Field(description="how fast the channels grow from level to level, beginning with 32")]
_Channels = Annotated[
    list[int] | None,
    Field(min_length=1, description="channels of each level, the finest first; null: as `size` says"),
]
_Layers = Annotated[int, Field(ge=1, description="residual blocks of a level")]
_Attention = Annotated[bool, Field(description="attend in the middle")]
_Groups = Annotated[int, Field(ge=1, description="groups of the normalisation")]


def level_widths(size: Size, downsamplings: int) -> tuple[int, ...]:
    """Return the channels of each level, the finest first."""
    return (_WIDTH, *(_WIDTH * multiple for multiple in _MULTIPLES[size][:downsamplings]))


def _check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    given = config.block_out_channels
    if given is not None and len(given) != config.downsamplings + 1:
        yield (
            "block_out_channels",
            f"has {len(given)} levels, and downsamplings is {config.downsamplings}: give {config.downsamplings + 1}",
        )
    for width in given or level_widths(config.size, config.downsamplings):
        if width < 1 or width % config.norm_groups:
            yield "norm_groups", f"is {config.norm_groups}; the {width} channels of a level must be a multiple of it"


def _latent_dim(config: SimpleNamespace) -> int:
    channels: int = config.latent_channels * -(-config.bands // 2**config.downsamplings)
    return channels


def _describe_encoder(config: SimpleNamespace) -> JsonObject:
    return {
        "in_channels": config.image_channels * config.bands,
        "channels_key": "bands",
        "latent_dim": 2 * _latent_dim(config),
        "latent_key": "latent_channels",
        "ratio": 2**config.downsamplings,
        "ratio_key": "downsamplings",
    }


def _describe_decoder(config: SimpleNamespace) -> JsonObject:
    return {
        "out_channels": config.image_channels * config.bands,
        "channels_key": "bands",
        "latent_dim": _latent_dim(config),
        "latent_key": "latent_channels",
        "ratio": 2**config.downsamplings,
        "ratio_key": "downsamplings",
    }


@register("encoder", "kl_2d", facts=_describe_encoder, check=_check)
class KL2DEncoder(nn.Module):
    """Spectrogram (b, c * bands, t) to means and log variances (b, 2 * z * rows, t / 2^downsamplings)."""

    def __init__(
        self,
        bands: _Bands,
        image_channels: _ImageChannels = 1,
        latent_channels: _LatentChannels = 1,
        downsamplings: _Downsamplings = 2,
        size: _Size = "small",
        block_out_channels: _Channels = None,
        layers_per_block: _Layers = 2,
        mid_attention: _Attention = True,
        norm_groups: _Groups = 32,
    ) -> None:
        super().__init__()
        widths = tuple(block_out_channels or level_widths(size, downsamplings))
        self.image_channels, self.multiple = image_channels, 2**downsamplings
        self.encoder = require("diffusers.models.autoencoders.vae", extra="mel").Encoder(
            in_channels=image_channels,
            out_channels=latent_channels,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_groups,
            mid_block_add_attention=mid_attention,
        )
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        image = x.unflatten(1, (self.image_channels, -1))
        frames = image.shape[-1] // self.multiple * self.multiple
        image = F.pad(image[..., :frames], (0, 0, 0, -image.shape[2] % self.multiple), mode="replicate")
        moments: Tensor = self.quant_conv(self.encoder(image))
        return moments.flatten(1, 2)


@register("decoder", "kl_2d", facts=_describe_decoder, check=_check)
class KL2DDecoder(nn.Module):
    """Latents (b, z * rows, t) to a spectrogram (b, c * bands, t * 2^downsamplings)."""

    def __init__(
        self,
        bands: _Bands,
        image_channels: _ImageChannels = 1,
        latent_channels: _LatentChannels = 1,
        downsamplings: _Downsamplings = 2,
        size: _Size = "small",
        block_out_channels: _Channels = None,
        layers_per_block: _Layers = 2,
        mid_attention: _Attention = True,
        norm_groups: _Groups = 32,
    ) -> None:
        super().__init__()
        widths = tuple(block_out_channels or level_widths(size, downsamplings))
        self.bands, self.latent_channels = bands, latent_channels
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = require("diffusers.models.autoencoders.vae", extra="mel").Decoder(
            in_channels=latent_channels,
            out_channels=image_channels,
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_groups,
            mid_block_add_attention=mid_attention,
        )

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(z.unflatten(1, (self.latent_channels, -1))))
        return image[:, :, : self.bands].flatten(1, 2)
