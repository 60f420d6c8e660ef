"""Sets of vectors: of a folder of audio, of fadtk's caches, or of published statistics."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.embedders.base import Embedder, Frames
from stable_audio_tools.evaluation.embedding import EmbeddedFiles, embed_files, find_audio
from stable_audio_tools.evaluation.metrics.frechet import FileMoments, Gaussian, gaussian_from_moments, gaussian_of
from stable_audio_tools.evaluation.settings import Unit

logger = logging.getLogger(__name__)


class SetRecord(TypedDict, total=False):
    """Description of a set in a result file."""

    source: str
    made_by: str
    digest: str
    vectors: int | None
    files: int
    failed: dict[str, str]


class SetMoments(TypedDict):
    """Fingerprint of a set that two runs on different devices share up to rounding."""

    made_by: str
    vectors: int | None
    mean_square: float
    variance: float


@dataclass(frozen=True)
class FeatureSet:
    """Vectors of files, or moments alone; `made_by` names the tool that computed them."""

    source: str
    files: EmbeddedFiles | None = None
    moments: Gaussian | None = None
    made_by: str = "stable-audio-tools"
    unit: Unit = "frames"
    paths: Mapping[str, Path] = field(default_factory=dict)

    @property
    def embedded(self) -> EmbeddedFiles:
        """The files and their vectors; raises if only moments are known."""
        if self.files is None:
            raise UserError(f"{self.source}: contains statistics only; this score needs the vectors themselves")
        return self.files

    @cached_property
    def file_vectors(self) -> Sequence[Frames]:
        """Vectors (f, d) of each file: its frames, or their mean (1, d)."""
        if self.unit == "frames":
            return list(self.embedded.frames.values())
        return [vector[None] for vector in self.embedded.vectors]

    @cached_property
    def vectors(self) -> Frames:
        """Vectors (n, d) of all files."""
        return np.concatenate(self.file_vectors)

    @cached_property
    def gaussian(self) -> Gaussian:
        return self.moments if self.moments is not None else gaussian_of(self.vectors)

    @cached_property
    def file_moments(self) -> FileMoments | Gaussian:
        """Moments per block of files, for intervals; the moments alone if the files are not known."""
        return self.moments if self.moments is not None else FileMoments(self.file_vectors)

    def describe(self) -> SetRecord:
        """Describe the set for a result file."""
        arrays = [self.vectors] if self.files is not None else [self.gaussian.mean, self.gaussian.factor]
        digest = hashlib.blake2b(digest_size=6)
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        record = SetRecord(
            source=self.source, made_by=self.made_by, digest=digest.hexdigest(), vectors=self.gaussian.count
        )
        if self.files is not None:
            record["files"], record["failed"] = len(self.files.frames), dict(self.files.failed)
        return record

    def fingerprint(self) -> SetMoments:
        """Summarise the vectors, for comparing the setups of two results."""
        square = float(np.square(self.gaussian.mean).sum())
        return SetMoments(
            made_by=self.made_by,
            vectors=self.gaussian.count,
            mean_square=square,
            variance=self.gaussian.variance,
        )


def audio_set(
    source: str,
    embedder: Embedder,
    cache_dir: Path,
    unit: Unit = "frames",
    limit: int | None = None,
    batch_size: int = 8,
    workers: int = 4,
) -> FeatureSet | None:
    """Embed a folder of audio; None while other processes still embed their share."""
    paths = find_audio(source, limit)
    files = embed_files(embedder, paths, cache_dir, batch_size, workers, title=f"{embedder.tag}: {Path(source).name}")
    if files is None:
        return None
    if not files.frames:
        name, reason = next(iter(files.failed.items()))
        raise UserError(f"{source}: none of {len(files.failed)} files could be embedded; {name}: {reason}")
    if files.failed:
        logger.warning("%s: %d of %d files skipped", source, len(files.failed), len(paths))
    return FeatureSet(source, files, unit=unit, paths=paths)


# ------------------------------------------------------------------ files of other tools


def packaged_set(source: str, name: str) -> FeatureSet:
    """Read the moments of an embedder from a `.npz` file.

    fadtk packs `<name>.mu` and `<name>.cov` of several embedders. stable-audio-metrics stores `mu_ref` and `sigma_ref`
    of OpenL3, with the settings in the file name.
    """
    try:
        with np.load(source, allow_pickle=False) as stored:
            if {"mu_ref", "sigma_ref"} <= set(stored.files):
                moments = gaussian_from_moments(stored["mu_ref"], stored["sigma_ref"])
                if not name.startswith("openl3"):
                    raise UserError(
                        f"{source}: statistics of OpenL3 by stable-audio-metrics, which cannot be compared with "
                        f"embedder {name!r}; use --embedder openl3-stable-audio"
                    )
                return FeatureSet(source, moments=moments, made_by="stable-audio-metrics")
            if f"{name}.mu" not in stored or f"{name}.cov" not in stored:
                known = sorted(key.removesuffix(".mu") for key in stored.files if key.endswith(".mu"))
                raise UserError(f"{source}: contains no statistics of embedder {name!r}; {nearest(name, known)}")
            moments = gaussian_from_moments(stored[f"{name}.mu"], stored[f"{name}.cov"])
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source}: cannot be read as a file of statistics ({error})") from None
    return FeatureSet(source, moments=moments, made_by="fadtk")


def folder_of_fadtk(source: str, name: str, unit: Unit = "frames", limit: int | None = None) -> FeatureSet | None:
    """Read fadtk's cache for an embedder in a folder of audio: vectors, else moments; None if it has neither."""
    vectors, stats = Path(source) / "embeddings" / name, Path(source) / "stats" / name
    arrays = sorted(vectors.glob("*.npy"))[:limit] if vectors.is_dir() else []
    if arrays:
        read = {path.stem: _read_frames(path) for path in arrays}
        frames = {stem: array for stem, array in read.items() if array is not None}
        failed = {stem: "not a readable array (frames, dimensions)" for stem, array in read.items() if array is None}
        for stem, reason in failed.items():
            logger.warning("%s/%s.npy: skipped (%s)", vectors, stem, reason)
        if frames:
            return FeatureSet(source, EmbeddedFiles(frames, failed), made_by="fadtk", unit=unit)
    if (stats / "mu.npy").is_file() and (stats / "cov.npy").is_file():
        mean, covariance = (_read_array(stats / file) for file in ("mu.npy", "cov.npy"))
        if mean is None or covariance is None:
            raise UserError(f"{stats}: mu.npy and cov.npy are not readable arrays of finite numbers")
        return FeatureSet(source, moments=gaussian_from_moments(mean, covariance), made_by="fadtk")
    return None


def _read_frames(path: Path) -> Frames | None:
    """Read an array (frames, d) of finite numbers, or None; one vector counts as one frame."""
    array = _read_array(path)
    if array is None or array.ndim > 2:
        return None
    return np.atleast_2d(array).astype(np.float32)


def _read_array(path: Path) -> NDArray[np.float64] | None:
    try:
        array: NDArray[np.float64] = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.size and np.isfinite(array).all() else None
