"""Models of subsets: for each list of a folder one run of `train.py`, and its weights ready to use."""

import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from stable_audio_tools.attribution.validation import keep_settings
from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.core.files import content_digest

logger = logging.getLogger(__name__)

_OURS = ("--include-paths-file", "--name", "--save-dir")
_ANY = ("--num-workers", "--logger", "--log-every", "--project", "--recover")  # the weights are the same with others
_LIST = re.compile(r"(subset_\d+|query_\d+_(named|random)|whole)\.txt")


def train_subsets(
    folder: str | Path, flags: Sequence[str], part: tuple[int, int] = (0, 1), keep_runs: bool = False
) -> int:
    """Train on every list `NAME.txt` whose `models/NAME.safetensors` is not there yet -> how many were trained.

    Lists are those that make-subsets and make-removals wrote.
    `flags` go to `train.py`. `part` (i, n) takes each n-th list from the i-th on, for jobs that share the work.
    """
    folder = Path(folder)
    given = read_flags(flags)
    taken = [flag for flag in _OURS if flag in given]
    if taken:
        raise ConfigError(f"{', '.join(taken)}: set for each subset; leave it out of the flags of train.py")
    index, count = part
    if not 0 <= index < count:
        raise ConfigError(f"--part: expected I N with I from 0 to N - 1, got {index} {count}")
    lists = sorted(path for path in folder.glob("*.txt") if _LIST.fullmatch(path.name))
    if not lists:
        raise ConfigError(
            f"{folder}: holds no lists (subset_*.txt, query_*.txt); make them with dtrak_validate.py make-subsets"
        )
    made = sorted((folder / "models").glob("*.safetensors"))
    keep_settings(folder / "models" / "settings.json", describe_flags(given), made)
    mine = [path for path in lists[index::count] if not _weights(path).is_file()]
    for number, path in enumerate(mine, 1):
        logger.info("training on %s (%d of %d)", path.name, number, len(mine))
        _train(path, flags)
        if not keep_runs:
            shutil.rmtree(folder / "runs" / path.stem)
    return len(mine)


def read_flags(flags: Sequence[str]) -> dict[str, list[str]]:
    """The values of each flag."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in flags:
        if word.startswith("--"):
            name, _, word = word.partition("=")
            found[name] = []
        if word:
            found.setdefault(name, []).append(word)
    return found


def describe_flags(given: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The flags that decide the weights; of files their content counts, too."""

    def tell(value: str) -> str:
        return f"{value} ({content_digest(value)})" if Path(value).is_file() else value

    return {name: " ".join(map(tell, values)) or "given" for name, values in given.items() if name not in _ANY}


def _train(path: Path, flags: Sequence[str]) -> None:
    runs, log = path.parent / "runs", path.parent / "logs" / f"{path.stem}.txt"
    log.parent.mkdir(exist_ok=True)
    ours = ["--include-paths-file", str(path), "--name", path.stem, "--save-dir", str(runs)]
    _run(log, "train", *flags, *ours)
    checkpoints = sorted((runs / path.stem).glob("*/checkpoints/*.ckpt"), key=lambda found: found.stat().st_mtime_ns)
    if not checkpoints:
        raise UserError(f"{path}: the run wrote no checkpoint; see {log}")
    target = _weights(path).with_suffix("")
    _run(log, "unwrap-model", "--ckpt-path", str(checkpoints[-1]), "--name", str(target), "--use-safetensors")


def _run(log: Path, *words: str) -> None:
    with log.open("a", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "stable_audio_tools.cli.main", *words]
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UserError(
            f"{words[0]} failed with status {done.returncode} ({lines[-1] if lines else 'no output'}); see {log}"
        )


def _weights(path: Path) -> Path:
    return path.parent / "models" / f"{path.stem}.safetensors"
