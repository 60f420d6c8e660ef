"""Settings of attribution: what features are made of, what is measured, and how scores are computed."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.models.lora_choice import LoraChoice, lora_choice


@dataclass(frozen=True, kw_only=True)
class ItemSettings(Settings):
    """Which items are read, and how."""

    dataset_config: str | None = option(None, "dataset of audio or latents", group="data", metavar="JSON")
    generated: str | None = option(
        None, "folder that generate.py wrote, with its manifest, instead", group="data", metavar="DIR"
    )
    max_examples: int | None = option(None, "the first N items only", group="data", metavar="N", ge=1)
    disable_random_crop: bool = option(False, "crop at the start of each file", group="data")
    pre_encoded: bool | None = option(
        None, "whether the dataset holds latents; else as the model config says", group="data"
    )

    def problems(self) -> Iterable[str]:
        if self.generated is not None:
            given = {
                "--pre-encoded": self.pre_encoded is True,
                "--no-pre-encoded": self.pre_encoded is False,
                "--disable-random-crop": self.disable_random_crop,
            }
            for flag in (flag for flag, is_given in given.items() if is_given):
                yield f"{flag}: is of a dataset, and --generated has none; leave it out"


@dataclass(frozen=True)
class ExtractSettings(ItemSettings):
    """How the features of items are made."""

    model_config: str = option(help="config of the diffusion model", group="model", metavar="JSON")
    pretrained_ckpt_path: str = option(help="its weights", group="model", metavar="FILE")
    feature_path: str = option(help="file to write, with .ids.txt and .meta.json", metavar="FILE")
    proj_dim: int = option(help="numbers of a feature", metavar="N", ge=1)
    include_paths_file: str | None = option(
        None, "use only the files that this list names", group="data", metavar="FILE"
    )
    exclude_paths_file: str | None = option(
        None, "leave out the files that this list names", group="data", metavar="FILE"
    )
    ids_path: str | None = option(None, "where the names of the items go", group="data", metavar="FILE")
    meta_path: str | None = option(None, "where the meta data goes", group="data", metavar="FILE")
    pretransform_ckpt_path: str | None = option(
        None, "weights of the autoencoder inside it", group="model", metavar="FILE"
    )
    remove_pretransform_weight_norm: Literal["none", "pre_load", "post_load"] = option(
        "none", "fold weight norm of the autoencoder, before or after its weights load", group="model"
    )
    lora: LoraChoice | None = option(
        None,
        "adapter that is on the model; its parameters alone count",
        group="model",
        metavar="PATH[:STRENGTH]",
        parse=lora_choice,
    )
    param_regex: str | None = option(
        None, "parameters whose names this is found in; else all", group="model", metavar="REGEX"
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
    K: int = option(10, "timesteps that are averaged", group="feature", metavar="N")
    t_strategy: Literal["uniform", "cumulative"] = option("uniform", "which timesteps", group="feature")
    num_train_steps: int = option(1000, "timesteps that there are", group="feature", metavar="N")
    seed: int = option(42, "seed of the projection, and of what a dataset draws", group="feature")
    e_seed: int = option(0, "seed of the noise", group="feature")
    model_id: int = option(0, "another one gives another projection, for ensembles", group="feature")
    cfg_dropout_prob: float = option(0.0, "how often conditions are dropped", group="feature", metavar="P", ge=0, le=1)
    projection: Literal["sketch", "rademacher", "normal", "fast-jl"] = option(
        "sketch",
        "sketch: one operation for each parameter; the others N of them, fast-jl by a CUDA package",
        group="feature",
    )
    used_dim: int | None = option(
        None, "project to N numbers, where --proj-dim asks for more", group="feature", metavar="N", ge=1
    )
    device: str = option("auto", "cpu, cuda, cuda:N, mps, or the best available", group="machine")
    batch_size: int = option(8, "items between two writes; changes no bit", group="machine", metavar="N", ge=1)
    num_workers: int = option(4, "processes that read items", group="machine", metavar="N", ge=0)
    engine: Literal["auto", "hooks", "vmap", "loop"] = option(
        "auto", "how gradients are made: equal in result, chosen by shape", group="machine"
    )
    rows_at_once: int = option(0, "timesteps of an item in one pass; 0: all", group="machine", metavar="N", ge=0)
    checkpointing: bool = option(False, "recompute activations: slower, far less memory", group="machine")
    autocast_pretransform: bool = option(False, "encode in half precision on CUDA", group="machine")
    disable_sdpa: bool = option(False, "attention without fused kernels", group="machine")
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
    """Which queries the models of subsets are asked, and what is measured."""

    model_config: str = option(help="config of the models", metavar="JSON")
    pretrained_ckpt_path: str | None = option(
        None, "weights of the base model, if the models are adapters", metavar="FILE"
    )
    f: str = option("loss", "what is measured")
    K: int = option(50, "timesteps that are averaged", metavar="N")
    num_train_steps: int = option(1000, "timesteps that there are", metavar="N")
    e_seeds: tuple[int, ...] = option((0, 1, 2), "seeds of the noise", metavar="N")
    seed: int = option(42, "seed of what a dataset draws")
    device: str = option("auto", "cpu, cuda, cuda:N, mps, or the best available")


@dataclass(frozen=True, kw_only=True)
class FeatureSets(Settings):
    """The features of training items and queries."""

    train_feature_paths: tuple[str, ...] = option(
        (), "features of the training items; shards of one set", metavar="FILE"
    )
    query_feature_path: str = option("", "features of the queries", metavar="FILE")
    train_meta_paths: tuple[str, ...] = option((), "their meta data; else beside them", metavar="FILE")
    query_meta_path: str | None = option(None, "meta data of the queries; else beside them", metavar="FILE")
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
    used_dim: int | None = option(
        None, "numbers of a feature that are used; a sketch is folded", group="method", metavar="N"
    )


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(FeatureSets):
    """How the matrix of scores is computed."""

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
    negate: bool = option(False, "turn the sign", group="method")
    embedder: str = option("logmel", "of similarity: clap, or logmel, which needs no weights", group="method")
    embedding_cache: str = option(
        "outputs/embeddings", "folder where vectors of similarity are cached", group="method", metavar="DIR"
    )
    seed: int = option(0, "seed of random", group="method")
    device: str = option("cpu", "cpu or cuda: where float64 is computed", group="method")
    query_batch_size: int = option(256, "queries that are scored at once", group="method", metavar="N", ge=1)

    def problems(self) -> Iterable[str]:
        if self.also and self.method in ("random", "similarity"):
            yield f"--also: --method {self.method} uses no features, so others add nothing; leave it out"
