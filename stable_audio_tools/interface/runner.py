"""A model that generates one request at a time, reports every step, and stops when the visitor leaves."""

import queue
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from PIL import Image

from stable_audio_tools.data.pictures import spectrogram_image
from stable_audio_tools.inference.generation.decoding import decode_latents
from stable_audio_tools.inference.generation.model import AudioModel, Generated, Inspection
from stable_audio_tools.inference.sampling.watching import Cancelled
from stable_audio_tools.interface.controls import Arguments

_POLL_SECONDS = 0.1


class Preview(NamedTuple):
    """The spectrogram of the denoised audio at one step."""

    step: int
    picture: Image.Image


class Update(NamedTuple):
    """The progress of a run; `total` is set if the number of steps is known."""

    step: int = 0
    total: int | None = None
    preview: Preview | None = None
    generated: Generated | None = None
    findings: tuple[Mapping[str, Any], ...] = ()  # what the inspection found in each item


class Runner:
    """A queue of generations, run one after another in a thread."""

    def __init__(self, model: AudioModel, inspection: Inspection | None = None) -> None:
        self.model, self.inspection = model, inspection
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generation")
        self._stops: dict[tuple[str, str], threading.Event] = {}

    def expect(self, visit: str, page: str) -> None:
        """Register a run that waits for its turn, so that `cancel` reaches it before it starts."""
        stop = self._stops.get((visit, page))
        if stop is None or stop.is_set():
            self._stops[visit, page] = threading.Event()

    def run(self, visit: str, page: str, arguments: Arguments, preview_every: int = 0) -> Iterator[Update]:
        """Yield updates, the last one with the generated audio; closing the iterator stops the run.

        `visit` and `page` identify the run for `cancel`. Raises `Cancelled`, or the model's error for the arguments.
        """
        updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        stop = self._stops.setdefault((visit, page), threading.Event())
        keywords = {**arguments, **self._hooks(updates, stop, preview_every)}
        if stop.is_set():
            self._forget(visit, page, stop)
            raise Cancelled("the generation was cancelled")
        future = self._worker.submit(self._generate, keywords)
        try:
            while not future.done():
                try:
                    yield updates.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    continue
            while not updates.empty():
                yield updates.get_nowait()
            generated, findings = future.result()
            yield Update(generated=generated, findings=findings)
        finally:
            stop.set()
            future.cancel()
            self._forget(visit, page, stop)

    def _generate(self, keywords: Arguments) -> tuple[Generated, tuple[Mapping[str, Any], ...]]:
        generated = self.model.generate(**keywords)
        if self.inspection is None:
            return generated, ()
        checked = [self.inspection(item, generated.sample_rate) for item in generated.audio]
        audio = torch.stack([item for item, _ in checked])
        return generated._replace(audio=audio), tuple(found for _, found in checked)

    def cancel(self, visit: str, page: str) -> bool:
        """Stop a running or waiting run; return whether there was one."""
        stop = self._stops.get((visit, page))
        if stop is not None:
            stop.set()
        return stop is not None

    def _forget(self, visit: str, page: str, stop: threading.Event) -> None:
        if self._stops.get((visit, page)) is stop:
            del self._stops[visit, page]

    def _hooks(self, updates: "queue.SimpleQueue[Update]", stop: threading.Event, preview_every: int) -> Arguments:
        if not self.model.takes("progress"):
            return {}
        hooks: Arguments = {"progress": lambda done, total: updates.put(Update(done, total)), "cancel": stop}
        if preview_every > 0 and self.model.takes("callback"):

            def show(step: Arguments) -> None:
                if step["step"] % preview_every == 0:
                    updates.put(Update(preview=Preview(step["step"], self._picture(step["denoised"]))))

            hooks["callback"] = show
        return hooks

    def _picture(self, denoised: torch.Tensor) -> Image.Image:
        """Draw the first item, decoded in chunks to save memory."""
        with torch.no_grad():
            audio = decode_latents(self.model.module.pretransform, denoised[:1], 128)  # type: ignore[arg-type]
        return spectrogram_image(audio[0], self.model.sample_rate)
