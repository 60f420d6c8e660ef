"""Lists of a dataset's items, with which the processes of a run verify that they see the same data.

Processes compare counts and digests. If those differ, they compare lines in buckets chosen by hash: a file that one
process lacks changes one bucket, and only the names in that bucket are exchanged.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

BUCKETS = 1024


class Inventory(NamedTuple):
    """The items of one entry of a dataset config."""

    name: str
    size: int  # number of items
    digest: str
    lines: Callable[[], Iterable[str]]  # an item each, such as "drums/a.flac (1234 bytes)"


def digest(parts: Iterable[bytes]) -> str:
    """Return sixteen hexadecimal digits of the parts."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        total.update(part)
    return total.hexdigest()


def of_lines(name: str, lines: Sequence[str]) -> Inventory:
    """Return the inventory of items that have a line of text each."""
    encoded = (f"{line}\n".encode("utf-8", "surrogateescape") for line in lines)
    return Inventory(name, len(lines), digest(encoded), lambda: lines)


def bucket_sums(lines: Iterable[str]) -> list[int]:
    """Return the sum of the lines' hashes in each bucket, which does not depend on their order."""
    sums = [0] * BUCKETS
    for line in lines:
        value = _hash(line)
        sums[value % BUCKETS] = (sums[value % BUCKETS] + value) % 2**64
    return sums


def lines_in_bucket(lines: Iterable[str], bucket: int) -> list[str]:
    """Return the lines whose hash falls into the bucket."""
    return [line for line in lines if _hash(line) % BUCKETS == bucket]


def _hash(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
