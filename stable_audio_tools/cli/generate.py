"""`generate`: a prompt, or a file of prompts, to audio files."""

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from stable_audio_tools.cli.command import Command
from stable_audio_tools.cli.model_choice import MODEL_GROUP, ModelChoice
from stable_audio_tools.core.settings import option
from stable_audio_tools.inference.generation.request import FIELDS, FORMATS, OPTIONS, SAMPLING, GenerationRequest

if TYPE_CHECKING:
    from stable_audio_tools.inference.batch.plan import Batch
    from stable_audio_tools.inference.generation.facts import ModelFacts

_LONGEST_STEM = 60


@dataclass(frozen=True, kw_only=True)
class BatchSettings(ModelChoice):
    """What is generated where; how, in the fields of `GenerationRequest` that `GenerateSettings` adds."""

    default_model: ClassVar[str | None] = "stabilityai/stable-audio-open-1.0"

    pretrained_name: str | None = option(
        None,
        f"name on the Hugging Face Hub, or folder (else {default_model})",
        group=MODEL_GROUP,
        metavar="NAME",
        flags=("--model-name",),
    )
    prompt: str | None = option(None, "one prompt, in place of a file of them", metavar="TEXT")
    out: Path | None = option(None, "file for --prompt (else named by the prompt)", metavar="FILE")
    output_dir: Path | None = option(None, "folder to write to; may be left out with --prompt", metavar="DIR")
    cond_yaml_path: Path | None = option(
        None, "prompts: .yaml, .json, .csv or .jsonl; may be left out for models that are told nothing", metavar="FILE"
    )
    compile: bool = option(False, "compile the network first: a minute, and then faster steps on a GPU", group=SAMPLING)
    batch_size: int = option(
        10, "items through the network at once; guidance counts twice", group="amount", metavar="N", ge=1
    )
    whole_window: bool = option(
        False, "files as long as the model's window, whatever the prompt asks for", group="amount"
    )
    overwrite: bool = option(False, "make every file again", group="files")
    json: bool = option(False, "print a line of JSON for each file", group="files")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.prompt is None and self.out is not None:
            yield "--out: is for --prompt; a file of prompts needs --output-dir"
        elif self.prompt is None and self.output_dir is None:
            yield "--output-dir: missing; name the folder to write to, or give --prompt"
        if self.prompt is not None and self.cond_yaml_path is not None:
            yield "--prompt: --cond-yaml-path is given too; keep one of them"
        if self.out is not None and self.output_dir is not None:
            yield "--out: --output-dir is given too; keep one of them"
        elif self.out is not None and self.out.suffix[1:].lower() not in FORMATS:
            yield f"--out: {str(self.out)!r} must end in one of {', '.join(f'.{known}' for known in FORMATS)}"
        if self.whole_window and getattr(self, "clip_length", None) is not None:
            yield "--whole-window: --clip-length is given too; keep one of them"

    @property
    def folder(self) -> Path:
        """The folder to write to."""
        return self.output_dir or (Path() if self.out is None else self.out.parent)

    @property
    def name(self) -> str | None:
        """The name of the file of --prompt, without its suffix."""
        if self.prompt is None:
            return None
        words = re.sub(r"[^\w]+", "-", self.prompt.lower()).strip("-_")[:_LONGEST_STEM]
        return self.out.stem if self.out is not None else words or "sample"

    @property
    def request(self) -> GenerationRequest:
        """What is asked of all prompts."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _FLAGS}
        if self.prompt is not None:
            values["conditions"] = {"prompt": self.prompt}
        if self.out is not None:
            values["format"] = self.out.suffix[1:].lower()
        if self.whole_window:
            values["clip_length"] = False
        return GenerationRequest(**values)


_FLAGS = [name for name, about in OPTIONS.items() if about.group]
_HINTS = get_type_hints(GenerationRequest, localns={"AudioSource": str, "Tensor": object})


def _flag(name: str) -> "dataclasses.Field[Any]":
    """The field of a request as one of the command; each file gets its seed from that of the command."""
    default: Any = 0 if name == "seed" else FIELDS[name].default
    field: dataclasses.Field[Any] = dataclasses.field(default=default, metadata={"option": OPTIONS[name]})
    return field


GenerateSettings: type[BatchSettings] = dataclasses.make_dataclass(
    "GenerateSettings",
    [(name, _HINTS[name], _flag(name)) for name in _FLAGS],
    bases=(BatchSettings,),
    frozen=True,
    kw_only=True,
)


def run(settings: BatchSettings) -> None:
    from stable_audio_tools.core.devices import use_tf32
    from stable_audio_tools.inference.batch.outputs import OutputFolder
    from stable_audio_tools.inference.batch.plan import plan_batch
    from stable_audio_tools.inference.batch.run import check_targets, run_batch
    from stable_audio_tools.inference.generation.facts import facts_of
    from stable_audio_tools.inference.generation.model import find_config

    def plan(facts: "ModelFacts") -> "list[Batch]":
        return plan_batch(settings.cond_yaml_path, facts, settings.request, settings.batch_size, settings.name)

    config = find_config(*settings.source)
    if config is not None:  # mistakes are reported before weights are read
        check_targets(plan(facts_of(config)), OutputFolder(settings.folder), settings.overwrite)
    if settings.request.allow_tf32:
        use_tf32()
    model = settings.load(offload=settings.request.offload)
    if settings.compile:
        model.compile()
    batches, output = plan(model.facts), OutputFolder(settings.folder)
    if config is None:
        check_targets(batches, output, settings.overwrite)

    def report(record: dict[str, Any], is_new: bool) -> None:
        if settings.json:
            print(json.dumps({**record, "new": is_new}), flush=True)
        else:
            print(f"{'made' if is_new else 'kept'} {settings.folder / record['file']}", flush=True)

    run_batch(model, batches, output, report, settings.overwrite, has_manifest=settings.output_dir is not None)


main = Command(
    GenerateSettings,
    run,
    "Generate audio for a prompt, or for the prompts of a YAML, CSV or JSONL file. What is complete in the output "
    "folder is kept, so a run that was stopped goes on when started again. Several GPUs or nodes: torchrun "
    "--nproc_per_node N generate.py ...",
)
