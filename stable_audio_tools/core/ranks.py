"""Rank and world size of this process, from the process group if it exists, otherwise from the environment.

torchrun and this package's own launch set RANK and WORLD_SIZE, Lightning's launch LOCAL_RANK, NODE_RANK and WORLD_SIZE,
srun SLURM_PROCID and SLURM_STEP_NUM_TASKS. An allocation of several tasks in which one process was started without
srun is a run of one process.
"""

import os
import re
import sys
from types import ModuleType
from typing import Literal, NamedTuple

Launcher = Literal["torchrun", "lightning", "slurm", "none"]


class Launch(NamedTuple):
    """The launcher, and the position it assigned to this process."""

    by: Launcher
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def num_nodes(self) -> int:
        return max(1, self.world_size // self.local_world_size)


def launch() -> Launch:
    """Read the launcher's environment."""
    if (index := _number("RANK")) is not None:
        world = max(1, _number("WORLD_SIZE") or 1)
        # Kubernetes operators start one process per machine and set no local variables.
        per_node = _number("LOCAL_WORLD_SIZE") or (1 if "LOCAL_RANK" not in os.environ else world)
        return Launch("torchrun", index, _number("LOCAL_RANK") or 0, world, per_node)
    if (local := _number("LOCAL_RANK")) is not None and (size := _number("WORLD_SIZE")) is not None:
        per_node = _number("LOCAL_WORLD_SIZE") or size
        return Launch("lightning", (_number("NODE_RANK") or 0) * per_node + local, local, size, per_node)
    return _by_slurm()


def _by_slurm() -> Launch:
    index, tasks = _number("SLURM_PROCID"), slurm_tasks()
    if index is None or tasks == 1:
        return Launch("none")
    nodes = max(1, _number("SLURM_STEP_NUM_NODES") or _number("SLURM_NNODES") or 1)
    per_node = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    per_node_count = int(per_node.group()) if per_node else max(1, tasks // nodes)
    return Launch("slurm", index, _number("SLURM_LOCALID") or 0, tasks, per_node_count)


def slurm_tasks() -> int:
    """Return the number of tasks of this srun step; 1 for a process that srun did not start."""
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return 1
    own = _number("SLURM_STEP_NUM_TASKS")  # srun sets it; the environment of an allocation lacks it
    if own is not None:
        return max(1, own)
    in_step = any(name in os.environ for name in ("SLURM_STEP_ID", "SLURM_STEPID"))
    return max(1, _number("SLURM_NTASKS") or 1) if in_step else 1


def idle_slurm_tasks() -> int:
    """Return the number of tasks allocated by SLURM if this process runs alone in them; 0 otherwise."""
    allocated = _number("SLURM_NTASKS") or 1
    return allocated if allocated > 1 and launch().by == "none" else 0


def rank() -> int:
    """Return the index of this process among all."""
    group = _group()
    return int(group.get_rank()) if group is not None else launch().rank


def local_rank() -> int:
    """Return the index of this process on its machine."""
    return launch().local_rank


def world_size() -> int:
    """Return the number of processes."""
    group = _group()
    return int(group.get_world_size()) if group is not None else launch().world_size


def is_rank_zero() -> bool:
    """Return whether this is the process that writes files and logs."""
    return rank() == 0


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else None


def _group() -> ModuleType | None:
    """Return `torch.distributed` if torch is loaded and a process group exists."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed
