"""Feature files: raw float32 rows, `.ids.txt` with one line per row, and `.meta.json` with their settings and origin.

During a run, rows are in `NAME.part`, with a byte per row in `NAME.part.rows` and the metadata in `NAME.part.json`; a
killed run resumes from these files. The names without `.part` exist only after completion.
"""

import glob
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EACCES, EISDIR
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.files import atomic_path, write_text

logger = logging.getLogger(__name__)

# Settings that features must share to be compared; the data may differ.
COMPARED = (
    "weights",
    "model",
    "parameters",
    "f",
    "projection",
    "seed",
    "model_id",
    "proj_dim",
    "timesteps",
    "e_seed",
    "noise_levels",
)
# Likewise for files of the original scripts, which record less.
_COMPARED_FOREIGN = ("proj_dim", "K", "t_strategy", "num_train_steps", "f", "model_id", "param_regex", "grad_dim")
# Compared if both files record them.
_COMPARED_IF_RECORDED = ("num_train_steps", "cfg_dropout_prob", "sample_size", "mask_padding")

_PENDING, _DONE = 0, 1
Array = NDArray[np.float32]


@dataclass(frozen=True)
class FeaturePaths:
    """Paths of one set of features."""

    feature: Path
    ids: Path
    meta: Path

    @classmethod
    def of(cls, feature: str | Path, ids: str | Path | None = None, meta: str | Path | None = None) -> "FeaturePaths":
        """Return the paths beside the features, unless given."""
        name = str(feature)
        return cls(Path(feature), Path(ids or f"{name}.ids.txt"), Path(meta or f"{name}.meta.json"))

    @property
    def part(self) -> Path:
        return self.feature.with_name(f"{self.feature.name}.part")

    @property
    def part_rows(self) -> Path:
        return self.feature.with_name(f"{self.feature.name}.part.rows")

    @property
    def part_meta(self) -> Path:
        return self.feature.with_name(f"{self.feature.name}.part.json")

    @property
    def left_out(self) -> Path:
        return self.feature.with_name(f"{self.feature.name}.left_out.txt")

    def shard(self, index: int, count: int) -> "FeaturePaths":
        """Return the paths of one process among several."""
        return FeaturePaths.of(f"{self.feature}.shard-{index}-of-{count}")


class FeatureWriter:
    """A resumable writer of rows in any order; `finish` drops rows that were never written."""

    def __init__(self, paths: FeaturePaths, rows: int, dim: int, about: JsonObject, overwrite: bool) -> None:
        self.paths, self.about, self.shape = paths, dict(about), (rows, dim)
        with _writing(paths):
            for path in (paths.feature, paths.ids, paths.meta):
                _require_place(path)
        self.finished = None if overwrite else self._find_finished()  # metadata of a complete file
        if self.finished is not None:
            return
        with _writing(paths):
            if not overwrite and self._is_resumable():
                self._mend()
            else:
                self._start()
            self.rows = np.memmap(paths.part, np.float32, "r+", shape=self.shape)
            self.state = np.memmap(paths.part_rows, np.uint8, "r+", shape=(rows,))

    @property
    def pending(self) -> list[int]:
        """Rows that are not computed yet."""
        return [int(row) for row in np.flatnonzero(self.state == _PENDING)]

    def write(self, numbers: Sequence[int], features: Tensor) -> None:
        """Write features (len(numbers), dim) to disk, and then mark the rows as done."""
        self.rows[list(numbers)] = features.numpy()
        self.rows.flush()
        self.state[list(numbers)] = _DONE
        self.state.flush()

    def finish(self, ids: Sequence[str], left_out: int = 0) -> None:
        """Write the computed rows and their ids under the final names, and record the count `left_out`."""
        done = np.flatnonzero(self.state == _DONE)
        with atomic_path(self.paths.feature) as temporary:
            self.rows[done].tofile(temporary)
        write_text(self.paths.ids, "".join(f"{ids[row]}\n" for row in done))
        save({**_complete_meta(self.paths, len(done), self.about), "left_out": left_out}, self.paths.meta)
        del self.rows, self.state
        for path in (self.paths.part, self.paths.part_rows, self.paths.part_meta):
            path.unlink()

    def _find_finished(self) -> JsonObject | None:
        """Return the metadata of exactly these features; any other existing file is an error and is not overwritten."""
        paths = self.paths
        if paths.meta.exists():
            stored = load(paths.meta)
            if stored.get("valid_rows") == 0 and _differences(stored, self.about):
                return None
            _require_same(stored, self.about, paths.feature)
            if paths.feature.exists():
                _require_complete(paths)
                return stored
        elif not self._is_resumable():
            existing = next((path for path in (paths.feature, paths.ids) if path.exists()), None)
            if existing is not None:
                raise ConfigError(
                    f"{existing}: already exists without its metadata {paths.meta}; choose another "
                    "--feature-path, or pass --overwrite to replace it"
                )
        return None

    def _is_resumable(self) -> bool:
        """Return whether an earlier run of exactly these features left some of them."""
        paths = self.paths
        if not paths.part_meta.exists() or not paths.part_rows.exists() or not any(paths.part_rows.read_bytes()):
            return False
        _require_same(load(paths.part_meta), self.about, paths.part)
        return True

    def _mend(self) -> None:
        """Mark rows that a truncated file lacks as not computed."""
        rows, dim = self.shape
        part, state = self.paths.part, self.paths.part_rows.read_bytes()
        size = part.stat().st_size if part.exists() else 0
        if (size, len(state)) == (rows * dim * 4, rows):
            return
        intact = min(rows, size // (dim * 4), len(state))
        logger.warning("%s is damaged; all rows but the first %d are computed again", part, intact)
        with part.open("ab") as stream:
            stream.truncate(rows * dim * 4)
        self.paths.part_rows.write_bytes(state[:intact].ljust(rows, b"\0"))

    def _start(self) -> None:
        paths, (rows, dim) = self.paths, self.shape
        for path in (paths.part, paths.part_rows, paths.part_meta, paths.feature, paths.ids, paths.meta):
            path.unlink(missing_ok=True)
        _allocate(paths.part, rows * dim * 4)
        _allocate(paths.part_rows, rows)
        save(self.about, paths.part_meta)


def _require_place(path: Path) -> None:
    """Raise OSError unless a file can be written there; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "it is a folder", str(path))
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(EACCES, "its folder is read-only", str(path))


@contextmanager
def _writing(paths: FeaturePaths) -> Iterator[None]:
    """Convert errors of the file system to one sentence."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{error.filename or paths.feature}: cannot be written ({error.strerror}); choose another place for it"
        ) from None


def _differences(stored: JsonObject, about: JsonObject) -> list[str]:
    """Return the settings in which existing features differ from the requested ones."""
    requested = json.loads(json.dumps(dict(about)))
    return [key for key in requested if stored.get(key) != requested[key]]


def _require_same(stored: JsonObject, about: JsonObject, features: Path) -> None:
    different = _differences(stored, about)
    if different:
        key = different[0]
        existing = repr(stored[key]) if key in stored else "not recorded"
        raise ConfigError(
            f"{features}: was computed with other settings ({', '.join(different)}; {key} is {existing} in the file "
            f"and {about[key]!r} now); choose another --feature-path, or pass --overwrite to compute it again"
        )


def _require_complete(paths: FeaturePaths) -> None:
    """Check that rows and ids agree with the metadata."""
    try:
        read_features(paths.feature, paths.meta, paths.ids)
    except ConfigError as error:
        raise ConfigError(f"{error}; pass --overwrite to compute it again") from None


def _complete_meta(paths: FeaturePaths, rows: int, about: JsonObject) -> JsonObject:
    places = {"feature_path": str(paths.feature), "ids_path": str(paths.ids)}
    return {**places, "num_rows_allocated": rows, "valid_rows": rows, **about}


def _allocate(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)


@dataclass(frozen=True)
class Features:
    """Rows of features, mapped from their file, with the names of their items."""

    rows: Array  # (n, dim)
    ids: tuple[str, ...]
    meta: JsonObject = field(default_factory=dict)
    source: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_foreign(self) -> bool:
        """Is True for files of the original scripts, which do not scale projections or record their origin."""
        return "weights" not in self.meta

    def blocks(self, dim: int, size: int = 1024) -> Iterator[NDArray[np.float64]]:
        """Yield blocks of rows in float64, reduced to `dim` numbers."""
        for start in range(0, len(self), size):
            yield self._narrowed(self.rows[start : start + size], dim)

    def _narrowed(self, rows: Array, dim: int) -> NDArray[np.float64]:
        """Fold a sketch, which keeps every parameter; take the first columns of a dense projection."""
        wide = np.asarray(rows, np.float64)
        if dim == wide.shape[1]:
            return wide
        if self.meta.get("projection") == "sketch":
            if wide.shape[1] % dim:
                raise ConfigError(f"--used-dim: a sketch of {wide.shape[1]} folds to its divisors, not to {dim}")
            return wide.reshape(len(wide), -1, dim).sum(1)
        scale = 1.0 if self.is_foreign else (wide.shape[1] / dim) ** 0.5
        return wide[:, :dim] * scale


def read_features(feature: str | Path, meta: str | Path | None = None, ids: str | Path | None = None) -> Features:
    """Read complete features of this toolkit or of the original scripts."""
    paths = FeaturePaths.of(feature, ids, meta)
    about = load(paths.meta)
    try:
        allocated, dim = int(about["num_rows_allocated"]), int(about["proj_dim"])
        valid = int(about.get("valid_rows", allocated))
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{paths.meta}: has no num_rows_allocated and proj_dim; pass the metadata of the features"
        ) from None
    if not paths.feature.is_file() or paths.feature.stat().st_size != allocated * dim * 4:
        raise ConfigError(
            f"{paths.feature}: does not hold {allocated} x {dim} float32 values, as recorded in {paths.meta}"
        )
    rows: Array = np.zeros((0, dim), np.float32)  # an empty file cannot be mapped
    if allocated:
        rows = np.memmap(paths.feature, np.float32, "r", shape=(allocated, dim))[:valid]
    return Features(rows, _read_ids(paths, about, valid), about, str(feature))


def _read_ids(paths: FeaturePaths, about: JsonObject, count: int) -> tuple[str, ...]:
    """Read the ids beside the features, or in the file that the metadata names."""
    for path in (paths.ids, Path(str(about.get("ids_path", "")))):
        if path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}: cannot be read as text ({error})") from None
            ids = tuple(text.removesuffix("\n").split("\n")) if text else ()
            if len(ids) != count:
                raise ConfigError(f"{path}: names {len(ids)} items for {count} rows of {paths.feature}")
            return ids
    raise ConfigError(f"{paths.ids}: missing; it names the items of {paths.feature}")


def join_features(parts: Sequence[Features]) -> Features:
    """Concatenate the rows of several files to one training set."""
    first = parts[0]
    for other in parts[1:]:
        require_comparable(first, other)
    if len(parts) == 1:
        return first
    ids = tuple(name for part in parts for name in part.ids)
    if len(set(ids)) < len(ids):
        raise ConfigError(f"{parts[0].source} and others: contain the same items more than once; pass each shard once")
    return Features(np.concatenate([part.rows for part in parts]), ids, first.meta, first.source)


def require_comparable(one: Features, other: Features) -> None:
    """Raise ConfigError unless everything but the data is equal, as inner products of features require."""
    keys = _COMPARED_FOREIGN if one.is_foreign and other.is_foreign else COMPARED
    recorded = [key for key in _COMPARED_IF_RECORDED if key in one.meta and key in other.meta]
    different = [key for key in dict.fromkeys([*keys, *recorded]) if one.meta.get(key) != other.meta.get(key)]
    if different:
        values = ", ".join(f"{key} {one.meta.get(key)!r} and {other.meta.get(key)!r}" for key in different)
        raise ConfigError(f"{one.source} and {other.source} cannot be compared: {values}")


def merge_shards(paths: FeaturePaths) -> int:
    """Join the shards of several processes and return their number; the bytes equal the result of one process."""
    shards = _find_shards(paths)
    parts = [read_features(shard.feature) for shard in shards]
    for part in parts[1:]:
        require_comparable(parts[0], part)
        if part.meta.get("data") != parts[0].meta.get("data"):
            raise ConfigError(f"{part.source} and {parts[0].source}: are shards of different datasets")
    if not any(map(len, parts)):
        raise ConfigError(
            f"{paths.feature}: its {len(parts)} shards hold no rows; see {shards[0].left_out} for the reasons"
        )
    about = {key: value for key, value in parts[0].meta.items() if key != "shard"}
    about |= _complete_meta(paths, sum(map(len, parts)), {})
    about["left_out"] = sum(part.meta.get("left_out", 0) for part in parts)
    _require_replaceable(paths, about)
    with _writing(paths):
        save(about, paths.meta)
        write_text(paths.ids, "".join(f"{name}\n" for part in parts for name in part.ids))
        with atomic_path(paths.feature) as temporary, temporary.open("wb") as stream:
            for part in parts:
                part.rows.tofile(stream)
        _join_left_out(paths, shards)
    return len(parts)


def _find_shards(paths: FeaturePaths) -> list[FeaturePaths]:
    """Find all shards of a run beside the file to which they are joined."""
    pattern = f"{glob.escape(paths.feature.name)}.shard-*-of-*.meta.json"
    shards: dict[tuple[int, int], FeaturePaths] = {}
    for meta in paths.feature.parent.glob(pattern):
        try:
            index, count = map(int, load(meta)["shard"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"{meta}: has no number of its shard; it was not written by one of several processes"
            ) from None
        shards[index, count] = FeaturePaths.of(str(meta).removesuffix(".meta.json"))
    if not shards:
        raise ConfigError(f"{paths.feature}: no complete shards of it exist")
    present, counts = sorted(index for index, _ in shards), {count for _, count in shards}
    if len(counts) > 1 or present != list(range(max(counts))):
        raise ConfigError(
            f"{paths.feature}: found shards {present} of {sorted(counts)}; all shards of one run are needed"
        )
    return [shards[key] for key in sorted(shards)]


def _require_replaceable(paths: FeaturePaths, about: JsonObject) -> None:
    """Raise ConfigError unless an existing file is an earlier result of the same shards."""
    compared = {key: value for key, value in about.items() if key not in ("feature_path", "ids_path")}
    if paths.meta.exists() and not _differences(load(paths.meta), compared):
        return
    existing = next((path for path in (paths.feature, paths.ids, paths.meta) if path.exists()), None)
    if existing is not None:
        raise ConfigError(f"{existing}: already exists but was not merged from these shards; move or delete it")


def _join_left_out(paths: FeaturePaths, shards: Sequence[FeaturePaths]) -> None:
    lists = [shard.left_out.read_bytes() for shard in shards if shard.left_out.exists()]
    if lists:
        with atomic_path(paths.left_out) as temporary:
            temporary.write_bytes(b"".join(lists))
    else:
        paths.left_out.unlink(missing_ok=True)
