"""Published codecs: known before they are loaded, loaded when used, never part of a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stable_audio_tools.core.config import validate
from stable_audio_tools.core.errors import ConfigError, MissingPackage
from stable_audio_tools.core.packages import available
from stable_audio_tools.models.factory import create_pretransform_from_config
from stable_audio_tools.models.pretransforms import AudiocraftCompressionPretransform, PretrainedDACPretransform
from stable_audio_tools.models.pretransforms.pretrained import DAC_CODECS

DAC = {"type": "dac_pretrained", "config": {"model_type": "16khz", "scale": 2.0}}
TINY = {"encoder_dim": 4, "encoder_rates": [2, 4], "decoder_dim": 16, "decoder_rates": [4, 2], "n_codebooks": 3}


@pytest.fixture(params=[True, False], ids=["quantize-on-decode", "quantize-on-encode"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PretrainedDACPretransform:
    """The pretransform over a tiny codec of the package, in place of the published one."""
    dac = pytest.importorskip("dac")
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    dac.DAC(**TINY, codebook_size=16, codebook_dim=4).save(path)
    monkeypatch.setattr(dac.utils, "download", lambda model_type, model_bitrate: path)
    return PretrainedDACPretransform("16khz", scale=2.0, quantize_on_decode=request.param)


def test_building_loads_nothing_and_knows_the_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretrainedDACPretransform, "_load", lambda self: pytest.fail("loaded"))
    pretransform = create_pretransform_from_config(DAC, sample_rate=16000)
    assert (pretransform.downsampling_ratio, pretransform.encoded_channels) == (320, 1024)
    assert (pretransform.num_quantizers, pretransform.codebook_size) == (12, 1024)
    assert pretransform.is_discrete
    assert pretransform.state_dict() == {}
    facts = validate("pretransform", DAC).facts
    assert (facts["downsampling_ratio"], facts["num_quantizers"]) == (320, 12)


def test_old_checkpoints_that_hold_the_codec_load() -> None:
    model = nn.ModuleDict({"pretransform": PretrainedDACPretransform()})
    model.load_state_dict({"pretransform.model.encoder.block.0.bias": torch.zeros(1)})


def test_latents_and_tokens(codec: PretrainedDACPretransform) -> None:
    audio = 0.1 * torch.randn(2, 1, 160)
    latents = codec.encode(audio)
    assert latents.shape[0] == 2
    assert not codec.model.training
    assert not any(p.requires_grad for p in codec.model.parameters())
    quantized = codec.model.quantizer(codec.model.encoder(audio))[0]
    torch.testing.assert_close(codec.decode(latents), codec.model.decode(quantized), rtol=0, atol=1e-4)
    tokens = codec.tokenize(audio)
    assert tokens.shape[:2] == (2, 3)
    torch.testing.assert_close(codec.decode_tokens(tokens), codec.model.decode(quantized), rtol=0, atol=1e-4)
    assert codec.state_dict() == {}


def test_the_scale_divides_and_multiplies(codec: PretrainedDACPretransform) -> None:
    audio = 0.1 * torch.randn(1, 1, 160)
    codec.scale = 1.0
    plain = codec.encode(audio)
    codec.scale = 4.0
    torch.testing.assert_close(codec.encode(audio), plain / 4)


def test_a_bitrate_that_does_not_exist_is_refused() -> None:
    config = {"type": "dac_pretrained", "config": {"model_type": "24khz", "model_bitrate": "16kbps"}}
    with pytest.raises(ConfigError, match="only 44khz has 16kbps"):
        create_pretransform_from_config(config, sample_rate=24000)
    assert ("24khz", "16kbps") not in DAC_CODECS


@pytest.mark.parametrize("node", [DAC, {"type": "audiocraft_pretrained"}], ids=lambda node: node["type"])
def test_training_a_published_codec_is_refused(node: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a pretrained codec stays frozen"):
        create_pretransform_from_config({**node, "enable_grad": True}, sample_rate=16000)


def test_audiocraft_makes_tokens_only() -> None:
    pretransform = AudiocraftCompressionPretransform()
    assert (pretransform.downsampling_ratio, pretransform.num_quantizers, pretransform.codebook_size) == (640, 4, 2048)
    with pytest.raises(ValueError, match="output tokens only"):
        pretransform.encode(torch.zeros(1, 1, 640))
    with pytest.raises(ValueError, match="decode tokens only"):
        pretransform.decode(torch.zeros(1, 128, 1))


@pytest.mark.skipif(available("audiocraft"), reason="audiocraft is installed")
def test_a_missing_package_is_named_when_it_is_needed() -> None:
    with pytest.raises(MissingPackage, match="audiocraft is not installed"):
        AudiocraftCompressionPretransform().tokenize(torch.zeros(1, 1, 640))
