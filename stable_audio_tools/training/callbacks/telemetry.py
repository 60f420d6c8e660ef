"""Speed, waiting times and memory of a run; and a trace of some of its steps."""

import logging
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from stable_audio_tools.core.ranks import is_rank_zero
from stable_audio_tools.data.loader import Batch
from stable_audio_tools.training.module import TrainingModule, unwrap_batch

logger = logging.getLogger(__name__)

GIB = 2**30
# Dense operations per second in bfloat16 or float16, by a part of the device's name; the first that fits counts.
PEAK_OPERATIONS = {
    "B200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "RTX 6000 Ada": 364e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "A6000": 155e12,
    "A40": 150e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}
COUNTED_STEPS = (1, 2)  # batches whose operations are counted: one of each network, where two take turns


def peak_operations(device: torch.device, precision: str) -> float | None:
    """Operations per second that the device can do at most, where that is known."""
    if device.type != "cuda" or "16" not in precision:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_OPERATIONS.items() if part in name), None)


class Telemetry(pl.Callback):
    """Logs speed, the split of a step into data and compute, and memory, as means since the last logged step.

    `speed/items_per_second` and `speed/audio_seconds_per_second` are of all processes together. `speed/mfu` is the
    share of the device's peak that the operations of a step come to; activations that are computed again count too.
    """

    def __init__(self, sample_rate: int, peak: float | None = None, counts_operations: bool = True) -> None:
        """`peak`: operations per second of the device, in place of the table; compiled steps cannot be counted."""
        self.sample_rate, self.peak, self.counts_operations = sample_rate, peak, counts_operations
        self._counter: FlopCounterMode | None = None
        self._counted: list[int] = []
        self._batches = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.peak is None:
            self.peak = peak_operations(pl_module.device, str(trainer.precision))
        self._batches, self._counted = 0, []
        self._restart()

    def _restart(self) -> None:
        self._since = self._end = time.perf_counter()
        self._data = 0.0
        self._steps = self._items = 0
        self._seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self._data += time.perf_counter() - self._end
        if self.peak is not None and self.counts_operations and self._batches in COUNTED_STEPS:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._counted.append(self._counter.get_total_flops())
            self._counter = None
        assert isinstance(pl_module, TrainingModule)
        audio, _ = unwrap_batch(batch)
        self._batches += 1
        self._steps += 1
        self._items += len(audio) * trainer.world_size
        self._seconds += len(audio) * trainer.world_size * pl_module.samples_of(audio) / self.sample_rate
        self._end = time.perf_counter()
        if pl_module.logs_now and self._end > self._since:
            self._log(pl_module)
            self._restart()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restart()

    def _log(self, module: TrainingModule) -> None:
        elapsed = self._end - self._since
        values = {
            "speed/items_per_second": self._items / elapsed,
            "speed/audio_seconds_per_second": self._seconds / elapsed,
            "time/data_seconds": self._data / self._steps,
            "time/compute_seconds": (elapsed - self._data) / self._steps,
        }
        if module.device.type == "cuda":
            values["memory/allocated_gib"] = torch.cuda.memory_allocated(module.device) / GIB
            values["memory/peak_gib"] = torch.cuda.max_memory_allocated(module.device) / GIB
        if self._counted and self.peak is not None:
            operations = sum(self._counted) / len(self._counted) * self._steps / elapsed
            values |= {"speed/teraflops": operations / 1e12, "speed/mfu": operations / self.peak}
        in_bar = ("speed/items_per_second", "speed/audio_seconds_per_second", "speed/mfu")
        for name, value in values.items():
            module.log(name, value, prog_bar=name in in_bar, on_step=True)


class Profile(pl.Callback):
    """Writes a trace of `steps` batches, for chrome://tracing or Perfetto, and a table of the costliest operators."""

    SKIPPED = 3  # the first batches are slower than the rest

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self._seen = 0
        self._profiler: profile | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        if self._seen == self.SKIPPED and is_rank_zero():
            activities = [ProfilerActivity.CPU]
            if pl_module.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profiler = profile(activities=activities, record_shapes=True)
            self._profiler.__enter__()

    def on_train_batch_end(self, *_: object) -> None:
        self._seen += 1
        if self._profiler is not None and self._seen == self.SKIPPED + self.steps:
            self._write(self._profiler)

    def on_train_end(self, *_: object) -> None:
        if self._profiler is not None:
            self._write(self._profiler)
        elif self._seen <= self.SKIPPED and is_rank_zero():
            logger.warning("--profile: the run ended before batch %d, where the trace begins", self.SKIPPED + 1)

    def _write(self, profiler: profile) -> None:
        self._profiler = None
        profiler.__exit__(None, None, None)
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
        (self.folder / "operators.txt").write_text(table + "\n")
        logger.info("trace of %d steps: %s", self._seen - self.SKIPPED, self.folder / "trace.json")
