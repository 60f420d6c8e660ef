"""Checkpoints that can be trusted: atomic, complete with random states and data position, written on SIGTERM too."""

import logging
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from stable_audio_tools.config import CheckpointError
from stable_audio_tools.system.files import atomic_path
from stable_audio_tools.training import random_state
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.run_folder import checkpoints_in
from stable_audio_tools.version import __version__

logger = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all, and read without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such checkpoint") from None
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path}: not a readable training checkpoint ({first})") from None
        except Exception as error:
            raise CheckpointError(f"{path}: refused, it holds more than tensors and plain values") from error
        return loaded


class Checkpointing(pl.Callback):
    """Saves every `every` steps, on SIGTERM and at the end; keeps the newest `keep` files (-1: all)."""

    def __init__(self, folder: Path, every: int, keep: int, model_config: dict[str, Any]) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.model_config = model_config
        self._saved_step = -1
        self._process_state: dict[str, Any] | None = None
        self._terminated = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._process_state is not None:
            random_state.restore(self._process_state["random"])
            self._process_state = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        due = self.every > 0 and step > 0 and step % self.every == 0
        if (due or self._terminated) and step != self._saved_step:
            self.save(trainer)
        if self._terminated:
            logger.warning("SIGTERM: saved at step %d, stopping", step)
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> Path | None:
        """Write a checkpoint; a full disk is reported and training goes on, the older files being whole."""
        path = self.folder / f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
        try:
            trainer.save_checkpoint(path)
        except OSError as error:
            logger.error("%s was not written (%s); older checkpoints are whole, training goes on", path, error)
            return None
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            self._prune(path)
        return path

    def _prune(self, newest: Path) -> None:
        if self.keep < 0:
            return
        older = [path for path in checkpoints_in(self.folder) if path != newest]
        for path in older[: max(len(older) - max(self.keep - 1, 0), 0)]:
            path.unlink(missing_ok=True)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["model_config"] = self.model_config
        own = {"random": random_state.capture(), "module": rank_state(pl_module)}
        checkpoint["stable_audio_tools"] = {"version": __version__, "processes": _gather(own)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = checkpoint.get("stable_audio_tools", {}).get("processes", [])
        if len(states) != trainer.world_size:
            logger.warning(
                "the checkpoint holds the random states of %d processes and this run has %d: what follows is a valid "
                "run, but not the one that would have followed without the interruption",
                len(states),
                trainer.world_size,
            )
            return
        # Building loaders draws random numbers, so the state is put back when the first batch arrives.
        self._process_state = states[trainer.global_rank]
        if isinstance(pl_module, TrainingModule):
            pl_module.load_rank_state(self._process_state["module"])

    def _on_sigterm(self, *_: Any) -> None:
        self._terminated = True


def rank_state(module: pl.LightningModule) -> dict[str, Any]:
    """What the module of this process remembers beyond its weights."""
    return module.rank_state() if isinstance(module, TrainingModule) else {}


def _gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
