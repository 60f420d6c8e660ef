"""Guards: a run that goes wrong reports it, with the files at fault, instead of training noise."""

import logging
from pathlib import Path
from typing import Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.data.loader import Batch
from stable_audio_tools.training.gradients import are_finite, scaler_of, with_gradients
from stable_audio_tools.training.run_folder import checkpoints_in

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 20


class LateValue:
    """A small tensor on its way to the host, to be read a step later without waiting for the device."""

    def __init__(self, value: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            value = value.to("cpu", non_blocking=True)  # into pinned memory
            self._event = torch.cuda.Event()
            self._event.record()
        self._value = value

    @property
    def at_hand(self) -> bool:
        """True if reading it waits for nothing, as on a CPU."""
        return self._event is None

    def read(self) -> Tensor:
        """Return the value. A step later it has arrived, unless the host is a whole step ahead of the device."""
        if self._event is not None:
            self._event.synchronize()
        return self._value


class NonFiniteGuard(pl.Callback):
    """A gradient that is not finite never reaches the weights.

    `skip` drops the step, `rollback` also goes back to the newest checkpoint, `stop` ends the run. Twenty in a row end
    it in any case. On a GPU the step is dropped there, and reported one step late, so that Python does not wait.

    Under float16 mixed precision the loss scaler drops steps as part of its search for a scale. Those count only
    where the loss itself is not finite, or where the search does not end.
    """

    def __init__(self, action: Literal["skip", "rollback", "stop"], checkpoints: Path) -> None:
        self.action, self.checkpoints = action, checkpoints
        self.count, self.in_a_row = 0, 0
        self._files: list[str] = []
        self._loss_is_finite: Tensor | None = None  # of all batches that are summed for a step
        self._verdict: _Verdict | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, *_: object
    ) -> None:
        self._files = files_of(batch)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        if scaler_of(trainer) is not None:
            finite = torch.isfinite(loss.detach()).all()
            self._loss_is_finite = finite if self._loss_is_finite is None else self._loss_is_finite & finite

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self._judge(trainer)
        parameters, scaled = with_gradients(optimizer), scaler_of(trainer) is not None
        if not parameters:
            return
        finite = are_finite(parameters)
        if not scaled:
            drop_unless(finite, optimizer, parameters)
        loss_is_finite = finite if self._loss_is_finite is None else self._loss_is_finite
        self._loss_is_finite = None
        flags = LateValue(torch.stack([finite, loss_is_finite.to(finite.device)]))
        self._verdict = _Verdict(flags, trainer.global_step, self._files, scaled)
        if flags.at_hand:
            self._judge(trainer)

    def _judge(self, trainer: pl.Trainer) -> None:
        """Act on the step that was looked at last."""
        verdict, self._verdict = self._verdict, None
        if verdict is None:
            return
        finite, loss_is_finite = verdict.flags.read().tolist()
        if finite:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if verdict.scaled and loss_is_finite and self.in_a_row < MOST_IN_A_ROW:
            return  # the scale was too large, and is halved
        self.count += 1
        files = ", ".join(verdict.files) or "unknown"
        where = f"step {verdict.step}: the gradient is not finite; files: {files}"
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
            logger.warning("no checkpoint has been written yet, so the run keeps its weights")
            return
        checkpoint = trainer.strategy.load_checkpoint(saved[-1])
        trainer.strategy.load_model_state_dict(checkpoint, strict=False)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        logger.warning("went back to the weights and optimiser of %s", saved[-1])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._judge(trainer)
        if self.count:
            logger.warning("%d steps were dropped because the gradient was not finite", self.count)

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.count = int(state_dict["count"])


class _Verdict(NamedTuple):
    """The finiteness of one step."""

    flags: LateValue  # are the gradients finite, and is the loss?
    step: int
    files: list[str]
    scaled: bool


def drop_unless(finite: Tensor, optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    """Keep a gradient that is not finite from the optimiser; on a GPU without waiting for its value.

    Fused optimisers leave out such a step by themselves. Others take one without a gradient: momentum and decay go on.
    """
    if finite.device.type == "cpu":
        if not finite:
            for parameter in parameters:
                parameter.grad = None
    elif getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    else:
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.masked_fill_(~finite, 0.0)


def files_of(batch: object) -> list[str]:
    """Return the file names in the metadata of a batch."""
    if not (isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[1], list | tuple)):
        return []
    entries = [entry for entry in batch[1] if isinstance(entry, dict)]
    return [str(entry.get("path") or entry["relpath"]) for entry in entries if "path" in entry or "relpath" in entry]


def require_trainable(module: nn.Module) -> None:
    """Raise UserError if no parameter is trained."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(
            "nothing would be trained: every parameter is frozen; look at the requires_grad keys of the model config"
        )


def out_of_memory_advice(error: BaseException, batch_size: int) -> str:
    """Return what to try, with numbers, when the memory of the device runs out."""
    needed = str(error).splitlines()[0] if str(error) else "out of memory"
    halved = max(1, batch_size // 2)
    return (
        f"out of memory ({needed}). Try: --batch-size {halved} --accum-batches {max(2, batch_size // halved)}; "
        "--checkpointing on; --precision bf16-mixed; pre-encoded latents (scripts/pre_encode.py)"
    )
