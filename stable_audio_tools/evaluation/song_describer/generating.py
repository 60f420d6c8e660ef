"""Audio for captions and its scores: one sampler and one seed per row, during training and afterwards."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from stable_audio_tools.core.errors import AudioError
from stable_audio_tools.core.seeds import MAX_SEED, resolve_seed
from stable_audio_tools.data.resampling import resample
from stable_audio_tools.data.transforms import set_channels
from stable_audio_tools.evaluation.embedders import Embedder, Frames
from stable_audio_tools.evaluation.metrics.frechet import (
    FEWEST_FILES,
    FileMoments,
    Sides,
    extrapolate,
    frechet_distance,
    gaussian_of,
)
from stable_audio_tools.evaluation.metrics.kernel import kernel_distance
from stable_audio_tools.evaluation.metrics.pairs import alignment
from stable_audio_tools.evaluation.metrics.resampling import LEVEL
from stable_audio_tools.evaluation.results import DEFINITIONS, Result, Subject
from stable_audio_tools.evaluation.settings import CaptionSampling
from stable_audio_tools.evaluation.song_describer.references import References
from stable_audio_tools.inference.generation.diffusion import generate_diffusion_cond, generate_diffusion_cond_inpaint

Scores = dict[str, float | None]


def sampling_for(model: Any, settings: CaptionSampling) -> CaptionSampling:
    """Fill in the recommended values of the model's objective."""
    usual = model.objective.recommended
    own = settings.sampler_type in (None, usual.sampler_type)  # the limits belong to the sampler
    lowest, highest = (usual.sigma_min, usual.sigma_max) if own else (0.01, None)
    return CaptionSampling(
        steps=usual.steps if settings.steps is None else settings.steps,
        cfg_scale=usual.cfg_scale if settings.cfg_scale is None else settings.cfg_scale,
        sampler_type=settings.sampler_type or usual.sampler_type,
        sigma_min=lowest if settings.sigma_min is None else settings.sigma_min,
        sigma_max=highest if settings.sigma_max is None else settings.sigma_max,
        seed=resolve_seed(settings.seed),
        precision=settings.precision,
    )


@dataclass(frozen=True)
class CaptionRun:
    """A model, the captions it is scored on, and the settings of sampling and embedding."""

    model: Any  # conditional diffusion, on its device
    sample_size: int
    references: References
    sampling: CaptionSampling
    embedder: Embedder
    batch_size: int = 4
    embedder_batch: int = 8

    def batches(self, rows: Sequence[int], share: int = 0, shares: int = 1) -> list[list[int]]:
        """Return this share of the rows, in batches that do not depend on the number of shares.

        On a CPU a batch has one row: larger ones are not faster there, and round differently.
        """
        size = 1 if self._device.type == "cpu" else self.batch_size
        return [list(rows[start : start + size]) for start in range(0, len(rows), size)][share::shares]

    def vectors(self, batch: Sequence[int]) -> Iterator[tuple[int, Frames]]:
        """Generate audio for these rows and yield (row, vectors (w, d) of its windows)."""
        audio = self.generate(batch)
        for row, clip in zip(batch, audio):
            channels = self.embedder.channels
            used = clip[:, : round(self.seconds(row) * self.model.sample_rate)]
            used = used.mean(0) if channels == 1 else set_channels(used, channels)
            samples = resample(used, self.model.sample_rate, self.embedder.sample_rate)
            try:
                yield row, self.embedder.frames(samples, self.embedder_batch)
            except AudioError as error:
                caption, prompt = int(self.references.caption_ids[row]), self.references.prompts[row]
                raise AudioError(f"output of the model for caption {caption} ({prompt!r}): {error}") from None

    def generate(self, batch: Sequence[int]) -> Tensor:
        """Generate (b, c, n) on the CPU; the noise of a row depends on the seed and the row alone."""
        routed = {
            *self.model.input_concat_ids,
            *self.model.cross_attn_cond_ids,
            *self.model.global_cond_ids,
            *self.model.prepend_cond_ids,
        }
        run = generate_diffusion_cond_inpaint if "inpaint_masked_input" in routed else generate_diffusion_cond
        assert self.sampling.steps is not None and self.sampling.cfg_scale is not None, "recommended ones are filled in"
        generated: Tensor = run(
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
        return generated.float().cpu()

    def conditions(self, row: int) -> Mapping[str, Any]:
        """Return the conditions of a row."""
        return {"prompt": self.references.prompts[row], "seconds_start": 0, "seconds_total": self.seconds(row)}

    def seconds(self, row: int) -> float:
        """Return the length of the track, at most the model's window; the window if the length is unknown."""
        window = self.sample_size / float(self.model.sample_rate)
        known = float(self.references.durations[row])
        return min(known, window) if known > 0 else window

    def seed(self, row: int) -> int:
        """Return the seed of the noise of a row."""
        return (self.sampling.seed + row) % MAX_SEED

    @property
    def _device(self) -> torch.device:
        return next(self.model.model.parameters()).device


# ------------------------------------------------------------------ scores


class PromptRecord(TypedDict, total=False):
    """A scored caption."""

    caption_id: int
    track_id: int
    prompt: str
    seconds: float
    seed: int
    cosine: float


def score_captions(run: CaptionRun, rows: Sequence[int], vectors: Mapping[int, Frames], subject: Subject) -> Result:
    """Compare the windows of generated clips with those of all reference tracks, and with the captions of `rows`.

    `vectors` are (w, d) per row. Intervals come from leaving out tracks and prompts.
    """
    references, tag, seed = run.references, run.embedder.tag, run.sampling.seed
    generated = [np.atleast_2d(vectors[row]) for row in rows]
    scores: Scores = {f"{tag}_fad": None, f"{tag}_fad_inf": None, f"{tag}_kernel_distance": None}
    details: dict[str, object] = {}
    if min(len(generated), len(references.windows)) > 1:
        sides = Sides(FileMoments(references.windows), FileMoments(generated))
        distance = frechet_distance(
            gaussian_of(np.concatenate(references.windows)), gaussian_of(np.concatenate(generated))
        )
        kernel = kernel_distance(references.windows, generated, seed)
        scores |= {f"{tag}_fad": distance, f"{tag}_kernel_distance": kernel.value}
        if kernel.low is not None:
            scores |= {f"{tag}_kernel_distance_low": kernel.low, f"{tag}_kernel_distance_high": kernel.high}
        details["kernel_distance"] = asdict(kernel)
        found = sides.estimate(seed)
        if found is not None:
            low, high = found.interval()
            scores |= {f"{tag}_fad_low": max(0.0, low), f"{tag}_fad_high": max(0.0, high)}
        if len(generated) >= FEWEST_FILES:
            line = extrapolate(sides, seed)
            scores[f"{tag}_fad_inf"], details["fad_inf"] = line.value, asdict(line)
            if found is not None:
                low, high = found.interval(line.value, line.error)
                scores |= {f"{tag}_fad_inf_low": low, f"{tag}_fad_inf_high": high}
    table = [
        PromptRecord(
            caption_id=int(references.caption_ids[row]),
            track_id=int(references.track_ids[row]),
            prompt=references.prompts[row],
            seconds=run.seconds(row),
            seed=run.seed(row),
        )
        for row in rows
    ]
    if references.has_texts:
        agreement = alignment(references.text_embeddings[list(rows)], generated)
        scores |= {f"{tag}_alignment_mean": agreement.mean, f"{tag}_alignment_std": agreement.std}
        if len(rows) > 1:
            error = float(np.std(agreement.cosines, ddof=1)) / len(rows) ** 0.5
            reach = float(stats.t.ppf((1 + LEVEL) / 2, len(rows) - 1)) * error
            scores |= {
                f"{tag}_alignment_low": agreement.mean - reach,
                f"{tag}_alignment_high": agreement.mean + reach,
            }
        for line_of_table, cosine in zip(table, agreement.cosines):
            line_of_table["cosine"] = cosine
    scores["num_prompts"] = float(len(rows))
    setup: dict[str, object] = {
        "definitions": DEFINITIONS,
        "embedder": dict(references.identity or run.embedder.identity),
        "references": {"digest": references.digest, "tracks": len(references.windows)},
        "prompts": len(rows),
        "sampling": run.sampling.describe(),
        "sample_size": run.sample_size,
    }
    return Result(subject, setup, scores, {**details, "prompts": table})
