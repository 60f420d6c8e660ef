"""One call from a name to a model, and one from a prompt to audio, for every type of model."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stable_audio_tools.core.config import load as load_config
from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.devices import parse_dtype, pick_device, pick_dtype
from stable_audio_tools.core.errors import CheckpointError, UserError
from stable_audio_tools.core.seeds import MAX_SEED, draw_seed
from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation.adapters import Adaptable, LoraSource, fingerprint, load_all
from stable_audio_tools.inference.generation.audio import unpack_audio
from stable_audio_tools.inference.generation.diffusion import Audio
from stable_audio_tools.inference.generation.facts import facts_of
from stable_audio_tools.inference.generation.interpolation import interpolate_audio
from stable_audio_tools.inference.generation.makers import MAKERS, Job, Span, set_precision
from stable_audio_tools.models.checkpoints import open_weights
from stable_audio_tools.models.checkpoints.formats import CONFIG_NAME
from stable_audio_tools.models.compilation import compile_network
from stable_audio_tools.models.pipeline_folders import is_pipeline, pipeline_config
from stable_audio_tools.models.pretrained import fit_config, get_pretrained_model, load_model

logger = logging.getLogger(__name__)

AudioSource = Audio | str | Path  # (sample rate, (c, n) or (n,)), or a file


class Generated(NamedTuple):
    """What a call made: audio (b, c, n) on the CPU, float32, and the seed of each item.

    `keeps_level`: part of it is audio that was handed in, so that files of it are not scaled down.
    """

    audio: Tensor
    sample_rate: int
    seeds: tuple[int, ...]
    keeps_level: bool = False

    def save(self, path: str | Path) -> list[Path]:
        """Write one file per item, in the format of the suffix; several are numbered: `rain-1.wav`, `rain-2.wav`."""
        path = Path(path)
        numbered = [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, len(self.audio) + 1)]
        paths = [path] if len(self.audio) == 1 else numbered
        for target, audio in zip(paths, self.audio):
            audio_io.write(target, within_range(audio, self.keeps_level), self.sample_rate)
        return paths


def within_range(audio: Tensor, keeps_level: bool = False) -> Tensor:
    """Audio that peaks above 1 scaled down to 1, or with `keeps_level` cut off there; the rest as it is."""
    return audio.clamp(-1, 1) if keeps_level else audio / audio.abs().max().clamp(min=1)


class AudioModel(Adaptable):
    """A model with what its config says: `model.generate(prompt="rain on a tin roof", seconds=10)`.

    `module` is the network itself, for the functions of `inference.generation`.
    """

    def __init__(
        self,
        module: nn.Module,
        config: Mapping[str, Any],
        device: str | torch.device | None = None,
        precision: str = "float32",
        name: str = "",
    ) -> None:
        self.config, self.name = dict(config), name
        self.facts = facts_of(config)
        self.device = pick_device(device)
        dtype = pick_dtype(self.device) if precision == "auto" else parse_dtype(precision)
        self.precision = str(dtype).removeprefix("torch.")
        self.module = module.to(self.device).eval().requires_grad_(False)
        set_precision(self.module, self.facts, self.precision)
        self._make, self._options = MAKERS[self.facts.model_type]

    @property
    def sample_rate(self) -> int:
        return self.facts.sample_rate

    @property
    def conditions(self) -> list[str]:
        """What the model can be told, by keyword of `generate`."""
        return self.facts.keys

    @cached_property
    def fingerprint(self) -> str:
        """Twelve digits that change with the weights, from the first values of every tensor."""
        return fingerprint(self.module.state_dict())

    def compile(self, **options: Any) -> None:
        """Compile the network of a diffusion model at its first call; `options` are those of `torch.compile`.

        Each length and number of items is compiled for itself. It pays on a GPU, where many small kernels become few.
        """
        if self.facts.objective is None:
            raise UserError(f"compile: only diffusion models are compiled; this one is {self.facts.model_type!r}")
        compile_network(self.module, **options)

    def takes(self, option: str) -> bool:
        """Is this an option of `generate` for a model of this type?"""
        return option in self._options

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        seconds: float | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        conditions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        num_samples: int = 1,
        seed: int | Sequence[int] = -1,
        steps: int | None = None,
        cfg_scale: float | None = None,
        init_audio: AudioSource | None = None,
        init_noise_level: float | None = None,
        inpaint_audio: AudioSource | None = None,
        inpaint: Sequence[Span] | None = None,
        sample_size: int | None = None,
        lora: Mapping[str, float] | None = None,
        **more: Any,
    ) -> Generated:
        """Audio for a prompt, or for several: an item does not depend on the others of its batch.

        `seconds`: length, at most the window of the model; None is all of it. `more`: other conditions by their ids (a
        list is one value per item), and options of the sampler: `sampler_type`, `schedule`, `progress`, `cancel`,
        `decode_frames`... `conditions`: the same as dicts. `num_samples`: of each prompt. `seed`: of the first item,
        the others count on from it; or one per item. `init_audio` is varied, continued (language models) or
        reconstructed (autoencoders). `inpaint_audio` is kept but for the spans `inpaint` [(from, to), ...] in seconds,
        or else continued. `sample_size`: samples to make at once, where the model does not fix them. `lora`: strengths
        of loaded adapters in this call, by name.
        """
        given, options = self._split(more)
        items = _as_items({"prompt": prompt, **given}, conditions, num_samples)
        _require("init_audio", init_audio, "init_noise_level", init_noise_level)
        _require("inpaint_audio", inpaint_audio, "inpaint", inpaint)
        _require("inpaint_audio", inpaint_audio, "inpaint_bands", more.get("inpaint_bands"))
        self._complete(items, seconds)
        self._check(items, seconds, steps, sample_size)
        seeds = self._seeds(seed, len(items))
        job = Job(
            seeds,
            self._samples(seconds) if sample_size is None else sample_size,
            self.device,
            self.precision,
            items,
            self._negative(items, negative_prompt, num_samples),
            steps,
            cfg_scale,
            _read_source(init_audio, "init_audio", self.sample_rate),
            init_noise_level,
            _read_source(inpaint_audio, "inpaint_audio", self.sample_rate),
            inpaint,
            options,
        )
        with self.strengths(lora or {}):
            audio = self._make(self.module, job, self.facts).float().cpu()
        if seconds is not None:
            audio = audio[..., : round(seconds * self.sample_rate)]
        return Generated(audio, self.sample_rate, tuple(seeds), inpaint_audio is not None)

    @torch.no_grad()
    def interpolate(
        self,
        audio: AudioSource,
        to_audio: AudioSource,
        weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        *,
        conditions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        cfg_scale: float | None = None,
        **more: Any,
    ) -> Generated:
        """What lies between two clips, at shares `weights` of the way: see `inference.interpolation`.

        `more`: other conditions by their ids, and options of the sampler. Guidance is off unless asked for, since it
        has no exact way back.
        """
        if self.facts.objective is None:
            raise ValueError(f"only diffusion models interpolate; this is a model of type {self.facts.model_type!r}")
        given, options = self._split(more)
        items = _as_items(given, conditions or [{}] * len(weights), 1)
        self._complete(items, None)
        self._check(items, None, steps)
        seeds = self._seeds(seed, len(weights))
        first = _read_source(audio, "audio", self.sample_rate)
        second = _read_source(to_audio, "to_audio", self.sample_rate)
        assert first is not None and second is not None
        for name in ("keep_exact", "crossfade_seconds", "inpaint_bands"):
            if options.pop(name, None) is not None:
                raise ValueError(f"{name}: has no meaning when clips are interpolated; leave it out")
        guided: dict[str, Any] = {} if cfg_scale is None else {"cfg_scale": cfg_scale}
        made = interpolate_audio(
            self.module,
            first,
            second,
            weights,
            steps=self._steps(steps),
            sample_size=self._samples(None) or 0,
            seed=seeds,
            device=self.device,
            conditioning=items if getattr(self.module, "conditioner", None) is not None else None,
            **guided,
            **options,
        )
        return Generated(made.float().cpu(), self.sample_rate, tuple(seeds))

    # ------------------------------------------------------------------ what is asked

    def _steps(self, steps: int | None) -> int:
        assert self.facts.recommended is not None
        return self.facts.recommended.steps if steps is None else steps

    def _split(self, more: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Conditions and options."""
        known = [*self.conditions, *self._options, "prompt", "seconds", "steps", "seed", "cfg_scale", "num_samples"]
        for name in more:
            if name not in self.conditions and name not in self._options:
                raise ValueError(f"{name}: unknown; {nearest(name, known)}")
        given = {name: value for name, value in more.items() if name in self.conditions}
        return given, {name: value for name, value in more.items() if name not in given}

    def _complete(self, items: list[dict[str, Any]], seconds: float | None) -> None:
        """Add the length, which models of Stable Audio are told."""
        asked = self.facts.window_seconds if seconds is None else seconds
        for key, value in (("seconds_start", 0), ("seconds_total", asked)):
            if key in self.conditions and math.isfinite(value):
                whole = self.facts.input_of(key).kind == "integer"
                for item in items:
                    item.setdefault(key, math.ceil(value) if whole else value)

    def _check(
        self, items: list[dict[str, Any]], seconds: float | None, steps: int | None, sample_size: int | None = None
    ) -> None:
        problems = [] if seconds is None else list(self.facts.check_seconds(seconds))
        if seconds is not None and sample_size is not None and seconds * self.sample_rate > sample_size:
            problems.append(f"seconds: is {seconds:g} s, and sample_size is only {sample_size / self.sample_rate:g} s")
        if steps is not None and not self.facts.has_steps:
            problems.append(f"steps: a model of type {self.facts.model_type!r} has none; leave them out")
        for item in items:
            problems += self.facts.check_conditions(item)
            problems += self.facts.check_told_length(item)
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        for warning in dict.fromkeys(text for item in items for text in self.facts.warnings(item)):
            logger.warning("%s", warning)

    def _seeds(self, seed: int | Sequence[int], count: int) -> list[int]:
        if isinstance(seed, Sequence):
            given = list(seed)
        else:
            given = [seed] + [-1 if seed == -1 else (seed + number) % (MAX_SEED + 1) for number in range(1, count)]
        if len(given) != count:
            raise ValueError(f"seed lists {len(given)} seeds for {count} items; give one seed, or one per item")
        for value in given:
            if not float(value).is_integer() or not -1 <= value <= MAX_SEED:
                raise ValueError(f"seed: expected -1 (random) or a whole number from 0 to {MAX_SEED}, got {value!r}")
        return [draw_seed() if value == -1 else value for value in given]

    def _samples(self, seconds: float | None) -> int | None:
        """A model that is told its length makes its whole window; others may make less."""
        window, step = self.facts.window, getattr(self.module, "min_input_length", 1)
        if seconds is None or "seconds_total" in self.conditions:
            return window
        wanted = math.ceil(seconds * self.sample_rate / step) * step
        return wanted if window is None else min(wanted, window)

    def _negative(
        self, items: list[dict[str, Any]], prompt: str | Sequence[str] | None, repeats: int
    ) -> list[dict[str, Any]] | None:
        if prompt is None:
            return None
        if "prompt" not in self.conditions:
            raise ValueError(f"negative_prompt: this model takes no prompt; it takes {_told(self.conditions)}")
        prompts = (
            [prompt] * len(items) if isinstance(prompt, str) else [text for text in prompt for _ in range(repeats)]
        )
        if len(prompts) != len(items):
            raise ValueError(f"negative_prompt lists {len(prompts)} texts for {len(items)} items")
        return [{**item, "prompt": text} for item, text in zip(items, prompts)]


def load(
    model: str | Path | Mapping[str, Any],
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    *,
    precision: str = "float32",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    lora: LoraSource | None = None,
) -> AudioModel:
    """A model ready to generate, on the best device of this machine unless another is named.

    `model`: a name on the Hugging Face Hub, a folder with `model_config.json` and weights, a config (a path or a dict)
    with its `weights` beside it, or a weight file that holds its config. `precision`: float32 gives the published
    numbers; float16 and bfloat16 are faster, and off by around 1e-3 and 1e-2; "auto" is float16 on a GPU. `lora`:
    adapter files to put on, as `"song.safetensors"`, a list, or `{"song.safetensors": 0.8}` with strengths.
    """
    made = _load(model, weights, pick_device(device), precision, revision, cache_dir)
    load_all(made, lora)
    return made


def _load(
    model: str | Path | Mapping[str, Any],
    weights: str | Path | None,
    place: torch.device,
    precision: str,
    revision: str | None,
    cache_dir: str | Path | None,
) -> AudioModel:
    path = None if isinstance(model, Mapping) else Path(model).expanduser()
    if path is not None and weights is None and path.suffix != ".json" and not path.is_file():
        module, config = get_pretrained_model(str(model), device=place, revision=revision, cache_dir=cache_dir)
        return AudioModel(module, config, place, precision, str(model))
    stored = open_weights(_weights_of(path, weights))
    given = model if isinstance(model, Mapping) else find_config(model, weights)
    source = stored.model_config if given is None else given
    if source is None:
        raise CheckpointError(f"{stored.path}: no model config is stored with these weights; give the config file too")
    config = fit_config(source, stored)
    return AudioModel(load_model(config, stored, place), config, place, precision, stored.name)


def find_config(model: str | Path, weights: str | Path | None = None) -> dict[str, Any] | None:
    """Return the config at a path, without looking at weights; None for weight files and names on the Hub.

    Beside `weights`, the path is that of a config or of its folder, whatever its name ends in.
    """
    path = Path(model).expanduser()
    if is_pipeline(path) and not (path / CONFIG_NAME).exists():
        return pipeline_config(path)
    if path.is_dir():
        path = path / CONFIG_NAME
    return load_config(path) if weights is not None or path.suffix == ".json" else None


def _weights_of(path: Path | None, weights: str | Path | None) -> str | Path:
    if weights is not None:
        return weights
    if path is None or path.suffix == ".json":
        raise CheckpointError(f"{path or 'model config'}: a config alone has no weights; give the weight file too")
    return path


def _as_items(
    given: Mapping[str, Any], conditions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, repeats: int
) -> list[dict[str, Any]]:
    """Conditions of each item: lists are spread over the items, the rest is shared."""
    if repeats < 1:
        raise ValueError(f"num_samples must be at least 1, got {repeats}")
    given = {key: value for key, value in given.items() if value is not None}
    listed = {key: list(value) for key, value in given.items() if isinstance(value, list | tuple)}
    counts = {key: len(values) for key, values in listed.items()}
    if conditions is not None and not isinstance(conditions, Mapping):
        counts["conditions"] = len(conditions)
    if len(set(counts.values())) > 1 or 0 in counts.values():
        told = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise ValueError(f"the lists must be equally long, and hold something: {told}")
    count = next(iter(counts.values()), 1)
    base = [conditions or {}] * count if conditions is None or isinstance(conditions, Mapping) else list(conditions)
    items = [
        {**base[index], **given, **{key: values[index] for key, values in listed.items()}} for index in range(count)
    ]
    return [dict(item) for item in items for _ in range(repeats)]


def _read_source(source: AudioSource | None, name: str, sample_rate: int) -> Audio | None:
    """A file, or a pair of rate and audio, as such a pair."""
    if source is None:
        return None
    if isinstance(source, str | Path):
        samples, rate = audio_io.read(source, sample_rate=sample_rate)
        return rate, samples
    return unpack_audio(source, name)


def _require(needed: str, audio: AudioSource | None, name: str, option: Any) -> None:
    """An option that acts on audio needs it."""
    if option is not None and audio is None:
        raise ValueError(f"{name}: has no effect without {needed}; give that too, or leave it out")


def _told(conditions: Sequence[str]) -> str:
    return ", ".join(conditions) or "no conditions"
