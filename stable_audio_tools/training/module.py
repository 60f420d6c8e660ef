"""What every training module shares: averaged weights, a state per process, an export."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from stable_audio_tools.core.config import Key
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.checkpoints import save_weights
from stable_audio_tools.models.checkpoints.upgrades import Target, apply_upgrades
from stable_audio_tools.training import random_state
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.gradients import clip_gradients, gradient_norm, unscale, with_gradients
from stable_audio_tools.training.timesteps import TimestepLaw

logger = logging.getLogger(__name__)

# Parameters that several training modules have, as a config writes them.
LearningRate = Annotated[
    float | None,
    Key("learning_rate", default=None),
    Field(gt=0, description="rate of the optimiser, without optimizer_configs"),
]
OptimizerConfigs = Annotated[dict[str, Any] | None, Field(description="optimiser and scheduler")]
UseEMA = Annotated[bool, Field(description="keep an average of the weights, and export it")]
PreEncoded = Annotated[bool, Field(description="the data set holds latents")]
ConditionDropout = Annotated[float, Field(ge=0, le=1, description="how often conditions are dropped")]
LawName = Annotated[
    Literal["uniform", "logit_normal", "trunc_logit_normal", "log_snr", "log_snr_uniform"],
    Field(description="law of the noise levels"),
]
LawOptions = Annotated[dict[str, Any] | None, Field(description="options of that law")]
ValidationLevels = Annotated[
    Sequence[float], Key(type=list[float] | None, default=None), Field(description="noise levels of validation")
]


class TrainingModule(pl.LightningModule):
    """A LightningModule that says what is exported, what is averaged and what each process remembers."""

    # Prefixes of what a run makes anew from its config (losses, teachers): checkpoints do not hold it.
    rebuilt: tuple[str, ...] = ()
    timesteps: TimestepLaw | None = None  # what draws noise levels, where there are any
    pre_encoded: bool = False  # do batches hold what the pretransform makes?

    @property
    def weight_average(self) -> WeightAverage | None:
        """The averaged weights, where the run keeps them."""
        return None

    @property
    def exported(self) -> nn.Module:
        """The model that users get."""
        raise NotImplementedError

    def samples_of(self, audio: Tensor) -> int:
        """How many samples of sound an item of a batch stands for."""
        pretransform = getattr(self.exported, "pretransform", None)
        return audio.shape[-1] * (pretransform.downsampling_ratio if self.pre_encoded and pretransform else 1)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copy a batch to the device; masks of padding stay, because only a few of their values are needed there."""
        if not (isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[1], list | tuple)):
            return move_data_to_device(batch, device)
        audio, metadata = batch
        moved: tuple[dict[str, Any], ...] = tuple(
            {
                key: value if key == "padding_mask" else move_data_to_device(value, device)
                for key, value in entry.items()
            }
            for entry in metadata
        )
        return move_data_to_device(audio, device), moved

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

    def _schedule_free(self) -> list[Any]:
        """Optimisers of the package schedulefree, whose `eval` puts the averaged weights into the model."""
        return [o for o in self.trainer.optimizers if type(o).__module__.startswith("schedulefree.")]

    @contextmanager
    def judged_weights(self) -> Iterator[None]:
        """Inside, the model holds the weights that are validated, shown and exported: averages, where there are any."""
        free = [o for o in self._schedule_free() if o.param_groups[0]["train_mode"]] if self._trainer else []
        for optimizer in free:
            optimizer.eval()
        try:
            with self.weight_average.swapped_in() if self.weight_average is not None else nullcontext():
                yield
        finally:
            for optimizer in free:
                optimizer.train()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Averages of schedule-free optimisers are what a checkpoint's model holds; they find their way back."""
        if not self._schedule_free():
            return
        with self.judged_weights():
            checkpoint["state_dict"] = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        for state in checkpoint["optimizer_states"]:
            state["param_groups"] = [
                {**group, "train_mode": False} if "train_mode" in group else group for group in state["param_groups"]
            ]

    def on_validation_start(self) -> None:
        """Validation judges what is exported, the averaged weights, and changes no later draw of noise."""
        self._validating = ExitStack()
        self._validating.enter_context(random_state.preserved())
        self._validating.enter_context(self.judged_weights())

    def on_validation_end(self) -> None:
        self._validating.close()

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The weights, without what is rebuilt."""
        state = super().state_dict(*args, **options)
        for name in [name for name in state if name.startswith(self.rebuilt)]:
            del state[name]
        return state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checkpoints of the original stable-audio-tools go on here too; DeepSpeed loads its weights itself."""
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
        """Shorten the gradient to a norm of at most `largest` (0: leave it); log the norm that it had."""
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
        """Are the values of this step written? Only then does anything wait for the device."""
        trainer = self.trainer
        return isinstance(trainer, pl.Trainer) and bool(trainer._logger_connector.should_update_logs)

    def learning_rate(self, index: int = 0) -> float:
        """The rate that the optimiser uses now."""
        return float(self.trainer.optimizers[index].param_groups[0]["lr"])

    def log_terms(
        self, terms: dict[str, Tensor | float], prefix: str = "train", bar: tuple[str, ...] = ("loss",)
    ) -> None:
        """Log values under a prefix, on the steps that are logged; those in `bar` also stand in the progress bar."""
        if not self.logs_now:
            return
        for name, value in terms.items():
            detached = value.detach() if isinstance(value, Tensor) else value
            self.log(f"{prefix}/{name}", detached, prog_bar=name in bar, on_step=True)


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


STAMP = "stable_audio_tools"  # the key under which a checkpoint of ours holds what only ours has


def is_foreign(checkpoint: Mapping[str, Any]) -> bool:
    """Did another program write it?"""
    return STAMP not in checkpoint


def fitted_optimizers(checkpoint: Mapping[str, Any], module: nn.Module) -> list[dict[str, Any]]:
    """Return optimiser states of the original stable-audio-tools, numbered as the parameters of `module` are.

    Its optimisers number the parameters of a network in the order of its own code, frozen ones included, which never
    get a state. The names in the checkpoint have the same order, so states find their parameters by name.
    """
    networks = {name: _names(checkpoint["state_dict"], name, child) for name, child in module.named_children()}
    made = []
    for state in checkpoint.get("optimizer_states", ()):
        numbered = sum(len(group["params"]) for group in state["param_groups"])
        name = next((name for name, names in networks.items() if len(names) == numbered), None)
        if name is None:
            logger.warning("an optimiser of the checkpoint has %d parameters, as no network here has", numbered)
            made.append(dict(state))
            continue
        here = [own for own, p in module.get_submodule(name).named_parameters() if p.requires_grad]
        made.append(renumbered(state, networks.pop(name), here))
    return made


def renumbered(state: Mapping[str, Any], there: Sequence[str], here: Sequence[str]) -> dict[str, Any]:
    """A state whose numbers are places in `there`, as one group whose numbers are places in `here`."""
    place = {name: index for index, name in enumerate(there)}
    entries = {number: state["state"][place[name]] for number, name in enumerate(here) if place[name] in state["state"]}
    group = {**state["param_groups"][0], "params": list(range(len(here)))}
    return {"state": entries, "param_groups": [group]}


def _names(stored: Mapping[str, Any], network: str, child: nn.Module) -> list[str]:
    """The parameters of a network in the order of the checkpoint."""
    own = {name for name, _ in child.named_parameters()}
    prefix = f"{network}."
    names = [name.removeprefix(prefix) for name in stored if name.startswith(prefix)]
    return [name for name in names if name in own]
