"""Generation after 0.0.19: lengths from the conditions, items that are what they are alone, spans, refusals."""

from typing import Any

import pytest
import torch
from support.small_diffusion import model_config, with_random_weights

import stable_audio_tools
from stable_audio_tools.inference.generation import generate_diffusion_cond, generate_diffusion_cond_inpaint
from stable_audio_tools.models import create_model_from_config

RATE = 16000  # of the small models; one latent frame is 8 samples


def model(inpainting: bool = True, objective: str = "rectified_flow", **diffusion: Any) -> Any:
    config = model_config(objective, **diffusion)
    config["model"]["conditioning"]["configs"].append(
        {"id": "seconds_total", "type": "number", "config": {"max_val": 1}}
    )
    section = config["model"]["diffusion"]
    section["cross_attention_cond_ids"] = ["mood", "seconds_total"]
    if inpainting:
        config["model_type"] = "diffusion_cond_inpaint"
        section["local_add_cond_ids"] = ["inpaint_mask", "inpaint_masked_input"]
        section["config"]["local_add_cond_dim"] = 5
    torch.manual_seed(0)
    return with_random_weights(create_model_from_config(config)).eval()


def metadata(*seconds: float) -> list[dict[str, Any]]:
    return [{"mood": "calm", "tempo": 120, "seconds_total": value} for value in seconds]


def generate(net: Any, seconds: tuple[float, ...], **options: Any) -> torch.Tensor:
    call = {
        "steps": 3,
        "cfg_scale": 2.0,
        "conditioning": metadata(*seconds),
        "batch_size": len(seconds),
        "sample_size": 4096,
        "seed": 3,
        "device": "cpu",
        "duration_padding_sec": 0.001,
        **options,
    }
    return generate_diffusion_cond_inpaint(net, **call)


MASKED = {"mask_padding_attention": True, "use_effective_length_for_schedule": True}


def test_the_sample_size_follows_the_longest_item() -> None:
    assert generate(model(**MASKED), (0.01, 0.02)).shape == (2, 2, 336)  # 0.021 s of 16 kHz in whole frames
    assert generate(model(**MASKED), (0.01,), sample_size=64).shape[-1] == 64
    assert generate(model(), (0.01,)).shape[-1] == 4096
    assert generate(model(), (0.01,), adapt_duration_to_conditioning=True).shape[-1] == 176


def test_items_of_a_batch_are_what_they_are_alone() -> None:
    net = model(**MASKED)
    seeds = [5, 6]
    together = generate(net, (0.01, 0.02), seed=seeds, return_latents=True)
    for item, (seconds, seed) in enumerate(zip((0.01, 0.02), seeds)):
        frames = -(-int(seconds * RATE) // 8) + int(0.001 * RATE / 8)
        # The noise of an item is drawn for the length of its batch; only the longest is drawn alike alone.
        alone = generate(net, (seconds, 0.02), seed=[seed, 99], return_latents=True)
        torch.testing.assert_close(together[item, :, :frames], alone[0, :, :frames], rtol=0, atol=1e-5)


def test_what_is_after_an_item_is_silent() -> None:
    audio = generate(model(**MASKED), (0.01, 0.02))
    end = 8 * (20 + 2)
    assert audio[0, :, end:].abs().max() == 0
    assert audio[0, :, :end].abs().max() > 0
    assert audio[1, :, end:].abs().max() > 0


def test_spans_in_seconds_are_a_mask_of_samples() -> None:
    net, audio = model(), (RATE, torch.randn(2, 512, generator=torch.Generator().manual_seed(0)))
    call = {"sample_size": 512, "inpaint_audio": audio}
    mask = torch.ones(1, 512)
    mask[:, 80:160] = 0
    mask[:, 320:400] = 0
    spans = {"inpaint_mask_start_seconds": [0.005, 0.02], "inpaint_mask_end_seconds": [0.01, 0.025]}
    assert torch.equal(generate(net, (0.03,), **call, **spans), generate(net, (0.03,), **call, inpaint_mask=mask))
    exact = generate(net, (0.03,), **call, **spans, keep_exact=True, crossfade_seconds=0.0)
    assert torch.equal(exact[0, :, :16], audio[1][:, :16])
    with pytest.raises(ValueError, match="two lists of equal length"):
        generate(net, (0.03,), **call, inpaint_mask_start_seconds=[0.0], inpaint_mask_end_seconds=0.01)


def test_models_of_0_0_19_keep_their_numbers_outside_of_a_newer_block() -> None:
    net = model(inpainting=False)
    assert net.sampling_version == "0.0.19"
    call: dict[str, Any] = {
        "steps": 3,
        "cfg_scale": 3.0,
        "conditioning": metadata(0.01),
        "sample_size": 256,
        "seed": 1,
        "device": "cpu",
        "return_latents": True,
    }
    plain = generate_diffusion_cond(net, **call)
    with stable_audio_tools.generation("0.0.20"):
        newer = generate_diffusion_cond(net, **call)
    named = generate_diffusion_cond(net, **call, apg_scale=1.0)
    assert torch.equal(plain, generate_diffusion_cond(net, **call))
    assert not torch.allclose(plain, newer, atol=1e-3)
    assert torch.equal(newer, named)


def test_the_config_names_the_generation_or_shows_it() -> None:
    assert model().sampling_version == "0.0.20"
    assert model(sampling_version="stable-audio-3").sampling_version == "stable-audio-3"
    assert model(inpainting=False, sampling_version="0.0.20").sampling_version == "0.0.20"


def test_inversion_comes_back_to_the_audio() -> None:
    """With the model's own flow both ways and many steps; more noise than data is lost to the first-order steps."""
    net = model(inpainting=False, sampling_version="0.0.20")
    audio = (RATE, 0.1 * torch.randn(2, 256, generator=torch.Generator().manual_seed(0)))
    call: dict[str, Any] = {
        "cfg_scale": 1.0,
        "conditioning": metadata(0.01),
        "sample_size": 256,
        "seed": 1,
        "device": "cpu",
        "return_latents": True,
        "init_audio": audio,
    }
    params = {"inversion_steps": 200, "inversion_gamma": 0.0, "inversion_unconditional": False}
    found = generate_diffusion_cond(net, steps=200, **call, inversion_params=params)
    far = generate_diffusion_cond(net, steps=200, **{**call, "init_audio": None})
    again = generate_diffusion_cond(net, steps=200, **call, inversion_params={**params, "inversion_steps": 150})
    assert (found - again).norm() < 0.1 * (found - far).norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"apg_scal": 1.0}, "unknown option 'apg_scal'; did you mean 'apg_scale'"),
        ({"conditioning": metadata(0.1, 0.1, 0.1), "batch_size": 2}, "has 3 entries for batch_size 2"),
        ({"conditioning": None}, "give conditioning"),
        ({"sampler_type": "dpmpp-2m-sde"}, "is not for a model with the objective 'rectified_flow'"),
        ({"apg_scale": 2.0}, "apg_scale must be from 0"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model(), (0.01,), **options)


def test_a_loaded_model_generates_as_its_generation_does() -> None:
    """`AudioModel.generate` and the published function agree, and an item's length is what was asked for."""
    from stable_audio_tools.inference.generation.model import AudioModel

    config = model_config("rectified_flow", **MASKED)
    config["model"]["conditioning"]["configs"].append(
        {"id": "seconds_total", "type": "number", "config": {"max_val": 1}}
    )
    config["model"]["diffusion"]["cross_attention_cond_ids"] = ["mood", "seconds_total"]
    config["sample_size"] = 4096
    torch.manual_seed(0)
    net = with_random_weights(create_model_from_config(config)).eval()
    call: dict[str, Any] = {"steps": 3, "cfg_scale": 2.0}
    loaded = AudioModel(net, config)
    result = loaded.generate(mood="calm", tempo=120, seconds_total=0.01, seed=3, sampler_type="euler", **call)
    plain = generate_diffusion_cond(net, conditioning=metadata(0.01), sample_size=4096, seed=3, device="cpu", **call)
    length = min(result.audio.shape[-1], plain.shape[-1])
    torch.testing.assert_close(result.audio[..., :length], plain[..., :length])
