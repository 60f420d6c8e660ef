"""The progress bar, and the dry run that tries a configuration before a long run."""

import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from stable_audio_tools.data.loader import Batch, UnknownLength
from stable_audio_tools.training.adversarial import AdversarialTraining
from stable_audio_tools.training.callbacks.demos import DemoCallback
from stable_audio_tools.training.module import TrainingModule

logger = logging.getLogger(__name__)


class ProgressBar(pl.callbacks.ProgressBar):
    """Shows the step, the number of steps and the time left: a bar on a terminal, log lines elsewhere.

    Values come from the steps that are logged, so that showing them waits for no device.
    """

    def __init__(
        self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False, log_seconds: float = 60.0
    ) -> None:
        super().__init__()
        self.refresh_rate, self.position, self.leave, self.log_seconds = (
            refresh_rate,
            process_position,
            leave,
            log_seconds,
        )
        self._bar: Tqdm | None = None
        self._values = ""

    def disable(self) -> None:
        """Show nothing: Lightning asks this of every process but the first."""
        self.refresh_rate = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began, self._first = time.monotonic(), trainer.global_step
        self._total = total_steps(trainer, pl_module)
        self._reported = self._began
        if trainer.is_global_zero and self.refresh_rate > 0 and sys.stderr.isatty():
            total = self._total or None
            layout = "{desc} {bar}| {postfix}" if total else "{desc} {postfix}"
            self._bar = Tqdm(
                total=total, initial=self._first, position=self.position, leave=self.leave, bar_format=layout
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        logged = isinstance(pl_module, TrainingModule) and pl_module.logs_now
        if logged:
            self._values = shown(trainer.progress_bar_metrics)
        if self._bar is not None:
            if (batch_idx + 1) % self.refresh_rate == 0:
                self._bar.n = trainer.global_step
                self._bar.set_description_str(self.sentence(trainer), refresh=False)
                self._bar.set_postfix_str(self._values, refresh=True)
        elif logged and time.monotonic() - self._reported >= self.log_seconds:
            self._reported = time.monotonic()
            logger.info("%s%s", self.sentence(trainer), f": {self._values}" if self._values else "")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def sentence(self, trainer: pl.Trainer) -> str:
        """`step 279 of 600, 3 min left`."""
        step, total = trainer.global_step, self._total
        if total == 0:
            return f"step {step}, epoch {trainer.current_epoch + 1}"
        done = step - self._first
        elapsed = time.monotonic() - self._began
        left = f", {duration(elapsed / done * (total - step))} left" if done > 0 and step < total else ""
        return f"step {step} of {total}{left}"


def total_steps(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    """Return the step at which a run ends, by steps or by epochs; 0 if it has no end."""
    ends = [trainer.max_steps] if trainer.max_steps > 0 else []
    loader = trainer.train_dataloader
    batches = loader.most_batches if isinstance(loader, UnknownLength) else trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and math.isfinite(batches):
        if isinstance(module, AdversarialTraining):  # sums batches across the ends of epochs
            ends.append(int(batches) * trainer.max_epochs // module.accum_batches)
        else:
            ends.append(math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
    return min(ends, default=0)


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


_UNITS = {
    "speed/items_per_second": "{:.3g} items/s",
    "speed/audio_seconds_per_second": "{:.3g} s of audio/s",
    "speed/mfu": "{:.0%} of peak",
}


def shown(metrics: Mapping[str, float | torch.Tensor]) -> str:
    """Format values for the bar."""
    texts = []
    for name, value in metrics.items():
        if name in _UNITS:
            texts.append(_UNITS[name].format(float(value)))
        elif name != "v_num":
            texts.append(f"{name.removeprefix('train/')} {float(value):.4g}")
    return ", ".join(texts)


class DryRun(pl.Callback):
    """Times one step, writes one demo, and reports the memory that they took."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        seconds = time.perf_counter() - self._start
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, DemoCallback):
                callback.run(trainer, cast(TrainingModule, pl_module), batch)
        logger.info("dry run: one step took %.2f s; %s", seconds, _memory(pl_module.device))


def _memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"peak GPU memory {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
    try:
        import resource
    except ImportError:  # Windows
        return "memory is not measured on this platform"
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
