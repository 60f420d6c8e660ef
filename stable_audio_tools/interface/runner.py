"""One model, one generation at a time, told step by step, and stopped when the visitor leaves."""

import queue
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from PIL import Image

from stable_audio_tools.data.pictures import spectrogram_image
from stable_audio_tools.inference.generation.decoding import decode_latents
from stable_audio_tools.inference.generation.model import AudioModel, Generated
from stable_audio_tools.inference.sampling.watching import Cancelled

_POLL_SECONDS = 0.1


class Preview(NamedTuple):
    """What the model makes of it at one step."""

    step: int
    picture: Image.Image


class Update(NamedTuple):
    """Where a run stands; `total` where the number of steps is known."""

    step: int = 0
    total: int | None = None
    preview: Preview | None = None
    made: Generated | None = None


class Runner:
    """Runs generations one after the other in a thread of its own."""

    def __init__(self, model: AudioModel) -> None:
        self.model = model
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generation")
        self._stops: dict[tuple[str, str], threading.Event] = {}

    def expect(self, visit: str, page: str) -> None:
        """A run of that page of a visit waits for its turn: until then, `cancel` is kept for it."""
        stop = self._stops.get((visit, page))
        if stop is None or stop.is_set():
            self._stops[visit, page] = threading.Event()

    def run(self, visit: str, page: str, arguments: Mapping[str, Any], preview_every: int = 0) -> Iterator[Update]:
        """Updates until the last, which holds what was made; closing the iterator stops the run.

        `visit` and `page` are what `cancel` is called with. Raises `Cancelled`, or what the model says of the
        arguments.
        """
        told: queue.SimpleQueue[Update] = queue.SimpleQueue()
        stop = self._stops.setdefault((visit, page), threading.Event())
        keywords = {**arguments, **self._onlookers(told, stop, preview_every)}
        if stop.is_set():
            self._forget(visit, page, stop)
            raise Cancelled("the generation was cancelled")
        future = self._worker.submit(lambda: self.model.generate(**keywords))
        try:
            while not future.done():
                try:
                    yield told.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    continue
            while not told.empty():
                yield told.get_nowait()
            yield Update(made=future.result())
        finally:
            stop.set()
            future.cancel()
            self._forget(visit, page, stop)

    def cancel(self, visit: str, page: str) -> bool:
        """Stop what that page of a visit runs or waits for -> was there anything?"""
        stop = self._stops.get((visit, page))
        if stop is not None:
            stop.set()
        return stop is not None

    def _forget(self, visit: str, page: str, stop: threading.Event) -> None:
        if self._stops.get((visit, page)) is stop:
            del self._stops[visit, page]

    def _onlookers(
        self, told: "queue.SimpleQueue[Update]", stop: threading.Event, preview_every: int
    ) -> dict[str, Any]:
        if not self.model.takes("progress"):
            return {}
        onlookers: dict[str, Any] = {"progress": lambda done, total: told.put(Update(done, total)), "cancel": stop}
        if preview_every > 0 and self.model.takes("callback"):

            def show(step: Mapping[str, Any]) -> None:
                if step["step"] % preview_every == 0:
                    told.put(Update(preview=Preview(step["step"], self._picture(step["denoised"]))))

            onlookers["callback"] = show
        return onlookers

    def _picture(self, denoised: torch.Tensor) -> Image.Image:
        """Spectrogram of the first item, decoded in chunks so that a glance costs little memory."""
        with torch.no_grad():
            audio = decode_latents(self.model.module.pretransform, denoised[:1], 128)  # type: ignore[arg-type]
        return spectrogram_image(audio[0], self.model.sample_rate)
