"""The request record, from which keywords, flags, keys of prompt files and controls of the app are derived.

Each field declares once its type, default, bounds and description, and where it occurs: as a keyword of
`AudioModel.generate` (all of them), a flag of `generate.py`, a key of a prompt file, a control of the app, a key of the
manifest. None stands for the recommended setting of the model. `checks` finds settings that a model does not allow.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stable_audio_tools.core.config.sentences import show
from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.core.seeds import MAX_SEED
from stable_audio_tools.core.settings import Setting

if TYPE_CHECKING:  # so that flags can be derived without loading torch
    from torch import Tensor

Span = tuple[float, float]  # seconds
Mode = Literal["variation", "inpaint", "outpaint", "interpolate"]
Bits = Literal[16, 24, 32]
Suits = Literal["every", "diffusion", "guided diffusion", "steps", "conditions", "language", "codec"]

LATEST = 86_400.0  # seconds
_SPAN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:-|–|to)\s*(\d+(?:\.\d*)?|\.\d+)\s*")  # noqa: RUF001

FORMATS = ("wav", "flac", "mp3", "ogg", "opus")
SUITABLE: dict[Suits, str] = {
    "every": "every model",
    "diffusion": "diffusion models",
    "guided diffusion": "diffusion models with conditions",
    "steps": "models that denoise in steps",
    "conditions": "models with conditions",
    "language": "language models",
    "codec": "autoencoders",
}


class Section(NamedTuple):
    """A part of a long piece: its length, and the conditions in which it differs from the piece."""

    seconds: Any  # checked with the conditions
    conditions: tuple[tuple[str, Any], ...]

    @classmethod
    def read(cls, value: "Section | Mapping[str, Any]") -> "Section":
        """Return a section of `{"seconds": 20, "prompt": "..."}`."""
        if isinstance(value, Section):
            return value
        return cls(value.get("seconds"), tuple((key, item) for key, item in value.items() if key != "seconds"))


class Slider(NamedTuple):
    """The control of a field in the app."""

    label: str
    minimum: float
    maximum: float
    step: float | None = None
    info: str = ""
    kind: Literal["slider", "number", "integer"] = "slider"


@dataclass(frozen=True)
class RequestSetting(Setting):
    """A setting with the models and interfaces that it applies to; without a group it has no flag."""

    suits: Suits = "every"
    key: bool = False  # of prompt files
    alias: str = ""  # published second name of the key
    recorded: bool = True  # in the manifest: it changes the file
    each: bool = False  # may differ between the items of a batch
    modes: tuple[Mode, ...] = ()  # the modes that it is for; empty: all requests
    control: Slider | None = None


def option(default: Any = None, /, help: str = "", **about: Any) -> Any:
    """Declare a field; `about` are fields of `RequestSetting`."""
    return dataclasses.field(default=default, metadata={"option": RequestSetting(help, **about)})


def parse_spans(text: str | None) -> list[Span]:
    """Read `"0.5-1.2, 3-4"` as pairs of seconds, joined where they touch, in order."""
    spans: list[Span] = []
    for part in filter(str.strip, re.split(r"[,;\n]", text or "")):
        found, written = _SPAN.fullmatch(part), show(part.strip())
        if found is None:
            raise UserError(f"spans: {written} is not a span; write start-end in seconds, such as 0.5-1.2, 3-4")
        start, end = float(found[1]), float(found[2])
        if max(start, end) > LATEST:
            raise UserError(f"spans: {written} is beyond {LATEST:g} s; write start-end in seconds")
        if start >= end:
            raise UserError(f"spans: {written} ends before it starts; write start-end in seconds")
        spans.append((start, end))
    return joined(spans)


def joined(spans: Sequence[Span]) -> list[Span]:
    """Return spans in order, joined where they touch."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _spans_of_flag(text: str) -> tuple[Span, ...]:
    try:
        return tuple(parse_spans(text))
    except UserError as error:
        raise UserError(str(error).removeprefix("spans: ")) from None


SAMPLING = "sampling (a prompt may have its own; if omitted, the recommended value for the model)"
_MODE = "from other audio"


@dataclass(frozen=True)
class GenerationRequest:
    """A request for one item, or for `num_samples` of the same."""

    conditions: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"option": RequestSetting("conditions of the model by their ids", each=True)}
    )
    negative_prompt: str | None = option(
        help="text to guide away from", suits="conditions", group=SAMPLING, metavar="TEXT", key=True, each=True
    )
    seed: int | None = option(
        help="default: 0; each file derives its own from it; -1 draws at random",
        group=SAMPLING,
        key=True,
        each=True,
        ge=-1,
        le=MAX_SEED,
        control=Slider("Seed", -1, MAX_SEED, 1, "The same seed gives the same audio; -1 draws a new one.", "integer"),
    )
    num_samples: int = option(
        1,
        help="files per prompt",
        group="amount",
        flags=("--n-sample-per-cond",),
        metavar="N",
        key=True,
        alias="n_sample_per_cond",
        recorded=False,
        ge=1,
        le=100_000,
        control=Slider("Takes", 1, 8, 1, "Files per run; their seeds count on from the first."),
    )
    steps: int | None = option(
        help="steps of the sampler",
        suits="steps",
        group=SAMPLING,
        flags=("--sample-steps",),
        metavar="N",
        key=True,
        ge=1,
        le=100_000,
        control=Slider("Steps", 1, 500, 1),
    )
    cfg_scale: float | None = option(
        help="guidance by the prompt; 1 is none",
        suits="conditions",
        group=SAMPLING,
        metavar="X",
        key=True,
        control=Slider("Guidance", 0, 25, 0.1, "1 is none."),
    )
    sampler_type: str | None = option(
        help="sampler, such as dpmpp-3m-sde or euler",
        suits="diffusion",
        group=SAMPLING,
        metavar="NAME",
        key=True,
        alias="sampler",
    )
    seconds: float | None = option(
        help="length; with --mode outpaint, in all", group="amount", metavar="SECONDS", key=True, gt=0
    )
    sections: Sequence[Section | Mapping[str, Any]] | None = option(
        help="parts of a piece of any length, in turn: `seconds` and conditions of each", suits="diffusion", key=True
    )
    loop: bool = option(
        False,
        help="close the audio, so that it can be repeated without a seam",
        suits="diffusion",
        group="amount",
        key=True,
    )

    # ------------------------------------------------------------------ from audio
    init_audio: "AudioSource | None" = option(
        help="audio to vary, to continue (language models) or to encode", key=True
    )
    init_noise_level: float | None = option(help="how far to go from init_audio", suits="diffusion", key=True, gt=0)
    inpaint_audio: "AudioSource | None" = option(help="audio to keep", suits="diffusion", key=True)
    inpaint: Sequence[Span] | None = option(
        help="[start, end] in seconds that are generated in inpaint_audio; if omitted, it is continued",
        suits="diffusion",
        key=True,
    )
    inpaint_bands: "Tensor | None" = option(
        help="(bands, frames) of a spectrogram: 1 keeps, 0 generates", suits="diffusion"
    )
    keep_exact: bool | None = option(help="keep samples bit for bit, not through the codec", suits="diffusion")
    crossfade_seconds: float | None = option(help="cross-fade at the seams of kept samples", suits="diffusion", ge=0)
    mode: Mode | None = option(
        help="vary the audio, generate spans of it again, continue it, or interpolate to another clip (in as "
        "many files as --n-sample-per-cond)",
        suits="diffusion",
        group=_MODE,
    )
    audio: "AudioSource | None" = option(
        help="the audio to work on",
        group=_MODE,
        metavar="FILE",
        modes=("variation", "inpaint", "outpaint", "interpolate"),
    )
    to_audio: "AudioSource | None" = option(
        help="interpolate: the clip to go to", group=_MODE, metavar="FILE", modes=("interpolate",)
    )
    noise_level: float | None = option(
        help="variation: how far to go from the audio", group=_MODE, metavar="X", modes=("variation",), gt=0
    )
    spans: Sequence[Span] | None = option(
        help="inpaint: seconds to generate again, such as 1.5-3,8-9",
        group=_MODE,
        metavar="FROM-TO,...",
        parse=_spans_of_flag,
        modes=("inpaint",),
    )
    overlap: float | None = option(
        help="outpaint: seconds that each window shares with the one before (default: a quarter of the window)",
        group=_MODE,
        metavar="SECONDS",
        modes=("outpaint",),
        gt=0,
    )
    crossfade: float | None = option(
        help="seconds of cross-fade at seams (default: 0.02, outpaint: half of the overlap)",
        group=_MODE,
        metavar="SECONDS",
        modes=("inpaint", "outpaint"),
        ge=0,
    )
    keep_level: bool = option(
        False, help="outpaint: do not match the loudness of windows", group=_MODE, modes=("outpaint",)
    )
    weight: float | None = option(
        help="interpolate: share of the way to the other clip", modes=("interpolate",), each=True, ge=0, le=1
    )

    # ------------------------------------------------------------------ how tokens are drawn
    temp: float | None = option(
        help="temperature",
        suits="language",
        key=True,
        ge=0,
        control=Slider("Temperature", 0, 3, 0.01, "0 always takes the likeliest code."),
    )
    top_k: int | None = option(
        help="draw from that many tokens; 0: all",
        suits="language",
        key=True,
        ge=0,
        control=Slider("Likeliest codes to draw from", 0, 2048, 1, "0 takes all."),
    )
    top_p: float | None = option(
        help="draw from tokens of that probability in all; 0: off",
        suits="language",
        key=True,
        ge=0,
        le=1,
        control=Slider("Probability to draw from", 0, 1, 0.01, "0 leaves this out."),
    )
    use_cache: bool | None = option(help="keep keys and values of earlier tokens", suits="language", recorded=False)

    # ------------------------------------------------------------------ noise and guidance
    eta: float | None = option(
        help="fresh noise of ddim, 0 to 1 (default: 0)", suits="diffusion", group=SAMPLING, metavar="X"
    )
    sigma_min: float | None = option(
        help="least noise before the last step",
        suits="diffusion",
        group=SAMPLING,
        metavar="X",
        gt=0,
        control=Slider("Least noise", 1e-5, 10, None, "Before the last step.", "number"),
    )
    sigma_max: float | None = option(
        help="noise to start from",
        suits="diffusion",
        group=SAMPLING,
        metavar="X",
        gt=0,
        control=Slider("Most noise", 0.1, 1000, None, "To start from.", "number"),
    )
    rho: float | None = option(
        help="bends the noise schedule",
        suits="diffusion",
        gt=0,
        control=Slider("Rho", 0.01, 20, None, "Bends the noise schedule.", "number"),
    )
    schedule: str | None = option(help="spacing of the steps, else the sampler's own", suits="diffusion")
    cfg_interval: tuple[float, float] | None = option(
        help="noise levels between which guidance applies", suits="guided diffusion"
    )
    scale_phi: float | None = option(
        help="share of guidance rescaling",
        suits="guided diffusion",
        ge=0,
        le=1,
        control=Slider(
            "Guidance rescale", 0, 1, 0.01, "Share by which loudness is brought back to that without guidance."
        ),
    )
    batch_cfg: bool | None = option(
        help="both passes of guidance as one batch: faster, twice the activations",
        suits="guided diffusion",
        recorded=False,
    )
    sample_size: int | None = option(help="samples to generate at once, where the model does not fix them", ge=1)
    lora: Mapping[str, float] | None = option(help="strengths of loaded adapters, by name")
    precision: Any = option(help="autocast of the network: float16, bfloat16", suits="diffusion", recorded=False)

    # ------------------------------------------------------------------ memory
    decode_frames: int | None = option(
        help="decode that many latent frames at a time",
        suits="diffusion",
        group="memory",
        metavar="N",
        recorded=False,
        ge=1,
    )
    decode_overlap: int | None = option(
        help="frames by which these overlap, else 32", suits="diffusion", recorded=False, ge=0
    )
    offload: bool = option(
        False,
        help="keep parts of the model off the GPU while unused",
        suits="diffusion",
        group="memory",
        recorded=False,
    )
    allow_tf32: bool = option(
        False,
        help="TF32 products in float32 on a GPU: faster, in ten bits",
        suits="diffusion",
        group=SAMPLING,
        flags=("--tf32",),
    )
    frame_seconds: float | None = option(help="audio encoded at a time", suits="codec", gt=0)
    overlap_rate: float | None = option(help="share by which these pieces overlap", suits="codec", ge=0)
    batch_size: int | None = option(help="pieces encoded at once", suits="codec", recorded=False, ge=1)

    # ------------------------------------------------------------------ files
    clip_length: float | bool | None = option(
        help="cut files to that many seconds; without a number, to the length that the prompt asks for (the default)",
        group="amount",
        metavar="SECONDS",
        may_be_empty=True,
        recorded=False,
    )
    format: str = option("wav", help="format of the audio files", group="files", choices=FORMATS, recorded=False)
    bits: Bits = option(16, help="of wav (32 is float) and flac samples", group="files")
    keep_latents: bool = option(
        False,
        help="also keep the latents of each file, as NAME.npy, for attribution",
        suits="diffusion",
        group="files",
        recorded=False,
    )

    def __post_init__(self) -> None:
        if self.sections is not None:
            object.__setattr__(self, "sections", tuple(map(Section.read, self.sections)))
        problems = [f"{name}: expected {allowed}, got {value}" for name, value, allowed in _out_of_bounds(self)]
        if problems:
            raise ConfigError(problems)

    @property
    def keeps_level(self) -> bool:
        """Part of the result is input audio, so that it is not scaled."""
        return self.inpaint_audio is not None or self.mode in ("inpaint", "outpaint")

    @property
    def audio_sources(self) -> dict[str, "AudioSource"]:
        """The input audio by field."""
        given = {name: getattr(self, name) for name in ("init_audio", "inpaint_audio", "audio", "to_audio")}
        return {name: source for name, source in given.items() if source is not None}


if TYPE_CHECKING:
    AudioSource = tuple[int, Tensor] | str | Path  # (sample rate, (c, n) or (n,)), or a file


@dataclass(frozen=True)
class Hooks:
    """Observers of a run, which do not change its result, except `cond_fn`."""

    progress: "bool | Callable[[int, int | None], Any] | None" = None  # True: a bar on a terminal's stderr
    cancel: Any = None  # with `is_set()`, for instance a threading.Event
    callback: "Callable[[dict[str, Any]], Any] | None" = None  # its argument: `watching.Watch`
    on_latents: "Callable[[Tensor], Any] | None" = None  # gets the latents (b, d, t) before they are decoded
    cond_fn: Any = None  # cond_fn(x, sigma, denoised=...) -> gradient added to the prediction; k-diffusion's samplers
    disable_tqdm: bool = False  # published name of progress=False

    @property
    def bar(self) -> "bool | Callable[[int, int | None], Any]":
        """`progress`, which is a bar by default."""
        return False if self.disable_tqdm else True if self.progress is None else self.progress


FIELDS: dict[str, "dataclasses.Field[Any]"] = {entry.name: entry for entry in dataclasses.fields(GenerationRequest)}
OPTIONS: dict[str, RequestSetting] = {name: entry.metadata["option"] for name, entry in FIELDS.items()}
HOOKS = tuple(entry.name for entry in dataclasses.fields(Hooks))


def given_fields(request: GenerationRequest) -> dict[str, Any]:
    """Return the fields that differ from their default."""
    values = {name: getattr(request, name) for name in FIELDS if name != "conditions"}
    return {name: value for name, value in values.items() if value is not FIELDS[name].default}


def read_hooks(values: Mapping[str, Any]) -> tuple[dict[str, Any], Hooks]:
    """Split keywords into fields of a request and hooks."""
    hooks = Hooks(**{name: value for name, value in values.items() if name in HOOKS})
    return {name: value for name, value in values.items() if name not in HOOKS}, hooks


def share_of_way(number: int, count: int) -> float:
    """Return the share of the way from one clip to the other for take `number` of `count`, counted from 0."""
    return 0.5 if count == 1 else number / (count - 1)


def _out_of_bounds(request: GenerationRequest) -> Iterator[tuple[str, Any, str]]:
    for name, about in OPTIONS.items():
        value = getattr(request, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            allowed = about.bound_broken_by(value) if math.isfinite(value) else "a finite number"
            if allowed is not None:
                yield name, value, allowed
