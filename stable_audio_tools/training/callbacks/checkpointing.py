"""Checkpoints: atomic, with random states and the position in the data, written on SIGTERM too."""

import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TypedDict

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_map_only

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import CheckpointError, UserError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.models.checkpoints.pickles import read_pickle
from stable_audio_tools.models.checkpoints.sharded import Checkpoint, is_sharded, read_sharded
from stable_audio_tools.models.checkpoints.zero import zero_folder
from stable_audio_tools.training import random_state
from stable_audio_tools.training.module import STAMP, RankState, TrainingModule, is_foreign
from stable_audio_tools.training.run_folder import checkpoints_in, remove_checkpoint
from stable_audio_tools.version import __version__

logger = logging.getLogger(__name__)


class ProcessState(TypedDict):
    """The state of one process in a checkpoint."""

    random: random_state.RandomState
    module: RankState


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all, and read without running code."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}  # path -> why it was not written

    def save_checkpoint(self, checkpoint: Checkpoint, path: str | Path, storage_options: object | None = None) -> None:
        # If this raised, the other processes would wait for rank zero for ever.
        try:
            with atomic_path(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError, UserError) as error:  # torch turns a full disk into a RuntimeError
            self.report(path, reason_of(error))

    def report(self, path: str | Path, reason: str) -> None:
        """Log why a checkpoint was not written."""
        self.failures[str(path)] = reason
        logger.error("%s was not written (%s); older checkpoints are whole, training goes on", path, reason)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> Checkpoint:
        path = Path(path)
        if path.is_dir():
            return _read_folder(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint")
        # Mapped tensors would tie the optimiser to a file that is deleted while training goes on.
        loaded: Checkpoint = tree_map_only(torch.Tensor, torch.clone, read_pickle(path))
        return loaded


def reason_of(error: BaseException) -> str:
    """Return the first line of an error."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _read_folder(path: Path) -> Checkpoint:
    if is_sharded(path):
        return read_sharded(path)
    if zero_folder(path) is not None:
        raise CheckpointError(
            f"{path}: DeepSpeed wrote this folder, and only --strategy deepspeed resumes it; --pretrained-ckpt-path "
            "starts a new run from its weights"
        )
    raise CheckpointError(f"{path}: a folder, but not a checkpoint")


SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
_SAME_EVENT_SECONDS = 1.0
_LAST_EVENT = 3
_STATUS = 128 + signal.SIGTERM
_END = b"\0"  # no signal has this number


class Preemption:
    """The signals that ask a run to end: SIGTERM, and SIGUSR1 as `#SBATCH --signal=USR1@120` sends it.

    The first one asks the run to save and to leave. A launcher often sends several for one event, so further ones
    within a second count as the same, and the second event is ignored as well: it must not cost the checkpoint that is
    being written. The third ends a run that hangs. Signals are counted between `begin` and `end` in a thread, because a
    process that waits in a collective operation runs no handlers of Python.
    """

    def __init__(self) -> None:
        self.requested = False
        # Those of now: Lightning puts its own in their place for the time of a run.
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        self._descriptors: tuple[int, int] | None = None
        self._previous_wakeup = -1

    def begin(self) -> None:
        """Handle the signals until `end`; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread() or self._descriptors is not None:
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        self._descriptors = reading, writing
        self._previous_wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._note)
        threading.Thread(target=_count, args=(reading,), daemon=True).start()

    def end(self) -> None:
        """Restore the former handlers."""
        if self._descriptors is None:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.write(self._descriptors[1], _END)
        os.close(self._descriptors[1])
        self._descriptors = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def _count(reading: int) -> None:
    events, latest = 0, -_SAME_EVENT_SECONDS
    while _END not in (received := os.read(reading, 64)):
        now = time.monotonic()
        if not any(number in received for number in SIGNALS) or now - latest < _SAME_EVENT_SECONDS:
            continue
        events, latest = events + 1, now
        if events == _LAST_EVENT:
            logger.error("the third request to end: this process ends now, without a further checkpoint")
            os._exit(_STATUS)
        if events > 1:
            logger.warning("asked again to end; a checkpoint is written first (once more ends the run at once)")
    os.close(reading)


class Checkpointing(pl.Callback):
    """Saves every `every` steps, on SIGTERM and at the end; keeps the newest `keep` checkpoints (-1: all)."""

    def __init__(self, folder: Path, every: int, keep: int, model_config: JsonObject) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.model_config = model_config
        self.saved_on_exception = False
        self._failed: Path | None = None  # the latest checkpoint, if it was not written
        self._saved_step = self._seen_step = -1
        self._process_state: ProcessState | None = None
        self._preemption = Preemption()
        self._poll = Poll()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._preemption.begin()
        self._poll.begin()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        if self._process_state is not None:
            random_state.restore(self._process_state["random"])
            self._process_state = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        step = trainer.global_step
        if step == self._seen_step:  # gradients are being summed; a checkpoint would lose them
            return
        self._seen_step = step
        due = self.every > 0 and step > 0 and step % self.every == 0
        # A scheduler may reach one process a step before another; they must leave together.
        stopping = self._poll.any(self._preemption.requested)
        if (due or stopping) and step != self._saved_step:
            self.save(trainer)
        if stopping:
            if self._failed is None:
                logger.warning("SIGTERM: saved at step %d, stopping; --recover goes on from there", step)
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._poll.end()
        if trainer.global_step != self._saved_step:
            self.save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save if a signal killed the readers of a single process first; several processes could not save together."""
        stopped = self._preemption.requested and is_reader_death(exception) and trainer.world_size == 1
        if stopped:
            self._save_before_leaving(trainer)
        self._preemption.end()

    def _save_before_leaving(self, trainer: pl.Trainer) -> None:
        if trainer.global_step != self._saved_step and self.save(trainer) is None:
            return
        self.saved_on_exception = True
        logger.warning("SIGTERM: saved at step %d; --recover goes on from there", trainer.global_step)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._preemption.end()

    def save(self, trainer: pl.Trainer) -> Path | None:
        """Write a checkpoint and return its path, or None if that failed: then the older files stay."""
        path = self.folder / f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            self._failed = None if path.exists() else path
            if self._failed is not None:
                return None
            self._prune(path)
        return path

    def require_saved(self, trainer: pl.Trainer) -> None:
        """Raise UserError if the last checkpoint of a run that ended was not written."""
        if self._failed is None:
            return
        io = trainer.strategy.checkpoint_io
        reason = io.failures.get(str(self._failed), "") if isinstance(io, AtomicCheckpointIO) else ""
        older = checkpoints_in(self.folder)
        kept = f"the newest whole one is {older[-1]}" if older else "this run has saved nothing"
        reason = reason.removeprefix(f"{self._failed}: ") or "the reason is in the log"
        raise UserError(f"{self._failed}: the last checkpoint was not written ({reason}); {kept}")

    def _prune(self, newest: Path) -> None:
        if self.keep < 0:
            return
        older = [path for path in checkpoints_in(self.folder) if path != newest]
        for path in older[: max(len(older) - max(self.keep - 1, 0), 0)]:
            remove_checkpoint(path)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Checkpoint) -> None:
        checkpoint["model_config"] = self.model_config
        own: ProcessState = {"random": random_state.capture(), "module": on_cpu(rank_state(pl_module))}
        checkpoint[STAMP] = {"version": __version__, "processes": gather_at_rank_zero(own)}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Checkpoint) -> None:
        if is_foreign(checkpoint):
            logger.warning(
                "another program wrote the checkpoint: the run continues from its weights, optimisers and step; "
                "data and random numbers start over"
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


class Poll:
    """One question to all processes after each step; the answer arrives a step later, so no process waits for it."""

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._asked: tuple[dist.Work, torch.Tensor] | None = None

    def begin(self) -> None:
        """Create a group whose messages pass through the host, not through the devices."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")

    def any(self, own: bool) -> bool:
        """Return whether any process answered yes the time before; a single process gets its own answer at once."""
        if self._group is None:
            return own
        answer = self.end()
        flag = torch.tensor([int(own)])
        self._asked = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True), flag
        return answer

    def end(self) -> bool:
        """Wait for the last answer."""
        if self._asked is None:
            return False
        (work, flag), self._asked = self._asked, None
        work.wait()
        return bool(flag.item())


def is_reader_death(error: BaseException) -> bool:
    """Return whether a process that reads data died."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def saved_on_the_way_out(trainer: pl.Trainer) -> bool:
    """Return whether a run that a signal ended saved a checkpoint although an error came first."""
    return any(callback.saved_on_exception for callback in _checkpointing(trainer))


def require_last_checkpoint(trainer: pl.Trainer) -> None:
    """Raise UserError if the last checkpoint of a run that ended was not written."""
    for callback in _checkpointing(trainer):
        callback.require_saved(trainer)


def _checkpointing(trainer: pl.Trainer) -> list[Checkpointing]:
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, Checkpointing)]


def on_cpu(state: RankState) -> RankState:
    """Return the state with its tensors on the CPU."""
    moved: RankState = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), state)
    return moved


def rank_state(module: pl.LightningModule) -> RankState:
    """Return the state of this process's module besides its weights."""
    return module.rank_state() if isinstance(module, TrainingModule) else {}


def gather_at_rank_zero(state: ProcessState) -> list[ProcessState]:
    """Return the states of all processes in their order at rank zero, which writes them; elsewhere the own one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [state]
    states = [state] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(state, states)
    return states or [state]
