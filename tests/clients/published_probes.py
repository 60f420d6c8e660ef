"""What published helpers compute for small random inputs, by name: the same code runs on any release."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stable_audio_tools.inference.generation import build_mask
from stable_audio_tools.models import blocks
from stable_audio_tools.models import codebook_patterns as patterns
from stable_audio_tools.models.convnext import ConvNeXtDecoder, ConvNeXtEncoder
from stable_audio_tools.models.fsq import DitheredFSQ, leaky_hard_clip
from stable_audio_tools.models.transformer import RunningInstanceNorm, apply_rotary_pos_emb, rotate_half
from stable_audio_tools.models.utils import multinomial, sample_top_k, sample_top_p
from stable_audio_tools.training.losses.auraloss import SpectralConvergenceLoss, STFTMagnitudeLoss
from stable_audio_tools.training.losses.utils import grouped_mmd, mmd


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(module: nn.Module) -> nn.Module:
    """Random weights, by the order of their names."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def probe_blocks() -> Iterator[tuple[str, Tensor]]:
    x = draw(2, 8, 32)
    for kernel in ("linear", "cubic", "lanczos3"):
        yield f"downsample {kernel}", blocks.Downsample1d(kernel)(x)
        yield f"upsample {kernel}", blocks.Upsample1d(kernel)(x)
    yield "upsample channels last", blocks.Upsample1d("cubic", channels_last=True)(x.mT)
    for factor in (1, 2, 3):
        yield f"learned downsample {factor}", fill(blocks.Downsample1d_2(8, 4, factor))(x)
        yield f"learned upsample {factor}", fill(blocks.Upsample1d_2(8, 4, factor))(x)
        yield f"nearest upsample {factor}", fill(blocks.Upsample1d_2(8, 4, factor, True))(x)
    yield "residual", fill(blocks.ResConvBlock(8, 6, 4))(x)
    yield "last residual", fill(blocks.ResConvBlock(8, 6, 8, True))(x)
    yield "attention", fill(blocks.SelfAttention1d(8, 2))(x)
    yield "rms", fill(blocks.RMSNorm(32))(x)
    yield "adaptive rms", fill(blocks.AdaRMSNorm(32, 5))(x, draw(2, 5))
    yield "normalize", blocks.normalize(x)
    yield "forced weight norm", fill(blocks.ForcedWNConv1d(8, 4, 3))(x)
    yield "geglu", fill(blocks.LinearGEGLU(32, 7))(x)
    yield "planes", blocks.expand_to_planes(draw(2, 3), x.shape)
    yield "skip", blocks.SkipBlock(nn.Identity())(x)
    yield "snake", blocks.snake_beta(x, draw(8, 1), draw(8, 1).abs() + 1)


def probe_models() -> Iterator[tuple[str, Tensor]]:
    quantizer, z = DitheredFSQ([3, 5], num_codebooks=2, scale=0.8).eval(), draw(2, 6, 4)
    values, codes = quantizer(z)
    yield "fsq values", values
    yield "fsq codes", codes
    yield "fsq lookup", quantizer.indices_to_codes(codes)
    yield "fsq without tanh", quantizer(z.clamp(-0.7, 0.7), skip_tanh=True)[0]
    yield "leaky clip", leaky_hard_clip(z, 0.1)
    yield "convnext encoder", fill(ConvNeXtEncoder(2, 4, 6, [1, 2], [2, 4]))(draw(1, 2, 64))
    yield "convnext decoder", fill(ConvNeXtDecoder(2, 4, 6, [1, 2], [2, 4], {"glu": True}))(draw(1, 6, 8))
    heads = draw(1, 2, 6, 12)
    yield "rotary", apply_rotary_pos_emb(heads, draw(6, 4).repeat(1, 2))
    yield "half turn", rotate_half(heads)
    norm = RunningInstanceNorm(12).train()
    norm(heads[0])
    yield "running norm", norm(heads[0])


def probe_losses_and_draws() -> Iterator[tuple[str, Tensor]]:
    x = draw(2, 8, 32)
    yield "mmd", mmd(x, x * 1.1, [0.1, 1])
    yield "mmd of channels", mmd(x, x * 1.1, [0.1, 1], dim=1)
    yield "mmd of groups", grouped_mmd(x, x * 1.2, [1], 2)
    a, b = x.abs() + 0.1, (x * 0.7).abs() + 0.1
    yield "magnitude", STFTMagnitudeLoss()(a, b)
    yield "squared magnitude", STFTMagnitudeLoss(log_eps=0.1, log_fac=2, distance="L2")(a, b)
    yield "convergence", SpectralConvergenceLoss()(a, b)
    slopes = {"softnessL": 5, "softnessR": 20}
    yield "mask", build_mask(1000, {"maskstart": 10, "maskend": 80, "marination": 0.2, **slopes})
    probabilities = draw(2, 3, 9).softmax(-1)
    for function, argument in ((sample_top_k, 3), (sample_top_p, 0.5), (multinomial, 1)):
        torch.manual_seed(5)
        yield function.__name__, function(probabilities.clone(), argument)


def probe_patterns() -> Iterator[tuple[str, Tensor]]:
    codes = torch.arange(30).reshape(2, 3, 5)
    providers = [
        patterns.DelayedPatternProvider(3),
        patterns.ParallelPatternProvider(3),
        patterns.UnrolledPatternProvider(3),
        patterns.CoarseFirstPattern(3),
        patterns.MusicLMPattern(3, 3),
    ]
    for provider in providers:
        name, pattern = type(provider).__name__, provider.get_pattern(5)
        sequence, _, mask = pattern.build_pattern_sequence(codes, 99)
        yield name, sequence
        yield f"{name} mask", mask
        yield f"{name} reverted", pattern.revert_pattern_sequence(sequence, 99)[0]
        yield f"{name} steps", torch.tensor(pattern.num_sequence_steps)


def figures() -> dict[str, list[float]]:
    """Of every output: its number of values, their sum, and their sum under alternating weights."""
    with torch.no_grad():
        outputs = {
            name: value.double().flatten()
            for probe in (probe_blocks, probe_models, probe_losses_and_draws, probe_patterns)
            for name, value in probe()
        }
    weights = {len(value): torch.arange(1, len(value) + 1).double().sin() for value in outputs.values()}
    return {
        name: [len(value), float(value.sum()), float(value @ weights[len(value)])] for name, value in outputs.items()
    }
