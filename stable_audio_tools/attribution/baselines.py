"""What scores must beat: chance, and how alike two pieces sound."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.attribution.results import source_of
from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.evaluation.embedders import create_embedder
from stable_audio_tools.evaluation.embedding import embed_files


def random_scores(queries: int, items: int, seed: int = 0) -> Tensor:
    """(q, n) standard normal."""
    return torch.randn(queries, items, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def similarity(queries: Tensor, items: Tensor) -> Tensor:
    """Cosines (q, n) of embeddings (q, e) and (n, e), each less the mean of the items."""
    centre = items.double().mean(0)
    return F.normalize(queries.double() - centre, dim=1) @ F.normalize(items.double() - centre, dim=1).T


def embedding_similarity(
    queries: Sequence[str], items: Sequence[str], embedder: str, cache_dir: str | Path, device: str = "cpu"
) -> Tensor:
    """(q, n) similarity of audio files by an embedder of `evaluation`: "clap", or "logmel", which needs no weights.

    Latents stand for the whole file that they were made from.
    """
    sounds = {name: source_of(name) or name for name in (*queries, *items)}
    files = {sound: Path(sound) for sound in sounds.values()}
    found = embed_files(create_embedder(embedder).to(device), files, cache_dir)
    if found is None:
        raise AudioError("another process is still embedding these files; start again when it is done")
    if found.failed:
        name, reason = next(iter(found.failed.items()))
        raise AudioError(
            f"{name}: cannot be embedded ({reason}); similarity needs the audio of every item, and for latents the "
            "file that the .json beside them tells as path"
        )
    vectors = dict(zip(found.names, torch.from_numpy(found.vectors)))
    sides = (torch.stack([vectors[sounds[name]] for name in names]) for names in (queries, items))
    return similarity(*sides)
