"""Demos: audio of the current model, as files in the run folder and in the logger; never fatal."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.seeds import seed_everything
from stable_audio_tools.data.audio_io import write
from stable_audio_tools.data.loader import Batch
from stable_audio_tools.data.pictures import latents_image, spectrogram_image
from stable_audio_tools.inference.generation.model import Inspection
from stable_audio_tools.training import random_state
from stable_audio_tools.training.loggers import log_audio, log_image, log_latents
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.sharding import ShardedStrategy, gathered

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

M = TypeVar("M")

DEMO_SEED = 1234  # the same noise in every demo, so that what changes between two is the model
EARLY_STEP = 100  # something is learnt by then, and few minutes are lost if it is the wrong thing
RECENT_STEPS = 20


class Demo(NamedTuple):
    """One clip, or one picture of latents."""

    name: str
    audio: Tensor | None = None  # (c, n)
    latents: Tensor | None = None  # (d, t)
    caption: str = ""


class DemoCallback(pl.Callback, Generic[M]):
    """Writes demos at step 1, at an early step, then every `demo_every` steps, and at the end of a run."""

    def __init__(
        self, demo_every: int, sample_rate: int, folder: Path | None = None, loader: Iterable[Batch] | None = None
    ) -> None:
        """`loader` provides the batch of the demos; if omitted, they use the batch that was just trained on."""
        self.demo_every, self.sample_rate, self.folder, self.loader = demo_every, sample_rate, folder, loader
        # Other states of the model that are demonstrated too, by the suffix of their files.
        self.variants: dict[str, Callable[[], AbstractContextManager[None]]] = {}
        self.inspection: Inspection | None = None  # a check of every clip, such as `CopyGuard`
        self._copied: list[bool] = []  # of the clips of the demo that is being written
        self._last_step = -1
        self._batch: Batch | None = None
        self._trained_on: Batch | None = None

    @abstractmethod
    def make(self, trainer: pl.Trainer, module: M, batch: Batch) -> Iterator[Demo]:
        """Yield the parts of a demo; the module holds the averaged weights."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self._trained_on = batch
        early = step == EARLY_STEP and self.demo_every > EARLY_STEP
        if ((step - 1) % self.demo_every == 0 or early) and step != self._last_step:
            self._last_step = step
            self.run(trainer, cast(TrainingModule, pl_module), batch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last demo, unless one is only a few steps old or the scheduler takes the machine."""
        taken_away = trainer.should_stop and 0 < trainer.global_step < trainer.max_steps
        batch, self._trained_on = self._trained_on, None
        if batch is not None and trainer.global_step - self._last_step >= RECENT_STEPS and not taken_away:
            self._last_step = trainer.global_step
            self.run(trainer, cast(TrainingModule, pl_module), batch)

    @torch.no_grad()
    def run(self, trainer: pl.Trainer, module: TrainingModule, batch: Batch) -> None:
        """Write one demo now. A demo that fails is logged; training goes on."""
        # Every process holds a part of a divided model, and rank zero needs all parts.
        divided = isinstance(trainer.strategy, ShardedStrategy)
        if not (trainer.is_global_zero or divided):
            return
        # Each module by itself: frozen parts are in eval mode while the rest trains.
        modes = {part: part.training for part in module.modules()}
        with random_state.preserved(), module.judged_weights(), gathered(module) if divided else nullcontext():
            if not trainer.is_global_zero:
                return
            module.eval()
            try:
                for ending, state in {"": nullcontext, **self.variants}.items():
                    seed_everything(DEMO_SEED)
                    with state():
                        for demo in self.make(trainer, cast(M, module), self._held_out(batch)):
                            self._keep(trainer, demo._replace(name=f"{demo.name}{ending}"))
                if self._copied and trainer.logger is not None:
                    share = sum(self._copied) / len(self._copied)
                    trainer.logger.log_metrics({"demo/copied_share": share}, step=trainer.global_step)
            except Exception as error:  # whatever a demo does, the run outlives it
                logger.warning("the demo at step %d failed: %s: %s", trainer.global_step, type(error).__name__, error)
                logger.debug("the demo's traceback", exc_info=True)
            finally:
                self._copied = []
                for part, mode in modes.items():
                    part.training = mode

    def _held_out(self, batch: Batch) -> Batch:
        """Return the loader's first batch, the same in every demo."""
        if self.loader is None:
            return batch
        if self._batch is None:
            self._batch = next(iter(self.loader), batch)
        return self._batch

    def _keep(self, trainer: pl.Trainer, demo: Demo) -> None:
        step = trainer.global_step
        root = self.folder or Path(trainer.default_root_dir) / "demos"
        folder = root / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        if demo.audio is not None:
            audio = torch.nan_to_num(demo.audio.detach().float().cpu())
            path = folder / f"{demo.name}.wav"
            write(path, audio, self.sample_rate, clip=True)
            log_audio(trainer.logger, f"demo/{demo.name}", path, self.sample_rate, step, demo.caption)
            if self.inspection is not None:
                self._look_up(self.inspection, audio, demo.name, step)
            self._picture(trainer, f"{demo.name}_spectrogram", spectrogram_image(audio, self.sample_rate), folder)
        if demo.latents is not None:
            self._picture(trainer, f"{demo.name}_latents", latents_image(demo.latents), folder)
            log_latents(trainer.logger, f"demo/{demo.name}_points", demo.latents, step)

    def _look_up(self, inspection: Inspection, audio: Tensor, name: str, step: int) -> None:
        copies = inspection(audio, self.sample_rate)[1].get("copies", [])
        self._copied.append(bool(copies))
        for copy in copies:
            logger.warning(
                "demo %s at step %d: %.1f to %.1f s is a passage of %s",
                name, step, copy["start"], copy["end"], copy["track"],
            )  # fmt: skip

    def _picture(self, trainer: pl.Trainer, name: str, picture: "Image", folder: Path) -> None:
        path = folder / f"{name}.png"
        picture.save(path)
        log_image(trainer.logger, f"demo/{name}", path, trainer.global_step)


def repeated(conditions: Sequence[JsonObject], count: int) -> list[JsonObject]:
    """Return `count` conditions, starting over at the end."""
    return [dict(conditions[index % len(conditions)]) for index in range(count)]
