"""Scores on captioned music during training: every process generates its share, all know the result."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal, Protocol, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from stable_audio_tools.core.config import Part, Runtime, register
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.devices import pick_device
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.embedders.base import Embedder, digest_of
from stable_audio_tools.evaluation.results import Result, Subject, write_results
from stable_audio_tools.evaluation.settings import CaptionSampling
from stable_audio_tools.evaluation.song_describer.generating import CaptionRun, sampling_for, score_captions
from stable_audio_tools.evaluation.song_describer.references import (
    COMMAND,
    References,
    clap_node,
    matching_embedder,
    read_references,
)
from stable_audio_tools.models.diffusion import ConditionedDiffusionModelWrapper
from stable_audio_tools.training import random_state
from stable_audio_tools.training.distributed import gather
from stable_audio_tools.training.ema import WeightAverage
from stable_audio_tools.training.run_folder import remove_checkpoint
from stable_audio_tools.training.sharding import gathered

logger = logging.getLogger(__name__)

Monitor = Literal["fad", "fad_inf", "kernel_distance", "alignment_mean"]


class DiffusionTraining(Protocol):
    """A training module of a conditional diffusion model."""

    diffusion: ConditionedDiffusionModelWrapper

    @property
    def device(self) -> torch.device: ...

    @property
    def weight_average(self) -> WeightAverage | None: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> nn.Module: ...

    def log_dict(self, dictionary: Mapping[str, float], *, logger: bool, on_step: bool) -> None: ...


@dataclass(frozen=True)
class CaptionPlan:
    """The settings of the evaluation."""

    path: Path  # of the references
    every: int
    num_prompts: int
    sampling: JsonObject
    node: JsonObject | None  # of the embedder; None: the one of the references
    device: str
    batch_sizes: tuple[int, int]  # to generate, to embed
    prefix: str
    monitor: Monitor
    on_error: Literal["warn", "stop"]
    sample_size: int


class BestCheckpoint:
    """Scores are better when lower. All processes call `judge` with the same score."""

    def __init__(self, folder: Path | None, keep: bool, patience: int | None) -> None:
        self.folder, self.keep, self.patience = folder, keep, patience
        self.score, self.step, self.without = math.inf, -1, 0

    def judge(self, trainer: pl.Trainer, score: float) -> bool:
        """Record a score, and return whether patience has run out."""
        if score < self.score:
            self.score, self.step, self.without = score, trainer.global_step, 0
            if self.keep:
                self._save(trainer)
            return False
        self.without += 1
        return self.patience is not None and self.without >= self.patience

    def _save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint, then delete the one before."""
        folder = self.folder or Path(trainer.default_root_dir) / "checkpoints" / "best"
        path = folder / f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero and path.exists():
            for older in folder.glob("*.ckpt"):
                if older != path:
                    remove_checkpoint(older)
            logger.info("the best checkpoint is that of step %d", trainer.global_step)

    def state_dict(self) -> JsonObject:
        return {"score": self.score, "step": self.step, "without": self.without}

    def load_state_dict(self, state: JsonObject) -> None:
        self.score, self.step, self.without = state["score"], state["step"], state["without"]


class SongDescriberCallback(pl.Callback):
    """Evaluates the averaged weights on captions every few steps; keeps the best, and may end the run."""

    def __init__(self, plan: CaptionPlan, best: BestCheckpoint, folder: Path | None = None) -> None:
        """`folder` receives the results; None: the folder of the run."""
        self.plan, self.best, self.folder = plan, best, folder
        self._references: References | None = None
        self._embedder: Embedder | None = None
        self._last_step = -1
        self._reported: set[str] = set()
        self._ready()

    # ------------------------------------------------------------------ when

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        step = trainer.global_step
        if step and step % self.plan.every == 0 and step != self._last_step:
            self._last_step = step
            # One process may see a file before another does; they must evaluate together.
            if all(share["ready"] for share in gather({"ready": self._ready()})):
                self.run(trainer, cast(DiffusionTraining, pl_module))

    def _ready(self) -> bool:
        """Return whether the references exist. Each call looks again, so that they may appear while training runs."""
        if self._references is None and self.plan.path.is_file():
            self._references = read_references(self.plan.path)
            if self._references.identity is None:  # then a name is all there is to check, and nothing is loaded for it
                self._embedder = matching_embedder(self._references, self.plan.node)
        if self._references is None:
            self._warn_once(
                f"training.song_describer_eval: {self.plan.path} does not exist, so captions are not evaluated; "
                f"write it with python {COMMAND} --output-path {self.plan.path}"
            )
        return self._references is not None

    # ------------------------------------------------------------------ what

    @torch.no_grad()
    def run(self, trainer: pl.Trainer, module: DiffusionTraining) -> Result | None:
        """Evaluate now; an error is logged once, and the run goes on or stops as `on_error` says."""
        vectors: dict[int, NDArray[np.float32]] = {}
        error: str | None = None
        with judged(module):
            # Every process holds a part of a divided model, so all take part in these two lines.
            weights = digest_of(module.diffusion)
            with gathered(module.diffusion):
                try:
                    caption_run, rows = self._prepare(module)
                    for batch in caption_run.batches(rows, trainer.global_rank, trainer.world_size):
                        vectors.update(caption_run.vectors(batch))
                except Exception as failure:  # the other processes must know, or they would wait for ever
                    error = f"{type(failure).__name__}: {failure}"
                    if error not in self._reported:
                        logger.debug("the traceback of the evaluation", exc_info=True)
        subject = Subject(name=f"step {trainer.global_step}", weights=weights)
        if self._embedder is not None:
            self._embedder.to("cpu")  # the memory is the training's
        shares = gather((vectors, error))
        errors = [error for _, error in shares if error is not None]
        if not errors:
            vectors = {row: vector for share, _ in shares for row, vector in share.items()}
            try:  # every process computes the same, so all fail here or none
                result = score_captions(caption_run, rows, vectors, subject)
            except Exception as failure:
                errors = [f"{type(failure).__name__}: {failure}"]
        if errors:
            self._fail(trainer, errors[0])
            return None
        self._report(trainer, module, result)
        return result

    def _prepare(self, module: DiffusionTraining) -> tuple[CaptionRun, list[int]]:
        assert self._references is not None
        device = module.device if self.plan.device in ("auto", module.device.type) else pick_device(self.plan.device)
        if self._embedder is None:
            self._embedder = matching_embedder(self._references, self.plan.node)
        self._embedder.to(device)
        sampling = sampling_for(module.diffusion, CaptionSampling(**self.plan.sampling))
        run = CaptionRun(
            module.diffusion, self.plan.sample_size, self._references, sampling, self._embedder, *self.plan.batch_sizes
        )
        return run, self._references.choose(self.plan.num_prompts)

    def _report(self, trainer: pl.Trainer, module: DiffusionTraining, result: Result) -> None:
        assert self._embedder is not None
        # Intervals are in the result file; as curves they would only crowd the log.
        known = {
            name: value
            for name, value in result.scores.items()
            if value is not None and not name.endswith(("_low", "_high"))
        }
        self._log(trainer, known)
        # For Lightning's own EarlyStopping and ModelCheckpoint.
        module.log_dict(
            {f"{self.plan.prefix}/{name}": value for name, value in known.items()}, logger=False, on_step=True
        )
        values = ", ".join(f"{name} {value:.5g}" for name, value in known.items())
        logger.info("captions at step %d: %s", trainer.global_step, values)
        if trainer.is_global_zero:
            self._write(self._folder(trainer) / f"step_{trainer.global_step:08d}.json", result)
        value = result.scores.get(f"{self._embedder.tag}_{self.plan.monitor}")
        if value is None:
            self._warn_once(f"training.song_describer_eval: {self.plan.monitor} is not measured here; no best is kept")
        elif self.best.judge(trainer, -value if self.plan.monitor == "alignment_mean" else value):
            logger.info("captions: %d evaluations without a better %s; stopping", self.best.patience, self.plan.monitor)
            trainer.should_stop = True

    def _write(self, path: Path, result: Result) -> None:
        try:
            write_results(path, [result])
        except OSError as error:  # the scores are logged all the same, and the other processes go on
            logger.error("%s was not written (%s)", path, error.strerror or error)

    def _fail(self, trainer: pl.Trainer, error: str) -> None:
        sentence = f"the evaluation on captions at step {trainer.global_step} failed: {error}"
        if self.plan.on_error == "stop":
            raise UserError(sentence)
        if error not in self._reported and trainer.is_global_zero:
            self._reported.add(error)
            logger.error("%s. Training goes on; the same error is not logged again", sentence)
        self._log(trainer, {"failed": 1.0})

    def _log(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        for one in trainer.loggers if trainer.is_global_zero else ():
            named = {f"{self.plan.prefix}/{name}": value for name, value in values.items()}
            one.log_metrics(named, step=trainer.global_step)

    def _folder(self, trainer: pl.Trainer) -> Path:
        return self.folder or Path(trainer.default_root_dir) / "song_describer"

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self._reported:
            self._reported.add(sentence)
            logger.warning("%s", sentence)

    def state_dict(self) -> JsonObject:
        return {"best": self.best.state_dict(), "last_step": self._last_step}

    def load_state_dict(self, state_dict: JsonObject) -> None:
        self.best.load_state_dict(state_dict["best"])
        self._last_step = state_dict["last_step"]


@contextmanager
def judged(module: DiffusionTraining) -> Iterator[None]:
    """Use averaged weights and evaluation mode inside the block, and leave the random draws of training as they are."""
    modes = {part: part.training for part in module.modules()}
    average = module.weight_average
    with random_state.preserved(), average.swapped_in() if average is not None else nullcontext():
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode


def _check_enabled(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    if config.enabled and not config.precomputed_embeddings_path:
        yield "precomputed_embeddings_path", f"missing; it names the file that {COMMAND} writes"
    if config.embedder is not None and config.clap_model_name is not None:
        yield "embedder", "give embedder or clap_model_name, not both"


@register("evaluation", "song_describer", check=_check_enabled)
def song_describer_evaluation(
    enabled: Annotated[bool, Field(description="evaluate the model on captions during training")] = True,
    precomputed_embeddings_path: Annotated[
        str | None, Field(description="what precompute_song_describer_clap_embeddings.py wrote (.npz)")
    ] = None,
    eval_every: Annotated[int | None, Field(ge=1, description="steps between evaluations; null: demo_every")] = None,
    num_prompts: Annotated[int, Field(ge=1, description="how many captions, of as many tracks as there are")] = 64,
    eval_steps: Annotated[int | None, Field(ge=1, description="sampling steps; null: demo_steps")] = None,
    eval_cfg_scale: Annotated[float | None, Field(description="guidance; null: the first of demo_cfg_scales")] = None,
    eval_sampler_type: Annotated[
        str | None, Field(description="sampler; null: the one recommended for the objective")
    ] = None,
    eval_sigma_min: Annotated[float | None, Field(gt=0, description="lowest noise level of that sampler")] = None,
    eval_sigma_max: Annotated[float | None, Field(gt=0, description="highest noise level of that sampler")] = None,
    eval_seed: Annotated[int, Field(ge=0, description="a prompt adds its row to it")] = 0,
    gen_batch_size: Annotated[int, Field(ge=1, description="items to generate at once, in each process")] = 4,
    clap_batch_size: Annotated[int, Field(ge=1, description="windows through the embedder at once")] = 8,
    clap_model_name: Annotated[str | None, Field(description="where CLAP is; null: as the references say")] = None,
    embedder: Annotated[
        JsonObject | None,
        Field(description="another embedder than CLAP, as a node; the references must come from it"),
    ] = None,
    clap_device: Annotated[str, Field(description="auto (where the model is), cpu or cuda")] = "auto",
    metric_prefix: Annotated[
        str, Field(min_length=1, description="prefix of the names of the metrics")
    ] = "songscriber",
    monitor: Annotated[Monitor, Field(description="the score by which the best checkpoint is chosen")] = "fad",
    keep_best: Annotated[bool, Field(description="keep the best checkpoint in checkpoints/best")] = False,
    patience: Annotated[
        int | None, Field(ge=1, description="stop after so many evaluations without a better one")
    ] = None,
    on_error: Annotated[
        Literal["warn", "stop"], Field(description="when an evaluation fails: log it once, or end the run")
    ] = "warn",
    *,
    demo: Runtime[Part | None] = None,
    sample_size: Runtime[int] = 0,
    folder: Runtime[Path | None] = None,
) -> SongDescriberCallback | None:
    """Scores on the captions of Song Describer during training."""
    if not enabled:
        return None
    given = vars(demo.config) if demo is not None else {}
    scales = given.get("demo_cfg_scales")
    sampling = {
        "steps": eval_steps or given.get("demo_steps"),
        "cfg_scale": eval_cfg_scale if eval_cfg_scale is not None else scales[0] if scales else None,
        "sampler_type": eval_sampler_type,
        "sigma_min": eval_sigma_min,
        "sigma_max": eval_sigma_max,
        "seed": eval_seed,
    }
    assert precomputed_embeddings_path is not None
    plan = CaptionPlan(
        Path(precomputed_embeddings_path),
        eval_every or given.get("demo_every") or 2000,
        num_prompts,
        sampling,
        embedder if embedder is not None else clap_node(clap_model_name) if clap_model_name else None,
        clap_device,
        (gen_batch_size, clap_batch_size),
        metric_prefix,
        monitor,
        on_error,
        sample_size,
    )
    best = BestCheckpoint(None if folder is None else folder / "checkpoints" / "best", keep_best, patience)
    return SongDescriberCallback(plan, best, None if folder is None else folder / "song_describer")
