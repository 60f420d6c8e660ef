"""What Stable Audio 3 adds to the diffusion transformer: true lengths, local conditions, projected guidance."""

from typing import Any

import pytest
import torch

from stable_audio_tools import generation
from stable_audio_tools.models.diffusion.guidance import Guidance
from stable_audio_tools.models.dit import DiffusionTransformer

SMALL: dict[str, Any] = {"io_channels": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "cond_token_dim": 8}
EXTRAS: dict[str, dict[str, Any]] = {
    "differential": {"attn_kwargs": {"qk_norm": "rms", "differential": True}, "norm_type": "rms_norm"},
    "feature scale": {"attn_kwargs": {"feat_scale": True}, "norm_type": "dyt"},
    "conformer": {"conformer": True},
    "convolution": {"ff_kwargs": {"use_conv": True, "glu": False}},
    "gated convolution": {"ff_kwargs": {"use_conv": True}},
    "window": {"sliding_window": [3, 2]},
    "memory": {"num_memory_tokens": 3, "global_cond_type": "adaLN"},
    "local": {"local_add_cond_dim": 3, "modular_local_cond_configs": [{"id": "beat", "dim": 2}]},
}


def transformer(**options: Any) -> DiffusionTransformer:
    torch.manual_seed(0)
    model = DiffusionTransformer(**{**SMALL, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs(length: int, local: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    given: dict[str, Any] = {
        "x": torch.randn(2, 4, length, generator=generator),
        "t": torch.tensor([0.3, 0.6]),
        "cross_attn_cond": torch.randn(2, 5, 8, generator=generator),
    }
    if local:
        given["local_add_cond"] = torch.randn(2, 3, length, generator=generator)
        given["modular_local_cond"] = {"beat": torch.randn(2, 2, length, generator=generator)}
    return given


@pytest.mark.parametrize("guided", [{}, {"cfg_scale": 3.0, "apg_scale": 0.4, "cfg_norm_threshold": 1.0}])
@pytest.mark.parametrize("name", EXTRAS)
def test_padded_items_are_what_they_are_alone(name: str, guided: dict[str, float]) -> None:
    model, lengths = transformer(**EXTRAS[name]), (7, 12)
    given = inputs(12, local=name == "local")
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        together = model(**given, padding_mask=mask, **guided)
        for item, length in enumerate(lengths):
            alone = {key: value[item : item + 1] for key, value in given.items() if torch.is_tensor(value)}
            alone["x"] = alone["x"][..., :length]
            if name == "local":
                alone["local_add_cond"] = alone["local_add_cond"][..., :length]
                alone["modular_local_cond"] = {"beat": given["modular_local_cond"]["beat"][item : item + 1, :, :length]}
            expected = model(**alone, **guided)
            torch.testing.assert_close(together[item : item + 1, :, :length], expected, rtol=0, atol=1e-5)


def test_local_conditions_belong_to_the_end_of_the_sequence() -> None:
    model = transformer(**EXTRAS["local"], num_memory_tokens=2)
    given = inputs(8, local=True)
    short = {**given, "local_add_cond": given["local_add_cond"][..., 3:]}
    with torch.no_grad():
        model_output = model(**short)
        # Frames that a short condition does not reach get none, not the embedding of zeros.
        padded = torch.nn.functional.pad(short["local_add_cond"], (3, 0))
        assert not torch.allclose(model_output, model(**{**given, "local_add_cond": padded}), atol=1e-5)
        longer = torch.cat([torch.randn(2, 3, 20), given["local_add_cond"]], dim=-1)
        frames = 8 + 2 + 1  # with memory and the prepended noise level
        torch.testing.assert_close(
            model(**{**given, "local_add_cond": longer}),
            model(**{**given, "local_add_cond": longer[..., -frames:]}),
        )


def test_an_absent_modular_condition_adds_nothing() -> None:
    model = transformer(**EXTRAS["local"])
    given = inputs(8, local=True)
    with torch.no_grad():
        with_beat = model(**given)
        without = model(**{**given, "modular_local_cond": None})
    assert not torch.allclose(with_beat, without, atol=1e-5)


def test_fresh_local_projections_change_nothing() -> None:
    torch.manual_seed(0)
    model = DiffusionTransformer(**{**SMALL, "zero_init_branch_outputs": False, "local_add_cond_dim": 3}).eval()
    given = inputs(8)
    with torch.no_grad():
        torch.testing.assert_close(model(**given), model(**given, local_add_cond=torch.randn(2, 3, 8)))


def test_projected_guidance_is_orthogonal_to_the_data() -> None:
    x, conditioned, unconditioned = torch.randn(3, 2, 4, 9)
    t = torch.tensor([0.25, 0.8])

    def data(output: torch.Tensor) -> torch.Tensor:
        return x - t[:, None, None] * output

    full = Guidance(3.0, apg_scale=1.0).combine(conditioned, unconditioned, data)
    added = data(full) - data(conditioned)
    assert added.norm() > 0.1
    assert (added * data(conditioned)).sum((1, 2)).abs().max() < 1e-3
    none = Guidance(3.0, apg_scale=0.0).combine(conditioned, unconditioned, data)
    torch.testing.assert_close(none, unconditioned + 3 * (conditioned - unconditioned))
    half = Guidance(3.0, apg_scale=0.5).combine(conditioned, unconditioned, data)
    torch.testing.assert_close(half, (full + none) / 2)


def test_the_norm_threshold_bounds_the_step_of_the_data() -> None:
    x, conditioned, unconditioned = torch.randn(3, 2, 4, 9)
    clipped = Guidance(2.0, apg_scale=0.0, norm_threshold=0.1).combine(conditioned, unconditioned, lambda y: x - y)
    norms = (clipped - conditioned).norm(dim=(1, 2))
    torch.testing.assert_close(norms, torch.full((2,), 0.1))


def test_the_default_projection_follows_the_generation() -> None:
    model, given = transformer(), inputs(8)
    with torch.no_grad():
        old, plain = model(**given, cfg_scale=4.0), model(**given, cfg_scale=4.0, apg_scale=0.0)
        with generation("0.0.20"):
            new = model(**given, cfg_scale=4.0)
        projected = model(**given, cfg_scale=4.0, apg_scale=1.0)
    assert torch.equal(old, plain)
    assert torch.equal(new, projected)
    assert not torch.allclose(old, new, atol=1e-4)


def test_unknown_generations_and_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="no generation '1'"), generation("1"):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="apg_scale must be from 0"):
        Guidance(2.0, apg_scale=1.5)
    with pytest.raises(ValueError, match="cfg_norm_threshold must be at least 0"):
        Guidance(2.0, norm_threshold=-1.0)


def test_half_precision_keeps_the_time_exact() -> None:
    """Near pure noise the fastest features and log-SNR need more digits than bfloat16 has."""
    model = transformer(timestep_features_type="expo", timestep_features_logsnr=True).bfloat16()
    t = torch.tensor([0.998, 0.999])
    with torch.no_grad():
        embedded = model._embed_time(t)
        assert not torch.equal(embedded[0], embedded[1])


def test_random_frequencies_are_trained_only_without_the_newer_keys() -> None:
    assert "timestep_features.weight" in dict(transformer().named_parameters())
    fixed = transformer(timestep_features_dim=64)
    assert "timestep_features.weight" in dict(fixed.named_buffers())
    assert "timestep_features.weight" not in transformer(timestep_features_type="expo").state_dict()
