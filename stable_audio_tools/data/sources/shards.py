"""Where tar shards lie: folders here, and what an S3 bucket has to offer the same way."""

import logging
from pathlib import Path
from typing import BinaryIO, Protocol

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.faults import Fault
from stable_audio_tools.data.index import Header, index_folder
from stable_audio_tools.data.tar_stream import count_samples, decompressed, is_compressed

logger = logging.getLogger(__name__)

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
BUFFER = 1 << 20  # bytes


class Shelf(Protocol):
    """The shards of one entry of `datasets`."""

    root: str
    names: list[str]  # below the root
    counts: list[int] | None  # samples in each, where that is known
    faults: list[Fault]

    def path(self, number: int) -> str:
        """Of a shard, for messages and path lists."""

    def open(self, number: int, offset: int) -> BinaryIO:
        """The bytes of a shard from one of them on."""


class LocalShelf:
    """Tar files below a folder."""

    def __init__(self, root: str, wanted: frozenset[str], count: bool) -> None:
        if not Path(root).is_dir():
            raise ConfigError(f"path: {root} {'is a file, not a folder' if Path(root).exists() else 'does not exist'}")
        self.root = root

        def describe(path: Path) -> Header:
            return Header(_count(path, wanted) if count else 0, 0, 0)

        kind = f"samples of {'latents' if 'npy' in wanted else 'audio'}" if count else "shards"
        index = index_folder(root, (".tar", ".gz", ".tgz"), describe, kind)
        for path, reason, is_file in index.unreachable:
            if not is_file:
                logger.warning("%s is not looked into: %s", path, reason)
        rows = [row for row, name in enumerate(index.names) if name.lower().endswith(SHARD_SUFFIXES)]
        self.faults = [Fault(path, "unreadable", reason) for path, reason, is_file in index.unreachable if is_file]
        self.faults += [
            Fault(index.path(row), "unreadable", index.reasons[row]) for row in rows if row in index.reasons
        ]
        rows = [row for row in rows if row not in index.reasons]
        self.names = [index.names[row] for row in rows]
        self.counts = [int(index.frames[row]) for row in rows] if count else None

    def path(self, number: int) -> str:
        return str(Path(self.root, self.names[number]))

    def open(self, number: int, offset: int) -> BinaryIO:
        try:
            stream = Path(self.path(number)).open("rb", buffering=BUFFER)  # noqa: SIM115 (the caller closes it)
        except OSError as error:
            raise AudioError(f"cannot be opened ({error.strerror})") from None
        stream.seek(offset)
        return stream


def _count(path: Path, wanted: frozenset[str]) -> int:
    try:
        with path.open("rb", buffering=BUFFER if is_compressed(path.name) else 0) as stream:
            content = decompressed(stream, 0) if is_compressed(path.name) else stream
            return count_samples(content, wanted, str(path))
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror or error})") from None
