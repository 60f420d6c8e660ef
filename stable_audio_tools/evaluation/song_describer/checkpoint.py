"""Scores of one checkpoint on captioned tracks: shared by processes, and resumable."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stable_audio_tools.core.devices import process_device
from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import rank, world_size
from stable_audio_tools.evaluation.embedders import Frames
from stable_audio_tools.evaluation.embedders.base import digest_of
from stable_audio_tools.evaluation.results import DEFINITIONS, Result, Subject
from stable_audio_tools.evaluation.settings import SongDescriberSettings
from stable_audio_tools.evaluation.song_describer.generating import CaptionRun, sampling_for, score_captions
from stable_audio_tools.evaluation.song_describer.references import clap_node, matching_embedder, read_references
from stable_audio_tools.inference.generation.model import load
from stable_audio_tools.models.checkpoints import load_into


def prepare(settings: SongDescriberSettings) -> tuple[CaptionRun, Subject]:
    """Load the model and the references, and describe the model for its result."""
    device = process_device(settings.device)
    references = read_references(settings.precomputed_embeddings_path)
    node = clap_node(settings.clap_model_name) if settings.clap_model_name else None
    embedder = matching_embedder(references, node, device)
    model = load(settings.model_config, settings.ckpt_path, device, precision=settings.precision)
    require_conditional(model.module, model.facts.model_type)
    if settings.pretransform_ckpt_path is not None:
        pretransform: Any = model.module.pretransform
        if pretransform is None:
            raise ConfigError("--pretransform-ckpt-path was given, but the model has no pretransform")
        load_into(getattr(pretransform, "model", pretransform), settings.pretransform_ckpt_path, ema=None)
    sampling = sampling_for(model.module, replace(settings, precision=model.precision))
    subject = Subject(
        name=str(settings.ckpt_path), model_config=str(settings.model_config), weights=digest_of(model.module)
    )
    batches = (settings.gen_batch_size, settings.clap_batch_size)
    return CaptionRun(model.module, model.config["sample_size"], references, sampling, embedder, *batches), subject


def judge(run: CaptionRun, rows: Sequence[int], subject: Subject, folder: Path) -> Result | None:
    """Generate, embed and score; None in a process that finishes while others still generate.

    Vectors are stored in `folder`, under a name that depends on the model, the captions, the sampler and the embedder.
    """
    parts = [
        DEFINITIONS,
        subject["weights"],
        run.references.digest,
        run.sampling.describe(),
        run.sample_size,
        run.embedder.identity,
    ]
    key = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=6).hexdigest()
    store = folder / f"{run.embedder.tag}-{key}"
    batches = run.batches(rows, rank(), world_size())
    with progress_bar("generating", len(batches)) as show:
        for number, batch in enumerate(batches):
            show(number)
            if all(_read(store, row) is not None for row in batch):
                continue
            for row, vectors in run.vectors(batch):
                with atomic_path(store / f"{row:06d}.npy") as temporary:
                    np.save(temporary, vectors)
    stored = {row: found for row in rows if (found := _read(store, row)) is not None}
    return score_captions(run, rows, stored, subject) if len(stored) == len(rows) else None


def _read(store: Path, row: int) -> Frames | None:
    try:
        vectors: Frames = np.load(store / f"{row:06d}.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vectors


def require_conditional(model: Any, model_type: str) -> None:
    """Raise unless the model takes a prompt, which scoring on captions needs."""
    conditioner = getattr(model, "conditioner", None)
    if not model_type.startswith("diffusion_cond") or "prompt" not in getattr(conditioner, "conditioners", {}):
        raise UserError(
            f"a model of type {model_type!r} that takes no 'prompt' cannot be scored on captions; give a model of type "
            "'diffusion_cond' with a conditioner of that id"
        )
