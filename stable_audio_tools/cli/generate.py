"""`generate`: audio files for a prompt or a file of prompts."""

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from stable_audio_tools.cli.command import Command
from stable_audio_tools.cli.model_choice import MODEL_GROUP, ModelChoice
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.settings import option
from stable_audio_tools.dedup.passages.settings import CopyCheck
from stable_audio_tools.inference.generation.request import FIELDS, FORMATS, OPTIONS, SAMPLING, GenerationRequest

if TYPE_CHECKING:
    from stable_audio_tools.inference.batch.plan import Batch
    from stable_audio_tools.inference.generation.facts import ModelFacts

_LONGEST_STEM = 60


@dataclass(frozen=True, kw_only=True)
class BatchSettings(ModelChoice, CopyCheck):
    """Prompts, files and batches; `GenerateSettings` adds the fields of `GenerationRequest`."""

    default_model: ClassVar[str | None] = "stabilityai/stable-audio-open-1.0"

    pretrained_name: str | None = option(
        None,
        f"name on the Hugging Face Hub, or folder (default: {default_model})",
        group=MODEL_GROUP,
        metavar="NAME",
        flags=("--model-name",),
    )
    prompt: str | None = option(None, "one prompt, instead of a file of prompts", metavar="TEXT")
    out: Path | None = option(None, "file for --prompt (default: named after the prompt)", metavar="FILE")
    output_dir: Path | None = option(None, "folder to write to; optional with --prompt", metavar="DIR")
    cond_yaml_path: Path | None = option(
        None, "prompts: .yaml, .json, .csv or .jsonl; optional for unconditional models", metavar="FILE"
    )
    compile: bool = option(
        False, "compile the network first, which takes a minute and makes steps on a GPU faster", group=SAMPLING
    )
    batch_size: int = option(
        10, "items in one batch; an item with guidance counts twice", group="amount", metavar="N", ge=1
    )
    whole_window: bool = option(
        False, "write the full window of the model, regardless of the length in the prompt", group="amount"
    )
    overwrite: bool = option(False, "generate every file again", group="files")
    json: bool = option(False, "print a line of JSON for each file", group="files")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.prompt is None and self.out is not None:
            yield "--out: needs --prompt; a file of prompts needs --output-dir"
        elif self.prompt is None and self.output_dir is None:
            yield "--output-dir: missing; name the folder to write to, or give --prompt"
        if self.prompt is not None and self.cond_yaml_path is not None:
            yield "--prompt: cannot be given together with --cond-yaml-path; keep one of them"
        if self.out is not None and self.output_dir is not None:
            yield "--out: cannot be given together with --output-dir; keep one of them"
        elif self.out is not None and self.out.suffix[1:].lower() not in FORMATS:
            yield f"--out: {str(self.out)!r} must end in one of {', '.join(f'.{known}' for known in FORMATS)}"
        if self.whole_window and getattr(self, "clip_length", None) is not None:
            yield "--whole-window: cannot be given together with --clip-length; keep one of them"

    @property
    def folder(self) -> Path:
        """Folder to write to."""
        return self.output_dir or (Path() if self.out is None else self.out.parent)

    @property
    def name(self) -> str | None:
        """Stem of the file for --prompt."""
        if self.prompt is None:
            return None
        words = re.sub(r"[^\w]+", "-", self.prompt.lower()).strip("-_")[:_LONGEST_STEM]
        return self.out.stem if self.out is not None else words or "sample"

    @property
    def request(self) -> GenerationRequest:
        """The request shared by all prompts."""
        values: JsonObject = {name: getattr(self, name) for name in _FLAGS}
        if self.prompt is not None:
            values["conditions"] = {"prompt": self.prompt}
        if self.out is not None:
            values["format"] = self.out.suffix[1:].lower()
        if self.whole_window:
            values["clip_length"] = False
        return GenerationRequest(**values)


_FLAGS = [name for name, about in OPTIONS.items() if about.group]
_HINTS = get_type_hints(GenerationRequest, localns={"AudioSource": str, "Tensor": object})


def request_field(name: str) -> "tuple[Any, dataclasses.Field[Any]]":
    """Return type and field of a command for a field of the request; the seed has a default."""
    default: Any = 0 if name == "seed" else FIELDS[name].default
    field: dataclasses.Field[Any] = dataclasses.field(default=default, metadata={"option": OPTIONS[name]})
    return _HINTS[name], field


GenerateSettings: type[BatchSettings] = dataclasses.make_dataclass(
    "GenerateSettings",
    [(name, *request_field(name)) for name in _FLAGS],
    bases=(BatchSettings,),
    frozen=True,
    kw_only=True,
)


def run(settings: BatchSettings) -> None:
    from stable_audio_tools.core.devices import use_tf32
    from stable_audio_tools.dedup.passages.guard import guard_of
    from stable_audio_tools.inference.batch.outputs import OutputFolder
    from stable_audio_tools.inference.batch.plan import plan_batch
    from stable_audio_tools.inference.batch.run import check_targets, run_batch
    from stable_audio_tools.inference.generation.facts import facts_of
    from stable_audio_tools.inference.generation.model import find_config

    def plan(facts: "ModelFacts") -> "list[Batch]":
        return plan_batch(settings.cond_yaml_path, facts, settings.request, settings.batch_size, settings.name)

    guard = guard_of(settings)
    config = find_config(*settings.source)
    if config is not None:  # report mistakes before reading weights
        check_targets(plan(facts_of(config)), OutputFolder(settings.folder), settings.overwrite)
    if settings.request.allow_tf32:
        use_tf32()
    model = settings.load(offload=settings.request.offload)
    if settings.compile:
        model.compile()
    batches, output = plan(model.facts), OutputFolder(settings.folder)
    if config is None:
        check_targets(batches, output, settings.overwrite)

    def report(record: JsonObject, is_new: bool) -> None:
        if settings.json:
            print(json.dumps({**record, "new": is_new}), flush=True)
        else:
            print(f"{'wrote' if is_new else 'kept'} {settings.folder / record['file']}", flush=True)
            for copy in record.get("copies", ()):
                what = "silenced" if settings.copies == "withhold" else "copied"
                print(f"  {what}: {copy['start']:.1f} to {copy['end']:.1f} s, from {copy['track']}", flush=True)

    has_manifest = settings.output_dir is not None
    run_batch(model, batches, output, report, settings.overwrite, has_manifest, guard)


main = Command(
    GenerateSettings,
    run,
    "Generate audio for a prompt, or for the prompts of a YAML, CSV or JSONL file. Finished files in the "
    "output folder are kept, so a stopped run continues when started again. Several GPUs or nodes: torchrun "
    "--nproc_per_node N generate.py ...",
)
