"""Event handlers of the Generate buttons, which are also the endpoints of the HTTP API."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stable_audio_tools.data.pictures import spectrogram_image
from stable_audio_tools.inference.generation.model import Generated
from stable_audio_tools.inference.sampling.watching import Cancelled
from stable_audio_tools.interface.controls import Arguments
from stable_audio_tools.interface.gallery import Gallery, owner_of
from stable_audio_tools.interface.inputs import checked, read_upload
from stable_audio_tools.interface.pages import Page
from stable_audio_tools.interface.runner import Runner
from stable_audio_tools.interface.widgets import ResultPanel, caption, served

if TYPE_CHECKING:
    from gradio import Progress, Request

Answer = list[object]  # one value per output of the page
_NO_DEFAULT = inspect.Parameter.empty


@dataclass(frozen=True)
class Services:
    """The objects that every handler uses: the gradio module, the model's queue and the stored runs."""

    gr: ModuleType
    runner: Runner
    gallery: Gallery


def generation_handler(services: Services, page: Page, panel: ResultPanel) -> Callable[..., Iterator[Answer]]:
    """Return the function of a page's button; its parameters are the controls and the visitor's token."""
    gr = services.gr

    def handle(*sent: Any) -> Iterator[Answer]:
        *values, token, request, progress = sent
        owner = owner_of(request.username, token, request.session_hash)
        try:
            arguments = checked(page.controls, values)
            yield from _run(services, page, panel, arguments, owner, request, progress)
        except Cancelled:
            yield [None, None, None, None, "Stopped."]
        except ValueError as error:
            raise gr.Error(str(error), title="Cannot generate", print_exception=False) from None
        except torch.OutOfMemoryError:
            message = "The device is out of memory; generate fewer takes at once."
            raise gr.Error(message, print_exception=False) from None

    def parameter(name: str, default: object = _NO_DEFAULT, annotation: object = _NO_DEFAULT) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)

    parameters = [
        parameter(control.name, None if control.kind == "audio" else _NO_DEFAULT) for control in page.controls
    ]
    parameters += [
        parameter("token"),
        parameter("request", annotation=gr.Request),
        parameter("progress", gr.Progress()),
    ]
    # Gradio reads parameter names from here; parameters with and without a default may alternate.
    signature = inspect.Signature(parameters, __validate_parameters__=False)
    handle.__signature__ = signature  # type: ignore[attr-defined]
    handle.__annotations__ = {"request": gr.Request}
    return handle


def _run(
    services: Services,
    page: Page,
    panel: ResultPanel,
    values: dict[str, Any],
    owner: str,
    request: "Request",
    progress: "Progress",
) -> Iterator[Answer]:
    gr, model = services.gr, services.runner.model
    audio = _uploads(page, values, model.sample_rate)
    arguments = page.request(values | {name: (model.sample_rate, clip) for name, clip in audio.items()})
    source_clips = audio.values() if page.shows_source else ()
    pictures = [(spectrogram_image(clip, model.sample_rate), "before") for clip in source_clips]
    started = time.monotonic()
    generated: Generated | None = None
    findings: tuple[Mapping[str, Any], ...] = ()
    yield [None, None, pictures, None, "Working ..."]
    for update in services.runner.run(request.session_hash, page.api_name, arguments, values.get("preview_every", 0)):
        generated, findings = update.generated, update.findings
        if generated is None:
            gallery, status = gr.skip(), gr.skip()
            if update.preview is not None:  # the newest first
                pictures.insert(0, (update.preview.picture, f"after step {update.preview.step}"))
                gallery = list(pictures)
            if update.step and update.total is not None:
                progress((update.step, update.total), desc="Sampling", unit="steps")
            if update.step:
                status = f"Step {update.step}" + ("" if update.total is None else f" of {update.total}")
            yield [gr.skip(), gr.skip(), gallery, gr.skip(), status]
    assert generated is not None, "a run ends with its audio, or raises"
    takes = services.gallery.add(owner, generated, _record(services, page, values, arguments), page.keeps_level)
    files = [served(panel.audio, take.audio) for take in takes]
    captions = [caption(takes[0])] if len(takes) == 1 else [f"seed {take.settings['seed']}" for take in takes]
    final = [*((served(panel.pictures, take.picture), text) for take, text in zip(takes, captions)), *pictures]
    seeds = ", ".join(map(str, generated.seeds))
    seconds, length = time.monotonic() - started, generated.audio.shape[-1] / generated.sample_rate
    yield [
        files[0],
        files,
        final,
        takes[0].settings,
        f"Done in {seconds:.1f} s · {length:.2f} s of audio · seed {seeds}{describe_copies(findings)}",
    ]


def describe_copies(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each passage that the training set contains."""
    return "".join(
        f"\ntake {number}: {copy['start']:.1f} to {copy['end']:.1f} s is a passage of {copy['track']}"
        for number, found in enumerate(findings, 1)
        for copy in found.get("copies", ())
    )


def _record(services: Services, page: Page, values: dict[str, Any], arguments: Arguments) -> dict[str, object]:
    """Return the settings that are stored with a run; uploads are named, not stored."""
    model = services.runner.model
    uploads = {control.name for control in page.controls if control.kind == "audio"}
    settings = {name: Path(value).name if name in uploads and value else value for name, value in values.items()}
    adapters = model.describe_adapters(arguments.get("lora"))
    return {
        "page": page.title,
        "model": model.name,
        "model_type": model.facts.model_type,
        "precision": model.precision,
        "settings": settings,
        **({"adapters": adapters} if adapters else {}),
    }


def _uploads(page: Page, values: dict[str, Any], sample_rate: int) -> dict[str, Tensor]:
    """Decode the uploads of a page, except those that are switched off."""
    off = {"init_audio"} if values.get("use_init") is False else set()
    names = [control.name for control in page.controls if control.kind == "audio" and control.name not in off]
    return {name: read_upload(values[name], sample_rate).samples for name in names if values[name]}
