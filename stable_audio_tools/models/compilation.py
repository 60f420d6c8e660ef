"""`torch.compile`, for training and for generation. Names of weights stay as they are."""

from typing import Any

from torch import nn

from stable_audio_tools.models.transformer.backends import attention_backend
from stable_audio_tools.models.transformer.blocks import TransformerBlock

_BACKBONES = ("model", "lm")
_CODERS = ("encoder", "decoder", "diffusion")  # of an autoencoder, which itself is not called


def compile_network(model: nn.Module, **options: Any) -> list[nn.Module]:
    """Have a model's network compiled at its first call -> the parts that will be.

    Layers of a transformer are alike, so that one is compiled for all: a minute where the whole would take many.
    `options` are those of `torch.compile`.
    """
    attention_backend()  # choosing it logs a line, which would split what is compiled
    inner = [getattr(model, name, None) for name in _BACKBONES]
    network = next((part for part in inner if isinstance(part, nn.Module)), model)
    layers: list[nn.Module] = [part for part in network.modules() if isinstance(part, TransformerBlock)]
    coders = [part for name in _CODERS if isinstance(part := getattr(network, name, None), nn.Module)]
    parts = layers or coders or [network]
    for part in parts:
        part.compile(**options)
    return parts


def compile_decoder(model: nn.Module, **options: Any) -> list[nn.Module]:
    """Have the decoder of a model's codec compiled at its first call -> the decoder, if the codec has one."""
    codec = getattr(getattr(model, "pretransform", None), "model", None)
    decoder = getattr(codec, "decoder", None)
    if not isinstance(decoder, nn.Module):
        return []
    decoder.compile(**options)
    return [decoder]
