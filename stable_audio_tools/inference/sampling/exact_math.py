"""Full precision of float32 products on CUDA during a run; the settings of the process are restored after it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_lock = threading.Lock()
_users = 0
_restore: list[Callable[[], None]] = []


@contextmanager
def exact_math(device: torch.device) -> Iterator[None]:
    """Disable TF32, reduced-precision sums and trials of convolution algorithms, as for published figures.

    Runs of several threads may overlap: the first one sets, the last one restores. Without CUDA nothing changes.
    """
    global _users
    if device.type != "cuda":
        yield
        return
    with _lock:
        if _users == 0:
            _restore[:] = _set_exact()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for undo in _restore:
                    undo()


def _set_exact() -> list[Callable[[], None]]:
    """Change the settings; return functions that restore them, to be called in order."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    older = [(cuda, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    newer = [(part, "fp32_precision", "ieee") for part in _parts_with_precision()]
    others = [(cudnn, "benchmark", False), (cuda, "allow_fp16_reduced_precision_reduction", False)]
    products = _precision_of_products()
    settings: list[tuple[Any, str, Any]] = [*others, *(older if products else ()), *newer]
    undo: list[Callable[[], None]] = [
        partial(setattr, owner, name, getattr(owner, name)) for owner, name, _ in settings
    ]
    if products:
        # The older names change one another and the newer ones, so these are set back last.
        undo.insert(len(undo) - len(newer), partial(torch.set_float32_matmul_precision, products))
    for owner, name, value in settings:
        setattr(owner, name, value)
    return undo


def _parts_with_precision() -> list[Any]:
    """Return the backends with a separate precision (torch 2.9 and later); the older names also affect the CPU."""
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return []
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]


def _precision_of_products() -> str | None:
    """Return the older setting; None if torch refuses to read it because the newer settings differ."""
    try:
        _ = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
