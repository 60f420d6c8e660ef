import math

import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.autoencoders.local_attention import (
    AdaRMSNorm,
    TransformerDecoder1D,
    TransformerEncoder1D,
    neighbourhood_attention,
)

SMALL = {"embed_dims": [16, 32], "heads": [2, 2], "depths": [1, 2], "ratios": [2, 3], "local_attn_window_size": 5}


def one_by_one(q, k, v, window, causal):
    """The definition: each query and its own window, shifted inwards at the ends."""
    length = q.shape[-2]
    size = min(window, length)
    out = torch.empty_like(q)
    for i in range(length):
        start = min(max(i - size // 2, 0), length - size)
        keys = [j for j in range(start, start + size) if not causal or j <= i]
        scores = torch.einsum("bhd,bhjd->bhj", q[:, :, i], k[:, :, keys]) / math.sqrt(q.shape[-1])
        out[:, :, i] = torch.einsum("bhj,bhjd->bhd", scores.softmax(-1), v[:, :, keys])
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("length", "window"), [(200, 7), (200, 8), (130, 100), (64, 1), (65, 64), (20, 64), (1, 3), (129, 129)]
)
def test_neighbourhoods_follow_their_definition(length, window, causal):
    torch.manual_seed(length)
    q, k, v = torch.randn(3, 2, 2, length, 4, dtype=torch.float64)
    torch.testing.assert_close(neighbourhood_attention(q, k, v, window, causal), one_by_one(q, k, v, window, causal))


def test_encoder_and_decoder_of_the_default_sizes_run():
    encoder = TransformerEncoder1D(in_channels=2, out_channels=8)
    decoder = TransformerDecoder1D(in_channels=8, out_channels=2)
    latents = encoder(torch.randn(1, 2, 160))
    assert latents.shape == (1, 8, 10)
    assert decoder(latents).shape == (1, 2, 160)


def test_names_of_published_weights():
    names = set(TransformerEncoder1D(2, 8, **SMALL).state_dict())
    layer = "layers.1.transformer.layers.0"
    assert {
        "project_in.weight",
        "project_out.weight",
        "layers.1.project_in.weight",
        "layers.0.project_down.weight",
        f"{layer}.0.gamma",
        f"{layer}.1.to_qkv.weight",
        f"{layer}.1.to_out.weight",
        f"{layer}.3.beta",
        f"{layer}.4.ff.0.proj.weight",
        f"{layer}.4.ff.2.weight",
        "layers.0.transformer.rotary_pos_emb.inv_freq",
    } <= names
    assert "layers.0.project_in.weight" not in names  # as wide as what it gets
    assert "layers.0.project_up.weight" in TransformerDecoder1D(8, 2, **SMALL).state_dict()


def wake(network):
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("to_out.weight", "ff.ff.2.weight", "4.ff.2.weight")):
                parameter.normal_(0, 0.1)
    return network


def test_causal_attention_sees_no_later_frame():
    torch.manual_seed(0)
    options = {**SMALL, "ratios": [1, 1], "depths": [2, 2]}

    def reach(network):
        x = torch.randn(1, 2, 40, requires_grad=True)
        wake(network)(x)[..., 20].square().sum().backward()
        touched = x.grad.abs().sum((0, 1)).nonzero().flatten()
        return touched.min().item(), touched.max().item()

    assert reach(TransformerEncoder1D(2, 4, causal=True, **options)) == (20 - 4 * 2, 20)
    assert reach(TransformerEncoder1D(2, 4, **options)) == (20 - 4 * 2, 20 + 4 * 2)


def test_samples_past_the_last_frame_are_left_out():
    encoder = TransformerEncoder1D(2, 4, **SMALL).eval()
    x = torch.randn(1, 2, 63)
    torch.testing.assert_close(encoder(x), encoder(x[..., :60]))


def test_trains():
    encoder = wake(TransformerEncoder1D(2, 4, **SMALL))
    encoder(torch.randn(2, 2, 60)).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_conditions_scale_the_norms_and_are_attended_to():
    torch.manual_seed(0)
    encoder = wake(TransformerEncoder1D(2, 4, **SMALL, cond_dim=3, cross_attn_cond_dim=16)).eval()
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, AdaRMSNorm):
                module.linear.weight.normal_()
    x, cond, tokens = torch.randn(1, 2, 12), torch.randn(1, 3), torch.randn(1, 5, 16)
    base = encoder(x, cond=cond, cross_attn_cond=tokens)
    assert not torch.allclose(base, encoder(x, cond=2 * cond, cross_attn_cond=tokens))
    assert not torch.allclose(base, encoder(x, cond=cond, cross_attn_cond=2 * tokens))
    with pytest.raises(ValueError, match=r"takes cond of width 3; none was given"):
        encoder(x, cross_attn_cond=tokens)
    with pytest.raises(ValueError, match=r"takes no cond \(cond_dim is 0\); one was given"):
        TransformerEncoder1D(2, 4, **SMALL)(x, cond=cond)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": [2]}, "heads: has 1 entries for 4 depths"),
        ({"embed_dims": [96, 192, 384, 700]}, r"embed_dims\[3\]: is 700, which does not divide into heads\[3\] = 12"),
        ({"window": 3}, "unknown key"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        build("encoder", {"type": "local_attn", "config": {"in_channels": 2, "out_channels": 4, **config}})
