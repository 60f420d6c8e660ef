"""`--strategy fsdp`: weights, gradients, optimiser states and averages divided among processes (`fully_shard`).

Each layer of a transformer is gathered for its own forward and backward pass; what is around the layers is gathered
once a step. Checkpoints are folders in which each process writes its part, and any number of processes resumes them.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.strategies.strategy import TBroadcast
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.ranks import world_size
from stable_audio_tools.models.checkpoints.sharded import (
    RUN,
    WEIGHTS,
    Checkpoint,
    fill,
    is_sharded,
    joined,
    optimizer_entry,
    read_run,
    split,
    stored_shapes,
)
from stable_audio_tools.models.lm import AudioLanguageModelWrapper
from stable_audio_tools.models.transformer.blocks import TransformerBlock
from stable_audio_tools.training.callbacks.checkpointing import AtomicCheckpointIO, reason_of
from stable_audio_tools.training.module import TrainingModule


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for divided modules, with this package's networks, averages and checkpoints."""

    def __init__(self, param_dtype: torch.dtype | None) -> None:
        """`param_dtype`: the type in which layers are gathered; None: the type of the weights."""
        super().__init__(data_parallel_size=world_size(), tensor_parallel_size=1)
        self.param_dtype = param_dtype

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None and self.model is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        module = self.lightning_module
        assert isinstance(module, TrainingModule)
        shard(module, self.device_mesh["data_parallel"], self.param_dtype)
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        assert self.lightning_module is not None
        return dict(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return dict(inner.state_dict())

    def save_checkpoint(
        self, checkpoint: Checkpoint, filepath: str | Path, storage_options: object | None = None
    ) -> None:
        """Write into a hidden folder that takes its name when every part is there; a failure is logged, not raised."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        path = Path(self.broadcast(str(filepath)))
        part = path.with_name(f".{path.name}.part")
        rest, tensors = split(checkpoint)

        def begin() -> None:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

        def end() -> None:
            torch.save(rest, part / RUN)
            shutil.rmtree(path, ignore_errors=True)
            part.rename(path)

        reason = self._at_rank_zero(begin)
        if reason is None:
            try:
                dcp.save(tensors, checkpoint_id=part)
            except CheckpointException as error:  # raised by all processes where one fails
                reason = reason_of(next(iter(error.failures.values()))[0])
        if reason is None:
            reason = self._at_rank_zero(end)
        if reason is not None and self.is_global_zero:
            shutil.rmtree(part, ignore_errors=True)
            assert isinstance(self.checkpoint_io, AtomicCheckpointIO)
            self.checkpoint_io.report(path, reason)
        self.barrier()

    def _at_rank_zero(self, act: Callable[[], None]) -> str | None:
        """Return in all processes why an action of rank zero failed; None if it did not."""
        reason = None
        if self.is_global_zero:
            try:
                act()
            except (OSError, RuntimeError) as error:
                reason = reason_of(error)
        return self.broadcast(reason)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> Checkpoint:
        """Read a folder in parts, each process its own; a file whole."""
        path = Path(checkpoint_path)
        if not is_sharded(path):
            loaded: Checkpoint = self.checkpoint_io.load_checkpoint(path)
            return loaded
        own, parameters = self.lightning_module_state_dict(), [_parameters(o) for o in self.optimizers]
        tensors: dict[str, Tensor] = {}
        for name, (size, dtype) in stored_shapes(path).items():
            place = optimizer_entry(name)
            like = parameters[place[0]][place[1]] if place is not None else own.get(name.removeprefix(WEIGHTS))
            tensors[name] = _like(torch.empty(size, dtype=dtype), like)
        fill(path, tensors)
        return joined(read_run(path), tensors)

    def load_model_state_dict(self, checkpoint: Mapping[str, Mapping[str, Tensor]], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: _like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, list[Checkpoint]]) -> None:
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"]):
            parameters = _parameters(optimizer)
            state = {
                index: {
                    name: _like(value, parameters[index]) if isinstance(value, Tensor) else value
                    for name, value in entries.items()
                }
                for index, entries in stored["state"].items()
            }
            # The implementation of a step follows this run: a single process may have used the fused one.
            ways = [
                {key: group[key] for key in ("fused", "foreach") if key in group} for group in optimizer.param_groups
            ]
            groups = [{**group, **way} for group, way in zip(stored["param_groups"], ways)]
            optimizer.load_state_dict({**stored, "param_groups": groups, "state": state})

    def broadcast(self, obj: TBroadcast, src: int = 0) -> TBroadcast:
        if not dist.is_initialized():
            return obj
        values = [obj]
        dist.broadcast_object_list(values, src)
        return values[0]


def shard(module: TrainingModule, mesh: DeviceMesh, param_dtype: torch.dtype | None) -> None:
    """Divide every trained network of a training module, and its average."""
    policy = MixedPrecisionPolicy(
        param_dtype=param_dtype, reduce_dtype=torch.float32 if param_dtype else None, cast_forward_inputs=False
    )
    for network in networks(module.exported):
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if not trained:
            continue
        for layer in network.modules():
            if isinstance(layer, TransformerBlock):
                fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        if hasattr(network, "compute_logits"):
            register_fsdp_forward_method(network, "compute_logits")
    whole = [name for name, p in module.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
    if whole:
        raise UserError(f"--strategy fsdp: cannot divide {whole[0]} and {len(whole) - 1} more weights; use ddp")
    if module.weight_average is not None:
        module.weight_average.divide()


def networks(exported: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a model that training calls as a whole."""
    yield exported.lm if isinstance(exported, AudioLanguageModelWrapper) else exported.get_submodule("model")
    conditioner = getattr(exported, "conditioner", None)
    if isinstance(conditioner, nn.Module):
        yield conditioner


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Gather all weights in every process inside the block, so that one can use the model without the others."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.reshard()
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(isinstance(part, TransformerBlock), recurse=False)
            part.reshard()


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _like(value: Tensor, like: Tensor | None) -> Tensor:
    """Divide a whole tensor like another of the same shape."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor) or value.shape != like.shape:
        return value
    # Each process has the whole tensor, so nothing is sent.
    device = value.to(like.device)
    return distribute_tensor(device, like.device_mesh, like.placements, src_data_rank=None)
