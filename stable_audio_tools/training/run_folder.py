"""The folder of a run: configs, environment, metrics, demos, checkpoints; enough to repeat it or to go on with it."""

import json
import logging
import platform
import re
import sys
import time
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from stable_audio_tools.core.config import save
from stable_audio_tools.core.files import write_text
from stable_audio_tools.version import __version__

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step=(\d+)\.ckpt$")  # and not what a killed process left half written


def new_run_folder(save_dir: Path, name: str) -> Path:
    """A folder `save_dir/name/<time>` that does not exist yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder, number = save_dir / name / stamp, 1
    while folder.exists():
        number += 1
        folder = save_dir / name / f"{stamp}-{number}"
    folder.mkdir(parents=True)
    return folder


def describe_run(folder: Path, settings: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Write settings, configs and environment."""
    write_text(folder / "settings.json", json.dumps(dict(settings), indent=2) + "\n")
    for name, config in configs.items():
        if config:
            save(config, folder / f"{name}.json")
    packages = sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions()}, key=str.lower)
    header = [f"stable-audio-tools {__version__}", f"python {platform.python_version()}", platform.platform()]
    write_text(folder / "environment.txt", "\n".join([*header, f"command: {' '.join(sys.argv)}", "", *packages]) + "\n")


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints from oldest to newest, by their step."""
    found = [path for path in folder.glob("*.ckpt") if _STEP.search(path.name)]
    return sorted(found, key=lambda path: (_step(path), path.stat().st_mtime))


def newest_whole_checkpoint(save_dir: Path, name: str) -> Path | None:
    """The newest readable checkpoint of any run of that name; broken ones are named and passed over."""
    return _newest_whole((save_dir / name).glob("*/checkpoints/*.ckpt"))


def checkpoint_at(path: Path) -> Path:
    """The newest whole checkpoint where `path` is the folder of a run or of all runs of a name; else `path` itself."""
    found = [*path.glob("checkpoints/*.ckpt"), *path.glob("*/checkpoints/*.ckpt")] if path.is_dir() else []
    return _newest_whole(found) or path


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
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        return str(error)
    return f"damaged at {damaged}" if damaged else None
