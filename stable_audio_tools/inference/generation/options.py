"""The keywords that the generate functions take beyond their signatures."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.inference.sampling.watching import Callback, CancelSignal, ProgressCallback


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How to sample and decode."""

    sampler_type: str | None = None  # None: dpmpp-2m-sde for v, euler for flows
    schedule: str | None = None  # None: the one that the sampler is published with
    sigma_min: float = 0.01
    sigma_max: float | None = None  # None: 100 for k-diffusion's samplers, else 1; init_noise_level takes precedence
    rho: float = 1.0
    eta: float | None = None  # fresh noise of ddim and v-ddim, 0 (none) to 1; None: 0
    callback: Callback | None = None  # what it gets: watching.Watch
    on_latents: Callable[[Tensor], Any] | None = None  # is given the latents (b, d, t) before they are decoded
    cond_fn: Any = None  # cond_fn(x, sigma, denoised=...) -> gradient added to the prediction; k-diffusion's samplers
    cancel: CancelSignal | None = None  # for instance a threading.Event
    progress: bool | ProgressCallback = True  # a bar on a terminal's stderr; or called with (steps done, steps)
    disable_tqdm: bool = False  # published name for progress=False
    precision: str | torch.dtype | None = None  # autocast of the network: float16, bfloat16
    allow_tf32: bool = False  # leave the process's own settings of TF32 and cuDNN as they are
    offload: bool = False  # keep each part of the model on the CPU while it is not in use
    decode_frames: int | None = None  # decode one item and this many latent frames at a time
    decode_overlap: int | None = None  # frames by which these overlap; None: 32, at most half of decode_frames

    def __post_init__(self) -> None:
        for name in ("sigma_max", "rho"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")
        if self.decode_frames is not None and self.decode_frames < 1:
            raise ValueError(f"decode_frames must be at least 1, got {self.decode_frames}")


@dataclasses.dataclass(frozen=True)
class GuidanceOptions:
    """How guidance is applied, beside its scale."""

    cfg_interval: tuple[float, float] = (0.0, 1.0)  # noise levels between which it applies
    scale_phi: float | None = None  # share of rescaling, 0 to 1; None: as the backbone is published
    batch_cfg: bool = True  # both passes as one batch: faster, twice the activations


def split_options(given: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """Keywords as one object of each kind; a name that none of them has is refused."""
    names = {kind: [field.name for field in dataclasses.fields(kind)] for kind in kinds}
    known = [name for group in names.values() for name in group]
    for name in given:
        if name not in known:
            raise ValueError(f"unknown option {name!r}; {nearest(name, known)}")
    return [kind(**{name: given[name] for name in group if name in given}) for kind, group in names.items()]
