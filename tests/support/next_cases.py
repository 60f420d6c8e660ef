"""Small configs of the next generation (Stable Audio 3, stable-audio-tools 0.0.20), and what is measured on each."""

from __future__ import annotations

import copy
import importlib
import random
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from support.parity_figures import fill, load_weights, noise, tone

CASES = {}


def case(name, tolerance=1e-3, constant=False):
    def register(fn):
        fn.tolerance, fn.constant = tolerance, constant
        CASES[name] = fn
        return fn

    return register


def sa3(name):
    """A module of the names that stable-audio-3 has."""
    return importlib.import_module(f"stable_audio_tools.stable_audio_3.{name}")


def next_generation():
    """For calls whose defaults mean something else in 0.0.19."""
    import stable_audio_tools

    return stable_audio_tools.generation("0.0.20")


# ------------------------------------------------------------ filling weights


def normal(name, tensor):
    """Standard normal numbers in the shape of a tensor, by its name."""
    return torch.from_numpy(np.asarray(fill(name, (tensor.numel(),)))).reshape(tensor.shape) * 10


def dressed(module):
    """load_weights, then numbers that keep the new parts visible: the names say which."""
    load_weights(module)
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            leaf = name.rsplit(".", 1)[-1]
            x = partial(normal, name, tensor)
            learnt = isinstance(tensor, torch.nn.Parameter)
            if leaf == "alpha" and tuple(tensor.shape) == (1,):
                tensor.copy_(2 + 0.2 * x())  # dynamic tanh
            elif leaf == "running_std":
                tensor.copy_(1.3 + 0.1 * x())
            elif leaf == "scale" and learnt:
                tensor.copy_(0.7 + 0.1 * x())  # layer scale, norm gains
            elif leaf.startswith("magnitude") or leaf in ("scaling_factor", "noise_scaling_factor"):
                tensor.copy_(1 + 0.1 * x())
            elif leaf in ("new_tokens", "memory_tokens", "cls_embedding", "mask_token", "critic_token"):
                tensor.copy_(0.5 * x())
            elif leaf == "original0" and tensor.dim() > 1:
                tensor.copy_(0.6 + 0.06 * x())  # weight-norm gains under their newer name
            elif not learnt and name.endswith(("timestep_features.weight", "noise_features.weight")):
                tensor.copy_(x())  # a buffer in 0.0.20, a parameter before
    return module


def build(config):
    from stable_audio_tools.models import create_model_from_config

    return dressed(create_model_from_config(copy.deepcopy(config))).eval()


# ------------------------------------------------- the transformer autoencoder

RATE = 1600  # samples per second of the toy models


def same(
    patch=8,
    latent=8,
    channels=16,
    mults=(2,),
    strides=(4,),
    depths=(4,),
    encoder=None,
    decoder=None,
    bottleneck=None,
    decoder_latent=None,
    **extra,
):
    """A `same` autoencoder over patches: patch * product of strides samples per latent."""
    shared = {
        "channels": channels,
        "c_mults": list(mults),
        "strides": list(strides),
        "transformer_depths": list(depths),
        "dim_heads": 16,
    }
    return {
        "pretransform": {"type": "patched", "config": {"patch_size": patch, "channels": 2}},
        "encoder": {
            "type": "same",
            "config": {"in_channels": 2 * patch, "latent_dim": latent, **shared, **(encoder or {})},
        },
        "decoder": {
            "type": "same",
            "config": {"out_channels": 2 * patch, "latent_dim": decoder_latent or latent, **shared, **(decoder or {})},
        },
        "bottleneck": {
            "type": "softnorm",
            "config": {
                "dim": latent,
                "noise_augment_dim": 0,
                "noise_regularize": True,
                "auto_scale": True,
                **(bottleneck or {}),
            },
        },
        "latent_dim": latent,
        "downsampling_ratio": patch * int(np.prod(strides)),
        "io_channels": 2,
        **extra,
    }


def same_small(**kw):
    """SAME-S in small: attention inside chunks, shifted by half a chunk in the second half of the layers."""
    config = same(
        encoder={
            "variable_stride": True,
            "chunk_size": 8,
            "chunk_midpoint_shift": True,
            "mask_noise": 0.0,
            "mapping_style": "none",
            "use_flash": True,
        },
        decoder={
            "variable_stride": True,
            "chunk_size": 8,
            "chunk_midpoint_shift": True,
            "mask_noise": 0.01,
            "conv_mapping": True,
            "sinusoidal_blocks": [0],
            "mapping_style": "none",
            "use_flash": True,
        },
        **kw,
    )
    config["encoder"]["type"] = config["decoder"]["type"] = "taae_v2"
    return config


def same_large(**kw):
    """SAME-L in small: attention inside a sliding window of latents, sinusoidal feed-forwards, noise on the query
    tokens.
    """
    return same(
        encoder={"variable_stride": True, "sliding_window": [1, 1], "mask_noise": 0.001},
        decoder={"variable_stride": True, "sliding_window": [1, 1], "mask_noise": 0.1, "sinusoidal_blocks": [3]},
        bottleneck={"freeze": True},
        **kw,
    )


def autoencoder(model):
    return {"model_type": "autoencoder", "sample_size": 1024, "sample_rate": RATE, "audio_channels": 2, "model": model}


@torch.no_grad()
def round_trip(config, *lengths, batch=1, **kw):
    """Encode and decode one or more lengths; noise is drawn anew from a seed before each half."""
    model = build(autoencoder(config))
    out = {}
    for length in lengths:
        torch.manual_seed(1)
        latents = model.encode(tone(2, length, rate=RATE, batch=batch), **kw)
        torch.manual_seed(2)
        out |= {f"latents{length}": latents, f"audio{length}": model.decode(latents, **kw)}
    return model, out


@case("same-small")
def _():
    """Chunked, midpoint-shifted, differential, dynamic tanh, convolved output mapping, softnorm with a running scale;
    odd lengths are padded to whole chunks.
    """
    return round_trip(same_small(), 384, 333)


@case("same-large")
def _():
    """Sliding window, sinusoidal blocks, query noise at inference in encoder and decoder, frozen softnorm."""
    return round_trip(same_large(), 384, 333)


@case("same-stages")
def _():
    """Two stages, RMS norms, plain attention with feature scaling, layer scale, conformer, convolved and bias-free
    mappings, noise channels for the decoder.
    """
    shared = {
        "chunk_size": 8,
        "dyt": False,
        "differential": False,
        "feat_scale": True,
        "layer_scale": True,
        "conformer": True,
        "mapping_bias": False,
        "conv_mapping": True,
        "ff_mult": 2,
    }
    return round_trip(
        same(
            patch=4,
            mults=(1, 2),
            strides=(2, 4),
            depths=(1, 2),
            encoder=shared,
            decoder={**shared, "sinusoidal_blocks": [0, 2]},
            bottleneck={"auto_scale": False, "noise_augment_dim": 3},
            decoder_latent=11,
        ),
        288,
        200,
    )


@case("same-strides")
def _():
    """Variable stride: the same weights at strides given per call, in chunks and in windows; features of the last
    encoder stage.
    """
    shared = {"variable_stride": True}
    config = {"patch": 4, "mults": (1, 2), "strides": (2, 4), "depths": (2, 2)}
    _chunked, out = round_trip(
        same(
            **config,
            encoder={**shared, "chunk_size": 8},
            decoder={**shared, "chunk_size": 8, "chunk_midpoint_shift": True, "sinusoidal_blocks": [0, 0]},
        ),
        256,
        override_stride=[1, 2],
    )
    windowed, more = round_trip(
        same(
            **config,
            encoder={**shared, "sliding_window": [2, 1]},
            decoder={**shared, "sliding_window": [1, 2], "sinusoidal_blocks": [0, 0]},
        ),
        256,
        override_stride=[4, 2],
    )
    with torch.no_grad():
        z, features = windowed.encoder(noise("features", 1, 8, 32), return_features=True)
    return windowed, {
        **out,
        **{f"window-{k}": v for k, v in more.items()},
        "z": z,
        "first": features[0],
        "last": features[-1],
    }


@case("same-block")
def _():
    """The resampling block alone: query tokens given from outside, a prepended condition, cross attention, features."""
    from stable_audio_tools.models.autoencoders import TransformerResamplingBlock

    shared = {"transformer_depth": 2, "dim_heads": 16, "variable_stride": True, "cross_attn": True, "layer_scale": True}
    down = dressed(TransformerResamplingBlock(12, 32, 4, chunk_size=8, chunk_midpoint_shift=True, **shared)).eval()
    up = dressed(TransformerResamplingBlock(32, 12, 4, type="decoder", sliding_window=[1, 1], **shared)).eval()
    context = noise("context", 2, 5, 32)
    with torch.no_grad():
        z, features = down(
            noise("block", 2, 12, 32),
            stride=4,
            return_features=True,
            override_new_tokens=noise("tokens", 2, 8, 32),
            prepend_cond=noise("prepend", 2, 2, 32),
            cross_attn_cond=context,
        )
        y = up(z, stride=2, prepend_cond=noise("prepend", 2, 2, 32), cross_attn_cond=context)
    return {
        f"{side}.{k}": list(v.shape) for side, m in (("down", down), ("up", up)) for k, v in m.state_dict().items()
    }, {"z": z, "features": torch.stack([f.mean((1, 2)) for f in features]), "feature": features[-1], "y": y}


@case("softnorm")
def _():
    """The bottleneck: its regularising loss and running scale in training, frozen, and its decoding noise in both
    modes.
    """
    from stable_audio_tools.models.factory import create_bottleneck_from_config

    out, x = {}, noise("soft", 2, 6, 20) * 1.5 + 0.2

    def make(**kw):
        return dressed(
            create_bottleneck_from_config({"type": "softnorm", "config": {"dim": 6, "noise_regularize": True, **kw}})
        )

    with torch.no_grad():
        for name, layer in (
            ("frozen", make(auto_scale=True, freeze=True)),
            ("bare", make(noise_augment_dim=2)),
            ("scaled", make(auto_scale=True)),
        ):
            layer.train()
            z, info = layer.encode(x, return_info=True)
            out |= {f"{name}/train": z, f"{name}/loss": info["softnorm_loss"]}
            for seed, mode in ((3, True), (4, False)):
                torch.manual_seed(seed)
                out[f"{name}/decoded{seed}"] = layer.train(mode).decode(z)
            if name != "bare":
                out[f"{name}/running"] = layer.running_std.clone()
        out["scaled/eval"] = layer.encode(x)
    return layer, out


@case("pretransform-same")
def _():
    """The autoencoder as a pretransform: scale, chunks of 128 latents with 32 shared, batch iterated when there is one
    chunk.
    """
    from stable_audio_tools.models.factory import create_pretransform_from_config

    bank = dressed(
        create_pretransform_from_config(
            {
                "type": "autoencoder",
                "scale": 0.7,
                "iterate_batch": True,
                "chunked": True,
                "config": same(
                    patch=2,
                    strides=(2,),
                    depths=(2,),
                    encoder={"sliding_window": [1, 1]},
                    decoder={"sliding_window": [1, 1], "sinusoidal_blocks": [0]},
                    bottleneck={"noise_regularize": False},
                ),
            },
            RATE,
        )
    )
    with torch.no_grad():
        short = bank.encode(tone(2, 160, batch=2, rate=RATE))
        long = bank.encode(tone(2, 4 * 200, rate=RATE))
        return bank, {
            "short": short,
            "long": long,
            "audio": bank.decode(long),
            "ratio": torch.tensor([bank.downsampling_ratio, bank.encoded_channels]),
        }


@case("pretransform-patched")
def _():
    """Patches of an oversampled signal, with a learned filter after unpatching."""
    from stable_audio_tools.models.factory import create_pretransform_from_config

    bank = dressed(
        create_pretransform_from_config(
            {
                "type": "patched",
                "config": {"channels": 2, "patch_size": 6, "oversampling": 2, "postfilter_channels": 4},
            },
            RATE,
        )
    )
    with torch.no_grad():
        z = bank.encode(tone(2, 400, rate=RATE))
        return bank, {"z": z, "audio": bank.decode(z)}


# -------------------------------------------------- the conditioned transformer

CONDITIONING = {
    "cond_dim": 16,
    "configs": [
        {"id": "mood", "type": "list", "config": {"options": ["calm", "bright", "dark"]}},
        {
            "id": "seconds_total",
            "type": "number",
            "config": {"min_val": 0, "max_val": 8, "fourier_features_type": "expo"},
        },
    ],
}
METADATA = [
    {"mood": "bright", "seconds_total": 0.375},
    {"mood": "unheard of", "seconds_total": 0.75},
]  # eighths keep the fastest features well conditioned
TIMES = torch.tensor([0.25, 0.5])
DIT = {
    "io_channels": 8,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 2,
    "cond_token_dim": 16,
    "global_cond_dim": 16,
    "global_cond_type": "adaLN",
    "timestep_features_type": "expo",
    "timestep_features_dim": 32,
    "norm_type": "rms_norm",
    "norm_kwargs": {"force_fp32": True},
    "attn_kwargs": {"qk_norm": "rms"},
    "num_memory_tokens": 3,
    "local_add_cond_dim": 9,
    "ff_kwargs": {"mult": 2.0},
}


def diffusion(dit=None, pretransform=False, objective="rectified_flow", **kw):
    """An inpainting model after the published configs, two layers deep; `dit` overrides the transformer, None drops a
    key.
    """
    config = {k: v for k, v in {**DIT, **(dit or {})}.items() if v is not None}
    model = {
        "conditioning": CONDITIONING,
        "io_channels": 8,
        "diffusion": {
            "type": "dit",
            "diffusion_objective": objective,
            "cross_attention_cond_ids": ["mood", "seconds_total"],
            "global_cond_ids": ["seconds_total"],
            **(
                {"local_add_cond_ids": ["inpaint_mask", "inpaint_masked_input"]}
                if "local_add_cond_dim" in config
                else {}
            ),
            "config": config,
            **kw,
        },
    }
    if pretransform:
        model["pretransform"] = {
            "type": "autoencoder",
            "iterate_batch": True,
            "chunked": True,
            "config": pretransform if isinstance(pretransform, dict) else same_small(),
        }
    return {
        "model_type": "diffusion_cond_inpaint",
        "sample_size": 2048,
        "sample_rate": RATE,
        "audio_channels": 2,
        "model": model,
    }


def conditions(model, length, metadata=METADATA):
    """The conditioner's tensors with an inpainting mask (first 40 % given) and its input."""
    cond = model.conditioner(metadata, "cpu")
    mask = (torch.arange(length) < 0.4 * length).float()[None, None].repeat(len(metadata), 1, 1)
    cond["inpaint_mask"] = [mask]
    cond["inpaint_masked_input"] = [noise("given", len(metadata), 8, length) * mask]
    return cond


@torch.no_grad()
def denoise(config, length=24, **calls):
    """One pass per entry of `calls` (keyword arguments of the model), plain first."""
    model = build(config)
    cond, x, t = conditions(model, length), noise("x", 2, 8, length), TIMES
    return model, {name: model(x, t, cond=cond, **kw) for name, kw in {"plain": {}, **calls}.items()}


@case("dit-medium", tolerance=5e-3)
def _():
    """sa3-medium in small: differential attention, RMS norms in float32, memory tokens, exponential timestep features,
    adaLN, local conditions; plain and guided.
    """
    return denoise(
        diffusion({"attn_kwargs": {"qk_norm": "rms", "differential": True}}),
        guided={"cfg_scale": 4.0, "apg_scale": 1.0},
    )


@case("dit-small", tolerance=5e-3)
def _():
    """sa3-sm in small: plain attention, and here the timestep given as log-SNR."""
    return denoise(
        diffusion({"timestep_features_logsnr": True, "norm_kwargs": {"force_fp32": True, "eps": 1e-3}}),
        guided={"cfg_scale": 4.0, "apg_scale": 1.0},
    )


@case("dit-v", tolerance=3e-3)
def _():
    """The v objective with the new parts: patches of two, prepended global token after memory tokens, learned timestep
    features, dynamic tanh norms; guided.
    """
    return denoise(
        diffusion(
            {
                "global_cond_type": "prepend",
                "timestep_features_type": None,
                "norm_type": "dyt",
                "norm_kwargs": None,
                "patch_size": 2,
                "local_add_cond_dim": None,
                "attn_kwargs": {"qk_norm": "dyt", "differential": True, "feat_scale": True},
            },
            objective="v",
        ),
        guided={"cfg_scale": 3.0, "apg_scale": 0.5},
    )


@case("dit-guidance", tolerance=5e-3)
def _():
    """Guidance: projected (fully, half, not), clipped by norm, rescaled, inside and outside its interval, with a
    negative condition.
    """
    model = build(diffusion())
    with torch.no_grad():
        cond, x, t = conditions(model, 16), noise("x", 2, 8, 16), TIMES
        negative = model.get_conditioning_inputs(conditions(model, 16, METADATA[::-1]), negative=True)
        calls = {
            "apg1": {"apg_scale": 1.0},
            "apg0": {"apg_scale": 0.0},
            "apg0.3": {"apg_scale": 0.3},
            "clipped": {"cfg_norm_threshold": 0.5, "apg_scale": 1.0},
            "rescaled": {"scale_phi": 0.6, "apg_scale": 1.0},
            "outside": {"cfg_interval": (0.5, 1.0), "apg_scale": 1.0},
            "negative": {"apg_scale": 1.0, **negative},
        }
        with next_generation():
            calls["default"] = {}
            return model, {name: model(x, t, cond=cond, cfg_scale=5.0, **kw) for name, kw in calls.items()}


@case("dit-padding", tolerance=5e-3)
def _():
    """Variable length in a batch: with a padding mask every item is what it is alone; plain and guided."""
    model = build(diffusion({"attn_kwargs": {"qk_norm": "rms", "differential": True}}))
    lengths, out = (13, 24), {}
    with torch.no_grad():
        cond, x, t = conditions(model, 24), noise("x", 2, 8, 24), TIMES
        mask = torch.arange(24) < torch.tensor(lengths)[:, None]
        for name, kw in (
            ("plain", {}),
            ("guided", {"cfg_scale": 4.0, "apg_scale": 1.0}),
            ("clipped", {"cfg_scale": 4.0, "apg_scale": 0.3, "cfg_norm_threshold": 0.5}),
        ):
            y = model(x, t, cond=cond, padding_mask=mask, **kw)
            out |= {f"{name}{i}": y[i, :, :n] for i, n in enumerate(lengths)}
    return model, out


@case("dit-local", tolerance=5e-3)
def _():
    """Local conditions, concatenated and modular, shorter than the sequence (padded on the left) and in part absent;
    prepended tokens stay clear of them.
    """
    model = build(
        diffusion(
            {"global_cond_type": "prepend", "local_add_cond_dim": 3},
            local_add_cond_ids=["pitch", "loudness"],
            modular_local_cond_configs=[{"id": "beat", "dim": 4}, {"id": "chroma", "dim": 5}],
        )
    )
    with torch.no_grad():
        cond, x, t = model.conditioner(METADATA, "cpu"), noise("x", 2, 8, 20), TIMES
        cond |= {
            "pitch": [noise("pitch", 2, 2, 15)],
            "loudness": [noise("loudness", 2, 1, 15)],
            "beat": [noise("beat", 2, 4, 20)],
            "chroma": [noise("chroma", 2, 5, 12)],
        }
        full = model(x, t, cond=cond)
        guided = model(x, t, cond=cond, cfg_scale=3.0, apg_scale=1.0)
        del cond["chroma"]
        return model, {"full": full, "guided": guided, "one": model(x, t, cond=cond)}


@case("dit-window", tolerance=5e-3)
def _():
    """A sliding window of attention over the whole sequence, memory tokens included."""
    return denoise(
        diffusion({"sliding_window": [3, 2], "local_add_cond_dim": None}),
        length=20,
        guided={"cfg_scale": 3.0, "apg_scale": 1.0},
    )


# ------------------------------------------------------------------ conditioners

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "warm", "slow", "piano", "drums", "in", "a", "hall"]


def text_model(kind, folder):
    """A two-layer text model with weights by name, and a tokenizer of eleven words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    ).save_pretrained(folder)
    shared = {
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "vocab_size": 16,
        "sliding_window": 8,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_logit_softcapping": None,
    }
    if kind == "t5gemma":
        half = dict(shared, hidden_size=768)
        model = transformers.T5GemmaEncoderModel(
            transformers.T5GemmaConfig(
                encoder=dict(half),
                decoder=dict(half),
                vocab_size=16,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=2,
                is_encoder_decoder=False,
            )
        )
    else:
        model = transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(
                hidden_size=2304, eos_token_id=1, bos_token_id=2, final_logit_softcapping=None, **shared
            )
        )
    load_weights(model).eval().save_pretrained(folder)
    return str(folder)


def conditioner(*configs, cond_dim=16, **kw):
    from stable_audio_tools.models.conditioners import create_multi_conditioner_from_conditioning_config

    return dressed(
        create_multi_conditioner_from_conditioning_config({"cond_dim": cond_dim, "configs": list(configs), **kw})
    ).eval()


PROMPTS = [{"prompt": "warm slow piano"}, {"prompt": "drums in a hall in a cave slow slow slow"}]


def text_case(kind, **config):
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path, out = text_model(kind, Path(folder)), {}
        for mode in ("zero", "none", "learned"):
            model = conditioner(
                {
                    "id": "prompt",
                    "type": kind,
                    "config": {"model_path": path, "max_length": 8, "padding_mode": mode, **config},
                }
            )
            tensor, mask = model(PROMPTS, "cpu")["prompt"]
            out |= {mode: tensor, "mask": mask}
        return model, out


@case("cond-t5gemma")
def _():
    """A T5Gemma encoder: fixed length, projection, and the three treatments of padding, the learned one kept in the
    state dict.
    """
    return text_case("t5gemma")


@case("cond-causal-lm")
def _():
    """The last hidden state of a causal language model: RMS norm, learned scale, projection, padding."""
    return text_case("causal_lm")


@case("cond-number", tolerance=3e-3)
def _():
    """Numbers by exponential and by learned features, clamped; default keys; values wrapped in a list."""
    model = conditioner(
        {
            "id": "seconds_total",
            "type": "number",
            "config": {"min_val": 0, "max_val": 384, "fourier_features_type": "expo"},
        },
        {"id": "tempo", "type": "number", "config": {"min_val": 30, "max_val": 300}},
        default_keys={"tempo": "bpm"},
    )
    with torch.no_grad():
        out = model(
            [
                {"seconds_total": 24.0, "bpm": 120},
                {"seconds_total": [-3], "bpm": 500},
                {"seconds_total": 36, "bpm": 299.9},
            ],
            "cpu",
        )
    return model, {k: v[0] for k, v in out.items()}


# ---------------------------------------------------------- schedules, samplers


def shifts():
    from stable_audio_tools.inference.sampling import (
        DistributionShift,
        FluxDistributionShift,
        IdentityDistributionShift,
        LogSNRShift,
    )

    return {
        "none": IdentityDistributionShift(),
        "flux": FluxDistributionShift(min_length=16, max_length=256, alpha_min=1.5, alpha_max=6.0),
        "flux-constant": FluxDistributionShift(alpha_min=3.0, alpha_max=3.0),
        "full": DistributionShift(min_length=16, max_length=256),
        "full-sine": DistributionShift(base_shift=0.3, max_shift=1.5, min_length=16, max_length=256, use_sine=True),
        "logsnr": LogSNRShift(anchor_length=64),
        "logsnr-fixed": LogSNRShift(rate=0.0, anchor_logsnr=-6.0),
    }


@case("schedule-shifts", constant=True)
def _():
    """build_schedule with every distribution shift, for one length and for a length per item; from a lower start;
    without the end; the classes' defaults.
    """
    from stable_audio_tools.inference import sampling
    from stable_audio_tools.inference.sampling import build_schedule

    out = {
        "plain": build_schedule(8),
        "start": build_schedule(8, sigma_max=0.7),
        "open": build_schedule(8, include_endpoint=False),
    }
    for name, shift in shifts().items():
        out |= {
            name: build_schedule(8, dist_shift=shift, effective_seq_len=100),
            f"{name}/items": build_schedule(8, dist_shift=shift, effective_seq_len=torch.tensor([0.0, 40.0, 900.0])),
            f"{name}/start": build_schedule(
                6, sigma_max=0.7, dist_shift=shift, fallback_seq_len=50, include_endpoint=False
            ),
        }
    for name in ("FluxDistributionShift", "DistributionShift", "LogSNRShift"):
        out[name] = getattr(sampling, name)().shift(torch.linspace(0, 1, 9), 1000)
    return {}, out


@case("schedule-config", constant=True)
def _():
    """The shifts a config asks for, in training and in sampling, and the sampling default when it asks for none."""
    configs = {
        "bare": {},
        "full": {"distribution_shift_options": {"min_length": 16, "max_length": 256}},
        "both": {
            "distribution_shift_options": {"type": "flux", "alpha_min": 2.0, "alpha_max": 2.0},
            "sampling_distribution_shift_options": {"type": "logsnr", "anchor_length": 100},
        },
        "none": {"sampling_distribution_shift_options": {"type": "none"}},
    }
    out, t = {}, torch.linspace(0, 1, 9)
    with next_generation():
        for name, options in configs.items():
            model = build(diffusion({"depth": 1}, **options))
            out |= {
                f"{name}/{side}": shift.shift(t, 100)
                for side, shift in (("training", model.dist_shift), ("sampling", model.sampling_dist_shift))
                if shift is not None
            }
    return {}, out


STEADY = {"timestep_features_type": None}  # learned timestep features: well conditioned at every t


def sample(model, length=20, batch=2, seed=5, negative=False, objective="rectified_flow", **kw):
    """sample_diffusion on latents, everything said explicitly."""
    from stable_audio_tools.inference.sampling import sample_diffusion

    cond = model.get_conditioning_inputs(conditions(model, length, METADATA[:batch]))
    torch.manual_seed(seed)
    args = {
        "steps": 5,
        "cfg_scale": 3.0,
        "apg_scale": 1.0,
        "disable_tqdm": True,
        "decode": False,
        "sample_rate": RATE,
        "pretransform": model.pretransform,
    }
    return sample_diffusion(
        model=model.model,
        noise=noise("start", batch, 8, length),
        cond_inputs=cond,
        diffusion_objective=objective,
        **{**args, **kw},
    )


FLOW = ("euler", "rk4", "dpmpp", "pingpong")


@case("sample-flow", tolerance=5e-3)
def _():
    """The four flow samplers over a log-SNR schedule, guided; each objective's default sampler; what a callback
    receives.
    """
    model, shift, told = build(diffusion(STEADY)), shifts()["logsnr"], []
    with torch.no_grad():
        out = {name: sample(model, dist_shift=shift, sampler_type=name) for name in FLOW}
        out |= {"default": sample(model), "denoiser": sample(model, objective="rf_denoiser", cfg_scale=1.0)}
        for name in FLOW:
            sample(
                model,
                dist_shift=shift,
                sampler_type=name,
                callback=lambda d: told.append(
                    torch.stack([torch.as_tensor(float(d["i"])), d["t"].float().mean(), d["denoised"].std()])
                ),
            )
    return model, {**out, "told": torch.stack(told)}


@case("sample-items", tolerance=5e-3)
def _():
    """A schedule per item, from its seconds_total: euler, dpmpp, pingpong; beside it the one schedule of all."""
    model, shift = build(diffusion(STEADY, pretransform=True)), shifts()["logsnr"]
    kw = {
        "dist_shift": shift,
        "conditioning": [{"seconds_total": 0.1}, {"seconds_total": 0.35}],
        "use_effective_length_for_schedule": True,
    }
    with torch.no_grad():
        out = {name: sample(model, sampler_type=name, **kw) for name in ("euler", "dpmpp", "pingpong")}
        return model, {
            **out,
            "one": sample(model, sampler_type="euler", **{**kw, "conditioning": [{"seconds_total": 0.35}, {}]}),
        }


@case("sample-v", tolerance=5e-3)
def _():
    """The v objective through sample_diffusion with projected guidance: DDIM (both), the SDE solvers, Heun; DDIM takes
    no shift.
    """
    model = build(diffusion(STEADY, objective="v"))
    with torch.no_grad():
        out = {
            name: sample(model, objective="v", sampler_type=name, dist_shift=shifts()["logsnr"], **kw)
            for name, kw in {
                "v-ddim": {},
                "v-ddim-cfgpp": {},
                "dpmpp-2m-sde": {"sigma_min": 0.3, "sigma_max": 80},
                "dpmpp-3m-sde": {"sigma_min": 0.3, "sigma_max": 80},
                "k-heun": {"sigma_min": 0.3, "sigma_max": 20, "rho": 2.0},
            }.items()
        }
    return model, out


@case("sample-variation", tolerance=5e-3)
def _():
    """Starting from given latents at a lower noise level: every flow sampler on the unshifted schedule, DDIM and a
    k-solver under v.
    """
    flow, v = build(diffusion(STEADY)), build(diffusion(STEADY, objective="v"))
    kw = {"init_data": noise("variation", 2, 8, 20), "init_noise_level": 0.6}
    with torch.no_grad():
        out = {name: sample(flow, sampler_type=name, **kw) for name in FLOW}
        out |= {
            "v-ddim": sample(v, objective="v", sampler_type="v-ddim", **kw),
            "k-heun": sample(v, objective="v", sampler_type="k-heun", sigma_min=0.3, **{**kw, "init_noise_level": 6.0}),
        }
    return flow, out


@case("generate-default", tolerance=5e-3)
def _():
    """generate_diffusion_cond as a caller with no opinion gets it: schedule, guidance, sampler by default, for a flow
    and for a v model; then a length from the conditions, a negative condition.
    """
    from stable_audio_tools.inference.generation import generate_diffusion_cond

    quiet = same_small(bottleneck={"noise_regularize": False})
    flow, v = (
        build(diffusion({**STEADY, "local_add_cond_dim": None}, pretransform=quiet, objective=o))
        for o in ("rectified_flow", "v")
    )
    with torch.no_grad(), next_generation():
        ddim = generate_diffusion_cond(
            v,
            steps=4,
            cfg_scale=2.0,
            conditioning=METADATA[:1],
            sample_size=512,
            seed=9,
            device="cpu",
            return_latents=True,
        )
        audio = generate_diffusion_cond(
            flow, steps=4, conditioning=METADATA, batch_size=2, sample_size=512, seed=9, device="cpu"
        )
        shaped = generate_diffusion_cond(
            flow,
            steps=4,
            conditioning=METADATA,
            negative_conditioning=METADATA[::-1],
            batch_size=2,
            sample_size=4096,
            seed=10,
            device="cpu",
            adapt_duration_to_conditioning=True,
            duration_padding_sec=0.1,
            return_latents=True,
            dist_shift=shifts()["full"],
            sampler_type="dpmpp",
        )
    return flow, {"audio": audio, "shaped": shaped, "v": ddim}


@case("generate-inpaint", tolerance=5e-3)
def _():
    """Inpainting between given seconds, length from seconds_total, whole encoder chunks; a mask of samples; no mask
    and no audio.
    """
    from stable_audio_tools.inference.generation import generate_diffusion_cond_inpaint

    model = build(diffusion(STEADY, pretransform=same_small(bottleneck={"noise_regularize": False})))
    kw = {
        "steps": 4,
        "cfg_scale": 2.0,
        "apg_scale": 1.0,
        "conditioning": METADATA[:1],
        "sample_size": 4096,
        "device": "cpu",
        "dist_shift": shifts()["logsnr"],
        "return_latents": True,
        "adapt_duration_to_conditioning": True,
        "duration_padding_sec": 0.12,
    }
    given = (800, tone(2, 300, rate=800)[0])
    mask = (torch.arange(4096) % 700 < 300).float()[None]
    with torch.no_grad():
        return model, {
            "seconds": generate_diffusion_cond_inpaint(
                model, seed=4, inpaint_audio=given, inpaint_mask_start_seconds=0.1, inpaint_mask_end_seconds=0.25, **kw
            ),
            "mask": generate_diffusion_cond_inpaint(
                model, seed=5, inpaint_audio=given, inpaint_mask=mask, sampler_type="pingpong", **kw
            ),
            "free": generate_diffusion_cond_inpaint(model, seed=6, **{**kw, "conditioning": METADATA, "batch_size": 2}),
            "both": generate_diffusion_cond_inpaint(
                model,
                seed=7,
                inpaint_audio=given,
                inpaint_mask=mask,
                init_audio=given,
                init_noise_level=0.5,
                **{**kw, "dist_shift": shifts()["none"]},
            ),
        }


@case("generate-varlen", tolerance=5e-3)
def _():
    """Two lengths in a batch: mask, schedule and inpainting mask follow seconds_total, latents up to each item's
    length are compared, audio after it is silence.
    """
    from stable_audio_tools.inference.generation import generate_diffusion_cond_inpaint

    model = build(
        diffusion(
            STEADY,
            pretransform=same_small(bottleneck={"noise_regularize": False}),
            mask_padding_attention=True,
            use_effective_length_for_schedule=True,
            sampling_distribution_shift_options={"type": "logsnr", "anchor_length": 16},
        )
    )
    metadata = [{**METADATA[0], "seconds_total": 0.25}, {**METADATA[1], "seconds_total": 0.5}]
    mask = torch.ones(2, 4096)
    mask[:, 100:300] = 0
    kw = {
        "steps": 4,
        "cfg_scale": 3.0,
        "apg_scale": 1.0,
        "conditioning": metadata,
        "batch_size": 2,
        "sample_size": 4096,
        "seed": 8,
        "device": "cpu",
        "duration_padding_sec": 0.06,
        "inpaint_audio": (RATE, tone(2, 700, rate=RATE)[0]),
        "inpaint_mask": mask,
    }
    with torch.no_grad():
        latents = generate_diffusion_cond_inpaint(model, return_latents=True, **kw)
        audio = generate_diffusion_cond_inpaint(model, **kw)
    valid = [13 + 3, 25 + 3]  # ceil(seconds * rate / ratio) + int(padding * rate / ratio)
    return model, {
        "shape": torch.tensor([*latents.shape, *audio.shape]),
        "short": latents[0, :, : valid[0]],
        "long": latents[1, :, : valid[1]],
        "audio": audio[:, :, : 32 * 8],
        "silence": audio[0, :, 32 * valid[0] :],
    }


@case("invert-audio", tolerance=5e-3)
def _():
    """Rectified-flow inversion: from latents back to noise, steered towards given noise, and with the condition
    dropped.
    """
    from stable_audio_tools.inference.inversion import invert_audio

    model = build(diffusion(STEADY))
    with torch.no_grad():
        cond = model.get_conditioning_inputs(conditions(model, 20))

        def run(seed=0, **kw):
            return (
                torch.manual_seed(seed),
                invert_audio(model.model, noise("latents", 2, 8, 20), device="cpu", **{**cond, **kw}),
            )[1]

        return model, {
            "steered": run(
                noise=noise("aim", 2, 8, 20), inversion_params={"inversion_steps": 5, "inversion_gamma": 0.4}
            ),
            "lower": run(
                noise=noise("aim", 2, 8, 20),
                inversion_params={"inversion_steps": 4, "inversion_gamma": 0.0, "inversion_sigma_max": 0.8},
            ),
            "dropped": run(noise=None, seed=3, inversion_params={"inversion_steps": 4}, cfg_dropout_prob=1.0),
        }


# --------------------------------------------------------------- Stable Audio 3


def sa3_config(path, **kw):
    config = diffusion(
        STEADY,
        pretransform=same_small(bottleneck={"noise_regularize": False}),
        mask_padding_attention=True,
        use_effective_length_for_schedule=True,
        **kw,
    )
    config["model"]["conditioning"] = {
        "cond_dim": 16,
        "configs": [
            {
                "id": "prompt",
                "type": "t5gemma",
                "config": {"model_path": path, "max_length": 6, "padding_mode": "learned"},
            },
            CONDITIONING["configs"][1],
        ],
    }
    config["model"]["diffusion"]["cross_attention_cond_ids"] = ["prompt", "seconds_total"]
    return config


@case("sa3-generate", tolerance=5e-3)
def _():
    """StableAudioModel: prompts and durations as a list, two inpainting regions, a variation, a negative prompt,
    latents; cut to the duration and clipped.
    """
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        config = sa3_config(text_model("t5gemma", Path(folder)))
        model = dressed(sa3("factory").create_diffusion_cond_from_config(copy.deepcopy(config))).eval()
        player = sa3("model").StableAudioModel(model, config, "cpu", False)
        kw = {"steps": 4, "cfg_scale": 2.0, "sample_size": 2048, "duration_padding_sec": 0.06}
        given = (800, tone(2, 300, rate=800)[0])
        return model, {
            "audio": player.generate(prompt="warm slow piano", duration=0.25, seed=1, **kw),
            "regions": player.generate(
                prompt="drums",
                duration=0.35,
                seed=2,
                inpaint_audio=given,
                inpaint_mask_start_seconds=[0.05, 0.2],
                inpaint_mask_end_seconds=[0.1, 0.3],
                return_latents=True,
                **kw,
            )[:, :, :17],
            "negative": player.generate(
                prompt="a hall", negative_prompt="slow drums", duration=0.3, seed=3, return_latents=True, **kw
            )[:, :, :15],
            "few-step": player.generate(
                prompt=["piano", "drums"],
                duration=[0.2, 0.4],
                batch_size=2,
                seed=4,
                return_latents=True,
                sampler_type="pingpong",
                **{**kw, "cfg_scale": 1.0},
            )[1, :, :20],
        }


@case("sa3-negative-mask", tolerance=5e-3)
def _():
    """A negative condition whose masked tokens count as absent (0.0.20 takes them as they are)."""
    net = dressed(
        sa3("models.diffusion").DiTWrapper(
            diffusion_objective="rectified_flow", **{k: v for k, v in DIT.items() if k != "local_add_cond_dim"}
        )
    ).eval()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    with torch.no_grad():

        def call(**kw):
            return net(
                noise("x", 2, 8, 16),
                TIMES,
                cross_attn_cond=noise("cross", 2, 4, 16),
                global_cond=noise("global", 2, 16),
                cfg_scale=3.0,
                apg_scale=1.0,
                negative_cross_attn_cond=noise("negative", 2, 4, 16),
                **kw,
            )

        return net, {"masked": call(negative_cross_attn_mask=mask), "whole": call()}


@case("sa3-load")
def _():
    """Checkpoints: names with one part too many still load; the autoencoder alone out of a whole model's file."""
    import json

    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        config = sa3_config(text_model("t5gemma", Path(folder)))
        whole = dressed(sa3("factory").create_diffusion_cond_from_config(copy.deepcopy(config)))

        def longer(k):
            return k.replace("pretransform.model.encoder.", "pretransform.model.encoder.inner.").replace(
                "conditioner.conditioners.", "conditioner.conditioners.inner."
            )

        save_file({longer(k): v.contiguous() for k, v in whole.state_dict().items()}, f"{folder}/model.safetensors")
        Path(folder, "model_config.json").write_text(json.dumps(config))
        loaded = sa3("loading_utils").load_diffusion_cond(config, f"{folder}/model.safetensors", device="cpu")
        save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, f"{folder}/plain.safetensors")
        alone = (
            sa3("loading_utils").load_autoencoder(f"{folder}/model_config.json", f"{folder}/plain.safetensors").eval()
        )
        seconds = loaded.conditioner.conditioners["seconds_total"]([0.25, 0.75], "cpu")[0]
        z = alone.encode(tone(2, 320, rate=RATE))
        torch.manual_seed(0)
        audio = alone.decode(z)
        return alone, {
            "seconds": seconds,
            "z": z,
            "audio": audio,
            "same": loaded.pretransform.encode(tone(2, 320, rate=RATE)),
        }


# ------------------------------------------------------------------------ LoRA

ADAPTERS = ["lora", "dora", "dora-rows", "dora-cols", "bora", "lora-xs", "dora-rows-xs", "dora-cols-xs", "bora-xs"]


def through(net, x=None):
    x = noise("lora", 2, 8, 12) if x is None else x
    return net.mix(x) + net.project(noise("lora-in", 2, 6, 10)).mean(1)[:, :, None]


# ---------------------------------------------------------- what training computes


@case("train-masks", constant=True)
def _():
    """Inpainting masks of each kind for given seeds: segments, full, causal, spans; with and without padding zeroed."""
    from stable_audio_tools.models.inpainting import MaskType, random_inpaint_mask

    x, padding = torch.ones(3, 2, 60), torch.arange(60) < torch.tensor([60, 41, 0])[:, None]
    out = {}
    for kind in MaskType:
        for seed in (1, 2):
            random.seed(seed)
            _masked, mask = random_inpaint_mask(
                x, padding_masks=padding, force_mask_type=kind, mask_padding=seed == 2, max_mask_segments=4
            )
            out[f"{kind.name}{seed}"] = mask
    random.seed(3)
    out["spans"] = torch.cat(
        [
            random_inpaint_mask(
                x,
                padding,
                force_mask_type=MaskType.RANDOM_SPANS,
                max_spans=6,
                mask_ratio_range=(0.1, 0.5),
                span_count_weights=[1, 1, 3],
            )[1]
            for _ in range(3)
        ]
    )
    random.seed(4)
    out["mixed"] = torch.cat(
        [
            random_inpaint_mask(x, padding, mask_type_probabilities=p)[1]
            for p in (None, [0.2, 0.6, 0.2], [0.1, 0.2, 0.1, 0.6])
        ]
    )
    return {}, out


@case("train-times", constant=True)
def _():
    """Timestep samplers for given seeds: uniform and normal in log-SNR, truncated logistic normal, the nested grids of
    few-step distillation.
    """
    from stable_audio_tools.inference.sampling import (
        sample_timesteps_logsnr,
        sample_timesteps_logsnr_uniform,
        truncated_logistic_normal_rescaled,
    )
    from stable_audio_tools.training.arc import build_congruent_sampler

    out = {}
    for name, draw in {
        "uniform": sample_timesteps_logsnr_uniform,
        "uniform-narrow": lambda n: sample_timesteps_logsnr_uniform(n, min_logsnr=-2.0, max_logsnr=1.0),
        "normal": sample_timesteps_logsnr,
        "truncated": truncated_logistic_normal_rescaled,
        "grids": build_congruent_sampler([1, 2, 4, 8], lambda: "cpu"),
    }.items():
        torch.manual_seed(6)
        out[name] = draw(24)
    return {}, out


@case("train-losses")
def _():
    """The parts of the diffusion loss: target-normalised error, signal against padding, masked means, resized and
    lengthened masks, trimming.
    """
    from stable_audio_tools.data.utils import (
        compute_effective_seq_len_from_conditioning,
        create_padding_mask_from_lengths,
    )
    from stable_audio_tools.training import utils

    pred, target = noise("pred", 3, 4, 30), noise("target", 3, 4, 30) * 0.5
    mask = create_padding_mask_from_lengths(torch.tensor([30, 17, 0]), 30)
    out = {
        f"mse/{mode}": utils.compute_normalized_mse(pred, target, mask, mode)
        for mode in ("none", "timestep", "sample", "sample_channel")
    }
    out["mse/unmasked"] = utils.compute_normalized_mse(pred, target, None, "sample")
    error = out["mse/timestep"]
    for name, attention, weight in (("signal", True, 0.7), ("weighted", False, 0.3), ("alone", False, 0.0)):
        out |= {f"{name}{i}": v for i, v in enumerate(utils.compute_masked_loss(error, mask, attention, weight))}
    torch.manual_seed(7)
    out |= {
        "mean": utils.masked_mean(pred, mask),
        "sum": utils.masked_sum(pred, mask, [1, 2]),
        "resized": utils.resize_padding_mask(mask, 13),
        "resized-one": utils.resize_padding_mask(mask[1], 7),
        "longer": utils.create_augmented_padding_mask(mask, 0.5, RATE, 64),
        "lengths": compute_effective_seq_len_from_conditioning(
            [{"seconds_total": 0.31}, {"seconds_total": 2}], RATE, 32, "cpu"
        ),
    }
    trim = utils.compute_per_elem_trim([{"seconds_total": 0.01}, {}, {"seconds_total": 9}], RATE, margin_seconds=0.0)
    return {}, {**out, "trimmed": utils.trim_and_concat(pred, trim)}


def training_step(config, training, seconds=(0.2, 0.35, 0.5)):
    """One training step on given latents of 24 frames: the loss, and the norms of some gradients."""
    from stable_audio_tools.training.factory import create_training_wrapper_from_config

    model = build(config)
    config["training"] = {
        "learning_rate": 1e-4,
        "use_ema": False,
        "pre_encoded": True,
        "cfg_dropout_prob": 0.0,
        **training,
    }
    step = create_training_wrapper_from_config(config, model)
    step._trainer = type(
        "Trainer", (), {"optimizers": [torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)], "global_step": 0}
    )()
    metadata = [
        {"mood": "calm", "seconds_total": s, "padding_mask": [torch.arange(24) < -(-int(s * RATE) // 32)]}
        for s in seconds
    ]
    torch.manual_seed(12)
    random.seed(12)
    loss = step.training_step((noise("latents", len(seconds), 8, 24), metadata), 0)
    loss.backward()
    grads = {
        k: p.grad.norm()
        for k, p in model.model.named_parameters()
        if p.grad is not None
        and k.endswith(("project_in.weight", "to_qkv.weight", "to_local_embed.0.weight", "project_out.weight"))
    }
    return model, {"loss": loss, "gradients": torch.stack([grads[k] for k in sorted(grads)])}


@case("train-step", tolerance=5e-3)
def _():
    """A whole training step on latents of three lengths: shifted times, masks for inpainting and padding, masked
    attention, loss on the context.
    """
    config = diffusion(
        STEADY,
        pretransform=True,
        mask_padding_attention=True,
        use_effective_length_for_schedule=True,
        distribution_shift_options={"min_length": 4, "max_length": 64},
    )
    return training_step(
        config,
        {
            "mask_loss_weight": 0.5,
            "timestep_sampler": "trunc_logit_normal",
            "loss_normalization": "timestep",
            "inpainting": {"mask_kwargs": {"mask_type_probabilities": [0.1, 0.1, 0.1, 0.7]}},
        },
    )


@case("train-step-ot", tolerance=5e-3)
def _():
    """A training step with noise matched to data by optimal transport in the batch, uniform log-SNR times, one-shot
    draws, padding weighed in.
    """
    config = diffusion({**STEADY, "local_add_cond_dim": None}, pretransform=True)
    return training_step(
        config,
        {
            "mask_loss_weight": 0.25,
            "timestep_sampler": "log_snr_uniform",
            "timestep_sampler_options": {"min_logsnr": -4.0, "max_logsnr": 3.0},
            "ot_coupling": True,
            "p_one_shot": 0.3,
        },
        seconds=(0.2, 0.35, 0.5, 0.1, 0.4, 0.3),
    )


def optimised(kind, config, steps=3, named=False):
    """Parameters after each of a few steps from given gradients (for all but Muon: how far they have moved, in
    learning rates).
    """
    from stable_audio_tools.training.utils import create_optimizer_from_config

    shapes = (
        {"square": (6, 6), "qkv.weight": (12, 4), "wide": (3, 8), "kernel": (4, 6, 3), "vector": (7,)}
        if kind == "MuonAdamW"
        else {"square": (6, 6), "kernel": (4, 3, 5), "vector": (7,)}
    )
    params = {k: torch.nn.Parameter(noise(k, *shape)) for k, shape in shapes.items()}
    start = {k: p.detach().clone() for k, p in params.items()}
    optimizer = create_optimizer_from_config(
        {"type": kind, "config": config}, list(params.items()) if named else list(params.values())
    )
    out = {}
    for step in range(steps):
        for k, p in params.items():
            p.grad = noise(f"{k} gradient {step}", *p.shape)
        optimizer.step()
        out |= {
            f"{k}{step}": p.detach().clone() if kind == "MuonAdamW" else (p.detach() - start[k]) / config["lr"]
            for k, p in params.items()
        }
    return out


@case("train-cautious")
def _():
    """CAdamW and CLion: three steps each, with and without weight decay and bias correction."""
    out = {}
    for name, kind, config in (
        ("cadamw", "CAdamW", {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}),
        ("uncorrected", "CAdamW", {"lr": 1e-2, "correct_bias": False}),
        ("clion", "CLion", {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}),
    ):
        out |= {f"{name}/{k}": v for k, v in optimised(kind, config).items()}
    return {}, out


@case("train-muon", tolerance=1e-2)
def _():
    """Muon on matrices and a kernel (a fused matrix block by block), AdamW on vectors; orthogonalised in bfloat16,
    hence the parameters and not their steps.
    """
    plain = optimised("MuonAdamW", {"muon_lr": 0.05, "adam_lr": 0.05})
    fused = optimised(
        "MuonAdamW",
        {
            "muon_lr": 0.05,
            "adam_lr": 0.05,
            "muon_weight_decay": 0.05,
            "muon_nesterov": False,
            "fused_layer_patterns": ["qkv*"],
        },
        named=True,
    )
    return {}, {**plain, **{f"fused/{k}": v for k, v in fused.items()}}


@case("data-next")
def _():
    """Preparing audio: trailing silence, crops without padding, loudness for a seed."""
    from stable_audio_tools.data.utils import PadCrop_Normalized_T, VolumeNorm, strip_trailing_silence

    x = torch.cat(
        [
            tone(2, 900)[0],
            torch.zeros(2, 3000),
        ],
        1,
    )
    crop = PadCrop_Normalized_T(1200, 16000, randomize=False, pad=False)
    short, long = crop(tone(2, 500)[0]), crop(tone(2, 1500)[0])
    torch.manual_seed(5)
    loud = VolumeNorm([-18, 3], 16000)(tone(2, 8000)[0])
    return {}, {
        "stripped": strip_trailing_silence(x, 16000)[:, ::4],
        "kept": torch.tensor(strip_trailing_silence(x[:, :1900], 16000).shape),
        "short": short[0],
        "short-mask": short[5],
        "long-info": torch.tensor([float(v) for v in long[1:5]]),
        "loud": loud[:, ::40],
    }
