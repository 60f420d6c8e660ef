"""Identity of the autoencoder behind a dataset of latents, compared with the autoencoder of a model."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.inference.sampling.randomness import RandomStream
from stable_audio_tools.latents.writing import read_details
from stable_audio_tools.models.autoencoders import AudioAutoencoder
from stable_audio_tools.models.bottleneck import (
    DACRVQVAEBottleneck,
    DiscreteBottleneck,
    RVQVAEBottleneck,
    VAEBottleneck,
)
from stable_audio_tools.models.pretransforms import AutoencoderPretransform, ChainPretransform, Pretransform

logger = logging.getLogger(__name__)

_PROBE_FRAMES = 16
_PROBE_LEVEL = 0.3
# Half precision and folded weight normalisation move the probe by less than a hundredth of its size; another
# autoencoder, or the same one before its last million steps, by about all of it.
_SAME = 0.05
_SAME_CODES = 0.9


class Identity(NamedTuple):
    """Identity of an autoencoder."""

    key: str  # of its config and the bits of its weights
    probe: list[float]  # latents of a fixed piece of noise
    codes: list[int] | None  # codes of the same noise, if it is discrete


class LatentEncoder:
    """Encoder of audio for a dataset of latents: the `encode` of an autoencoder, without scaling."""

    def __init__(
        self,
        model: nn.Module,
        *,
        discrete: bool = False,
        deterministic: bool = False,
        half: bool = False,
        device: torch.device | None = None,
        chunked: bool = False,
        chunk_size: int = 128,
        overlap: int = 32,
    ) -> None:
        self.model = autoencoder_of(model)
        self.discrete, self.deterministic, self.half = discrete, deterministic, half
        self.device = device or torch.device("cpu")
        self.ways: JsonObject = {"chunked": chunked, "chunk_size": chunk_size, "overlap": overlap}
        bottleneck = self.model.bottleneck
        if discrete and not isinstance(bottleneck, DiscreteBottleneck):
            raise ConfigError("--is-discrete: this autoencoder has no codebooks; remove the flag")
        if deterministic and isinstance(bottleneck, RVQVAEBottleneck | DACRVQVAEBottleneck):
            raise ConfigError(
                "--deterministic: this bottleneck draws before it quantises and has no mean; remove the flag"
            )
        self.model.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def __call__(self, audio: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Encode audio (b, c, n) to latents (b, d, t) or codes (b, q, t), on the CPU.

        `seeds` holds one seed per item for what the bottleneck draws, so that latents do not depend on the batch; if
        omitted, it draws from the random state of the process.
        """
        audio = audio.to(self.device, torch.float16 if self.half else torch.float32)
        model = self.model.half() if self.half else self.model
        features: Tensor = model.encode_audio(audio, skip_bottleneck=True, **self.ways)
        if model.bottleneck is None:
            return features.cpu()
        if self.deterministic and isinstance(model.bottleneck, VAEBottleneck):
            return posterior_mean(features).cpu()
        encoded = []
        for number, item in enumerate(features.split(1)):
            with nullcontext() if seeds is None else RandomStream(seeds[number], self.device).in_charge():
                latents, info = model.bottleneck.encode(item, return_info=True)
            encoded.append(info[model.bottleneck.tokens_id] if self.discrete else latents)
        return torch.cat(encoded).cpu()


def autoencoder_of(model: nn.Module) -> AudioAutoencoder:
    """Return the model itself, or the autoencoder of its pretransform, which may end a chain."""
    if isinstance(model, AudioAutoencoder):
        return model
    pretransform = getattr(model, "pretransform", None)
    if isinstance(pretransform, AutoencoderPretransform):
        return pretransform.model
    if isinstance(pretransform, ChainPretransform):
        return _end_of(pretransform)
    raise ConfigError(f"{type(model).__name__} is not an autoencoder, and its pretransform is not one either")


def _end_of(chain: ChainPretransform) -> AudioAutoencoder:
    """Return the whole chain as one autoencoder, which shares the weights."""
    *before, last = chain.flat
    if not isinstance(last, AutoencoderPretransform):
        raise ConfigError(
            f"model.pretransform: the last stage of the chain is {type(last).__name__}, not an autoencoder; only a "
            "chain that ends in an autoencoder encodes to latents"
        )
    inner = last.model
    if not before:
        return inner
    if inner.pretransform is not None:
        before.append(inner.pretransform)
    whole = AudioAutoencoder(
        inner.encoder,
        inner.decoder,
        inner.latent_dim,
        chain.downsampling_ratio,
        inner.sample_rate,
        inner.io_channels,
        inner.bottleneck,
        ChainPretransform(before),
        inner.in_channels,
        inner.out_channels,
        inner.soft_clip,
    )
    return whole.train(inner.training)


def posterior_mean(features: Tensor) -> Tensor:
    """Return the mean (b, d, t) of the distribution that the output (b, 2d, t) of a variational encoder describes."""
    return features.chunk(2, dim=1)[0]


# ------------------------------------------------------------------ which autoencoder?


@torch.no_grad()
def identify(autoencoder: AudioAutoencoder, config: Mapping[str, Any] | None = None) -> Identity:
    """Return the identity of an autoencoder, by one short pass."""
    digest = sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(autoencoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    features, codes = _probe(autoencoder)
    return Identity(digest.hexdigest(), [round(float(value), 5) for value in features], codes)


@torch.no_grad()
def _probe(autoencoder: AudioAutoencoder) -> tuple[Tensor, list[int] | None]:
    """Encode a fixed piece of noise; return the features before anything is drawn or quantised, and the codes."""
    weight = next(autoencoder.parameters())
    shape = (1, autoencoder.audio_channels, autoencoder.downsampling_ratio * _PROBE_FRAMES)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    audio = (noise * _PROBE_LEVEL).to(weight.device, weight.dtype)
    was_training = autoencoder.training
    autoencoder.eval()
    try:
        features = autoencoder.encode(audio, skip_bottleneck=True)
        bottleneck, codes = autoencoder.bottleneck, None
        if isinstance(bottleneck, DiscreteBottleneck) and not _draws(bottleneck):
            codes = bottleneck.tokens(bottleneck.encode(features, return_info=True)[1]).flatten().tolist()
    finally:
        autoencoder.train(was_training)
    if isinstance(autoencoder.bottleneck, VAEBottleneck):
        features = posterior_mean(features)
    return features.float().cpu().flatten(), codes


def _draws(bottleneck: nn.Module) -> bool:
    return isinstance(bottleneck, RVQVAEBottleneck | DACRVQVAEBottleneck)


def require_same_autoencoder(model: nn.Module, dataset_config: Mapping[str, Any] | None) -> None:
    """Raise ConfigError if a dataset of latents was encoded by an autoencoder that differs from the model's.

    Folders that other programs wrote do not name their autoencoder, and pass.
    """
    if dataset_config is None or dataset_config.get("dataset_type") != "pre_encoded":
        return
    stored = {}
    pretransform = getattr(model, "pretransform", None)
    for entry in dataset_config.get("datasets", ()):
        details = read_details(entry["path"]) or {}
        _require_same_kind(pretransform, details, entry["path"])
        if isinstance(details.get("autoencoder"), dict) and "probe" in details["autoencoder"]:
            stored[entry["path"]] = details["autoencoder"]
    if not stored:
        return
    try:
        features, codes = _probe(autoencoder_of(model))
    except UserError as error:
        logger.info("the latents are not compared with the model's autoencoder: %s", error)
        return
    for path, recorded in stored.items():
        difference = _difference(features, codes, recorded)
        if difference:
            raise ConfigError(
                f"{path}: these latents were encoded by another autoencoder than the pretransform of this model "
                f"({difference}); they were encoded with {recorded.get('weights') or 'unnamed weights'}. Load those "
                "weights (--pretransform-ckpt-path), or encode the audio again with the weights of the model"
            )


def _require_same_kind(pretransform: Any, details: Mapping[str, Any], path: str) -> None:
    node = details.get("pretransform")
    if node is None and isinstance(details.get("autoencoder"), dict):
        node = {"type": "autoencoder"}
    if not isinstance(node, dict) or not isinstance(pretransform, Pretransform):
        return
    difference = pretransform.unlike(node, details.get("sample_rate", 0))
    if difference is not None:
        raise ConfigError(
            f"{path}: these latents were written by another pretransform than the one of this model ({difference}); "
            "cut the audio again with --model-config (audio_to_images.py for mel bands, pre_encode.py for an "
            "autoencoder), or change the model"
        )


def _difference(features: Tensor, codes: list[int] | None, recorded: Mapping[str, Any]) -> str | None:
    """Describe how the recorded probe differs from these features and codes; None if it does not."""
    expected = torch.tensor(recorded["probe"], dtype=torch.float32)
    if expected.shape != features.shape:
        return f"{len(expected)} latent numbers for the test noise, not {len(features)}"
    error = float((features - expected).norm() / expected.norm().clamp(min=1e-12))
    if not error <= _SAME:
        return f"for the test noise, latents differ by {error:.0%}"
    if codes is not None and recorded.get("codes") is not None:
        equal = sum(ours == theirs for ours, theirs in zip(codes, recorded["codes"])) / max(1, len(codes))
        if equal < _SAME_CODES:
            return f"for the test noise, {1 - equal:.0%} of the codes differ"
    return None
