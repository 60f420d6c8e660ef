"""How other people's projects load models and call generation, as facts: a call of each, in its own words."""

from typing import Any, Literal, NamedTuple

Loader = Literal["pretrained", "files", "files, not strict", "app"]
K_SAMPLERS = ("dpmpp-3m-sde", "dpmpp-2m-sde", "k-heun", "k-dpmpp-2s-ancestral", "k-dpm-2", "k-dpm-fast")
OPEN = {"sigma_min": 0.3, "sigma_max": 500}
TIMES = {"seconds_start": 0, "seconds_total": 1}


class Client(NamedTuple):
    """One project: how it loads a model, what it passes to `generate_diffusion_cond`, and what it does besides."""

    name: str
    loader: Loader
    conditions: dict[str, Any]
    options: dict[str, Any]
    samplers: tuple[str, ...] = ("dpmpp-3m-sde",)
    objective: Literal["v", "rectified_flow"] = "v"
    negative: dict[str, Any] | None = None
    seconds: float | None = None  # of `sample_size`; None: that of the config
    init: Literal["mono", "stereo of 16 bits"] | None = None
    dtype: Literal["float16", "bfloat16"] | None = None
    autocast: bool = False


PROMPT = {"prompt": "a slow piano", **TIMES}

CLIENTS = [
    Client("Saganaki22/StableAudioWebUI", "pretrained", PROMPT, {**OPEN, "seed": 123456}, (*K_SAMPLERS, "k-lms")),
    Client(
        "MoonHugo/ComfyUI-StableAudioOpen",
        "files",
        {**PROMPT, "negative_prompt": "Low quality."},
        {**OPEN, "seed": 0xFFFFFFFFFFFFFFFF},
        K_SAMPLERS,
    ),
    Client(
        "smthemex/ComfyUI_StableAudio_Open",
        "files, not strict",
        PROMPT,
        {**OPEN, "batch_size": 1, "seed": 2**31 - 1, "init_noise_level": 1.0},
        (*K_SAMPLERS, "k-lms"),
    ),
    Client(
        "lks-ai/ComfyUI-StableAudioSampler",
        "files",
        PROMPT,
        {**OPEN, "seed": -1, "batch_size": 1, "init_noise_level": 0.7},
        negative=PROMPT,
        seconds=1,
        init="stereo of 16 bits",
    ),
    Client(
        "inkuele/stableaudio",
        "files",
        {**PROMPT, "weight": 1.0},
        {**OPEN, "seed": 2**32 - 1, "init_noise_level": 2.0},
        ("dpmpp-3m-sde", "heun", "lms"),
        negative=PROMPT,
        seconds=0.9,
        init="mono",
        autocast=True,
    ),
    Client("PierrunoYT/StableAudioSmall-Locally", "pretrained", PROMPT, {}, ("pingpong",), "rectified_flow"),
    Client("steve-mackinnon/stable-audio-open-modal", "pretrained", PROMPT, OPEN, seconds=0.7),
    Client("SaladTechnologies/stable-audio-open", "pretrained", PROMPT, OPEN, seconds=1),
    Client("livepeer/ai-worker", "pretrained", PROMPT, {**OPEN, "seed": 7}),
    Client(
        "shortwavlabs/stable-audio-api", "pretrained", PROMPT, {}, ("pingpong",), "rectified_flow", dtype="bfloat16"
    ),
    Client(
        "betweentwomidnights/stable-audio-api",
        "pretrained",
        PROMPT,
        {"seed": 3},
        ("pingpong",),
        "rectified_flow",
        negative={"prompt": "", **TIMES},
        autocast=True,
    ),
    Client(
        "stem generators that repeat the options as conditions",
        "pretrained",
        {**PROMPT, "batch_size": 1, "sample_size": 44100},
        {"batch_size": 1, "seed": 2**32 - 1},
        seconds=0.83,
    ),
    Client("rsxdalv/TTS-WebUI", "app", PROMPT, {**OPEN, "seed": -1}),
]
