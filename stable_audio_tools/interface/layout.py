"""The layout of the app: the pages of a model, the gallery of earlier runs, and their events."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation.model import AudioModel
from stable_audio_tools.inference.generation.request import parse_spans
from stable_audio_tools.interface.controls import Control
from stable_audio_tools.interface.gallery import Gallery, Take, new_token, owner_of
from stable_audio_tools.interface.handlers import Services, generation_handler
from stable_audio_tools.interface.inputs import read_upload
from stable_audio_tools.interface.marks import (
    add_drag,
    add_rectangle,
    mel_of,
    parse_areas,
    spectrogram_of,
    waveform_image,
)
from stable_audio_tools.interface.pages import Page, pages_of
from stable_audio_tools.interface.runner import Runner
from stable_audio_tools.interface.widgets import (
    DRAG_SCRIPT,
    PRIVATE,
    ResultPanel,
    caption,
    group,
    result_panel,
    served,
)

if TYPE_CHECKING:
    from gradio import Blocks, Request, SelectData, State, Tabs
    from gradio.components import Component
    from gradio.events import Dependency
    from PIL.Image import Image

Marks = TypeVar("Marks")
Answer = list[object]  # one value per output of an event

_REUSABLE = ("init_audio", "inpaint_audio")
_CACHE_SECONDS = (3600, 24 * 3600)  # every hour, delete served copies of files older than a day


@dataclass(frozen=True)
class BuiltPage:
    """A page with its widgets by name, and the event of its button."""

    page: Page
    tab: str
    widgets: "dict[str, Component]"
    panel: ResultPanel
    run: "Dependency"


def build(gr: ModuleType, runner: Runner, gallery: Gallery, title: str) -> "Blocks":
    """Build the app of a model."""
    services = Services(gr, runner, gallery)
    model = runner.model
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=_CACHE_SECONDS) as app:
        gr.Markdown(f"# {title}\n{describe(model)}")
        remembered = gr.BrowserState("", storage_key="stable-audio-tools-visitor", secret="stable-audio-tools")
        token, names = gr.State(""), gr.State([])
        with gr.Tabs() as tabs:
            built = [_page(services, page, token) for page in pages_of(model)]
        with gr.Accordion("Your runs: select one to play it and use it again", open=True):
            shelf = _gallery(services, built, tabs, token, names)
        for page in built:
            page.run.then(_list_takes(services, shelf), [token], [shelf, names], **PRIVATE)
        app.load(_greet(services, shelf), [remembered], [remembered, token, shelf, names], **PRIVATE)
        app.load(None, None, None, js=DRAG_SCRIPT)
    return app


def describe(model: AudioModel) -> str:
    """Return a line about the model: name, use, length, precision and device."""
    facts = model.facts
    length = "" if facts.window is None else f" · up to {facts.window_seconds:.2f} s"
    name = f"**{Path(model.name).stem}** · " if model.name else ""
    sound = f"{facts.sample_rate / 1000:g} kHz{length}"
    use = f"{facts.use} with inpainting" if facts.inpaints else facts.use
    return f"{name}{use} · {sound} · {model.precision} on {model.device}"


def _page(services: Services, page: Page, token: "State") -> BuiltPage:
    gr, tab = services.gr, page.api_name
    with gr.Tab(page.title, id=tab), gr.Row():
        with gr.Column(scale=1, min_width=360):
            widgets: dict[str, Component] = {}
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
        api_description=f"{page.action}: one parameter per control of the page.",
        concurrency_limit=1,
        concurrency_id="model",
        show_progress_on=[panel.status],
        preprocess=False,  # the handler checks the values, with messages of this app
    )
    stop.click(_for_page(services, page, services.runner.cancel), None, None, **PRIVATE)
    return BuiltPage(page, tab, widgets, panel, run)


def _for_page(services: Services, page: Page, act: Callable[[str, str], object]) -> "Callable[[Request], None]":
    """Return a handler that calls `act` with the visit and the name of the page."""

    def handle(request: "Request") -> None:
        act(request.session_hash, page.api_name)

    handle.__annotations__ = {"request": services.gr.Request}  # Gradio passes the request to this type
    return handle


# ------------------------------------------------------------------ marks on pictures


def _marked_picture(services: Services, control: Control, widgets: "dict[str, Component]", tab: str) -> None:
    """Add a picture to draw on: the waveform for spans, the spectrogram for areas."""
    gr, model = services.gr, services.runner.model
    name = f"{tab}-{control.name}-picture"
    picture = gr.Image(
        label="Drag over the part to regenerate",
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

    def draw(path: str | None, text: str) -> "Image | None":
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

    gr.on([source.change, spans.change], _with_messages(gr, draw), [source, spans], [picture], **PRIVATE)
    drag.change(_with_messages(gr, take_drag), [source, spans, drag], [spans], **PRIVATE)


def _readable(parse: Callable[[str], list[Marks]], text: str) -> list[Marks]:
    """Parse marks; return none while the text is incomplete."""
    with contextlib.suppress(ValueError):
        return parse(text)
    return []


def _with_messages(gr: ModuleType, function: Callable[..., object]) -> Callable[..., object]:
    """Return the function with its ValueErrors shown on the page."""

    def handle(*values: object) -> object:
        try:
            return function(*values)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return handle


# ------------------------------------------------------------------ earlier runs


def _gallery(
    services: Services, built: Sequence[BuiltPage], tabs: "Tabs", token: "State", names: "State"
) -> "Component":
    """Add the pictures of a visitor's runs; a click on one plays it and offers it as an input."""
    gr = services.gr
    selected = gr.State("")
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
            player = gr.Audio(label="Selected run", interactive=False, elem_id="chosen", buttons=["download"])
            with gr.Row():
                targets = [
                    (page, control) for page in built for control in page.page.controls if control.name in _REUSABLE
                ]
                uses = [
                    gr.Button(f"Use as: {control.label.lower()}", elem_id=f"use-{page.tab}-{control.name}")
                    for page, control in targets
                ]
                again = gr.Button("Use its settings", elem_id="use-settings")
        settings = gr.JSON(label="Settings")

    def select(listed: list[str], visitor: str, request: "Request", event: "SelectData") -> Answer:
        name = listed[event.index] if event.index < len(listed) else ""
        take = _find_take(services, name, visitor, request)
        return [name, served(player, take.audio), take.settings, gr.update(visible=True)]

    select.__annotations__ = {"request": gr.Request, "event": gr.SelectData}
    shelf.select(select, [names, token], [selected, player, settings, details], **PRIVATE)
    for button, (page, control) in zip(uses, targets):
        switch = [page.widgets["use_init"]] if "use_init" in page.widgets and control.name == "init_audio" else []
        outputs = [page.widgets[control.name], tabs, *switch]
        button.click(_use(services, page, control, len(switch)), [selected, token], outputs, **PRIVATE)
    widgets = [widget for page in built for widget in page.widgets.values()]
    again.click(_restore(services, built), [selected, token], [tabs, *widgets], **PRIVATE)
    return shelf


def _owner(token: str, request: "Request") -> str:
    return owner_of(request.username, token, request.session_hash)


def _find_take(services: Services, name: str, visitor: str, request: "Request") -> Take:
    take = services.gallery.take(_owner(visitor, request), name) if name else None
    if take is None:
        raise services.gr.Error("This run no longer exists.", print_exception=False)
    return take


def _use(services: Services, built: BuiltPage, control: Control, switches: int) -> Callable[..., Answer]:
    """Return a handler that puts the selected run into an audio control and switches that on."""
    gr = services.gr

    def use(name: str, visitor: str, request: "Request") -> Answer:
        take = _find_take(services, name, visitor, request)
        path = served(built.widgets[control.name], take.audio)
        return [path, gr.update(selected=built.tab), *[True] * switches]

    use.__annotations__ = {"request": gr.Request}
    return use


def _restore(services: Services, built: Sequence[BuiltPage]) -> Callable[..., Answer]:
    """Return a handler that restores the controls of the selected run, except audio."""
    gr = services.gr

    def restore(name: str, visitor: str, request: "Request") -> Answer:
        take = _find_take(services, name, visitor, request)
        values = take.settings["settings"] | {"seed": take.settings["seed"], "num_samples": 1}
        updates, tab = [], gr.skip()
        for page in built:
            is_source = page.page.title == take.settings["page"]
            tab = gr.update(selected=page.tab) if is_source else tab
            kinds = {control.name: control.kind for control in page.page.controls}
            for control in page.widgets:
                is_known = is_source and control in values and kinds[control] != "audio"
                updates.append(values[control] if is_known else gr.skip())
        return [tab, *updates]

    restore.__annotations__ = {"request": gr.Request}
    return restore


def _list_takes(services: Services, shelf: "Component") -> Callable[..., Answer]:
    """Return a handler that lists the pictures and names of a visitor's runs."""

    def show(visitor: str, request: "Request") -> Answer:
        takes = services.gallery.takes(_owner(visitor, request))
        return [[(served(shelf, take.picture), caption(take)) for take in takes], [take.name for take in takes]]

    show.__annotations__ = {"request": services.gr.Request}
    return show


def _greet(services: Services, shelf: "Component") -> Callable[..., Answer]:
    """Return a handler for a new visit; the browser stores its token, so that it finds its runs again."""
    show = _list_takes(services, shelf)

    def greet(stored: object, request: "Request") -> Answer:
        token = stored if isinstance(stored, str) and stored else new_token()
        return [token, token, *show(token, request)]

    greet.__annotations__ = {"request": services.gr.Request}
    return greet
