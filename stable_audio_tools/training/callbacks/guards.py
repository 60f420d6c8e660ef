"""Guards: a run that goes wrong says so, with the files at fault, instead of training noise."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.training.run_folder import checkpoints_in

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 20


class NonFiniteGuard(pl.Callback):
    """A gradient that is not finite never reaches the weights.

    `skip` drops the step, `rollback` also goes back to the newest checkpoint, `stop` ends the run. Twenty in a row end
    it in any case. Under float16 mixed precision the loss scaler drops steps as part of its search; those are not
    counted.
    """

    def __init__(self, action: Literal["skip", "rollback", "stop"], checkpoints: Path) -> None:
        self.action, self.checkpoints = action, checkpoints
        self.count, self.in_a_row = 0, 0
        self._files: list[str] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        self._files = files_of(batch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters or gradients_are_finite(parameters):
            self.in_a_row = 0
            return
        self.count += 1
        self.in_a_row += 1
        for parameter in parameters:
            parameter.grad = None
        where = f"step {trainer.global_step}: the gradient is not finite; files: {', '.join(self._files) or 'unknown'}"
        if self.action == "stop" or self.in_a_row >= MOST_IN_A_ROW:
            raise UserError(
                f"{where}. Stopped after {self.in_a_row} in a row; lower the learning rate, or look at the files"
            )
        logger.warning("%s. The step is dropped (%d so far)", where, self.count)
        if self.action == "rollback":
            self._roll_back(trainer)

    def _roll_back(self, trainer: pl.Trainer) -> None:
        saved = checkpoints_in(self.checkpoints)
        if not saved:
            logger.warning("there is no checkpoint to go back to yet")
            return
        checkpoint = trainer.strategy.load_checkpoint(saved[-1])
        trainer.strategy.load_model_state_dict(checkpoint, strict=False)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        logger.warning("went back to the weights and optimiser of %s", saved[-1])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.count:
            logger.warning("%d steps were dropped because the gradient was not finite", self.count)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = int(state_dict["count"])


def gradients_are_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """One reduction over all gradients, one look at the result."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients, ord=math.inf)
    return bool(torch.isfinite(torch.stack([norm.float() for norm in norms])).all())


def files_of(batch: Any) -> list[str]:
    """The file names that a batch's metadata holds."""
    if not (isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[1], list | tuple)):
        return []
    entries = [entry for entry in batch[1] if isinstance(entry, dict)]
    return [str(entry.get("path") or entry["relpath"]) for entry in entries if "path" in entry or "relpath" in entry]


def require_trainable(module: nn.Module) -> None:
    """A run with nothing to train is a mistake in the config."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(
            "nothing would be trained: every parameter is frozen; look at the requires_grad keys of the model config"
        )


def out_of_memory_advice(error: BaseException, batch_size: int) -> str:
    """What to try, with numbers, when the device's memory runs out."""
    needed = str(error).splitlines()[0] if str(error) else "out of memory"
    halved = max(1, batch_size // 2)
    return (
        f"out of memory ({needed}). Try: --batch-size {halved} --accum-batches {max(2, batch_size // halved)}; "
        "--checkpointing on; --precision bf16-mixed; pre-encoded latents (scripts/pre_encode.py)"
    )
