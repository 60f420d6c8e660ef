"""`torch.compile` for training and generation, in place: the names of weights do not change."""

from typing import Any

from torch import nn

from stable_audio_tools.models.transformer.backends import attention_backend
from stable_audio_tools.models.transformer.blocks import TransformerBlock

_BACKBONES = ("model", "lm")
_CODERS = ("encoder", "decoder", "diffusion")  # of an autoencoder, which itself is not called


def compile_network(model: nn.Module, **options: Any) -> list[nn.Module]:
    """Compile a model's network at its first call, and return the parts to be compiled.

    The layers of a transformer are alike, so one is compiled for all of them, in a minute instead of many. `options` go
    to `torch.compile`.
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
    """Compile the decoder of a model's codec at its first call, and return the decoder, if the codec has one."""
    codec = getattr(getattr(model, "pretransform", None), "model", None)
    decoder = getattr(codec, "decoder", None)
    if not isinstance(decoder, nn.Module):
        return []
    decoder.compile(**options)
    return [decoder]
