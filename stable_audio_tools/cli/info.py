"""`info`: what is installed here, or what is in a weight file."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stable_audio_tools.cli.command import command, make_parser
from stable_audio_tools.version import __version__

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


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "stable-audio-tools info",
        "Describe this installation, or a weight file: what it is and which tensors it holds.",
    )
    made.add_argument("weights", type=Path, nargs="?", metavar="WEIGHTS", help="checkpoint file or folder to describe")
    return made


def run(arguments: argparse.Namespace) -> int:
    if arguments.weights is None:
        print("\n".join(_installation()))
        return 0
    from stable_audio_tools.models.checkpoints import describe_weights

    print(describe_weights(arguments.weights))
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


main = command(parser, run)
