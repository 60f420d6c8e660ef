"""Settings of deduplication."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stable_audio_tools.core.settings import Settings, option

Linkage = Literal["single", "complete"]
PathFormat = Literal["qualified", "relative", "absolute"]
KeepRule = Literal["longest", "best-rate", "has-caption", "first"]


@dataclass(frozen=True)
class CodecSettings(Settings):
    """Settings of the codec."""

    codec: Literal["dac", "autoencoder", "spectral"] = option(
        "dac",
        "Descript Audio Codec, an autoencoder of this toolkit, or spectral codes, which need no weights",
        group="codec",
    )
    model_type: Literal["44khz", "24khz", "16khz"] = option("44khz", "variant of the DAC", group="codec")
    model_path: str | None = option(None, "weights of the DAC; downloaded if omitted", group="codec", metavar="FILE")
    model_config: str | None = option(
        None, "config of the autoencoder, or of a model that contains one", group="codec", metavar="JSON"
    )
    ckpt_path: str | None = option(None, "weights of the autoencoder", group="codec", metavar="FILE")
    pretrained_name: str | None = option(
        None, "model on huggingface.co, or a folder, instead of config and weights", group="codec", metavar="NAME"
    )
    device: str = option("auto", "device of the codec: cpu, cuda, mps, or auto for the best available", group="codec")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        files = bool(self.model_config), bool(self.ckpt_path)
        unclear = bool(self.pretrained_name) == any(files) or (any(files) and not all(files))
        if self.codec == "autoencoder" and unclear:
            yield "--codec autoencoder: give --model-config and --ckpt-path, or --pretrained-name"


@dataclass(frozen=True)
class DedupSettings(CodecSettings):
    """Settings of deduplication: files, comparison and outputs."""

    dataset_config: str | None = option(
        None, "dataset config (audio_dir); its path lists are not applied", group="data", metavar="JSON"
    )
    dataset_dir: tuple[str, ...] = option(
        (), "folders of audio, instead of a dataset config", group="data", metavar="DIR"
    )
    against: str | None = option(
        None, "another dataset that must not share a recording with this one", group="data", metavar="JSON|DIR"
    )
    extensions: str = option(
        "aif,aiff,flac,m4a,mp3,ogg,opus,wav", "file extensions, separated by commas", group="data", metavar="LIST"
    )
    limit: int | None = option(None, "use the first N files only", group="data", metavar="N", ge=1)
    max_audio_seconds: float = option(
        120.0, "seconds to analyse from the start; 0 for the whole file", group="data", metavar="S", ge=0
    )
    codebook_size: int | None = option(
        None, "expected codebook size of the codec; another size is an error", group="codec", metavar="N"
    )
    similarity_threshold: float | None = option(
        None,
        "cosine from which a pair is a candidate; default 0.9 for spectral, 0.95 for other codecs",
        group="similarity",
        metavar="COS",
        gt=0,
        le=1,
    )
    histogram_mode: Literal["per_codebook", "global"] = option(
        "per_codebook", "one histogram per codebook, or one for all codebooks", group="similarity"
    )
    similarity_device: str = option(
        "auto", "device for comparing pairs; the result does not depend on it", group="similarity"
    )
    similarity_chunk_size: int = option(2048, "files per block", group="similarity", metavar="N", ge=1)
    second_look: bool = option(
        True,
        "require that the frames of a pair agree at some offset, which separates copies from tracks of one style",
        group="similarity",
    )
    aligned_threshold: float = option(
        0.6, "correlation of frames from which a pair is a copy", group="similarity", metavar="R", gt=0, le=1
    )
    linkage: Linkage = option(
        "single", "group files by chains of copies, or only if every two files are copies", group="similarity"
    )
    keep: tuple[KeepRule, ...] = option(
        ("longest",),
        "file of a group to keep; further rules break ties, then the order of paths",
        group="similarity",
    )
    sweep: tuple[float, ...] = option(
        (), "also report the result of these thresholds", group="similarity", metavar="COS", gt=0, le=1
    )
    output_dir: str = option("outputs/dac_dedup", "output folder", group="output", metavar="DIR")
    exclude_output: str | None = option(
        None, "exclusion list (default: exclude_paths.txt in the output folder)", group="output", metavar="FILE"
    )
    pairs_output: str | None = option(
        None, "list of pairs (default: similar_pairs.jsonl in the output folder)", group="output", metavar="FILE"
    )
    failed_output: str | None = option(
        None, "list of failures (default: failed_files.json in the output folder)", group="output", metavar="FILE"
    )
    summary_output: str | None = option(
        None, "summary (default: summary.json in the output folder)", group="output", metavar="FILE"
    )
    features_dir: str | None = option(
        None, "features for later runs (default: features in the output folder)", group="output", metavar="DIR"
    )
    exclude_path_format: PathFormat = option(
        "qualified",
        "entries as dataset:path, as path relative to the folder, or as absolute path",
        group="output",
    )
    exclude_failed: bool = option(False, "also exclude files that could not be analysed", group="output")
    audit_groups: int = option(200, "number of groups on the audit page", group="output", metavar="N", ge=1)
    num_workers: int | None = option(None, "files to decode in parallel (default: one per CPU)", metavar="N", ge=1)

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if bool(self.dataset_config) == bool(self.dataset_dir):
            yield "give exactly one of --dataset-config and --dataset-dir"

    def threshold(self, recommended: float) -> float:
        """Return the cosine from which a pair is a candidate; `recommended` is the default of the codec."""
        return recommended if self.similarity_threshold is None else self.similarity_threshold

    def place(self, path: str | None, name: str) -> Path:
        """Return `path`, or `name` in the output folder if it is None."""
        return Path(path) if path else Path(self.output_dir) / name

    def outputs(self) -> dict[str, Path]:
        """Return the path of every output file."""
        return {
            "exclude_output": self.place(self.exclude_output, "exclude_paths.txt"),
            "pairs_output": self.place(self.pairs_output, "similar_pairs.jsonl"),
            "failed_output": self.place(self.failed_output, "failed_files.json"),
            "summary_output": self.place(self.summary_output, "summary.json"),
            "clusters_output": self.place(None, "clusters.jsonl"),
            "audit_output": self.place(None, "audit.html"),
            **({"leaks_output": self.place(None, "leaks.jsonl")} if self.against else {}),
        }
