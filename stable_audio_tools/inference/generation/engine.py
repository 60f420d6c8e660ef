"""Generation of one window of audio from validated requests, for each type of model.

Requests of one batch differ only in the fields that are declared with `each`; `editing` builds edits of any length on
this module.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from stable_audio_tools.core.devices import autocast, parse_dtype
from stable_audio_tools.core.generations import Generation
from stable_audio_tools.data import audio_io
from stable_audio_tools.inference.generation.audio import prepare_audio, unpack_audio
from stable_audio_tools.inference.generation.by_length import generate_by_length, version_of
from stable_audio_tools.inference.generation.by_length import read_request as read_length_request
from stable_audio_tools.inference.generation.checks import audio_conditions
from stable_audio_tools.inference.generation.diffusion import Audio, DiffusionInputs, run_diffusion
from stable_audio_tools.inference.generation.facts import ModelFacts
from stable_audio_tools.inference.generation.interpolation import interpolate
from stable_audio_tools.inference.generation.reconstruction import reconstruct
from stable_audio_tools.inference.generation.request import GenerationRequest, Hooks
from stable_audio_tools.inference.generation.run import GenerationRun, join_conditions
from stable_audio_tools.inference.sampling.randomness import SeededNoise
from stable_audio_tools.inference.sampling.samplers import find_sampler
from stable_audio_tools.inference.sampling.watching import Cancelled, progress_of
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.diffusion.wrapper import DiffusionWrapper
from stable_audio_tools.models.lm import AudioLanguageModelWrapper
from stable_audio_tools.models.precision import hold_in

AudioSource = Audio | str | Path  # (sample rate, (c, n) or (n,)), or a file


@dataclass(frozen=True)
class GenerationEngine:
    """A model on its device, ready for requests."""

    module: nn.Module
    facts: ModelFacts
    device: torch.device
    precision: str = "float32"
    offload: bool = False  # the module is on the CPU, and each part comes to the device while it is used

    @torch.no_grad()
    def generate(self, requests: Sequence[GenerationRequest], hooks: Hooks) -> Tensor:
        """Return audio (b, c, n), one item per request, of the length of a window or of `sample_size`."""
        request = requests[0]
        if self.facts.objective is None:
            audio = self._codes(requests, hooks) if self.facts.use == "language model" else self._codec(requests, hooks)
        elif request.mode == "interpolate":
            audio = self._between(requests, hooks)
        else:
            audio = self._diffusion(requests, hooks)
        return audio.float().cpu()

    def samples_for(self, request: GenerationRequest) -> int:
        """Return the number of samples to generate: the whole window for models with a length condition."""
        window, seconds = self.facts.window, request.seconds
        if request.sample_size is not None:
            return request.sample_size
        if window is not None and (seconds is None or request.mode is not None or "seconds_total" in self.facts.keys):
            return window
        assert seconds is not None, "requests to models without a window have seconds"
        step = cast(DiffusionWrapper | AudioLanguageModelWrapper, self.module).min_input_length
        wanted = math.ceil(seconds * self.facts.sample_rate / step) * step
        return wanted if window is None else min(wanted, window)

    def read(self, source: "AudioSource", name: str) -> Audio:
        """Return a file, or a pair of rate and audio, as such a pair."""
        if isinstance(source, str | Path):
            samples, rate = audio_io.read(source, sample_rate=self.facts.sample_rate)
            return rate, samples
        return unpack_audio(source, name)

    # ------------------------------------------------------------------ diffusion

    def _diffusion(self, requests: Sequence[GenerationRequest], hooks: Hooks) -> Tensor:
        request = self._with_noise_levels(requests[0])
        run = self._run(request, hooks, [_seed_of(each) for each in requests])
        kept: dict[str, Any] = {}
        if request.inpaint_audio is not None:
            audio = self.read(request.inpaint_audio, "inpaint_audio")
            kept = {
                "inpaint_audio": audio,
                "inpaint_mask": self._mask(request, audio, run.sample_size),
                "inpaint_bands": request.inpaint_bands,
                "keep_exact": request.keep_exact is not False,
            }
            if request.crossfade_seconds is not None:
                kept["crossfade_seconds"] = request.crossfade_seconds
        conditions = self._metadata(requests)
        inputs = DiffusionInputs(
            conditioning=conditions,
            negative_conditioning=_negative(conditions, requests),
            init_audio=None if request.init_audio is None else self.read(request.init_audio, "init_audio"),
            init_noise_level=1.0 if request.init_noise_level is None else request.init_noise_level,
            is_trained=self.facts.inpaints,
            **kept,
        )
        scale = 1.0 if request.cfg_scale is None else request.cfg_scale
        if self.facts.use != "conditional diffusion":
            return run_diffusion(run, inputs)
        version = version_of(self.module, {})
        if version != "0.0.19" and (inputs.is_trained or inputs.inpaint_audio is None):
            return self._by_length(version, run, [_seed_of(each) for each in requests], inputs, scale, hooks)
        return run_diffusion(run, inputs, scale)

    def _by_length(
        self,
        version: Generation,
        run: GenerationRun,
        seeds: list[int],
        inputs: DiffusionInputs,
        scale: float,
        hooks: Hooks,
    ) -> Tensor:
        """Generate with a model of a generation after 0.0.19, whose items have individual lengths."""
        assert isinstance(self.module, ConditionedDiffusionModelWrapper)
        named = ("sampler_type", "sigma_min", "sigma_max", "rho", "precision", "cfg_interval", "scale_phi")
        memory = ("allow_tf32", "decode_frames", "decode_overlap", "offload")
        chosen = {name: getattr(run.request, name) for name in (*named, *memory)}
        followed = {name: getattr(hooks, name) for name in ("callback", "cancel", "on_latents")}
        given = {name: value for name, value in vars(inputs).items() if name not in ("inpaint_bands", "is_trained")}
        wanted, options = read_length_request(
            {
                **{name: value for name, value in {**chosen, **followed}.items() if value is not None},
                **given,
                "steps": run.steps,
                "cfg_scale": scale,
                "batch_size": run.batch_size,
                "sample_size": run.sample_size,
                "seed": seeds,
                "device": self.device,
                "inpaint": inputs.is_trained,
                "progress": hooks.bar,
            }
        )
        return generate_by_length(self.module, version, wanted, options)

    def _run(self, request: GenerationRequest, hooks: Hooks, seeds: list[int]) -> GenerationRun:
        steps, samples = request.steps, self.samples_for(request)
        assert steps is not None, "recommended settings are filled in"
        request = replace(request, offload=request.offload or self.offload)
        module = cast(DiffusionWrapper, self.module)
        return GenerationRun(module, steps, len(seeds), samples, seeds, self.device, request, hooks)

    def _with_noise_levels(self, request: GenerationRequest) -> GenerationRequest:
        """Fill in the recommended noise levels of the sampler."""
        usual = self.facts.recommended
        assert usual is not None and self.facts.objective is not None
        by_ratio = find_sampler(request.sampler_type, self.facts.objective).starts_by_ratio
        lowest, highest, level = request.sigma_min, request.sigma_max, request.init_noise_level
        if by_ratio:
            lowest = usual.sigma_min if lowest is None else lowest
            highest = usual.sigma_max if highest is None else highest
        if request.init_audio is not None:
            # Half of the way to noise, for every sampler: sigma / alpha is 1 there for v, and t is 0.5.
            level = (1.0 if by_ratio else 0.5) if level is None else level
            if by_ratio and request.sigma_min is None:  # a gentle variation begins below the usual least noise
                lowest = min(usual.sigma_min, level / 2)
        return replace(request, sigma_min=lowest, sigma_max=highest, init_noise_level=level)

    def _metadata(self, requests: Sequence[GenerationRequest]) -> list[dict[str, Any]] | None:
        """Return the conditions of each item, with audio read and padded to the window; None without a conditioner."""
        if getattr(self.module, "conditioner", None) is None:
            return None
        return [{**each.conditions, **self._condition_audio(each)} for each in requests]

    def _condition_audio(self, request: GenerationRequest) -> dict[str, Tensor]:
        named = audio_conditions(request.conditions, self.facts).items()
        clips = {
            key: audio_io.read(value, sample_rate=self.facts.sample_rate).samples
            for key, value in named
            if isinstance(value, str | Path)
        }
        window = self.facts.window
        return {
            key: clip if window is None else nn.functional.pad(clip, (0, window - clip.shape[-1]))
            for key, clip in clips.items()
        }

    def _mask(self, request: GenerationRequest, audio: Audio, samples: int) -> Tensor:
        """Return the mask (1, samples), 1 keep and 0 generate."""
        bands, rate = request.inpaint_bands, self.facts.sample_rate
        if bands is not None:  # 1 where every band is kept
            if bands.ndim != 2 or not bool(((bands >= 0) & (bands <= 1)).all()):
                raise ValueError(
                    f"inpaint_bands: expected 0 (generate) to 1 (keep) as (bands, frames), got {tuple(bands.shape)}"
                )
            if bool((bands == 1).all()):
                raise ValueError("inpaint_bands: keeps everything; set 0 where audio should be generated")
            return nn.functional.interpolate(bands.amin(0)[None, None], size=samples, mode="nearest")[0]
        seconds = audio[1].shape[-1] / audio[0]
        mask = torch.zeros(1, samples)
        mask[:, : round(seconds * rate)] = 1
        for start, end in request.inpaint or ():
            mask[:, round(start * rate) : round(end * rate)] = 0
        if mask.all():
            raise ValueError(
                f"inpaint: nothing is left to generate; the audio of {seconds:.2f} s fills the whole length, so name "
                "the spans to generate, or ask for more seconds"
            )
        return mask

    def _between(self, requests: Sequence[GenerationRequest], hooks: Hooks) -> Tensor:
        request = self._with_noise_levels(requests[0])
        assert request.audio is not None and request.to_audio is not None
        ends = self.read(request.audio, "audio"), self.read(request.to_audio, "to_audio")
        weights = [0.0 if each.weight is None else each.weight for each in requests]
        run = self._run(request, hooks, [_seed_of(each) for each in requests])
        scale = 1.0 if request.cfg_scale is None else request.cfg_scale
        return interpolate(
            run, *ends, weights, self._metadata(requests), scale if self.facts.use == "conditional diffusion" else None
        )

    # ------------------------------------------------------------------ other types

    def _codec(self, requests: Sequence[GenerationRequest], hooks: Hooks) -> Tensor:
        """Encode and decode `init_audio` with an autoencoder, once per seed."""
        request = requests[0]
        assert request.init_audio is not None, "checked before"
        rate, audio = self.read(request.init_audio, "init_audio")
        names = ("frame_seconds", "overlap_rate", "batch_size", "steps")
        options = {name: value for name in names if (value := getattr(request, name)) is not None}

        def pass_through(item: int = 0) -> Tensor:
            dtype = parse_dtype(self.precision)
            with nullcontext() if dtype is torch.float32 else autocast(self.device, dtype):
                return reconstruct(
                    self.module, audio, rate, device=self.device, progress=hooks.bar, cancel=hooks.cancel, **options
                )[None]

        noise = SeededNoise([_seed_of(each) for each in requests], self.device)
        made = noise.feed(pass_through, pass_through, torch.cat)
        return made.expand(len(requests), -1, -1)  # seeds that drew nothing share one pass

    def _codes(self, requests: Sequence[GenerationRequest], hooks: Hooks) -> Tensor:
        """Generate audio (b, c, n) with a language model over codes; `init_audio` is continued."""
        request, model = requests[0], cast(AudioLanguageModelWrapper, self.module)
        codec = model.pretransform
        frames = math.ceil(self.samples_for(request) / codec.downsampling_ratio)
        names = ("temp", "top_k", "top_p", "use_cache")
        options = {name: value for name in names if (value := getattr(request, name)) is not None}
        count, seeds = len(requests), [_seed_of(each) for each in requests]
        noise, metadata = SeededNoise(seeds, self.device), self._metadata(requests)

        def encode(items: list[dict[str, Any]] | None) -> dict[str, Condition] | None:
            conditioner = model.conditioner
            if items is None or conditioner is None:
                return None
            return noise.feed(
                lambda: conditioner(items, self.device),
                lambda index: conditioner([items[index]], self.device),
                join_conditions,
            )

        first = None
        if request.init_audio is not None:
            first = self._first_codes(self.read(request.init_audio, "init_audio")).expand(count, -1, -1)
        with progress_of(hooks.bar, frames * count) as progress:
            codes = model.generate(
                frames,
                batch_size=count,
                init_data=first,
                conditioning_tensors=encode(metadata),
                negative_conditioning_tensors=encode(_negative(metadata, requests)),
                cfg_scale=1.0 if request.cfg_scale is None else request.cfg_scale,
                callback=_step_callback(hooks, frames * count, progress),
                generator=[torch.Generator(self.device).manual_seed(seed) for seed in seeds],
                **options,
            )
        return codec.decode_tokens(codes)

    def _first_codes(self, audio: Audio) -> Tensor:
        """Codes (1, q, t) of the audio to be continued, whole frames of it."""
        codec = cast(AudioLanguageModelWrapper, self.module).pretransform
        rate, samples = audio
        ratio = codec.downsampling_ratio
        length = round(samples.shape[-1] * self.facts.sample_rate / rate) // ratio * ratio
        if length == 0:
            raise ValueError("init_audio: shorter than one frame of codes; give more")
        prepared = prepare_audio(samples, rate, self.facts.sample_rate, length, codec.io_channels, self.device)
        return codec.tokenize(prepared)


def set_precision(model: nn.Module, facts: ModelFacts, precision: str) -> None:
    """Hold the network of a diffusion or language model in the precision of its runs; nothing is converted later.

    In float16 so is the codec of a diffusion model. In bfloat16 codecs decode to noise, and stay in float32. An
    autoencoder alone keeps what it is judged by, and runs under autocast.
    """
    dtype = parse_dtype(precision)
    if dtype is torch.float32:
        return
    names = ("lm",) if facts.use == "language model" else ("model",) if facts.objective is not None else ()
    if dtype is torch.float16 and facts.objective is not None:
        names = (*names, "pretransform")
    for part in (getattr(model, name, None) for name in names):
        if isinstance(part, nn.Module):
            hold_in(part, dtype)


def _negative(
    conditions: list[dict[str, Any]] | None, requests: Sequence[GenerationRequest]
) -> list[dict[str, Any]] | None:
    """Conditions with the negative prompt in place of the prompt; None where there is none."""
    if conditions is None or requests[0].negative_prompt is None:
        return None
    return [{**own, "prompt": each.negative_prompt or ""} for own, each in zip(conditions, requests)]


def _seed_of(request: GenerationRequest) -> int:
    assert request.seed is not None and request.seed >= 0, "seeds are drawn before"
    return request.seed


def _step_callback(
    hooks: Hooks, total: int, progress: Callable[[int, int | None], Any] | None
) -> Callable[[int, int], None]:
    """Report frames done of `total`; steps are more than the frames of an item, since codebooks follow each other."""

    def step(done: int, steps: int) -> None:
        if hooks.cancel is not None and hooks.cancel.is_set():
            raise Cancelled("the generation was cancelled")
        if progress is not None:
            progress(min(total, round(total * done / steps)), total)

    return step
