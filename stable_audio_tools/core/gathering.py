"""Processes of one run that hand each other their results, over gloo, whatever devices they use."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.core.ranks import rank, world_size

_TO_JOIN = timedelta(hours=1)  # from the first process that has loaded its model to the last one
_TO_FINISH = timedelta(days=7)  # from the first process that is done to the last one


def check_launcher() -> None:
    """Refuse processes that cannot find each other."""
    if world_size() > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ConfigError("several processes were started, but not told of each other; start them with torchrun")


@contextmanager
def all_processes() -> Iterator[Callable[[Any], list[Any]]]:
    """Yield a function that waits until every process has called it, and returns what each handed in, by rank.

    On leaving, all wait again: a launcher ends all processes when one ends with another status than 0, which so happens
    only after the last one has written everything.
    """
    if world_size() == 1:
        yield lambda given: [given]
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


def _gather(given: Any) -> list[Any]:
    shares: list[Any] = [None] * world_size()
    with _peers_in_reach():
        dist.monitored_barrier(timeout=_TO_FINISH)
        dist.all_gather_object(shares, given)
    return shares


@contextmanager
def _peers_in_reach() -> Iterator[None]:
    """Report in one sentence that another process has gone, which gloo raises as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"another process of this run cannot be reached ({' '.join(str(error).split())[:200]}); see what it said, "
            "and start the command again, which keeps what is complete"
        ) from None
