"""What every training module shares: averaged weights, a state per process, an export."""

import logging
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from stable_audio_tools.models.checkpoints import save_weights
from stable_audio_tools.models.checkpoints.upgrades import Target, apply_upgrades
from stable_audio_tools.training import random_state
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.foreign_checkpoints import fitted_optimizers, is_foreign
from stable_audio_tools.training.timesteps import TimestepLaw

logger = logging.getLogger(__name__)


class TrainingModule(pl.LightningModule):
    """A LightningModule that says what is exported, what is averaged and what each process remembers."""

    # Prefixes of what a run makes anew from its config (losses, teachers): checkpoints do not hold it.
    rebuilt: tuple[str, ...] = ()
    timesteps: TimestepLaw | None = None  # what draws noise levels, where there are any

    @property
    def weight_average(self) -> WeightAverage | None:
        """The averaged weights, where the run keeps them."""
        return None

    @property
    def exported(self) -> nn.Module:
        """The model that users get."""
        raise NotImplementedError

    def rank_state(self) -> dict[str, Any]:
        """What this process remembers between steps beyond weights and optimisers."""
        return {} if self.timesteps is None else {"timesteps": self.timesteps.state_dict()}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Go on from a `rank_state`."""
        if self.timesteps is not None:
            self.timesteps.load_state_dict(state["timesteps"])

    def export_model(self, path: str, use_safetensors: bool = False) -> None:
        """Write the exported model's weights, averaged where the run keeps averages."""
        target = Path(path).with_suffix(".safetensors" if use_safetensors else ".ckpt")
        average = self.weight_average
        with average.swapped_in() if average is not None else nullcontext():
            save_weights(self.exported, target)

    def on_validation_start(self) -> None:
        """Validation judges what is exported, the averaged weights, and changes no later draw of noise."""
        self._validating = ExitStack()
        self._validating.enter_context(random_state.preserved())
        if self.weight_average is not None:
            self._validating.enter_context(self.weight_average.swapped_in())

    def on_validation_end(self) -> None:
        self._validating.close()

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The weights, without what is rebuilt."""
        state = super().state_dict(*args, **options)
        for name in [name for name in state if name.startswith(self.rebuilt)]:
            del state[name]
        return state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checkpoints of the original stable-audio-tools go on here too."""
        state = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith(self.rebuilt)}
        for what, count in apply_upgrades(state, Target.of(self)).items():
            logger.info("%s: %d", what, count)
        own = super().state_dict()
        if is_foreign(checkpoint):
            checkpoint["optimizer_states"] = fitted_optimizers(checkpoint, self)
        checkpoint["state_dict"] = {**{name: own[name] for name in own if name.startswith(self.rebuilt)}, **state}

    def learning_rate(self, index: int = 0) -> float:
        """The rate that the optimiser uses now."""
        return float(self.trainer.optimizers[index].param_groups[0]["lr"])

    def log_terms(
        self, terms: dict[str, Tensor | float], prefix: str = "train", bar: tuple[str, ...] = ("loss",)
    ) -> None:
        """Log values under a prefix; those named in `bar` also stand in the progress bar."""
        for name, value in terms.items():
            detached = value.detach() if isinstance(value, Tensor) else value
            self.log(f"{prefix}/{name}", detached, prog_bar=name in bar, on_step=True)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimiser should get."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def unwrap_batch(batch: Any) -> tuple[Tensor, list[dict[str, Any]]]:
    """`(audio, metadata)`, without the extra leading dimension that some loaders add."""
    audio, metadata = batch
    if audio.ndim == 4 and audio.shape[0] == 1:
        audio = audio[0]
    return audio, list(metadata)


def same_length(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both cut to the shorter, on the last axis."""
    length = min(a.shape[-1], b.shape[-1])
    return a[..., :length], b[..., :length]
