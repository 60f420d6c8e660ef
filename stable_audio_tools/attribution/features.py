"""Files of features: raw float32 rows, `.ids.txt` with a line for each row, `.meta.json` with what they were made from.

While rows are made they stand in `NAME.part`, with a byte for each in `NAME.part.rows` and the meta data in
`NAME.part.json`; a run that was killed goes on from those. The names without `.part` are there when all is done.
"""

import glob
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EACCES, EISDIR
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.files import atomic_path, write_text

logger = logging.getLogger(__name__)

# What features that are compared with each other must have in common; the data may differ.
COMPARED = ("weights", "model", "parameters", "f", "projection", "seed", "model_id", "proj_dim", "timesteps", "e_seed")
# The same of files by the original scripts, which tell less.
_COMPARED_FOREIGN = ("proj_dim", "K", "t_strategy", "num_train_steps", "f", "model_id", "param_regex", "grad_dim")
# Compared where both files tell them.
_COMPARED_IF_TOLD = ("num_train_steps", "cfg_dropout_prob", "sample_size", "mask_padding")

_PENDING, _DONE = 0, 1
Array = NDArray[np.float32]


@dataclass(frozen=True)
class FeaturePaths:
    """Where the parts of one set of features lie."""

    feature: Path
    ids: Path
    meta: Path

    @classmethod
    def of(cls, feature: str | Path, ids: str | Path | None = None, meta: str | Path | None = None) -> "FeaturePaths":
        """Beside the features, unless named."""
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
        """Of one process among several."""
        return FeaturePaths.of(f"{self.feature}.shard-{index}-of-{count}")


class FeatureWriter:
    """Rows in any order, each kept as soon as it is flushed; `finish` leaves those that were never written out."""

    def __init__(self, paths: FeaturePaths, rows: int, dim: int, about: Mapping[str, Any], overwrite: bool) -> None:
        self.paths, self.about, self.shape = paths, dict(about), (rows, dim)
        with _writing(paths):
            for path in (paths.feature, paths.ids, paths.meta):
                _require_place(path)
        self.finished = None if overwrite else self._find_finished()  # its meta data
        if self.finished is not None:
            return
        with _writing(paths):
            if not overwrite and self._is_resumable():
                self._mend()
            else:
                self._start()
            self.rows: Array = np.memmap(paths.part, np.float32, "r+", shape=self.shape)
            self.state: NDArray[np.uint8] = np.memmap(paths.part_rows, np.uint8, "r+", shape=(rows,))

    @property
    def pending(self) -> list[int]:
        """Rows still to be made."""
        return [int(row) for row in np.flatnonzero(self.state == _PENDING)]

    def write(self, numbers: Sequence[int], features: Tensor) -> None:
        """(len(numbers), dim); on disk before they count as done."""
        self.rows[list(numbers)] = features.numpy()
        _flush(self.rows)
        self.state[list(numbers)] = _DONE
        _flush(self.state)

    def finish(self, ids: Sequence[str], left_out: int = 0) -> None:
        """Rows that were made, with their ids, under the final names; `left_out` is noted."""
        made = np.flatnonzero(self.state == _DONE)
        with atomic_path(self.paths.feature) as temporary:
            self.rows[made].tofile(temporary)
        write_text(self.paths.ids, "".join(f"{ids[row]}\n" for row in made))
        save({**_whole_meta(self.paths, len(made), self.about), "left_out": left_out}, self.paths.meta)
        del self.rows, self.state
        for path in (self.paths.part, self.paths.part_rows, self.paths.part_meta):
            path.unlink()

    def _find_finished(self) -> dict[str, Any] | None:
        """The meta data of exactly these features; whatever else is there is an error, not something to write over."""
        paths = self.paths
        if paths.meta.exists():
            stored = load(paths.meta)
            if stored.get("valid_rows") == 0 and _differences(stored, self.about):
                return None
            _require_same(stored, self.about, paths.feature)
            if paths.feature.exists():
                _require_whole(paths, stored)
                return stored
        elif not self._is_resumable():
            there = next((path for path in (paths.feature, paths.ids) if path.exists()), None)
            if there is not None:
                raise ConfigError(
                    f"{there}: is there already, without {paths.meta}, which would tell what it is; choose another "
                    "--feature-path, or pass --overwrite to write over it"
                )
        return None

    def _is_resumable(self) -> bool:
        """Did a run that was to make exactly these features leave some of them?"""
        paths = self.paths
        if not paths.part_meta.exists() or not paths.part_rows.exists() or not any(paths.part_rows.read_bytes()):
            return False
        _require_same(load(paths.part_meta), self.about, paths.part)
        return True

    def _mend(self) -> None:
        """Rows that an unfinished file lacks count as not made."""
        rows, dim = self.shape
        part, state = self.paths.part, self.paths.part_rows.read_bytes()
        size = part.stat().st_size if part.exists() else 0
        if (size, len(state)) == (rows * dim * 4, rows):
            return
        whole = min(rows, size // (dim * 4), len(state))
        logger.warning("%s is damaged; all rows but the first %d are made anew", part, whole)
        with part.open("ab") as stream:
            stream.truncate(rows * dim * 4)
        self.paths.part_rows.write_bytes(state[:whole].ljust(rows, b"\0"))

    def _start(self) -> None:
        paths, (rows, dim) = self.paths, self.shape
        for path in (paths.part, paths.part_rows, paths.part_meta, paths.feature, paths.ids, paths.meta):
            path.unlink(missing_ok=True)
        _allocate(paths.part, rows * dim * 4)
        _allocate(paths.part_rows, rows)
        save(self.about, paths.part_meta)


def _require_place(path: Path) -> None:
    """OSError unless a file can be written there; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "it is a folder", str(path))
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(EACCES, "its folder is read-only", str(path))


@contextmanager
def _writing(paths: FeaturePaths) -> Iterator[None]:
    """What the system refuses is told before any work."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{error.filename or paths.feature}: cannot be written ({error.strerror}); choose another place for it"
        ) from None


def _differences(stored: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """Settings by which features that are there differ from those that are asked for."""
    wanted = json.loads(json.dumps(dict(about)))
    return [key for key in wanted if stored.get(key) != wanted[key]]


def _require_same(stored: Mapping[str, Any], about: Mapping[str, Any], features: Path) -> None:
    different = _differences(stored, about)
    if different:
        key = different[0]
        there = repr(stored[key]) if key in stored else "not told"
        raise ConfigError(
            f"{features}: was made with other settings ({', '.join(different)}; {key} is {there} there "
            f"and {about[key]!r} here); choose another --feature-path, or pass --overwrite to make it anew"
        )


def _require_whole(paths: FeaturePaths, about: Mapping[str, Any]) -> None:
    """Are the rows and their ids there that the meta data tells of?"""
    try:
        read_features(paths.feature, paths.meta, paths.ids)
    except ConfigError as error:
        raise ConfigError(f"{error}; pass --overwrite to make it anew") from None


def _whole_meta(paths: FeaturePaths, rows: int, about: Mapping[str, Any]) -> dict[str, Any]:
    places = {"feature_path": str(paths.feature), "ids_path": str(paths.ids)}
    return {**places, "num_rows_allocated": rows, "valid_rows": rows, **about}


def _allocate(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)


def _flush(array: Any) -> None:
    array.flush()


@dataclass(frozen=True)
class Features:
    """Rows of features, mapped from their file, and what they are of."""

    rows: Array  # (n, dim)
    ids: tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_foreign(self) -> bool:
        """Written by the original scripts, whose projections are not scaled and whose origin is not told."""
        return "weights" not in self.meta

    def blocks(self, dim: int, size: int = 1024) -> Iterator[NDArray[np.float64]]:
        """Rows in float64, so many at once, brought to `dim` numbers."""
        for start in range(0, len(self), size):
            yield self._narrowed(self.rows[start : start + size], dim)

    def _narrowed(self, rows: Array, dim: int) -> NDArray[np.float64]:
        """A sketch is folded, which keeps every parameter; of a dense projection some columns are a smaller one."""
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
    """Finished features, of this toolkit or of the original scripts."""
    paths = FeaturePaths.of(feature, ids, meta)
    about = load(paths.meta)
    try:
        allocated, dim = int(about["num_rows_allocated"]), int(about["proj_dim"])
        valid = int(about.get("valid_rows", allocated))
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{paths.meta}: tells no num_rows_allocated and proj_dim; is it the meta file?") from None
    if not paths.feature.is_file() or paths.feature.stat().st_size != allocated * dim * 4:
        raise ConfigError(f"{paths.feature}: does not hold the {allocated} x {dim} float32 that {paths.meta} tells of")
    rows: Array = np.zeros((0, dim), np.float32)  # an empty file cannot be mapped
    if allocated:
        rows = np.memmap(paths.feature, np.float32, "r", shape=(allocated, dim))[:valid]
    return Features(rows, _read_ids(paths, about, valid), about, str(feature))


def _read_ids(paths: FeaturePaths, about: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Beside the features, or where the meta data says."""
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
    """Rows of several files under each other, as one training set."""
    first = parts[0]
    for other in parts[1:]:
        require_comparable(first, other)
    if len(parts) == 1:
        return first
    ids = tuple(name for part in parts for name in part.ids)
    if len(set(ids)) < len(ids):
        raise ConfigError(f"{parts[0].source} and others: name the same items more than once; give each shard once")
    return Features(np.concatenate([part.rows for part in parts]), ids, first.meta, first.source)


def require_comparable(one: Features, other: Features) -> None:
    """Inner products between features mean something only when all but the data is equal."""
    keys = _COMPARED_FOREIGN if one.is_foreign and other.is_foreign else COMPARED
    told_by_both = [key for key in _COMPARED_IF_TOLD if key in one.meta and key in other.meta]
    different = [key for key in dict.fromkeys([*keys, *told_by_both]) if one.meta.get(key) != other.meta.get(key)]
    if different:
        told = ", ".join(f"{key} {one.meta.get(key)!r} and {other.meta.get(key)!r}" for key in different)
        raise ConfigError(f"{one.source} and {other.source} cannot be compared: {told}")


def merge_shards(paths: FeaturePaths) -> int:
    """Join the shards that processes wrote -> how many there were; the result is that of one process, byte for byte."""
    found = _find_shards(paths)
    parts = [read_features(path.feature) for path in found]
    for part in parts[1:]:
        require_comparable(parts[0], part)
        if part.meta.get("data") != parts[0].meta.get("data"):
            raise ConfigError(f"{part.source} and {parts[0].source}: are shards of different datasets")
    if not any(map(len, parts)):
        raise ConfigError(f"{paths.feature}: its {len(parts)} shards hold no row; see {found[0].left_out} for why")
    about = {key: value for key, value in parts[0].meta.items() if key != "shard"}
    about |= _whole_meta(paths, sum(map(len, parts)), {})
    about["left_out"] = sum(part.meta.get("left_out", 0) for part in parts)
    _require_replaceable(paths, about)
    with _writing(paths):
        save(about, paths.meta)
        write_text(paths.ids, "".join(f"{name}\n" for part in parts for name in part.ids))
        with atomic_path(paths.feature) as temporary, temporary.open("wb") as stream:
            for part in parts:
                part.rows.tofile(stream)
        _join_left_out(paths, found)
    return len(parts)


def _find_shards(paths: FeaturePaths) -> list[FeaturePaths]:
    """The shards of a run, all of them, beside where their features go, wherever they were made."""
    pattern = f"{glob.escape(paths.feature.name)}.shard-*-of-*.meta.json"
    shards: dict[tuple[int, int], FeaturePaths] = {}
    for meta in paths.feature.parent.glob(pattern):
        try:
            index, count = map(int, load(meta)["shard"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"{meta}: does not tell which shard it is of; was it made by several processes?"
            ) from None
        shards[index, count] = FeaturePaths.of(str(meta).removesuffix(".meta.json"))
    if not shards:
        raise ConfigError(f"{paths.feature}: there are no finished shards of it to merge")
    present, counts = sorted(index for index, _ in shards), {count for _, count in shards}
    if len(counts) > 1 or present != list(range(max(counts))):
        raise ConfigError(f"{paths.feature}: found shards {present} of {sorted(counts)}; all of one run must be there")
    return [shards[key] for key in sorted(shards)]


def _require_replaceable(paths: FeaturePaths, about: Mapping[str, Any]) -> None:
    """Only an earlier result of the same shards is written over."""
    kept = {key: value for key, value in about.items() if key not in ("feature_path", "ids_path")}
    if paths.meta.exists() and not _differences(load(paths.meta), kept):
        return
    there = next((path for path in (paths.feature, paths.ids, paths.meta) if path.exists()), None)
    if there is not None:
        raise ConfigError(f"{there}: is there already, and is not of these shards; move it away, or remove it")


def _join_left_out(paths: FeaturePaths, shards: Sequence[FeaturePaths]) -> None:
    lists = [shard.left_out.read_bytes() for shard in shards if shard.left_out.exists()]
    if lists:
        with atomic_path(paths.left_out) as temporary:
            temporary.write_bytes(b"".join(lists))
    else:
        paths.left_out.unlink(missing_ok=True)
