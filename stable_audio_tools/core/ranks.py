"""Which process of a distributed run is this? Read from the launcher's environment, before torch starts."""

import os

_RANK = ("RANK", "SLURM_PROCID")
_LOCAL_RANK = ("LOCAL_RANK", "SLURM_LOCALID")
_WORLD_SIZE = ("WORLD_SIZE", "SLURM_NTASKS")


def _first(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)


def rank() -> int:
    """Index of this process among all."""
    return _first(_RANK, 0)


def local_rank() -> int:
    """Index of this process on its machine."""
    return _first(_LOCAL_RANK, 0)


def world_size() -> int:
    """Number of processes."""
    return max(1, _first(_WORLD_SIZE, 1))


def is_rank_zero() -> bool:
    """Is this the process that writes and speaks?"""
    return rank() == 0
