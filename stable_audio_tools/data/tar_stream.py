"""Samples of tar shards, read front to back from a file or from a connection that cannot seek.

The packaged readers end without an error where an archive is cut off or damaged: `tarfile` takes a broken header for
the end, and `webdataset` passes the error to a handler that knows neither shard nor sample. This one names both.
"""

import gzip
import logging
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, cast

from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.data.faults import Fault
from stable_audio_tools.data.index import Header, index_folder

logger = logging.getLogger(__name__)

_BLOCK = tarfile.BLOCKSIZE
_AT_ONCE = 1 << 24  # bytes; bounds the memory that a header can request
_LONGEST_NAME = 1 << 20
_REGULAR = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})


class TarSample(NamedTuple):
    """Neighbouring files of a shard that differ only after the first dot of their names."""

    key: str  # path inside the shard, up to that dot
    files: dict[str, bytes]  # what follows the dot, in lower case -> content
    end: int = 0  # byte at which the next sample begins


class BrokenShard(AudioError):
    """A shard that ends early or is damaged; the samples before are good."""


def read_samples(stream: BinaryIO, wanted: Collection[str], name: str, offset: int = 0) -> Iterator[TarSample]:
    """Yield the samples of a stream whose next byte is number `offset`, with the files of the wanted extensions.

    If the shard breaks off, the sample that may be incomplete is left out and BrokenShard is raised.
    """
    sample: TarSample | None = None
    for member in _members(_Content(stream, offset), name):
        key, suffix = split_name(member.name)
        if not suffix:
            continue
        if sample is None or key != sample.key:
            if sample is not None and sample.files:
                yield sample._replace(end=member.begin)
            sample = TarSample(key, {})
        if suffix.rpartition(".")[2] in wanted:
            sample.files[suffix] = member.content.read(member.size)
        sample = sample._replace(end=member.end)
    if sample is not None and sample.files:
        yield sample


def count_samples(stream: BinaryIO, wanted: Collection[str], name: str) -> int:
    """Return how many samples `read_samples` yields, from the headers alone if the stream can seek."""
    count, current, used = 0, "", False
    try:
        for member in _members(_Content(stream, 0), name):
            key, suffix = split_name(member.name)
            if suffix and key != current:
                count, current, used = count + used, key, False
            used = used or suffix.rpartition(".")[2] in wanted
    except BrokenShard:
        return count  # reading the shard raises it again, after the samples before it
    return count + used


def split_name(name: str) -> tuple[str, str]:
    """Split `a/b.c/0001.left.flac` into `a/b.c/0001` and `left.flac`; hidden files have no suffix."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem else (name, "")


def is_compressed(name: str) -> bool:
    """Return whether a shard of this name can only be read from its first byte."""
    return name.lower().endswith((".gz", ".tgz"))


def decompressed(stream: BinaryIO, offset: int) -> BinaryIO:
    """Return the tar inside a gzipped stream, starting at a byte."""
    inner = cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    try:
        inner.seek(offset)
    except (EOFError, OSError, zlib.error) as error:
        raise BrokenShard(f"is not a whole gzip file ({error})") from None
    return inner


# ------------------------------------------------------------------ the format


class _Content:
    """A stream that is read to the exact byte."""

    def __init__(self, stream: BinaryIO, offset: int) -> None:
        self.stream, self.offset = stream, offset
        self.can_seek = stream.seekable() and not isinstance(stream, gzip.GzipFile)

    def read(self, size: int) -> bytes:
        content = self.read_up_to(size)
        if len(content) < size:
            raise BrokenShard(f"ends at byte {self.offset:,}, in the middle of a file")
        return content

    def read_up_to(self, size: int) -> bytes:
        pieces = []
        while size:
            try:
                piece = self.stream.read(min(size, _AT_ONCE))
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise BrokenShard(f"is damaged at byte {self.offset:,} ({error})") from None
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
            self.offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def skip_to(self, offset: int) -> None:
        if self.can_seek and offset - self.offset > _BLOCK:
            self.stream.seek(offset - 1)  # the last byte is read, because files can be sought beyond their end
            self.offset = offset - 1
        while self.offset < offset:
            self.read(min(offset - self.offset, _AT_ONCE))


class _Member(NamedTuple):
    name: str
    size: int
    begin: int  # of its headers
    end: int  # where the headers of the next one begin
    content: _Content  # at its first byte; as much is read as the caller wants


def _members(content: _Content, shard: str) -> Iterator[_Member]:
    """Yield the regular files of an archive."""
    begin, long_name, extended = content.offset, "", dict[str, str]()
    while True:
        header = _header(content, shard)
        if header is None:
            return
        size = int(extended.get("size", header.size))
        if size < 0:
            raise BrokenShard(f"is damaged at byte {begin:,} (a file of {size} bytes)")
        end = content.offset + -(-size // _BLOCK) * _BLOCK
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            text = content.read(min(size, _LONGEST_NAME))
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                extended = _extended(text)
            content.skip_to(end)
            continue
        if header.type in _REGULAR:
            yield _Member(extended.get("path", long_name or header.name), size, begin, end, content)
        content.skip_to(end)
        begin, long_name, extended = end, "", {}


def _header(content: _Content, shard: str) -> tarfile.TarInfo | None:
    """Return the next header; None at the end of the archive."""
    offset = content.offset
    block = content.read_up_to(_BLOCK)
    if not block and offset:
        logger.warning("%s: its end mark is missing; if its writer was stopped, samples are missing too", shard)
        return None
    if block and not block.strip(b"\0"):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise BrokenShard(f"is not a tar archive, or is damaged, at byte {offset:,} ({error})") from None


def _extended(text: bytes) -> dict[str, str]:
    """Return the relevant records "length key=value" of a pax header."""
    found: dict[str, str] = {}
    while text[:1].isdigit():
        length, _, record = text.partition(b" ")
        key, _, value = record[: int(length) - len(length) - 2].partition(b"=")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        text = text[int(length) :]
    return found


SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
BUFFER = 1 << 20  # bytes


class Shelf(Protocol):
    """The shards of one entry of `datasets`."""

    root: str
    names: list[str]  # below the root
    counts: list[int] | None  # samples in each, where that is known
    faults: list[Fault]

    def path(self, number: int) -> str:
        """Return the path of a shard, for messages and path lists."""

    def open(self, number: int, offset: int) -> BinaryIO:
        """Open a shard at a byte offset."""


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
                logger.warning("%s cannot be read: %s", path, reason)
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
