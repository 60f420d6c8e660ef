"""Networks held in half precision: what is converted, and what stays exact."""

import pytest
import torch
from support.small_models import CONFIGS, narrowed
from torch import nn

from stable_audio_tools.core.config import load
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.autoencoders.weight_norm import WNConv1d, folded_weight_norm
from stable_audio_tools.models.diffusion.ddpm import DDPMObjective
from stable_audio_tools.models.diffusion.guidance import Guidance
from stable_audio_tools.models.diffusion.objectives import V
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.models.fourier import FourierFeatures
from stable_audio_tools.models.precision import held_for_autocast, hold_in, weight_dtype
from stable_audio_tools.models.transformer.norms import RMSNorm
from stable_audio_tools.models.transformer.rotary import RotaryEmbedding

PASS = (torch.zeros(1, 4, 8), torch.tensor([0.5]))
HALVES = [torch.float16, torch.bfloat16]


def transformer(**options) -> DiffusionTransformer:
    torch.manual_seed(0)
    model = DiffusionTransformer(io_channels=4, embed_dim=32, depth=2, num_heads=2, cond_token_dim=8, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("dtype", HALVES)
def test_features_of_the_noise_level_stay_in_float32(dtype: torch.dtype) -> None:
    model = hold_in(transformer(), dtype)
    kept = {name for name, value in model.named_parameters() if value.dtype == torch.float32}
    assert kept == {"timestep_features.weight"}
    assert weight_dtype(model) == model.dtype == dtype


@pytest.mark.parametrize("dtype", HALVES)
def test_a_hundred_noise_levels_stay_a_hundred(dtype: torch.dtype) -> None:
    model = hold_in(transformer(), dtype)
    times = torch.linspace(1, 0, 101)[:-1]
    x = torch.randn(1, 4, 8, dtype=dtype).expand(100, -1, -1)
    with torch.no_grad():
        features = model.timestep_features(times[:, None])
        outputs = model(x, times, cross_attn_cond=torch.randn(1, 3, 8, dtype=dtype).expand(100, -1, -1))
    assert outputs.dtype == dtype
    assert len(features.unique(dim=0)) == len(V.noise_level(times).unique()) == 100


@pytest.mark.parametrize("dtype", HALVES)
def test_time_in_half_precision_is_not_rounded_further(dtype: torch.dtype) -> None:
    objective = DDPMObjective()
    t = torch.linspace(0.05, 1, 50, dtype=torch.float64).to(dtype)
    assert torch.equal(objective.position(t), objective.position(t.double()).float())
    assert torch.equal(objective.mix(t).sigma, objective.mix(t.double()).sigma.float())


@pytest.mark.parametrize("dtype", HALVES)
def test_rotary_frequencies_of_half_precision_files_are_exact(dtype: torch.dtype) -> None:
    """In a model of either type, and where the file had been converted back to float32."""
    exact = RotaryEmbedding(32).inv_freq
    for stored in ({"inv_freq": exact.to(dtype)}, {"inv_freq": exact.to(dtype).float()}):
        loaded = RotaryEmbedding(32)
        loaded.load_state_dict(stored)
        assert torch.equal(loaded.inv_freq, exact)


def test_rotary_frequencies_of_another_base_are_kept() -> None:
    other = RotaryEmbedding(32, base=500.0).inv_freq
    loaded = RotaryEmbedding(32)
    loaded.load_state_dict({"inv_freq": other})
    assert torch.equal(loaded.inv_freq, other)


@pytest.mark.parametrize("dtype", HALVES)
def test_guidance_combines_in_float32(dtype: torch.dtype) -> None:
    """bfloat16 has eight bits; seven times the difference of two neighbours has fewer."""
    conditioned, unconditioned = (torch.randn(2, 4, 16).to(dtype) for _ in range(2))
    guidance = Guidance(7.0, rescale=0.3)
    combined = guidance.combine(conditioned, unconditioned)
    assert combined.dtype == torch.float32
    assert torch.equal(combined, guidance.combine(conditioned.float(), unconditioned.float()))
    assert transformer().to(dtype)(*PASS, cross_attn_cond=torch.randn(1, 3, 8), cfg_scale=3.0).dtype == dtype


def test_a_negative_condition_is_read_through_its_own_mask() -> None:
    """What the mask of the prompt hides of the negative prompt, and what it does not hide, makes no difference."""
    model = transformer(use_cross_attn_mask=True)
    x, t = torch.randn(1, 4, 8), torch.tensor([0.5])
    prompt, negative = torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    short = torch.arange(6)[None] < 2
    full = torch.ones(1, 6, dtype=torch.bool)

    def unconditional(mask: torch.Tensor, tokens: torch.Tensor, negative_mask: torch.Tensor) -> torch.Tensor:
        _, info = model(
            x,
            t,
            cross_attn_cond=prompt,
            cross_attn_cond_mask=mask,
            negative_cross_attn_cond=tokens,
            negative_cross_attn_mask=negative_mask,
            cfg_scale=3.0,
            return_info=True,
        )
        return info["uncond_output"]

    with torch.no_grad():
        alone = model(x, t, cross_attn_cond=negative, cross_attn_cond_mask=full)
        torch.testing.assert_close(unconditional(short, negative, full), alone)
        changed = torch.cat([negative[:, :2], torch.randn(1, 4, 8)], dim=1)
        torch.testing.assert_close(unconditional(full, changed, short), unconditional(full, negative, short))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["tiny_diffusion_cond", "tiny_diffusion_uncond", "tiny_diffusion_cond_inpaint"])
def test_every_kind_of_network_runs_held_in_half_precision(name: str, dtype: torch.dtype) -> None:
    config = narrowed(load(next(CONFIGS.rglob(f"{name}.json"))))
    network = hold_in(create_model_from_config(config).eval().model, dtype)
    assert weight_dtype(network) == dtype
    exact = [part for part in network.modules() if isinstance(part, FourierFeatures)]
    assert all(part.weight.dtype == torch.float32 for part in exact)
    assert not [
        module for module in network.modules() if isinstance(module, nn.Linear) and module.weight.dtype != dtype
    ]


def test_weights_held_for_autocast_give_the_results_of_autocast_and_come_back() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(4, 8, 3), WNConv1d(8, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 1)).requires_grad_(False)
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    x = torch.randn(2, 4, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = network(x)
        with folded_weight_norm(network.eval()), held_for_autocast(network, None):
            assert network[0].weight.dtype is torch.bfloat16
            assert torch.equal(network(x), wanted)
            assert network[1].weight is network[1].weight and network[1].weight.dtype is torch.bfloat16
    with held_for_autocast(network):
        assert network[0].weight.dtype is torch.float32, "nothing changes without autocast"
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())


def test_norms_that_are_forced_to_float32_hold_their_weights_so() -> None:
    network = nn.Sequential(RMSNorm(4, force_fp32=True), nn.Linear(4, 4), RMSNorm(4))
    hold_in(network, torch.float16)
    assert [weight.dtype for weight in (network[0].gamma, network[1].weight, network[2].gamma)] == [
        torch.float32,
        torch.float16,
        torch.float16,
    ]
    assert weight_dtype(network) is torch.float16
