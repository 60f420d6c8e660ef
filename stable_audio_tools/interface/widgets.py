"""Controls as widgets, and the panels that every page has."""

import contextlib
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from stable_audio_tools.interface.controls import Control, Group
from stable_audio_tools.interface.gallery import Take
from stable_audio_tools.interface.values import refusal

PRIVATE = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}  # what the page does for itself


_SMALL = ("slider", "number", "integer")

# Spectrograms are wide; galleries would cut squares out of them.
STYLE = """
.pictures .thumbnail-lg, .pictures .thumbnail-item { aspect-ratio: 3 / 1; }
.pictures .grid-wrap { min-height: 0 !important; max-height: 30rem; }
.span-picture img { cursor: crosshair; user-select: none; -webkit-user-drag: none; touch-action: none; }
"""


@dataclass(frozen=True)
class ResultPanel:
    """Where a page shows what it makes, in the order of the API's answer."""

    audio: Any
    files: Any
    pictures: Any
    settings: Any
    status: Any

    @property
    def outputs(self) -> list[Any]:
        return [self.audio, self.files, self.pictures, self.settings, self.status]


def widget(gr: Any, control: Control, page: str) -> Any:
    """The widget of one control."""
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
        made = gr.Audio(type="filepath", sources=["upload", "microphone"], buttons=["download"], **common)
        made.data_model = _upload(gr, control)
        return made
    limits = {"minimum": control.minimum, "maximum": control.maximum}
    if control.kind == "slider":
        precision = 0 if control.step == 1 else None
        return gr.Slider(value=control.default, step=control.step, precision=precision, **limits, **common, **about)
    return gr.Number(control.default, precision=0 if control.kind == "integer" else None, **limits, **common, **about)


def _upload(gr: Any, control: Control) -> Any:
    """What the toolkit reads an uploaded file with; it refuses anything else in the words of this app."""

    class FileData(gr.FileData):  # the API's page shows this name, and the line below
        """An uploaded file."""

        @classmethod
        def model_validate(cls, value: Any, **options: Any) -> Any:
            try:
                return super().model_validate(value, **options)
            except ValueError:
                told = refusal(control, "an uploaded file, such as gradio_client.handle_file(path)", value)
                raise gr.Error(told, print_exception=False) from None

    return FileData


def group(gr: Any, content: Group, page: str) -> dict[str, Any]:
    """The widgets of a group by name; those of spans follow elsewhere."""
    if content.title:
        with gr.Accordion(content.title, open=content.is_open):
            return _rows(gr, content, page)
    return _rows(gr, content, page)


def _rows(gr: Any, content: Group, page: str) -> dict[str, Any]:
    """Neighbouring numbers share a row, two by two; all else has its own."""
    made: dict[str, Any] = {}
    for is_small, neighbours in groupby(content.controls, lambda control: control.kind in _SMALL):
        controls = list(neighbours)
        width = 2 if is_small else 1
        for index in range(0, len(controls), width):
            with gr.Row() if is_small else contextlib.nullcontext():
                for control in controls[index : index + width]:
                    made[control.name] = widget(gr, control, page)
    return made


def result_panel(gr: Any, page: str) -> ResultPanel:
    """Audio, files, pictures, settings and a line about how it goes."""
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
    """A few words about a take: what it was asked for, and its seed."""
    values = take.settings.get("settings", {})
    words = [str(values[name]) for name in ("prompt", "sound") if values.get(name)]
    asked = words[0] if words else next((value for value in values.values() if isinstance(value, str) and value), "")
    return f"{asked[:48]} · seed {take.settings.get('seed')}".removeprefix(" · ")


def served(component: Any, path: Any) -> str:
    """A copy of a file where the app serves files from; the outputs folder itself is not served."""
    return str(component.move_resource_to_block_cache(str(path)))


# Tells a hidden text box which part of a picture was dragged over, as two shares of its width; on a picture of areas,
# also two of its height.
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
