"""Device and precision, chosen in one place."""

import os
from typing import Any, Literal

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
    """The named device, or the best present: CUDA, then Apple's MPS, then the CPU."""
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; use 'cpu', 'cuda', 'cuda:N', 'mps' or 'auto'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {str(device)!r} was asked for, but torch sees no CUDA GPU; use 'cpu' or 'auto'")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' was asked for, but this machine has no Apple GPU; use 'cpu' or 'auto'")
    return device


def indexed(device: str | torch.device) -> torch.device:
    """Return the device with its number: "cuda" is the current GPU, and would compare unequal to "cuda:0"."""
    device = torch.device(device)
    if str(device) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def process_device(name: str | None) -> torch.device:
    """The device of this process: its own GPU where a launcher started several."""
    device = pick_device(name)
    if device == torch.device("cuda") and world_size() > 1:
        device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    if device.type == "cpu" and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        # torchrun's default. Sums over fewer threads round otherwise, and files should not tell how they were shared.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return device


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """`"bf16"`, `"float16"`, ... as a torch dtype."""
    if isinstance(name, torch.dtype):
        return name
    if name.lower() not in _NAMES:
        raise UserError(f"unknown precision {name!r}; use one of {', '.join(_NAMES)}")
    return _NAMES[name.lower()]


def pick_dtype(device: torch.device, precision: str | torch.dtype = "auto") -> torch.dtype:
    """The asked precision, or the fast one that is safe on the device: float16 on CUDA and MPS, float32 on the CPU."""
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return parse_dtype(precision)


def send(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to a device; to a GPU from pinned memory, so that nobody waits."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def high_precision(device: torch.device) -> torch.dtype:
    """float64 where the device has it; MPS has not."""
    return torch.float32 if device.type == "mps" else torch.float64


def peak_memory(device: torch.device) -> int | None:
    """Largest number of bytes that torch held on a CUDA device, where it counts them."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def use_tf32() -> None:
    """Let this process compute float32 products in TF32 on GPUs that have it, of Nvidia's Ampere and later."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def autocast(device: torch.device, dtype: torch.dtype) -> Any:
    """Autocast to `dtype`; float32 means no autocast."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
