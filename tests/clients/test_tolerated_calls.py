"""Calls that stable-audio-tools accepts, and that other people's code makes."""

import logging

import pytest
import torch
from support.small_diffusion import make, model_config
from torch import nn

from stable_audio_tools.inference.generation import generate_diffusion_cond, generate_diffusion_cond_inpaint
from stable_audio_tools.inference.sampling import sample_k
from stable_audio_tools.models.bottleneck import Compressed

PROMPTS = [{"mood": "calm", "tempo": 90}, {"mood": "bright", "tempo": 120}]
CLIP = torch.sin(torch.arange(512) / 9).reshape(2, 256) * 0.3


@pytest.fixture(scope="module")
def model():
    return make(model_config("rectified_flow"))


def generate(model, **options):
    options = {"conditioning": PROMPTS[:1], "seed": 1, **options}
    return generate_diffusion_cond(model, steps=2, sample_size=256, device="cpu", **options)


def test_an_unknown_keyword_is_named_and_changes_nothing(model, caplog):
    plain = generate(model)
    assert torch.equal(generate(model, quantum=True), plain)
    assert "the option 'quantum' has no effect" in caplog.text
    generate(model, sigma_mx=3)
    assert "the option 'sigma_mx' has no effect; did you mean 'sigma_max'" in caplog.text


def test_samplers_of_k_diffusion_go_by_their_own_names(model):
    model = make(model_config("v"))
    assert torch.equal(generate(model, sampler_type="lms"), generate(model, sampler_type="k-lms"))
    noise = torch.randn(1, 4, 8)
    own = [sample_k(lambda x, t: -x, noise, steps=3, sampler_type=name, device="cpu") for name in ("heun", "k-heun")]
    assert torch.equal(*own)


def test_seeds_of_64_bits_are_folded(model, caplog):
    for seed, folded in ((2**63 - 1, 0), (2**64 - 1, 1)):
        assert torch.equal(generate(model, seed=seed), generate(model, seed=folded))
        assert f"the seed {seed} is used as {folded}" in caplog.text
    with pytest.raises(ValueError, match=r"from 0 to 2\^64 - 1"):
        generate(model, seed=2**64)


def test_a_level_of_zero_returns_the_audio_through_the_codec(model):
    model = make(model_config("rectified_flow"))
    model.pretransform.model.bottleneck.compress = lambda x, **_: Compressed(x[:, :4], {})  # without its noise
    latents = generate(model, init_audio=(16000, CLIP), init_noise_level=0, return_latents=True)
    torch.testing.assert_close(latents, model.pretransform.encode(CLIP[None]))


def test_several_conditions_make_as_many_items(model):
    both = generate(model, conditioning=PROMPTS)
    assert both.shape == (2, 2, 256)
    assert torch.equal(both, generate(model, conditioning=PROMPTS, batch_size=2))
    inpainting = make(model_config("rectified_flow", inpainting=True))
    made = generate_diffusion_cond_inpaint(
        inpainting, steps=1, conditioning=PROMPTS, sample_size=256, device="cpu", seed=1
    )
    assert len(made) == 2


def test_audio_may_have_more_axes_of_one(model):
    plain = generate(model, init_audio=(16000, CLIP), init_noise_level=0.5)
    assert torch.equal(generate(model, init_audio=(16000, CLIP[None, None]), init_noise_level=0.5), plain)


@torch.no_grad()
def test_prepended_tokens_have_the_width_of_the_projection_that_is_there(model, caplog):
    caplog.set_level(logging.WARNING)
    dit = make(model_config("rectified_flow")).model.model
    x, t = torch.randn(1, 4, 8), torch.tensor([0.5])
    tokens, options = torch.randn(1, 3, 5), {"cross_attn_cond": torch.randn(1, 2, 8), "global_embed": torch.randn(1, 8)}
    with pytest.raises(ValueError, match="prepend_cond_dim is 0, and a condition of width 5"):
        dit(x, t, prepend_cond=tokens, **options)
    dit.to_prepend_embed = nn.Linear(5, 32)
    assert dit(x, t, prepend_cond=tokens, **options).shape == x.shape
