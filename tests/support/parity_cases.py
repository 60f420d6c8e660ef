"""Small configs of every kind of model, and what is measured on each."""

import copy

import torch

from support.parity_figures import load_weights, noise, tone

CASES = {}


def case(name, tolerance=1e-3):
    def register(fn):
        fn.tolerance = tolerance
        CASES[name] = fn
        return fn

    return register


def build(config):
    from stable_audio_tools.models import create_model_from_config

    return load_weights(create_model_from_config(copy.deepcopy(config))).eval()


# ---------------------------------------------------------------- autoencoders


def oobleck(channels=8, latent=4, vae=True, encoder=None, decoder=None, strides=(2, 4, 4)):
    shared = {"channels": channels, "c_mults": [1, 2, 4], "strides": list(strides)}
    return (
        {
            "type": "oobleck",
            "config": {"in_channels": 2, "latent_dim": latent * (2 if vae else 1), **shared, **(encoder or {})},
        },
        {"type": "oobleck", "config": {"out_channels": 2, "latent_dim": latent, **shared, **(decoder or {})}},
    )


def autoencoder(encoder, decoder, bottleneck=None, latent_dim=4, ratio=32, io_channels=2, **extra):
    model = {
        "encoder": encoder,
        "decoder": decoder,
        "latent_dim": latent_dim,
        "downsampling_ratio": ratio,
        "io_channels": io_channels,
        **extra,
    }
    if bottleneck:
        model["bottleneck"] = bottleneck
    return {
        "model_type": "autoencoder",
        "sample_size": 4096,
        "sample_rate": 16000,
        "audio_channels": io_channels,
        "model": model,
    }


def vae_config(**kw):
    enc, dec = oobleck(encoder={"use_snake": True}, decoder={"use_snake": True, "final_tanh": False}, **kw)
    return autoencoder(enc, dec, {"type": "vae"})


@torch.no_grad()
def round_trip(config, audio):
    model = build(config)
    torch.manual_seed(1)
    latents, info = model.encode(audio, return_info=True)
    out = {"latents": latents, "audio": model.decode(latents)}
    for key in (
        "kl",
        "codes",
        "quantizer_indices",
        "quantizer_loss",
        "vq/commitment_loss",
        "vq/codebook_loss",
        "pre_bottleneck_latents",
    ):
        if key in info:
            out[key] = info[key]
    return model, out


@case("ae-oobleck-vae")
def _():
    """Snake activations, VAE bottleneck: the Stable Audio 2 autoencoder in small."""
    return round_trip(vae_config(), tone(2, 4096, batch=2))


@case("ae-oobleck-elu-tanh")
def _():
    """ELU, tanh output, nearest-neighbour upsampling, soft clip, tanh bottleneck."""
    enc, dec = oobleck(vae=False, decoder={"use_nearest_upsample": True, "final_tanh": True})
    dec["soft_clip"] = True
    return round_trip(autoencoder(enc, dec, {"type": "tanh", "config": {"scale": 2.0}}), tone(2, 4096))


@case("ae-oobleck-antialias")
def _():
    """Anti-aliased snake activations, L2-normalised latents."""
    enc, dec = oobleck(
        vae=False,
        encoder={"use_snake": True, "antialias_activation": True},
        decoder={"use_snake": True, "antialias_activation": True},
    )
    return round_trip(autoencoder(enc, dec, {"type": "l2_norm"}), tone(2, 4096))


@case("ae-chunked")
def _():
    """encode_audio / decode_audio in overlapping chunks, and preprocessing to the encoder's rate and length."""
    model = build(vae_config())
    with torch.no_grad():
        audio = model.preprocess_audio_for_encoder(tone(1, 9000, rate=8000)[0], 8000)
        torch.manual_seed(3)
        latents = model.encode_audio(audio, chunked=True, chunk_size=64, overlap=16)
        decoded = model.decode_audio(latents, chunked=True, chunk_size=64, overlap=16)
    return model, {"prepared": audio, "latents": latents, "audio": decoded}


@case("ae-dac-rvq")
def _():
    """Descript encoder and decoder with residual vector quantisation."""
    enc = {"type": "dac", "config": {"in_channels": 2, "latent_dim": 16, "d_model": 8, "strides": [2, 4, 4]}}
    dec = {"type": "dac", "config": {"out_channels": 2, "latent_dim": 16, "channels": 64, "rates": [4, 4, 2]}}
    rvq = {"type": "dac_rvq", "config": {"input_dim": 16, "n_codebooks": 3, "codebook_size": 32, "codebook_dim": 4}}
    return round_trip(autoencoder(enc, dec, rvq, latent_dim=16), tone(2, 4096))


@case("ae-dac-rvq-vae")
def _():
    """Descript encoder, VAE then residual vector quantisation."""
    enc = {"type": "dac", "config": {"in_channels": 2, "latent_dim": 32, "d_model": 8, "strides": [2, 4, 4]}}
    dec = {"type": "dac", "config": {"out_channels": 2, "latent_dim": 16, "channels": 64, "rates": [4, 4, 2]}}
    rvq = {"type": "dac_rvq_vae", "config": {"input_dim": 16, "n_codebooks": 2, "codebook_size": 32, "codebook_dim": 4}}
    return round_trip(autoencoder(enc, dec, rvq, latent_dim=16), tone(2, 4096))


@case("ae-seanet-rvq")
def _():
    """EnCodec's SEANet with vector-quantize-pytorch's residual quantiser."""
    shared = {"dimension": 8, "n_filters": 4, "ratios": [4, 4, 2], "norm": "weight_norm"}
    enc = {"type": "seanet", "config": {"channels": 2, **shared, "ratios": [2, 4, 4]}}
    dec = {"type": "seanet", "config": {"channels": 2, **shared}}
    rvq = {"type": "rvq", "config": {"dim": 8, "codebook_size": 32, "num_quantizers": 2, "kmeans_init": False}}
    return round_trip(autoencoder(enc, dec, rvq, latent_dim=8), tone(2, 4096))


@case("ae-taae-fsq")
def _():
    """Transformer autoencoder with finite scalar quantisation."""
    shared = {"channels": 128, "c_mults": [1, 1], "strides": [4, 8], "transformer_depths": [1, 1]}
    enc = {"type": "taae", "config": {"in_channels": 2, "latent_dim": 4, **shared, "use_snake": True}}
    dec = {
        "type": "taae",
        "config": {"out_channels": 2, "latent_dim": 4, **shared, "use_snake": True, "conformer": True},
    }
    return round_trip(
        autoencoder(enc, dec, {"type": "fsq", "config": {"levels": [5, 4], "num_codebooks": 2}}), tone(2, 256)
    )


@case("ae-dithered-fsq")
def _():
    """Dithered finite scalar quantisation, without dither at inference."""
    enc, dec = oobleck(vae=False)
    bottleneck = {"type": "dithered_fsq", "config": {"dim": 4, "levels": 9, "dither_inference": False}}
    return round_trip(autoencoder(enc, dec, bottleneck), tone(2, 4096))


@case("ae-patched-pretransform")
def _():
    """An autoencoder over a patched pretransform."""
    enc, dec = oobleck(vae=False, strides=(2, 2, 2), encoder={"in_channels": 8}, decoder={"out_channels": 8})
    config = autoencoder(enc, dec, {"type": "tanh"}, in_channels=8, out_channels=8)
    config["model"]["pretransform"] = {"type": "patched", "config": {"channels": 2, "patch_size": 4}}
    return round_trip(config, tone(2, 4096))


@case("pretransform-pqmf")
def _():
    """Pseudo-quadrature mirror filter bank: analysis and synthesis."""
    from stable_audio_tools.models.factory import create_pretransform_from_config

    bank = create_pretransform_from_config(
        {"type": "pqmf", "config": {"attenuation": 100, "num_bands": 8, "channels": 2}}, 16000
    )
    z = bank.encode(tone(2, 4096))
    return {}, {"bands": z, "audio": bank.decode(z)}


@case("pretransform-wavelet")
def _():
    """Wavelet packet transform and its inverse."""
    from stable_audio_tools.models.factory import create_pretransform_from_config

    bank = create_pretransform_from_config(
        {"type": "wavelet", "config": {"channels": 2, "levels": 3, "wavelet": "bior4.4"}}, 16000
    )
    z = bank.encode(tone(2, 4096))
    return {}, {"bands": z, "audio": bank.decode(z)}


# ------------------------------------------------------- conditional diffusion


def numbers_and_list(cond_dim=16):
    return {
        "cond_dim": cond_dim,
        "configs": [
            {"id": "mood", "type": "list", "config": {"options": ["calm", "bright", "dark"]}},
            {"id": "seconds_start", "type": "number", "config": {"min_val": 0, "max_val": 512}},
            {"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 512}},
            {"id": "bars", "type": "int", "config": {"min_val": 0, "max_val": 64}},
        ],
    }


METADATA = [
    {"mood": "bright", "seconds_start": 0, "seconds_total": 30, "bars": 8},
    {"mood": "unheard of", "seconds_start": 12.5, "seconds_total": 600, "bars": 99},
]


def dit(objective="v", dit_config=None, pretransform=True, model_type="diffusion_cond", conditioning=None, **diffusion):
    base = {"io_channels": 4, "embed_dim": 64, "depth": 2, "num_heads": 2, "cond_token_dim": 16, "global_cond_dim": 32}
    model = {
        "conditioning": conditioning or numbers_and_list(),
        "diffusion": {
            "type": "dit",
            "diffusion_objective": objective,
            "cross_attention_cond_ids": ["mood", "seconds_start", "seconds_total"],
            "global_cond_ids": ["seconds_start", "seconds_total"],
            "config": {**base, **(dit_config or {})},
            **diffusion,
        },
        "io_channels": 4,
    }
    if pretransform:
        model["pretransform"] = {
            "type": "autoencoder",
            "iterate_batch": True,
            "scale": 0.7,
            "config": vae_config()["model"],
        }
    return {"model_type": model_type, "sample_size": 4096, "sample_rate": 16000, "audio_channels": 2, "model": model}


@torch.no_grad()
def denoise(config, x=None, metadata=METADATA, **kw):
    """One conditioned forward pass: plain, guided, guided with a negative and rescaled."""
    model = build(config)
    x = noise("x", 2, 4, 64) if x is None else x
    t = torch.tensor([0.3, 0.8])
    cond = model.conditioner(metadata, "cpu")
    negative = model.get_conditioning_inputs(model.conditioner(metadata[::-1], "cpu"), negative=True)
    out = {
        "plain": model(x, t, cond=cond, **kw),
        "guided": model(x, t, cond=cond, cfg_scale=4.0, **kw),
        "negative": model(x, t, cond=cond, cfg_scale=3.0, scale_phi=0.5, **negative, **kw),
    }
    for key, value in cond.items():
        out[f"cond/{key}"] = value[0]
    return model, out


@case("dit-prepend")
def _():
    """Global conditioning as a prepended token, cross attention, v objective: Stable Audio Open in small."""
    return denoise(dit())


@case("dit-adaln")
def _():
    """Rectified flow with adaptive layer norm, patches, layer-normed queries and keys, memory tokens, layer scale."""
    return denoise(
        dit(
            "rectified_flow",
            {
                "global_cond_type": "adaLN",
                "patch_size": 2,
                "num_memory_tokens": 3,
                "layer_scale": True,
                "attn_kwargs": {"qk_norm": "ln"},
                "zero_init_branch_outputs": False,
            },
        )
    )


@case("dit-differential")
def _():
    """Differential attention with feature scaling, l2-normed queries and keys, conformer blocks."""
    return denoise(
        dit(
            "rectified_flow",
            {"conformer": True, "attn_kwargs": {"differential": True, "feat_scale": True, "qk_norm": "l2"}},
        )
    )


@case("dit-grouped-query")
def _():
    """Cross attention on unprojected condition tokens: fewer key-value heads; dynamic tanh; no rotary positions."""
    return denoise(
        dit(
            "v",
            {
                "project_cond_tokens": False,
                "cond_token_dim": 32,
                "global_cond_dim": 64,
                "remove_norms": True,
                "rotary_pos_emb": False,
                "use_sinusoidal_emb": True,
                "attn_kwargs": {"qk_norm": "dyt"},
            },
            conditioning=numbers_and_list(32),
        )
    )


@case("dit-prepend-cond")
def _():
    """Prepended condition tokens, absolute positions, timestep as input channels, feed-forward by convolution."""
    return denoise(
        dit(
            "v",
            {
                "prepend_cond_dim": 16,
                "timestep_cond_type": "global",
                "use_abs_pos_emb": True,
                "abs_pos_emb_max_length": 256,
                "ff_kwargs": {"glu": False, "mult": 2},
            },
            prepend_cond_ids=["bars"],
        )
    )


@case("dit-input-concat")
def _():
    """Inpainting inputs concatenated to the channels."""
    config = dit(
        "rectified_flow",
        {"input_concat_dim": 5},
        model_type="diffusion_cond_inpaint",
        input_concat_ids=["inpaint_mask", "inpaint_masked_input"],
    )
    model = build(config)
    with torch.no_grad():
        cond = model.conditioner(METADATA, "cpu")
        mask = (torch.arange(64) < 40).float()[None, None].repeat(2, 1, 1)
        cond["inpaint_mask"] = [mask]
        cond["inpaint_masked_input"] = [noise("inpaint", 2, 4, 64) * mask]
        x, t = noise("x", 2, 4, 64), torch.tensor([0.3, 0.8])
        return model, {"plain": model(x, t, cond=cond), "guided": model(x, t, cond=cond, cfg_scale=4.0)}


@case("adp-cfg-1d")
def _():
    """The 1-D attention U-Net with embeddings and guidance: Moûsai / Stable Audio 1 in small."""
    config = dit(pretransform=False)
    config["model"]["diffusion"]["type"] = "adp_cfg_1d"
    config["model"]["diffusion"]["config"] = {
        "in_channels": 4,
        "context_embedding_features": 16,
        "context_embedding_max_length": 3,
        "channels": 16,
        "resnet_groups": 4,
        "kernel_multiplier_downsample": 2,
        "multipliers": [1, 2, 2],
        "factors": [2, 2],
        "num_blocks": [1, 2],
        "attentions": [1, 1, 1],
        "attention_heads": 2,
        "attention_features": 8,
        "attention_multiplier": 2,
        "use_nearest_upsample": False,
        "use_skip_scale": True,
        "use_context_time": True,
        "context_features": 32,
    }
    model = build(config)
    with torch.no_grad():
        cond = model.conditioner(METADATA, "cpu")
        x, t = noise("x", 2, 4, 64), torch.tensor([0.3, 0.8])
        return model, {
            "plain": model(x, t, cond=cond),
            "guided": model(x, t, cond=cond, cfg_scale=4.0, batch_cfg=True, rescale_cfg=True),
        }


@case("adp-1d")
def _():
    """The 1-D attention U-Net with global features."""
    config = dit(pretransform=False)
    config["model"]["diffusion"].update(
        type="adp_1d",
        cross_attention_cond_ids=[],
        config={
            "in_channels": 4,
            "channels": 16,
            "resnet_groups": 4,
            "kernel_multiplier_downsample": 2,
            "multipliers": [1, 2, 2],
            "factors": [2, 2],
            "num_blocks": [1, 1],
            "attentions": [0, 1, 1],
            "attention_heads": 2,
            "attention_features": 8,
            "attention_multiplier": 2,
            "use_nearest_upsample": False,
            "use_skip_scale": True,
            "use_context_time": True,
            "context_features": 32,
        },
    )
    model = build(config)
    with torch.no_grad():
        cond = model.conditioner(METADATA, "cpu")
        return model, {"plain": model(noise("x", 2, 4, 64), torch.tensor([0.3, 0.8]), cond=cond)}


# ----------------------------------------------------- unconditional diffusion


def uncond(kind, config, channels=2):
    return {
        "model_type": "diffusion_uncond",
        "sample_size": 1024,
        "sample_rate": 16000,
        "audio_channels": channels,
        "model": {"type": kind, "config": config},
    }


@torch.no_grad()
def denoise_uncond(config):
    model = build(config)
    return model, {"plain": model(noise("u", 2, 2, 1024), torch.tensor([0.2, 0.7]))}


@case("uncond-dau1d")
def _():
    """Dance Diffusion's attention U-Net in small."""
    return denoise_uncond(
        uncond(
            "DAU1d",
            {"io_channels": 2, "depth": 4, "n_attn_layers": 2, "channels": [32, 32, 64, 64], "strides": [2, 2, 2]},
        )
    )


@case("uncond-dau1d-learned")
def _():
    """Dance Diffusion with learned resampling and snake activations."""
    return denoise_uncond(
        uncond(
            "DAU1d",
            {
                "io_channels": 2,
                "depth": 3,
                "n_attn_layers": 1,
                "channels": [32, 64, 64],
                "strides": [4, 2],
                "learned_resample": True,
                "use_snake": True,
                "kernel_size": 3,
            },
        )
    )


@case("uncond-adp")
def _():
    """The unconditional 1-D U-Net."""
    return denoise_uncond(
        uncond(
            "adp_uncond_1d",
            {
                "in_channels": 2,
                "channels": 16,
                "resnet_groups": 4,
                "kernel_multiplier_downsample": 2,
                "multipliers": [1, 2, 2],
                "factors": [4, 4],
                "num_blocks": [1, 1],
                "attentions": [0, 1, 1],
                "attention_heads": 2,
                "attention_features": 8,
                "attention_multiplier": 2,
                "use_nearest_upsample": False,
                "use_skip_scale": True,
                "use_context_time": True,
            },
        )
    )


@case("uncond-dit")
def _():
    """The unconditional transformer."""
    return denoise_uncond(
        uncond("dit", {"in_channels": 2, "embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 8})
    )


@case("diffusion-autoencoder")
def _():
    """Encoder plus diffusion decoder, one denoising pass."""
    enc, _ = oobleck(vae=False)
    config = autoencoder(enc, None, {"type": "tanh"})
    config["model_type"] = "diffusion_autoencoder"
    del config["model"]["decoder"]
    config["model"]["diffusion"] = {
        "type": "DAU1d",
        "config": {
            "io_channels": 2,
            "cond_dim": 4,
            "depth": 4,
            "n_attn_layers": 2,
            "channels": [32, 32, 64, 64],
            "strides": [2, 2, 2],
        },
    }
    model = build(config)
    with torch.no_grad():
        latents = model.encode(tone(2, 4096))
        torch.manual_seed(5)
        audio = model.decode(latents, steps=3)
    return model, {"latents": latents, "audio": audio}


# ------------------------------------------------------------------ conditioners


@case("cond-pretransform-and-mix")
def _():
    """Audio conditioning through the model's own pretransform, and a learned mix of sources."""
    conditioning = numbers_and_list()
    conditioning["configs"] += [
        {
            "id": "reference",
            "type": "pretransform",
            "config": {"sample_rate": 16000, "output_dim": 4, "use_model_pretransform": True},
        },
        {
            "id": "sources",
            "type": "source_mix",
            "config": {
                "sample_rate": 16000,
                "output_dim": 6,
                "use_model_pretransform": True,
                "source_keys": ["drums", "bass"],
            },
        },
    ]
    config = dit(
        "rectified_flow", {"input_concat_dim": 10}, conditioning=conditioning, input_concat_ids=["reference", "sources"]
    )
    model = build(config)
    metadata = [
        dict(
            m,
            reference=tone(2, 2048)[0] * (i + 1) / 2,
            sources={"drums": tone(2, 2048)[0], **({"bass": tone(1, 2048)[0]} if i else {})},
        )
        for i, m in enumerate(METADATA)
    ]
    with torch.no_grad():
        torch.manual_seed(2)
        cond = model.conditioner(metadata, "cpu")
        out = model(noise("x", 2, 4, 64), torch.tensor([0.3, 0.8]), cond=cond)
    return model, {"reference": cond["reference"][0], "sources": cond["sources"][0], "plain": out}


# --------------------------------------------------------- language models


@torch.no_grad()
def language_model(pattern, **lm_config):
    enc = {"type": "dac", "config": {"in_channels": 1, "latent_dim": 16, "d_model": 8, "strides": [2, 4, 4]}}
    dec = {"type": "dac", "config": {"out_channels": 1, "latent_dim": 16, "channels": 64, "rates": [4, 4, 2]}}
    rvq = {"type": "dac_rvq", "config": {"input_dim": 16, "n_codebooks": 3, "codebook_size": 32, "codebook_dim": 4}}
    codec = autoencoder(enc, dec, rvq, latent_dim=16, io_channels=1)["model"]
    config = {
        "model_type": "lm",
        "sample_size": 1024,
        "sample_rate": 16000,
        "audio_channels": 1,
        "model": {
            "pretransform": {"type": "autoencoder", "config": codec},
            "conditioning": {"cond_dim": 16, "configs": numbers_and_list()["configs"][1:]},
            "lm": {
                "type": "continuous_transformer",
                "codebook_pattern": pattern,
                "prepend_cond_ids": ["seconds_total", "bars"],
                "config": {"embed_dim": 64, "depth": 2, "dim_heads": 32, "prepend_cond_dim": 16, **lm_config},
            },
        },
    }
    model = build(config)
    codes = model.pretransform.tokenize(tone(1, 1024, batch=2))
    output = model.compute_logits(codes, condition_tensors=model.conditioner(METADATA, "cpu"))
    return model, {"codes": codes, "logits": output.logits.nan_to_num(0.0), "mask": output.mask}


@case("lm-delay")
def _():
    """Transformer over codec tokens, delayed codebooks, prepended conditions."""
    return language_model("delay")


@case("lm-parallel")
def _():
    """All codebooks at once."""
    return language_model("parallel")


@case("lm-unroll")
def _():
    """Codebooks flattened in time."""
    return language_model("unroll")


# ------------------------------------------------------------------ sampling


@torch.no_grad()
def generate(objective="v", seed=7, **kw):
    from stable_audio_tools.inference.generation import generate_diffusion_cond

    model = build(dit(objective))
    args = {
        "steps": 6,
        "cfg_scale": 3.0,
        "conditioning": METADATA,
        "batch_size": 2,
        "sample_size": 2048,
        "seed": seed,
        "device": "cpu",
        **kw,
    }
    return model, {"audio": generate_diffusion_cond(model, **args)}


V_SAMPLERS = [
    "dpmpp-2m-sde",
    "dpmpp-3m-sde",
    "dpmpp-2m",
    "k-heun",
    "k-lms",
    "k-dpmpp-2s-ancestral",
    "k-dpm-2",
    "k-dpm-fast",
    "k-dpm-adaptive",
    "v-ddim",
    "v-ddim-cfgpp",
]
FLOW_SAMPLERS = ["euler", "rk4", "dpmpp", "pingpong"]


def _samplers():
    for sampler in V_SAMPLERS:

        def run(sampler=sampler):
            return generate("v", sampler_type=sampler, sigma_min=0.3, sigma_max=80.0)

        run.__doc__ = f"Same seed, same audio: {sampler}, v objective."
        case(f"sample-v-{sampler}", tolerance=5e-3)(run)
    for sampler in FLOW_SAMPLERS:

        def run(sampler=sampler):
            return generate("rectified_flow", sampler_type=sampler, sigma_max=1.0)

        run.__doc__ = f"Same seed, same audio: {sampler}, rectified flow."
        case(f"sample-flow-{sampler}", tolerance=5e-3)(run)


_samplers()


@case("sample-init-audio", tolerance=5e-3)
def _():
    """A variation of given audio, at another rate and mono."""
    return generate(
        "v",
        sampler_type="dpmpp-2m",
        sigma_min=0.3,
        sigma_max=80.0,
        init_audio=(8000, tone(1, 1500, rate=8000)[0]),
        init_noise_level=4.0,
    )


@case("sample-flow-init-audio", tolerance=5e-3)
def _():
    """A variation of given audio under rectified flow."""
    return generate("rectified_flow", sampler_type="euler", init_audio=(16000, tone(2, 2048)[0]), init_noise_level=0.6)


@case("sample-negative", tolerance=5e-3)
def _():
    """A negative condition, latents returned."""
    return generate(
        "rectified_flow", sampler_type="euler", sigma_max=1.0, negative_conditioning=METADATA[::-1], return_latents=True
    )


@case("sample-inpaint", tolerance=5e-3)
def _():
    """Inpainting: the masked second half is generated anew."""
    from stable_audio_tools.inference.generation import generate_diffusion_cond_inpaint

    model = build(
        dit(
            "rectified_flow",
            {"input_concat_dim": 5},
            model_type="diffusion_cond_inpaint",
            input_concat_ids=["inpaint_mask", "inpaint_masked_input"],
        )
    )
    mask = (torch.arange(2048) < 1024).float()[None]
    with torch.no_grad():
        audio = generate_diffusion_cond_inpaint(
            model,
            steps=5,
            cfg_scale=2.0,
            conditioning=METADATA[:1],
            batch_size=1,
            sample_size=2048,
            seed=11,
            device="cpu",
            inpaint_audio=(16000, tone(2, 2048)[0]),
            inpaint_mask=mask,
            sampler_type="euler",
        )
    return model, {"audio": audio}


# ----------------------------------------------------------- losses, critics


@case("loss-stft")
def _():
    """Multi-resolution STFT losses: plain, sum-and-difference, A-weighted, mel."""
    from stable_audio_tools.training.losses import auraloss

    shared = {"fft_sizes": [512, 256], "hop_sizes": [128, 64], "win_lengths": [512, 256]}
    real, fake = tone(2, 4096, batch=2), tone(2, 4096, batch=2) * 0.8 + 0.05 * noise("fake", 2, 2, 4096)
    return {}, {
        "plain": auraloss.MultiResolutionSTFTLoss(sample_rate=16000, **shared)(fake, real),
        "weighted": auraloss.MultiResolutionSTFTLoss(sample_rate=16000, perceptual_weighting=True, **shared)(
            fake, real
        ),
        "sum-difference": auraloss.SumAndDifferenceSTFTLoss(sample_rate=16000, perceptual_weighting=True, **shared)(
            fake, real
        ),
        "mel": auraloss.MelSTFTLoss(16000, fft_size=512, hop_size=128, win_length=512, n_mels=32)(fake, real),
    }


def critic(name, inputs, **kw):
    def run():
        import stable_audio_tools.models.discriminators as module

        model = load_weights(getattr(module, name)(**kw)).eval()
        real = tone(inputs, 8192)
        fake = real * 0.8 + 0.05 * noise("fake", 1, inputs, 8192)
        with torch.no_grad():
            result = model.loss(real, fake)
        return model, {f"loss{i}": value for i, value in enumerate(result)}

    run.__doc__ = f"{name}: discriminator, adversarial and feature-matching losses."
    return run


case("critic-encodec")(
    critic(
        "EncodecDiscriminator",
        2,
        filters=4,
        n_ffts=[256, 128],
        hop_lengths=[64, 32],
        win_lengths=[256, 128],
        in_channels=2,
    )
)
case("critic-oobleck")(critic("OobleckDiscriminator", 1, in_channels=1))
case("critic-dac")(critic("DACGANLoss", 2, channels=2, sample_rate=16000, fft_sizes=[256], periods=[2, 3]))


# ------------------------------------------------------------------ schedules


@case("schedules")
def _():
    """Noise schedules, distribution shift, inverse-decay learning rate."""
    from stable_audio_tools.inference.sampling import (
        DistributionShift,
        alpha_sigma_to_t,
        get_alphas_sigmas,
        t_to_alpha_sigma,
    )
    from stable_audio_tools.training.utils import InverseLR

    t = torch.linspace(0, 1, 17)
    alphas, sigmas = get_alphas_sigmas(t)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = InverseLR(optimizer, inv_gamma=10, power=0.5, warmup=0.9, final_lr=1e-5)
    rates = []
    for _ in range(30):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0] * 1e3)
    shift = DistributionShift(base_shift=0.5, max_shift=1.15, min_length=64, max_length=1024)
    return {}, {
        "alphas": alphas,
        "sigmas": sigmas,
        "pair": torch.stack(t_to_alpha_sigma(t)),
        "back": alpha_sigma_to_t(alphas, sigmas),
        "shifted": shift.time_shift(torch.linspace(0, 1, 9), 512),
        "rates": torch.tensor(rates),
    }


@case("data-crop")
def _():
    """Padding, cropping, channel handling."""
    from stable_audio_tools.data.utils import Mono, PadCrop, PadCrop_Normalized_T, Stereo

    long, short = tone(2, 5000)[0], tone(1, 700)[0]
    a = PadCrop_Normalized_T(2048, 16000, randomize=False)(long)
    b = PadCrop_Normalized_T(2048, 16000, randomize=False)(short)
    return {}, {
        "long": a[0],
        "short": b[0],
        "long-info": torch.tensor([float(v) for v in a[1:5]]),
        "short-info": torch.tensor([float(v) for v in b[1:5]]),
        "mask": b[5],
        "crop": PadCrop(1000, randomize=False)(long),
        "stereo": Stereo()(short),
        "mono": Mono()(long),
    }
