"""What a model makes of queries: f averaged over timesteps and noise seeds, without gradients."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stable_audio_tools.attribution.items import Items, open_items, read_items
from stable_audio_tools.attribution.models import AttributedModel, ModelSource, SampleMaker
from stable_audio_tools.attribution.noise import select_timesteps
from stable_audio_tools.attribution.outputs import find_measure
from stable_audio_tools.attribution.task import DiffusionTask, Recipe
from stable_audio_tools.attribution.validation import write_outputs
from stable_audio_tools.config import AudioError, ConfigError, load
from stable_audio_tools.inference.progress import progress_bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasureSettings:
    """Which queries, and how."""

    model_config: str
    dataset_config: str | None = None
    generated: str | None = None
    max_examples: int | None = None
    f: str = "loss"
    K: int = 50
    num_train_steps: int = 1000
    e_seeds: Sequence[int] = (0, 1, 2)
    pre_encoded: bool | None = None
    device: str = "auto"


@torch.no_grad()
def measure_outputs(tasks: Sequence[DiffusionTask], items: Items, make_sample: SampleMaker) -> list[float]:
    """The mean of the tasks' values for each item."""
    outputs = []
    for found in read_items(items, range(len(items))):
        if found.item is None:
            raise AudioError(f"{found.fault}: every query must be readable, or models could not be compared")
        sample = make_sample(found.item, items.key(found.number), items.form(found.number))
        values = [task.values(task.prepare(sample)).double().mean() for task in tasks]
        outputs.append(float(torch.stack(values).mean()))
    return outputs


def measure_model(settings: MeasureSettings, weights: str | Path) -> tuple[list[str], list[float]]:
    """Paths of the queries, and the output of the model of these weights for each."""
    attributed = AttributedModel.load(ModelSource(settings.model_config, str(weights), device=settings.device))
    dataset = None
    if settings.dataset_config is not None:
        dataset = {**load(settings.dataset_config), "drop_last": False, "augment_phase": False}
    items = open_items(dataset, settings.generated, attributed.shape, 0, settings.max_examples)
    steps = select_timesteps(settings.K, settings.num_train_steps)
    measure = find_measure(settings.f)
    tasks = [
        attributed.task(Recipe(measure, steps, settings.num_train_steps, noise_seed)) for noise_seed in settings.e_seeds
    ]
    given = settings.pre_encoded
    pre_encoded = bool(attributed.training.get("pre_encoded", False)) if given is None else given
    outputs = measure_outputs(tasks, items, SampleMaker(attributed, pre_encoded, seed=0))
    return [items.path(number) for number in range(len(items))], outputs


def measure_models(settings: MeasureSettings, folder: str | Path) -> list[Path]:
    """`outputs/NAME.csv` for every `models/NAME.safetensors` of a folder; what is measured already stays."""
    weights = sorted((Path(folder) / "models").glob("*.safetensors"))
    if not weights:
        raise ConfigError(f"{folder}/models: holds no models; train them with dtrak_validate.py train")
    written = []
    with progress_bar("measuring", len(weights)) as show:
        for number, path in enumerate(weights):
            target = Path(folder) / "outputs" / f"{path.stem}.csv"
            if not target.is_file():
                write_outputs(target, *measure_model(settings, path))
            written.append(target)
            show(number + 1)
    return written
