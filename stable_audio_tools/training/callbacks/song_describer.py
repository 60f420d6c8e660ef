"""Scores on captioned music during training: every process generates its share, all know the result."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from pydantic import Field

from stable_audio_tools.core.config import Runtime, register
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
from stable_audio_tools.training import random_state
from stable_audio_tools.training.distributed import gather
from stable_audio_tools.training.run_folder import remove_checkpoint

logger = logging.getLogger(__name__)

Monitor = Literal["fad", "fad_inf", "kernel_distance", "alignment_mean"]


@dataclass(frozen=True)
class CaptionPlan:
    """What is judged, how, and when."""

    path: Path  # of the references
    every: int
    num_prompts: int
    sampling: Mapping[str, Any]
    node: Mapping[str, Any] | None  # of the embedder; None: that of the references
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
        """Take note of a score -> has patience run out?"""
        if score < self.score:
            self.score, self.step, self.without = score, trainer.global_step, 0
            if self.keep:
                self._save(trainer)
            return False
        self.without += 1
        return self.patience is not None and self.without >= self.patience

    def _save(self, trainer: pl.Trainer) -> None:
        """One file; the one before goes when the new one is whole."""
        folder = self.folder or Path(trainer.default_root_dir) / "checkpoints" / "best"
        path = folder / f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero and path.exists():
            for older in folder.glob("*.ckpt"):
                if older != path:
                    remove_checkpoint(older)
            logger.info("the best checkpoint is that of step %d", trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "without": self.without}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.step, self.without = state["score"], state["step"], state["without"]


class SongDescriberCallback(pl.Callback):
    """Every so many steps the averaged weights are judged by captions; keeps the best, and may end the run."""

    def __init__(self, plan: CaptionPlan, best: BestCheckpoint, folder: Path | None = None) -> None:
        """`folder` is where results go; None: the run's."""
        self.plan, self.best, self.folder = plan, best, folder
        self._references: References | None = None
        self._embedder: Embedder | None = None
        self._last_step = -1
        self._told: set[str] = set()
        self._ready()

    # ------------------------------------------------------------------ when

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if step and step % self.plan.every == 0 and step != self._last_step:
            self._last_step = step
            # A file may be there for one process and not yet for another; they must judge together.
            if all(share["ready"] for share in gather({"ready": self._ready()})):
                self.run(trainer, pl_module)

    def _ready(self) -> bool:
        """Are the references there? Looked for anew each time, so that they may come while training runs."""
        if self._references is None and self.plan.path.is_file():
            self._references = read_references(self.plan.path)
            if self._references.identity is None:  # then a name is all there is to check, and nothing is loaded for it
                self._embedder = matching_embedder(self._references, self.plan.node)
        if self._references is None:
            self._tell_once(
                f"training.song_describer_eval: {self.plan.path} is not there, so captions are not judged; make it "
                f"with python {COMMAND} --output-path {self.plan.path}"
            )
        return self._references is not None

    # ------------------------------------------------------------------ what

    @torch.no_grad()
    def run(self, trainer: pl.Trainer, module: Any) -> Result | None:
        """Judge now; an error is told once, and then the run goes on or stops as `on_error` says."""
        outcome: dict[str, Any] = {}
        try:
            caption_run, rows = self._prepare(module)
            with judged(module):
                for batch in caption_run.batches(rows, trainer.global_rank, trainer.world_size):
                    outcome.update({str(row): torch.from_numpy(found) for row, found in caption_run.vectors(batch)})
                subject = Subject(name=f"step {trainer.global_step}", weights=digest_of(module.diffusion))
        except Exception as error:  # the other processes must hear of it, or they would wait for ever
            outcome = {"error": f"{type(error).__name__}: {error}"}
            if outcome["error"] not in self._told:
                logger.debug("the traceback of the evaluation", exc_info=True)
        finally:
            if self._embedder is not None:
                self._embedder.to("cpu")  # the memory is the training's
        shares = gather(outcome)
        errors = [share["error"] for share in shares if "error" in share]
        if not errors:
            vectors = {int(row): found.numpy() for share in shares for row, found in share.items()}
            try:  # the same sums in every process, so all fail here or none
                result = score_captions(caption_run, rows, vectors, subject)
            except Exception as error:
                errors = [f"{type(error).__name__}: {error}"]
        if errors:
            self._fail(trainer, errors[0])
            return None
        self._report(trainer, module, result)
        return result

    def _prepare(self, module: Any) -> tuple[CaptionRun, list[int]]:
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

    def _report(self, trainer: pl.Trainer, module: Any, result: Result) -> None:
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
        told = ", ".join(f"{name} {value:.5g}" for name, value in known.items())
        logger.info("captions at step %d: %s", trainer.global_step, told)
        if trainer.is_global_zero:
            self._write(self._folder(trainer) / f"step_{trainer.global_step:08d}.json", result)
        value = result.scores.get(f"{self._embedder.tag}_{self.plan.monitor}")
        if value is None:
            self._tell_once(f"training.song_describer_eval: {self.plan.monitor} is not measured here; no best is kept")
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
        if error not in self._told and trainer.is_global_zero:
            self._told.add(error)
            logger.error("%s. Training goes on; the same error is not told again", sentence)
        self._log(trainer, {"failed": 1.0})

    def _log(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        for one in trainer.loggers if trainer.is_global_zero else ():
            named = {f"{self.plan.prefix}/{name}": value for name, value in values.items()}
            one.log_metrics(named, step=trainer.global_step)

    def _folder(self, trainer: pl.Trainer) -> Path:
        return self.folder or Path(trainer.default_root_dir) / "song_describer"

    def _tell_once(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            logger.warning("%s", sentence)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best.state_dict(), "last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best.load_state_dict(state_dict["best"])
        self._last_step = state_dict["last_step"]


@contextmanager
def judged(module: Any) -> Iterator[None]:
    """Inside, the module is what is exported: averaged weights, evaluation mode; and no draw of training changes."""
    modes = {part: part.training for part in module.modules()}
    average = getattr(module, "weight_average", None)
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
    enabled: Annotated[bool, Field(description="judge the model by captions during training")] = True,
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
    clap_model_name: Annotated[str | None, Field(description="where CLAP is; null: as the references tell")] = None,
    embedder: Annotated[
        dict[str, Any] | None,
        Field(description="another embedder than CLAP, as a node; it must have made the references"),
    ] = None,
    clap_device: Annotated[str, Field(description="auto (where the model is), cpu or cuda")] = "auto",
    metric_prefix: Annotated[
        str, Field(min_length=1, description="what the names of the metrics begin with")
    ] = "songscriber",
    monitor: Annotated[Monitor, Field(description="what decides which checkpoint is best")] = "fad",
    keep_best: Annotated[bool, Field(description="keep the best checkpoint in checkpoints/best")] = False,
    patience: Annotated[
        int | None, Field(ge=1, description="stop after so many evaluations without a better one")
    ] = None,
    on_error: Annotated[
        Literal["warn", "stop"], Field(description="when an evaluation fails: tell it once, or end the run")
    ] = "warn",
    *,
    demo: Runtime[Any] = None,
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
