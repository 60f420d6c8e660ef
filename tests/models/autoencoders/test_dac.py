import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.models.autoencoders.dac import DACDecoderWrapper, DACEncoderWrapper


def test_encoder_equals_descript_audio_codec():
    dac = pytest.importorskip("dac.model.dac")
    ours = DACEncoderWrapper(d_model=4, strides=[2, 4]).eval()
    theirs = dac.Encoder(d_model=4, strides=[2, 4], d_latent=16).eval()
    theirs.load_state_dict(ours.encoder.state_dict())
    x = torch.randn(2, 1, 256)
    torch.testing.assert_close(ours(x), theirs(x))


def test_decoder_equals_descript_audio_codec():
    dac = pytest.importorskip("dac.model.dac")
    ours = DACDecoderWrapper(latent_dim=6, channels=16, rates=[4, 3], out_channels=2).eval()
    theirs = dac.Decoder(input_channel=6, channels=16, rates=[4, 3], d_out=2).eval()
    theirs.load_state_dict(ours.decoder.state_dict())
    z = torch.randn(2, 6, 20)
    torch.testing.assert_close(ours(z), theirs(z))


def test_names_of_published_weights():
    encoder = DACEncoderWrapper(d_model=4, strides=[2], in_channels=2, latent_dim=6)
    names = set(encoder.state_dict())
    assert {"encoder.block.0.weight_g", "encoder.block.1.block.0.block.0.alpha", "proj_out.weight"} <= names
    decoder = DACDecoderWrapper(latent_dim=6, channels=8, rates=[2])
    assert "decoder.model.1.block.1.weight_v" in decoder.state_dict()


def test_without_latent_dim_the_net_decides():
    encoder = build("encoder", {"type": "dac", "config": {"d_model": 4, "strides": [2, 2]}})
    assert encoder(torch.randn(1, 1, 64)).shape == (1, 16, 16)
