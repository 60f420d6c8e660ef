"""Models of subsets: training on each list of a folder by `train.py`, and measuring their outputs for queries."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch

from stable_audio_tools.attribution.items import Items, is_pre_encoded, open_items, read_dataset, read_items
from stable_audio_tools.attribution.models import AttributedModel, ModelSource, SampleMaker
from stable_audio_tools.attribution.settings import MeasureSettings
from stable_audio_tools.attribution.task import DiffusionTask, FeatureRecipe, find_measure, select_timesteps
from stable_audio_tools.attribution.validation import (
    Plan,
    keep_settings,
    read_plan,
    require_finite_outputs,
    write_outputs,
)
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
    folder: str | Path,
    flags: Sequence[str],
    part: tuple[int, int] = (0, 1),
    keep_runs: bool = False,
    adapters: bool = False,
) -> int:
    """Train on every list `NAME.txt` without a `models/NAME.safetensors`, and return how many models were trained.

    The lists are written by make-subsets and make-removals; a plan with seeds has a model for each of them. `flags` go
    to `train.py`, or with `adapters` to `train_lora.py`, whose adapters are kept instead of whole models. `part` (i, n)
    takes every n-th model, starting at the i-th, so that jobs can share the work.
    """
    folder = Path(folder)
    given = read_flags(flags)
    plan = read_plan(folder) if (folder / "plan.json").is_file() else Plan((), ())
    taken = [flag for flag in (*_OURS, *(("--seed",) if plan.seeds else ())) if flag in given]
    if taken:
        raise ConfigError(f"{', '.join(taken)}: set for each subset; leave it out of the flags of training")
    index, count = part
    if not 0 <= index < count:
        raise ConfigError(f"--part: expected I N with I from 0 to N - 1, got {index} {count}")
    lists = sorted(path for path in folder.glob("*.txt") if _LIST.fullmatch(path.name))
    if not lists:
        raise ConfigError(
            f"{folder}: holds no lists (subset_*.txt, query_*.txt); write them with dtrak_validate.py make-subsets"
        )
    made = sorted((folder / "models").glob("*.safetensors"))
    settings = describe_flags(given) | ({"trained": "adapters"} if adapters else {})
    keep_settings(folder / "models" / "settings.json", settings, made)
    runs = [
        SubsetRun(path, name, seed, adapters)
        for path in lists
        for name, seed in zip(plan.model_names(path.stem), plan.seeds or (None,))
    ]
    mine = [run for run in runs[index::count] if not run.weights.is_file()]
    for number, run in enumerate(mine, 1):
        logger.info("training %s (%d of %d)", run.name, number, len(mine))
        _train(run, flags)
        if not keep_runs:
            shutil.rmtree(folder / "runs" / run.name)
    return len(mine)


class SubsetRun(NamedTuple):
    """The training of one model on a list."""

    items: Path
    name: str
    seed: int | None  # None: the seed of train.py
    adapters: bool

    @property
    def weights(self) -> Path:
        return self.items.parent / "models" / f"{self.name}.safetensors"


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


def _train(run: SubsetRun, flags: Sequence[str]) -> None:
    folder = run.items.parent
    runs, log = folder / "runs", folder / "logs" / f"{run.name}.txt"
    log.parent.mkdir(exist_ok=True)
    ours = ["--include-paths-file", str(run.items), "--name", run.name, "--save-dir", str(runs)]
    ours += [] if run.seed is None else ["--seed", str(run.seed)]
    _run(log, *(("lora", "train") if run.adapters else ("train",)), *flags, *ours)
    checkpoints = sorted((runs / run.name).glob("*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if not checkpoints:
        raise UserError(f"{run.items}: the run wrote no checkpoint; see {log}")
    target = run.weights.with_suffix("")
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
        base = settings.pretrained_ckpt_path
        source = ModelSource(settings.model_config, base or str(weights), device=settings.device)
        if base is not None:
            source = replace(source, lora=(weights, 1.0))
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
        law = self.attributed.noise_level_law if self.settings.f == "loss" else None
        optional = {
            "noise_levels": None if law is None else law.description,
            "base": self.settings.pretrained_ckpt_path and content_digest(self.settings.pretrained_ckpt_path),
        }
        return {
            **{name: value for name, value in optional.items() if value is not None},
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
