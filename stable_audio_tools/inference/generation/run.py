"""One run of generation: seeds, noise, conditions, audio that is handed in, sampling and decoding, in this order.

The order decides what the seed gives: the noise is drawn first, then whatever conditioners and encoders draw, then what
the sampler draws.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stable_audio_tools.core.devices import autocast, parse_dtype, pick_device
from stable_audio_tools.inference.generation.audio import prepare_audio, unpack_audio
from stable_audio_tools.inference.generation.decoding import brought_to, decode_latents, encode_audio, parameter_dtype
from stable_audio_tools.inference.generation.request import GenerationRequest, Hooks
from stable_audio_tools.inference.sampling.ddpm_samplers import invert_ddim
from stable_audio_tools.inference.sampling.exact_math import exact_math
from stable_audio_tools.inference.sampling.k_samplers import GradientDenoiser
from stable_audio_tools.inference.sampling.keeping import KeepingDenoiser
from stable_audio_tools.inference.sampling.randomness import SeededNoise, resolve_seeds
from stable_audio_tools.inference.sampling.samplers import find_sampler
from stable_audio_tools.inference.sampling.schedules import Span, find_schedule
from stable_audio_tools.inference.sampling.watching import Watch, WatchedDenoiser, progress_of
from stable_audio_tools.models.autoencoders.autoencoder import analysed_once
from stable_audio_tools.models.conditioners.base import Condition, find_condition
from stable_audio_tools.models.diffusion.guidance import Denoiser
from stable_audio_tools.models.diffusion.objectives import Objective
from stable_audio_tools.models.diffusion.wrapper import DiffusionWrapper
from stable_audio_tools.models.precision import held_for_autocast

logger = logging.getLogger(__name__)

_ALL = slice(None)

MakeDenoiser = Callable[[slice], Denoiser]  # of these items of the batch


class Kept(NamedTuple):
    """Data (b, d, t) that stays as it is where the mask (b, 1, t) is 1."""

    data: Tensor
    mask: Tensor


class GenerationRun:
    """One run of the generate functions; `model` is a conditional or unconditional diffusion model."""

    def __init__(
        self,
        model: DiffusionWrapper,
        steps: int,
        batch_size: int,
        sample_size: int,
        seed: int | Sequence[int],
        device: str | torch.device,
        request: GenerationRequest,
        hooks: Hooks,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.steps, self.batch_size = model, steps, batch_size
        self.request, self.hooks = request, hooks
        self.objective: Objective = model.objective
        self.sampler = find_sampler(request.sampler_type, self.objective)
        self.sampler.check_eta(request.eta, request.sampler_type)
        self.device = pick_device(device)
        self.sample_size = sample_size
        self.frames = self._count_frames()
        self._check_device()
        self.noise = SeededNoise(resolve_seeds(seed, batch_size), self.device)
        if request.offload:
            model.to("cpu")  # each part comes to the device when it is used
        self.first_noise = self.noise.normal((batch_size, model.io_channels, self.frames))

    @contextmanager
    def settings(self) -> Iterator[None]:
        """The process's settings, as for published figures; restored afterwards."""
        if self.request.allow_tf32:
            yield
            return
        with exact_math(self.device):
            yield

    # ------------------------------------------------------------------ what goes in

    def conditions(self, metadata: Any, tensors: Mapping[str, Any] | None, name: str) -> dict[str, Condition] | None:
        """Conditions by id, out of metadata or of tensors that a conditioner gave before; None without either."""
        if tensors is None:
            if metadata is None:
                return None
            tensors = self._encode_metadata([metadata] if isinstance(metadata, Mapping) else list(metadata), name)
        return {id: self._spread(id, *find_condition(tensors, id), name) for id in tensors}

    def audio(self, given: Any, name: str) -> Tensor | None:
        """Convert a `(sample_rate, audio)` pair to what the model takes, (1 or b, c, sample_size)."""
        if given is None:
            return None
        rate, audio = unpack_audio(given, name)
        codec = self.model.pretransform
        channels = self.model.io_channels if codec is None else codec.io_channels
        prepared = prepare_audio(audio, rate, self.model.sample_rate, self.sample_size, channels, self.device)
        if len(prepared) not in (1, self.batch_size):
            raise ValueError(f"{name} holds {len(prepared)} clips for batch_size {self.batch_size}; give 1 or as many")
        return prepared

    def encoded(self, audio: Tensor | None) -> Tensor | None:
        """Encode prepared audio to the space of the model, (b, d, t)."""
        if audio is None:
            return None
        codec = self.model.pretransform
        is_shared = len(audio) == 1

        def encode(item: int | None = None) -> Tensor:
            begin()
            clips = audio if item is None or is_shared else audio[item : item + 1]
            return encode_audio(codec, clips)[..., : self.frames]

        with self._loaded(codec), analysed_once(codec if is_shared else None) as begin:
            latents = self.noise.feed(encode, encode, torch.cat)
        return latents.expand(self.batch_size, -1, -1)

    # ------------------------------------------------------------------ what comes out

    def sample(
        self,
        make_denoiser: MakeDenoiser,
        init: Tensor | None = None,
        init_noise_level: float = 1.0,
        default_schedule: str | None = None,
        start: Tensor | None = None,
        keep: Kept | None = None,
    ) -> Tensor:
        """Sample data (b, d, t) from noise, from `init` (b, d, t) with noise of a level, or from the state `start`."""
        if init is not None and init_noise_level == 0:
            return init
        times = self.times(init is not None, init_noise_level, default_schedule)
        view = self.sampler.view(self.objective)
        x = self.sampler.first_state(times, self.first_noise, init, view) if start is None else start
        own_steps = self.sampler.steps_by_batch and len(self.noise.streams) > 1
        items = [slice(index, index + 1) for index in range(self.batch_size)] if own_steps else [_ALL]
        total = None if self.sampler.own_steps else self.steps
        with self._loaded(self.model.model), self._autocast(), progress_of(self.hooks.bar, total) as progress:
            watch = Watch(self.hooks.callback, self.hooks.cancel, progress, total)
            sampled = []
            for index, item in enumerate(items):
                noise = self.noise.item(index) if own_steps else self.noise
                denoiser = self._keeping(self._watched(make_denoiser(item), watch), keep, item)
                run, denoiser = self.sampler.bound(denoiser, self.objective, self.request.eta)
                sampled.append(run(self._steered(denoiser), x[item], times, noise, watch))
        return torch.cat(sampled) if own_steps else sampled[0]

    def inverted(self, make_denoiser: MakeDenoiser, data: Tensor, refinements: int) -> Tensor:
        """Return the state from which `sample` leads to `data` (b, d, t), without fresh noise."""
        times = self.times()
        total = len(times) - 1
        with self._loaded(self.model.model), self._autocast(), progress_of(self.hooks.bar, total) as progress:
            watch = Watch(None, self.hooks.cancel, progress, total)
            denoiser = self._watched(make_denoiser(_ALL), watch)
            return invert_ddim(denoiser, data, times, watch, self.objective, refinements)

    def times(
        self, from_init: bool = False, init_noise_level: float = 1.0, default_schedule: str | None = None
    ) -> Tensor:
        """Return the times of the sampler."""
        level = init_noise_level if from_init else self.request.sigma_max
        span = Span(
            self.sampler.view(self.objective),
            self.steps,
            self.sampler.first_time(level, "init_noise_level" if from_init else "sigma_max", self.objective),
            shift=self.model.dist_shift,
            frames=self.frames,
            device=self.device,
            **{
                name: value
                for name, value in (("sigma_min", self.request.sigma_min), ("rho", self.request.rho))
                if value is not None
            },
        )
        return find_schedule(self.request.schedule or default_schedule or self.sampler.schedule)(span)

    def decoded(self, latents: Tensor) -> Tensor:
        """Decode latents (b, d, t) to audio (b, c, n)."""
        if self.hooks.on_latents is not None:
            self.hooks.on_latents(latents)
        codec = self.model.pretransform
        with self._loaded(codec):
            return decode_latents(codec, latents, self.request.decode_frames, self.request.decode_overlap)

    # ------------------------------------------------------------------ parts

    def _count_frames(self) -> int:
        codec = self.model.pretransform
        ratio = 1 if codec is None else codec.downsampling_ratio
        frames: int = self.sample_size // ratio
        multiple = max(1, (self.model.min_input_length or ratio) // ratio)
        if frames < 1 or frames % multiple:
            step = ratio * multiple
            below = self.sample_size // step * step
            valid = f"{below} or {below + step}" if below else f"{step} or more"
            raise ValueError(f"sample_size is {self.sample_size}, and the model works in steps of {step}; use {valid}")
        return frames

    def _check_device(self) -> None:
        weight = next(self.model.model.parameters(), None)
        if weight is None or self.request.offload:
            return
        there, here = weight.device, self.device
        if there.type != here.type or (here.index is not None and there.index != here.index):
            raise ValueError(f"the model is on {there}, and device is {str(here)!r}; move it: model.to({str(here)!r})")

    def _encode_metadata(self, items: list[Any], name: str) -> dict[str, Condition]:
        conditioner = self.model.conditioner
        if len(items) not in (1, self.batch_size):
            raise ValueError(
                f"{name} has {len(items)} entries for batch_size {self.batch_size}; give one entry, which all items "
                "then share, or one per item"
            )
        if conditioner is None:
            raise ValueError(f"{name} was given, but the model has no conditioning")

        def encode(item: int | None = None) -> dict[str, Condition]:
            chosen = items if item is None else [items[item % len(items)]]
            conditions: dict[str, Condition] = conditioner(chosen, self.device)
            return conditions

        with self._loaded(conditioner):
            return self.noise.feed(encode, encode, join_conditions)

    def _spread(self, id: str, tensor: Tensor, mask: Tensor | None, name: str) -> Condition:
        """Expand the condition of one item to the batch."""
        if len(tensor) not in (1, self.batch_size):
            raise ValueError(
                f"{name}: the condition {id!r} is for {len(tensor)} items, and batch_size is {self.batch_size}"
            )
        spread = tensor.to(self.device).expand(self.batch_size, *tensor.shape[1:])
        if mask is None:
            return Condition(spread, None)
        return Condition(spread, mask.to(self.device).expand(self.batch_size, *mask.shape[1:]))

    def _watched(self, denoiser: Denoiser, watch: Watch) -> Denoiser:
        return WatchedDenoiser(denoiser, watch, parameter_dtype(self.model.model, torch.float32))

    def _keeping(self, denoiser: Denoiser, keep: Kept | None, items: slice) -> Denoiser:
        if keep is None:
            return denoiser
        return KeepingDenoiser(denoiser, keep.data[items], keep.mask[items], self.objective)

    def _steered(self, denoiser: Denoiser) -> Denoiser:
        if self.hooks.cond_fn is None:
            return denoiser
        if not self.sampler.starts_by_ratio:
            raise ValueError("cond_fn works with k-diffusion's samplers only; choose another sampler_type")
        return GradientDenoiser(denoiser, self.hooks.cond_fn)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        """Run the network under autocast where the request says so; its weights are converted once for all steps."""
        if self.request.precision is None:
            yield
            return
        with autocast(self.device, parse_dtype(self.request.precision)), held_for_autocast(self.model.model):
            yield

    def _loaded(self, part: nn.Module | None) -> AbstractContextManager[None]:
        """Hold a part on the device inside the block, if `offload` keeps it elsewhere."""
        return brought_to(self.device if self.request.offload else None, part)


def select(inputs: Mapping[str, Tensor | None], items: slice, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Select the inputs of some items, in the precision of the weights; masks keep their type."""
    return {
        name: tensor if tensor is None else tensor[items].to(dtype) if tensor.is_floating_point() else tensor[items]
        for name, tensor in inputs.items()
    }


def join_conditions(parts: list[dict[str, Condition]]) -> dict[str, Condition]:
    """Join the conditions of single items to conditions of the batch."""

    def joined(id: str) -> Condition:
        masks = [part[id].mask for part in parts]
        present = [mask for mask in masks if mask is not None]
        return Condition(torch.cat([part[id].tensor for part in parts]), torch.cat(present) if present else None)

    return {id: joined(id) for id in parts[0]}
