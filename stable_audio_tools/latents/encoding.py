"""Encode a dataset of audio to latents: load model and dataset, then encode the share of this process."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.core.config import load
from stable_audio_tools.core.devices import pick_device
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.core.files import write_text
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import local_rank, rank, world_size
from stable_audio_tools.data.dataset import create_dataloader_from_config, load_dataset_config
from stable_audio_tools.latents.identity import LatentEncoder, autoencoder_of, identify
from stable_audio_tools.latents.settings import PreEncodeSettings
from stable_audio_tools.latents.writing import (
    LatentStore,
    Layout,
    Outcome,
    Share,
    dataset_key,
    left_out_list,
    pre_encode,
    work_size,
)
from stable_audio_tools.models.pretrained import get_pretrained_model, load_model

logger = logging.getLogger(__name__)


def encode_dataset(settings: PreEncodeSettings) -> Outcome:
    """Encode the share of this process; latents that already exist are kept."""
    model_config, encoder, weights = _load(settings)
    dataset_config = _dataset_config(settings.dataset_config)
    rate, sample_size = int(model_config["sample_rate"]), _round_to_frames(settings.sample_size, encoder)
    loader = create_dataloader_from_config(
        dataset_config,
        batch_size=1,
        sample_size=sample_size,
        sample_rate=rate,
        audio_channels=encoder.model.audio_channels,
        num_workers=0,
        shuffle=settings.shuffle,
        seed=settings.seed,
        rank=0,
        world_size=1,
    )
    share = Share(rank(), world_size(), settings.batch_size, settings.num_workers, _limit(settings))
    identity = identify(encoder.model, model_config.get("model"))
    details = {
        "model_config": settings.model_config or settings.pretrained_name,
        "dataset_config": dataset_config,
        "sample_size": sample_size,
        "sample_rate": rate,
        "downsampling_ratio": encoder.model.downsampling_ratio,
        "args": asdict(settings),
        "autoencoder": {"weights": weights, **identity._asdict()},
        "resume": {
            "the autoencoder": identity.key,
            "the files of the dataset": dataset_key(loader),
            "the dataset config": dataset_config,
            "sample_size": sample_size,
            "seed": settings.seed,
            **{key: getattr(settings, key) for key in ("shuffle", "model_half", "is_discrete", "deterministic")},
        },
    }
    store = LatentStore(settings.output_path, details, Layout(share.ranks, settings.batch_size))
    return _run(loader, store, encoder, share)


def _dataset_config(path: str) -> dict[str, Any]:
    """Read the dataset config, set to yield each item once and without augmentation."""
    given = load_dataset_config(path)
    kind = given.get("dataset_type")
    if kind == "pre_encoded" or given.get("pre_encoded"):
        raise ConfigError(f"{path}: is a dataset of latents already")
    once = {"resampled_shards": False} if kind in ("wds", "s3") else {}
    return {"augment_phase": False, **given, **once}


def _run(loader: Any, store: LatentStore, encoder: LatentEncoder, share: Share) -> Outcome:
    outcome = Outcome()
    with progress_bar("encoding", work_size(loader, share)) as show:
        for outcome in pre_encode(loader, store, encoder, share):
            show(outcome.encoded + outcome.kept + outcome.left_out)
    faults = loader.report.faults if share.rank == 0 else loader.report.epoch
    left_out = store.root / f"left_out_{share.rank}.txt"
    if faults:
        write_text(left_out, left_out_list(faults))
        logger.warning("%d items were left out (%s); see %s", len(faults), loader.report.counts(), left_out)
    else:
        left_out.unlink(missing_ok=True)
    if not outcome.encoded and not outcome.kept and outcome.left_out:
        raise AudioError(f"not one item could be encoded: {loader.report.counts()}; see {left_out}")
    return outcome


def _load(settings: PreEncodeSettings) -> tuple[Mapping[str, Any], LatentEncoder, str]:
    """Return the model config, the encoder, and the source of its weights."""
    device = settings.device
    if device in ("auto", "cuda") and torch.cuda.is_available():  # each process of a machine uses its own GPU
        device = f"cuda:{local_rank() % torch.cuda.device_count()}"
    if settings.pretrained_name:
        model, config = get_pretrained_model(settings.pretrained_name)
        weights = settings.pretrained_name
    else:
        assert settings.model_config is not None and settings.ckpt_path is not None
        config, weights = load(settings.model_config), str(Path(settings.ckpt_path).absolute())
        model = load_model(config, settings.ckpt_path, ema=None)
    encoder = LatentEncoder(
        autoencoder_of(model),
        discrete=settings.is_discrete,
        deterministic=settings.deterministic,
        half=settings.model_half,
        device=pick_device(device),
        chunked=settings.chunked,
        chunk_size=settings.chunk_size,
        overlap=settings.overlap,
    )
    return config, encoder, weights


def _round_to_frames(sample_size: int, encoder: LatentEncoder) -> int:
    """Return the nearest number of samples that is a whole number of latent frames."""
    ratio = encoder.model.downsampling_ratio
    whole = max(1, round(sample_size / ratio)) * ratio
    if whole != sample_size:
        logger.warning("--sample-size: a latent frame is %d samples; using %d, not %d", ratio, whole, sample_size)
    return whole


def _limit(settings: PreEncodeSettings) -> int | None:
    """Return the most items of all processes together; None for all."""
    batches = settings.limit_batches
    limits = [settings.limit, None if batches is None else batches * settings.batch_size * world_size()]
    return min((limit for limit in limits if limit is not None), default=None)
