"""What is known of a U-Net from its config, and mistakes that only several keys together show."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

_TRANSFORMER_GROUPS = 32


def describe(config: SimpleNamespace) -> dict[str, Any]:
    """Facts of a config, for checks against its surroundings."""
    hop = (config.stft_hop_length or 256) if config.use_stft else 1
    return {
        "io_channels": config.in_channels,
        "cond_token_dim": getattr(config, "context_embedding_features", None) or 0,
        "global_cond_dim": config.context_features or 0,
        "input_concat_dim": sum(config.context_channels or ()),
        "prepend_cond_dim": 0,
        "length_multiple": config.patch_size * math.prod(config.factors) * hop,
    }


def check(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Everything below, or only the lengths of the lists where these are wrong."""
    wrong = list(_check_lengths(config))
    yield from wrong
    if not wrong:
        yield from _check_widths(config)
        yield from _check_attention(config)
        yield from _check_context(config)
    yield from _check_spectral(config)


def _check_lengths(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    levels = len(config.multipliers) - 1
    for key in ("factors", "num_blocks"):
        count = len(getattr(config, key))
        if count != levels:
            yield key, f"has {count} entries, multipliers {levels + 1}: give one less than multipliers, {levels}"
    if len(config.attentions) < levels:
        yield (
            "attentions",
            f"has {len(config.attentions)} entries, multipliers {levels + 1}: give {levels + 1}, "
            "the last for the middle",
        )


def _check_widths(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    groups = config.resnet_groups
    for index, width in list(enumerate(widths))[1:]:
        if width % groups:
            yield f"multipliers[{index}]", f"makes {width} channels, no multiple of resnet_groups, {groups}"
    for level, extra in enumerate(list(config.context_channels or ())[1 : len(widths)], 1):
        if extra % groups:
            valid = math.ceil(extra / groups) * groups
            yield f"context_channels[{level}]", f"is {extra}, no multiple of resnet_groups, {groups}: use {valid}"
    if widths[0] % config.patch_size:
        yield "patch_size", f"is {config.patch_size}, and must divide channels x multipliers[0] = {widths[0]}"
    if config.use_context_time and config.channels % 2:
        yield "channels", f"is {config.channels}; the embedding of time needs an even number: use {config.channels + 1}"


def _check_attention(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    levels = len(config.factors)
    attended = [(f"attentions[{level}]", level + 1) for level in range(levels) if config.attentions[level]]
    if config.attentions[-1]:
        attended.append((f"attentions[{len(config.attentions) - 1}]", levels))
    for key, level in dict(attended).items():
        width = config.channels * config.multipliers[level]
        if width % _TRANSFORMER_GROUPS:
            valid = math.ceil(width / _TRANSFORMER_GROUPS) * _TRANSFORMER_GROUPS
            yield key, f"asks for attention at {width} channels, which must be a multiple of 32, such as {valid}"
        if config.attention_features is None and config.attention_heads and width < config.attention_heads:
            yield "attention_heads", f"is {config.attention_heads}, more than the {width} channels at {key}"
        if config.attention_heads is None and config.attention_features and width < config.attention_features:
            yield "attention_features", f"is {config.attention_features}, more than the {width} channels at {key}"
    if attended and config.attention_heads is None and config.attention_features is None:
        yield "attention_heads", "missing; attentions asks for attention: give attention_heads or attention_features"
    if attended and config.attention_multiplier is None:
        yield "attention_multiplier", "missing; attentions asks for attention, whose feed-forward needs it (often 2)"


def _check_context(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    context = list(config.context_channels or ())
    if len(context) > len(config.multipliers):
        yield "context_channels", f"has {len(context)} entries, multipliers {len(config.multipliers)}: give no more"
    for level, blocks in enumerate(config.num_blocks):
        if blocks == 0 and level + 1 < len(context) and context[level + 1]:
            yield f"num_blocks[{level}]", f"is 0; context_channels[{level + 1}] needs a block to take its channels"


def _check_spectral(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if config.use_stft:
        if config.stft_num_fft is None:
            yield "stft_num_fft", "missing; use_stft needs it"
        elif (config.stft_window_length or 1) > config.stft_num_fft:
            yield (
                "stft_window_length",
                f"is {config.stft_window_length}, longer than stft_num_fft, {config.stft_num_fft}",
            )
        return
    for key in ("stft_num_fft", "stft_hop_length", "stft_window_length", "stft_length"):
        if getattr(config, key) is not None:
            yield key, "has no effect without use_stft: true"
    for key in ("use_stft_context", "stft_use_complex"):
        if getattr(config, key):
            yield key, "has no effect without use_stft: true"
