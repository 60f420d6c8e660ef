"""Where a BigVGAN comes from: a weight file beside its `config.json`, a folder of both, or huggingface.co."""

from pathlib import Path

import torch

from stable_audio_tools.core.config import load
from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.mel.bigvgan.config import PUBLISHED, BigVGANConfig
from stable_audio_tools.mel.bigvgan.network import BigVGAN
from stable_audio_tools.models.checkpoints import load_into, parameters_on_meta
from stable_audio_tools.models.pretrained import fetch_from_hub

CONFIG = "config.json"
WEIGHTS = "bigvgan_generator.pt"


def read_config(source: str | Path, config_path: str | Path | None = None) -> BigVGANConfig | None:
    """The config as far as it is at hand without the network; None for a repository that is not published here."""
    path = Path(source).expanduser() if config_path is None else Path(config_path)
    if config_path is None and path.is_dir():
        path = path / CONFIG
    elif config_path is None and path.exists():
        path = path.with_name(CONFIG)
    elif config_path is None:
        return PUBLISHED.get(_name(source))
    return BigVGANConfig.parse(load(path), str(path))


def problem(source: str | Path) -> str | None:
    """One sentence where weights are not on this disk that should be; nothing is fetched."""
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            _weights_in(path)
        elif not path.exists():
            _require_name(path)
    except CheckpointError as error:
        return str(error)
    return None


def load_bigvgan(source: str | Path, config_path: str | Path | None = None) -> BigVGAN:
    """A weight file, a folder, one of the published names, or `owner/repository`; weight norm is folded."""
    path = Path(source).expanduser()
    config = read_config(source, config_path)
    if path.is_dir():
        path = _weights_in(path)
    elif not path.exists():
        _require_name(path)
        repository = f"nvidia/{_name(source)}" if _name(source) in PUBLISHED else str(source)
        path = fetch_from_hub(repository, WEIGHTS)
        if config is None:
            fetched = fetch_from_hub(repository, CONFIG)
            config = BigVGANConfig.parse(load(fetched), f"{repository}/{CONFIG}")
    assert config is not None
    with parameters_on_meta():
        network = BigVGAN(config)
    report = load_into(network, path, partial=True, device=torch.device("cpu"))
    if not report.complete:
        raise CheckpointError(
            f"{path}: does not fit its config\n{report.summary()}\n"
            f"give the {CONFIG} that was published with these weights"
        )
    return network.eval().requires_grad_(False)


def _name(source: str | Path) -> str:
    return str(source).removeprefix("nvidia/")


def _require_name(path: Path) -> None:
    """What is not on this disk must look like `name` or `owner/repository`."""
    if path.suffix or path.is_absolute() or len(path.parts) > 2:
        raise CheckpointError(f"{path}: no such file or folder")


def _weights_in(folder: Path) -> Path:
    if (folder / WEIGHTS).exists():
        return folder / WEIGHTS
    found = sorted(path for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".safetensors"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "none"
    raise CheckpointError(f"{folder}: expected {WEIGHTS}, or one other weight file; found {names}")
