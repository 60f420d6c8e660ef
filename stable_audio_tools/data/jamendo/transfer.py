"""Files over HTTP that survive dropped connections: received bytes are kept, the rest is requested by byte range."""

import itertools
import logging
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from threading import Event

from stable_audio_tools.core.errors import UserError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_LOOK_EVERY = 64  # chunks between questions whether enough has arrived
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0  # seconds

Enough = Callable[[Path], bool]


class TransferError(UserError):
    """A file that cannot be fetched."""


class _Dropped(Exception):
    """A connection that ended early, or a server that asks to retry later."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Transfer:
    """Settings of file transfers."""

    retries: int = 8  # consecutive, without a single byte
    timeout: float = 60.0  # seconds of silence
    first_wait: float = 1.0  # seconds before the second try, doubled for each further one
    stop: Event = field(default_factory=Event)  # set: give up at once
    report: Callable[[int], None] = lambda count: None  # bytes that arrived

    def size(self, url: str) -> int | None:
        """Return the length of a file, if the server reports it."""
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                length = response.headers.get("Content-Length")
                return int(length) if length else None
        except (OSError, HTTPException):  # fetching reports the error
            return None

    def fetch(self, url: str, target: Path, digest: str | None = None, enough: Enough | None = None) -> bool:
        """Fetch a file to `target` and return True; return False as soon as `enough` accepts the partial file.

        Until the file is complete and its SHA-256 is `digest`, it is `target` with the suffix `.part`, where a later
        call continues.
        """
        part = partial(target)
        part.parent.mkdir(parents=True, exist_ok=True)
        self.report(_size(part))
        for last in (False, True):
            if not self._complete(url, part, enough):
                return False
            if digest is None or hash_file(part) == digest:
                part.replace(target)
                _validator(part).unlink(missing_ok=True)
                return True
            part.unlink()
            if not last:
                logger.warning("%s: what arrived does not have the right SHA-256; it is fetched again", url)
        raise TransferError(f"{url}: does not have the SHA-256 that is published for it; try another --mirror")

    def _complete(self, url: str, part: Path, enough: Enough | None) -> bool:
        failures = 0
        while True:
            before = _size(part)
            try:
                return self._receive(url, part, enough)
            except _Dropped as dropped:
                failures = 1 if _size(part) > before else failures + 1
                if failures > self.retries:
                    raise TransferError(f"{url}: {dropped} ({self.retries} retries; start again to go on)") from None
                wait = max(dropped.wait, min(_LONGEST_WAIT, self.first_wait * 2 ** (failures - 1)))
                logger.info("%s: %s; going on at byte %d in %.0f s", url, dropped, _size(part), wait)
                if self.stop.wait(wait):
                    raise TransferError(f"{url}: stopped") from None

    def _receive(self, url: str, part: Path, enough: Enough | None) -> bool:
        """Send one request, and append its response at the end of the file."""
        start, known = _size(part), _validator(part)
        if start and enough is not None and enough(part):
            return False
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and known.exists():
            headers["If-Range"] = known.read_text()  # another file by that name then comes whole
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=self.timeout) as response:
                return self._append(url, response, part, enough)
        except urllib.error.HTTPError as error:
            if error.code == 416 and _total(error.headers.get("Content-Range")) == start:
                return True
            if error.code == 416:
                part.unlink()
                raise _Dropped("the file is shorter than what arrived of it; it is fetched again") from None
            if error.code in _TEMPORARY:
                raise _Dropped(f"the server answers {error.code}", _seconds(error.headers.get("Retry-After"))) from None
            raise TransferError(f"{url}: the server answers {error.code} ({error.reason})") from None
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno == 28:
                raise TransferError(f"{part}: the disk is full") from None
            reason = getattr(error, "reason", error)
            raise _Dropped(f"the connection failed ({reason or type(error).__name__})") from None

    def _append(self, url: str, response: HTTPResponse, part: Path, enough: Enough | None) -> bool:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {_size(part)}-"):
            part.unlink()
            raise _Dropped("the server sends another range than was asked for; the file is fetched again")
        total = (
            _total(response.headers.get("Content-Range")) if resumed else _number(response.headers["Content-Length"])
        )
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator and not validator.startswith("W/"):
            _validator(part).write_text(validator)
        if not resumed and _size(part):
            self.report(-_size(part))
        with part.open("ab" if resumed else "wb") as file:
            for count in itertools.count(1):
                if self.stop.is_set():
                    raise TransferError(f"{url}: stopped")
                if not (chunk := response.read(_CHUNK)):
                    break
                file.write(chunk)
                self.report(len(chunk))
                if enough is not None and count % _LOOK_EVERY == 0:
                    file.flush()
                    if enough(part):
                        return False
        if total is not None and _size(part) < total:
            raise _Dropped(f"the connection ended at byte {_size(part)} of {total}")
        return True


def copy_or_fetch(source: str, name: str, target: Path, transfer: Transfer) -> None:
    """Copy or fetch `name` below a folder or an address to `target`."""
    if "://" in source:
        transfer.fetch(f"{source.rstrip('/')}/{name}", target)
        return
    if not Path(source, name).is_file():
        raise UserError(f"{Path(source, name)}: no such file")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(source, name), target)


def partial(target: Path) -> Path:
    """Return the path of an incomplete file."""
    return target.with_name(target.name + ".part")


def hash_file(path: Path) -> str:
    """Return the SHA-256 in hexadecimal."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _validator(part: Path) -> Path:
    """Return the header value that identifies the version of the file on the server."""
    return part.with_name(part.name + ".etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _total(content_range: str | None) -> int | None:
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", content_range or "")
    return int(match[1]) if match else None


def _seconds(text: str | None) -> float:
    return min(_LONGEST_WAIT, float(text)) if text and text.isdigit() else 0.0
