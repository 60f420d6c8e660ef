"""The folder of a run: configs, environment, metrics, demos, checkpoints; enough to repeat or continue the run."""

import hashlib
import json
import logging
import platform
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from itertools import count
from pathlib import Path

from stable_audio_tools.core.config import save
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import CheckpointError
from stable_audio_tools.core.files import write_text
from stable_audio_tools.models.checkpoints.sharded import is_sharded, missing_shards
from stable_audio_tools.models.checkpoints.zero import require_all_ranks, zero_folder
from stable_audio_tools.version import __version__

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step=(\d+)\.ckpt$")  # and not what a killed process left half written


def new_run_folder(save_dir: Path, name: str) -> Path:
    """Create the folder `save_dir/name/<time>`, under a name that does not exist yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        folder = save_dir / name / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)  # fails where another run was faster
        except FileExistsError:
            if not folder.is_dir():
                raise
        else:
            return folder
    raise AssertionError("unreachable")


def describe_run(folder: Path, settings: JsonObject, configs: Mapping[str, JsonObject | None]) -> None:
    """Write settings, configs and environment."""
    write_text(folder / "settings.json", json.dumps(dict(settings), indent=2) + "\n")
    for name, config in configs.items():
        if config:
            save(config, folder / f"{name}.json")
    packages = sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions()}, key=str.lower)
    header = [f"stable-audio-tools {__version__}", f"python {platform.python_version()}", platform.platform()]
    write_text(folder / "environment.txt", "\n".join([*header, f"command: {' '.join(sys.argv)}", "", *packages]) + "\n")


def checkpoints_in(folder: Path) -> list[Path]:
    """Return checkpoints from oldest to newest, by their step."""
    found = [path for path in folder.glob("*.ckpt") if _STEP.search(path.name)]
    return sorted(found, key=lambda path: (_step(path), path.stat().st_mtime))


def newest_whole_checkpoint(save_dir: Path, name: str) -> Path | None:
    """Return the newest readable checkpoint of any run of that name; broken ones are logged."""
    return _newest_whole((save_dir / name).glob("*/checkpoints/*.ckpt"))


def checkpoint_at(path: Path) -> Path:
    """Return the newest whole checkpoint if `path` is the folder of a run or of all runs of a name; else `path`."""
    found = [*path.glob("checkpoints/*.ckpt"), *path.glob("*/checkpoints/*.ckpt")] if path.is_dir() else []
    return _newest_whole(found) or path


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint, which is a file, or a folder where several processes wrote it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def checkpoint_mark(path: Path) -> dict[str, int | str]:
    """Return step, size and digest of a checkpoint, without reading all of its bytes."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    entries = [f"{file.relative_to(path)} {file.stat().st_size} {_sums(file)}" for file in files]
    size = sum(file.stat().st_size for file in files)
    return {"step": _step(path), "bytes": size, "digest": hashlib.sha256("\n".join(entries).encode()).hexdigest()[:16]}


def _sums(file: Path) -> str:
    """Return the checksums that an archive lists, or a digest of the start of another file."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return " ".join(f"{entry.filename}:{entry.CRC}" for entry in archive.infolist())
    with file.open("rb") as stream:
        return hashlib.sha256(stream.read(1 << 20)).hexdigest()


def _newest_whole(paths: Iterable[Path]) -> Path | None:
    candidates = sorted(
        (path for path in paths if _STEP.search(path.name)), key=lambda path: (path.stat().st_mtime, _step(path))
    )
    for path in reversed(candidates):
        reason = _why_broken(path)
        if reason is None:
            return path
        logger.warning("%s is broken (%s); looking at the one before", path, reason)
    return None


def _step(path: Path) -> int:
    found = _STEP.search(path.name)
    return int(found.group(1)) if found else -1


def _why_broken(path: Path) -> str | None:
    if path.is_dir():
        return _why_broken_folder(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        return str(error)
    return f"damaged at {damaged}" if damaged else None


def _why_broken_folder(path: Path) -> str | None:
    """Return why a folder is not a checkpoint of a known layout with readable archives."""
    try:
        parts = zero_folder(path)
        if parts is not None:
            require_all_ranks(parts)
        elif not is_sharded(path):
            return "not a checkpoint that several processes wrote"
        elif missing := missing_shards(path):
            return missing
    except CheckpointError as error:
        return str(error)
    archives = [file for file in path.rglob("*") if file.suffix in (".pt", ".ckpt")]
    return next((f"{file.name}: {reason}" for file in archives if (reason := _why_broken(file))), None)
