"""Folders of diffusers' audio diffusion pipelines, read and written: `unet/`, `vqvae/`, `mel/`, `scheduler/`.

Published models of spectrogram images are such folders. Their images are `db_image` mels relative to the loudest pixel,
with 8 bits; their autoencoder's latents are multiplied by `scaling_factor`, where ours are divided by `scale`.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Self

from stable_audio_tools.core.config import build
from stable_audio_tools.core.config import load as load_config
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import CheckpointError, ConfigError
from stable_audio_tools.core.files import write_text
from stable_audio_tools.core.packages import require
from stable_audio_tools.mel.pretransform import Node
from stable_audio_tools.models.autoencoders.kl_2d import KL2DDecoder, KL2DEncoder
from stable_audio_tools.models.diffusion.ddpm import DDPMObjective
from stable_audio_tools.models.diffusion.unet2d import UNet2DCondWrapper, UNet2DUncondWrapper
from stable_audio_tools.models.diffusion.wrapper import DiffusionWrapper
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.pretransforms import AutoencoderPretransform

logger = logging.getLogger(__name__)

INDEX_NAME = "model_index.json"
_PIPELINE = "AudioDiffusionPipeline"
_UNETS = {"UNet2DModel": "unet2d", "UNet2DConditionModel": "unet2d_cond"}
_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
_CODEC = "AutoencoderKL"
_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}
_SCHEDULE_AS = {  # the behaviour of the samplers ddpm and ddim; other values would change their steps
    "trained_betas": None,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "variance_type": "fixed_small",
    "set_alpha_to_one": True,
    "predict_epsilon": True,
}
_CODEC_AS = {  # the behaviour of kl_2d
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
_WEIGHTS = "diffusion_pytorch_model"
_WEIGHT_FILES = tuple(f"{_WEIGHTS}.{suffix}{more}" for suffix in ("safetensors", "bin") for more in (".index.json", ""))
_CONDITION = "encoding"  # the id of a conditional model's vector


class MelImages(NamedTuple):
    """The settings of a pipeline's `mel/mel_config.json`, with the defaults of diffusers."""

    x_res: int = 256
    y_res: int = 256
    sample_rate: int = 22050
    n_fft: int = 2048
    hop_length: int = 512
    top_db: float = 80
    n_iter: int = 32


class LoadingInfo(TypedDict):
    """The part of diffusers' report on a loaded network that is read here."""

    missing_keys: list[str]


class SavedPart(Protocol):
    """A part of a pipeline that diffusers writes."""

    def save_pretrained(self, folder: Path) -> None: ...


class DiffusersNetwork(SavedPart, Protocol):
    """A network of diffusers; `config` holds every argument of its constructor."""

    config: Any

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self: ...

    @classmethod
    def from_pretrained(
        cls, folder: Path, *, local_files_only: bool, output_loading_info: bool
    ) -> tuple[Self, LoadingInfo]: ...

    def state_dict(self) -> dict[str, Tensor]: ...


class PipelineFolders:
    """The format of the folders, for `models.folders`."""

    index_name = INDEX_NAME

    def file_patterns(self, suffix: Literal["safetensors", "bin"]) -> list[str]:
        """Return the patterns of a pipeline's files; repositories may also hold other precisions, images, programs."""
        return [INDEX_NAME, "*/*.json", f"*/{_WEIGHTS}.{suffix}", f"*/{_WEIGHTS}-*.{suffix}"]

    def missing_file(self, folder: str | Path) -> str | None:
        """Return the first file that the folder's index names and the folder lacks."""
        folder = Path(folder)
        index = _content(folder / INDEX_NAME)
        networks = ["unet"] if _class_in(index, "vqvae", folder) is None else ["unet", "vqvae"]
        configs = [
            "mel/mel_config.json",
            "scheduler/scheduler_config.json",
            *(f"{part}/config.json" for part in networks),
        ]
        for name in configs:
            if not (folder / name).is_file():
                return name
        for part in networks:
            if not any((folder / part / name).is_file() for name in _WEIGHT_FILES):
                return f"{part}/{_WEIGHTS}.safetensors"
        return None

    def read_config(self, folder: str | Path) -> Node:
        """Read the model config of a pipeline folder, without its weights."""
        folder = Path(folder)
        lost = self.missing_file(folder)
        if lost is not None:
            raise CheckpointError(f"{folder / lost}: no such file, and {INDEX_NAME} names it; copy the whole pipeline")
        unet_class, codec_class = _classes(folder)
        unet = _without_weights(unet_class, folder / "unet")
        codec = None if codec_class is None else _without_weights(codec_class, folder / "vqvae")
        if codec is not None:
            _check_codec(codec, folder / "vqvae" / "config.json")
        config = _model_config(unet, codec, _mel_settings(folder), _objective(folder))
        _check_same(config, unet, folder)
        return config

    def load(self, folder: str | Path) -> tuple[nn.Module, Node]:
        """Load the model in eval mode, and its config."""
        folder = Path(folder)
        config = self.read_config(folder)
        unet_class, codec_class = _classes(folder)
        weights = {f"model.unet.{name}": tensor for name, tensor in _weights(unet_class, folder / "unet").items()}
        if codec_class is not None:
            weights |= _codec_weights(_weights(codec_class, folder / "vqvae"))
        model = create_model_from_config(config)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        if missing or unexpected:
            name = [*missing, *unexpected][0]
            raise CheckpointError(f"{folder}: weights do not fit the model: {name!r} is on one side only")
        return model.eval(), config


PIPELINES = PipelineFolders()


def write_pipeline(model: nn.Module, config: Mapping[str, Any], folder: str | Path) -> None:
    """Write a model as a folder that diffusers opens."""
    folder = Path(folder)
    codec_node, mel_node, objective = _check_writable(config)
    assert isinstance(model, DiffusionWrapper)
    backbone = model.model
    assert isinstance(backbone, UNet2DUncondWrapper | UNet2DCondWrapper)
    _check_size(config, codec_node, mel_node["config"], backbone.multiple)
    diffusers = require("diffusers", extra="mel")
    unet, mel = backbone.unet, mel_node["config"]
    rate, hop, bands = config["sample_rate"], mel.get("hop_length", 256), mel.get("n_mels", 128)
    frames, shrink = config["sample_size"] // hop, _shrinkage(codec_node)
    size = (bands // shrink, frames // shrink)
    before = unet.config.sample_size
    try:
        unet.register_to_config(sample_size=size)
        unet.save_pretrained(folder / "unet")
    finally:
        unet.register_to_config(sample_size=before)
    _scheduler(diffusers, objective).save_pretrained(folder / "scheduler")
    if codec_node is not None:
        assert isinstance(model.pretransform, AutoencoderPretransform)
        _diffusers_codec(diffusers, model.pretransform, bands).save_pretrained(folder / "vqvae")
    vocoder = mel.get("vocoder") or {}
    settings = {
        "x_res": frames,
        "y_res": bands,
        "sample_rate": rate,
        "n_fft": mel.get("n_fft", 1024),
        "hop_length": hop,
        "top_db": mel.get("top_db") or 80,
        "n_iter": (vocoder.get("config") or {}).get("n_iter", 32),
    }
    version = {"_diffusers_version": diffusers.__version__}
    _write_json(folder / "mel" / "mel_config.json", {"_class_name": "Mel", **version, **settings})
    index = {
        "_class_name": _PIPELINE,
        **version,
        "mel": ["diffusers", "Mel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", type(unet).__name__],
        "vqvae": [None, None] if codec_node is None else ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / INDEX_NAME, index)


# ------------------------------------------------------------------ reading


def _class_in(index: Mapping[str, Any], part: str, folder: Path) -> str | None:
    """Return the class of a part; None if the pipeline lacks the part."""
    if index.get("_class_name") != _PIPELINE:
        raise CheckpointError(f"{folder}: {INDEX_NAME} describes a {index.get('_class_name')}, not an {_PIPELINE}")
    entry = index.get(part) or [None, None]
    if not isinstance(entry, list) or len(entry) != 2:
        raise CheckpointError(f"{folder / INDEX_NAME}: {part} is {entry!r}; expected a library and a class in it")
    return None if entry[1] is None else str(entry[1])


def _classes(folder: Path) -> tuple[type[DiffusersNetwork], type[DiffusersNetwork] | None]:
    """Return diffusers' classes of the U-Net and of the autoencoder, which may be None."""
    index = _content(folder / INDEX_NAME)
    known = {"unet": tuple(_UNETS), "scheduler": _SCHEDULERS, "vqvae": (_CODEC, None)}
    for part, names in known.items():
        kind = _class_in(index, part, folder)
        if kind not in names:
            allowed = " and ".join(name for name in names if name)
            raise CheckpointError(f"{folder / INDEX_NAME}: {part} is {kind!r}; supported here: {allowed}")
    diffusers = require("diffusers", extra="mel")
    codec = None if _class_in(index, "vqvae", folder) is None else diffusers.AutoencoderKL
    return getattr(diffusers, str(_class_in(index, "unet", folder))), codec


def _content(path: Path) -> Node:
    try:
        return load_config(path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _settings(path: Path) -> Node:
    return {name: value for name, value in _content(path).items() if not name.startswith("_")}


def _without_weights(kind: type[DiffusersNetwork], folder: Path) -> DiffusersNetwork:
    """Create a network of diffusers on the meta device; its config holds every default."""
    path = folder / "config.json"
    settings = _settings(path)
    try:
        with torch.device("meta"):
            return kind.from_config(settings)
    except Exception as error:  # whatever a constructor raises on values of the wrong kind
        raise CheckpointError(f"{path}: no {kind.__name__} can be built from it ({_reason(error)})") from error


def _weights(kind: type[DiffusersNetwork], folder: Path) -> dict[str, Tensor]:
    file = folder / next(name for name in _WEIGHT_FILES if (folder / name).is_file())
    try:
        network, settings = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as error:  # whatever diffusers raises on a damaged file
        raise CheckpointError(f"{file}: cannot be read ({_reason(error)}); copy the file again") from error
    if settings["missing_keys"]:
        lost = sorted(settings["missing_keys"])
        raise CheckpointError(f"{file}: {lost[0]!r} and {len(lost) - 1} more tensors are missing; copy the file again")
    return network.state_dict()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _number(value: object, name: str, path: Path, whole: bool = False) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not isinstance(value, int | float)
        or not is_number
        or not 0 < value < math.inf
        or (whole and value != int(value))
    ):
        expected = "a whole number" if whole else "a number"
        raise CheckpointError(f"{path}: {name} is {value!r}; expected {expected} above 0")
    return int(value) if whole else float(value)


def _mel_settings(folder: Path) -> MelImages:
    path = folder / "mel" / "mel_config.json"
    stored, defaults = _settings(path), MelImages()._asdict()
    settings: JsonObject = {
        name: _number(stored.get(name, default), name, path, whole=name != "top_db")
        for name, default in defaults.items()
    }
    return MelImages(**settings)


def _refuse_others(settings: Mapping[str, Any], known: Mapping[str, Any], path: Path) -> None:
    """Refuse values of unsupported settings other than the one in use here."""
    for name, value in known.items():
        if settings.get(name, value) != value:
            raise CheckpointError(f"{path}: {name} is {settings[name]!r}, and only {value!r} is supported here")


def _check_codec(codec: DiffusersNetwork, path: Path) -> None:
    """Check every setting of the autoencoder that changes its outputs."""
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in codec.config.items()}
    levels = len(settings["block_out_channels"])
    blocks = {
        "out_channels": settings["in_channels"],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    _refuse_others(settings, {**_CODEC_AS, **blocks}, path)
    _number(settings["scaling_factor"], "scaling_factor", path)


def _objective(folder: Path) -> Node:
    path = folder / "scheduler" / "scheduler_config.json"
    settings = _settings(path)
    known = {
        "beta_schedule": _BETAS,
        "prediction_type": _PREDICTIONS,
    }
    for key, names in known.items():
        if settings.get(key, next(iter(names))) not in list(names):
            raise CheckpointError(f"{path}: {key} is {settings[key]!r}; known are {', '.join(names)}")
    _refuse_others(settings, _SCHEDULE_AS, path)
    objective: Node = {
        name: settings[name] for name in ("num_train_timesteps", "beta_start", "beta_end") if name in settings
    }
    objective["beta_schedule"] = _BETAS[settings.get("beta_schedule", "linear")]
    objective["prediction_type"] = _PREDICTIONS[settings.get("prediction_type", "epsilon")]
    if settings.get("clip_sample", True):
        objective["clip_sample"] = _number(settings.get("clip_sample_range", 1.0), "clip_sample_range", path)
    return {"type": "ddpm", "config": objective}


def _model_config(unet: DiffusersNetwork, codec: DiffusersNetwork | None, mel: MelImages, objective: Node) -> Node:
    bands, hop = mel.y_res, mel.hop_length
    pretransform: Node = {
        "type": "mel",
        "config": {
            "variant": "db_image",
            "n_fft": mel.n_fft,
            "hop_length": hop,
            "n_mels": bands,
            "top_db": mel.top_db,
            "ref": "slice_max",
            "quantize": 8,
            "vocoder": {"type": "griffin_lim", "config": {"n_iter": mel.n_iter}},
        },
    }
    rows = bands
    if codec is not None:
        pretransform = _codec_node(codec, pretransform, bands, hop)
        rows = pretransform["config"]["latent_dim"] // codec.config.latent_channels
    backbone = _unet_node(unet, rows)
    common = {"pretransform": pretransform}
    if backbone["type"] == "unet2d":
        model = {**backbone, "diffusion_objective": objective, **common}
    else:
        model = _conditioned(backbone, objective, unet.config.cross_attention_dim) | common
    return {
        "model_type": "diffusion_uncond" if backbone["type"] == "unet2d" else "diffusion_cond",
        "sample_rate": mel.sample_rate,
        "sample_size": mel.x_res * hop,
        "audio_channels": 1,
        "model": model,
    }


def _conditioned(backbone: Node, objective: Node, width: int) -> Node:
    vector = {"id": _CONDITION, "type": "precomputed", "config": {"dim": width}}
    return {
        "io_channels": backbone["config"]["io_channels"],
        "conditioning": {"cond_dim": width, "configs": [vector]},
        "diffusion": {**backbone, "diffusion_objective": objective, "cross_attention_cond_ids": [_CONDITION]},
    }


def _unet_node(unet: DiffusersNetwork, rows: int) -> Node:
    settings = unet.config
    node: Node = {
        "io_channels": settings.in_channels * rows,
        "image_channels": settings.in_channels,
        "block_out_channels": list(settings.block_out_channels),
        "attention_levels": [index for index, name in enumerate(settings.down_block_types) if "Attn" in name],
        "layers_per_block": settings.layers_per_block,
        "norm_groups": settings.norm_num_groups,
        "dropout": float(settings.dropout),
    }
    if type(unet).__name__ == "UNet2DModel":
        return {"type": "unet2d", "config": {**node, "attention_head_dim": settings.attention_head_dim}}
    more = {"attention_heads": settings.attention_head_dim, "cond_token_dim": settings.cross_attention_dim}
    return {"type": "unet2d_cond", "config": {**node, **more}}


def _codec_node(codec: DiffusersNetwork, mel: Node, bands: int, hop: int) -> Node:
    settings = codec.config
    downsamplings = len(settings.block_out_channels) - 1
    part = {
        "bands": bands,
        "image_channels": settings.in_channels,
        "latent_channels": settings.latent_channels,
        "downsamplings": downsamplings,
        "block_out_channels": list(settings.block_out_channels),
        "layers_per_block": settings.layers_per_block,
        "mid_attention": bool(settings.mid_block_add_attention),
        "norm_groups": settings.norm_num_groups,
    }
    config = {
        "encoder": {"type": "kl_2d", "config": part},
        "decoder": {"type": "kl_2d", "config": dict(part)},
        "bottleneck": {"type": "kl"},
        "pretransform": mel,
        "latent_dim": settings.latent_channels * math.ceil(bands / 2**downsamplings),
        "downsampling_ratio": hop * 2**downsamplings,
        "io_channels": 1,
    }
    return {"type": "autoencoder", "scale": 1 / settings.scaling_factor, "config": config}


def _codec_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    halves = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}
    return {
        f"pretransform.model.{half}.{name}": tensor
        for half, prefixes in halves.items()
        for name, tensor in state.items()
        if name.startswith(prefixes)
    }


def _check_same(config: Node, unet: DiffusersNetwork, folder: Path) -> None:
    """Check that our U-Net equals theirs in every setting, not only in the shapes of its weights."""
    try:
        with torch.device("meta"):
            model = create_model_from_config(config)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: the pipeline cannot be built here: {'; '.join(error.problems)}") from None
    assert isinstance(model.model, UNet2DUncondWrapper | UNet2DCondWrapper)
    ours = model.model.unet
    for key, value in unet.config.items():
        other = ours.config.get(key)
        as_lists = [list(item) if isinstance(item, tuple) else item for item in (value, other)]
        if not key.startswith("_") and key != "sample_size" and as_lists[0] != as_lists[1]:
            raise CheckpointError(
                f"{folder}/unet/config.json: {key} is {value!r}, and only {other!r} is supported here"
            )


# ------------------------------------------------------------------ writing


def _check_writable(config: Mapping[str, Any]) -> tuple[Node | None, Node, DDPMObjective]:
    """Return the autoencoder's config or None, the mel's node, and the objective."""
    model = config["model"]
    backbone = model if config["model_type"] == "diffusion_uncond" else model.get("diffusion", {})
    if backbone.get("type") not in _UNETS.values():
        raise ConfigError(f"model: a pipeline folder holds unet2d or unet2d_cond, and this is {backbone.get('type')!r}")
    objective = backbone.get("diffusion_objective")
    if not isinstance(objective, Mapping):
        raise ConfigError(f"model.diffusion_objective: a pipeline folder holds 'ddpm', and this is {objective!r}")
    table: DDPMObjective = build("objective", objective, "model.diffusion_objective")
    node = model.get("pretransform") or {}
    codec = None
    if node.get("type") == "chain" and len(node["config"]["stages"]) == 2:
        mel, outer = node["config"]["stages"]
        node = {**outer, "config": {**outer["config"], "pretransform": mel}}
    if node.get("type") == "autoencoder":
        codec, node = node["config"], node["config"].get("pretransform") or {}
        if codec["encoder"]["type"] != "kl_2d":
            raise ConfigError(f"model.pretransform: a pipeline folder holds a kl_2d, not {codec['encoder']['type']!r}")
    if node.get("type") != "mel" or node["config"].get("variant") != "db_image":
        raise ConfigError("model.pretransform: a pipeline folder holds mels of the variant 'db_image', and no others")
    _check_mel(node["config"], config["sample_rate"])
    reference = node["config"].get("ref")
    if reference != "slice_max":
        logger.warning(
            "images of pipelines are relative to their loudest pixel, but ref of this model is %r", reference
        )
    return codec, node, table


def _check_mel(mel: Mapping[str, Any], sample_rate: int) -> None:
    """Refuse settings that diffusers' Mel lacks."""
    known = {
        "fmin": (0, None),
        "fmax": (sample_rate / 2, None),
        "win_length": (mel.get("n_fft", 1024), None),
        "channels": (1,),
    }
    for name, values in known.items():
        if mel.get(name, values[0]) not in values:
            raise ConfigError(
                f"model.pretransform: {name} of the mel transform is {mel[name]!r}, and pipeline folders hold only "
                f"{values[0]:g}; a model of other spectrograms cannot be written as one"
            )


def _shrinkage(codec: Node | None) -> int:
    """Return the factor between bands, or frames, and the pixels of the U-Net."""
    return 1 if codec is None else int(2 ** codec["encoder"]["config"].get("downsamplings", 2))


def _check_size(config: Mapping[str, Any], codec: Node | None, mel: Node, multiple: int) -> None:
    """Check the size of images: our U-Net pads them to a multiple, diffusers' does not."""
    step = multiple * _shrinkage(codec)
    bands, samples, hop = mel.get("n_mels", 128), config["sample_size"], mel.get("hop_length", 256)
    if bands % step:
        raise ConfigError(
            f"model.pretransform: n_mels is {bands}; diffusers cannot halve the bands of such images as often as the "
            f"networks do, so a pipeline folder needs a multiple of {step}"
        )
    if samples % (step * hop):
        raise ConfigError(
            f"sample_size: is {samples}, {samples / hop:g} frames; diffusers cannot halve them as often as the "
            f"networks do, so a pipeline folder needs a multiple of {step} frames: of {step * hop} samples"
        )


def _scheduler(diffusers: ModuleType, objective: DDPMObjective) -> SavedPart:
    betas = {ours: theirs for theirs, ours in _BETAS.items()}
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    return diffusers.DDIMScheduler(
        num_train_timesteps=objective.num_train_timesteps,
        beta_start=objective.beta_start,
        beta_end=objective.beta_end,
        beta_schedule=betas[objective.beta_schedule],
        prediction_type=predictions[objective.prediction_type],
        clip_sample=objective.clip_sample is not None,
        clip_sample_range=objective.clip_sample or 1.0,
    )


def _diffusers_codec(diffusers: ModuleType, pretransform: AutoencoderPretransform, bands: int) -> SavedPart:
    encoder, decoder = pretransform.model.encoder, pretransform.model.decoder
    assert isinstance(encoder, KL2DEncoder) and isinstance(decoder, KL2DDecoder)
    network: Any = encoder.encoder
    widths = tuple(block.resnets[0].out_channels for block in network.down_blocks)
    codec: Any = diffusers.AutoencoderKL(
        in_channels=encoder.image_channels,
        out_channels=encoder.image_channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=len(network.down_blocks[0].resnets),
        latent_channels=decoder.latent_channels,
        norm_num_groups=network.conv_norm_out.num_groups,
        mid_block_add_attention=network.mid_block.attentions[0] is not None,
        scaling_factor=1 / pretransform.scale,
        sample_size=bands,
    )
    codec.load_state_dict({**encoder.state_dict(), **decoder.state_dict()})
    saved: SavedPart = codec
    return saved


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2) + "\n")
