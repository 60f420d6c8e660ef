"""What holds for every registered pretransform: shapes, facts, precision, weights."""

from typing import Any

import pytest
import torch

from stable_audio_tools.core.config import components, validate
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.factory import create_pretransform_from_config
from stable_audio_tools.models.pretransforms import Pretransform

OTHERS = {"autoencoder", "chain", "mel", "dac_pretrained", "audiocraft_pretrained"}  # each has its own file of tests
NODES: dict[str, dict[str, Any]] = {
    "patched": {"type": "patched", "config": {"channels": 2, "patch_size": 8}},
    "pqmf": {"type": "pqmf", "config": {"attenuation": 80, "num_bands": 4, "channels": 2}},
    "wavelet": {"type": "wavelet", "config": {"channels": 2, "levels": 3, "wavelet": "bior2.2"}},
}


def build(name: str) -> Any:
    return create_pretransform_from_config(NODES[name], sample_rate=16000)


def test_every_pretransform_is_covered() -> None:
    assert set(components("pretransform")) == set(NODES) | OTHERS


@pytest.mark.parametrize("name", NODES)
def test_shapes_are_as_the_facts_say(name: str) -> None:
    pretransform, facts = build(name), validate("pretransform", NODES[name]).facts
    assert isinstance(pretransform, Pretransform)
    audio = torch.randn(2, 2, 1024)
    z = pretransform.encode(audio)
    assert z.shape == (2, facts["encoded_channels"], 1024 // facts["downsampling_ratio"])
    assert (pretransform.encoded_channels, pretransform.downsampling_ratio) == (
        facts["encoded_channels"],
        facts["downsampling_ratio"],
    )
    assert pretransform.io_channels == facts["io_channels"] == 2
    assert pretransform.decode(z).shape[:2] == (2, 2)
    assert not pretransform.is_discrete
    with pytest.raises(ValueError, match="has no tokens"):
        pretransform.tokenize(audio)
    with pytest.raises(ValueError, match="has no tokens to decode"):
        pretransform.decode_tokens(torch.zeros(1, 1, 4, dtype=torch.long))


@pytest.mark.parametrize("name", NODES)
def test_gradients_pass_both_ways(name: str) -> None:
    audio = torch.randn(1, 2, 256, requires_grad=True)
    pretransform = build(name)
    pretransform.decode(pretransform.encode(audio)).pow(2).sum().backward()
    assert audio.grad is not None
    assert audio.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NODES)
def test_half_precision(name: str) -> None:
    pretransform, audio = build(name), torch.randn(1, 2, 256)
    full = pretransform.encode(audio)
    half = pretransform.half().encode(audio.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), full, rtol=0, atol=2e-2)
    assert pretransform.decode(half).dtype == torch.float16


@pytest.mark.parametrize("name", NODES)
def test_builds_without_memory_and_loads_by_name(name: str) -> None:
    with torch.device("meta"):
        empty = build(name)
    filled = build(name).state_dict()
    assert {key: value.shape for key, value in empty.state_dict().items()} == {k: v.shape for k, v in filled.items()}
    empty.load_state_dict(filled, assign=True)
    audio = torch.randn(1, 2, 256)
    torch.testing.assert_close(empty.encode(audio), build(name).encode(audio))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"type": "pqmf", "config": {"num_bands": 12}}, "must be a power of two: use 8 or 16"),
        ({"type": "wavelet", "config": {"channels": 1, "levels": 2, "wavelet": "haar"}}, "expected 'bior2.2'"),
        ({"type": "wavelet", "config": {"channels": 1, "levels": 2}}, r"config\.wavelet: missing"),
        ({"type": "patched", "config": {"channels": 1, "patch_size": 7, "oversampling": 2}}, "use 8"),
        ({"type": "patched", "config": {"channel": 1, "patch_size": 7}}, "did you mean 'channels'"),
        ({"type": "patches"}, "did you mean 'patched'"),
        ({"type": "autoencoder", "scale": 0, "config": {}}, r"pretransform\.scale: expected more than 0.*, got 0"),
    ],
)
def test_mistakes_are_named(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_pretransform_from_config(node, sample_rate=16000)
