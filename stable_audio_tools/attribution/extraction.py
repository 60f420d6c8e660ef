"""Feature extraction (`attribute extract`): resumable, and divided among processes."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from stable_audio_tools.attribution.engines import GradientEngine, make_engine
from stable_audio_tools.attribution.features import FeaturePaths, FeatureWriter
from stable_audio_tools.attribution.items import (
    CroppedItems,
    DatasetItems,
    Items,
    is_pre_encoded,
    open_items,
    read_dataset,
    read_items,
)
from stable_audio_tools.attribution.models import AttributedModel, ModelSource, SampleMaker
from stable_audio_tools.attribution.projection import make_projection
from stable_audio_tools.attribution.settings import ExtractSettings
from stable_audio_tools.attribution.task import AttributedSample, FeatureRecipe, find_measure, select_timesteps
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.core.progress import progress_bar
from stable_audio_tools.core.ranks import local_rank, rank, world_size
from stable_audio_tools.data.faults import Fault
from stable_audio_tools.data.path_lists import PathFilter
from stable_audio_tools.latents.writing import left_out_list

logger = logging.getLogger(__name__)

_TIMED_ITEMS = 3


class ExtractedFeatures(NamedTuple):
    """The result of a run: how many rows it computed, kept from earlier runs, and left out."""

    paths: FeaturePaths
    computed: int
    kept: int
    left_out: int


class Estimate(NamedTuple):
    """The predicted cost of a whole run."""

    items: int
    left_out: int  # known before anything is read
    parameters: int
    engine: str
    seconds_per_item: float
    disk: int  # bytes
    peak_gpu: int | None  # bytes
    peak_memory: int | None  # bytes of this process on the CPU; None if the system does not report it


class Extraction:
    """Model, items and engine of one run."""

    def __init__(self, settings: ExtractSettings) -> None:
        self.settings = settings
        self.paths = _own_paths(settings)
        device = _own_device(settings.device)
        # cuBLAS repeats its sums only if this is set before its first use.
        if device.startswith("cuda"):
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        source = ModelSource(
            settings.model_config,
            settings.pretrained_ckpt_path,
            settings.pretransform_ckpt_path,
            settings.remove_pretransform_weight_norm,
            device,
            settings.lora,
        )
        self.attributed = AttributedModel.load(source)
        self.attributed.set_checkpointing(settings.checkpointing)
        self.dataset = read_dataset(settings)
        if self.dataset is not None and settings.crops > 1:
            self.dataset["random_crop"] = True  # by default latents are cut at their start
        for key in ("include_paths_file", "exclude_paths_file"):
            if self.dataset is not None and getattr(settings, key):
                self.dataset[key] = getattr(settings, key)
        self.pre_encoded = is_pre_encoded(settings, self.attributed.training)
        paths = PathFilter(settings.exclude_paths_file, settings.include_paths_file) if settings.generated else None
        crop_seed = settings.seed if settings.crop_seed is None else settings.crop_seed
        self.items: Items = open_items(
            self.dataset, settings.generated, self.attributed.shape, crop_seed, settings.max_examples, paths
        )
        self.visits: Items = self.items
        if isinstance(self.items, DatasetItems) and settings.crops > 1:
            self.visits = CroppedItems(self.items, settings.crops)
        _require_names(self.items)
        steps = select_timesteps(settings.K, settings.num_train_steps, settings.t_strategy)
        recipe = FeatureRecipe(
            find_measure(settings.f), steps, settings.num_train_steps, settings.e_seed, settings.cfg_dropout_prob
        )
        self.parameters = self.attributed.select_parameters(settings.param_regex)
        self.make_sample = SampleMaker(
            self.attributed, self.pre_encoded, settings.e_seed, settings.autocast_pretransform
        )
        self.about = self._about(steps)
        self.engine: GradientEngine = make_engine(
            settings.engine,
            self.attributed.task(recipe),
            self.parameters,
            make_projection(settings.projection, settings.dim, settings.seed, settings.model_id),
            rows_at_once=settings.rows_at_once,
            checkpointing=settings.checkpointing,
        )

    def run(self) -> ExtractedFeatures:
        """Compute the rows of this process; rows that already exist are kept."""
        paths, index, count = self.paths, rank(), world_size()
        about = self.about if count == 1 else {**self.about, "shard": [index, count]}
        first, stop = (len(self.items) * place // count for place in (index, index + 1))
        if first == stop:
            raise ConfigError(f"{len(self.items)} items are too few for {count} processes; start fewer")
        writer = FeatureWriter(paths, stop - first, self.settings.dim, about, self.settings.overwrite)
        if writer.finished is not None:
            logger.info("%s is complete", paths.feature)
            return ExtractedFeatures(paths, 0, writer.finished["valid_rows"], writer.finished["left_out"])
        if count > 1 and index == 0 and self.settings.overwrite:
            merged = FeaturePaths.of(self.settings.feature_path)  # an earlier result, which a merge would not replace
            for path in (merged.feature, merged.ids, merged.meta):
                path.unlink(missing_ok=True)
        pending = writer.pending
        faults = self._compute_rows(writer, [first + row for row in pending], first)
        if len(faults) == stop - first and count == 1:
            raise AudioError(f"none of {len(faults)} items could be used; first: {faults[0]}")
        computed = len(pending) - len(faults)
        if index == 0:
            faults = [*self.items.faults, *faults]
        writer.finish([self.items.path(number) for number in range(first, stop)], len(faults))
        _write_faults(paths, faults)
        return ExtractedFeatures(paths, computed, stop - first - len(pending), len(faults))

    def estimate(self) -> Estimate:
        """Predict time and memory of a whole run from the first items, without writing anything."""
        gpu = self.attributed.device.type == "cuda"
        if gpu:
            torch.cuda.reset_peak_memory_stats(self.attributed.device)
        numbers = range(min(_TIMED_ITEMS, len(self.items)))
        with self._settled():
            self._time(numbers[:1])  # excludes one-time costs
            seconds = self._time(numbers)
        if seconds is None:
            raise AudioError("none of the first items could be used, so nothing can be timed")
        return Estimate(
            items=len(self.items),
            left_out=len(self.items.faults),
            parameters=sum(parameter.numel() for parameter in self.parameters.values()),
            engine=self.engine.name,
            seconds_per_item=seconds,
            disk=len(self.items) * self.settings.dim * 4,
            peak_gpu=torch.cuda.max_memory_allocated(self.attributed.device) if gpu else None,
            peak_memory=_peak_memory(),
        )

    def _time(self, numbers: Sequence[int]) -> float | None:
        """Return the seconds per item, from file to feature; None if no item can be used."""
        began = time.perf_counter()
        items = [crops for _, crops in self._samples(numbers, [], workers=0)]
        if not items:
            return None
        self._features(items)
        return (time.perf_counter() - began) / len(items)

    def _compute_rows(self, writer: FeatureWriter, numbers: list[int], first: int) -> list[Fault]:
        faults: list[Fault] = []
        waiting: list[tuple[int, list[AttributedSample]]] = []
        with progress_bar("features", len(numbers)) as show, self._settled():
            for done, (number, crops) in enumerate(self._samples(numbers, faults, self.settings.num_workers), 1):
                waiting.append((number - first, crops))
                if len(waiting) >= self.settings.batch_size:
                    self._write(writer, waiting)
                show(done)
            self._write(writer, waiting)
        return faults

    def _write(self, writer: FeatureWriter, waiting: list[tuple[int, list[AttributedSample]]]) -> None:
        if not waiting:
            return
        features = self._features([crops for _, crops in waiting])
        for (_, (sample, *_)), feature in zip(waiting, features):
            if not feature.isfinite().all():
                raise AudioError(
                    f"{sample.key}: its gradient is not finite; check the weights of the model and the item"
                )
        writer.write([row for row, _ in waiting], features)
        waiting.clear()

    def _features(self, items: Sequence[Sequence[AttributedSample]]) -> Tensor:
        """Return one feature per item, the mean over its crops."""
        features = self.engine.features([sample for crops in items for sample in crops])
        crops = len(features) // len(items)
        return features if crops == 1 else features.unflatten(0, (-1, crops)).mean(1)

    def _samples(
        self, numbers: Sequence[int], faults: list[Fault], workers: int = 0
    ) -> Iterator[tuple[int, list[AttributedSample]]]:
        """Yield the crops of each item; an item is at fault if any of its crops is."""
        crops = len(self.visits) // len(self.items)
        places = [number * crops + crop for number in numbers for crop in range(crops)]
        visits = read_items(self.visits, places, workers)
        for number, group in groupby(visits, key=lambda visit: visit.number // crops):
            samples, fault = [], None
            for visit in group:
                fault = fault or visit.fault
                if visit.item is not None and fault is None:
                    key, form = self.visits.key(visit.number), self.visits.form(visit.number)
                    samples.append(self.make_sample(visit.item, key, form))
            if fault is None:
                yield number, samples
            else:
                faults.append(fault)

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Use kernels that add up in a fixed order, where torch has them, so that results repeat bit for bit."""
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        with ExitStack() as stack:
            stack.callback(torch.use_deterministic_algorithms, before[0], warn_only=before[1])
            torch.use_deterministic_algorithms(True, warn_only=True)
            if self.settings.disable_sdpa:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    def _about(self, steps: list[int]) -> JsonObject:
        """Return the metadata: the keys of the original scripts, and the origin of model and data."""
        settings = self.settings
        shapes = {name: list(parameter.shape) for name, parameter in self.parameters.items()}
        published = ("K", "t_strategy", "num_train_steps", "f", "cfg_dropout_prob", "model_id", "param_regex")
        of_model = ("sample_size", "sample_rate", "audio_channels")
        about: JsonObject = {
            "items": len(self.items),
            "proj_dim": settings.dim,
            "used_dim": settings.dim,
            **{key: getattr(settings, key) for key in published},
            "grad_dim": sum(parameter.numel() for parameter in self.parameters.values()),
            "pre_encoded": self.pre_encoded,
            **{key: self.attributed.config.get(key) for key in of_model},
            "mask_padding": bool(self.attributed.training.get("mask_padding")),
            "random_crop": (self.dataset or {}).get("random_crop"),
            "autocast_pretransform": settings.autocast_pretransform,
            "timesteps": steps,
            "seed": settings.seed,
            "e_seed": settings.e_seed,
            "projection": settings.projection,
            "weights": self.attributed.fingerprint(),
            "model": _hash(self.attributed.config["model"]),
            "parameters": _hash(shapes),
            "data": self.items.data_key,
            "checkpoint": str(Path(settings.pretrained_ckpt_path).absolute()),
            "dataset_config": settings.dataset_config,
            "generated": settings.generated,
        }
        law = self.attributed.noise_level_law if settings.f == "loss" else None
        optional = {
            "noise_levels": None if law is None else law.description,
            "crops": settings.crops if settings.crops > 1 else None,
            "crop_seed": settings.crop_seed,
        }
        return about | {key: value for key, value in optional.items() if value is not None}


def _hash(value: object) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _own_device(name: str) -> str:
    """Return the device of this process; each process of a machine uses another GPU."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{local_rank() % torch.cuda.device_count()}"
    return name


def _own_paths(settings: ExtractSettings) -> FeaturePaths:
    """Return the files that this process writes."""
    paths = FeaturePaths.of(settings.feature_path, settings.ids_path, settings.meta_path)
    count = world_size()
    if count == 1:
        return paths
    if settings.ids_path or settings.meta_path:
        raise ConfigError(
            f"--ids-path, --meta-path: {count} processes write their own files beside --feature-path, and so does "
            "dtrak_merge.py; leave these flags out"
        )
    return paths.shard(rank(), count)


def _require_names(items: Items) -> None:
    """Check that every item can be a line of the list of ids."""
    for number in range(len(items)):
        path = items.path(number)
        if set(path) & {"\n", "\r"} or not _is_utf8(path):
            raise ConfigError(
                f"{path!r}: a name with line breaks, or not in UTF-8, cannot be written to the list of ids; rename "
                "the file, or exclude it from the dataset"
            )


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _write_faults(paths: FeaturePaths, faults: list[Fault]) -> None:
    if not faults:
        paths.left_out.unlink(missing_ok=True)
        return
    with atomic_path(paths.left_out) as temporary:  # names may be in no encoding
        temporary.write_text(left_out_list(faults), encoding="utf-8", errors="surrogateescape")
    logger.warning("%d items were left out; first: %s; all are in %s", len(faults), faults[0], paths.left_out)
