"""Demos of diffusion models, made by the same functions that users call."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.inference.generation.diffusion import (
    generate_diffusion_cond,
    generate_diffusion_cond_inpaint,
    generate_diffusion_uncond,
)
from stable_audio_tools.models.inpainting import random_inpaint_mask
from stable_audio_tools.training.callbacks.demos import DEMO_SEED, Demo, DemoCallback, repeated
from stable_audio_tools.training.module import same_length, unwrap_batch


def joined(audio: Tensor) -> Tensor:
    """(b, c, n) one after the other: (c, b n)"""
    return rearrange(audio, "b c n -> c (b n)")


class DiffusionUncondDemoCallback(DemoCallback):
    """Generates from noise."""

    def __init__(
        self,
        demo_every: int = 2000,
        num_demos: int = 8,
        demo_steps: int = 250,
        sample_rate: int = 48000,
        sample_size: int = 65536,
        folder: Path | None = None,
        demo_dl: Any = None,
    ) -> None:
        super().__init__(demo_every, sample_rate, folder, demo_dl)
        self.num_demos, self.demo_steps, self.sample_size = num_demos, demo_steps, sample_size

    def make(self, trainer: pl.Trainer, module: Any, batch: Any) -> Iterator[Demo]:
        audio = generate_diffusion_uncond(
            module.diffusion,
            steps=self.demo_steps,
            batch_size=self.num_demos,
            sample_size=self.sample_size,
            seed=DEMO_SEED,
            device=str(module.device),
        )
        yield Demo("demo", audio=joined(audio))


class DiffusionCondDemoCallback(DemoCallback):
    """Generates for given conditions, or those of a batch, at several strengths of guidance."""

    def __init__(
        self,
        demo_every: int = 2000,
        num_demos: int = 8,
        sample_size: int = 65536,
        demo_steps: int = 250,
        sample_rate: int = 48000,
        demo_conditioning: Sequence[Mapping[str, Any]] = (),
        demo_cfg_scales: Sequence[float] = (3, 5, 7),
        demo_cond_from_batch: bool = False,
        display_audio_cond: bool = False,
        cond_display_configs: Sequence[Mapping[str, Any]] | None = None,
        folder: Path | None = None,
        demo_dl: Any = None,
    ) -> None:
        super().__init__(demo_every, sample_rate, folder, demo_dl)
        self.num_demos, self.sample_size, self.demo_steps = num_demos, sample_size, demo_steps
        self.conditions, self.cfg_scales = demo_conditioning, tuple(demo_cfg_scales)
        self.from_batch = demo_cond_from_batch or not demo_conditioning
        audio_condition = [{"id": "audio", "type": "audio"}] if display_audio_cond else []
        self.displays = [*audio_condition, *(cond_display_configs or ())]

    def make(self, trainer: pl.Trainer, module: Any, batch: Any) -> Iterator[Demo]:
        given = list(batch[1])[: self.num_demos] if self.from_batch else repeated(self.conditions, self.num_demos)
        for display in self.displays:
            yield from self._conditions_heard(module, display, given)
        for scale in self.cfg_scales:
            audio = generate_diffusion_cond(
                module.diffusion,
                steps=self.demo_steps,
                cfg_scale=scale,
                conditioning=given,
                batch_size=len(given),
                sample_size=self.sample_size,
                seed=DEMO_SEED,
                device=str(module.device),
            )
            yield Demo(f"demo_cfg_{scale:g}", audio=joined(audio), caption="; ".join(map(_caption, given)))
            for display in self.displays:
                if display.get("config", {}).get("display_mix", False):
                    yield from self._mixes(module, display, given, audio, f"cfg_{scale:g}")

    def _conditions_heard(self, module: Any, display: Mapping[str, Any], given: list[dict[str, Any]]) -> Iterator[Demo]:
        """Yield the audio that conditions hold: one clip per item, or several, each under its own name."""
        for label, audio in self._clips(module, display, given).items():
            yield Demo(f"demo_{label}", audio=joined(audio))

    def _mixes(
        self, module: Any, display: Mapping[str, Any], given: list[dict[str, Any]], audio: Tensor, ending: str
    ) -> Iterator[Demo]:
        """Yield what was generated together with the audio of a condition, and that audio's own sum if it has parts."""
        name, clips = display["id"], self._clips(module, display, given)
        submix = torch.stack(list(clips.values())).sum(0)
        if display.get("type") == "audio_dict":
            yield Demo(f"demo_{name}_submix_{ending}", audio=joined(submix))
        submix, audio = same_length(submix, audio.to(submix))
        yield Demo(f"demo_{name}_mix_{ending}", audio=joined(submix + audio))

    def _clips(self, module: Any, display: Mapping[str, Any], given: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the audio of a condition (b, c, n) by its label."""
        name, pre_encoded = display["id"], display.get("config", {}).get("pre_encoded", False)
        entries = [entry[name] for entry in given]
        if display.get("type") == "audio_dict":
            groups = {f"{name}_{key}": [entry[key] for entry in entries if key in entry] for key in entries[0]}
        else:
            groups = {name: entries}
        found: dict[str, Tensor] = {}
        for label, clips in groups.items():
            audio = torch.stack([clip.reshape(-1, clip.shape[-1]) for clip in clips]).to(module.device)
            found[label] = module.diffusion.pretransform.decode(audio) if pre_encoded else audio
        return found


class DiffusionCondInpaintDemoCallback(DemoCallback):
    """Hides a part of each item of a batch and fills it in."""

    def __init__(
        self,
        demo_dl: Any = None,
        demo_every: int = 2000,
        demo_steps: int = 250,
        sample_size: int = 65536,
        sample_rate: int = 48000,
        demo_cfg_scales: Sequence[float] = (3, 5, 7),
        num_demos: int = 8,
        folder: Path | None = None,
    ) -> None:
        super().__init__(demo_every, sample_rate, folder, demo_dl)
        self.demo_steps, self.sample_size, self.num_demos = demo_steps, sample_size, num_demos
        self.cfg_scales = tuple(demo_cfg_scales)

    def make(self, trainer: pl.Trainer, module: Any, batch: Any) -> Iterator[Demo]:
        reals, metadata = unwrap_batch(batch)
        reals, given = reals[: self.num_demos].to(module.device), metadata[: self.num_demos]
        if module.pre_encoded:
            pretransform = module.diffusion.pretransform
            reals = pretransform.decode(reals / pretransform.scale)
        everything = torch.ones_like(reals[:, 0], dtype=torch.bool)
        hidden, mask = random_inpaint_mask(reals, padding_masks=everything, mask_type_probabilities=[1.0, 0.0, 0.0])
        yield Demo("demo_reals", audio=joined(reals))
        yield Demo("demo_masked_input", audio=joined(hidden))
        for scale in self.cfg_scales:
            parts = [
                generate_diffusion_cond_inpaint(
                    module.diffusion,
                    steps=self.demo_steps,
                    cfg_scale=scale,
                    conditioning=[condition],
                    batch_size=1,
                    sample_size=reals.shape[-1],
                    seed=DEMO_SEED,
                    device=str(module.device),
                    inpaint_audio=(self.sample_rate, reals[index]),
                    inpaint_mask=mask[index],
                )
                for index, condition in enumerate(given)
            ]
            yield Demo(f"demo_cfg_{scale:g}", audio=joined(torch.cat(parts)), caption="; ".join(map(_caption, given)))


class DiffusionAutoencoderDemoCallback(DemoCallback):
    """Encodes the items of a batch and decodes them by diffusion."""

    def __init__(
        self,
        demo_dl: Any = None,
        demo_every: int = 2000,
        demo_steps: int = 250,
        sample_size: int = 65536,
        sample_rate: int = 48000,
        max_demos: int = 8,
        folder: Path | None = None,
    ) -> None:
        super().__init__(demo_every, sample_rate, folder, demo_dl)
        self.demo_steps, self.sample_size, self.max_demos = demo_steps, sample_size, max_demos

    def make(self, trainer: pl.Trainer, module: Any, batch: Any) -> Iterator[Demo]:
        reals = unwrap_batch(batch)[0][: self.max_demos].to(module.device)
        latents = module.diffae.encode(reals)
        decoded, reals = same_length(module.diffae.decode(latents, steps=self.demo_steps), reals)
        yield Demo(
            "recon", audio=rearrange([reals, decoded], "i b c n -> c (b i n)"), caption="original, reconstruction"
        )
        yield Demo("embeddings", latents=rearrange(latents, "b d t -> d (b t)"))


def _caption(condition: Mapping[str, Any]) -> str:
    return str(condition.get("prompt", ""))


@register("demo", "diffusion_uncond", ignored=("log_duration",))
def unconditional_demo(
    demo_every: Annotated[int, Field(ge=1, description="steps between demos")] = 2000,
    demo_steps: Annotated[int, Field(ge=1, description="sampling steps")] = 250,
    num_demos: Annotated[int, Field(ge=1, description="items of a demo")] = 8,
    *,
    sample_size: Runtime[int],
    sample_rate: Runtime[int],
    folder: Runtime[Path | None] = None,
    demo_dl: Runtime[Any] = None,
) -> DiffusionUncondDemoCallback:
    """Audio from noise."""
    return DiffusionUncondDemoCallback(demo_every, num_demos, demo_steps, sample_rate, sample_size, folder, demo_dl)


@register("demo", "diffusion_cond", ignored=("log_duration",))
def conditional_demo(
    demo_every: Annotated[int, Field(ge=1, description="steps between demos")] = 2000,
    demo_steps: Annotated[int, Field(ge=1, description="sampling steps")] = 250,
    num_demos: Annotated[int, Field(ge=1, description="items of a demo")] = 8,
    demo_cfg_scales: Annotated[Sequence[float], Field(min_length=1, description="strengths of guidance")] = (
        3.0,
        5.0,
        7.0,
    ),
    demo_cond: Annotated[list[dict[str, Any]] | None, Field(description="conditions; else those of a batch")] = None,
    demo_cond_from_batch: Annotated[bool, Field(description="take the conditions of a batch")] = False,
    display_audio_cond: Annotated[bool, Field(description="also keep the audio under the condition `audio`")] = False,
    cond_display_configs: Annotated[
        list[dict[str, Any]] | None,
        Field(description="conditions whose audio is kept: id, type audio or audio_dict, config (display_mix, ...)"),
    ] = None,
    *,
    sample_size: Runtime[int],
    sample_rate: Runtime[int],
    folder: Runtime[Path | None] = None,
    demo_dl: Runtime[Any] = None,
) -> DiffusionCondDemoCallback:
    """Audio for given conditions."""
    return DiffusionCondDemoCallback(
        demo_every,
        num_demos,
        sample_size,
        demo_steps,
        sample_rate,
        demo_cond or (),
        demo_cfg_scales,
        demo_cond_from_batch,
        display_audio_cond,
        cond_display_configs,
        folder,
        demo_dl,
    )


@register("demo", "diffusion_cond_inpaint", ignored=("demo_cond", "log_duration"))
def inpainting_demo(
    demo_every: Annotated[int, Field(ge=1, description="steps between demos")] = 2000,
    demo_steps: Annotated[int, Field(ge=1, description="sampling steps")] = 250,
    num_demos: Annotated[int, Field(ge=1, description="items of a demo")] = 8,
    demo_cfg_scales: Annotated[Sequence[float], Field(min_length=1, description="strengths of guidance")] = (
        3.0,
        5.0,
        7.0,
    ),
    *,
    sample_size: Runtime[int],
    sample_rate: Runtime[int],
    folder: Runtime[Path | None] = None,
    demo_dl: Runtime[Any] = None,
) -> DiffusionCondInpaintDemoCallback:
    """Items of a batch with a part filled in."""
    return DiffusionCondInpaintDemoCallback(
        demo_dl, demo_every, demo_steps, sample_size, sample_rate, demo_cfg_scales, num_demos, folder
    )


@register("demo", "diffusion_autoencoder", ignored=("log_duration",))
def diffusion_autoencoder_demo(
    demo_every: Annotated[int, Field(ge=1, description="steps between demos")] = 2000,
    demo_steps: Annotated[int, Field(ge=1, description="sampling steps")] = 250,
    num_demos: Annotated[int, Field(ge=1, description="items of a demo")] = 8,
    *,
    sample_size: Runtime[int],
    sample_rate: Runtime[int],
    folder: Runtime[Path | None] = None,
    demo_dl: Runtime[Any] = None,
) -> DiffusionAutoencoderDemoCallback:
    """Items of a batch and their reconstructions."""
    return DiffusionAutoencoderDemoCallback(
        demo_dl, demo_every, demo_steps, sample_size, sample_rate, num_demos, folder
    )
