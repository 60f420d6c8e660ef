"""An estimate of the memory of training before the first step: weights are counted, activations traced.

The trace is a pass over tensors that have shapes and no contents, so it takes almost no memory.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from stable_audio_tools.data.loader import Batch
from stable_audio_tools.models.autoencoders import AudioAutoencoder
from stable_audio_tools.models.diffusion import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.diffusion.wrapper import DiffusionWrapper
from stable_audio_tools.training import random_state
from stable_audio_tools.training.module import TrainingModule, unwrap_batch

logger = logging.getLogger(__name__)

GIB = 2**30
_STATES = {"SGD": 1, "Lion": 1}  # values that an optimiser keeps per parameter; others keep two


class MemoryEstimate(pl.Callback):
    """Logs before the first step the memory that training takes, part by part, and warns if the device has less."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._logged = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self._logged or not trainer.is_global_zero:
            return
        self._logged = True
        assert isinstance(pl_module, TrainingModule)
        parts = weight_parts(pl_module, trainer.optimizers)
        activations = self._activations(trainer, pl_module, batch)
        if activations is not None:
            parts[f"activations of {self.batch_size} items"] = activations
        total = sum(parts.values())
        shares = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())
        rest = "" if activations is not None else ", and activations, which cannot be estimated for this model"
        logger.info("memory: %s; together %s%s", shares, format_bytes(total), rest)
        if pl_module.device.type == "cuda":
            there = torch.cuda.get_device_properties(pl_module.device).total_memory
            if total > there:
                logger.warning(
                    "the device has %s: less than that; take a smaller --batch-size with --accum-batches, "
                    "--checkpointing on, or --base-precision bf16",
                    format_bytes(there),
                )

    def _activations(self, trainer: pl.Trainer, module: TrainingModule, batch: Batch) -> int | None:
        try:
            return traced_activations(trainer, module, batch)
        except Exception as error:  # kernels that know no tensors without contents; the run outlives an estimate
            logger.warning("activations cannot be traced (%s: %s)", type(error).__name__, str(error).partition("\n")[0])
            return None


def weight_parts(module: TrainingModule, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, int]:
    """Return the bytes of weights, gradients and states, which remain from step to step."""
    parameters, buffers = list(module.parameters()), list(module.buffers())
    trained = _size(parameter for parameter in parameters if parameter.requires_grad)
    states = 0
    for optimizer in optimizers:
        kept = _STATES.get(type(optimizer).__name__, 2)
        width = 1 if "8bit" in type(optimizer).__name__ else 4
        states += sum(kept * width * p.numel() for group in optimizer.param_groups for p in group["params"])
    average = module.weight_average
    averaged = _size(average.averaged_state_dict().values()) if average is not None else 0
    return {
        "frozen weights": _size([p for p in parameters if not p.requires_grad] + buffers),
        "trained weights": trained,
        "their gradients": trained,
        "optimiser": states,
        **({"average": averaged} if averaged else {}),
    }


def traced_activations(trainer: pl.Trainer, module: TrainingModule, batch: Batch) -> int | None:
    """Return the bytes that one forward pass keeps for its backward pass; None if unknown, or if weights are packed."""
    with random_state.preserved(), torch.no_grad():
        traced = _pass_of(module, batch)
    if traced is None:
        return None
    network, run = traced
    if not all(parameter.is_floating_point() for parameter in network.parameters()):
        return None
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    stand_ins: dict[int, Tensor] = {id(buffer): mode.from_tensor(buffer) for buffer in network.buffers()}
    for parameter in network.parameters():
        stand_ins[id(parameter)] = nn.Parameter(mode.from_tensor(parameter.detach()), parameter.requires_grad)
    double = copy.deepcopy(network, stand_ins)  # so that nothing a layer remembers comes from the trace
    kept = _SavedTensors(double)
    watching = saved_tensors_hooks(kept.add, lambda tensor: tensor)
    with warnings.catch_warnings(), random_state.preserved(), mode, trainer.precision_plugin.forward_context():
        warnings.simplefilter("ignore", UserWarning)  # layers compare addresses of tensors
        with watching:
            run(double)
    return kept.peak


class _SavedTensors:
    """Counts the bytes kept for the backward pass; recomputed layers keep their outputs, and one of them the rest."""

    def __init__(self, network: nn.Module) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._total = self._start = 0
        self._inside: list[int] = []
        self._outputs = 0
        for module in network.modules():
            layers = getattr(module, "layers", None)
            if getattr(module, "checkpointing", None) is True and isinstance(layers, nn.ModuleList):
                module.checkpointing = False  # type: ignore[assignment]
                for layer in layers:
                    layer.register_forward_pre_hook(self._enter)
                    layer.register_forward_hook(self._leave)

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Weights are there anyway; a tensor that several operations keep counts once.
        if storage._cdata not in self._storages and not isinstance(tensor, nn.Parameter):
            self._storages[storage._cdata] = storage
            self._total += storage.nbytes()
        return tensor

    @property
    def peak(self) -> int:
        return self._total - sum(self._inside) + self._outputs + max(self._inside, default=0)

    def _enter(self, *_: object) -> None:
        self._start = self._total

    def _leave(self, layer: nn.Module, inputs: object, output: Tensor) -> None:
        self._inside.append(self._total - self._start)
        self._outputs += output.untyped_storage().nbytes()


def _pass_of(module: TrainingModule, batch: Batch) -> tuple[nn.Module, Callable[[nn.Module], object]] | None:
    """Return the network that gradients pass, and a call of it on a batch of this shape."""
    audio, metadata = unwrap_batch(batch)
    model = module.exported
    if isinstance(model, AudioAutoencoder):
        return model, lambda network: network.decode(network.encode(_blank(audio.shape, module.device)))
    if not isinstance(model, DiffusionWrapper):
        return None
    ratio = 1 if model.pretransform is None else model.pretransform.downsampling_ratio
    shape = audio.shape if module.pre_encoded else (len(audio), model.io_channels, audio.shape[-1] // ratio)
    conditions: dict[str, Any] = {}
    if isinstance(model, ConditionedDiffusionModelWrapper):
        conditioned = model.conditioner(metadata, module.device) if model.conditioner is not None else {}
        if getattr(module, "inpainting", None) is not None:
            blank = torch.zeros(shape, device=module.device)
            conditioned = {**conditioned, "inpaint_mask": [blank[:, :1]], "inpaint_masked_input": [blank]}
        conditions = model.get_conditioning_inputs(conditioned)

    def run(network: nn.Module) -> object:
        return network(_blank(shape, module.device), _blank((len(audio),), module.device), **conditions)

    return model.model, run


def _blank(shape: Sequence[int], device: torch.device) -> Tensor:
    return torch.zeros(tuple(shape), device=device)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def format_bytes(size: float) -> str:
    """Return a size in MiB, or in GiB from a tenth of one."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
