"""Checkpoints that can be trusted: atomic, complete with random states and data position, written on SIGTERM too."""

import logging
import signal
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_map_only

from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.models.checkpoints.pickles import read_pickle
from stable_audio_tools.training import random_state
from stable_audio_tools.training.foreign_checkpoints import STAMP, is_foreign
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.run_folder import checkpoints_in
from stable_audio_tools.version import __version__

logger = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all, and read without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        # Where this raised, the other processes would wait for rank zero for ever.
        try:
            with atomic_path(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.error("%s was not written (%s); older checkpoints are whole, training goes on", path, reason)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        if not Path(path).is_file():
            raise CheckpointError(f"{path}: no such checkpoint")
        # Mapped tensors would tie the optimiser to a file that is deleted while training goes on.
        loaded: dict[str, Any] = tree_map_only(torch.Tensor, torch.clone, read_pickle(Path(path)))
        return loaded


class Checkpointing(pl.Callback):
    """Saves every `every` steps, on SIGTERM and at the end; keeps the newest `keep` files (-1: all)."""

    def __init__(self, folder: Path, every: int, keep: int, model_config: dict[str, Any]) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.model_config = model_config
        self._saved_step = self._seen_step = -1
        self._process_state: dict[str, Any] | None = None
        self._terminated = False
        self._previous_handler: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._process_state is not None:
            random_state.restore(self._process_state["random"])
            self._process_state = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self._seen_step:  # gradients are being summed; a checkpoint would lose them
            return
        self._seen_step = step
        due = self.every > 0 and step > 0 and step % self.every == 0
        # A scheduler may reach one process a step before another; they must leave together.
        stopping = trainer.strategy.reduce_boolean_decision(self._terminated, all=False)
        if (due or stopping) and step != self._saved_step:
            self.save(trainer)
        if stopping:
            logger.warning("SIGTERM: saved at step %d, stopping; --recover goes on from there", step)
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
        if trainer.global_step != self._saved_step:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> Path | None:
        """Write a checkpoint -> its path, or None where that failed: then the older files stay."""
        path = self.folder / f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            if not path.exists():
                return None
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
        checkpoint[STAMP] = {"version": __version__, "processes": gather(own)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if is_foreign(checkpoint):
            logger.warning(
                "the checkpoint is another program's: the run goes on from its weights, optimisers and step; data and "
                "random numbers begin anew"
            )
            return
        states = checkpoint[STAMP]["processes"]
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


def gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    """What every process gives, in their order, in all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
