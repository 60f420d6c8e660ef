"""The base of all training modules: averaged weights, a state per process, an export."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from stable_audio_tools.core.config import Key
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.data.loader import Batch, ItemInfo
from stable_audio_tools.models.checkpoints import save_weights
from stable_audio_tools.models.checkpoints.sharded import Checkpoint
from stable_audio_tools.models.checkpoints.upgrades import Target, apply_upgrades
from stable_audio_tools.training import random_state
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.gradients import clip_gradients, gradient_norm, unscale, with_gradients
from stable_audio_tools.training.optims import Group
from stable_audio_tools.training.timesteps import TimestepLaw

logger = logging.getLogger(__name__)

# Parameters that several training modules have, as a config writes them.
LearningRate = Annotated[
    float | None,
    Key("learning_rate", default=None),
    Field(gt=0, description="rate of the optimiser, without optimizer_configs"),
]
OptimizerConfigs = Annotated[JsonObject | None, Field(description="optimiser and scheduler")]
UseEMA = Annotated[bool, Field(description="keep an average of the weights, and export it")]
PreEncoded = Annotated[bool, Field(description="the data set holds latents")]
ConditionDropout = Annotated[float, Field(ge=0, le=1, description="how often conditions are dropped")]
LawName = Annotated[
    Literal["uniform", "logit_normal", "trunc_logit_normal", "log_snr", "log_snr_uniform"],
    Field(description="law of the noise levels"),
]
LawOptions = Annotated[JsonObject | None, Field(description="options of that law")]
MinSNRGamma = Annotated[
    float | None,
    Field(gt=0, description="weigh errors by min-SNR with this gamma (Hang et al. 2023); usually 5; null: all alike"),
]
ValidationLevels = Annotated[
    Sequence[float], Key(type=list[float] | None, default=None), Field(description="noise levels of validation")
]


RankState = dict[str, Any]  # by name: tensors and plain values, as a checkpoint holds them


class ScheduleFree(Protocol):
    """An optimiser of the package schedulefree."""

    param_groups: list[Group]

    def train(self) -> None: ...

    def eval(self) -> None: ...


class TrainingModule(pl.LightningModule):
    """A LightningModule with an exported model, its averaged weights, and a state per process."""

    # Prefixes of modules that each run builds from its config (losses, teachers): checkpoints leave them out.
    rebuilt: tuple[str, ...] = ()
    timesteps: TimestepLaw | None = None  # law of the noise levels, if there are any
    pre_encoded: bool = False  # whether batches hold latents of the pretransform

    @property
    def weight_average(self) -> WeightAverage | None:
        """The averaged weights, if the run keeps them."""
        return None

    @property
    def exported(self) -> nn.Module:
        """The model that is exported."""
        raise NotImplementedError

    def samples_of(self, audio: Tensor) -> int:
        """Return the length in samples of the audio behind an item of a batch."""
        pretransform = getattr(self.exported, "pretransform", None)
        return audio.shape[-1] * (pretransform.downsampling_ratio if self.pre_encoded and pretransform else 1)

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Copy a batch to the device; masks of padding stay, because only a few of their values are needed there."""
        if not (isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[1], list | tuple)):
            return move_data_to_device(batch, device)  # of another program's loader
        audio, metadata = batch
        moved = tuple(
            {
                key: value if key == "padding_mask" else move_data_to_device(value, device)
                for key, value in entry.items()
            }
            for entry in metadata
        )
        return move_data_to_device(audio, device), moved

    def rank_state(self) -> RankState:
        """Return the state of this process between steps, besides weights and optimisers."""
        return {} if self.timesteps is None else {"timesteps": self.timesteps.state_dict()}

    def load_rank_state(self, state: RankState) -> None:
        """Continue from a `rank_state`."""
        if self.timesteps is not None:
            self.timesteps.load_state_dict(state["timesteps"])

    def export_model(self, path: str, use_safetensors: bool = False) -> None:
        """Write the exported model's weights, averaged where the run keeps averages."""
        target = Path(path).with_suffix(".safetensors" if use_safetensors else ".ckpt")
        with self.judged_weights():
            save_weights(self.exported, target)

    def on_fit_start(self) -> None:
        if self.weight_average is not None and self._schedule_free():
            raise ConfigError(
                "training.use_ema: schedule-free optimisers average the weights themselves; set it to false"
            )

    def on_train_start(self) -> None:
        for optimizer in self._schedule_free():
            optimizer.train()

    def _schedule_free(self) -> list[ScheduleFree]:
        """Return the optimisers of the package schedulefree, whose `eval` puts the averaged weights into the model."""
        optimizers: list[Any] = self.trainer.optimizers
        return [o for o in optimizers if type(o).__module__.startswith("schedulefree.")]

    @contextmanager
    def judged_weights(self) -> Iterator[None]:
        """Put the weights that are validated and exported into the model: the averages, if there are any."""
        free = [o for o in self._schedule_free() if o.param_groups[0]["train_mode"]] if self._trainer else []
        for optimizer in free:
            optimizer.eval()
        try:
            with self.weight_average.swapped_in() if self.weight_average is not None else nullcontext():
                yield
        finally:
            for optimizer in free:
                optimizer.train()

    def on_save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Store the averages of schedule-free optimisers as the weights of the model; loading reverses this."""
        if not self._schedule_free():
            return
        with self.judged_weights():
            checkpoint["state_dict"] = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        for state in checkpoint["optimizer_states"]:
            state["param_groups"] = [
                {**group, "train_mode": False} if "train_mode" in group else group for group in state["param_groups"]
            ]

    def on_validation_start(self) -> None:
        """Validate the averaged weights, and leave the later draws of noise as they are."""
        self._validating = ExitStack()
        self._validating.enter_context(random_state.preserved())
        self._validating.enter_context(self.judged_weights())

    def on_validation_end(self) -> None:
        self._validating.close()

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the weights, without the modules that each run rebuilds."""
        state: dict[str, Tensor] = super().state_dict(*args, **options)
        for name in [name for name in state if name.startswith(self.rebuilt)]:
            del state[name]
        return state

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Convert checkpoints of the original stable-audio-tools, too; DeepSpeed loads its weights itself."""
        if "state_dict" not in checkpoint:
            return
        state = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith(self.rebuilt)}
        for what, count in apply_upgrades(state, Target.of(self)).items():
            logger.info("%s: %d", what, count)
        own = super().state_dict()
        if is_foreign(checkpoint):
            checkpoint["optimizer_states"] = fitted_optimizers(checkpoint, self)
        checkpoint["state_dict"] = {**{name: own[name] for name in own if name.startswith(self.rebuilt)}, **state}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self.clip(optimizer, float(gradient_clip_val or 0.0))

    def clip(self, optimizer: Optimizer, largest: float) -> None:
        """Clip the gradient to a norm of at most `largest` (0: no clipping) and log its former norm."""
        if largest <= 0 and not self.logs_now:
            return
        unscale(self.trainer, optimizer)
        parameters = with_gradients(optimizer)
        if not parameters:  # the guard has dropped them
            return
        norm = clip_gradients(parameters, largest) if largest > 0 else gradient_norm(parameters)
        self.log_terms({"grad_norm": norm}, bar=())

    @property
    def logs_now(self) -> bool:
        """True if the values of this step are logged; only then does anything wait for the device."""
        trainer = self.trainer
        return isinstance(trainer, pl.Trainer) and bool(trainer._logger_connector.should_update_logs)

    def learning_rate(self, index: int = 0) -> float:
        """Return the current rate of an optimiser."""
        return float(self.trainer.optimizers[index].param_groups[0]["lr"])

    def log_terms(
        self, terms: dict[str, Tensor | float], prefix: str = "train", bar: tuple[str, ...] = ("loss",)
    ) -> None:
        """Log values under a prefix, on the steps that are logged; the progress bar shows those in `bar`."""
        if not self.logs_now:
            return
        for name, value in terms.items():
            detached = value.detach() if isinstance(value, Tensor) else value
            self.log(f"{prefix}/{name}", detached, prog_bar=name in bar, on_step=True)


def unwrap_batch(batch: Batch) -> tuple[Tensor, list[ItemInfo]]:
    """Return `(audio, metadata)` without the extra leading dimension that some loaders add."""
    audio, metadata = batch
    if audio.ndim == 4 and audio.shape[0] == 1:
        audio = audio[0]
    return audio, list(metadata)


def same_length(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Cut both to the length of the shorter one, on the last axis."""
    length = min(a.shape[-1], b.shape[-1])
    return a[..., :length], b[..., :length]


STAMP = "stable_audio_tools"  # key of the entries that only checkpoints of this package have


def is_foreign(checkpoint: Checkpoint) -> bool:
    """Return whether another program wrote a checkpoint."""
    return STAMP not in checkpoint


def fitted_optimizers(checkpoint: Checkpoint, module: nn.Module) -> list[Checkpoint]:
    """Return optimiser states of the original stable-audio-tools, numbered as the parameters of `module` are.

    Its optimisers number all parameters of a network in the order of their definition, also frozen ones, which never
    get a state. The names in the checkpoint have the same order, so states find their parameters by name.
    """
    networks = {name: _names(checkpoint["state_dict"], name, child) for name, child in module.named_children()}
    fitted = []
    for state in checkpoint.get("optimizer_states", ()):
        numbered = sum(len(group["params"]) for group in state["param_groups"])
        name = next((name for name, names in networks.items() if len(names) == numbered), None)
        if name is None:
            logger.warning("an optimiser of the checkpoint has %d parameters, as no network here has", numbered)
            fitted.append(dict(state))
            continue
        here = [own for own, p in module.get_submodule(name).named_parameters() if p.requires_grad]
        fitted.append(renumbered(state, networks.pop(name), here))
    return fitted


def renumbered(state: Checkpoint, there: Sequence[str], here: Sequence[str]) -> Checkpoint:
    """Convert a state whose numbers are positions in `there` to one group whose numbers are positions in `here`."""
    place = {name: index for index, name in enumerate(there)}
    entries = {number: state["state"][place[name]] for number, name in enumerate(here) if place[name] in state["state"]}
    group = {**state["param_groups"][0], "params": list(range(len(here)))}
    return {"state": entries, "param_groups": [group]}


def _names(stored: Iterable[str], network: str, child: nn.Module) -> list[str]:
    """Return the parameters of a network in the order of the checkpoint."""
    own = {name for name, _ in child.named_parameters()}
    prefix = f"{network}."
    names = [name.removeprefix(prefix) for name in stored if name.startswith(prefix)]
    return [name for name in names if name in own]
