"""A whole autoencoder as a pretransform: the first stage of latent diffusion and of language models."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stable_audio_tools.core.config import Part, Runtime, register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.bottleneck import DiscreteBottleneck
from stable_audio_tools.models.pretransforms.base import Pretransform, facts


class AutoencoderPretransform(Pretransform):
    """Latents of an autoencoder, divided by `scale`; training measures an `auto` scale, and files store it."""

    latent_scale: Tensor
    is_scaled = True

    def __init__(
        self,
        model: AudioAutoencoder,
        scale: float | Literal["auto"] = 1.0,
        model_half: bool = False,
        iterate_batch: bool | int = False,
        chunked: bool = False,
    ) -> None:
        super().__init__(enable_grad=False, io_channels=model.io_channels, is_discrete=model.is_discrete)
        self.model = model
        self._stay_frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
        self.model.requires_grad_(False).eval()
        self._fixed_scale = None if scale == "auto" else float(scale)
        if self._fixed_scale is None:
            self.register_buffer("latent_scale", torch.tensor(math.nan))
        self.model_half = model_half
        self.iterate_batch = iterate_batch
        self.chunked = chunked
        self.sample_rate = model.sample_rate
        self.downsampling_ratio = model.downsampling_ratio
        self.encoded_channels = model.latent_dim
        self.num_quantizers = getattr(model.bottleneck, "num_quantizers", None)
        self.codebook_size = getattr(model.bottleneck, "codebook_size", None)
        if model_half:
            self.model.half()

    def requires_grad_(self, requires_grad: bool = True) -> "AutoencoderPretransform":
        """Set `requires_grad`, except for parts that their own config freezes."""
        super().requires_grad_(requires_grad)
        for name, value in self.model.named_parameters():
            value.requires_grad_(requires_grad and name not in self._stay_frozen)
        return self

    @property
    def scale(self) -> float:
        """The number by which `encode` divides latents."""
        if self._fixed_scale is not None:
            return self._fixed_scale
        if self.needs_scale:
            raise ValueError(
                "the scale of the latents is 'auto' and not measured yet: train the model, load weights that hold it, "
                "or write a number as the scale of the pretransform"
            )
        return float(self.latent_scale)

    @property
    def needs_scale(self) -> bool:
        """The scale is `auto` and not measured yet."""
        return self._fixed_scale is None and math.isnan(float(self.latent_scale))

    def set_scale(self, scale: float) -> None:
        """Store a measured scale."""
        self.latent_scale.fill_(scale)

    def encode(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Encode audio (b, c, n) to latents (b, d, t); keywords go to the autoencoder's `encode_audio`."""
        encoded = self.model.encode_audio(self._enter(x, self.model.encoder), **self._with_defaults(kwargs))
        return self._leave(encoded) / self.scale

    def decode(self, z: Tensor, **kwargs: Any) -> Tensor:
        """Decode latents (b, d, t) to audio (b, c, n); keywords go to the autoencoder's `decode_audio`."""
        latents = self._enter(z * self.scale, self.model.decoder)
        return self._leave(self.model.decode_audio(latents, **self._with_defaults(kwargs)))

    def tokenize(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Encode audio (b, c, n) to codes (b, q, t) for any layout of the bottleneck; keywords go to `encode`."""
        if not self.is_discrete:
            return super().tokenize(x)
        _, info = self.model.encode(self._enter(x, self.model.encoder), return_info=True, **kwargs)
        return self._bottleneck.tokens(info)

    def decode_tokens(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """Decode codes (b, q, t) to audio (b, c, n); keywords go to the autoencoder's `decode`."""
        if not self.is_discrete:
            return super().decode_tokens(tokens)
        codes = tokens if self._bottleneck.codebooks_first else tokens.mT
        return self._leave(self.model.decode_tokens(codes, **kwargs))

    def unlike(self, node: Mapping[str, object], sample_rate: int) -> str | None:
        if node.get("type") in ("autoencoder", "chain"):
            return None
        return f"they come from {node.get('type')!r}, not from an autoencoder"

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights of the autoencoder alone, as `unwrap_model.py` saves them."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)

    @property
    def _bottleneck(self) -> DiscreteBottleneck:
        assert isinstance(self.model.bottleneck, DiscreteBottleneck)
        return self.model.bottleneck

    def _with_defaults(self, kwargs: dict[str, Any]) -> JsonObject:
        return {"chunked": self.chunked, "iterate_batch": self.iterate_batch, **kwargs}

    def _enter(self, x: Tensor, net: nn.Module | None) -> Tensor:
        """Convert x to the precision of the network's weights, which loading or casting may have changed."""
        weight = None if net is None else next((p for p in net.parameters() if p.is_floating_point()), None)
        if weight is None or torch.is_autocast_enabled(x.device.type):
            return x
        return x.to(weight.dtype)

    def _leave(self, x: Tensor) -> Tensor:
        return x.float() if self.model_half else x


def _facts(config: SimpleNamespace) -> JsonObject:
    bottleneck = {} if config.bottleneck is None else config.bottleneck.facts
    codes = (bottleneck["num_quantizers"], bottleneck["codebook_size"]) if bottleneck.get("is_discrete") else None
    return facts(
        io_channels=config.io_channels,
        encoded_channels=config.latent_dim,
        downsampling_ratio=config.downsampling_ratio,
        codes=codes,
    )


@register("pretransform", "autoencoder", body=("model", "autoencoder"), facts=_facts)
def build_autoencoder_pretransform(
    config: Part,
    *,
    scale: Runtime[float | Literal["auto"]] = 1.0,
    model_half: Runtime[bool] = False,
    iterate_batch: Runtime[bool | int] = False,
    chunked: Runtime[bool] = False,
    sample_rate: Runtime[int],
) -> AutoencoderPretransform:
    """The latents of an autoencoder."""
    model = config.build(sample_rate=sample_rate)
    return AutoencoderPretransform(model, scale, model_half, iterate_batch, chunked)
