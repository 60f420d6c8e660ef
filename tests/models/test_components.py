"""One suite over every registered component: built from JSON, run, trained, saved, loaded, in half precision."""

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.core.config import Part, components, validate

RATE = 16000
STRIDES = {"channels": 8, "c_mults": [1, 2], "strides": [2, 4]}
TRANSFORMER = {"channels": 128, "c_mults": [1, 1], "strides": [2, 4], "transformer_depths": [1, 1]}
LOCAL = {"embed_dims": [16, 16], "heads": [2, 2], "depths": [1, 1], "ratios": [2, 2], "local_attn_window_size": 8}
UNET = {
    "in_channels": 2,
    "channels": 16,
    "resnet_groups": 4,
    "multipliers": [1, 2],
    "factors": [2],
    "num_blocks": [1],
    "attentions": [0, 1],
    "attention_heads": 2,
    "attention_features": 8,
    "attention_multiplier": 2,
}
SAME = {
    "channels": 16,
    "c_mults": [1, 2],
    "strides": [2, 4],
    "transformer_depths": [1, 2],
    "dim_heads": 16,
    "chunk_size": 16,
    "chunk_midpoint_shift": True,
}
WAVES = {"depth": 3, "n_attn_layers": 1, "channels": [32, 32, 64], "strides": [2, 2]}
CODES = {"input_dim": 8, "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 4}
SPECTRA = {"filters": 4, "n_ffts": [128], "hop_lengths": [32], "win_lengths": [128]}
AUTOENCODER = {
    "encoder": {"type": "oobleck", "config": {**STRIDES, "latent_dim": 8}},
    "decoder": {"type": "oobleck", "config": {**STRIDES, "latent_dim": 4}},
    "bottleneck": {"type": "vae"},
    "latent_dim": 4,
    "downsampling_ratio": 8,
    "io_channels": 2,
}
MEL = {"n_fft": 64, "hop_length": 16, "n_mels": 8, "channels": 2}

IMAGES = {"block_out_channels": [8, 8], "norm_groups": 4}
CONFIGS: dict[tuple[str, str], dict[str, Any]] = {
    ("encoder", "oobleck"): {**STRIDES, "latent_dim": 8, "use_snake": True},
    ("encoder", "dac"): {"in_channels": 2, "latent_dim": 8, "d_model": 8, "strides": [2, 4]},
    ("encoder", "seanet"): {"channels": 2, "dimension": 8, "n_filters": 4, "ratios": [2, 4]},
    ("encoder", "taae"): {"in_channels": 2, "latent_dim": 8, **TRANSFORMER},
    ("encoder", "local_attn"): {"in_channels": 2, "out_channels": 8, **LOCAL},
    ("decoder", "oobleck"): {**STRIDES, "latent_dim": 8, "use_snake": True},
    ("decoder", "dac"): {"out_channels": 2, "latent_dim": 8, "channels": 32, "rates": [4, 2]},
    ("decoder", "seanet"): {"channels": 2, "dimension": 8, "n_filters": 4, "ratios": [4, 2]},
    ("decoder", "taae"): {"out_channels": 2, "latent_dim": 8, **TRANSFORMER},
    ("decoder", "local_attn"): {"in_channels": 8, "out_channels": 2, **LOCAL},
    ("encoder", "kl_2d"): {"bands": 2, "latent_channels": 4, "downsamplings": 1, **IMAGES},
    ("decoder", "kl_2d"): {"bands": 2, "latent_channels": 8, "downsamplings": 1, **IMAGES},
    **{("encoder", tag): {"in_channels": 2, "latent_dim": 8, **SAME} for tag in ("same", "taae_v2")},
    **{("decoder", tag): {"out_channels": 2, "latent_dim": 8, **SAME} for tag in ("same", "taae_v2")},
    ("bottleneck", "kl"): {"sample": False},
    ("bottleneck", "tanh"): {},
    ("bottleneck", "vae"): {},
    ("bottleneck", "l2_norm"): {},
    ("bottleneck", "wasserstein"): {},
    ("bottleneck", "soft_norm"): {"dim": 8},
    ("bottleneck", "softnorm"): {"dim": 8, "auto_scale": True},
    ("bottleneck", "rvq"): {"dim": 8, "codebook_size": 16, "num_quantizers": 2, "kmeans_init": False},
    ("bottleneck", "rvq_vae"): {"dim": 4, "codebook_size": 16, "num_quantizers": 2, "kmeans_init": False},
    ("bottleneck", "dac_rvq"): CODES,
    ("bottleneck", "dac_rvq_vae"): {**CODES, "input_dim": 4},
    ("bottleneck", "fsq"): {"levels": [5] * 8},
    ("bottleneck", "dithered_fsq"): {"dim": 8, "levels": 5},
    ("pretransform", "autoencoder"): AUTOENCODER,
    ("pretransform", "patched"): {"channels": 2, "patch_size": 4},
    ("pretransform", "pqmf"): {"channels": 2, "num_bands": 4},
    ("pretransform", "wavelet"): {"channels": 2, "levels": 2, "wavelet": "bior4.4"},
    ("pretransform", "mel"): MEL,
    ("pretransform", "chain"): {
        "stages": [{"type": "mel", "config": MEL}, {"type": "patched", "config": {"channels": 16, "patch_size": 2}}]
    },
    ("conditioner", "int"): {"min_val": 0, "max_val": 8},
    ("conditioner", "number"): {"min_val": 0, "max_val": 8},
    ("conditioner", "list"): {"options": ["3", "5"]},
    ("conditioner", "precomputed"): {"dim": 8, "max_length": 2},
    ("diffusion", "unet2d_cond"): {"io_channels": 2, "cond_token_dim": 8, "attention_levels": [1], **IMAGES},
    ("unconditional", "unet2d"): {"io_channels": 2, "attention_levels": [1], "attention_head_dim": 4, **IMAGES},
    ("diffusion", "dit"): {"io_channels": 2, "embed_dim": 64, "depth": 1, "num_heads": 2},
    ("diffusion", "adp_1d"): UNET,
    ("diffusion", "adp_cfg_1d"): {**UNET, "context_embedding_features": 8, "context_embedding_max_length": 4},
    ("diffusion", "DAU1d"): {**WAVES, "io_channels": 2},
    ("unconditional", "dit"): {"in_channels": 2, "embed_dim": 64, "depth": 1, "num_heads": 2},
    ("unconditional", "adp_uncond_1d"): UNET,
    ("unconditional", "DAU1d"): {**WAVES, "io_channels": 2},
    ("diffusion_decoder", "dit"): {
        "io_channels": 2,
        "embed_dim": 64,
        "depth": 1,
        "num_heads": 2,
        "input_concat_dim": 4,
    },
    ("diffusion_decoder", "adp_1d"): {**UNET, "context_channels": [4]},
    ("diffusion_decoder", "DAU1d"): {**WAVES, "io_channels": 2, "cond_dim": 4},
    ("discriminator", "encodec"): SPECTRA,
    ("discriminator", "oobleck"): {},
    ("discriminator", "dac"): {"periods": [2], "fft_sizes": [128]},
    ("discriminator", "big_vgan"): {},
    ("discriminator", "patch"): {"filters": 8, "num_layers": 2},
    ("discriminator", "hil"): {
        **SPECTRA,
        "periods": [1, 2],
        "cutoff_freqs": [0, 0.25],
        "channels": [4, 6],
        "strides": [3, 1],
        "kernel_sizes": [5, 3],
    },
    ("discriminator", "transformer"): {
        "patched_kwargs": {"patch_sizes": [7], "depths": [1], "strides": [2], "sliding_window_widths": [1]}
    },
    ("objective", "v"): {},
    ("objective", "rectified_flow"): {},
    ("objective", "rf_denoiser"): {},
    ("objective", "ddpm"): {"clip_sample": 1.0, "min_snr": 5.0},
    ("timestep_law", "uniform"): {},
    ("timestep_law", "logit_normal"): {},
    ("timestep_law", "trunc_logit_normal"): {},
    ("timestep_law", "log_snr"): {},
    ("timestep_law", "log_snr_uniform"): {},
}
# These need weights, texts or text tools of their own, or another model around them; their own tests make small ones.
ELSEWHERE = {
    ("conditioner", name)
    for name in (
        "t5",
        "t5gemma",
        "causal_lm",
        "clap_text",
        "clap_audio",
        "sat_clap_text",
        "sat_clap_audio",
        "lut",
        "phoneme",
        "pretransform",
        "source_mix",
        "words",
    )
} | {("pretransform", "dac_pretrained"), ("pretransform", "audiocraft_pretrained"), ("lm", "continuous_transformer")}
KINDS = sorted({kind for kind, _ in CONFIGS} | {"lm"})
MODULES = [key for key in CONFIGS if key[0] not in ("timestep_law", "objective")]
HALF = [key for key in MODULES if key[0] not in ("discriminator", "conditioner")]


def part_of(key: tuple[str, str]) -> Part:
    kind, tag = key
    node: dict[str, Any] = {"type": tag, "config": copy.deepcopy(CONFIGS[key])}
    if kind == "conditioner":
        node["id"] = "n"
    return validate(kind, node)


def built(key: tuple[str, str]) -> Any:
    torch.manual_seed(0)
    facts = {
        "sample_rate": 44100 if key == ("discriminator", "big_vgan") else RATE,
        "output_dim": 16,
        "cond_dim": 16,
        "channels": 1 if key == ("discriminator", "oobleck") else 2,
        "in_channels": 2,
        "diffusion_objective": "v",
    }
    return part_of(key).build(**facts)


def run(key: tuple[str, str], module: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """Something that depends on the whole component."""
    kind, tag = key
    torch.manual_seed(1)
    audio, t = torch.randn(2, 2, 256, dtype=dtype) * 0.1, torch.tensor([0.2, 0.7], dtype=dtype)
    if kind == "encoder":
        return module(audio)
    if kind == "decoder":
        return module(torch.randn(2, 8, 32, dtype=dtype))
    if kind == "bottleneck":
        encoded = module.encode(torch.randn(2, 8, 32, dtype=dtype))
        return module.decode(encoded)
    if kind == "pretransform":
        return module.decode(module.encode(audio))
    if kind == "conditioner":
        values = {"list": ["3", "5"], "precomputed": torch.ones(2, 8)}.get(tag, [3, 5])
        return module(values, "cpu")[0]
    if kind == "diffusion_decoder":
        return module(audio, t, input_concat_cond=torch.randn(2, 4, 256, dtype=dtype))
    if kind == "diffusion" and tag in ("adp_cfg_1d", "unet2d_cond"):
        return module(audio, t, cross_attn_cond=torch.randn(2, 4, 8, dtype=dtype))
    if kind in ("diffusion", "unconditional"):
        return module(audio, t)
    if tag == "patch":
        bands = torch.randn(2, 16, 24)
        return sum(module.generator_loss(bands * 0.5, bands))
    wave = torch.randn(1, 1 if tag == "oobleck" else 2, 8192) * 0.1
    return sum(module.generator_loss(wave * 0.5, wave))


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_is_exercised(kind: str) -> None:
    known = {(kind, tag) for tag in components(kind)}
    assert known <= set(CONFIGS) | ELSEWHERE, "add a small config for the new component"


@pytest.mark.parametrize("key", MODULES, ids="-".join)
def test_forward_and_backward(key: tuple[str, str]) -> None:
    module = built(key)
    module.train()
    out = run(key, module)
    assert torch.isfinite(out).all()
    trained = [p for p in module.parameters() if p.requires_grad]
    if trained and out.requires_grad:
        out.square().sum().backward()
        assert any(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)


@pytest.mark.parametrize("key", MODULES, ids="-".join)
def test_state_dict_round_trip(key: tuple[str, str]) -> None:
    """A second build with the first one's weights gives the same output."""
    first, second = built(key).eval(), built(key).eval()
    for parameter in second.parameters():
        nn.init.constant_(parameter, 0.01)
    # The unbound method: a pretransform's own one takes the weights of the model inside it.
    nn.Module.load_state_dict(second, first.state_dict())
    with torch.no_grad():
        assert torch.equal(run(key, first), run(key, second))


@pytest.mark.parametrize("key", HALF, ids="-".join)
def test_half_precision(key: tuple[str, str]) -> None:
    module = built(key).eval().to(torch.bfloat16)
    with torch.no_grad():
        out = run(key, module, torch.bfloat16)
    assert torch.isfinite(out.float()).all()


@pytest.mark.parametrize("key", MODULES, ids="-".join)
def test_builds_without_memory_for_weights(key: tuple[str, str]) -> None:
    shapes = {name: tensor.shape for name, tensor in built(key).state_dict().items()}
    with torch.device("meta"):
        assert {name: tensor.shape for name, tensor in built(key).state_dict().items()} == shapes


@pytest.mark.parametrize("key", list(CONFIGS), ids="-".join)
def test_config_round_trip(key: tuple[str, str]) -> None:
    """What was understood of a config, written as JSON, is understood the same way."""
    understood = vars(part_of(key).config)
    written = {name: plain(value) for name, value in understood.items()}
    node: dict[str, Any] = {"type": key[1], "config": json.loads(json.dumps(written))}
    if key[0] == "conditioner":
        node["id"] = "n"
    again = vars(validate(key[0], node).config)
    assert {name: plain(value) for name, value in again.items()} == written


def plain(value: Any) -> Any:
    if isinstance(value, Part):
        return {
            "type": value.type,
            "config": {k: plain(v) for k, v in vars(value.config).items()},
            **vars(value.siblings),
        }
    if dataclasses.is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@pytest.mark.parametrize("tag", components("timestep_law"))
def test_timestep_laws_draw_noise_levels(tag: str) -> None:
    law = built(("timestep_law", tag))
    drawn = torch.cat([law.draw(64) for _ in range(50)])
    assert drawn.shape == (3200,)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert drawn.std() > 0.1
    state = law.state_dict()
    torch.manual_seed(5)
    following = law.draw(8)
    again = built(("timestep_law", tag))
    again.load_state_dict(state)
    torch.manual_seed(5)
    assert torch.equal(again.draw(8), following)
