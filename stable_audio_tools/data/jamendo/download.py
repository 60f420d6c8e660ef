"""Download of the audio of MTG-Jamendo from a mirror: tars are fetched in parallel, verified, unpacked and deleted.

A track gets its name only after its SHA-256 is verified, so existing files need no second check: a run after an
interruption, or with a larger target, fetches only what is missing.
"""

import logging
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.core.files import atomic_path
from stable_audio_tools.data.jamendo.tables import META_TABLE, RAW_TABLE, read_raw_table
from stable_audio_tools.data.jamendo.transfer import Transfer, TransferError, copy_or_fetch, partial
from stable_audio_tools.data.settings import MIRRORS, DownloadSettings

logger = logging.getLogger(__name__)

_TAR_LIST = "download/raw_30s_audio_sha256_tars.txt"
_TRACK_LIST = "download/raw_30s_audio_sha256_tracks.txt"
_BLOCK = 1 << 20
_SPARE = 1 << 28  # bytes left free


@dataclass(frozen=True)
class TarJob:
    """One tar, and the number of its tracks to unpack."""

    name: str
    digest: str
    tracks: Mapping[str, str]  # name -> SHA-256, those that are wanted
    held: int  # tracks in the tar, wanted or not
    count: int

    def present(self, audio_dir: Path) -> int:
        """Return how many of the wanted tracks exist."""
        return sum((audio_dir / name).exists() for name in self.tracks)


class Downloaded(NamedTuple):
    """The result of a download."""

    fetched: int  # tracks
    existing: int  # tracks that were there
    tars: int


def download(settings: DownloadSettings, report: Callable[[int, int], None] = lambda done, total: None) -> Downloaded:
    """Fetch tracks until `target` exist; `report(bytes so far, bytes in all)` is called as they arrive."""
    audio_dir, transfer = Path(settings.audio_dir), Transfer(settings.retries, settings.timeout)
    jobs = plan(settings, transfer)
    if settings.with_metadata:
        for name in (RAW_TABLE, META_TABLE):
            if not (settings.root / name).exists():
                copy_or_fetch(settings.lists, name, settings.root / name, transfer)
    existing = sum(job.present(audio_dir) for job in jobs)
    open_jobs = [job for job in jobs if job.present(audio_dir) < job.count]
    base = MIRRORS.get(settings.mirror, settings.mirror).rstrip("/")
    urls = {job.name: f"{base}/raw_30s/audio/{job.name}" for job in open_jobs}
    sizes = {job.name: transfer.size(urls[job.name]) for job in open_jobs}
    _require_space(settings, open_jobs, sizes)
    progress = _Sum(sum(size or 0 for size in sizes.values()), report)
    _fetch_all(open_jobs, urls, settings, replace(transfer, report=progress.add))
    present = sum(job.present(audio_dir) for job in jobs)
    return Downloaded(present - existing, existing, len(open_jobs))


def _fetch_all(jobs: Sequence[TarJob], urls: Mapping[str, str], settings: DownloadSettings, transfer: Transfer) -> None:
    """Fetch all tars, several at once; a failure does not stop the others."""
    with ThreadPoolExecutor(settings.workers) as pool:
        running = [pool.submit(_fetch_tar, job, urls[job.name], settings, transfer) for job in jobs]
        try:
            failures = [error for future in running if (error := future.exception()) is not None]
        except KeyboardInterrupt:
            transfer.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    for error in failures:
        if not isinstance(error, UserError):
            raise error
    if failures:
        raise UserError("\n".join(map(str, failures)))


# ------------------------------------------------------------------ what to fetch


def plan(settings: DownloadSettings, transfer: Transfer) -> list[TarJob]:
    """Return the tars, in order, whose tracks reach the target."""
    tars = _read_list(_list_file(settings, transfer, _TAR_LIST))
    by_tar: dict[str, dict[str, str]] = {}
    for track, digest in _read_list(_list_file(settings, transfer, _TRACK_LIST)).items():
        by_tar.setdefault(track.split("/")[0], {})[track] = digest
    split = _split(settings, transfer)
    jobs, left = [], settings.target
    for name, digest in sorted(tars.items()):
        held = by_tar.get(Path(name).stem.rpartition("-")[2], {})
        wanted = held if split is None else {track: value for track, value in held.items() if track in split}
        if left <= 0:
            break
        if wanted:
            count = min(left, len(wanted)) if settings.partial_tars else len(wanted)
            jobs.append(TarJob(name, digest, wanted, len(held), count))
            left -= count
    if left > 0 and split is None:
        logger.warning(
            "the lists name %d tracks, which is all there is; --target asks for more", settings.target - left
        )
    return jobs


def _list_file(settings: DownloadSettings, transfer: Transfer, name: str) -> Path:
    place = settings.cache / Path(name).name
    if not place.exists():
        copy_or_fetch(settings.lists, name, place, transfer)
    return place


def _read_list(path: Path) -> dict[str, str]:
    """Parse lines of a SHA-256 and a name into {name: SHA-256}."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        digest, _, name = line.strip().partition(" ")
        if len(digest) != 64 or not name.strip():
            raise ConfigError(f"{path}: line {number} is not a SHA-256 and a name; delete the file to fetch it again")
        found[name.strip()] = digest
    if not found:
        raise ConfigError(f"{path}: an empty list; delete the file to fetch it again")
    return found


def _split(settings: DownloadSettings, transfer: Transfer) -> frozenset[str] | None:
    """Return the tracks of a published split, such as split-0/autotagging_genre-train."""
    if settings.split is None:
        return None
    place = settings.cache / f"{settings.split.replace('/', '_')}.tsv"
    try:
        if not place.exists():
            copy_or_fetch(settings.lists, f"splits/{settings.split}.tsv", place, transfer)
    except TransferError as error:
        raise ConfigError(
            f"--split {settings.split}: no such list ({error}); the published ones are called "
            "split-0/autotagging-train, split-0/autotagging_genre-test and the like"
        ) from None
    return frozenset(row["path"] for _, row in read_raw_table(place))


def _require_space(settings: DownloadSettings, jobs: Sequence[TarJob], sizes: Mapping[str, int | None]) -> None:
    known = [(job, size) for job in jobs if (size := sizes[job.name]) is not None]
    if len(known) < len(jobs):
        logger.warning("the server does not report the sizes of %d tars; the disk may fill up", len(jobs) - len(known))
    unpacked = sum(size * job.count // max(1, job.held) for job, size in known)
    at_once = sum(sorted((size for _, size in known), reverse=True)[: settings.workers])
    tars = sum(size for _, size in known) if settings.keep_tars else at_once
    settings.root.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(settings.root).free, unpacked + tars + _SPARE
    if jobs and free < needed:
        raise UserError(
            f"{settings.root}: {needed / 1e9:.1f} GB are needed ({unpacked / 1e9:.1f} for tracks, {tars / 1e9:.1f} for "
            f"tars), and {free / 1e9:.1f} GB are free; lower --target or --workers"
        )


# ------------------------------------------------------------------ one tar


def _fetch_tar(job: TarJob, url: str, settings: DownloadSettings, transfer: Transfer) -> None:
    audio_dir, tar = Path(settings.audio_dir), settings.cache / job.name
    missing = job.count - job.present(audio_dir)
    enough = None
    if job.count < len(job.tracks):

        def enough(part: Path) -> bool:
            fresh = (name for name, _ in _whole_members(part) if name in job.tracks and not (audio_dir / name).exists())
            return sum(1 for _ in fresh) >= missing

    whole = tar.exists() or transfer.fetch(url, tar, job.digest, enough)
    _unpack(job, tar if whole else partial(tar), audio_dir, missing)
    if not settings.keep_tars and job.present(audio_dir) >= job.count:
        for leftover in (tar, partial(tar), partial(tar).with_name(f"{partial(tar).name}.etag")):
            leftover.unlink(missing_ok=True)


def _unpack(job: TarJob, path: Path, audio_dir: Path, missing: int) -> None:
    """Write `missing` of the wanted tracks that do not exist yet."""
    with tarfile.open(path, "r:") as tar:
        for name, member in _whole_members(path):
            target = audio_dir / name
            if missing <= 0:
                break
            if name not in job.tracks or target.exists():
                continue
            source = tar.extractfile(member)
            assert source is not None
            digest = sha256()
            with atomic_path(target) as temporary:
                with temporary.open("wb") as file:
                    while block := source.read(_BLOCK):
                        digest.update(block)
                        file.write(block)
                if digest.hexdigest() != job.tracks[name]:
                    raise UserError(f"{job.name}: {name} does not have the SHA-256 that is published for it")
            missing -= 1
    if missing > 0:
        raise UserError(f"{job.name}: lacks {missing} tracks that the list of tracks names")


def _whole_members(path: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the files whose bytes are complete, in the order of the tar; callers use only names from the lists."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.offset_data + member.size > size:
                    return
                if member.isfile():
                    yield member.name.removeprefix("./"), member
    except tarfile.ReadError:  # the file ends within a header
        return


class _Sum:
    """A total of bytes that several threads receive."""

    def __init__(self, total: int, report: Callable[[int, int], None]) -> None:
        self.done, self.total, self.report = 0, total, report

    def add(self, count: int) -> None:
        self.done += count
        self.report(self.done, self.total)
