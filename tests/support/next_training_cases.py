"""Losses, critics, filter banks, adapters and latent CLAP of the next generation: what is measured on each."""

from __future__ import annotations

import functools
import tempfile

import numpy as np
import torch

from support.next_cases import STEADY, build, case, conditions, diffusion, dressed, next_generation
from support.parity_figures import fill, load_weights, noise, tone

ADAPTERS = ["lora", "dora", "dora-rows", "dora-cols", "bora", "lora-xs", "dora-rows-xs", "dora-cols-xs", "bora-xs"]


def adapters(kind, rank=3, alpha=6, index=0):
    from stable_audio_tools.models.lora import LoRAParametrization

    def make(name):
        return functools.partial(
            getattr(LoRAParametrization, name), rank=rank, lora_alpha=alpha, adapter_type=kind, lora_index=index
        )

    return {torch.nn.Linear: {"weight": make("from_linear")}, torch.nn.Conv1d: {"weight": make("from_conv1d")}}


def small_net():
    net = torch.nn.Sequential()
    net.add_module("project", torch.nn.Linear(10, 8))
    net.add_module("mix", torch.nn.Conv1d(8, 8, 3))
    return load_weights(net)


def fill_adapters(module):
    from stable_audio_tools.models.lora import get_lora_state_dict

    for name, tensor in get_lora_state_dict(module).items():
        x = torch.from_numpy(np.asarray(fill(name, tensor.shape)))
        tensor.copy_(x if tensor.dim() > 1 else tensor * (1 + x))
    return module


def through(net, x=None):
    x = noise("lora", 2, 8, 12) if x is None else x
    return net.mix(x) + net.project(noise("lora-in", 2, 6, 10)).mean(1)[:, :, None]


@case("lora-adapters")
def _():
    from stable_audio_tools.models.lora import add_lora, disable_lora, enable_lora, merge_lora, set_lora_strength

    keys, out, bare = {}, {}, through(small_net())
    with torch.no_grad():
        for kind in ADAPTERS:
            net = small_net()
            add_lora(net, adapters(kind))
            fresh = through(net)
            fill_adapters(net)
            keys |= {f"{kind}.{k}": list(v.shape) for k, v in net.state_dict().items()}
            out |= {f"{kind}/weight": net.project.weight.clone(), f"{kind}/out": through(net)}
            set_lora_strength(net, 0.5)
            out[f"{kind}/half"] = through(net)
            disable_lora(net)
            assert torch.allclose(fresh, bare, atol=1e-5) and torch.allclose(through(net), bare, atol=1e-5), kind
            enable_lora(net)
            set_lora_strength(net, 1.0)
            merge_lora(net)
            assert not hasattr(net.project, "parametrizations")
            out[f"{kind}/merged"] = through(net)
    return keys, out


@case("lora-model", tolerance=5e-3)
def _():
    from stable_audio_tools.models.lora import add_lora, remove_lora_by_index, set_lora_strength

    model = build(diffusion({**STEADY, "local_add_cond_dim": None}))
    net, cond, x = model.model, conditions(model, 16), noise("x", 2, 8, 16)
    add_lora(
        net, adapters("lora", rank=2, alpha=2), include=["layers.[0-1].self_attn", "to_cond_embed"], exclude=["to_out"]
    )
    add_lora(net, adapters("dora-rows", rank=3, alpha=1, index=1), include=["layers.1"])
    t = torch.tensor([0.3, 0.3])
    with torch.no_grad():
        fill_adapters(net)

        def run(**kw):
            return model(x, t, cond=cond, **kw)

        out = {
            "both": run(),
            "interval": run(lora_interval=(0.5, 1.0)),
            "filtered": run(lora_layer_filter="layers.0, cross_attn"),
            "each": run(
                lora_configs=[
                    {"lora_index": 0, "interval": (0.0, 0.4), "layer_filter": "to_qkv"},
                    {"lora_index": 1, "interval": (0.5, 1.0)},
                ]
            ),
        }
        set_lora_strength(net, 0.3, lora_index=1)
        out["weaker"] = run()
        keys = {k: list(v.shape) for k, v in model.state_dict().items()}
        remove_lora_by_index(net, 0)
        out["one"] = run()
    return keys, out


@case("lora-files", tolerance=5e-3)
def _():
    from stable_audio_tools.models.lora import (
        add_lora,
        get_lora_state_dict,
        load_and_apply_loras,
        load_lora_checkpoint,
        resolve_adapter_type,
        save_lora_safetensors,
    )

    config = diffusion({**STEADY, "local_add_cond_dim": None})
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        paths = []
        for name, kind, include in (("bright", "bora", ["self_attn"]), ("old", "dora-cols", None)):
            donor = build(config)
            add_lora(donor.model, adapters(kind, rank=2, alpha=4), include=include)
            state = {k: v.clone() for k, v in get_lora_state_dict(fill_adapters(donor.model)).items()}
            settings = {"rank": 2, "alpha": 4, "adapter_type": kind, "include": include}
            if name == "old":
                state = {k: v[None] if k.endswith(".magnitude") else v for k, v in state.items()}
                settings["adapter_type"] = "dora"
            paths.append(f"{folder}/{name}.safetensors")
            save_lora_safetensors(state, settings, paths[-1])
        model = build(config)
        names = load_and_apply_loras(model, paths, "diffusion_cond_inpaint")
        state, settings = load_lora_checkpoint(paths[1])
        assert (
            names == ["bright", "old"] and resolve_adapter_type("dora", state) == "dora-cols" and settings["rank"] == 2
        ), (names, settings)
        y = model(noise("x", 2, 8, 16), torch.tensor([0.3, 0.8]), cond=conditions(model, 16))
        return {k: list(v.shape) for k, v in model.state_dict().items()}, {"y": y}


def pair(channels=2, samples=1024, batch=1):
    real = tone(channels, samples, batch=batch)
    return real * 0.8 + 0.05 * noise("fake", batch, channels, samples), real


@case("loss-stft-next")
def _():
    from stable_audio_tools.training.losses import auraloss

    fake, real = pair()
    shared = {"fft_sizes": [256, 128], "hop_sizes": [64, 32], "win_lengths": [256, 128]}
    with next_generation():
        out = {
            name: auraloss.MultiResolutionSTFTLoss(sample_rate=16000, **shared, **kw)(fake, real)
            for name, kw in {
                "plain": {},
                "linear": {"w_lin_mag": 1.0, "w_log_mag": 0.0, "mag_distance": "L2"},
                "phase": {"w_phs": 1.0, "w_sc": 0.0, "w_log_mag": 0.0},
                "cepstrum": {"w_cep": 1.0, "w_sc": 0.0, "w_log_mag": 0.0},
                "weighted": {"perceptual_weighting": True},
                "residual": {"residual_loss": True},
                "mel": {"scale": "mel", "n_bins": [24, 16]},
                "sum": {"reduction": "sum"},
            }.items()
        }
        out["sum-difference"] = auraloss.SumAndDifferenceSTFTLoss(
            sample_rate=16000, perceptual_weighting=True, w_diff=0.5, **shared
        )(fake, real)
        out |= {
            f"full{i}": v
            for i, v in enumerate(
                auraloss.STFTLoss(fft_size=256, hop_size=128, win_length=256, w_phs=0.5, w_lin_mag=0.5, output="full")(
                    fake, real
                )
            )
        }
        out |= {kind: auraloss.FIRFilter(kind, fs=16000)(real)[:, :, 200:300] for kind in ("kw", "aw", "hp", "fd")}
        a, b = noise("a", 2, 9, 8), noise("b", 2, 9, 8)
        out |= {
            "contrast": auraloss.SpectralContrastLoss()(a.abs(), b.abs()),
            "cepstral": auraloss.CepstralLoss(log_eps=0.1)(a, b),
        }
    return {}, out


@case("loss-modules")
def _():
    from stable_audio_tools.training import losses as L
    from stable_audio_tools.training.losses.semantic import MelSpectrogramLoss

    fake, real = pair(batch=2)
    info = {
        "a": fake,
        "b": real,
        "mask": torch.arange(1024)[None].expand(2, -1) % 3 > 0,
        "kl": noise("kl", 1).abs().sum(),
    }
    decaying = L.MSELoss("a", "b", weight=2.0, mask_key="mask", decay=0.9)
    out = {
        "stereo": L.StereoImageLoss("a", "b")(info),
        "time-mmd": L.TimeDomainMMDLoss("a", "b", weight=10.0)({"a": fake * 3, "b": real}),
        "l1": L.L1Loss("a", "b")(info),
        "mse1": decaying(info),
        "mse2": decaying(info),
        "target": L.TargetValueLoss("kl", 0.3, "kl", weight=0.5)(info),
        "dynamic": L.DynamicLossWeighting(0.4)(noise("kl", 1).abs().sum()),
        "grouped": L.grouped_mmd(noise("a", 6, 8, 5), noise("b", 6, 8, 5) * 2, bandwidths=[0.1, 1.0], groups=2) * 10,
        "mel": MelSpectrogramLoss(16000, n_mels=[20, 10], window_lengths=[256, 64])(fake, real),
    }
    return {}, {k: v.detach() for k, v in out.items()}


@case("pretransform-spectral")
def _():
    from stable_audio_tools.models import pretransforms, transforms

    x = tone(2, 512)
    bank = pretransforms.ComplexSTFTPretransform(2, n_fft=32, use_mid_side=True, ema_beta=0.2).train()
    with torch.no_grad():
        trained = bank.encode(x)
        plain = pretransforms.ComplexSTFTPretransform(
            2, n_fft=32, ema_flatten=False, use_compander=False, demodulate=False
        ).encode(x)
        sub = pretransforms.HILPQMFPretransform(2, subbands=4, taps=30, beta=8.0, cutoff_freq=0.14)
        bands = sub.encode(x)
        tight = transforms.tight_one_sided_complex_stft(x[0], 64, hop=16, demod_mode="rot")
        out = {
            "trained": trained[:, :, ::3],
            "psd": bank.psd,
            "plain": plain[:, :, ::3],
            "bands": bands[:, :, ::2],
            "back": sub.decode(bands).flatten(2)[:, :, ::2],
            "tight": torch.view_as_real(tight)[:, ::2, ::3],
            "spectrogram": torch.view_as_real(transforms.TightSpectrogram(n_fft=32)(x))[:, :, ::2, ::3],
            "dct": transforms.dct(x[0, :, :64], norm="ortho"),
            "idct": transforms.idct(x[0, :, :64]),
        }
    return {k: list(v.shape) for m in (bank, sub) for k, v in m.state_dict().items()}, out


@case("psychoacoustic")
def _():
    from stable_audio_tools.models.psychoacoustics import PsychoacousticStereoNoise

    shaper, x = PsychoacousticStereoNoise(sr=16000, n_fft=64, hop=16), tone(2, 400)
    threshold = shaper.calc_threshold(x)
    torch.manual_seed(2)
    return {}, {
        "threshold": 10 * torch.log10(threshold[:, :, ::2, ::2].clamp_min(1e-12)),
        "noise": shaper(x)[:, :, ::2],
    }


def judged(critic, real, fake, names=("dis", "adv", "features")):
    with torch.no_grad():
        result = critic.loss(real, fake)
    return result if isinstance(result, dict) else dict(zip(names, result))


@case("critic-hil")
def _():
    from stable_audio_tools.models.discriminators import HILDiscriminator

    fake, real = (10 * v for v in pair(samples=700))
    shared = {
        "filters": 4,
        "n_ffts": [64, 32],
        "hop_lengths": [16, 8],
        "win_lengths": [64, 32],
        "in_channels": 2,
        "periods": [1, 2, 3],
        "taps": 32,
        "cutoff_freqs": [0, 0.25, 0.17],
        "channels": [4, 6],
        "strides": [3, 1],
        "kernel_sizes": [5, 3],
        "sample_rate": 16000,
    }
    out = {}
    for kind, kw in (("rpgan", {"normalize_losses": True}), ("hinge", {}), ("sigmoid_rpgan", {})):
        critic = dressed(HILDiscriminator(loss_type=kind, **kw, **shared)).eval()
        out |= {f"{kind}/{k}": v for k, v in judged(critic, real, fake).items()}
    with torch.no_grad():
        scores, maps = critic(real)
    return critic, {
        **out,
        **{f"score{i}": s.flatten(1)[:, ::4] for i, s in enumerate(scores)},
        "map": maps[0][0][:, :, ::4, ::4],
    }


@case("critic-transformer")
def _():
    from stable_audio_tools.models.discriminators import MultiTransformerDiscriminator

    fake, real = pair(samples=700)
    critic = dressed(
        MultiTransformerDiscriminator(
            normalize_losses=True,
            patched_kwargs={
                "patch_sizes": [7, 12],
                "depths": [1, 1],
                "strides": [2, 4],
                "sliding_window_widths": [2, 1],
            },
            stft_kwargs={"enabled": True, "n_ffts": [32], "depths": [1], "strides": [2], "sliding_window_widths": [2]},
        )
    ).eval()
    out = judged(critic, real, fake)
    with torch.no_grad():
        scores, maps = critic(real)
    return critic, {**out, **{f"score{i}": s for i, s in enumerate(scores)}, "map": maps[0][-1][:, :, ::48]}


@case("critic-latent")
def _():
    from stable_audio_tools.models.discriminators import LatentAudioCritic, LatentJEPA

    critic = dressed(LatentAudioCritic(12, 8, text_dim=10, transformer_dim=64, depth=1)).eval()
    jepa = dressed(LatentJEPA(8, 64, 1)).eval()
    audio, latent, text = noise("audio", 3, 12, 10), noise("latent", 3, 8, 9), noise("text", 3, 4, 10)
    with torch.no_grad():
        score, features = critic(audio, latent, text, masking=False)
        torch.manual_seed(3)
        loss = critic.loss(audio, latent, text=text, checkpointing=False)
        torch.manual_seed(4)
        predicted = jepa.loss(noise("latents", 2, 8, 60))
        filled = jepa(noise("latents", 2, 8, 12))
    return {
        f"{n}.{k}": list(v.shape) for n, m in (("critic", critic), ("jepa", jepa)) for k, v in m.state_dict().items()
    }, {"score": score, "features": features[:, :, ::4], "loss": loss, "jepa": predicted, "filled": filled}


@case("critic-heads")
def _():
    from stable_audio_tools.models import arc

    real, fake = noise("real", 2, 32, 64), noise("fake", 2, 32, 64) * 0.7 + 0.2
    heads = {
        "strided": arc.ConvDiscriminator(32, hidden_dim=32, soft_clip_scale=2.0, anti_aliased=True),
        "dilated": arc.DilatedConvDiscriminator(32, hidden_dim=32, loss_type="relativistic", dilations=[1, 2]),
        "transformer": arc.TransformerDiscriminator(
            32, hidden_dim=32, depth=1, dim_heads=16, sliding_window=[2, 2], loss_type="relativistic"
        ),
        "scales": arc.MultiScaleTransformerDiscriminator(
            32,
            dim_heads=16,
            checkpointing=False,
            heads=[
                {"name": "local", "stride": 1, "hidden_dim": 32, "depth": 1, "sliding_window": [3, 3]},
                {"name": "global", "stride": 4, "hidden_dim": 32, "depth": 1, "sliding_window": [2, 2]},
            ],
        ),
        "convnext": arc.ConvNeXtDiscriminator(
            in_channels=32,
            channels=16,
            latent_dim=1,
            c_mults=[1, 2],
            strides=[2, 2],
            num_blocks=[1, 1],
            conv_args={"glu": True},
        ),
    }
    out, keys = {}, {}
    for name, head in heads.items():
        dressed(head).eval()
        keys |= {f"{name}.{k}": list(v.shape) for k, v in head.state_dict().items()}
        with torch.no_grad():
            scores = head(real)
            out |= {f"{name}{i}": s for i, s in enumerate(scores if isinstance(scores, list) else [scores])}
            if name in ("dilated", "transformer", "convnext"):
                out |= {f"{name}/{k}": v for k, v in head.loss(real, fake).items()}
    return keys, out


@case("clap-audio")
def _():
    from stable_audio_tools.models.clap import LatentTransformerCLAPAudioBranch

    kw = {"embed_dim": 64, "depth": 1, "dim_heads": 32, "dim_in": 8, "norm_type": "rms_norm"}
    out, keys = {}, {}
    with torch.no_grad():
        for name, branch in {
            "class": LatentTransformerCLAPAudioBranch(noise_config={"embed_dim": 12}, **kw),
            "mean": LatentTransformerCLAPAudioBranch(embed_type="avg_pool", **kw),
        }.items():
            dressed(branch).eval()
            keys |= {f"{name}.{k}": list(v.shape) for k, v in branch.state_dict().items()}
            out[name] = branch(noise("clap", 2, 8, 14))["embedding"]
            if name == "class":
                out["noised"] = branch(noise("clap", 2, 8, 14), noise_levels=torch.tensor([0.25, 0.5]))["embedding"]
    return keys, out
