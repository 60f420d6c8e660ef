import copy

import pytest
import torch
from torch import nn
from torchaudio.transforms import Resample

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.autoencoders import (
    AudioAutoencoder,
    create_autoencoder_from_config,
    create_decoder_from_config,
    create_encoder_from_config,
)
from stable_audio_tools.models.autoencoders.preprocessing import match_channels
from stable_audio_tools.models.autoencoders.weight_norm import remove_weight_norm_from_model

LATENT_DIM = 4
OOBLECK = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4]}
BODIES = {
    "oobleck": (
        {"in_channels": 2, **OOBLECK, "use_snake": True},
        {"out_channels": 2, **OOBLECK, "use_snake": True, "final_tanh": False},
        "latent_dim",
    ),
    "oobleck-nearest": (
        {"in_channels": 2, **OOBLECK},
        {"out_channels": 2, **OOBLECK, "use_nearest_upsample": True, "antialias_activation": True},
        "latent_dim",
    ),
    "dac": (
        {"in_channels": 2, "d_model": 4, "strides": [2, 4]},
        {"out_channels": 2, "channels": 16, "rates": [4, 2]},
        "latent_dim",
    ),
    "seanet": (
        {"channels": 2, "n_filters": 4, "ratios": [2, 4]},
        {"channels": 2, "n_filters": 4, "ratios": [4, 2]},
        "dimension",
    ),
    "taae": (
        {"in_channels": 2, "channels": 16, "c_mults": [1, 2], "strides": [2, 4], "transformer_depths": [1, 1]},
        {"out_channels": 2, "channels": 16, "c_mults": [1, 2], "strides": [2, 4], "transformer_depths": [1, 1]},
        "latent_dim",
    ),
    "local_attn": (
        {"in_channels": 2, "embed_dims": [16, 16], "heads": [2, 2], "depths": [1, 1], "ratios": [2, 4]},
        {"out_channels": 2, "embed_dims": [16, 16], "heads": [2, 2], "depths": [1, 1], "ratios": [4, 2]},
        "out_channels",
    ),
}


def config_of(name="oobleck", bottleneck="vae", **model):
    encoder, decoder, key = copy.deepcopy(BODIES[name])
    tag = name.split("-")[0]
    encoder[key] = LATENT_DIM * (2 if bottleneck == "vae" else 1)
    decoder["in_channels" if tag == "local_attn" else key] = LATENT_DIM
    body = {
        "encoder": {"type": tag, "config": encoder},
        "decoder": {"type": tag, "config": decoder},
        "latent_dim": LATENT_DIM,
        "downsampling_ratio": 8,
        "io_channels": 2,
        **model,
    }
    if bottleneck:
        body["bottleneck"] = {"type": bottleneck}
    return {"model_type": "autoencoder", "sample_rate": 16000, "sample_size": 64, "model": body}


def build(name="oobleck", bottleneck="vae", **model):
    torch.manual_seed(0)
    return create_model_from_config(config_of(name, bottleneck, **model)).eval()


every = pytest.mark.parametrize("name", BODIES)


# ------------------------------------------------------------------ every encoder and decoder


@every
def test_builds_from_json_and_leaves_the_config_alone(name):
    config = config_of(name)
    before = copy.deepcopy(config)
    model = create_autoencoder_from_config(config)
    assert config == before
    assert isinstance(model, AudioAutoencoder) and model.sample_rate == 16000 and model.min_length == 8
    create_autoencoder_from_config(config)  # a second time, from the same dict
    for part, make in (("encoder", create_encoder_from_config), ("decoder", create_decoder_from_config)):
        shapes = {key: value.shape for key, value in make(config["model"][part]).state_dict().items()}
        assert shapes == {key: value.shape for key, value in getattr(model, part).state_dict().items()}
    assert config == before


@every
def test_encodes_decodes_and_trains(name):
    model = build(name).train()
    audio = torch.randn(2, 2, 128)
    latents, info = model.encode(audio, return_info=True)
    assert latents.shape == (2, LATENT_DIM, 16)
    assert info["pre_bottleneck_latents"].shape == (2, 2 * LATENT_DIM, 16) and "kl" in info
    decoded = model.decode(latents)
    assert decoded.shape == audio.shape
    (decoded.square().mean() + info["kl"]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every
def test_state_dict_round_trip(name):
    model, other = build(name), create_model_from_config(config_of(name)).eval()
    other.load_state_dict(model.state_dict())
    latents = torch.randn(1, LATENT_DIM, 8)
    torch.testing.assert_close(other.decode(latents), model.decode(latents))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(name, dtype):
    model = build(name, bottleneck="tanh")
    audio = torch.randn(1, 2, 128)
    wanted = model.decode(model.encode(audio))
    low = model.to(dtype)
    got = low.decode(low.encode(audio.to(dtype)))
    assert got.dtype == dtype
    # bfloat16 keeps two to three digits through some twenty layers.
    assert (got.float() - wanted).abs().max() <= 0.1 * wanted.abs().max()


@every
def test_meta_device_needs_no_memory(name):
    with torch.device("meta"):
        model = create_model_from_config(config_of(name))
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    with torch.device("meta"):
        assert model.encode(torch.empty(1, 2, 64), skip_bottleneck=True).shape == (1, 8, 8)


@every
@torch.no_grad()
def test_removing_weight_norm_changes_nothing_else(name):
    model = build(name)
    audio = torch.randn(1, 2, 128)
    latents = model.encode(audio, skip_bottleneck=True)
    decoded = model.decode(latents[:, :LATENT_DIM])
    remove_weight_norm_from_model(model)
    assert not any(key.endswith(("weight_g", "weight_v")) for key in model.state_dict())
    torch.testing.assert_close(model.encode(audio, skip_bottleneck=True), latents, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.decode(latents[:, :LATENT_DIM]), decoded, rtol=0, atol=1e-6)


@every
@torch.no_grad()
def test_inference_equals_training_mode_without_gradients(name):
    """Fused activations and channel-innermost layouts change no result."""
    model = build(name)
    audio = torch.randn(1, 2, 128)
    fast = model.encode(audio, skip_bottleneck=True)
    with torch.enable_grad():
        plain = model.encode(audio, skip_bottleneck=True)
    assert fast.is_contiguous()
    torch.testing.assert_close(fast, plain.detach(), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ options of encode and decode


@torch.no_grad()
@pytest.mark.parametrize("iterate_batch", [True, 1, 2, 5])
def test_iterating_over_the_batch_changes_nothing(iterate_batch):
    model = build()
    audio = torch.randn(3, 2, 64)
    calls = []
    model.encoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    latents = model.encode(audio, skip_bottleneck=True, iterate_batch=iterate_batch)
    assert calls == {1: [1, 1, 1], 2: [2, 1], 5: [3]}[int(iterate_batch)]
    torch.testing.assert_close(latents, model.encode(audio, skip_bottleneck=True), rtol=0, atol=1e-6)
    half = latents[:, :LATENT_DIM]
    torch.testing.assert_close(model.decode(half, iterate_batch=iterate_batch), model.decode(half), rtol=0, atol=1e-6)


@torch.no_grad()
def test_soft_clip_is_a_tanh_on_the_output():
    hard = build()
    config = config_of()
    config["model"]["decoder"]["soft_clip"] = True
    soft = create_model_from_config(config).eval()
    soft.load_state_dict(hard.state_dict())
    latents = 10 * torch.randn(1, LATENT_DIM, 8)
    torch.testing.assert_close(soft.decode(latents), torch.tanh(hard.decode(latents)))


def test_return_info_and_plain_returns_agree():
    model = build(bottleneck="tanh")
    audio = torch.randn(1, 2, 64)
    latents, info = model.encode(audio, return_info=True)
    torch.testing.assert_close(model.encode(audio), latents)
    torch.testing.assert_close(model.encode(audio, skip_bottleneck=True), info["pre_bottleneck_latents"])


def test_frozen_parts():
    config = config_of()
    config["model"]["encoder"]["requires_grad"] = False
    model = create_model_from_config(config)
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())


# ------------------------------------------------------------------ pretransform and tokens


def patched(enable_grad=False):
    config = config_of(bottleneck="tanh", pretransform={"type": "patched", "config": {"channels": 2, "patch_size": 4}})
    config["model"]["pretransform"]["enable_grad"] = enable_grad
    config["model"]["encoder"]["config"].update(in_channels=8)
    config["model"]["decoder"]["config"].update(out_channels=8)
    config["model"].update(downsampling_ratio=32)
    return config


def test_a_pretransform_stands_between_audio_and_encoder():
    model = create_model_from_config(patched()).eval()
    audio = torch.randn(2, 2, 128)
    latents = model.encode(audio)
    assert latents.shape == (2, LATENT_DIM, 4) and model.decode(latents).shape == audio.shape
    inner = model.pretransform.encode(audio)
    torch.testing.assert_close(model.encode(inner, skip_pretransform=True), latents)
    torch.testing.assert_close(model.encode(audio, iterate_batch=True), latents)
    assert model.preprocess_audio_for_encoder(torch.randn(1, 100), 16000).shape == (1, 2, 128)


@torch.no_grad()
def test_chunks_of_audio_that_is_already_transformed():
    model = create_model_from_config(patched()).eval()
    audio = torch.randn(1, 2, 32 * 80)
    inner = model.pretransform.encode(audio)
    options = {"chunked": True, "chunk_size": 60, "overlap": 50}
    got = model.encode_audio(inner, skip_pretransform=True, **options)
    torch.testing.assert_close(got, model.encode_audio(audio, **options))
    assert got.shape == (1, LATENT_DIM, 80)


def test_the_decoder_learns_through_a_frozen_pretransform():
    model = create_model_from_config(patched())
    model.decode(model.encode(torch.randn(1, 2, 128))).square().mean().backward()
    assert all(p.grad is not None for p in (*model.encoder.parameters(), *model.decoder.parameters()))


@torch.no_grad()
@pytest.mark.parametrize(
    "node",
    [
        {"type": "dac_rvq", "config": {"input_dim": 4, "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 2}},
        {"type": "rvq", "config": {"dim": 4, "codebook_size": 16, "num_quantizers": 2, "kmeans_init": False}},
        {"type": "fsq", "config": {"levels": [5, 4], "num_codebooks": 2}},
    ],
    ids=lambda node: node["type"],
)
def test_tokens_decode_to_what_their_latents_decode_to(node):
    config = config_of(bottleneck=None, bottleneck_=None)
    del config["model"]["bottleneck_"]
    config["model"]["bottleneck"] = node
    model = create_model_from_config(config).eval()
    latents, info = model.encode(torch.randn(1, 2, 64), return_info=True)
    audio = model.decode_tokens(info[model.bottleneck.tokens_id])
    torch.testing.assert_close(audio, model.decode(latents), rtol=1e-4, atol=1e-5)


def test_tokens_need_a_discrete_bottleneck():
    with pytest.raises(ValueError, match="this model's bottleneck is VAEBottleneck"):
        build().decode_tokens(torch.zeros(1, 2, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="this model's bottleneck is absent"):
        build(bottleneck=None).decode_tokens(torch.zeros(1, 2, 8, dtype=torch.long))


# ------------------------------------------------------------------ preparing audio


def test_preprocessing_one_clip():
    model = build()
    clip = torch.randn(1, 1001)
    got = model.preprocess_audio_for_encoder(clip, 8000)
    resampled = Resample(8000, 16000)(clip)
    assert got.shape == (1, 2, 2008)  # 2002 samples, up to a multiple of 8
    for channel in got[0]:
        torch.testing.assert_close(channel[:2002], resampled[0])
    assert not got[..., 2002:].any()


@pytest.mark.parametrize("shape", [(100,), (1, 100), (1, 1, 100), (2, 100), (1, 2, 100), (3, 100)])
def test_preprocessing_accepts_a_clip_in_any_shape(shape):
    assert build().preprocess_audio_for_encoder(torch.randn(shape), 16000).shape == (1, 2, 104)


def test_preprocessing_several_clips():
    model = build()
    clips = [torch.randn(1, 100), torch.randn(2, 30), torch.randn(50)]
    for rates in (16000, [16000, 16000, 16000]):
        batch = model.preprocess_audio_list_for_encoder(clips, rates)
        assert batch.shape == (3, 2, 104)
        torch.testing.assert_close(batch[1, :, :30], clips[1])
        assert not batch[1, :, 30:].any()
    assert model.preprocess_audio_list_for_encoder(clips, [16000, 8000, 32000]).shape == (3, 2, 104)


def test_channels_are_mixed_spread_or_chosen():
    audio = torch.arange(6.0).view(3, 2)
    torch.testing.assert_close(match_channels(audio, 1), audio.mean(0, keepdim=True))
    assert torch.equal(match_channels(audio, 2), audio[:2])
    assert torch.equal(match_channels(audio[:1], 4), audio[:1].repeat(4, 1))
    with pytest.raises(AudioError, match="audio has 3 channels, the model takes 4; give it 1 or at least 4"):
        match_channels(audio, 4)


# ------------------------------------------------------------------ wrong use speaks


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(1, 1, 64), "audio has 1 channels, this model takes 2; preprocess_audio_for_encoder"),
        (torch.zeros(2, 64), r"must be shaped \(batch, channels, samples\), got \(2, 64\)"),
        (torch.zeros(1, 2, 5), r"audio of 5 samples is shorter than one frame of latents \(8 samples, 0.001 s\)"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "encode_audio", "reconstruct_audio"])
def test_wrong_audio(audio, message, method):
    with pytest.raises(AudioError, match=message):
        getattr(build(), method)(audio)


def test_wrong_latents():
    with pytest.raises(ValueError, match=r"latents must be shaped \(batch, 4, frames\).*, got \(1, 5, 8\)"):
        build().decode(torch.zeros(1, 5, 8))


@pytest.mark.parametrize(
    ("clips", "rates", "message"),
    [
        ([torch.zeros(2, 3, 64)], 16000, r"one clip must be shaped \(channels, samples\), got \(2, 3, 64\)"),
        ([torch.zeros(2, 0)], 16000, "the clip is empty"),
        ([torch.zeros(2, 64, dtype=torch.int16)], 16000, "must be floating point"),
        ([torch.zeros(2, 64)], [16000, 8000], "1 clips but 2 sample rates"),
        ([], 16000, "the list of clips is empty"),
    ],
)
def test_wrong_clips(clips, rates, message):
    with pytest.raises(AudioError, match=message):
        build().preprocess_audio_list_for_encoder(clips, rates)


def test_short_audio_is_fine_where_the_encoder_pads():
    assert build("seanet").encode(torch.zeros(1, 2, 5)).shape == (1, LATENT_DIM, 1)


def changed(path, value, **options):
    config = config_of(**options)
    node = config["model"]
    *parents, last = path.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            changed("downsampling_ratio", 16),
            "model.downsampling_ratio: is 16, but encoder.config.strides multiply to 8; set it to 8",
        ),
        (
            changed("decoder.config.strides", [2, 8]),
            "model.downsampling_ratio: is 8, but decoder.config.strides multiply to 16",
        ),
        (
            changed("encoder.config.latent_dim", 4),
            r"model.encoder.config.latent_dim: is 4, but latent_dim is 4; set encoder.config.latent_dim to 8 \(the "
            "bottleneck splits into mean and scale",
        ),
        (
            changed("latent_dim", 6),
            "model.decoder.config.latent_dim: is 4, but latent_dim is 6; set decoder.config.latent_dim to 6",
        ),
        (changed("io_channels", 1), "model.encoder.config.in_channels: is 2, but io_channels is 1"),
        (changed("out_channels", 3), "model.decoder.config.out_channels: is 2, but out_channels is 3"),
        (changed("encoder.config.dimension", 6, name="seanet"), "encoder.config.dimension: is 6.*dimension to 8"),
        (changed("decoder.config.rates", [8, 2], name="dac"), "decoder.config.rates multiply to 16"),
        (
            changed("bottleneck", {"type": "tanh"}, name="local_attn"),
            "model.encoder.config.out_channels: is 8, but latent_dim is 4; set encoder.config.out_channels to 4",
        ),
        (
            changed("bottleneck", {"type": "wasserstein", "config": {"noise_augment_dim": 2}}, bottleneck=None),
            r"set decoder.config.latent_dim to 6 \(with the noise channels of the bottleneck\)",
        ),
        (
            changed("bottleneck", {"type": "fsq", "config": {"levels": [5, 5]}}, bottleneck=None),
            "model.latent_dim: is 4, but bottleneck.config outputs 2 channels",
        ),
        (changed("encoder.type", "ooblek"), "model.encoder.type: no encoder named 'ooblek'; did you mean 'oobleck'"),
        (
            changed("pretransform", {"type": "patched", "config": {"channels": 2, "patch_size": 4}}),
            "times 4 of",
        ),
    ],
)
def test_mistakes_across_keys_name_both_and_the_right_value(config, message):
    with pytest.raises(ConfigError, match=message):
        create_model_from_config(config)


def test_missing_top_level_keys():
    with pytest.raises(ConfigError, match="sample_rate: missing"):
        create_autoencoder_from_config({"model": {}})


def test_a_hand_made_autoencoder_without_a_bottleneck():
    class Repeat(nn.Module):
        def forward(self, z):
            return z.repeat_interleave(8, -1)

    model = AudioAutoencoder(nn.AvgPool1d(8), Repeat(), latent_dim=2, downsampling_ratio=8, sample_rate=16000)
    audio = torch.randn(1, 2, 64)
    torch.testing.assert_close(model.decode(model.encode(audio)), nn.AvgPool1d(8)(audio).repeat_interleave(8, -1))
    assert model.is_discrete is False
