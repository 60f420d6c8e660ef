"""The pages of a model, its gallery, and how they are wired together."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.generation.request import parse_spans
from stable_audio_tools.interface.areas import add_rectangle, mel_of, parse_areas, spectrogram_of
from stable_audio_tools.interface.controls import Control
from stable_audio_tools.interface.gallery import Gallery, new_token, owner_of
from stable_audio_tools.interface.handlers import Services, generation_handler
from stable_audio_tools.interface.pages import Page, pages_of
from stable_audio_tools.interface.runner import Runner
from stable_audio_tools.interface.uploads import read_upload
from stable_audio_tools.interface.waveforms import add_drag, waveform_image
from stable_audio_tools.interface.widgets import (
    DRAG_SCRIPT,
    PRIVATE,
    ResultPanel,
    caption,
    group,
    result_panel,
    served,
)

Marks = TypeVar("Marks")

_REUSABLE = ("init_audio", "inpaint_audio")
_CACHE_SECONDS = (3600, 24 * 3600)  # look every hour for copies of files that are older than a day


@dataclass(frozen=True)
class BuiltPage:
    """A page with its widgets, by the names of its controls."""

    page: Page
    tab: str
    widgets: dict[str, Any]
    panel: ResultPanel
    run: Any  # the event of its button


def build(gr: Any, runner: Runner, gallery: Gallery, title: str) -> Any:
    """The whole app, as `gradio.Blocks`."""
    services = Services(gr, runner, gallery)
    model = runner.model
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=_CACHE_SECONDS) as app:
        gr.Markdown(f"# {title}\n{describe(model)}")
        remembered = gr.BrowserState("", storage_key="stable-audio-tools-visitor", secret="stable-audio-tools")
        token, names = gr.State(""), gr.State([])
        with gr.Tabs() as tabs:
            built = [_page(services, page, token) for page in pages_of(model)]
        with gr.Accordion("Your runs: choose one to hear it and to use it again", open=True):
            shelf = _gallery(services, built, tabs, token, names)
        for each in built:
            each.run.then(_list_takes(services, shelf), [token], [shelf, names], **PRIVATE)
        app.load(_greet(services, shelf), [remembered], [remembered, token, shelf, names], **PRIVATE)
        app.load(None, None, None, js=DRAG_SCRIPT)
    return app


def describe(model: AudioModel) -> str:
    """What runs here, in a line."""
    facts = model.facts
    length = "" if facts.window is None else f" · up to {facts.window_seconds:.2f} s"
    name = f"**{Path(model.name).stem}** · " if model.name else ""
    sound = f"{facts.sample_rate / 1000:g} kHz{length}"
    use = f"{facts.use} with inpainting" if facts.inpaints else facts.use
    return f"{name}{use} · {sound} · {model.precision} on {model.device}"


def _page(services: Services, page: Page, token: Any) -> BuiltPage:
    gr, tab = services.gr, page.api_name
    with gr.Tab(page.title, id=tab), gr.Row():
        with gr.Column(scale=1, min_width=360):
            widgets: dict[str, Any] = {}
            for content in page.groups:
                widgets |= group(gr, content, tab)
                for control in content.controls:
                    if control.kind in ("spans", "areas"):
                        _marked_picture(services, control, widgets, tab)
        with gr.Column(scale=1, min_width=360):
            with gr.Row():
                start = gr.Button(page.action, variant="primary", elem_id=f"{tab}-start")
                stop = gr.Button("Cancel", variant="stop", elem_id=f"{tab}-cancel")
            panel = result_panel(gr, tab)
    inputs = [widgets[control.name] for control in page.controls]
    run = start.click(_for_page(services, page, services.runner.expect), None, None, **PRIVATE).then(
        generation_handler(services, page, panel),
        [*inputs, token],
        panel.outputs,
        api_name=page.api_name,
        api_description=f"{page.action}: the keywords are the controls of the page.",
        concurrency_limit=1,
        concurrency_id="model",
        show_progress_on=[panel.status],
        preprocess=False,  # the handler checks, in the words of this app
    )
    stop.click(_for_page(services, page, services.runner.cancel), None, None, **PRIVATE)
    return BuiltPage(page, tab, widgets, panel, run)


def _for_page(services: Services, page: Page, act: Callable[[str, str], Any]) -> Any:
    """Do something about the run of the page that asks."""

    def tell(request: Any) -> None:
        act(request.session_hash, page.api_name)

    tell.__annotations__ = {"request": services.gr.Request}
    return tell


# ------------------------------------------------------------------ marks on a picture of the audio


def _marked_picture(services: Services, control: Control, widgets: dict[str, Any], tab: str) -> None:
    """The waveform of the audio, on which spans are drawn, or its spectrogram, on which areas are."""
    gr, model = services.gr, services.runner.model
    name = f"{tab}-{control.name}-picture"
    picture = gr.Image(
        label="Drag over what to make anew",
        show_label=False,
        interactive=False,
        elem_id=name,
        elem_classes=["span-picture", "area-picture"] if control.kind == "areas" else ["span-picture"],
        buttons=[],
        type="pil",
    )
    drag = gr.Textbox(visible="hidden", elem_id=f"{name}-drag")
    source, spans = widgets[control.of], widgets[control.name]
    mel = mel_of(model) if control.kind == "areas" else None

    def draw(path: str | None, text: str) -> Any:
        if not path:
            return None
        clip = read_upload(path, model.sample_rate).samples
        if mel is not None:
            return spectrogram_of(clip[..., : model.facts.window], mel, _readable(parse_areas, text))
        return waveform_image(clip, model.sample_rate, _readable(parse_spans, text))

    def take_drag(path: str | None, text: str, dragged: str) -> str:
        if not path:
            return text
        seconds = audio_io.info(path).seconds
        if mel is not None:
            return add_rectangle(text, dragged, min(seconds, model.facts.window_seconds), mel.transform.bands.n_mels)
        return add_drag(text, dragged, seconds)

    gr.on([source.change, spans.change], _speaking(gr, draw), [source, spans], [picture], **PRIVATE)
    drag.change(_speaking(gr, take_drag), [source, spans, drag], [spans], **PRIVATE)


def _readable(parse: Callable[[str], list[Marks]], text: str) -> list[Marks]:
    """What is half written is not drawn."""
    with contextlib.suppress(ValueError):
        return parse(text)
    return []


def _speaking(gr: Any, function: Any) -> Any:
    """The function, whose complaints reach the page in words."""

    def speak(*given: Any) -> Any:
        try:
            return function(*given)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return speak


# ------------------------------------------------------------------ earlier runs


def _gallery(services: Services, built: Sequence[BuiltPage], tabs: Any, token: Any, names: Any) -> Any:
    """Pictures of a visitor's runs; a click on one offers it for listening and for use as an input."""
    gr = services.gr
    chosen = gr.State("")
    shelf = gr.Gallery(
        label="Runs",
        show_label=False,
        columns=4,
        height="auto",
        allow_preview=False,
        interactive=False,
        object_fit="fill",
        elem_id="runs",
        elem_classes=["pictures"],
        fit_columns=False,
        buttons=[],
    )
    with gr.Row(visible=False) as details:
        with gr.Column():
            player = gr.Audio(label="Chosen run", interactive=False, elem_id="chosen", buttons=["download"])
            with gr.Row():
                targets = [
                    (each, control) for each in built for control in each.page.controls if control.name in _REUSABLE
                ]
                uses = [
                    gr.Button(f"Use as: {control.label.lower()}", elem_id=f"use-{each.tab}-{control.name}")
                    for each, control in targets
                ]
                again = gr.Button("Use its settings", elem_id="use-settings")
        settings = gr.JSON(label="Settings")

    def choose(listed: list[str], visitor: str, request: Any, event: Any) -> list[Any]:
        name = listed[event.index] if event.index < len(listed) else ""
        take = services.gallery.take(_owner(visitor, request), name) if name else None
        if take is None:
            raise gr.Error("This run is no longer there.", print_exception=False)
        return [name, served(player, take.audio), take.settings, gr.update(visible=True)]

    choose.__annotations__ = {"request": gr.Request, "event": gr.SelectData}
    shelf.select(choose, [names, token], [chosen, player, settings, details], **PRIVATE)
    for button, (each, control) in zip(uses, targets):
        switch = [each.widgets["use_init"]] if "use_init" in each.widgets and control.name == "init_audio" else []
        outputs = [each.widgets[control.name], tabs, *switch]
        button.click(_use(services, each, control, len(switch)), [chosen, token], outputs, **PRIVATE)
    everything = [widget for each in built for widget in each.widgets.values()]
    again.click(_restore(services, built), [chosen, token], [tabs, *everything], **PRIVATE)
    return shelf


def _owner(token: str, request: Any) -> str:
    return owner_of(request.username, token, request.session_hash)


def _use(services: Services, built: BuiltPage, control: Control, switches: int) -> Any:
    """Put the chosen run into an audio control, and switch that on."""
    gr = services.gr

    def use(name: str, visitor: str, request: Any) -> list[Any]:
        take = services.gallery.take(_owner(visitor, request), name)
        if take is None:
            raise gr.Error("This run is no longer there.", print_exception=False)
        path = served(built.widgets[control.name], take.audio)
        return [path, gr.update(selected=built.tab), *[True] * switches]

    use.__annotations__ = {"request": gr.Request}
    return use


def _restore(services: Services, built: Sequence[BuiltPage]) -> Any:
    """Set the controls of the page that made the chosen run as they were; audio is left as it is."""
    gr = services.gr

    def restore(name: str, visitor: str, request: Any) -> list[Any]:
        take = services.gallery.take(_owner(visitor, request), name)
        if take is None:
            raise gr.Error("This run is no longer there.", print_exception=False)
        values = take.settings["settings"] | {"seed": take.settings["seed"], "num_samples": 1}
        updates, tab = [], gr.skip()
        for each in built:
            is_it = each.page.title == take.settings["page"]
            tab = gr.update(selected=each.tab) if is_it else tab
            kinds = {control.name: control.kind for control in each.page.controls}
            for control in each.widgets:
                known = is_it and control in values and kinds[control] != "audio"
                updates.append(values[control] if known else gr.skip())
        return [tab, *updates]

    restore.__annotations__ = {"request": gr.Request}
    return restore


def _list_takes(services: Services, shelf: Any) -> Any:
    """Pictures and names of a visitor's runs."""

    def show(visitor: str, request: Any) -> list[Any]:
        takes = services.gallery.takes(_owner(visitor, request))
        return [[(served(shelf, take.picture), caption(take)) for take in takes], [take.name for take in takes]]

    show.__annotations__ = {"request": services.gr.Request}
    return show


def _greet(services: Services, shelf: Any) -> Any:
    """A browser keeps its token, so that its runs are there the next time."""
    show = _list_takes(services, shelf)

    def greet(kept: Any, request: Any) -> list[Any]:
        token = kept if isinstance(kept, str) and kept else new_token()
        return [token, token, *show(token, request)]

    greet.__annotations__ = {"request": services.gr.Request}
    return greet
