"""Demos of an autoencoder: each original followed by its reconstruction, and the latents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
from einops import rearrange
from pydantic import Field

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.training.callbacks.demos import Demo, DemoCallback
from stable_audio_tools.training.module import same_length, unwrap_batch


class AutoencoderDemoCallback(DemoCallback):
    """Reconstructs the first items of a batch."""

    def __init__(
        self,
        demo_dl: Any = None,
        demo_every: int = 2000,
        sample_size: int = 65536,
        sample_rate: int = 44100,
        max_demos: int = 8,
        folder: Path | None = None,
    ) -> None:
        super().__init__(demo_every, sample_rate, folder, demo_dl)
        self.sample_size, self.max_demos = sample_size, max_demos

    def make(self, trainer: pl.Trainer, module: Any, batch: Any) -> Iterator[Demo]:
        reals = unwrap_batch(batch)[0][: self.max_demos].to(module.device)
        if module.pre_encoded:
            reals = module.autoencoder.pretransform.decode(reals)
        latents = module.autoencoder.encode(reals.mean(1, keepdim=True) if module.force_input_mono else reals)
        decoded, reals = same_length(module.autoencoder.decode(latents), reals)
        pairs = rearrange([reals.expand_as(decoded), decoded], "i b c n -> c (b i n)")
        yield Demo("recon", audio=pairs, caption="each original, then its reconstruction")
        yield Demo("embeddings", latents=rearrange(latents, "b d t -> d (b t)"))


@register("demo", "autoencoder", ignored=("log_duration",))
def autoencoder_demo(
    demo_every: Annotated[int, Field(ge=1, description="steps between demos")] = 2000,
    max_num_sample: Annotated[int, Field(ge=1, description="items of a demo")] = 8,
    *,
    sample_size: Runtime[int],
    sample_rate: Runtime[int],
    folder: Runtime[Path | None] = None,
    demo_dl: Runtime[Any] = None,
) -> AutoencoderDemoCallback:
    """Items of a batch and their reconstructions."""
    return AutoencoderDemoCallback(demo_dl, demo_every, sample_size, sample_rate, max_num_sample, folder)
