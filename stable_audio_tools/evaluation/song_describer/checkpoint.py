"""One checkpoint on the captions, after training: shared by processes, and going on where a killed run stopped."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import rank, world_size
from stable_audio_tools.evaluation.embedders import Frames
from stable_audio_tools.evaluation.results import Result
from stable_audio_tools.evaluation.song_describer.generating import CaptionRun
from stable_audio_tools.evaluation.song_describer.scores import score_captions


def judge(run: CaptionRun, rows: Sequence[int], subject: Mapping[str, Any], folder: Path) -> Result | None:
    """Generate, embed and score; None in a process that is done while others still generate.

    Vectors are kept in `folder` under a name that changes with the model, the captions, the sampler and the embedder.
    """
    store = folder / f"{run.embedder.tag}-{_key(run, subject)}"
    batches = run.batches(rows, rank(), world_size())
    with progress_bar("generating", len(batches)) as show:
        for number, batch in enumerate(batches):
            show(number)
            if all(_read(store, row) is not None for row in batch):
                continue
            for row, vector in run.vectors(batch):
                with atomic_path(store / f"{row:06d}.npy") as temporary:
                    np.save(temporary, vector)
    vectors = {row: found for row in rows if (found := _read(store, row)) is not None}
    return score_captions(run, rows, vectors, subject) if len(vectors) == len(rows) else None


def _key(run: CaptionRun, subject: Mapping[str, Any]) -> str:
    told = [
        subject["weights"],
        run.references.digest,
        run.sampling.describe(),
        run.sample_size,
        run.embedder.identity,
    ]
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=6).hexdigest()


def _read(store: Path, row: int) -> Frames | None:
    try:
        vector: Frames = np.load(store / f"{row:06d}.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vector


def require_conditional(model: Any, model_type: str) -> None:
    """Only a model that is told a prompt can be judged by captions."""
    conditioner = getattr(model, "conditioner", None)
    if not model_type.startswith("diffusion_cond") or "prompt" not in getattr(conditioner, "conditioners", {}):
        raise UserError(
            f"a model of type {model_type!r} that takes no 'prompt' cannot be judged by captions; give a model of type "
            "'diffusion_cond' with a conditioner of that id"
        )
