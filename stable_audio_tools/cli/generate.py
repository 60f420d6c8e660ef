"""`generate`: a prompt, or a file of prompts, to audio files."""

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from stable_audio_tools.cli.command import command, make_parser
from stable_audio_tools.cli.settings import reading
from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.inference.generation.request import (
    FIELDS,
    FORMATS,
    OPTIONS,
    SAMPLING,
    GenerationRequest,
    parse_spans,
)
from stable_audio_tools.models.lora_choice import LoraChoice, lora_choice

if TYPE_CHECKING:
    from stable_audio_tools.inference.batch.plan import Batch
    from stable_audio_tools.inference.generation.facts import ModelFacts

DEFAULT_MODEL = "stabilityai/stable-audio-open-1.0"
SEED = 0  # of all files, each of which gets its own from it
_LONGEST_STEM = 60


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "generate.py",
        "Generate audio for a prompt, or for the prompts of a YAML, CSV or JSONL file. What is complete in the output "
        "folder is kept, so a run that was stopped goes on when started again. Several GPUs or nodes: torchrun "
        "--nproc_per_node N generate.py ...",
    )
    made.add_argument("--prompt", metavar="TEXT", help="one prompt, in place of a file of them")
    made.add_argument("--out", type=Path, metavar="FILE", help="file for --prompt (else named by the prompt)")
    made.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="folder to write to; may be left out with --prompt"
    )
    made.add_argument(
        "--cond-yaml-path",
        type=Path,
        metavar="FILE",
        help="prompts: .yaml, .json, .csv or .jsonl; may be left out for models that are told nothing",
    )
    add_model_flags(made)
    groups = add_request_flags(made)
    groups[SAMPLING].add_argument(
        "--compile", action="store_true", help="compile the network first: a minute, and then faster steps on a GPU"
    )
    groups["amount"].add_argument(
        "--batch-size",
        type=int,
        default=10,
        metavar="N",
        help="items through the network at once; guidance counts twice",
    )
    groups["amount"].add_argument(
        "--whole-window", action="store_true", help="files as long as the model's window, whatever the prompt asks for"
    )
    add_run_flags(groups["files"])
    return made


def add_request_flags(made: argparse.ArgumentParser) -> dict[str, Any]:
    """Add a flag for each field of a request that has one; return the sections of the help by their titles."""
    hints = get_type_hints(GenerationRequest, localns={"AudioSource": str, "Tensor": object})
    groups: dict[str, Any] = {}
    for name, about in OPTIONS.items():
        if not about.group:
            continue
        if about.group not in groups:
            groups[about.group] = made.add_argument_group(about.group)
        default = SEED if name == "seed" else FIELDS[name].default
        words: dict[str, Any] = {"dest": name, "default": default, "help": about.help}
        kinds = get_args(hints[name]) or (hints[name],)
        if hints[name] is bool:
            words["action"] = "store_true"
        else:
            words["type"] = next(
                (kind for kind in (int, float) if kind in map(type, about.choices) or kind in kinds), str
            )
            words["choices" if about.choices else "metavar"] = about.choices or about.metavar
        if bool in kinds and hints[name] is not bool:
            words |= {"nargs": "?", "const": True}
        groups[about.group].add_argument(flag_of(name), **words)
    return groups


def flag_of(name: str) -> str:
    """The published spelling of a field's flag."""
    return "--" + (OPTIONS[name].flag or name).replace("_", "-")


def request_of(arguments: argparse.Namespace) -> GenerationRequest:
    """The request that the flags describe, for all prompts; problems are named by the flags."""
    values = {name: getattr(arguments, name) for name, about in OPTIONS.items() if about.group}
    if arguments.prompt is not None:
        values["conditions"] = {"prompt": arguments.prompt}
    if arguments.whole_window:
        if arguments.clip_length is not None:
            raise ConfigError("--whole-window: --clip-length is given too; keep one of them")
        values["clip_length"] = False
    try:
        values["spans"] = None if values["spans"] is None else tuple(parse_spans(values["spans"]))
        return GenerationRequest(**values)
    except ConfigError as error:
        named = [text.partition(":") for text in error.problems]
        raise ConfigError(f"{flag_of(name)}:{text}" for name, _, text in named) from None
    except UserError as error:
        raise ConfigError(f"--{error}") from None


def add_model_flags(made: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    model = made.add_argument_group("model: a name or folder, or a config with its weights")
    model.add_argument(
        "--pretrained-name",
        "--model-name",
        dest="pretrained_name",
        metavar="NAME",
        help=f"name on the Hugging Face Hub, or folder (else {default})" if default else "name on the Hub, or folder",
    )
    model.add_argument("--model-config", type=Path, metavar="JSON", help="model config")
    model.add_argument("--ckpt-path", type=Path, metavar="FILE", help="weights")
    model.add_argument(
        "--lora",
        type=reading(lora_choice),
        action="append",
        default=[],
        metavar="PATH[:STRENGTH]",
        help="adapter to put on the model, and how strongly it acts (else 1); may be given several times",
    )
    model.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (else the best there is)")
    model.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16", "float16", "auto"),
        help="float32 gives the published numbers; the others are faster and a little off",
    )


def add_file_flags(files: Any) -> None:
    """Add the flags of a folder of audio files."""
    files.add_argument("--format", default="wav", choices=FORMATS, help="format of the audio files")
    files.add_argument(
        "--bits", type=int, default=16, choices=(16, 24, 32), help="of wav (32 is float) and flac samples"
    )
    add_run_flags(files)


def add_run_flags(files: Any) -> None:
    files.add_argument("--overwrite", action="store_true", help="make every file again")
    files.add_argument("--json", action="store_true", help="print a line of JSON for each file")


def source_of(arguments: argparse.Namespace, default: str = DEFAULT_MODEL) -> tuple[Any, Path | None]:
    """What `load` takes: a model and its weights."""
    name, config, weights = arguments.pretrained_name, arguments.model_config, arguments.ckpt_path
    if name is not None and (config is not None or weights is not None):
        raise ConfigError("--pretrained-name: give it alone, or --model-config with --ckpt-path instead")
    if config is not None and weights is None:
        raise ConfigError("--ckpt-path: missing; --model-config needs the weights too")
    if config is None and weights is not None:
        return weights, None  # which may hold their config
    if config is None and name is None and not default:
        raise ConfigError("--model-config: missing; give it with --ckpt-path, or --pretrained-name")
    return (config, weights) if config is not None else (name or default, None)


def load_model(arguments: argparse.Namespace, source: tuple[Any, Path | None]) -> Any:
    """The model on the device of this process."""
    from stable_audio_tools.inference.generation.model import load

    check_adapters(arguments.lora)
    model = load(*source, process_device(arguments.device), precision=arguments.precision)
    for choice in arguments.lora:
        model.load_lora(choice.path, choice.strength)
    return model


def check_adapters(choices: Sequence[LoraChoice]) -> None:
    """Read the adapters' files, so that their mistakes are told before weights are read."""
    from stable_audio_tools.models.lora import read_lora

    for choice in choices:
        read_lora(choice.path)


def process_device(name: str | None) -> Any:
    """The device of this process: its own GPU where a launcher started several."""
    import torch

    from stable_audio_tools.core.devices import pick_device
    from stable_audio_tools.core.ranks import local_rank, world_size

    try:
        device = pick_device(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    if device == torch.device("cuda") and world_size() > 1:
        device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    if device.type == "cpu" and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        # torchrun's default. Sums over fewer threads round otherwise, and files should not tell how they were shared.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return device


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.inference.batch.outputs import OutputFolder
    from stable_audio_tools.inference.batch.plan import plan_batch
    from stable_audio_tools.inference.batch.run import check_targets, run_batch
    from stable_audio_tools.inference.generation.facts import facts_of
    from stable_audio_tools.inference.generation.model import find_config

    folder, name = _place(arguments)
    common = request_of(arguments)
    source = source_of(arguments)
    config = find_config(*source)

    def plan(facts: "ModelFacts") -> "list[Batch]":
        return plan_batch(arguments.cond_yaml_path, facts, common, arguments.batch_size, name)

    if config is not None:  # mistakes are told before weights are read
        check_targets(plan(facts_of(config)), OutputFolder(folder), arguments.overwrite)
    model = load_model(arguments, source)
    if arguments.compile:
        model.compile()
    batches, output = plan(model.facts), OutputFolder(folder)
    if config is None:
        check_targets(batches, output, arguments.overwrite)

    def tell(record: dict[str, Any], is_new: bool) -> None:
        if arguments.json:
            print(json.dumps({**record, "new": is_new}), flush=True)
        else:
            print(f"{'made' if is_new else 'kept'} {folder / record['file']}", flush=True)

    run_batch(model, batches, output, tell, arguments.overwrite, has_manifest=arguments.output_dir is not None)
    return 0


def _place(arguments: argparse.Namespace) -> tuple[Path, str | None]:
    """The folder to write to, and the file in it without its suffix, where the flags name one."""
    prompt, out = arguments.prompt, arguments.out
    if prompt is None and out is not None:
        raise ConfigError("--out: is for --prompt; a file of prompts needs --output-dir")
    if prompt is None and arguments.output_dir is None:
        raise ConfigError("--output-dir: missing; name the folder to write to, or give --prompt")
    if prompt is not None and arguments.cond_yaml_path is not None:
        raise ConfigError("--prompt: --cond-yaml-path is given too; keep one of them")
    if prompt is None:
        return arguments.output_dir, None
    if out is None:
        stem = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:_LONGEST_STEM] or "sample"
        return arguments.output_dir or Path(), stem
    if arguments.output_dir is not None:
        raise ConfigError("--out: --output-dir is given too; keep one of them")
    format = out.suffix[1:].lower()
    if format not in FORMATS:
        raise ConfigError(f"--out: {str(out)!r} must end in one of {', '.join(f'.{known}' for known in FORMATS)}")
    arguments.format = format
    return out.parent, out.stem


main = command(parser, run)
