"""Audio for captions: one sampler and one seed per row, in training and afterwards alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.core.seeds import MAX_SEED, resolve_seed
from stable_audio_tools.data.resampling import resample
from stable_audio_tools.evaluation.embedders import Embedder, Frames, mean_vector
from stable_audio_tools.evaluation.settings import CaptionSampling
from stable_audio_tools.evaluation.song_describer.references import References
from stable_audio_tools.inference.generation.diffusion import generate_diffusion_cond, generate_diffusion_cond_inpaint


def sampling_for(model: Any, wanted: CaptionSampling) -> CaptionSampling:
    """What is asked for, and else what is recommended for the model's objective."""
    usual = model.objective.recommended
    own = wanted.sampler_type in (None, usual.sampler_type)  # the limits belong to the sampler
    lowest, highest = (usual.sigma_min, usual.sigma_max) if own else (0.01, None)
    return CaptionSampling(
        steps=usual.steps if wanted.steps is None else wanted.steps,
        cfg_scale=usual.cfg_scale if wanted.cfg_scale is None else wanted.cfg_scale,
        sampler_type=wanted.sampler_type or usual.sampler_type,
        sigma_min=lowest if wanted.sigma_min is None else wanted.sigma_min,
        sigma_max=highest if wanted.sigma_max is None else wanted.sigma_max,
        seed=resolve_seed(wanted.seed),
        precision=wanted.precision,
    )


@dataclass(frozen=True)
class CaptionRun:
    """A model, the captions it is judged by, and how."""

    model: Any  # conditional diffusion, on its device
    sample_size: int
    references: References
    sampling: CaptionSampling
    embedder: Embedder
    batch_size: int = 4
    embedder_batch: int = 8

    def batches(self, rows: Sequence[int], share: int = 0, shares: int = 1) -> list[list[int]]:
        """This share of the rows, in batches that do not depend on the number of shares.

        On a CPU a batch holds one row: it would bring nothing there but other roundings.
        """
        size = 1 if self._device.type == "cpu" else self.batch_size
        return [list(rows[start : start + size]) for start in range(0, len(rows), size)][share::shares]

    def vectors(self, batch: Sequence[int]) -> Iterator[tuple[int, Frames]]:
        """(row, mean vector (d,)) of what the model makes for these rows."""
        audio = self.generate(batch)
        for row, clip in zip(batch, audio):
            heard = clip[:, : round(self.seconds(row) * self.model.sample_rate)].mean(0)
            mono = resample(heard, self.model.sample_rate, self.embedder.sample_rate)
            try:
                frames = self.embedder.frames(mono, self.embedder_batch)
            except AudioError as error:
                caption, prompt = int(self.references.caption_ids[row]), self.references.prompts[row]
                raise AudioError(f"what the model made of caption {caption} ({prompt!r}): {error}") from None
            yield row, mean_vector(frames)

    def generate(self, batch: Sequence[int]) -> Tensor:
        """(b, c, n) on the CPU; the noise of a row follows from the seed and the row alone."""
        routed = {
            *self.model.input_concat_ids,
            *self.model.cross_attn_cond_ids,
            *self.model.global_cond_ids,
            *self.model.prepend_cond_ids,
        }
        make = generate_diffusion_cond_inpaint if "inpaint_masked_input" in routed else generate_diffusion_cond
        assert self.sampling.steps is not None and self.sampling.cfg_scale is not None, "recommended ones are filled in"
        made: Tensor = make(
            self.model,
            steps=self.sampling.steps,
            cfg_scale=self.sampling.cfg_scale,
            conditioning=[self.conditions(row) for row in batch],
            batch_size=len(batch),
            sample_size=self.sample_size,
            seed=[self.seed(row) for row in batch],
            device=self._device,
            sampler_type=self.sampling.sampler_type,
            sigma_min=self.sampling.sigma_min,
            sigma_max=self.sampling.sigma_max,
            precision=None if self.sampling.precision == "float32" else self.sampling.precision,
            progress=False,
        )
        return made.float().cpu()

    def conditions(self, row: int) -> Mapping[str, Any]:
        """What the model is told about a row."""
        return {"prompt": self.references.prompts[row], "seconds_start": 0, "seconds_total": self.seconds(row)}

    def seconds(self, row: int) -> float:
        """The length of the track, at most the model's window; all of it where the length is unknown."""
        window = self.sample_size / float(self.model.sample_rate)
        known = float(self.references.durations[row])
        return min(known, window) if known > 0 else window

    def seed(self, row: int) -> int:
        """Of the noise of a row."""
        return (self.sampling.seed + row) % MAX_SEED

    @property
    def _device(self) -> torch.device:
        return next(self.model.model.parameters()).device
