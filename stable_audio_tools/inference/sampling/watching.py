"""Observation of a running sampler: callback, progress bar, cancellation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.models.diffusion.guidance import Denoiser, Guided

Callback = Callable[[dict[str, Any]], Any]
ProgressCallback = Callable[[int, int | None], Any]  # steps done, steps in all where that is known


class Cancelled(RuntimeError):
    """A generation was stopped from outside."""


class CancelSignal(Protocol):
    """A flag that stops a run; `threading.Event` is one."""

    def is_set(self) -> bool: ...


class Watch:
    """Reports each step to the observers, and checks for cancellation before each pass of the network.

    The callback gets a dict: `x` (b, d, t), its prediction `denoised`, the time `t`, the noise `sigma` and `sigma_hat`,
    and the step's number `i`, all as the sampler of that name publishes them; `step` counts from 1 in every sampler.
    """

    def __init__(
        self,
        callback: Callback | None = None,
        cancel: CancelSignal | None = None,
        progress: ProgressCallback | None = None,
        total: int | None = None,
    ) -> None:
        self._callback, self._cancel, self._progress = callback, cancel, progress
        self._total = total
        self._done = 0

    def step(self, *, x: Tensor, denoised: Tensor, t: Any, sigma: Any, i: int, **more: Any) -> None:
        """Report a finished step."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
        if self._callback is not None:
            state = {"sigma_hat": sigma, **more, "x": x, "denoised": denoised, "t": t, "sigma": sigma, "i": i}
            self._callback({**state, "step": self._done})

    def check(self) -> None:
        """Raise `Cancelled` if the run should stop."""
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("the generation was cancelled")


class WatchedDenoiser:
    """A denoiser that can be stopped between passes.

    The network sees x in the precision of its `weights`, and the time as it is: rounded to bfloat16, neighbouring
    steps would share one. Samplers compute in the precision of x, float32.
    """

    def __init__(self, denoiser: Denoiser, watch: Watch, weights: torch.dtype = torch.float32) -> None:
        self._denoiser, self._watch, self._weights = denoiser, watch, weights

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self._watch.check()
        return self._denoiser(x.to(self._weights), t).to(x.dtype)

    def guided(self, x: Tensor, t: Tensor) -> Guided:
        self._watch.check()
        return self._denoiser.guided(x.to(self._weights), t).to(x.dtype)


@contextmanager
def progress_of(asked: bool | ProgressCallback, total: int | None) -> Iterator[ProgressCallback | None]:
    """Yield the given callback, or for True a bar on stderr if that is a terminal."""
    if not isinstance(asked, bool):
        yield asked
        return
    if not asked:
        yield None
        return
    with progress_bar("sampling", total) as show:
        yield lambda done, _: show(done)
