"""Training of two networks in turns: one optimiser each, stepped by hand."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated

from pydantic import Field
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.optimizers import (
    Timing,
    create_optimizer_from_config,
    create_scheduler_from_config,
    optimizer_entry,
)

ClipNorm = Annotated[float, Field(ge=0, description="largest gradient norm; 0: no clipping")]


class AdversarialTraining(TrainingModule):
    """A training module with a generator and, unless it trains alone, a critic.

    `accum_batches` batches are summed before a step of the network whose turn it is. Schedules follow the steps of
    their own optimiser, or epochs where their `interval` says so.
    """

    def __init__(
        self, optimizer_configs: JsonObject, names: list[str], accum_batches: int, clip_grad_norm: float
    ) -> None:
        """`names`: entries of `optimizer_configs`, the generator's first."""
        super().__init__()
        self.automatic_optimization = False
        self.optimizer_configs = {name: optimizer_entry(optimizer_configs, name) for name in names}
        self.accum_batches, self.clip_grad_norm = accum_batches, clip_grad_norm
        self._accumulated = 0
        self._steps = [0] * len(names)  # of each optimiser, since the run or its latest resumption began

    def players(self) -> list[nn.Module]:
        """The networks, in the order of `names`."""
        raise NotImplementedError

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizers, schedulers = [], []
        self._schedules: list[tuple[int, LRScheduler, Timing]] = []
        for index, (config, network) in enumerate(zip(self.optimizer_configs.values(), self.players())):
            optimizers.append(create_optimizer_from_config(config["optimizer"], network))
            if config.get("scheduler") is not None:
                schedulers.append(create_scheduler_from_config(config["scheduler"], optimizers[-1]))
                self._schedules.append((index, schedulers[-1], Timing.of(config["scheduler"])))
        return optimizers, schedulers

    def take_turn(self, loss: Tensor, index: int) -> None:
        """Backward, and after `accum_batches` of them one step of optimiser `index`."""
        optimizers = self.optimizers()
        optimizer = optimizers[index] if isinstance(optimizers, list) else optimizers
        if self._accumulated == 0:
            optimizer.zero_grad()
        self._accumulated += 1
        summed = self._accumulated == self.accum_batches
        with nullcontext() if summed else self._alone():
            self.manual_backward(loss / self.accum_batches)
        if not summed:
            return
        self._accumulated = 0
        optimizer.step()
        self._steps[index] += 1
        for player, schedule, timing in self._schedules:
            if player == index and timing.interval == "step" and self._steps[index] % timing.frequency == 0:
                self._advance(schedule, timing)
        if index == 0 and self.weight_average is not None:
            self.weight_average.update()

    def _alone(self) -> AbstractContextManager[None]:
        """Inside, processes do not exchange gradients: the last of several backward passes does it for all."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def on_train_epoch_end(self) -> None:
        for _, schedule, timing in self._schedules:
            if timing.interval == "epoch" and (self.current_epoch + 1) % timing.frequency == 0:
                self._advance(schedule, timing)

    def _advance(self, schedule: LRScheduler, timing: Timing) -> None:
        if not isinstance(schedule, ReduceLROnPlateau):
            schedule.step()
            return
        value = self.trainer.callback_metrics.get(timing.monitor)
        if value is not None:  # nothing was measured yet
            schedule.step(value)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.clip(optimizer, self.clip_grad_norm)


@contextmanager
def without_gradients(*networks: nn.Module) -> Iterator[None]:
    """Inside the block no parameter of the networks collects a gradient; gradients still pass through them.

    The backward pass belongs inside, because layers may be computed again in it. A critic that only judges costs half
    of its backward pass.
    """
    trained = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
