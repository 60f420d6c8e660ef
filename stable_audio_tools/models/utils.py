"""Published names only."""

import os
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from stable_audio_tools.models.autoencoders.weight_norm import remove_weight_norm_from_model
from stable_audio_tools.models.checkpoints.loading import copy_state_dict, load_ckpt_state_dict
from stable_audio_tools.models.lm.generation import sample_tokens

__all__ = [
    "compile",
    "copy_state_dict",
    "enable_torch_compile",
    "load_ckpt_state_dict",
    "load_file",
    "multinomial",
    "next_multiple_of_64",
    "next_power_of_two",
    "remove_weight_norm_from_model",
    "sample_top_k",
    "sample_top_p",
]


enable_torch_compile = os.environ.get("ENABLE_TORCH_COMPILE", "0") == "1"


def compile(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Compile a function if ENABLE_TORCH_COMPILE=1 is set in the environment; otherwise return it unchanged."""
    return torch.compile(function, *args, **kwargs) if enable_torch_compile else function


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw indices (..., num_samples) with the probabilities on the last axis."""
    if num_samples == 1:
        return sample_tokens(input.log(), generator=generator)[..., None]
    rows: Any = torch.multinomial(input.reshape(-1, input.shape[-1]), num_samples, replacement, generator=generator)
    drawn: Tensor = rows.reshape(*input.shape[:-1], num_samples)
    return drawn


def sample_top_k(probs: Tensor, k: int) -> Tensor:
    """Draw one of the k likeliest tokens, (..., 1), with its probability."""
    return sample_tokens(probs.log(), top_k=k)[..., None]


def sample_top_p(probs: Tensor, p: float) -> Tensor:
    """Draw one of the likeliest tokens whose probabilities add up to p, (..., 1)."""
    return sample_tokens(probs.log(), top_p=p)[..., None]


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def next_multiple_of_64(n: int) -> int:
    """Return the smallest multiple of 64 that is at least n."""
    return -(-n // 64) * 64
