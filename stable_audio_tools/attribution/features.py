"""Files of features: raw float32 rows, `.ids.txt` with a line for each row, `.meta.json` with what they were made from.

While rows are made they stand in `NAME.part`, with a byte for each in `NAME.part.rows` and the meta data in
`NAME.part.json`; a run that was killed goes on from those. The names without `.part` are there when all is done.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.config import ConfigError, load, save
from stable_audio_tools.system.files import atomic_path, write_text

# What features that are compared with each other must have in common; the data may differ.
COMPARED = ("weights", "model", "parameters", "f", "projection", "seed", "model_id", "proj_dim", "timesteps", "e_seed")

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
        self.paths, self.about = paths, dict(about)
        paths.feature.parent.mkdir(parents=True, exist_ok=True)
        self.is_finished = not overwrite and self._agrees(paths.meta, paths.feature)
        if self.is_finished:
            return
        resumes = not overwrite and self._agrees(paths.part_meta, paths.part)
        if not resumes:
            for path in (paths.part, paths.part_rows, paths.part_meta, paths.feature, paths.meta):
                path.unlink(missing_ok=True)
            _allocate(paths.part, rows * dim * 4)
            _allocate(paths.part_rows, rows)
            save(self.about, paths.part_meta)
        self.rows: Array = np.memmap(paths.part, np.float32, "r+", shape=(rows, dim))
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

    def finish(self, ids: Sequence[str]) -> None:
        """Rows that were made, with their ids, under the final names."""
        made = np.flatnonzero(self.state == _DONE)
        with atomic_path(self.paths.feature) as temporary:
            self.rows[made].tofile(temporary)
        write_text(self.paths.ids, "".join(f"{ids[row]}\n" for row in made))
        save(_whole_meta(self.paths, len(made), self.about), self.paths.meta)
        del self.rows, self.state
        for path in (self.paths.part, self.paths.part_rows, self.paths.part_meta):
            path.unlink()

    def _agrees(self, meta: Path, features: Path) -> bool:
        """Is there a file of exactly these features? One of others is an error, not something to write over."""
        if not (meta.exists() and features.exists()):
            return False
        stored = load(meta)
        wanted = json.loads(json.dumps(self.about))
        different = [key for key in wanted if stored.get(key) != wanted[key]]
        if different:
            key = different[0]
            raise ConfigError(
                f"{features}: was made with other settings ({', '.join(different)}; {key} is {stored.get(key)!r} there "
                f"and {wanted[key]!r} here); choose another --feature-path, or pass --overwrite to make it anew"
            )
        return True


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


def read_features(feature: str | Path, meta: str | Path | None = None) -> Features:
    """Finished features, of this toolkit or of the original scripts."""
    paths = FeaturePaths.of(feature, meta=meta)
    about = load(paths.meta)
    try:
        allocated, dim = int(about["num_rows_allocated"]), int(about["proj_dim"])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{paths.meta}: tells no num_rows_allocated and proj_dim; is it the meta file?") from None
    if not paths.feature.is_file() or paths.feature.stat().st_size != allocated * dim * 4:
        raise ConfigError(f"{paths.feature}: does not hold the {allocated} x {dim} float32 that {paths.meta} tells of")
    valid = int(about.get("valid_rows", allocated))
    rows: Array = np.memmap(paths.feature, np.float32, "r", shape=(allocated, dim))[:valid]
    return Features(rows, _read_ids(paths, about, valid), about, str(feature))


def _read_ids(paths: FeaturePaths, about: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Beside the features, or where the meta data says."""
    for path in (paths.ids, Path(str(about.get("ids_path", "")))):
        if path.is_file():
            ids = tuple(path.read_text(encoding="utf-8").splitlines())
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
    if one.is_foreign and other.is_foreign:
        keys: Sequence[str] = (
            "proj_dim",
            "K",
            "t_strategy",
            "num_train_steps",
            "f",
            "model_id",
            "param_regex",
            "grad_dim",
        )
    else:
        keys = COMPARED
    different = [key for key in keys if one.meta.get(key) != other.meta.get(key)]
    if different:
        told = ", ".join(f"{key} {one.meta.get(key)!r} and {other.meta.get(key)!r}" for key in different)
        raise ConfigError(f"{one.source} and {other.source} cannot be compared: {told}")


def merge_shards(paths: FeaturePaths) -> int:
    """Join the shards that processes wrote -> how many there were; the result is that of one process, byte for byte."""
    pattern = f"{paths.feature.name}.shard-*-of-*.meta.json"
    metas = [load(path) for path in paths.feature.parent.glob(pattern)]
    if not metas:
        raise ConfigError(f"{paths.feature}: there are no finished shards of it to merge")
    metas.sort(key=lambda meta: int(meta["shard"][0]))
    counts = {int(meta["shard"][1]) for meta in metas}
    present = [int(meta["shard"][0]) for meta in metas]
    if len(counts) > 1 or present != list(range(max(counts))):
        raise ConfigError(f"{paths.feature}: found shards {present} of {sorted(counts)}; all of one run must be there")
    parts = [read_features(meta["feature_path"]) for meta in metas]
    for part in parts[1:]:
        require_comparable(parts[0], part)
        if part.meta["data"] != parts[0].meta["data"]:
            raise ConfigError(f"{part.source} and {parts[0].source}: are shards of different datasets")
    with atomic_path(paths.feature) as temporary, temporary.open("wb") as stream:
        for part in parts:
            part.rows.tofile(stream)
    write_text(paths.ids, "".join(f"{name}\n" for part in parts for name in part.ids))
    about = {key: value for key, value in parts[0].meta.items() if key != "shard"}
    save({**about, **_whole_meta(paths, sum(map(len, parts)), {})}, paths.meta)
    return len(parts)
