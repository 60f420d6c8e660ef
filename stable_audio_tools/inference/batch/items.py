"""What a batch is made of: settings of all, what the items of one pass share, the items."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.core.seeds import MAX_SEED
from stable_audio_tools.inference.batch.outputs import Bits
from stable_audio_tools.inference.generation.edits import Edit


@dataclass(frozen=True)
class BatchSettings:
    """Settings of a whole batch; a leaf may have its own. None stands for what suits the model."""

    steps: int | None = None
    cfg_scale: float | None = None
    sampler_type: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    negative_prompt: str | None = None
    n_sample_per_cond: int = 1
    batch_size: int = 10  # through the network at once; guidance counts twice
    seed: int = 0  # -1: another one for every file
    clip_length: bool | float = False  # seconds of every file; True: those that the prompt asks for
    format: str = "wav"
    bits: Bits = 16
    decode_frames: int | None = None
    offload: bool = False
    overwrite: bool = False
    keep_latents: bool = False  # as NAME.npy beside each file
    eta: float | None = None
    edit: Edit | None = None  # what to do with other audio, in place of beginning from noise

    def __post_init__(self) -> None:
        sizes = {"sample_steps": self.steps, "n_sample_per_cond": self.n_sample_per_cond, "batch_size": self.batch_size}
        for name, value in {**sizes, "decode_frames": self.decode_frames}.items():
            if value is not None and value < 1:
                raise UserError(f"{name}: expected at least 1, got {value}")
        for name in ("sigma_min", "sigma_max"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name}: expected more than 0, got {value:g}")
        if self.cfg_scale is not None and not math.isfinite(self.cfg_scale):
            raise UserError(f"cfg_scale: expected a number, got {self.cfg_scale:g}")
        if not -1 <= self.seed <= MAX_SEED:
            raise UserError(f"seed: expected -1 (random) or 0 to {MAX_SEED}, got {self.seed}")


@dataclass(frozen=True)
class How:
    """What the items of one batch share."""

    steps: int | None
    cfg_scale: float | None
    sampler_type: str | None
    seconds: float | None
    guided_away: bool = False  # by a negative prompt
    init_audio: str | None = None
    init_noise_level: float | None = None
    inpaint_audio: str | None = None
    inpaint: tuple[tuple[float, float], ...] | None = None
    edit: Edit | None = None
    temp: float | None = None  # these three: how language models draw tokens
    top_k: int | None = None
    top_p: float | None = None

    @property
    def keeps_level(self) -> bool:
        """Is part of the file audio that was handed in?"""
        return self.inpaint_audio is not None or (self.edit is not None and self.edit.keeps_audio)

    @property
    def audio_files(self) -> list[str]:
        edited = [] if self.edit is None else [self.edit.audio, self.edit.to_audio]
        return [path for path in (self.init_audio, self.inpaint_audio, *edited) if path is not None]


@dataclass(frozen=True)
class Item:
    """One file; without a seed it may have any. `weight`: how far between two clips."""

    file: str
    conditions: Mapping[str, Any]
    seed: int | None
    negative_prompt: str | None
    how: How
    weight: float | None = None
