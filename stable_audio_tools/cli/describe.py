"""`check`, `schema` and `info`: describe a config, its JSON Schema, the installation or a weight file."""

import json
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.version import __version__

# ------------------------------------------------------------------ check


@dataclass(frozen=True)
class CheckSettings(Settings):
    """Settings of `check`."""

    model: Path = option(help="model or dataset config", positional=True, metavar="CONFIG.json")
    dataset: Path | None = option(
        None, "dataset config, if the first is a model config, or the reverse", positional=True, metavar="CONFIG.json"
    )
    json: bool = option(False, "print the summary as JSON")


def run_check(settings: CheckSettings) -> None:
    from stable_audio_tools.training.checks import check_files

    summary = check_files([path for path in (settings.model, settings.dataset) if path is not None])
    print(json.dumps(summary, indent=2) if settings.json else _table(summary))


def _table(summary: JsonObject, indent: str = "") -> str:
    lines = []
    for key, value in summary.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", _table(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key}: {f'{value:,}' if isinstance(value, int) else value}")
    return "\n".join(lines)


check = Command(
    CheckSettings,
    run_check,
    "Check a model config, a dataset config or both, the files they name and their training section, and print what "
    "they build. Exit status 2, with one line per mistake, if something is wrong.",
)


# ------------------------------------------------------------------ schema


@dataclass(frozen=True)
class SchemaSettings(Settings):
    """Settings of `schema`."""

    out: Path | None = option(None, "folder to write to; if omitted, both are printed", metavar="DIR")


def run_schema(settings: SchemaSettings) -> int:
    from stable_audio_tools.core.config.schema import body_of, flat_schema, tagged_schema
    from stable_audio_tools.core.files import write_text
    from stable_audio_tools.models.factory import ModelFile
    from stable_audio_tools.training.factory import training_body

    schemas = {
        "model": tagged_schema(
            ModelFile, "model_type", "model", {"model": body_of("model"), "training": training_body}
        ),
        "dataset": flat_schema("Dataset config", "dataset", "dataset_type"),
    }
    if settings.out is None:
        print(json.dumps(schemas, indent=2))
        return 0
    for name, schema in schemas.items():
        path = settings.out / f"{name}.schema.json"
        write_text(path, json.dumps(schema, indent=2) + "\n")
        print(f"wrote {path}")
    return 0


schema = Command(
    SchemaSettings,
    run_schema,
    'Write model.schema.json and dataset.schema.json. Point an editor at one with a "$schema" key at the top of a '
    "config: it then completes keys and underlines mistakes.",
)


# ------------------------------------------------------------------ info


_CORE = ("torch", "torchaudio", "pytorch-lightning", "transformers", "k-diffusion", "soundfile", "numpy")
_OPTIONAL = {
    "clap": "laion-clap",
    "dac": "descript-audio-codec",
    "ui": "gradio",
    "wandb": "wandb",
    "s3": "boto3",
    "flash-attn": "flash-attn",
    "bitsandbytes": "bitsandbytes",
    "torchcodec": "torchcodec",
}


@dataclass(frozen=True)
class DescribeSettings(Settings):
    """Settings of `info`."""

    weights: Path | None = option(None, "checkpoint file or folder to describe", positional=True, metavar="WEIGHTS")


def run_info(settings: DescribeSettings) -> int:
    if settings.weights is None:
        print("\n".join(_installation()))
        return 0
    from stable_audio_tools.models.checkpoints import describe_weights

    print(describe_weights(settings.weights))
    return 0


def _installation() -> list[str]:
    import torch

    from stable_audio_tools.core.devices import pick_device

    device = pick_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return [
        f"stable-audio-tools {__version__}",
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"device {device} ({name}), {torch.get_num_threads()} CPU threads",
        *(f"{package} {_version(package)}" for package in _CORE),
        "optional:",
        *(f"  {extra}: {package} {_version(package)}" for extra, package in _OPTIONAL.items()),
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


info = Command(DescribeSettings, run_info, "Describe this installation, or a weight file and its tensors.")
