"""Callbacks of the training of an adapter: its files, its checkpoints, demos without it, a guard."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
from torch import Tensor

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import CheckpointError, UserError
from stable_audio_tools.models.checkpoints.sharded import Checkpoint
from stable_audio_tools.models.lora import LoraAdapter, save_lora
from stable_audio_tools.training.callbacks.demos import DemoCallback
from stable_audio_tools.training.lora_checkpoint import CHECKPOINT_KEY, describe
from stable_audio_tools.training.module import TrainingModule

logger = logging.getLogger(__name__)

WITHOUT = "_without_adapter"  # end of the names of demos of the base


class AdapterCheckpoints(pl.Callback):
    """Leaves the frozen base out of checkpoints, and adds a description of the adapter."""

    def __init__(self, adapter: LoraAdapter, base_prefix: str, facts: JsonObject) -> None:
        """`base_prefix`: prefix of the tensors of the base in the state dict of the training module."""
        self.adapter, self.base_prefix, self.facts = adapter, base_prefix, facts

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.strict_loading = False  # the base is not there; all else is compared below

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Checkpoint) -> None:
        wanted, found = set(self._own(pl_module.state_dict())), set(self._own(checkpoint["state_dict"]))
        if wanted != found:
            some = sorted(wanted ^ found)[0]
            raise CheckpointError(
                f"the checkpoint and this run differ in {len(wanted ^ found)} tensors, the first {some}; resume with "
                "the config that the run began with"
            )

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Checkpoint) -> None:
        checkpoint["state_dict"] = self._own(checkpoint["state_dict"])
        checkpoint[CHECKPOINT_KEY] = describe(self.adapter, self.facts, trainer.global_step)

    def _own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all tensors except the ones of the base."""
        return {name: tensor for name, tensor in state.items() if not name.startswith(self.base_prefix)}


class AdapterFiles(pl.Callback):
    """Writes the adapter every `every` steps and at the end; keeps the newest `keep` files (-1: all)."""

    def __init__(self, adapter: LoraAdapter, folder: Path, every: int, keep: int, facts: JsonObject) -> None:
        self.adapter, self.folder, self.every, self.keep, self.facts = adapter, folder, every, keep, facts
        self._saved_step = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        if self.every > 0 and trainer.global_step % self.every == 0:
            self.save(trainer, cast(TrainingModule, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer, cast(TrainingModule, pl_module))

    def save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write the file of this step, averaged if the run keeps averages; a failure is logged."""
        step = trainer.global_step
        if step == self._saved_step or not trainer.is_global_zero:
            return
        self._saved_step = step
        path = self.folder / f"step_{step:08d}.safetensors"
        average = module.weight_average
        try:
            with average.swapped_in() if average is not None else nullcontext():
                save_lora(self.adapter, path, metadata={**self.facts, "step": step})
        except CheckpointError as error:
            logger.error("%s; training goes on", error)
            return
        self._prune(path)

    def _prune(self, newest: Path) -> None:
        if self.keep < 0:
            return
        older = sorted(path for path in self.folder.glob("step_*.safetensors") if path != newest)
        for path in older[: max(len(older) - max(self.keep - 1, 0), 0)]:
            path.unlink(missing_ok=True)


class AdapterDemos(pl.Callback):
    """Adds to every demo the same one without the adapter."""

    def __init__(self, adapter: LoraAdapter) -> None:
        self.adapter = adapter

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, DemoCallback):
                callback.variants[WITHOUT] = self._off

    @contextmanager
    def _off(self) -> Iterator[None]:
        self.adapter.enabled = False
        try:
            yield
        finally:
            self.adapter.enabled = True


class AdapterGuard(pl.Callback):
    """Ends a run in which no gradient reaches the adapter; names layers without a gradient at the first step."""

    def __init__(self, adapter: LoraAdapter) -> None:
        self.adapter = adapter
        # With module dropout, layers are left out at random.
        self._looked = adapter.config.module_dropout > 0

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        if not loss.requires_grad:
            paths = self.adapter.targets
            raise UserError(
                f"no gradient reaches the adapter: its {len(paths)} layers ({paths[0]}, ...) take no part in training; "
                "choose others with --include"
            )

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._looked:
            return
        self._looked = True
        layers = dict(self.adapter.layers())
        idle = [path for path, factors in layers.items() if all(p.grad is None for p in factors.parameters())]
        if idle:
            more = f" and {len(idle) - 3} more" if len(idle) > 3 else ""
            logger.warning(
                "%d of %d adapted layers take no part in training: %s%s",
                len(idle),
                len(layers),
                ", ".join(idle[:3]),
                more,
            )
