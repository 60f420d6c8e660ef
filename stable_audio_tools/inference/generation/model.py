"""One call from a name to a model, and one from a prompt to audio, for every type of model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from stable_audio_tools.core.config import load as load_config
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.devices import parse_dtype, pick_device, pick_dtype
from stable_audio_tools.core.errors import CheckpointError, ConfigError, UserError
from stable_audio_tools.core.generations import Generation
from stable_audio_tools.core.seeds import MAX_SEED, draw_seed
from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation.adapters import Adaptable, LoraSource, fingerprint, load_all
from stable_audio_tools.inference.generation.checks import (
    doubts,
    file_seconds,
    validate,
    with_lengths,
    with_recommended,
)
from stable_audio_tools.inference.generation.editing import generate
from stable_audio_tools.inference.generation.engine import AudioSource, GenerationEngine, set_precision
from stable_audio_tools.inference.generation.facts import facts_of
from stable_audio_tools.inference.generation.request import (
    HOOKS,
    OPTIONS,
    GenerationRequest,
    Hooks,
    read_hooks,
    share_of_way,
)
from stable_audio_tools.models.checkpoints import open_weights
from stable_audio_tools.models.checkpoints.formats import CONFIG_NAME
from stable_audio_tools.models.compilation import compile_decoder, compile_network
from stable_audio_tools.models.diffusion import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.pretrained import fit_config, format_of_folder, get_pretrained_model, load_model

logger = logging.getLogger(__name__)


class Generated(NamedTuple):
    """The result of a call: audio (b, c, n) on the CPU, float32, and the seed of each item.

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


class Inspection(Protocol):
    """A check of each generated item before anybody gets it."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that affect the result; a file that was written with other settings is generated again."""

    def __call__(self, audio: Tensor, sample_rate: int, /) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the audio to write, and what was found, for the settings in the file."""


def within_range(audio: Tensor, keeps_level: bool = False) -> Tensor:
    """Scale audio that peaks above 1 down to 1, or with `keeps_level` clip it there; other audio is unchanged."""
    return audio.clamp(-1, 1) if keeps_level else audio / audio.abs().max().clamp(min=1)


class AudioModel(Adaptable):
    """A model and its config: `model.generate(prompt="rain on a tin roof", seconds=10)`.

    `module` is the network itself, for the functions of `inference.generation`.
    """

    def __init__(
        self,
        module: nn.Module,
        config: Mapping[str, Any],
        device: str | torch.device | None = None,
        precision: str = "float32",
        name: str = "",
        offload: bool = False,
    ) -> None:
        self.config, self.name, self.offload = dict(config), name, offload
        self.facts = facts_of(config)
        if offload and self.facts.objective is None:
            raise UserError(
                f"offload: is for diffusion models, and this one is {self.facts.model_type!r}; leave it out"
            )
        self.device = pick_device(device)
        dtype = pick_dtype(self.device) if precision == "auto" else parse_dtype(precision)
        self.precision = str(dtype).removeprefix("torch.")
        set_precision(module, self.facts, self.precision)  # first, so that the device never holds float32
        self.module = module.to("cpu" if offload else self.device).eval().requires_grad_(False)

    @property
    def sample_rate(self) -> int:
        return self.facts.sample_rate

    @property
    def conditions(self) -> list[str]:
        """Conditions of the model, by keyword of `generate`."""
        return self.facts.keys

    @cached_property
    def fingerprint(self) -> str:
        """Twelve digits that change with the weights."""
        return fingerprint(self.module.state_dict())

    @property
    def sampling_version(self) -> Generation | None:
        """The generation whose defaults of sampling hold, where it is not that of 0.0.19."""
        module = self.module
        version = module.sampling_version if isinstance(module, ConditionedDiffusionModelWrapper) else "0.0.19"
        return None if version == "0.0.19" else version

    def compile(self, **options: Any) -> None:
        """Compile network and decoder at their first call; `options` are those of `torch.compile`.

        The second length or number of items is compiled for any. It pays on a GPU, where many small kernels become few;
        there `mode="reduce-overhead"` also replays them as CUDA graphs, for each length by itself.
        """
        compile_network(self.module, **options)
        compile_decoder(self.module, **options)

    @property
    def engine(self) -> GenerationEngine:
        """The engine that the functions of `editing` take."""
        return GenerationEngine(self.module, self.facts, self.device, self.precision, self.offload)

    def takes(self, option: str) -> bool:
        """Return whether this option of `generate` has an effect on a model of this type."""
        if option in HOOKS:
            return option in ("progress", "cancel") or self.facts.objective is not None
        return option in OPTIONS and self.facts.suits(OPTIONS[option].suits)

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        seconds: float | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        conditions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        num_samples: int = 1,
        seed: int | Sequence[int] = -1,
        **options: Any,
    ) -> Generated:
        """Generate audio for a prompt, or for several: an item does not depend on the others of its batch.

        `seconds`: length, at most the window of the model; None is all of it. `num_samples`: of each prompt. `seed`: of
        the first item, the others count on from it; or one per item. `conditions`: one dict, or one per item.

        `options`: other conditions by their ids (a list is one value per item), and the fields of `GenerationRequest`
        and `Hooks`: `steps`, `cfg_scale`, `sampler_type`, `progress`, `cancel`, `decode_frames`... `init_audio` is
        varied, continued (language models) or reconstructed (autoencoders). `inpaint_audio` is kept but for the spans
        `inpaint` [(from, to), ...] in seconds, or else continued. `mode` with `audio` works on audio of any length.
        `lora`: strengths of loaded adapters in this call, by name.
        """
        given, values, hooks = self._sorted(options)
        items = _as_items({"prompt": prompt, **given}, conditions, num_samples)
        count = len(items)
        weights = values.pop("weight", None)
        if weights is None and values.get("mode") == "interpolate":
            weights = [share_of_way(index % num_samples, num_samples) for index in range(count)]
        each = zip(
            items,
            _per_item("negative_prompt", negative_prompt, count, num_samples),
            _seeds(seed, count),
            _per_item("weight", weights, count, 1),
        )
        requests = [
            GenerationRequest(
                conditions=item, negative_prompt=negative, seed=own, weight=weight, seconds=seconds, **values
            )
            for item, negative, own, weight in each
        ]
        requests = self._checked(requests)
        with self.strengths(requests[0].lora or {}):
            audio = generate(self.engine, requests, hooks)
        length = file_seconds(requests[0])
        if length is not None:
            audio = audio[..., : round(length * self.sample_rate)]
        return Generated(audio, self.sample_rate, _drawn(requests), requests[0].keeps_level)

    def interpolate(
        self,
        audio: AudioSource,
        to_audio: AudioSource,
        weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        *,
        conditions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        seed: int | Sequence[int] = 0,
        **options: Any,
    ) -> Generated:
        """Interpolate between two clips, at shares `weights` of the way; the results have the length of a window.

        `options`: other conditions by their ids, and fields of `GenerationRequest`. Guidance is off by default,
        because it cannot be inverted exactly. With `mode="interpolate"`, `generate` cuts it to the longer clip.
        """
        given, values, hooks = self._sorted(options)
        items = _as_items(given, conditions or [{}] * len(weights), 1)
        requests = [
            GenerationRequest(
                conditions=item, seed=own, weight=weight, mode="interpolate", audio=audio, to_audio=to_audio, **values
            )
            for item, own, weight in zip(items, _seeds(seed, len(weights)), weights, strict=True)
        ]
        requests = self._checked(requests)
        with self.strengths(requests[0].lora or {}):
            generated = self.engine.generate(requests, hooks)
        return Generated(generated, self.sample_rate, _drawn(requests))

    def _sorted(self, options: Mapping[str, Any]) -> tuple[JsonObject, JsonObject, Hooks]:
        """Split keywords into conditions, fields of a request, and hooks."""
        for name in options:
            if name not in self.conditions and name not in OPTIONS and name not in HOOKS:
                known = [*self.conditions, *OPTIONS, *(hook for hook in HOOKS if self.takes(hook)), "prompt"]
                raise UserError(f"{name}: unknown; {nearest(name, known)}")
        given = {name: value for name, value in options.items() if name in self.conditions}
        values, hooks = read_hooks({name: value for name, value in options.items() if name not in given})
        return given, values, hooks

    def _checked(self, requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
        """Fill in recommended values and validate; one error lists all problems."""
        filled = [with_lengths(with_recommended(request, self.facts), self.facts) for request in requests]
        problems = [problem for request in filled for problem in validate(request, self.facts)]
        if problems:
            raise ConfigError(dict.fromkeys(problems))
        for doubt in dict.fromkeys(text for request in filled for text in doubts(request, self.facts)):
            logger.warning("%s", doubt)
        return [replace(each, seed=draw_seed()) if each.seed == -1 else each for each in filled]


def load(
    model: str | Path | Mapping[str, Any],
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    *,
    precision: str = "float32",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    lora: LoraSource | None = None,
    offload: bool = False,
) -> AudioModel:
    """Load a model that is ready to generate, on `device` or the best device of this machine.

    `model`: a name on the Hugging Face Hub, a folder with `model_config.json` and weights, a config (a path or a dict)
    with its `weights` beside it, or a weight file that holds its config. `precision`: float32 gives the published
    numbers; float16 and bfloat16 are faster, and off by around 1e-3 and 1e-2; "auto" is float16 on a GPU. `lora`:
    adapter files to load, as `"song.safetensors"`, a list, or `{"song.safetensors": 0.8}` with strengths. `offload`:
    a diffusion model stays in the memory of the host, and each part of it is on the device only while it is used.
    """
    loaded = _load(model, weights, pick_device(device), precision, revision, cache_dir, offload)
    load_all(loaded, lora)
    return loaded


def _load(
    model: str | Path | Mapping[str, Any],
    weights: str | Path | None,
    place: torch.device,
    precision: str,
    revision: str | None,
    cache_dir: str | Path | None,
    offload: bool,
) -> AudioModel:
    # Weights that are converted or stay on the CPU are read there.
    is_direct = not offload and pick_dtype(place, precision) is torch.float32
    first = place if is_direct else torch.device("cpu")
    path = None if isinstance(model, Mapping) else Path(model).expanduser()
    if path is not None and weights is None and path.suffix != ".json" and not path.is_file():
        module, config = get_pretrained_model(str(model), device=first, revision=revision, cache_dir=cache_dir)
        return AudioModel(module, config, place, precision, str(model), offload)
    file = path if weights is None else weights
    if file is None or (weights is None and path is not None and path.suffix == ".json"):
        raise CheckpointError(f"{path or 'model config'}: a config alone has no weights; give the weight file too")
    stored = open_weights(file)
    given = model if isinstance(model, Mapping) else find_config(model, weights)
    source = stored.model_config if given is None else given
    if source is None:
        raise CheckpointError(f"{stored.path}: no model config is stored with these weights; give the config file too")
    config = fit_config(source, stored)
    return AudioModel(load_model(config, stored, first), config, place, precision, stored.name, offload)


def find_config(model: str | Path, weights: str | Path | None = None) -> JsonObject | None:
    """Return the config at a path, without looking at weights; None for weight files and names on the Hub.

    With `weights`, the path is a config or its folder, whatever its suffix.
    """
    path = Path(model).expanduser()
    other = format_of_folder(path)
    if other is not None and not (path / CONFIG_NAME).exists():
        return other.read_config(path)
    if path.is_dir():
        path = path / CONFIG_NAME
    return load_config(path) if weights is not None or path.suffix == ".json" else None


def _as_items(
    given: Mapping[str, Any], conditions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, repeats: int
) -> list[JsonObject]:
    """Return the conditions of each item: lists are spread over the items, other values are shared."""
    if repeats < 1:
        raise ValueError(f"num_samples must be at least 1, got {repeats}")
    given = {key: value for key, value in given.items() if value is not None}
    listed = {key: list(value) for key, value in given.items() if isinstance(value, list | tuple)}
    counts = {key: len(values) for key, values in listed.items()}
    if conditions is not None and not isinstance(conditions, Mapping):
        counts["conditions"] = len(conditions)
    if len(set(counts.values())) > 1 or 0 in counts.values():
        lengths = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise ValueError(f"the lists must be equally long and not empty; found {lengths}")
    count = next(iter(counts.values()), 1)
    base = [conditions or {}] * count if conditions is None or isinstance(conditions, Mapping) else list(conditions)
    items = [
        {**base[index], **given, **{key: values[index] for key, values in listed.items()}} for index in range(count)
    ]
    return [dict(item) for item in items for _ in range(repeats)]


def _per_item(name: str, value: Any, count: int, repeats: int) -> list[Any]:
    """Return a value per item, from one value for all or one per prompt."""
    if not isinstance(value, list | tuple):
        return [value] * count
    values = [each for each in value for _ in range(repeats)]
    if len(values) != count:
        raise UserError(f"{name} lists {len(value)} values for {count // repeats} prompts; give one, or one for each")
    return values


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """Return one seed per item; a single seed counts on; -1 is drawn later."""
    if isinstance(seed, Sequence):
        seeds = list(seed)
    else:
        seeds = [seed] + [-1 if seed == -1 else (seed + number) % (MAX_SEED + 1) for number in range(1, count)]
    if len(seeds) != count:
        raise UserError(f"seed lists {len(seeds)} seeds for {count} items; give one seed, or one per item")
    for value in seeds:
        if not float(value).is_integer() or not -1 <= value <= MAX_SEED:
            raise UserError(f"seed: expected -1 (random) or a whole number from 0 to {MAX_SEED}, got {value!r}")
    return [int(value) for value in seeds]


def _drawn(requests: Sequence[GenerationRequest]) -> tuple[int, ...]:
    return tuple(request.seed for request in requests if request.seed is not None)
