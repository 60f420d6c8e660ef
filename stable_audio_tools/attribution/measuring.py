"""What a model makes of queries: f averaged over timesteps and noise seeds, without gradients."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.attribution.items import Items, is_pre_encoded, open_items, read_dataset, read_items
from stable_audio_tools.attribution.models import AttributedModel, ModelSource, SampleMaker
from stable_audio_tools.attribution.noise import select_timesteps
from stable_audio_tools.attribution.outputs import find_measure
from stable_audio_tools.attribution.settings import MeasureSettings
from stable_audio_tools.attribution.task import DiffusionTask, FeatureRecipe
from stable_audio_tools.attribution.validation import keep_settings, require_finite_outputs, write_outputs
from stable_audio_tools.core.config import load, save
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.core.files import content_digest
from stable_audio_tools.core.progress import progress_bar


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


class Queries:
    """The queries of the settings, as a model takes them."""

    def __init__(self, settings: MeasureSettings, weights: str | Path) -> None:
        source = ModelSource(settings.model_config, str(weights), device=settings.device)
        self.settings, self.attributed = settings, AttributedModel.load(source)
        dataset, shape = read_dataset(settings), self.attributed.shape
        self.items = open_items(dataset, settings.generated, shape, settings.seed, settings.max_examples)
        self.pre_encoded = is_pre_encoded(settings, self.attributed.training)

    def outputs(self) -> dict[str, float]:
        """The output of the model for the path of each query."""
        settings, measure = self.settings, find_measure(self.settings.f)
        steps = select_timesteps(settings.K, settings.num_train_steps)
        recipes = [
            FeatureRecipe(measure, steps, settings.num_train_steps, noise_seed) for noise_seed in settings.e_seeds
        ]
        tasks = [self.attributed.task(recipe) for recipe in recipes]
        values = measure_outputs(tasks, self.items, SampleMaker(self.attributed, self.pre_encoded, seed=0))
        return {self.items.path(number): value for number, value in enumerate(values)}

    def describe(self) -> dict[str, Any]:
        """All that outputs depend on but the weights."""
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
    """`outputs/NAME.csv` for every `models/NAME.safetensors` of a folder; what is measured already stays."""
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
