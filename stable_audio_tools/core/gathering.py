"""Exchange of results between the processes of a run, over gloo, independent of their devices."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, TypeVar

import torch.distributed as dist

from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.core.ranks import rank, world_size

T = TypeVar("T")


class Gather(Protocol):
    """Collects one value from each process, by rank."""

    def __call__(self, value: T, /) -> list[T]: ...


_TO_JOIN = timedelta(hours=1)  # wait for the last process to load its model
_TO_FINISH = timedelta(days=7)  # wait for the last process to finish


def check_launcher() -> None:
    """Refuse a run of several processes without the address of rank zero."""
    if world_size() > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ConfigError("several processes were started without MASTER_ADDR, MASTER_PORT; start them with torchrun")


@contextmanager
def all_processes() -> Iterator[Gather]:
    """Yield a function that collects one value from each process and returns them by rank.

    All processes wait for each other at the end, because a launcher stops all of them when one exits with an error
    status: this way the last one has written its files.
    """
    if world_size() == 1:
        yield lambda value: [value]
        return
    check_launcher()
    try:
        with _peers_in_reach():
            dist.init_process_group("gloo", rank=rank(), world_size=world_size(), timeout=_TO_JOIN)
        yield _gather
        with _peers_in_reach():
            dist.barrier()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _gather(value: T) -> list[T]:
    shares: list[T] = [value] * world_size()
    with _peers_in_reach():
        dist.monitored_barrier(timeout=_TO_FINISH)
        dist.all_gather_object(shares, value)
    return shares


@contextmanager
def _peers_in_reach() -> Iterator[None]:
    """Convert the RuntimeError that gloo raises for a lost process into one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"another process of this run cannot be reached ({' '.join(str(error).split())[:200]}); read its "
            "output, then start the command again: complete files are kept"
        ) from None
