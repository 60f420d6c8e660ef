"""Rows of a Hugging Face dataset on disk: Arrow streams, mapped into memory and read one row at a time."""

import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.core.packages import require


class ArrowRows:
    """A folder as `save_to_disk` writes it, or as `load_dataset` leaves it in the cache: `.arrow` streams and JSON."""

    def __init__(self, folder: str | Path, split: str | None = None) -> None:
        self.folder = _split_folder(Path(folder), split)
        self.files = _arrow_files(self.folder)
        self._batches: list[Any] = []
        self._ends: list[int] = []
        self._open()

    def _open(self) -> None:
        arrow = require("pyarrow", extra="parquet")
        for file in self.files:
            try:
                with arrow.ipc.open_stream(arrow.memory_map(str(file))) as stream:
                    self._batches += stream.read_all().to_batches()
            except (OSError, arrow.ArrowInvalid) as error:
                raise ConfigError(f"{file}: is not an Arrow stream ({error})") from None
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._slice(row).to_pylist()[0]

    def value(self, row: int, column: str, field: str) -> Any:
        """One field of a struct column, without reading the others."""
        return self._slice(row).column(column).field(field)[0].as_py()

    def audio_columns(self) -> list[str]:
        """Columns of the feature `Audio`: structs of the file's bytes and its path."""
        if not self._batches:
            return []
        fields = list(self._batches[0].schema)
        return [field.name for field in fields if {"bytes", "path"} <= {part.name for part in _parts(field.type)}]

    def _slice(self, row: int) -> Any:
        batch = bisect_right(self._ends, row)
        first = self._ends[batch - 1] if batch else 0
        return self._batches[batch].slice(row - first, 1)

    def __reduce__(self) -> tuple[type["ArrowRows"], tuple[Path, None]]:
        return type(self), (self.folder, None)


def _parts(kind: Any) -> list[Any]:
    return [kind.field(index) for index in range(kind.num_fields)]


def _split_folder(folder: Path, split: str | None) -> Path:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; it should be one that datasets' save_to_disk wrote")
    listing = folder / "dataset_dict.json"
    splits = json.loads(listing.read_text())["splits"] if listing.exists() else []
    if not splits:
        if split is not None:
            raise ConfigError(f"{folder}: has no splits, so split {split!r} names nothing; leave it out")
        return folder
    if split is None and len(splits) > 1:
        raise ConfigError(f"{folder}: has the splits {', '.join(splits)}; name one as 'split'")
    if split is not None and split not in splits:
        raise ConfigError(f"{folder}: has no split {split!r}; it has {', '.join(splits)}")
    return folder / (split or splits[0])


def _arrow_files(folder: Path) -> list[Path]:
    about = folder / "state.json"
    state = json.loads(about.read_text()) if about.exists() else {}
    if state.get("_indices_data_files"):
        raise ConfigError(f"{folder}: is a selection of rows; write it anew with flatten_indices().save_to_disk(...)")
    named = [folder / entry["filename"] for entry in state.get("_data_files") or ()]
    missing = [file for file in named if not file.exists()]
    if missing:
        raise ConfigError(f"{missing[0]}: is missing, but {about} names it")
    files = named or sorted(folder.glob("*.arrow"))
    if files:
        return files
    parquet = sum(1 for _ in folder.rglob("*.parquet"))
    remedy = (
        f"its {parquet} parquet files become one with datasets.load_dataset('parquet', ...).save_to_disk(...)"
        if parquet
        else "datasets' save_to_disk writes one"
    )
    raise ConfigError(f"{folder}: holds no Arrow dataset; {remedy}")
