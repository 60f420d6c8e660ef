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
    """Which codec makes the codes."""

    codec: Literal["dac", "autoencoder", "spectral"] = option(
        "dac",
        "codes of the Descript Audio Codec, of an autoencoder of this toolkit, or without weights",
        group="codec",
    )
    model_type: Literal["44khz", "24khz", "16khz"] = option("44khz", "which DAC", group="codec")
    model_path: str | None = option(None, "weights of the DAC; fetched if left out", group="codec", metavar="FILE")
    model_config: str | None = option(
        None, "config of the autoencoder, or of a model that holds one", group="codec", metavar="JSON"
    )
    ckpt_path: str | None = option(None, "its weights", group="codec", metavar="FILE")
    pretrained_name: str | None = option(
        None, "a model on huggingface.co, or a folder, instead", group="codec", metavar="NAME"
    )
    device: str = option("auto", "where the codec runs: cpu, cuda, mps, or the best available", group="codec")

    def problems(self) -> Iterable[str]:
        files = bool(self.model_config), bool(self.ckpt_path)
        unclear = bool(self.pretrained_name) == any(files) or (any(files) and not all(files))
        if self.codec == "autoencoder" and unclear:
            yield "--codec autoencoder: give --model-config and --ckpt-path, or --pretrained-name"


@dataclass(frozen=True)
class DedupSettings(CodecSettings):
    """Which files are compared, by what, and what is written."""

    dataset_config: str | None = option(
        None, "dataset config (audio_dir); its path lists are not applied", group="data", metavar="JSON"
    )
    dataset_dir: tuple[str, ...] = option((), "folders of audio, instead", group="data", metavar="DIR")
    against: str | None = option(
        None, "another split that must share no recording with this one", group="data", metavar="JSON|DIR"
    )
    extensions: str = option(
        "aif,aiff,flac,m4a,mp3,ogg,opus,wav", "kinds of files, by commas", group="data", metavar="LIST"
    )
    limit: int | None = option(None, "look at the first N files only", group="data", metavar="N", ge=1)
    max_audio_seconds: float = option(
        120.0, "listen to the start; 0: to the whole file", group="data", metavar="S", ge=0
    )
    codebook_size: int | None = option(None, "refuse a codec with another number of codes", group="codec", metavar="N")
    similarity_threshold: float | None = option(
        None,
        "cosine from which a pair is a candidate; 0.9 for spectral and 0.95 for other codecs if left out",
        group="likeness",
        metavar="COS",
        gt=0,
        le=1,
    )
    histogram_mode: Literal["per_codebook", "global"] = option(
        "per_codebook", "a histogram for each codebook, or one for all", group="likeness"
    )
    similarity_device: str = option("auto", "where pairs are compared; the result is the same", group="likeness")
    similarity_chunk_size: int = option(2048, "files in a block", group="likeness", metavar="N", ge=1)
    second_look: bool = option(
        True,
        "keep candidates only whose frames agree at some offset, so that pieces of one style stay",
        group="likeness",
    )
    aligned_threshold: float = option(
        0.6, "correlation that the second look asks for", group="likeness", metavar="R", gt=0, le=1
    )
    linkage: Linkage = option(
        "single", "groups by chains of copies, or such that every two are copies", group="likeness"
    )
    keep: tuple[KeepRule, ...] = option(
        ("longest",),
        "which file of a group stays; further rules decide ties, then the order of paths",
        group="likeness",
    )
    sweep: tuple[float, ...] = option(
        (), "also report what these thresholds would do", group="likeness", metavar="COS", gt=0, le=1
    )
    output_dir: str = option("outputs/dac_dedup", "folder of everything written", group="output", metavar="DIR")
    exclude_output: str | None = option(
        None, "instead of exclude_paths.txt in that folder", group="output", metavar="FILE"
    )
    pairs_output: str | None = option(
        None, "instead of similar_pairs.jsonl in that folder", group="output", metavar="FILE"
    )
    failed_output: str | None = option(
        None, "instead of failed_files.json in that folder", group="output", metavar="FILE"
    )
    summary_output: str | None = option(None, "instead of summary.json in that folder", group="output", metavar="FILE")
    features_dir: str | None = option(
        None, "what was heard, for later runs; else features in that folder", group="output", metavar="DIR"
    )
    exclude_path_format: PathFormat = option(
        "qualified",
        "entries as dataset:path, as path below the folder, or as whole path",
        group="output",
    )
    exclude_failed: bool = option(False, "leave files out that could not be heard, too", group="output")
    audit_groups: int = option(200, "groups on the page to listen to", group="output", metavar="N", ge=1)
    num_workers: int | None = option(None, "files to decode at once; one for each CPU if left out", metavar="N", ge=1)

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if bool(self.dataset_config) == bool(self.dataset_dir):
            yield "give --dataset-config or --dataset-dir, one of them"

    def threshold(self, recommended: float) -> float:
        """The cosine from which a pair is a candidate; `recommended` is that of the codec."""
        return recommended if self.similarity_threshold is None else self.similarity_threshold

    def place(self, given: str | None, name: str) -> Path:
        """A file or folder of the output, where no flag puts it elsewhere."""
        return Path(given) if given else Path(self.output_dir) / name

    def outputs(self) -> dict[str, Path]:
        """Where everything is written."""
        return {
            "exclude_output": self.place(self.exclude_output, "exclude_paths.txt"),
            "pairs_output": self.place(self.pairs_output, "similar_pairs.jsonl"),
            "failed_output": self.place(self.failed_output, "failed_files.json"),
            "summary_output": self.place(self.summary_output, "summary.json"),
            "clusters_output": self.place(None, "clusters.jsonl"),
            "audit_output": self.place(None, "audit.html"),
            **({"leaks_output": self.place(None, "leaks.jsonl")} if self.against else {}),
        }
