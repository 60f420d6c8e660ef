"""Settings of the index of recordings and of the search in it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.dedup.settings import KeepRule, PathFormat

CopyAction = Literal["report", "withhold"]
MatchKind = Literal["exact", "re-encoded", "altered", "excerpt", "passage"]
EXTENSIONS = "aif,aiff,flac,m4a,mp3,ogg,opus,wav"


@dataclass(frozen=True, kw_only=True)
class SearchLimits(Settings):
    """Limits from which a shared passage is reported."""

    least_seconds: float = option(4.0, "shortest passage that is reported", group="search", metavar="S", gt=0)
    least_agreement: float = option(
        0.3, "share of spectral peaks of a passage that both recordings have", group="search", metavar="X", gt=0, le=1
    )


@dataclass(frozen=True, kw_only=True)
class CopyCheck(Settings):
    """Settings of the check of generated audio against a training set."""

    check_copies: Path | None = option(
        None, "index of the training set (`dedup index`) to look every output up in", group="files", metavar="DIR"
    )
    copies: CopyAction = option(
        "report", "name passages that are copies, or silence them as well; needs --check-copies", group="files"
    )

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.copies != "report" and self.check_copies is None:
            yield f"--copies {self.copies}: needs --check-copies, the index of recordings to look for"


@dataclass(frozen=True, kw_only=True)
class IndexSettings(Settings):
    """Settings of `dedup index`."""

    index: Path = option(help="folder of the index; recordings are added to an existing one", metavar="DIR")
    dataset_config: str | None = option(
        None, "dataset config (audio_dir); its path lists are not applied", group="data", metavar="JSON"
    )
    dataset_dir: tuple[str, ...] = option((), "folders of audio, instead of a config", group="data", metavar="DIR")
    extensions: str = option(EXTENSIONS, "file extensions, separated by commas", group="data", metavar="LIST")
    limit: int | None = option(None, "use the first N files only", group="data", metavar="N", ge=1)
    sampling: int = option(
        8, "hold one in N landmarks; more take less disk, and short or altered passages are missed", metavar="N", ge=1
    )
    num_workers: int | None = option(None, "files to decode in parallel (default: one per CPU)", metavar="N", ge=1)

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if bool(self.dataset_config) == bool(self.dataset_dir):
            yield "give exactly one of --dataset-config and --dataset-dir"


@dataclass(frozen=True, kw_only=True)
class FindSettings(SearchLimits):
    """Settings of `dedup find`."""

    index: Path = option(help="folder of the index, as written by `dedup index`", metavar="DIR")
    audio: tuple[Path, ...] = option(
        (), "files or folders to search for (default: every recording of the index, in the others)", metavar="PATH"
    )
    extensions: str = option(EXTENSIONS, "file extensions in folders, separated by commas", metavar="LIST")
    output_dir: Path = option(Path("outputs/passages"), "output folder", group="output", metavar="DIR")
    exclude: tuple[MatchKind, ...] = option(
        ("exact", "re-encoded", "altered"), "kinds of match whose copies are listed for exclusion", group="output"
    )
    keep: tuple[KeepRule, ...] = option(
        ("longest",), "file of a group to keep; further rules break ties, then the order of paths", group="output"
    )
    exclude_path_format: PathFormat = option(
        "qualified", "entries as dataset:path, as path relative to the folder, or as absolute path", group="output"
    )
    audit_matches: int = option(200, "number of matches on the audit page", group="output", metavar="N", ge=1)
    num_workers: int | None = option(None, "files to decode in parallel (default: one per CPU)", metavar="N", ge=1)
