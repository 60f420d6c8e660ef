"""Slices as a Hugging Face dataset on disk, the form that older spectrogram trainers read with `load_from_disk`.

    dataset_dict.json   train/dataset_info.json   train/state.json   train/data-00000-of-00012.arrow

Image columns: `image` (PNG, lowest band in the first row), `audio_file`, `slice`. For the log amplitudes of BigVGAN
`mel` (channels, bands, frames) replaces the image. The files are written with pyarrow alone.
"""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from stable_audio_tools.core.files import atomic_path, write_text
from stable_audio_tools.core.packages import require
from stable_audio_tools.mel.transforms import LogAmplitudeMel, MelTransform

Column = Literal["image", "mel"]

_ARRAY_3D = "datasets.features.features.Array3DExtensionType"


class Row(NamedTuple):
    """One slice: its bands (d, t) in [-1, 1], its file, and its number in the file."""

    bands: Tensor
    audio_file: str
    slice: int


def column_of(transform: MelTransform) -> Column:
    """Return the name of the column for spectrograms of this transform."""
    return "mel" if isinstance(transform, LogAmplitudeMel) else "image"


def shard_name(number: int, shards: int) -> str:
    """Return the name of a file of a dataset, as Hugging Face's `datasets` writes it."""
    return f"data-{number:05d}-of-{shards:05d}.arrow"


def write_shard(path: Path, rows: Iterable[Row], transform: MelTransform, shape: tuple[int, int, int]) -> int:
    """Write one file of the dataset, row after row -> how many; `shape` is (channels, bands, frames)."""
    arrow = require("pyarrow", extra="parquet")
    schema = _schema(arrow, column_of(transform), shape)
    count = 0
    with atomic_path(path) as temporary, arrow.ipc.new_stream(str(temporary), schema) as writer:
        for row in rows:
            first = _first_column(arrow, row.bands.reshape(shape), transform)
            others = [arrow.array([row.audio_file]), arrow.array([row.slice], arrow.int16())]
            writer.write_batch(arrow.record_batch([first, *others], schema=schema))
            count += 1
    return count


def count_rows(path: Path) -> int:
    """Return the number of rows of an existing file."""
    arrow = require("pyarrow", extra="parquet")
    with arrow.memory_map(str(path)) as file, arrow.ipc.open_stream(file) as reader:
        return sum(batch.num_rows for batch in reader)


def finish_dataset(root: Path, files: Sequence[str], column: Column, shape: tuple[int, int, int], key: str) -> None:
    """Write the files that list the shards; the dataset can then be opened."""
    info = {"citation": "", "description": "", "features": _features(column, shape), "homepage": "", "license": ""}
    state: dict[str, object] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": key[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    write_text(root / "train" / "dataset_info.json", json.dumps(info, indent=2))
    write_text(root / "train" / "state.json", json.dumps(state, indent=2))
    write_text(root / "dataset_dict.json", json.dumps({"splits": ["train"]}))


def _first_column(arrow: ModuleType, bands: Tensor, transform: MelTransform) -> object:
    """One row of `image` or `mel`, from bands (c, mels, t)."""
    if not isinstance(transform, LogAmplitudeMel):
        image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        return arrow.array([{"bytes": as_png(bands[0]), "path": None}], image)
    values = arrow.array(transform.to_log(bands).float().flatten().numpy())
    for size in reversed(bands.shape):
        places = np.arange(0, len(values) + 1, size, dtype=np.int32)
        values = arrow.ListArray.from_arrays(places, values)
    return values


def as_png(bands: Tensor) -> bytes:
    """Bands (mels, t) in [-1, 1] as an 8-bit image, the lowest band in the first row."""
    pixels = np.floor((bands.double().numpy() + 1) * 127.5 + 0.5).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _features(column: Column, shape: tuple[int, int, int]) -> dict[str, object]:
    array = {"shape": list(shape), "dtype": "float32", "_type": "Array3D"}
    return {
        column: {"_type": "Image"} if column == "image" else array,
        "audio_file": {"dtype": "string", "_type": "Value"},
        "slice": {"dtype": "int16", "_type": "Value"},
    }


def _schema(arrow: ModuleType, column: Column, shape: tuple[int, int, int]) -> object:
    if column == "image":
        first = arrow.field("image", arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]))
    else:
        cube = arrow.list_(arrow.list_(arrow.list_(arrow.float32())))
        about = {"ARROW:extension:name": _ARRAY_3D, "ARROW:extension:metadata": json.dumps([list(shape), "float32"])}
        first = arrow.field("mel", cube, metadata=about)
    info = json.dumps({"info": {"features": _features(column, shape)}})
    fields = [first, arrow.field("audio_file", arrow.string()), arrow.field("slice", arrow.int16())]
    return arrow.schema(fields, metadata={"huggingface": info})
