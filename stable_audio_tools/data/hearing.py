"""What a whole audio file sounds like to a check: silence, clipping, samples that are no numbers."""

from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.data import audio_io
from stable_audio_tools.data.sources.audio_dir import SHORTEST_SECONDS
from stable_audio_tools.data.transforms import SILENCE

Flaw = Literal["short", "silent", "not finite", "clipped"]

_FULL_SCALE = 0.9999
_CLIPPED_RUN = 3  # samples in a row at full scale: a peak may touch it once or twice
_CLIPPED_FRACTION = 1e-4


class Heard(NamedTuple):
    """What decoding one file told."""

    flaws: list[tuple[Flaw, str]]
    digest: bytes  # of the samples and their rate


def hear(path: str | Path, rate: int) -> Heard:
    """Decode a file of `rate` Hz to its end. Raises AudioError where that cannot be done."""
    digest, peak, samples, clipped, frames = blake2b(str(rate).encode(), digest_size=16), 0.0, 0, 0, 0
    for block in audio_io.blocks(path):
        digest.update(block.tobytes())
        level = np.abs(block)
        peak = max(peak, float(level.max())) if np.isfinite(level.max()) else float("nan")
        if np.isnan(peak):
            return Heard([("not finite", "holds NaN or infinite samples")], digest.digest())
        samples, frames, clipped = samples + block.size, frames + len(block), clipped + _in_runs(level >= _FULL_SCALE)
    flaws: list[tuple[Flaw, str]] = []
    if frames < SHORTEST_SECONDS * rate:
        flaws.append(("short", f"{frames} samples"))
    elif peak < SILENCE:
        flaws.append(("silent", "below -60 dB throughout"))
    if clipped > _CLIPPED_FRACTION * samples:
        flaws.append(("clipped", f"{100 * clipped / samples:.2f} % of its samples lie at full scale in runs"))
    return Heard(flaws, digest.digest())


def _in_runs(marked: NDArray[np.bool_]) -> int:
    """How many marked samples begin a run of `_CLIPPED_RUN`, over all channels."""
    if len(marked) < _CLIPPED_RUN or not marked.any():
        return 0
    starts = marked[: len(marked) - _CLIPPED_RUN + 1].copy()
    for shift in range(1, _CLIPPED_RUN):
        starts &= marked[shift : len(starts) + shift]
    return int(starts.sum())
