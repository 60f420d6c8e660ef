"""The flags of deduplication."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stable_audio_tools.dedup.alignment import ALIGNED_THRESHOLD
from stable_audio_tools.dedup.codecs import Codec, CodecSettings
from stable_audio_tools.dedup.copies import Linkage
from stable_audio_tools.dedup.similarity import BLOCK
from stable_audio_tools.dedup.tracks import EXTENSIONS

PathFormat = Literal["qualified", "relative", "absolute"]


@dataclass(frozen=True)
class DedupSettings:
    """The flags of the command."""

    dataset_config: str | None = None
    dataset_dir: Sequence[str] = ()
    against: str | None = None
    output_dir: str = "outputs/dac_dedup"
    exclude_output: str | None = None
    pairs_output: str | None = None
    failed_output: str | None = None
    summary_output: str | None = None
    features_dir: str | None = None
    extensions: str = EXTENSIONS
    limit: int | None = None
    codec: CodecSettings = field(default_factory=CodecSettings)
    codebook_size: int | None = None
    max_audio_seconds: float = 120.0
    histogram_mode: str = "per_codebook"
    similarity_device: str = "auto"
    similarity_threshold: float | None = None
    similarity_chunk_size: int = BLOCK
    second_look: bool = True
    aligned_threshold: float = ALIGNED_THRESHOLD
    linkage: Linkage = "single"
    keep: Sequence[str] = ("longest",)
    sweep: Sequence[float] = ()
    exclude_path_format: PathFormat = "qualified"
    exclude_failed: bool = False
    audit_groups: int = 200
    num_workers: int | None = None

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

    def threshold(self, codec: Codec) -> float:
        """The cosine from which a pair is a candidate."""
        return codec.threshold if self.similarity_threshold is None else self.similarity_threshold
