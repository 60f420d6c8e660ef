"""Selection of device and precision."""

import os
from typing import Literal

import torch

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.ranks import local_rank, world_size

Precision = Literal["auto", "float32", "float16", "bfloat16"]

_NAMES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """Return the named device, or the best available one: CUDA, then Apple's MPS, then the CPU."""
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; use 'cpu', 'cuda', 'cuda:N', 'mps' or 'auto'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {str(device)!r} was requested, but torch finds no CUDA GPU; use 'cpu' or 'auto'")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' was requested, but this machine has no Apple GPU; use 'cpu' or 'auto'")
    return device


def indexed(device: str | torch.device) -> torch.device:
    """Return the device with its index, because "cuda" does not compare equal to "cuda:0"."""
    device = torch.device(device)
    if str(device) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def process_device(name: str | None) -> torch.device:
    """Return the device of this process: one GPU per process if a launcher started several."""
    device = pick_device(name)
    if device == torch.device("cuda") and world_size() > 1:
        device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    if device.type == "cpu" and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        # torchrun sets one thread. That changes rounding, and the files must not depend on the launcher.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return device


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return the torch dtype for a name such as "bf16" or "float16"."""
    if isinstance(name, torch.dtype):
        return name
    if name.lower() not in _NAMES:
        raise UserError(f"unknown precision {name!r}; use one of {', '.join(_NAMES)}")
    return _NAMES[name.lower()]


def pick_dtype(device: torch.device, precision: str | torch.dtype = "auto") -> torch.dtype:
    """Return the dtype for a precision; "auto" is float16 on CUDA and MPS, and float32 on the CPU."""
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return parse_dtype(precision)


def send(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host to a device; copies to a GPU use pinned memory and do not block."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def high_precision(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def peak_memory(device: torch.device) -> int | None:
    """Return the peak number of bytes allocated on a CUDA device; None on other devices."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def use_tf32() -> None:
    """Allow TF32 for float32 products in this process (Nvidia Ampere and later)."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return an autocast context for `dtype`; float32 disables it."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
