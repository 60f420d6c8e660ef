"""Many strings in two arrays: a million paths without a million objects, shared by forked workers."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


class PackedStrings:
    """An immutable list of strings."""

    def __init__(self, blob: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> "PackedStrings":
        """Pack strings; names that are no valid text (surrogates from the file system) survive."""
        blob, ends = bytearray(), []
        for text in strings:
            blob += text.encode("utf-8", "surrogateescape")
            ends.append(len(blob))
        return cls(np.frombuffer(bytes(blob), np.uint8), np.asarray(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.blob[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
