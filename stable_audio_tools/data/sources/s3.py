"""S3 and compatible stores: lists of objects, and their bytes as a stream that survives broken connections."""

import io
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.errors import AudioError, ConfigError
from stable_audio_tools.core.packages import require
from stable_audio_tools.data.faults import Fault
from stable_audio_tools.data.tar_stream import BUFFER, SHARD_SUFFIXES

logger = logging.getLogger(__name__)

_ATTEMPTS = 5  # without a byte of progress between them
_PAUSE_SECONDS = 0.5
_AT_ONCE = 1 << 20


class S3Account(NamedTuple):
    """Access to a store; None is taken from the environment and from ~/.aws, as for every AWS program."""

    profile: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False

    def client(self) -> Any:
        """Return a new boto3 client; a client belongs to one process."""
        boto3 = require("boto3", extra="s3")
        from botocore import UNSIGNED
        from botocore.config import Config

        options: JsonObject = {"retries": {"mode": "standard", "max_attempts": _ATTEMPTS}}
        if self.anonymous:
            options["signature_version"] = UNSIGNED
        with _explained("S3"):
            session = boto3.Session(profile_name=self.profile, region_name=self.region)
            return session.client("s3", endpoint_url=self.endpoint_url, config=Config(**options))


class S3Object(NamedTuple):
    """An object in a bucket."""

    bucket: str
    key: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def parse_url(url: str) -> S3Object:
    """Split `s3://bucket/prefix/` into bucket and prefix."""
    parts = urlsplit(url, allow_fragments=False)
    key = parts.path.lstrip("/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme != "s3" or not parts.netloc:
        raise ConfigError(f"expected an address like s3://bucket/folder/, got {url!r}")
    return S3Object(parts.netloc, key)


def list_objects(client: Any, url: str, suffixes: tuple[str, ...]) -> list[S3Object]:
    """Return objects at or below an address whose names end in one of the suffixes, sorted by name."""
    bucket, key = parse_url(url)
    if key.endswith(suffixes):
        return [S3Object(bucket, key)]
    prefix = f"{key.rstrip('/')}/" if key else ""
    with _explained(url):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return [S3Object(bucket, key) for key in sorted(keys) if key.lower().endswith(suffixes)]


class S3Stream(io.RawIOBase):
    """The bytes of one object from an offset; a broken connection is resumed where it broke."""

    def __init__(self, client: Any, source: S3Object, offset: int = 0) -> None:
        super().__init__()
        self.client, self.source, self.offset = client, source, offset
        self.size, self.etag = -1, ""
        self._body: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        for attempt in range(_ATTEMPTS):
            try:
                with _explained(self.source.url):
                    piece = self._read(len(buffer))
            except _Interrupted as error:
                self._drop()
                if attempt + 1 == _ATTEMPTS:
                    raise AudioError(
                        f"{self.source.url}: the connection broke {_ATTEMPTS} times at byte {self.offset:,} ({error})"
                    ) from None
                logger.info("%s: the connection broke at byte %d (%s)", self.source.url, self.offset, error)
                time.sleep(_PAUSE_SECONDS * 2**attempt)
                continue
            buffer[: len(piece)] = piece
            self.offset += len(piece)
            return len(piece)
        raise AssertionError("unreachable")

    def _read(self, size: int) -> bytes:
        if self.offset == self.size:
            return b""
        if self._body is None:
            self._open()
        piece: bytes = self._body.read(min(size, _AT_ONCE))
        if not piece and self.offset < self.size:
            raise _Interrupted("closed by the server")
        return piece

    def _open(self) -> None:
        """Continue at the current position, if the object is still the same version."""
        options = {"Range": f"bytes={self.offset}-"} if self.offset else {}
        if self.etag:
            options["IfMatch"] = self.etag
        answer = self.client.get_object(Bucket=self.source.bucket, Key=self.source.key, **options)
        self._body, self.etag = answer["Body"], answer["ETag"]
        self.size = self.offset + answer["ContentLength"]

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def close(self) -> None:
        self._drop()
        super().close()


class _Interrupted(OSError):
    """A transfer that may be resumed."""


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Convert errors of boto3 and botocore to messages with the address, interruptions to `_Interrupted`."""
    from botocore import exceptions as errors

    try:
        yield
    except (errors.ProfileNotFound, errors.NoRegionError, errors.InvalidRegionError) as error:
        raise ConfigError(f"{place}: {error}") from None
    except (errors.NoCredentialsError, errors.PartialCredentialsError) as error:
        raise ConfigError(
            f"{place}: {error}; run `aws configure`, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a "
            "`profile`, or set `anonymous` for a public bucket"
        ) from None
    except errors.ClientError as error:
        about = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status >= 500 or about.get("Code") in ("SlowDown", "RequestTimeout"):
            raise _Interrupted(str(error)) from None
        kind = ConfigError if about.get("Code") in _WRONG_ADDRESS else AudioError
        raise kind(f"{place}: {about.get('Message') or error} ({about.get('Code', status)})") from None
    except errors.EndpointConnectionError as error:
        raise AudioError(f"{place}: {error}; check the network and `endpoint_url`") from None
    except (errors.HTTPClientError, errors.IncompleteReadError, OSError) as error:
        raise _Interrupted(str(error) or type(error).__name__) from None


_WRONG_ADDRESS = ("NoSuchBucket", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "PermanentRedirect")


class S3Shelf:
    """Tar objects below an S3 address."""

    def __init__(self, address: str, account: S3Account) -> None:
        self.counts: list[int] | None = None
        self.faults: list[Fault] = []
        self.root, self.account = address, account
        self._client: Any = None
        self.objects = list_objects(self.client, address, SHARD_SUFFIXES)
        start = len(address.rstrip("/")) + 1
        self.names = [found.url[start:] or found.url.rpartition("/")[2] for found in self.objects]

    @property
    def client(self) -> Any:
        """Return the client of this process, created on first use."""
        if self._client is None:
            self._client = self.account.client()
        return self._client

    def path(self, number: int) -> str:
        return self.objects[number].url

    def open(self, number: int, offset: int) -> BinaryIO:
        source: S3Object = self.objects[number]
        return io.BufferedReader(S3Stream(self.client, source, offset), BUFFER)

    def __getstate__(self) -> JsonObject:
        return {**self.__dict__, "_client": None}
