"""Settings of attribution: extraction of features, measuring of models, and scoring."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.models.lora_choice import LoraChoice, lora_choice


@dataclass(frozen=True, kw_only=True)
class ItemSettings(Settings):
    """Settings of the items that are read."""

    dataset_config: str | None = option(None, "config of a dataset of audio or latents", group="data", metavar="JSON")
    generated: str | None = option(
        None, "folder written by generate.py, instead of a dataset", group="data", metavar="DIR"
    )
    max_examples: int | None = option(None, "use the first N items only", group="data", metavar="N", ge=1)
    disable_random_crop: bool = option(False, "use the start of each file instead of random crops", group="data")
    pre_encoded: bool | None = option(
        None, "whether the dataset holds latents (default: as in the model config)", group="data"
    )

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.generated is not None:
            given = {
                "--pre-encoded": self.pre_encoded is True,
                "--no-pre-encoded": self.pre_encoded is False,
                "--disable-random-crop": self.disable_random_crop,
            }
            for flag in (flag for flag, is_given in given.items() if is_given):
                yield f"{flag}: applies to a dataset, not to --generated; leave it out"


@dataclass(frozen=True)
class ExtractSettings(ItemSettings):
    """Settings of the extraction of features."""

    model_config: str = option(help="config of the diffusion model", group="model", metavar="JSON")
    pretrained_ckpt_path: str = option(help="weights of the model", group="model", metavar="FILE")
    feature_path: str = option(help="file to write, with .ids.txt and .meta.json", metavar="FILE")
    proj_dim: int = option(help="length of a feature", metavar="N", ge=1)
    include_paths_file: str | None = option(None, "use only the files in this list", group="data", metavar="FILE")
    exclude_paths_file: str | None = option(None, "exclude the files in this list", group="data", metavar="FILE")
    ids_path: str | None = option(None, "file for the names of the items", group="data", metavar="FILE")
    meta_path: str | None = option(None, "file for the metadata", group="data", metavar="FILE")
    pretransform_ckpt_path: str | None = option(
        None, "weights of the autoencoder inside the model", group="model", metavar="FILE"
    )
    remove_pretransform_weight_norm: Literal["none", "pre_load", "post_load"] = option(
        "none", "fold weight norm of the autoencoder, before or after its weights load", group="model"
    )
    lora: LoraChoice | None = option(
        None,
        "adapter on the model; only its parameters are differentiated",
        group="model",
        metavar="PATH[:STRENGTH]",
        parse=lora_choice,
    )
    param_regex: str | None = option(
        None, "pattern of parameter names (default: all parameters)", group="model", metavar="REGEX"
    )
    f: str = option(
        "loss",
        "loss (TRAK), mean-squared-l2-norm (D-TRAK), mean, l1-norm, l2-norm, linf-norm",
        group="feature",
    )
    crops: int = option(
        1, "random crops of each item of a dataset, whose features are averaged", group="data", metavar="N", ge=1
    )
    crop_seed: int | None = option(
        None,
        "random seed of crops and other choices of a dataset (default: --seed)",
        group="data",
        metavar="N",
    )
    K: int = option(10, "number of timesteps to average", group="feature", metavar="N")
    t_strategy: Literal["uniform", "cumulative"] = option("uniform", "which timesteps", group="feature")
    num_train_steps: int = option(1000, "number of timesteps in total", group="feature", metavar="N")
    seed: int = option(42, "random seed of the projection, and of a dataset without --crop-seed", group="feature")
    e_seed: int = option(0, "random seed of the noise", group="feature")
    model_id: int = option(0, "number of the projection, for ensembles", group="feature")
    cfg_dropout_prob: float = option(
        0.0, "probability of dropping conditions", group="feature", metavar="P", ge=0, le=1
    )
    projection: Literal["sketch", "rademacher", "normal", "fast-jl"] = option(
        "sketch",
        "random projection: sketch takes one operation per parameter, the others --proj-dim; fast-jl needs CUDA",
        group="feature",
    )
    used_dim: int | None = option(
        None, "project to N numbers instead of --proj-dim", group="feature", metavar="N", ge=1
    )
    device: str = option("auto", "cpu, cuda, cuda:N, mps, or the best available", group="machine")
    batch_size: int = option(8, "items between two writes; does not change results", group="machine", metavar="N", ge=1)
    num_workers: int = option(4, "processes that read items", group="machine", metavar="N", ge=0)
    engine: Literal["auto", "hooks", "vmap", "loop"] = option(
        "auto", "algorithm of the gradients; the results are equal, auto chooses by shape", group="machine"
    )
    rows_at_once: int = option(0, "timesteps of an item in one pass (0: all)", group="machine", metavar="N", ge=0)
    checkpointing: bool = option(False, "recompute activations: slower, far less memory", group="machine")
    autocast_pretransform: bool = option(False, "encode in half precision on CUDA", group="machine")
    disable_sdpa: bool = option(False, "use attention without fused kernels", group="machine")
    overwrite: bool = option(False, "make features again that already exist")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.crops > 1 and (self.generated is not None or self.disable_random_crop):
            other = "--generated" if self.generated is not None else "--disable-random-crop"
            yield f"--crops: needs random crops of a dataset, which {other} excludes; leave one of the two out"
        if self.used_dim is not None and self.used_dim > self.proj_dim:
            yield f"--used-dim: is {self.used_dim}, more than --proj-dim {self.proj_dim}"
        if Path(self.feature_path).is_dir():
            yield f"--feature-path: {self.feature_path} is a folder; name a file in it"

    @property
    def dim(self) -> int:
        """Numbers of a feature: nothing is projected that scoring would not use."""
        return self.used_dim or self.proj_dim


@dataclass(frozen=True)
class MeasureSettings(ItemSettings):
    """Settings of measuring the models of subsets."""

    model_config: str = option(help="config of the models", metavar="JSON")
    pretrained_ckpt_path: str | None = option(
        None, "weights of the base model, if the models are adapters", metavar="FILE"
    )
    f: str = option("loss", "measured quantity, as in extract")
    K: int = option(50, "number of timesteps to average", metavar="N")
    num_train_steps: int = option(1000, "number of timesteps in total", metavar="N")
    e_seeds: tuple[int, ...] = option((0, 1, 2), "random seeds of the noise", metavar="N")
    seed: int = option(42, "random seed of a dataset")
    device: str = option("auto", "cpu, cuda, cuda:N, mps, or the best available")


@dataclass(frozen=True, kw_only=True)
class FeatureSets(Settings):
    """The features of training items and queries."""

    train_feature_paths: tuple[str, ...] = option(
        (), "features of the training items; shards of one set", metavar="FILE"
    )
    query_feature_path: str = option("", "features of the queries", metavar="FILE")
    train_meta_paths: tuple[str, ...] = option(
        (), "metadata of --train-feature-paths (default: beside them)", metavar="FILE"
    )
    query_meta_path: str | None = option(None, "metadata of the queries (default: beside the features)", metavar="FILE")
    also: tuple[tuple[str, str], ...] = option(
        (),
        "features by another checkpoint, seed or projection: scores are averaged (dot: summed, which is TracIn)",
        metavar=("TRAIN", "QUERY"),
    )
    lambda_scale: Literal["auto", "relative", "absolute"] = option(
        "auto",
        "relative: in units of the mean squared norm of a training feature; auto: that, but for files of the original "
        "scripts absolute",
        group="method",
    )
    used_dim: int | None = option(None, "use N numbers of a feature; a sketch is folded", group="method", metavar="N")


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(FeatureSets):
    """Settings of scoring."""

    train_feature_paths: tuple[str, ...] = option(
        help="features of the training items; shards of one set", metavar="FILE"
    )
    query_feature_path: str = option(help="features of the queries", metavar="FILE")
    method: Literal["ridge", "dot", "cosine", "similarity", "random"] = option(
        "ridge",
        "ridge is TRAK or, with f mean-squared-l2-norm, D-TRAK; the others are baselines",
        group="method",
    )
    lambda_reg: float | None = option(
        None,
        "regulariser of ridge (default: the value that leaves a sixth of the directions of the features in effect)",
        group="method",
        metavar="X",
        gt=0,
    )
    negate: bool = option(False, "negate the scores", group="method")
    embedder: str = option("logmel", "embedder of similarity: clap, or logmel without weights", group="method")
    embedding_cache: str = option("outputs/embeddings", "cache folder of similarity", group="method", metavar="DIR")
    seed: int = option(0, "random seed of --method random", group="method")
    device: str = option("cpu", "device of the float64 computation, cpu or cuda", group="method")
    query_batch_size: int = option(256, "queries to score at once", group="method", metavar="N", ge=1)

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.also and self.method in ("random", "similarity"):
            yield f"--also: --method {self.method} uses no features; leave --also out"
