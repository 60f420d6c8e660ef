"""What happens when a button is pressed or the API is called."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.data.audio_io import Audio
from stable_audio_tools.data.pictures import spectrogram_image
from stable_audio_tools.inference.generation.model import Generated
from stable_audio_tools.inference.sampling.watching import Cancelled
from stable_audio_tools.interface.gallery import Gallery, owner_of
from stable_audio_tools.interface.pages import Page
from stable_audio_tools.interface.runner import Runner, Update
from stable_audio_tools.interface.uploads import read_upload
from stable_audio_tools.interface.values import checked
from stable_audio_tools.interface.widgets import ResultPanel, caption, served


@dataclass(frozen=True)
class Services:
    """What every handler works with; `gr` is the toolkit."""

    gr: Any
    runner: Runner
    gallery: Gallery


def generation_handler(services: Services, page: Page, panel: ResultPanel) -> Callable[..., Iterator[list[Any]]]:
    """The function behind a page's button: a parameter per control, as it was sent, then the visitor's token."""
    gr = services.gr
    names = [control.name for control in page.controls]

    def handle(*given: Any) -> Iterator[list[Any]]:
        *values, token, request, progress = given
        owner = owner_of(request.username, token, request.session_hash)
        try:
            asked = checked(page.controls, values)
            yield from _run(services, page, panel, asked, owner, request.session_hash, progress)
        except Cancelled:
            yield [None, None, None, None, "Stopped."]
        except ValueError as error:
            raise gr.Error(str(error), title="This cannot be made", print_exception=False) from None
        except torch.OutOfMemoryError:
            raise gr.Error("The memory of the device is full; ask for fewer takes.", print_exception=False) from None

    optional = {control.name for control in page.controls if control.kind == "audio"}
    parameters = [_parameter(name, None if name in optional else inspect.Parameter.empty) for name in names]
    parameters += [_parameter("token"), _parameter("request", kind=gr.Request), _parameter("progress", gr.Progress())]
    # The toolkit reads names from here; parameters with and without a default may alternate.
    signature = inspect.Signature(parameters, __validate_parameters__=False)
    handle.__signature__ = signature  # type: ignore[attr-defined]
    handle.__annotations__ = {"request": gr.Request}
    return handle


def _parameter(name: str, default: Any = inspect.Parameter.empty, kind: Any = inspect.Parameter.empty) -> Any:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)


def _run(
    services: Services,
    page: Page,
    panel: ResultPanel,
    values: dict[str, Any],
    owner: str,
    visit: str,
    progress: Any,
) -> Iterator[list[Any]]:
    gr, model = services.gr, services.runner.model
    audio = _uploads(page, values, model.sample_rate)
    arguments = page.request(values | {name: (model.sample_rate, clip) for name, clip in audio.items()})
    shown_clips = audio.values() if page.shows_source else ()
    pictures = [(spectrogram_image(clip, model.sample_rate), "before") for clip in shown_clips]
    started = time.monotonic()
    made: Generated | None = None
    yield [None, None, pictures, None, "Working ..."]
    for update in services.runner.run(visit, page.api_name, arguments, values.get("preview_every", 0)):
        made = update.made
        if made is None:
            if update.preview is not None:  # the newest first
                pictures.insert(0, (update.preview.picture, f"after step {update.preview.step}"))
            shown = gr.skip() if update.preview is None else list(pictures)
            yield [gr.skip(), gr.skip(), shown, gr.skip(), _status(gr, update, progress)]
    assert made is not None, "a run ends with what it made, or raises"
    uploaded = {control.name for control in page.controls if control.kind == "audio"}
    asked = {name: Path(value).name if name in uploaded and value else value for name, value in values.items()}
    adapters = model.told_adapters(arguments.get("lora"))
    about = {
        "page": page.title,
        "model": model.name,
        "model_type": model.facts.model_type,
        "precision": model.precision,
        "settings": asked,
        **({"adapters": adapters} if adapters else {}),
    }
    takes = services.gallery.add(owner, made, about, page.keeps_level)
    files = [served(panel.audio, take.audio) for take in takes]
    captions = [caption(takes[0])] if len(takes) == 1 else [f"seed {take.settings['seed']}" for take in takes]
    final = [*((served(panel.pictures, take.picture), text) for take, text in zip(takes, captions)), *pictures]
    seeds = ", ".join(map(str, made.seeds))
    seconds = time.monotonic() - started
    told = f"Done in {seconds:.1f} s · {made.audio.shape[-1] / made.sample_rate:.2f} s of audio · seed {seeds}"
    yield [files[0], files, final, takes[0].settings, told]


def _uploads(page: Page, values: Mapping[str, Any], sample_rate: int) -> dict[str, Tensor]:
    """The audio controls that hold something, read and checked; what is switched off is not looked at."""
    unused = {"init_audio"} if values.get("use_init") is False else set()
    wanted = [control.name for control in page.controls if control.kind == "audio" and control.name not in unused]
    read: dict[str, Audio] = {name: read_upload(values[name], sample_rate) for name in wanted if values[name]}
    return {name: audio.samples for name, audio in read.items()}


def _status(gr: Any, update: Update, progress: Any) -> Any:
    if not update.step:
        return gr.skip()
    if update.total is None:
        return f"Step {update.step}"
    progress((update.step, update.total), desc="Sampling", unit="steps")
    return f"Step {update.step} of {update.total}"
