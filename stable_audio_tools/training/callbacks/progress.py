"""The progress bar, and the dry run that looks before a long run leaps."""

import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar

from stable_audio_tools.training.callbacks.demos import DemoCallback

logger = logging.getLogger(__name__)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar without its version number."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class DryRun(pl.Callback):
    """Times one step, makes one demo, and reports the memory that they took."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seconds = time.perf_counter() - self._start
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, DemoCallback):
                callback.run(trainer, pl_module, batch)
        logger.info("dry run: one step took %.2f s; %s", seconds, _memory(pl_module.device))


def _memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"peak GPU memory {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
    try:
        import resource
    except ImportError:  # Windows
        return "memory is not measured on this platform"
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
