"""Models of subsets: training on each list of a folder by `train.py`, and measuring their outputs for queries."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch

from stable_audio_tools.attribution.items import Items, is_pre_encoded, open_items, read_dataset, read_items
from stable_audio_tools.attribution.models import AttributedModel, ModelSource, SampleMaker
from stable_audio_tools.attribution.settings import MeasureSettings
from stable_audio_tools.attribution.task import DiffusionTask, FeatureRecipe, find_measure, select_timesteps
from stable_audio_tools.attribution.validation import keep_settings, require_finite_outputs, write_outputs
from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import AudioError, ConfigError, UserError
from stable_audio_tools.core.files import content_digest
from stable_audio_tools.core.progress import progress_bar

logger = logging.getLogger(__name__)

_OURS = ("--include-paths-file", "--name", "--save-dir")
_ANY = ("--num-workers", "--logger", "--log-every", "--project", "--recover")  # these do not affect the weights
_LIST = re.compile(r"(subset_\d+|query_\d+_(named|random)|whole)\.txt")


def train_subsets(
    folder: str | Path, flags: Sequence[str], part: tuple[int, int] = (0, 1), keep_runs: bool = False
) -> int:
    """Train on every list `NAME.txt` without a `models/NAME.safetensors`, and return how many models were trained.

    The lists are written by make-subsets and make-removals.
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
            f"{folder}: holds no lists (subset_*.txt, query_*.txt); write them with dtrak_validate.py make-subsets"
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
    """Parse flags to the values of each."""
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
    """Return the flags that affect the weights, with digests of files."""

    def describe(value: str) -> str:
        return f"{value} ({content_digest(value)})" if Path(value).is_file() else value

    return {name: " ".join(map(describe, values)) or "given" for name, values in given.items() if name not in _ANY}


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


@torch.no_grad()
def measure_outputs(tasks: Sequence[DiffusionTask], items: Items, make_sample: SampleMaker) -> list[float]:
    """Return the mean value of the tasks for each item."""
    outputs = []
    for found in read_items(items, range(len(items))):
        if found.item is None:
            raise AudioError(f"{found.fault}: every query must be readable, so that models can be compared")
        sample = make_sample(found.item, items.key(found.number), items.form(found.number))
        values = [task.values(task.prepare(sample)).double().mean() for task in tasks]
        outputs.append(float(torch.stack(values).mean()))
    return outputs


class Queries:
    """The queries of the settings, for one model."""

    def __init__(self, settings: MeasureSettings, weights: str | Path) -> None:
        source = ModelSource(settings.model_config, str(weights), device=settings.device)
        self.settings, self.attributed = settings, AttributedModel.load(source)
        dataset, shape = read_dataset(settings), self.attributed.shape
        self.items = open_items(dataset, settings.generated, shape, settings.seed, settings.max_examples)
        self.pre_encoded = is_pre_encoded(settings, self.attributed.training)

    def outputs(self) -> dict[str, float]:
        """Return the output of the model by the path of each query."""
        settings, measure = self.settings, find_measure(self.settings.f)
        steps = select_timesteps(settings.K, settings.num_train_steps)
        recipes = [
            FeatureRecipe(measure, steps, settings.num_train_steps, noise_seed) for noise_seed in settings.e_seeds
        ]
        tasks = [self.attributed.task(recipe) for recipe in recipes]
        values = measure_outputs(tasks, self.items, SampleMaker(self.attributed, self.pre_encoded, seed=0))
        return {self.items.path(number): value for number, value in enumerate(values)}

    def describe(self) -> JsonObject:
        """Return every setting that affects the outputs, except the weights."""
        names = ("f", "K", "num_train_steps", "e_seeds", "seed", "disable_random_crop")
        config = json.dumps(self.attributed.config, sort_keys=True)
        return {
            **{name: getattr(self.settings, name) for name in names},
            "pre_encoded": self.pre_encoded,
            "queries": len(self.items),
            "query_data": self.items.data_key,
            "model_config": sha256(config.encode()).hexdigest()[:16],
        }


def measure_models(settings: MeasureSettings, folder: str | Path) -> list[Path]:
    """Write `outputs/NAME.csv` for every `models/NAME.safetensors` of a folder, and keep existing results."""
    weights = sorted((Path(folder) / "models").glob("*.safetensors"))
    if not weights:
        raise ConfigError(f"{folder}/models: holds no models; train them with dtrak_validate.py train")
    outputs = Path(folder) / "outputs"
    record, written = outputs / "settings.json", []
    about = Queries(settings, weights[0]).describe()
    keep_settings(record, about, sorted(outputs.glob("*.csv")))
    measured = dict(load(record).get("weights", {}))
    with progress_bar("measuring", len(weights)) as show:
        for number, path in enumerate(weights):
            target, digest = outputs / f"{path.stem}.csv", content_digest(path)
            if not target.is_file() or measured.get(path.stem) != digest:
                target.unlink(missing_ok=True)
                found = Queries(settings, path).outputs()
                require_finite_outputs(found, path)
                write_outputs(target, list(found), list(found.values()))
                measured[path.stem] = digest
                save({"settings": about, "weights": measured}, record)
            written.append(target)
            show(number + 1)
    return written
