"""Sets of vectors: of a folder of audio, or as fadtk left them on disk."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.embedders.base import Embedder, Frames
from stable_audio_tools.evaluation.embedding import EmbeddedFiles, embed_files, find_audio
from stable_audio_tools.evaluation.metrics.frechet import Gaussian, gaussian_from_moments, gaussian_of
from stable_audio_tools.evaluation.settings import Unit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureSet:
    """Vectors of files, or moments alone; `made_by` is "fadtk" for what that wrote."""

    source: str
    files: EmbeddedFiles | None = None
    moments: Gaussian | None = None
    made_by: str = "stable-audio-tools"
    unit: Unit = "frames"
    paths: Mapping[str, Path] = field(default_factory=dict)

    @property
    def embedded(self) -> EmbeddedFiles:
        """The files and their vectors, for scores that moments do not give."""
        if self.files is None:
            raise UserError(f"{self.source}: holds statistics only; this score needs the vectors themselves")
        return self.files

    @cached_property
    def vectors(self) -> Frames:
        """(n, d): all frames, or the mean of each file."""
        return self.embedded.all_frames if self.unit == "frames" else self.embedded.vectors

    @cached_property
    def gaussian(self) -> Gaussian:
        return self.moments if self.moments is not None else gaussian_of(self.vectors)

    @cached_property
    def digest(self) -> str:
        """Twelve digits that change with the vectors, or with the moments."""
        held = [self.vectors] if self.files is not None else [self.gaussian.mean, self.gaussian.factor]
        digest = hashlib.blake2b(digest_size=6)
        for array in held:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """For a result file."""
        told: dict[str, Any] = {"source": self.source, "made_by": self.made_by, "digest": self.digest}
        told["vectors"] = self.gaussian.count
        if self.files is not None:
            told |= {"files": len(self.files.frames), "failed": dict(self.files.failed)}
        return told


def audio_set(
    source: str,
    embedder: Embedder,
    cache_dir: Path,
    unit: Unit = "frames",
    limit: int | None = None,
    batch_size: int = 8,
    workers: int = 4,
) -> FeatureSet | None:
    """The vectors of a folder of audio; None while other processes still embed their share."""
    paths = find_audio(source, limit)
    files = embed_files(embedder, paths, cache_dir, batch_size, workers, title=f"{embedder.tag}: {Path(source).name}")
    if files is None:
        return None
    if not files.frames:
        name, reason = next(iter(files.failed.items()))
        raise UserError(f"{source}: none of {len(files.failed)} files could be embedded; {name}: {reason}")
    if files.failed:
        logger.warning("%s: %d of %d files left out", source, len(files.failed), len(paths))
    return FeatureSet(source, files, unit=unit, paths=paths)


# ------------------------------------------------------------------ files of fadtk


def packaged_set(source: str, name: str) -> FeatureSet:
    """The moments of an embedder in a `.npz` of fadtk: `<name>.mu` and `<name>.cov`."""
    try:
        with np.load(source, allow_pickle=False) as stored:
            if f"{name}.mu" not in stored or f"{name}.cov" not in stored:
                known = sorted(key.removesuffix(".mu") for key in stored.files if key.endswith(".mu"))
                raise UserError(f"{source}: holds no statistics of embedder {name!r}; {nearest(name, known)}")
            moments = gaussian_from_moments(stored[f"{name}.mu"], stored[f"{name}.cov"])
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source}: cannot be read as a file of statistics ({error})") from None
    return FeatureSet(source, moments=moments, made_by="fadtk")


def folder_of_fadtk(source: str, name: str, unit: Unit = "frames", limit: int | None = None) -> FeatureSet | None:
    """What fadtk cached in a folder of audio for an embedder: vectors, else moments; None where it has neither."""
    vectors, stats = Path(source) / "embeddings" / name, Path(source) / "stats" / name
    arrays = sorted(vectors.glob("*.npy"))[:limit] if vectors.is_dir() else []
    if arrays:
        read = {path.stem: _read_array(path) for path in arrays}
        frames = {stem: array for stem, array in read.items() if array is not None}
        failed = {stem: "not a readable array (frames, dimensions)" for stem, array in read.items() if array is None}
        for stem, reason in failed.items():
            logger.warning("%s/%s.npy: left out (%s)", vectors, stem, reason)
        if frames:
            return FeatureSet(source, EmbeddedFiles(frames, failed), made_by="fadtk", unit=unit)
    if (stats / "mu.npy").is_file() and (stats / "cov.npy").is_file():
        mean, covariance = (_read_array(stats / file, 0) for file in ("mu.npy", "cov.npy"))
        if mean is None or covariance is None:
            raise UserError(f"{stats}: mu.npy and cov.npy are no readable, finite arrays")
        return FeatureSet(source, moments=gaussian_from_moments(mean, covariance), made_by="fadtk")
    return None


def _read_array(path: Path, dimensions: int = 2) -> Any:
    """A finite array, or None; one vector counts as one frame."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if dimensions == 2:
        array = np.atleast_2d(array)
    usable = array.size > 0 and np.isfinite(array).all() and (not dimensions or array.ndim == dimensions)
    return array.astype(np.float32 if dimensions else np.float64) if usable else None
