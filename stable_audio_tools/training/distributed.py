"""The processes of one run: started, joined in a group, and agreed on data, checkpoint and failures.

Everything happens before the first step: a process that differs would train on other data, or wait for ever. If one
process fails, all stop with its message.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment

from stable_audio_tools.core import ranks
from stable_audio_tools.core.errors import SharedError, UserError
from stable_audio_tools.data.inventory import Inventory, bucket_sums, digest, lines_in_bucket
from stable_audio_tools.training.settings import TrainSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_GRACE_SECONDS = 20.0  # for the other processes to end by themselves
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


# ------------------------------------------------------------------ start and join


@contextmanager
def joined(settings: TrainSettings) -> Iterator[None]:
    """Start the processes that the settings ask for, unless a launcher did, and join all in one group.

    Inside the block the rank is known and `torch.distributed` works; afterwards this process is alone again.
    """
    if any(word in settings.strategy for word in ("spawn", "fork", "notebook")):
        raise UserError(
            f"--strategy {settings.strategy}: processes are started by torchrun, by srun or by --devices; use ddp"
        )
    if tasks := ranks.idle_slurm_tasks():
        logger.warning(
            "SLURM allocated %d tasks, and this is one process that srun did not start: it trains alone, on all the "
            "data; start it with srun for %d processes",
            tasks,
            tasks,
        )
    per_node = processes_per_node(settings)
    started = ranks.launch().by == "none" and per_node * settings.num_nodes > 1
    if started and settings.devices in ("auto", "-1") and not settings.num_gpus:
        logger.info("training on all %d GPUs of this machine, one process each; --devices 1 takes one", per_node)
    with _started(per_node, settings.num_nodes) if started else nullcontext():
        if ranks.launch().world_size == 1 or dist.is_initialized():
            yield
            return
        _init_group(settings)
        yield
        dist.destroy_process_group()


def processes_per_node(settings: TrainSettings) -> int:
    """Return how many processes a machine gets: by the launcher, or else one for each device that is asked for."""
    place = ranks.launch()
    if place.by != "none":
        return place.local_world_size
    if settings.num_gpus > 0:
        return settings.num_gpus
    accelerator = accelerator_of(settings)
    if "," in settings.devices:
        return len([index for index in settings.devices.split(",") if index])
    if settings.devices in ("auto", "-1"):
        return max(1, torch.cuda.device_count()) if accelerator in ("gpu", "cuda", "auto") else 1
    if not settings.devices.isdigit() or int(settings.devices) < 1:
        raise UserError(f"--devices {settings.devices}: expected a number, a list such as 0,1, or auto")
    return int(settings.devices)


def accelerator_of(settings: TrainSettings) -> str:
    """Return the accelerator for Lightning; without a GPU, auto is the CPU."""
    if settings.num_gpus > 0:
        return "gpu"
    none = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    return "cpu" if settings.accelerator == "auto" and none else settings.accelerator


class Processes(ClusterEnvironment):
    """Lightning's view of `core.ranks`, the same for every launcher."""

    def __init__(self) -> None:
        super().__init__()
        self._place = ranks.launch()
        self._port = int(os.environ.get("MASTER_PORT") or _free_port())

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        return self._port

    @staticmethod
    def detect() -> bool:
        return True

    def world_size(self) -> int:
        return self._place.world_size

    def set_world_size(self, size: int) -> None:
        assert size == self._place.world_size, (size, self._place)

    def global_rank(self) -> int:
        return self._place.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self._place.rank, (rank, self._place)

    def local_rank(self) -> int:
        return self._place.local_rank

    def node_rank(self) -> int:
        return self._place.rank // self._place.local_world_size


def _init_group(settings: TrainSettings) -> None:
    place = ranks.launch()
    if place.by == "slurm":
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
        first = "127.0.0.1" if place.num_nodes == 1 else SLURMEnvironment.resolve_root_node_address(nodes)
        os.environ.setdefault("MASTER_ADDR", first)
        os.environ.setdefault("MASTER_PORT", str(15000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10000))
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"{place.world_size} processes were started, but {' and '.join(missing)}, by which they find each other, "
            "is not set; start them with torchrun or srun"
        )
    backend = "gloo" if accelerator_of(settings) == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, rank=place.rank, world_size=place.world_size)


@contextmanager
def _started(per_node: int, nodes: int) -> Iterator[None]:
    """Start this command again for the other devices of this machine, and give each process its place."""
    node = int(os.environ.get("NODE_RANK", "0"))
    if nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"--num-nodes {nodes}: without torchrun or srun, set NODE_RANK, MASTER_ADDR and MASTER_PORT on each machine"
        )
    before = {name: os.environ.get(name) for name in _VARIABLES}
    common = {
        "WORLD_SIZE": per_node * nodes,
        "LOCAL_WORLD_SIZE": per_node,
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or _free_port(),
    }
    places = [{**common, "RANK": node * per_node + local, "LOCAL_RANK": local} for local in range(per_node)]
    variables = [{name: str(value) for name, value in place.items()} for place in places]
    # A module that -m started has a spec.
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    script = ["-m", spec.name] if spec is not None else [os.path.abspath(sys.argv[0])]  # noqa: PTH100 - a text
    command = [sys.executable, *script, *sys.argv[1:]]
    children = [subprocess.Popen(command, env={**os.environ, **own}) for own in variables[1:]]
    os.environ.update(variables[0])
    done = threading.Event()
    threading.Thread(target=_watch, args=(children, done), daemon=True).start()
    try:
        yield
        done.set()
        _await(children)
    except BaseException:
        done.set()
        _await(children, stop=True)
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _watch(children: Sequence["subprocess.Popen[bytes]"], done: threading.Event) -> None:
    """End this process where another has died: it would wait for that one for ever."""
    while not done.wait(1.0):
        failed = next((child for child in children if child.poll() not in (None, 0)), None)
        if failed is None:
            continue
        if done.wait(_GRACE_SECONDS):  # it may be about to report the same
            return
        logger.error("process %d ended with status %s; stopping the others", failed.pid, failed.returncode)
        for child in children:
            child.kill()
        os._exit(1)


def _await(children: Sequence["subprocess.Popen[bytes]"], stop: bool = False) -> None:
    """Wait for the others to end; those that do not are killed."""
    end = time.monotonic() + _GRACE_SECONDS
    for child in children:
        try:
            child.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            if stop:
                child.send_signal(signal.SIGKILL)
                child.wait()
    if not stop:
        statuses = [child.wait() for child in children]
        if any(statuses):
            raise UserError(f"another process of the run ended with status {max(map(abs, statuses))}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# ------------------------------------------------------------------ agreement


def gather(value: T) -> list[T]:
    """Return the value of every process, in their order, in all of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_zero(value: T) -> T:
    """Return the value of rank zero in every process."""
    return gather(value if ranks.is_rank_zero() else None)[0]  # type: ignore[return-value]


@contextmanager
def together() -> Iterator[None]:
    """Fail in all processes where the block fails in one. Nothing inside may wait for other processes."""
    error: Exception | None = None
    try:
        yield
    except Exception as failure:
        error = failure
    everyone = gather(None if error is None else (isinstance(error, UserError), str(error) or type(error).__name__))
    failed = [(index, report) for index, report in enumerate(everyone) if report is not None]
    if not failed:
        return
    if error is not None and not isinstance(error, UserError):
        raise error
    if len(everyone) == 1 and error is not None:
        raise error
    rank, (_, sentence) = failed[0]
    raise SharedError(sentence if len(failed) == len(everyone) else f"rank {rank}: {sentence}") from error


def require_same(values: Mapping[str, object], advice: str) -> None:
    """Compare values by name; where a process has another one than rank zero, all stop and name it."""
    everyone = gather({name: json.dumps(value, sort_keys=True, default=str) for name, value in values.items()})
    for rank, theirs in enumerate(everyone):
        for name, value in theirs.items():
            if value != everyone[0][name]:
                raise SharedError(
                    f"{name}: rank 0 has {_short(everyone[0][name])}, rank {rank} has {_short(value)}; {advice}"
                )


def require_same_data(inventories: Sequence[Inventory], source: str) -> None:
    """Compare the items that processes see; where they differ, all stop with the name of one that is missing."""
    everyone = gather([(entry.size, entry.digest) for entry in inventories])
    for number, entry in enumerate(inventories):
        differing = [rank for rank, theirs in enumerate(everyone) if theirs[number][1] != everyone[0][number][1]]
        if not differing:
            continue
        sums = gather(bucket_sums(entry.lines()))
        unequal = [
            (rank, index) for rank in differing for index in range(len(sums[0])) if sums[rank][index] != sums[0][index]
        ]
        if not unequal:
            continue
        rank, bucket = unequal[0]
        lines = gather(set(lines_in_bucket(entry.lines(), bucket)))
        missing, more = sorted(lines[0] - lines[rank]), sorted(lines[rank] - lines[0])
        lacking = f"rank {rank} lacks {missing[0]}" if missing else f"rank 0 lacks {more[0]}"
        counts = f"rank 0 sees {everyone[0][number][0]} items, rank {rank} sees {everyone[rank][number][0]}"
        raise SharedError(
            f"{source}: the processes see different data in {entry.name}: {counts}; "
            f"{lacking}; give all machines the same files"
        )


def config_digest(config: Mapping[str, object]) -> str:
    """Return a digest of a JSON config."""
    return digest([json.dumps(config, sort_keys=True).encode()])


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
