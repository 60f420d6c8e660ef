"""Generation of stable-audio-tools 0.0.20 and Stable Audio 3: each item has the length of its conditions.

Differences from 0.0.19: the sample size follows the longest `seconds_total` of the batch and some headroom; attention,
schedules and inpainting masks can keep to the length of each item; schedules are shifted in log-SNR, guidance is
projected, and v models are sampled by plain DDIM unless a sampler is named.

Random numbers are drawn in the order of 0.0.19: noise, conditions, input audio, sampler, decoder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.devices import autocast, parse_dtype, pick_device
from stable_audio_tools.core.generations import Generation, current_generation, generation
from stable_audio_tools.data.transforms import (
    compute_effective_seq_len_from_conditioning,
    create_padding_mask_from_lengths,
)
from stable_audio_tools.inference.generation.audio import (
    batch_mask,
    keep_region,
    prepare_audio,
    resize_mask,
    unpack_audio,
)
from stable_audio_tools.inference.generation.decoding import brought_to, decode_latents, encode_audio, parameter_dtype
from stable_audio_tools.inference.inversion import invert_audio
from stable_audio_tools.inference.sampling.exact_math import exact_math
from stable_audio_tools.inference.sampling.randomness import SeededNoise, resolve_seeds
from stable_audio_tools.inference.sampling.samplers import samplers_for
from stable_audio_tools.inference.sampling.unified import sample_diffusion, silence_after
from stable_audio_tools.models.autoencoders.same import SAMEEncoder
from stable_audio_tools.models.diffusion.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.diffusion.distribution_shift import Shift
from stable_audio_tools.models.precision import held_for_autocast
from stable_audio_tools.models.pretransforms import AutoencoderPretransform, Pretransform

T = TypeVar("T")

Audio = tuple[int, Tensor]  # sample rate, (c, n)
Conditions = dict[str, Any]
Seconds = float | Sequence[float]

OWN_KEYWORDS = (
    "adapt_duration_to_conditioning",
    "apg_scale",
    "dist_shift",
    "duration_padding_sec",
    "inpaint_mask_end_seconds",
    "inpaint_mask_start_seconds",
    "inversion_params",
    "mask_padding_attention",
    "use_effective_length_for_schedule",
)
_TO_SAMPLING = ("callback", "cancel", "progress", "disable_tqdm", "sigma_min", "sigma_max", "rho")
_TO_NETWORK = ("cfg_interval", "scale_phi", "cfg_norm_threshold")


def version_of(model: Any, keywords: Mapping[str, Any]) -> Generation:
    """The generation whose defaults a call follows: of the surrounding block, of the model, or of its keywords."""
    current = current_generation()
    if current != "0.0.19":
        return current
    own: Generation = model.sampling_version if isinstance(model, ConditionedDiffusionModelWrapper) else "0.0.19"
    return "0.0.20" if own == "0.0.19" and any(name in OWN_KEYWORDS for name in keywords) else own


@dataclass(frozen=True)
class LengthRequest:
    """A request for items of individual lengths; None means the default of the model."""

    steps: int
    cfg_scale: float
    conditioning: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None
    conditioning_tensors: Mapping[str, Any] | None = None
    negative_conditioning: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None
    negative_conditioning_tensors: Mapping[str, Any] | None = None
    batch_size: int = 1
    sample_size: int = 2097152
    seed: int | Sequence[int] = -1
    device: str | torch.device = "cuda"
    init_audio: Audio | None = None
    init_noise_level: float = 1.0
    inpaint: bool = False  # give the network the mask and what it keeps
    inpaint_audio: Audio | None = None
    inpaint_mask: Tensor | None = None  # (b, samples), 1 keep and 0 generate
    inpaint_mask_start_seconds: Seconds | None = None  # of what is generated; they replace the mask
    inpaint_mask_end_seconds: Seconds | None = None
    return_latents: bool = False
    keep_exact: bool = False
    crossfade_seconds: float = 0.02
    inversion_params: Mapping[str, Any] | None = None
    adapt_duration_to_conditioning: bool | None = None
    duration_padding_sec: float = 6.0
    use_effective_length_for_schedule: bool | None = None
    mask_padding_attention: bool | None = None
    frames_per_chunk: int | None = None  # lengths are rounded up to so many frames
    apg_scale: float = 1.0
    dist_shift: Shift | None = None
    sampler_type: str | None = None
    precision: str | torch.dtype | None = None
    allow_tf32: bool = False
    on_latents: Callable[[Tensor], Any] | None = None
    decode_frames: int | None = None
    decode_overlap: int | None = None
    offload: bool = False  # parts of the model come to the device while they are used


def read_request(keywords: Mapping[str, Any]) -> tuple[LengthRequest, dict[str, Any]]:
    """The keywords of a call as a request and what goes to sampling; an unknown one is refused."""
    fields = LengthRequest.__dataclass_fields__
    known = [*fields, *_TO_SAMPLING, *_TO_NETWORK]
    for name in keywords:
        if name not in known:
            raise ValueError(f"unknown option {name!r}; {nearest(name, known)}")
    request = LengthRequest(**{name: value for name, value in keywords.items() if name in fields})
    return request, {name: value for name, value in keywords.items() if name not in fields and value is not None}


@torch.no_grad()
def generate_by_length(
    model: ConditionedDiffusionModelWrapper, version: Generation, request: LengthRequest, options: Mapping[str, Any]
) -> Tensor:
    """Generate audio (b, c, n), or latents (b, d, t); `options` go to `sample_diffusion` and the network."""
    run = _LengthRun(model, version, request)
    if request.allow_tf32:
        return run.generate(options)
    with exact_math(run.device):
        return run.generate(options)


class _LengthRun:
    """One call: its lengths, its noise and its steps."""

    def __init__(self, model: ConditionedDiffusionModelWrapper, version: Generation, request: LengthRequest) -> None:
        if request.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {request.batch_size}")
        self.model, self.version, self.request = model, version, request
        self.codec = model.pretransform
        self.device = pick_device(request.device)
        self.visited = self.device if request.offload else None  # by each part in turn
        if request.offload:
            model.to("cpu")
        self.masks_padding = _or_default(request.mask_padding_attention, model.mask_padding_attention)
        self.shifts_by_length = _or_default(
            request.use_effective_length_for_schedule, model.use_effective_length_for_schedule
        )
        self.metadata = self._for_batch(request.conditioning, "conditioning")
        self.seconds = max((float(item.get("seconds_total", 0.0)) for item in self.metadata or ()), default=0.0)
        self.ratio = 1 if self.codec is None else self.codec.downsampling_ratio
        self.sample_size = self._sample_size()
        self.frames = self.sample_size // self.ratio
        if self.frames < 1:
            raise ValueError(f"sample_size is {request.sample_size}, and the model works in steps of {self.ratio}")
        self.noise = SeededNoise(resolve_seeds(request.seed, request.batch_size), self.device)

    def generate(self, options: Mapping[str, Any]) -> Tensor:
        request, model = self.request, self.model
        first_noise = self.noise.normal((request.batch_size, model.io_channels, self.frames))
        positive = self._conditions(self.metadata, request.conditioning_tensors)
        if positive is None:
            raise ValueError("give conditioning (metadata, one dict per item) or conditioning_tensors")
        negative = self._conditions(
            self._for_batch(request.negative_conditioning, "negative_conditioning"),
            request.negative_conditioning_tensors,
        )
        init = self._encoded(self._audio(request.init_audio, "init_audio"))
        original = self._audio(request.inpaint_audio, "inpaint_audio")
        mask = self._mask()
        if request.inpaint:
            inpainting = self._inpainting(self._encoded(original), mask)
            positive |= inpainting
            negative = None if negative is None else negative | inpainting
        inputs = self._inputs(model.get_conditioning_inputs(positive))
        if init is not None and request.inversion_params is not None:
            with brought_to(self.visited, model.model):
                first_noise, init = self._inverted(init, first_noise, inputs), None
        if negative is not None:
            inputs |= self._inputs(model.get_conditioning_inputs(negative, negative=True))
        padding_mask = self._padding_mask()
        dtype = None if request.precision is None else parse_dtype(request.precision)
        mixed = autocast(self.device, dtype or torch.float32)
        with generation(self.version), brought_to(self.visited, model.model), mixed, held_for_autocast(model.model):
            latents = sample_diffusion(
                model.model,
                first_noise,
                inputs,
                model.objective,
                request.steps,
                request.cfg_scale,
                conditioning=self.metadata,
                sample_rate=model.sample_rate,
                pretransform=self.codec,
                use_effective_length_for_schedule=self.shifts_by_length,
                padding_mask=padding_mask,
                dist_shift=model.sampling_dist_shift if request.dist_shift is None else request.dist_shift,
                sampler_type=self._sampler(),
                rescale_cfg=True,
                apg_scale=request.apg_scale,
                init_data=init,
                init_noise_level=request.init_noise_level,
                decode=False,
                source=self.noise,
                **options,
            )
        if request.return_latents:
            return latents
        audio = self._decoded(latents, padding_mask)
        if not request.keep_exact:
            return audio
        if original is None or mask is None:
            raise ValueError("keep_exact needs inpaint_audio and a mask or seconds to generate")
        return keep_region(audio, original, mask, round(request.crossfade_seconds * model.sample_rate))

    # ------------------------------------------------------------------ lengths

    def _sample_size(self) -> int:
        """Samples of the batch: enough for its longest item and some headroom, in whole chunks of the encoder."""
        request = self.request
        adapts = _or_default(request.adapt_duration_to_conditioning, self.masks_padding or self.shifts_by_length)
        if not adapts or self.seconds <= 0:
            return request.sample_size
        wanted = int((self.seconds + request.duration_padding_sec) * self.model.sample_rate)
        step = self.ratio * (request.frames_per_chunk or _frames_per_chunk(self.codec))
        return min(-(-wanted // step) * step, request.sample_size)

    def _padding_mask(self) -> Tensor | None:
        """Real frames of each item: its `seconds_total` and the headroom."""
        lengths = compute_effective_seq_len_from_conditioning(
            self.metadata, self.model.sample_rate, self.ratio, self.device
        )
        if not self.masks_padding or lengths is None:
            return None
        headroom = int(self.request.duration_padding_sec * self.model.sample_rate / self.ratio)
        return create_padding_mask_from_lengths(lengths + headroom, self.frames)

    def _sampler(self) -> str | None:
        """Only Stable Audio 3 lets the objective choose."""
        default = None if self.version == "stable-audio-3" else "euler"
        return self.request.sampler_type or default

    # ------------------------------------------------------------------ what goes in

    def _for_batch(self, given: Any, name: str) -> list[Mapping[str, Any]] | None:
        if given is None:
            return None
        items = [given] if isinstance(given, Mapping) else list(given)
        if len(items) not in (1, self.request.batch_size):
            raise ValueError(
                f"{name} has {len(items)} entries for batch_size {self.request.batch_size}; give one entry, which all "
                "items then share, or one per item"
            )
        return items * (self.request.batch_size // len(items))

    def _conditions(
        self, metadata: list[Mapping[str, Any]] | None, tensors: Mapping[str, Any] | None
    ) -> Conditions | None:
        if tensors is not None:
            return dict(tensors)
        if metadata is None:
            return None
        conditioner = self.model.conditioner
        if conditioner is None:
            raise ValueError("conditioning was given, but the model has no conditioning")
        with brought_to(self.visited, conditioner):
            made: Conditions = self._drawing(lambda: conditioner(metadata, self.device))
        return dict(made)

    def _audio(self, given: Audio | None, name: str) -> Tensor | None:
        """(1 or b, c, sample_size) at the model's rate"""
        if given is None:
            return None
        rate, audio = unpack_audio(given, name)
        channels = self.model.io_channels if self.codec is None else self.codec.io_channels
        prepared = prepare_audio(audio, rate, self.model.sample_rate, self.sample_size, channels, self.device)
        if len(prepared) not in (1, self.request.batch_size):
            raise ValueError(f"{name} holds {len(prepared)} clips for batch_size {self.request.batch_size}")
        return prepared

    def _encoded(self, audio: Tensor | None) -> Tensor | None:
        """Audio in the space of the model, (b, d, t)."""
        if audio is None:
            return None
        codec = self.codec
        with brought_to(self.visited, codec):
            latents = self._drawing(lambda: encode_audio(codec, audio))[..., : self.frames]
        return latents.expand(self.request.batch_size, -1, -1)

    def _mask(self) -> Tensor | None:
        """(b, 1, samples), 1 keep and 0 generate."""
        request = self.request
        starts, ends = request.inpaint_mask_start_seconds, request.inpaint_mask_end_seconds
        if starts is not None and ends is not None:
            mask = self._mask_of_seconds(starts, ends)
        elif request.inpaint_mask is not None:
            mask = batch_mask(request.inpaint_mask, request.batch_size)[..., : self.sample_size].clone()
        else:
            return None
        follows_length = self.version == "stable-audio-3" or self.masks_padding
        if follows_length and self.seconds > 0:
            mask[..., int(self.seconds * self.model.sample_rate) :] = 0
        return mask.to(self.device)

    def _mask_of_seconds(self, starts: Seconds, ends: Seconds) -> Tensor:
        lists = [[value] if isinstance(value, int | float) else list(value) for value in (starts, ends)]
        if isinstance(starts, int | float) != isinstance(ends, int | float) or len(lists[0]) != len(lists[1]):
            raise ValueError(
                "inpaint_mask_start_seconds and inpaint_mask_end_seconds must be two numbers, or two lists of equal "
                f"length; got {starts!r} and {ends!r}"
            )
        mask = torch.ones(self.request.batch_size, 1, self.sample_size)
        for start, end in zip(*lists):
            first, last = (int(second * self.model.sample_rate) for second in (start, end))
            mask[..., first:last] = 0
        return mask

    def _inpainting(self, kept: Tensor | None, mask: Tensor | None) -> Conditions:
        """The mask in latent frames, and what it keeps."""
        batch, channels = self.request.batch_size, self.model.io_channels
        if mask is None:
            frames = torch.zeros(batch, 1, self.frames, device=self.device)
        else:
            frames = resize_mask(mask, self.frames)
        masked = torch.zeros(batch, channels, self.frames, device=self.device) if kept is None else kept * frames
        return {"inpaint_mask": [frames], "inpaint_masked_input": [masked]}

    def _inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of the network in the precision of its weights; masks stay as they are."""
        dtype = parameter_dtype(self.model.model, torch.float32)

        def convert(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: convert(inner) for name, inner in value.items()}
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return {name: convert(value) for name, value in inputs.items() if value is not None}

    def _inverted(self, data: Tensor, noise: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The noise that leads to the data, without conditions or for an empty prompt."""
        params = self.request.inversion_params or {}
        if "euler" not in samplers_for(self.model.objective):
            raise ValueError(f"inversion_params: only flows are inverted; this model predicts {self.model.objective}")
        if params.get("inversion_unconditional", False):
            return invert_audio(self.model.model, data, noise, params, cfg_dropout_prob=1.0, **inputs)
        if self.metadata is not None and any("prompt" in item for item in self.metadata):
            silent = [{**item, "prompt": ""} if "prompt" in item else item for item in self.metadata]
            inputs = self._inputs(self.model.get_conditioning_inputs(self._conditions(silent, None) or {}))
        return invert_audio(self.model.model, data, noise, params, **inputs)

    # ------------------------------------------------------------------ what comes out

    def _decoded(self, latents: Tensor, padding_mask: Tensor | None) -> Tensor:
        request, codec = self.request, self.codec
        if request.on_latents is not None:
            request.on_latents(latents)
        if codec is None:
            return latents

        def decode(part: Tensor) -> Tensor:
            return decode_latents(codec, part, request.decode_frames, request.decode_overlap)

        with brought_to(self.visited, codec):
            audio = self.noise.feed(lambda: decode(latents), lambda item: decode(latents[item : item + 1]), torch.cat)
        return audio if padding_mask is None else silence_after(audio, padding_mask, self.ratio)

    def _drawing(self, compute: Callable[[], T]) -> T:
        """Compute a result that may draw random numbers from the first seed."""
        with self.noise.streams[0].in_charge():
            return compute()


def _or_default(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _frames_per_chunk(codec: Pretransform | None) -> int:
    """Return the latents per chunk of an encoder; 1 for encoders without chunks."""
    if isinstance(codec, AutoencoderPretransform) and isinstance(codec.model.encoder, SAMEEncoder):
        return codec.model.encoder.frames_per_chunk or 1
    return 1
