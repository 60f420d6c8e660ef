"""The app in a browser: published entry points and the server."""

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.packages import require
from stable_audio_tools.inference.generation.model import AudioModel, Inspection, load
from stable_audio_tools.interface.gallery import Gallery
from stable_audio_tools.interface.inputs import MOST_BYTES
from stable_audio_tools.interface.layout import build
from stable_audio_tools.interface.runner import Runner
from stable_audio_tools.interface.widgets import STYLE
from stable_audio_tools.models.checkpoints import load_into

if TYPE_CHECKING:
    from gradio import Blocks

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = "outputs/app"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_MOST_WAITING = 64
_HIGHEST_PORT = 65535


def create_ui(
    model_config_path: str | Path | None = None,
    ckpt_path: str | Path | None = None,
    pretrained_name: str | None = None,
    pretransform_ckpt_path: str | Path | None = None,
    model_half: bool | None = None,
    gradio_title: str = "",
    tmp_dir: str | Path = "",
    *,
    precision: str | None = None,
    device: str | None = None,
    lora: Sequence[tuple[str | Path, float]] = (),
    inspection: Inspection | None = None,
) -> "Blocks":
    """Return the app of a model as `gradio.Blocks`, for `serve` or its own `launch`.

    `model_half`: None and True are float16 on a GPU, float32 on the CPU; `precision` overrides it. `tmp_dir`: folder of
    the runs, `outputs/app` if empty. `lora`: adapter files and the initial strengths of their sliders. `inspection`:
    a check of every item, such as `CopyGuard`.
    """
    _check_source(model_config_path, ckpt_path, pretrained_name)
    require("gradio", extra="ui")  # before the model is loaded
    dtype = precision or {None: "auto", True: "auto", False: "float32"}[model_half]
    if model_config_path is not None:
        model = load(model_config_path, ckpt_path, device, precision=dtype)
    else:
        model = load(pretrained_name or str(ckpt_path), None, device, precision=dtype)
    if model_half and precision is None and model.precision == "float32":
        logger.warning("half precision is for GPUs; the model stays in float32 on %s", model.device)
    if pretransform_ckpt_path:
        _load_pretransform(model, pretransform_ckpt_path)
    for path, strength in lora:
        model.load_lora(path, strength)
    return create_app(model, gradio_title, tmp_dir or DEFAULT_FOLDER, inspection)


# Published globals, set by `load_model`; other apps read them.
model: nn.Module | None = None
sample_rate: int | None = None
sample_size: int | None = None
model_type: str | None = None


def load_model(
    model_config: Mapping[str, Any] | None = None,
    model_ckpt_path: str | Path | None = None,
    pretrained_name: str | None = None,
    pretransform_ckpt_path: str | Path | None = None,
    device: str | torch.device = "cuda",
    model_half: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model for generation and return it with its config; `device` "cuda" is the CPU without a GPU."""
    global model, sample_rate, sample_size, model_type
    _check_source(model_config, model_ckpt_path, pretrained_name)
    precision = "float16" if model_half else "float32"
    place = None if str(device) == "cuda" else device
    source = pretrained_name if pretrained_name is not None else model_config or str(model_ckpt_path)
    loaded = load(source, model_ckpt_path if model_config is not None else None, place, precision=precision)
    if pretransform_ckpt_path:
        _load_pretransform(loaded, pretransform_ckpt_path)
    model, config = loaded.module, loaded.config
    sample_rate, sample_size, model_type = config["sample_rate"], config["sample_size"], config["model_type"]
    return model, config


def create_app(
    model: AudioModel,
    title: str = "",
    folder: str | Path = DEFAULT_FOLDER,
    inspection: Inspection | None = None,
) -> "Blocks":
    """Return the app of a loaded model."""
    return build(
        require("gradio", extra="ui"), Runner(model, inspection), Gallery(folder), title or "Stable Audio Tools"
    )


def serve(
    app: "Blocks",
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    username: str | None = None,
    password: str | None = None,
    **options: Any,
) -> tuple[object, str, str]:
    """Launch the app and return its server, local and public address; a login protects the page and the API."""
    check_login(username, password)
    check_port(port)
    if username is None and (share or host not in _LOCAL):
        where = "on a public link" if share else f"to everyone who can reach {host}"
        logger.warning("the app is open %s without a login; set --username and --password", where)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if port == 0:
        with socket.socket() as free:
            free.bind((_LOCAL[0], 0))
            port = int(free.getsockname()[1])
    theme = require("gradio").themes.Soft(primary_hue="violet", neutral_hue="slate")
    launched: tuple[object, str, str] = app.queue(max_size=_MOST_WAITING).launch(
        server_name=host,
        server_port=port,
        share=share,
        auth=None if username is None else (username, password),
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        footer_links=["api", "settings"],
        **{"theme": theme, "css": STYLE, **options},
    )
    return launched


def check_login(username: str | None, password: str | None) -> None:
    """Raise ConfigError for an incomplete login."""
    if (username is None) != (password is None):
        missing = "password" if password is None else "username"
        raise ConfigError(f"{missing}: missing; a login needs a user name and a password")
    if username == "" or password == "":
        raise ConfigError("username, password: must not be empty")


def check_port(port: int | None) -> None:
    """Raise ConfigError for a number that is not a port."""
    if port is not None and not 0 <= port <= _HIGHEST_PORT:
        raise ConfigError(f"port: must be from 0 (any free port) to {_HIGHEST_PORT}, got {port}")


def _check_source(config: object, weights: object, name: str | None) -> None:
    if name is not None and (config is not None or weights is not None):
        raise ConfigError("pretrained_name: give it alone, or model_config_path with ckpt_path instead")
    if name is None and weights is None:  # weights alone may hold their config
        raise ConfigError("model: missing; give pretrained_name, or model_config_path with ckpt_path")


def _load_pretransform(model: AudioModel, path: str | Path) -> None:
    codec = getattr(model.module, "pretransform", None)
    if not isinstance(codec, nn.Module):
        raise ConfigError("pretransform_ckpt_path: this model has no pretransform; leave it out")
    load_into(getattr(codec, "model", codec), path, ema=None)
