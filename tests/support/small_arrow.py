"""Folders of Hugging Face datasets with short noise clips, as `save_to_disk` writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from support.small_shards import audio_bytes

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def save(folder: Path, rows: Sequence[Mapping[str, Any]], files: int = 2) -> Path:
    """The files of `Dataset.save_to_disk`: Arrow streams of some rows a batch, and their list."""
    folder.mkdir(parents=True)
    schema = pa.schema([("audio", AUDIO), ("text", pa.string()), ("bpm", pa.int64())])
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    for number, name in enumerate(names):
        table = pa.Table.from_pylist(list(rows[number::files]), schema)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def row(number: int, **changes: Any) -> dict[str, Any]:
    audio = {"bytes": audio_bytes(number), "path": f"clip_{number}.flac"}
    return {"audio": audio, "text": f"clip {number}", "bpm": 100 + number, **changes}
