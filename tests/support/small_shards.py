"""Tar shards of short noise clips, as WebDataset reads them."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import soundfile as sf

RATE = 16_000


def audio_bytes(seed: int, samples: int = 6_000, channels: int = 2, rate: int = RATE, kind: str = "FLAC") -> bytes:
    wave = 0.1 * np.random.default_rng(seed).standard_normal((samples, channels))
    buffer = io.BytesIO()
    sf.write(buffer, wave, rate, format=kind)
    return buffer.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(shard: int, number: int) -> dict[str, bytes]:
    name = f"{shard}_{number:03d}"
    return {
        f"{name}.flac": audio_bytes(100 * shard + number),
        f"{name}.json": json.dumps({"text": f"clip {shard} {number}", "bpm": 120}).encode(),
    }


def write_shards(root: Path, sizes: Iterable[int] = (3, 4, 5, 6, 7)) -> Path:
    for shard, size in enumerate(sizes):
        files: dict[str, bytes] = {}
        for number in range(size):
            files |= sample(shard, number)
        write_tar(root / f"shard-{shard}.tar", files)
    return root
