"""Widgets of the controls, and the panels that every page has."""

import contextlib
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stable_audio_tools.interface.controls import Control, Group
from stable_audio_tools.interface.gallery import Take
from stable_audio_tools.interface.inputs import refusal

if TYPE_CHECKING:
    from gradio.components import Component

PRIVATE = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}  # events outside the API

_SMALL = ("slider", "number", "integer")

# Spectrograms are wide; a gallery crops squares by default.
STYLE = """
.pictures .thumbnail-lg, .pictures .thumbnail-item { aspect-ratio: 3 / 1; }
.pictures .grid-wrap { min-height: 0 !important; max-height: 30rem; }
.span-picture img { cursor: crosshair; user-select: none; -webkit-user-drag: none; touch-action: none; }
"""


@dataclass(frozen=True)
class ResultPanel:
    """Components that show a result, in the order of the API's response."""

    audio: "Component"
    files: "Component"
    pictures: "Component"
    settings: "Component"
    status: "Component"

    @property
    def outputs(self) -> "list[Component]":
        return [self.audio, self.files, self.pictures, self.settings, self.status]


def widget(gr: ModuleType, control: Control, page: str) -> "Component":
    """Return the widget of one control."""
    common = {"label": control.label, "elem_id": f"{page}-{control.name}"}
    about = {"info": control.info or None}
    if control.kind == "prompt":
        return gr.Textbox(control.default, lines=2, max_lines=8, max_length=4000, **common, **about)
    if control.kind in ("text", "spans", "areas"):
        return gr.Textbox(control.default, max_length=4000, **common, **about)
    if control.kind == "choice":
        return gr.Dropdown(list(control.choices), value=control.default, **common, **about)
    if control.kind == "switch":
        return gr.Checkbox(control.default, **common, **about)
    if control.kind == "audio":
        audio = gr.Audio(type="filepath", sources=["upload", "microphone"], buttons=["download"], **common)
        audio.data_model = _upload_model(gr, control)
        return audio
    limits = {"minimum": control.minimum, "maximum": control.maximum}
    if control.kind == "slider":
        precision = 0 if control.step == 1 else None
        return gr.Slider(value=control.default, step=control.step, precision=precision, **limits, **common, **about)
    return gr.Number(control.default, precision=0 if control.kind == "integer" else None, **limits, **common, **about)


def _upload_model(gr: ModuleType, control: Control) -> type:
    """Return the data model of an upload, whose error for other values is a message of this app."""

    class FileData(gr.FileData):  # type: ignore[name-defined]  # the API's page shows this name and docstring
        """An uploaded file."""

        @classmethod
        def model_validate(cls, value: object, **options: Any) -> "FileData":
            try:
                valid: FileData = super().model_validate(value, **options)
                return valid
            except ValueError:
                message = refusal(control, "an uploaded file, such as gradio_client.handle_file(path)", value)
                raise gr.Error(message, print_exception=False) from None

    return FileData


def group(gr: ModuleType, content: Group, page: str) -> "dict[str, Component]":
    """Return the widgets of a group by name; two neighbouring numbers share a row."""
    widgets: dict[str, Component] = {}
    title = gr.Accordion(content.title, open=content.is_open) if content.title else contextlib.nullcontext()
    with title:
        for is_small, neighbours in groupby(content.controls, lambda control: control.kind in _SMALL):
            controls = list(neighbours)
            width = 2 if is_small else 1
            for index in range(0, len(controls), width):
                with gr.Row() if is_small else contextlib.nullcontext():
                    for control in controls[index : index + width]:
                        widgets[control.name] = widget(gr, control, page)
    return widgets


def result_panel(gr: ModuleType, page: str) -> ResultPanel:
    """Return the components for audio, files, pictures, settings and status."""
    status = gr.Markdown("Ready.", label="Status", elem_id=f"{page}-status")
    audio = gr.Audio(type="filepath", label="Result", interactive=False, elem_id=f"{page}-result", buttons=["download"])
    pictures = gr.Gallery(
        label="Spectrograms",
        show_label=False,
        columns=1,
        height="auto",
        object_fit="fill",
        interactive=False,
        elem_id=f"{page}-pictures",
        elem_classes=["pictures"],
        buttons=["fullscreen"],
    )
    with gr.Accordion("Files and settings", open=False):
        files = gr.File(label="Files of this run", file_count="multiple", interactive=False)
        settings = gr.JSON(label="Settings", elem_id=f"{page}-settings")
    return ResultPanel(audio, files, pictures, settings, status)


def caption(take: Take) -> str:
    """Return a short label of a take: its prompt or first text, and its seed."""
    values = take.settings.get("settings", {})
    texts = [str(values[name]) for name in ("prompt", "sound") if values.get(name)]
    texts += [value for value in values.values() if isinstance(value, str) and value]
    return " · ".join([*(text[:48] for text in texts[:1]), f"seed {take.settings.get('seed')}"])


def served(component: "Component", path: Path) -> str:
    """Copy a file to the folder that the app serves, and return its path; the outputs folder is not served."""
    return str(component.move_resource_to_block_cache(str(path)))


# Writes the part of a picture that was dragged over to a hidden text box, as two fractions of its width, and for areas
# two fractions of its height.
DRAG_SCRIPT = """() => {
  let start = null, shade = null;
  const picture = (event) => {
    const frame = event.target.closest && event.target.closest(".span-picture");
    return frame && frame.querySelector("img");
  };
  const share = (image, x) => {
    const box = image.getBoundingClientRect();
    return Math.min(1, Math.max(0, (x - box.left) / box.width));
  };
  document.addEventListener("pointerdown", (event) => {
    const image = picture(event);
    if (!image) return;
    event.preventDefault();
    start = {image, x: event.clientX};
    const box = image.getBoundingClientRect();
    shade = document.createElement("div");
    shade.style.cssText = "position:fixed;pointer-events:none;background:rgba(229,80,60,.35);z-index:1000;" +
      `top:${box.top}px;height:${box.height}px;left:${event.clientX}px;width:0`;
    start.y = image.closest(".area-picture") ? event.clientY : null;
    document.body.append(shade);
  });
  document.addEventListener("pointermove", (event) => {
    if (!start) return;
    shade.style.left = `${Math.min(start.x, event.clientX)}px`;
    shade.style.width = `${Math.abs(event.clientX - start.x)}px`;
    if (start.y === null) return;
    shade.style.top = `${Math.min(start.y, event.clientY)}px`;
    shade.style.height = `${Math.abs(event.clientY - start.y)}px`;
  });
  document.addEventListener("pointerup", (event) => {
    if (!start) return;
    const {image, x, y} = start;
    const down = (place) => {
      const box = image.getBoundingClientRect();
      return Math.min(1, Math.max(0, (place - box.top) / box.height));
    };
    start = null;
    shade.remove();
    const field = document.querySelector(`#${image.closest(".span-picture").id}-drag textarea, ` +
      `#${image.closest(".span-picture").id}-drag input`);
    const across = `${share(image, x)} ${share(image, event.clientX)}`;
    field.value = y === null ? across : `${across} ${down(y)} ${down(event.clientY)}`;
    field.dispatchEvent(new Event("input", {bubbles: true}));
  });
}
"""
