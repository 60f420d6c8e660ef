"""`info`: what is installed here, or what is in a weight file."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.settings import Settings, option
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


@dataclass(frozen=True)
class DescribeSettings(Settings):
    """Settings of `info`."""

    weights: Path | None = option(None, "checkpoint file or folder to describe", positional=True, metavar="WEIGHTS")


def run(settings: DescribeSettings) -> int:
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


main = Command(
    DescribeSettings, run, "Describe this installation, or a weight file: what it is and which tensors it holds."
)
